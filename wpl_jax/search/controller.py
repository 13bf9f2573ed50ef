"""The ENAS controller: an LSTM that samples architectures and learns from their rewards.

All that it knows of a search space is ``decisions``, the number of choices at each step. So it
works with any space. One step of learning, from ``n`` architectures::

    def loss(params):
        log_probs, entropies = controller.apply(params, actions, method="log_prob")
        return reinforce_loss(log_probs, entropies, rewards, baseline)


    actions, _, _ = controller.apply(params, key, n, method="sample")
    rewards = ...  # one for each architecture
    baseline = update_baseline(baseline, rewards)
    updates, opt_state = tx.update(jax.grad(loss)(params), opt_state, params)

Rewards that are not finite are left out: they change neither the controller nor the baseline. To
teach the controller to avoid an architecture that diverged, give it the worst possible reward.
"""

from collections.abc import Callable
from typing import NamedTuple

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

__all__ = ["Controller", "Sample", "reinforce_loss", "update_baseline"]


class Sample(NamedTuple):
    """``n`` sampled architectures, each as the choices that define it."""

    actions: jax.Array  # shape=(n, decisions), int32
    log_probs: jax.Array  # shape=(n,), float32, nats
    entropies: jax.Array  # shape=(n,), float32, nats


class Controller(nn.Module):
    """An LSTM over the decisions of a search space (Pham et al., 2018, section 2).

    At each decision it reads the choice made at the decision before, and gives the logits of the
    choices at this one::

        logits = tanh_constant * tanh(head @ hidden / temperature)

    Two logits thus differ by at most ``2 * tanh_constant``. With the default of 2.5, the likeliest
    of 4 choices has a probability of at most about .98. Each decision has a head of its own and an
    embedding of its own for the choice before it. (ENAS shares them between nodes, and points at a
    predecessor by attention.) All weights start uniformly distributed between -0.1 and 0.1.

    If a decision has fewer choices than others, the missing ones are masked: their probability is
    exactly 0, and no gradient comes from them. A decision with a single choice adds exactly 0 to
    the log-probability and to the entropy. The loop over the decisions is a scan, so that the size
    of the compiled program does not depend on their number.

    Attributes:
      decisions: the number of choices at each decision, as in :class:`wpl_jax.spaces.Space`.
      units: size of the LSTM and of the embeddings.
      temperature: divides the logits inside the tanh.
      tanh_constant: the largest absolute value of a logit.

    Raises:
      ValueError: at construction, if ``decisions`` are empty or contain anything but integers of at
        least 1, or if ``units``, ``temperature`` or ``tanh_constant`` are not positive.

    Example:
      >>> import jax, numpy as np
      >>> from wpl_jax.search.controller import Controller
      >>> controller = Controller(decisions=(4, 1, 3))
      >>> init_key, key = jax.random.split(jax.random.key(0))
      >>> params = controller.init(init_key, key, 1, method="sample")
      >>> actions, log_probs, entropies = controller.apply(params, key, 1000, method="sample")
      >>> print(actions.shape, actions.max(0))
      (1000, 3) [3 0 2]
      >>> print(f"{entropies.mean():.2f} of at most {np.log(4 * 1 * 3):.2f} nats")
      2.48 of at most 2.48 nats

    References:
      Pham et al., `Efficient Neural Architecture Search via Parameter Sharing
      <https://arxiv.org/abs/1802.03268>`_, 2018
    """

    decisions: tuple[int, ...]
    units: int = 100
    temperature: float = 5.0
    tanh_constant: float = 2.5

    def __post_init__(self) -> None:
        """Refuse what cannot work before any tracing."""
        counts = [isinstance(n, int | np.integer) and n >= 1 for n in self.decisions]
        if not counts or not all(counts):
            raise ValueError(
                "decisions must be the numbers of choices, one or more of them and each at least "
                f"1, got {self.decisions}"
            )
        for name in ("units", "temperature", "tanh_constant"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")
        super().__post_init__()

    def setup(self) -> None:
        """Create the weights; heads and embeddings lead with the decisions, for the scan."""
        steps, most = len(self.decisions), max(self.decisions)
        self.cell = nn.OptimizedLSTMCell(
            self.units, kernel_init=_uniform, recurrent_kernel_init=_uniform, bias_init=_uniform
        )
        self.heads = self.param("heads", _uniform, (steps, self.units, most))
        # The choice before the first is 0, whose embedding is thus a learned start of the sequence.
        self.embeddings = self.param("embeddings", _uniform, (steps, most, self.units))

    def sample(self, key: jax.Array, n: int) -> Sample:
        """Sample ``n`` architectures.

        Args:
          key: a typed key.
          n: how many, a Python int.

        Returns:
          A :class:`Sample`. The log-probability of an architecture is the sum over its decisions.
          Its entropy is the sum of the entropies of the decisions, each given the choices before.
          The mean of these sums over samples is an unbiased estimate of the controller's entropy.
        """
        keys = jax.random.split(key, len(self.decisions))
        return self._walk(n, keys, jax.random.categorical)

    def log_prob(self, actions: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Log-probabilities and entropies of given architectures, as :meth:`sample` returns them.

        Args:
          actions: integers of shape ``(n, decisions)``. If one of them is not among the choices of
            its decision, the log-probability of that architecture is ``-inf``.

        Returns:
          Two arrays of shape ``(n,)``.

        Raises:
          ValueError: if the actions have another shape, or are not integers.
        """
        actions, steps = jnp.asarray(actions), len(self.decisions)
        if actions.shape[1:] != (steps,) or not jnp.issubdtype(actions.dtype, jnp.integer):
            raise ValueError(
                f"actions must be integers of shape (n, {steps}), a row for each architecture and "
                f"a column for each decision, got {actions.dtype} of shape {actions.shape}"
            )
        _, log_probs, entropies = self._walk(len(actions), actions.T, lambda action, _: action)
        return log_probs, entropies

    def _walk(self, n: int, given: jax.Array, choose: Callable) -> Sample:
        """Go through the decisions; ``choose(given[step], log_probs)`` says where to."""

        def step(controller, carry, inputs):
            memory, action = carry
            choices, head, embedding, given = inputs
            memory, hidden = controller.cell(memory, embedding[action])
            bounded = jnp.tanh(hidden @ head / controller.temperature)
            valid = jnp.arange(head.shape[-1])[None] < choices
            log_probs = jax.nn.log_softmax(controller.tanh_constant * bounded, where=valid)
            # The inner where keeps 0 * -inf out of the entropy, and out of its gradient.
            entropies = -jnp.sum(jnp.exp(log_probs) * jnp.where(valid, log_probs, 0.0), axis=-1)
            action = choose(given, log_probs).astype(jnp.int32)
            possible = (action >= 0) & (action < choices)
            chosen = jnp.where(possible, log_probs[jnp.arange(n), action], -jnp.inf)
            return (memory, action), Sample(action, chosen, entropies)

        zeros = jnp.zeros((n, self.units), self.heads.dtype)
        start = (zeros, zeros), jnp.zeros(n, jnp.int32)
        inputs = jnp.asarray(self.decisions), self.heads, self.embeddings, given
        scan = nn.scan(step, variable_broadcast="params", split_rngs={"params": False})
        _, (actions, log_probs, entropies) = scan(self, start, inputs)
        return Sample(actions.T, log_probs.sum(0), entropies.sum(0))


def reinforce_loss(
    log_probs: jax.Array,
    entropies: jax.Array,
    rewards: jax.Array,
    baseline: chex.Numeric,
    entropy_weight: chex.Numeric = 1e-4,
) -> jax.Array:
    r"""A loss whose gradient is that of REINFORCE with a baseline and a bonus for entropy.

    .. math:: -\frac1n \sum_i (R_i - b) \log p_i - \beta\, \frac1n \sum_i H_i

    Here R are the ``rewards``, b is the ``baseline``, log p the ``log_probs``, β the
    ``entropy_weight`` and H the ``entropies``. The advantage R - b is not differentiated. The value
    of this loss has no meaning of its own; following its negative gradient raises the expected
    reward. If an advantage is not finite, because the reward is not or because there is no baseline
    yet, it counts as 0.

    Args:
      log_probs: log-probabilities of the sampled architectures, shape ``(n,)``.
      entropies: their entropies, shape ``(n,)``.
      rewards: their rewards, shape ``(n,)``.
      baseline: the reward to expect; see :func:`update_baseline`.
      entropy_weight: 1e-4 in the paper's settings.

    Returns:
      A scalar.

    Raises:
      ValueError: if the three shapes differ.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from wpl_jax.search.controller import reinforce_loss
      >>> rewards = jnp.array([3.0, 1.0, jnp.nan, 2.0])
      >>> grads = jax.grad(reinforce_loss)(jnp.zeros(4), jnp.zeros(4), rewards, baseline=2.0)
      >>> print(-grads)  # descent makes the first more likely, the second less
      [ 0.25 -0.25  0.    0.  ]
    """
    shapes = [np.shape(x) for x in (log_probs, entropies, rewards)]
    if len(set(shapes)) > 1:
        raise ValueError(
            "log_probs, entropies and rewards must have one shape, (n,), got "
            f"{shapes[0]}, {shapes[1]} and {shapes[2]}"
        )
    advantages = jax.lax.stop_gradient(rewards - baseline)
    advantages = jnp.where(jnp.isfinite(advantages), advantages, 0.0)
    return -jnp.mean(log_probs * advantages) - entropy_weight * jnp.mean(entropies)


def update_baseline(
    baseline: chex.Numeric, rewards: jax.Array, decay: chex.Numeric = 0.95
) -> jax.Array:
    """Moving average of the mean reward, ``decay * baseline + (1 - decay) * mean(rewards)``.

    Start from ``jnp.float32(jnp.nan)``, which stands for "no rewards yet". The mean of the first
    rewards becomes the baseline as it is. As in ENAS, update the baseline with the rewards first,
    and subtract the new baseline from them.

    Args:
      baseline: a scalar, NaN before the first rewards.
      rewards: shape ``(n,)`` or a scalar. Rewards that are not finite are left out. If none is
        finite, the baseline stays as it was.
      decay: 0.95 in the paper's settings.

    Returns:
      The new baseline, a scalar.

    Example:
      >>> import jax.numpy as jnp
      >>> from wpl_jax.search.controller import update_baseline
      >>> baseline = jnp.float32(jnp.nan)
      >>> for rewards in ([2.0, 4.0], [jnp.nan, 13.0], [jnp.inf, jnp.nan]):
      ...     baseline = update_baseline(baseline, jnp.array(rewards), decay=0.9)
      ...     print(f"{baseline:.1f}")
      3.0
      4.0
      4.0
    """
    finite = jnp.isfinite(rewards)
    mean = jnp.sum(jnp.where(finite, rewards, 0.0)) / jnp.maximum(jnp.sum(finite), 1)
    moved = jnp.where(jnp.isnan(baseline), mean, decay * baseline + (1 - decay) * mean)
    return jnp.where(jnp.any(finite), moved, baseline)


def _uniform(key, shape, dtype=jnp.float32):
    return jax.random.uniform(key, shape, dtype, -0.1, 0.1)
