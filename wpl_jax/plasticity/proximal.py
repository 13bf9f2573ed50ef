"""The proximal form: the plasticity term is applied after the step of an optimiser."""

import sys
from typing import Any

import jax
import jax.numpy as jnp
import optax

from wpl_jax.numbers import capped, differentiated_as, widened
from wpl_jax.plasticity.state import ProximalState
from wpl_jax.plasticity.term import (
    ScalarOrSchedule,
    check_nonnegative,
    transformation,
    value_at,
)

__all__ = ["proximal_plasticity"]


def proximal_plasticity(
    strength: ScalarOrSchedule,
    learning_rate: ScalarOrSchedule,
    *,
    fisher_dtype: Any = None,
    anchor_dtype: Any = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Apply the plasticity term after the optimiser's step, stably for every strength.

    This is the proximal form of the term, a proximal step. Put it last in the chain, where the
    updates are the step about to be taken. With θ' the weights after that step and η the learning
    rate, the new weights minimise the plasticity term plus the squared distance to θ':

    .. math::
        \frac{\varepsilon}{2} \sum_i F_i\, (\theta_i - \text{anchor}_i)^2
        + \frac{1}{2 \eta} \lVert\theta - \theta'\rVert^2

    Where the gradient of this sum is zero,

    .. math::
        \theta_i = \frac{\theta'_i + c_i\, \text{anchor}_i}{1 + c_i},
        \qquad c_i = \eta\, \varepsilon\, F_i

    This is a weighted mean of θ' and the anchor, so it never overshoots. The additive form
    (:func:`add_plasticity`) multiplies the distance to the anchor by ``1 - c`` in each step, and
    diverges where ``c > 2``. Without momentum training stands still at the same weights with both
    forms: the stationary points of eq. 8.

    Args:
      strength: eps of eq. 8, a number or scalar array >= 0, or a schedule of the update count.
      learning_rate: the learning rate of the optimiser before it in the chain, a number, a scalar
        array or a schedule. Heavy-ball momentum ``m`` multiplies a steady gradient by
        ``1 / (1 - m)``, and the term is applied after that: pass ``learning_rate / (1 - m)`` for
        the stationary points of eq. 8. (With ``learning_rate`` itself the strength is in effect
        ``1 - m`` times as large.) After a preconditioner such as Adam the term is not
        preconditioned, like the weight decay of AdamW.
      fisher_dtype: as in :func:`add_plasticity`.
      anchor_dtype: as in :func:`add_plasticity`.

    Returns:
      A transformation whose ``update(updates, state, params, mask=None)`` requires ``params``;
      ``mask`` as in :func:`add_plasticity`.

    Raises:
      ValueError: as :func:`add_plasticity`, for either argument. In ``update``, also if the updates
        come out of another proximal term: two in a row would not add up, the last one would win.

    Example:
      >>> import jax.numpy as jnp, optax, wpl_jax
      >>> tx = optax.chain(optax.sgd(0.1), wpl_jax.proximal_plasticity(1e6, learning_rate=0.1))
      >>> params = jnp.array([1.0, 1.0])
      >>> opt_state = wpl_jax.consolidate(tx.init(params), params, fisher=jnp.array([1.0, 0.0]))
      >>> updates, opt_state = tx.update(jnp.array([5.0, 5.0]), opt_state, params)
      >>> print(optax.apply_updates(params, updates).round(4))  # the first is held, the second free
      [1.  0.5]
    """
    check_nonnegative(strength=strength, learning_rate=learning_rate)

    def apply(updates, term, count):
        rate = _product(value_at(learning_rate, count), term.strength)
        return _pulled(updates, rate, term.fishers, term.distances)

    return transformation(ProximalState, strength, apply, fisher_dtype, anchor_dtype)


def _product(a: jax.typing.ArrayLike, b: jax.typing.ArrayLike) -> jax.typing.ArrayLike:
    """Of two numbers, an infinite one as the largest that is finite: 0 times infinity is NaN."""
    if isinstance(a, float) and isinstance(b, float):  # each of them may be beyond float32
        return capped(min(a, sys.float_info.max) * min(b, sys.float_info.max))
    x, y = widened(jnp.asarray(capped(a)), jnp.asarray(capped(b)))
    largest = float(jnp.finfo(x.dtype).max)
    return jnp.minimum(x, largest) * jnp.minimum(y, largest)


def _pull(updates, rate, fishers, distances):
    pulled = []
    for u, f, d in zip(updates, fishers, distances, strict=True):
        # Capped short of overflow, where c / (1 + c) has long been 1.
        largest = jnp.finfo(f.dtype).max / 4
        c = jnp.minimum(jnp.minimum(rate, largest) * f, largest)
        update, kept, taken, d = widened(u, 1 + c, c / (1 + c), d)
        pulled.append((update / kept - taken * d).astype(u.dtype))
    return pulled


@differentiated_as(_pull)
def _pulled(updates, rate, fishers, distances):
    # The compiler knows the first of these where the rate is constant.
    active = [(rate != 0) & (f != 0) for f in fishers]
    distances = [jnp.where(a, d, 0) for a, d in zip(active, distances, strict=True)]
    pulled = _pull(updates, rate, fishers, distances)
    return [jnp.where(a, n, u) for a, n, u in zip(active, pulled, updates, strict=True)]
