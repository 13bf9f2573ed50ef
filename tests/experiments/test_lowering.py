"""What a GPU or TPU would run is lowered for them here, where there is neither.

Lowering is what JAX does before a compiler of the device takes over: it fails where something has
no form for a platform. No such program may call back to the host, or have numbers in float64.
"""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import wpl_jax
from benchmarks.networks import NETWORKS
from examples.layers_space import ACTIVATIONS, Digits, Layers
from experiments import spaces
from experiments.search import search_of
from experiments.search_many import OWN, OWN_PROGRESS
from experiments.spaces.rnn.final import Part
from experiments.two_models import training as two_models
from experiments.two_models.__main__ import over_seeds
from experiments.two_models.settings import TwoModels
from wpl_jax.data import Images, Splits
from wpl_jax.search import Data

PLATFORMS = ("cuda", "rocm", "tpu")
KEY = jax.eval_shape(lambda: jax.random.key(0))


def lower(function, *arguments):
    """The program for all of these platforms, as text."""
    jitted = function if hasattr(function, "trace") else jax.jit(function)
    text = jitted.trace(*arguments).lower(lowering_platforms=PLATFORMS).as_text()
    assert "callback" not in text
    assert not re.search(r"[x<]f64>", text)
    return text


def array(*shape, dtype=jnp.int32):
    return jax.ShapeDtypeStruct(shape, dtype)


def images(*lead, of):
    return Images(array(*lead, *of, dtype=jnp.uint8), array(*lead))


def data_of(config):
    if config.space == "rnn":
        of_both = array(100, config.batch_size, config.length + 1)
    else:
        of_both = images(100, config.batch_size, of=config.search_space.image_shape)
    return Data(of_both, of_both)


def paper(name, which):
    """The preset, with all that has to be known of the data."""
    config = getattr(spaces.find(name), which)["paper"]
    return config.with_space(vocabulary=10_000) if name == "rnn" else config


@pytest.mark.parametrize("name", spaces.TASKS)
def test_searches(name):
    config = paper(name, "searches")
    at_once = dataclasses.replace(config.search, at_once=10)  # as on a GPU or TPU by default
    search = search_of(dataclasses.replace(config, search=at_once))
    text = lower(search.step, jax.eval_shape(search.init, KEY), data_of(config))
    assert "bf16" not in text


@pytest.mark.parametrize("name", spaces.TASKS)
def test_final_trainings_in_half_precision(name):
    task = spaces.find(name)
    config = paper(name, "finals").with_space(compute_dtype="bfloat16")
    space, data = config.search_space, data_of(config)
    actions = jnp.zeros(len(space.decisions), jnp.int32)
    training = task.training(config, space.decode(actions), task)
    state = jax.eval_shape(training.init, KEY, data.train)
    assert "bf16" in lower(training.train, state, data.train)
    validation = data.validation
    if name == "rnn":
        words = array(100, config.batch_size, config.length + 1)
        validation = Part(words, array(100, config.batch_size, config.length, dtype=jnp.float32))
    lower(training.finish, state, data.train, validation)


# What methods, and several searches side by side, add to a space's own program: of a small space.


class Complete(Layers):
    """With all that any sampler or method here needs: each kernel is an operation with weights."""

    @property
    def parametric(self):
        return ((True,) * self.kernels, (False,) * len(ACTIVATIONS)) * self.layers

    def log_probs(self, params, architecture, batch, carry, key):
        return jax.nn.log_softmax(self.logits(params, architecture, batch.images)), carry


@pytest.mark.parametrize("method", ["wpl", "l2", "replay", "momentum", "distillation"])
def test_methods(method):
    search, data = small_search(method)
    lower(search.step, jax.eval_shape(search.init, KEY), data)


def test_several_searches_in_one_program():
    search, data = small_search("wpl")
    step = jax.vmap(search.step, (OWN, None), (OWN, OWN_PROGRESS))
    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), 3))
    lower(step, jax.eval_shape(jax.vmap(search.init, out_axes=OWN), keys), data)


def small_search(method):
    config = Digits.searches["smoke"]
    config = dataclasses.replace(config, method=method, sampler="balanced", layers=Complete())
    data = images(100, config.batch_size, of=(28, 28, 1))
    return search_of(config), Data(data, data)


def test_two_models():
    config = TwoModels()
    splits = Splits(*(images(n, of=(28, 28, 1)) for n in (4_000, 500, 500)))
    methods = two_models.stack(two_models.Method(1.0, True, 4, 0.1, 0.9))
    program = over_seeds(functools.partial(two_models.run, config))
    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), 10))
    lower(program, splits, keys, np.float32(0.55), methods)


@pytest.mark.parametrize("network", NETWORKS)
def test_fishers(network):
    problem = NETWORKS[network](batch=4)
    loss = problem.nll
    lower(wpl_jax.empirical_fisher(loss), problem.params, problem.batch)
    lower(wpl_jax.empirical_fisher(loss, max_bytes=2**20), problem.params, problem.batch)
