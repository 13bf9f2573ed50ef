"""Random architectures that are measured on the shared weights of a search while it trains."""

from pathlib import Path

import chex
import jax
import numpy as np

from experiments.ranking import measuring
from experiments.ranking.measuring import Measured
from experiments.running import records
from experiments.spaces import cells
from wpl_jax.spaces import StoredSpace

FILE = "probes.npz"


class Probes:
    """The random architectures of the seeds 0, 1, …, and what has been measured of them so far.

    That is kept in probes.npz, of which :func:`read` says what is in it. Measuring takes the
    parameters as they are and changes nothing.
    """

    def __init__(
        self,
        space: StoredSpace,
        number: int,
        batches: int,
        at_once: int,
        whole: jax.sharding.NamedSharding,
    ) -> None:
        """``number`` of them, each to be measured on so many validation batches.

        Args:
          space: whose architectures they are.
          number: at least 1.
          batches: the first ones of the validation data.
          at_once: how many are measured at a time.
          whole: where the results are put.
        """
        self.seeds = np.arange(number)
        actions = [cells.random_actions(space, seed) for seed in range(number)]
        self._actions = np.stack([np.asarray(a, np.int32) for a in actions])
        self._names = np.array(measuring.names(space, self._actions))
        self._measured: dict[int, Measured] = {}  # by epoch
        self._measure = jax.jit(
            lambda params, split: measuring.measure(
                space, params, split, self._actions, batches, at_once
            ),
            out_shardings=whole,
        )

    def measure(self, params: chex.ArrayTree, validation: chex.ArrayTree) -> Measured:
        """Their errors and losses on the shared parameters, each of shape ``(probes,)``."""
        return jax.device_get(self._measure(params, validation))

    def resume(self, folder: Path, epochs: int) -> None:
        """Know again what a run that is resumed after so many epochs had kept of these probes."""
        try:
            kept = read(folder)
        except FileNotFoundError:
            return
        if np.array_equal(kept["architectures"], self._names):
            measured = zip(kept["epoch"].tolist(), kept["error"], kept["loss"], strict=True)
            self._measured = {e: Measured(*both) for e, *both in measured if e <= epochs}

    def keep(self, folder: Path, epoch: int, measured: Measured) -> None:
        """Write what was measured after an epoch, and all before, to the file, atomically."""
        self._measured[epoch] = measured
        arrays = {
            "epoch": np.array([*self._measured]),
            "seed": self.seeds,
            "architectures": self._names,
            "error": np.stack([m.error for m in self._measured.values()]),
            "loss": np.stack([m.loss for m in self._measured.values()]),
        }
        records.write_atomically(folder / FILE, records.npz(arrays))


def read(folder: Path) -> dict[str, np.ndarray]:
    """What a search has kept of its probes.

    Returns:
      ``epoch``, int [n], after which they were measured; ``seed`` and ``architectures``, [probes],
      what each is called; ``error`` and ``loss`` (mean cross-entropy in nats), float [n, probes].

    Raises:
      FileNotFoundError: if it has kept nothing.
    """
    with np.load(folder / FILE) as file:
        return dict(file)
