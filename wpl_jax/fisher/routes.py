"""Sums over examples of squared gradients, from operands and gradients of products and look-ups.

Wherever an example's weight is 0, nothing of it counts, not even a NaN.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from wpl_jax.fisher.microbatches import Bound, on_platform, sizes, summed, weighted
from wpl_jax.fisher.program import for_one, held_bytes
from wpl_jax.fisher.uses import Use, grouped, products
from wpl_jax.varying import varying_as

# Up to so many positions, outer products entry by entry cost less than a product an example, and so
# many terms are added up in one pass over the sums, on a CPU (benchmarks/products.py).
FEW_POSITIONS = 4
_TERMS = 16

Examples = Mapping[int, Any]  # by the place of a use, with a leading axis of examples


def inputs_of(uses: Sequence[Use], operands: Examples, dtype: Any) -> jax.Array:
    """``A`` of all examples, [examples, batches, positions, in]."""
    of_uses = [jax.vmap(use.layout.inputs)(operands[use.place]) for use in uses]
    return jnp.concatenate([a.astype(dtype) for a in of_uses], axis=2)


def deltas_of(uses: Sequence[Use], deltas: Examples, dtype: Any) -> jax.Array:
    """``D`` of all examples, [examples, batches, positions, out]."""
    of_uses = [jax.vmap(use.layout.deltas)(deltas[use.place]) for use in uses]
    return jnp.concatenate([d.astype(dtype) for d in of_uses], axis=2)


def sizes_of_rows(a: jax.Array) -> jax.Array:
    """A power of 2 a row, [n, b, p, 1], of the size of its largest entry; 0 for a row of zeros.

    Divided by it, squares of the row neither overflow nor vanish; multiplied by it, those of its
    gradients do so only where those of the weights do.
    """
    largest = jnp.max(jnp.abs(a), axis=3, keepdims=True, initial=0)
    _, exponents = jnp.frexp(largest)
    sizes = jnp.ldexp(jnp.ones_like(largest), exponents - 1)
    return jnp.where(largest > 0, sizes, jnp.where(largest == 0, 0, 1))


def product_of_rows(a: jax.Array, d: jax.Array, precision: Any) -> jax.Array:
    """``sum_np a[n, b, p]^T d[n, b, p]``, [batches, in, out]."""
    a, d = (grouped(x, [1], [0, 2], [3]) for x in (a, d))
    return products(a, d, precision)


def outer_products(a: jax.Array, d: jax.Array, weights: jax.Array | None) -> jax.Array:
    """``sum_n weights[n] (sum_p a[n, b, p]^T d[n, b, p])**2``, without a term that cancels."""
    positions = a.shape[2]

    def total(chunk, weights):
        a, d = chunk
        sums = jnp.zeros((a.shape[1], a.shape[3], d.shape[3]), a.dtype)
        for n in range(len(a)):
            of_example = [a[n, :, p, :, None] * d[n, :, p, None, :] for p in range(positions)]
            square = jnp.square(functools.reduce(jnp.add, of_example))
            if weights is not None:
                square = weighted(square[None], weights[n : n + 1])[0]
            sums += square
        return sums

    return summed(total, (a, d), weights, max(1, _TERMS // positions))


def rows_of_table(
    uses: Sequence[Use],
    operands: Examples,
    deltas: Examples,
    weights: jax.Array | None,
    dtype: Any,
) -> jax.Array:
    """Sums for a table that is looked up in, [rows, entries of a row]."""
    layout = uses[0].layout
    both = [jax.vmap(use.layout.rows)(operands[use.place], deltas[use.place]) for use in uses]
    numbers = jnp.concatenate([numbers for numbers, _ in both], axis=1)
    rows = jnp.concatenate([rows.astype(dtype) for _, rows in both], axis=1)
    count, entries = layout.table
    few = min(count, numbers.shape[1])

    def of_example(numbers, rows):
        """Sums over the positions of the same row, and which rows these are."""
        if few == count:
            slots, places = numbers, jnp.arange(count)
        else:
            # Rows are numbered anew, in the order of their numbers in the table.
            order = jnp.argsort(numbers)
            in_order = numbers[order]
            fresh = jnp.concatenate([jnp.zeros(1, bool), in_order[1:] != in_order[:-1]])
            slot = jnp.cumsum(fresh, dtype=jnp.int32)
            slots = jnp.zeros_like(slot).at[order].set(slot, unique_indices=True)
            places = jnp.full(few, count, numbers.dtype).at[slot].set(in_order)
        sums = jnp.zeros((few, entries), dtype).at[slots].add(rows, mode="drop")
        return jnp.square(sums), places

    squares, places = jax.vmap(of_example)(numbers, rows)
    squares = weighted(squares, weights)
    if few == count:
        return squares.sum(0)
    table = varying_as(jnp.zeros((count, entries), dtype), (numbers, rows))
    return table.at[places.reshape(-1)].add(squares.reshape(-1, entries), mode="drop")


def sums_of_squares(
    gradient: Callable[[Any], Any],
    examples: Any,
    weights: jax.Array | None,
    size: int,
) -> Any:
    """``sum_i weights[i] * gradient(examples[i])**2``, of ``size`` examples at a time."""

    def total(chunk, weights):
        if len(jax.tree.leaves(chunk)[0]) == 1:
            grads = gradient(jax.tree.map(lambda x: x[0], chunk))
            grads = jax.tree.map(lambda g: g[None], grads)
        else:
            grads = jax.vmap(gradient)(chunk)
        return jax.tree.map(lambda g: weighted(jnp.square(g), weights).sum(0), grads)

    return summed(total, examples, weights, size)


def in_turn(
    gradient: Callable[[Any], Any],
    examples: Any,
    weights: jax.Array | None,
    bound: Bound,
) -> Any:
    """``sum_i weights[i] * gradient(examples[i])**2``, of as many at a time as the bound allows.

    On a CPU XLA has a fast product of two matrices and a slow one of two stacks of them, by an
    order of magnitude (benchmarks/products.py), so there only small ones are taken together.
    """
    gradient = jax.jit(gradient)  # traced once, for its size and to be run
    jaxpr, _ = for_one(lambda _, example: gradient(example), (), examples)
    held = held_bytes(jaxpr, [True] * len(jaxpr.in_avals))
    return on_platform(
        lambda size, examples, weights: sums_of_squares(gradient, examples, weights, size),
        *sizes(bound, held, in_turn=True),
        examples,
        weights,
    )
