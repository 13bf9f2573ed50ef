"""The LSTM that final trainings of cells are compared with."""

import json

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import train_final
from experiments.spaces.rnn.lstm import LSTM, LSTMLanguageModelling
from wpl_jax.spaces import check
from wpl_jax.spaces.rnn import RNN

NOTHING_DROPPED = dict.fromkeys(
    ["input_dropout", "output_dropout", "drop_connect", "embedding_dropout"], 0.0
)
SPACE = LSTM(vocabulary=11, nodes=2, units=6, init_scale=0.5, **NOTHING_DROPPED)
ONLY = SPACE.decode([0])


class Stack(nn.Module):
    """The same by Flax."""

    @nn.compact
    def __call__(self, x, states):
        after = []
        for layer in range(SPACE.nodes):
            cell = nn.RNN(nn.OptimizedLSTMCell(SPACE.units), return_carry=True)
            # Flax has the cell's state first.
            (c, h), x = cell(x, initial_carry=(states[:, layer, 1], states[:, layer, 0]))
            after.append(jnp.stack([h, c], 1))
        return x, jnp.stack(after, 1)


def of_flax(params):
    """Our weights under Flax's names."""
    layers = {}
    for layer in range(SPACE.nodes):
        parts = [jnp.split(params[n][layer], 4, axis=-1) for n in ("input", "recurrent", "bias")]
        cell = {}
        for gate, x, h, bias in zip("ifgo", *parts, strict=True):
            cell |= {f"i{gate}": {"kernel": x}, f"h{gate}": {"kernel": h, "bias": bias}}
        layers[f"OptimizedLSTMCell_{layer}"] = cell
    return {"params": layers}


def test_it_is_the_lstm_of_flax():
    keys = jax.random.split(jax.random.key(0), 3)

    @jax.jit
    def both():
        params = SPACE.init(keys[0])
        params["bias"] = jax.random.normal(keys[1], params["bias"].shape)
        tokens = jax.random.randint(keys[2], (3, 5), 0, SPACE.vocabulary)
        states = jax.random.normal(keys[2], SPACE.start(tokens).shape)
        ours = SPACE.apply(params, ONLY, tokens, states)
        return ours, Stack().apply(of_flax(params), params["embedding"][tokens], states)

    ours, theirs = both()
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), ours, theirs)


def test_it_is_a_space_and_drops_what_it_should():
    batch = np.arange(12).reshape(2, 6) % SPACE.vocabulary
    check(SPACE, jnp.asarray(batch)[None])
    dropping = LSTM(vocabulary=11, nodes=2, units=6, init_scale=0.5)
    params, start = jax.jit(dropping.init)(jax.random.key(0)), SPACE.start(batch)
    losses = {
        float(loss(params, ONLY, batch, start, key)[0])
        for loss in (jax.jit(SPACE.loss), jax.jit(dropping.loss))
        for key in (None, *jax.random.split(jax.random.key(1)))
    }
    assert len(losses) == 3  # nothing dropped, and two ways to drop


def test_three_layers_are_about_as_large_as_the_cell_of_enas():
    paper = LSTMLanguageModelling.finals["paper"].rnn
    cell = RNN(vocabulary=10_000, batch_norm=False)
    ours = paper.num_parameters(ONLY)
    theirs = cell.num_parameters(cell.decode([0] * len(cell.decisions)))
    assert 0.9 < ours / theirs < 1


def test_what_cannot_be_is_refused():
    with pytest.raises(ValueError, match="batch_norm"):
        LSTM(vocabulary=11, batch_norm=True)
    with pytest.raises(ValueError, match="layers must be 2"):
        SPACE.from_json({"layers": 3})
    assert SPACE.from_json(SPACE.to_json(ONLY)) == ONLY


def test_it_is_trained_as_a_cell_is(tmp_path):
    flags = ["--space", "experiments.spaces.rnn.lstm:LSTMLanguageModelling", "--learning-rate", "2"]
    flags += [
        "--architecture",
        "random",
        "--rnn.units",
        "8",
        "--rnn.vocabulary",
        "50",
        "--epochs",
        "2",
    ]
    assert train_final.main([*flags, "--out", str(tmp_path)]) == 0
    first, last = map(json.loads, (tmp_path / "metrics.jsonl").read_text().splitlines())
    assert last["validation_perplexity"] < first["validation_perplexity"] < 50
    assert json.loads((tmp_path / "summary.json").read_text())["architecture"] == {"layers": 3}
