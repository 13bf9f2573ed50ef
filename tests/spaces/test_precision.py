"""Networks that compute in bfloat16: what stays float32, and how close they are to the others."""

import dataclasses
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from wpl_jax.search import WPL, Data, Search, SearchConfig, Uniform
from wpl_jax.spaces.cross_entropy import linear_cross_entropy
from wpl_jax.spaces.micro_cnn import MicroCNN
from wpl_jax.spaces.nas_bench_201 import NASBench201
from wpl_jax.spaces.rnn import RNN

SPACES = {
    "rnn": RNN(30, nodes=4, units=16, init_scale=0.3),
    "micro_cnn": MicroCNN(3, (6, 6, 3), nodes=1, channels=4, cells=1, drop_path=0.1),
    "nas_bench_201": NASBench201(classes=3, image_shape=(8, 8, 3), channels=4, cells=1),
}


@pytest.fixture(params=SPACES)
def space(request):
    return SPACES[request.param]


def halved(space):
    return dataclasses.replace(space, compute_dtype="bfloat16")


def data_of(space, batches=2, size=9):
    """A split that can be learned: the next word is the last one's successor; brightness."""
    labels = np.arange(batches * size).reshape(batches, size)
    if isinstance(space, RNN):
        return jnp.asarray((7 * labels[..., None] + np.arange(9)) % space.vocabulary)
    noise = np.random.default_rng(3).integers(90, size=(*labels.shape, *space.image_shape))
    bright = (noise + 80 * (labels % 3)[..., None, None, None]).astype(np.uint8)
    return jnp.asarray(bright), jnp.asarray(labels % 3)


@functools.cache
def initial(space, seed=0):
    """Its parameters, in NumPy: what is done with them there, XLA need not compile."""
    return jax.device_get(jax.jit(space.init)(jax.random.key(seed)))


def gradient(space, params, seed=0):
    """The loss and its gradient, of an architecture that is drawn, in training."""
    return compiled(space)(params, drawn(space, seed))


@functools.cache
def compiled(space):
    def loss(params, actions):
        batch = space.batch(data_of(space), 0)
        carry = space.start(batch)
        return space.loss(params, space.decode(actions), batch, carry, jax.random.key(1))

    return jax.jit(jax.value_and_grad(loss, has_aux=True))


@functools.cache
def drawn(space, seed):
    shape = (len(space.decisions),)
    return jax.random.randint(jax.random.key(seed), shape, 0, jnp.array(space.decisions))


def distance(left, right):
    left, right = (
        np.concatenate([np.ravel(leaf).astype(np.float64) for leaf in jax.tree.leaves(tree)])
        for tree in (left, right)
    )
    return np.linalg.norm(left - right) / np.linalg.norm(right)


def test_what_is_learned_and_measured_stays_float32(space):
    params = initial(space)
    (loss, carry), grads = gradient(halved(space), params)
    chex.assert_trees_all_equal_dtypes(grads, params)
    assert loss.dtype == jnp.float32
    start = jax.eval_shape(lambda: space.start(space.batch(data_of(space), 0)))
    chex.assert_trees_all_equal_shapes_and_dtypes(carry, start)
    for leaf in jax.tree.leaves((params, carry)):
        assert leaf.dtype == jnp.float32
    if not isinstance(space, RNN):
        chex.assert_trees_all_equal_shapes_and_dtypes(
            halved(space).init_statistics(), space.init_statistics()
        )


def test_the_network_itself_computes_in_bfloat16(space):
    """All that is multiplied but the logits' kernel, or the compiled program would gain nothing."""
    params = initial(space)
    for this, dtype in (space, "f32"), (halved(space), "bf16"):
        text = str(compiled(this).trace(params, drawn(this, 0)).jaxpr)
        products = [
            line.split(" = ")[0].rsplit(":", 1)[1].split("[")[0]
            for line in text.splitlines()
            if " = dot_general" in line
        ]
        of_dtype = products.count(dtype)
        assert of_dtype > len(products) / 3 and (dtype == "bf16" or of_dtype == len(products))


