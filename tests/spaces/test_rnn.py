"""The recurrent space against a plain loop in NumPy, and each regulariser where it shows."""

import copy
import functools
import json

import chex
import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st
from scipy.special import expit, log_softmax

from wpl_jax.spaces.rnn import ACTIVATIONS, RNN, Architecture

NODES, UNITS, VOCABULARY, BATCH, TIME = 6, 5, 11, 4, 7
RATES = ("input_dropout", "output_dropout", "drop_connect", "embedding_dropout")
NO_DROPOUT = dict.fromkeys(RATES, 0.0)
SMALL = {"vocabulary": VOCABULARY, "nodes": NODES, "units": UNITS, **NO_DROPOUT}
# The hidden state is often long enough to be clipped.
PLAIN = RNN(**SMALL, batch_norm=False, max_hidden_norm=1.5)
NORMALISED = RNN(**SMALL, batch_norm=True, max_hidden_norm=1.5)

norms = pytest.mark.parametrize("rnn", [PLAIN, NORMALISED], ids=["plain", "batch norm"])
architectures = st.builds(
    Architecture,
    st.lists(st.integers(0, 3), min_size=NODES, max_size=NODES).map(np.int32),
    st.tuples(*[st.integers(0, j - 1) for j in range(1, NODES)]).map(np.int32),
)
seeds = st.integers(0, 2**31 - 1)


def draw(rnn, seed, dtype=np.float64, time=TIME):
    """Parameters, far from their small initial values, words and a hidden state."""
    rng = np.random.default_rng(seed)
    shapes = jax.eval_shape(rnn.init, jax.random.key(0))
    params = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(dtype), shapes)
    words = rng.integers(rnn.vocabulary, size=(BATCH, time + 1)).astype(np.int32)
    return params, words, rng.normal(size=(BATCH, rnn.units)).astype(dtype) / 2


def random_architecture(seed, nodes=NODES):
    rng = np.random.default_rng(seed)
    predecessors = [rng.integers(j) for j in range(1, nodes)]
    return Architecture(
        rng.integers(4, size=nodes).astype(np.int32), np.array(predecessors, np.int32)
    )


def chain(*activations):
    """The cell in which each node reads the one before it."""
    positions = [ACTIVATIONS.index(activation) for activation in activations]
    return Architecture(np.int32(positions), np.arange(len(positions) - 1, dtype=np.int32))


# Most of the time is LLVM's: its optimisations are off.
jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


@functools.partial(jit, static_argnums=0)
def apply(rnn, params, architecture, words, hidden, key=None):
    return rnn.apply(params, architecture, words, hidden, key)


@functools.partial(jit, static_argnums=0)
def loss(rnn, params, architecture, words, hidden, key=None):
    return rnn.loss(params, architecture, words, hidden, key)[0]


@functools.partial(jit, static_argnums=0)
def loss_and_grads(rnn, params, architecture, words, hidden, key=None):
    return jax.value_and_grad(rnn.loss, has_aux=True)(params, architecture, words, hidden, key)


@functools.partial(jit, static_argnums=0)
def score(rnn, params, architecture, words, hidden, weights=None):
    return rnn.score(params, architecture, words, hidden, weights)


def replace(rnn, **changes):
    return RNN(**{**vars(rnn), **changes})


# --- The cell -------------------------------------------------------------------------------------

FUNCTIONS = {
    "tanh": np.tanh,
    "relu": lambda x: np.maximum(x, 0),
    "identity": lambda x: x,
    "sigmoid": expit,
}


def by_hand(rnn, params, architecture, words, hidden):
    """Outputs and the last hidden state, a word, a sequence, a node and an edge at a time."""
    activations = [FUNCTIONS[ACTIVATIONS[a]] for a in architecture.activations]
    edges = iter(params["edges"])  # in the order 0 -> 1, 0 -> 2, 1 -> 2, 0 -> 3, …
    edges = {(i, j): next(edges) for j in range(rnn.nodes) for i in range(j)}
    units, (batch, time) = rnn.units, words.shape
    states = np.zeros((batch, time, units))
    last = np.zeros((batch, units))
    for n in range(batch):
        s = hidden[n]
        for t in range(time):
            x = params["embedding"][words[n, t]]
            both = x @ params["input"] + s @ params["recurrent"]
            c = expit(both[:units])
            h = [c * activations[0](both[units:]) + (1 - c) * s]
            for j, i in enumerate(architecture.predecessors, start=1):
                c = expit(h[i] @ edges[i, j][:, :units])
                h.append(c * activations[j](h[i] @ edges[i, j][:, units:]) + (1 - c) * h[i])
            loose = [h[j] for j in range(rnn.nodes) if j not in architecture.predecessors]
            s = sum(loose) / len(loose)
            s = s * min(1, rnn.max_hidden_norm / np.linalg.norm(s))
            states[n, t] = s
        last[n] = s
    if rnn.batch_norm:
        for t in range(time):
            for u in range(units):
                column = states[:, t, u]
                column = (column - np.mean(column)) / np.sqrt(np.var(column) + 1e-5)
                column = params["norm"]["scale"][u] * column + params["norm"]["bias"][u]
                states[:, t, u] = column
    return states, last


