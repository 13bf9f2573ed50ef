"""What is remembered of earlier models, and how it is found in an optimiser's state."""

from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp

from wpl_jax.modules import is_optimizer
from wpl_jax.trees import nodes_of, path_name

__all__ = ["PlasticityState"]


class PlasticityState(NamedTuple):
    """What the plasticity term remembers of the models trained before."""

    count: jax.Array  # type: ignore[assignment]  # shape=(), int32: updates so far, for schedules
    anchor: chex.ArrayTree  # like params, in their dtypes or anchor_dtype
    fisher: chex.ArrayTree  # like params, real, float32 or wider or fisher_dtype; finite and >= 0
    rejected: jax.Array  # shape=(), int32: entries that consolidate refused, so far
    consolidations: jax.Array  # shape=(), int32: how often the anchor has been set
    last_strength: jax.Array  # shape=(): strength at the last update, or at the first


class ProximalState(PlasticityState):
    """The state of the proximal form, told apart from that of the additive one by its type."""

    __slots__ = ()


def find(opt_state: chex.ArrayTree) -> tuple[jax.tree_util.KeyPath, PlasticityState]:
    """The one plasticity state in a tree and its path, or an error that names the remedy."""
    return find_one(
        opt_state,
        PlasticityState,
        "plasticity state",
        "an optimiser that contains add_plasticity, proximal_plasticity or weight_plasticity",
        '. To protect several models one is enough: consolidate(..., decay=1.0, anchor="mean") '
        "adds a penalty to it",
    )


def find_one(
    opt_state: chex.ArrayTree, kind: type, name: str, maker: str, advice: str = ""
) -> tuple[jax.tree_util.KeyPath, Any]:
    """The one node of a type in a tree and its path, or an error that names the remedy."""
    found = nodes_of(opt_state, kind)
    if not found:
        raise ValueError(
            f"opt_state holds no {name}: was it made by {maker}? Got a {type(opt_state).__name__}"
        )
    if len(found) > 1:
        places = ", ".join(path_name(path) for path, _ in found)
        raise ValueError(
            f"opt_state holds {len(found)} {name}s, at {places}: pass the part of it that holds "
            f"the one you mean, and put the result back in its place{advice}"
        )
    return found[0]


def replace(
    opt_state: chex.ArrayTree, fn: Callable[[PlasticityState], PlasticityState]
) -> chex.ArrayTree:
    """``opt_state`` with ``fn`` of its one plasticity state in the place of it."""
    return put(opt_state, fn(find(opt_state)[1]), PlasticityState)


def put(opt_state: chex.ArrayTree, new: Any, kind: type) -> chex.ArrayTree:
    """``opt_state`` with ``new`` in the place of its node of a type."""
    if is_optimizer(opt_state):  # of NNX: changed in place, as its update does
        opt_state.opt_state = put(opt_state.opt_state, new, kind)
        return opt_state

    def is_kind(node):
        return isinstance(node, kind)

    return jax.tree.map(lambda s: new if is_kind(s) else s, opt_state, is_leaf=is_kind)


def scalar(leaf: chex.ArrayTree) -> jax.Array:
    """A counter as an array: in an ``nnx.Optimizer`` each is a variable."""
    return jnp.asarray(jax.tree.leaves(leaf)[0])
