"""The micro-CNN space against plain convolutions and pooling, cell by cell and node by node."""

import copy
import dataclasses
import functools
import itertools
import json
import math
from collections import Counter

import chex
import hypothesis
import jax
import jax.extend
import jax.numpy as jnp
import jax.test_util
import networkx as nx
import numpy as np
import optax
import pytest
from flax import linen as nn
from haste import jit
from hypothesis import strategies as st

from wpl_jax import search
from wpl_jax.figures.cells import draw as draw_graphs
from wpl_jax.search import Data, Search, SearchConfig
from wpl_jax.spaces import micro_cnn
from wpl_jax.spaces.micro_cnn import OPERATIONS, Architecture, Cell, MicroCNN
from wpl_jax.trees import align_mask

KERNELS = {"sep_conv_3x3": 3, "sep_conv_5x5": 5}
BATCH, STAGES = 4, 3
PLAIN = {"crop_padding": 0, "flip": False}
ODD = MicroCNN(
    **{"classes": 3, "image_shape": (7, 9, 2), "nodes": 2, "channels": 2},
    **{"cells": 2, "stem_stride": 2, "groups": 2, **PLAIN},
)
EVEN = MicroCNN(
    **{"classes": 3, "image_shape": (8, 8, 3), "nodes": 3, "channels": 3},
    **{"cells": 1, "drop_path": 0.2, "auxiliary": 0.4, **PLAIN},
)

spaces = pytest.mark.parametrize("space", [ODD, EVEN], ids=["odd", "even"])


@pytest.fixture
def float64():
    with jax.enable_x64(True):
        yield


def draw(space, seed, dtype=np.float64):
    """Parameters, images, and labels of which the last is padding."""
    rng = np.random.default_rng(seed)
    shapes = jax.eval_shape(space.init, jax.random.key(0))

    def leaf(path, shape):
        spread, centre = {"scale": (0.3, 1), "bias": (0.3, 0)}.get(path[-1].key, (0.5, 0))
        return (centre + spread * rng.normal(size=shape.shape)).astype(dtype)

    params = jax.tree.map_with_path(leaf, shapes)
    images = rng.normal(size=(BATCH, *space.image_shape)).astype(dtype)
    labels = rng.integers(space.classes, size=BATCH).astype(np.int32)
    labels[-1] = -1
    return params, images, labels


def random_architecture(space, seed):
    actions = np.random.default_rng(seed).integers(space.decisions)
    return jax.device_get(space.decode(actions))


def cell(*nodes):
    """A cell of nodes (input, operation, input, operation)."""
    choices = np.array([[(n[0], n[2]), (n[1], n[3])] for n in nodes], object)
    operations = [[OPERATIONS.index(name) for name in row] for row in choices[:, 1]]
    return Cell(choices[:, 0].astype(np.int32), np.array(operations, np.int32))


@functools.partial(jit, static_argnums=0)
def apply(space, params, architecture, images, statistics=None, key=None, progress=1.0):
    return space.apply(params, architecture, images, statistics, key, progress)


@functools.partial(jit, static_argnums=0)
def loss(space, params, architecture, batch):
    return space.loss(params, architecture, batch)[0]


@functools.partial(jit, static_argnums=0)
def loss_and_grads(space, params, architecture, batch, key=None):
    return jax.value_and_grad(space.loss, has_aux=True)(params, architecture, batch, (), key)


@functools.partial(jit, static_argnums=0)
def score(space, params, architecture, batch, statistics):
    return space.score(params, architecture, batch, (), statistics)[0]


# --- A plain network ------------------------------------------------------------------------------
# Images are [batch, height, width, channels].


def convolution(x, kernel, stride=1, groups=1):
    pad = (kernel.shape[0] - 1) // 2
    return jax.lax.conv_general_dilated(
        *(x, kernel, (stride, stride), [(pad, pad)] * 2),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
    )


def norm(x, params, given=None):
    mean, variance = jnp.mean(x, (0, 1, 2)), jnp.var(x, (0, 1, 2))
    statistics = jnp.stack([mean, variance])
    mean, variance = statistics if given is None else given
    mean, variance, scale, bias = (
        v[None, None, None] for v in (mean, variance, params["scale"], params["bias"])
    )
    return scale * (x - mean) / jnp.sqrt(variance + 1e-5) + bias, statistics


