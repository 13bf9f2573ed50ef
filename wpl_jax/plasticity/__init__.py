r"""The Weight Plasticity Loss as optax transformations.

When a model that shares weights with an earlier one is trained, the paper (eq. 8) minimises

.. math::
    L_2(\theta) + \frac{\alpha}{2} \lVert\theta\rVert^2
    + \frac{\varepsilon}{2} \sum_i F_i\, (\theta_i - \text{anchor}_i)^2

Here L₂ is the new model's own loss, and ``anchor`` are the weights at which the earlier model was
left. ``F`` is the diagonal of that model's Fisher information there (see :mod:`wpl_jax.fisher`); it
is zero on weights which that model does not use. ε, ``eps`` in code, is the strength. The whole
equation, term by term::

    tx = optax.chain(
        optax.add_decayed_weights(alpha),  # alpha/2 |theta|^2
        wpl_jax.add_plasticity(eps),  # eps/2 sum F (theta - anchor)^2
        optax.sgd(learning_rate),  # descends the gradient of the sum
    )

There are three transformations for the last term:

* :func:`add_plasticity`, the additive form, adds the gradient of the term to the loss's gradient.
* :func:`proximal_plasticity`, the proximal form, applies the term after the optimiser's step. It is
  stable for any strength.
* :func:`weight_plasticity` wraps an optimiser with either form. Its ``update`` also computes ``F``
  and moves the anchor.

With the first two, call :func:`consolidate` to set the anchor and ``F``. :func:`flush` sets ``F``
back to zero, and :func:`plasticity_loss` is the value of the term.

Each transformation keeps one :class:`PlasticityState`. These functions find it wherever it sits in
an optimiser's state. :func:`get_plasticity` takes it out, and :func:`put_plasticity` puts it into
the state of another optimiser.

A step does not change at all where the term is zero: before the first ``consolidate``, after a
``flush``, where ``F`` is zero, outside the mask, and for strength 0. The updates are then those of
the optimiser without plasticity, bit for bit. Under ``jit`` on a CPU the last bit may still differ,
because the compiler (XLA) merges operations and rounds differently when the program around them
changes. With a strength that is the constant 0 it does not.
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
