"""What is compared: four kinds of search, and what their runs came to."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from experiments import spaces
from experiments.compare.settings import Compare
from experiments.running.pool import Run
from experiments.spaces import Task
from experiments.spaces.settings import FinalRun, SearchRun

SAMPLERS = ("controller", "uniform")


class Arm(NamedTuple):
    """A kind of search."""

    method: str
    sampler: str

    @property
    def name(self) -> str:
        return f"{self.method}_{self.sampler}"

    @property
    def title(self) -> str:
        """Of the method."""
        return "WPL" if self.method == "wpl" else "plain"

    @property
    def label(self) -> str:
        return f"{self.title}, {self.sampler}"


ARMS = tuple(Arm(method, sampler) for sampler in SAMPLERS for method in ("none", "wpl"))


class Plan(NamedTuple):
    """What is to be compared."""

    config: Compare
    search: SearchRun  # what all searches have in common
    final: FinalRun  # what all final trainings have in common
    sizes: dict[str, dict]  # of "search" and "final": what their data decide about the space
    facts: dict[str, dict]  # of both: what there is to say of their data
    data: dict[str, dict]  # of both: by what their data are known
    out: Path
    runs: Path

    @property
    def task(self) -> Task:
        return spaces.find(self.config.space)


class Searched(NamedTuple):
    """A search that has finished."""

    metrics: dict[str, np.ndarray]  # shape=(epochs,), NaN where there was nothing to measure
    summary: dict
    cell: dict
    probes: Sequence[dict] = ()  # random cells' errors on the shared weights at the end, by seed

    def after_warmup(self, name: str) -> np.ndarray:
        """A metric of the epochs that plasticity, if any, has acted in."""
        return self.metrics[name][self.summary["configuration"]["warmup_epochs"] :]


class Results(NamedTuple):
    """What the runs came to; None, or no entry, for one that failed."""

    strength: float
    candidates: dict[float, list[Searched | None]]  # by strength, of the seeds that choose it
    arms: dict[Arm, list[Searched | None]]  # of each seed
    finals: dict[tuple[str, int], dict]  # by name of an arm or cell, and seed: summaries
    runs: list[Run]
    failed: list[str]  # a line each
