"""What is remembered of earlier models, and how it is found in, and moved between, other states."""

import warnings
from collections.abc import Callable
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from wpl_jax.trees import is_hidden, leaves_by_path, path_name, place_like, store_like

__all__ = ["PlasticityState", "get_plasticity", "put_plasticity"]


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


def get_plasticity(opt_state: chex.ArrayTree) -> PlasticityState:
    """The plasticity state in an optimiser's state: to be read, saved alone, or put elsewhere.

    Args:
      opt_state: any tree that holds one :class:`PlasticityState`, as in :func:`consolidate`.

    Returns:
      That state, a pytree like any other.

    Raises:
      ValueError: if ``opt_state`` holds no plasticity state or several.

    Example:
      >>> import jax.numpy as jnp, optax, wpl_jax
      >>> tx = optax.chain(wpl_jax.add_plasticity(1.0), optax.adam(1e-3))
      >>> params = {"w": jnp.ones(2)}
      >>> opt_state = wpl_jax.consolidate(tx.init(params), params, fisher=3.0)
      >>> wpl_jax.get_plasticity(opt_state).fisher
      {'w': Array([3., 3.], dtype=float32)}
    """
    return find(opt_state)[1]


def put_plasticity(opt_state: chex.ArrayTree, plasticity: chex.ArrayTree) -> chex.ArrayTree:
    """Carry what is protected into the state of another optimiser, or of a changed model.

    Anchor and Fisher are matched by path and shape. What only the new parameters have, such as the
    head of another task, stays as the new state has it: after ``init``, free. What they no longer
    have is dropped, and a warning names it. Whether the term is applied implicitly, its strength
    and the count that schedules are read at are the new optimiser's.

    Args:
      opt_state: the state to put it into, as in :func:`consolidate`.
      plasticity: what :func:`get_plasticity` gave, or any tree that holds one plasticity state.

    Returns:
      ``opt_state`` with a new plasticity state in it. Its structure and dtypes do not change.

    Raises:
      ValueError: if either holds no plasticity state or several.

    Warns:
      UserWarning: with the paths of what was dropped.

    Example:
      To train on with another optimiser is one line:

      >>> import jax.numpy as jnp, optax, wpl_jax
      >>> params = {"trunk": jnp.ones(2)}
      >>> first = optax.chain(wpl_jax.add_plasticity(1.0), optax.sgd(0.1))
      >>> opt_state = wpl_jax.consolidate(first.init(params), params, fisher=2.0)
      >>> second = optax.chain(optax.adam(1e-3), wpl_jax.proximal_plasticity(1.0, 1e-3))
      >>> params = {"trunk": params["trunk"], "head": jnp.zeros(3)}  # and a new head
      >>> opt_state = wpl_jax.put_plasticity(second.init(params), opt_state)
      >>> wpl_jax.get_plasticity(opt_state).fisher
      {'head': Array([0., 0., 0.], dtype=float32), 'trunk': Array([2., 2.], dtype=float32)}
    """
    source = get_plasticity(plasticity)
    anchors, fishers = leaves_by_path(source.anchor), leaves_by_path(source.fisher)
    given = {path: (anchors[path], fishers[path]) for path in anchors if path in fishers}
    given = {path: leaves for path, leaves in given.items() if not any(map(is_hidden, leaves))}

    def merged(state):
        new_anchors, new_fishers = [], []
        paths = [path for path, leaf in leaves_by_path(state.anchor).items() if not is_hidden(leaf)]
        for path, anchor, fisher in zip(
            paths, jax.tree.leaves(state.anchor), jax.tree.leaves(state.fisher), strict=True
        ):
            fits = path in given and jnp.shape(given[path][0]) == jnp.shape(anchor)
            new_anchor, new_fisher = given.pop(path) if fits else (anchor, fisher)
            new_anchors.append(_as(new_anchor, anchor))
            new_fishers.append(_as(new_fisher, fisher))
        return state._replace(
            anchor=jax.tree.unflatten(jax.tree.structure(state.anchor), new_anchors),
            fisher=jax.tree.unflatten(jax.tree.structure(state.fisher), new_fishers),
            rejected=_carry(source.rejected, state.rejected),
            consolidations=_carry(source.consolidations, state.consolidations),
        )

    new = replace(opt_state, merged)
    if given:
        dropped = ", ".join(
            f"{path_name(path)} of shape {jnp.shape(anchor)}" for path, (anchor, _) in given.items()
        )
        warnings.warn(
            f"no longer protected, as the new parameters have nothing of that path and shape: "
            f"{dropped}",
            stacklevel=2,
        )
    return new


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
    new_state = fn(find(opt_state)[1])
    return jax.tree.map(lambda s: new_state if _is_state(s) else s, opt_state, is_leaf=_is_state)


def scalar(leaf: chex.ArrayTree) -> jax.Array:
    """A counter as an array: in an ``nnx.Optimizer`` each is a variable."""
    return jnp.asarray(jax.tree.leaves(leaf)[0])


def _is_state(x):
    return isinstance(x, PlasticityState)


def _as(leaf, reference):
    """A copy of ``leaf``, so that both states may be donated, in the dtype and place of another."""
    copy = jnp.array(leaf, dtype=reference.dtype, copy=True)
    return store_like(place_like(copy, reference), reference)


def _carry(source, state):
    """The counter of ``source``, for each of the models that ``state`` is of."""
    return jax.tree.map(lambda s: jnp.array(jnp.broadcast_to(scalar(source), s.shape)), state)
