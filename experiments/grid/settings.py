"""Settings of a grid of searches."""

import dataclasses
from pathlib import Path
from typing import Annotated

import tyro

from wpl_jax.settings import Few, Seed, Several, Size, check


@dataclasses.dataclass(frozen=True)
class Grid:
    """Settings."""

    space: str = "rnn"
    """rnn: recurrent cells. micro_cnn: cells for images. nas_bench_201: cells for images that are \
all published. module:Class: a task of your own."""
    preset: str = "smoke"
    """Of all searches. smoke: embedded data, minutes. cpu: real data. paper: for a GPU."""
    data_dir: Path | None = None
    """Folder of the data: their own default if not given."""
    search_flags: str = ""
    """More flags for every search, as in --search-flags='--epochs 30 --probes 100'."""

    arms: tuple[str, ...] = ()
    """What is compared, each 'NAME: FLAGS'; differences are from the first, and if there are more \
than two, from the second as well. Among the flags of \
'NAME: FLAGS | FLAGS | …' searches of their own choose."""
    vary: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """FLAG=V1,V2,… runs every arm with each of the values; may be given several times, for every \
combination. Two of them are the axes of maps, others are maps side by side. A value may bring \
more flags, as in 'search.batches=1 --search.architectures 400,40 --search.architectures 10'."""
    seeds: Few = 5
    """Searches of each arm, with the seeds 0, 1, … At least 2 for intervals; 1 will do for maps."""
    trial_seeds: Annotated[tuple[Seed, ...], Several()] = (1000, 1001)
    """Seeds of the searches that choose among an arm's flags; used for nothing else."""

    truth: Path | None = None
    """Rank all architectures after each search, and judge that by this file of true accuracies."""
    column: str | None = None
    """Which accuracy of the truth, if there are several."""
    rank_batches: Size = 10
    """Validation batches that every architecture is measured on for that."""
    average_isomorphic: bool = False
    """Predict of each architecture the mean over those that the space says compute the same."""

    cells: bool = False
    """Train the cell that each search finds from scratch, and random and published ones beside."""
    random_cells: Few = 20
    """Random cells to train for that, those of the seeds 0, 1, …; searches with --probes are also \
judged by how they rank them."""
    final_flags: str = ""
    """More flags for these trainings, as in --final-flags='--epochs 100'."""

    out: Path | None = None
    """Folder of the report; results/grid/<space>/<preset> if not given."""
    runs: Path | None = None
    """Folder of all runs; the one of the report with _runs at its end if not given."""
    together: bool = False
    """Train all searches of an arm as one program, those that choose its flags and those of every \
flag with every seed: for a GPU, which a single small network leaves idle."""
    jobs: Few = 1
    """Runs at a time, which share the cores; JAX gives most of a GPU's memory to the first."""

    def __post_init__(self) -> None:
        """Refuse what cannot work."""
        check(self)
        if self.truth is None and (self.column is not None or self.average_isomorphic):
            raise ValueError("--column and --average-isomorphic need --truth")
        if self.final_flags and not self.cells:
            raise ValueError("--final-flags needs --cells")
