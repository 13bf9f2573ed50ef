"""Over which axes of a mesh an array varies, where a ``shard_map`` keeps account of that."""

from typing import Any

import chex
import jax
import jax.numpy as jnp

__all__ = ["varying_as", "varying_axes", "varying_over", "zeros"]


def varying_axes(tree: chex.ArrayTree) -> frozenset:
    """The mesh axes over which some array of a tree varies; outside of a ``shard_map``, none.

    Args:
      tree: of arrays, or of their types or shapes.
    """
    return frozenset().union(*map(_axes, jax.tree.leaves(tree)))


def _axes(leaf):
    aval = jax.typeof(leaf) if isinstance(leaf, jax.Array) else leaf
    if hasattr(aval, "vma"):  # JAX names them in three ways
        return aval.vma or frozenset()
    kind = getattr(aval, "mat", None) or getattr(aval, "manual_axis_type", None)
    return kind.varying if kind is not None else frozenset()


def varying_over(x: jax.Array, axes: frozenset) -> jax.Array:
    """The same array, which may vary over these axes too."""
    missing = axes - varying_axes(x)
    return jax.lax.pcast(x, tuple(sorted(missing, key=str)), to="varying") if missing else x


def varying_as(x: jax.Array, tree: chex.ArrayTree) -> jax.Array:
    """The same array, which may vary over all axes over which those of a tree do."""
    return varying_over(x, varying_axes(tree))


def zeros(shape: Any) -> jax.Array:
    """Zeros like a ``ShapeDtypeStruct``, which may vary over the same mesh axes."""
    return varying_as(jnp.zeros(shape.shape, shape.dtype), shape)
