"""Time forms of the same computation in turn, and report their ratios.

A form is a jitted function of this process (:class:`Jitted`) or a function in a process of its own
(:class:`Peer`), which can live in another environment. Forms of one table run alternately, so that
a slow minute of the machine falls on all of them, and ratios are taken within a turn.
"""

import json
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import jax
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).parent.parent
PEERS_PYTHON = ROOT / ".venv-peers" / "bin" / "python"
REPEATS = 11
REST = 0.05  # seconds between forms, for the threads of the last to go to sleep
COLUMNS = ("", "ms", "quartiles", "ratio", "quartiles", "MiB")
SLOW, FEW = 3.0, 3  # what takes more seconds than this has no more turns than that


class Form(Protocol):
    """Something to time."""

    def run(self) -> float:
        """Run once, and return the seconds it took."""

    def memory(self) -> int | None:
        """The bytes it needs beyond its arguments and results, at its peak."""


class Jitted:
    """A function of this process, compiled for its arguments."""

    def __init__(self, function: Callable, *arguments, **options):
        start = time.perf_counter()
        lowered = jax.jit(function, **options).lower(*arguments)
        self.trace_seconds = time.perf_counter() - start
        self.compiled = lowered.compile()
        self.compile_seconds = time.perf_counter() - start - self.trace_seconds
        self.arguments = arguments

    def run(self) -> float:
        start = time.perf_counter()
        jax.block_until_ready(self.compiled(*self.arguments))
        return time.perf_counter() - start

    def memory(self) -> int | None:
        analysis = self.compiled.memory_analysis()
        return analysis and analysis.temp_size_in_bytes


class Steps:
    """Training steps as users run them: compiled, many to a call, their state donated.

    Args:
      function: from a state and ``arguments`` to the next state.
      state: the first; it is copied.
      arguments: the same in every call.
      steps: in a call. What :meth:`run` returns is of one.
      options: of ``jax.jit``.
    """

    def __init__(self, function: Callable, state, *arguments, steps: int, **options):
        self.state, self.arguments, self.steps = (
            jax.tree.map(jax.numpy.copy, state),
            arguments,
            steps,
        )
        start = time.perf_counter()
        lowered = jax.jit(function, donate_argnums=0, **options).lower(self.state, *arguments)
        self.compiled = lowered.compile()
        self.compile_seconds = time.perf_counter() - start

    def run(self) -> float:
        start = time.perf_counter()
        self.state = jax.block_until_ready(self.compiled(self.state, *self.arguments))
        return (time.perf_counter() - start) / self.steps

    def memory(self) -> int | None:
        analysis = self.compiled.memory_analysis()
        return analysis and analysis.temp_size_in_bytes


class Peer:
    """A case of ``benchmarks/peers/<module>.py``, in a process of the peers' environment.

    Raises:
      PeerError: if the environment is not there, or the case failed, with its last line.
    """

    server: tuple[str, ...] = ("benchmarks.peers.serve",)  # a module, and its first arguments

    def __init__(self, module: str, case: str, **sizes):
        if not PEERS_PYTHON.exists():
            raise PeerError("not installed: make peers")
        self.process = subprocess.Popen(
            [PEERS_PYTHON, "-m", *self.server, module, case, json.dumps(sizes)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            cwd=ROOT,
        )
        self._answer()

    def run(self) -> float:
        return self._ask("run")["seconds"]

    def memory(self) -> int | None:
        return self._ask("memory")["bytes"]

    def close(self) -> None:
        self.process.kill()
        self.process.wait()

    def _ask(self, question):
        print(question, file=self.process.stdin, flush=True)
        return self._answer()

    def _answer(self):
        line = self.process.stdout.readline()
        answer = json.loads(line) if line else {"error": "its process ended"}
        if "error" in answer:
            self.close()
            raise PeerError(answer["error"])
        return answer


class PeerError(Exception):
    """A peer that does not run here; the report says why."""


def compare(
    title: str,
    forms: Mapping[str, Callable[[], Form]],
    repeats: int = REPEATS,
    relative_to: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Time forms in turn, and take their ratios to the first.

    Args:
      title: of the table.
      forms: what builds each, by name. One that raises PeerError is reported with its reason.
      repeats: turns, after one that is not counted.
      relative_to: for some, the name of another that their ratios are taken to.

    Returns:
      A table for :func:`benchmarks.report.report`.
    """
    built: dict[str, Form] = {}
    failed: dict[str, str] = {}
    turns: dict[str, int] = {}
    for name, build in forms.items():
        try:
            form = build()
            turns[name] = repeats if form.run() < SLOW else min(repeats, FEW)
            built[name] = form
        except PeerError as error:
            failed[name] = str(error)
    seconds: dict[str, list[float]] = {name: [] for name in built}
    for turn in range(repeats):
        for name, form in built.items():
            if turn < turns[name]:
                time.sleep(REST)
                seconds[name].append(form.run())
    first = next(iter(seconds))
    rows = []
    for name in forms:
        if name in failed:
            rows.append({"name": name, "failed": failed[name]})
            continue
        reference = seconds[(relative_to or {}).get(name, first)]
        ratios = [t / r for t, r in zip(seconds[name], reference, strict=False)]
        rows.append(
            {
                "name": name,
                "turns": turns[name],
                "milliseconds": _spread([1000 * s for s in seconds[name]]),
                "ratio": _spread(ratios),
                "bytes": built[name].memory(),
            }
        )
    for form in built.values():
        if isinstance(form, Peer):
            form.close()
    table = {"title": title, "turns": repeats, "rows": rows}
    Console(width=120).print(_rich(table))
    return table


def _spread(values):
    """Median and quartiles."""
    low, median, high = statistics.quantiles(values, n=4, method="inclusive")
    return {"median": median, "quartiles": [low, high]}


def _rich(table):
    drawn = Table(*COLUMNS, title=table["title"])
    for row in table["rows"]:
        drawn.add_row(*cells(row))
    return drawn


def cells(row: Mapping[str, Any]) -> list[str]:
    """A row as text: name, milliseconds, their quartiles, ratio, its quartiles, MiB."""
    if "failed" in row:
        return [row["name"], row["failed"], "", "", "", ""]
    time, ratio = row["milliseconds"], row["ratio"]
    return [
        row["name"],
        _number(time["median"]),
        "–".join(map(_number, time["quartiles"])),
        f"{ratio['median']:.2f}",
        "–".join(f"{q:.2f}" for q in ratio["quartiles"]),
        "" if row["bytes"] is None else f"{row['bytes'] / 2**20:.0f}",
    ]


def _number(value):
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
