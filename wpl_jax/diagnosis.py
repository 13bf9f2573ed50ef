"""What the plasticity term is doing in a training loop, and what is wrong where it does nothing."""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax

from wpl_jax.plasticity import (
    ScalarOrSchedule,
    _check_nonnegative,
    _find_state,
    _ProximalState,
    _value,
    plasticity_loss,
)
from wpl_jax.trees import align

__all__ = ["Diagnosis", "diagnose"]

_UNSTABLE = 2.0  # gradient descent multiplies a distance by 1 - c, which beyond here grows
_WEAK = 1e-6  # a million steps to undo a displacement: as good as none


class Diagnosis(NamedTuple):
    """What :func:`diagnose` finds; printed, it is a text with warnings and remedies.

    ``c``, of one weight, is ``learning_rate * strength * F``: the part of its distance to the
    anchor that one step of gradient descent on the plasticity term takes back.

    Attributes:
      consolidations: int32, how often ``consolidate`` has set the anchor; 0: nothing is protected.
      rejected: int32, Fisher entries that were not finite or negative, in all calls together.
      count: int32, updates so far, at which schedules are read.
      implicit: bool, whether the term is applied as a proximal step.
      strength: that of the last update, and before it of the first.
      learning_rate: what it is at this count.
      max_fisher: the largest entry of ``F``.
      stability: the largest ``c``. Plain gradient descent on the additive form diverges above 2,
        heavy-ball momentum ``m`` makes that ``2 (1 + m)``. The implicit form never diverges.
      frozen: the share, from 0 to 1, of the weights under the transformation for which ``c >= 1``:
        a step of the additive form takes back all of a displacement, or overshoots; of the
        implicit form, ``c / (1 + c)`` of it, half or more.
      loss: the plasticity term, ``strength/2 * sum F (params - anchor)**2``.
      gradient_ratio: the norm of its gradient over the norm of the loss's, on the weights under the
        transformation; None without ``grads``.
    """

    consolidations: jax.Array
    rejected: jax.Array
    count: jax.Array  # type: ignore[assignment]
    implicit: jax.Array
    strength: jax.Array
    learning_rate: jax.Array
    max_fisher: jax.Array
    stability: jax.Array
    frozen: jax.Array
    loss: jax.Array
    gradient_ratio: jax.Array | None

    def warnings(self) -> list[str]:
        """What is likely to be a mistake, each with its remedy; outside of ``jit``."""
        if self.consolidations == 0:
            found = [
                "never consolidated, so that nothing is protected: after a model has been trained, "
                "call opt_state = wpl_jax.consolidate(opt_state, params, fisher) and go on with "
                "what it returns (weight_plasticity: update with consolidate=True)"
            ]
        elif self.max_fisher == 0:
            found = [
                "the Fisher is all zero, so that nothing is protected: was it flushed, masked "
                "away, or computed where the model does not depend on these parameters?"
            ]
        elif self.strength == 0:
            found = [f"the strength is 0 after {self.count} updates, so that nothing is protected"]
        elif self.stability > _UNSTABLE and not self.implicit:
            found = [
                f"stability number {self.stability:.3g} > 2: add_plasticity diverges under plain "
                "gradient descent; use proximal_plasticity, which is stable at any strength, or "
                f"strength <= {_UNSTABLE * self.strength / self.stability:.3g}"
            ]
        elif self.learning_rate > 0 and self.stability < _WEAK:
            found = [
                f"the Fisher's largest entry is {self.max_fisher:.3g}, and a step takes back no "
                f"more than {self.stability:.3g} of a displacement: is nll that of one example, a "
                "sum and not a mean over its positions? If so, raise the strength, to at most "
                f"{1 / (self.learning_rate * self.max_fisher):.3g}"
            ]
        else:
            found = []
        if self.rejected > 0:
            found.append(
                f"{self.rejected} Fisher entries were not finite or negative, and count as 0: look "
                "for overflow in nll, or a logarithm of 0"
            )
        return found

    def __str__(self) -> str:
        """The text; inside ``jit``, or of several diagnoses at once, the tuple."""
        if any(isinstance(x, jax.core.Tracer) or jnp.ndim(x) for x in jax.tree.leaves(self)):
            return repr(self)
        lines = [
            f"consolidations: {self.consolidations}, updates: {self.count}",
            f"strength {self.strength:.3g}, learning rate {self.learning_rate:.3g}, "
            f"largest Fisher entry {self.max_fisher:.3g}",
            f"stability number {self.stability:.3g} "
            f"({'implicit form: any' if self.implicit else 'additive form: at most 2'})",
            f"{self.frozen:.1%} of the weights frozen (stability number of their own >= 1)",
            f"plasticity term {self.loss:.3g}",
        ]
        if self.gradient_ratio is not None:
            lines[-1] += f", its gradient {self.gradient_ratio:.3g} times the loss's"
        return "\n".join(lines + [f"warning: {warning}" for warning in self.warnings()])


