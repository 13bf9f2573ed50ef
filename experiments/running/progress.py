"""What every long run shares: it stops when asked to, logs its metrics and shows how far it is."""

import contextlib
import dataclasses
import datetime
import json
import math
import shutil
import signal
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Self

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


class Diverged(Exception):
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
def interruptible() -> Iterator[Stop]:
    """SIGINT and SIGTERM ask to stop, after the current step; a second SIGINT interrupts at once.

    Python handles a signal when the compiled program that it waits for has returned.
    """
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop  # only the main thread may handle signals
        return

    def ask(number, frame):
        if stop and number == signal.SIGINT:
            raise KeyboardInterrupt
        stop.by = signal.Signals(number)

    previous = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
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

    def __init__(self, folder: Path, resume_from: int = 0) -> None:
        """Open the log in a folder; what it says of epochs after ``resume_from`` is dropped."""
        try:
            from tensorboardX import SummaryWriter
        except ImportError as error:
            raise ImportError(
                "the log needs tensorboardX: pip install '.[experiments]' in the checkout"
            ) from error
        self._writes = processes.is_first()
        if not self._writes:
            return
        path, board = folder / "metrics.jsonl", folder / "tensorboard"
        kept = [r for r in records.read_json_lines(path) if r["epoch"] <= resume_from]
        records.write_atomically(path, "".join(map(_line, kept)))
        shutil.rmtree(board, ignore_errors=True)  # written anew: what was killed is not all there
        self._file = path.open("a")
        self._board = SummaryWriter(str(board), flush_secs=10)
        for record in kept:
            self._draw(record)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        if self._writes:
            self._file.close()
            self._board.close()

    def append(self, record: Mapping[str, object]) -> None:
        """Append a record, which is in the file when this returns. What is not finite is null."""
        if not self._writes:
            return
        plain = {name: _plain(value) for name, value in record.items()}
        self._file.write(_line(plain))
        self._file.flush()
        self._draw(plain)

    def _draw(self, record):
        for name, value in record.items():
            if name != "epoch" and isinstance(value, int | float):
                self._board.add_scalar(name, value, record["epoch"])


class Shown(Progress):
    """How far a run is, on the first process's stderr: live on a terminal, else what is said."""

    def __init__(self, *columns: ProgressColumn) -> None:
        """Show these columns, and behind them the time since the start and what is left of it."""
        console = Console(stderr=True)
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
    """What the log in a folder says, by name, float [epochs]; NaN where nothing was measured."""
    lines = records.read_json_lines(folder / "metrics.jsonl")
    return {name: np.array([line[name] for line in lines], np.float64) for name in lines[0]}


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


def _line(record):
    return json.dumps(record, allow_nan=False) + "\n"


def _plain(value):
    """A value as JSON has it."""
    if hasattr(value, "tolist"):  # an array
        value = value.tolist()
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
