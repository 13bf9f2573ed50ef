"""Sums of squared per-example gradients of any function, without the per-example gradients.

A weight that meets an example's data in a matrix product has the gradient ``g_i = A_i^T D_i``, with
the product's other operand ``A_i`` [positions, in] and the gradient ``D_i`` [positions, out] of the
product's result. One backward pass over a batch gives all the ``A_i`` and ``D_i`` (see
:mod:`wpl_jax.uses`), and from them ``sum_i g_i**2`` follows at about the cost of a batch gradient,
by one of these routes:

- *squared operands*: with one position, ``(A**2)^T (D**2)``, one matrix product over the batch;
- *pairs of positions*: with a few, ``sum_pq (A_p A_q)^T (D_p D_q)``, the same with more rows;
- *per-example products*: with many, ``A_i^T D_i`` of one example after another, squared and added
  up; for a convolution, ``A_i`` are patches of its input;
- *rows of a table*: a row that was looked up has the gradients of the positions that looked it up,
  added where they coincide; nothing of the size of the table exists an example;
- *per-example gradients*: whatever else there is, and weights that are used in several ways, whose
  gradients must be added up before they are squared.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp

from wpl_jax.uses import Block, Product, Rows, Use, find, grouped, leaf, products, run, value_of

# Up to so many positions, products of pairs cost less than one product an example, on a CPU
# (benchmarks/products.py); a GPU should profit up to more.
_FEW_POSITIONS = 4


class PerExample(NamedTuple):
    """A function's values for the examples of a batch, and what gives its squared gradients."""

    outputs: jax.Array
    """Shape ``(n, ...)``."""
    squares: Callable[..., chex.ArrayTree]
    """``squares(cotangents, weights)`` is a tree like the parameters, of the sums over examples
    ``sum_i weights[i] * (d <cotangents[i], outputs[i]> / d params)**2``. With ``rounds``, an array,
    both are functions of its elements instead, and all rounds are added up."""


@dataclasses.dataclass(frozen=True)
class Plan:
    """How the squares of each parameter's gradients are to be computed."""

    structure: Any  # of the parameters
    block: Block
    groups: tuple["_Group", ...]

    @classmethod
    def of(cls, fn: Callable[[Any, Any], jax.Array], params: Any, batch: Any) -> "Plan":
        """Trace ``fn(params, example)`` and find how it uses its parameters.

        Raises:
          TypeError: if a parameter is not floating-point.
        """
        for path, array in jax.tree.leaves_with_path(params):
            if not jnp.issubdtype(array.dtype, jnp.floating):
                raise TypeError(
                    f"params must be floating-point to have gradients, got {array.dtype} at "
                    f"{jax.tree_util.keystr(path) or 'the root'}: close over such arrays instead"
                )
        leaves, structure = jax.tree.flatten(params)
        example = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), batch)
        examples, of_example = jax.tree.flatten(example)

        def flat(leaves, examples):
            return fn(
                jax.tree.unflatten(structure, leaves), jax.tree.unflatten(of_example, examples)
            )

        jaxpr = jax.make_jaxpr(flat)(leaves, examples)
        kinds = [leaf(i) for i in range(len(leaves))] + [None] * len(examples)
        block, _ = find(jaxpr.jaxpr, jaxpr.consts, kinds, probe_results=True)
        return cls(structure, block, _groups(block.uses))

    @property
    def bytes(self) -> int:
        """What one example adds to memory: operands of uses and gradients of their results."""
        return sum(use.bytes for use in self.block.uses)

    def routes(self) -> chex.ArrayTree:
        """A text for each parameter."""
        texts = ["no gradient"] * self.structure.num_leaves
        for group in self.groups:
            for i in group.leaves:
                texts[i] = group.describe()
        return jax.tree.unflatten(self.structure, texts)

    def per_example(self, params: Any, batch: Any, max_bytes: int) -> PerExample:
        """Evaluate the function on each example of a batch, ready to be differentiated.

        Args:
          params: the parameters.
          batch: a tree of arrays with a leading axis of examples.
          max_bytes: how much the gradients of examples may hold at a time; one example's always
            may.
        """
        leaves = jax.tree.leaves(params)

        def run_all(probes):
            def run_one(probes, example):
                outputs, captured = run(self.block, [*leaves, *example], probes)
                return outputs[0], captured

            return jax.vmap(run_one)(probes, jax.tree.leaves(batch))

        n = len(jax.tree.leaves(batch)[0])
        probes = [jnp.zeros((n, *use.shape), use.dtype) for use in self.block.uses]
        outputs, pullback, captured = jax.vjp(run_all, probes, has_aux=True)

        def squares(cotangents, weights=None, rounds=None):
            def sums(cotangents, weights):
                (deltas,) = pullback(cotangents)
                return [
                    group.sums(
                        leaves, [(captured[i], deltas[i]) for i in group.places], weights, max_bytes
                    )
                    for group in self.groups
                ]

            def add(total, element):
                return jax.tree.map(jnp.add, total, of(element)), None

            def of(element):
                return sums(cotangents(element), weights(element))

            if rounds is None:
                total = sums(cotangents, weights)
            else:
                start = jax.tree.map(jnp.zeros_like, jax.eval_shape(of, rounds[0]))
                total, _ = jax.lax.scan(add, start, rounds)
            found = [jnp.zeros(leaf.shape, _wide(leaf.dtype)) for leaf in leaves]
            for group, of_group in zip(self.groups, total, strict=True):
                operands = [captured[i] for i in group.places]
                of_leaves = group.squares(leaves, operands, of_group)
                for i, of_leaf in zip(group.leaves, of_leaves, strict=True):
                    found[i] = of_leaf.astype(found[i].dtype)
            return jax.tree.unflatten(self.structure, found)

        return PerExample(outputs, squares)


