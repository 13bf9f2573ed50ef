"""The micro-CNN space's pass, training and measuring, against a plain network."""

import dataclasses
import itertools
import math
from collections import Counter

import chex
import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import jit
from plain_micro_cnn import (
    BATCH,
    EVEN,
    KERNELS,
    ODD,
    SEEDS,
    STAGES,
    apply,
    by_hand,
    close,
    cross_entropy,
    draw,
    everything,
    full_mask,
    layers,
    loose_ends,
    loss,
    loss_and_grads,
    plain,
    random_architecture,
    score,
    spaces,
)

from wpl_jax.search import WPL, Data, Search, SearchConfig, Uniform
from wpl_jax.spaces import images as of_images
from wpl_jax.spaces.micro_cnn import OPERATIONS, Architecture, Cell, MicroCNN, network

# --- Against the plain network --------------------------------------------------------------------


def test_what_the_architectures_compared_have_in_them():
    """All operations in both cells, and inputs of a cell that no node reads."""
    for space in (ODD, EVEN):
        found = [random_architecture(space, seed) for seed in SEEDS]
        for cells in zip(*found, strict=True):
            assert {int(i) for c in cells for i in c.operations.ravel()} == set(range(5))
            assert len({len(loose_ends(c)) for c in cells}) > 1
        assert any({0, 1} & set(loose_ends(c)) for cells in found for c in cells)


@pytest.mark.parametrize("seed", SEEDS)
def test_passes_and_gradients_equal_those_of_the_plain_network(seed, float64):
    params, images, labels = draw(ODD, seed)
    architecture = random_architecture(ODD, seed)
    (expected_loss, outputs), expected_grads = plain(ODD, seed)(params, images, labels, None)
    (actual, carry), grads = loss_and_grads(ODD, params, architecture, (images, labels), None)
    close(actual, expected_loss)
    close(grads, expected_grads)
    assert carry == ()
    close(tuple(apply(ODD, params, architecture, images)), outputs)
    again = apply(ODD, params, architecture, images, outputs[-1])  # by statistics of its own
    close(tuple(again), outputs)


def test_a_pass_by_given_statistics_equals_that_of_the_plain_network(float64):
    params, images, _ = draw(ODD, 0)
    architecture = random_architecture(ODD, SEEDS[0])
    rng = np.random.default_rng(0)
    given = jax.tree.map(lambda s: rng.uniform(0.5, 1.5, s.shape), ODD.init_statistics())
    expected = by_hand(ODD, params, architecture, images, given)
    close(tuple(apply(ODD, params, architecture, images, given)), expected)


@pytest.mark.parametrize("seed", SEEDS)
def test_drop_path_and_the_auxiliary_head_equal_those_of_the_plain_network(seed, float64):
    params, images, labels = draw(EVEN, seed)
    architecture, key = random_architecture(EVEN, seed), jax.random.key(seed)
    for progress in (1.0, 0.4, 0.0):
        keep = EVEN._keep(architecture, key, progress, BATCH, jnp.float64)
        (expected_loss, outputs), expected_grads = plain(EVEN, seed)(params, images, labels, keep)
        output = apply(EVEN, params, architecture, images, key=key, progress=progress)
        close(tuple(output), outputs)
        assert output.auxiliary.shape == output.logits.shape == (BATCH, 3)
        if progress == 1:
            assert any((factors == 0).any() for factors in keep)
            actual, grads = loss_and_grads(EVEN, params, architecture, (images, labels), key)
            close(actual[0], expected_loss)
            close(grads, expected_grads)
    chex.assert_trees_all_equal(keep, everything())  # at the start of training


def test_groups_are_a_matter_of_layout(float64):
    params, images, _ = draw(ODD, 3)
    architecture = random_architecture(ODD, 5)
    expected = apply(ODD, params, architecture, images)  # of two groups
    close(apply(dataclasses.replace(ODD, groups=4), params, architecture, images), expected)
    with pytest.raises(ValueError, match="a multiple of groups=2, got 3 images"):
        ODD.apply(params, architecture, images[:3])


# --- One program, of which little runs ------------------------------------------------------------


