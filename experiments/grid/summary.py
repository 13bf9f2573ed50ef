"""The numbers of a grid: what its runs came to, as summary.json and curves.npz have it."""

import dataclasses
import json
import shlex
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from experiments.grid import cells, published
from experiments.grid.arms import Arm
from experiments.grid.choosing import RULE, late_error
from experiments.grid.plan import Plan, Results, Searched, common_flags, final_flags
from experiments.grid.saved import METRICS, Saved
from experiments.ranking import statistics
from experiments.ranking.baselines import NAMES
from experiments.running import records
from experiments.running.intervals import detectable, finite, kendall_tau, mean, of_seeds
from experiments.running.wording import listed

Array = np.ndarray


def gathered(plan: Plan, results: Results) -> Saved:
    """All that report and figures are drawn from."""
    curves: dict[str, Array] = {}
    for arm in plan.arms:
        found = results.searches[arm.name]
        of_arm = by_epoch(found) | taus(plan, found)
        curves |= {f"{arm.name}/{name}": values for name, values in of_arm.items()}
    architectures = {
        f"{arm.folder}_{seed}.json": search.cell
        for arm in plan.arms
        for seed, search in enumerate(results.searches[arm.name])
        if plan.config.cells and search
    }
    return Saved(summarise(plan, results), curves, architectures)


def summarise(plan: Plan, results: Results) -> dict:
    """The numbers: means over seeds with 95 % intervals, and differences paired by seed."""
    numbers = {arm.name: by_seed(plan, results, arm) for arm in plan.arms}
    trials = [s for of_arm in results.trials.values() for runs in of_arm for s in runs]
    searches = [s for of_arm in results.searches.values() for s in of_arm]
    summaries = [found.summary for found in (*searches, *trials) if found]
    seconds = sum(summary["seconds"] for summary in [*summaries, *results.tested.values()])
    first = plan.settings[plan.arms[0].name][0]
    return {
        "task": {name: getattr(plan.task, name) for name in ("name", "error", "unit", "scale")}
        | {"source": plan.task.source(first), "reward": plan.task.reward(first.search_space)},
        "axes": plan.axes,
        "arms": [of_arm(plan, results, arm, numbers) for arm in plan.arms],
        "baselines": baselines(results),
        "cells": {
            "others": cells.others(plan, results),
            "found": cells.files(plan, results),
            "flags": shlex.join(final_flags(plan.config)),
        }
        if plan.config.cells
        else None,
        "published_reduction": dict(plan.task.published),
        "published_differences": published.differences(plan, results.chosen),
        "remarks": remarks(plan),
        "rule": RULE,
        "failed": results.failed,
        "configuration": {
            "grid": json.loads(json.dumps(dataclasses.asdict(plan.config), default=str)),
            "common_flags": shlex.join(common_flags(plan.config)),
        },
        "commands": commands(plan, results),
        "searches": len(summaries),
        "finals": len(results.tested),
        "seconds": seconds,
        **records.provenance(),
        **{name: summaries[0][name] for name in ("versions", "devices", "machine")},  # of the runs
    }


def remarks(plan: Plan) -> str:
    """What there is to say of the data, a paragraph for all arms of the same."""
    said: dict[str, list[str]] = {}
    final = plan.final
    for arm in plan.arms:
        settings: dict[str, Any] = {"search": plan.settings[arm.name][0]}
        facts = {"search": plan.data[arm.name][0].facts}
        if final:
            settings["final"], facts["final"] = final, plan.of_finals.facts
        said.setdefault(plan.task.remarks(settings, facts), []).append(arm.name)
    if len(said) == 1:
        return next(iter(said))
    return "\n\n".join(f"{listed(arms)}: {text}" for text, arms in said.items())


def of_arm(plan: Plan, results: Results, arm: Arm, numbers: Mapping[str, dict]) -> dict:
    """What is known of an arm."""
    chosen, mine = results.chosen[arm.name], numbers[arm.name]
    settings = plan.settings[arm.name][chosen or 0]
    reference = next(a for a in plan.arms if a.place == arm.place)
    differences = {}
    if reference.name != arm.name:
        theirs = numbers[reference.name]
        differences = {n: of_seeds(mine[n] - theirs[n]) for n in mine if n in theirs}
        differences = {n: d | {"detectable": detectable(d)} for n, d in differences.items()}
    return {
        "name": arm.name,
        "method": arm.method,
        "place": arm.place,
        "candidates": [
            {"flags": shlex.join(flags), "err2": trial_errors(results, arm, i)}
            for i, flags in enumerate(arm.candidates)
        ],
        "chosen": chosen,
        "epochs": settings.epochs,
        "warmup_epochs": plan.warmup,
        "architectures": settings.search.architectures,
        "measured": settings.search.architectures // settings.search.measure_every,
        "batches": settings.search.batches,
        "runs": sum(map(bool, results.searches[arm.name])),
        "numbers": {name: of_seeds(values) for name, values in mine.items()},
        "differences": differences,
    }


