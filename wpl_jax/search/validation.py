"""Settings that cannot work, and spaces that lack something, are refused by name."""

from collections.abc import Callable
from typing import Any

__all__ = ["require", "require_of_space"]


def require(settings: Any, name: str, holds: Callable[[Any], bool], wanted: str) -> None:
    """Refuse a setting that is not what is wanted.

    Raises:
      ValueError: with its name and value.
    """
    value = getattr(settings, name)
    if not holds(value):
        raise ValueError(f"{name} must be {wanted}, got {value!r}")


def require_of_space(space: Any, part: Any) -> None:
    """Refuse a sampler or a method that needs more of a space than it offers.

    Raises:
      ValueError: with the names of all three, and what to do.
    """
    for name in part.needs:
        if not hasattr(space, name):
            raise ValueError(
                f"{type(part).__name__} needs {name} of the space, which {type(space).__name__} "
                "does not have: define it, as wpl_jax.spaces.protocol describes it, or choose "
                "another"
            )
