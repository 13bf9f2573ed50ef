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
- *rows of a table*: a row that was looked up has the gradients of the positions that looked it up,
  added where they coincide; nothing of the size of the table exists an example;
- *per-example gradients*: whatever else there is. Where a parameter is used in several ways, or
  used through functions of parameters, its gradient is put together from those of its uses, one
  example at a time, and taken back through these functions by JAX. Where a use is not recognised,
  the gradient is that of ``vmap(grad)`` for this parameter.

A :class:`Plan` chooses. Where one example's operands would take more than the memory allowed, it
leaves the function as it is and takes the gradient of one example after another: the
rematerialisation that its author asked for holds then, and the memory is that of one example.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
from jax.extend import core

from wpl_jax.fisher.backward import Backward, for_one, varying_as
from wpl_jax.fisher.program import Program, evaluate, flat, needed
from wpl_jax.fisher.routes import (
    FEW_POSITIONS,
    in_turn,
    matrices,
    outer_products,
    product_of_rows,
    rows_of_table,
    weighted,
)
from wpl_jax.fisher.selections import disjoint, gradients_of_bases, squares_of_bases
from wpl_jax.fisher.uses import Product, Reading, Rows, Use, products, read


class Route(str):
    """The name of a route, with what it costs one example, and why it is not a cheaper one."""

    bytes: int
    reason: str

    def __new__(cls, name: str, size: int, reason: str) -> "Route":
        """Make a text that carries the two."""
        route = super().__new__(cls, name)
        route.bytes, route.reason = size, reason
        return route


class PerExample(NamedTuple):
    """A function's values for the examples of a batch, and what gives its squared gradients."""

    outputs: jax.Array
    """Shape ``(n, ...)``."""
    squares: Callable[..., chex.ArrayTree]
    """``squares(cotangents, weights)`` is a tree like the parameters, of the sums over examples
    ``sum_i weights[i] * (d <cotangents[i], outputs[i]> / d params)**2``. With ``rounds``, an array,
    both are functions of its elements instead, and all rounds are added up."""


@dataclasses.dataclass(frozen=True)
class Cluster:
    """Uses of one selection in one form, whose squares go back to parameters as they are."""

    uses: tuple[Use, ...]

    @property
    def numbers(self) -> list[int]:
        """Of the parameters."""
        return sorted(self.uses[0].value.boxes)

    @property
    def positions(self) -> int:
        """At how many an example uses the selection."""
        return sum(use.layout.positions for use in self.uses)

    @property
    def route(self) -> str:
        """The name of one of the routes above."""
        if isinstance(self.uses[0].layout, Rows):
            return self.uses[0].layout.name
        if self.positions == 1:
            return "squared operands"
        return "outer products" if self.positions <= FEW_POSITIONS else "per-example products"

    def __str__(self) -> str:
        """The route, with how many positions there are."""
        layout = self.uses[0].layout
        patches = " of patches" if isinstance(layout, Product) and layout.of_patches else ""
        if isinstance(layout, Rows) or self.route == "squared operands":
            return f"{self.route}{patches}"
        return f"{self.route} of {self.positions} positions{patches}"