def separable(x, weights, given=None):
    statistics = []
    for i in range(2):
        w = jax.tree.map(lambda p, i=i: p[i], weights)
        depthwise = w["depthwise"].transpose(1, 2, 0)[:, :, None]
        x = convolution(jax.nn.relu(x), depthwise, groups=x.shape[-1])
        x = convolution(x, w["pointwise"].T[None, None])
        x, stats = norm(x, w, None if given is None else given[i])
        statistics.append(stats)
    return x, jnp.stack(statistics)


def average_pool(x):
    return nn.avg_pool(x, (3, 3), (1, 1), "SAME", count_include_pad=False)


def max_pool(x):
    return nn.max_pool(x, (3, 3), (1, 1), "SAME")


def operation(name, x, weights, given=None):
    """And its statistics."""
    if name in KERNELS:
        return separable(x, weights[name], given)
    pooled = {"identity": lambda x: x, "avg_pool_3x3": average_pool, "max_pool_3x3": max_pool}
    return pooled[name](x), jnp.zeros((2, 2, x.shape[-1]), x.dtype)


def stem(x, params, stride, given=None):
    channels = len(params["kernel"])
    kernel = params["kernel"].reshape(channels, 3, 3, -1).transpose(1, 2, 3, 0)
    return norm(convolution(x, kernel, stride), params, given)


def halve(x, params, given=None):
    x = jax.nn.relu(x)
    _, height, width, _ = x.shape
    between = jnp.pad(x, ((0, 0), (0, 1), (0, 1), (0, 0)))[:, 1 : height + 1, 1 : width + 1]
    halves = [
        convolution(part, kernel.T[None, None], stride=2)
        for part, kernel in zip((x, between), params["kernel"], strict=True)
    ]
    return norm(jnp.concatenate(halves, axis=-1), params, given)


def join(loose, kernels, params, given=None):
    x = jax.nn.relu(jnp.concatenate(loose, axis=-1))
    kernel = jnp.concatenate([kernel.T for kernel in kernels])
    return norm(convolution(x, kernel[None, None]), params, given)


def auxiliary_head(x, params, given=None):
    given = given or {}
    window = tuple(min(5, n) for n in x.shape[1:3])
    x = nn.avg_pool(jax.nn.relu(x), window, (3, 3), "VALID")
    x, first = norm(x @ params["first"]["kernel"].T, params["first"], given.get("first"))
    x = jax.nn.relu(x).transpose(0, 1, 3, 2).reshape(len(x), 1, 1, -1)
    x = convolution(x, params["second"]["kernel"].T[None, None])
    x, second = norm(x, params["second"], given.get("second"))
    return classify(jax.nn.relu(x)[:, 0, 0], params["classifier"]), {
        "first": first,
        "second": second,
    }


def classify(x, params):
    return jnp.dot(x, params["kernel"].T) + params["bias"][None]


def edge_numbers(nodes):
    """Edges as they lie in the parameters: by node, then place in the sum, then what is read."""
    edges = ((j, place, i) for j in range(2, nodes + 2) for place in range(2) for i in range(j))
    return {edge: number for number, edge in enumerate(edges)}


def loose_ends(cell):
    return sorted(set(range(len(cell.inputs) + 2)) - set(np.ravel(cell.inputs).tolist()))


def layers(space, stage):
    """Which cell each layer of a stage is of."""
    return (["reduction"] if stage else []) + ["normal"] * space.cells


def layer_by_hand(params, cell, states, given=None, keep=None):
    """A cell: its output and its statistics; ``params`` are those of this layer."""
    numbers, hidden, statistics = edge_numbers(len(cell.inputs)), list(states), []
    given = given or {"edges": itertools.repeat(None), "norm": None}
    seen = iter(given["edges"])
    for j, (inputs, operations) in enumerate(zip(*cell, strict=True), start=2):
        total = 0
        for place in range(2):
            number = numbers[j, place, int(inputs[place])]
            weights = {n: jax.tree.map(lambda p, e=number: p[e], params[n]) for n in KERNELS}
            name = OPERATIONS[operations[place]]
            y, stats = operation(name, hidden[inputs[place]], weights, next(seen))
            if keep is not None:
                y *= keep[len(statistics)].reshape(-1, 1, 1, 1)
            total += y
            statistics.append(stats)
        hidden.append(total)
    loose = loose_ends(cell)
    kernels = [params["project"][i] for i in loose]
    output, stats = join([hidden[i] for i in loose], kernels, params["norm"], given["norm"])
    return output, {"edges": jnp.stack(statistics), "norm": stats}


