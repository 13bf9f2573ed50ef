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
"""

import dataclasses
import functools
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from wpl_jax.spaces.cross_entropy import linear_cross_entropy

if TYPE_CHECKING:
    import networkx

__all__ = ["ACTIVATIONS", "RNN", "Architecture"]

ACTIVATIONS = ("tanh", "relu", "identity", "sigmoid")
_TANH, _RELU, _IDENTITY, _SIGMOID = range(4)

Params = dict[str, Any]


class Architecture(NamedTuple):
    """A cell, as data."""

    activations: jax.Array  # shape=(nodes,), int32: positions in ACTIVATIONS
    predecessors: jax.Array  # shape=(nodes - 1,), int32: the node that node 1, 2, … reads


@dataclasses.dataclass(frozen=True)
class RNN:
    """The space and the language model around the cell; a :class:`wpl_jax.spaces.Space`.

    The defaults are those of the paper's search (section 4 and what is known of its code). Every
    rate may be 0, at which its regulariser costs nothing.
    """

    vocabulary: int
    """Words that the model knows."""
    nodes: int = 12
    """Nodes of the cell."""
    units: int = 1000
    """Width of the embedding and of the hidden state."""
    batch_norm: bool = True
    """Normalise the output by its mean and variance over the batch, in each time step."""
    input_dropout: float = 0.65
    """Locked dropout of the embedded words: one mask for all time steps."""
    output_dropout: float = 0.4
    """Locked dropout of the output."""
    drop_connect: float = 0.5
    """Dropout of the matrices that read the previous hidden state."""
    embedding_dropout: float = 0.1
    """Dropout of whole words from the input embedding."""
    activation_regularisation: float = 0.0
    """Times the mean square of the (dropped) output, added to the loss."""
    temporal_regularisation: float = 0.0
    """Times the mean square of the change of the output in a time step, added to the loss."""
    max_hidden_norm: float = 25.0
    """What the norm of the hidden state is clipped at."""
    init_scale: float = 0.025
    """Initial weights are uniform between minus and plus this."""
    reward_scale: float = 80.0
    """The reward is this over the perplexity."""

    def __post_init__(self) -> None:
        """Refuse what cannot work."""
        for name in ("vocabulary", "nodes", "units"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("input_dropout", "output_dropout", "drop_connect", "embedding_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must be >= 0 and < 1, got {getattr(self, name)}")
        for name in ("activation_regularisation", "temporal_regularisation"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be finite and >= 0, got {getattr(self, name)}")
        for name in ("max_hidden_norm", "init_scale", "reward_scale"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be finite and > 0, got {getattr(self, name)}")

    @property
    def decisions(self) -> tuple[int, ...]:
        """Choices at each step: node 0's activation, then each node's predecessor, activation."""
        rest = [n for j in range(1, self.nodes) for n in (j, len(ACTIVATIONS))]
        return (len(ACTIVATIONS), *rest)

    def decode(self, actions: jax.Array) -> Architecture:
        """The cell that ``actions``, int32 [decisions], stand for."""
        actions = jnp.asarray(actions, jnp.int32)
        return Architecture(actions[0::2], actions[1::2])

    def init(self, key: jax.Array) -> Params:
        """Shared parameters, of all cells."""
        units, edges = self.units, self.nodes * (self.nodes - 1) // 2
        shapes = {
            "embedding": (self.vocabulary, units),
            "input": (units, 2 * units),
            "recurrent": (units, 2 * units),
            "edges": (edges, units, 2 * units),
        }
        scale = self.init_scale
        params: Params = {
            name: jax.random.uniform(k, shape, minval=-scale, maxval=scale)
            for k, (name, shape) in zip(jax.random.split(key, 4), shapes.items(), strict=True)
        }
        params["decoder_bias"] = jnp.zeros(self.vocabulary)
        if self.batch_norm:
            params["norm"] = {"scale": jnp.ones(units), "bias": jnp.zeros(units)}
        return params

    def mask(self, architecture: Architecture) -> Params:
        """Which shared parameters the cell uses: its own edges, and all that is not an edge."""
        edges = jnp.zeros(self.nodes * (self.nodes - 1) // 2, bool)
        edges = edges.at[_edge_index(architecture)].set(True)
        always = ["embedding", "input", "recurrent", "decoder_bias"]
        always += ["norm"] if self.batch_norm else []
        return {"edges": edges[:, None, None], **dict.fromkeys(always, True)}

    def rows(self, architecture: Architecture) -> Params:
        """Where its own edges are among all; the rest is every cell's."""
        return {name: ... for name in self.mask(architecture)} | {
            "edges": _edge_index(architecture)
        }

    def num_batches(self, split: jax.Array) -> int:
        """How many windows there are in a split."""
        return len(split)

    def batch(
        self, split: jax.Array, step: jax.typing.ArrayLike, key: jax.Array | None = None
    ) -> jax.Array:
        """Window ``step`` of a split, around and around.

        Args:
          split: int [windows, batch, time + 1], as :func:`wpl_jax.data.text.windows` cuts them.
          step: any integer >= 0.
          key: unused; text is read in its order.
        """
        del key
        return split[jnp.asarray(step) % len(split)]

    def start(self, batch: jax.Array) -> jax.Array:
        """The hidden state, zero, before the first of several windows such as ``batch``."""
        return jnp.zeros((len(batch), self.units))

    def loss(
        self,
        params: Params,
        architecture: Architecture,
        batch: jax.Array,
        hidden: jax.Array,
        key: jax.Array | None,
    ) -> tuple[jax.Array, jax.Array]:
        """Training loss: mean cross-entropy with dropout, in nats a token, and regularisers.

        Gradients stop at ``hidden``: backpropagation is truncated at the window's start. Without
        ``key`` nothing is dropped and nothing added: it is the mean negative log-likelihood.

        Returns:
          The loss and the hidden state after the window.
        """
        hidden = jax.lax.stop_gradient(hidden)
        if key is None:
            (total, count), hidden = self.score(params, architecture, batch, hidden)
            return total / count, hidden
        inputs, labels = batch[:, :-1], batch[:, 1:]
        cell_key, out_key = jax.random.split(key)
        output, hidden = self.apply(params, architecture, inputs, hidden, cell_key)
        dropped = output
        if self.output_dropout:
            keep = _keep(out_key, self.output_dropout, (output.shape[0], 1, self.units))
            dropped = output * keep
        loss = self._nll(params, dropped, labels) / labels.size
        if self.activation_regularisation:
            loss += self.activation_regularisation * jnp.mean(dropped**2)
        if self.temporal_regularisation:
            change = output[:, 1:] - output[:, :-1]
            loss += self.temporal_regularisation * jnp.mean(change**2)
        return loss, hidden

    def score(
        self,
        params: Params,
        architecture: Architecture,
        batch: jax.Array,
        hidden: jax.Array,
        weights: jax.Array | None = None,
    ) -> tuple[tuple[jax.Array, jax.Array], jax.Array]:
        """Evaluation, nothing dropped.

        Args:
          params: the shared parameters.
          architecture: the cell.
          batch: int [batch, time + 1].
          hidden: float [batch, units].
          weights: float [batch, time], 0 where a token is padding; all 1 by default.

        Returns:
          The negative log-likelihood, summed, and the number of tokens; and the hidden state after
          the window.
        """
        inputs, labels = batch[:, :-1], batch[:, 1:]
        output, hidden = self.apply(params, architecture, inputs, hidden)
        count = jnp.asarray(labels.size, output.dtype) if weights is None else weights.sum()
        return (self._nll(params, output, labels, weights), count), hidden

    def error(self, mean_score: jax.Array) -> jax.Array:
        """Perplexity, from the negative log-likelihood of a token."""
        return jnp.exp(mean_score)

    def reward(self, error: jax.Array) -> jax.Array:
        """The controller's reward for a perplexity; 0 for one that is not finite."""
        return jnp.where(jnp.isfinite(error), self.reward_scale / error, 0.0)

    def apply(
        self,
        params: Params,
        architecture: Architecture,
        inputs: jax.Array,
        hidden: jax.Array,
        key: jax.Array | None = None,
    ) -> tuple[jax.Array, jax.Array]:
        """The outputs of a cell for a window of words.

        Args:
          params: the shared parameters, of which the sampled edges alone are read.
          architecture: the cell.
          inputs: words, int [batch, time].
          hidden: the hidden state before, float [batch, units].
          key: for dropout; none is dropped without it.

        Returns:
          Outputs, float [batch, time, units], and the hidden state after the last.
        """
        embedded, recurrent = params["embedding"][inputs], params["recurrent"]
        if key is not None:
            word_key, input_key, connect_key = jax.random.split(key, 3)
            if self.embedding_dropout:
                keep = _keep(word_key, self.embedding_dropout, (self.vocabulary, 1))
                embedded *= keep[inputs]
            if self.input_dropout:
                embedded *= _keep(input_key, self.input_dropout, (len(inputs), 1, self.units))
            if self.drop_connect:
                recurrent = recurrent * _keep(connect_key, self.drop_connect, recurrent.shape)
        edges = params["edges"]
        if len(edges) != self.nodes - 1:  # not the cell's own already
            edges = edges[_edge_index(architecture)]
        projected = jnp.swapaxes(embedded, 0, 1) @ params["input"]
        states = _run(self.max_hidden_norm, architecture, recurrent, edges, projected, hidden)
        hidden = states[-1]
        if self.batch_norm:  # over the batch: over time, the future would be seen
            mean, variance = states.mean(1, keepdims=True), states.var(1, keepdims=True)
            states = (states - mean) * jax.lax.rsqrt(variance + 1e-5)
            scale, bias = params["norm"]["scale"], params["norm"]["bias"]
            states = states * scale[None, None] + bias[None, None]
        return jnp.swapaxes(states, 0, 1), hidden

    def _nll(self, params, output, labels, weights=None):
        weights = jnp.ones(labels.shape, output.dtype) if weights is None else weights
        return linear_cross_entropy(
            output.reshape(-1, self.units),
            params["embedding"],
            params["decoder_bias"],
            labels.ravel(),
            weights.ravel(),
        )

    def num_parameters(self, architecture: Architecture) -> int:
        """How many of the shared parameters a cell uses."""
        del architecture  # each uses as many edges
        shapes = jax.eval_shape(self.init, jax.random.key(0))
        edges = shapes.pop("edges")
        shared = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes))
        return shared + (self.nodes - 1) * math.prod(edges.shape[1:])

    def to_json(self, architecture: Architecture) -> dict[str, Any]:
        """The cell in a form to store as JSON and to read."""
        activations = [ACTIVATIONS[a] for a in np.asarray(architecture.activations)]
        nodes: list[dict[str, Any]] = [{"activation": activations[0]}]
        nodes += [
            {"predecessor": int(p), "activation": a}
            for p, a in zip(np.asarray(architecture.predecessors), activations[1:], strict=True)
        ]
        return {"space": "rnn", "nodes": nodes}

    def from_json(self, stored: Any) -> Architecture:
        """The cell that :meth:`to_json` stored.

        Raises:
          ValueError: naming what is wrong with it.
        """
        if not isinstance(stored, Mapping) or stored.get("space") != "rnn":
            space = stored.get("space") if isinstance(stored, Mapping) else stored
            raise ValueError(f'an RNN cell has "space": "rnn", got {space!r}')
        nodes = stored.get("nodes")
        if not isinstance(nodes, list) or len(nodes) != self.nodes:
            count = len(nodes) if isinstance(nodes, list) else repr(nodes)
            raise ValueError(f"the cell must have {self.nodes} nodes, got {count}")
        for j, node in enumerate(nodes):
            wanted = {"activation"} | ({"predecessor"} if j else set())
            if not isinstance(node, Mapping) or set(node) != wanted:
                raise ValueError(f"node {j} must have {' and '.join(sorted(wanted))}, got {node}")
            if node["activation"] not in ACTIVATIONS:
                raise ValueError(
                    f"node {j}'s activation must be one of {', '.join(ACTIVATIONS)}, "
                    f"got {node['activation']!r}"
                )
            if j and (type(node["predecessor"]) is not int or not 0 <= node["predecessor"] < j):
                raise ValueError(
                    f"node {j}'s predecessor must be a node before it, 0 to {j - 1}, "
                    f"got {node['predecessor']!r}"
                )
        return Architecture(
            jnp.array([ACTIVATIONS.index(node["activation"]) for node in nodes], jnp.int32),
            jnp.array([node["predecessor"] for node in nodes[1:]], jnp.int32),
        )

    def graphs(self, architecture: Architecture) -> "dict[str, networkx.DiGraph]":
        """The cell as a graph, for :mod:`wpl_jax.figures.cells`."""
        import networkx

        predecessors = [int(p) for p in architecture.predecessors]
        graph = networkx.DiGraph()
        for label in ("xₜ", "hₜ₋₁"):
            graph.add_node(label, label=label, kind="input")
            graph.add_edge(label, 0)
        for j, number in enumerate(architecture.activations):
            activation = ACTIVATIONS[int(number)]
            graph.add_node(j, label=f"{j}\n{activation}", kind=activation)
        graph.add_node("hₜ", label="hₜ", kind="output")
        graph.add_edges_from((p, j) for j, p in enumerate(predecessors, start=1))
        graph.add_edges_from((j, "hₜ") for j in range(self.nodes) if j not in predecessors)
        return {"cell": graph}