@pytest.mark.parametrize("seed", range(3))
def test_it_is_off_by_what_rounded_weights_are(space, seed):
    """In float32, the same weights in bfloat16 move the gradient by as much, up to a factor."""
    params = initial(space, seed)
    (loss, _), exact = gradient(space, params, seed)
    rounded = jax.tree.map(lambda x: x.astype(jnp.bfloat16).astype(x.dtype), params)
    (other, _), of_rounded = gradient(space, rounded, seed)
    (close, _), found = gradient(halved(space), params, seed)
    assert 0 < distance(found, exact) < 6 * distance(of_rounded, exact) < 3
    assert abs(close - loss) < 0.02 * loss and abs(other - loss) < 0.02 * loss


def test_it_trains_as_float32_does(space):
    """Within 5 % of what the loss falls by, three architectures in turn."""

    def losses(space):
        params, found = initial(space), []
        for step in range(18):
            (loss, _), grads = gradient(space, params, step % 3)
            rate = 1.0 if isinstance(space, RNN) else 0.05
            params = jax.tree.map(
                lambda p, g, rate=rate: p - np.float32(rate) * np.asarray(g), params, grads
            )
            found.append(float(loss))
        return np.array(found)

    exact, close = losses(space), losses(halved(space))
    learned = exact[:3].mean() - exact[-3:].mean()
    assert learned > 0.1
    assert np.abs(close - exact)[-3:].mean() < 0.05 * learned


def test_a_search_remembers_what_it_does_in_float32():
    """The optimiser, the anchor and the Fisher of WPL among it."""
    config = SearchConfig(architectures=2, batches=1, chunk=2, eval_batches=1)
    optimizer = optax.sgd(0.3, momentum=0.5)

    def state_after(space):
        search = Search(space, config, optimizer, Uniform(), WPL(strength=1.0))
        data = Data(data_of(space), data_of(space))
        return jax.jit(search.step)(jax.jit(search.init)(jax.random.key(0)), data)[0]

    exact, close = state_after(SPACES["rnn"]), state_after(halved(SPACES["rnn"]))
    chex.assert_trees_all_equal_shapes_and_dtypes(close, exact)
    assert 0 < distance(close.params, exact.params) < 0.01


def test_cross_entropy_of_half_precision_is_that_of_the_rounded_weights():
    """Label and normaliser must see the same weights, or probabilities would not add up to 1."""
    rng = np.random.default_rng(0)
    hidden = rng.normal(size=(6, 8)).astype(jnp.bfloat16)
    kernel, bias = np.float32(rng.normal(size=(20, 8))), np.float32(10 * rng.normal(size=20))
    labels, weights = np.arange(6, dtype=np.int32), np.ones(6, np.float32)

    def written_out(hidden, kernel, bias):
        hidden, kernel, bias = (
            x.astype(jnp.bfloat16).astype(jnp.float32) for x in (hidden, kernel, bias)
        )
        log_p = jax.nn.log_softmax(hidden @ kernel.T + bias[None])
        return -(weights * log_p[jnp.arange(6), labels]).sum()

    def ours(hidden, kernel, bias):
        return linear_cross_entropy(hidden, kernel, bias, labels, weights)

    value, grads = jax.jit(jax.value_and_grad(ours, (0, 1, 2)))(hidden, kernel, bias)
    expected, wanted = jax.jit(jax.value_and_grad(written_out, (0, 1, 2)))(hidden, kernel, bias)
    chex.assert_trees_all_equal_shapes_and_dtypes(grads, wanted)
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    for grad, right in zip(grads, wanted, strict=True):
        grad, right = np.float32(grad), np.float32(right)
        assert np.abs(grad - right).max() < 0.01 * np.abs(right).max()