def by_hand(space, params, architecture, images, statistics=None, keep=None):
    """Logits, those of the auxiliary head, and statistics."""
    new = {"inputs": [], "stages": []}
    given = statistics or {}
    auxiliary = None
    x, new["stem"] = stem(images, params["stem"], space.stem_stride, given.get("stem"))
    states = x, x
    for stage in range(STAGES):
        if stage:
            halved = {
                name: halve(x, p, given["inputs"][stage - 1][name] if given else None)
                for x, (name, p) in zip(states, params["inputs"][stage - 1].items(), strict=True)
            }
            new["inputs"].append({name: stats for name, (_, stats) in halved.items()})
            states = [halved["h_0"][0], halved["h_1"][0]]
        if stage == STAGES - 1 and space.auxiliary:
            auxiliary, new["auxiliary"] = auxiliary_head(
                states[1], params["auxiliary"], given.get("auxiliary")
            )
        collected = []
        for layer, name in enumerate(layers(space, stage)):
            at = functools.partial(jax.tree.map, lambda p, n=layer: p[n])
            output, stats = layer_by_hand(
                *(at(params["stages"][stage]), getattr(architecture, name), states),
                at(given["stages"][stage]) if given else None,
                keep[stage][layer] if keep else None,
            )
            states = states[1], output
            collected.append(stats)
        new["stages"].append(jax.tree.map(lambda *leaves: jnp.stack(leaves), *collected))
    pooled = jnp.mean(jax.nn.relu(states[1]), (1, 2))
    return classify(pooled, params["classifier"]), auxiliary, new


def cross_entropy(logits, labels):
    """Of the images before the last, which is padding."""
    rows = optax.softmax_cross_entropy_with_integer_labels(logits[:-1], labels[:-1])
    return jnp.sum(rows) / (len(labels) - 1)


@functools.cache
def plain(space, seed):
    """Of a random architecture: loss and outputs, and the gradients of the loss, compiled."""
    architecture = random_architecture(space, seed)

    def loss(params, images, labels, keep):
        output = by_hand(space, params, architecture, images, keep=keep)
        total = cross_entropy(output[0], labels)
        if space.auxiliary:
            total += space.auxiliary * cross_entropy(output[1], labels)
        return total, output

    return jit(jax.value_and_grad(loss, has_aux=True))


def everything():
    """Nothing of EVEN is dropped."""
    return [np.ones((len(layers(EVEN, stage)), 6, 1, BATCH)) for stage in range(STAGES)]


close = functools.partial(chex.assert_trees_all_close, rtol=1e-8, atol=1e-9)
SEEDS = 1, 26


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
    expected = jit(lambda *arguments: by_hand(ODD, params, architecture, *arguments))(images, given)
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
    for groups in (1, 4):
        other = dataclasses.replace(ODD, groups=groups)
        close(apply(other, params, architecture, images), expected)
    with pytest.raises(ValueError, match="a multiple of groups=2, got 3 images"):
        ODD.apply(params, architecture, images[:3])


# --- Operations -----------------------------------------------------------------------------------


def inward(x, groups=2):
    """Images as the network has them inside: [groups, height, channels, width, batch]."""
    return x.reshape(groups, -1, *x.shape[1:]).transpose(0, 2, 4, 3, 1)


def outward(x):
    return x.transpose(0, 4, 1, 3, 2).reshape(-1, x.shape[1], x.shape[3], x.shape[2])


def random_weights(rng, channels):
    shapes = {
        name: {
            "depthwise": (2, channels, size, size),
            "pointwise": (2, channels, channels),
            **dict.fromkeys(("scale", "bias"), (2, channels)),
        }
        for name, size in KERNELS.items()
    }
    return jax.tree.map(
        lambda shape: rng.normal(size=shape), shapes, is_leaf=lambda s: isinstance(s, tuple)
    )


@pytest.mark.parametrize("size", [(5, 4), (2, 1)], ids=str)
@pytest.mark.parametrize("name", OPERATIONS)
def test_operations(name, size, float64):
    """Values and gradients, of the input and of the weights, also where the window is larger."""
    rng = np.random.default_rng(0)
    x, weights = rng.normal(size=(BATCH, *size, 3)), random_weights(rng, 3)
    branch = micro_cnn._BRANCHES[OPERATIONS.index(name)]

    def run(x, weights):
        y, statistics = branch(inward(x), weights, None)
        return outward(y), statistics

    def pull(function):
        def both(x, weights, cotangent):
            y, back, statistics = jax.vjp(function, x, weights, has_aux=True)
            return y, statistics, back(cotangent)

        return jit(both)(x, weights, rng.normal(size=x.shape))

    rng = np.random.default_rng(1)
    actual = pull(run)
    rng = np.random.default_rng(1)
    close(actual, pull(lambda x, weights: operation(name, x, weights)), rtol=1e-9)


