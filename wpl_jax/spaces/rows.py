"""An architecture's own rows of the shared parameters, taken out and put back.

Which rows are whose, a space's ``rows`` says: see :class:`wpl_jax.spaces.Space`.
"""

import chex
import jax

__all__ = ["put", "take"]


def take(tree: chex.ArrayTree, rows: chex.ArrayTree) -> chex.ArrayTree:
    """Of each leaf the rows that are an architecture's own."""

    def take(rows, subtree):
        return subtree if rows is ... else jax.tree.map(lambda x: pick(x, rows), subtree)

    def pick(x, rows):
        return x[rows] if rows.ndim == 1 else jax.vmap(pick)(x, rows)

    return jax.tree.map(take, rows, tree)


def put(tree: chex.ArrayTree, rows: chex.ArrayTree, own: chex.ArrayTree) -> chex.ArrayTree:
    """The tree with an architecture's own rows in their places.

    Here ``rows`` has a leaf for each leaf of the tree.
    """

    def put(rows, x, new):
        if rows is ...:
            return new
        return x.at[rows].set(new) if rows.ndim == 1 else jax.vmap(put)(rows, x, new)

    return jax.tree.map(put, rows, tree, own)
