"""Data parallelism: run a search on many devices, of one process or of many.

The step of a :class:`wpl_jax.search.Search` is the same code on one device and on many. Put the
data on the devices with :func:`split_batches`, so that each device holds a part of every batch, and
the state with :func:`everywhere`, so that each device holds all of it. JAX and XLA then divide the
computation. Results differ from those of one device only by rounding.

To use several processes, on one machine or on many, run the same script in each and call
``jax.distributed.initialize`` first. ``jax.devices()`` then lists the devices of all processes.
"""

from collections.abc import Sequence

import chex
import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

__all__ = ["everywhere", "split_batches"]


def everywhere(devices: Sequence[jax.Device] | None = None) -> NamedSharding:
    """The sharding for a search's state and reports: a whole copy on each device.

    Args:
      devices: which devices; by default those of all processes.

    Example:
      >>> import jax, numpy as np, optax
      >>> from wpl_jax.search.parallel import everywhere, split_batches
      >>> from wpl_jax.search import Data, Search, SearchConfig
      >>> from wpl_jax.spaces.rnn import RNN
      >>> search = Search(RNN(vocabulary=9, nodes=3, units=4), SearchConfig(), optax.sgd(1.0))
      >>> text = np.zeros((5, 64, 4), np.int32)  # windows, batch, time + 1
      >>> data = split_batches(Data(train=text, validation=text))
      >>> state = jax.jit(search.init, out_shardings=everywhere())(jax.random.key(0))
      >>> state.key.sharding == everywhere()
      True
      >>> step = jax.jit(search.step, donate_argnums=0, out_shardings=everywhere())
    """
    return NamedSharding(_mesh(devices), PartitionSpec())


def split_batches(
    data: chex.ArrayTree, devices: Sequence[jax.Device] | None = None
) -> chex.ArrayTree:
    """Put data on the devices, an equal part of each batch on each of them.

    Args:
      data: arrays of shape ``(batches, batch, ...)``, such as the splits of
        :class:`wpl_jax.search.Data`. Each process passes all of the data; only the parts for its
        own devices are put there.
      devices: which devices; by default those of all processes.

    Raises:
      ValueError: if a batch cannot be divided by the number of devices.

    Example:
      >>> import jax, numpy as np
      >>> from wpl_jax.search.parallel import split_batches
      >>> images = split_batches(np.zeros((10, 8, 28, 28)), jax.devices()[:1])
      >>> images.sharding.shard_shape(images.shape)
      (10, 8, 28, 28)
    """
    mesh = _mesh(devices)
    sharding = NamedSharding(mesh, PartitionSpec(None, mesh.axis_names[0]))

    def split(x):
        x = np.asarray(x)
        if x.ndim < 2:
            raise ValueError(f"data must have axes [batches, batch, ...], got shape {x.shape}")
        if x.shape[1] % mesh.size:
            raise ValueError(
                f"a batch of {x.shape[1]} cannot be split over {mesh.size} devices; choose a "
                f"multiple of {mesh.size}, or fewer devices"
            )
        return jax.make_array_from_callback(x.shape, sharding, lambda index: x[index])

    return jax.tree.map(split, data)


def _mesh(devices):
    return Mesh(np.asarray(jax.devices() if devices is None else devices), ("data",))
