"""The folder of a run: no other run works in it meanwhile, and what it holds is not lost."""

import contextlib
import fcntl
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import numpy as np

from experiments.running import processes, records
from experiments.running.script import of_error
from wpl_jax.checkpoint import Checkpoints


class Held:
    """A folder that is one run's until it is closed, or its process ends. A context manager.

    The folder itself is locked, so that no file is left in it. Programs that a process starts, and
    gives :meth:`fileno` to, hold it as well.
    """

    def __init__(self, folder: Path, flag: str = "--out") -> None:
        """Hold a folder, which is created where it is missing; ``flag`` is what names it.

        Raises:
          OSError: if it cannot be written to, or another run holds it.
        """
        self._file = os.open(records.writable_folder(folder, flag), os.O_RDONLY)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self.close()
            raise OSError(
                f"another run is at work in {folder}: wait for it, or choose another {flag}"
            ) from None
        except OSError:
            processes.say(f"{folder} cannot be locked: let no other run work in it")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def fileno(self) -> int:
        """By which a program that is started can hold the folder too."""
        return self._file

    def close(self) -> None:
        """Let others work in it."""
        os.close(self._file)


def open_checkpoints(out: Path, fingerprint: Mapping[str, object], resume: bool) -> Checkpoints:
    """Those of a run, which goes on from the last one, if there is any.

    Args:
      out: the folder of the run.
      fingerprint: what its states depend on.
      resume: whether to go on with what the folder holds.

    Raises:
      ValueError: if something there would be lost, or belongs to another run.
    """
    folder, log = out / "checkpoints", out / "metrics.jsonl"
    epochs = len(records.read_json_lines(log))
    finished = (out / records.SUMMARY).exists()
    saved = folder.is_dir() and any(folder.iterdir())
    if (saved or epochs or finished) and not resume:
        raise ValueError(f"{out} holds a run: go on with it with --resume, or choose another --out")
    checkpoints = Checkpoints(folder, fingerprint)
    latest = checkpoints.latest()
    # The first epoch is in the log before it is saved.
    if latest is None and (epochs > 1 or finished):
        what = "the results of a run" if finished else f"a log of {epochs} epochs"
        raise ValueError(
            f"{out} holds {what} but no checkpoint to go on from: put its checkpoints back, or "
            "choose another --out"
        )
    for step in checkpoints.incomplete():
        where = "the start" if latest is None else f"that of step {latest}"
        processes.say(
            f"{folder}: the checkpoint of step {step} is damaged or unfinished: going on from "
            f"{where}"
        )
    return checkpoints


def check_epochs(out: Path, checkpoints: Checkpoints, epochs: int, size: int) -> None:
    """Refuse to end a run after fewer epochs than it has behind it.

    Args:
      out: its folder.
      checkpoints: those in it.
      epochs: after which it is to end.
      size: of an epoch, in what the checkpoints count.

    Raises:
      ValueError: if it has more.
    """
    done = (checkpoints.latest() or 0) // size
    if done > epochs:
        raise ValueError(f"--epochs must be at least {done}, as many as {out} has, got {epochs}")


def check_report(out: Path, kind: str, config: Any) -> None:
    """Refuse to write the report of some runs over other results.

    More runs of the same kind may be added to it; which they are is said by these settings.

    Args:
      out: the folder of the report.
      kind: the name of ``config`` in the configuration of its summary.
      config: the settings.

    Raises:
      ValueError: if there are other results.
    """
    summary = records.read_json(out / records.SUMMARY)
    if summary is None:
        return
    stored: Any = summary
    for name in ("configuration", kind):
        stored = stored.get(name) if isinstance(stored, Mapping) else None
    names = ("space", "preset", "search_flags", "final_flags")
    if not isinstance(stored, Mapping) or any(
        stored.get(name) != getattr(config, name, None) for name in names
    ):
        raise ValueError(f"{out} holds other results: choose another --out, or delete it")


def finished(out: Path, settings: Mapping[str, Any]) -> dict[str, Any] | None:
    """The summary of the run in a folder, if it has finished.

    Args:
      out: the folder.
      settings: what the summary's configuration is to be.

    Raises:
      ValueError: if it is of a run with other settings.
    """
    summary = records.read_json(out / records.SUMMARY)
    if summary is not None and summary.get("configuration") != json.loads(json.dumps(settings)):
        raise ValueError(
            f"{out} holds the results of another run: choose another --out, or delete it"
        )
    return summary


def check_parts(folder: Path, fingerprint: str) -> None:
    """Refuse to go on in a folder of parts, as :func:`records.kept` leaves them, of another run.

    Args:
      folder: where they are; it may be missing.
      fingerprint: what those of this run begin with in theirs.

    Raises:
      ValueError: if there is another.
    """
    for path in sorted(folder.glob("*.npz")):
        found = fingerprint
        with contextlib.suppress(Exception), path.open("rb") as opened, np.load(opened) as file:
            found = str(file["fingerprint"])
        if not found.startswith(fingerprint):
            raise ValueError(
                f"{folder} holds parts of a run with other settings or data, or of another version "
                "of JAX: choose another --out, or delete it"
            )


def claim(folder: Path, settings: Mapping[str, Any], table: str) -> None:
    """Make a folder that of a run with certain settings, which are kept in settings.json.

    Args:
      folder: where the run keeps what it has done.
      settings: what that depends on, in types that JSON has.
      table: the file that has it.

    Raises:
      ValueError: if what is there has been made with other settings, or it is not known with which.
    """
    path, settings = folder / "settings.json", json.loads(json.dumps(settings))
    if (folder / table).exists():
        try:
            found = json.loads(path.read_bytes())
        except (OSError, ValueError) as error:
            raise ValueError(
                f"{path} cannot be read, so that it is not known what {table} beside it is of "
                f"({of_error(error)}): choose another --out, or delete both"
            ) from error
        if found != settings:
            raise ValueError(
                f"{folder} was begun with other settings or data: choose another --out"
            )
    records.write_json(path, settings)
