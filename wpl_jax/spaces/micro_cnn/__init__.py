r"""The micro search space of ENAS: two cells of B nodes, for image classification.

A network is a stem and three stages of N normal cells, with a reduction cell before the second and
the third stage, which have half the resolution and twice the channels of the one before; then
global average pooling and a linear classifier. Every cell reads the outputs of the two before it,
``h_0`` and ``h_1``. Node ``j = 2, 3, …`` of a cell adds two inputs, each one of two choices, an
earlier node and an operation on it:

.. math:: h_j = \text{operation}_a(h_a) + \text{operation}_b(h_b), \qquad a, b < j

The nodes that no other reads are concatenated, passed through a ReLU, and projected to the cell's
channels by weights of each node. A separable convolution is twice (ReLU, depthwise convolution,
1×1 convolution, batch norm), with weights of its own for every layer, node, place in the sum, and
earlier node, as in ENAS; pooling and identity have none.

- ``architecture``: two cells as data, JSON and graphs;
- ``network``: the shared parameters, and the pass that runs the sampled operations alone;
- ``space``: which architectures there are, and what is trained and measured of them.
"""

from wpl_jax.spaces.micro_cnn.architecture import OPERATIONS, Architecture, Cell
from wpl_jax.spaces.micro_cnn.network import Network, Output
from wpl_jax.spaces.micro_cnn.space import MicroCNN

__all__ = ["OPERATIONS", "Architecture", "Cell", "MicroCNN", "Network", "Output"]
