"""The numbers of a comparison: what its runs came to, as summary.json and curves.npz have it."""

import dataclasses
import json
import math
import shlex
from collections.abc import Sequence

import numpy as np

from experiments.compare.plan import ARMS, SAMPLERS, Arm, Plan, Results, Searched
from experiments.compare.saved import ERRORS, METRICS, Saved, error_key
from experiments.running import records
from experiments.running.intervals import (
    differs_from_0,
    finite,
    interval,
    kendall_tau,
    mean,
    of_seeds,
    reduction,
)
from experiments.running.measures import FORGETTING


def gathered(plan: Plan, results: Results) -> Saved:
    """All that report and figures are drawn from."""
    curves = {f"{arm.name}/{n}": v for arm in ARMS for n, v in by_epoch(plan, results, arm).items()}
    cells = {
        f"{arm.name}_{seed}": search.cell
        for arm, found in results.arms.items()
        for seed, search in enumerate(found)
        if search
    }
    return Saved(summarise(plan, results), {"epochs": epochs(plan)} | curves, cells)


def summarise(plan: Plan, results: Results) -> dict:
    """The numbers of the comparison: means over seeds with 95 % intervals."""
    values = {arm: by_seed(plan, results, arm) for arm in ARMS}
    keys = [error_key(plan.task, part) for part in ERRORS]
    finished = [found for of_arm in results.arms.values() for found in of_arm if found]
    trials = [found for runs in results.candidates.values() for found in runs if found]
    summaries = [found.summary for found in (*finished, *trials)] + list(results.finals.values())
    names = {arm.name for arm in ARMS}
    others = dict.fromkeys(name for name, _ in results.finals if name not in names)
    cells = [
        {"name": arm.name, "seed": seed, "parameters": parameters(results, arm.name, seed)}
        | {key: finite(values[arm][key][seed]) for key in keys}
        for arm in ARMS
        for seed, found in enumerate(results.arms[arm])
        if found
    ]
    return {
        "arms": [
            arm._asdict()
            | {"name": arm.name, "runs": sum(map(bool, results.arms[arm]))}
            | {name: of_seeds(seeds) for name, seeds in values[arm].items()}
            for arm in ARMS
        ],
        "wpl_against_plain": [
            against(sampler, values[Arm("none", sampler)], values[Arm("wpl", sampler)])
            for sampler in SAMPLERS
        ],
        "published_reduction": plan.task.published,
        "cells": cells,
        "others": [other(plan, name, results) for name in others],
        "found_tau_training_alone": kendall_tau(*([c[key] for c in cells] for key in keys[:2])),
        "random_cells": plan.config.random_cells,
        "strength": {
            "chosen": results.strength,
            "rule": rule(plan) if results.candidates else "given",
            "candidates": [
                {"strength": strength} | candidate(found)
                for strength, found in results.candidates.items()
            ],
        },
        "failed": results.failed,
        "data": plan.facts,
        "configuration": {
            name: json.loads(json.dumps(dataclasses.asdict(settings), default=str))
            for name, settings in (
                ("compare", plan.config),
                ("search", plan.search),
                ("final", plan.final),
            )
        },
        "commands": commands(plan, results),
        "seconds": sum(summary["seconds"] for summary in summaries),
        **records.provenance(),
        **{name: summaries[0][name] for name in ("versions", "devices", "machine")},  # of the runs
    }


def rule(plan: Plan) -> str:
    return (
        f"the lowest err2, the mean {plan.task.error} at the end of an epoch of all its "
        "architectures, over the epochs after the warm-up and the seeds"
    )


def by_seed(plan: Plan, results: Results, arm: Arm) -> dict[str, np.ndarray]:
    """By name, what each seed came to; NaN for a run that failed."""
    found = results.arms[arm]
    values = {
        name: [mean(search.after_warmup(name)) if search else math.nan for search in found]
        for name in METRICS
    }
    best = error_key(plan.task, "best")
    derived, *alone = (error_key(plan.task, part) for part in ERRORS)
    values[derived] = [search.summary[best] if search else math.nan for search in found]
    for key in alone:
        values[key] = [
            results.finals.get((arm.name, seed), {}).get(key, math.nan)
            for seed in range(len(found))
        ]
    values["tau_training_alone"] = [
        tau_training_alone(plan, results, search) if search else math.nan for search in found
    ]
    return {name: np.array(seeds, np.float64) for name, seeds in values.items()}


def tau_training_alone(plan: Plan, results: Results, search: Searched) -> float:
    """Kendall's tau between the orders of random cells on shared weights and trained alone."""
    error, validation = records.key(plan.task.error), error_key(plan.task, "validation")
    finals = (results.finals.get(("random", p["seed"]), {}) for p in search.probes)
    alone = [summary.get(validation) for summary in finals]
    tau = kendall_tau([probe[error] for probe in search.probes], alone)["tau"]
    return math.nan if tau is None else tau


def against(sampler: str, plain: dict[str, np.ndarray], wpl: dict[str, np.ndarray]) -> dict:
    """What WPL changes: differences paired by seed, and shares of what plain search forgets.

    A share, (d - d_wpl) / d, is None unless both d and the difference are told from 0.
    """
    differences = {name: interval(wpl[name] - plain[name]) for name in plain}
    return {
        "sampler": sampler,
        "difference": differences,
        "reduction": {
            name: reduction(interval(plain[name]), interval(wpl[name]))
            if differs_from_0(differences[name])
            else None
            for name in FORGETTING
        },
    }


def other(plan: Plan, name: str, results: Results) -> dict:
    """Of a cell that no search here has found."""
    runs = [summary for (key, _), summary in results.finals.items() if key == name]
    keys = [error_key(plan.task, part) for part in ("validation", "test")]
    sizes = np.array([run["parameters"] for run in runs], np.float64)
    return {"name": name, "runs": len(runs), "parameters": round(mean(sizes))} | {
        key: interval(np.array([run[key] for run in runs], np.float64)) for key in keys
    }


def parameters(results: Results, name: str, seed: int) -> int | None:
    """How many a cell has in final training."""
    return results.finals.get((name, seed), {}).get("parameters")


def candidate(found: Sequence[Searched | None]) -> dict:
    """Of a strength, by seed: None for a run that failed."""
    return {
        name: [finite(mean(search.after_warmup(name))) if search else None for search in found]
        for name in ("err2_mean", *FORGETTING)
    }


def commands(plan: Plan, results: Results) -> list[str]:
    """That of the first run of each kind."""
    kinds: dict[str, str] = {}
    for run in results.runs:
        command = ["python", *run.command, "--out", str(plan.runs / run.name)]
        kinds.setdefault(run.name.rpartition("_")[0], shlex.join(command))
    return list(kinds.values())


def epochs(plan: Plan) -> np.ndarray:
    return np.arange(1, plan.search.epochs + 1)


def by_epoch(plan: Plan, results: Results, arm: Arm) -> dict[str, np.ndarray]:
    """By metric, shape ``(seeds, epochs)``."""
    names = next(list(found.metrics) for runs in results.arms.values() for found in runs if found)
    nothing = np.full(plan.search.epochs, np.nan)
    return {
        name: np.stack([s.metrics[name] if s else nothing for s in results.arms[arm]])
        for name in names
        if name not in ("epoch", "seconds")
    }
