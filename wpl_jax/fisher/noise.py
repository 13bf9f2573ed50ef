"""Whether a function of one example draws random numbers that are the same for every example."""

import sys
import warnings
from collections.abc import Iterable, Iterator
from typing import Any

import jax

from wpl_jax.fisher.averaging import num_examples
from wpl_jax.fisher.program import Operation, Program, scanned

# Primitives that make random numbers of a key.
_DRAWS = ("random_bits", "random_gamma", "rng_bit_generator")


def warn_of_shared_noise(name: str, program: Program, batch: Any) -> None:
    """Random numbers whose key is not computed of the example are the same for all of them.

    Args:
      name: what to call the function in the warning.
      program: of one example, which is its last input.
      batch: examples.
    """
    examples = program.inputs[len(program.inputs) - len(jax.tree.leaves(batch)) :]
    if num_examples(batch) > 1 and draws_alike(program, examples):
        warnings.warn(
            f"{name} draws random numbers that do not depend on the example, so that all examples "
            "have the same: for dropout and other noise, put a key for each example into the "
            "batch, jax.random.split(key, n), or switch it off; what is meant to be the same, draw "
            "before, and close over it",
            stacklevel=_level_of_caller(),
        )


def _level_of_caller():
    """How many calls up whoever called this package is, so that a warning names their line."""
    frame, level = sys._getframe(1), 1
    while frame.f_back and frame.f_globals["__name__"].partition(".")[0] in ("wpl_jax", "jax"):
        frame, level = frame.f_back, level + 1
    return level


def draws_alike(program: Program, examples: Iterable[int]) -> bool:
    """Whether a program draws from a key that does not depend on some of its inputs.

    Args:
      program: of one example.
      examples: which of its inputs these are, by number.
    """
    found = _depending(program, set(examples))
    return any(
        operation.name in _DRAWS and not any(_depends(operation, found))
        for operation in _operations(program)
    )


def _depends(operation, found):
    return [isinstance(v, int) and v in found for v in operation.inputs]


def _operations(program: Program) -> Iterator[Operation]:
    for operation in program.operations:
        yield operation
        if operation.body is not None:
            yield from _operations(operation.body)


def _depending(program, found):
    """The numbers found, and all that depend on them, in bodies as well."""
    for operation in program.operations:
        depends = _depends(operation, found)
        if operation.body is not None:
            found |= _depending_in(operation, depends)
        if any(depends):
            found |= set(operation.outputs)
    return found


def _depending_in(operation, depends):
    body = operation.body
    inputs = {v for v, d in zip(body.inputs, depends, strict=True) if d}
    if operation.name != "scan":
        return _depending(body, inputs)
    constant, carried = scanned(operation.eqn)
    carries = list(zip(body.inputs[constant : constant + carried], body.outputs, strict=False))
    while True:  # what one turn makes depend, the next one is given
        found = _depending(body, set(inputs))
        new = {v for v, out in carries if isinstance(out, int) and out in found} - inputs
        if not new:
            return found
        inputs |= new
