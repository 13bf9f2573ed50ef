"""A training step of a micro-CNN in PyTorch: what wpl_jax.spaces.micro_cnn computes, undropped.

The cells are Python data, so that only what they compute is there, and only its parameters. Images
come as floats and are not augmented, which the search does within its step.
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

OPERATIONS = ("identity", "sep_conv_3x3", "sep_conv_5x5", "avg_pool_3x3", "max_pool_3x3")
STAGES = 3


class Separable(nn.Module):
    """Twice: ReLU, a depthwise and a 1×1 convolution, batch norm."""

    def __init__(self, channels, size):
        super().__init__()
        depthwise = {"padding": size // 2, "groups": channels, "bias": False}
        self.layers = nn.Sequential()
        for _ in range(2):
            self.layers.append(nn.ReLU())
            self.layers.append(nn.Conv2d(channels, channels, size, **depthwise))
            self.layers.append(nn.Conv2d(channels, channels, 1, bias=False))
            self.layers.append(Norm(channels))

    def forward(self, x):
        return self.layers(x)


class Norm(nn.Module):
    """Batch norm by the statistics of the batch, of which no averages are kept."""

    def __init__(self, channels):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x):
        return F.batch_norm(x, None, None, self.scale, self.bias, training=True)


def operation(name, channels):
    return {
        "identity": nn.Identity,
        "sep_conv_3x3": lambda: Separable(channels, 3),
        "sep_conv_5x5": lambda: Separable(channels, 5),
        "avg_pool_3x3": lambda: nn.AvgPool2d(3, 1, 1, count_include_pad=False),
        "max_pool_3x3": lambda: nn.MaxPool2d(3, 1, 1),
    }[name]()


class Layer(nn.Module):
    """A cell: of the two layers before it."""

    def __init__(self, cell, channels):
        super().__init__()
        self.inputs = cell["inputs"]
        self.operations = nn.ModuleList(
            operation(OPERATIONS[o], channels) for node in cell["operations"] for o in node
        )
        read = {i for node in self.inputs for i in node}
        self.loose = [i for i in range(len(self.inputs) + 2) if i not in read]
        self.project = nn.Conv2d(len(self.loose) * channels, channels, 1, bias=False)
        self.norm = Norm(channels)

    def forward(self, before, last):
        nodes, operations = [before, last], iter(self.operations)
        for sources in self.inputs:
            nodes.append(sum(next(operations)(nodes[i]) for i in sources))
        # The sum of a 1×1 convolution of each is one of all.
        ends = torch.cat([nodes[i] for i in self.loose], 1)
        return last, self.norm(self.project(F.relu(ends)))


class Halve(nn.Module):
    """1×1 convolutions of every other pixel and of those between, side by side."""

    def __init__(self, before, after):
        super().__init__()
        self.halves = nn.ModuleList(
            nn.Conv2d(before, after // 2, 1, stride=2, bias=False) for _ in range(2)
        )
        self.norm = Norm(after)

    def forward(self, x):
        x = F.relu(x)
        between = F.pad(x, (0, 1, 0, 1))[:, :, 1:, 1:]
        return self.norm(
            torch.cat([half(y) for half, y in zip(self.halves, (x, between), strict=True)], 1)
        )


class Network(nn.Module):
    def __init__(self, normal, reduction, channels, cells, classes, stem_stride):
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, channels, 3, stem_stride, padding=1, bias=False), Norm(channels)
        )
        self.stages = nn.ModuleList(
            nn.ModuleList(
                Layer(cell, channels * 2**stage)
                for cell in bool(stage) * [reduction] + cells * [normal]
            )
            for stage in range(STAGES)
        )
        self.halvings = nn.ModuleList(
            nn.ModuleList(Halve(channels * 2**stage, channels * 2 ** (stage + 1)) for _ in range(2))
            for stage in range(STAGES - 1)
        )
        self.classifier = nn.Linear(channels * 2 ** (STAGES - 1), classes)

    def forward(self, images):
        x = self.stem(images)
        states = x, x
        for stage, layers in enumerate(self.stages):
            if stage:
                halvings = self.halvings[stage - 1]
                states = tuple(halve(h) for halve, h in zip(halvings, states, strict=True))
            for layer in layers:
                states = layer(*states)
        return self.classifier(F.relu(states[1]).mean((2, 3)))


def build(size, batch, rate, clip, channels_last=False, compiled=False, **network):
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    classes, network = network["classes"], Network(**network)
    images = torch.from_numpy(rng.normal(size=(batch, 3, size, size)).astype(np.float32))
    labels = torch.from_numpy(rng.integers(classes, size=batch))
    if channels_last:
        network = network.to(memory_format=torch.channels_last)
        images = images.to(memory_format=torch.channels_last)
    optimiser = torch.optim.SGD(network.parameters(), rate)
    forward = torch.compile(network) if compiled else network

    def run():
        optimiser.zero_grad()
        loss = F.cross_entropy(forward(images), labels)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), clip)
        optimiser.step()
        return loss.item()

    return run


CASES = {
    "eager": build,
    "channels last": lambda **sizes: build(channels_last=True, **sizes),
    "compiled": lambda **sizes: build(compiled=True, **sizes),
}
