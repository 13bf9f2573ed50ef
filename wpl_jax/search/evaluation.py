"""Errors of architectures on the shared parameters."""

from collections.abc import Callable

import chex
import jax

from wpl_jax.spaces import Space

__all__ = ["error", "errors", "in_turn", "random_step"]


def error(
    space: Space,
    params: chex.ArrayTree,
    split: chex.ArrayTree,
    steps: jax.Array,
    actions: jax.Array,
) -> jax.Array:
    """The error of one architecture on the batches numbered ``steps``, one after another.

    Args:
      space: whose architectures are measured.
      params: the shared parameters, or the architecture's own rows of them.
      split: data, as the space's ``batch`` takes it.
      steps: int32 [n].
      actions: int32 [decisions].
    """
    architecture = space.decode(actions)

    def score(carry, step):
        batch = space.batch(split, step, None)
        return space.score(params, architecture, batch, carry)[::-1]

    start = space.start(space.batch(split, steps[0], None))
    _, (totals, counts) = jax.lax.scan(score, start, steps)
    return space.error(totals.sum() / counts.sum())


def errors(
    space: Space,
    params: chex.ArrayTree,
    split: chex.ArrayTree,
    steps: jax.Array,
    actions: jax.Array,
    at_once: int,
) -> jax.Array:
    """The errors, float [n], of the architectures of ``actions``, int32 [n, decisions].

    ``at_once`` of them are measured at a time.
    """

    def of_one(actions):
        return error(space, params, split, steps, actions)

    return in_turn(of_one, actions, at_once)


def in_turn(
    of_one: Callable[[jax.Array], chex.ArrayTree], actions: jax.Array, at_once: int
) -> chex.ArrayTree:
    """What ``of_one`` gives for each of ``actions``, int32 [n, decisions], stacked.

    ``at_once`` of them at a time. One at a time is no batch of one: with a batch, a branch becomes
    a selection among all branches, so that every operation of a space would run wherever one does.
    """
    batch_size = min(at_once, len(actions))
    return jax.lax.map(of_one, actions, batch_size=batch_size if batch_size > 1 else None)


def random_step(space: Space, split: chex.ArrayTree, key: jax.Array) -> jax.Array:
    """The number of a batch of a split, drawn uniformly: int32 []."""
    return jax.random.randint(key, (), 0, space.num_batches(split))
