"""Search over many devices, in one process and in two, against search on one device."""

import functools
import json
import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import two_processes
from jax import jit

from wpl_jax.search import WPL, Data, Reinforced, Search, SearchConfig
from wpl_jax.search.parallel import everywhere, split_batches
from wpl_jax.spaces.micro_cnn import MicroCNN
from wpl_jax.spaces.rnn import RNN

pytestmark = pytest.mark.devices(8)

BATCH = 56  # no other axis is as long, nor 8 of an eighth of it beside each other
TOLERANCE = 1e-5  # a hundred roundings: sums are taken in another order


def words(seed):
    return np.random.default_rng(seed).integers(11, size=(4, BATCH, 6), dtype=np.int32)


def pictures(seed):
    rng = np.random.default_rng(seed)
    images = rng.integers(256, size=(4, BATCH, 5, 5, 1), dtype=np.uint8)
    return images, rng.integers(5, size=(4, BATCH), dtype=np.int32)


# Explicit plasticity from the second epoch on, REINFORCE, dropout.
CONFIG = SearchConfig(
    **{"architectures": 2, "batches": 2, "chunk": 1, "eval_batches": 2, "at_once": 2}
)
PARTS = Reinforced(steps=4, samples=2), WPL(strength=1.0, warmup_epochs=1)
CELLS = RNN(vocabulary=11, nodes=3, units=6, init_scale=0.3)
CNN = MicroCNN(
    **{"classes": 5, "image_shape": (5, 5, 1), "nodes": 2, "channels": 4, "cells": 1},
    **{"drop_path": 0.3, "groups": 8},
)
SEARCHES = {
    "rnn": (Search(CELLS, CONFIG, optax.sgd(0.1), *PARTS), Data(words(0), words(1))),
    "cnn": (Search(CNN, CONFIG, optax.sgd(1e-3), *PARTS), Data(pictures(0), pictures(1))),
}
STEPS = 2 * CONFIG.architectures
# Compiling a search of convolutional cells takes over a minute.
searches = pytest.mark.parametrize("name", ["rnn", pytest.param("cnn", marks=pytest.mark.slow)])


@functools.cache
def run(name, count=None):
    """A search on ``count`` devices, or all: the compiled step, the states, what each reported."""
    search, data = SEARCHES[name]
    devices = jax.devices()[:count]
    data = split_batches(data, devices)
    state = jit(search.init, out_shardings=everywhere(devices))(jax.random.key(0))
    step = jit(search.step, donate_argnums=0, out_shardings=everywhere(devices))
    step = step.lower(state, data).compile()  # and refuses what is put elsewhere
    states, progress = [state], []
    for _ in range(STEPS):
        state, report = step(state, data)
        states.append(state)
        progress.append(jax.device_get(report))
    return step, states, progress


@searches
@pytest.mark.slow
def test_eight_devices_report_what_one_does(name):
    *_, one = run(name, 1)
    *_, eight = run(name, 8)
    assert [bool(report.finished) for report in one] == [False, True] * 2
    assert one[-1].epoch.reward.all() and one[-1].epoch.err2.all()
    chex.assert_trees_all_close(eight, one, rtol=TOLERANCE)
    for report in one:  # the batches, and so each device's part, do matter
        assert not np.isclose(report.loss, one[0].loss, rtol=10 * TOLERANCE) or report is one[0]


@searches
def test_the_state_stays_whole_on_every_device_and_is_donated(name):
    _, states, _ = run(name, 8)
    for leaf in jax.tree.leaves(states[-1]):
        assert leaf.is_fully_replicated and len(leaf.sharding.device_set) == 8
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(states[:-1]))
    _, one, _ = run(name, 1)
    actual, expected = (jax.device_get((s[-1].params, s[-1].opt_state)) for s in (states, one))
    chex.assert_trees_all_close(actual, expected, rtol=1e-3, atol=TOLERANCE)


def arrays_with_axis(program, length):
    return re.findall(rf"\w+\[(?:\d+,)*{length}(?:,\d+)*\]", program)


@searches
def test_no_device_computes_with_a_whole_batch(name):
    alone, together = (run(name, count)[0].as_text() for count in (1, 8))
    assert arrays_with_axis(alone, BATCH) and "all-reduce" not in alone
    assert not arrays_with_axis(together, BATCH)
    assert arrays_with_axis(together, BATCH // 8) and "all-reduce" in together


@pytest.mark.slow
def test_convolutional_cells_on_eight_devices():
    """Augmentation, loss and gradient, which compile in a fraction of the time of a search."""
    actions = jnp.arange(len(CNN.decisions)) % jnp.array(CNN.decisions)
    architecture, key = CNN.decode(actions), jax.random.key(2)

    def loss(params, split):
        return CNN.loss(params, architecture, CNN.batch(split, 5, key), (), key)[0]

    def on(count, function):
        devices = jax.devices()[:count]
        data = split_batches(pictures(0), devices)
        params = jit(CNN.init, out_shardings=everywhere(devices))(jax.random.key(0))
        compiled = jit(function, out_shardings=everywhere(devices)).lower(params, data).compile()
        return compiled(params, data), compiled.as_text()

    one, alone = on(1, loss)
    (eight, grads), together = on(8, jax.value_and_grad(loss))
    np.testing.assert_allclose(eight, one, rtol=TOLERANCE)
    assert optax.tree.norm(grads) > 0.1
    assert arrays_with_axis(alone, BATCH) and not arrays_with_axis(together, BATCH)
    assert "all-reduce" in together and "all-gather" not in together


def test_data_that_cannot_be_split():
    with pytest.raises(ValueError, match="batch of 56 cannot be split over 6 devices; choose a mu"):
        split_batches(words(0), jax.devices()[:6])
    with pytest.raises(ValueError, match=r"axes \[batches, batch, ...\], got shape \(3,\)"):
        split_batches({"labels": np.zeros(3)})


# --- Two processes --------------------------------------------------------------------------------


def one_of_two_processes(coordinator, number, name):
    """What each of the two processes runs: the search, on the devices of both."""
    jax.distributed.initialize(coordinator, 2, int(number), initialization_timeout=60)
    _, states, progress = run(name)
    report = {
        "devices": [jax.device_count(), jax.local_device_count()],
        "trained": int(states[-1].trained),
        "progress": jax.tree.map(lambda x: x.tolist(), jax.tree.leaves(progress)),
    }
    print(json.dumps(report))


@searches
def test_two_processes_report_what_one_does(name):
    with two_processes.reporting("test_parallel", name, timeout=600) as reports:
        *_, expected = run(name, 1)  # while they start
        found = reports()
    for report in found:
        assert (report["devices"], report["trained"]) == ([4, 2], STEPS)
        for actual, wanted in zip(report["progress"], jax.tree.leaves(expected), strict=True):
            np.testing.assert_allclose(actual, wanted, rtol=TOLERANCE)
