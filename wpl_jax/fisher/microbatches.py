"""How a batch is cut: so many examples at a time as a bound on memory allows, added up.

Sums of examples are taken in microbatches of one size, which differs between a CPU and other
devices. Wherever an example's weight is 0, nothing of it counts, not even a NaN.
"""

import functools
import numbers
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from wpl_jax.varying import zeros

# On a CPU, gradients of several examples are worth taking at once up to so many bytes.
CPU_BYTES = 2**16

# So many examples are added up before a sum is added to that of the others: sums of float32 that
# are longer lose digits.
LONG_SUM = 1024


class Bound(NamedTuple):
    """How many bytes examples may take, by where a program runs."""

    on_cpu: int
    elsewhere: int

    def half(self) -> "Bound":
        """Half as many."""
        return Bound(self.on_cpu // 2, self.elsewhere // 2)


MAX_BYTES = Bound(on_cpu=2**28, elsewhere=2**30)
"""By default. Few examples at a time suit the caches of a CPU; a GPU waits for each launch."""


def bound_of(max_bytes: int | None) -> Bound:
    """The bound that a user gave, or the default."""
    return MAX_BYTES if max_bytes is None else Bound(int(max_bytes), int(max_bytes))


def check_sizes(microbatch_size: int | None, max_bytes: Any = None) -> None:
    """Refuse sizes of microbatches that cannot be."""
    whole = isinstance(microbatch_size, int | np.integer | None)
    if not whole or (microbatch_size is not None and microbatch_size < 1):
        raise ValueError(
            f"microbatch_size must be at least 1, and whole, or None, got {microbatch_size}"
        )
    whole = isinstance(max_bytes, numbers.Real) and max_bytes % 1 == 0  # 1e9 is
    if max_bytes is not None and not (whole and max_bytes >= 1):
        raise ValueError(
            f"max_bytes, in bytes, must be at least 1, and whole, or None, got {max_bytes!r}"
        )


def sizes(bound: Bound, held: int, in_turn: bool) -> tuple[int, int]:
    """How many examples to take at a time, on a CPU and elsewhere.

    Args:
      bound: on the memory that they add.
      held: bytes that one example holds.
      in_turn: whether few at a time are faster on a CPU (see ``in_turn``).
    """
    on_cpu = min(bound.on_cpu, CPU_BYTES) if in_turn else bound.on_cpu
    few, many = (min(LONG_SUM, fitting(b, held)) for b in (on_cpu, bound.elsewhere))
    return few, many


def on_platform(
    function: Callable[..., Any],
    on_cpu: int,
    elsewhere: int,
    examples: Any,
    weights: jax.Array | None,
) -> Any:
    """``function(size, examples, weights)`` with the size that suits where it will run."""
    n = len(jax.tree.leaves(examples)[0])
    if min(on_cpu, n) == min(elsewhere, n):
        return function(elsewhere, examples, weights)
    return jax.lax.platform_dependent(
        examples,
        weights,
        cpu=functools.partial(function, on_cpu),
        default=functools.partial(function, elsewhere),
    )


def fitting(max_bytes: int, one: int) -> int:
    """How many examples fit that hold so many bytes each; one always may."""
    return max(1, max_bytes // max(one, 1))


def weighted(x: jax.Array, weights: jax.Array | None) -> jax.Array:
    """Scale the examples along the leading axis."""
    if weights is None:
        return x
    weights = weights.astype(x.dtype).reshape(-1, *[1] * (x.ndim - 1))
    return jnp.where(weights == 0, jnp.zeros([], x.dtype), weights * x)


def summed(
    total: Callable[[Any, jax.Array | None], Any],
    examples: Any,
    weights: jax.Array | None,
    size: int,
) -> Any:
    """Add up ``total(examples, weights)`` of some examples at a time.

    ``total`` is compiled once: where ``size`` does not divide the examples, they are cut evenly,
    and some occur a second time with weight 0.
    """
    n = len(jax.tree.leaves(examples)[0])
    if size >= n:
        return total(examples, weights)
    turns = -(-n // size)
    size = -(-n // turns)
    twice = turns * size - n
    if twice:
        weights = jnp.ones(n) if weights is None else weights
        weights = jnp.concatenate([weights, jnp.zeros_like(weights[:twice])])
        examples = jax.tree.map(lambda x: jnp.concatenate([x, x[:twice]]), examples)

    # Examples of a turn lie apart, so that a batch split over devices stays split; and they are
    # read where they are: the whole batch, turned around, would be a copy.
    apart = jax.tree.map(lambda x: x.reshape(size, turns, *x.shape[1:]), (examples, weights))

    def chunk(turn):
        return jax.tree.map(lambda x: jax.lax.dynamic_index_in_dim(x, turn, 1, False), apart)

    total = jax.jit(total)  # traced once, for its shapes and in the loop
    start = jax.tree.map(zeros, jax.eval_shape(lambda: total(*chunk(0))))

    def add(sums, turn):
        return jax.tree.map(jnp.add, sums, total(*chunk(turn))), None

    return jax.lax.scan(add, start, jnp.arange(turns))[0]
