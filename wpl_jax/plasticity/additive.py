"""The additive form: the gradient of the plasticity term is added to that of the loss."""

from typing import Any

import chex
import jax
import jax.numpy as jnp
import optax

from wpl_jax.modules import parameters
from wpl_jax.numbers import capped, differentiated_as, widened
from wpl_jax.plasticity.state import PlasticityState, find, scalar
from wpl_jax.plasticity.term import (
    ScalarOrSchedule,
    check_nonnegative,
    distance,
    importance,
    transformation,
    value_at,
)
from wpl_jax.trees import align

__all__ = ["add_plasticity", "plasticity_loss"]


def add_plasticity(
    strength: ScalarOrSchedule, *, fisher_dtype: Any = None, anchor_dtype: Any = None
) -> optax.GradientTransformationExtraArgs:
    """Add the gradient of the plasticity term, ``strength * F * (params - anchor)`` (eq. 8).

    Put it before the transformations that turn a gradient into a step, where you would put
    ``optax.add_decayed_weights``. Plain gradient descent diverges once
    ``learning_rate * strength * max(F) > 2``. :func:`proximal_plasticity` never does.

    Args:
      strength: eps of eq. 8, a number or scalar array >= 0, or a schedule of the update count.
      fisher_dtype: the dtype of ``F``. By default float32, or the parameter's dtype if that is
        wider. In a narrower dtype :func:`consolidate` rounds up or down at random, so that the sum
        of many Fishers is right on average.
      anchor_dtype: the dtype of the anchor. By default the parameter's. With a narrower one,
        weights are pulled to the rounded anchor.

    Returns:
      A transformation whose ``update(updates, state, params, mask=None)`` requires ``params``. The
      updates keep their dtypes; a typed key among ``params`` is left alone. ``mask`` limits the
      term to some weights. It is a tree of booleans like ``params``, or a prefix of that tree,
      whose leaves broadcast to their parameters; or a function that gives such a tree for
      ``params``. It may be traced. For complex parameters the term has the squared absolute value
      of the distance, and updates are the conjugate of what ``jax.grad`` gives, as optax expects.

    Raises:
      ValueError: if the strength is negative, not finite or not a scalar, or a dtype not a
        floating-point one. In ``update``, if ``params`` are missing, or trees differ in structure
        or shape.

    Example:
      >>> import jax, jax.numpy as jnp, optax, wpl_jax
      >>> tx = optax.chain(wpl_jax.add_plasticity(strength=8.0), optax.sgd(0.125))
      >>> params = {"w": jnp.array([1.0, 1.0])}
      >>> opt_state = tx.init(params)
      >>> fisher = {"w": jnp.array([0.5, 0.0])}  # the first model needs w[0] only
      >>> opt_state = wpl_jax.consolidate(opt_state, params, fisher)
      >>> loss = lambda params: -params["w"].sum()  # the second model pushes both up
      >>> for _ in range(16):
      ...     grads = jax.grad(loss)(params)
      ...     updates, opt_state = tx.update(grads, opt_state, params)
      ...     params = optax.apply_updates(params, updates)
      >>> print([f"{w:.2f}" for w in params["w"]])  # w[0] stops at anchor + 1 / (strength * F)
      ['1.25', '3.00']

    References:
      Benyahia et al., `Overcoming Multi-Model Forgetting <https://arxiv.org/abs/1902.08232>`_, 2019
    """
    check_nonnegative(strength=strength)
    return transformation(
        PlasticityState,
        strength,
        lambda updates, term, count: _added(
            updates, capped(term.strength), term.fishers, term.distances
        ),
        fisher_dtype,
        anchor_dtype,
    )


def plasticity_loss(
    opt_state: chex.ArrayTree, params: chex.ArrayTree, strength: ScalarOrSchedule
) -> jax.Array:
    """The plasticity term of eq. 8: ``strength/2 * sum F |params - anchor|**2``.

    Use it to log the term, or add it to a loss and train on the sum. Its gradient with respect to
    ``params`` is what :func:`add_plasticity` adds.

    Args:
      opt_state: as in :func:`consolidate`.
      params: the whole tree of weights, as in :func:`consolidate`.
      strength: eps of eq. 8. A schedule is read at the state's count.

    Returns:
      A scalar in the units of the loss: nats, if the Fisher is that of a log-likelihood. If the
      state is a stack of the states of several models, an array with one number for each.

    Raises:
      ValueError: as :func:`consolidate`, and for a strength that :func:`add_plasticity` refuses.

    Example:
      >>> import jax.numpy as jnp, optax, wpl_jax
      >>> params = jnp.array([1.0, 2.0])
      >>> opt_state = wpl_jax.add_plasticity(10.0).init(params)
      >>> opt_state = wpl_jax.consolidate(opt_state, params, fisher=jnp.array([0.5, 0.0]))
      >>> wpl_jax.plasticity_loss(opt_state, params + 1.0, strength=10.0)
      Array(2.5, dtype=float32)
    """
    check_nonnegative(strength=strength)
    _, state = find(opt_state)
    fishers = map(importance, jax.tree.leaves(state.fisher))
    params = align("params", parameters(params, opt_state), state.anchor)
    distances = map(distance, params, jax.tree.leaves(state.anchor))

    def of_one_model(fishers, distances, count):
        return capped(value_at(strength, count)) / 2 * _squares(fishers, distances)

    count = scalar(state.count)
    for _ in range(count.ndim):
        of_one_model = jax.vmap(of_one_model)
    return of_one_model(list(fishers), list(distances), count)


def _add(updates, strength, fishers, distances):
    added = []
    for u, f, d in zip(updates, fishers, distances, strict=True):
        update, term = widened(u, strength * jnp.multiply(*widened(f, d)))
        added.append((update + term).astype(u.dtype))
    return added


@differentiated_as(_add)
def _added(updates, strength, fishers, distances):
    # Where a factor is 0 so is the term, even if another of them overflows.
    active = [
        (strength != 0) & (f != 0) & (d != 0) for f, d in zip(fishers, distances, strict=True)
    ]
    distances = [jnp.where(a, d, 0) for a, d in zip(active, distances, strict=True)]
    added = _add(updates, strength, fishers, distances)
    return [jnp.where(a, n, u) for a, n, u in zip(active, added, updates, strict=True)]


def _sum_of_squares(fishers, distances):
    return sum(
        (
            jnp.sum(f * (jnp.real(d) ** 2 + jnp.imag(d) ** 2 if jnp.iscomplexobj(d) else d**2))
            for f, d in zip(fishers, distances, strict=True)
        ),
        start=jnp.zeros([]),
    )


@differentiated_as(_sum_of_squares)
def _squares(fishers, distances):
    distances = [jnp.where(f != 0, d, 0) for f, d in zip(fishers, distances, strict=True)]
    return _sum_of_squares(fishers, distances)