def test_only_the_sampled_operations_are_executed(monkeypatch):
    ran = Counter()

    def counted(name, branch):
        def run(x, weights, given):
            jax.debug.callback(lambda: ran.update([name]))
            return branch(x, weights, given)

        return run

    names = (*OPERATIONS, "read", "loose")
    branches = (*network.BRANCHES, *network.PROJECTIONS)
    wrapped = [counted(name, branch) for name, branch in zip(names, branches, strict=True)]
    monkeypatch.setattr(network, "BRANCHES", tuple(wrapped[:5]))
    monkeypatch.setattr(network, "PROJECTIONS", tuple(wrapped[5:]))
    params, images, _ = draw(ODD, 0, np.float32)
    counting = jit(lambda *arguments: ODD.apply(*arguments).logits)
    for seed in SEEDS:
        architecture = random_architecture(ODD, seed)
        expected = Counter()
        counts = {"normal": STAGES * ODD.cells, "reduction": STAGES - 1}
        for name, count in counts.items():
            own = getattr(architecture, name)
            for operation in own.operations.ravel():
                expected[OPERATIONS[operation]] += count
            ends = len(loose_ends(own))
            expected.update({"loose": count * ends, "read": count * (ODD.nodes + 2 - ends)})
        ran.clear()
        jax.block_until_ready(counting(params, architecture, images))
        jax.effects_barrier()
        assert ran == expected
    assert counting._cache_size() == 1


def branches_in(jaxpr):
    """How many branches each switch has in a program, those inside of its parts included."""
    found = []
    for equation in jaxpr.eqns:
        if equation.primitive.name == "cond":
            found.append(len(equation.params["branches"]))
        for inner in jax.extend.core.jaxprs_in_params(equation.params):
            found += branches_in(inner)
    return found


def test_the_program_does_not_grow_with_the_depth():
    """A cell for each stage: a switch of its operations, and one of its loose ends."""
    for cells in (1, 3):
        space = dataclasses.replace(ODD, cells=cells)
        params, images, _ = draw(space, 0, np.float32)
        program = jax.make_jaxpr(space.apply)(params, random_architecture(space, 0), images)
        assert Counter(branches_in(program.jaxpr)) == {5: 3, 2: 3}


def test_one_program_serves_all_architectures(float64):
    """One after another and many at once."""
    params, images, _ = draw(ODD, 6)
    architectures = [random_architecture(ODD, seed) for seed in range(10, 13)]
    before = apply._cache_size()
    singles = [apply(ODD, params, architecture, images) for architecture in architectures]
    assert apply._cache_size() <= before + 1
    stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *architectures)
    together = jit(jax.vmap(ODD.apply, (None, 0, None)))(params, stacked, images)
    close(together, jax.tree.map(lambda *leaves: np.stack(leaves), *singles))


# --- Batch norm and measuring ---------------------------------------------------------------------


@spaces
def test_initial_statistics(space):
    """Means 0 and variances 1, in the form of those of a batch."""
    start = space.init_statistics()
    shapes = jax.eval_shape(
        space.apply,
        jax.eval_shape(space.init, jax.random.key(0)),
        random_architecture(space, 0),
        jax.ShapeDtypeStruct((BATCH, *space.image_shape), jnp.float32),
    ).statistics
    chex.assert_trees_all_equal_shapes_and_dtypes(start, shapes)
    for leaf in jax.tree.leaves(start):
        assert leaf.dtype == jnp.float32
        np.testing.assert_array_equal(leaf[..., 0, :], np.zeros_like(leaf[..., 0, :]))
        np.testing.assert_array_equal(leaf[..., 1, :], np.ones_like(leaf[..., 1, :]))


def test_statistics_of_the_stem_are_those_of_its_batch(float64):
    """Where it sees every other pixel of the images' first channel, and nothing around it."""
    params, images, _ = draw(ODD, 12)
    params["stem"]["kernel"] = np.zeros((3, 2, 3, 2))
    params["stem"]["kernel"][1, :, 1, 0] = 1, 2  # the middle of 3x3
    actual = apply(ODD, params, random_architecture(ODD, 0), images).statistics["stem"]
    seen = images[:, ::2, ::2, 0]
    mean, variance = np.mean(seen), np.var(seen)
    close(actual, np.array([[mean, 2 * mean], [variance, 4 * variance]]))