def _edge_index(architecture):
    """Where the edges of a cell are in the shared tensor: edge ``i -> j`` at ``j(j-1)/2 + i``."""
    j = jnp.arange(1, len(architecture.activations))
    return j * (j - 1) // 2 + architecture.predecessors


# --- The cell, over time -------------------------------------------------------------------------


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _run(
    max_norm: float,
    architecture: Architecture,
    recurrent: jax.Array,
    edges: jax.Array,
    projected: jax.Array,
    hidden: jax.Array,
) -> jax.Array:
    """Hidden states of a cell, float [time, batch, units]. Differentiable once.

    In the gradient, that of each kernel is one product over all time steps, and activations are
    differentiated from their values: left to JAX, every time step would add to every kernel's.
    Which node another reads is a select among those before it, which XLA fuses; to index an array
    of nodes would copy it for each.

    Args:
      max_norm: what the norm of a hidden state is clipped at.
      architecture: the cell.
      recurrent: node 0's kernel, float [units, 2 * units].
      edges: those of the other nodes, float [nodes - 1, units, 2 * units].
      projected: what node 0 reads of the words, float [time, batch, 2 * units].
      hidden: the hidden state before, float [batch, units].
    """
    return _forward(max_norm, architecture, recurrent, edges, projected, hidden)[0]