def _groups(uses):
    """Uses that share parameters belong together."""
    groups: list[tuple[set[int], list[int]]] = []
    for i, use in enumerate(uses):
        leaves, places = set(use.value.leaves), [i]
        for group in [g for g in groups if g[0] & leaves]:
            groups.remove(group)
            leaves, places = leaves | group[0], group[1] + places
        groups.append((leaves, places))
    return tuple(
        _Group(tuple(sorted(leaves)), tuple(places), tuple(uses[i] for i in places))
        for leaves, places in groups
    )


@dataclasses.dataclass(frozen=True)
class _Group:
    """Parameters that share uses, by their numbers, and are computed together."""

    leaves: tuple[int, ...]
    places: tuple[int, ...]  # of the uses in the block
    uses: tuple[Use, ...]

    @functools.cached_property
    def route(self):
        """One of this class's methods below."""
        first = self.uses[0]
        alike = len({use.layout and (use.value.key, use.layout.key) for use in self.uses}) == 1
        # A value with an entry for each turn of a loop has a gradient for each: not one to add to.
        alike = alike and (len(self.uses) == 1 or not first.value.mapped)
        if alike and first.value.exact and isinstance(first.layout, Product):
            if self.positions == 1:
                return self._squared_operands
            return self._pairs if self.positions <= _FEW_POSITIONS else self._products
        if alike and first.value.exact and isinstance(first.layout, Rows):
            return self._rows
        return self._gradients

    @property
    def positions(self):
        """How many positions of an example enter the products, over all uses."""
        return sum(use.layout.positions for use in self.uses)

    def describe(self):
        if self.route == self._rows:
            return "rows of a table"
        if self.route == self._gradients:
            through = sorted({use.consumer for use in self.uses})
            return f"per-example gradients, through {', '.join(through)}"
        what = self.uses[0].layout.description
        if self.route == self._squared_operands:
            return f"squared operands{what}"
        form = "pairs" if self.route == self._pairs else "per-example products"
        return f"{form} of {self.positions} positions{what}"

    def sums(self, leaves, examples, weights, max_bytes):
        """Sums over examples, from which :meth:`squares` makes those for the parameters.

        Args:
          leaves: all parameters.
          examples: for each use, its operand and the gradient of its result, of all examples.
          weights: of the examples, or None.
          max_bytes: of gradients that exist at a time.
        """
        dtype = self._dtype(leaves)
        if weights is not None:
            weights = weights.astype(dtype)
        return self.route(examples, weights, max_bytes, dtype, leaves)

    def squares(self, leaves, operands, sums):
        """Sums of squares for each of the group's parameters."""
        if self.route == self._gradients:
            return sums
        use, dtype = self.uses[0], self._dtype(leaves)
        if self.route == self._squared_operands:
            # The operand is the same for all rounds, so this one product is left for the end.
            a, _ = jax.vmap(use.layout.matrices)(operands[0], self._no_delta(operands[0]))
            sums = _product_of_rows(jnp.square(a.astype(dtype)), sums)
        if isinstance(use.layout, Product):
            sums = use.layout.assemble(sums)

        def value(of_group):
            known = dict(zip(self.leaves, of_group, strict=True))
            return value_of(use.value, known, squared=True)

        zeros = [jnp.zeros(leaves[i].shape, dtype) for i in self.leaves]
        return jax.vjp(value, zeros)[1](sums)[0]

    def _dtype(self, leaves):
        return functools.reduce(jnp.promote_types, [_wide(leaves[i].dtype) for i in self.leaves])

    def _no_delta(self, operand):
        return jnp.zeros((len(operand), *self.uses[0].shape), self.uses[0].dtype)

    def _matrices(self, examples, dtype):
        """``A`` and ``D`` of all examples, [examples, batches, positions, in or out]."""
        both = [
            jax.vmap(use.layout.matrices)(*of_use)
            for use, of_use in zip(self.uses, examples, strict=True)
        ]
        return [jnp.concatenate(x, axis=2).astype(dtype) for x in zip(*both, strict=True)]

    def _squared_operands(self, examples, weights, max_bytes, dtype, leaves):
        del max_bytes, leaves
        _, d = self._matrices(examples, dtype)
        return jnp.square(d) if weights is None else jnp.square(d) * weights[:, None, None, None]

    def _pairs(self, examples, weights, max_bytes, dtype, leaves):
        del max_bytes, leaves
        a, d = self._matrices(examples, dtype)
        weighted = d if weights is None else d * weights[:, None, None, None]
        pairs = [(p, q) for p in range(self.positions) for q in range(p + 1)]
        left = [a[:, :, p] * a[:, :, q] for p, q in pairs]
        right = [weighted[:, :, p] * d[:, :, q] * (1 if p == q else 2) for p, q in pairs]
        # Rounding can take a sum over pairs below 0.
        return jnp.maximum(_product_of_rows(jnp.stack(left, 2), jnp.stack(right, 2)), 0)

    def _products(self, examples, weights, max_bytes, dtype, leaves):
        del leaves

        def gradient(example):
            both = [
                use.layout.matrices(*of_use) for use, of_use in zip(self.uses, example, strict=True)
            ]
            return products(*(jnp.concatenate(x, axis=1) for x in zip(*both, strict=True)))

        return _sum_of_squares(gradient, examples, weights, max_bytes, dtype)

    def _rows(self, examples, weights, max_bytes, dtype, leaves):
        del max_bytes, leaves
        layout = self.uses[0].layout
        both = [
            jax.vmap(use.layout.rows)(*of_use)
            for use, of_use in zip(self.uses, examples, strict=True)
        ]
        indices, rows = (jnp.concatenate(x, axis=1) for x in zip(*both, strict=True))

        def squares(example):
            """(sum_p D_p)**2 is sum_p D_p (sum_q D_q), over the positions of the same row."""
            indices, rows = example
            same = (indices[:, None] == indices[None]).all(-1)
            return rows * (same.astype(dtype) @ rows)

        of_positions = jax.lax.map(squares, (indices, rows.astype(dtype)))
        if weights is not None:
            of_positions *= weights[:, None, None]
        table = layout.scatter(indices.reshape(-1, layout.depth), _merge_examples(of_positions))
        return jnp.maximum(table, 0)

    def _gradients(self, examples, weights, max_bytes, dtype, leaves):
        def values(of_group):
            known = dict(enumerate(leaves)) | dict(zip(self.leaves, of_group, strict=True))
            return [value_of(use.value, known) for use in self.uses]

        _, pullback = jax.vjp(values, [leaves[i] for i in self.leaves])

        def gradient(example):
            return pullback(
                [use.cotangent(*of_use) for use, of_use in zip(self.uses, example, strict=True)]
            )[0]

        has_products = any(isinstance(use.layout, Product) for use in self.uses)
        return _sum_of_squares(gradient, examples, weights, max_bytes, dtype, has_products)