def test_images_do_not_depend_on_each_other_given_statistics(float64):
    params, images, _ = draw(ODD, 7)
    _, others, _ = draw(ODD, 8)
    architecture = random_architecture(ODD, 7)
    statistics = apply(ODD, params, architecture, others).statistics
    mixed = np.concatenate([images[:1], others[1:]])
    logits = apply(ODD, params, architecture, images, statistics).logits
    mine = apply(ODD, params, architecture, mixed, statistics).logits
    np.testing.assert_array_equal(mine[0], logits[0])
    assert abs(mine[1:] - logits[1:]).min() > 1e-4
    reversed_ = apply(ODD, params, architecture, images[::-1].copy(), statistics).logits
    close(reversed_[::-1], logits)
    by_batch = apply(ODD, params, architecture, images).logits
    assert abs(by_batch[0] - apply(ODD, params, architecture, mixed).logits[0]).max() > 1e-4


def test_score_counts_the_images_misclassified(float64):
    """Not padding, whatever it looks like; and each image by itself."""
    params, images, labels = draw(EVEN, 9)
    architecture = random_architecture(EVEN, SEEDS[0])
    (_, (logits, _, statistics)), _ = plain(EVEN, SEEDS[0])(params, images, labels, everything())
    before = jax.tree.map(np.copy, (params, images, statistics))
    right = np.asarray(logits).argmax(-1).astype(np.int32)

    def scored(labels, images=images, params=params):
        batch = images, np.array(labels, np.int32)
        return tuple(map(float, score(EVEN, params, architecture, batch, statistics)))

    assert scored(right) == (0, 4)
    assert scored((right + 1) % 3) == (4, 4)
    assert scored([right[0], (right[1] + 1) % 3, right[2], -1]) == (1, 3)
    assert scored([-1] * 4) == (0, 0)
    for order in itertools.permutations(range(4)):
        picked = images[list(order)]
        assert scored(right, picked) == ((right != right[list(order)]).sum(), 4)
    assert scored(right[:1].repeat(4), images[:1].repeat(4, 0)) == (0, 4)

    bad = np.concatenate([images[:3], np.full_like(images[3:], np.nan)])
    assert scored([*right[:3], -1], bad) == (0, 3)
    total, count = scored(right, bad)
    assert math.isnan(total) and count == 4
    without = {**params, "auxiliary": jax.tree.map(lambda p: p * np.nan, params["auxiliary"])}
    assert scored((right + 1) % 3, params=without) == (4, 4)
    chex.assert_trees_all_equal((params, images, statistics), before)


def test_error_and_reward():
    errors = jnp.array([0.0, 0.25, 1.0, jnp.nan, jnp.inf])
    np.testing.assert_array_equal(ODD.error(errors), errors)
    np.testing.assert_allclose(ODD.reward(errors), [1, 0.75, 0, 0, 0])


def test_cross_entropy_without_padding(float64):
    logits = np.random.default_rng(0).normal(size=(5, 3))
    labels = np.array([2, -1, 0, 1, -1], np.int32)
    probs = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    expected = -np.mean([np.log(probs[i, labels[i]]) for i in (0, 2, 3)])
    value, grad = jax.value_and_grad(of_images.cross_entropy)(logits, labels)
    np.testing.assert_allclose(value, expected)
    np.testing.assert_array_equal(np.any(grad, axis=1), labels >= 0)
    value, grad = jax.value_and_grad(of_images.cross_entropy)(logits, np.full(5, -1, np.int32))
    assert value == 0 and not grad.any()


# --- What training adds ---------------------------------------------------------------------------


def test_the_loss_without_a_key_is_the_likelihoods_alone(float64):
    """Nothing is dropped, and the auxiliary head does not count."""
    params, images, labels = draw(EVEN, 10)
    architecture = random_architecture(EVEN, SEEDS[0])
    (with_both, outputs), _ = plain(EVEN, SEEDS[0])(params, images, labels, everything())
    expected = cross_entropy(outputs[0], labels)
    close(loss(EVEN, params, architecture, (images, labels)), expected)
    assert with_both - expected > 0.1


def test_the_loss_is_that_of_the_log_probabilities():
    """With the same drop-path; an image that is padding has zeros."""
    space = dataclasses.replace(EVEN, auxiliary=0.0, drop_path=0.5)
    params, images, labels = draw(space, 10, np.float32)
    arguments = params, random_architecture(space, 10), (images, labels), (), jax.random.key(0)

    @jit
    def both(*arguments):
        return space.log_probs(*arguments)[0], space.loss(*arguments)[0]

    log_probs, expected = both(*arguments)
    there = np.asarray(labels) >= 0
    picked = np.take_along_axis(log_probs, np.maximum(labels, 0)[:, None], 1)[there]
    np.testing.assert_allclose(-picked.mean(), expected, rtol=1e-5)
    assert 0 < there.sum() < len(labels)
    np.testing.assert_array_equal(np.any(log_probs, axis=1), there)


