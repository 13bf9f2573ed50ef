"""What finished runs have left in their folders, as far as it can be read."""

import dataclasses
import io
import json
import os
import stat
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from experiments.running import records

ORIGIN = ("command", "python", "versions", "devices", "machine")
LINK = "a symbolic link, which is not followed"
Content = TypeVar("Content")


@dataclasses.dataclass(frozen=True)
class Run:
    """A folder with a summary, and what else of it is shown."""

    name: str
    summary: Mapping[str, Any]
    report: str = ""  # Markdown
    figures: Mapping[str, bytes] = dataclasses.field(default_factory=dict)  # PNG, by file name
    metrics: Sequence[Mapping[str, Any]] = ()  # one record an epoch
    arrays: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)  # of curves.npz
    left_out: Sequence[str] = ()  # what could not be read, a line each

    @property
    def settings(self) -> dict[str, Any]:
        return dict(flat(self.summary.get("configuration", {})))

    @property
    def origin(self) -> dict[str, Any]:
        return {name: self.summary[name] for name in ORIGIN if name in self.summary}


def find(dirs: Sequence[Path]) -> tuple[list[Run], list[str]]:
    """The finished runs under some folders, by name; and what cannot be one, a line each.

    Raises:
      ValueError: if a folder has no run, or none can be read.
    """
    folders: dict[str, Path] = {}  # by where they really are: each once
    left_out = []
    for root in dirs:
        below = []
        for at, inner, files in os.walk(root):
            if "summary.json" in (*inner, *files):
                below.append(Path(at))
            links = (Path(at, name) for name in inner if Path(at, name, "summary.json").exists())
            left_out += [f"{path} is {LINK}" for path in links if path.is_symlink()]
        if not below:
            raise ValueError(f"no finished run, which has a summary.json, in or under {root}")
        for folder in sorted(below):
            folders.setdefault(os.path.realpath(folder), folder)
    common = os.path.commonpath([os.path.dirname(place) for place in folders])
    runs = []
    for place, folder in folders.items():
        try:
            runs.append(run_of(os.path.relpath(place, common), folder))
        except ValueError as error:
            left_out.append(str(error))
    if not runs:
        raise ValueError("no run can be read: " + "; ".join(left_out))
    return runs, left_out


def run_of(name: str, folder: Path) -> Run:
    """A run, without what of it cannot be read.

    Raises:
      ValueError: if that is its summary.
    """
    left_out: list[str] = []

    def if_there(file: str, load: Callable[[Path], Content], nothing: Content) -> Content:
        try:
            return read(folder / file, load)
        except FileNotFoundError:
            return nothing
        except ValueError as error:
            left_out.append(str(error))
            return nothing

    pictures = sorted(path.name for path in folder.iterdir() if path.suffix == ".png")
    figures = {file: if_there(file, png, b"") for file in pictures}
    return Run(
        name,
        read(folder / "summary.json", summary),
        if_there("report.md", lambda path: path.read_text(encoding="utf-8"), ""),
        {file: data for file, data in figures.items() if data},
        if_there("metrics.jsonl", records.read_json_lines, []),
        if_there("curves.npz", arrays, {}),
        left_out,
    )


def read(path: Path, load: Callable[[Path], Content]) -> Content:
    """What ``load`` makes of a regular file, which no symbolic link leads to from its folder.

    Raises:
      FileNotFoundError: if nothing is there.
      ValueError: in one line, if something else is there, or ``load`` fails.
    """
    kind = os.lstat(path).st_mode
    if stat.S_ISLNK(kind):
        raise ValueError(f"{path} is {LINK}")
    if not stat.S_ISREG(kind):
        raise ValueError(f"{path} is not a file")
    try:
        return load(path)
    except Exception as error:  # the system's, JSON's, NumPy's, the archive's, its compression's
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"{path} cannot be read: {reason}") from error


def summary(path: Path) -> Mapping[str, Any]:
    found = json.loads(path.read_bytes())
    if not isinstance(found, dict):
        raise ValueError(f"it must hold an object, got {json.dumps(found)[:40]}")
    if depth(found) > 100:
        raise ValueError("it is nested too deeply")
    return found


def depth(tree: Any) -> int:
    """Of objects and lists in each other."""
    if not isinstance(tree, dict | list):
        return 0
    return 1 + max(map(depth, tree.values() if isinstance(tree, dict) else tree), default=0)


def png(path: Path) -> bytes:
    data = path.read_bytes()
    if not data.startswith(b"\x89PNG\r\n\x1a\n"):
        raise ValueError("it is not a PNG image")
    return data


def arrays(path: Path) -> dict[str, np.ndarray]:
    with np.load(io.BytesIO(path.read_bytes())) as file:
        return {name: file[name] for name in file.files}


def flat(tree: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The leaves of nested objects, named by their path; lists are leaves."""
    if isinstance(tree, Mapping):
        for key, value in tree.items():
            yield from flat(value, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, tree
