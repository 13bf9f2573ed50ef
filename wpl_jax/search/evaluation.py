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
    at_once: int | None,
) -> jax.Array:
    """The errors, float [n], of the architectures of ``actions``, int32 [n, decisions].

    ``at_once`` of them are measured at a time, as :func:`in_turn` takes it.
    """

    def of_one(actions):
        return error(space, params, split, steps, actions)

    return in_turn(of_one, actions, at_once)


def in_turn(
    of_one: Callable[[jax.Array], chex.ArrayTree], actions: jax.Array, at_once: int | None
) -> chex.ArrayTree:
    """What ``of_one`` gives for each of ``actions``, int32 [n, decisions], stacked.

    ``at_once`` of them at a time. One at a time is no batch of one: with a batch, a branch becomes
    a selection among all branches, so that every operation of a space would run wherever one does.
    That is slower on a CPU, which one architecture keeps busy. A GPU takes much of its time to
    start operations, and starts each once for a batch (``python -m benchmarks.launches`` counts).

    Args:
      of_one: of actions, int32 [decisions].
      actions: of all.
      at_once: how many at a time; None for 1 where JAX computes on a CPU by default, otherwise 10.
    """
    if at_once is None:
        at_once = 1 if jax.default_backend() == "cpu" else 10
    batch_size = min(at_once, len(actions))
    return jax.lax.map(of_one, actions, batch_size=batch_size if batch_size > 1 else None)


def random_step(space: Space, split: chex.ArrayTree, key: jax.Array) -> jax.Array:
    """The number of a batch of a split, drawn uniformly: int32 []."""
    return jax.random.randint(key, (), 0, space.num_batches(split))
