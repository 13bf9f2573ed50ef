r"""The micro search space of ENAS: two cells of B nodes, for image classification.

A network is a stem and three stages of N normal cells, with a reduction cell before the second and
the third stage, which have half the resolution and twice the channels of the one before; then
global average pooling and a linear classifier. Every cell reads the outputs of the two before it,
``h_0`` and ``h_1``. Node ``j = 2, 3, …`` of a cell adds two inputs, each one of two choices, an
earlier node and an operation on it:

.. math:: h_j = \text{operation}_a(h_a) + \text{operation}_b(h_b), \qquad a, b < j

The nodes that no other reads are concatenated, passed through a ReLU, and projected to the cell's
channels by weights of each node. A separable convolution is twice (ReLU, depthwise convolution,
1×1 convolution, batch norm), with weights of its own for every layer, node, place in the sum, and
earlier node, as in ENAS; pooling and identity have none.

All architectures share one tree of parameters. A pass runs the sampled operations alone: a cell is
a scan over its edges, each a branch on the operation (:func:`_run_one`), and a stage is a scan over
its layers, of which the first, but for that of the first stage, is the reduction cell: the compiled
program holds one cell a stage, whatever the depth.

Inside, images are ``[groups, height, channels, width, batch]``. Depthwise convolution and pooling
are sums and maxima of shifted blocks, in which the batch is contiguous, and a 1×1 convolution is a
matrix product for each row, whose operands are the image as it is. On a CPU XLA's own depthwise
convolution takes 12 to 16 times as long, its max pooling 7 times, forward and backward
(``python -m benchmarks.micro_cnn``). Devices that share a batch hold a group or more each.
"""

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

if TYPE_CHECKING:
    import networkx

__all__ = ["OPERATIONS", "Architecture", "Cell", "MicroCNN", "Output"]

OPERATIONS = ("identity", "sep_conv_3x3", "sep_conv_5x5", "avg_pool_3x3", "max_pool_3x3")
_SEPARABLE = {"sep_conv_3x3": 3, "sep_conv_5x5": 5}  # and the size of their kernels
_STAGES = 3
_AUXILIARY = (128, 768)  # channels of the auxiliary head's convolutions

Params = dict[str, Any]


class Cell(NamedTuple):
    """A cell, as data; row ``j`` is node ``j + 2``, after the two that the cell reads."""

    inputs: jax.Array  # shape=(nodes, 2), int32: earlier nodes
    operations: jax.Array  # shape=(nodes, 2), int32: positions in OPERATIONS


class Architecture(NamedTuple):
    """The two cells that a network is made of."""

    normal: Cell
    reduction: Cell


class Output(NamedTuple):
    """What a network makes of a batch of images."""

    logits: jax.Array  # shape=(batch, classes)
    auxiliary: jax.Array | None  # the same of the auxiliary head, where there is one
    statistics: Params  # means and variances of this batch, leaves of shape=(..., 2, channels)


