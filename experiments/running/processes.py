"""Runs of several processes: all compute the same, and the first one writes and speaks."""

import contextlib
import sys
import threading
from collections.abc import Iterator
from typing import Protocol

import jax
import numpy as np
from jax.experimental import multihost_utils


class Settings(Protocol):
    """What :func:`join` reads."""

    coordinator: str | None
    num_processes: int | None
    process_id: int | None


def join(settings: Settings) -> None:
    """Be one of several processes; nothing may have touched a device before.

    Raises:
      ValueError: if the others cannot be found.
    """
    try:
        jax.distributed.initialize(
            settings.coordinator, settings.num_processes, settings.process_id
        )
    except (ValueError, RuntimeError) as error:
        raise ValueError(
            f"--distributed: {error} Where no cluster says who takes part, give --coordinator, "
            "--num-processes and --process-id"
        ) from error


def is_first() -> bool:
    """Whether this process is the first, or the only one."""
    return jax.process_index() == 0


def say(text: str) -> None:
    """Print to stderr, once and not in every process."""
    if is_first():
        print(text, file=sys.stderr, flush=True)


SOON = 2  # seconds


@contextlib.contextmanager
def saying(text: str) -> Iterator[None]:
    """Say what is done in here, if it is not over soon: bad input is one line where it shows."""
    timer = threading.Timer(SOON, say, [text])
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def all_have(number: int) -> np.ndarray:
    """What each process has for a number, below 2**32; every process must ask."""
    mine = np.array([number], np.uint32)
    return mine if jax.process_count() == 1 else multihost_utils.process_allgather(mine, tiled=True)


def agree(number: int) -> bool:
    """Whether all processes have the same number, below 2**32; every process must ask."""
    return len(set(all_have(number).tolist())) == 1


@contextlib.contextmanager
def all_or_none() -> Iterator[None]:
    """What fails in one process fails in all, so that none waits for it for ever.

    Raises:
      ValueError: where it did not fail in this process but in another.
    """
    try:
        yield
    except Exception:
        all_have(1)
        raise
    if all_have(0).any():
        raise ValueError("another process could not begin, and says why")
