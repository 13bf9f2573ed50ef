"""Which parameters an architecture of the micro-CNN space uses, and that no others matter."""

import chex
import jax
import numpy as np
from plain_micro_cnn import (
    KERNELS,
    SEEDS,
    draw,
    edge_numbers,
    full_mask,
    layers,
    loose_ends,
    loss_and_grads,
    random_architecture,
    spaces,
    traced_mask,
)

from wpl_jax.spaces import rows as own_rows
from wpl_jax.spaces.micro_cnn import OPERATIONS
from wpl_jax.trees import align_mask


@spaces
def test_the_mask_is_the_support_of_the_gradient(space, float64):
    """In each layer, of each edge and operation and of each loose end."""
    key = jax.random.key(0) if space.drop_path else None
    for seed in range(6):
        params, images, labels = draw(space, seed)
        batch = images, labels
        architecture = random_architecture(space, seed)
        grads = loss_and_grads(space, params, architecture, batch, key)[1]
        mask = traced_mask(space, architecture)
        for stage, (masks, own) in enumerate(
            zip(mask.pop("stages"), grads.pop("stages"), strict=True)
        ):
            assert masks.pop("norm").shape == ()
            assert_moved(own.pop("norm"), lead=1)
            used = [used_by(space, getattr(architecture, name)) for name in layers(space, stage)]
            assert set(masks) == set(own) == set(used[0])
            for part, grad in own.items():
                expected = np.array([layer[part] for layer in used])
                for m, g in zip(*map(jax.tree.leaves, (masks[part], grad)), strict=True):
                    moved = np.asarray(g != 0).any(tuple(range(2, g.ndim)))
                    np.testing.assert_array_equal(moved, expected)
                    assert m.dtype == bool and m.shape == (*expected.shape, *[1] * (g.ndim - 2))
                    np.testing.assert_array_equal(m.reshape(expected.shape), expected)
        assert set(mask) == set(grads)
        assert all(used.shape == () and used for used in mask.values())
        assert_moved(grads)


def used_by(space, cell):
    """Which edges are of each separable convolution, and which nodes are loose."""
    numbers = edge_numbers(space.nodes)
    used = {kernel: np.zeros(len(numbers), bool) for kernel in KERNELS}
    for j, (inputs, operations) in enumerate(zip(*cell, strict=True), start=2):
        for place in range(2):
            if (name := OPERATIONS[operations[place]]) in KERNELS:
                used[name][numbers[j, place, int(inputs[place])]] = True
    return used | {"project": np.isin(range(space.nodes + 2), loose_ends(cell))}


def assert_moved(grads, lead=0):
    for grad in jax.tree.leaves(grads):
        assert np.asarray(grad != 0).any(tuple(range(lead, grad.ndim))).all()


@spaces
def test_the_mask_is_a_prefix_that_broadcasts(space):
    """The same for architectures that are traced."""
    params, *_ = draw(space, 0)
    for seed in SEEDS:
        architecture = random_architecture(space, seed)
        mask = space.mask(architecture)
        chex.assert_trees_all_equal(traced_mask(space, architecture), mask)
        leaves = jax.tree.leaves(jax.tree.broadcast(mask, params))
        aligned = align_mask(mask, params)
        for m, a, param in zip(leaves, aligned, jax.tree.leaves(params), strict=True):
            np.testing.assert_array_equal(np.broadcast_to(m, param.shape), a)


@spaces
def test_only_what_is_sampled_is_read(space, float64):
    """NaN outside of the mask does not show, in the loss, its gradients or the statistics."""
    key = jax.random.key(1) if space.drop_path else None
    for seed in range(4, 8):
        params, images, labels = draw(space, seed)
        batch = images, labels
        architecture = random_architecture(space, seed)
        expected = loss_and_grads(space, params, architecture, batch, key)
        chex.assert_tree_all_finite(expected)
        mask = full_mask(space, architecture, params)
        poisoned = jax.tree.map(lambda p, m: np.where(m, p, np.nan), params, mask)
        actual = loss_and_grads(space, poisoned, architecture, batch, key)
        chex.assert_trees_all_equal(actual, expected)


@spaces
def test_its_own_edges_are_all_that_an_architecture_needs(space, float64):
    key = jax.random.key(1) if space.drop_path else None

    @jax.jit
    def take(tree, architecture):
        return own_rows.take(tree, space.rows(architecture))

    @jax.jit
    def put(tree, architecture, own):
        rows = jax.tree.broadcast(space.rows(architecture), tree)
        return own_rows.put(tree, rows, own)

    for seed in range(2):
        params, images, labels = draw(space, seed)
        batch = images, labels
        architecture = random_architecture(space, seed)
        own = jax.device_get(take(params, architecture))
        assert own["stages"][1]["sep_conv_3x3"]["scale"].shape[1] == 2 * space.nodes
        (value, carry), expected = loss_and_grads(space, params, architecture, batch, key)
        actual = loss_and_grads(space, own, architecture, batch, key)
        wanted = (value, carry), take(expected, architecture)
        chex.assert_trees_all_close(actual, wanted, rtol=1e-12, atol=1e-14)  # two programs
        chex.assert_trees_all_equal(put(params, architecture, own), params)
