"""What is measured in every epoch of a search: names in files, headings, digits and units."""

from typing import Protocol

# Differences of errors, by name in metrics.jsonl: heading.
FORGETTING = {
    "forgetting_mean": "mean",
    "forgetting_best5": "best 5",
    "forgetting_max": "max",
}
ERRORS = {"err1_mean": "err1", "err2_mean": "err2"}
# All of them, but for some that only the log has.
HEADINGS = {
    **FORGETTING,
    "tau_within_epoch": "τ within the epoch",
    **ERRORS,
    "reward": "reward",
}
DIGITS = {"err1_mean": 1, "err2_mean": 1, "reward": 3}


class Errors(Protocol):
    """How errors are written; a task is one."""

    unit: str  # such as " (%)"
    scale: float  # what an error is multiplied by for that


def scale(errors: Errors, name: str) -> float:
    """What a number of that name is multiplied by to be shown."""
    return errors.scale if name in FORGETTING | ERRORS else 1


def heading(errors: Errors, name: str) -> str:
    """A measure's, with its unit: differences of percentages are in points."""
    if name in FORGETTING:
        return HEADINGS[name] + (" (points)" if "%" in errors.unit else errors.unit)
    return HEADINGS[name] + (errors.unit if name in ERRORS else "")
