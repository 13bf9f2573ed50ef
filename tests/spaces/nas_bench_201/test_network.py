"""NAS-Bench-201's pass, training and measuring, against a plain network."""

import dataclasses
import itertools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import jit
from plain import (
    ALIVE,
    BATCH,
    EVEN,
    ODD,
    apply,
    architecture_of,
    by_hand,
    draw,
    loss_and_grads,
    plain,
)
from plain_micro_cnn import close

from wpl_jax.spaces.nas_bench_201 import OPERATIONS, NASBench201


def test_passes_and_gradients_equal_those_of_the_plain_network(float64):
    """With affine batch norm, at odd sizes, in two groups; of every operation."""
    params, images, labels = draw(ODD, 0)
    assert set(ALIVE) == set(range(len(OPERATIONS)))
    architecture = architecture_of(ALIVE)
    (expected_loss, outputs), expected_grads = plain(ODD, ALIVE)(params, images, labels)
    (actual, carry), grads = loss_and_grads(ODD, params, architecture, (images, labels))
    close(actual, expected_loss)
    close(grads, expected_grads)
    assert carry == ()
    close(tuple(apply(ODD, params, architecture, images)), outputs)
    again = apply(ODD, params, architecture, images, outputs[-1])  # by statistics of its own
    close(tuple(again), outputs)


def test_without_scales_and_biases_it_is_that_of_the_plain_network_too(float64):
    """At even sizes, with operations that lead nowhere."""
    params, images, _ = draw(EVEN, 0)
    architecture = architecture_of((0, 3, 2, 4, 3, 1))
    expected = jit(lambda *arguments: by_hand(EVEN, params, architecture, *arguments))(images)
    close(tuple(apply(EVEN, params, architecture, images)), expected)


def test_images_agree_in_the_relus_of_the_plain_network(float64, monkeypatch):
    """All that it passes, but for the second of each residual block."""
    params, images, _ = draw(ODD, 1)
    architecture, inputs, relu = architecture_of(ALIVE), [], jax.nn.relu
    monkeypatch.setattr(jax.nn, "relu", lambda x: [inputs.append(np.asarray(x)), relu(x)][1])
    by_hand(ODD, params, architecture, images)
    monkeypatch.undo()
    of_stage = ODD.cells * sum(OPERATIONS[i].startswith("nor_conv") for i in ALIVE)
    assert len(inputs) == 3 * of_stage + 2 * 2 + 1
    for inner in (2 * of_stage + 3, of_stage + 1):
        del inputs[inner]
    active = np.concatenate([x.reshape(BATCH, -1) > 0 for x in inputs], axis=1)
    expected = (active[:, None] == active[None]).sum(-1)
    kernel = jit(ODD.activation_kernel)(params, architecture, images)
    np.testing.assert_array_equal(kernel, expected)
    assert expected.min() < expected.max() == active.shape[1]


def test_parameters_may_be_narrower_than_images():
    params, images, labels = draw(EVEN, 4, np.float32)
    narrow = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)
    batch = architecture_of((0, 3, 2, 4, 3, 1)), (images, labels)
    (actual, _), grads = loss_and_grads(EVEN, narrow, *batch)
    expected, _ = jit(EVEN.loss)(params, *batch)
    np.testing.assert_allclose(actual, expected, rtol=0.05)
    chex.assert_trees_all_equal_shapes_and_dtypes(grads, narrow)


def test_groups_are_a_matter_of_layout(float64):
    params, images, _ = draw(ODD, 3)
    architecture = architecture_of(ALIVE)
    expected = apply(ODD, params, architecture, images)  # of two groups
    close(apply(dataclasses.replace(ODD, groups=1), params, architecture, images), expected)
    with pytest.raises(ValueError, match="a multiple of groups=2, got 3 images"):
        ODD.apply(params, architecture, images[:3])


def test_images_do_not_depend_on_each_other_given_statistics(float64):
    """So the batch's own count nowhere."""
    params, images, _ = draw(ODD, 7)
    _, others, _ = draw(ODD, 8)
    architecture = architecture_of(ALIVE)
    rng = np.random.default_rng(0)
    given = jax.tree.map(lambda s: rng.uniform(0.5, 1.5, s.shape), ODD.init_statistics())
    mixed = np.concatenate([images[:1], others[1:]])
    logits = apply(ODD, params, architecture, images, given).logits
    mine = apply(ODD, params, architecture, mixed, given).logits
    np.testing.assert_array_equal(mine[0], logits[0])
    assert abs(mine[1:] - logits[1:]).min() > 1e-4