def test_pooling_at_the_border(float64):
    """By hand: what is outside of the image counts in neither."""
    x = np.array([[1.0, -2, 3], [-4, 5, -6]])

    def pool(name, x):
        branch = micro_cnn._BRANCHES[OPERATIONS.index(name)]
        return outward(branch(inward(x[None, :, :, None], 1), {}, None)[0])[0, :, :, 0]

    average = [[0, -0.5, 0], [0, -0.5, 0]]
    np.testing.assert_allclose(pool("avg_pool_3x3", x), average, atol=1e-12)
    np.testing.assert_array_equal(pool("max_pool_3x3", -abs(x)), [[-1, -1, -2], [-1, -1, -2]])


@pytest.mark.parametrize(("size", "height", "width"), [(3, 6, 5), (5, 2, 3)])
def test_depthwise_and_pointwise_gradients(size, height, width, float64):
    """Against finite differences; of an image that is smaller than the kernel, too."""
    rng = np.random.default_rng(size)
    check = functools.partial(jax.test_util.check_grads, order=1, modes=["rev"])
    x, kernel = rng.normal(size=(2, height, 3, width, 2)), rng.normal(size=(3, size, size))
    check(micro_cnn._depthwise, (x, kernel))
    expected = convolution(outward(x), kernel.transpose(1, 2, 0)[:, :, None], groups=3)
    close(outward(micro_cnn._depthwise(x, kernel)), expected)
    kernel = rng.normal(size=(size, 3))
    check(micro_cnn._pointwise, (kernel, x))
    close(outward(micro_cnn._pointwise(kernel, x)), outward(x) @ kernel.T)


@pytest.mark.parametrize("index", range(3))
def test_one_branch_runs_and_has_its_gradients(index, float64):
    branches = (
        lambda x, w, given: (x * w["a"] + given, 2 * x),
        lambda x, w, given: (jnp.sin(x * w["b"]), given * x),
        lambda x, w, given: (x, jnp.zeros_like(x)),
    )
    rng = np.random.default_rng(0)
    x, given = rng.normal(size=(2, 4))
    weights = {"a": rng.normal(size=4), "b": rng.normal(size=4)}

    def run(i, x, w):
        return micro_cnn._run_one(branches, i, x, w, given)

    close(run(index, x, weights), branches[index](x, weights, given))
    jax.test_util.check_grads(
        lambda x, w: run(index, x, w)[0], (x, weights), order=1, modes=["rev"]
    )
    grads = jax.grad(lambda w: run(index, x, w)[0].sum())(weights)
    assert {name for name, grad in grads.items() if grad.any()} == set("ab"[index : index + 1])


# --- The mask -------------------------------------------------------------------------------------


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


@functools.partial(jit, static_argnums=0)
def traced_mask(space, architecture):
    mask = space.mask(architecture)
    shared = [*(own["norm"] for own in mask["stages"]), *(mask[k] for k in mask if k != "stages")]
    assert all(used is True for used in shared)  # and so it can be told, in a trace, from the rest
    return mask


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


def full_mask(space, architecture, params):
    flat = align_mask(traced_mask(space, architecture), params)
    return jax.tree.unflatten(jax.tree.structure(params), [np.asarray(m) for m in flat])


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
    for seed in range(2):
        params, images, labels = draw(space, seed)
        batch = images, labels
        architecture = random_architecture(space, seed)
        rows = jax.tree.broadcast(space.rows(architecture), params)
        own = search._take(params, rows)
        assert own["stages"][1]["sep_conv_3x3"]["scale"].shape[1] == 2 * space.nodes
        (value, carry), expected = loss_and_grads(space, params, architecture, batch, key)
        actual = loss_and_grads(space, own, architecture, batch, key)
        chex.assert_trees_all_equal(actual, ((value, carry), search._take(expected, rows)))
        chex.assert_trees_all_equal(search._put(params, rows, own), params)


# --- One program, of which little runs ------------------------------------------------------------


