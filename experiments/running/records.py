"""Result files: what each of them says about its origin, and how it is written."""

import dataclasses
import hashlib
import importlib.metadata
import io
import json
import os
import platform
import shlex
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import jax
import numpy as np

from experiments.running import processes

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Tree = TypeVar("Tree")
Settings = TypeVar("Settings", bound=Any)

SUMMARY = "summary.json"
"""The file that a script writes last of all, so that a folder with it holds a finished run."""


def provenance() -> dict[str, object]:
    """What a figure needs to be doubted properly: the command, the versions and the machine."""
    packages = ("jax", "jaxlib", "flax", "optax", "numpy")
    return {
        "command": shlex.join(["python", "-m", *_module_and_arguments()]),
        "python": platform.python_version(),
        "versions": {name: importlib.metadata.version(name) for name in packages},
        "devices": [device.device_kind for device in jax.devices()],
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
    }


def write_atomically(path: Path, content: bytes | str) -> None:
    """Write a file that is, at any moment, either absent, the old one or the new one."""
    data = content.encode() if isinstance(content, str) else content
    with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
        try:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
            os.chmod(file.name, 0o644)
            os.replace(file.name, path)
        except BaseException:
            os.unlink(file.name)
            raise


def write_json(path: Path, content: object) -> None:
    """Write a file of JSON atomically; what JSON does not know, as NaN, raises ValueError."""
    write_atomically(path, json.dumps(content, indent=1, allow_nan=False) + "\n")


def plain(settings: Mapping[str, object]) -> dict[str, object]:
    """Settings as JSON has them: a path is its name."""
    return {k: str(v) if isinstance(v, Path) else v for k, v in settings.items()}


def differences(expected: Mapping[str, object], found: Mapping[str, object]) -> str:
    """Where a result is not as expected, in words."""
    wanted, there = flat(expected), flat(found)
    different = [
        f"{name.removeprefix('configuration.')}={there.get(name)}, not {value}"
        for name, value in wanted.items()
        if there.get(name) != value
    ]
    return ", ".join(different[:3] + ["…"] * (len(different) > 3))


def flat(tree: object, name: str = "") -> dict[str, object]:
    """What JSON makes of settings, by name, those of nested ones joined by dots."""
    if isinstance(tree, Mapping):
        items = tree.items()
    elif isinstance(tree, list | tuple):
        items = enumerate(tree)
    else:
        return {name: tree}
    prefix = f"{name}." if name else ""
    return {k: v for key, value in items for k, v in flat(value, f"{prefix}{key}").items()}


def restored(settings: Settings, stored: Mapping[str, Any]) -> Settings:
    """Settings with what JSON has kept of others; what they do not have is left out."""
    changes: dict[str, Any] = {}
    for field in dataclasses.fields(settings):
        if field.name not in stored:
            continue
        value, here = stored[field.name], getattr(settings, field.name)
        if dataclasses.is_dataclass(here):
            value = restored(here, value)
        elif isinstance(value, list):
            value = _tuple(value)
        changes[field.name] = value
    return dataclasses.replace(settings, **changes)


def _tuple(value):
    return tuple(map(_tuple, value)) if isinstance(value, list) else value


def fingerprint(settings: object, data: object) -> str:
    """What the parts of a run depend on: its settings, all arrays of its data, and JAX."""
    return repr((settings, jax.__version__, digest(data)))


def kept(path: Path, fingerprint: str, compute: Callable[[], Tree]) -> tuple[Tree, float]:
    """The result of ``compute``, from ``path`` where an earlier run has left it whole.

    Args:
      path: an ``.npz`` file.
      fingerprint: what the result depends on; a file with another one is not used.
      compute: gives a tree of arrays; also called, abstractly, for the structure of the tree.

    Returns:
      The tree, of NumPy arrays, and the seconds that computing it took.
    """
    leaves, structure = jax.tree.flatten(jax.eval_shape(compute))

    def read(file):
        if str(file["fingerprint"]) != fingerprint:
            return None
        found = [file[f"leaf{i}"] for i in range(len(leaves))]
        if [(x.shape, x.dtype) for x in found] != [(x.shape, x.dtype) for x in leaves]:
            raise ValueError("it has arrays of another form")
        return jax.tree.unflatten(structure, found), float(file["seconds"])

    if (found := read_npz(path, read)) is not None:
        return found
    start = time.monotonic()
    tree = jax.device_get(compute())
    seconds = time.monotonic() - start
    arrays = {f"leaf{i}": leaf for i, leaf in enumerate(jax.tree.leaves(tree))}
    arrays |= {"fingerprint": np.array(fingerprint), "seconds": np.array(seconds)}
    write_atomically(path, npz(arrays))
    return tree, seconds


