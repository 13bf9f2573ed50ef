"""The two models: what B may change, what it may not, and when A stops."""

import dataclasses
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments.two_models import training as shared_mlps
from experiments.two_models.settings import TwoModels
from experiments.two_models.training import FROZEN, NEVER, Method, stack
from wpl_jax.data import Images, Splits, load_images

CONFIG = TwoModels(
    width=16,
    batch_size=16,
    a_steps=200,
    a_learning_rate=0.2,
    b_steps=200,
    eval_every=50,
    eval_images=100,
    fisher_images=50,
)


@pytest.fixture(scope="module")
def data() -> Splits:
    return jax.device_put(load_images("mnist5k"))


def method(strength=0.0, use_fisher=True, shared=4, learning_rate=0.1, momentum=0.5) -> Method:
    return Method(strength, use_fisher, shared, learning_rate, momentum)


@pytest.fixture(scope="module")
def program(data):
    run = jax.jit(functools.partial(shared_mlps.run, CONFIG))
    return lambda key, stop_at, methods: run(data, key, stop_at, stack(*methods))


def test_curves_start_at_the_baseline_and_end_at_the_final_accuracy(data):
    everything = dataclasses.replace(CONFIG, eval_images=len(data.validation.labels))
    baseline, outcome = jax.jit(functools.partial(shared_mlps.run, everything))(
        data, jax.random.key(0), NEVER, stack(method())
    )
    chex.assert_shape(outcome.curve_a, (1, CONFIG.b_steps // CONFIG.eval_every + 1))
    np.testing.assert_allclose(outcome.curve_a[0, 0], baseline.validation, rtol=1e-6)
    np.testing.assert_allclose(outcome.curve_a[:, -1], outcome.final_a.validation, rtol=1e-6)
    np.testing.assert_allclose(outcome.curve_b[:, -1], outcome.final_b.validation, rtol=1e-6)


def test_frozen_layers_keep_a_exactly_and_strength_0_makes_the_fisher_irrelevant(program):
    methods = [method(FROZEN, False), method(0.0, True), method(0.0, False)]
    baseline, outcome = program(jax.random.key(1), NEVER, methods)
    np.testing.assert_array_equal(outcome.curve_a[0], outcome.curve_a[0, 0])
    assert outcome.final_a.test[0] == baseline.test
    chex.assert_trees_all_equal(*(jax.tree.map(lambda x, i=i: x[i], outcome) for i in (1, 2)))
    assert outcome.curve_b[0, -1] > outcome.curve_b[0, 0]  # and B learns all the same


def test_b_moves_a_only_through_the_shared_layers(program):
    _, outcome = program(jax.random.key(2), NEVER, [method(shared=0), method(shared=4)])
    np.testing.assert_array_equal(outcome.curve_a[0], outcome.curve_a[0, 0])
    assert not np.array_equal(outcome.curve_a[1], np.full(5, outcome.curve_a[1, 0]))


def test_a_stops_at_the_first_step_at_which_its_accuracy_reaches_the_bound(data):
    key, bound = jax.random.key(3), 0.2

    @jax.jit
    def trained(steps):
        """A after so many steps, by the plain loop."""
        init_key, data_key = jax.random.split(key)
        model, tx = shared_mlps.model_a(CONFIG), optax.sgd(CONFIG.a_learning_rate)
        params = shared_mlps.init(model, init_key, data)

        def step(i, carry):
            batch = shared_mlps.sample_batch(CONFIG, data.train, data_key, i)
            return shared_mlps.sgd_step(model, tx, *carry, batch)

        params, _ = jax.lax.fori_loop(0, steps, step, (params, tx.init(params)))
        return params, shared_mlps.accuracy(model, params, shared_mlps.monitored(CONFIG, data))

    reached = next(steps for steps in range(1, CONFIG.a_steps) if trained(steps)[1] >= bound)
    stopped = jax.jit(functools.partial(shared_mlps.train_a, CONFIG))(data, key, bound)
    chex.assert_trees_all_close(stopped, trained(reached)[0], rtol=1e-6)
    to_the_end = jax.jit(functools.partial(shared_mlps.train_a, CONFIG))(data, key, NEVER)
    chex.assert_trees_all_close(to_the_end, trained(CONFIG.a_steps)[0], rtol=1e-6)


@pytest.mark.slow
def test_seeds_are_vmapped_without_changing_their_results(data, program):
    keys = jax.random.split(jax.random.key(4), 2)
    methods = [method(10.0)]
    together = jax.jit(
        jax.vmap(functools.partial(shared_mlps.run, CONFIG), in_axes=(None, 0, None, None))
    )(data, keys, NEVER, stack(*methods))
    apart = [program(key, NEVER, methods) for key in keys]
    # Matrix products of another shape round differently: a few images of hundreds may change sides.
    chex.assert_trees_all_close(
        together, jax.tree.map(lambda *leaves: jnp.stack(leaves), *apart), atol=0.02
    )


def test_one_compilation_serves_every_method_and_stopping_point(data):
    traces = []

    def counted(data, key, stop_at, methods):
        traces.append(None)
        return shared_mlps.run(CONFIG, data, key, stop_at, methods)

    run = jax.jit(counted)
    run(data, jax.random.key(0), NEVER, stack(method()))
    run(data, jax.random.key(1), 0.2, stack(method(1e3, False, 2, 0.2, 0.9)))
    assert len(traces) == 1


def test_accuracy_counts_every_image_once_whatever_the_batching():
    config = dataclasses.replace(CONFIG, width=4)
    model = shared_mlps.model_a(config)
    rng = np.random.default_rng(0)
    images = Images(
        jnp.asarray(rng.integers(0, 256, (1_003, 28, 28, 1), np.uint8)),
        jnp.asarray(rng.integers(0, 10, 1_003)),
    )
    params = model.init(jax.random.key(0), images.images[:1])["params"]
    predicted = model.apply({"params": params}, images.images).argmax(-1)
    expected = np.mean(np.asarray(predicted) == np.asarray(images.labels))
    np.testing.assert_allclose(shared_mlps.accuracy(model, params, images), expected, rtol=1e-6)
