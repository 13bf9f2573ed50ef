r"""Sums of squared per-example gradients of any function, without most per-example gradients.

A weight that meets an example's data in a matrix product has the gradient ``g_i = A_i^T D_i``, with
the product's other operand ``A_i`` [positions, in] and the gradient ``D_i`` [positions, out] of the
product's result. One backward pass over a batch gives all the ``A_i`` and ``D_i`` (see
:mod:`wpl_jax.fisher.uses`), and from them ``sum_i g_i**2`` follows by one of these routes:

- *squared operands*: with one position, ``(A**2)^T (D**2)``, one matrix product over the batch;
- *outer products*: with a few, ``sum_p A_p D_p^T``, squared and added up entry by entry for some
  examples at a time, in one pass over the sums;
- *per-example products*: with many, ``A_i^T D_i`` of one example after another, squared and added
  up; for a convolution, ``A_i`` are patches of its input;
- *rows of a table*, or *slices of a stack* of matrices: what was looked up has the gradients of the
  positions that looked it up, added where they coincide; nothing of the size of the table exists an
  example;
- *per-example gradients*: whatever else there is. Where a parameter is used in several ways, or
  used through functions of parameters, its gradient is put together from those of its uses, one
  example at a time, and taken back through these functions by JAX. Where a use is not recognised,
  the gradient is that of ``vmap(grad)`` for this parameter.

A :class:`Plan` chooses. Where one example would hold more than the memory allowed, and less if the
function is differentiated as it is written, it does that, for one example after another: the
rematerialisation that its author asked for holds then.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp

from wpl_jax.fisher.backward import Backward
from wpl_jax.fisher.microbatches import Bound, weighted
from wpl_jax.fisher.parts import Part, parts_of
from wpl_jax.fisher.program import Program, evaluate, flat, for_one, has_references, needed
from wpl_jax.fisher.program import read as read_atom
from wpl_jax.fisher.reading import Reading, read
from wpl_jax.fisher.routes import (
    deltas_of,
    in_turn,
    inputs_of,
    outer_products,
    product_of_rows,
    rows_of_table,
    sizes_of_rows,
)
from wpl_jax.fisher.selections import gradients_of_bases, size_of_scales, squares_of_bases
from wpl_jax.fisher.uses import Rows, dtype_of, products
from wpl_jax.numbers import wide_dtype

TOGETHER = (), 0  # in place of some leaves and a cluster: all parts that have no clusters


class Route(str):
    """The name of a route, with what it costs one example, and why it is not a cheaper one."""

    bytes: int
    reason: str

    def __new__(cls, name: str, size: int, reason: str) -> "Route":
        """Make a text that carries the two."""
        route = super().__new__(cls, name)
        route.bytes, route.reason = size, reason
        return route


class Evaluated(NamedTuple):
    """A function's values for the examples of a batch, and what gives its squared gradients.

    The squares of the gradients are ``finish(sums(cotangents, weights))``, a tree like the
    parameters: ``sum_i weights[i] * (d <cotangents[i], outputs[i]> / d params)**2``. Sums of
    several calls may be added up before they are finished.
    """

    outputs: jax.Array  # shape=(n, ...)
    sums: Callable[[jax.Array, jax.Array | None], Any]
    finish: Callable[[Any], chex.ArrayTree]


@dataclasses.dataclass(frozen=True)
class Plan:
    """How the squares of each parameter's gradients are to be computed."""

    structure: Any  # of the parameters
    shapes: tuple[jax.ShapeDtypeStruct, ...]  # of its leaves
    program: Program
    reading: Reading
    parts: tuple[Part, ...]
    backward: Backward
    whole: str = ""  # why the function is left as it is, if it is

    @classmethod
    def of(
        cls,
        fn: Callable[[Any, Any], jax.Array],
        params: Any,
        batch: Any,
        max_bytes: int = 2**27,
        check: Callable[[Any], None] = lambda out: None,
    ) -> "Plan":
        """Trace ``fn(params, example)`` and choose how to find the squares of its gradients.

        Args:
          fn: of one example; its result is an array.
          params: the parameters, arrays or their shapes.
          batch: arrays with a leading axis of examples, or their shapes.
          max_bytes: what examples may hold at a time, beyond one example's gradient.
          check: given the shape of the result, raises an error if that is wrong.
        """
        leaves, structure = jax.tree.flatten(params)
        examples, of_example = jax.tree.flatten(batch)

        def flat_fn(leaves, examples):
            return fn(
                jax.tree.unflatten(structure, leaves), jax.tree.unflatten(of_example, examples)
            )

        jaxpr, out = for_one(flat_fn, leaves, examples)
        check(out)
        program = flat(jaxpr)
        untouched = Reading.of_nothing(program.inputs[: len(leaves)])
        if has_references(jaxpr):
            why = "arrays are changed in place"
            return cls._with(structure, program, untouched, leaves, examples, whole=why)
        shapes = [leaf.shape for leaf in leaves]
        reading = read(program, shapes, max_bytes)
        dead = _without_gradient(program, reading, leaves)
        if dead:
            reading = read(program, shapes, max_bytes, dead)
        plan = cls._with(structure, program, reading, leaves, examples)
        if plan.backward.closed_over:  # by a rule, which needs the example that it is made for
            why = "a custom derivative closes over an example"
            return cls._with(structure, program, untouched, leaves, examples, flat_fn, why)
        if idle := plan._idle():
            reading = read(program, shapes, max_bytes, dead | idle)
            plan = cls._with(structure, program, reading, leaves, examples)
        if plan.backward.held > max_bytes and reading.uses:
            whole = cls._with(structure, program, untouched, leaves, examples)
            # Of convolutions, one example's gradient costs many times as much.
            convolves = any(use.consumer == "conv_general_dilated" for use in reading.uses)
            spared = plan.backward.held - whole.backward.held
            if spared > (max_bytes if convolves else 0):
                reason = f"by another route one example holds {_megabytes(plan.backward.held)}"
                return dataclasses.replace(whole, whole=reason)
        return plan

    @classmethod
    def _with(cls, structure, program, reading, leaves, examples, written=None, whole=""):
        def prepare(leaves):
            return _values(reading, _outside(program, reading, leaves))

        marked = sorted(reading.marked)
        backward = Backward.of(program, reading.uses, marked, prepare, leaves, examples, written)
        shapes = tuple(jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for leaf in leaves)
        return cls(structure, shapes, program, reading, parts_of(reading), backward, whole)

    def _idle(self):
        """Numbers of what is computed of parameters, of which the result has no gradient.

        A gradient of 0 that is taken back all the same, through a norm at 0 for example, is NaN.
        """
        idle = self.backward.idle
        flowing = {n for use in self.reading.uses if use.place not in idle for n in use.value.boxes}
        return set(self.reading.derived) - flowing - (self.reading.marked.keys() - idle)

    def routes(self) -> chex.ArrayTree:
        """A :class:`Route` for each parameter."""
        routes = [Route("no gradient", 0, "")] * self.structure.num_leaves
        for part in self.parts:
            for i in part.leaves:
                routes[i] = self._route(part, i)
        return jax.tree.unflatten(self.structure, routes)

    def _route(self, part, i):
        size = math.prod(self.shapes[i].shape) * max(4, self.shapes[i].dtype.itemsize)
        if not part.clusters:
            return Route("per-example gradients", size, self._reason(part))
        number = self.program.inputs[i]
        own = [cluster for cluster in part.clusters if number in cluster.numbers]
        held = sum(use.bytes for cluster in own for use in cluster.uses)
        return Route(", ".join(sorted({str(cluster) for cluster in own})), held, "")

    def _reason(self, part):
        if self.whole:
            return self.whole
        marked = set().union(*(self.reading.marked[number] for number in part.marked))
        through = sorted(marked | {use.consumer for use in part.uses})
        how = "used by " if part.own else "used, through functions of parameters, by "
        return how + " and ".join(through)

    def evaluation(self, params: Any, bound: Bound) -> Callable[[Any], Evaluated]:
        """What evaluates the function on each example of a batch, ready to be differentiated.

        What is computed of parameters alone is computed here, and not for each batch.

        Args:
          params: the parameters.
          bound: how much the gradients of examples may hold at a time; one example's always may.
        """
        leaves = jax.tree.leaves(params)
        of_parameters = functools.partial(_derived, self.program, self.reading)
        _, pull, known = jax.vjp(of_parameters, leaves, has_aux=True)
        values = _values(self.reading, known)
        return functools.partial(self._evaluate, leaves, values, pull, bound)

    def _evaluate(self, leaves, values, pull, bound, batch):
        outputs, operands, pullback = self.backward.run(values, jax.tree.leaves(batch))
        factors = {
            use.place: size_of_scales(
                use.value, cluster.numbers, values, self._dtype(cluster, leaves)
            )
            for part in self.parts
            for cluster in part.clusters
            for use in cluster.uses
            if use.value.scaled
        }

        def sums(cotangents, weights):
            deltas, grads = pullback(cotangents)
            for use, factor in factors.items():
                deltas[use] = deltas[use].astype(factor.dtype) * factor
            at_once: dict[Any, Any] = {}
            in_loop: dict[Any, Any] = {}
            for part in self.parts:
                if part.direct:
                    (leaf,), (number,) = part.leaves, part.marked
                    grad = _wide(grads[number], leaves[leaf])
                    at_once[part.leaves, 0] = [weighted(jnp.square(grad), weights).sum(0)]
                for i, cluster in enumerate(part.clusters):
                    place, dtype = (part.leaves, i), self._dtype(cluster, leaves)
                    if cluster.route != "per-example products":
                        at_once[place] = _sums(cluster, dtype, operands, deltas, weights)
                        continue
                    gradient = functools.partial(_product, cluster, dtype)
                    examples = _of(cluster.uses, operands, deltas)
                    if cluster.uses[0].layout.patches:
                        # In a loop of their own sums stay in the cache, beside few positions.
                        at_once[place] = in_turn(gradient, examples, weights, bound)
                    else:
                        in_loop[place] = gradient, examples
            if others := [part for part in self.parts if not (part.direct or part.clusters)]:
                of_marked = {number: grads[number] for part in others for number in part.marked}
                gradient = functools.partial(self._gradients, others, leaves, values, pull)
                uses = [use for part in others for use in part.uses]
                in_loop[TOGETHER] = gradient, (*_of(uses, operands, deltas), of_marked)
            gradients, examples = _unzip(in_loop)

            def all_gradients(example):
                return {place: gradients[place](example[place]) for place in gradients}

            # One loop for all others, which is compiled in less time than many.
            looped = in_turn(all_gradients, examples, weights, bound) if examples else {}
            return {**at_once, **looped.pop(TOGETHER, {}), **looped}

        finish = functools.partial(self._finish, leaves, values, operands, factors)
        return Evaluated(outputs, sums, finish)

    def _gradients(self, parts, leaves, values, pull, example):
        """One example's gradients of parts' parameters, put together from those of their uses."""
        operands, deltas, grads = example
        totals: dict[int, jax.Array] = {}

        def add(number, gradient):
            totals[number] = totals[number] + gradient if number in totals else gradient

        for use in (use for part in parts for use in part.uses):
            numbers = sorted(use.value.boxes)
            dtype = dtype_of([use], [values[n] for n in numbers])
            cotangent = use.layout.cotangent(operands[use.place], deltas[use.place], dtype)
            back = gradients_of_bases(use.value, numbers, values, dtype)
            for number, gradient in zip(numbers, back(cotangent), strict=True):
                add(number, gradient)
        for number in (number for part in parts for number in part.marked):
            add(number, _wide(grads[number], values[number]))
        of_derived = [
            totals.get(n, jnp.zeros_like(values[n])).astype(values[n].dtype)
            for n in self.reading.derived
        ]
        (of_leaves,) = pull(of_derived)  # once for all parts: it is that of the whole network

        def of_leaf(i):
            number, gradient = self.program.inputs[i], _wide(of_leaves[i], leaves[i])
            total = totals.get(number)
            return gradient if total is None else gradient + total.astype(gradient.dtype)

        return {(part.leaves, 0): [of_leaf(i) for i in part.leaves] for part in parts}

    def _finish(self, leaves, values, operands, factors, sums):
        """Squares for each parameter, from sums over examples."""
        squares = [jnp.zeros(leaf.shape, wide_dtype(leaf)) for leaf in leaves]
        for part in self.parts:
            if not part.clusters:
                for i, of_leaf in zip(part.leaves, sums[part.leaves, 0], strict=True):
                    squares[i] = of_leaf
            for place, cluster in enumerate(part.clusters):
                of_cluster = sums[part.leaves, place]
                if cluster.route == "squared operands":
                    # The operand is the same in all calls: one product is left for the end.
                    a = inputs_of(cluster.uses, operands, self._dtype(cluster, leaves))
                    sizes = sizes_of_rows(a)
                    a = a / jnp.where(sizes == 0, 1, sizes)
                    precision = cluster.uses[0].layout.precision
                    of_cluster = product_of_rows(jnp.square(a), of_cluster, precision)
                elif cluster.flipped:
                    of_cluster = jnp.swapaxes(of_cluster, 1, 2)
                use = cluster.uses[0]
                of_bases = squares_of_bases(
                    use.value,
                    cluster.numbers,
                    values,
                    use.layout.assemble(of_cluster),
                    factors.get(use.place),
                )
                for number, of_base in zip(cluster.numbers, of_bases, strict=True):
                    i = self.program.inputs.index(number)
                    squares[i] = squares[i] + of_base.astype(squares[i].dtype)
        return jax.tree.unflatten(self.structure, squares)

    def _dtype(self, cluster, leaves):
        numbers = self.program.inputs[: len(leaves)]
        return dtype_of(cluster.uses, [leaves[numbers.index(n)] for n in cluster.numbers])