def diagnose(
    opt_state: chex.ArrayTree,
    params: chex.ArrayTree,
    learning_rate: ScalarOrSchedule,
    grads: chex.ArrayTree | None = None,
) -> Diagnosis:
    """Look at the plasticity term between two steps: does it pull, too weakly, or too strongly?

    Args:
      opt_state: any tree that holds one :class:`wpl_jax.PlasticityState`, as in
        :func:`wpl_jax.consolidate`.
      params: the weights, whole, as in :func:`wpl_jax.consolidate`.
      learning_rate: that of the optimiser, or what the implicit form was given; a schedule is read
        at the state's count. After a preconditioner such as Adam steps are not those of gradient
        descent, and only the implicit form has the numbers ``stability`` and ``frozen``.
      grads: the gradient of the loss alone, a tree like ``params``.

    If it is the Fisher that is in doubt, :func:`wpl_jax.check_fisher` compares it with
    ``vmap(grad)`` on a few examples of your own loss.

    Returns:
      A :class:`Diagnosis`: arrays, so that it can be computed under ``jit``, kept and logged.
      ``print`` it for a text; ``.warnings()`` is what that warns of.

    Raises:
      ValueError: as :func:`wpl_jax.plasticity_loss`, and for ``grads`` unlike ``params``.

    Example:
      >>> import jax.numpy as jnp, optax, wpl_jax
      >>> tx = optax.chain(wpl_jax.add_plasticity(100.0), optax.sgd(0.5))
      >>> params = jnp.array([1.0, 2.0])
      >>> opt_state = wpl_jax.consolidate(tx.init(params), params, jnp.array([0.5, 0.0]))
      >>> print(wpl_jax.diagnose(opt_state, params, learning_rate=0.5))
      consolidations: 1, updates: 0
      strength 100, learning rate 0.5, largest Fisher entry 0.5
      stability number 25 (additive form: at most 2)
      50.0% of the weights frozen (stability number of their own >= 1)
      plasticity term 0
      warning: stability number 25 > 2: add_plasticity diverges under plain gradient descent; use \
proximal_plasticity, which is stable at any strength, or strength <= 8
    """
    _check_nonnegative("learning_rate", learning_rate)
    state = _find_state(opt_state)
    # In an nnx.Optimizer each is a variable.
    consolidations, rejected, count, eps = map(
        _array, (state.consolidations, state.rejected, state.count, state.last_strength)
    )
    loss = plasticity_loss(opt_state, params, eps)
    anchors, fishers = map(jax.tree.leaves, (state.anchor, state.fisher))
    rate = jnp.asarray(_value(learning_rate, count), float)

    total = max(sum(fisher.size for fisher in fishers), 1)
    max_fisher = frozen = jnp.zeros([])
    pulls = []
    for param, anchor, fisher in zip(
        align("params", params, state.anchor), anchors, fishers, strict=True
    ):
        max_fisher = jnp.maximum(max_fisher, jnp.max(fisher, initial=0))
        frozen += jnp.sum(rate * eps * fisher >= 1) / total
        distance = param.astype(fisher.dtype) - anchor.astype(fisher.dtype)
        pulls.append(eps * (fisher * distance))

    ratio = None
    if grads is not None:
        own = optax.tree.norm(optax.tree.cast(align("grads", grads, state.anchor), float))
        pull = optax.tree.norm(pulls)
        ratio = jnp.where(pull == 0, 0, pull / own)

    return Diagnosis(
        consolidations=consolidations,
        rejected=rejected,
        count=count,
        implicit=jnp.array(isinstance(state, _ProximalState)),
        strength=eps,
        learning_rate=rate,
        max_fisher=max_fisher,
        stability=rate * eps * max_fisher,
        frozen=frozen,
        loss=loss,
        gradient_ratio=ratio,
    )


def _array(leaf):
    return jax.tree.leaves(leaf)[0]
