"""NAS-Bench-201 as a space: what an architecture uses of the shared weights, sizes, and data."""

import csv
import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import jit
from plain import ALIVE, EVEN, ODD, architecture_of, by_hand, draw, loss_and_grads
from plain_micro_cnn import multiplications

from wpl_jax.figures.cells import draw as draw_graphs
from wpl_jax.plasticity import weight_plasticity
from wpl_jax.spaces import check
from wpl_jax.spaces.nas_bench_201 import OPERATIONS, NASBench201, from_string
from wpl_jax.spaces.nas_bench_201 import architecture as cells
from wpl_jax.spaces.nas_bench_201.network import CONVOLUTIONS
from wpl_jax.trees import align_mask

# Node 1 is nothing, and node 3 does not read node 2: no kernel of a convolution matters.
DEAD_ENDS = (0, 3, 2, 1, 3, 0)
CHOSEN = (ALIVE, (2, 1, 4, 3, 3, 2), DEAD_ENDS, (1, 1, 1, 1, 4, 4))


def full_mask(space, architecture, params):
    flat = align_mask(space.mask(architecture), params)
    return jax.tree.unflatten(jax.tree.structure(params), [np.asarray(m) for m in flat])


def full_mask_by_hand(space, architecture, params):
    mask = jax.tree.map(np.ones_like, params)
    for stage in mask["stages"]:
        for name, own in stage.items():
            for leaf in jax.tree.leaves(own):
                leaf[:, architecture.operations != OPERATIONS.index(name)] = 0
    return jax.tree.map(lambda m: m.astype(bool), mask)


# --- What an architecture uses --------------------------------------------------------------------


def test_decisions():
    assert ODD.decisions == (5,) * 6
    assert [OPERATIONS[i] for i in np.flatnonzero(ODD.parametric[0])] == list(CONVOLUTIONS)
    assert len(set(ODD.parametric)) == 1 and len(ODD.parametric) == 6
    assert len(ODD.every()) == len(ODD.classes_of_isomorphism()) == 5**6
    assert len(ODD.distinct()) == 6_466
    architecture = jit(ODD.decode)(np.array(ALIVE))
    assert architecture.operations.dtype == jnp.int32
    np.testing.assert_array_equal(architecture.operations, ALIVE)


def test_the_mask_is_of_the_sampled_convolutions():
    """And of all that is around the cells, which says so itself."""
    params, *_ = draw(ODD, 0)
    for numbers in CHOSEN:
        architecture = architecture_of(numbers)
        mask = ODD.mask(architecture)
        assert all(mask[name] is True for name in mask if name != "stages")
        expected = full_mask_by_hand(ODD, architecture, params)
        jax.tree.map(np.testing.assert_array_equal, full_mask(ODD, architecture, params), expected)


def test_the_mask_is_the_support_of_the_gradient(float64):
    """But for operations that lead nowhere, which are in the mask, as they count as parameters."""
    params, images, labels = draw(ODD, 0)
    for numbers in CHOSEN:
        architecture = architecture_of(numbers)
        grads = loss_and_grads(ODD, params, architecture, (images, labels))[1]
        mask = full_mask(ODD, architecture, params)
        for grad, m in zip(jax.tree.leaves(grads), jax.tree.leaves(mask), strict=True):
            assert not grad[~m].any()
            kernel = tuple(range(2, grad.ndim))  # of a cell and an edge, where there are such
            if numbers != DEAD_ENDS:
                np.testing.assert_array_equal((grad != 0).any(kernel), m.any(kernel))


def test_only_what_is_sampled_is_read(float64):
    """NaN outside of the mask does not show, in the loss or its gradients."""
    params, images, labels = draw(ODD, 1)
    for numbers in CHOSEN:
        architecture = architecture_of(numbers)
        expected = loss_and_grads(ODD, params, architecture, (images, labels))
        mask = full_mask(ODD, architecture, params)
        poisoned = jax.tree.map(lambda p, m: np.where(m, p, np.nan), params, mask)
        actual = loss_and_grads(ODD, poisoned, architecture, (images, labels))
        jax.tree.map(np.testing.assert_array_equal, actual, expected)
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(actual))


