"""What every long run shares: it stops when asked to, logs its metrics and shows how far it is."""

import contextlib
import dataclasses
import datetime
import json
import math
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
from rich.console import Console, RenderableType
from rich.progress import (
    BarColumn,
    Progress,
    ProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from experiments.running import processes, records
from experiments.running.script import SIGNALS, Failed, Tolerant, of_error


class Diverged(Failed):
    """What was trained is not finite."""


@dataclasses.dataclass
class Stop:
    """Whether the run was asked to stop: true once a signal has come."""

    by: signal.Signals | None = None

    def agreed(self) -> bool:
        """Whether any process of the run was asked to, the same in all; every process must ask."""
        signals = processes.all_have(self.by or 0)
        if signals.any():
            self.by = signal.Signals(signals.max())
        return bool(signals.any())

    def __bool__(self) -> bool:
        return self.by is not None

    @property
    def exit_code(self) -> int:
        """What a shell expects of a program that a signal has stopped."""
        return 128 + self.by if self.by else 0


@contextlib.contextmanager
def interruptible(again: Callable | None = None) -> Iterator[Stop]:
    """Signals ask to stop, after the current step; a second SIGINT is handled as if no run were on.

    Python handles a signal when the compiled program that it waits for has returned.

    Args:
      again: what handles a second SIGINT instead.
    """
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop  # only the main thread may handle signals
        return

    def ask(number, frame):
        if stop and number == signal.SIGINT:
            (again or previous[number])(number, frame)
        stop.by = signal.Signals(number)

    previous = {n: signal.getsignal(n) for n in SIGNALS}
    if previous[signal.SIGHUP] is signal.SIG_IGN:  # by nohup
        del previous[signal.SIGHUP]
    if not callable(previous[signal.SIGINT]):
        again = again or signal.default_int_handler
    for number in previous:
        signal.signal(number, ask)
    try:
        yield stop
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


class MetricsLog:
    """The metrics of a run: an object a line in metrics.jsonl, and TensorBoard's scalars of it.

    A record has the number of its ``epoch``, from 1. It is appended before the state after that
    epoch is saved; then the log of a resumed run is, ``seconds`` apart, that of an uninterrupted
    one, byte for byte. Of several processes, the first one writes it.
    """

    records: list[dict[str, Any]]
    """All that it says."""

    def __init__(
        self, folder: Path, resume_from: int = 0, notes: dict[str, Any] | None = None
    ) -> None:
        """Open the log in a folder; what it says of epochs after ``resume_from`` is dropped.

        Args:
          folder: where it is.
          resume_from: how many epochs the run has behind it.
          notes: those of the run's checkpoints. The records are kept there as well, and whatever
            has become of the file, it is written anew from them.

        Raises:
          OSError: if it cannot be written, or says nothing of epochs that no note is of.
        """
        self._board = _Board(folder / "tensorboard")
        self._writes = processes.is_first()
        notes = {} if notes is None else notes
        self._path = folder / "metrics.jsonl"
        if "log" not in notes:
            notes["log"] = _of_file(self._path, resume_from) if self._writes else []
        self.records = notes["log"]
        if not self._writes:
            return
        records.write_atomically(self._path, "".join(map(_line, self.records)))
        self._file = self._path.open("a")
        self._board.open()
        for record in self.records:
            self._board.draw(record)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        if self._writes:
            self._file.close()
            self._board.close()

    def append(self, record: Mapping[str, object]) -> None:
        """Append a record, which is in the file when this returns. What is not finite is null.

        Raises:
          OSError: if the file cannot be written, or is no longer where it was.
        """
        if not self._writes:
            return
        plain = {name: _plain(value) for name, value in record.items()}
        there = self._path.exists() and os.path.samestat(
            self._path.stat(), os.fstat(self._file.fileno())
        )
        if not there:
            raise OSError(f"{self._path} was removed, renamed or replaced while the run was on")
        self._file.write(_line(plain))
        self._file.flush()
        self.records.append(plain)
        self._board.draw(plain)


class _Board:
    """TensorBoard's scalars; a run goes on without them where they cannot be written."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._file = folder, None

    def open(self) -> None:
        """Begin anew: what was killed has not written all of it."""
        with self._or_without():
            # Its SummaryWriter writes in a thread, from which no error comes back.
            from tensorboardX import event_file_writer, summary
            from tensorboardX.proto.event_pb2 import Event

            self._event, self._scalar = Event, summary.scalar
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder.mkdir()
            self._file = event_file_writer.EventsWriter(str(self._folder / "events"))

    def draw(self, record: Mapping[str, Any]) -> None:
        """Write the numbers of a record."""
        if self._file is None:
            return
        with self._or_without():
            for name, value in record.items():
                if name != "epoch" and isinstance(value, int | float):
                    summary = self._scalar(name, value)
                    event = self._event(
                        wall_time=time.time(), step=record["epoch"], summary=summary
                    )
                    self._file.write_event(event)
            self._file.flush()

    def close(self) -> None:
        if self._file is not None:
            with self._or_without():
                self._file.close()

    @contextlib.contextmanager
    def _or_without(self):
        try:
            yield
        except (ImportError, OSError) as error:
            self._file = None
            processes.say(f"going on without TensorBoard's scalars: {of_error(error)}")


class Shown(Progress):
    """How far a run is, on the first process's stderr: live on a terminal, else what is said."""

    def __init__(self, *columns: ProgressColumn) -> None:
        """Show these columns, and behind them the time since the start and what is left of it."""
        console = Console(stderr=True)
        console.file = Tolerant(console.file)  # type: ignore[assignment]
        console.quiet = not processes.is_first()
        super().__init__(
            *columns,
            TimeElapsedColumn(),
            TextColumn("ETA"),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_interactive,
            speed_estimate_period=3600,
        )

    def say(self, line: str) -> None:
        """Print a line, which stays, and the time that is left where that is not shown live."""
        left = None if self.live.is_started else self.tasks[0].time_remaining
        eta = "" if left is None else f"  ETA {datetime.timedelta(seconds=round(left))}"
        self.console.print(line + eta, soft_wrap=self.disable, highlight=False, markup=False)


def read_metrics(folder: Path) -> dict[str, np.ndarray]:
    """What the log in a folder says, as :func:`columns`.

    Raises:
      ValueError: if it says nothing.
    """
    return columns(records.read_json_lines(folder / "metrics.jsonl"))


def columns(log: Sequence[Mapping[str, Any]]) -> dict[str, np.ndarray]:
    """Records by name, float [epochs]; NaN where nothing was measured.

    Raises:
      ValueError: if there are none.
    """
    if not log:
        raise ValueError("metrics.jsonl has no epoch")
    names = dict.fromkeys(name for record in log for name in record)
    return {name: np.array([record.get(name) for record in log], np.float64) for name in names}


class Display(Shown):
    """How far a run is in its epochs: shown live, or said in a line an epoch."""

    def __init__(
        self, epochs: int, per_epoch: int, unit: str, start: int = 0, after: float = 0
    ) -> None:
        """A run of ``epochs``, each of ``per_epoch`` units, of which ``start`` epochs are done.

        What comes after the epochs takes about as long as ``after`` units.
        """
        self._epoch, self._epochs, self._per_epoch, self._numbers = start, epochs, per_epoch, ""
        done = TextColumn(f"{{task.fields[done]}}/{per_epoch} {unit}")
        super().__init__(TextColumn("{task.description}"), BarColumn(None), done)
        done_before = start * per_epoch
        self._task = self.add_task(
            "", total=epochs * per_epoch + after, completed=done_before, done=0
        )
        self.show(0)

    def get_renderables(self) -> Iterator[RenderableType]:
        yield from super().get_renderables()
        yield Text(self._numbers, style="dim")

    def show(self, done: int, **numbers: float) -> None:
        """Show that ``done`` units of the current epoch are done, and the numbers given."""
        self._numbers = "  ".join(f"{name} {value:.4g}" for name, value in numbers.items())
        self.update(
            self._task,
            description=f"epoch {min(self._epoch + 1, self._epochs)}/{self._epochs}",
            completed=self._epoch * self._per_epoch + done,
            done=done,
        )

    def end_epoch(self, **numbers: float) -> None:
        """Show that the current epoch is done, and the numbers that it gave."""
        self.show(self._per_epoch, **numbers)
        self._epoch += 1
        self.say(f"epoch {self._epoch}/{self._epochs}  {self._numbers}")


def _of_file(path, epochs):
    """The records of a run's first epochs that its log has; what it lacks of them is said.

    Checkpoints of early versions have no records.
    """
    found = [r for r in records.read_json_lines(path) if isinstance(r.get("epoch"), int)]
    there = {record["epoch"]: record for record in found}
    wanted = range(1, epochs + 1)
    if missing := [epoch for epoch in wanted if epoch not in there]:
        if len(missing) == epochs:
            raise OSError(f"{path} has none of the {epochs} epochs that the run has behind it")
        listed = ", ".join(map(str, missing))
        processes.say(f"{path} lacks the epochs {listed}, and so will the summary")
    return [there[epoch] for epoch in wanted if epoch in there]


def _line(record):
    return json.dumps(record, allow_nan=False) + "\n"


def _plain(value):
    """A value as JSON has it."""
    if hasattr(value, "tolist"):  # an array
        value = value.tolist()
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
