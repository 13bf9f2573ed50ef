"""Momentum apart for architectures of different sizes, and learning rates by complexity."""

import dataclasses
from typing import Annotated, Any, ClassVar, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax

from wpl_jax.plasticity import weight_plasticity
from wpl_jax.plasticity.state import find_one, put
from wpl_jax.plasticity.training import with_extra_args
from wpl_jax.search.methods.plain import Plain
from wpl_jax.search.methods.protocol import Trainee
from wpl_jax.settings import Few, Nonnegative, Range, Unfit, check
from wpl_jax.spaces import Space
from wpl_jax.spaces.parameters import count_parameters

__all__ = ["MomentumGroups"]

_SAMPLES = 1_000  # architectures that the mean complexity is taken over


class GroupsState(NamedTuple):
    """An optimiser's state, and what it remembers of each group."""

    inner: optax.OptState  # with the memory of the group that trains
    memories: tuple[optax.OptState, ...]  # of each group; None for what belongs to no weight
    count: jax.Array  # type: ignore[assignment]  # shape=(), int32: updates so far
    gamma: jax.Array  # shape=(), float32: of the architecture that trains


@dataclasses.dataclass(frozen=True)
class MomentumGroups(Plain):
    r"""Momentum separation, and a complexity-aware learning rate.

    What the optimiser remembers of each weight (momentum, and Adam's second moment) is kept apart
    for each of several groups of architectures, so that gradients of architectures that have little
    in common do not add up in one momentum. Weights stay shared, and so are counters. Groups are
    bins of equal width of the number of parametric choices (see
    :class:`wpl_jax.spaces.ParametricSpace`), from the smallest number that occurs to the largest.
    (The paper groups by the operation of one edge.) A space in which all architectures have as
    many, such as :class:`wpl_jax.spaces.rnn.RNN`, has one group only.

    With ``slope`` the learning rate of training step t is also multiplied by

    .. math:: (1 - t / T)^{\gamma(\alpha) - 1}, \qquad
       \gamma(\alpha) = 1 - s \left( \log C(\alpha) - \overline{\log C} \right),

    where C is the number of parameters of the architecture, and the mean is over 1,000 random ones.
    After an optimiser whose learning rate falls linearly to 0 in T steps, that is the published
    schedule :math:`\eta_0 (1 - t / T)^{\gamma(\alpha)}`, with γ linear in log C: the rate of large
    architectures, which learn slowly, falls late, and that of small ones early. After another
    schedule it is bent in the same way. γ is kept from 0 to 2. Do not use it with a learning rate
    that does not fall to 0: the factor of large architectures grows without bound.

    Raises:
      ValueError: for a setting that cannot work; the message names it.

    References:
      Jeon et al., `Subnet-Aware Dynamic Supernet Training for Neural Architecture Search
      <https://arxiv.org/abs/2503.10740>`_, CVPR 2025
    """

    needs: ClassVar[tuple[str, ...]] = ("parametric",)

    groups: Few = 3
    """Groups of architectures, each with a memory of its own, all of which are kept."""
    slope: Nonnegative = 0.0
    """What gamma loses where an architecture has e times as many parameters, s; 0 for not."""
    steps: Annotated[int, Range(1, 2**31 - 1)] | None = None
    """Training steps of the whole search, T, that the slope needs."""

    def __post_init__(self) -> None:
        """Refuse what cannot work."""
        check(self)
        if self.slope and self.steps is None:
            raise Unfit(self, "steps", f"given with a slope of {self.slope}")

    def wrap(
        self, optimizer: optax.GradientTransformation
    ) -> optax.GradientTransformationExtraArgs:
        """The optimiser with a memory for each group."""
        return weight_plasticity(self._grouped(optimizer), strength=0.0)

    def _grouped(self, optimizer):
        optimizer = with_extra_args("optimizer", optimizer)

        def memory(params):
            return optax.tree.map_params(
                optimizer, jnp.copy, optimizer.init(params), transform_non_params=lambda _: None
            )

        def init(params):
            memories = tuple(memory(params) for _ in range(self.groups))
            count = jnp.zeros([], jnp.int32)
            return GroupsState(optimizer.init(params), memories, count, jnp.ones([]))

        def update(updates, state, params=None, **extra_args):
            updates, inner = optimizer.update(updates, state.inner, params, **extra_args)
            if self.slope and self.steps:
                left = jnp.maximum(1 - state.count / self.steps, 1 / self.steps)
                factor = left ** (state.gamma - 1)
                updates = jax.tree.map(lambda u: (factor * u).astype(u.dtype), updates)
            count = optax.safe_increment(state.count)
            return updates, state._replace(inner=inner, count=count)

        return optax.GradientTransformationExtraArgs(init, update)

    def init(self, space: Space) -> jax.Array:
        """The mean logarithm of the number of parameters, float32; unused without a slope."""
        if not self.slope:
            return jnp.zeros([])
        shape = (_SAMPLES, len(space.decisions))
        actions = jax.random.randint(jax.random.key(0), shape, 0, jnp.array([space.decisions]))
        numbers = jax.lax.map(lambda a: count_parameters(space, space.decode(a)), actions)
        return jnp.log(numbers).mean()

    def before(
        self, space: Space, state: jax.Array, opt_state: chex.ArrayTree, trainee: Trainee
    ) -> chex.ArrayTree:
        """The memory of the architecture's group takes the place of that before."""
        grouped, group = _of(opt_state), self._group(space, trainee.actions)

        def of_group(x, *memories):
            return x if memories[0] is None else jax.lax.select_n(group, *memories)

        gamma = jnp.ones([])
        if self.slope:
            away = jnp.log(count_parameters(space, trainee.architecture)) - state
            gamma = jnp.clip(1 - self.slope * away, 0.0, 2.0)
        inner = jax.tree.map(of_group, grouped.inner, *grouped.memories)
        return put(opt_state, grouped._replace(inner=inner, gamma=gamma), GroupsState)

    def after(
        self,
        space: Space,
        state: jax.Array,
        opt_state: chex.ArrayTree,
        params: chex.ArrayTree,
        trainee: Trainee,
        validation: chex.ArrayTree,
        key: jax.Array,
    ) -> tuple[jax.Array, chex.ArrayTree]:
        """The group keeps what it remembers now."""
        del params, validation, key
        grouped, group = _of(opt_state), self._group(space, trainee.actions)
        memories = tuple(
            jax.tree.map(
                lambda x, old, own=i == group: None if old is None else jnp.where(own, x, old),
                grouped.inner,
                memory,
            )
            for i, memory in enumerate(grouped.memories)
        )
        return state, put(opt_state, grouped._replace(memories=memories), GroupsState)

    def _group(self, space: Any, actions):
        """Which group an architecture is in, int32 []."""
        choices = space.parametric
        widest = max(map(len, choices))
        table = np.array([list(c) + [False] * (widest - len(c)) for c in choices])
        number = jnp.sum(jnp.asarray(table)[jnp.arange(len(table)), actions])
        least, most = sum(map(min, choices)), sum(map(max, choices))
        return (number - least) * self.groups // (most - least + 1)


def _of(opt_state):
    return find_one(opt_state, GroupsState, "groups of memories", "MomentumGroups.wrap")[1]
