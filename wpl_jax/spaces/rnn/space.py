"""The space: which cells there are, and the language model that is trained and measured."""

import dataclasses
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from wpl_jax.numbers import wide_dtype, widen
from wpl_jax.settings import Few, Nonnegative, Positive, Share, Size, check
from wpl_jax.spaces import parameters
from wpl_jax.spaces.cross_entropy import linear_cross_entropy
from wpl_jax.spaces.precision import ComputeDtype, rounded
from wpl_jax.spaces.protocol import checked_actions
from wpl_jax.spaces.rnn import architecture as cells
from wpl_jax.spaces.rnn.architecture import ACTIVATIONS, Architecture
from wpl_jax.spaces.rnn.recurrence import run

if TYPE_CHECKING:
    import networkx

Params = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class RNN:
    """The space and the language model around the cell; a :class:`wpl_jax.spaces.Space`.

    The defaults are those of the paper's search (section 4 and what is known of its code). Every
    rate may be 0, at which its regulariser costs nothing.
    """

    vocabulary: Size
    """Words that the model knows."""
    nodes: Few = 12
    """Nodes of the cell."""
    units: Size = 1000
    """Width of the embedding and of the hidden state."""
    batch_norm: bool = True
    """Normalise the output by its mean and variance over the batch, in each time step."""
    input_dropout: Share = 0.65
    """Locked dropout of the embedded words: one mask for all time steps."""
    output_dropout: Share = 0.4
    """Locked dropout of the output."""
    drop_connect: Share = 0.5
    """Dropout of the matrices that read the previous hidden state."""
    embedding_dropout: Share = 0.1
    """Dropout of whole words from the input embedding."""
    activation_regularisation: Nonnegative = 0.0
    """Times the mean square of the (dropped) output, added to the loss."""
    temporal_regularisation: Nonnegative = 0.0
    """Times the mean square of the change of the output in a time step, added to the loss."""
    max_hidden_norm: Positive = 25.0
    """What the norm of the hidden state is clipped at."""
    init_scale: Positive = 0.025
    """Initial weights are uniform between minus and plus this."""
    reward_scale: Positive = 80.0
    """The reward is this over the perplexity."""
    compute_dtype: ComputeDtype = "float32"
    """What words and hidden states are within the model. bfloat16: half the bits, for a GPU or \
TPU; parameters, statistics and the loss stay float32."""

    def __post_init__(self) -> None:
        """Refuse what cannot work."""
        check(self)

    @property
    def decisions(self) -> tuple[int, ...]:
        """Choices at each step: node 0's activation, then each node's predecessor, activation."""
        rest = [n for j in range(1, self.nodes) for n in (j, len(ACTIVATIONS))]
        return (len(ACTIVATIONS), *rest)

    @property
    def parametric(self) -> tuple[tuple[bool, ...], ...]:
        """All choices of a predecessor, no activation: every cell has as many weights."""
        activations = (False,) * len(ACTIVATIONS)
        rest = [c for j in range(1, self.nodes) for c in ((True,) * j, activations)]
        return (activations, *rest)

    def decode(self, actions: jax.Array) -> Architecture:
        """The cell that ``actions``, int32 [decisions], stand for."""
        actions = checked_actions(actions, self.decisions)
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
        edges = edges.at[cells.edge_index(architecture)].set(True)
        always = ["embedding", "input", "recurrent", "decoder_bias"]
        always += ["norm"] if self.batch_norm else []
        return {"edges": edges[:, None, None], **dict.fromkeys(always, True)}

    def rows(self, architecture: Architecture) -> Params:
        """Where its own edges are among all; the rest is every cell's."""
        return {name: ... for name in self.mask(architecture)} | {
            "edges": cells.edge_index(architecture)
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
        labels = batch[:, 1:]
        output, dropped, hidden = self._outputs(params, architecture, batch, hidden, key)
        loss = self._nll(params, dropped, labels) / labels.size
        if self.activation_regularisation:
            loss += self.activation_regularisation * jnp.mean(widen(dropped) ** 2)
        if self.temporal_regularisation:
            change = widen(output[:, 1:]) - output[:, :-1]
            loss += self.temporal_regularisation * jnp.mean(change**2)
        return loss, hidden

    def log_probs(
        self,
        params: Params,
        architecture: Architecture,
        batch: jax.Array,
        hidden: jax.Array,
        key: jax.Array | None,
    ) -> tuple[jax.Array, jax.Array]:
        """Log-probabilities of the words, float [batch * time, vocabulary], and the next state.

        Unlike the loss, this holds all of them at once. Gradients stop at ``hidden``, as there.
        """
        hidden = jax.lax.stop_gradient(hidden)
        _, dropped, hidden = self._outputs(params, architecture, batch, hidden, key)
        outputs = widen(dropped.reshape(-1, self.units))
        logits = outputs @ params["embedding"].T + params["decoder_bias"][None]
        return jax.nn.log_softmax(logits), hidden

    def _outputs(self, params, architecture, batch, hidden, key):
        """The outputs of a window, the same with dropout, and the hidden state after it."""
        inputs = batch[:, :-1]
        cell_key, out_key = (None, None) if key is None else jax.random.split(key)
        output, hidden = self.apply(params, architecture, inputs, hidden, cell_key)
        dropped = output
        if out_key is not None and self.output_dropout:
            keep = _keep(out_key, self.output_dropout, (output.shape[0], 1, self.units))
            dropped = output * keep.astype(output.dtype)
        return output, dropped, hidden

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
        count = jnp.asarray(labels.size, wide_dtype(output)) if weights is None else weights.sum()
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
        embedded, recurrent = self._read(params, inputs, key)
        edges = params["edges"]
        if len(edges) != self.nodes - 1:  # not the cell's own already
            edges = edges[cells.edge_index(architecture)]
        projected = embedded @ params["input"].astype(embedded.dtype)
        start = rounded(hidden, self.compute_dtype)
        states = run(self.max_hidden_norm, architecture, recurrent, edges, projected, start)
        hidden = states[-1].astype(hidden.dtype)
        if self.batch_norm:  # over the batch: over time, the future would be seen
            x = widen(states)
            mean, variance = x.mean(1, keepdims=True), x.var(1, keepdims=True)
            x = (x - mean) * jax.lax.rsqrt(variance + 1e-5)
            scale, bias = params["norm"]["scale"], params["norm"]["bias"]
            states = (x * scale[None, None] + bias[None, None]).astype(states.dtype)
        return jnp.swapaxes(states, 0, 1), hidden

    def _read(self, params, inputs, key):
        """The embedded words, [time, batch, units], and the recurrent matrices, with dropout."""
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
        return rounded(jnp.swapaxes(embedded, 0, 1), self.compute_dtype), recurrent

    def _nll(self, params, output, labels, weights=None):
        weights = jnp.ones(labels.shape, wide_dtype(output)) if weights is None else weights
        return linear_cross_entropy(
            output.reshape(-1, self.units),
            params["embedding"],
            params["decoder_bias"],
            labels.ravel(),
            weights.ravel(),
        )

    # --- What there is to say of a cell ----------------------------------------------------------

    def num_parameters(self, architecture: Architecture) -> int:
        """How many of the shared parameters a cell uses."""
        return parameters.num_parameters(self, architecture)

    def to_json(self, architecture: Architecture) -> dict[str, Any]:
        """The cell in a form to store as JSON and to read."""
        return cells.to_json(architecture)

    def from_json(self, stored: Any) -> Architecture:
        """The cell that :meth:`to_json` stored.

        Raises:
          ValueError: naming what is wrong with it.
        """
        return cells.from_json(stored, self.nodes)

    def graphs(self, architecture: Architecture) -> "dict[str, networkx.DiGraph]":
        """The cell as a graph, for :mod:`wpl_jax.figures.cells`."""
        return {"cell": cells.graph(architecture)}


def _keep(key, rate, shape):
    """A dropout mask: 0 with probability ``rate``, and otherwise so that the mean is 1."""
    return jax.random.bernoulli(key, 1 - rate, shape) / (1 - rate)