def test_only_the_sampled_operations_are_executed(monkeypatch):
    ran = Counter()

    def counted(name, branch):
        def run(x, weights, given):
            jax.debug.callback(lambda: ran.update([name]))
            return branch(x, weights, given)

        return run

    names = (*OPERATIONS, "read", "loose")
    branches = (*micro_cnn._BRANCHES, *micro_cnn._PROJECTIONS)
    wrapped = [counted(name, branch) for name, branch in zip(names, branches, strict=True)]
    monkeypatch.setattr(micro_cnn, "_BRANCHES", tuple(wrapped[:5]))
    monkeypatch.setattr(micro_cnn, "_PROJECTIONS", tuple(wrapped[5:]))
    params, images, _ = draw(ODD, 0, np.float32)
    counting = jit(lambda *arguments: ODD.apply(*arguments).logits)
    for seed in SEEDS:
        architecture = random_architecture(ODD, seed)
        expected = Counter()
        counts = {"normal": STAGES * ODD.cells, "reduction": STAGES - 1}
        for name, layers in counts.items():
            own = getattr(architecture, name)
            for operation in own.operations.ravel():
                expected[OPERATIONS[operation]] += layers
            ends = len(loose_ends(own))
            expected.update({"loose": layers * ends, "read": layers * (ODD.nodes + 2 - ends)})
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
    one = jit(ODD.apply)
    singles = [one(params, architecture, images) for architecture in architectures]
    assert one._cache_size() == 1
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
    params["stem"]["kernel"] = np.zeros((2, 18))
    params["stem"]["kernel"][:, 8] = 1, 2  # the middle of 3x3
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
    value, grad = jax.value_and_grad(micro_cnn.cross_entropy)(logits, labels)
    np.testing.assert_allclose(value, expected)
    np.testing.assert_array_equal(np.any(grad, axis=1), labels >= 0)
    value, grad = jax.value_and_grad(micro_cnn.cross_entropy)(logits, np.full(5, -1, np.int32))
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


# --- Batches --------------------------------------------------------------------------------------


@functools.partial(jit, static_argnums=0)
def batch(space, split, step, key=None):
    return space.batch(split, step, key)


def told_apart(batches=5, size=4, shape=(3, 2, 1)):
    """A split whose images are of one grey each, the label."""
    labels = np.arange(batches * size, dtype=np.int32).reshape(batches, size)
    images = np.broadcast_to(labels[..., None, None, None], (*labels.shape, *shape))
    return images.astype(np.uint8), labels


def grey(labels):
    return (np.asarray(labels, np.float32) - 127.5) / 64


def test_batches_go_around_without_a_key():
    split = told_apart()
    assert ODD.num_batches(split) == 5
    for step in range(11):
        images, labels = batch(ODD, split, jnp.int32(step))
        np.testing.assert_array_equal(labels, split[1][step % 5])
        np.testing.assert_array_equal(images, grey(split[0][step % 5]))
    assert images.dtype == jnp.float32 and ODD.start((images, labels)) == ()
    ends = batch(ODD, (np.array([0, 255], np.uint8).reshape(1, 2, 1, 1, 1), split[1]), 0)[0]
    np.testing.assert_allclose(np.ravel(ends), [-127.5 / 64, 127.5 / 64])


def test_a_pass_with_a_key_has_every_image_once():
    """Labels stay with images, images with their places, and passes differ."""
    split, passes = told_apart(), []
    for turn in range(4):
        seen = []
        for i in range(5):
            images, labels = batch(ODD, split, jnp.int32(5 * turn + i), jax.random.key(turn))
            np.testing.assert_array_equal(
                images, np.broadcast_to(grey(labels)[:, None, None, None], images.shape)
            )
            seen.append(np.asarray(labels))
        assert sorted(np.ravel(seen)) == list(range(20))
        np.testing.assert_array_equal(np.sort(seen, axis=0), split[1])
        passes.append(seen)
    sets = [{frozenset(labels.tolist()) for labels in seen} for seen in passes]
    assert all(a != b for a, b in itertools.combinations(sets, 2))
    again = batch(ODD, split, jnp.int32(5), jax.random.key(9))[1]  # of whatever key
    np.testing.assert_array_equal(again, passes[1][0])


AUGMENTED = (9, 8, 2)  # the shape of an image


@functools.cache
def augment(**options):
    """Images of one photograph, as a batch of 400, and the photograph, scaled."""
    space = MicroCNN(image_shape=AUGMENTED, **{**PLAIN, **options})
    photograph = np.random.default_rng(0).integers(1, 255, AUGMENTED).astype(np.uint8)
    split = np.broadcast_to(photograph, (1, 400, *AUGMENTED)), np.zeros((1, 400), np.int32)
    first, same, other = (
        np.asarray(batch(space, split, 0, jax.random.key(k))[0]) for k in (0, 0, 1)
    )
    np.testing.assert_array_equal(first, same)
    assert (first != other).any()
    plain = np.asarray(batch(space, split, 0)[0])
    scaled = (photograph.astype(np.float32) - 127.5) / 64
    np.testing.assert_array_equal(plain, np.broadcast_to(scaled, plain.shape))
    return first, scaled