def _of(uses, operands, deltas):
    """Operands and gradients of uses."""
    places = [use.place for use in uses]
    return {p: operands[p] for p in places}, {p: deltas[p] for p in places}


def _unzip(pairs):
    firsts = {key: pair[0] for key, pair in pairs.items()}
    return firsts, {key: pair[1] for key, pair in pairs.items()}


def _product(cluster, dtype, example):
    """One example's gradient of a selection, [batches, in, out], or flipped."""
    operands, deltas = jax.tree.map(lambda x: x[None], example)
    a, d = inputs_of(cluster.uses, operands, dtype)[0], deltas_of(cluster.uses, deltas, dtype)[0]
    pair = (d, a) if cluster.flipped else (a, d)
    return products(*pair, cluster.uses[0].layout.precision)


def _sums(cluster, dtype, operands, deltas, weights):
    """Sums over examples for a cluster that needs no loop over them."""
    if isinstance(cluster.uses[0].layout, Rows):
        return rows_of_table(cluster.uses, operands, deltas, weights, dtype)
    a, d = inputs_of(cluster.uses, operands, dtype), deltas_of(cluster.uses, deltas, dtype)
    if cluster.route == "outer products":
        return outer_products(a, d, weights)
    # The operand enters once, in _finish.
    return weighted(jnp.square(d * sizes_of_rows(a)), weights)


