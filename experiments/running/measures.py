"""What is measured in every epoch of a search: names in files, headings, digits and units."""

from typing import Protocol

from experiments.running import records
from experiments.running.intervals import Number, differs_from_0
from experiments.running.wording import NOT_DISTINGUISHABLE, show

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
    "forgetting_share": "share that got worse",
    "tau_within_epoch": "τ within the epoch",
    **ERRORS,
    "reward": "reward",
}
DIGITS = {"err1_mean": 1, "err2_mean": 1, "reward": 3, "forgetting_share": 0}


class Errors(Protocol):
    """How errors are written; a task is one."""

    error: str  # what they are called
    unit: str  # such as " (%)"
    scale: float  # what an error is multiplied by for that


def scale(errors: Errors, name: str) -> float:
    """What a number of that name is multiplied by to be shown."""
    if name == "forgetting_share":
        return 100
    of_errors = name in FORGETTING | ERRORS or name.endswith(f"_{records.key(errors.error)}")
    return errors.scale if of_errors else 1


def heading(errors: Errors, name: str) -> str:
    """A measure's, with its unit: differences of percentages are in points."""
    if name in FORGETTING:
        return HEADINGS[name] + (" (points)" if "%" in errors.unit else errors.unit)
    if name == "forgetting_share":
        return f"{HEADINGS[name]} (%)"
    return HEADINGS[name] + (errors.unit if name in ERRORS else "")


def amount(errors: Errors, name: str, number: Number | None) -> str:
    """A number of that name, with its digits, scaled."""
    return show(number, DIGITS.get(name, 2), scale(errors, name))


def change(errors: Errors, name: str, number: Number | None) -> str:
    """A difference, and whether it can be told from 0."""
    text = amount(errors, name, number)
    if number is None or number["high"] is None or differs_from_0(number):
        return text
    return f"{text}, {NOT_DISTINGUISHABLE}"
