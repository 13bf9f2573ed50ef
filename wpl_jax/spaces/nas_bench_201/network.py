"""The network around the cells: the parameters that all architectures share, and the pass.

A pass runs the sampled operations alone: an edge is a branch on its operation
(:func:`wpl_jax.spaces.operations.run_one`), and a stage is a scan over its cells, which are alike.
"""

import dataclasses
import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from wpl_jax.numbers import wide_dtype, widen
from wpl_jax.settings import Few, Size, Unfit
from wpl_jax.spaces.images import ImageSpace
from wpl_jax.spaces.nas_bench_201.architecture import EDGES, OPERATIONS, Architecture
from wpl_jax.spaces.operations import (
    CHANNELS,
    HEIGHT,
    WIDTH,
    average_pool,
    batch_norm,
    classify,
    convolution_3x3,
    inward,
    pointwise,
    run_one,
)
from wpl_jax.spaces.parameters import Normal, drawn
from wpl_jax.spaces.precision import rounded

CONVOLUTIONS = ("nor_conv_1x1", "nor_conv_3x3")
NODES = 4
STAGES = 3

Params = dict[str, Any]


class Output(NamedTuple):
    """What a network makes of a batch of images."""

    logits: jax.Array  # shape=(batch, classes)
    statistics: Params  # means and variances of this batch, leaves of shape=(..., 2, channels)