@norms
@hypothesis.settings(max_examples=20, deadline=None)
@hypothesis.given(architecture=architectures, seed=seeds)
def test_the_gathered_pass_equals_a_plain_loop(rnn, architecture, seed):
    params, words, hidden = draw(rnn, seed)
    expected = by_hand(rnn, params, architecture, words, hidden)
    with jax.enable_x64(True):
        actual = apply(rnn, params, architecture, words, hidden)
    chex.assert_trees_all_close(actual, expected, rtol=1e-10, atol=1e-10)


def test_every_activation_in_float32():
    """In the precision of training, at inputs up to 30; sigmoid in the form that it has there."""
    rnn = RNN(**{**SMALL, "nodes": 1, "units": 1, "vocabulary": 61}, batch_norm=False)
    x = np.linspace(-30, 30, 61, dtype=np.float32)
    params = {
        "embedding": x[:, None],
        "input": np.float32([[0, 1]]),  # the gate is open by half
        "recurrent": np.zeros((1, 2), np.float32),
        "edges": np.zeros((0, 1, 2), np.float32),
    }
    words, hidden = np.arange(61, dtype=np.int32)[:, None], np.zeros((61, 1), np.float32)
    for position, name in enumerate(ACTIVATIONS):
        architecture = Architecture(np.int32([position]), np.zeros(0, np.int32))
        outputs, _ = apply(rnn, params, architecture, words, hidden)
        expected = np.clip(FUNCTIONS[name](np.float64(x)) / 2, -rnn.max_hidden_norm, None)
        np.testing.assert_allclose(outputs[:, 0, 0], expected, rtol=1e-5, atol=1e-7)


def test_architectures_are_data():
    """One program serves all, one after another and many at once."""
    params, words, hidden = draw(NORMALISED, 0, np.float32)
    cells = [random_architecture(seed) for seed in range(5)]
    one = jit(lambda *arguments: NORMALISED.apply(*arguments))
    singles = [one(params, cell, words[:, :-1], hidden) for cell in cells]
    assert one._cache_size() == 1
    stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *cells)
    many = jit(jax.vmap(NORMALISED.apply, (None, 0, None, None)))
    together = many(params, stacked, words[:, :-1], hidden)
    expected = jax.tree.map(lambda *leaves: np.stack(leaves), *singles)
    chex.assert_trees_all_close(together, expected, rtol=1e-4, atol=1e-5)


def test_only_the_edges_of_the_cell_are_read():
    """NaN in all others does not show, in the loss or in its gradients."""
    params, words, hidden = draw(NORMALISED, 1, np.float32)
    for seed in range(5):
        cell = random_architecture(seed)
        inside = NORMALISED.mask(cell)["edges"]
        expected = loss_and_grads(NORMALISED, params, cell, words, hidden)
        poisoned = {**params, "edges": np.where(inside, params["edges"], np.nan)}
        actual = loss_and_grads(NORMALISED, poisoned, cell, words, hidden)
        chex.assert_trees_all_equal(actual, expected)


def test_its_own_edges_are_all_that_a_cell_needs(float64):
    for nodes in (1, 2, NODES):
        rnn = replace(NORMALISED, nodes=nodes)
        params, words, hidden = draw(rnn, 1)
        for seed in range(5):
            cell = random_architecture(seed, nodes)
            rows = rnn.rows(cell)
            own = {**params, "edges": params["edges"][rows.pop("edges")]}
            assert set(rows.values()) <= {...} and own["edges"].shape[0] == nodes - 1
            (value, state), expected = loss_and_grads(rnn, params, cell, words, hidden)
            (actual, own_state), grads = loss_and_grads(rnn, own, cell, words, hidden)
            chex.assert_trees_all_close((actual, own_state), (value, state), rtol=1e-12)
            expected["edges"] = expected["edges"][rnn.rows(cell)["edges"]]
            chex.assert_trees_all_close(grads, expected, rtol=1e-10, atol=1e-14)


def test_initial_parameters():
    rnn = RNN(vocabulary=200, nodes=5, units=20, init_scale=0.3)
    params = jax.device_get(rnn.init(jax.random.key(0)))
    shapes = {"embedding": (200, 20), "input": (20, 40), "recurrent": (20, 40)}
    for name, shape in {**shapes, "edges": (10, 20, 40)}.items():
        assert params[name].shape == shape
        deviation = np.abs(np.std(params[name]) / (0.3 / np.sqrt(3)) - 1)
        assert np.abs(params[name]).max() <= 0.3 and deviation < 0.1
        assert abs(np.mean(params[name])) < 0.02
    assert not np.array_equal(params["input"], params["recurrent"])
    chex.assert_trees_all_equal(
        {name: params[name] for name in ("decoder_bias", "norm")},
        {"decoder_bias": np.zeros(200), "norm": {"scale": np.ones(20), "bias": np.zeros(20)}},
    )
    without = replace(rnn, batch_norm=False).init(jax.random.key(0))
    chex.assert_trees_all_equal(without, {k: v for k, v in params.items() if k != "norm"})


