"""The cells that searches find, trained from scratch, beside random and published ones."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from experiments import train_final
from experiments.grid.plan import Plan, Results, Searched, final_flags
from experiments.running import records
from experiments.running.intervals import interval, kendall_tau
from experiments.running.pool import Pool, Run
from experiments.spaces.settings import PLACES

RANDOM = "random"
PARTS = ("validation", "test")


def runs(plan: Plan, found: Mapping[tuple[str, int], Path]) -> dict[tuple[str, int], Run]:
    """The trainings, by the name of an arm or of a cell, and by seed.

    Args:
      plan: what is compared.
      found: by the name of an arm and by seed, the file of the cell that its search has found.
    """
    folders = {arm.name: arm.folder for arm in plan.arms}
    cells = {key: str(path) for key, path in found.items()}
    cells |= {(RANDOM, seed): RANDOM for seed in range(plan.config.random_cells)}
    for name in plan.task.cells():
        cells |= {(name, seed): name for seed in range(plan.config.seeds)}
    return {
        (name, seed): final_run(plan, f"final/{folders.get(name, name)}_{seed}", cell, seed)
        for (name, seed), cell in cells.items()
    }


def final_run(plan: Plan, name: str, architecture: str, seed: int) -> Run:
    """The training of one architecture from scratch.

    Args:
      plan: what is compared.
      name: of the run's folder.
      architecture: as experiments.train_final takes it.
      seed: of the training, and of the architecture if it is random.
    """
    flags = [*final_flags(plan.config), "--architecture", architecture, "--seed", f"{seed}"]
    searched = plan.settings[plan.arms[0].name][0]
    nodes = getattr(searched.search_space, "nodes", None)
    if architecture == RANDOM and nodes:  # of as many as those that are found
        flags += [f"--{searched.space_field}.nodes", f"{nodes}"]
    settings, cell = train_final.read_architecture(train_final.parse(flags))
    settings = settings.with_space(**plan.of_finals.sizes)
    expected = {
        "configuration": {
            name: value
            for name, value in train_final.settings(settings).items()
            if name not in (*PLACES, "architecture")
        },
        "architecture": settings.search_space.to_json(cell),
        "epochs": settings.epochs,
        "data": plan.of_finals.known_by,
    }
    return Run(name, "train_final", tuple(flags), expected)


def shared(every: Mapping[tuple[str, int], Run], pool: Pool) -> dict[tuple[str, int], Run]:
    """The trainings, one for all of the same cell and seed: the first, or the first that is done.

    Searches of one seed often find the same cell.
    """
    alike: dict[str, list[Run]] = {}
    for run in every.values():
        alike.setdefault(repr(run.expected), []).append(run)
    chosen = {
        expected: next((run for run in runs if len(runs) > 1 and pool.summary(run)), runs[0])
        for expected, runs in alike.items()
    }
    return {key: chosen[repr(run.expected)] for key, run in every.items()}


# --- What they came to ----------------------------------------------------------------------------


def by_seed(plan: Plan, results: Results, name: str) -> dict[str, list[float | None]]:
    """By name, what the cells of an arm came to; None where there is nothing."""
    error = records.key(plan.task.error)
    searches = results.searches[name]
    finals = [results.finals.get((name, seed), {}) for seed in range(len(searches))]
    return {
        "cells/search": [s and s.summary[f"best_{error}"] for s in searches],
        **{f"cells/{part}": [f.get(f"{part}_{error}") for f in finals] for part in PARTS},
        "cells/parameters": [f.get("parameters") for f in finals],
        "cells/tau": [s and tau(plan, results, s) for s in searches],
    }


def tau(plan: Plan, results: Results, search: Searched) -> float | None:
    """Kendall's τ between the orders of random cells on shared weights and trained alone."""
    error = records.key(plan.task.error)
    alone = [
        results.finals.get((RANDOM, probe["seed"]), {}).get(f"validation_{error}")
        for probe in search.probed
    ]
    return kendall_tau([probe[error] for probe in search.probed], alone)


def others(plan: Plan, results: Results) -> list[dict[str, Any]]:
    """Of the cells that no search here has found, by their name."""
    error = records.key(plan.task.error)
    arms = {arm.name for arm in plan.arms}
    found = []
    for name in dict.fromkeys(name for name, _ in results.finals if name not in arms):
        mine = [summary for (key, _), summary in results.finals.items() if key == name]

        def numbers(key, mine=mine):
            return np.array([summary[key] for summary in mine], np.float64)

        found.append(
            {"name": name, "runs": len(mine), "cells/parameters": interval(numbers("parameters"))}
            | {f"cells/{part}": interval(numbers(f"{part}_{error}")) for part in PARTS}
        )
    return found


def files(plan: Plan, results: Results) -> list[dict[str, Any]]:
    """Of each cell that a search has found, and that was trained, its file and its errors."""
    error = records.key(plan.task.error)
    return [
        {"arm": arm.name, "seed": seed, "file": f"{arm.folder}_{seed}.json"}
        | {part: results.finals[arm.name, seed][f"{part}_{error}"] for part in PARTS}
        for arm in plan.arms
        for seed in range(plan.config.seeds)
        if (arm.name, seed) in results.finals
    ]
