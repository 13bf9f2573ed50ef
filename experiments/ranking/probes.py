"""Random architectures that are measured on the shared weights of a search while it trains."""

from pathlib import Path
from typing import Any

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
        at_once: int | None,
        whole: jax.sharding.NamedSharding,
    ) -> None:
        """``number`` of them, each to be measured on so many validation batches.

        Args:
          space: whose architectures they are.
          number: at least 1.
          batches: the first ones of the validation data.
          at_once: how many are measured at a time (see ``SearchConfig``).
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

    def keep(
        self, folder: Path, epoch: int, measured: Measured, notes: dict[str, Any] | None = None
    ) -> None:
        """Add what was measured after an epoch to the file, atomically.

        What is known of later epochs, which a run that has been resumed comes to again, goes.

        Args:
          folder: where it is.
          epoch: counted from 1.
          measured: as :meth:`measure` gives it.
          notes: those of the run's checkpoints, where all that was measured is kept as well.
        """
        notes = {} if notes is None else notes
        before = notes["probes"] if "probes" in notes else self._of_file(folder)
        values = [np.asarray(part).tolist() for part in (measured.error, measured.loss)]
        number = len(self._names)
        earlier = [row for row in before if row[0] < epoch and len(row[1]) == number]
        notes["probes"] = [*earlier, [epoch, *values]]
        self.write(folder, notes)

    def write(self, folder: Path, notes: dict[str, Any]) -> None:
        """Write the file as the notes have it, if they have anything."""
        if not notes.get("probes"):
            return
        epochs, errors, losses = zip(*notes["probes"], strict=True)
        arrays = {
            "epoch": np.array(epochs),
            "error": np.array(errors, np.float32),
            "loss": np.array(losses, np.float32),
            "seed": np.arange(len(self._names)),
            "architectures": self._names,
        }
        records.write_atomically(folder / FILE, records.npz(arrays))

    def _of_file(self, folder):
        """What the file has of these probes: checkpoints of early versions have no notes."""
        kept = records.read_npz(folder / FILE, dict)
        if kept is None or not np.array_equal(kept["architectures"], self._names):
            return []
        return list(zip(*(kept[name].tolist() for name in ("epoch", "error", "loss")), strict=True))


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