@dataclasses.dataclass(frozen=True)
class MicroCNN:
    """The space and the network around the cells; a :class:`wpl_jax.spaces.Space`.

    The defaults are those of ENAS's search on CIFAR-10. A data split is a pair of images, uint8
    [batches, batch, height, width, channels], and labels, int32 [batches, batch], where -1 is for
    padding, which no loss and no score counts (see :func:`wpl_jax.data.batches`); by the statistics
    of the batch it would be normalised with the rest, so measure padded batches by running ones.

    Batch norm uses the statistics of the batch, in search and in training. :meth:`apply` takes
    running averages to measure with, and returns the statistics that they are averages of; nothing
    else changes them.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from wpl_jax.spaces.micro_cnn import MicroCNN
      >>> space = MicroCNN(classes=3, image_shape=(8, 8, 1), nodes=2, channels=4, cells=1)
      >>> params = space.init(jax.random.key(0))
      >>> actions = jax.random.randint(jax.random.key(1), (16,), 0, jnp.array(space.decisions))
      >>> space.apply(params, space.decode(actions), jnp.ones((5, 8, 8, 1))).logits.shape
      (5, 3)
    """

    classes: int = 10
    """Classes that images are told apart in."""
    image_shape: tuple[int, int, int] = (32, 32, 3)
    """Height, width and channels of an image."""
    nodes: int = 5
    """Nodes of a cell, B, beside the two that it reads."""
    channels: int = 20
    """Of the first stage."""
    cells: int = 2
    """Normal cells of a stage, N."""
    stem_stride: int = 1
    """Of the stem; 2 quarters the pixels of every stage."""
    groups: int = 1
    """Parts of a batch, computed side by side; a multiple of the devices saves communication."""
    crop_padding: int = 4
    """In training images are shifted by up to so many pixels, at random; 0 for not."""
    flip: bool = True
    """In training every other image is mirrored, at random."""
    cutout: int = 0
    """In training a square of so many pixels is blanked, at a random place; 0 for none."""
    drop_path: float = 0.0
    """In training operations but identities are dropped: in cell i of n with i/n of this chance."""
    auxiliary: float = 0.0
    """Weight in the training loss of a second classifier, of the second stage; 0 for none."""

    def __post_init__(self) -> None:
        """Refuse what cannot work."""
        for name in ("classes", "nodes", "channels", "cells", "stem_stride", "groups"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if len(self.image_shape) != 3 or min(self.image_shape) < 1:
            raise ValueError(
                f"image_shape must be height, width and channels, each >= 1, got {self.image_shape}"
            )
        for name in ("crop_padding", "cutout"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must be >= 0, got {getattr(self, name)}")
        if not 0 <= self.drop_path < 1:
            raise ValueError(f"drop_path must be >= 0 and < 1, got {self.drop_path}")
        if not 0 <= self.auxiliary < math.inf:
            raise ValueError(f"auxiliary must be finite and >= 0, got {self.auxiliary}")

    # --- Architectures ---------------------------------------------------------------------------

    @property
    def decisions(self) -> tuple[int, ...]:
        """Choices of each node: earlier node and operation, twice; the normal cell's first."""
        cell = [n for j in range(self.nodes) for n in 2 * (j + 2, len(OPERATIONS))]
        return tuple(2 * cell)

    def decode(self, actions: jax.Array) -> Architecture:
        """The cells that ``actions``, int32 [decisions], stand for."""
        choices = jnp.asarray(actions, jnp.int32).reshape(2, self.nodes, 2, 2)
        return Architecture(*(Cell(cell[..., 0], cell[..., 1]) for cell in choices))

    def mask(self, architecture: Architecture) -> Params:
        """Which shared parameters it uses: of its cells, those of the edges and the loose ends."""
        shapes = jax.eval_shape(self.init, jax.random.key(0))

        def of_cell(cell):
            edges = jnp.zeros(self.nodes * (self.nodes + 3), jnp.int32)
            edges = edges.at[_edge_index(cell)].set(cell.operations.ravel())
            used = {name: edges == OPERATIONS.index(name) for name in _SEPARABLE}
            return used | {"project": _loose(cell)}

        def of_stage(stage, params):
            used = jax.vmap(of_cell)(self._layers(architecture, stage))
            return {"norm": True} | {
                name: jax.tree.map(functools.partial(_broadcastable, mask), params[name])
                for name, mask in used.items()
            }

        stages = [of_stage(stage, params) for stage, params in enumerate(shapes["stages"])]
        return {name: True for name in shapes} | {"stages": stages}

    def rows(self, architecture: Architecture) -> Params:
        """Where in each layer its own edges are among all; projections are few, and all taken."""

        def of_stage(stage):
            edges = jax.vmap(_edge_index)(self._layers(architecture, stage))
            return {"norm": ..., "project": ..., **dict.fromkeys(_SEPARABLE, edges)}

        names = jax.eval_shape(self.init, jax.random.key(0))
        return {name: ... for name in names} | {"stages": [*map(of_stage, range(_STAGES))]}

    def _layers(self, architecture, stage):
        """The cells of a stage in their order, as one with leading axes."""
        reductions = [architecture.reduction] if stage else []
        cells = reductions + self.cells * [architecture.normal]
        return jax.tree.map(lambda *leaves: jnp.stack(leaves), *cells)

    # --- Parameters ------------------------------------------------------------------------------

    def init(self, key: jax.Array) -> Params:
        """Shared parameters, of all architectures."""
        stages = self._stage_channels()
        params: Params = {
            "stem": _convolution(stages[0], 9 * self.image_shape[2]),
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
        return _drawn(key, params)

    def _cells(self, channels, layers):
        """Of the cells of a stage, which have one shape; layers lead, then edges or nodes."""
        edges = self.nodes * (self.nodes + 3)
        params: Params = {}
        for name, size in _SEPARABLE.items():
            lead = (layers, edges, 2)
            params[name] = {
                "depthwise": _Normal((*lead, channels, size, size), 2 / size**2),
                "pointwise": _Normal((*lead, channels, channels), 2 / channels),
                "scale": jnp.ones((*lead, channels)),
                "bias": jnp.zeros((*lead, channels)),
            }
        shape = (layers, self.nodes + 2, channels, channels)
        params["project"] = _Normal(shape, 1 / channels)  # a few of the nodes are loose
        params["norm"] = {
            "scale": jnp.ones((layers, channels)),
            "bias": jnp.zeros((layers, channels)),
        }
        return params

    def _stage_channels(self):
        return [self.channels * 2**stage for stage in range(_STAGES)]

    def _stage_sizes(self):
        strides = [self.stem_stride * 2**stage for stage in range(_STAGES)]
        return [[-(-n // stride) for n in self.image_shape[:2]] for stride in strides]

    def _auxiliary_size(self):
        return [1 + max(n - 5, 0) // 3 for n in self._stage_sizes()[-1]]

    # --- Data ------------------------------------------------------------------------------------

    def num_batches(self, split: tuple[jax.Array, jax.Array]) -> int:
        """How many batches there are in a split."""
        return len(split[0])

    def batch(
        self,
        split: tuple[jax.Array, jax.Array],
        step: jax.typing.ArrayLike,
        key: jax.Array | None = None,
    ) -> tuple[jax.Array, jax.Array]:
        """Batch ``step`` of a split, around and around.

        With a key images are augmented, and every pass over the split has other batches: each
        place in the batch goes around the batches from a start of its own, drawn for the pass. So
        every image comes once a pass, and a device that holds some of the places needs no other.

        Args:
          split: images, uint8 [batches, batch, height, width, channels], and labels.
          step: any integer >= 0.
          key: of the augmentation.

        Returns:
          Images, float [batch, height, width, channels], about -2 to 2, and labels, int32 [batch].
        """
        images, labels = split
        turn, place = jnp.divmod(jnp.asarray(step, jnp.int32), len(images))
        if key is None:
            return _scaled(images[place]), labels[place]
        pass_key = jax.random.fold_in(jax.random.key(0), turn)  # one order for all runs
        start = jax.random.randint(pass_key, labels.shape[1:], 0, len(images))
        rows = (place + start) % len(images)
        pick = jax.vmap(lambda column, row: column[row], in_axes=(1, 0))
        return self._augment(_scaled(pick(images, rows)), key), pick(labels, rows)

    def _augment(self, images, key):
        """Shift, mirror and blank, each image on its own."""
        count, height, width, _ = images.shape
        crop_key, flip_key, cut_key = jax.random.split(key, 3)
        if self.crop_padding:
            pad = self.crop_padding
            padded = jnp.pad(images, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
            corners = jax.random.randint(crop_key, (count, 2), 0, 2 * pad + 1)

            def crop(image, corner):
                return jax.lax.dynamic_slice(image, (*corner, 0), images.shape[1:])

            images = jax.vmap(crop)(padded, corners)
        if self.flip:
            flipped = jax.random.bernoulli(flip_key, shape=(count, 1, 1, 1))
            images = jnp.where(flipped, images[:, :, ::-1], images)
        if self.cutout:
            centres = jax.random.randint(cut_key, (count, 2), 0, jnp.array([[height, width]]))
            low, high = centres - self.cutout // 2, centres + (self.cutout + 1) // 2

            def between(size, axis):
                place = jnp.arange(size)[None]
                return (place >= low[:, axis, None]) & (place < high[:, axis, None])

            blank = between(height, 0)[:, :, None] & between(width, 1)[:, None, :]
            images = jnp.where(blank[..., None], 0, images)
        return images

    # --- Training and measuring ------------------------------------------------------------------

    def start(self, batch: tuple[jax.Array, jax.Array]) -> tuple[()]:
        """The carry, of which images need none."""
        del batch
        return ()

    def loss(
        self,
        params: Params,
        architecture: Architecture,
        batch: tuple[jax.Array, jax.Array],
        carry: tuple[()] = (),
        key: jax.Array | None = None,
    ) -> tuple[jax.Array, tuple[()]]:
        """Mean cross-entropy in nats an image; with a key, drop-path and the auxiliary head's."""
        images, labels = batch
        output = self.apply(params, architecture, images, key=key)
        loss = cross_entropy(output.logits, labels)
        if key is not None and output.auxiliary is not None:
            loss += self.auxiliary * cross_entropy(output.auxiliary, labels)
        return loss, carry

    def score(
        self,
        params: Params,
        architecture: Architecture,
        batch: tuple[jax.Array, jax.Array],
        carry: tuple[()] = (),
        statistics: Params | None = None,
    ) -> tuple[tuple[jax.Array, jax.Array], tuple[()]]:
        """Evaluation: how many images are misclassified, and how many there are.

        An image whose logits are not all finite makes the first NaN.
        """
        images, labels = batch
        logits = self.apply(params, architecture, images, statistics).logits
        wrong = jnp.where(jnp.isfinite(logits).all(-1), logits.argmax(-1) != labels, jnp.nan)
        there = labels >= 0
        total = jnp.sum(jnp.where(there, wrong, 0))
        return (total, jnp.sum(there).astype(total.dtype)), carry

    def error(self, mean_score: jax.Array) -> jax.Array:
        """The error rate, from 0 to 1."""
        return mean_score

    def reward(self, error: jax.Array) -> jax.Array:
        """The controller's reward: the accuracy; 0 for an error that is not finite."""
        return jnp.where(jnp.isfinite(error), 1 - error, 0.0)

    # --- The network -----------------------------------------------------------------------------

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
        if len(images) % self.groups:
            raise ValueError(
                f"a batch must be a multiple of groups={self.groups}, got {len(images)} images"
            )
        x = images.reshape(self.groups, -1, *images.shape[1:])
        x = jnp.transpose(x, (0, 2, 4, 3, 1))
        given: Params = statistics if statistics is not None else {}
        keep = self._keep(architecture, key, progress, len(images), x.dtype)
        new: Params = {"stages": [], "inputs": []}
        auxiliary = None
        x = jnp.concatenate(list(itertools.chain(*_shifted(x, 3))), axis=_CHANNELS)
        x = x[:, :: self.stem_stride, :, :: self.stem_stride]
        x, new["stem"] = _convolve(params["stem"], x, given.get("stem"))
        states = x, x
        for stage in range(_STAGES):
            if stage:
                seen = given["inputs"][stage - 1] if given else {}
                halved = {
                    name: _halve(halving, h, seen.get(name))
                    for (name, halving), h in zip(
                        params["inputs"][stage - 1].items(), states, strict=True
                    )
                }
                new["inputs"].append({name: stats for name, (_, stats) in halved.items()})
                states = tuple(h for h, _ in halved.values())
            if self.auxiliary and stage == _STAGES - 1:
                auxiliary, new["auxiliary"] = self._auxiliary(
                    params["auxiliary"], states[1], given.get("auxiliary")
                )
            states, stats = self._run_stage(
                params["stages"][stage],
                self._layers(architecture, stage),
                states,
                given["stages"][stage] if given else None,
                keep[stage],
            )
            new["stages"].append(stats)
        pooled = jax.nn.relu(states[1]).mean((_HEIGHT, _WIDTH))
        return Output(_classify(params["classifier"], pooled), auxiliary, new)

    def init_statistics(self) -> Params:
        """Statistics of nothing yet: means 0 and variances 1."""
        params = jax.eval_shape(self.init, jax.random.key(0))
        actions = jax.ShapeDtypeStruct((len(self.decisions),), jnp.int32)
        images = jax.ShapeDtypeStruct((self.groups, *self.image_shape), jnp.float32)
        statistics = jax.eval_shape(
            lambda p, a, x: self.apply(p, self.decode(a), x).statistics, params, actions, images
        )
        start = jnp.array([[0.0], [1.0]])
        return jax.tree.map(
            lambda s: jnp.broadcast_to(jnp.expand_dims(start, range(s.ndim - 2)), s.shape),
            statistics,
        )

    def _run_stage(self, params, cells, states, given, keep):
        """The layers of a stage: its last two outputs, and the statistics of all."""
        nodes = jnp.repeat(jnp.arange(self.nodes) + 2, 2)
        index = jax.vmap(_edge_index)(cells)

        def pick(weights):
            own = weights.shape[1] == 2 * self.nodes  # already
            return weights if own else jax.vmap(lambda w, i: w[i])(weights, index)

        weights = jax.tree.map(pick, {name: params[name] for name in _SEPARABLE})

        def layer(states, inputs):
            cell, weights, project, norm, given, keep = inputs
            given = {} if given is None else given
            edges = nodes, cell.inputs.ravel(), cell.operations.ravel()

            def edge(hidden, inputs):
                (node, source, operation), weights, given, keep = inputs
                y, stats = _run_one(_BRANCHES, operation, hidden[source], weights, given)
                if keep is not None:
                    y *= keep[:, None, None, None]
                return hidden.at[node].add(y), stats

            hidden = jnp.zeros((self.nodes + 2, *states[1].shape), states[1].dtype)
            hidden = hidden.at[0].set(states[0]).at[1].set(states[1])
            hidden, stats = jax.lax.scan(edge, hidden, (edges, weights, given.get("edges"), keep))

            def add(total, inputs):
                used, h, kernel = inputs
                y, _ = _run_one(_PROJECTIONS, used.astype(jnp.int32), h, kernel, None)
                return total + y, None

            total, _ = jax.lax.scan(add, jnp.zeros_like(states[1]), (_loose(cell), hidden, project))
            output, norm_stats = _normalise(norm, total, given.get("norm"))
            return (states[1], output), {"edges": stats, "norm": norm_stats}

        xs = cells, weights, params["project"], params["norm"], given, keep
        return jax.lax.scan(layer, states, xs)

    def _keep(self, architecture, key, progress, count, dtype):
        """What drop-path multiplies each edge of each stage's layers by, or ``None`` for each."""
        if key is None or not self.drop_path:
            return [None] * _STAGES
        layers = _STAGES * self.cells + _STAGES - 1
        rates = self.drop_path * progress * (jnp.arange(layers, dtype=dtype) + 1) / layers
        shape = (layers, 2 * self.nodes, self.groups, count // self.groups)
        rates = rates[:, None, None, None]
        kept = (jax.random.uniform(key, shape, dtype) >= rates) / (1 - rates)
        keep = jnp.split(kept, [self.cells, 2 * self.cells + 1])
        for stage, factors in enumerate(keep):
            operations = self._layers(architecture, stage).operations.reshape(len(factors), -1)
            identity = operations == OPERATIONS.index("identity")
            keep[stage] = jnp.where(identity[:, :, None, None], 1, factors)
        return keep

    def _auxiliary(self, params, x, given):
        """The auxiliary head: pooling 5×5 in steps of 3, two convolutions, a classifier."""
        given = {} if given is None else given
        height, width = (min(5, x.shape[axis]) for axis in (_HEIGHT, _WIDTH))
        x = jax.lax.reduce_window(
            jax.nn.relu(x), 0.0, jax.lax.add, (1, height, 1, width, 1), (1, 3, 1, 3, 1), "VALID"
        )
        x, first = _convolve(params["first"], x / (height * width), given.get("first"))
        x = jax.nn.relu(x).reshape(self.groups, 1, -1, 1, x.shape[-1])
        x, second = _convolve(params["second"], x, given.get("second"))
        logits = _classify(params["classifier"], jax.nn.relu(x)[:, 0, :, 0])
        return logits, {"first": first, "second": second}

    # --- What there is to say of an architecture -------------------------------------------------

    def num_parameters(self, architecture: Architecture) -> int:
        """How many of the shared parameters it uses."""
        shapes = jax.eval_shape(self.init, jax.random.key(0))
        masks = jax.tree.broadcast(self.mask(architecture), shapes)
        return sum(
            int(np.broadcast_to(mask, shape.shape).sum())
            for mask, shape in zip(jax.tree.leaves(masks), jax.tree.leaves(shapes), strict=True)
        )

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
            kernels = [_SEPARABLE[name] for name in used if name in _SEPARABLE]
            weights = sum(2 * c * (c + size**2) for size in kernels)
            return pixels[stage] * (weights + int(_loose(cell).sum()) * c * c)

        total += self.cells * sum(of_cell(architecture.normal, stage) for stage in range(_STAGES))
        return total + sum(of_cell(architecture.reduction, s) for s in range(1, _STAGES))

    def to_json(self, architecture: Architecture) -> dict[str, Any]:
        """The cells in a form to store as JSON and to read."""
        stored: dict[str, Any] = {"space": "micro_cnn"}
        for name, cell in architecture._asdict().items():
            inputs, operations = np.asarray(cell.inputs), np.asarray(cell.operations)
            stored[name] = [
                [
                    {"input": int(i), "operation": OPERATIONS[o]}
                    for i, o in zip(*choices, strict=True)
                ]
                for choices in zip(inputs, operations, strict=True)
            ]
        return stored

    def from_json(self, stored: Any) -> Architecture:
        """The architecture that :meth:`to_json` stored.

        Raises:
          ValueError: naming what is wrong with it.
        """
        if not isinstance(stored, Mapping) or stored.get("space") != "micro_cnn":
            space = stored.get("space") if isinstance(stored, Mapping) else stored
            raise ValueError(f'a micro-CNN architecture has "space": "micro_cnn", got {space!r}')
        return Architecture(*(self._read_cell(name, stored) for name in Architecture._fields))

    def _read_cell(self, name, stored):
        nodes = stored.get(name)
        if not isinstance(nodes, list) or len(nodes) != self.nodes:
            count = len(nodes) if isinstance(nodes, list) else repr(nodes)
            raise ValueError(f"the {name} cell must have {self.nodes} nodes, got {count}")
        for j, node in enumerate(nodes, start=2):
            where = f"node {j} of the {name} cell"
            if not isinstance(node, list) or len(node) != 2:
                raise ValueError(f"{where} must be a list of two inputs, got {node!r}")
            for choice in node:
                if not isinstance(choice, Mapping) or set(choice) != {"input", "operation"}:
                    raise ValueError(f"{where} must have input and operation twice, got {choice!r}")
                if choice["operation"] not in OPERATIONS:
                    raise ValueError(
                        f"an operation of {where} must be one of {', '.join(OPERATIONS)}, got "
                        f"{choice['operation']!r}"
                    )
                if type(choice["input"]) is not int or not 0 <= choice["input"] < j:
                    raise ValueError(
                        f"an input of {where} must be a node before it, 0 to {j - 1}, got "
                        f"{choice['input']!r}"
                    )
        return Cell(
            jnp.array([[c["input"] for c in node] for node in nodes], jnp.int32),
            jnp.array([[OPERATIONS.index(c["operation"]) for c in n] for n in nodes], jnp.int32),
        )

    def graphs(self, architecture: Architecture) -> "dict[str, networkx.DiGraph]":
        """Both cells as graphs, for :mod:`wpl_jax.figures.cells`."""
        return {f"{name} cell": _graph(cell) for name, cell in architecture._asdict().items()}


def cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Mean cross-entropy in nats of the labels that are not negative.

    Args:
      logits: float [batch, classes].
      labels: int32 [batch]; a negative one is padding.
    """
    there = labels >= 0
    picked = jnp.take_along_axis(jax.nn.log_softmax(logits), jnp.maximum(labels, 0)[:, None], 1)
    return -jnp.sum(jnp.where(there, picked[:, 0], 0)) / jnp.maximum(there.sum(), 1)


# --- Operations on [groups, height, channels, width, batch] --------------------------------------

_HEIGHT, _CHANNELS, _WIDTH = 1, 2, 3


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _run_one(
    branches: tuple[Callable, ...], index: jax.Array, x: jax.Array, weights: Any, given: Any
):
    """Branch ``index`` of ``x``, alone, forward and backward; its output and its statistics.

    The gradient runs the branch once more from ``x``; none passes through the statistics. Left to
    JAX, a switch would store the intermediate values of every branch, zeros for those not taken.
    """
    return jax.lax.switch(index, branches, x, weights, given)


def _run_one_forward(branches, index, x, weights, given):
    return _run_one(branches, index, x, weights, given), (index, x, weights, given)


def _run_one_backward(branches, saved, cotangents):
    index, x, weights, given = saved

    def gradient(branch):
        def run(x, weights, cotangent):
            return jax.vjp(lambda x, weights: branch(x, weights, given)[0], x, weights)[1](
                cotangent
            )

        return run

    grads = jax.lax.switch(index, [gradient(b) for b in branches], x, weights, cotangents[0])
    return None, *grads, None


_run_one.defvjp(_run_one_forward, _run_one_backward)


def _identity(x, weights, given):
    return x, _no_statistics(x)


def _average_pool(x, weights, given):
    """Mean over a 3×3 window, of the pixels in it that are in the image."""
    ones = jnp.ones((1, x.shape[_HEIGHT], 1, x.shape[_WIDTH], 1), x.dtype)
    return _window_sum(x) / _window_sum(ones), _no_statistics(x)


def _window_sum(x):
    for axis in (_HEIGHT, _WIDTH):
        x = sum(_shifts(x, 3, axis, 0))
    return x


def _max_pool(x, weights, given):
    for axis in (_HEIGHT, _WIDTH):
        x = functools.reduce(jnp.maximum, _shifts(x, 3, axis, -jnp.inf))
    return x, _no_statistics(x)


def _no_statistics(x):
    return jnp.zeros((2, 2, x.shape[_CHANNELS]), x.dtype)


def _separable(name):
    """The branch of a separable convolution: its statistics are of both batch norms."""

    def run(x, weights, given):
        w, statistics = weights[name], []
        for i in range(2):
            x = _depthwise(jax.nn.relu(x), w["depthwise"][i])
            x = _pointwise(w["pointwise"][i], x)
            norm = {"scale": w["scale"][i], "bias": w["bias"][i]}
            x, new = _normalise(norm, x, None if given is None else given[i])
            statistics.append(new)
        return x, jnp.stack(statistics)

    return run


def _nothing(x, kernel, given):
    return jnp.zeros_like(x), None


def _project(x, kernel, given):
    return _pointwise(kernel, jax.nn.relu(x)), None


_BRANCHES = (
    _identity,
    _separable("sep_conv_3x3"),
    _separable("sep_conv_5x5"),
    _average_pool,
    _max_pool,
)
_PROJECTIONS = (_nothing, _project)  # of a node that is read, and of a loose end


@jax.custom_vjp
def _pointwise(kernel: jax.Array, x: jax.Array) -> jax.Array:
    """A 1×1 convolution; kernel [channels after, channels before]."""
    product = jnp.einsum("ghdc,ghck->ghdk", _for_rows(kernel, x), _rows(x))
    return product.reshape(*product.shape[:3], *x.shape[3:])


def _pointwise_forward(kernel, x):
    return _pointwise(kernel, x), (kernel, x)


def _pointwise_backward(
    saved: tuple[jax.Array, jax.Array], cotangent: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """As JAX has it, but for the order of operands, which spares copies of the images."""
    kernel, x = saved
    grad = jnp.einsum("ghdk,ghck->ghdc", _rows(cotangent), _rows(x)).sum((0, 1))
    return grad, _pointwise(kernel.T, cotangent)


_pointwise.defvjp(_pointwise_forward, _pointwise_backward)


def _for_rows(kernel, x):
    return jnp.broadcast_to(kernel, (*x.shape[:2], *kernel.shape))


def _rows(x):
    """Each row of the image as one matrix, [groups, height, channels, width * batch]."""
    return x.reshape(*x.shape[:3], -1)


@jax.custom_vjp
def _depthwise(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Depthwise convolution of stride 1, zeros around the image; kernel [channels, size, size]."""
    return sum(
        _over_channels(kernel[:, i, j]) * block
        for i, row in enumerate(_shifted(x, kernel.shape[-1]))
        for j, block in enumerate(row)
    )


def _depthwise_forward(x, kernel):
    return _depthwise(x, kernel), (x, kernel)


def _depthwise_backward(saved, cotangent):
    """The kernel's gradient by a matrix product for each row, of which some diagonals count.

    To sum products of shifted blocks instead makes 5×5 kernels half as fast on a CPU.
    """
    x, kernel = saved
    size, width = kernel.shape[-1], x.shape[_WIDTH]
    rows = [
        jnp.einsum("ghcvn,ghcwn->ghcvw", block, cotangent).sum((0, 1))
        for block in _blocks(_pad(x, size, (_HEIGHT, _WIDTH), 0), size, _HEIGHT)
    ]
    places = jnp.stack([jnp.eye(width + size - 1, width, -j) for j in range(size)])
    grad = jnp.einsum("icvw,jvw->cij", jnp.stack(rows), places.astype(x.dtype))
    return _depthwise(cotangent, kernel[:, ::-1, ::-1]), grad


_depthwise.defvjp(_depthwise_forward, _depthwise_backward)


def _shifted(x, size):
    """The image seen from each place of a size×size window: rows of blocks."""
    padded = _pad(x, size, (_HEIGHT, _WIDTH), 0)
    return [_blocks(row, size, _WIDTH) for row in _blocks(padded, size, _HEIGHT)]


def _shifts(x, size, axis, fill):
    return _blocks(_pad(x, size, (axis,), fill), size, axis)


def _blocks(padded, size, axis):
    length = padded.shape[axis] - size + 1
    return [jax.lax.slice_in_dim(padded, i, i + length, axis=axis) for i in range(size)]


def _pad(x, size, axes, fill):
    before = (size - 1) // 2
    widths = [(before, size - 1 - before) if axis in axes else (0, 0) for axis in range(x.ndim)]
    return jnp.pad(x, widths, constant_values=fill)


def _normalise(params, x, given):
    """Batch norm by the batch's statistics or those given; and the batch's, [2, channels]."""
    others = [axis for axis in range(x.ndim) if axis != _CHANNELS]
    mean = x.mean(others)
    variance = jnp.square(x - _over_channels(mean)).mean(others)
    new = jnp.stack([mean, variance])
    mean, variance = new if given is None else given
    scale = params["scale"] * jax.lax.rsqrt(variance + 1e-5)
    y = (x - _over_channels(mean)) * _over_channels(scale) + _over_channels(params["bias"])
    return y, new


def _over_channels(x):
    return x[None, None, :, None, None]


def _convolve(params, x, given):
    """A 1×1 convolution and batch norm."""
    return _normalise(params, _pointwise(params["kernel"], x), given)


def _halve(params, x, given):
    """ENAS's factorised reduction: two 1×1 convolutions, of every other pixel and of those between.

    Both together read half of the pixels and give half of the channels each.
    """
    x = jax.nn.relu(x)
    between = jnp.pad(x, ((0, 0), (0, 1), (0, 0), (0, 1), (0, 0)))[:, 1:, :, 1:]
    halves = [
        _pointwise(kernel, y[:, ::2, :, ::2])
        for kernel, y in zip(params["kernel"], (x, between), strict=True)
    ]
    return _normalise(params, jnp.concatenate(halves, axis=_CHANNELS), given)


def _classify(params, features):
    """Logits [batch, classes] of features [groups, channels, batch]."""
    logits = jnp.einsum("gcn,dc->gnd", features, params["kernel"]) + params["bias"][None, None]
    return logits.reshape(-1, logits.shape[-1])


def _scaled(images):
    """Pixels from 0 to 255 as floats around 0, where padding and blanks are grey."""
    return (images.astype(jnp.float32) - 127.5) / 64


# --- Parameters and architectures ----------------------------------------------------------------


class _Normal(NamedTuple):
    """In the place of a parameter that starts normally distributed."""

    shape: tuple[int, ...]
    variance: float


def _drawn(key, params):
    """The parameters with numbers in the place of every ``_Normal``; one draw compiles fastest."""
    leaves, structure = jax.tree.flatten(params, is_leaf=_is_normal)
    sizes = [math.prod(leaf.shape) if _is_normal(leaf) else 0 for leaf in leaves]
    numbers = jnp.split(jax.random.normal(key, (sum(sizes),)), np.cumsum(sizes)[:-1])
    drawn = [
        math.sqrt(leaf.variance) * number.reshape(leaf.shape) if _is_normal(leaf) else leaf
        for leaf, number in zip(leaves, numbers, strict=True)
    ]
    return jax.tree.unflatten(structure, drawn)


def _is_normal(leaf):
    return isinstance(leaf, _Normal)


def _convolution(channels, fan_in, groups=1):
    """Of a 1×1 convolution with batch norm; in groups, each has its own kernel."""
    shape = (channels, fan_in) if groups == 1 else (groups, channels // groups, fan_in)
    return {
        "kernel": _Normal(shape, 2 / fan_in),
        "scale": jnp.ones(channels),
        "bias": jnp.zeros(channels),
    }


def _linear(classes, features):
    return {"kernel": _Normal((classes, features), 1 / features), "bias": jnp.zeros(classes)}


def _edge_index(cell):
    """Where a cell's edges are among all: those of node 2 first, and of it, those of one place."""
    nodes = jnp.arange(len(cell.inputs))[:, None]
    places = jnp.arange(2)[None]
    return (nodes * (nodes + 3) + places * (nodes + 2) + cell.inputs).ravel()


def _loose(cell):
    """Which nodes no other reads, bool [nodes + 2]."""
    read = jnp.zeros(len(cell.inputs) + 2, bool).at[cell.inputs.ravel()].set(True)
    return ~read


def _broadcastable(mask, param):
    """A mask over the first two axes of a parameter."""
    return jnp.reshape(mask, (*mask.shape, *[1] * (param.ndim - 2)))


def _graph(cell):
    import networkx

    graph = networkx.DiGraph()
    for i, label in enumerate(("hₖ₋₂", "hₖ₋₁")):
        graph.add_node(i, label=label, kind="input")
    inputs, operations = np.asarray(cell.inputs), np.asarray(cell.operations)
    for j in range(2, len(inputs) + 2):
        graph.add_node(j, label=f"{j}", kind="sum")
        for place in range(2):
            name = OPERATIONS[operations[j - 2, place]]
            operation = (j, place)
            graph.add_node(operation, label=_LABELS[name], kind=name)
            graph.add_edge(int(inputs[j - 2, place]), operation)
            graph.add_edge(operation, j)
    graph.add_node("hₖ", label="hₖ", kind="output")
    graph.add_edges_from((int(j), "hₖ") for j in np.flatnonzero(_loose(cell)))
    return graph


_LABELS = {
    "identity": "id",
    "sep_conv_3x3": "sep\n3×3",
    "sep_conv_5x5": "sep\n5×5",
    "avg_pool_3x3": "avg\n3×3",
    "max_pool_3x3": "max\n3×3",
}
