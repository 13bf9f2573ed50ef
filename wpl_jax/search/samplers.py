"""Who is trained next: the samplers of a search.

A sampler is a frozen dataclass of settings, and its functions are pure: what it remembers is in the
:class:`~wpl_jax.search.SearchState`. :class:`Reinforced` learns which architectures are good; the
others sample by a rule that never changes.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Annotated, Any, ClassVar, NamedTuple, Protocol

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax

from wpl_jax.search.controller import Controller, reinforce_loss, update_baseline
from wpl_jax.settings import Nonnegative, Positive, Range, Share, Size, check
from wpl_jax.spaces import Space

__all__ = ["Balanced", "Distinct", "Fair", "Reinforced", "ReinforcedState", "Sampler", "Uniform"]

Rewards = Callable[[jax.Array, jax.Array], jax.Array]
"""``rewards(actions, key)``: of architectures, int32 [n, decisions], their rewards, float [n]."""


class Sampler(Protocol):
    """What a search asks of a sampler."""

    needs: ClassVar[tuple[str, ...]]
    """What it reads of a space beside what is asked of every :class:`~wpl_jax.spaces.Space`."""

    def init(self, space: Space, key: jax.Array) -> chex.ArrayTree:
        """What it remembers at the start."""

    def sample(
        self,
        space: Space,
        state: chex.ArrayTree,
        key: jax.Array,
        n: int,
        trained: jax.typing.ArrayLike,
    ) -> jax.Array:
        """Actions of ``n`` architectures, int32 [n, decisions].

        Args:
          space: whose architectures they are.
          state: what the sampler remembers.
          key: of what is drawn now.
          n: how many.
          trained: how many architectures were trained before the first of these.
        """

    def learn(
        self, space: Space, state: chex.ArrayTree, key: jax.Array, rewards: Rewards
    ) -> tuple[chex.ArrayTree, jax.Array, jax.Array]:
        """At the end of an epoch, learn from rewards.

        Returns:
          The new state; and the reward and the entropy in nats of each step, float [steps]. Both
          have length 0 for a sampler that does not learn.
        """


class _Fixed:
    """A sampler that neither remembers nor learns."""

    needs: ClassVar[tuple[str, ...]] = ()

    def init(self, space: Space, key: jax.Array) -> chex.ArrayTree:
        """Nothing."""
        del space, key
        return ()

    def learn(
        self, space: Space, state: chex.ArrayTree, key: jax.Array, rewards: Rewards
    ) -> tuple[chex.ArrayTree, jax.Array, jax.Array]:
        """Nothing is learned."""
        del space, key, rewards
        return state, jnp.zeros(0), jnp.zeros(0)


# --- By rules -------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Uniform(_Fixed):
    """Every choice of every decision with equal probability (random search with weight sharing).

    Example:
      >>> import jax
      >>> from wpl_jax.search import Uniform
      >>> from wpl_jax.spaces.rnn import RNN
      >>> space = RNN(vocabulary=9, nodes=3, units=4)
      >>> Uniform().sample(space, (), jax.random.key(0), n=2, trained=0).shape
      (2, 5)
    """

    def sample(
        self,
        space: Space,
        state: chex.ArrayTree,
        key: jax.Array,
        n: int,
        trained: jax.typing.ArrayLike,
    ) -> jax.Array:
        """Uniformly, whatever was trained before."""
        del state, trained
        decisions = jnp.array(space.decisions)
        return jax.random.randint(key, (n, len(decisions)), 0, decisions[None])


@dataclasses.dataclass(frozen=True)
class Fair(_Fixed):
    """Every choice equally often: FairNAS's strict fairness, as an order of sampling.

    At a decision with k choices, the architectures number ``j k, …, j k + k - 1`` of the run have
    one choice each, in an order that is drawn anew for every ``j`` and for every decision. So after
    any number of architectures, two choices of a decision were sampled equally often, or one of
    them once more. Decisions with different numbers of choices take turns of different lengths. A
    single architecture is uniformly distributed.

    The order is a function of the architecture's number and of a key that is drawn once, at the
    start of the run. So :meth:`~wpl_jax.search.Search.rank` gets the architectures that would be
    trained next, whatever its key. (FairNAS also adds up the gradients of k architectures before
    each update; here each is trained by itself, as with every sampler.)

    Example:
      >>> import jax
      >>> from wpl_jax.search import Fair
      >>> from wpl_jax.spaces.rnn import RNN
      >>> space = RNN(vocabulary=9, nodes=3, units=4)
      >>> sampler = Fair()
      >>> state = sampler.init(space, jax.random.key(0))
      >>> actions = sampler.sample(space, state, jax.random.key(1), n=4, trained=0)
      >>> print(actions[:, 0].sort())  # each of the first decision's four choices once
      [0 1 2 3]

    References:
      Chu et al., `FairNAS: Rethinking Evaluation Fairness of Weight Sharing Neural Architecture
      Search <https://arxiv.org/abs/1907.01845>`_, 2021
    """

    def init(self, space: Space, key: jax.Array) -> chex.ArrayTree:
        """The key of all orders."""
        del space
        return key

    def sample(
        self,
        space: Space,
        state: chex.ArrayTree,
        key: jax.Array,
        n: int,
        trained: jax.typing.ArrayLike,
    ) -> jax.Array:
        """Those whose turn it is."""
        del key
        numbers = trained + jnp.arange(n)

        def choice(choices, decision, number):
            turn, place = jnp.divmod(number, choices)
            turn_key = jax.random.fold_in(jax.random.fold_in(state, decision), turn)
            return jax.random.permutation(turn_key, choices)[place]

        decisions = np.array(space.decisions)
        actions = jnp.zeros((n, len(decisions)), jnp.int32)
        for choices in np.unique(decisions).tolist():
            (alike,) = np.nonzero(decisions == choices)
            of_each = jax.vmap(functools.partial(choice, choices), (0, None))
            chosen = jax.vmap(of_each, (None, 0))(jnp.asarray(alike), numbers)
            actions = actions.at[:, alike].set(chosen.astype(jnp.int32))
        return actions


@dataclasses.dataclass(frozen=True)
class Balanced(_Fixed):
    """Every number of operations with weights equally often.

    First the number m of parametric choices (see :class:`wpl_jax.spaces.ParametricSpace`),
    uniformly among the numbers that occur; then an architecture, uniformly among those with as
    many. (Sampled uniformly, architectures with few such operations, or with many, are rare.)

    It is exact, without a list of the architectures. Let decision i have :math:`p_i` parametric
    choices and :math:`q_i` others, and let :math:`N_i(m)` be in how many ways the decisions from i
    on can have m parametric choices,

    .. math:: N_i(m) = p_i N_{i+1}(m - 1) + q_i N_{i+1}(m).

    With m still to come, decision i is parametric with probability
    :math:`p_i N_{i+1}(m - 1) / N_i(m)`, and then each of its :math:`p_i` choices is equally likely.

    Example:
      >>> import jax
      >>> from wpl_jax.search import Balanced
      >>> from wpl_jax.spaces.nas_bench_201 import NASBench201
      >>> space = NASBench201()  # on each of six edges, two of five operations have weights
      >>> Balanced().sample(space, (), jax.random.key(0), n=2, trained=0).shape
      (2, 6)
    """

    needs: ClassVar[tuple[str, ...]] = ("parametric",)

    def sample(
        self,
        space: Any,
        state: chex.ArrayTree,
        key: jax.Array,
        n: int,
        trained: jax.typing.ArrayLike,
    ) -> jax.Array:
        """Uniformly in number, then uniformly among those of that number."""
        del state, trained
        numbers, probabilities = _parametric_table(space.parametric)
        number_key, flag_key, choice_key = jax.random.split(key, 3)
        number = jnp.asarray(numbers)[jax.random.randint(number_key, (n,), 0, len(numbers))]
        draws = jax.random.uniform(flag_key, (len(probabilities), n))

        def decide(left, inputs):
            probability, draw = inputs
            is_parametric = draw < probability[left]
            return left - is_parametric, is_parametric

        _, flags = jax.lax.scan(decide, number, (jnp.asarray(probabilities, jnp.float32), draws))
        # A decision's choices, the parametric ones last.
        widest = max(map(len, space.parametric))
        orders = [np.argsort(choices, kind="stable") for choices in space.parametric]
        order = np.stack([np.pad(o, (0, widest - len(o))) for o in orders])
        sizes = np.array([len(choices) for choices in space.parametric])[None]
        others = sizes - np.array([sum(choices) for choices in space.parametric])[None]
        low, high = jnp.where(flags.T, others, 0), jnp.where(flags.T, sizes, others)
        place = jax.random.randint(choice_key, low.shape, low, high)
        return jnp.asarray(order, jnp.int32)[jnp.arange(len(order))[None], place]


def _parametric_table(parametric):
    """The numbers that occur, and the probability of a parametric choice, float64 [decisions, m].

    Numbers of architectures overflow integers: there are only their logarithms.
    """
    most = len(parametric)
    log_ways = np.full(most + 2, -np.inf)  # of m = -1, 0, …, most
    log_ways[1] = 0.0
    rows = []
    with np.errstate(divide="ignore"):
        for choices in reversed(parametric):
            with_weights = np.log(sum(choices)) + log_ways[:-1]
            without = np.log(len(choices) - sum(choices)) + log_ways[1:]
            total = np.logaddexp(with_weights, without)
            possible = np.isfinite(total)
            share = np.exp(with_weights - np.where(possible, total, 0.0))
            rows.append(np.where(possible, share, 0.0))
            log_ways = np.concatenate([[-np.inf], total])
    return np.flatnonzero(np.isfinite(log_ways[1:])), np.stack(rows[::-1])


@dataclasses.dataclass(frozen=True)
class Distinct(_Fixed):
    """Every class of architectures that compute the same, with equal probability.

    Several architectures of a space may compute the same: with the operations in another order, or
    with parts that are not used. Uniform sampling trains such a class more often than others. This
    samples one member of each class, those that the space's ``distinct`` lists (see
    :class:`wpl_jax.spaces.DistinctSpace`), and never the others.

    Example:
      >>> import jax
      >>> from wpl_jax.search import Distinct
      >>> from wpl_jax.spaces.nas_bench_201 import NASBench201
      >>> space = NASBench201()
      >>> len(space.every()), len(space.distinct())
      (15625, 6466)
      >>> Distinct().sample(space, (), jax.random.key(0), n=2, trained=0).shape
      (2, 6)
    """

    needs: ClassVar[tuple[str, ...]] = ("distinct",)

    def sample(
        self,
        space: Any,
        state: chex.ArrayTree,
        key: jax.Array,
        n: int,
        trained: jax.typing.ArrayLike,
    ) -> jax.Array:
        """Uniformly from the space's list."""
        del state, trained
        listed = jnp.asarray(space.distinct(), jnp.int32)
        return listed[jax.random.randint(key, (n,), 0, len(listed))]