def read_npz(path: Path, read: Callable[[Any], Tree]) -> Tree | None:
    """What ``read`` makes of an ``.npz`` file; None if it is missing, or damaged, which is said."""
    try:
        # np.load leaves some damaged files open, if it is left to open them.
        with path.open("rb") as opened, np.load(opened) as file:
            return read(file)
    except FileNotFoundError:
        return None
    except Exception as error:  # of many kinds: which depends on the byte that is wrong
        _damaged(path, error)
        return None


def read_json(path: Path) -> dict[str, Any] | None:
    """The object in a file; None if it is missing, or damaged, which is said."""
    try:
        found = json.loads(path.read_bytes())
        if not isinstance(found, dict):
            raise ValueError("it holds no object")
        return found
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        _damaged(path, error)
        return None


def _damaged(path, error):
    why = " ".join(str(error).split()) or type(error).__name__
    processes.say(f"{path} is damaged ({why}): what it had is made again")


def digest(tree: object) -> str:
    """A short hash of all arrays in a tree, by which data are known wherever they are."""
    found = hashlib.sha256()
    for leaf in jax.tree.leaves(tree):
        found.update(np.asarray(leaf).tobytes())
    return found.hexdigest()[:16]


def write_png(path: Path, figure: "Figure", **how: object) -> None:
    """Write a figure atomically; ``how`` is what ``Figure.savefig`` is told besides."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", **how)
    write_atomically(path, buffer.getvalue())


def write_figures(folder: Path, drawn: Mapping[str, "Figure"], **how: object) -> list[str]:
    """Write figures, by name, as PNG and PDF; returns the names of the files.

    Args:
      folder: where to.
      drawn: the figures.
      how: what ``Figure.savefig`` is told besides.
    """
    written = []
    for name, figure in drawn.items():
        write_png(folder / f"{name}.png", figure, **how)
        buffer = io.BytesIO()
        # A date in the file would make every drawing another file.
        figure.savefig(buffer, format="pdf", metadata={"CreationDate": None}, **how)
        write_atomically(folder / f"{name}.pdf", buffer.getvalue())
        written += [f"{name}.png", f"{name}.pdf"]
    return written


def read_json_lines(path: Path) -> list[dict]:
    """The objects in a file of one a line; lines that are torn, or hold none, are left out."""
    try:
        lines = path.read_bytes().splitlines()
    except FileNotFoundError:
        return []
    found = []
    for line in lines:
        try:
            found.append(json.loads(line))
        except ValueError:
            continue
    return [item for item in found if isinstance(item, dict)]


def npz(arrays: dict[str, np.ndarray]) -> bytes:
    """The bytes of a compressed ``.npz`` file."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    return buffer.getvalue()


def key(name: str) -> str:
    """What the words of a name are in a file: ``"error_rate"`` say."""
    return name.replace(" ", "_")


def writable_folder(path: Path, flag: str = "--out") -> Path:
    """Create the folder where it is missing and make sure that files can be written there.

    Args:
      path: the folder.
      flag: what names it.

    Raises:
      OSError: if they cannot, with a message that names the folder.
    """
    try:
        str(path).encode()
    except UnicodeEncodeError:
        raise OSError(
            f"cannot write to {path}: its name is not in UTF-8, or the locale's characters are "
            f"not; choose another {flag}, or set LC_ALL=C.UTF-8"
        ) from None
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        raise OSError(f"cannot write to {path}: {error.strerror}; choose another {flag}") from None
    return path


def _module_and_arguments():
    main = sys.modules["__main__"]
    spec = getattr(main, "__spec__", None)
    name = spec.name.removesuffix(".__main__") if spec else Path(sys.argv[0]).name
    return [name, *sys.argv[1:]]
