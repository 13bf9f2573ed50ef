"""The space: which architectures there are, and what is trained and measured of them."""

import dataclasses
import functools
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from wpl_jax.spaces import parameters
from wpl_jax.spaces.images import cross_entropy
from wpl_jax.spaces.micro_cnn import architecture as cells
from wpl_jax.spaces.micro_cnn.architecture import OPERATIONS, Architecture, Cell
from wpl_jax.spaces.micro_cnn.network import SEPARABLE, STAGES, Network, Params
from wpl_jax.spaces.protocol import checked_actions

if TYPE_CHECKING:
    import networkx


@dataclasses.dataclass(frozen=True)
class MicroCNN(Network):
    """The space and the network around the cells; a :class:`wpl_jax.spaces.Space`.

    The defaults are those of ENAS's search on CIFAR-10.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from wpl_jax.spaces.micro_cnn import MicroCNN
      >>> space = MicroCNN(classes=3, image_shape=(8, 8, 1), nodes=2, channels=4, cells=1)
      >>> params = space.init(jax.random.key(0))
      >>> actions = jax.random.randint(jax.random.key(1), (16,), 0, jnp.array(space.decisions))
      >>> space.apply(params, space.decode(actions), jnp.ones((5, 8, 8, 1))).logits.shape
      (5, 3)
    """

    # --- Architectures ---------------------------------------------------------------------------

    @property
    def decisions(self) -> tuple[int, ...]:
        """Choices of each node: earlier node and operation, twice; the normal cell's first."""
        cell = [n for j in range(self.nodes) for n in 2 * (j + 2, len(OPERATIONS))]
        return tuple(2 * cell)

    @property
    def parametric(self) -> tuple[tuple[bool, ...], ...]:
        """Of the operations the separable convolutions; which node is read makes no difference."""
        operations = tuple(name in SEPARABLE for name in OPERATIONS)
        cell = [c for j in range(self.nodes) for c in 2 * ((False,) * (j + 2), operations)]
        return tuple(2 * cell)

    def decode(self, actions: jax.Array) -> Architecture:
        """The cells that ``actions``, int32 [decisions], stand for."""
        choices = checked_actions(actions, self.decisions).reshape(2, self.nodes, 2, 2)
        return Architecture(*(Cell(cell[..., 0], cell[..., 1]) for cell in choices))

    def mask(self, architecture: Architecture) -> Params:
        """Which shared parameters it uses: of its cells, those of the edges and the loose ends."""
        shapes = jax.eval_shape(self.init, jax.random.key(0))

        def of_cell(cell):
            edges = jnp.zeros(self.nodes * (self.nodes + 3), jnp.int32)
            edges = edges.at[cells.edge_index(cell)].set(cell.operations.ravel())
            used = {name: edges == OPERATIONS.index(name) for name in SEPARABLE}
            return used | {"project": cells.loose_ends(cell)}

        def of_stage(stage, params):
            used = jax.vmap(of_cell)(self.layers(architecture, stage))
            return {"norm": True} | {
                name: jax.tree.map(functools.partial(_broadcastable, mask), params[name])
                for name, mask in used.items()
            }

        stages = [of_stage(stage, params) for stage, params in enumerate(shapes["stages"])]
        return {name: True for name in shapes} | {"stages": stages}

    def rows(self, architecture: Architecture) -> Params:
        """Where in each layer its own edges are among all; projections are few, and all taken."""

        def of_stage(stage):
            edges = jax.vmap(cells.edge_index)(self.layers(architecture, stage))
            return {"norm": ..., "project": ..., **dict.fromkeys(SEPARABLE, edges)}

        names = jax.eval_shape(self.init, jax.random.key(0))
        return {name: ... for name in names} | {"stages": [*map(of_stage, range(STAGES))]}

    def num_parameters(self, architecture: Architecture) -> int:
        """How many of the shared parameters it uses."""
        return parameters.num_parameters(self, architecture)

    def to_json(self, architecture: Architecture) -> dict[str, Any]:
        """The cells in a form to store as JSON and to read."""
        return cells.to_json(architecture)

    def from_json(self, stored: Any) -> Architecture:
        """The architecture that :meth:`to_json` stored.

        Raises:
          ValueError: naming what is wrong with it.
        """
        return cells.from_json(stored, self.nodes)

    def graphs(self, architecture: Architecture) -> "dict[str, networkx.DiGraph]":
        """Both cells as graphs, for :mod:`wpl_jax.figures.cells`."""
        return {f"{name} cell": cells.graph(cell) for name, cell in architecture._asdict().items()}

    # --- Training ---------------------------------------------------------------------------------

    def loss(
        self,
        params: Params,
        architecture: Architecture,
        batch: tuple[jax.Array, jax.Array],
        carry: tuple[()] = (),
        key: jax.Array | None = None,
    ) -> tuple[jax.Array, tuple[()]]:
        """Mean cross-entropy in nats an image; with a key, drop-path and the auxiliary head's."""
        images, labels = batch
        output = self.apply(params, architecture, images, key=key)
        loss = cross_entropy(output.logits, labels)
        if key is not None and output.auxiliary is not None:
            loss += self.auxiliary * cross_entropy(output.auxiliary, labels)
        return loss, carry


def _broadcastable(mask, param):
    """A mask over the first two axes of a parameter."""
    return jnp.reshape(mask, (*mask.shape, *[1] * (param.ndim - 2)))
