"""Settings of the comparison of searches with and without plasticity."""

import dataclasses
from pathlib import Path
from typing import Annotated

from wpl_jax.settings import Few, Positive, Range, Seed, Several, Unfit, check


@dataclasses.dataclass(frozen=True)
class Compare:
    """Settings; the defaults are those of the preset that --preset names."""

    space: str = "rnn"
    """rnn: recurrent cells. micro_cnn: cells for images. nas_bench_201: cells for images that are \
all published. module:Class: a task of your own."""
    preset: str = "paper"
    """Of the searches and of the final trainings. smoke: minutes. cpu: hours. paper: for a GPU."""
    data_dir: Path | None = None
    """Of the searches and of the final trainings: their own default if not given."""
    search_flags: str = ""
    """More flags for every search, as in --search-flags='--epochs 30'."""
    final_flags: str = ""
    """More flags for every final training, as in --final-flags='--epochs 100'."""
    out: Path | None = None
    """Folder of the report; results/compare/<space>/<preset> if not given."""
    runs: Path | None = None
    """Folder of all runs; results/compare/<space>/<preset>_runs if not given."""

    seeds: Annotated[int, Range(2, 1_000)] = 3
    """Searches of each kind, with the seeds 0, 1, … At least 2, for an interval over seeds."""
    strengths: Annotated[tuple[Positive, ...], Several(1)] = (60.0,)
    """Plasticity strengths to choose from, by searches of their own; one is simply taken."""
    strength_seeds: Annotated[tuple[Seed, ...], Several(1)] = (1000, 1001)
    """Seeds of the searches that choose the strength; used for nothing else."""
    random_cells: Annotated[int, Range(2, 100_000)] | None = None
    """Random cells to train, at least 2, and to rank, if 3 or more; --seeds of them by default."""

    jobs: Few = 1
    """Runs at a time, which share the cores; JAX gives most of a GPU's memory to the first."""

    def __post_init__(self) -> None:
        """Refuse what cannot work."""
        check(self)
        if min(self.strength_seeds) < self.seeds:
            raise Unfit(
                self, "strength_seeds", f"seeds >= {self.seeds}, which no other search uses"
            )
