"""Architectures trained before are trained again, beside the one whose turn it is."""

import dataclasses
from typing import Annotated, Any, ClassVar, NamedTuple

import chex
import jax
import jax.numpy as jnp

from wpl_jax.search.methods.plain import Plain
from wpl_jax.search.methods.protocol import Trainee
from wpl_jax.settings import Range, Size, check
from wpl_jax.spaces import Space

__all__ = ["Replay", "ReplayState"]


class ReplayState(NamedTuple):
    """The archive."""

    actions: jax.Array  # shape=(memory, decisions), int32
    seen: jax.Array  # shape=(), int32: architectures that have trained; the first fill it


@dataclasses.dataclass(frozen=True)
class Replay(Plain):
    r"""NSAS: the loss of a few earlier architectures is minimised as well, as a constraint.

    With :math:`b_1, …, b_M` the architectures in an archive, a is trained on

    .. math:: (1 - \beta)\, L(a) + \frac\beta M \sum_m L(b_m),

    all on the same batch, by the weights of a alone: no other weight moves. While the archive is
    empty, the loss is L(a); while it is being filled, the mean is over those in it. Each step has
    M + 1 passes, one after another. Each b begins the batch as it would begin a text, with the
    space's ``start``, and has its own dropout.

    The first M architectures fill the archive. Then, with ``novel``, a newcomer a takes the place
    of the nearest in the archive, :math:`b_k`, if that makes those in it more different,

    .. math:: \sum_{m \ne k} d(a, b_m) > \sum_{m \ne k} d(b_k, b_m),

    where the distance d is the number of decisions that differ. Otherwise the archive is a uniform
    sample of all that have trained: number n comes in with probability M / n, in the place of one
    at random (reservoir sampling).

    Raises:
      ValueError: for a setting that cannot work; the message names it.

    References:
      Zhang et al., `Overcoming Multi-Model Forgetting in One-Shot NAS with Diversity Maximization
      <https://doi.org/10.1109/CVPR42600.2020.00783>`_, CVPR 2020
    """

    whole: ClassVar[bool] = True

    weight: Annotated[float, Range(0, 1)] = 0.5
    """Of the archived architectures in the loss, β."""
    memory: Size = 8
    """Architectures in the archive, M."""
    novel: bool = False
    """Keep architectures that differ, instead of a random sample."""

    def __post_init__(self) -> None:
        """Refuse what cannot work."""
        check(self)

    def init(self, space: Space) -> ReplayState:
        """An empty archive."""
        actions = jnp.zeros((self.memory, len(space.decisions)), jnp.int32)
        return ReplayState(actions, jnp.zeros([], jnp.int32))

    def gradient(
        self,
        space: Space,
        state: ReplayState,
        opt_state: chex.ArrayTree,
        params: chex.ArrayTree,
        architecture: Any,
        batch: chex.ArrayTree,
        carry: chex.ArrayTree,
        key: jax.Array,
    ) -> tuple[tuple[jax.Array, chex.ArrayTree], chex.ArrayTree]:
        """Of the loss of the architecture and of those in the archive."""
        del opt_state
        gradient = jax.value_and_grad(space.loss, has_aux=True)
        (loss, carry), grads = gradient(params, architecture, batch, carry, key)
        filled = jnp.minimum(state.seen, self.memory)
        share = jnp.where(filled > 0, self.weight, 0.0)
        each = share / jnp.maximum(filled, 1)

        def add(total, inputs):
            place, actions = inputs

            def replayed(total):
                theirs = space.decode(actions), batch, space.start(batch)
                (loss, _), grads = gradient(params, *theirs, jax.random.fold_in(key, place))
                return jax.tree.map(lambda t, x: t + each * x, total, (loss, grads))

            return jax.lax.cond(place < filled, replayed, lambda t: t, total), None

        own = jax.tree.map(lambda x: (1 - share) * x, (loss, grads))
        places = jnp.arange(self.memory)
        (loss, grads), _ = jax.lax.scan(add, own, (places, state.actions))
        return (loss, carry), grads

    def after(
        self,
        space: Space,
        state: ReplayState,
        opt_state: chex.ArrayTree,
        params: chex.ArrayTree,
        trainee: Trainee,
        validation: chex.ArrayTree,
        key: jax.Array,
    ) -> tuple[ReplayState, chex.ArrayTree]:
        """The architecture may enter the archive."""
        del space, params, validation
        seen, archive = state.seen, state.actions
        choose = self._of_the_nearest if self.novel else self._at_random
        place = jnp.where(seen < self.memory, seen, choose(state, trainee.actions, key))
        # A place beyond the archive is none: what is put there is dropped.
        archive = archive.at[place].set(trainee.actions, mode="drop")
        return ReplayState(archive, seen + 1), opt_state

    def _at_random(self, state, actions, key):
        """Any of as many places as have trained, most of them beyond the archive."""
        del actions
        return jax.random.randint(key, (), 0, state.seen + 1)

    def _of_the_nearest(self, state, actions, key):
        """That of the nearest, or one beyond the archive."""
        del key

        def distances(actions):
            return jnp.sum(state.actions != actions[None], axis=1)

        new = distances(actions)
        nearest = jnp.argmin(new)
        old = distances(state.actions[nearest])  # of which that to itself is 0
        gains = new.sum() - new[nearest] > old.sum()
        return jnp.where(gains, nearest, self.memory)
