"""In which settings searches and final trainings are not the published ones, those of ``paper``."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from experiments import train_final
from experiments.grid.plan import Plan, final_flags
from experiments.running.pool import flat
from experiments.spaces.settings import PLACES, InSpace

# Settings that say how a run is named, kept or computed, but not what it computes.
ASIDE = (
    *(*PLACES, "preset", "seed", "max_skipped"),
    *("method", "sampler", "search.chunk", "search.at_once"),
    *("architecture", "seed_architecture", "windows_per_call", "steps_per_call"),
    *("probes", "probe_every"),
)


def differences(plan: Plan, chosen: Mapping[str, int | None]) -> list[dict[str, Any]]:
    """A row for each setting that is not the published one in some arm, with its values here."""
    task = plan.task
    searches = [plan.settings[arm.name][chosen[arm.name] or 0] for arm in plan.arms]
    finals = [train_final.parse(final_flags(plan.config))] if plan.config.cells else []
    return [
        *of_script("search", searches, task.searches.get("paper")),
        *of_script("train_final", finals, task.finals.get("paper")),
    ]


def of_script(
    script: str, settings: Sequence[InSpace], published: InSpace | None
) -> list[dict[str, Any]]:
    if published is None:
        return []
    there = flat(dataclasses.asdict(published))
    every = [flat(dataclasses.asdict(s)) for s in settings]
    here = {name: list(dict.fromkeys(of[name] for of in every)) for name in (every or [{}])[0]}
    return [
        {"setting": f"{script} --{name.replace('_', '-')}", "here": values, "paper": there[name]}
        for name, values in here.items()
        if name in there
        and name not in ASIDE
        and not name.startswith("sharing.")
        and values != [there[name]]
    ]
