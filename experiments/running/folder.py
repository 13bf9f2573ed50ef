"""The folder of a run: no other run works in it meanwhile, and what it holds is not lost."""

import fcntl
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from experiments.running import processes, records
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
        self._file = os.open(records.writable_folder(folder), os.O_RDONLY)
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


def claim(folder: Path, settings: Mapping[str, Any], what: str) -> None:
    """Make a folder that of a run with certain settings; they are kept in settings.json.

    Args:
      folder: where the run keeps what it has done.
      settings: what that depends on, in types that JSON has.
      what: what the run keeps there, by a pattern of files.

    Raises:
      ValueError: if what is there has been made with other settings, or that is not known.
    """
    path, settings = folder / "settings.json", json.loads(json.dumps(settings))
    if any(folder.glob(what)) and path.exists():
        found = records.read_json(path)
        if found is None:
            raise ValueError(
                f"{path} cannot be read, so that it is not known what {what} there belongs to: "
                "delete both, or choose another --out"
            )
        if found != settings:
            raise ValueError(
                f"{folder} was begun with other settings or data: choose another --out, or delete "
                "it"
            )
    records.write_json(path, settings)