@dataclasses.dataclass(frozen=True)
class Network(ImageSpace):
    """A stem, three stages of cells with a residual block between, and a classifier.

    Batch norm uses the statistics of the batch, in search and in training. :meth:`apply` takes
    running averages to measure with, and returns the statistics that they are averages of.
    """

    classes: Size = 10
    """Classes that images are told apart in."""
    image_shape: tuple[Size, Size, Size] = (32, 32, 3)
    """Height, width and channels of an image."""
    channels: Size = 16
    """Of the first stage, C; the others have 2C and 4C."""
    cells: Few = 5
    """Cells of a stage, N."""
    affine: bool = False
    """Whether batch norm in cells learns a scale and a bias; searches do without."""
    groups: Few = 1
    """Parts of a batch, computed side by side; a multiple of the devices saves communication."""

    def __post_init__(self) -> None:
        """Refuse what cannot work."""
        super().__post_init__()
        if len(self.image_shape) != 3:
            raise Unfit(self, "image_shape", "height, width and channels")

    # --- Parameters ------------------------------------------------------------------------------

    def init(self, key: jax.Array) -> Params:
        """Shared parameters, of all architectures.

        Those of a cell's convolutions lead with the cells of a stage and a cell's edges.
        """
        channels = self._stage_channels()
        params: Params = {
            "stem": _convolution_3x3(channels[0], self.image_shape[2]) | _norm(channels[0]),
            "stages": [self._cells(c) for c in channels],
            "blocks": [
                {
                    "first": _convolution_3x3(after, before) | _norm(after),
                    "second": _convolution_3x3(after, after) | _norm(after),
                    "shortcut": Normal((after, before), 2 / before),
                }
                for before, after in itertools.pairwise(channels)
            ],
            "norm": _norm(channels[-1]),
            "classifier": {
                "kernel": Normal((self.classes, channels[-1]), 1 / channels[-1]),
                "bias": jnp.zeros(self.classes),
            },
        }
        return drawn(key, params)

    def _cells(self, channels):
        lead = self.cells, len(EDGES)
        kernels = {
            "nor_conv_1x1": Normal((*lead, channels, channels), 2 / channels),
            "nor_conv_3x3": Normal((*lead, 3, channels, 3, channels), 2 / (9 * channels)),
        }
        norm = _norm(channels, lead) if self.affine else {}
        return {name: {"kernel": kernel} | norm for name, kernel in kernels.items()}

    def _stage_channels(self):
        return [self.channels * 2**stage for stage in range(STAGES)]

    # --- The pass --------------------------------------------------------------------------------

    def apply(
        self,
        params: Params,
        architecture: Architecture,
        images: jax.Array,
        statistics: Params | None = None,
        key: jax.Array | None = None,
    ) -> Output:
        """The logits of images.

        Args:
          params: the shared parameters, of which those of the sampled operations alone are read.
          architecture: the cell.
          images: float [batch, height, width, channels].
          statistics: what batch norm normalises by: by default those of the batch, otherwise as
            :meth:`init_statistics` and ``Output.statistics`` have them.
          key: unused; nothing is dropped.
        """
        del key
        return self._pass(params, architecture, images, statistics or {}, lambda x: ())[0]

    def activation_kernel(
        self, params: Params, architecture: Architecture, images: jax.Array
    ) -> jax.Array:
        r"""In how many ReLUs of the network two images agree, float [batch, batch].

        .. math:: K_{ij} = \sum_r [x_{ri} > 0] [x_{rj} > 0] + [x_{ri} \le 0] [x_{rj} \le 0]

        where :math:`x_{ri}` is what enters ReLU r of image i. Where an untrained network tells
        images well apart, its determinant is large; by this, architectures can be ranked without
        training (`Mellor et al., 2021 <https://arxiv.org/abs/2006.04647>`_, eq. 1). Here those two
        ReLUs are left out that every network has within its residual blocks.

        Args:
          params: as :meth:`apply` has them.
          architecture: the cell.
          images: float [batch, height, width, channels].
        """

        def agreements(x):
            signs = jnp.where(jnp.moveaxis(x, 0, -2) > 0, 1.0, -1.0).reshape(-1, len(images))
            return (len(signs) + signs.T @ signs) / 2

        return self._pass(params, architecture, images, {}, agreements)[1]

    def _pass(
        self,
        params: Params,
        architecture: Architecture,
        images: jax.Array,
        given: Params,
        watch: Callable[[jax.Array], Any],
    ) -> tuple[Output, Any]:
        """The output, and the sum of what ``watch`` makes of the input of each ReLU."""
        new: Params = {"stages": [], "blocks": []}
        x, new["stem"] = _convolve(
            inward(rounded(images, self.compute_dtype), self.groups),
            params["stem"],
            given.get("stem"),
            stride=1,
        )
        watched = []
        for stage, weights in enumerate(params["stages"]):
            if stage:
                watched.append(watch(x))
                seen = given["blocks"][stage - 1] if given else {}
                x, stats = _halve(x, params["blocks"][stage - 1], seen)
                new["blocks"].append(stats)

            def cell(x, inputs):
                return _cell(x, architecture.operations, inputs, watch)

            seen = given["stages"][stage] if given else None
            x, (stats, of_cells) = jax.lax.scan(cell, x, (weights, seen))
            new["stages"].append(stats)
            watched.append(jax.tree.map(lambda leaf: leaf.sum(0), of_cells))
        x, new["norm"] = batch_norm(x, params["norm"], given.get("norm"))
        watched.append(watch(x))
        pooled = widen(jax.nn.relu(x)).mean((HEIGHT, WIDTH))
        return Output(classify(pooled, params["classifier"]), new), _sum(watched)

    def init_statistics(self) -> Params:
        """Statistics of nothing yet: means 0 and variances 1."""
        params = jax.eval_shape(self.init, jax.random.key(0))
        choices: Any = jax.ShapeDtypeStruct((len(EDGES),), jnp.int32)
        architecture = Architecture(choices)
        images = jax.ShapeDtypeStruct((self.groups, *self.image_shape), jnp.float32)
        output = jax.eval_shape(self.apply, params, architecture, images)
        start = jnp.array([[0.0], [1.0]])
        return jax.tree.map(
            lambda s: jnp.broadcast_to(jnp.expand_dims(start, range(s.ndim - 2)), s.shape),
            output.statistics,
        )

    def multiply_adds(self, architecture: Architecture) -> int:
        """Multiplications, each with its addition, in the convolutions and classifier of an image.

        Without those of batch norm and pooling.
        """
        height, width, before = self.image_shape
        sizes = {"nor_conv_1x1": 1, "nor_conv_3x3": 9}
        used = [OPERATIONS[int(i)] for i in np.asarray(architecture.operations)]
        of_cell = sum(sizes.get(name, 0) for name in used)
        channels = self._stage_channels()
        total = height * width * 9 * before * channels[0] + self.classes * channels[-1]
        for stage, c in enumerate(channels):
            if stage:
                height, width = -(-height // 2), -(-width // 2)
                total += height * width * (9 * c // 2 * c + 9 * c * c + c // 2 * c)
            total += self.cells * height * width * of_cell * c * c
        return total


def _convolution_3x3(channels, before):
    return {"kernel": Normal((3, channels, 3, before), 2 / (9 * before))}


def _norm(channels, lead=()):
    return {"scale": jnp.ones((*lead, channels)), "bias": jnp.zeros((*lead, channels))}


# --- Layers ---------------------------------------------------------------------------------------


def _cell(x, operations, inputs, watch):
    """A cell's last node; the statistics of each edge, [edges, 2, channels]; the sum watched.

    ``inputs`` are its weights, and the statistics given, if any.
    """
    nodes, statistics = {0: x}, []
    for edge, (source, node) in enumerate(EDGES):
        own, seen = jax.tree.map(lambda leaf, edge=edge: leaf[edge], inputs)
        y, new = run_one(BRANCHES, operations[edge], nodes[source], own, seen)
        nodes[node] = nodes[node] + y if node in nodes else y
        statistics.append(new)
    watched = [
        jax.tree.map(lambda leaf, node=node: _relus(operations, node) * leaf, watch(nodes[node]))
        for node in range(NODES - 1)
    ]
    return nodes[NODES - 1], (jnp.stack(statistics), _sum(watched))


def _relus(operations, node):
    """How many ReLUs a node's image enters: as many as convolutions lead out of it."""
    convolves = [operations == OPERATIONS.index(name) for name in CONVOLUTIONS]
    return (sum(convolves) * np.array([source == node for source, _ in EDGES])).sum()


def _sum(trees):
    return jax.tree.map(lambda *leaves: sum(leaves), *trees)


def _convolve(x, params, given, stride):
    """A 3×3 convolution and batch norm."""
    return batch_norm(convolution_3x3(x, params["kernel"], stride), params, given)


def _halve(x, params, given):
    """The residual block between two stages, of half the pixels and twice the channels."""
    y, first = _convolve(jax.nn.relu(x), params["first"], given.get("first"), stride=2)
    y, second = _convolve(jax.nn.relu(y), params["second"], given.get("second"), stride=1)
    return y + pointwise(_pool_2x2(x), params["shortcut"]), {"first": first, "second": second}


def _pool_2x2(x):
    """Means of 2×2 pixels; of those there are, at an odd edge."""
    for axis in (HEIGHT, WIDTH):
        blocks = [jax.lax.slice_in_dim(x, i, None, 2, axis=axis) for i in range(2)]
        pairs = blocks[1].shape[axis]
        first, alone = jnp.split(blocks[0], [pairs], axis)
        x = jnp.concatenate([(first + blocks[1]) / 2, alone], axis)
    return x


def _none(x, weights, given):
    return jnp.zeros_like(x), _no_statistics(x)


def _skip_connect(x, weights, given):
    return x, _no_statistics(x)


def _average_pool(x, weights, given):
    return average_pool(x), _no_statistics(x)


def _no_statistics(x):
    return jnp.zeros((2, x.shape[CHANNELS]), wide_dtype(x))


def _convolution(name, operation):
    """The branch of a convolution: ReLU, the convolution itself, batch norm."""

    def run(x, weights, given):
        own = weights[name]
        y = operation(jax.nn.relu(x), own["kernel"])
        return batch_norm(y, own if "scale" in own else None, given)

    return run


BRANCHES = (  # in the order of OPERATIONS
    _none,
    _skip_connect,
    _convolution("nor_conv_1x1", pointwise),
    _convolution("nor_conv_3x3", convolution_3x3),
    _average_pool,
)
