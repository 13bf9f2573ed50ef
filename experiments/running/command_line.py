"""What all scripts share in reading their command lines."""

import argparse
import contextlib
import io
import itertools
import math
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
      ValueError: for an unknown preset, and as :func:`read`.
      SystemExit: after help.
    """
    preset: Any = presets
    for flag, name in named(argv, flags).items():
        preset = choose(flag, preset, name)
    return read(preset, argv, prog=prog, description=description)


def named(argv: Sequence[str] | None, flags: Mapping[str, str]) -> dict[str, str]:
    """The values of some flags, given their defaults, before all others are read.

    Raises:
      ValueError: for a flag without a value.
    """
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    for flag, default in flags.items():
        first.add_argument(flag, default=default, dest=flag)
    try:
        return vars(first.parse_known_args(argv)[0])
    except argparse.ArgumentError as error:
        raise ValueError(error) from None


def choose(flag: str, presets: Mapping[str, Any], name: str) -> Any:
    """The preset of a name; raises ValueError if there is none."""
    if name not in presets:
        raise ValueError(f"{flag} must be one of {', '.join(presets)}, got {name!r}")
    return presets[name]


def read(default: Any, argv: Sequence[str] | None, *, prog: str, description: str | None) -> Any:
    """Settings from the command line, of the class of ``default``.

    Raises:
      ValueError: in one line, for flags that do not exist or cannot be read; what the class says of
        its values.
      SystemExit: after help.
    """
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            return tyro.cli(
                type(default), prog=prog, description=description, args=argv, default=default
            )
    except SystemExit as end:
        if not end.code:
            raise
        raise (_refusal_behind(end) or ValueError(_in_a_line(said.getvalue()))) from None


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


def _in_a_line(box: str) -> str:
    """What tyro says in a box: a title, the message, perhaps flags like the one given."""
    lines = [line.strip(" │╭╮╰╯─") for line in box.splitlines()][1:]
    ruled = itertools.groupby(lines, key=lambda line: bool(line.strip("-")))
    message, *more = [list(part) for filled, part in ruled if filled]
    alike = [part[1].split()[0] for part in more if part[0].startswith(("Perhaps", "Arguments"))]
    return " ".join(message) + "".join(f"; did you mean {flag}?" for flag in alike[:1])


def _refusal_behind(end: SystemExit) -> ValueError | None:
    """What a class of settings said of its values, where tyro boxed that and ended for it."""
    error: BaseException | None = end
    while error := error.__context__:
        raised_in = [frame.name for frame in traceback.extract_tb(error.__traceback__)]
        if isinstance(error, ValueError) and "__post_init__" in raised_in:
            return error
    return None
