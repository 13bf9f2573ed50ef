"""Matching one pytree to another by path, with errors that name the first path that differs."""

from collections import Counter
from collections.abc import Iterable
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax

__all__ = [
    "align",
    "align_mask",
    "align_scalars",
    "is_hidden",
    "leaves_by_path",
    "nodes_of",
    "path_name",
    "place_like",
    "prefixes",
    "resolve_mask",
    "store_like",
    "to_device",
]


def align(
    name: str,
    tree: chex.ArrayTree,
    reference: chex.ArrayTree,
    optional: bool = False,
    reference_has: str = "the parameters given to init have",
) -> list:
    """Leaves of ``tree`` in the order of those of ``reference``, matched by their paths.

    The trees may differ in the types of their nodes, as an ``nnx.State`` of variables and one of
    arrays do, but not in paths and shapes. What is hidden in ``reference`` (see :func:`is_hidden`)
    may be present in ``tree``, and is skipped.

    Args:
      name: what to call ``tree`` in an error.
      tree: the tree to take leaves from.
      reference: the tree that says which leaves, made from the parameters given to ``init``.
      optional: whether a leaf of ``tree`` may be ``None``.
      reference_has: what to call ``reference`` in an error, with its verb.

    Returns:
      Arrays, each laid out on devices as the leaf of ``reference`` is.

    Raises:
      ValueError: naming the first path at which structure or shape differs.
    """
    wanted, given = _wanted_and_given(tree, reference)
    leaves = []
    for path, reference_leaf in wanted.items():
        shape = np.shape(reference_leaf)
        if path not in given:
            raise ValueError(
                f"{name} has no leaf at {path_name(path)}, where {reference_has} one of shape "
                f"{shape}"
            )
        leaf = given.pop(path)
        if leaf is None and not optional:
            raise ValueError(
                f"{name} is None at {path_name(path)}, where {reference_has} an array of shape "
                f"{shape}"
            )
        placed = None if leaf is None else _place(name, path, leaf, reference_leaf, reference_has)
        leaves.append(placed)
    _refuse_further(name, given, reference_has)
    return leaves


def align_scalars(
    name: str,
    tree: chex.ArrayTree,
    reference: chex.ArrayTree,
    reference_has: str = "the parameters given to init have",
) -> list:
    """As :func:`align`, but a scalar stands for all leaves below it, and what is absent is 0.

    Args:
      name: what to call ``tree`` in an error.
      tree: a tree like ``reference``, a part of one, or a prefix of one whose leaves are scalars.
      reference: the tree that says which leaves, made from the parameters given to ``init``.
      reference_has: as in :func:`align`.

    Raises:
      ValueError: naming the first path at which a shape differs, or that is not in ``reference``.
    """
    wanted, given = _wanted_and_given(tree, reference)
    leaves = []
    for path, reference_leaf in wanted.items():
        above: Any = _at_or_above(path, given)
        leaf: Any = None if above is None else given[above]
        if is_hidden(leaf):
            leaf = 0
        elif above != path and np.ndim(leaf):
            raise ValueError(
                f"{name} has an array of shape {np.shape(leaf)} at {path_name(above)}, where "
                f"{reference_has} a tree: only a scalar stands for all of it"
            )
        is_scalar = np.ndim(leaf) == 0
        leaves.append(_place(name, path, leaf, reference_leaf, reference_has, is_scalar))
    _refuse_further(name, _leading_nowhere(given, reference), reference_has)
    return leaves


def align_mask(mask: chex.ArrayTree | None, reference: chex.ArrayTree) -> list:
    """For each leaf of ``reference``, the mask's leaf at its path or above it, in its shape.

    Args:
      mask: a tree of booleans like ``reference``, or a prefix of it, whose leaves broadcast.
        ``None`` stands for no mask, and gives a list of ``None``.
      reference: the tree that is masked.

    Raises:
      ValueError: naming the path at which the mask is missing, not boolean, or of a wrong shape.
    """
    wanted, given = _wanted_and_given(mask, reference)
    if mask is None:
        return [None] * len(wanted)
    given = {path: leaf for path, leaf in given.items() if not is_hidden(leaf)}
    for path in _leading_nowhere(given, reference):
        raise ValueError(f"mask has a leaf at {path_name(path)}, where there is no parameter")
    leaves = []
    for path, param in wanted.items():
        above = _at_or_above(path, given)
        if above is None:
            raise ValueError(f"mask has no leaf at or above {path_name(path)}")
        leaf = given[above]
        if not _is_boolean(leaf):
            raise ValueError(f"mask must hold booleans, got {_describe(leaf)} at {path_name(path)}")
        leaves.append(_place("mask", path, leaf, param, "the parameters have", broadcast=True))
    return leaves


def resolve_mask(mask: Any, params: chex.ArrayTree) -> chex.ArrayTree | None:
    """The mask itself or, if it is a function as in optax, what it returns for ``params``."""
    # A module of Equinox is callable as well, but a tree.
    if not (callable(mask) and jax.tree_util.all_leaves([mask])):
        return mask
    found = mask(params)
    if found is None:
        raise ValueError(f"the mask {mask} must return a tree of booleans for params, got None")
    return found