def _outside(program, reading, leaves):
    """All that is computed before an example is met, by number."""
    known = {**program.constants, **dict(zip(program.inputs, leaves, strict=False))}
    for operation in program.operations:
        if operation.place in reading.outside:
            operands = [read_atom(atom, known) for atom in operation.inputs]
            known |= dict(zip(operation.outputs, evaluate(operation, operands), strict=False))
    return known


def _derived(program, reading, leaves):
    """What of it is computed of parameters and matters to the result, and all of it."""
    known = _outside(program, reading, leaves)
    return [known[number] for number in reading.derived], known


def _values(reading, known):
    """Of these, what gradients are taken of, and what has none."""
    return {n: known[n] for n in {*reading.parameters, *reading.used, *reading.known}}


def _without_gradient(program, reading, leaves):
    """Numbers of values that are computed of parameters, through which no gradient flows."""
    if not reading.derived:
        return frozenset()
    flowing: list[bool] = []

    def look(leaves):
        of_parameters = functools.partial(_derived, program, reading)
        values, pullback, _ = jax.vjp(of_parameters, leaves, has_aux=True)
        residuals, structure = jax.tree.flatten(pullback)

        def pull(residuals, values):
            return jax.tree.unflatten(structure, residuals)(values)

        flowing[:] = needed(jax.make_jaxpr(pull)(residuals, values))[len(residuals) :]
        return jnp.zeros([])

    jax.eval_shape(look, leaves)
    pairs = zip(reading.derived, flowing, strict=True)
    return frozenset(number for number, flows in pairs if not flows)


def _wide(x, like):
    return x.astype(wide_dtype(like))


def _megabytes(size):
    return f"{size / 2**20:,.0f} MiB"
