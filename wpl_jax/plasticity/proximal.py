"""The plasticity term applied implicitly, after the step of an optimiser."""

from typing import Any

import jax.numpy as jnp
import optax

from wpl_jax.plasticity.state import ProximalState
from wpl_jax.plasticity.term import (
    ScalarOrSchedule,
    capped,
    check_nonnegative,
    differentiated_as,
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
    r"""Apply the plasticity term implicitly: a proximal step, stable for every strength.

    Place it last in the chain, where the updates are the step about to be taken. With θ' the
    weights after that step and η the learning rate, the new weights minimise the plasticity term
    plus the squared distance to θ':

    .. math::
        \frac{\varepsilon}{2} \sum_i F_i\, (\theta_i - \text{anchor}_i)^2
        + \frac{1}{2 \eta} \lVert\theta - \theta'\rVert^2

    Setting the gradient to zero, one equation for each weight, gives

    .. math::
        \theta_i = \frac{\theta'_i + c_i\, \text{anchor}_i}{1 + c_i},
        \qquad c_i = \eta\, \varepsilon\, F_i

    a weighted mean of θ' and the anchor. It never overshoots, whereas the explicit form
    (:func:`add_plasticity`) multiplies the distance to the anchor by ``1 - c`` in each step and
    diverges where ``c > 2``. Without momentum both have the same fixed points, the stationary
    points of eq. 8.

    Args:
      strength: eps of eq. 8, a number or scalar array >= 0, or a schedule of the update count.
      learning_rate: that of the optimiser before it in the chain, in the same forms. Heavy-ball
        momentum ``m`` multiplies a steady gradient by ``1 / (1 - m)``, and the term is applied
        after it: for the fixed points of eq. 8 pass ``learning_rate / (1 - m)``; passing
        ``learning_rate`` means a strength ``1 - m`` times as large. After a preconditioner such as
        Adam the term is decoupled from the preconditioning, like the weight decay of AdamW.
      fisher_dtype: as in :func:`add_plasticity`.
      anchor_dtype: as in :func:`add_plasticity`.

    Returns:
      A transformation whose ``update(updates, state, params, mask=None)`` requires ``params``;
      ``mask`` as in :func:`add_plasticity`.

    Raises:
      ValueError: as :func:`add_plasticity`, for either argument; in ``update``, for updates that
        come out of another proximal term: two of them in a row do not add up, the last one wins.

    Example:
      >>> import jax.numpy as jnp, optax, wpl_jax
      >>> tx = optax.chain(optax.sgd(0.1), wpl_jax.proximal_plasticity(1e6, learning_rate=0.1))
      >>> params = jnp.array([1.0, 1.0])
      >>> opt_state = wpl_jax.consolidate(tx.init(params), params, fisher=jnp.array([1.0, 0.0]))
      >>> updates, opt_state = tx.update(jnp.array([5.0, 5.0]), opt_state, params)
      >>> print(optax.apply_updates(params, updates).round(4))  # held, and free
      [1.  0.5]
    """
    check_nonnegative(strength=strength, learning_rate=learning_rate)

    def apply(updates, term, count):
        rate = capped(value_at(learning_rate, count) * term.strength)
        return _pulled(updates, rate, term.fishers, term.distances)

    return transformation(ProximalState, strength, apply, fisher_dtype, anchor_dtype)


def _pull(updates, rate, fishers, distances):
    pulled = []
    for u, f, d in zip(updates, fishers, distances, strict=True):
        # Capped short of overflow, where c / (1 + c) has long been 1.
        largest = jnp.finfo(f.dtype).max / 4
        c = jnp.minimum(jnp.minimum(rate, largest) * f, largest)
        pulled.append((u / (1 + c) - c / (1 + c) * d).astype(u.dtype))
    return pulled


@differentiated_as(_pull)
def _pulled(updates, rate, fishers, distances):
    # The compiler knows the first of these where the rate is constant.
    active = [(rate != 0) & (f != 0) for f in fishers]
    distances = [jnp.where(a, d, 0) for a, d in zip(active, distances, strict=True)]
    pulled = _pull(updates, rate, fishers, distances)
    return [jnp.where(a, n, u) for a, n, u in zip(active, pulled, updates, strict=True)]