# --- By rewards -----------------------------------------------------------------------------------


class ReinforcedState(NamedTuple):
    """What the controller knows."""

    params: chex.ArrayTree
    opt_state: chex.ArrayTree
    baseline: jax.Array  # shape=(), float32: of rewards, NaN before the first


@dataclasses.dataclass(frozen=True)
class Reinforced:
    """By a controller that learns from rewards at the end of every epoch, as in ENAS.

    In each of ``steps`` steps the :class:`~wpl_jax.search.controller.Controller` samples
    architectures, which are rewarded on one validation batch. The baseline moves to the mean reward
    (:func:`~wpl_jax.search.controller.update_baseline`), and Adam follows the gradient of REINFORCE
    (:func:`~wpl_jax.search.controller.reinforce_loss`). The defaults are those of the paper's
    search for recurrent cells.

    Raises:
      ValueError: for a setting that cannot work; the message names it.

    Example:
      >>> import jax
      >>> from wpl_jax.search import Reinforced
      >>> from wpl_jax.spaces.rnn import RNN
      >>> space = RNN(vocabulary=9, nodes=3, units=4)
      >>> sampler = Reinforced(steps=10)
      >>> state = sampler.init(space, jax.random.key(0))
      >>> sampler.sample(space, state, jax.random.key(1), n=2, trained=0).shape
      (2, 5)

    References:
      Pham et al., `Efficient Neural Architecture Search via Parameter Sharing
      <https://arxiv.org/abs/1802.03268>`_, 2018
    """

    needs: ClassVar[tuple[str, ...]] = ()

    steps: Size = 2_000
    """Steps of REINFORCE at the end of an epoch."""
    samples: Annotated[int, Range(1, 10_000)] = 1
    """Architectures in each, rewarded on one validation batch drawn for all of them."""
    learning_rate: Positive = 3.5e-4
    """Of Adam."""
    entropy_weight: Nonnegative = 1e-4
    """Times the entropy of the controller's distribution, added to the reward."""
    baseline_decay: Share = 0.95
    """Of the moving average of rewards."""

    def __post_init__(self) -> None:
        """Refuse what cannot work."""
        check(self)

    def init(self, space: Space, key: jax.Array) -> ReinforcedState:
        """A controller that is almost uniform."""
        actions = jnp.zeros((1, len(space.decisions)), jnp.int32)
        params = Controller(space.decisions).init(key, actions, method="log_prob")
        return ReinforcedState(params, self._tx().init(params), jnp.array(jnp.nan, jnp.float32))

    def sample(
        self,
        space: Space,
        state: ReinforcedState,
        key: jax.Array,
        n: int,
        trained: jax.typing.ArrayLike,
    ) -> jax.Array:
        """By the controller."""
        del trained
        sampled: Any = Controller(space.decisions).apply(state.params, key, n, method="sample")
        return sampled.actions

    def learn(
        self, space: Space, state: ReinforcedState, key: jax.Array, rewards: Rewards
    ) -> tuple[ReinforcedState, jax.Array, jax.Array]:
        """So many steps of REINFORCE; the reward of a step is the mean over its samples."""

        def step(state, key):
            state, reward, entropy = self._step(space, state, key, rewards)
            return state, (reward, entropy)

        state, (reward, entropy) = jax.lax.scan(step, state, jax.random.split(key, self.steps))
        return state, reward, entropy

    def _step(self, space, state, key, rewards):
        sample_key, batch_key = jax.random.split(key)
        actions = self.sample(space, state, sample_key, self.samples, 0)
        reward, controller = rewards(actions, batch_key), Controller(space.decisions)

        def loss(params):
            found: Any = controller.apply(params, actions, method="log_prob")
            log_probs, entropies = found
            return reinforce_loss(
                log_probs, entropies, reward, baseline, self.entropy_weight
            ), entropies.mean()

        baseline = update_baseline(state.baseline, reward, self.baseline_decay)
        grads, entropy = jax.grad(loss, has_aux=True)(state.params)
        updates, opt_state = self._tx().update(grads, state.opt_state)
        params = optax.apply_updates(state.params, updates)
        return ReinforcedState(params, opt_state, baseline), reward.mean(), entropy

    def _tx(self):
        return optax.adam(self.learning_rate)
