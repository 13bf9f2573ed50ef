"""An LSTM, trained from scratch as cells are: is their training competitive at all?

It is a space of one architecture. With three layers it has about as many parameters as a cell of
twelve nodes, such as the published one of ENAS:

    python -m experiments.train_final --space experiments.spaces.rnn.lstm:LSTMLanguageModelling \
        --preset cpu --architecture random
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import networkx

from experiments.spaces.rnn.settings import FINALS, RNNFinal
from experiments.spaces.rnn.task import LanguageModelling
from wpl_jax.settings import Few, Unfit
from wpl_jax.spaces.precision import rounded
from wpl_jax.spaces.rnn import RNN


@dataclasses.dataclass(frozen=True)
class LSTM(RNN):
    """Layers of an LSTM (Hochreiter and Schmidhuber, 1997) in the place of the cell.

    Dropout is that of the cells: of the words, of the embedding, of the output, and of the matrices
    that read the previous hidden state. Nothing is clipped, whatever ``max_hidden_norm`` is: no
    output is above 1.
    """

    nodes: Few = 3
    """Layers, one above the other."""
    batch_norm: bool = False
    """There is none."""

    def __post_init__(self) -> None:
        """Refuse what cannot work."""
        super().__post_init__()
        if self.batch_norm:
            raise Unfit(self, "batch_norm", "False, as an LSTM has none here")

    decisions = (1,)
    parametric = ((True,),)

    def decode(self, actions: jax.Array) -> jax.Array:
        """The only one."""
        return jnp.asarray(actions, jnp.int32)

    def init(self, key: jax.Array) -> dict[str, Any]:
        """Weights as those of cells; biases of 0."""
        units, layers = self.units, self.nodes
        shapes = {
            "embedding": (self.vocabulary, units),
            "input": (layers, units, 4 * units),
            "recurrent": (layers, units, 4 * units),
        }
        params = {
            name: jax.random.uniform(k, shape, minval=-self.init_scale, maxval=self.init_scale)
            for k, (name, shape) in zip(jax.random.split(key, 3), shapes.items(), strict=True)
        }
        return params | {
            "bias": jnp.zeros((layers, 4 * units)),
            "decoder_bias": jnp.zeros(self.vocabulary),
        }

    def mask(self, architecture: jax.Array) -> dict[str, Any]:
        """All of them."""
        return dict.fromkeys(self._names, True)

    def rows(self, architecture: jax.Array) -> dict[str, Any]:
        """All of them."""
        return dict.fromkeys(self._names, ...)

    _names = ("embedding", "input", "recurrent", "bias", "decoder_bias")

    def start(self, batch: jax.Array) -> jax.Array:
        """The hidden states and the cells' states, zero, of all layers."""
        return jnp.zeros((len(batch), self.nodes, 2, self.units))

    def apply(
        self,
        params: dict[str, Any],
        architecture: jax.Array,
        inputs: jax.Array,
        hidden: jax.Array,
        key: jax.Array | None = None,
    ) -> tuple[jax.Array, jax.Array]:
        """The outputs for a window of words, float [batch, time, units], and the next states."""
        x, recurrent = self._read(params, inputs, key)
        states = []
        for layer in range(self.nodes):
            weights = recurrent[layer].astype(x.dtype)
            bias = params["bias"][layer].astype(x.dtype)

            def step(state, projected, weights=weights):
                h, c = state
                i, f, g, o = jnp.split(projected + h @ weights, 4, axis=-1)
                c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
                h = jax.nn.sigmoid(o) * jnp.tanh(c)
                return (h, c), h

            before = rounded(hidden[:, layer], self.compute_dtype)
            projected = x @ params["input"][layer].astype(x.dtype) + bias[None, None]
            after, x = jax.lax.scan(step, (before[:, 0], before[:, 1]), projected)
            states.append(jnp.stack(after, 1))
        return jnp.swapaxes(x, 0, 1), jnp.stack(states, 1).astype(hidden.dtype)

    def to_json(self, architecture: jax.Array) -> dict[str, Any]:
        """How many layers there are."""
        return {"layers": self.nodes}

    def from_json(self, stored: Any) -> jax.Array:
        """The only one.

        Raises:
          ValueError: for another number of layers, and for anything else.
        """
        if not isinstance(stored, dict) or stored.get("layers") != self.nodes:
            raise ValueError(f"layers must be {self.nodes}, got {stored!r:.80}")
        return jnp.zeros(1, jnp.int32)

    def graphs(self, architecture: jax.Array) -> dict[str, networkx.DiGraph]:
        """The layers in a row."""
        graph = networkx.DiGraph()
        graph.add_node("xₜ", label="xₜ", kind="input")
        for layer in range(self.nodes):
            graph.add_node(layer, label=f"{layer + 1}\nLSTM", kind="LSTM")
        graph.add_node("hₜ", label="hₜ", kind="output")
        networkx.add_path(graph, ["xₜ", *range(self.nodes), "hₜ"])
        return {"layers": graph}


@dataclasses.dataclass(frozen=True)
class LSTMFinal(RNNFinal):
    """Settings; the defaults are those of the preset that --preset names."""

    rnn: LSTM = LSTM(vocabulary=10_000)
    """The LSTM; its vocabulary is the most words that are told apart."""


def _of(preset):
    """The same training, of the LSTM."""
    settings = {f.name: getattr(preset, f.name) for f in dataclasses.fields(preset)}
    sizes = {f.name: getattr(preset.rnn, f.name) for f in dataclasses.fields(preset.rnn)}
    return LSTMFinal(**settings | {"rnn": LSTM(**sizes | {"nodes": LSTM.nodes})})


class LSTMLanguageModelling(LanguageModelling):
    """An LSTM that predicts the next word."""

    name = "lstm"
    searches = {}
    finals = {name: _of(preset) for name, preset in FINALS.items()}
    published = {}

    def cells(self) -> Mapping[str, Path]:
        return {}
