"""A jaxpr as a flat list of operations, which is read, and run with probes.

A jaxpr nests: a call of a jitted function is an equation with a jaxpr of its own. Here such calls
are opened, so that a parameter's way can be followed through one list of operations, whose
variables are numbers. Two kinds of body stay nested, as they run otherwise than once in place:
that of a loop (``lax.scan``) and that of a part which is computed again in the backward pass
(``jax.checkpoint``). Every other operation is an equation that is evaluated as it stands.

A probe is an array of zeros that is added to the result of an operation: its gradient is the
gradient of that result.

Only ``jax.extend.core``, which is public, is imported of JAX; the names of primitives and of their
parameters, which JAX may change, are read here, in ``selections``, ``uses``, ``reading`` and
``noise``.
"""

import functools
import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend import core

# Calls of a function, and their parameter with its jaxpr.
_CALLS = {
    "jit": "jaxpr",
    "pjit": "jaxpr",
    "closed_call": "call_jaxpr",
    "core_call": "call_jaxpr",
}
_REMAT = ("checkpoint", "remat2")
_NESTED = ("scan", *_REMAT)  # whose jaxpr becomes a body


class Operation(NamedTuple):
    """An equation whose variables are numbers."""

    eqn: Any
    inputs: tuple[Any, ...]  # of each operand: a variable's number, or a literal
    outputs: tuple[int, ...]
    body: "Program | None"  # of a loop, or of what is computed again

    @property
    def name(self) -> str:
        """The primitive's."""
        return self.eqn.primitive.name

    @property
    def place(self) -> int:
        """What the operation is known by."""
        return self.outputs[0]


class Program(NamedTuple):
    """Operations in their order."""

    inputs: tuple[int, ...]
    constants: dict[int, Any]
    operations: tuple[Operation, ...]
    outputs: tuple[Any, ...]  # numbers or literals


def flat(jaxpr: Any, numbers: Iterator[int] | None = None) -> Program:
    """A closed jaxpr as a program, no two of whose variables have one number."""
    numbers = numbers or itertools.count()
    jaxpr, consts = _opened(jaxpr)
    known: dict[Any, Any] = {v: next(numbers) for v in (*jaxpr.constvars, *jaxpr.invars)}
    constants = dict(zip((known[v] for v in jaxpr.constvars), consts, strict=True))
    inputs = tuple(known[v] for v in jaxpr.invars)
    operations: list[Operation] = []

    def number(known, variables):
        return tuple(v if isinstance(v, core.Literal) else known[v] for v in variables)

    def add(jaxpr, known):
        for eqn in jaxpr.eqns:
            operands = number(known, eqn.invars)
            if eqn.primitive.name in _CALLS:
                called, consts = _opened(eqn.params[_CALLS[eqn.primitive.name]])
                of_call = dict(zip(called.invars, operands, strict=True))
                for variable, value in zip(called.constvars, consts, strict=True):
                    of_call[variable] = next(numbers)
                    constants[of_call[variable]] = value
                add(called, of_call)
                results = number(of_call, called.outvars)
            else:
                nests = eqn.primitive.name in _NESTED
                body = flat(eqn.params["jaxpr"], numbers) if nests else None
                # One more number names an operation without results.
                results = tuple(next(numbers) for _ in eqn.outvars)
                operations.append(
                    Operation(eqn, operands, results or (next(numbers),), body),
                )
            known |= dict(zip(eqn.outvars, results, strict=True))

    add(jaxpr, known)
    return Program(inputs, constants, tuple(operations), number(known, jaxpr.outvars))


def _opened(jaxpr):
    """A jaxpr and its constants; open and closed ones are of one class from JAX 0.11 on."""
    return getattr(jaxpr, "jaxpr", jaxpr), getattr(jaxpr, "consts", ())


def scanned(eqn: Any) -> tuple[int, int]:
    """How many operands of a loop are constant, and how many are carried."""
    if "ft_in" in eqn.params:  # from JAX 0.11 on
        constant, carried, _ = eqn.params["ft_in"].unpack()
        return len(constant), len(carried)
    return eqn.params["num_consts"], eqn.params["num_carry"]


def read(atom: Any, known: Mapping[Any, Any]) -> Any:
    """The value of a literal, or what is known of a variable."""
    return atom.val if isinstance(atom, core.Literal) else known[atom]


