"""All architectures of a space, measured on the shared parameters of a search."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt

from experiments.running import records
from wpl_jax.search import evaluation
from wpl_jax.spaces import Space, StoredSpace
from wpl_jax.spaces.images import ImageSpace, cross_entropy, misclassified

Floats = npt.NDArray[np.floating]
Measure = Callable[[Any], tuple[jax.Array, jax.Array]]


class Measured(NamedTuple):
    """Of the first architectures of a space."""

    error: Floats  # shape=(n,), float32
    loss: Floats  # shape=(n,), float32: mean cross-entropy in nats
    patterns: Any = np.nan  # float32 [n]: by the ReLUs of the untrained network; the lowest is best


def measure(
    space: Space,
    params: chex.ArrayTree,
    split: chex.ArrayTree,
    actions: jax.Array,
    batches: int,
    at_once: int | None,
    untrained: chex.ArrayTree | None = None,
) -> Measured:
    """The errors and the mean cross-entropies of architectures on the first batches of a split.

    Args:
      space: whose architectures they are.
      params: the shared parameters.
      split: data, as the space's ``batch`` takes it.
      actions: int32 [n, decisions].
      batches: how many; static.
      at_once: how many architectures are measured at a time (see ``SearchConfig``); static.
      untrained: parameters to find activation patterns with, on the first batch; or None for NaN.
    """

    def of_one(actions):
        architecture = space.decode(actions)

        def of_batch(carry, step):
            batch = space.batch(split, step, None)
            if isinstance(space, ImageSpace):  # one pass gives both
                images, labels = batch
                logits = space.apply(params, architecture, images).logits
                (total, count), loss = misclassified(logits, labels), cross_entropy(logits, labels)
            else:
                loss, _ = space.loss(params, architecture, batch, carry, None)
                (total, count), carry = space.score(params, architecture, batch, carry)
            return carry, (total, loss * count, count)

        start = space.start(space.batch(split, 0, None))
        _, sums = jax.lax.scan(of_batch, start, jnp.arange(batches))
        total, loss, count = (x.sum() for x in sums)
        patterns = jnp.float32(jnp.nan)
        if untrained is not None:
            images, _ = space.batch(split, 0, None)
            kernel = space.activation_kernel(untrained, architecture, images)
            patterns = -jnp.linalg.slogdet(kernel).logabsdet
        return Measured(space.error(total / count), loss / count, patterns)

    return evaluation.in_turn(of_one, actions, at_once)


def names(space: StoredSpace, actions: npt.NDArray[np.integer]) -> list[str]:
    """What architectures are called in files: their published string, or else their JSON.

    Args:
      space: whose architectures they are.
      actions: int32 [n, decisions].
    """
    architectures = jax.device_get(jax.vmap(space.decode)(actions))
    stored = (
        space.to_json(jax.tree.map(lambda x, i=i: x[i], architectures)) for i in range(len(actions))
    )
    return [
        s["architecture"] if isinstance(s.get("architecture"), str) else json.dumps(s)
        for s in stored
    ]


def averaged(values: Floats, classes: npt.NDArray[np.integer]) -> Floats:
    """Values, float [n], each the mean of those of its class that are finite."""
    there = np.isfinite(values)
    _, place = np.unique(classes, return_inverse=True)
    total = np.bincount(place, np.where(there, values, 0))
    count = np.bincount(place, there)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)[place]


# --- Files ----------------------------------------------------------------------------------------


def read(path: Path, *accepted: Mapping[str, object]) -> Measured:
    """What a file has of architectures measured with any of these settings; maybe nothing."""

    def of_file(file):
        if str(file["settings"]) in map(json.dumps, accepted):
            return Measured(*(file[field] for field in Measured._fields))
        return None

    found = records.read_npz(path, of_file)
    return found or Measured(*(np.zeros(0, np.float32) for _ in Measured._fields))


def write(path: Path, measured: Measured, settings: Mapping[str, object], **more: Any) -> None:
    """Write a file for :func:`read`, atomically."""
    arrays = measured._asdict() | {"settings": np.array(json.dumps(settings)), **more}
    records.write_atomically(path, records.npz(arrays))
