"""What a grid leaves in its folder, and all that its report and figures are drawn from."""

import dataclasses
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from experiments import rank
from experiments.running import measures, records
from experiments.running.intervals import Number, difference
from experiments.running.wording import count, show

METRICS = (*measures.ERRORS, *measures.FORGETTING, *measures.OTHERS)
DIGITS = {"err1_mean": 1, "err2_mean": 1, "err2_median": 1, "reward": 3}  # 2 of the others
HIGH_IS_GOOD = (
    "agreement",
    "reward",
    "tau",
    "tau_within_epoch",
    *(name for name in rank.COLUMNS if name != "regret"),
)


class Measure(NamedTuple):
    """A number of every arm: how it is called and written."""

    key: str  # in summary.json
    heading: str
    digits: int
    scale: float = 1
    size: bool = False  # a number of parts, which is neither better nor worse

    @property
    def low_is_good(self) -> bool:
        return self.key.rpartition("/")[2] not in HIGH_IS_GOOD

    def show(self, number: Number | None) -> str:
        if self.size:
            return count(number and number["mean"] and round(number["mean"]))
        return show(number, self.digits, self.scale)


@dataclasses.dataclass(frozen=True)
class Saved:
    """The files of a grid."""

    summary: dict[str, Any]  # summary.json
    curves: dict[str, np.ndarray]  # "<arm>/<metric>" of shape (seeds, epochs), and "<arm>/epoch"
    architectures: dict[str, Any]  # by its file's name in cells, a cell that a search has found

    def write(self, folder: Path) -> None:
        """Write the files, the summary last."""
        cells = folder / "cells"
        for path in {*cells.glob("*.json")} - {cells / name for name in self.architectures}:
            path.unlink()  # of an earlier command
        if self.architectures:
            cells.mkdir(exist_ok=True)
        for name, cell in self.architectures.items():
            records.write_json(cells / name, cell)
        records.write_atomically(folder / "curves.npz", records.npz(self.curves))
        records.write_json(folder / "summary.json", self.summary)

    @property
    def arms(self) -> list[dict[str, Any]]:
        return self.summary["arms"]

    @property
    def seeds(self) -> int:
        """How many searches of each arm there were to be."""
        return self.summary["configuration"]["grid"]["seeds"]

    @property
    def methods(self) -> list[str]:
        """What is compared at every place, the reference first."""
        return list(dict.fromkeys(arm["method"] for arm in self.arms))

    @property
    def references(self) -> list[str]:
        """What differences are from: the first method, and the second if there are more."""
        return self.methods[: 2 if len(self.methods) > 2 else 1]

    def others(self, reference: str) -> list[str]:
        """The methods whose differences from a reference no other one of them gives."""
        return self.methods[1 + self.methods.index(reference) :]

    def less(self, arm: Mapping[str, Any], reference: str, key: str) -> Number | None:
        """An arm's number less that of a reference at the same place, paired by seed."""
        other = next(
            a for a in self.arms if a["method"] == reference and a["place"] == arm["place"]
        )
        pair = arm["numbers"].get(key), other["numbers"].get(key)
        return None if None in pair else difference(*pair)

    @property
    def axes(self) -> dict[str, list[str]]:
        """By flag, the values that were tried."""
        return self.summary["axes"]

    @property
    def places(self) -> dict[str, list[dict[str, Any]]]:
        """By what is varied, in words, the arms there."""
        found: dict[str, list[dict[str, Any]]] = {}
        for arm in self.arms:
            found.setdefault(words(arm["place"]), []).append(arm)
        return found

    @property
    def orders(self) -> list[str]:
        """By what all architectures were ranked; none without a truth."""
        keys = [key.rpartition("/") for key in self.arms[0]["numbers"]]
        return [order for order, _, statistic in keys if statistic == "kendall"]

    # How errors are written.

    @property
    def error(self) -> str:
        return self.summary["task"]["error"]

    @property
    def unit(self) -> str:
        return self.summary["task"]["unit"]

    @property
    def scale(self) -> float:
        return self.summary["task"]["scale"]

    def measure(self, when: str, name: str) -> Measure:
        """Of searches, ``"after_warmup"`` or in the ``"last_epoch"``."""
        heading, scale = measures.OTHERS.get(name, ""), 1.0
        if name in measures.ERRORS:
            heading, scale = measures.ERRORS[name] + self.unit, self.scale
        elif name in measures.FORGETTING:  # differences of percentages are in points
            unit = " (points)" if "%" in self.unit else self.unit
            heading, scale = f"forgetting, {measures.FORGETTING[name]}{unit}", self.scale
        heading += ", last epoch" if when == "last_epoch" else ""
        return Measure(f"{when}/{name}", heading, DIGITS.get(name, 2), scale)

    def of_ranking(self, order: str, statistic: str) -> Measure:
        """Of the ranking of all architectures, by their errors say."""
        digits = rank.digits(statistic)
        return Measure(f"{order}/{statistic}", rank.COLUMNS[statistic], digits)

    @property
    def of_searches(self) -> list[Measure]:
        last = [self.measure("last_epoch", name) for name in ("err2_mean", "forgetting_mean")]
        minutes = Measure("seconds", "minutes", 1, 1 / 60)
        agreed = [Measure("probes/agreement", "agreement of seeds", 2)] if self.agreed else []
        every = [*(self.measure("after_warmup", n) for n in METRICS), *last, *agreed, minutes]
        return [m for m in every if m.key in self.arms[0]["numbers"]]  # early ones lack some

    @property
    def agreed(self) -> bool:
        """Whether searches of several seeds have measured the same random architectures."""
        numbers = (arm["numbers"].get("probes/agreement") for arm in self.arms)
        return any(number and number["mean"] is not None for number in numbers)

    @property
    def cells(self) -> dict[str, Any] | None:
        """What is known of cells, if they were trained."""
        return self.summary.get("cells")

    @property
    def best(self) -> dict[str, dict[str, Any]]:
        """By arm, of its cells whose files are there that with the lowest validation error."""
        best: dict[str, dict[str, Any]] = {}
        found = [c for c in (self.cells or {}).get("found", []) if c["file"] in self.architectures]
        for cell in sorted(found, key=lambda c: c["validation"]):
            best.setdefault(cell["arm"], cell)
        return {arm["name"]: best[arm["name"]] for arm in self.arms if arm["name"] in best}

    @property
    def of_cells(self) -> list[Measure]:
        """Of the cells that searches find: their errors, and how random ones are ranked."""
        headings = {"search": "in the search", "validation": "validation", "test": "test"}
        errors = [
            Measure(f"cells/{part}", f"{heading}{self.unit}", 2, self.scale)
            for part, heading in headings.items()
        ]
        tau = Measure("cells/tau", "τ with training alone", 2)
        return [*errors, tau, Measure("cells/parameters", "parameters", 0, size=True)]

    @property
    def families(self) -> dict[str, dict[str, Any]]:
        """Arms whose names differ in a number at their end, by it; another is its own family."""
        found: dict[str, dict[str, Any]] = {}
        for arm in self.arms:
            number = re.search(r" [\d.,e+-]+$", arm["name"])
            family = arm["name"][: number.start()] if number else arm["name"]
            found.setdefault(family, {})[number[0].strip() if number else ""] = arm
        families = {}
        for family, arms in found.items():
            first, *others = arms.values()
            families[family if others else first["name"]] = arms if others else {"": first}
        return families


