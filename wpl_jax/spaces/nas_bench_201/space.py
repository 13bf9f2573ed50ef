"""The space: which architectures there are, and what is trained and measured of them."""

import dataclasses
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt

from wpl_jax.spaces import parameters
from wpl_jax.spaces.nas_bench_201 import architecture as cells
from wpl_jax.spaces.nas_bench_201.architecture import EDGES, OPERATIONS, Architecture
from wpl_jax.spaces.nas_bench_201.network import CONVOLUTIONS, Network, Params
from wpl_jax.spaces.protocol import checked_actions

if TYPE_CHECKING:
    import networkx


@dataclasses.dataclass(frozen=True)
class NASBench201(Network):
    """The space and the network around the cells; a :class:`wpl_jax.spaces.Space`.

    The defaults are those of the benchmark on CIFAR-10, but for batch norm in cells, which has no
    scale and bias in searches (``affine=True`` is what the benchmark trains from scratch).

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from wpl_jax.spaces.nas_bench_201 import NASBench201, from_string
      >>> space = NASBench201(affine=True)
      >>> none, skip = "|none~0|+|none~0|none~1|", "|skip_connect~0|none~1|none~2|"
      >>> print(f"{space.num_parameters(from_string(none + '+' + skip)):,}")  # as published
      73,306
      >>> small = NASBench201(classes=3, image_shape=(8, 8, 1), channels=4, cells=1)
      >>> architecture = small.decode(jnp.array([3, 0, 1, 2, 4, 1]))
      >>> params = small.init(jax.random.key(0))
      >>> small.apply(params, architecture, jnp.ones((5, 8, 8, 1))).logits.shape
      (5, 3)
    """

    @property
    def decisions(self) -> tuple[int, ...]:
        """The choice of an operation for each edge."""
        return (len(OPERATIONS),) * len(EDGES)

    @property
    def parametric(self) -> tuple[tuple[bool, ...], ...]:
        """Of the operations the convolutions."""
        return (tuple(name in CONVOLUTIONS for name in OPERATIONS),) * len(EDGES)

    def decode(self, actions: jax.Array) -> Architecture:
        """The cell that ``actions``, int32 [6], stand for."""
        return Architecture(checked_actions(actions, self.decisions))

    def every(self) -> npt.NDArray[np.int32]:
        """All architectures, int32 [15625, 6]."""
        return cells.every()

    def classes_of_isomorphism(self) -> npt.NDArray[np.int32]:
        """For each of them the number of the first of its kind, int32 [15625]."""
        return cells.classes()

    def distinct(self) -> npt.NDArray[np.int32]:
        """The first architecture of each kind, int32 [6466, 6]."""
        return cells.distinct()

    def mask(self, architecture: Architecture) -> Params:
        """Which shared parameters it uses: of its cells, those of the sampled operations."""
        shapes = jax.eval_shape(self.init, jax.random.key(0))

        def used(name, shape):
            mask = architecture.operations == OPERATIONS.index(name)
            return jnp.reshape(mask, (1, -1, *[1] * (shape.ndim - 2)))

        stages = [
            {
                name: jax.tree.map(lambda shape, name=name: used(name, shape), stage[name])
                for name in CONVOLUTIONS
            }
            for stage in shapes["stages"]
        ]
        return {name: True for name in shapes} | {"stages": stages}

    def rows(self, architecture: Architecture) -> Params:
        """All: which edges convolve differs in number between architectures."""
        del architecture
        return {name: ... for name in jax.eval_shape(self.init, jax.random.key(0))}

    def num_parameters(self, architecture: Architecture) -> int:
        """How many of the shared parameters it uses."""
        return parameters.num_parameters(self, architecture)

    def from_string(self, string: str) -> Architecture:
        """The architecture of a published string.

        Raises:
          ValueError: naming what is wrong with it.
        """
        return cells.from_string(string)

    def to_json(self, architecture: Architecture) -> dict[str, Any]:
        """The cell in a form to store as JSON and to read."""
        return cells.to_json(architecture)

    def from_json(self, stored: Any) -> Architecture:
        """The architecture that :meth:`to_json` stored.

        Raises:
          ValueError: naming what is wrong with it.
        """
        return cells.from_json(stored)

    def graphs(self, architecture: Architecture) -> "dict[str, networkx.DiGraph]":
        """The cell as a graph, for :mod:`wpl_jax.figures.cells`."""
        return {"cell": cells.graph(architecture)}
