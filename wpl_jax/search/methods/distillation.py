"""Architectures learn from themselves on an average of the shared weights."""

import dataclasses
from typing import Any, ClassVar, NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax

from wpl_jax.plasticity import weight_plasticity
from wpl_jax.plasticity.state import find_one
from wpl_jax.search.methods.plain import Plain
from wpl_jax.settings import Nonnegative, Positive, Share, check

__all__ = ["Distillation"]


class AverageState(NamedTuple):
    """The teacher's weights."""

    average: chex.ArrayTree  # like params


@dataclasses.dataclass(frozen=True)
class Distillation(Plain):
    r"""The teacher of an architecture is itself, on a moving average of the shared weights.

    With p the predictions of the architecture and q those of the same architecture on the average
    weights :math:`\bar\theta`, the loss becomes

    .. math:: L(\theta) + w\, T^2\, \frac1n \sum_x
       \mathrm{KL}\left( q_T(\cdot | x) \,\|\, p_T(\cdot | x) \right),

    where :math:`p_T \propto p^{1 / T}`, and n is the number of examples x that are not padding.
    After each training step, :math:`\bar\theta \gets d \bar\theta + (1 - d) \theta` for the weights
    of the architecture. So what it predicts changes slowly, where with an anchor its weights do.

    Nothing is dropped from the teacher; the student drops the same as in the loss. The teacher
    begins each batch with the student's carry. Each step has two passes more.

    Raises:
      ValueError: for a setting that cannot work; the message names it.

    References:
      Tarvainen and Valpola, `Mean teachers are better role models
      <https://arxiv.org/abs/1703.01780>`_, 2017, for the average;
      Hinton et al., `Distilling the Knowledge in a Neural Network
      <https://arxiv.org/abs/1503.02531>`_, 2015, for the loss
    """

    needs: ClassVar[tuple[str, ...]] = ("log_probs",)

    weight: Nonnegative = 1.0
    """Of the divergence from the teacher in the loss, w."""
    temperature: Positive = 1.0
    """That both predictions are softened by, T."""
    decay: Share = 0.99
    """What is left of the average weights after each training step, d."""

    def __post_init__(self) -> None:
        """Refuse what cannot work."""
        check(self)

    def wrap(
        self, optimizer: optax.GradientTransformation
    ) -> optax.GradientTransformationExtraArgs:
        """The optimiser, and the average of what it trains."""
        return weight_plasticity(optax.chain(optimizer, _averaged(self.decay)), strength=0.0)

    def gradient(
        self,
        space: Any,
        state: chex.ArrayTree,
        opt_state: chex.ArrayTree,
        params: chex.ArrayTree,
        architecture: Any,
        batch: chex.ArrayTree,
        carry: chex.ArrayTree,
        key: jax.Array,
    ) -> tuple[tuple[jax.Array, chex.ArrayTree], chex.ArrayTree]:
        """Of the loss with the divergence from the teacher."""
        del state
        average = find_one(opt_state, AverageState, "average", "Distillation.wrap")[1].average
        log_q, _ = space.log_probs(average, architecture, batch, carry, None)

        def loss(params):
            value, after = space.loss(params, architecture, batch, carry, key)
            log_p, _ = space.log_probs(params, architecture, batch, carry, key)
            divergence = _divergence(log_q, log_p, self.temperature)
            return value + self.weight * self.temperature**2 * divergence, after

        return jax.value_and_grad(loss, has_aux=True)(params)


def _averaged(decay):
    """A transformation that keeps a moving average of the weights; it comes last in a chain."""

    def init(params):
        return AverageState(jax.tree.map(jnp.copy, params))

    def update(updates, state, params=None):
        new = optax.apply_updates(params, updates)
        average = optax.tree.update_moment(new, state.average, decay, 1)
        return updates, AverageState(optax.tree.cast_like(average, state.average))

    return optax.GradientTransformation(init, update)


def _divergence(log_q, log_p, temperature):
    """KL(q ‖ p), softened, in the mean over the examples that are not padding."""
    softened_q, softened_p = (jax.nn.log_softmax(x / temperature) for x in (log_q, log_p))
    # A class without probability adds nothing.
    ratio = jnp.where(softened_q == -jnp.inf, 0.0, softened_q - softened_p)
    each = jnp.sum(jnp.exp(softened_q) * ratio, axis=-1)
    there = jnp.any(log_q != 0, axis=-1)
    return jnp.sum(jnp.where(there, each, 0.0)) / jnp.maximum(there.sum(), 1)
