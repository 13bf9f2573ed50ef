"""Two NAS-Bench-201 spaces, and their network written plainly, edge by edge, cell by cell."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import jit
from plain_micro_cnn import average_pool, classify, convolution, cross_entropy, norm

from wpl_jax.spaces.nas_bench_201 import EDGES, OPERATIONS, Architecture, NASBench201

BATCH = 4
PLAIN = {"crop_padding": 0, "flip": False}
ODD = NASBench201(
    **{"classes": 3, "image_shape": (5, 7, 2), "channels": 2, "cells": 2},
    **{"affine": True, "groups": 2, **PLAIN},
)
EVEN = NASBench201(**{"classes": 3, "image_shape": (4, 4, 1), "channels": 3, "cells": 1}, **PLAIN)
ALIVE = (3, 4, 2, 1, 0, 3)  # node 3 depends on all of it


def architecture_of(numbers):
    return Architecture(np.array(numbers, np.int32))


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


@functools.partial(jit, static_argnums=0)
def apply(space, params, architecture, images, statistics=None):
    return space.apply(params, architecture, images, statistics)


@functools.partial(jit, static_argnums=0)
def _loss_and_grads(space, params, architecture, batch):
    return jax.value_and_grad(space.loss, has_aux=True)(params, architecture, batch)


def loss_and_grads(space, params, architecture, batch):
    """As NumPy's arrays, of which nothing is compiled."""
    return jax.device_get(_loss_and_grads(space, params, architecture, batch))


# Images are [batch, height, width, channels].


def convolution_3x3(x, kernel, stride=1):
    return convolution(x, kernel.transpose(2, 0, 3, 1), stride)


def operation(name, x, weights, given=None):
    """And its statistics."""
    plain = {"none": jnp.zeros_like, "skip_connect": lambda x: x, "avg_pool_3x3": average_pool}
    if name in plain:
        return plain[name](x), jnp.zeros((2, x.shape[-1]), x.dtype)
    own = weights[name]
    kernel = own["kernel"].T[None, None] if name == "nor_conv_1x1" else None
    y = jax.nn.relu(x)
    y = convolution_3x3(y, own["kernel"]) if kernel is None else convolution(y, kernel)
    channels = x.shape[-1]
    return norm(y, {"scale": jnp.ones(channels), "bias": jnp.zeros(channels)} | own, given)


def cell(x, operations, weights, given=None):
    """The last node, and the statistics of each edge."""
    nodes, statistics = [x, 0, 0, 0], []
    for edge, (source, node) in enumerate(EDGES):
        own, seen = jax.tree.map(lambda leaf, edge=edge: leaf[edge], (weights, given))
        y, stats = operation(OPERATIONS[operations[edge]], nodes[source], own, seen)
        nodes[node] += y
        statistics.append(stats)
    return nodes[-1], jnp.stack(statistics)


def block(x, params, given=None):
    given, new = given or {}, {}
    y = x
    for name, stride in (("first", 2), ("second", 1)):
        y = convolution_3x3(jax.nn.relu(y), params[name]["kernel"], stride)
        y, new[name] = norm(y, params[name], given.get(name))
    halved = nn.avg_pool(x, (2, 2), (2, 2), "SAME", count_include_pad=False)
    return y + convolution(halved, params["shortcut"].T[None, None]), new


def by_hand(space, params, architecture, images, statistics=None):
    """Logits and statistics."""
    given, new = statistics or {}, {"stages": [], "blocks": []}
    x = convolution_3x3(images, params["stem"]["kernel"])
    x, new["stem"] = norm(x, params["stem"], given.get("stem"))
    for stage, weights in enumerate(params["stages"]):
        if stage:
            seen = given["blocks"][stage - 1] if given else None
            x, stats = block(x, params["blocks"][stage - 1], seen)
            new["blocks"].append(stats)
        of_cells = []
        for n in range(space.cells):
            at = functools.partial(jax.tree.map, lambda leaf, n=n: leaf[n])
            seen = at(given["stages"][stage]) if given else None
            x, stats = cell(x, architecture.operations, at(weights), seen)
            of_cells.append(stats)
        new["stages"].append(jnp.stack(of_cells))
    x, new["norm"] = norm(x, params["norm"], given.get("norm"))
    return classify(jnp.mean(jax.nn.relu(x), (1, 2)), params["classifier"]), new


@functools.cache
def plain(space, numbers):
    """Of an architecture: loss and outputs, and the gradients of the loss, compiled."""

    def loss(params, images, labels):
        output = by_hand(space, params, architecture_of(numbers), images)
        return cross_entropy(output[0], labels), output

    return jit(jax.value_and_grad(loss, has_aux=True))
