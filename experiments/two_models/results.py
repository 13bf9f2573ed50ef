"""What a run has found: its arrays, which are kept, and the numbers that are read off them."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from experiments.running import records
from experiments.running.intervals import differs_from_0, finite
from experiments.two_models.settings import TwoModels
from experiments.two_models.training import NEVER, Accuracies, Outcome, compared
from wpl_jax.forgetting import mean_interval

METHODS = ("plain", "L2 anchor", "frozen", "WPL")
RIVALS = ("plain", "L2 anchor", "frozen")  # that WPL is compared with, seed by seed


class Condition(NamedTuple):
    """What B meets: how far A was trained, and how many of its layers they share."""

    stop_at: float
    shared: int

    @property
    def name(self) -> str:
        if self.shared == 4:
            return trained_until(self.stop_at)
        return f"{self.shared} layer{'s' if self.shared > 1 else ''} shared"


def trained_until(stop_at: float) -> str:
    return "A converged" if stop_at == NEVER else f"A stopped at {100 * stop_at:g} %"


class Check(NamedTuple):
    """How else one of the methods is trained, A having converged, to see what its failure is of."""

    method: str
    rate: float = 1.0  # of B's learning rate
    with_momentum: bool = True
    additive: bool = False

    def strengths(self, config: TwoModels) -> list[float]:
        """First 0, which is plain training."""
        return [0.0, *(config.wpl_strengths if self.method == "WPL" else config.check_strengths)]


CHECKS = {
    "additive form": Check("L2 anchor", additive=True),
    "no momentum": Check("L2 anchor", with_momentum=False),
    "half the learning rate": Check("L2 anchor", rate=0.5),
    "a quarter of the learning rate": Check("L2 anchor", rate=0.25),
    "1.5 times the learning rate": Check("WPL", rate=1.5),
}


class Regime(NamedTuple):
    """How plain training fares over learning rates (rows) and momenta (columns) of B."""

    forgetting: dict[float, np.ndarray]  # by ``stop_at``: accuracy that A lost, mean over seeds
    worst_b: np.ndarray  # the lowest accuracy of B in any condition and seed
    learning_rate: float  # the chosen ones
    momentum: float


class Result(NamedTuple):
    """Of one condition. Leading axis: seeds, in ``outcome`` followed by the compared methods."""

    condition: Condition
    before: Accuracies  # of A, before B trains
    outcome: Outcome


class Run(NamedTuple):
    """A finished run."""

    config: TwoModels
    regime: Regime
    results: dict[str, Result]  # by the condition's name
    checks: dict[str, Outcome]  # by their names in ``CHECKS``
    origin: dict[str, object]  # the command, the versions, the machine, the seconds


def choose(config: TwoModels, outcome: Outcome) -> dict[str, int]:
    """For each method the strength with the highest validation accuracy, A's plus B's, over seeds.

    The same rule and as many strengths for WPL and for the L2 anchor.
    """
    total = (outcome.final_a.validation + outcome.final_b.validation).mean(0)
    best: dict[str, int] = {}
    for place, (name, _) in enumerate(compared(config)):
        if name not in best or total[place] > total[best[name]]:
            best[name] = place
    return best


# --- Kept in files --------------------------------------------------------------------------------


def save(run: Run, folder: Path) -> None:
    """Write curves.npz and summary.json, from which :func:`load` reads the run again."""
    names, strengths = zip(*compared(run.config), strict=True)
    arrays = {"methods": np.array(names), "strengths": np.array(strengths)}
    for name, result in run.results.items():
        arrays |= flat(f"{name}/before", result.before) | flat(name, result.outcome)
    for name, outcome in run.checks.items():
        arrays |= flat(f"check: {name}", outcome)
    if run.regime.forgetting:
        arrays["regime map/worst_b"] = run.regime.worst_b
    for stop, values in run.regime.forgetting.items():
        arrays[f"regime map/{trained_until(stop)}"] = values
    records.write_atomically(folder / "curves.npz", records.npz(arrays))
    records.write_json(folder / "summary.json", summarise(run))


def load(folder: Path) -> Run:
    """The run whose summary.json and curves.npz are in a folder.

    Raises:
      OSError: if they cannot be read.
      ValueError: if they are not such files.
    """
    summary = json.loads((folder / "summary.json").read_text())
    with np.load(folder / "curves.npz") as file:
        arrays = dict(file)
    try:
        settings = summary.pop("configuration")
        config = TwoModels(
            **{k: tuple(v) if isinstance(v, list) else v for k, v in settings.items()}
        )
        chosen = summary["regime"]
        regime = Regime(
            {
                stop: arrays[f"regime map/{trained_until(stop)}"]
                for stop in ((NEVER, *config.stop_at) if config.map_learning_rates else ())
            },
            arrays.get("regime map/worst_b", np.empty((0, 0))),
            chosen["learning_rate"],
            chosen["momentum"],
        )
        conditions = [
            Condition(c["stop_at"] or NEVER, c["shared_layers"]) for c in summary.pop("conditions")
        ]
        results = {
            c.name: Result(
                c, unflat(f"{c.name}/before", Accuracies, arrays), unflat(c.name, Outcome, arrays)
            )
            for c in conditions
        }
        checks = {name: unflat(f"check: {name}", Outcome, arrays) for name in summary.pop("checks")}
    except (KeyError, TypeError) as error:
        raise ValueError(
            f"{folder} has not what this version writes ({error}): run the experiment again"
        ) from None
    return Run(config, regime, results, checks, {k: summary[k] for k in summary if k != "regime"})


def flat(prefix: str, values: NamedTuple) -> dict[str, np.ndarray]:
    """Arrays in named tuples, by their names joined by ``/``."""
    found: dict[str, np.ndarray] = {}
    for name, value in values._asdict().items():
        path = f"{prefix}/{name}"
        found |= flat(path, value) if hasattr(value, "_asdict") else {path: np.asarray(value)}
    return found


def unflat(prefix: str, kind: type, arrays: Mapping[str, np.ndarray]):
    """The inverse of :func:`flat`."""
    nested = {"final_a": Accuracies, "final_b": Accuracies}
    return kind(
        **{
            name: unflat(f"{prefix}/{name}", nested[name], arrays)
            if name in nested
            else arrays[f"{prefix}/{name}"]
            for name in kind._fields
        }
    )


# --- Numbers --------------------------------------------------------------------------------------


def summarise(run: Run) -> dict:
    """The numbers of the run, of test images; means over seeds with 95 % intervals."""
    regime = run.regime
    return {
        "conditions": [condition_summary(run.config, r) for r in run.results.values()],
        "checks": {
            name: [
                {"strength": strength} | of_strength(outcome, i)
                for i, strength in enumerate(CHECKS[name].strengths(run.config))
            ]
            for name, outcome in run.checks.items()
        },
        "regime": {
            "learning_rate": regime.learning_rate,
            "momentum": regime.momentum,
            "learning_rates": run.config.map_learning_rates,
            "momenta": run.config.map_momenta,
            "forgetting": {
                trained_until(s): np.round(f.astype(float), 4).tolist()
                for s, f in regime.forgetting.items()
            },
            "worst_b": np.round(regime.worst_b.astype(float), 4).tolist(),
        },
        "configuration": dataclasses.asdict(run.config) | {"out": None, "data_dir": None},
    } | run.origin


def condition_summary(config: TwoModels, result: Result) -> dict:
    """Of one condition: each method at its chosen strength, and what differs, paired by seed."""
    outcome, before = result.outcome, result.before.test
    chosen = choose(config, outcome)
    of_a = {name: outcome.final_a.test[:, place] for name, place in chosen.items()}
    of_b = {name: outcome.final_b.test[:, place] for name, place in chosen.items()}
    lost = interval(before - of_a["plain"])
    summary: dict = {
        "name": result.condition.name,
        "stop_at": None if result.condition.stop_at == NEVER else result.condition.stop_at,
        "shared_layers": result.condition.shared,
        "seeds": config.seeds,
        "before_a": interval(before),
        "plain_loses": lost,
    }
    for name, place in chosen.items():
        summary[name] = of_strength(outcome, place)
        summary[name]["prevents"] = prevented(lost, before, of_a["plain"], of_a[name])
        if name in ("WPL", "L2 anchor"):
            summary[name]["strength"] = compared(config)[place][1]
            summary[name]["as_good"] = as_good(config, outcome, name, place)
            summary[name]["at_each_strength"] = [
                {"strength": s} | of_strength(outcome, i)
                for i, (other, s) in enumerate(compared(config))
                if other == name
            ]
    summary["differences"] = {
        f"WPL − {rival}": {
            "a": interval(of_a["WPL"] - of_a[rival]),
            "b": interval(of_b["WPL"] - of_b[rival]),
        }
        for rival in RIVALS
        if rival in chosen
    }
    summary["best"] = {"a": best(of_a), "b": best(of_b)}
    return summary


def prevented(lost: dict, before: np.ndarray, plain: np.ndarray, kept: np.ndarray) -> float | None:
    """The share of A's loss that does not happen (section 4.1); None where no loss is certain."""
    if not (differs_from_0(lost) and lost["mean"] > 0):
        return None
    return float((kept.mean() - plain.mean()) / (before.mean() - plain.mean()))


