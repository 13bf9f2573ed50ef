"""The network around the cells: the parameters that all architectures share, and the pass.

A pass runs the sampled operations alone: a cell is a scan over its edges, each a branch on the
operation (:func:`wpl_jax.spaces.operations.run_one`), and a stage is a scan over its layers, of
which the first, but for that of the first stage, is the reduction cell: the compiled program holds
one cell a stage, whatever the depth.
"""

import dataclasses
import itertools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from wpl_jax.numbers import wide_dtype, widen
from wpl_jax.settings import Few, Nonnegative, Share, Size, Unfit
from wpl_jax.spaces.images import ImageSpace
from wpl_jax.spaces.micro_cnn.architecture import (
    OPERATIONS,
    Architecture,
    Cell,
    edge_index,
    loose_ends,
)
from wpl_jax.spaces.operations import (
    CHANNELS,
    HEIGHT,
    WIDTH,
    average_pool,
    batch_norm,
    classify,
    convolution_3x3,
    depthwise,
    inward,
    max_pool,
    pointwise,
    run_one,
)
from wpl_jax.spaces.parameters import Normal, drawn
from wpl_jax.spaces.precision import rounded

SEPARABLE = {"sep_conv_3x3": 3, "sep_conv_5x5": 5}  # and the size of their kernels
STAGES = 3
_AUXILIARY = (128, 768)  # channels of the auxiliary head's convolutions

Params = dict[str, Any]


class Output(NamedTuple):
    """What a network makes of a batch of images."""

    logits: jax.Array  # shape=(batch, classes)
    auxiliary: jax.Array | None  # the same of the auxiliary head, where there is one
    statistics: Params  # means and variances of this batch, leaves of shape=(..., 2, channels)


