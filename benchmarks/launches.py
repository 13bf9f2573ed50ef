"""What the published searches make a device do: a count, nothing is timed.

    python -m benchmarks.launches
    python -m benchmarks.launches micro_cnn  # one space; no file is written

Counted are the training steps that :mod:`benchmarks.accelerator` times; one that runs every
operation and selects a result instead of branching, as a batch of searches does; and what it takes
to measure an architecture on a batch, one after another or several at once
(``SearchConfig.at_once``).

Read from the program that XLA has compiled for the device at hand. A *launch* is an instruction
that computes or copies something: on a GPU, a kernel. A *wait* is a decision that the host of a GPU
takes with a number from the device: which branch to run, or whether a loop goes on whose length is
not known when it is compiled. Loops of known length count as often as they run, and of the branches
of a conditional the longest. XLA's own ``cost_analysis`` counts a loop's body once, whatever its
length, and so is of no use here.
"""

import dataclasses
import functools
import re
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
from rich.console import Console
from rich.table import Table

from benchmarks.accelerator import ARCHITECTURES, trained, training
from benchmarks.end_to_end import data_of
from benchmarks.report import chosen, report
from experiments import spaces
from experiments.search_many import OWN
from wpl_jax.search import evaluation

NOTHING = {  # instructions that only name what is there
    *("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all"),
    *("add-dependency", "opt-barrier", "partition-id", "replica-id"),
}
MEASURED, AT_ONCE = 60, 10  # architectures
CALLS = "call", "async-start"
COLUMNS = ("", "launches", "waits", "of them for a branch")


class Counts(NamedTuple):
    """Of a program, or of a part of it."""

    launches: int = 0
    waits: int = 0
    branches: int = 0  # waits for a branch


def main():
    names = chosen(__doc__, list(ARCHITECTURES))
    tables = [table(name) for name in names]
    if names == list(ARCHITECTURES):
        report("launches", tables)


def table(name):
    """Of a space, for each training step and for each architecture that is measured on a batch."""
    config = spaces.find(name).searches["paper"]
    steps = ARCHITECTURES[name] * config.search.batches
    plain, wpl = (
        dataclasses.replace(config, method=method, warmup_epochs=0) for method in ("none", "wpl")
    )
    programs = {
        "training step, plain": (training_steps(plain), steps),
        "training step, WPL": (training_steps(wpl), steps),
        "training step, WPL, no branches": (training_steps(wpl, together=True), steps),
        "measuring, one after another": (measuring(config, 1), MEASURED),
        f"measuring, {AT_ONCE} at once": (measuring(config, AT_ONCE), MEASURED),
    }
    title = f"Launches of preset paper of {name}"
    shown, rows = Table(*COLUMNS, title=title), []
    for said, (lowered, times) in programs.items():
        found = counts(lowered.compile().as_text())
        cells = [said, *(f"{count / times:,.0f}" for count in found)]
        rows.append({"name": said, "cells": cells})
        shown.add_row(*cells)
    Console().print(shown)
    return {"title": title, "columns": COLUMNS, "rows": rows}


def training_steps(config, together=False):
    """What trains the architectures of a call; ``together`` as one of several searches."""
    search = training(config)
    init, run = search.init, trained(search, ARCHITECTURES[config.space])
    keys = jax.eval_shape(jax.random.key, 0)
    if together:
        init, run = jax.vmap(init, out_axes=OWN), jax.vmap(run, (OWN, None), OWN)
        keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), 1))
    return jax.jit(run, donate_argnums=0).lower(jax.eval_shape(init, keys), data_of(config))


def measuring(config, at_once):
    """What finds the errors of ``MEASURED`` architectures on one batch."""
    space, split = config.search_space, data_of(config).validation
    params = jax.eval_shape(space.init, jax.eval_shape(jax.random.key, 0))
    actions = jax.ShapeDtypeStruct((MEASURED, len(space.decisions)), jnp.int32)

    def run(params, split, actions):
        return evaluation.errors(space, params, split, jnp.arange(1), actions, at_once)

    return jax.jit(run).lower(params, split, actions)


# --- A program's text -----------------------------------------------------------------------------

COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.-]+) \(.*\) -> .* \{$")
INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?[\w.-]+ = .*?[\s)}\]]([a-z][a-z\d-]*)\((.*)$")
CALLED = re.compile(
    r"\b(?:body|condition|to_apply|calls|(?:branch|true|false)_computations?)="
    r"(?:\{([^}]*)\}|(%?[\w.-]+))"
)
LENGTH = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')


def counts(program: str) -> Counts:
    """Of a compiled program's text."""
    computations, entry = parsed(program)

    @functools.cache
    def of(name: str) -> Counts:
        return total(of_instruction(*instruction) for instruction in computations[name])

    def of_instruction(kind: str, rest: str) -> Counts:
        if kind in NOTHING or kind.endswith(("-done", "-update")):
            return Counts()
        if kind == "while":
            once, length = total(map(of, called(rest))), LENGTH.search(rest)
            if length:
                return Counts(*(int(length[1]) * count for count in once))
            return once._replace(waits=once.waits + 1)
        if kind == "conditional":
            longest = max(map(of, called(rest)))
            return Counts(longest.launches, longest.waits + 1, longest.branches + 1)
        return total(map(of, called(rest))) if kind in CALLS else Counts(1)

    return of(entry)


def total(parts: Iterable[Counts]) -> Counts:
    """Of all parts."""
    return Counts(*map(sum, zip(Counts(), *parts, strict=True)))


def parsed(program: str) -> tuple[dict[str, list[tuple[str, str]]], str]:
    """The instructions of each computation, each its kind and what follows; and the first's name.

    Raises:
      ValueError: if it is not the text of a compiled program.
    """
    computations: dict[str, list[tuple[str, str]]] = {}
    entry = name = ""
    for line in program.splitlines():
        if begins := COMPUTATION.match(line):
            name = begins[2]
            computations[name] = []
            entry = name if begins[1] else entry
        elif name and (instruction := INSTRUCTION.match(line)):
            computations[name].append((instruction[1], instruction[2]))
    if not entry:
        raise ValueError(f"not the text of a compiled program: {program[:80]!r}")
    return computations, entry


def called(rest: str) -> Iterator[str]:
    """The computations that an instruction runs."""
    for many, one in CALLED.findall(rest):
        yield from (name.strip().lstrip("%") for name in (many or one).split(","))


if __name__ == "__main__":
    main()
