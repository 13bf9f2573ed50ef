"""The limits that benchmarks measure the search against compute the same as the search spaces."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import jit

from benchmarks import nas_bench_201, static
from wpl_jax.spaces.micro_cnn import MicroCNN
from wpl_jax.spaces.nas_bench_201 import OPERATIONS, NASBench201
from wpl_jax.spaces.rnn import RNN


def sampled(space, seed=0):
    rng = np.random.default_rng(seed)
    actions = np.array([rng.integers(n) for n in space.decisions], np.int32)
    shapes = jax.eval_shape(space.init, KEY)
    params = jax.tree.map(lambda x: np.float32(rng.normal(size=x.shape) / 2), shapes)
    return jax.device_get(jit(space.decode)(actions)), params


KEY = jax.random.key(0)


def test_a_recurrent_cell_written_out():
    rates = ("input_dropout", "output_dropout", "drop_connect", "embedding_dropout")
    space = RNN(vocabulary=11, nodes=5, units=6, **dict.fromkeys(rates, 0.0))
    architecture, params = sampled(space)
    words = np.random.default_rng(1).integers(11, size=(3, 8), dtype=np.int32)
    hidden = np.full((3, 6), 0.25, np.float32)
    written_out = jit(jax.value_and_grad(static.rnn_loss(space, architecture), has_aux=True))
    own = static.rnn_params(space, params, architecture)
    actual, grads = written_out(own, words, hidden)
    expected, all_grads = jax.device_get(
        jit(jax.value_and_grad(space.loss, has_aux=True))(params, architecture, words, hidden, KEY)
    )
    chex.assert_trees_all_close(actual, expected, rtol=1e-5)
    expected = static.rnn_params(space, all_grads, architecture)
    chex.assert_trees_all_close(grads, expected, rtol=1e-3, atol=1e-6)


@pytest.mark.slow
def test_a_network_written_out():
    space = MicroCNN(classes=3, image_shape=(8, 8, 2), nodes=3, channels=2, cells=1, groups=1)
    architecture, params = sampled(space)
    images, labels = jax.random.normal(KEY, (4, 8, 8, 2)), jnp.arange(4) % 3
    own = static.cnn_params(space, params, architecture)
    written_out = jit(jax.value_and_grad(static.cnn_loss(space, architecture)))
    actual, grads = written_out(own, (images, labels))
    (expected, _), all_grads = jit(jax.value_and_grad(space.loss, has_aux=True))(
        params, architecture, (images, labels)
    )
    chex.assert_trees_all_close(actual, expected, rtol=1e-5)
    expected = static.cnn_params(space, all_grads, architecture)
    chex.assert_trees_all_close(grads, expected, rtol=1e-3, atol=1e-5)


def test_a_network_of_nas_bench_201_written_out_with_convolutions_of_xla():
    space = NASBench201(classes=3, image_shape=(4, 4, 2), channels=2, cells=1)
    architecture = space.decode(np.array([OPERATIONS.index(name) for name in nas_bench_201.ONE]))
    _, params = sampled(space)
    images = np.random.default_rng(0).normal(size=(4, 4, 4, 2)).astype(np.float32)
    with jax.numpy_rank_promotion("allow"):
        actual = jit(nas_bench_201.written_out)(params, architecture, images).logits
    expected = jit(space.apply)(params, architecture, images).logits
    chex.assert_trees_all_close(actual, expected, rtol=1e-4, atol=1e-5)