def trial_errors(results: Results, arm: Arm, candidate: int) -> list[float | None]:
    """By seed, what a candidate is chosen by; None for a search that failed or diverged."""
    runs = results.trials.get(arm.name)
    if runs is None:
        return []
    return [finite(late_error(found)) if found else None for found in runs[candidate]]


def by_seed(plan: Plan, results: Results, arm: Arm) -> dict[str, Array]:
    """By name, what each seed came to; NaN for one that failed."""
    found, rankings = results.searches[arm.name], results.rankings[arm.name]
    late = slice(plan.warmup, None)
    known = common(METRICS, [s for of_arm in results.searches.values() for s in of_arm])
    values = {
        **{f"after_warmup/{n}": [s and mean(s.metrics[n][late]) for s in found] for n in known},
        **{f"last_epoch/{n}": [s and s.metrics[n][-1] for s in found] for n in known},
        "probes/agreement": agreement(plan, found),
        "seconds": [s and s.summary["seconds"] for s in found],
    }
    for order in orders(results):
        for name in statistics.STATISTICS:
            values[f"{order}/{name}"] = [r and r["orders"][order][name]["value"] for r in rankings]
    if plan.config.cells:
        values |= cells.by_seed(plan, results, arm.name)
    return {name: np.array(of_seeds, np.float64) for name, of_seeds in values.items()}


def common(metrics: Iterable[str], found: Sequence[Searched | None]) -> list[str]:
    """Those that every search has measured: one by an earlier version lacks some."""
    return [name for name in metrics if all(name in s.metrics for s in found if s)]


def agreement(plan: Plan, found: Sequence[Searched | None]) -> list[float | None]:
    """Of each seed, the mean Kendall's τ of its order of the probes with those of other seeds.

    It takes no truth: what chance has ordered, another seed orders otherwise.
    """
    error = records.key(plan.task.error)
    errors = [[probe[error] for probe in s.probed] if s else [] for s in found]

    def of_one(i):
        others = (e for j, e in enumerate(errors) if j != i and len(e) == len(errors[i]))
        taus = [kendall_tau(errors[i], other) for other in others]
        return mean(np.array([np.nan if tau is None else tau for tau in taus]))

    return [of_one(i) for i in range(len(errors))]


def orders(results: Results) -> list[str]:
    """By what searches rank, as rank.json calls it."""
    return [name for name in judged(results) if name not in NAMES]


def baselines(results: Results) -> dict[str, dict]:
    """By name, the statistics of orders that know nothing of a search."""
    return {
        name: {statistic: estimate["value"] for statistic, estimate in estimates.items()}
        for name, estimates in judged(results).items()
        if name in NAMES
    }


def judged(results: Results) -> dict[str, dict]:
    """The orders of the first ranking, by name; none if there is no ranking."""
    found = (ranking for of_arm in results.rankings.values() for ranking in of_arm if ranking)
    return next((ranking["orders"] for ranking in found), {})


def by_epoch(found: Sequence[Searched | None]) -> dict[str, Array]:
    """By metric, shape ``(seeds, epochs)``; nothing if no seed has finished."""
    first = next((s for s in found if s), None)
    if first is None:
        return {}
    nothing = np.full(len(first.metrics["epoch"]), np.nan)
    names = [n for n in common(first.metrics, found) if n not in ("epoch", "seconds")]
    curves = {name: np.stack([s.metrics[name] if s else nothing for s in found]) for name in names}
    return {"epoch": first.metrics["epoch"].astype(int)} | curves


def taus(plan: Plan, found: Sequence[Searched | None]) -> dict[str, Array]:
    """Kendall's τ of the probes over epochs; nothing without a truth of 3 of them, or probes."""
    probed = [s.probes for s in found if s and s.probes is not None and len(s.probes["epoch"])]
    if not probed:
        return {}
    accuracy = np.array([plan.accuracies.get(n, np.nan) for n in probed[0]["architectures"]])
    known = np.isfinite(accuracy)
    if known.sum() < 3:
        return {}
    epochs = probed[0]["epoch"]
    ones = np.ones((known.sum(), 1))

    def of_search(search, values):
        if not search or search.probes is None:
            return np.full(len(epochs), np.nan)
        errors = search.probes[values][:, known]
        return np.array([statistics.kendall(e, accuracy[known])(ones)[0] for e in errors])

    curves = {
        f"tau_{values}": np.stack([of_search(s, values) for s in found])
        for values in ("error", "loss")
    }
    return {"probe_epoch": epochs, "probes_of_truth": known.sum()} | curves


def commands(plan: Plan, results: Results) -> list[str]:
    """That of the first run of each stage."""
    stages: dict[tuple[str, str], str] = {}
    for run in results.runs:
        command = shlex.join(["python", *run.command, *run.place(plan.runs / run.name)])
        stages.setdefault((run.name.partition("/")[0], run.script), command)
    return list(stages.values())