def test_a_training_step_changes_nothing_outside_the_mask(float64):
    """With momentum that another architecture has left there, and weight decay; of some weights."""
    inner = optax.chain(optax.add_decayed_weights(0.1), optax.sgd(0.1, 0.9, nesterov=True))
    tx = weight_plasticity(inner, strength=1.0)

    def some(tree):
        return {"stem": tree["stem"], "stage": tree["stages"][1]}

    @jit
    def update(params, state, grads, mask):
        updates, state = tx.update(grads, state, params, mask=mask)
        return optax.apply_updates(params, updates), state

    params, images, labels = draw(ODD, 2)
    own = some(params)
    state = tx.init(own)
    for numbers in CHOSEN:
        architecture = architecture_of(numbers)
        grads = loss_and_grads(ODD, params, architecture, (images, labels))[1]
        after, state = update(own, state, some(grads), some(ODD.mask(architecture)))
        jax.tree.map(
            lambda m, new, old: np.testing.assert_array_equal(np.asarray(new) != old, m),
            *(some(full_mask(ODD, architecture, params)), after, own),
        )
        own = jax.tree.map(np.asarray, after)


@pytest.mark.slow
def test_the_check_of_spaces_passes(tmp_path):
    """Of architectures in which every operation counts."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (3, 4, *EVEN.image_shape), np.uint8)
    split = pixels, rng.integers(0, EVEN.classes, (3, 4)).astype(np.int32)
    check(EVEN, jax.tree.map(jnp.asarray, split), [n for n in CHOSEN if n != DEAD_ENDS])


# --- Sizes ----------------------------------------------------------------------------------------


def test_the_numbers_of_parameters_are_the_published_ones(data_dir):
    """In thousands, of C = 16 and N = 5, for every architecture of the table.

    They depend on how many convolutions there are of each kind alone, so one of each pair of
    numbers is counted, and another to see that it is as large. A hundredth of the table has other
    numbers: means over up to three trainings, of which some were of another architecture of the
    same class of isomorphism.
    """
    with (data_dir / "nas_bench_201" / "half.csv").open() as file:
        rows = list(csv.DictReader(file))
    listed = cells.number([from_string(row["architecture"]).operations for row in rows])
    published = np.array([int(row["thousand_parameters"]) for row in rows])
    space = NASBench201(affine=True)
    every, kinds = space.every(), [OPERATIONS.index(name) for name in CONVOLUTIONS]
    _, first, pair = np.unique(
        (every[:, None] == np.array(kinds)[None, :, None]).sum(-1),
        axis=0,
        return_index=True,
        return_inverse=True,
    )
    last = len(every) - 1 - np.unique(pair[::-1], return_index=True)[1]
    count = [space.num_parameters(architecture_of(every[n])) for n in first]
    assert len(count) == 28
    assert count == [space.num_parameters(architecture_of(every[n])) for n in last]
    counts = np.array(count)[pair]
    (others,) = np.nonzero(np.round(counts[listed] / 1000) != published)
    assert len(others) < 0.015 * len(rows)
    classes = space.classes_of_isomorphism()
    for n in others:
        sizes = set(counts[classes == classes[listed[n]]].tolist())
        trainings = (
            mixed
            for several in (2, 3)
            for mixed in itertools.combinations_with_replacement(sizes, several)
        )
        assert any(abs(np.mean(mixed) / 1000 - published[n]) <= 0.5 for mixed in trainings)


def test_without_scales_and_biases_there_are_as_many_fewer():
    string = "|nor_conv_3x3~0|+|none~0|nor_conv_1x1~1|+|nor_conv_3x3~0|none~1|skip_connect~2|"
    with_them, without = (
        NASBench201(affine=affine).num_parameters(from_string(string)) for affine in (True, False)
    )
    assert with_them - without == 3 * 5 * 2 * (16 + 32 + 64)


@pytest.mark.parametrize("space", [ODD, EVEN], ids=["odd", "even"])
def test_multiplications_are_those_of_the_plain_network(space):
    for numbers in CHOSEN[:3]:
        architecture = architecture_of(numbers)
        params = jax.eval_shape(space.init, jax.random.key(0))
        image = jax.ShapeDtypeStruct((1, *space.image_shape), jnp.float32)
        plain = functools.partial(by_hand, space, architecture=architecture)
        program = jax.make_jaxpr(lambda p, x: plain(p, images=x))(params, image)  # noqa: B023
        assert space.multiply_adds(architecture) == multiplications(program.jaxpr)


# --- Files and drawings ---------------------------------------------------------------------------


def test_an_architecture_is_stored_read_and_drawn():
    for numbers in CHOSEN:
        architecture = ODD.decode(np.array(numbers))
        read = ODD.from_json(ODD.to_json(architecture))
        np.testing.assert_array_equal(read.operations, architecture.operations)
        assert read.operations.dtype == architecture.operations.dtype
        assert [ax.get_title() for ax in draw_graphs(ODD.graphs(architecture)).axes] == ["cell"]
    with pytest.raises(ValueError, match='"space": "nas_bench_201", got \'rnn\''):
        ODD.from_json({"space": "rnn"})


def test_it_is_a_value():
    assert dataclasses.replace(ODD, cells=2) == ODD and hash(ODD) != hash(EVEN)
