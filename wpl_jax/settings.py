"""The values that settings may have, which their types say: one check for every class of them."""

import dataclasses
import functools
import math
import operator
import types
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import jax

__all__ = [
    "Count",
    "Few",
    "Nonnegative",
    "Positive",
    "Range",
    "Seed",
    "Several",
    "Share",
    "Size",
    "Unfit",
    "check",
]


class Range(NamedTuple):
    """Numbers from ``low`` to ``high``, or only below it."""

    low: float
    high: float
    below: bool = False

    def wanted(self, value: Any) -> str:
        """What a number should be instead; nothing if it is. NaN is in no range."""
        if not value >= self.low:
            return f"at least {_written(self.low)}"
        if self.below and not value < self.high:
            return f"below {_written(self.high)}"
        return "" if value <= self.high else f"at most {_written(self.high)}"


class Several(NamedTuple):
    """At least so many values, all different, also where they are written with six digits."""

    least: int = 0

    def wanted(self, values: Sequence[Any]) -> str:
        """What they should be instead; nothing if they are."""
        if len(values) < self.least:
            return f"{_written(self.least)} or more"
        written = {f"{value:g}" if isinstance(value, float) else value for value in values}
        if len(written) == len(values):
            return ""
        return "different" + ", also in six digits" * isinstance(values[0], float)


# So that no product of a few of these is more than a float32 or an int32 holds, or a machine.
Size = Annotated[int, Range(1, 1_000_000)]
"""Of an axis of an array, or of a loop."""
Few = Annotated[int, Range(1, 1_000)]
"""Parts that a program grows with."""
Count = Annotated[int, Range(0, 1_000_000)]
"""A size that may be 0."""
Seed = Annotated[int, Range(0, 2**32 - 1)]
"""Of a key, which has the same numbers as that of the remainder by 2³²."""
Positive = Annotated[float, Range(1e-30, 1e30)]
Nonnegative = Annotated[float, Range(0, 1e30)]
Share = Annotated[float, Range(0, 1, below=True)]
"""What is dropped, or kept of an average: never all of it."""


class Unfit(ValueError):
    """A setting that cannot work."""

    def __init__(self, settings: Any, name: str, wanted: str) -> None:
        """Say what is wanted of the setting of a name."""
        self.cls, self.name = type(settings), name
        value = getattr(settings, name)
        several = isinstance(value, tuple) and all(isinstance(v, Path) for v in value)
        shown = tuple(map(str, value)) if several else value
        self.reason = f"must be {wanted}, got {shown!r}"
        super().__init__(f"{name} {self.reason}")


def check(settings: Any) -> None:
    """Refuse, from the ``__post_init__`` of a dataclass, values that its fields' types exclude.

    Raises:
      Unfit: with the name and the value of a field.
    """
    cls: Any = type(settings)
    for name, hint in _hints(cls).items():
        if wanted := _wanted(getattr(settings, name), hint):
            raise Unfit(settings, name, wanted)


@functools.cache
def _hints(cls):
    """The types of the fields of a dataclass, with what is annotated."""
    hints = typing.get_type_hints(cls, include_extras=True)
    return {field.name: hints[field.name] for field in dataclasses.fields(cls)}


def _wanted(value, hint):
    """What a value should be instead, by its type; nothing if it is."""
    kind, parts = typing.get_origin(hint), typing.get_args(hint)
    if kind is Annotated:
        if parts[0] in (int, float) and (unlike := _unlike(value, parts[0])):
            return unlike
        rules = [part for part in parts[1:] if isinstance(part, Range | Several)]
        return next(filter(None, (rule.wanted(value) for rule in rules)), _wanted(value, parts[0]))
    if kind in (typing.Union, types.UnionType) and value is not None:
        return next(filter(None, (_wanted(value, part) for part in parts)), "")
    if kind is tuple:
        of_each = parts[:1] * len(value) if parts[-1] is ... else parts
        wanted = next(filter(None, map(_wanted, value, of_each)), "")
        return wanted and f"{wanted} each"
    return ""


def _unlike(value, kind):
    """What a value should be instead that is no number of a kind; nothing if it is."""
    wanted, reads = {int: ("a whole number", operator.index), float: ("a number", math.isnan)}[kind]
    try:
        reads(value)
    except jax.errors.ConcretizationTypeError:  # in a program that is given the number
        raise
    except (TypeError, OverflowError):
        return wanted
    return ""


def _written(number):
    return f"{number:,}" if isinstance(number, int) else f"{number:g}"
