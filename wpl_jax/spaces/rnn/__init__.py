r"""The recurrent search space of ENAS: a highway cell of N nodes, for language modelling.

Node 0 reads the input ``x_t`` and the previous hidden state ``s``, every other node ``j`` one
earlier node ``i``, through weights of that edge. With ``f`` the node's activation and σ the
sigmoid:

.. math::
    \begin{aligned}
    c_0 &= \sigma(x_t W^x_c + s W_c)   & h_0 &= c_0\, f(x_t W^x_h + s W_h) + (1 - c_0)\, s \\
    c_j &= \sigma(h_i W^{ij}_c)        & h_j &= c_j\, f(h_i W^{ij}_h) + (1 - c_j)\, h_i
    \end{aligned}

The mean of the loose ends, nodes that no other reads, is the next hidden state and, after batch
normalisation, the output; the decoder is the embedding. All cells share one tree of parameters, in
which only the edges depend on the cell.

- ``architecture``: a cell as data, JSON and a graph;
- ``recurrence``: a cell over time, and its gradient;
- ``space``: which cells there are, and the language model around them.
"""

from wpl_jax.spaces.rnn.architecture import ACTIVATIONS, Architecture
from wpl_jax.spaces.rnn.space import RNN

__all__ = ["ACTIVATIONS", "RNN", "Architecture"]
