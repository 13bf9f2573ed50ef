r"""The search space of NAS-Bench-201: one cell of six edges, whose accuracies are all published.

A cell has four nodes. Node 0 is its input, node 3 its output, and each node adds up what an
operation makes of every node before it:

.. math:: h_j = \sum_{i < j} \text{operation}_{ij}(h_i), \qquad j = 1, 2, 3

There are five operations: nothing (``none``), the identity (``skip_connect``), convolutions of 1×1
and of 3×3 (each a ReLU, the convolution, batch norm), and the mean over 3×3 pixels. So there are
:math:`5^6 = 15625` architectures, of 6,466 kinds by the benchmark's rule: those of a kind compute
the same up to the names of weights. A network is a stem, three stages of N cells of C, 2C and 4C
channels with a residual block of stride 2 between them, batch norm, global average pooling and a
linear classifier.

- ``architecture``: the cell as data, as published strings, JSON and a graph; which ones are alike;
- ``network``: the shared parameters, and the pass that runs the sampled operations alone;
- ``space``: which architectures there are, and what is trained and measured of them.

References:
  Dong and Yang, `NAS-Bench-201: Extending the Scope of Reproducible Neural Architecture Search
  <https://arxiv.org/abs/2001.00326>`_, 2020
"""

from wpl_jax.spaces.nas_bench_201.architecture import (
    EDGES,
    OPERATIONS,
    Architecture,
    from_string,
    to_string,
)
from wpl_jax.spaces.nas_bench_201.network import Network, Output
from wpl_jax.spaces.nas_bench_201.space import NASBench201

__all__ = [
    "EDGES",
    "OPERATIONS",
    "Architecture",
    "NASBench201",
    "Network",
    "Output",
    "from_string",
    "to_string",
]