def place_like(leaf: jax.Array, reference: jax.Array) -> jax.Array:
    """The same numbers, laid out on devices as ``reference`` is.

    On a mesh with explicit axes the layout is part of an array's type, and operands must have the
    same one. On other meshes, and without a mesh, nothing is done.
    """
    wanted = jax.typeof(reference).sharding
    if jax.typeof(leaf).sharding.spec == wanted.spec:
        return leaf
    if isinstance(reference, jax.core.Tracer):
        return jax.sharding.reshard(leaf, wanted)
    return jax.device_put(leaf, reference.sharding.with_memory_kind("device"))


def store_like(leaf: jax.Array, reference: jax.Array) -> jax.Array:
    """The same numbers, in the memory that ``reference`` is in: the device's, or its host's."""
    space = jax.typeof(reference).memory_space
    return leaf if jax.typeof(leaf).memory_space == space else jax.device_put(leaf, space)


def to_device(leaf: jax.Array) -> jax.Array:
    """The array in the device's memory, where it can be computed with."""
    if jax.typeof(leaf).memory_space == jax.memory.Space.Device:
        return leaf
    return jax.device_put(leaf, jax.memory.Space.Device)


def is_hidden(node: object) -> bool:
    """Whether there is no array here: ``None``, or what ``optax.masked`` puts in its place."""
    return node is None or isinstance(node, optax.MaskedNode)


def path_name(path: jax.tree_util.KeyPath) -> str:
    """The path as a person would write it."""
    return jax.tree_util.keystr(path) or "the root"


def leaves_by_path(tree: chex.ArrayTree) -> dict:
    """Leaves by path, hidden nodes included; an NNX variable counts as its value."""
    leaves = jax.tree.leaves_with_path(tree, is_leaf=is_hidden)
    sizes = Counter(path[:-k] for path, _ in leaves for k in range(1, len(path) + 1))

    def is_variable(path):  # a field "value" beside others is an ordinary one
        return path[-1:] == (jax.tree_util.GetAttrKey("value"),) and sizes[path[:-1]] == 1

    return {path[:-1] if is_variable(path) else path: leaf for path, leaf in leaves}


def nodes_of(tree: Any, kind: type | tuple[type, ...]) -> list[tuple[jax.tree_util.KeyPath, Any]]:
    """The nodes of a kind in a tree, outermost ones, each with its path."""

    def is_one(node):
        return isinstance(node, kind)

    nodes = jax.tree.leaves_with_path(tree, is_leaf=is_one)
    return [(path, node) for path, node in nodes if is_one(node)]


def prefixes(paths: Iterable[jax.tree_util.KeyPath]) -> set[jax.tree_util.KeyPath]:
    """All places at or above those of paths."""
    return {path[:k] for path in paths for k in range(len(path) + 1)}


def _wanted_and_given(tree, reference):
    """Leaves of ``reference`` by path, and those of ``tree`` that are not hidden there."""
    wanted = leaves_by_path(reference)
    hidden = {path for path, leaf in wanted.items() if is_hidden(leaf)}
    given = {
        path: leaf
        for path, leaf in leaves_by_path(tree).items()
        if _at_or_above(path, hidden) is None
    }
    return {path: leaf for path, leaf in wanted.items() if path not in hidden}, given


def _at_or_above(path, paths):
    return next((path[:k] for k in range(len(path) + 1) if path[:k] in paths), None)


def _leading_nowhere(given, reference):
    """Of a prefix, what has no leaf of ``reference`` at or below it, and no empty container.

    Hidden leaves count; a container without parameters may be given as that, or as one of some.
    """
    empty = {
        path
        for path, node in jax.tree.leaves_with_path(reference, is_leaf=_is_empty)
        if _is_empty(node)
    }
    known = prefixes([*leaves_by_path(reference), *empty])
    return {
        path: leaf
        for path, leaf in given.items()
        if path not in known and _at_or_above(path, empty) is None
    }


def _is_empty(node):
    return not is_hidden(node) and not jax.tree.leaves(node, is_leaf=is_hidden)


def _refuse_further(name, leaves, reference_has):
    for path, leaf in leaves.items():
        if not is_hidden(leaf):
            raise ValueError(f"{name} has a leaf at {path_name(path)}, where {reference_has} none")


def _place(name, path, leaf, reference, reference_has, broadcast=False):
    """``leaf`` as an array in the shape and place of ``reference``."""
    shape = np.shape(reference)
    if not broadcast and np.shape(leaf) != shape:
        raise ValueError(
            f"{name} has shape {np.shape(leaf)} at {path_name(path)}, where {reference_has} {shape}"
        )
    try:
        leaf = jnp.asarray(leaf)
    except TypeError as error:
        raise ValueError(
            f"{name} must hold arrays, got {_describe(leaf)} at {path_name(path)}"
        ) from error
    try:
        leaf = jnp.broadcast_to(leaf, shape) if np.shape(leaf) != shape else leaf
    except ValueError:
        raise ValueError(
            f"{name} has shape {np.shape(leaf)} at {path_name(path)}, which does not broadcast to "
            f"the parameter's {shape}"
        ) from None
    return place_like(leaf, reference) if isinstance(reference, jax.Array) else leaf


def _is_boolean(leaf):
    try:
        return jnp.issubdtype(jnp.result_type(leaf), jnp.bool_)
    except TypeError:
        return False


def _describe(leaf):
    """An array by its dtype, anything else by what it is."""
    return str(jnp.result_type(leaf)) if hasattr(leaf, "dtype") else repr(leaf)
