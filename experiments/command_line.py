"""What all scripts share in reading their command lines."""

import argparse
import contextlib
import io
import math
import sys
import traceback
from collections.abc import Mapping, Sequence
from typing import Any

import tyro


def parse(
    presets: Mapping[str, Any],
    argv: Sequence[str] | None,
    *,
    prog: str,
    description: str | None,
    flags: Mapping[str, str],
) -> Any:
    """Settings from the command line, whose defaults are those of a preset.

    Args:
      presets: instances of classes of settings by name, at the depth of ``flags``.
      argv: the command line's arguments; those of the process if None.
      prog: how the script is called.
      description: what it does.
      flags: in order, the flags that name the preset, each with its default.

    Raises:
      ValueError: for an unknown preset, and what a class of settings says of its values.
      SystemExit: after help, and for flags that do not exist or cannot be read.
    """
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for flag, default in flags.items():
        first.add_argument(f"--{flag}", default=default)
    named = first.parse_known_args(argv)[0]
    preset: Any = presets
    for flag in flags:
        name = getattr(named, flag)
        if name not in preset:
            raise ValueError(f"--{flag} must be one of {', '.join(preset)}, got {name!r}")
        preset = preset[name]
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            return tyro.cli(
                type(preset), prog=prog, description=description, args=argv, default=preset
            )
    except SystemExit as end:
        if refusal := _refusal_behind(end):
            raise refusal from None
        sys.stderr.write(said.getvalue())
        raise


def check(
    settings: object,
    *,
    at_least_1: Sequence[str] = (),
    above_0: Sequence[str] = (),
    not_negative: Sequence[str] = (),
) -> None:
    """Refuse, from a ``__post_init__``, numbers that cannot work; None is let through."""
    for names, holds, wanted in (
        (at_least_1, lambda value: value >= 1, "at least 1"),
        (above_0, lambda value: 0 < value < math.inf, "finite and above 0"),
        (not_negative, lambda value: 0 <= value < math.inf, "finite and not negative"),
    ):
        for name in names:
            value = getattr(settings, name)
            if value is not None and not holds(value):
                raise ValueError(f"--{name.replace('_', '-')} must be {wanted}, got {value}")


def _refusal_behind(end: SystemExit) -> ValueError | None:
    """What a class of settings said of its values, where tyro boxed that and ended for it."""
    error: BaseException | None = end
    while error := error.__context__:
        raised_in = [frame.name for frame in traceback.extract_tb(error.__traceback__)]
        if isinstance(error, ValueError) and "__post_init__" in raised_in:
            return error
    return None