def _sum_of_squares(gradient, examples, weights, max_bytes, dtype, has_products=True):
    """``sum_i weights[i] * gradient(examples[i])**2``, some examples at a time.

    On a CPU, XLA has a fast product of two matrices and a slow one of two stacks of them, by an
    order of magnitude (benchmarks/products.py), so products there are one example's at a time.
    """
    n = len(jax.tree.leaves(examples)[0])
    shapes = jax.eval_shape(gradient, jax.tree.map(lambda x: x[0], examples))
    held = sum(leaf.size for leaf in jax.tree.leaves(shapes)) * dtype.itemsize
    size = min(n, max(1, max_bytes // max(held, 1)))

    def squares(example, weight):
        scale = jnp.ones([], dtype) if weight is None else weight
        return jax.tree.map(lambda g: scale * jnp.square(g.astype(dtype)), gradient(example))

    def total(chunk):
        """Of examples all at once."""
        if len(jax.tree.leaves(chunk)[0]) == 1:
            return squares(*jax.tree.map(lambda x: x[0], chunk))
        return jax.tree.map(lambda s: s.sum(0), jax.vmap(squares)(*chunk))

    def in_chunks(size):
        def run(*all_examples):
            even = n - n % size
            # The examples of a chunk lie apart, so that a batch split over devices stays split.
            chunks = jax.tree.map(
                lambda x: jnp.swapaxes(x[:even].reshape(size, -1, *x.shape[1:]), 0, 1), all_examples
            )
            start = jax.tree.map(lambda s: jnp.zeros(s.shape, dtype), shapes)
            if even < n:
                start = total(jax.tree.map(lambda x: x[even:], all_examples))
            return jax.lax.scan(
                lambda sums, chunk: (jax.tree.map(jnp.add, sums, total(chunk)), None), start, chunks
            )[0]

        return run

    if size == 1 or not has_products:
        return in_chunks(size)(examples, weights)
    return jax.lax.platform_dependent(examples, weights, cpu=in_chunks(1), default=in_chunks(size))


def _product_of_rows(a, d):
    """``sum_np a[n, b, p]^T d[n, b, p]``, [batches, in, out]."""
    return products(*(grouped(x, [1], [0, 2], [3]) for x in (a, d)))


def _merge_examples(x):
    return x.reshape(-1, *x.shape[2:])


def _wide(dtype):
    return jnp.promote_types(dtype, jnp.float32)