@dataclasses.dataclass(frozen=True)
class Network(ImageSpace):
    """A stem, three stages of cells, and a classifier.

    Batch norm uses the statistics of the batch, in search and in training. :meth:`apply` takes
    running averages to measure with, and returns the statistics that they are averages of; nothing
    else changes them.
    """

    classes: Size = 10
    """Classes that images are told apart in."""
    image_shape: tuple[Size, Size, Size] = (32, 32, 3)
    """Height, width and channels of an image."""
    nodes: Few = 5
    """Nodes of a cell, B, beside the two that it reads."""
    channels: Size = 20
    """Of the first stage."""
    cells: Few = 2
    """Normal cells of a stage, N."""
    stem_stride: Few = 1
    """Of the stem; 2 quarters the pixels of every stage."""
    groups: Few = 1
    """Parts of a batch, computed side by side; a multiple of the devices saves communication."""
    drop_path: Share = 0.0
    """In training operations but identities are dropped: in cell i of n with i/n of this chance."""
    auxiliary: Nonnegative = 0.0
    """Weight in the training loss of a second classifier, of the second stage; 0 for none."""

    def __post_init__(self) -> None:
        """Refuse what cannot work."""
        super().__post_init__()
        if len(self.image_shape) != 3:
            raise Unfit(self, "image_shape", "height, width and channels")

    # --- Parameters ------------------------------------------------------------------------------

    def init(self, key: jax.Array) -> Params:
        """Shared parameters, of all architectures."""
        stages = self._stage_channels()
        params: Params = {
            "stem": _convolution_3x3(stages[0], self.image_shape[2]),
            "stages": [
                self._cells(channels, self.cells + bool(stage))
                for stage, channels in enumerate(stages)
            ],
            "inputs": [
                {f"h_{i}": _convolution(after, before, groups=2) for i in range(2)}
                for before, after in itertools.pairwise(stages)
            ],
            "classifier": _linear(self.classes, stages[-1]),
        }
        if self.auxiliary:
            first, second = _AUXILIARY
            pixels = math.prod(self._auxiliary_size())
            params["auxiliary"] = {
                "first": _convolution(first, stages[-1]),
                "second": _convolution(second, first * pixels),
                "classifier": _linear(self.classes, second),
            }
        return drawn(key, params)

    def _cells(self, channels, layers):
        """Of the cells of a stage, which have one shape; layers lead, then edges or nodes."""
        edges = self.nodes * (self.nodes + 3)
        params: Params = {}
        for name, size in SEPARABLE.items():
            lead = (layers, edges, 2)
            params[name] = {
                "depthwise": Normal((*lead, channels, size, size), 2 / size**2),
                "pointwise": Normal((*lead, channels, channels), 2 / channels),
                "scale": jnp.ones((*lead, channels)),
                "bias": jnp.zeros((*lead, channels)),
            }
        shape = (layers, self.nodes + 2, channels, channels)
        params["project"] = Normal(shape, 1 / channels)  # a few of the nodes are loose
        params["norm"] = {
            "scale": jnp.ones((layers, channels)),
            "bias": jnp.zeros((layers, channels)),
        }
        return params

    def _stage_channels(self):
        return [self.channels * 2**stage for stage in range(STAGES)]

    def _stage_sizes(self):
        strides = [self.stem_stride * 2**stage for stage in range(STAGES)]
        return [[-(-n // stride) for n in self.image_shape[:2]] for stride in strides]

    def _auxiliary_size(self):
        return [1 + max(n - 5, 0) // 3 for n in self._stage_sizes()[-1]]

    # --- The pass --------------------------------------------------------------------------------

    def layers(self, architecture: Architecture, stage: int) -> Cell:
        """The cells of a stage in their order, as one with leading axes."""
        reductions = [architecture.reduction] if stage else []
        cells = reductions + self.cells * [architecture.normal]
        return jax.tree.map(lambda *leaves: jnp.stack(leaves), *cells)

    def apply(
        self,
        params: Params,
        architecture: Architecture,
        images: jax.Array,
        statistics: Params | None = None,
        key: jax.Array | None = None,
        progress: jax.typing.ArrayLike = 1.0,
    ) -> Output:
        """The logits of images.

        Args:
          params: the shared parameters, of which those of the sampled edges alone are read.
          architecture: the cells.
          images: float [batch, height, width, channels].
          statistics: what batch norm normalises by: by default those of the batch, otherwise as
            :meth:`init_statistics` and ``Output.statistics`` have them.
          key: for drop-path; nothing is dropped without it.
          progress: the share of training that has passed; multiplies the rate of drop-path.
        """
        x = inward(rounded(images, self.compute_dtype), self.groups)
        given: Params = statistics if statistics is not None else {}
        keep = self._keep(architecture, key, progress, len(images), wide_dtype(x))
        new: Params = {"stages": [], "inputs": []}
        auxiliary = None
        x = convolution_3x3(x, params["stem"]["kernel"], self.stem_stride)
        x, new["stem"] = batch_norm(x, params["stem"], given.get("stem"))
        states = x, x
        for stage in range(STAGES):
            if stage:
                seen = given["inputs"][stage - 1] if given else {}
                halved = {
                    name: halve(h, halving, seen.get(name))
                    for (name, halving), h in zip(
                        params["inputs"][stage - 1].items(), states, strict=True
                    )
                }
                new["inputs"].append({name: stats for name, (_, stats) in halved.items()})
                states = tuple(h for h, _ in halved.values())
            if self.auxiliary and stage == STAGES - 1:
                auxiliary, new["auxiliary"] = self._auxiliary(
                    states[1], params["auxiliary"], given.get("auxiliary")
                )
            states, stats = self._run_stage(
                params["stages"][stage],
                self.layers(architecture, stage),
                states,
                given["stages"][stage] if given else None,
                keep[stage],
            )
            new["stages"].append(stats)
        pooled = widen(jax.nn.relu(states[1])).mean((HEIGHT, WIDTH))
        return Output(classify(pooled, params["classifier"]), auxiliary, new)

    def init_statistics(self) -> Params:
        """Statistics of nothing yet: means 0 and variances 1."""
        params = jax.eval_shape(self.init, jax.random.key(0))
        choices: Any = jax.ShapeDtypeStruct((self.nodes, 2), jnp.int32)
        architecture = Architecture(*2 * [Cell(choices, choices)])
        images = jax.ShapeDtypeStruct((self.groups, *self.image_shape), jnp.float32)
        output = jax.eval_shape(self.apply, params, architecture, images)
        start = jnp.array([[0.0], [1.0]])
        return jax.tree.map(
            lambda s: jnp.broadcast_to(jnp.expand_dims(start, range(s.ndim - 2)), s.shape),
            output.statistics,
        )

    def _run_stage(self, params, cells, states, given, keep):
        """The layers of a stage: its last two outputs, and the statistics of all."""
        nodes = jnp.repeat(jnp.arange(self.nodes) + 2, 2)
        index = jax.vmap(edge_index)(cells)

        def pick(weights):
            own = weights.shape[1] == 2 * self.nodes  # already
            return weights if own else jax.vmap(lambda w, i: w[i])(weights, index)

        weights = jax.tree.map(pick, {name: params[name] for name in SEPARABLE})

        def layer(states, inputs):
            cell, weights, project, norm, given, keep = inputs
            given = {} if given is None else given
            edges = nodes, cell.inputs.ravel(), cell.operations.ravel()

            def edge(hidden, inputs):
                (node, source, operation), weights, given, keep = inputs
                y, stats = run_one(BRANCHES, operation, hidden[source], weights, given)
                if keep is not None:
                    y *= keep[:, None, None, None].astype(y.dtype)
                return hidden.at[node].add(y), stats

            hidden = jnp.zeros((self.nodes + 2, *states[1].shape), states[1].dtype)
            hidden = hidden.at[0].set(states[0]).at[1].set(states[1])
            hidden, stats = jax.lax.scan(edge, hidden, (edges, weights, given.get("edges"), keep))

            def add(total, inputs):
                used, h, kernel = inputs
                y, _ = run_one(PROJECTIONS, used.astype(jnp.int32), h, kernel, None)
                return total + y, None

            ends = loose_ends(cell), hidden, project
            total, _ = jax.lax.scan(add, jnp.zeros_like(states[1]), ends)
            output, norm_stats = batch_norm(total, norm, given.get("norm"))
            return (states[1], output), {"edges": stats, "norm": norm_stats}

        xs = cells, weights, params["project"], params["norm"], given, keep
        return jax.lax.scan(layer, states, xs)

    def _keep(self, architecture, key, progress, count, dtype):
        """What drop-path multiplies each edge of each stage's layers by, or ``None`` for each."""
        if key is None or not self.drop_path:
            return [None] * STAGES
        layers = STAGES * self.cells + STAGES - 1
        rates = self.drop_path * progress * (jnp.arange(layers, dtype=dtype) + 1) / layers
        shape = (layers, 2 * self.nodes, self.groups, count // self.groups)
        rates = rates[:, None, None, None]
        kept = (jax.random.uniform(key, shape, dtype) >= rates) / (1 - rates)
        keep = jnp.split(kept, [self.cells, 2 * self.cells + 1])
        for stage, factors in enumerate(keep):
            operations = self.layers(architecture, stage).operations.reshape(len(factors), -1)
            identity = operations == OPERATIONS.index("identity")
            keep[stage] = jnp.where(identity[:, :, None, None], 1, factors)
        return keep

    def _auxiliary(self, x, params, given):
        """The auxiliary head: pooling 5×5 in steps of 3, two convolutions, a classifier."""
        given = {} if given is None else given
        height, width = (min(5, x.shape[axis]) for axis in (HEIGHT, WIDTH))
        x = jax.lax.reduce_window(
            jax.nn.relu(x), 0.0, jax.lax.add, (1, height, 1, width, 1), (1, 3, 1, 3, 1), "VALID"
        )
        x, first = convolve(x / (height * width), params["first"], given.get("first"))
        x = jax.nn.relu(x).reshape(self.groups, 1, -1, 1, x.shape[-1])
        x, second = convolve(x, params["second"], given.get("second"))
        logits = classify(jax.nn.relu(x)[:, 0, :, 0], params["classifier"])
        return logits, {"first": first, "second": second}

    def multiply_adds(self, architecture: Architecture) -> int:
        """Multiplications, each with its addition, in the convolutions and classifier of an image.

        Without those of batch norm, pooling and the auxiliary head.
        """
        pixels = [height * width for height, width in self._stage_sizes()]
        channels = self._stage_channels()
        total = pixels[0] * channels[0] * 9 * self.image_shape[2] + channels[-1] * self.classes
        for before, after, area in zip(channels, channels[1:], pixels[1:], strict=False):
            total += 2 * area * before * after

        def of_cell(cell, stage):
            c = channels[stage]
            used = [OPERATIONS[int(i)] for i in np.asarray(cell.operations).ravel()]
            kernels = [SEPARABLE[name] for name in used if name in SEPARABLE]
            weights = sum(2 * c * (c + size**2) for size in kernels)
            return pixels[stage] * (weights + int(loose_ends(cell).sum()) * c * c)

        total += self.cells * sum(of_cell(architecture.normal, stage) for stage in range(STAGES))
        return total + sum(of_cell(architecture.reduction, s) for s in range(1, STAGES))


def _convolution(channels, fan_in, groups=1):
    """Of a 1×1 convolution with batch norm; in groups, each has its own kernel."""
    shape = (channels, fan_in) if groups == 1 else (groups, channels // groups, fan_in)
    return {
        "kernel": Normal(shape, 2 / fan_in),
        "scale": jnp.ones(channels),
        "bias": jnp.zeros(channels),
    }


def _convolution_3x3(channels, before):
    """Of a 3×3 convolution with batch norm."""
    return _convolution(channels, 9 * before) | {
        "kernel": Normal((3, channels, 3, before), 2 / (9 * before))
    }


def _linear(classes, features):
    return {"kernel": Normal((classes, features), 1 / features), "bias": jnp.zeros(classes)}


# --- Branches and layers --------------------------------------------------------------------------


def _identity(x, weights, given):
    return x, _no_statistics(x)


def _average_pool(x, weights, given):
    return average_pool(x), _no_statistics(x)


def _max_pool(x, weights, given):
    return max_pool(x), _no_statistics(x)


def _no_statistics(x):
    return jnp.zeros((2, 2, x.shape[CHANNELS]), wide_dtype(x))


def _separable(name):
    """The branch of a separable convolution: its statistics are of both batch norms."""

    def run(x, weights, given):
        w, statistics = weights[name], []
        for i in range(2):
            x = depthwise(jax.nn.relu(x), w["depthwise"][i])
            x = pointwise(x, w["pointwise"][i])
            norm = {"scale": w["scale"][i], "bias": w["bias"][i]}
            x, new = batch_norm(x, norm, None if given is None else given[i])
            statistics.append(new)
        return x, jnp.stack(statistics)

    return run


def _nothing(x, kernel, given):
    return jnp.zeros_like(x), None


def _project(x, kernel, given):
    return pointwise(jax.nn.relu(x), kernel), None


BRANCHES = (  # in the order of OPERATIONS
    _identity,
    _separable("sep_conv_3x3"),
    _separable("sep_conv_5x5"),
    _average_pool,
    _max_pool,
)
PROJECTIONS = (_nothing, _project)  # of a node that is read, and of a loose end


def convolve(x, params, given):
    """A 1×1 convolution and batch norm."""
    return batch_norm(pointwise(x, params["kernel"]), params, given)


def halve(x, params, given):
    """ENAS's factorised reduction: two 1×1 convolutions, of every other pixel and of those between.

    Both together read half of the pixels and give half of the channels each.
    """
    x = jax.nn.relu(x)
    between = jnp.pad(x, ((0, 0), (0, 1), (0, 0), (0, 1), (0, 0)))[:, 1:, :, 1:]
    halves = [
        pointwise(y[:, ::2, :, ::2], kernel)
        for kernel, y in zip(params["kernel"], (x, between), strict=True)
    ]
    return batch_norm(jnp.concatenate(halves, axis=CHANNELS), params, given)