# --- Windows --------------------------------------------------------------------------------------


def test_two_windows_are_one_long_one():
    params, words, hidden = draw(NORMALISED, 2, np.float32, time=2 * TIME)
    cell = random_architecture(1)
    (total, count), last = score(NORMALISED, params, cell, words, hidden)
    first, middle = score(NORMALISED, params, cell, words[:, : TIME + 1], hidden)
    second, end = score(NORMALISED, params, cell, words[:, TIME:], middle)
    np.testing.assert_allclose(end, last, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(first[0] + second[0], total, rtol=1e-5)
    assert first[1] + second[1] == count == BATCH * 2 * TIME
    not_carried, _ = score(NORMALISED, params, cell, words[:, TIME:], hidden)
    assert abs(not_carried[0] - second[0]) > 0.1


def test_gradients_stop_at_the_hidden_state():
    params, words, hidden = draw(NORMALISED, 3, np.float32)
    cell = random_architecture(2)

    @jit
    def gradients(params, hidden):
        def of(function, *more):
            return jax.grad(lambda h: function(params, cell, words, h, *more)[0])(hidden)

        def total(*arguments):
            return NORMALISED.score(*arguments)[0]

        return of(NORMALISED.loss, jax.random.key(0)), of(NORMALISED.loss, None), of(total)

    training, likelihood, through = gradients(params, hidden)
    assert not training.any() and not likelihood.any()
    assert np.abs(through).max() > 0.01  # there is something to stop


def test_batches_go_around():
    split = np.arange(3 * 2 * 4).reshape(3, 2, 4)
    assert PLAIN.num_batches(split) == 3
    for step in range(7):
        np.testing.assert_array_equal(PLAIN.batch(split, jnp.int32(step)), split[step % 3])
    start = PLAIN.start(split[0])
    assert start.shape == (2, UNITS) and not start.any()


# --- The mask -------------------------------------------------------------------------------------


@norms
def test_the_mask_is_the_support_of_the_gradient(rnn):
    for seed in range(12):
        params, words, hidden = draw(rnn, seed, np.float32)
        cell = random_architecture(seed)
        _, grads = loss_and_grads(rnn, params, cell, words, hidden)
        mask = rnn.mask(cell)
        inside = np.asarray(mask.pop("edges"))
        assert inside.shape == (NODES * (NODES - 1) // 2, 1, 1) and inside.dtype == bool
        moved = (np.asarray(grads["edges"]) != 0).any((1, 2), keepdims=True)
        np.testing.assert_array_equal(moved, inside)
        assert set(mask) == set(params) - {"edges"}
        for name, used in mask.items():
            assert used is True
            assert all(np.any(grad) for grad in jax.tree.leaves(grads[name]))


def test_gradients_are_those_of_finite_differences(float64):
    """Through the clip, the normalisation, dropout and both regularisers."""
    rnn = replace(
        NORMALISED,
        **dict.fromkeys(RATES, 0.3),
        activation_regularisation=2.0,
        temporal_regularisation=1.0,
    )
    params, words, hidden = draw(rnn, 4)
    cell = chain("tanh", "identity", "sigmoid", "tanh", "identity", "sigmoid")  # all smooth

    rest, epsilon = (cell, words, hidden, jax.random.key(0)), 1e-5
    _, grads = loss_and_grads(rnn, params, *rest)
    for name, direction in draw(rnn, 5)[0].items():
        forward, backward = (
            {**params, name: jax.tree.map(lambda p, d, s=step: p + s * d, params[name], direction)}
            for step in (epsilon, -epsilon)
        )
        expected = (loss(rnn, forward, *rest) - loss(rnn, backward, *rest)) / (2 * epsilon)
        actual = sum(
            np.vdot(g, d)
            for g, d in zip(*map(jax.tree.leaves, (grads[name], direction)), strict=True)
        )
        np.testing.assert_allclose(actual, expected, rtol=1e-5)


# --- Decisions ------------------------------------------------------------------------------------


def test_decisions():
    assert RNN(vocabulary=2).decisions[:9] == (4, 1, 4, 2, 4, 3, 4, 4, 4)
    assert len(RNN(vocabulary=2).decisions) == 2 * 12 - 1
    cell = RNN(vocabulary=2, nodes=4).decode(np.array([3, 0, 1, 1, 2, 0, 3]))
    chex.assert_trees_all_equal(cell, Architecture(np.int32([3, 1, 2, 3]), np.int32([0, 1, 0])))
    chex.assert_type([*cell], jnp.int32)


def test_actions_are_the_architectures_one_to_one():
    rnn = RNN(vocabulary=2, nodes=4)
    assert len(rnn.decisions) == 2 * 4 - 1
    actions = np.indices(rnn.decisions).reshape(len(rnn.decisions), -1).T
    cells = jax.vmap(rnn.decode)(actions)
    assert len(actions) == 4**4 * 6
    assert ((cells.activations >= 0) & (cells.activations < 4)).all()
    assert ((cells.predecessors >= 0) & (cells.predecessors < np.array([[1, 2, 3]]))).all()
    assert len(np.unique(np.concatenate(cells, axis=1), axis=0)) == len(actions)


# --- Dropout --------------------------------------------------------------------------------------


def revealing(**rates):
    """A space, parameters and a cell that show dropout: next state = (state + x + state @ V) / 2.

    The gate is open by half, the words' embeddings are ones, and V is zero unless filled.
    """
    rnn = RNN(**{**SMALL, "nodes": 1, **rates}, batch_norm=False, max_hidden_norm=1e6)
    zeros = np.zeros((UNITS, 2 * UNITS), np.float32)
    value = np.concatenate([zeros[:, :UNITS], np.eye(UNITS, dtype=np.float32)], axis=1)
    params = {
        "embedding": np.ones((VOCABULARY, UNITS), np.float32),
        "input": value,
        "recurrent": zeros,
        "edges": np.zeros((0, UNITS, 2 * UNITS), np.float32),
        "decoder_bias": np.zeros(VOCABULARY, np.float32),
    }
    return rnn, params, chain("identity")


def read(rnn, params, cell, words, key):
    """What entered the cell in each step, float [batch, time, units]."""
    hidden = np.zeros((len(words), UNITS), np.float32)
    states = np.asarray(apply(rnn, params, cell, words, hidden, key)[0])
    before = np.concatenate([hidden[:, None], states[:, :-1]], axis=1)
    return 2 * states - before


WORDS = np.random.default_rng(0).integers(VOCABULARY, size=(BATCH, TIME)).astype(np.int32)


def test_input_dropout_has_one_mask_for_all_time_steps():
    space = revealing(input_dropout=0.75)
    entered = read(*space, WORDS, jax.random.key(0))
    np.testing.assert_allclose(entered, entered[:, :1].repeat(TIME, 1), atol=1e-5)
    mask = entered[:, 0].round(4)
    assert set(mask.ravel()) == {0, 4}
    assert len(np.unique(mask, axis=0)) > 1  # and one for each sequence
    assert not np.allclose(read(*space, WORDS, jax.random.key(1))[:, 0], mask)


def test_embedding_dropout_drops_words_wherever_they_are():
    entered = read(*revealing(embedding_dropout=0.5), WORDS, jax.random.key(0)).round(4)
    assert set(entered.ravel()) == {0, 2}
    for word in np.unique(WORDS):
        assert len(np.unique(entered[word == WORDS])) == 1


def test_drop_connect_drops_weights_of_the_recurrent_matrix():
    """Started from unit vectors, its first step reads the mask, and later ones the same."""
    rnn, params, cell = revealing(drop_connect=0.5)
    params = {**params, "embedding": np.zeros((VOCABULARY, UNITS), np.float32)}
    params["recurrent"] = np.ones((UNITS, 2 * UNITS), np.float32)
    params["recurrent"][:, :UNITS] = 0
    words, hidden = WORDS[:1, :2].repeat(UNITS, 0), np.eye(UNITS, dtype=np.float32)
    states, _ = apply(rnn, params, cell, words, hidden, jax.random.key(1))
    mask = 2 * states[:, 0] - hidden
    assert set(np.ravel(mask.round(4))) == {0, 2}
    assert (mask.min(0) != mask.max(0)).any() and (mask.min(1) != mask.max(1)).any()
    np.testing.assert_allclose(2 * states[:, 1], states[:, 0] + states[:, 0] @ mask, rtol=1e-5)


def test_drop_connect_touches_nothing_else():
    """Where the hidden state is zero the recurrent matrix is not read."""
    rnn = replace(NORMALISED, drop_connect=0.9)
    params, words, hidden = draw(rnn, 5, np.float32, time=1)
    cell, key = random_architecture(3), jax.random.key(0)
    for start, touched in ((0 * hidden, False), (hidden, True)):
        dropped, _ = apply(rnn, params, cell, words[:, :1], start, key)
        without, _ = apply(rnn, params, cell, words[:, :1], start)
        assert (np.abs(dropped - without).max() > 1e-3) == touched


def test_embedding_dropout_does_not_touch_the_decoder():
    rnn = replace(NORMALISED, embedding_dropout=0.9)
    params, words, hidden = draw(rnn, 6, np.float32)
    cell, key = random_architecture(4), jax.random.key(0)
    for input, touched in ((0 * params["input"], False), (params["input"], True)):
        changed = {**params, "input": input}
        dropped = loss(rnn, changed, cell, words, hidden, key)
        without = loss(NORMALISED, changed, cell, words, hidden)
        assert (abs(dropped - without) > 1e-3) == touched


def nlls_of_masked_output(params, words, rate):
    """Negative log-likelihoods, all by hand, of a window whose output is the normalisation's bias.

    One for each mask that locked dropout of the output may have: [2 ** units].
    """
    masks = np.indices([2] * UNITS).reshape(UNITS, -1).T / (1 - rate)
    logits = (params["norm"]["bias"] * masks) @ params["embedding"].T + params["decoder_bias"]
    return -log_softmax(logits, axis=-1)[:, words[0, 1:]].mean(-1), masks


def test_output_dropout_has_one_mask_for_all_time_steps():
    """A batch of one is normalised to the bias, on which every mask has a loss of its own."""
    rate = 0.75
    rnn = replace(NORMALISED, output_dropout=rate)
    params, words, hidden = draw(rnn, 7, np.float32)
    expected, _ = nlls_of_masked_output(params, words, rate)
    assert np.diff(np.sort(expected)).min() > 1e-4
    found = set()
    for seed in range(12):
        key = jax.random.key(seed)
        actual = loss(rnn, params, random_architecture(5), words[:1], hidden[:1], key)
        nearest = np.abs(expected - actual).argmin()
        np.testing.assert_allclose(actual, expected[nearest], atol=2e-5)
        found.add(nearest)
    assert len(found) > 3


@pytest.mark.parametrize("name", ["input_dropout", "embedding_dropout"])
def test_dropout_keeps_the_mean(name):
    rate = 0.6
    space = revealing(**{name: rate})
    words = np.arange(VOCABULARY, dtype=np.int32)[:, None]  # each once: independent draws
    means = [read(*space, words, jax.random.key(seed)).mean() for seed in range(200)]
    draws = 200 * VOCABULARY * (UNITS if name == "input_dropout" else 1)
    assert abs(np.mean(means) - 1) < 4 * np.sqrt(rate / (1 - rate) / draws)


def test_a_rate_of_0_costs_nothing():
    """The same bits as without dropout, from a program that draws none at random."""
    params, words, hidden = draw(NORMALISED, 8, np.float32)
    arguments = (params, random_architecture(6), words, hidden)
    dropped = loss_and_grads(NORMALISED, *arguments, jax.random.key(0))
    chex.assert_trees_all_equal(dropped, loss_and_grads(NORMALISED, *arguments))
    assert "random_bits" not in str(jax.make_jaxpr(NORMALISED.loss)(*arguments, jax.random.key(0)))
    for name in RATES:
        rnn = replace(NORMALISED, **{name: 0.1})
        program = str(jax.make_jaxpr(rnn.loss)(*arguments, jax.random.key(0)))
        assert program.count("random_bits") == 1


def test_nothing_is_dropped_without_a_key():
    rnn = replace(NORMALISED, **dict.fromkeys(RATES, 0.5), activation_regularisation=1.0)
    params, words, hidden = draw(rnn, 9, np.float32)
    arguments = (params, random_architecture(7), words, hidden)
    likelihood = loss(rnn, *arguments)
    (total, count), _ = score(NORMALISED, *arguments)
    np.testing.assert_allclose(likelihood, total / count, rtol=1e-6)
    assert abs(loss(rnn, *arguments, jax.random.key(0)) - likelihood) > 0.01


# --- The other regularisers -----------------------------------------------------------------------


@pytest.mark.parametrize(("activation", "temporal"), [(2.0, 0.0), (0.5, 1.5)])
def test_activation_and_temporal_regularisation(activation, temporal):
    params, words, hidden = draw(PLAIN, 10, np.float32)
    cell, key = random_architecture(8), jax.random.key(0)
    output = np.asarray(apply(PLAIN, params, cell, words[:, :-1], hidden)[0], np.float64)
    rnn = replace(PLAIN, activation_regularisation=activation, temporal_regularisation=temporal)
    expected = loss(PLAIN, params, cell, words, hidden, key)
    expected += activation * np.mean(output**2)
    expected += temporal * np.mean(np.diff(output, axis=1) ** 2)
    np.testing.assert_allclose(loss(rnn, params, cell, words, hidden, key), expected, rtol=1e-5)


def test_activation_regularisation_is_of_what_dropout_leaves_and_temporal_of_all():
    """A batch of one is normalised to the bias, which does not change in time."""
    rate, cell, key = 0.5, random_architecture(9), jax.random.key(3)
    rnn = replace(NORMALISED, output_dropout=rate)
    params, words, hidden = draw(rnn, 11, np.float32)
    arguments = (params, cell, words[:1], hidden[:1], key)
    plain = loss(rnn, *arguments)
    nlls, masks = nlls_of_masked_output(params, words, rate)
    mask = masks[np.abs(nlls - plain).argmin()]
    assert 0 < np.count_nonzero(mask) < UNITS
    rnn = replace(rnn, activation_regularisation=4.0, temporal_regularisation=4.0)
    expected = plain + 4 * np.mean((mask * params["norm"]["bias"]) ** 2)
    np.testing.assert_allclose(loss(rnn, *arguments), expected, rtol=1e-5)


def test_the_hidden_norm_is_clipped():
    wide = replace(PLAIN, max_hidden_norm=1e6)
    params, words, hidden = draw(PLAIN, 12, np.float32)
    grown = {**params, "input": 2 * params["input"]}
    cell = chain("identity", "relu", "tanh", "identity", "sigmoid", "identity")
    states, last = apply(PLAIN, grown, cell, words[:, :1], hidden)
    free, _ = apply(wide, grown, cell, words[:, :1], hidden)
    lengths = np.linalg.norm(free, axis=-1, keepdims=True)
    assert 1.25 < lengths.min() < 1.5 and lengths.max() > 3
    np.testing.assert_allclose(states, free * np.minimum(1, 1.5 / lengths), rtol=1e-5)
    np.testing.assert_array_equal(states[:, -1], last)

    states, _ = apply(PLAIN, grown, cell, words[:, :-1], hidden)
    assert np.linalg.norm(states, axis=-1).max() <= 1.5 * (1 + 1e-6)

    small = jax.tree.map(lambda p: p / 100, params)
    states = apply(PLAIN, small, cell, words[:, :-1], hidden / 10)
    chex.assert_trees_all_equal(states, apply(wide, small, cell, words[:, :-1], hidden / 10))


@norms
def test_gradients_at_zero_are_finite(rnn):
    """There the norm of the hidden state has none, nor has its standard deviation."""
    params, words, hidden = draw(rnn, 13, np.float32)
    zero = jax.tree.map(lambda p: 0 * p, params)
    cell = chain("tanh", "relu", "identity", "tanh", "relu", "identity")
    (value, last), grads = loss_and_grads(rnn, zero, cell, words, 0 * hidden)
    np.testing.assert_allclose(value, np.log(VOCABULARY), rtol=1e-6)
    assert not last.any()
    chex.assert_tree_all_finite(grads)


def test_batch_norm_is_over_the_batch_in_each_time_step():
    params, words, hidden = draw(NORMALISED, 14, np.float32)
    params["norm"] = {"scale": np.ones(UNITS, np.float32), "bias": np.zeros(UNITS, np.float32)}
    outputs, last = apply(NORMALISED, params, random_architecture(10), words[:, :-1], hidden)
    states, expected_last = apply(PLAIN, params, random_architecture(10), words[:, :-1], hidden)
    variance = np.var(states, axis=0)
    np.testing.assert_allclose(outputs.mean(0), np.zeros((TIME, UNITS)), atol=1e-5)
    np.testing.assert_allclose(outputs.var(0), variance / (variance + 1e-5), rtol=1e-3)
    chex.assert_trees_all_close(last, expected_last, rtol=1e-5)  # what is carried is not normalised
    params["norm"] = {"scale": np.full(UNITS, 2, np.float32), "bias": np.arange(5.0, dtype="f")}
    scaled, _ = apply(NORMALISED, params, random_architecture(10), words[:, :-1], hidden)
    np.testing.assert_allclose(scaled, 2 * outputs + np.arange(5.0)[None, None], atol=1e-5)


@norms
@pytest.mark.parametrize("key", [None, 0], ids=["evaluation", "dropout"])
def test_outputs_do_not_depend_on_the_future(rnn, key):
    key = None if key is None else jax.random.key(key)
    rnn = replace(rnn, **dict.fromkeys(RATES, 0.2))
    params, words, hidden = draw(rnn, 15, np.float32)
    cell = random_architecture(11)
    before, _ = apply(rnn, params, cell, words[:, :-1], hidden, key)
    changed = words[:, :-1].copy()
    changed[:, -2] = (changed[:, -2] + 1) % VOCABULARY
    after, _ = apply(rnn, params, cell, changed, hidden, key)
    np.testing.assert_array_equal(after[:, :-2], before[:, :-2])
    assert (np.abs(after[:, -2:] - before[:, -2:]).max((0, 2)) > 1e-3).all()


# --- Evaluation -----------------------------------------------------------------------------------


@norms
def test_score_is_the_sum_of_negative_log_likelihoods(rnn):
    params, words, hidden = draw(rnn, 16, np.float32)
    cell = random_architecture(12)
    outputs, last = by_hand(rnn, jax.tree.map(np.float64, params), cell, words[:, :-1], hidden)
    log_probs = log_softmax(outputs @ params["embedding"].T + params["decoder_bias"], axis=-1)
    nlls = -np.take_along_axis(log_probs, words[:, 1:, None], -1)[..., 0]
    (total, count), actual_last = score(rnn, params, cell, words, hidden)
    np.testing.assert_allclose(total, nlls.sum(), rtol=1e-4)
    np.testing.assert_allclose(actual_last, last, rtol=1e-3, atol=1e-4)
    assert count == nlls.size

    weights = np.float32(np.random.default_rng(0).integers(2, size=nlls.shape))
    (total, count), _ = score(rnn, params, cell, words, hidden, weights)
    np.testing.assert_allclose(total, (weights * nlls).sum(), rtol=1e-4)
    assert count == weights.sum()


@pytest.mark.parametrize("key", [None, 3])
def test_the_loss_is_that_of_the_log_probabilities(key):
    """With the same dropout, and the same hidden state after."""
    rnn = RNN(**{**SMALL, **dict.fromkeys(RATES, 0.3)}, max_hidden_norm=1.5)
    params, words, hidden = draw(rnn, 0, np.float32)
    key, cell = None if key is None else jax.random.key(key), random_architecture(0)
    arguments = params, cell, words, hidden, key
    log_probs, after = jit(rnn.log_probs)(*arguments)
    expected, expected_after = jit(rnn.loss)(*arguments)
    picked = np.take_along_axis(log_probs, words[:, 1:].reshape(-1, 1), 1)
    np.testing.assert_allclose(-picked.mean(), expected, rtol=1e-5)
    np.testing.assert_allclose(after, expected_after, rtol=1e-6)
    np.testing.assert_allclose(np.exp(log_probs).sum(1), 1, rtol=1e-5)


def test_score_ignores_padding():
    """Words at the end of sequences of weight 0: the score is that of the others, to the bit."""
    params, words, hidden = draw(PLAIN, 17, np.float32)
    weights = np.float32(np.arange(TIME)[None] < np.array([[TIME], [TIME - 1], [3], [0]]))
    padded = np.where(np.pad(weights, [(0, 0), (1, 0)], constant_values=1) > 0, words, 0)
    assert (padded != words).any()
    (total, count), _ = score(PLAIN, params, random_architecture(13), words, hidden, weights)
    (other, _), _ = score(PLAIN, params, random_architecture(13), padded, hidden, weights)
    assert total == other and count == weights.sum()


@norms
def test_perplexity_on_a_known_distribution(rnn):
    """A bias of log p predicts words as often as they come: 2 to the power of 7/4 bits a word."""
    rnn = replace(rnn, vocabulary=4)
    params = jax.tree.map(jnp.zeros_like, rnn.init(jax.random.key(0)))
    params["decoder_bias"] = jnp.log(jnp.array([1 / 2, 1 / 4, 1 / 8, 1 / 8]))
    words = np.random.default_rng(0).permutation([0] * 16 + [1] * 8 + [2] * 4 + [3] * 4)
    batch = np.concatenate([np.zeros((4, 1)), words.reshape(4, 8)], axis=1).astype(np.int32)
    (total, count), _ = score(rnn, params, random_architecture(14), batch, rnn.start(batch))
    np.testing.assert_allclose(rnn.error(total / count), 2**1.75, rtol=1e-5)


def test_reward():
    perplexities = jnp.array([80.0, 160.0, 20.0, jnp.inf, jnp.nan])
    np.testing.assert_allclose(PLAIN.reward(perplexities), [1, 0.5, 4, 0, 0])
    scaled = replace(PLAIN, reward_scale=8.0)
    np.testing.assert_allclose(scaled.reward(perplexities), [0.1, 0.05, 0.4, 0, 0], rtol=1e-6)
    assert PLAIN.reward(PLAIN.error(jnp.float32(1e4))) == 0  # the perplexity overflows


@norms
def test_the_number_of_parameters_is_that_of_the_mask(rnn):
    shapes = jax.eval_shape(rnn.init, jax.random.key(0))
    for seed in range(3):
        cell = random_architecture(seed)
        mask = jax.tree.map(  # the mask is a prefix
            lambda m, leaves: jax.tree.map(lambda x: np.broadcast_to(m, x.shape), leaves),
            rnn.mask(cell),
            dict(shapes),
        )
        assert rnn.num_parameters(cell) == sum(leaf.sum() for leaf in jax.tree.leaves(mask))


# --- Files and graphs -----------------------------------------------------------------------------


@hypothesis.settings(deadline=None)
@hypothesis.given(architecture=architectures)
def test_a_cell_is_read_as_it_was_written(architecture):
    read = PLAIN.from_json(json.loads(json.dumps(PLAIN.to_json(architecture))))
    chex.assert_trees_all_equal(read, architecture)
    chex.assert_trees_all_equal_shapes_and_dtypes(read, architecture)


STORED = {
    "space": "rnn",
    "nodes": [
        {"activation": "tanh"},
        {"predecessor": 0, "activation": "relu"},
        {"predecessor": 0, "activation": "sigmoid"},
        {"predecessor": 2, "activation": "identity"},
    ],
}
CELL = Architecture(np.int32([0, 1, 3, 2]), np.int32([0, 0, 2]))
FOUR = RNN(**{**SMALL, "nodes": 4})


def test_the_form_of_a_file():
    assert FOUR.to_json(CELL) == STORED
    chex.assert_trees_all_equal(FOUR.from_json(STORED), CELL)
    chex.assert_trees_all_equal(FOUR.from_json(FOUR.to_json(jax.tree.map(jnp.array, CELL))), CELL)


def changed(*path, to):
    stored = copy.deepcopy(STORED)
    inner = functools.reduce(lambda tree, place: tree[place], path[:-1], stored)
    inner[path[-1]] = to
    return stored


@pytest.mark.parametrize(
    ("stored", "message"),
    [
        (None, '"space": "rnn", got None'),
        ([STORED], '"space": "rnn", got '),
        ({}, '"space": "rnn", got None'),
        (changed("space", to="micro_cnn"), "got 'micro_cnn'"),
        ({"space": "rnn"}, "must have 4 nodes, got None"),
        (changed("nodes", to={}), "must have 4 nodes, got {}"),
        (changed("nodes", to=STORED["nodes"][:3]), "must have 4 nodes, got 3"),
        (changed("nodes", to=STORED["nodes"] * 2), "must have 4 nodes, got 8"),
        (changed("nodes", 2, to="relu"), "node 2 must have activation and predecessor, got relu"),
        (changed("nodes", 2, to={"activation": "relu"}), "node 2 must have .* got {'activation'"),
        (changed("nodes", 0, "predecessor", to=0), "node 0 must have activation, got"),
        (changed("nodes", 1, "operation", to="pool"), "node 1 must have .*'operation'"),
        (changed("nodes", 3, "activation", to="gelu"), "node 3's activation must be .* 'gelu'"),
        (changed("nodes", 3, "activation", to=["relu"]), "node 3's activation must be .*relu"),
        (changed("nodes", 0, "activation", to=0), "node 0's activation must be .* got 0"),
        (changed("nodes", 2, "predecessor", to=2), "node 2's predecessor .* 0 to 1, got 2"),
        (changed("nodes", 2, "predecessor", to=-1), "node 2's predecessor .* got -1"),
        (changed("nodes", 2, "predecessor", to=1.0), r"node 2's predecessor .* got 1\.0"),
        (changed("nodes", 2, "predecessor", to=True), "node 2's predecessor .* got True"),
        (changed("nodes", 2, "predecessor", to="0"), "node 2's predecessor .* got '0'"),
        (changed("nodes", 2, "predecessor", to=None), "node 2's predecessor .* got None"),
    ],
)
def test_files_that_are_no_cell(stored, message):
    with pytest.raises(ValueError, match=message) as error:
        FOUR.from_json(stored)
    assert "\n" not in str(error.value)


def test_graphs():
    graphs = FOUR.graphs(CELL)
    assert list(graphs) == ["cell"]
    graph = graphs["cell"]
    assert dict(graph.nodes(data="kind")) == {
        **{"xₜ": "input", "hₜ₋₁": "input", "hₜ": "output"},
        **{0: "tanh", 1: "relu", 2: "sigmoid", 3: "identity"},
    }
    assert set(graph.edges) == {
        *[("xₜ", 0), ("hₜ₋₁", 0)],
        *[(0, 1), (0, 2), (2, 3)],
        *[(1, "hₜ"), (3, "hₜ")],  # the loose ends
    }


# --- Errors ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "value", "wanted"),
    [
        *[(name, value, "at least 1") for name in ("nodes", "units") for value in (0, -3)],
        ("vocabulary", 0, "at least 1"),
        *[(name, value, "at least 0") for name in RATES for value in (-0.1, np.nan)],
        *[(name, 1, "below 1") for name in RATES],
        *[
            (f"{name}_regularisation", value, wanted)
            for name in ("activation", "temporal")
            for value, wanted in ((-1.0, "at least 0"), (np.inf, "at most"), (np.nan, "at least 0"))
        ],
        *[
            (name, value, wanted)
            for name in ("max_hidden_norm", "init_scale", "reward_scale")
            for value, wanted in ((0, "at least"), (-1.0, "at least"), (np.inf, "at most"))
        ],
    ],
)
def test_settings_that_cannot_work(name, value, wanted):
    with pytest.raises(ValueError, match=f"{name} must be {wanted}.*, got {value}"):
        RNN(**{"vocabulary": 9, name: value})