def test_without_drop_path_nothing_is_random():
    """The program is the one without a key."""
    params, images, _ = draw(EVEN, 11, np.float32)
    architecture, key = random_architecture(EVEN, 11), jax.random.key(0)

    def program(space, key):
        return str(jax.make_jaxpr(space.apply)(params, architecture, images, None, key))

    off = dataclasses.replace(EVEN, drop_path=0.0)
    for text in (program(off, key), program(EVEN, None)):
        assert "random_bits" not in text and "threefry" not in text
    assert "random_bits" in program(EVEN, key)


def test_drop_path():
    """Rates that rise to the last cell, for each image alone; what is left makes up for it."""
    space = dataclasses.replace(ODD, drop_path=0.6)
    names = [["identity", "sep_conv_3x3"], ["max_pool_3x3", "identity"]]
    operations = np.array([[OPERATIONS.index(name) for name in row] for row in names], np.int32)
    own = Cell(np.zeros((2, 2), np.int32), operations)
    architecture = Architecture(own, own)
    keys, layers = jax.random.split(jax.random.key(0), 2_000), 8
    for progress in (1.0, 0.5):
        keep = jit(
            jax.vmap(
                lambda key, progress=progress: space._keep(
                    architecture, key, progress, 6, jnp.float32
                )
            )
        )(keys)
        kept = np.concatenate(keep, axis=1)
        assert kept.shape == (2_000, layers, 4, 2, 3)
        np.testing.assert_array_equal(kept[:, :, [0, 3]], np.ones_like(kept[:, :, [0, 3]]))
        kept = kept[:, :, [1, 2]]
        for layer in range(layers):
            rate = 0.6 * progress * (layer + 1) / layers
            drawn = kept[:, layer]
            zero = drawn == 0
            np.testing.assert_allclose(drawn[~zero], 1 / (1 - rate), rtol=1e-5)
            assert abs(zero.mean() - rate) < 4 * np.sqrt(rate * (1 - rate) / drawn.size)
            assert abs(drawn.mean() - 1) < 4 * np.sqrt(rate / (1 - rate) / drawn.size)
        flat = (kept[:, -1] == 0).reshape(2_000, -1).astype(float)
        correlations = np.corrcoef(flat.T) - np.eye(12)
        assert np.abs(correlations).max() < 4.5 / np.sqrt(2_000)


def test_the_auxiliary_head_has_parameters_where_it_counts():
    without = dataclasses.replace(EVEN, auxiliary=0.0)
    key = jax.random.key(0)
    params, others = (jax.eval_shape(space.init, key) for space in (EVEN, without))
    assert set(params) - set(others) == {"auxiliary"}
    chex.assert_trees_all_equal_shapes(
        {k: v for k, v in params.items() if k != "auxiliary"}, others
    )
    large = MicroCNN(auxiliary=0.4)
    shapes = jax.eval_shape(large.init, key)["auxiliary"]
    assert shapes["second"]["kernel"].shape == (768, 128 * 2 * 2)  # of 8x8 pixels
    assert shapes["first"]["kernel"].shape == (128, 80)
    architecture = random_architecture(large, 0)
    images = jax.ShapeDtypeStruct((2, 32, 32, 3), jnp.float32)
    output = jax.eval_shape(large.apply, jax.eval_shape(large.init, key), architecture, images)
    assert output.auxiliary.shape == output.logits.shape == (2, 10)
    # Without the head there are no logits of it.
    images = jax.ShapeDtypeStruct((2, *without.image_shape), jnp.float32)
    output = jax.eval_shape(without.apply, others, random_architecture(without, 0), images)
    assert output.auxiliary is None


