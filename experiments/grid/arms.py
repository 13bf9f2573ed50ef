"""What is compared: arms, each with its flags or several to choose from, at each place of a map."""

import itertools
import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from experiments.running.command_line import plain_flag, words

Flags = tuple[str, ...]

OF_EACH = {"seed", "out", "resume"}  # set for each search
NAME = re.compile(r"\w[\w .,+×()=-]*")
LONGEST = 200  # bytes of a folder's name, of 255 that file systems have


class Arm(NamedTuple):
    """Searches that differ in their seeds only."""

    name: str
    method: str  # what it is called in --arms; arms of one method differ in their places
    place: Mapping[str, str]  # by flag, the value of each --vary
    flags: Flags  # of the place
    candidates: tuple[Flags, ...]  # to choose from; one is simply taken

    @property
    def folder(self) -> str:
        """The name in names of folders."""
        return re.sub(r"[^\w.+=-]+", "_", self.name).strip("_")

    def folder_of(self, candidate: int) -> str:
        """The same for a candidate, with its number if there are several."""
        number = f"_{candidate + 1}" if len(self.candidates) > 1 else ""
        return f"{self.folder}{number}"

    def all_flags(self, candidate: int) -> Flags:
        """Those of the place among them."""
        return (*self.flags, *self.candidates[candidate])


def axes_of(vary: Sequence[str]) -> dict[str, dict[str, Flags]]:
    """By flag, by value, all flags that come with it.

    Raises:
      ValueError: naming what is not ``FLAG=V1,V2,…``, or is there twice.
    """
    axes: dict[str, dict[str, Flags]] = {}
    for text in vary:
        flag, equals, listed = text.partition("=")
        flag, values = plain_flag(flag), [words("--vary", v, ()) for v in listed.split(",")]
        if not (flag and equals and all(values)):
            raise ValueError(f"--vary must be FLAG=V1,V2,…, got {text!r}")
        axis = {value: (f"--{flag}", value, *more) for value, *more in values}
        if flag in axes or len(axis) < len(values):
            raise ValueError(f"--vary must have each flag and value once, got {text!r}")
        axes[flag] = axis
    return axes


def arms_of(texts: Sequence[str], axes: Mapping[str, Mapping[str, Flags]]) -> list[Arm]:
    """The arms of all methods at all places, those of a place one after another.

    Raises:
      ValueError: naming what is not ``NAME: FLAGS | FLAGS | …``, is there twice, or sets what is
        varied.
    """
    methods = dict(map(_method, texts)) if texts else {"search": ((),)}
    if texts and len(methods) < len(texts):
        raise ValueError(f"--arms must have different names, got {', '.join(map(_name, texts))}")
    varied = {name for axis in axes.values() for flags in axis.values() for name in _names(flags)}
    for name, candidates in methods.items():
        given = _names(itertools.chain(*candidates))
        if both := sorted(given & varied):
            raise ValueError(f"the arm {name} sets --{both[0]}, which --vary varies")
        if both := sorted((given | varied) & OF_EACH):
            raise ValueError(f"--arms and --vary must not have --{both[0]}, which is set for each")
    arms = []
    for values in itertools.product(*axes.values()):
        place = dict(zip(axes, values, strict=True))
        flags = tuple(part for flag, value in place.items() for part in axes[flag][value])
        said = [f"{flag}={value}" for flag, value in place.items()]
        for method, candidates in methods.items():
            name = ", ".join([*([method] if texts else []), *said])
            arms.append(Arm(name, method, place, flags, candidates))
    folders: dict[str, str] = {}
    for arm in arms:
        if len(arm.folder.encode()) > LONGEST:
            raise ValueError(
                f"the name of the arm {arm.name[:20]}… must be shorter, at most {LONGEST} bytes "
                f"with what --vary adds, has {len(arm.folder.encode())}"
            )
        for folder in {arm.folder, *map(arm.folder_of, range(len(arm.candidates)))}:
            if (other := folders.setdefault(folder, arm.name)) != arm.name:
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
    return name, tuple(tuple(words("--arms", part, ())) for part in flags.split("|"))


def _names(parts):
    """Those of the flags among what a command line has been split into."""
    return {plain_flag(part.partition("=")[0]) for part in parts if part.startswith("--")}


def _name(text):
    return text.partition(":")[0].strip()
