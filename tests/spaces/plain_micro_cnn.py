"""Two micro-CNN spaces, and their network written plainly, node by node."""

import functools
import itertools
import math

import chex
import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from jax import jit

from wpl_jax.spaces.micro_cnn import OPERATIONS, Cell, MicroCNN
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
def _loss_and_grads(space, params, architecture, batch, key):
    return jax.value_and_grad(space.loss, has_aux=True)(params, architecture, batch, (), key)


def loss_and_grads(space, params, architecture, batch, key=None):
    """As NumPy's arrays, of which nothing is compiled."""
    return jax.device_get(_loss_and_grads(space, params, architecture, batch, key))


@functools.partial(jit, static_argnums=0)
def score(space, params, architecture, batch, statistics):
    return space.score(params, architecture, batch, (), statistics)[0]


@functools.partial(jit, static_argnums=0)
def traced_mask(space, architecture):
    mask = space.mask(architecture)
    shared = [*(own["norm"] for own in mask["stages"]), *(mask[k] for k in mask if k != "stages")]
    assert all(used is True for used in shared)  # and so it can be told, in a trace, from the rest
    return mask


def full_mask(space, architecture, params):
    flat = align_mask(traced_mask(space, architecture), params)
    return jax.tree.unflatten(jax.tree.structure(params), [np.asarray(m) for m in flat])


# Images are [batch, height, width, channels]. The network is compiled in its parts, which cells of
# one shape share, and never as a whole: that would take many times as long.


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


@functools.partial(jit, static_argnums=0)
def on_edge(name, x, weights, layer, edge, given, keep):
    """An operation; ``weights`` are those of all edges of all layers of a stage."""
    own = jax.tree.map(lambda p: p[layer, edge], weights)
    y, statistics = operation(name, x, own, given)
    return y if keep is None else y * keep.reshape(-1, 1, 1, 1), statistics


@functools.partial(jit, static_argnums=2)
def stem(x, params, stride, given=None):
    kernel = params["kernel"].transpose(2, 0, 3, 1)  # from columns, after, rows, before
    return norm(convolution(x, kernel, stride), params, given)


@jit
def halve(x, params, given=None):
    x = jax.nn.relu(x)
    _, height, width, _ = x.shape
    between = jnp.pad(x, ((0, 0), (0, 1), (0, 1), (0, 0)))[:, 1 : height + 1, 1 : width + 1]
    halves = [
        convolution(part, kernel.T[None, None], stride=2)
        for part, kernel in zip((x, between), params["kernel"], strict=True)
    ]
    return norm(jnp.concatenate(halves, axis=-1), params, given)


@jit
def join(loose, kernels, params, layer, ends, given=None):
    """``kernels`` and ``params`` are those of a stage."""
    x = jax.nn.relu(jnp.concatenate(loose, axis=-1))
    kernel = jnp.concatenate([kernels[layer, end].T for end in ends])
    own = jax.tree.map(lambda p: p[layer], params)
    return norm(convolution(x, kernel[None, None]), own, given)


@jit
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


def layer_by_hand(params, layer, cell, states, given=None, keep=None):
    """A cell: its output and its statistics; ``params`` are those of all layers of the stage."""
    numbers, hidden, statistics = edge_numbers(len(cell.inputs)), list(states), []
    given = given or {"edges": itertools.repeat(None), "norm": None}
    seen = iter(given["edges"])
    for j, (inputs, operations) in enumerate(zip(*cell, strict=True), start=2):
        total = []
        for place in range(2):
            number = numbers[j, place, int(inputs[place])]
            name = OPERATIONS[operations[place]]
            weights = {name: params[name]} if name in KERNELS else {}
            y, stats = on_edge(
                *(name, hidden[inputs[place]], weights, layer, number, next(seen)),
                None if keep is None else keep[len(statistics)],
            )
            total.append(y)
            statistics.append(stats)
        hidden.append(total[0] + total[1])
    loose = loose_ends(cell)
    output, stats = join(
        *([hidden[i] for i in loose], params["project"], params["norm"], layer, loose),
        given["norm"],
    )
    return output, {"edges": statistics, "norm": stats}


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
                *(params["stages"][stage], layer, getattr(architecture, name), states),
                at(given["stages"][stage]) if given else None,
                keep[stage][layer] if keep else None,
            )
            states = states[1], output
            collected.append(stats)
        new["stages"].append(stacked(collected))
    return last(states[1], params["classifier"]), auxiliary, new


@jit
def last(x, params):
    return classify(jnp.mean(jax.nn.relu(x), (1, 2)), params)


@jit
def stacked(statistics):
    """Those of a stage's layers, in each of which those of the edges are listed."""
    listed = [{**of_layer, "edges": jnp.stack(of_layer["edges"])} for of_layer in statistics]
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *listed)


def cross_entropy(logits, labels):
    """Of the images before the last, which is padding."""
    rows = optax.softmax_cross_entropy_with_integer_labels(logits[:-1], labels[:-1])
    return jnp.sum(rows) / (len(labels) - 1)


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


def plain(space, seed):
    """Of a random architecture: loss and outputs, and the gradients of the loss."""
    architecture = random_architecture(space, seed)

    def loss(params, images, labels, keep):
        output = by_hand(space, params, architecture, images, keep=keep)
        total = cross_entropy(output[0], labels)
        if space.auxiliary:
            total += space.auxiliary * cross_entropy(output[1], labels)
        return total, output

    return jax.value_and_grad(loss, has_aux=True)


def everything():
    """Nothing of EVEN is dropped."""
    return [np.ones((len(layers(EVEN, stage)), 6, 1, BATCH)) for stage in range(STAGES)]


close = functools.partial(chex.assert_trees_all_close, rtol=1e-8, atol=1e-9)
SEEDS = 1, 26
