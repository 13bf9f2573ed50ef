"""Take the plasticity state out of one optimiser's state, and put it into another's."""

import warnings

import chex
import jax
import jax.numpy as jnp

from wpl_jax.modules import arrays
from wpl_jax.plasticity.consolidation import consolidated
from wpl_jax.plasticity.state import PlasticityState, find, replace, scalar
from wpl_jax.trees import is_hidden, leaves_by_path, path_name, to_device

__all__ = ["get_plasticity", "put_plasticity"]


def get_plasticity(opt_state: chex.ArrayTree) -> PlasticityState:
    """Take out the plasticity state of an optimiser's state, to read, save or move it.

    Args:
      opt_state: any tree that holds one :class:`PlasticityState`, as in :func:`consolidate`.

    Returns:
      The state, a pytree of arrays. (The arrays of an ``nnx.Optimizer`` are taken out of their
      variables.)

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
    return arrays(find(opt_state)[1])


def put_plasticity(opt_state: chex.ArrayTree, plasticity: chex.ArrayTree) -> chex.ArrayTree:
    """Move anchor and Fisher into the state of another optimiser, or of a changed model.

    They are matched by path and shape. Parameters that only the new model has, such as the head of
    another task, keep what ``opt_state`` has for them: after ``init`` they are free. Parameters
    that it no longer has are dropped, and a warning names them. All else is the new optimiser's:
    the form of the term (additive or proximal), its strength, and the count for schedules.

    Args:
      opt_state: the state to put them into, as in :func:`consolidate`.
      plasticity: what :func:`get_plasticity` returned, or any tree that holds one plasticity state.

    Returns:
      ``opt_state`` with a new plasticity state in it. Its structure and dtypes do not change, and
      it lies on the devices that ``opt_state`` does.

    Raises:
      ValueError: if either holds no plasticity state or several, or if they are stacks of the
        states of different numbers of models.

    Warns:
      UserWarning: if something was dropped, with its paths.

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
    members, ours = (jnp.shape(scalar(s.count)) for s in (source, get_plasticity(opt_state)))
    if members != ours:
        raise ValueError(
            f"plasticity has models stacked in shape {members}, and opt_state in shape {ours}, "
            "where () is one model: take one with jax.tree.map(lambda x: x[i], plasticity), or "
            "stack several with jax.tree.map(lambda x: jnp.stack([x] * n), plasticity)"
        )
    anchors, fishers = leaves_by_path(source.anchor), leaves_by_path(source.fisher)
    given = {
        path: (anchors[path], fisher)
        for path, fisher in fishers.items()
        if not is_hidden(fisher) and not is_hidden(anchors[path])
    }

    def merged(state):
        references = {p: a for p, a in leaves_by_path(state.anchor).items() if not is_hidden(a)}
        params, new_fishers, inside = [], [], []
        for path, anchor in references.items():
            fits = path in given and jnp.shape(given[path][0]) == jnp.shape(anchor)
            param, fisher = given.pop(path) if fits else (anchor, 0)
            params.append(_bring(param, anchor))
            new_fishers.append(_bring(fisher, anchor))
            inside.append(fits)
        structure = jax.tree.structure(state.anchor)
        params, new_fishers, inside = (
            jax.tree.unflatten(structure, leaves) for leaves in (params, new_fishers, inside)
        )
        new = consolidated(state, params, new_fishers, mask=inside)
        refused = scalar(new.rejected) - scalar(state.rejected)
        rejected, consolidations = (
            _bring(scalar(theirs), scalar(ours))
            for theirs, ours in (
                (source.rejected, state.rejected),
                (source.consolidations, state.consolidations),
            )
        )
        return new._replace(
            rejected=_carry(rejected + refused, state.rejected),
            consolidations=_carry(consolidations, state.consolidations),
        )

    new = replace(opt_state, merged)
    if given:
        dropped = ", ".join(
            f"{path_name(path)} of shape {jnp.shape(anchor)}" for path, (anchor, _) in given.items()
        )
        warnings.warn(
            "no longer protected, as the new parameters have nothing of that path and shape: "
            f"{dropped}",
            stacklevel=2,
        )
    return new


def _bring(leaf, reference):
    """To the devices of another array, where both are known; in ``jit`` that is the compiler's.

    Beside one that is not committed to its devices, it is not committed either.
    """
    if any(
        isinstance(x, jax.core.Tracer) or not isinstance(x, jax.Array) for x in (leaf, reference)
    ):
        return to_device(jnp.asarray(leaf))
    if reference.committed:
        return jax.device_put(leaf, reference.sharding.with_memory_kind("device"))
    return jnp.asarray(jax.device_get(leaf)) if leaf.committed else leaf


def _carry(counter, reference):
    """A counter, for each of the models that the state is of."""
    return jax.tree.map(lambda r: jnp.array(jnp.broadcast_to(counter, r.shape)), reference)
