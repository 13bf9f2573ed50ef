"""What all scripts share in reading their command lines."""

import argparse
import contextlib
import dataclasses
import io
import itertools
import re
import shlex
import traceback
import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import tyro

from wpl_jax.settings import Unfit

# An argument in a message.
NAME = re.compile(r"`\w+`|^\w+(?= must)|(?<![\w/.-])[a-z]+_\w+(?![\w/.])")
PATHS = tyro.constructors.ConstructorRegistry()


@PATHS.primitive_rule
def _path(info: tyro.constructors.PrimitiveTypeInfo) -> Any:
    """A path has a name: an empty one would be the folder that the script was started in."""

    def read(words):
        if not words[0]:
            raise ValueError("must be a path, got ''")
        return Path(words[0])

    if info.type is not Path:
        return None
    return tyro.constructors.PrimitiveConstructorSpec(
        nargs=1,
        metavar="PATH",
        instance_from_str=read,
        is_instance=lambda value: isinstance(value, Path),
        str_from_instance=lambda path: [str(path)],
    )


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
                type(default),
                prog=prog,
                description=description,
                args=argv,
                default=default,
                registry=PATHS,
            )
    except SystemExit as end:
        if not end.code:
            raise
        refusal = _refusal_behind(end) or ValueError(_in_a_line(said.getvalue()))
        raise (_of_its_flag(refusal, default) if isinstance(refusal, Unfit) else refusal) from None


@contextlib.contextmanager
def naming_flags(settings: Any, **arguments: str) -> Iterator[None]:
    """In here, a refusal that names fields of settings, or arguments, names their flags instead."""
    try:
        yield
    except Unfit as unfit:
        raise _of_its_flag(unfit, settings) from unfit
    except ValueError as error:
        flags = {field.name: f"--{_dashed(field.name)}" for field in dataclasses.fields(settings)}
        flags |= arguments
        said = NAME.sub(lambda name: flags.get(name[0].strip("`"), name[0]), str(error))
        raise ValueError(said) from error


def words(flag: str, text: str, taken: Sequence[str]) -> list[str]:
    """The flags that a flag holds, as in ``--search-flags='--epochs 30'``.

    Args:
      flag: its name.
      text: its value.
      taken: flags that are not to be among them, as the script sets them.

    Raises:
      ValueError: for quotes that do not close, and for what is taken.
    """
    try:
        found = shlex.split(text)
    except ValueError as error:
        raise ValueError(f"{flag} must be flags, got {text!r}: {error}") from None
    given = {plain_flag(word.partition("=")[0]) for word in found if word.startswith("-")}
    given |= {name.removeprefix("no-") for name in given}
    if "help" in given or "h" in given:
        raise ValueError(f"{flag} must be flags that set something, got {text!r}")
    if both := [name for name in taken if name in given]:
        raise ValueError(f"{flag} must not have --{both[0]}, which this script sets, got {text!r}")
    return found


def plain_flag(flag: str) -> str:
    """Without the dashes before it, and with dashes in it."""
    return _dashed(flag.strip().lstrip("-"))


def _dashed(name):
    return name.replace("_", "-")


def _of_its_flag(unfit, settings):
    """The same refusal, of the flag that it is about."""
    return ValueError(f"{_flag(settings, unfit) or unfit.name} {unfit.reason}")


def _flag(settings, unfit, prefix="--"):
    """The flag of a setting that is refused, in settings or in those that they hold."""
    if isinstance(settings, unfit.cls):
        return prefix + _dashed(unfit.name)
    for field in dataclasses.fields(settings):
        inner = getattr(settings, field.name)
        if dataclasses.is_dataclass(inner):
            bare = tyro.conf.OmitArgPrefixes in typing.get_args(field.type)
            within = prefix if bare else f"{prefix}{_dashed(field.name)}."
            if found := _flag(inner, unfit, within):
                return found
    return None


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
