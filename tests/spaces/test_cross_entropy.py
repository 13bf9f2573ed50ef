"""The chunked cross-entropy against optax's of all logits at once, and what it never holds."""

import chex
import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from wpl_jax.spaces import cross_entropy
from wpl_jax.spaces.cross_entropy import linear_cross_entropy

TOKENS, VOCABULARY, UNITS = 7, 11, 5
DIFFERENTIABLE = (0, 1, 2, 4)  # all but the labels


def problem(seed=0, dtype=np.float32, tokens=TOKENS, vocabulary=VOCABULARY, scale=1.0):
    """Random arguments of the function: hidden, kernel, bias, labels, weights."""
    rng = np.random.default_rng(seed)
    hidden, kernel, bias = (
        jnp.asarray(scale * rng.normal(size=shape), dtype)
        for shape in ((tokens, UNITS), (vocabulary, UNITS), (vocabulary,))
    )
    labels = jnp.asarray(rng.integers(vocabulary, size=tokens), jnp.int32)
    return hidden, kernel, bias, labels, jnp.asarray(rng.uniform(0.5, 2, tokens), dtype)


def all_at_once(hidden, kernel, bias, labels, weights):
    logits = hidden @ kernel.T + bias[None]
    return weights @ optax.softmax_cross_entropy_with_integer_labels(logits, labels)


def value_and_gradients(function):
    return jax.value_and_grad(function, DIFFERENTIABLE)


wanted = jax.jit(value_and_gradients(all_at_once))


