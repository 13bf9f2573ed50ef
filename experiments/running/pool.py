"""Many runs of scripts, some at a time, so that the same call goes on where it was interrupted."""

import contextlib
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Self

from experiments.running import processes, records
from experiments.running.folder import Held
from experiments.running.progress import Stop
from experiments.running.script import of_error
from experiments.running.wording import clock


class Run(NamedTuple):
    """A script that writes summary.json, last of all, to --out, and takes --resume."""

    name: str  # of its folder in the pool's
    script: str
    flags: tuple[str, ...]
    expected: Mapping[str, object]  # what its result says of its settings; ``epochs`` among it
    read: Callable[[Path], object] | None = None  # the rest of what it leaves; raises if damaged

    result = "summary.json"

    @property
    def command(self) -> list[str]:
        return ["-m", f"experiments.{self.script}", *self.flags]

    def place(self, folder: Path) -> list[str]:
        """The flags that make it begin, or go on, in a folder."""
        return ["--out", str(folder), "--resume"]

    def goes_on(self, found: Mapping[str, Any]) -> bool:
        """Whether it would go on where it has left a result."""
        epochs = found.get("epochs")
        return isinstance(epochs, int) and epochs < self.expected["epochs"]

    def different(self, found: Mapping[str, Any]) -> str:
        """Where a result is not as expected, in words; early ones do not say of which data."""
        wanted = {k: v for k, v in self.expected.items() if k != "data" or k in found}
        return records.differences(wanted, found)


class Interrupted(Exception):
    """The runs were asked to stop, and have."""


class Pool:
    """Runs in a folder that no other pool, and no run that a killed one has left, works in."""

    def __init__(self, folder: Path, jobs: int, stop: Stop) -> None:
        """Up to ``jobs`` runs at a time, each with its share of the cores, until ``stop``."""
        self.failed: list[str] = []  # a line each
        self._folder, self._jobs, self._stop = folder, jobs, stop
        self._lock = Held(folder, "--runs")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        self._lock.close()

    def summary(self, run: Run) -> dict | None:
        """The result of a run, if it has finished."""
        found = self._read(run)
        return found if found and not run.different(found) else None

    def execute(self, title: str, runs: Sequence[Run]) -> None:
        """Run what has not finished; a run that fails is said in a line, and the rest go on.

        Raises:
          Interrupted: if asked to stop, once the runs have saved and stopped.
        """
        waiting = [run for run in runs if not self._is_done(run)]
        total, durations = len(waiting), []
        working: dict[int, tuple[Run, subprocess.Popen, float]] = {}
        asked = False
        try:
            while working or (waiting and not self._stop):
                for place in range(self._jobs):
                    if waiting and place not in working and not self._stop:
                        run = waiting.pop(0)
                        processes.say(f"{title} {total - len(waiting)}/{total}: {run.name}")
                        working[place] = run, self._start(run, place), time.monotonic()
                time.sleep(0.1)
                if self._stop and not asked:
                    asked = True
                    processes.say(f"{title}: waiting for {len(working)} runs to save")
                    for _, process, _ in working.values():
                        process.terminate()  # an interrupt can get lost while Python starts
                for place, (run, process, start) in list(working.items()):
                    if process.poll() is None:
                        continue
                    del working[place]
                    if self._stop and process.returncode:
                        continue
                    durations.append(time.monotonic() - start)
                    left = len(waiting) + len(working)
                    eta = statistics.mean(durations) * left / min(self._jobs, left or 1)
                    if why := self._problem(run, process.returncode):
                        self._fail(run, why)
                    else:
                        processes.say(
                            f"{run.name}: done in {clock(durations[-1])}, ETA {clock(eta)}"
                        )
        finally:
            for _, process, _ in working.values():  # a second signal does not wait
                process.kill()
                process.wait()
        if self._stop:
            raise Interrupted

    def _is_done(self, run):
        """Whether there is nothing to do: it has finished, or cannot begin."""
        found = self._read(run)
        if not found or run.goes_on(found):
            return False
        if why := self._problem(run, 0):
            self._fail(run, why)
        return True

    def _problem(self, run, code):
        """Why a run that has ended with an exit code has not done what it should, if so."""
        found = self._read(run)
        if code or not found:
            log = self._folder / run.name / "log.txt"
            last = (log.read_text(errors="replace").strip() or "no output").splitlines()[-1]
            return f"exit code {code}, {last} ({log})"
        if different := run.different(found):
            return f"its folder holds a run with {different}; delete it, or choose another --runs"
        return None

    def _fail(self, run, why):
        self.failed.append(f"{run.name}: {why}")
        processes.say(f"failed: {self.failed[-1]}")

    def _read(self, run):
        """Its result, if it is there, and whole; one that is not is removed, for another."""
        folder = self._folder / run.name
        found = records.read_json(folder / run.result)
        try:
            if found and run.read:
                run.read(folder)
        except Exception as error:  # of many kinds: which depends on the byte that is wrong
            processes.say(f"{folder} is damaged ({of_error(error)}): what it had is made again")
            found = None
        if found is None:
            (folder / run.result).unlink(missing_ok=True)
        return found

    def _start(self, run, place):
        folder = self._folder / run.name
        folder.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, *run.command, *run.place(folder)]
        with (folder / "log.txt").open("a") as log, cores(place, self._jobs):
            return launch(command, log, self._lock.fileno())


def launch(command, log, lock):
    """Start a run that a terminal's Ctrl-C does not reach, and that keeps the lock till it ends."""
    return subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=subprocess.STDOUT,
        process_group=0,
        pass_fds=[lock],
    )


@contextlib.contextmanager
def cores(place: int, jobs: int) -> Iterator[None]:
    """What is started here has one share of the cores, if there are as many and the system can."""
    every = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    if len(every) < jobs:
        yield
        return
    os.sched_setaffinity(0, every[place::jobs])
    try:
        yield
    finally:
        os.sched_setaffinity(0, every)
