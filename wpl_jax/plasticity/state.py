"""What is remembered of earlier models, and how it is found in an optimiser's state."""

from collections.abc import Callable
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from wpl_jax.modules import is_optimizer
from wpl_jax.trees import path_name

__all__ = ["PlasticityState"]


class PlasticityState(NamedTuple):
    """What the plasticity term remembers of the models trained before."""

    count: jax.Array  # type: ignore[assignment]  # shape=(), int32: updates so far, for schedules
    anchor: chex.ArrayTree  # like params, in their dtypes or anchor_dtype
    fisher: chex.ArrayTree  # like params, real, float32 or wider or fisher_dtype; finite and >= 0
    rejected: jax.Array  # shape=(), int32: entries that consolidate refused, so far
    consolidations: jax.Array  # shape=(), int32: how often the anchor has been set
    last_strength: jax.Array  # shape=(): eps of the last update, and before it of the first


class ProximalState(PlasticityState):
    """Says, by its type, that the term is applied implicitly."""

    __slots__ = ()


def find(opt_state: chex.ArrayTree) -> tuple[jax.tree_util.KeyPath, PlasticityState]:
    """The one plasticity state in a tree and its path, or an error that names the remedy."""
    found = find_all(opt_state)
    if not found:
        raise ValueError(
            "opt_state holds no plasticity state: was it made by an optimiser that contains "
            f"add_plasticity, proximal_plasticity or weight_plasticity? Got a {type(opt_state)}"
        )
    if len(found) > 1:
        places = ", ".join(path_name(path) for path, _ in found)
        raise ValueError(
            f"opt_state holds {len(found)} plasticity states, at {places}: pass the part of it "
            "that holds the one you mean, and put the result back in its place. To protect several "
            'models one is enough: consolidate(..., decay=1.0, anchor="mean") adds a penalty to it'
        )
    return found[0]


def find_all(opt_state: chex.ArrayTree) -> list[tuple[jax.tree_util.KeyPath, PlasticityState]]:
    """All plasticity states in a tree, with their paths."""
    leaves = jax.tree.leaves_with_path(opt_state, is_leaf=_is_state)
    return [(path, leaf) for path, leaf in leaves if _is_state(leaf)]


def replace(
    opt_state: chex.ArrayTree, fn: Callable[[PlasticityState], PlasticityState]
) -> chex.ArrayTree:
    """``opt_state`` with ``fn`` of its one plasticity state in the place of it."""
    if is_optimizer(opt_state):  # of NNX: changed in place, as its update does
        opt_state.opt_state = replace(opt_state.opt_state, fn)
        return opt_state
    new_state = fn(find(opt_state)[1])
    return jax.tree.map(lambda s: new_state if _is_state(s) else s, opt_state, is_leaf=_is_state)


def scalar(leaf: chex.ArrayTree) -> jax.Array:
    """A counter as an array: in an ``nnx.Optimizer`` each is a variable."""
    return jnp.asarray(jax.tree.leaves(leaf)[0])


def _is_state(x):
    return isinstance(x, PlasticityState)
