"""Parameters of a space: drawn at once when it is initialised, and counted by its mask."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from wpl_jax.spaces.protocol import Space

__all__ = ["Normal", "count_parameters", "drawn", "num_parameters"]


class Normal(NamedTuple):
    """In the place of a parameter that starts normally distributed."""

    shape: tuple[int, ...]
    variance: float


def drawn(key: jax.Array, params: Any) -> Any:
    """The parameters with numbers in the place of every :class:`Normal`.

    Of all of them in one draw, which compiles fastest.
    """
    leaves, structure = jax.tree.flatten(params, is_leaf=_is_normal)
    sizes = [math.prod(leaf.shape) if _is_normal(leaf) else 0 for leaf in leaves]
    numbers = jnp.split(jax.random.normal(key, (sum(sizes),)), np.cumsum(sizes)[:-1])
    found = [
        math.sqrt(leaf.variance) * number.reshape(leaf.shape) if _is_normal(leaf) else leaf
        for leaf, number in zip(leaves, numbers, strict=True)
    ]
    return jax.tree.unflatten(structure, found)


def _is_normal(leaf):
    return isinstance(leaf, Normal)


def num_parameters(space: Space, architecture: Any) -> int:
    """How many of a space's shared parameters an architecture uses.

    Example:
      >>> from wpl_jax.spaces.parameters import num_parameters
      >>> from wpl_jax.spaces.rnn import RNN
      >>> space = RNN(vocabulary=5, nodes=3, units=2, batch_norm=False)
      >>> cell = space.decode([0] * 5)
      >>> num_parameters(space, cell)  # words and their biases, W and W^x, two of three edges
      47
    """
    return int(count_parameters(space, architecture))


def count_parameters(space: Space, architecture: Any) -> jax.Array:
    """The same, int32 [], for functions that are compiled."""
    shapes = jax.eval_shape(space.init, jax.random.key(0))
    masks = jax.tree.broadcast(space.mask(architecture), shapes)

    def used(mask, shape):
        # The mask's axes are the parameter's, or 1: each of its entries stands for equally many.
        mask = jnp.asarray(mask, jnp.int32)
        return jnp.sum(mask) * (math.prod(shape.shape) // max(mask.size, 1))

    return sum(map(used, jax.tree.leaves(masks), jax.tree.leaves(shapes)), jnp.int32(0))