def words(place: Mapping[str, str]) -> str:
    """A place as it is written."""
    return ", ".join(f"{flag}={value}" for flag, value in place.items())


def read(folder: Path) -> Saved:
    """The files of a grid that has finished.

    Raises:
      ValueError: in a line, if they are not there, or are not those of a grid.
    """
    try:
        summary = json.loads((folder / "summary.json").read_bytes())
        with (folder / "curves.npz").open("rb") as opened, np.load(opened) as file:
            curves = dict(file)
        cells = {p.name: json.loads(p.read_bytes()) for p in (folder / "cells").glob("*.json")}
        of_grid = summary["configuration"]["grid"]
        needed = {"task", "baselines", "arms", "rule", "searches"} - summary.keys()
        needed |= {f"{a['name']}/epoch" for a in summary["arms"] if a["runs"]} - curves.keys()
        if needed or not summary["arms"] or not isinstance(of_grid["seeds"], int):
            raise KeyError(min(needed, default="arms and seeds"))
    except Exception as error:  # of many kinds, as of records.read_npz
        said = str(error) if isinstance(error, OSError) else f"{type(error).__name__}, {error}"
        raise ValueError(
            f"{folder} must hold summary.json, curves.npz and any cells of a grid, as "
            f"experiments.grid writes them to --out: {' '.join(said.split())}"
        ) from error
    return Saved(summary, curves, cells)
