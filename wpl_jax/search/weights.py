"""Which rows of the shared parameters, and of the optimiser's memory, are an architecture's own.

It trains on these alone, so that the rest costs nothing for as long as it trains.
"""

import functools
from typing import Any

import chex
import jax
import optax

from wpl_jax.spaces import Space
from wpl_jax.trees import is_hidden

__all__ = ["own_rows"]


def own_rows(
    space: Space,
    tx: optax.GradientTransformation,
    architecture: Any,
    params: chex.ArrayTree,
    opt_state: chex.ArrayTree,
) -> tuple[chex.ArrayTree, chex.ArrayTree]:
    """The space's ``rows`` of every parameter, and of what the optimiser remembers of each.

    Where the optimiser remembers something that is not of its parameter's shape (adafactor's
    factors), it needs all weights at once: then the rows are all, ``...``, everywhere.
    """
    map_params = functools.partial(optax.tree.map_params, tx, is_leaf=is_hidden)
    fits = map_params(
        lambda leaf, param: is_hidden(leaf) or leaf.shape == param.shape,
        opt_state,
        params,
        transform_non_params=lambda _: True,
    )
    if not all(jax.tree.leaves(fits)):
        return jax.tree.map(lambda _: ..., (params, opt_state))
    of_params = jax.tree.broadcast(space.rows(architecture), params)
    return of_params, map_params(
        lambda leaf, rows: leaf if is_hidden(leaf) else rows,
        opt_state,
        of_params,
        transform_non_params=lambda _: ...,
    )
