"""How every script begins and ends: with an exit code and one line, whatever ends it.

Imported before all else: until then, a signal ends Python in its own way.
"""

import contextlib
import functools
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TextIO

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Failed(Exception):
    """What was begun cannot be finished; the message is a line."""


class Script:
    """A script: the one decorates its ``main``, the other is around what it does before it begins.

    Example::

        script = Script("search", "--resume goes on from the last checkpoint")


        @script
        def main(argv=None):
            with script.preparing():
                ...  # what fails here was asked for in a wrong way: exit code 2
            ...  # what fails here has been begun: exit code 1
    """

    def __init__(self, name: str, goes_on: str) -> None:
        """``goes_on`` says how to go on with a run that was interrupted."""
        self._name, self._goes_on = name, goes_on

    def __call__(
        self, main: Callable[[Sequence[str] | None], int]
    ) -> Callable[[Sequence[str] | None], int]:
        @functools.wraps(main)
        def in_a_line(argv: Sequence[str] | None = None) -> int:
            try:
                return main(argv)
            except _Refused as refused:
                return self._end(2, str(refused))
            except Failed as failed:
                return self._end(1, str(failed))
            except (OSError, ImportError) as error:
                return self._end(1, f"{of_error(error)}; {self._goes_on}")
            except KeyboardInterrupt:
                return self._end(130, f"interrupted; {self._goes_on}")

        return in_a_line

    @contextlib.contextmanager
    def preparing(self) -> Iterator[None]:
        """What cannot work is refused here, before anything is begun."""
        # Whatever Orbax and TFDS log as an error, they also raise.
        logging.getLogger("absl").setLevel(logging.CRITICAL)
        try:
            yield
        except (ValueError, OSError, ImportError) as error:
            raise _Refused(of_error(error)) from error
        except KeyboardInterrupt:
            raise KeyboardInterrupt("before it began") from None
        _process.interrupted = f"{self._name}: interrupted; {self._goes_on}"

    def _end(self, code: int, line: str) -> int:
        print(f"{self._name}: {line}", file=sys.stderr)
        return code


class _Refused(Exception):
    pass


def of_error(error: BaseException) -> str:
    """An error in a line; of one of the system, which file it is of."""
    if isinstance(error, OSError) and error.strerror and error.filename is not None:
        return f"{os.fsdecode(error.filename)}: {error.strerror}"
    return " ".join(str(error).split())


# --- The process ----------------------------------------------------------------------------------


class _Process:
    interrupted = "interrupted before it began"
    ending = threading.Lock()


_process = _Process()


def begin(name: str) -> None:
    """Make this process that of a script of a name.

    Signals end it at once, while Python imports and while XLA compiles too, until a run that can
    save handles them itself. It outlives its terminal and the pipes that it writes to.
    """
    _process.interrupted = f"{name}: interrupted before it began"
    sys.stdout, sys.stderr = map(Tolerant, (sys.stdout, sys.stderr))
    for stream in (sys.stdout, sys.stderr):  # a locale may have few characters
        stream.reconfigure(errors="backslashreplace")
    ignored = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN  # by nohup
    for number in SIGNALS[: 2 if ignored else 3]:
        signal.signal(number, end)
    read, write = os.pipe()
    os.set_blocking(write, False)
    signal.set_wakeup_fd(write, warn_on_full_buffer=False)
    threading.Thread(target=_watch, args=(read,), daemon=True).start()


def end(number: int, frame: Any = None) -> None:
    """End the process as a signal asks for, in a line.

    Not by an exception: raised in a callback of a compiler, it would crash Python.
    """
    if not _process.ending.acquire(blocking=False):
        return  # another thread is ending it
    shown = "\r\x1b[?25h\x1b[K" if os.isatty(2) else ""  # the cursor, which a display has hidden
    with contextlib.suppress(OSError):
        os.write(2, f"{shown}{_process.interrupted}\n".encode())
    os._exit(128 + number)


def _watch(pipe):
    """Python's own handlers wait until a compiler, or a compiled program, returns."""
    while True:
        for number in os.read(pipe, 1):
            if signal.getsignal(number) is end:
                end(number)


class Tolerant:
    """A stream of text that is given up, in silence, once it cannot be written."""

    def __init__(self, stream: TextIO | None) -> None:
        self._stream = stream or _nowhere()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        with self._given_up():
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with self._given_up():
            self._stream.flush()

    @contextlib.contextmanager
    def _given_up(self):
        try:
            yield
        except (OSError, ValueError):
            self._stream = _nowhere()


def _nowhere():
    return open(os.devnull, "w")  # noqa: SIM115