def test_initial_parameters():
    space = MicroCNN(classes=7, image_shape=(16, 16, 3), nodes=2, channels=8, cells=2)
    params = jax.device_get(jit(space.init)(jax.random.key(0)))

    def check(kernel, deviation):
        assert abs(np.std(kernel) / deviation - 1) < 4 / np.sqrt(2 * kernel.size)
        assert abs(np.mean(kernel)) < 4 * deviation / np.sqrt(kernel.size)

    check(params["stem"]["kernel"], np.sqrt(2 / 27))
    check(params["classifier"]["kernel"], np.sqrt(1 / 32))
    for stage, own in enumerate(params["stages"]):
        c, lead = 8 * 2**stage, (len(layers(space, stage)), 10, 2)
        for name, size in KERNELS.items():
            assert own[name]["depthwise"].shape == (*lead, c, size, size)
            assert own[name]["pointwise"].shape == (*lead, c, c)
            check(own[name]["depthwise"], np.sqrt(2 / size**2))
            check(own[name]["pointwise"], np.sqrt(2 / c))
        assert own["project"].shape == (lead[0], 4, c, c)
        check(own["project"], np.sqrt(1 / c))
    for i, own in enumerate(params["inputs"]):
        before = 8 * 2**i
        assert own["h_0"]["kernel"].shape == (2, before, before)
        check(own["h_0"]["kernel"], np.sqrt(2 / before))
        assert not np.array_equal(own["h_0"]["kernel"], own["h_1"]["kernel"])

    drawn = [x for x in jax.tree.leaves(params) if len(np.unique(x)) > 1]
    for a, b in itertools.combinations(drawn, 2):
        n = min(a.size, b.size)
        assert not np.isin(a.ravel()[:n], b).all()

    def check_norm(path, leaf):
        if path[-1].key in ("scale", "bias"):
            assert (leaf == (path[-1].key == "scale")).all()
        assert leaf.dtype == np.float32

    jax.tree.map_with_path(check_norm, params)


# --- Searching ------------------------------------------------------------------------------------

SEARCH = Search(
    MicroCNN(
        **{"classes": 3, "image_shape": (6, 6, 1), "nodes": 2, "channels": 2, "cells": 1},
        **{"crop_padding": 1, "cutout": 2},
    ),
    SearchConfig(architectures=2, batches=2, chunk=1, eval_batches=1),
    optax.chain(optax.add_decayed_weights(0.01), optax.sgd(0.1, momentum=0.8)),
    Uniform(),
    WPL(strength=10.0, warmup_epochs=1, flush_every=0),
)


def photographs(seed, batches):
    rng = np.random.default_rng(seed)
    images = rng.integers(256, size=(batches, BATCH, 6, 6, 1)).astype(np.uint8)
    return jnp.array(images), jnp.array(rng.integers(3, size=(batches, BATCH)), jnp.int32)


@pytest.mark.slow
def test_a_search_changes_what_it_samples_and_nothing_else():
    """Not by momentum, weight decay or plasticity; in one program; every number finite."""
    data = Data(photographs(0, 3), photographs(1, 2))
    step = jit(SEARCH.step)
    states = [jit(SEARCH.init)(jax.random.key(0))]
    for n in range(4):
        state, report = step(states[-1], data)
        chex.assert_tree_all_finite(report)
        assert report.finished == (n % 2 == 1) and 0 <= report.err1[0] <= 1
        if report.finished:
            np.testing.assert_allclose(report.epoch.err1, state.err1)
            assert report.epoch.loss.min() > 0
        states.append(state)
    assert step._cache_size() == 1 and states[-1].skipped == 0
    assert len(np.unique(np.concatenate([s.actions for s in states[1:]]), axis=0)) > 3

    for n, (before, after) in enumerate(itertools.pairwise(states)):
        architecture = SEARCH.space.decode(after.actions[n % 2])
        mask = full_mask(SEARCH.space, architecture, before.params)
        assert 0 < np.concatenate([m.ravel() for m in jax.tree.leaves(mask)]).mean() < 1
        for name in ("params", "trace", "anchor", "fisher"):
            trees = [
                s.params if name == "params" else optax.tree.get(s.opt_state, name)
                for s in (before, after)
            ]
            for x, y, inside in zip(*map(jax.tree.leaves, (*trees, mask)), strict=True):
                x, y = np.asarray(x), np.asarray(y)
                assert x[~inside].tobytes() == y[~inside].tobytes()
                if name in ("params", "trace") and inside.any():
                    assert (x != y)[inside].any()
        protected = optax.tree.get(after.opt_state, "fisher")
        assert any(np.any(f) for f in jax.tree.leaves(protected)) == (n >= 2)
