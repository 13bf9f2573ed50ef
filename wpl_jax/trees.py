"""Matching one pytree to another by path, with errors that name the first path that differs."""

from collections import Counter

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax

__all__ = ["align", "align_mask", "is_hidden", "path_name"]


def align(name: str, tree: chex.ArrayTree, reference: chex.ArrayTree) -> list:
    """Leaves of ``tree`` in the order of those of ``reference``, matched by their paths.

    The trees may differ in their types of nodes (an ``nnx.State`` of variables against one of
    arrays) but not in paths and shapes. What is hidden in ``reference`` may be present in ``tree``;
    it is skipped. A leaf of ``tree`` may be ``None``.

    Args:
      name: what to call ``tree`` in an error.
      tree: the tree to take leaves from.
      reference: the tree that says which, as made from the parameters given to ``init``.

    Raises:
      ValueError: naming the first path at which structure or shape differs.
    """
    given = _leaves_by_path(tree)
    leaves = []
    for path, wanted in _leaves_by_path(reference).items():
        if is_hidden(wanted):
            given = {p: leaf for p, leaf in given.items() if p[: len(path)] != path}
            continue
        if path not in given:
            raise ValueError(
                f"{name} has no leaf at {path_name(path)}, where the parameters given to init "
                f"have one of shape {np.shape(wanted)}"
            )
        leaf = given.pop(path)
        if leaf is not None and np.shape(leaf) != np.shape(wanted):
            raise ValueError(
                f"{name} has shape {np.shape(leaf)} at {path_name(path)}, where the parameters "
                f"given to init have {np.shape(wanted)}"
            )
        leaves.append(leaf)
    for path in given:
        raise ValueError(
            f"{name} has a leaf at {path_name(path)}, where the parameters given to init have none"
        )
    return leaves


def align_mask(mask: chex.ArrayTree | None, reference: chex.ArrayTree) -> list:
    """For each leaf of ``reference``, the mask's leaf at its path or above, in its shape.

    Args:
      mask: a tree of booleans like ``reference``, or a prefix of it; leaves broadcast. ``None``,
        for no mask, gives a list of ``None``.
      reference: the tree that is masked.

    Raises:
      ValueError: naming the path at which the mask is missing, not boolean, or of a wrong shape.
    """
    wanted = {p: leaf for p, leaf in _leaves_by_path(reference).items() if not is_hidden(leaf)}
    if mask is None:
        return [None] * len(wanted)
    given = {p: leaf for p, leaf in _leaves_by_path(mask).items() if not is_hidden(leaf)}
    leaves = []
    for path, param in wanted.items():
        prefix = next((path[:k] for k in range(len(path) + 1) if path[:k] in given), None)
        if prefix is None:
            raise ValueError(f"mask has no leaf at or above {path_name(path)}")
        leaves.append(_broadcast_mask(given[prefix], np.shape(param), path))
    return leaves


def is_hidden(node: object) -> bool:
    """Whether there is no array here: ``None``, or what ``optax.masked`` puts in its place."""
    return node is None or isinstance(node, optax.MaskedNode)


def path_name(path: jax.tree_util.KeyPath) -> str:
    """The path as a person would write it."""
    return jax.tree_util.keystr(path) or "the root"


def _broadcast_mask(leaf, shape, path):
    if not jnp.issubdtype(jnp.result_type(leaf), jnp.bool_):
        raise ValueError(
            f"mask must hold booleans, got {jnp.result_type(leaf)} at {path_name(path)}"
        )
    try:
        return jnp.broadcast_to(leaf, shape)
    except ValueError:
        raise ValueError(
            f"mask has shape {np.shape(leaf)} at {path_name(path)}, which does not broadcast to "
            f"the parameter's {shape}"
        ) from None


def _leaves_by_path(tree):
    """Leaves by path, hidden nodes included; an NNX variable counts as its value."""
    leaves = jax.tree.leaves_with_path(tree, is_leaf=is_hidden)
    sizes = Counter(path[:-k] for path, _ in leaves for k in range(1, len(path) + 1))

    def is_variable(path):  # a field "value" beside others is an ordinary one
        return path[-1:] == (jax.tree_util.GetAttrKey("value"),) and sizes[path[:-1]] == 1

    return {path[:-1] if is_variable(path) else path: leaf for path, leaf in leaves}
