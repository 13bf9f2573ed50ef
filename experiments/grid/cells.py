"""The cells that searches find, trained from scratch, beside random and published ones."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments import train_final
from experiments.grid.plan import Plan, Results, Searched, final_flags
from experiments.running import records
from experiments.running.intervals import interval, kendall_tau
from experiments.running.pool import Run
from experiments.spaces.settings import PLACES, SearchRun

RANDOM = "random"
PARTS = ("validation", "test")


def runs(plan: Plan, found: Mapping[tuple[str, int], Path]) -> dict[tuple[str, int], Run]:
    """The trainings, by the name of an arm or of a cell, and by seed.

    Searches with one seed often find one cell: it is trained once with that seed, for all of them.

    Args:
      plan: what is compared.
      found: by the name of an arm and by seed, the file of the cell that its search has found.
    """
    folders = {arm.name: arm.folder for arm in plan.arms}
    cells = {key: str(path) for key, path in found.items()}
    cells |= {(RANDOM, seed): RANDOM for seed in range(plan.config.random_cells)}
    for name in plan.task.cells():
        cells |= {(name, seed): name for seed in range(plan.config.seeds)}
    every = {
        (name, seed): final_run(
            f"final/{folders.get(name, name)}_{seed}",
            final_flags(plan.config),
            *(architecture, seed, plan.settings[plan.arms[0].name][0], plan.sizes, plan.final_data),
        )
        for (name, seed), architecture in cells.items()
    }
    firsts: dict[str, Run] = {}
    return {key: firsts.setdefault(repr(run.expected), run) for key, run in every.items()}


def final_run(
    name: str,
    flags: Sequence[str],
    architecture: str,
    seed: int,
    searched: SearchRun,
    sizes: Mapping[str, object],
    data: Mapping[str, object],
) -> Run:
    """The training of one architecture from scratch.

    Args:
      name: of the run's folder.
      flags: that all trainings have in common.
      architecture: as experiments.train_final takes it.
      seed: of the training, and of the architecture if it is random.
      searched: a search, as large as which a random architecture is.
      sizes: what the data decide about the space.
      data: what they are known by.
    """
    flags = [*flags, "--architecture", architecture, "--seed", f"{seed}"]
    nodes = getattr(searched.search_space, "nodes", None)
    if architecture == RANDOM and nodes:  # of as many as those that are found
        flags += [f"--{searched.space_field}.nodes", f"{nodes}"]
    settings, cell = train_final.read_architecture(train_final.parse(flags))
    settings = settings.with_space(**sizes)
    expected = {
        "configuration": {
            name: value
            for name, value in train_final.settings(settings).items()
            if name not in (*PLACES, "architecture")
        },
        "architecture": settings.search_space.to_json(cell),
        "epochs": settings.epochs,
        "data": data,
    }
    return Run(name, "train_final", tuple(flags), expected)


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
    return kendall_tau([probe[error] for probe in search.probed], alone)["tau"]


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


def found(plan: Plan, results: Results) -> list[dict[str, Any]]:
    """Of the cells that searches have found, and that were trained, the errors and the file."""
    error = records.key(plan.task.error)
    return [
        {"arm": arm.name, "seed": seed, "file": f"{arm.folder}_{seed}.json"}
        | {part: results.finals[arm.name, seed][f"{part}_{error}"] for part in PARTS}
        for arm in plan.arms
        for seed in range(plan.config.seeds)
        if (arm.name, seed) in results.finals
    ]
