"""Reading a program: what becomes of each of its parameters.

:func:`read` goes through a program once, following the parameters to their uses
(:mod:`wpl_jax.fisher.uses`). A base that is used in any other way, anywhere, is marked: its
gradient is left to JAX, and none of its uses count. So what is known here makes Fishers cheap, and
what is not known cannot make them wrong.

Why jaxprs: they are what every framework and every loss comes down to, so no model changes, and
they show each use of a weight, where interception of a framework's layers sees its own layers only
and misses a weight that is also used outside of them. It is the forward pass that is rewritten, and
JAX that differentiates it: custom derivative rules hold, and there are fewer forms to recognise
than in a backward pass.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

from wpl_jax.fisher.program import Program, flowing, flows_through, has_gradient, scanned
from wpl_jax.fisher.selections import (
    Known,
    base,
    constant,
    derived,
    operand_of,
    outside,
    selections,
    turns,
)
from wpl_jax.fisher.uses import Use, find_use


@dataclasses.dataclass
class Reading:
    """What becomes of a program's parameters."""

    parameters: tuple[int, ...]  # their numbers
    uses: list[Use]
    marked: dict[int, set[str]]  # bases whose gradient is left to JAX, and the operations at fault
    sources: dict[int, frozenset[int]]  # of each base, the parameters it is computed of
    outside: frozenset[int]  # places of the operations that no example enters
    known: frozenset[int]  # their results that have no gradient
    copies: bool = False  # whether what is looked up in a marked base holds more than the base

    @classmethod
    def of_nothing(cls, parameters: tuple[int, ...]) -> "Reading":
        """A function that is left as it is."""
        return cls(
            parameters=parameters,
            uses=[],
            marked={number: {"the whole function"} for number in parameters},
            sources={number: frozenset([i]) for i, number in enumerate(parameters)},
            outside=frozenset(),
            known=frozenset(),
        )

    @property
    def used(self) -> list[int]:
        """The bases that matter to the result."""
        of_uses = {number for use in self.uses for number in use.value.boxes}
        return sorted(of_uses | self.marked.keys())

    @property
    def derived(self) -> list[int]:
        """Those of them that are no parameters, but computed of some."""
        return [number for number in self.used if number not in self.parameters]


def read(
    program: Program,
    shapes: Sequence[Sequence[int]],
    max_bytes: int,
    constants: frozenset[int] = frozenset(),
) -> Reading:
    """Follow the parameters, a program's first inputs, to where examples are met.

    Args:
      program: of one example.
      shapes: of the parameters.
      max_bytes: how much the patches may hold that a convolution makes of one example.
      constants: numbers of values that have no gradient, though they seem to.
    """
    reader = _Reader(constants, max_bytes, flowing(program))
    for i, number in enumerate(program.inputs):
        if i < len(shapes):
            reader.kinds[number] = base(number, shapes[i], reader.names)
            reader.sources[number] = frozenset([i])
            reader.sizes[number] = math.prod(shapes[i])
        else:
            reader.kinds[number] = None
    reader.visit(program, (), ())
    for atom in program.outputs:
        reader.mark([operand_of(atom, reader.kinds)], "the result")
    # A marked base takes along whatever shares a use with it.
    uses, marked = reader.uses, reader.marked
    while spoiled := [use for use in uses if use.value.boxes.keys() & marked.keys()]:
        for use in spoiled:
            for number in use.value.boxes:
                marked.setdefault(number, {use.consumer})
        uses = [use for use in uses if use not in spoiled]
    _simplify(marked, uses, reader, program.inputs)
    return Reading(
        program.inputs[: len(shapes)],
        uses,
        marked,
        reader.sources,
        frozenset(reader.outside),
        frozenset(reader.known),
        reader.copies,
    )


def _simplify(marked, uses, reader, parameters):
    """Mark the parameters behind a marked base, if they are no larger: a bias, before broadcast."""
    touched = frozenset().union(*(reader.sources[n] for use in uses for n in use.value.boxes))
    for number in sorted(set(marked) - set(parameters)):
        sources = reader.sources[number]
        size = sum(reader.sizes[parameters[i]] for i in sources)
        if size <= reader.sizes[number] and not sources & touched:
            consumers = marked.pop(number)
            for i in sources:
                marked.setdefault(parameters[i], set()).update(consumers)


