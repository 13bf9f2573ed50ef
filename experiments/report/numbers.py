"""How numbers of a summary are read, whatever it holds, and shown."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple


class Cell(NamedTuple):
    """Of a table: what is read, and what is sorted by if that is a number."""

    text: str = ""
    value: float | None = None


def percent(value: Any, digits: int = 1) -> Cell:
    return number(value, digits, scale=100)


def number(value: Any, digits: int | None = 2, scale: float = 1) -> Cell:
    """Of a number, or of a mean and its interval; nothing of anything else.

    Args:
      value: anything.
      digits: after the point; as many as there need to be if None.
      scale: what it is multiplied by.
    """
    mean = at(value, "mean") if isinstance(value, Mapping) else value
    if not is_number(mean):
        return Cell()
    written = "{:.5g}" if digits is None else f"{{:,.{digits}f}}"
    text = written.format(scale * mean)
    low, high = at(value, "low"), at(value, "high")
    if is_number(low) and is_number(high):
        text += " ± " + written.format(scale * (high - low) / 2)
    return Cell(text.replace("-", "−") if digits is not None else text, scale * mean)


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e12


def difference(value: Any, show: Callable[[Any], Cell] = percent) -> Cell:
    """Of two means, in brackets if its interval includes 0."""
    cell, low, high = show(value), at(value, "low"), at(value, "high")
    if not (cell.text and is_number(low) and is_number(high) and low <= 0 <= high):
        return cell
    return cell._replace(text=f"({cell.text})")


class Error(NamedTuple):
    """What an error is called, and how it is shown."""

    key: str

    @property
    def name(self) -> str:
        return words(self.key) or "error"

    @property
    def share(self) -> bool:
        return self.key == "error_rate"

    @property
    def unit(self) -> str:
        return f" ({self.name}{', %' * self.share})"

    def of(self, value: Any) -> Cell:
        return percent(value) if self.share else number(value)


def error_of(tree: Mapping[str, Any], prefix: str) -> Error:
    """By its first key of a kind: ``"test_perplexity"``, say."""
    return Error(next((k.removeprefix(prefix) for k in tree if k.startswith(prefix)), ""))


def at(tree: Any, *path: str) -> Any:
    """What is in nested objects at a path; None where there is nothing."""
    for name in path:
        tree = tree.get(name) if isinstance(tree, Mapping) else None
    return tree


def objects(tree: Any, *path: str) -> list[Mapping[str, Any]]:
    """The objects of a list in nested objects."""
    found = at(tree, *path)
    return [v for v in found if isinstance(v, Mapping)] if isinstance(found, list) else []


def objects_by_name(tree: Any, *path: str) -> dict[str, Mapping[str, Any]]:
    """The objects that are members of another."""
    found = at(tree, *path)
    named = found.items() if isinstance(found, Mapping) else ()
    return {name: value for name, value in named if isinstance(value, Mapping)}


def words(key: str) -> str:
    return key.replace("_", " ")