@dataclasses.dataclass(frozen=True)
class Part:
    """Parameters that share uses, by their places in the tree, and are computed together."""

    leaves: tuple[int, ...]
    uses: tuple[Use, ...]
    marked: tuple[int, ...]  # numbers of bases whose gradient is left to JAX
    clusters: tuple[Cluster, ...]  # none: gradients are put together for each example
    own: bool  # whether all bases are parameters

    @property
    def direct(self) -> bool:
        """Whether JAX gives the gradient of a parameter itself, and nothing is to be added."""
        return not self.uses and len(self.leaves) == len(self.marked) == 1 and self.own

    @property
    def put_together(self) -> bool:
        """Whether each example's gradient is put together from several."""
        return not self.clusters and not self.direct and bool(self.uses or self.marked)


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
        cls, fn: Callable[[Any, Any], jax.Array], params: Any, batch: Any, max_bytes: int = 2**27
    ) -> "Plan":
        """Trace ``fn(params, example)`` and choose how to find the squares of its gradients.

        Args:
          fn: of one example; its result is an array.
          params: the parameters, arrays or their shapes.
          batch: arrays with a leading axis of examples, or their shapes.
          max_bytes: what examples may hold at a time, beyond one example's gradient.
        """
        leaves, structure = jax.tree.flatten(params)
        examples, of_example = jax.tree.flatten(batch)

        def flat_fn(leaves, examples):
            return fn(
                jax.tree.unflatten(structure, leaves), jax.tree.unflatten(of_example, examples)
            )

        program = flat(for_one(flat_fn, leaves, examples)[0])
        shapes = [leaf.shape for leaf in leaves]
        reading = read(program, shapes)
        if dead := _without_gradient(program, reading, leaves):
            reading = read(program, shapes, dead)
        plan = cls._with(structure, program, reading, leaves, examples)
        if plan.backward.held > max_bytes and reading.uses:
            numbers = program.inputs[: len(leaves)]
            untouched = Reading(
                parameters=numbers,
                uses=[],
                marked={number: {"the whole function"} for number in numbers},
                sources={number: frozenset([i]) for i, number in enumerate(numbers)},
                outside=frozenset(),
                known=frozenset(),
            )
            whole = cls._with(structure, program, untouched, leaves, examples)
            if plan.backward.held > whole.backward.held + max_bytes:
                reason = f"the operands of one example hold {_megabytes(plan.backward.held)}"
                return dataclasses.replace(whole, whole=reason)
        return plan

    @classmethod
    def _with(cls, structure, program, reading, leaves, examples):
        values = jax.eval_shape(
            lambda leaves: _values(reading, _outside(program, reading, leaves)), leaves
        )
        backward = Backward.of(program, reading.uses, sorted(reading.marked), values, examples)
        shapes = tuple(jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for leaf in leaves)
        return cls(structure, shapes, program, reading, _parts(reading), backward)

    @property
    def derived(self) -> list[int]:
        """Numbers of values computed of parameters that matter to the result."""
        return [n for n in self.reading.used if n not in self.reading.parameters]

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

    def per_example(self, params: Any, batch: Any, max_bytes: int) -> PerExample:
        """Evaluate the function on each example of a batch, ready to be differentiated.

        Args:
          params: the parameters.
          batch: a tree of arrays with a leading axis of examples.
          max_bytes: how much the gradients of examples may hold at a time; one example's always
            may.
        """
        leaves, derived = jax.tree.leaves(params), self.derived

        def of_parameters(leaves):
            known = _outside(self.program, self.reading, leaves)
            return [known[number] for number in derived], known

        _, pull, known = jax.vjp(of_parameters, leaves, has_aux=True)
        values = _values(self.reading, known)
        outputs, operands, pullback = self.backward.run(values, jax.tree.leaves(batch))
        gradient = functools.partial(self._gradients, leaves, values, pull)
        looped = [use.place for use in self._looped_uses()]
        marked = [n for part in self.parts if part.put_together for n in part.marked]

        def sums(cotangents, weights):
            deltas, grads = pullback(cotangents)
            found = [
                self._sums_of(part, operands, deltas, grads, weights, leaves) for part in self.parts
            ]
            if not looped and not marked:
                return found, []
            examples = (
                {place: operands[place] for place in looped},
                {place: deltas[place] for place in looped},
                {number: grads[number] for number in marked},
            )
            return found, in_turn(gradient, examples, weights, max_bytes)

        def squares(cotangents, weights=None, rounds=None):
            def of(element):
                return sums(cotangents(element), weights(element))

            def add(total, element):
                return jax.tree.map(jnp.add, total, of(element)), None

            if rounds is None:
                total = sums(cotangents, weights)
            else:
                shapes = jax.eval_shape(of, rounds[0])
                start = jax.tree.map(
                    lambda s: varying_as(jnp.zeros(s.shape, s.dtype), batch), shapes
                )
                total, _ = jax.lax.scan(add, start, rounds)
            return self._finish(leaves, values, operands, *total)

        return PerExample(outputs, squares)

    def _looped_uses(self):
        """Uses whose products are taken for one example after another."""
        uses: list[Use] = []
        for part in self.parts:
            if part.put_together:
                uses.extend(part.uses)
            for cluster in part.clusters:
                if cluster.route == "per-example products":
                    uses.extend(cluster.uses)
        return uses

    def _sums_of(self, part, operands, deltas, grads, weights, leaves):
        """Sums for what needs no loop over examples, None for what does."""
        if part.direct:
            (leaf,), (number,) = part.leaves, part.marked
            return [weighted(jnp.square(_wide(grads[number], leaves[leaf])), weights).sum(0)]
        found: list[Any] = []
        for cluster in part.clusters:
            dtype = self._dtype(cluster, leaves)
            if cluster.route == "per-example products":
                found.append(None)
            elif isinstance(cluster.uses[0].layout, Rows):
                found.append(rows_of_table(cluster.uses, operands, deltas, weights, dtype))
            else:
                a, d = matrices(cluster.uses, operands, deltas, dtype)
                few = cluster.route == "outer products"
                squares = outer_products(a, d, weights) if few else weighted(d * d, weights)
                found.append(squares)
        return found

    def _gradients(self, leaves, values, pull, example):
        """One example's gradients: of products, and of parameters that need them put together."""
        operands, deltas, grads = example
        of_products: list[jax.Array] = []
        totals: dict[int, jax.Array] = {}

        def add(number, gradient):
            totals[number] = totals[number] + gradient if number in totals else gradient

        for part in self.parts:
            for cluster in part.clusters:
                if cluster.route == "per-example products":
                    dtype = self._dtype(cluster, leaves)
                    both = [
                        use.layout.matrices(operands[use.place], deltas[use.place])
                        for use in cluster.uses
                    ]
                    pair = (
                        jnp.concatenate(x, axis=1).astype(dtype) for x in zip(*both, strict=True)
                    )
                    of_products.append(products(*pair))
            if not part.put_together:
                continue
            for use in part.uses:
                numbers = sorted(use.value.boxes)
                dtype = jnp.result_type(jnp.float32, *(values[n].dtype for n in numbers))
                cotangent = use.layout.cotangent(operands[use.place], deltas[use.place], dtype)
                back = gradients_of_bases(use.value, numbers, values, dtype)
                for number, gradient in zip(numbers, back(cotangent), strict=True):
                    add(number, gradient)
            for number in part.marked:
                add(number, _wide(grads[number], values[number]))
        of_derived = [
            totals.get(n, jnp.zeros_like(values[n])).astype(values[n].dtype) for n in self.derived
        ]
        (of_leaves,) = pull(of_derived)
        put_together = []
        for part in self.parts:
            if part.put_together:
                for i in part.leaves:
                    gradient, number = _wide(of_leaves[i], leaves[i]), self.program.inputs[i]
                    put_together.append(gradient + totals[number] if number in totals else gradient)
        return of_products, put_together

    def _finish(self, leaves, values, operands, found, looped):
        """Squares for each parameter, from sums over examples."""
        of_products, put_together = map(list, looped or ((), ()))
        squares = [jnp.zeros(leaf.shape, _wide_dtype(leaf)) for leaf in leaves]
        for part, sums in zip(self.parts, found, strict=True):
            if part.direct:
                squares[part.leaves[0]] = sums[0]
            elif part.put_together:
                for i in part.leaves:
                    squares[i] = put_together.pop(0)
            for cluster, of_cluster in zip(part.clusters, sums, strict=False):
                layout, dtype = cluster.uses[0].layout, self._dtype(cluster, leaves)
                if cluster.route == "per-example products":
                    of_cluster = of_products.pop(0)
                elif cluster.route == "squared operands":
                    # The operand is the same for all rounds: one product is left for the end.
                    nothing = {
                        use.place: jnp.zeros(
                            (len(operands[use.place]), *use.probe.shape), use.probe.dtype
                        )
                        for use in cluster.uses
                    }
                    a, _ = matrices(cluster.uses, operands, nothing, dtype)
                    of_cluster = product_of_rows(jnp.square(a), of_cluster)
                of_bases = squares_of_bases(
                    cluster.uses[0].value, cluster.numbers, values, layout.assemble(of_cluster)
                )
                for number, of_base in zip(cluster.numbers, of_bases, strict=True):
                    i = self.program.inputs.index(number)
                    squares[i] = squares[i] + of_base.astype(squares[i].dtype)
        return jax.tree.unflatten(self.structure, squares)

    def _dtype(self, cluster, leaves):
        numbers = self.program.inputs[: len(leaves)]
        dtypes = [leaves[numbers.index(number)].dtype for number in cluster.numbers]
        return functools.reduce(jnp.promote_types, dtypes, jnp.dtype(jnp.float32))


