"""What a search reads, knows and reports."""

from typing import NamedTuple

import chex
import jax

__all__ = ["Data", "Epoch", "Progress", "SearchState"]


class Data(NamedTuple):
    """What a search reads, on the device, in the form that the space's ``batch`` takes."""

    train: chex.ArrayTree
    validation: chex.ArrayTree


class SearchState(NamedTuple):
    """All that a search knows; saved and restored, it goes on bit for bit."""

    params: chex.ArrayTree
    opt_state: chex.ArrayTree
    sampler: chex.ArrayTree  # what the sampler remembers
    method: chex.ArrayTree  # what the method remembers, beside what is in opt_state
    key: jax.Array  # shape=(), a typed key
    trained: jax.Array  # shape=(), int32: architectures, since the start
    skipped: jax.Array  # shape=(), int32: training steps whose loss or gradient was not finite
    streak: jax.Array  # shape=(), int32: how many of the last steps were, in a row
    actions: jax.Array  # shape=(architectures, decisions), int32: this epoch's
    err1: jax.Array  # shape=(measured,), float32
    loss: jax.Array  # shape=(architectures,), float32: mean over an architecture's batches


class Epoch(NamedTuple):
    """What an epoch came to."""

    actions: jax.Array  # shape=(architectures, decisions), int32
    loss: jax.Array  # shape=(architectures,), float32: mean training loss
    err1: jax.Array  # shape=(measured,), float32: validation error after its own training
    err2: jax.Array  # shape=(measured,), float32: validation error at the end of the epoch
    reward: jax.Array  # shape=(steps,), float32: the sampler's, of each step of its learning
    entropy: jax.Array  # shape=(steps,), float32, nats


class Progress(NamedTuple):
    """What one call of :meth:`Search.step` reports."""

    loss: jax.Array  # shape=(chunk,), float32
    err1: jax.Array  # shape=(chunk,), float32: of the last that was measured, after each
    finished: jax.Array  # shape=(), bool: whether the call finished an epoch
    epoch: Epoch  # zeros if it did not