def assert_about_uniform(images, candidates):
    """Each image is one of the candidates, of given probabilities."""
    flat = np.array([image.ravel() for image, _ in candidates])
    equal = (images.reshape(len(images), 1, -1) == flat[None]).all(-1)
    assert (equal.sum(1) == 1).all()
    p = np.array([probability for _, probability in candidates])
    np.testing.assert_allclose(p.sum(), 1)
    deviation = (equal.mean(0) - p) / np.sqrt(p * (1 - p) / len(images))
    assert np.abs(deviation).max() < 4.5


def test_crops():
    """Every shift, of what is outside grey."""
    images, photograph = augment(crop_padding=2)
    padded = np.pad(photograph, ((2, 2), (2, 2), (0, 0)))
    corners = itertools.product(range(5), range(5))
    assert_about_uniform(images, [(padded[i : i + 9, j : j + 8], 1 / 25) for i, j in corners])


def test_flips():
    images, photograph = augment(flip=True)
    assert_about_uniform(images, [(photograph, 0.5), (photograph[:, ::-1], 0.5)])


@pytest.mark.parametrize("size", [3, 4])
def test_cutout(size):
    """A square around any pixel, as much of it as is in the image."""
    images, photograph = augment(cutout=size)
    squares = Counter()
    for i, j in itertools.product(range(9), range(8)):
        rows = max(i - size // 2, 0), i - size // 2 + size
        columns = max(j - size // 2, 0), j - size // 2 + size
        cut = photograph.copy()
        cut[slice(*rows), slice(*columns)] = 0
        squares[cut.tobytes()] += 1 / 72
    shape = photograph.shape
    candidates = [(np.frombuffer(cut, np.float32).reshape(shape), p) for cut, p in squares.items()]
    assert_about_uniform(images, candidates)
    blank = (images == 0).all(-1).sum((1, 2))
    assert blank.max() == size**2 and blank.min() >= (size // 2) ** 2


def test_all_augmentations_together():
    """And all that is grey is where the photograph is not."""
    images, photograph = augment(crop_padding=2, flip=True, cutout=3)
    pixels = {pixel.tobytes() for pixel in photograph.reshape(-1, 2)}
    grey_ = (images == 0).all(-1)
    assert all(pixel.tobytes() in pixels for pixel in images[~grey_][::50])
    assert 0 < grey_.mean() < 0.5 and len(np.unique(images, axis=0)) > 350


# --- Architectures --------------------------------------------------------------------------------


def test_decisions():
    assert MicroCNN().decisions == 2 * (2, 5, 2, 5, 3, 5, 3, 5, 4, 5, 4, 5, 5, 5, 5, 5, 6, 5, 6, 5)
    actions = np.array([0, 1, 1, 4, 2, 3, 0, 0, 1, 2, 0, 3, 1, 1, 2, 4])
    architecture = ODD.decode(actions)
    expected = Architecture(
        cell((0, "sep_conv_3x3", 1, "max_pool_3x3"), (2, "avg_pool_3x3", 0, "identity")),
        cell((1, "sep_conv_5x5", 0, "avg_pool_3x3"), (1, "sep_conv_3x3", 2, "max_pool_3x3")),
    )
    chex.assert_trees_all_equal(architecture, expected)
    chex.assert_type(jax.tree.leaves(architecture), jnp.int32)
    chex.assert_trees_all_equal(jit(ODD.decode)(actions), expected)


def architectures(space):
    actions = st.tuples(*(st.integers(0, n - 1) for n in space.decisions))
    return actions.map(lambda a: jax.device_get(space.decode(np.array(a))))


@hypothesis.settings(deadline=None, max_examples=30)
@hypothesis.given(architectures(EVEN))
def test_an_architecture_is_read_as_it_was_written(architecture):
    read = EVEN.from_json(json.loads(json.dumps(EVEN.to_json(architecture))))
    chex.assert_trees_all_equal(read, architecture)
    chex.assert_trees_all_equal_shapes_and_dtypes(read, architecture)
    chex.assert_trees_all_equal(EVEN.from_json(EVEN.to_json(read)), architecture)


@pytest.mark.parametrize("space", [EVEN, ODD], ids=["even", "odd"])
def test_the_numbers_of_parameters_and_of_multiplications(space):
    for seed in range(3):
        architecture = random_architecture(space, seed)
        assert space.num_parameters(architecture) == parameters_by_hand(space, architecture)
        params = jax.eval_shape(space.init, jax.random.key(0))
        image = jax.ShapeDtypeStruct((1, *space.image_shape), jnp.float32)
        program = jax.make_jaxpr(
            lambda p, x, a=architecture: by_hand(dataclasses.replace(space, auxiliary=0.0), p, a, x)
        )(params, image)
        assert space.multiply_adds(architecture) == multiplications(program.jaxpr)


def parameters_by_hand(space, architecture):
    c = [space.channels * 2**stage for stage in range(STAGES)]

    def of(cell, c):
        sizes = [KERNELS.get(OPERATIONS[i]) for i in cell.operations.ravel()]
        edges = sum(2 * (c * k * k + c * c + 2 * c) for k in sizes if k)
        return edges + len(loose_ends(cell)) * c * c + 2 * c

    total = 9 * space.image_shape[2] * c[0] + 2 * c[0]
    for stage, n in enumerate(c):
        total += sum(of(getattr(architecture, name), n) for name in layers(space, stage))
    total += 2 * sum(a * b + 2 * b for a, b in itertools.pairwise(c))
    total += c[-1] * space.classes + space.classes
    if space.auxiliary:  # where 2x2 pixels are left, pooled to one
        total += 128 * c[-1] + 2 * 128 + 768 * 128 + 2 * 768 + 769 * space.classes
    return total


def multiplications(jaxpr):
    """In a program's convolutions and products of matrices."""
    total = 0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "conv_general_dilated":
            kernel = equation.invars[1].aval.shape  # HWIO
            total += math.prod(equation.outvars[0].aval.shape) * math.prod(kernel[:3])
        elif equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            left = equation.invars[0].aval.shape
            depth = math.prod(left[i] for i in contracted)
            total += math.prod(equation.outvars[0].aval.shape) * depth
        for inner in jax.extend.core.jaxprs_in_params(equation.params):
            total += multiplications(inner)
    return total


STORED = {
    "space": "micro_cnn",
    "normal": [
        [{"input": 0, "operation": "sep_conv_3x3"}, {"input": 1, "operation": "identity"}],
        [{"input": 2, "operation": "max_pool_3x3"}, {"input": 0, "operation": "identity"}],
    ],
    "reduction": [
        [{"input": 1, "operation": "sep_conv_5x5"}, {"input": 1, "operation": "avg_pool_3x3"}],
        [{"input": 1, "operation": "identity"}, {"input": 1, "operation": "max_pool_3x3"}],
    ],
}
READ = Architecture(
    cell((0, "sep_conv_3x3", 1, "identity"), (2, "max_pool_3x3", 0, "identity")),
    cell((1, "sep_conv_5x5", 1, "avg_pool_3x3"), (1, "identity", 1, "max_pool_3x3")),
)


def test_the_form_of_a_file():
    assert ODD.to_json(READ) == STORED
    chex.assert_trees_all_equal(ODD.from_json(STORED), READ)


def changed(*path, to):
    stored = copy.deepcopy(STORED)
    inner = functools.reduce(lambda tree, place: tree[place], path[:-1], stored)
    inner[path[-1]] = to
    return stored


CHOICE = {"input": 0, "operation": "identity"}


@pytest.mark.parametrize(
    ("stored", "message"),
    [
        (None, '"space": "micro_cnn", got None'),
        ([STORED], '"space": "micro_cnn", got '),
        ({}, '"space": "micro_cnn", got None'),
        (changed("space", to="rnn"), "got 'rnn'"),
        ({"space": "micro_cnn"}, "the normal cell must have 2 nodes, got None"),
        (changed("reduction", to={}), "the reduction cell must have 2 nodes, got {}"),
        (changed("normal", to=STORED["normal"][:1]), "normal cell must have 2 nodes, got 1"),
        (changed("normal", to=STORED["normal"] * 2), "normal cell must have 2 nodes, got 4"),
        (changed("normal", 0, to="sep"), "node 2 of the normal cell must be a list .* got 'sep'"),
        (changed("reduction", 1, to=[CHOICE]), "node 3 of the reduction cell .* two inputs, got"),
        (changed("reduction", 1, to=[CHOICE] * 3), "node 3 of the reduction cell .* two inputs"),
        (
            changed("normal", 0, 1, to=0),
            "node 2 of the normal cell .* input and operation .* got 0",
        ),
        (changed("normal", 0, 1, to={"input": 0}), "must have input and operation twice, got {'in"),
        (changed("normal", 1, 0, "activation", to="relu"), "node 3 of the normal .*'activation'"),
        (
            changed("normal", 1, 0, "operation", to="conv"),
            "operation of node 3 of the normal cell must be one of identity, .*, got 'conv'",
        ),
        (changed("normal", 1, 0, "operation", to=["conv"]), r"must be one of .*, got \['conv'\]"),
        (changed("normal", 1, 0, "operation", to=1), "must be one of .*, got 1"),
        (
            changed("reduction", 0, 1, "input", to=2),
            "input of node 2 of the reduction cell must be a node before it, 0 to 1, got 2",
        ),
        (changed("reduction", 1, 1, "input", to=3), "node 3 of the reduction .* 0 to 2, got 3"),
        (changed("normal", 0, 0, "input", to=-1), "0 to 1, got -1"),
        (changed("normal", 0, 0, "input", to=1.0), r"0 to 1, got 1\.0"),
        (changed("normal", 0, 0, "input", to=True), "0 to 1, got True"),
        (changed("normal", 0, 0, "input", to="0"), "0 to 1, got '0'"),
        (changed("normal", 0, 0, "input", to=None), "0 to 1, got None"),
    ],
)
def test_files_that_are_no_architecture(stored, message):
    with pytest.raises(ValueError, match=message) as error:
        ODD.from_json(stored)
    assert "\n" not in str(error.value)


def test_graphs():
    graphs = ODD.graphs(READ)
    assert list(graphs) == ["normal cell", "reduction cell"]
    normal, reduction = graphs.values()
    assert dict(normal.nodes(data="kind")) == {
        **{0: "input", 1: "input", 2: "sum", 3: "sum", "hₖ": "output"},
        **{(2, 0): "sep_conv_3x3", (2, 1): "identity"},
        **{(3, 0): "max_pool_3x3", (3, 1): "identity"},
    }
    nodes = [((2, 0), 2), ((2, 1), 2), ((3, 0), 3), ((3, 1), 3)]
    assert set(normal.edges) == {
        *[(0, (2, 0)), (1, (2, 1)), (2, (3, 0)), (0, (3, 1)), (3, "hₖ"), *nodes]
    }
    assert set(reduction.edges) == {
        *[(1, (2, 0)), (1, (2, 1)), (1, (3, 0)), (1, (3, 1))],
        *[(0, "hₖ"), (2, "hₖ"), (3, "hₖ"), *nodes],
    }


def test_graphs_are_drawn():
    space = MicroCNN(nodes=5)
    graphs = space.graphs(random_architecture(space, 0))
    for graph in graphs.values():
        assert nx.is_directed_acyclic_graph(graph)
        assert sum(kind in OPERATIONS for _, kind in graph.nodes(data="kind")) == 10
        assert all(label for _, label in graph.nodes(data="label"))
    titles = [ax.get_title() for ax in draw_graphs(graphs).axes]
    assert titles == ["normal cell", "reduction cell"]


# --- Searching ------------------------------------------------------------------------------------

SEARCH = Search(
    MicroCNN(
        **{"classes": 3, "image_shape": (6, 6, 1), "nodes": 2, "channels": 2, "cells": 1},
        **{"crop_padding": 1, "cutout": 2},
    ),
    SearchConfig(
        **{"architectures": 2, "batches": 2, "chunk": 1, "eval_batches": 1},
        **{"strategy": "random", "warmup_epochs": 1, "flush_every": 0},
    ),
    optax.chain(optax.add_decayed_weights(0.01), optax.sgd(0.1, momentum=0.8)),
    strength=10.0,
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


# --- Errors ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "value", "wanted"),
    [
        *[
            (name, value, "at least 1")
            for name in ("classes", "nodes", "channels", "cells", "stem_stride", "groups")
            for value in (0, -3)
        ],
        *[
            ("image_shape", value, "height, width and channels, each >= 1")
            for value in ((), (32, 32), (32, 0, 3), (1, 32, 32, 3))
        ],
        *[(name, -1, ">= 0") for name in ("crop_padding", "cutout")],
        *[("drop_path", value, ">= 0 and < 1") for value in (-0.1, 1, 2.0, math.nan)],
        *[("auxiliary", value, "finite and >= 0") for value in (-0.1, math.inf, math.nan)],
    ],
)
def test_settings_that_cannot_work(name, value, wanted):
    with pytest.raises(ValueError) as error:
        MicroCNN(**{name: value})
    assert str(error.value) == f"{name} must be {wanted}, got {value}"
