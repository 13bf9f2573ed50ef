"""A training step of a search over micro-CNNs, like :mod:`benchmarks.search_step` for cells.

    python -m benchmarks.micro_cnn_step

Random pixels of a fixed seed; beside the written-out network and PyTorch's.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import static
from benchmarks.report import chosen, report
from benchmarks.search_step import (
    ALONE,
    PLASTIC,
    SEARCH,
    optimizer,
    pytorch,
    sampled,
    searching,
    written_out,
)
from benchmarks.timing import compare
from experiments import spaces


def main():
    report("micro_cnn_step", [step()])


def step():
    preset = spaces.find("micro_cnn").searches["cpu"]
    space, size, batches = preset.cnn, preset.batch_size, preset.search.batches
    rng = np.random.default_rng(0)
    images = jnp.asarray(rng.integers(256, size=(16, size, *space.image_shape)), jnp.uint8)
    split = images, jnp.asarray(rng.integers(space.classes, size=(16, size)), jnp.int32)
    architecture = jax.tree.map(np.asarray, space.decode(jnp.array(sampled(space))))
    tx, params = optimizer(0.01, preset.clip), space.init(jax.random.key(0))
    loss = static.cnn_loss(space, architecture)

    def batch(split, i):
        return space.batch(split, i, jax.random.fold_in(jax.random.key(0), i))

    forms = {
        ALONE: functools.partial(
            written_out,
            lambda params, batch, _: (loss(params, batch), ()),
            static.cnn_params(space, params, architecture),
            *(tx, batches, (), batch, split),
        ),
        SEARCH: functools.partial(searching, space, split, tx, batches),
        PLASTIC: functools.partial(searching, space, split, tx, batches, 10.0, 0.01),
    }
    height, *_ = space.image_shape
    sizes = {
        **{name: getattr(space, name) for name in ("channels", "cells", "classes", "stem_stride")},
        **{"size": height, "batch": size, "rate": 0.01, "clip": preset.clip},
        **{
            kind: {name: leaf.tolist() for name, leaf in cell._asdict().items()}
            for kind, cell in architecture._asdict().items()
        },
    }
    peers = pytorch("torch_micro_cnn", ("eager", "channels last", "compiled"), sizes)
    shape = f"{space.nodes} nodes of {space.channels} channels, 3 stages of {space.cells} cell"
    pixels = f"{size} images {height} × {height}, a stem of stride {space.stem_stride}"
    return compare(f"Search over micro-CNNs, {shape}, {pixels}", forms | peers)


if __name__ == "__main__":
    chosen(__doc__)
    main()