@pytest.fixture(scope="module", params=[1, 3, 1000], ids="{} tokens a chunk".format)
def chunked(request):
    """Value and gradients, compiled for chunks of so many tokens: 3 leaves the last unfilled."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cross_entropy, "_MAX_LOGITS", request.param * VOCABULARY)
        # A function of its own, for JAX remembers what it has traced.
        yield jax.jit(lambda *arguments: value_and_gradients(linear_cross_entropy)(*arguments))


# --- Values ---------------------------------------------------------------------------------------


def test_value_and_gradients_are_those_of_all_logits_at_once(chunked):
    expected = wanted(*problem())
    actual = chunked(*problem())
    chex.assert_trees_all_close(actual, expected, rtol=2e-5, atol=1e-6)
    chex.assert_trees_all_equal_shapes_and_dtypes(actual, expected)
    without_gradients = linear_cross_entropy(*problem())
    np.testing.assert_allclose(without_gradients, expected[0], rtol=1e-6)


def test_in_float64(chunked):
    with jax.enable_x64(True):
        expected = wanted(*problem(1, np.float64))
        actual = chunked(*problem(1, np.float64))
        chex.assert_trees_all_close(actual, expected, rtol=1e-12, atol=1e-14)
        chex.assert_trees_all_equal_shapes_and_dtypes(actual, expected)


def test_gradients_of_a_function_of_it():
    """The chain rule goes on: the loss may be divided by the number of tokens, or exponentiated."""

    def perplexity(nll):
        return lambda *arguments: jnp.exp(nll(*arguments) / TOKENS)

    expected, actual = (
        jax.jit(value_and_gradients(perplexity(nll)))(*problem())
        for nll in (all_at_once, linear_cross_entropy)
    )
    chex.assert_trees_all_close(actual, expected, rtol=2e-5, atol=1e-6)


def test_tied_weights_add_their_gradients():
    """The decoder is the embedding: what reads it twice has the gradients of both readings."""
    _, embedding, bias, labels, weights = problem()

    def gradient(nll):
        def loss(embedding):
            return nll(jnp.tanh(embedding[labels[::-1]]), embedding, bias, labels, weights)

        return jax.jit(jax.grad(loss))(embedding)

    actual, expected = gradient(linear_cross_entropy), gradient(all_at_once)
    np.testing.assert_allclose(actual, expected, rtol=2e-5, atol=1e-6)


def test_equally_likely_words(chunked):
    """All logits are equal: log(vocabulary) a token, whatever the labels."""
    hidden, kernel, bias, labels, weights = problem()
    nll, _ = chunked(hidden, 0 * kernel, 0 * bias + 3, labels, weights)
    np.testing.assert_allclose(nll, weights.sum() * np.log(VOCABULARY), rtol=1e-6)


@pytest.mark.parametrize("scale", [1e2, 1e15])
def test_large_logits(chunked, scale):
    """Up to 1e30, whose exponentials are far beyond float32."""
    expected, actual = wanted(*problem(scale=scale)), chunked(*problem(scale=scale))
    assert expected[0] > scale**2
    for a, e in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        assert np.isfinite(a).all()
        np.testing.assert_allclose(a, e, rtol=1e-4, atol=1e-6 * np.abs(e).max())


# --- Padding --------------------------------------------------------------------------------------


def test_tokens_of_weight_0_have_no_influence(chunked):
    """To the last bit, however large the numbers and whatever the words in their place."""
    hidden, kernel, bias, labels, weights = problem()
    padding = np.array([1, 4, 6])
    weights = weights.at[padding].set(0)
    expected = chunked(hidden, kernel, bias, labels, weights)
    hidden = hidden.at[padding].multiply(-1e30)
    labels = labels.at[padding].set((labels[padding] + 5) % VOCABULARY)
    actual = chunked(hidden, kernel, bias, labels, weights)
    value, (hidden_grad, *grads, _) = actual
    chex.assert_trees_all_equal((value, *grads), (expected[0], *expected[1][1:3]))
    assert not hidden_grad[padding].any()
    rest = np.setdiff1d(np.arange(TOKENS), padding)
    np.testing.assert_array_equal(hidden_grad[rest], expected[1][0][rest])


def test_nothing_but_padding(chunked):
    *arguments, weights = problem()
    value, grads = chunked(*arguments, 0 * weights)
    assert value == 0
    assert not any(np.any(grad) for grad in grads[:3])


# --- JAX's transformations ------------------------------------------------------------------------


@pytest.mark.parametrize("axes", [(0, 0, 0, 0, 0), (0, None, None, 0, 0)], ids=["all", "tokens"])
def test_jit_of_vmap(axes, monkeypatch):
    """Over seeds, each with its own kernel, and over batches on one kernel."""
    monkeypatch.setattr(cross_entropy, "_MAX_LOGITS", 3 * VOCABULARY)
    problems = [problem(seed) for seed in range(3)]
    arguments = [
        problems[0][i] if axis is None else jnp.stack([p[i] for p in problems])
        for i, axis in enumerate(axes)
    ]
    actual = jax.jit(jax.vmap(value_and_gradients(linear_cross_entropy), axes))(*arguments)
    for seed in range(3):
        own = [problems[0 if axis is None else seed][i] for i, axis in enumerate(axes)]
        mine = jax.tree.map(lambda x, seed=seed: x[seed], actual)
        chex.assert_trees_all_close(mine, wanted(*own), rtol=2e-5, atol=1e-6)


# --- Memory and work ------------------------------------------------------------------------------


def equations(jaxpr):
    """All equations of a program, those of its loops and calls among them."""
    for equation in jaxpr.eqns:
        yield equation
        for inner in jax.tree.leaves(
            list(equation.params.values()),
            is_leaf=lambda x: isinstance(x, jax.extend.core.Jaxpr | jax.extend.core.ClosedJaxpr),
        ):
            inner = getattr(inner, "jaxpr", inner)
            if isinstance(inner, jax.extend.core.Jaxpr):
                yield from equations(inner)


def program(function, tokens, vocabulary):
    arguments = problem(tokens=tokens, vocabulary=vocabulary)
    # A function of its own, for JAX remembers what it has traced.
    return list(equations(jax.make_jaxpr(lambda *a: function(*a))(*arguments).jaxpr))


def largest(program):
    return max(v.aval.size for equation in program for v in equation.outvars)


@pytest.mark.parametrize(
    "function",
    [linear_cross_entropy, value_and_gradients(linear_cross_entropy)],
    ids=["value", "value and gradients"],
)
def test_at_most_a_chunk_of_logits_exists(function, monkeypatch):
    tokens, vocabulary = 60, 50
    monkeypatch.setattr(cross_entropy, "_MAX_LOGITS", tokens * vocabulary)
    assert largest(program(function, tokens, vocabulary)) == tokens * vocabulary
    monkeypatch.setattr(cross_entropy, "_MAX_LOGITS", 200)
    assert largest(program(function, tokens, vocabulary)) == tokens * UNITS  # the input, 300


def test_logits_are_computed_and_exponentiated_once(monkeypatch):
    """The backward pass computes none of them anew."""
    monkeypatch.setattr(cross_entropy, "_MAX_LOGITS", 3 * VOCABULARY)
    function = value_and_gradients(linear_cross_entropy)
    names = [equation.primitive.name for equation in program(function, TOKENS, VOCABULARY)]
    # Of matrices: logits, and gradients of hidden and kernel; of vectors: the weighted sum.
    assert names.count("exp") == 1 and names.count("dot_general") == 4


def test_each_device_computes_the_logits_of_its_own_tokens(monkeypatch):
    """Tokens over the devices: none gathers those of another, and a chunk is theirs together."""
    tokens, vocabulary, devices = 96, 50, jax.device_count()
    monkeypatch.setattr(cross_entropy, "_MAX_LOGITS", tokens // 2 * vocabulary)
    arguments = problem(tokens=tokens, vocabulary=vocabulary)
    mesh = Mesh(np.array(jax.devices()), ("batch",))
    spread, everywhere = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in (["batch"], []))
    places = (spread, everywhere, everywhere, spread, spread)
    # A function of its own, for JAX remembers what it has traced.
    function = jax.jit(lambda *a: value_and_gradients(linear_cross_entropy)(*a))
    spread_out = function.lower(*jax.device_put(arguments, places)).compile()
    assert "all-gather" not in spread_out.as_text()
    assert f"f32[{tokens // 2 // devices},{vocabulary}]" in spread_out.as_text()
    actual = spread_out(*jax.device_put(arguments, places))
    chex.assert_trees_all_close(jax.device_get(actual), wanted(*arguments), rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize(
    "function",
    [linear_cross_entropy, lambda *args: jax.value_and_grad(linear_cross_entropy)(*args)[0]],
    ids=["value", "value beside gradients"],
)
def test_a_label_outside_the_vocabulary_makes_the_loss_nan(function):
    hidden, kernel, bias, labels, weights = problem()
    assert np.isfinite(function(hidden, kernel, bias, labels, weights))
    assert np.isnan(function(hidden, kernel, bias, labels.at[1].set(len(kernel)), weights))
