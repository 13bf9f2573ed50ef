"""What is compared: arms, each with its flags or several to choose from, at each place of a map."""

import itertools
import re
import shlex
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from experiments.running.command_line import plain_flag

Flags = tuple[str, ...]

OF_EACH = {"seed", "out", "resume"}  # set for each search
NAME = re.compile(r"\w[\w .,+×()=-]*")


class Arm(NamedTuple):
    """Searches that differ in their seeds only."""

    name: str
    method: str  # what it is called in --arms; arms of one method differ in their places
    place: Mapping[str, str]  # by flag, the value of each --vary
    candidates: tuple[Flags, ...]  # to choose from; one is simply taken

    @property
    def folder(self) -> str:
        """The name in names of folders."""
        return re.sub(r"[^\w.+=-]+", "_", self.name).strip("_")

    def all_flags(self, candidate: int) -> Flags:
        """Those of the place among them."""
        place = [part for flag, value in self.place.items() for part in (f"--{flag}", value)]
        return (*place, *self.candidates[candidate])


def axes_of(vary: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """By flag, its values.

    Raises:
      ValueError: naming what is not ``FLAG=V1,V2,…``, or is there twice.
    """
    axes: dict[str, tuple[str, ...]] = {}
    for text in vary:
        flag, equals, listed = text.partition("=")
        flag, values = plain_flag(flag), tuple(value.strip() for value in listed.split(","))
        if not (flag and equals and all(values)):
            raise ValueError(f"--vary must be FLAG=V1,V2,…, got {text!r}")
        if flag in axes or len(set(values)) < len(values):
            raise ValueError(f"--vary must have each flag and value once, got {text!r}")
        axes[flag] = values
    return axes


def arms_of(texts: Sequence[str], axes: Mapping[str, Sequence[str]]) -> list[Arm]:
    """The arms of all methods at all places, those of a place one after another.

    Raises:
      ValueError: naming what is not ``NAME: FLAGS | FLAGS | …``, is there twice, or sets what is
        varied.
    """
    methods = dict(map(_method, texts)) if texts else {"search": ((),)}
    if texts and len(methods) < len(texts):
        raise ValueError(f"--arms must have different names, got {', '.join(map(_name, texts))}")
    for name, candidates in methods.items():
        given = {plain_flag(part.partition("=")[0]) for flags in candidates for part in flags}
        if both := sorted(given & axes.keys()):
            raise ValueError(f"the arm {name} sets --{both[0]}, which --vary varies")
        if both := sorted((given | axes.keys()) & OF_EACH):
            raise ValueError(f"--arms and --vary must not have --{both[0]}, which is set for each")
        if len(set(candidates)) < len(candidates):
            raise ValueError(f"the arm {name} has the same flags twice to choose from")
    arms = []
    for values in itertools.product(*axes.values()):
        place = dict(zip(axes, values, strict=True))
        said = [f"{flag}={value}" for flag, value in place.items()]
        for method, candidates in methods.items():
            name = ", ".join([*([method] if texts else []), *said])
            arms.append(Arm(name, method, place, candidates))
    folders: dict[str, str] = {}
    for arm in arms:
        if (other := folders.setdefault(arm.folder, arm.name)) != arm.name:
            raise ValueError(f"the names of the arms {other} and {arm.name} are too much alike")
    return arms


def _method(text):
    """The name and the flags to choose from."""
    name, colon, flags = _name(text), *text.partition(":")[1:]
    if not (colon and NAME.fullmatch(name)):
        raise ValueError(
            "--arms must be 'NAME: FLAGS', with a name of letters, digits, spaces and .,+×()=-, "
            f"got {text!r}"
        )
    return name, tuple(tuple(shlex.split(part)) for part in flags.split("|"))


def _name(text):
    return text.partition(":")[0].strip()