def evaluate(operation: Operation, operands: Sequence[Any]) -> list[Any]:
    """Apply one equation, as JAX itself would."""
    eqn = operation.eqn
    pairs = zip(eqn.invars, operands, strict=True)
    given = {v: value for v, value in pairs if not isinstance(v, core.Literal)}
    info = core.DebugInfo("a single equation", operation.name, None, None)
    jaxpr = core.Jaxpr((), tuple(given), eqn.outvars, [eqn], eqn.effects, info)
    return core.jaxpr_as_fun(core.ClosedJaxpr(jaxpr, ()))(*given.values())


def run(
    program: Program,
    values: Mapping[int, Any],
    probes: Mapping[int, jax.Array],
    captures: Mapping[int, int],
    inside: Mapping[int, frozenset[int]],
) -> tuple[list[Any], dict[int, Any]]:
    """Evaluate a program, adding probes to results, and returning operands beside these results.

    Args:
      program: what to run.
      values: for its inputs; operations of which all results are here are not run.
      probes: what to add to the first result of an operation, by its place. Those in the body of a
        loop have the loop's turns in front.
      captures: for the same places, which operand to return.
      inside: of operations with a body, the places in it that have probes.

    Returns:
      The results, and the operands, by place.
    """
    known = {**program.constants, **values}
    captured: dict[int, Any] = {}

    for operation in program.operations:
        if all(output in known for output in operation.outputs):
            continue
        operands = [read(atom, known) for atom in operation.inputs]
        place = operation.place
        if places := inside.get(place):
            assert operation.body is not None
            of_body = {p: probes[p] for p in places}
            start = _run_scan if operation.name == "scan" else _run_remat
            one = functools.partial(_run_body, operation.body, captures=captures, inside=inside)
            results, found = start(operation.eqn, one, operands, of_body)
            captured |= found
        else:
            results = evaluate(operation, operands)
        if place in captures:
            captured[place] = operands[captures[place]]
            results = [results[0] + probes[place], *results[1:]]
        for output, result in zip(operation.outputs, results, strict=False):
            known.setdefault(output, result)
    return [read(atom, known) for atom in program.outputs], captured


def _run_body(body, operands, probes, captures, inside):
    values = dict(zip(body.inputs, operands, strict=True))
    return run(body, values, probes, {p: captures[p] for p in probes}, inside)


def _run_scan(eqn, run_body, operands, probes):
    """Scan a body over its probes too; operands of its uses are stacked as results are."""
    consts, carried = scanned(eqn)
    fixed, start = operands[:consts], operands[consts : consts + carried]

    def body(carry, turn):
        inputs, probes = turn
        results, captured = run_body([*fixed, *carry, *inputs], probes)
        return results[:carried], (results[carried:], captured)

    carry, (results, captured) = jax.lax.scan(
        body,
        start,
        (operands[consts + carried :], probes),
        length=eqn.params["length"],
        reverse=eqn.params["reverse"],
        unroll=eqn.params["unroll"],
    )
    return [*carry, *results], captured


def _run_remat(eqn, run_body, operands, probes):
    """Compute the body again in the backward pass, but for the operands of its uses."""
    again = jax.checkpoint(
        run_body, prevent_cse=eqn.params["prevent_cse"], policy=eqn.params["policy"]
    )
    return again(operands, probes)


def flowing(program: Program) -> set[int]:
    """Numbers of the values that a result's gradient may flow to, those in bodies included."""
    found = {atom for atom in program.outputs if not isinstance(atom, core.Literal)}
    for operation in reversed(program.operations):
        if flows_through(operation, found):
            found |= {atom for atom in operation.inputs if not isinstance(atom, core.Literal)}
            if operation.body is not None:
                found |= flowing(operation.body)
    return found


def flows_through(operation: Operation, flowing: Set[int]) -> bool:
    """Whether it passes on the gradient of a result, of which those in ``flowing`` may have one."""
    pairs = zip(operation.outputs, operation.eqn.outvars, strict=False)
    flows = any(number in flowing and has_gradient(v.aval) for number, v in pairs)
    return flows and operation.name != "stop_gradient"


def has_gradient(aval: Any) -> bool:
    """Whether a value of this shape and dtype can have a gradient."""
    return hasattr(aval, "dtype") and jnp.issubdtype(aval.dtype, jnp.inexact)


def for_one(
    function: Callable[..., Any],
    common: Any,
    batch: Any,
    prepare: Callable[[Any], Any] = lambda common: common,
) -> Any:
    """The jaxpr of ``function(prepare(common), example)``, and the shapes of its results.

    An example is what ``vmap`` makes of a batch, within a ``shard_map`` as well.
    """
    found: list[Any] = []

    def look(common, batch):
        prepared = prepare(common)

        def of_example(example):
            found.append(jax.make_jaxpr(function, return_shape=True)(prepared, example))
            return jnp.zeros([])

        return jax.vmap(of_example, out_axes=None)(batch)

    jax.eval_shape(look, common, batch)
    return found[-1]