def test_one_program_serves_all_architectures(float64):
    params, images, _ = draw(ODD, 6)
    before = apply._cache_size()
    logits = [
        apply(ODD, params, architecture_of(numbers), images).logits
        for numbers in ((0,) * 6, (4,) * 6, ALIVE, ALIVE[::-1])
    ]
    assert apply._cache_size() <= before + 1
    assert all(abs(a - b).max() > 1e-4 for a, b in itertools.combinations(logits, 2))


def test_the_program_does_not_grow_with_the_depth():
    def size(cells):
        space = dataclasses.replace(EVEN, cells=cells)
        params = jax.eval_shape(space.init, jax.random.key(0))
        images = jax.ShapeDtypeStruct((BATCH, *space.image_shape), jnp.float32)
        program = jax.make_jaxpr(space.apply)(params, architecture_of((0,) * 6), images)
        return len(str(program).splitlines())

    assert size(1) == size(4)


def test_where_nothing_gets_through_all_images_have_the_same_logits(float64):
    params, images, _ = draw(ODD, 1)
    nothing = apply(ODD, params, architecture_of((0,) * 6), images).logits
    assert np.isfinite(nothing).all()
    close(nothing, np.broadcast_to(nothing[:1], nothing.shape))


def test_initial_statistics():
    """Means 0 and variances 1, in the form of those of a batch."""
    start = ODD.init_statistics()
    shapes = jax.eval_shape(
        ODD.apply,
        jax.eval_shape(ODD.init, jax.random.key(0)),
        architecture_of((0,) * 6),
        jax.ShapeDtypeStruct((BATCH, *ODD.image_shape), jnp.float32),
    ).statistics
    chex.assert_trees_all_equal_shapes_and_dtypes(start, shapes)
    for leaf in jax.tree.leaves(start):
        np.testing.assert_array_equal(leaf[..., 0, :], np.zeros_like(leaf[..., 0, :]))
        np.testing.assert_array_equal(leaf[..., 1, :], np.ones_like(leaf[..., 1, :]))


def test_initial_parameters():
    space = NASBench201(classes=7, image_shape=(8, 8, 3), channels=8, cells=2, affine=True)
    params = jax.device_get(jit(space.init)(jax.random.key(0)))

    def check(kernel, deviation):
        assert abs(np.std(kernel) / deviation - 1) < 4 / np.sqrt(2 * kernel.size)
        assert abs(np.mean(kernel)) < 4 * deviation / np.sqrt(kernel.size)

    check(params["stem"]["kernel"], np.sqrt(2 / 27))
    check(params["classifier"]["kernel"], np.sqrt(1 / 32))
    for stage, own in enumerate(params["stages"]):
        c = 8 * 2**stage
        assert own["nor_conv_1x1"]["kernel"].shape == (2, 6, c, c)
        assert own["nor_conv_3x3"]["kernel"].shape == (2, 6, 3, c, 3, c)
        check(own["nor_conv_1x1"]["kernel"], np.sqrt(2 / c))
        check(own["nor_conv_3x3"]["kernel"], np.sqrt(2 / (9 * c)))
        for operation in own.values():
            np.testing.assert_array_equal(operation["scale"], np.ones((2, 6, c)))
            np.testing.assert_array_equal(operation["bias"], np.zeros((2, 6, c)))
    for stage, own in enumerate(params["blocks"]):
        before = 8 * 2**stage
        assert own["shortcut"].shape == (2 * before, before)
        check(own["first"]["kernel"], np.sqrt(2 / (9 * before)))
        check(own["second"]["kernel"], np.sqrt(2 / (18 * before)))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"channels": 0}, "channels must be at least 1, got 0"),
        ({"cells": 0}, "cells must be at least 1, got 0"),
        ({"classes": 0}, "classes must be at least 1, got 0"),
        ({"groups": 0}, "groups must be at least 1, got 0"),
        ({"image_shape": (32, 32)}, "image_shape must be height, width and channels"),
        ({"image_shape": (0, 32, 3)}, "image_shape must be at least 1 each"),
        ({"crop_padding": -1}, "crop_padding must be at least 0, got -1"),
    ],
)
def test_settings_that_cannot_work(settings, message):
    with pytest.raises(ValueError, match=message):
        NASBench201(**settings)
