r"""The Weight Plasticity Loss as optax transformations.

When a model that shares weights with an earlier one is trained, the paper (eq. 8) minimises

.. math::
    L_2(\theta) + \frac{\alpha}{2} \lVert\theta\rVert^2
    + \frac{\varepsilon}{2} \sum_i F_i\, (\theta_i - \text{anchor}_i)^2

L₂ is the new model's own loss, ``anchor`` the weights at which the earlier model was left, ``F``
the diagonal of that model's Fisher information there (see :mod:`wpl_jax.fisher`), zero on weights
it does not use, and ε, ``eps``, the strength. The whole equation, term by term::

    tx = optax.chain(
        optax.add_decayed_weights(alpha),  # alpha/2 |theta|^2
        wpl_jax.add_plasticity(eps),  # eps/2 sum F (theta - anchor)^2
        optax.sgd(learning_rate),  # descends the gradient of the sum
    )

Three ways to use the last term, each built on the one before: :func:`add_plasticity` adds its
gradient; :func:`proximal_plasticity` applies it implicitly, after the step, and is stable for any
strength; :func:`weight_plasticity` also computes ``F`` and moves the anchor, in the same update.
:func:`consolidate` moves the anchor by hand, :func:`flush` forgets ``F``, and
:func:`plasticity_loss` is the term itself.

All hold one :class:`PlasticityState`, which the functions find wherever it sits in a composed
optimiser state; :func:`get_plasticity` takes it out, :func:`put_plasticity` puts it into another.

Before the first ``consolidate``, after a ``flush``, where ``F`` is zero, outside the mask, and for
strength 0, the term is not added, not even as 0: operation by operation, a step is bit for bit the
one without plasticity. With a constant strength of 0 the compiled step is too. In the other cases
a jitted step may differ from it in the last bit on a CPU, where XLA contracts products and sums
into one rounding, and which ones depends on the rest of the program.
"""

from wpl_jax.plasticity.additive import add_plasticity, plasticity_loss
from wpl_jax.plasticity.consolidation import consolidate, flush
from wpl_jax.plasticity.proximal import proximal_plasticity
from wpl_jax.plasticity.state import PlasticityState
from wpl_jax.plasticity.training import weight_plasticity
from wpl_jax.plasticity.transfer import get_plasticity, put_plasticity

__all__ = [
    "PlasticityState",
    "add_plasticity",
    "consolidate",
    "flush",
    "get_plasticity",
    "plasticity_loss",
    "proximal_plasticity",
    "put_plasticity",
    "weight_plasticity",
]
