"""How reports write numbers, lists and tables."""

import datetime
from collections.abc import Sequence

from experiments.running.intervals import Number


def listed(words: Sequence[str]) -> str:
    """Words with commas and a last "and"."""
    return " and ".join(filter(None, [", ".join(words[:-1]), *words[-1:]]))


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1) -> str:
    """A table in Markdown whose first ``left`` columns are text and whose others are numbers."""
    marks = ["---" if i < left else "---:" for i in range(len(header))]
    return "\n".join(f"| {' | '.join(line)} |" for line in [header, marks, *rows])


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


def percent(share: float) -> str:
    return f"{signed(100 * share, 0)} %"


def signed(number: float, digits: int) -> str:
    text = f"{number:.{digits}f}"
    return (text[1:] if not float(text) else text).replace("-", "−") if text[0] == "-" else text


def count(number: int | None) -> str:
    return "–" if number is None else f"{number:,}"


def clock(seconds: float) -> str:
    """Hours, minutes and seconds."""
    return str(datetime.timedelta(seconds=round(seconds)))