def _outside(program, reading, leaves):
    """All that is computed before an example is met, by number."""
    known = {**program.constants, **dict(zip(program.inputs, leaves, strict=False))}
    for operation in program.operations:
        if operation.place in reading.outside:
            operands = [_read(atom, known) for atom in operation.inputs]
            known |= dict(zip(operation.outputs, evaluate(operation, operands), strict=False))
    return known


def _read(atom, known):
    return atom.val if isinstance(atom, core.Literal) else known[atom]


def _values(reading, known):
    """Of these, what gradients are taken of, and what has none."""
    return {n: known[n] for n in {*reading.parameters, *reading.used, *reading.known}}


def _without_gradient(program, reading, leaves):
    """Numbers of values that are computed of parameters, through which no gradient flows."""
    derived = [number for number in reading.used if number not in reading.parameters]

    def of_parameters(leaves):
        known = _outside(program, reading, leaves)
        return [known[number] for number in derived]

    def pull(cotangents, leaves):
        return jax.vjp(of_parameters, leaves)[1](cotangents)

    if not derived:
        return frozenset()
    shapes = jax.eval_shape(of_parameters, leaves)
    found = needed(jax.make_jaxpr(pull)(shapes, leaves))
    return frozenset(number for number, flows in zip(derived, found, strict=False) if not flows)


