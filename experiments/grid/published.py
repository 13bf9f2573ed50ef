"""In which settings searches and final trainings are not the published ones, those of ``paper``."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from experiments.grid.plan import HOLDING, Plan
from experiments.running.records import flat
from experiments.spaces.settings import PLACES, InSpace, SearchRun

# Settings that say how a run is named, kept or computed, but not what it computes.
ASIDE = (
    *(*PLACES, "preset", "seed", "max_skipped", "search.chunk", "search.at_once"),
    *("architecture", "seed_architecture", "windows_per_call", "steps_per_call"),
    *("probes", "probe_every"),
)
GROUPS = {  # of settings, and the sampler or the method that they are for
    "controller": "controller",
    "wpl": "wpl",
    "replay": "replay",
    "momentum_groups": "momentum",
    "distillation": "distillation",
}
OF_HOLDING = ("strength", "strength_decay", "proximal", "warmup_epochs", "protect")


def differences(plan: Plan, chosen: Mapping[str, int | None]) -> list[dict[str, Any]]:
    """A row for each setting that is not the published one in some arm, with its values here."""
    task = plan.task
    searches = [
        plan.settings[name][candidate]
        for name, candidate in chosen.items()
        if candidate is not None
    ]
    finals = [final] if (final := plan.final) else []
    return [
        *of_script("search", searches, task.searches.get("paper")),
        *of_script("train_final", finals, task.finals.get("paper")),
    ]


def of_script(
    script: str, every: Sequence[InSpace], published: InSpace | None
) -> list[dict[str, Any]]:
    if published is None:
        return []
    there = flat(dataclasses.asdict(published))
    here: dict[str, list[object]] = {}
    for settings in every:
        for name, value in flat(dataclasses.asdict(settings)).items():
            values = here.setdefault(name, [])
            if is_used(settings, name) and value not in values:
                values.append(value)
    return [
        {"setting": f"{script} --{name.replace('_', '-')}", "here": values, "paper": there[name]}
        for name, values in here.items()
        if name in there and values not in ([], [there[name]])
    ]


def is_used(settings: InSpace, name: str) -> bool:
    """Whether what is computed depends on a setting."""
    group = name.partition(".")[0]
    if name in ASIDE or group == "sharing":
        return False
    if not isinstance(settings, SearchRun):
        return True
    if name in OF_HOLDING:
        return settings.method in HOLDING
    return group not in GROUPS or GROUPS[group] in (settings.sampler, settings.method)