class _Reader:
    """Goes through operations in their order. What depends on an example has the kind None."""

    def __init__(self, constants, max_bytes, flowing):
        self.constants = constants
        self.flowing = flowing
        self.max_bytes = max_bytes
        self.names: dict[Any, Any] = {}
        self.kinds: dict[int, Known | None] = {}
        self.uses: list[Use] = []
        self.marked: dict[int, set[str]] = {}
        self.sources: dict[int, frozenset[int]] = {}
        self.sizes: dict[int, int] = {}
        self.outside: set[int] = set()
        self.known: set[int] = set()
        self.copies = False

    def mark(self, inputs, consumer):
        for value in inputs:
            for number in () if value is None else value.boxes:
                self.marked.setdefault(number, set()).add(consumer)

    def visit(self, program, within, lengths):
        for number, value in program.constants.items():
            self.kinds[number] = constant(value)
        for operation in program.operations:
            inputs = [operand_of(atom, self.kinds) for atom in operation.inputs]
            known = all(value is not None for value in inputs) and not operation.eqn.effects
            if not known:
                results = self.meet(operation, inputs, within, lengths)
            elif lengths or within:
                results = self.follow(operation, inputs)
            else:
                results = self.compute(operation, inputs)
            self.kinds |= dict(zip(operation.outputs, results, strict=False))

    def compute(self, operation, inputs):
        """An operation on what is known, outside of any loop."""
        self.outside.add(operation.place)
        numbers, avals = operation.outputs, [v.aval for v in operation.eqn.outvars]
        bases = {number for value in inputs for number in value.boxes}
        stops = not bases or operation.name == "stop_gradient"
        if not stops and (found := selections(operation, inputs)):
            return found
        sources = frozenset().union(*(self.sources[number] for number in bases))
        results = []
        for number, aval in zip(numbers, avals, strict=False):
            if stops or number in self.constants or not has_gradient(aval):
                self.known.add(number)
                results.append(outside(number))
            else:
                self.sources[number] = sources
                self.sizes[number] = aval.size
                results.append(base(number, aval.shape, self.names))
        return results

    def follow(self, operation, inputs):
        """An operation on what is known, in the body of a loop."""
        if not any(value.boxes for value in inputs):
            return derived(operation, inputs)
        if found := selections(operation, inputs):
            return found
        return self.meet(operation, inputs, None, None)  # there is no use of two that are known

    def meet(self, operation, inputs, within, lengths):
        """An operation that an example enters, or that ends the search."""
        nothing = [None] * len(operation.eqn.outvars)
        if not any(value is not None and value.boxes for value in inputs):
            return nothing
        if not flows_through(operation, self.flowing):
            return nothing
        if within is None:
            self.mark(inputs, operation.name)
        elif operation.body is not None:
            self.enter(operation, inputs, within, lengths)
        elif use := find_use(operation, inputs, within, lengths, self.max_bytes):
            if use.layout.positions:  # else it is in a loop without turns
                self.uses.append(use)
        else:
            self.mark(inputs, operation.name)
            if operation.name in ("gather", "dynamic_slice"):
                table, out = operation.eqn.invars[0].aval, operation.eqn.outvars[0].aval
                self.copies |= math.prod(lengths) * out.size >= table.size
        return nothing

    def enter(self, operation, inputs, within, lengths):
        """Read the body of a loop, or of what is computed again in the backward pass."""
        body, eqn = operation.body, operation.eqn
        consts, carried = len(inputs), 0
        if operation.name == "scan":
            consts, carried = scanned(eqn)
            self.mark(inputs[consts : consts + carried], "the carry of a loop")
        for i, (number, value) in enumerate(zip(body.inputs, inputs, strict=True)):
            if value is None or consts <= i < consts + carried:
                self.kinds[number] = None
            elif i < consts:
                self.kinds[number] = value
            else:
                self.kinds[number] = turns(value, operation.place, len(lengths))
        turns_of = (eqn.params["length"],) if operation.name == "scan" else ()
        self.visit(body, (*within, operation.place), (*lengths, *turns_of))
        self.mark([operand_of(atom, self.kinds) for atom in body.outputs], "a loop's result")
