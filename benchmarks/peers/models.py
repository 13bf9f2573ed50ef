"""The networks of benchmarks/models.py in PyTorch and in Flax, for other libraries.

    python -m benchmarks.peers.models <module> <case> <sizes>

serves a case as benchmarks.peers.serve does.
"""

import functools
import importlib
import sys
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from benchmarks import large_networks
from benchmarks.peers import serve as server


def serve(module: str, case: str, sizes: str) -> None:
    """Add a network to the cases of a module of benchmarks/peers, and serve it."""
    network, library = case.split("/")
    peers = importlib.import_module(f"benchmarks.peers.{module}")
    added = {"torch_fisher": TORCH, "jax_fisher": FLAX}[module]
    if network in added:
        peers.NETWORKS[network] = functools.partial(added[network], peers)
    peers.CASES[case] = functools.partial(peers.build, network, library)
    sys.argv[1:] = module, case, sizes
    server.main()


def torch_gpt(peers, batch, steps, vocabulary, width, depth, heads, tied=True):
    module = peers.Transformer(vocabulary, width, heads, depth, steps)
    if tied:
        module.decoder.weight = module.token.weight
    return module, *peers.text(batch, steps, vocabulary)


def torchvision_models():
    import torch

    try:
        from torchvision import models
    except RuntimeError:  # built for CUDA beside a torch that is not: its operators are not there
        library = torch.library.Library("torchvision", "DEF")
        for name in ("nms", "qnms"):
            library.define(f"{name}(Tensor dets, Tensor scores, float threshold) -> Tensor")
        from torchvision import models
    return models


def torch_vit(peers, batch, size, classes, patch, width, depth, heads):
    vision_transformer = torchvision_models().VisionTransformer
    module = vision_transformer(size, patch, depth, heads, width, 4 * width, num_classes=classes)
    return module.eval(), *peers.images(batch, (3, size, size), classes)


def torch_resnet(peers, batch, size, classes, blocks, width):
    """Torchvision's, as layers that BackPACK knows: sums of branches are a layer of theirs."""
    import backpack

    resnet = torchvision_models().resnet
    if width != 64:
        raise ValueError("torchvision's have a width of 64")
    module = resnet.ResNet(resnet.Bottleneck, blocks, classes).eval()
    for child in module.modules():
        if hasattr(child, "inplace"):
            child.inplace = False
    return backpack.extend(module, use_converter=True), *peers.images(
        batch, (3, size, size), classes
    )


def torch_convolution(peers, batch, shape, features, window, strides, classes=10):
    from torch import nn

    *extent, channels = shape
    layer = {1: nn.Conv1d, 2: nn.Conv2d}[len(extent)]
    pool = {1: nn.AdaptiveAvgPool1d, 2: nn.AdaptiveAvgPool2d}[len(extent)]
    # As many positions as "SAME" has, or one more.
    padding = [(w - s + 1) // 2 for w, s in zip(window, strides, strict=True)]
    module = nn.Sequential(
        layer(channels, features, tuple(window), tuple(strides), padding),
        nn.ReLU(),
        pool(1),
        nn.Flatten(),
        nn.Linear(features, classes),
    )
    return module, *peers.images(batch, (channels, *extent), classes)


def torch_lstm(peers, batch, steps, vocabulary, units, depth):
    from torch import nn

    layers = [nn.LSTM(units, units, batch_first=True) for _ in range(depth)]
    both = [part for layer in layers for part in (layer, peers.First())]
    module = nn.Sequential(nn.Embedding(vocabulary, units), *both, nn.Linear(units, vocabulary))
    return module, *peers.text(batch, steps, vocabulary)


def torch_rows(peers, batch, steps, vocabulary, width, classes=None):
    from torch import nn

    module = nn.Sequential(
        nn.Embedding(vocabulary, width),
        nn.Linear(width, width, bias=classes is not None),
        nn.Tanh(),
        nn.Linear(width, classes or vocabulary, bias=classes is not None),
    )
    words, labels = peers.text(batch, steps, vocabulary)
    return module, words, labels % (classes or vocabulary)


class Evaluated(NamedTuple):
    """A Flax module whose running averages are constants."""

    module: Any

    def init(self, key, inputs):
        return {"params": self.module.init(key, inputs)["params"]}

    def apply(self, variables, inputs):
        shapes = jax.eval_shape(self.module.init, jax.random.key(0), inputs)["batch_stats"]
        averages = jax.tree_util.tree_map_with_path(
            lambda path, a: jnp.full(a.shape, path[-1].key == "var", a.dtype), shapes
        )
        return self.module.apply({**variables, "batch_stats": averages}, inputs)


def flax_gpt(peers, batch, steps, vocabulary, **sizes):
    return large_networks.GPT(vocabulary, **sizes), *peers.text(batch, steps, vocabulary)


def flax_vit(peers, batch, size, classes, **sizes):
    images = peers.images(batch, (size, size, 3), classes)
    return large_networks.ViT(classes=classes, **sizes), *images


def flax_resnet(peers, batch, size, classes, blocks, **sizes):
    images = peers.images(batch, (size, size, 3), classes)
    return Evaluated(large_networks.ResNet(tuple(blocks), classes=classes, **sizes)), *images


def flax_convolution(peers, batch, shape, features, window, strides, classes=10):
    module = large_networks.Convolution(features, tuple(window), tuple(strides), classes)
    return module, *peers.images(batch, tuple(shape), classes)


# What the peers' own modules lack.
TORCH = {
    "gpt": torch_gpt,
    "vit": torch_vit,
    "resnet": torch_resnet,
    "convolution": torch_convolution,
    "deep_lstm": torch_lstm,
    "rows": torch_rows,
    "equinox_embedding": functools.partial(torch_rows, classes=100),
}
FLAX = {
    "gpt": flax_gpt,
    "vit": flax_vit,
    "resnet": flax_resnet,
    "convolution": flax_convolution,
}


if __name__ == "__main__":
    serve(*sys.argv[1:])
