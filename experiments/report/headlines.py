"""What a run came to: numbers under readable names, and its curves.

The kind of a run is told by what its summary holds. Anything may be missing from a summary or be of
another form than expected: what is not understood is left blank.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from experiments.report.numbers import (
    Cell,
    Error,
    at,
    difference,
    error_of,
    is_number,
    number,
    objects,
    objects_by_name,
    percent,
    words,
)
from experiments.report.runs import ORIGIN, Run, flat
from experiments.running.measures import FORGETTING
from experiments.running.wording import clock

TAU = "τ within the epoch"
CROSS_ENTROPY = "cross-entropy"
# By name in metrics.jsonl: heading. The others are shown after these, under their own names.
METRICS = {
    "forgetting_mean": "forgetting, mean",
    "forgetting_best5": "forgetting, best 5",
    "forgetting_max": "forgetting, max",
    "tau_within_epoch": "τ within the epoch",
    "err1_mean": "err1, mean",
    "err2_mean": "err2, mean",
    "err2_best": "err2, best",
    "train_loss": "training loss",
}
NO_CURVES = ("epoch", "seconds", "best_epoch", "averaged")
FEW_ARMS = 8  # whose curves can be told apart
CELLS = {"search": "in the search", "validation": "validation", "test": "test"}
METHODS = ("plain", "WPL", "L2 anchor", "frozen")  # of two models


class Row(NamedTuple):
    """Of a table: which part of the run it is about, nothing if all of it, and its columns."""

    part: str
    cells: Mapping[str, Cell]


class Curve(NamedTuple):
    x: np.ndarray  # shape=(points,)
    y: np.ndarray  # shape=(points,), NaN where there is nothing


class Headline(NamedTuple):
    """Runs of one kind, whose numbers compare, stand side by side."""

    kind: str
    note: str  # what the columns are
    tables: Mapping[str, Sequence[Row]]  # by title
    curves: Mapping[str, Mapping[str, Curve]]  # by metric, by part of the run
    xlabel: str = "epoch"


def headline(run: Run) -> Headline:
    kinds = (search, final_training, grid, two_models, importances)
    return next(found for kind in (*kinds, other) if (found := kind(run)))


def search(run: Run) -> Headline | None:
    after, error = at(run.summary, "after_warmup"), error_of(run.summary, "best_")
    if not isinstance(after, Mapping):
        return None
    row = {
        **{f"forgetting, {name}": error.of(after.get(key)) for key, name in FORGETTING.items()},
        TAU: number(after.get("tau_within_epoch")),
        "err2": error.of(after.get("err2_mean")),
        f"best {error.name}": error.of(run.summary.get(f"best_{error.key}")),
        **costs(run),
    }
    note = (
        "err1 is an architecture's validation error right after its own training, err2 that at the "
        "end of the epoch, and forgetting the difference err2 − err1, averaged over the epochs "
        "after the warm-up: its mean over the architectures of an epoch, the mean over the five "
        "with the lowest err1, and the maximum. Below 0 they got better. τ compares the orders of "
        "architectures by err1 and by err2. The best error is that of the cell derived at the end."
    )
    return Headline(f"Searches{error.unit}", note, {"": [Row("", row)]}, epochs(run))


def final_training(run: Run) -> Headline | None:
    error = error_of(run.summary, "test_")
    if "architecture" not in run.summary or not error.key:
        return None
    row = {
        part: error.of(run.summary.get(f"{part}_{error.key}")) for part in ("validation", "test")
    }
    note = "A cell trained from scratch, alone: its errors at the end."
    rows = [Row("", row | costs(run))]
    return Headline(f"Final trainings{error.unit}", note, {"": rows}, epochs(run))


def grid(run: Run) -> Headline | None:
    arms, task = objects(run.summary, "arms"), at(run.summary, "task", "error")
    if not arms or not isinstance(task, str):
        return None
    error = Error(task.replace(" ", "_"))
    of_errors = {f"forgetting, {h}": f"after_warmup/{key}" for key, h in FORGETTING.items()}
    of_errors |= {"err2": "after_warmup/err2_mean"}
    of_errors |= {heading: f"cells/{part}" for part, heading in CELLS.items()}
    taus = {TAU: "after_warmup/tau_within_epoch"}
    taus |= {f"τ with the truth, by {order}": f"{order}/kendall" for order in (task, CROSS_ENTROPY)}

    def cells(values, show):
        return {h: show(at(values, key), error.of) for h, key in of_errors.items()} | {
            h: show(at(values, key), number) for h, key in taus.items()
        }

    measured = [
        Row(
            str(row.get("name")),
            {"runs": number(row.get("runs"), 0)}
            | cells(at(row, "numbers") or row, lambda v, f: f(v)),
        )
        for row in (*arms, *objects(run.summary, "cells", "others"))
    ]
    changed = [
        Row(str(arm.get("name")), cells(at(arm, "differences"), difference))
        for arm in arms
        if at(arm, "differences")
    ]
    note = (
        "Means over searches ± half of their 95 % interval. Forgetting, err2 and τ are as in "
        "searches. The errors of the cells that were found are those in the search, with shared "
        "weights, and, trained from scratch, on the validation and the test data. τ with the truth "
        "says how well the order of all architectures on the shared "
        "weights agrees with that after full training, where it is known. Differences are from "
        "the first arm, paired by seed; in brackets what cannot be distinguished from 0."
    )
    tables = {"What was measured": measured} | ({"Differences": changed} if changed else {})
    curves: dict[str, dict[str, Curve]] = {}
    names = [str(arm.get("name")) for arm in arms]
    for metric in (*METRICS, "reward") if len(arms) <= FEW_ARMS else ():
        for name in names:
            values = run.arrays.get(f"{name}/{metric}", np.empty(0))
            if (curve := mean_curve(run.arrays.get(f"{name}/epoch"), values)) is not None:
                curves.setdefault(METRICS.get(metric, words(metric)), {})[name] = curve
    return Headline(f"Grids of searches{error.unit}", note, tables, curves)


def two_models(run: Run) -> Headline | None:
    conditions = objects(run.summary, "conditions")
    if not conditions:
        return None
    accuracies, differences = [], []
    for condition in conditions:
        name = str(condition.get("name", ""))
        after = {
            f"{model.upper()}, {method}": percent(at(condition, method, f"final_{model}"))
            for model in "ab"
            for method in METHODS
        }
        accuracies.append(Row(name, {"A before": percent(condition.get("before_a"))} | after))
        paired = {
            f"{model.upper()}, {between}": difference(of_model[model])
            for model in "ab"
            for between, of_model in objects_by_name(condition, "differences").items()
            if model in of_model
        }
        differences += [Row(name, paired)] * bool(paired)
    note = (
        "Test accuracies in percent of A before B is trained, and of both after, by method: means "
        "over seeds ± half of their 95 % interval. Differences are paired by seed, in percentage "
        "points; in brackets those that cannot be distinguished from 0."
    )
    curves: dict[str, dict[str, Curve]] = {}
    for condition in conditions:
        for method in ("plain", "WPL"):
            for model in "ab":
                if (curve := accuracy_curve(run, condition, method, model)) is not None:
                    title = f"{model.upper()}'s accuracy (%), {condition.get('name')}"
                    curves.setdefault(title, {})[method] = curve
    tables = {"Accuracies": accuracies} | ({"Differences": differences} if differences else {})
    return Headline("Two models", note, tables, curves, "training step of B")


def accuracy_curve(run: Run, condition: Mapping[str, Any], method: str, model: str) -> Curve | None:
    """Of a model while B trains, at the strength that was chosen for the method."""
    strength = at(condition, method, "strength") or 0
    tried = (run.arrays.get(name, np.empty(0)).ravel() for name in ("methods", "strengths"))
    candidates = list(zip(*(values.tolist() for values in tried), strict=False))
    places = [i for i, candidate in enumerate(candidates) if candidate == (method, strength)]
    values = run.arrays.get(f"{condition.get('name')}/curve_{model}", np.empty(0))
    every = run.settings.get("eval_every")
    if not places or not is_number(every) or values.ndim != 3 or values.shape[1] != len(candidates):
        return None
    steps = every * np.arange(values.shape[2])
    return mean_curve(steps, values[:, places[0]], scale=100)


def importances(run: Run) -> Headline | None:
    scenarios = at(run.summary, "scenarios")
    if not isinstance(scenarios, Mapping):
        return None
    columns = {"mean": "mean", "first": "first task", "last": "last task", "forgotten": "forgotten"}
    rows = [
        Row(
            f"{scenario}: {arm}",
            {h: percent(values.get(name)) for name, h in columns.items()}
            | {"beyond the L2 anchor": difference(values.get("over_anchor"))}
            | {"strength": number(values.get("strength"), None)},
        )
        for scenario in scenarios
        for arm, values in objects_by_name(scenarios, scenario, "arms").items()
    ]
    note = (
        "Test accuracies in percent after all tasks (of two models, A and B are the first and "
        "the last): the mean over tasks, the first task, the last; what was forgotten of those "
        "before the last, and how far the mean is beyond the L2 anchor's, seed by seed, in "
        "percentage points: in brackets where that cannot be distinguished from 0. Means over "
        "seeds ± half of their 95 % interval."
    )
    return Headline("Importances", note, {"": rows}, {})


def other(run: Run) -> Headline:
    rest = {k: v for k, v in run.summary.items() if k not in ("configuration", *ORIGIN)}
    row = {name: cell for name, v in flat(rest) if (cell := number(v, None)).text}
    return Headline("Other runs", "", {"": [Row("", row)]}, epochs(run))


def costs(run: Run) -> dict[str, Cell]:
    seconds = run.summary.get("seconds")
    return {
        "parameters": number(run.summary.get("parameters"), 0),
        "epochs": number(run.summary.get("epochs"), 0),
        "time": Cell(clock(seconds), seconds) if is_number(seconds) else Cell(),
    }


def epochs(run: Run) -> dict[str, dict[str, Curve]]:
    """The curves of metrics.jsonl, of what varies."""
    found = {}
    for name in in_order(name for record in run.metrics for name in record):
        points = [(record.get("epoch"), record.get(name)) for record in run.metrics]
        table = np.array([[v if is_number(v) else np.nan for v in p] for p in points])
        measured = table[np.isfinite(table).all(1), 1]
        if name not in NO_CURVES and len(np.unique(measured)) > 1:
            found[METRICS.get(name, words(name))] = {"": Curve(table[:, 0], table[:, 1])}
    return found


def in_order(metrics: Iterable[str]) -> list[str]:
    """Each once, those that have a heading first."""
    names = dict.fromkeys(metrics)
    return [*(n for n in METRICS if n in names), *(n for n in names if n not in METRICS)]


def mean_curve(x: np.ndarray | None, values: np.ndarray, scale: float = 1) -> Curve | None:
    """The mean over seeds of shape ``(seeds, points)``; nothing of another shape."""
    if x is None or x.ndim != 1 or x.dtype.kind not in "iuf":
        return None
    if values.shape[1:] != x.shape or values.dtype.kind != "f":
        return None
    there = np.isfinite(values)
    total, count = np.where(there, values, 0).sum(0), there.sum(0)
    mean = np.divide(total, count, out=np.full(x.shape, np.nan), where=count > 0)
    return Curve(x, scale * mean)
