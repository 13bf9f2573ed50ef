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
    """The random architectures of the seeds 0, 1, …

    Measuring takes the parameters as they are and changes nothing. What is measured after epochs is
    kept in probes.npz, of which :func:`read` says what is in it.
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
        self._space, self._batches, self._at_once = space, batches, at_once
        actions = [cells.random_actions(space, seed) for seed in range(number)]
        self._actions = np.stack([np.asarray(a, np.int32) for a in actions])
        self._names = np.array(measuring.names(space, self._actions))
        self._measure = jax.jit(self.of_params, out_shardings=whole)

    def measure(self, params: chex.ArrayTree, validation: chex.ArrayTree) -> Measured:
        """Their errors and losses on the shared parameters, each of shape ``(probes,)``."""
        return jax.device_get(self._measure(params, validation))

    def of_params(self, params: chex.ArrayTree, validation: chex.ArrayTree) -> Measured:
        """The same as a pure function, to be compiled."""
        return measuring.measure(
            self._space, params, validation, self._actions, self._batches, self._at_once
        )

    def keep(self, folder: Path, epoch: int, measured: Measured) -> None:
        """Write what was measured after an epoch to the file, atomically.

        What it has of earlier epochs stays, and of later ones, which a run that has been resumed
        comes to again, goes.
        """
        arrays = {
            "epoch": np.array([epoch]),
            "error": np.asarray(measured.error)[None],
            "loss": np.asarray(measured.loss)[None],
        }
        before = self._kept(folder)
        if before is not None:
            earlier = before["epoch"] < epoch
            arrays = {k: np.concatenate([before[k][earlier], a]) for k, a in arrays.items()}
        of_all = {"seed": np.arange(len(self._names)), "architectures": self._names}
        records.write_atomically(folder / FILE, records.npz(arrays | of_all))

    def _kept(self, folder):
        """What the file has of these probes; None if it has nothing."""
        try:
            kept = read(folder)
        except FileNotFoundError:
            return None
        return kept if np.array_equal(kept["architectures"], self._names) else None


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