def _forward(max_norm, architecture, recurrent, edges, projected, hidden):
    """The hidden states, and what the gradient is computed from."""
    kernels = [recurrent, *edges]
    kinds, weights = _kinds(architecture, len(recurrent)), _mean_weights(architecture, hidden.dtype)

    def step(hidden, projected):
        nodes: list[jax.Array] = []
        reads, values = [], []
        for j, kernel in enumerate(kernels):
            read = nodes[0] if j else hidden
            for i in range(1, j):
                read = jnp.where(architecture.predecessors[j - 1] == i, nodes[i], read)
            product = read @ kernel
            value = _activate(product if j else product + projected, kinds[j])
            gate, new = jnp.split(value, 2, axis=-1)
            nodes.append(read + gate * (new - read))
            reads.append(read)
            values.append(value)
        mean = sum(weight * node for weight, node in zip(weights, nodes, strict=True))
        hidden = _clip_norm(mean, max_norm)
        return hidden, (hidden, (mean, reads, values))

    _, (states, saved) = jax.lax.scan(step, hidden, projected)
    return states, (architecture, kernels, *saved)


def _backward(max_norm, saved, cotangents):
    architecture, kernels, means, reads, values = saved
    kinds, weights = _kinds(architecture, len(kernels[0])), _mean_weights(architecture, means.dtype)
    transposed = [kernel.T for kernel in kernels]

    def step(cotangent, inputs):
        of_state, mean, reads, values = inputs
        (of_mean,) = jax.vjp(lambda x: _clip_norm(x, max_norm), mean)[1](of_state + cotangent)
        of_reads: dict[int, jax.Array] = {}
        of_products: dict[int, jax.Array] = {}
        for j in reversed(range(len(kernels))):
            of_node = weights[j] * of_mean
            for k in range(j + 1, len(kernels)):
                of_node += jnp.where(architecture.predecessors[k - 1] == j, of_reads[k], 0)
            gate, new = jnp.split(values[j], 2, axis=-1)
            of_value = jnp.concatenate([of_node * (new - reads[j]), of_node * gate], axis=-1)
            of_products[j] = of_value * _slope(values[j], kinds[j])
            of_reads[j] = of_node * (1 - gate) + of_products[j] @ transposed[j]
        return of_reads[0], of_products

    of_hidden, of_products = jax.lax.scan(
        step, jnp.zeros_like(means[0]), (cotangents, means, reads, values), reverse=True
    )
    # Over time and batch without a reshape, which no batch split over devices would survive.
    of_kernels = jnp.stack(
        [jnp.tensordot(read, of_products[j], ((0, 1), (0, 1))) for j, read in enumerate(reads)]
    )
    return None, of_kernels[0], of_kernels[1:], of_products[0], of_hidden