def depends(jaxpr: Any, inputs: Sequence[bool]) -> list[bool]:
    """Which results of a jaxpr depend on some of its inputs."""
    jaxpr, _ = _opened(jaxpr)
    if has_references(jaxpr):  # through which anything may depend on anything
        return [True] * len(jaxpr.outvars)
    found = {v for v, counts in zip(jaxpr.invars, inputs, strict=True) if counts}
    for eqn in jaxpr.eqns:
        if any(not isinstance(v, core.Literal) and v in found for v in eqn.invars):
            found |= set(eqn.outvars)
    return [not isinstance(v, core.Literal) and v in found for v in jaxpr.outvars]


def has_references(jaxpr: Any) -> bool:
    """Whether operations share arrays that are changed in place (``jax.new_ref``).

    Those that are made and changed within one operation, as in a Pallas kernel, are its own affair.
    """
    jaxpr, _ = _opened(jaxpr)
    return any(
        any(type(v.aval).__name__ == "AbstractRef" for v in (*eqn.invars, *eqn.outvars))
        or (eqn.primitive.name in (*_CALLS, *_NESTED) and any(map(has_references, _bodies(eqn))))
        for eqn in jaxpr.eqns
    )


def needed(jaxpr: Any) -> list[bool]:
    """Which inputs of a jaxpr some result depends on."""
    jaxpr, _ = _opened(jaxpr)
    found = {v for v in jaxpr.outvars if not isinstance(v, core.Literal)}
    for eqn in reversed(jaxpr.eqns):
        if found & set(eqn.outvars):
            found |= {v for v in eqn.invars if not isinstance(v, core.Literal)}
    return [v in found for v in jaxpr.invars]


def held_bytes(jaxpr: Any, counted: Sequence[bool]) -> int:
    """How much of what depends on some inputs exists at once, while a jaxpr is evaluated in order.

    A compiler that fuses operations holds less.

    Args:
      jaxpr: open or closed.
      counted: for each input, whether what depends on it counts.
    """
    jaxpr, _ = _opened(jaxpr)
    inputs = [v for v, counts in zip(jaxpr.invars, counted, strict=True) if counts]
    size = {v: size_in_bytes(v.aval) for v in inputs}  # of what counts
    last = {v: -1 for v in inputs}
    for i, eqn in enumerate(jaxpr.eqns):
        last |= {v: i for v in eqn.invars if not isinstance(v, core.Literal)}
    last |= {v: len(jaxpr.eqns) for v in jaxpr.outvars if not isinstance(v, core.Literal)}
    ends: dict[int, list[Any]] = {}
    for v, i in last.items():
        ends.setdefault(i, []).append(v)
    now = most = sum(size.values())
    for i, eqn in enumerate(jaxpr.eqns):
        depends = [not isinstance(v, core.Literal) and v in size for v in eqn.invars]
        if any(depends):
            within = max((_held_within(inner, depends) for inner in _bodies(eqn)), default=0)
            size |= {v: size_in_bytes(v.aval) for v in eqn.outvars}
            results = sum(size[v] for v in eqn.outvars)
            # The results of a body are those of the equation, but for a loop, which copies them.
            loops = eqn.primitive.name in ("scan", "while")
            most = max(most, now + (results + within if loops else max(results, within)))
            now += results
            now -= sum(size[v] for v in eqn.outvars if v not in last)
        now -= sum(size.get(v, 0) for v in ends.get(i, ()))
    return most


def _bodies(eqn):
    """The jaxprs in an equation's parameters."""
    for value in eqn.params.values():
        for item in value if isinstance(value, tuple | list) else (value,):
            if hasattr(_opened(item)[0], "eqns"):
                yield item


def _held_within(inner, depends):
    inputs = _opened(inner)[0].invars
    same = len(inputs) == len(depends)
    counted = depends if same else [True] * len(inputs)
    given = sum(size_in_bytes(v.aval) for v, counts in zip(inputs, counted, strict=True) if counts)
    return max(0, held_bytes(inner, counted) - given)


def size_in_bytes(aval: Any) -> int:
    """What an array of this shape and dtype holds."""
    if not hasattr(aval, "shape"):
        return 0
    # A key's dtype has a size of its own, and a reference to an array that of the array.
    itemsize = getattr(getattr(aval, "dtype", None), "itemsize", 4)
    return math.prod(aval.shape) * itemsize
