"""What a comparison leaves in its folder, and all that its report and figures are drawn from."""

import dataclasses
import json
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from experiments import spaces
from experiments.compare.plan import Arm
from experiments.compare.settings import Compare
from experiments.running import records
from experiments.running.measures import FORGETTING
from experiments.spaces import Task
from experiments.spaces.settings import FinalRun, SearchRun

Settings = TypeVar("Settings")

# What is measured in every epoch, by name in metrics.jsonl.
METRICS = (*FORGETTING, "forgetting_share", "tau_within_epoch", "err2_mean", "reward")
# Where the error of a cell is measured: heading.
ERRORS = {"derived": "in the search", "validation": "validation", "test": "test"}


def error_key(task: Task, part: str) -> str:
    """By which an error is stored: of a part of the data, or in the search."""
    return f"{part}_{records.key(task.error)}"


@dataclasses.dataclass(frozen=True)
class Saved:
    """The files of a comparison."""

    summary: dict[str, Any]  # summary.json
    curves: dict[str, np.ndarray]  # "epochs"; "<arm>/<metric>" of shape (seeds, epochs)
    cells: dict[str, dict]  # by "<arm>_<seed>", the architectures that were found

    def write(self, folder: Path) -> None:
        """Write the files, the summary last."""
        (folder / "cells").mkdir(exist_ok=True)
        for name, cell in self.cells.items():
            records.write_json(folder / "cells" / f"{name}.json", cell)
        records.write_atomically(folder / "curves.npz", records.npz(self.curves))
        records.write_json(folder / "summary.json", self.summary)

    @cached_property
    def task(self) -> Task:
        return spaces.find(self.search.space)

    @cached_property
    def search(self) -> SearchRun:
        """What all searches have in common."""
        return self._settings("search", "searches")

    @cached_property
    def final(self) -> FinalRun:
        """What all final trainings have in common."""
        return self._settings("final", "finals")

    @cached_property
    def config(self) -> Compare:
        return restored(Compare(), self.summary["configuration"]["compare"])

    def _settings(self, name: str, presets: str) -> Any:
        stored = self.summary["configuration"][name]
        there = getattr(spaces.find(stored["space"]), presets)
        return restored(there.get(stored["preset"], next(iter(there.values()))), stored)

    def was_set(self, name: str) -> dict[str, object]:
        """The settings of "search" or "final" as they are stored."""
        return self.summary["configuration"][name]

    def key(self, part: str) -> str:
        return error_key(self.task, part)

    @property
    def figure(self) -> str:
        """The name of the figure of forgetting: the paper's, where it has one."""
        return "forgetting" if self.task.figure is None else f"figure{self.task.figure}"

    @property
    def figure_of_cells(self) -> str:
        return "best_cells" if self.task.figure is None else "figure5"

    @property
    def warmup(self) -> int:
        return self.search.warmup_epochs

    @property
    def strength(self) -> float:
        return self.summary["strength"]["chosen"]

    @property
    def unit(self) -> str:
        """Of errors, such as ``"%"``; empty where they have none."""
        return self.task.unit.strip(" ()")

    def arm(self, arm: Arm) -> dict:
        """What is known of a kind of search."""
        return next(found for found in self.summary["arms"] if found["name"] == arm.name)

    def curve(self, arm: Arm, metric: str) -> np.ndarray:
        return self.curves[f"{arm.name}/{metric}"]

    @property
    def best(self) -> dict[str, dict]:
        """By arm, its cell with the lowest validation error: trained alone, or else in its search.

        An arm without a search that has finished has none.
        """
        keys = [self.key("validation"), self.key("derived")]
        found: dict[str, dict] = {}
        for cell in sorted(self.summary["cells"], key=lambda c: [_last(c[key]) for key in keys]):
            found.setdefault(cell["name"], cell)
        return {
            arm["name"]: found[arm["name"]] for arm in self.summary["arms"] if arm["name"] in found
        }


def read(folder: Path) -> Saved:
    """The files of a comparison that has finished.

    Raises:
      ValueError: in a line, if they are not there, or are not those of a comparison.
    """
    try:
        summary = json.loads((folder / "summary.json").read_bytes())
        with np.load(folder / "curves.npz") as file:
            curves = dict(file)
        cells = {p.stem: json.loads(p.read_bytes()) for p in (folder / "cells").glob("*.json")}
        saved = Saved(summary, curves, cells)
        if "compare" not in summary["configuration"]:
            raise KeyError("compare")
    except (OSError, KeyError, json.JSONDecodeError) as error:
        raise ValueError(
            f"{folder} must hold summary.json, curves.npz and cells of a comparison, as "
            f"experiments.compare writes them to --out: {error}"
        ) from error
    return saved


def restored(settings: Settings, stored: dict[str, Any]) -> Settings:
    """Settings with what JSON has kept of others; what they do not have is left out."""
    changes: dict[str, Any] = {}
    for field in dataclasses.fields(settings):
        if field.name not in stored:
            continue
        value, here = stored[field.name], getattr(settings, field.name)
        if dataclasses.is_dataclass(here):
            value = restored(here, value)
        elif isinstance(value, list):
            value = _tuple(value)
        changes[field.name] = value
    return dataclasses.replace(settings, **changes)


def _tuple(value):
    return tuple(map(_tuple, value)) if isinstance(value, list) else value


def _last(error):
    return (error is None, error or 0.0)
