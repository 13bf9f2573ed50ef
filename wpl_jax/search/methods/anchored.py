"""Weights that are held where they were left: by their Fisher (WPL), or all alike (L2)."""

import dataclasses
from typing import Any, Literal

import chex
import jax
import optax

from wpl_jax.fisher import squared_batch_gradient
from wpl_jax.plasticity import consolidate, flush, weight_plasticity
from wpl_jax.plasticity.term import check_nonnegative
from wpl_jax.search import evaluation
from wpl_jax.search.methods.plain import Plain
from wpl_jax.search.methods.protocol import Trainee
from wpl_jax.settings import Count, Nonnegative, Share, Unfit, check
from wpl_jax.spaces import Space

__all__ = ["WPL", "L2Anchor"]


@dataclasses.dataclass(frozen=True)
class L2Anchor(Plain):
    r"""An L2 penalty on leaving the place where a weight was left, whatever it matters.

    The loss of an architecture becomes

    .. math:: L(\theta) + \frac\varepsilon2 \|\theta - a\|^2,

    where :math:`a_i` is the value of the weight :math:`\theta_i` when an architecture that uses it
    last finished its training. A weight that no architecture has finished on is free. This is
    :class:`WPL` with a Fisher of 1, for which no gradient is taken: the rival that WPL must beat.

    With ``learning_rate`` the penalty is a step of its own, after that of the optimiser
    (:func:`wpl_jax.proximal_plasticity`).

    Raises:
      ValueError: for a setting that cannot work; the message names it.

    References:
      Li et al., `Explicit Inductive Bias for Transfer Learning with Convolutional Networks
      <https://arxiv.org/abs/1802.01483>`_, 2018 (L2-SP)
    """

    strength: optax.ScalarOrSchedule
    """Of the penalty, ε: a number, or a schedule of training steps; the number 0 does without."""
    learning_rate: optax.ScalarOrSchedule | None = None
    """Where given, the penalty is a proximal step with this learning rate."""
    warmup_epochs: Count = 0
    """Epochs at the start after which nothing is held yet."""
    protect: Literal["edges", "all"] = "edges"
    """The parameters protected: those that only some architectures use, or all."""

    def __post_init__(self) -> None:
        """Refuse what cannot work."""
        check_nonnegative(strength=self.strength)
        check(self)
        if self.protect not in ("edges", "all"):
            raise Unfit(self, "protect", "edges or all")

    def wrap(
        self, optimizer: optax.GradientTransformation
    ) -> optax.GradientTransformationExtraArgs:
        """The optimiser with the penalty."""
        return weight_plasticity(
            optimizer, strength=self.strength, learning_rate=self.learning_rate
        )

    def after(
        self,
        space: Space,
        state: chex.ArrayTree,
        opt_state: chex.ArrayTree,
        params: chex.ArrayTree,
        trainee: Trainee,
        validation: chex.ArrayTree,
        key: jax.Array,
    ) -> tuple[chex.ArrayTree, chex.ArrayTree]:
        """The anchor moves to the weights, and their importance is renewed."""
        if not self._holds():
            return state, opt_state

        def hold(opt_state):
            mask = trainee.mask
            if self.protect == "edges":
                mask = jax.tree.map(lambda m: False if m is True else m, mask)
            importance, decay, max_norm = self._importance(space, params, trainee, validation, key)
            return consolidate(
                opt_state, params, importance, decay=decay, mask=mask, max_norm=max_norm
            )

        due = trainee.epoch >= self.warmup_epochs
        return state, jax.lax.cond(due, hold, lambda s: s, opt_state)

    def _importance(self, space, params, trainee, validation, key) -> tuple[Any, float, Any]:
        """How much each weight matters, what is left of that before, and a bound on its norm."""
        del space, params, trainee, validation, key
        return 1.0, 0.0, None

    def _holds(self):
        return callable(self.strength) or self.strength > 0


@dataclasses.dataclass(frozen=True)
class WPL(L2Anchor):
    r"""The paper's plasticity: weights are held where they were left, by how much they matter.

    The loss of an architecture becomes (section 3.2, eq. 8)

    .. math:: L(\theta) + \frac\varepsilon2 \sum_i F_i (\theta_i - a_i)^2.

    When an architecture has trained, the anchor a of its weights moves to them, and the square of
    the gradient of one validation batch, f, enters their Fisher: :math:`F \gets d F + f`. Before, f
    of each parameter is scaled down to a norm of at most ``fisher_max_norm``. Every ``flush_every``
    epochs after the warm-up, F is set to 0.

    References:
      Benyahia et al., `Overcoming Multi-Model Forgetting <https://arxiv.org/abs/1902.08232>`_, 2019
    """

    warmup_epochs: Count = 5
    """Epochs without plasticity at the start."""
    flush_every: Count = 3
    """Epochs after which the Fisher is set to zero; 0 for never."""
    fisher_decay: Share = 0.1
    """What is left of the Fisher after each architecture, the paper's 1 - eta."""
    fisher_max_norm: Nonnegative | None = 10.0
    """What the norm of each parameter's Fisher is clipped at."""

    def end_epoch(self, opt_state: chex.ArrayTree, epochs: jax.Array) -> chex.ArrayTree:
        """The Fisher is flushed when it is due."""
        if not (self._holds() and self.flush_every):
            return opt_state
        due = (epochs - self.warmup_epochs) % self.flush_every == 0
        return optax.tree.where(due, flush(opt_state), opt_state)

    def _importance(self, space, params, trainee, validation, key) -> tuple[Any, float, Any]:
        def loss(params, batch):
            return space.loss(params, trainee.architecture, batch, space.start(batch), None)[0]

        # One half of the key: another would choose other batches than in published results.
        step = evaluation.random_step(space, validation, jax.random.split(key)[0])
        batch = space.batch(validation, step, None)
        fisher = squared_batch_gradient(loss)(params, jax.tree.map(lambda x: x[None], batch))
        return fisher, self.fisher_decay, self.fisher_max_norm