def _parts(reading):
    """Parameters that share uses, or functions of parameters, belong together."""
    members: list[tuple[frozenset[int], list[Use], list[int]]] = []

    def join(leaves, uses, marked):
        nonlocal members
        for part in [part for part in members if part[0] & leaves]:
            members.remove(part)
            leaves, uses, marked = leaves | part[0], part[1] + uses, part[2] + marked
        members.append((leaves, uses, marked))

    def sources(numbers):
        return frozenset().union(*(reading.sources[number] for number in numbers))

    for use in reading.uses:
        join(sources(use.value.boxes), [use], [])
    for number in reading.marked:
        join(sources([number]), [], [number])
    parts = []
    for leaves, uses, marked in members:
        numbers = {*marked, *(number for use in uses for number in use.value.boxes)}
        own = numbers <= set(reading.parameters)
        clusters = _clusters(uses) if own and not marked else ()
        parts.append(Part(tuple(sorted(leaves)), tuple(uses), tuple(marked), clusters, own))
    return tuple(parts)


def _clusters(uses):
    """The uses by selection and form, if all squares go back to parameters on their own."""
    alike: dict[Any, list[Use]] = {}
    for use in uses:
        alike.setdefault((use.value.key, use.layout.key), []).append(use)
    clusters = tuple(Cluster(tuple(of_one)) for of_one in alike.values())
    # A selection with an entry for each turn of a loop has a gradient for each turn.
    added = all(len(c.uses) == 1 or not c.uses[0].value.mapped for c in clusters)
    simple = added and disjoint([cluster.uses[0].value.boxes for cluster in clusters])
    return clusters if simple else ()


def _wide_dtype(x):
    return jnp.promote_types(x.dtype, jnp.float32)


def _wide(x, like):
    return x.astype(_wide_dtype(like))


def _megabytes(size):
    return f"{size / 2**20:,.0f} MiB"