def best(of_method: Mapping[str, np.ndarray]) -> list[str]:
    """The method with the highest mean, and those that cannot be distinguished from it."""
    first = max(of_method, key=lambda name: of_method[name].mean())
    return [
        name
        for name, values in of_method.items()
        if name == first or not differs_from_0(interval(of_method[first] - values))
    ]


def as_good(config: TwoModels, outcome: Outcome, method: str, place: int) -> list[float]:
    """The strengths whose sum of validation accuracies cannot be distinguished from the chosen."""
    total = outcome.final_a.validation + outcome.final_b.validation
    return [
        strength
        for i, (name, strength) in enumerate(compared(config))
        if name == method
        and (i == place or not differs_from_0(interval(total[:, place] - total[:, i])))
    ]


def of_strength(outcome: Outcome, place: int) -> dict:
    """What became of A and B, and of B's hidden units, with one method."""
    losses = outcome.loss_b[:, place, -1]
    finite_losses = np.isfinite(losses)
    return {
        "final_a": interval(outcome.final_a.test[:, place]),
        "final_b": interval(outcome.final_b.test[:, place]),
        "dead_b": np.round(outcome.dead_b[:, place].mean(0).astype(float), 4).tolist(),
        "diverged": int(np.sum(~finite_losses)),
        "loss_b": finite(np.median(np.where(finite_losses, losses, np.inf))),
    }


def interval(values: np.ndarray) -> dict[str, float | None]:
    numbers = mean_interval(values)
    return {k: finite(v) for k, v in zip(("mean", "low", "high"), numbers, strict=True)}
