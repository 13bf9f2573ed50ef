"""What all scripts share in reading their command lines."""

import argparse
import contextlib
import io
import sys
import traceback
from collections.abc import Mapping, Sequence
from typing import TypeVar

import tyro

Settings = TypeVar("Settings")


def parse(
    presets: Mapping[str, Settings],
    argv: Sequence[str] | None,
    *,
    prog: str,
    description: str | None,
    flag: str = "preset",
    default: str = "paper",
) -> Settings:
    """Settings from flags; defaults are those of the preset that ``--flag`` names.

    Raises:
      ValueError: for an unknown preset, and what a class of settings says of its values.
      SystemExit: after help, and for flags that do not exist or cannot be read.
    """
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument(f"--{flag}", default=default, dest="name")
    name = first.parse_known_args(argv)[0].name
    if name not in presets:
        raise ValueError(f"--{flag} must be one of {', '.join(presets)}, got {name!r}")
    preset = presets[name]
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


def _refusal_behind(end: SystemExit) -> ValueError | None:
    """What a class of settings said of its values, where tyro boxed that and ended for it."""
    error: BaseException | None = end
    while error := error.__context__:
        raised_in = [frame.name for frame in traceback.extract_tb(error.__traceback__)]
        if isinstance(error, ValueError) and "__post_init__" in raised_in:
            return error
    return None