_run.defvjp(_forward, _backward)


def _mean_weights(architecture, dtype):
    """Of the nodes in the next hidden state: the mean of the loose ends."""
    loose = jnp.ones(len(architecture.activations)).at[architecture.predecessors].set(0)
    return (loose / loose.sum()).astype(dtype)


def _kinds(architecture, units):
    """Activations of the columns of each node's product, gates first: [nodes, 1, 2 * units]."""
    kinds = jnp.stack([jnp.full_like(architecture.activations, _SIGMOID), architecture.activations])
    return jnp.repeat(kinds.T[:, None], units, axis=2)


def _activate(x, kinds):
    """ACTIVATIONS by their numbers, which may be traced. A select is cheaper than a branch."""
    scale = jnp.where(kinds == _SIGMOID, 0.5, 1).astype(x.dtype)
    smooth = scale * jnp.tanh(scale * x) + (1 - scale)  # sigmoid(x) = (1 + tanh(x / 2)) / 2
    linear = jnp.where(kinds == _RELU, jax.nn.relu(x), x)
    return jnp.where((kinds == _RELU) | (kinds == _IDENTITY), linear, smooth)


def _slope(y, kinds):
    """The derivative of an activation where its value is ``y``."""
    smooth = jnp.where(kinds == _SIGMOID, y - y * y, 1 - y * y)
    linear = jnp.where((kinds == _RELU) & (y <= 0), 0, 1).astype(y.dtype)
    return jnp.where((kinds == _RELU) | (kinds == _IDENTITY), linear, smooth)


def _clip_norm(x, max_norm):
    square = jnp.sum(x**2, axis=-1, keepdims=True)
    over = square > max_norm**2
    return x * jnp.where(over, max_norm * jax.lax.rsqrt(jnp.where(over, square, 1)), 1)


def _keep(key, rate, shape):
    """A dropout mask: 0 with probability ``rate``, and otherwise so that the mean is 1."""
    return jax.random.bernoulli(key, 1 - rate, shape) / (1 - rate)
