"""How numbers, tables and names are written."""

from experiments.compare.plan import ARMS
from experiments.compare.saved import FORGETTING, METRICS, Saved
from experiments.running.intervals import Number, differs_from_0

OTHERS = {"random": "random cells", "enas": "ENAS's cell", "darts_style": "DARTS-style cell"}
NOT_DISTINGUISHABLE = "not distinguishable from 0"
DIGITS = {"err2_mean": 1, "reward": 3, "forgetting_share": 0}
LABELS = {arm.name: arm.label for arm in ARMS} | OTHERS


def label(name: str) -> str:
    """Of a kind of search, or of a cell."""
    return LABELS.get(name, name)


def show(number: Number | None, digits: int, scale: float = 1) -> str:
    """A mean and half of its interval."""
    if number is None or number["mean"] is None:
        return "–"
    text = signed(scale * number["mean"], digits)
    if number["high"] is not None:
        text += f" ± {scale * (number['high'] - number['mean']):.{digits}f}"
    return text


def show_mean(number: Number | None, digits: int, scale: float = 1) -> str:
    return show(number and number | {"high": None}, digits, scale)


def amount(saved: Saved, name: str, number: Number | None) -> str:
    """A number of that name, with its digits, scaled."""
    return show(number, DIGITS.get(name, 2), saved.scale(name))


def change(saved: Saved, name: str, number: Number | None) -> str:
    """A difference, and whether it can be told from 0."""
    text = amount(saved, name, number)
    if number is None or number["high"] is None or differs_from_0(number):
        return text
    return f"{text}, {NOT_DISTINGUISHABLE}"


def heading(saved: Saved, name: str) -> str:
    """A measure's, with its unit: differences of percentages are in points."""
    if name in FORGETTING:
        return METRICS[name] + (" (points)" if saved.unit == "%" else saved.task.unit)
    if name == "forgetting_share":
        return f"{METRICS[name]} (%)"
    return METRICS[name] + (saved.task.unit if name == "err2_mean" else "")


def percent(share: float) -> str:
    return f"{signed(100 * share, 0)} %"


def signed(number: float, digits: int) -> str:
    text = f"{number:.{digits}f}"
    return (text[1:] if not float(text) else text).replace("-", "−") if text[0] == "-" else text


def count(number: int | None) -> str:
    return "–" if number is None else f"{number:,}"
