"""The published searches at their full sizes, on a CPU: a few steps, on random words and pixels.

They take up to 4.5 GiB of memory, and minutes.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
import pytest

from benchmarks.end_to_end import data_of
from experiments import spaces
from experiments.search import search_of


@pytest.mark.slow
@pytest.mark.parametrize(("name", "batches"), [("rnn", 8), ("micro_cnn", 2)])
def test_two_architectures_and_all_that_ends_an_epoch(name, batches):
    config = spaces.find(name).searches["paper"]
    epoch = dataclasses.replace(
        config.search, architectures=2, chunk=1, batches=batches, eval_batches=1
    )
    controller = dataclasses.replace(config.controller, steps=2)
    config = dataclasses.replace(
        config, search=epoch, controller=controller, method="wpl", warmup_epochs=0
    )
    search = search_of(config)
    state = jax.jit(search.init)(jax.random.key(0))
    before = jax.tree.map(jnp.copy, state.params)
    step = jax.jit(search.step, donate_argnums=0)
    for _ in range(epoch.architectures):
        state, progress = step(state, data_of(config))

    assert progress.finished and int(state.skipped) == 0
    # Words and labels are drawn at random: nothing can be learned but how many there are.
    space = config.search_space
    classes = space.vocabulary if name == "rnn" else space.classes
    assert progress.epoch.loss == pytest.approx([math.log(classes)] * 2, rel=0.2)
    for leaf in jax.tree.leaves(progress.epoch):
        assert jnp.isfinite(leaf).all()
    moved = jax.tree.map(lambda a, b: (a != b).any(), state.params, before)
    assert sum(map(bool, jax.tree.leaves(moved))) > len(jax.tree.leaves(moved)) / 2
