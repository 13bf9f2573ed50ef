"""The diagonal of the empirical Fisher in PyTorch, by each library that can, beside a gradient.

A case is called ``<network>/<library>`` and returns one tensor for each parameter, in their order:
the mean over examples of the squared gradient of an example's loss, which for a text is the sum
over its positions. Where a library means something else, benchmarks/fisher.py says so; where it
cannot, the case raises the library's own error.
"""

import functools

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

# --- Networks: each with a batch, as (module, inputs, labels) -------------------------------------


def mlp(width=1024, depth=4, batch=1024, inputs=784, classes=10):
    widths = [inputs] + [width] * depth
    hidden = [
        layer
        for n, m in zip(widths, widths[1:], strict=False)
        for layer in (nn.Linear(n, m), nn.ReLU())
    ]
    return nn.Sequential(*hidden, nn.Linear(width, classes)), *images(batch, (inputs,), classes)


def cnn(batch=128, classes=10):
    """3c3d, as DeepOBS has it for CIFAR-10."""

    def convolution(channels, out, size, **options):
        # Windows that reach over the edge, as in the original's "same" pooling.
        return (
            nn.Conv2d(channels, out, size, **options),
            nn.ReLU(),
            nn.MaxPool2d(3, 2, ceil_mode=True),
        )

    module = nn.Sequential(
        *convolution(3, 64, 5),
        *convolution(64, 96, 3),
        *convolution(96, 128, 3, padding=1),
        nn.Flatten(),
        nn.Linear(3 * 3 * 128, 512),
        nn.ReLU(),
        nn.Linear(512, 256),
        nn.ReLU(),
        nn.Linear(256, classes),
    )
    return module, *images(batch, (3, 32, 32), classes)


def lstm(vocabulary=10_000, units=200, time=35, batch=64):
    module = nn.Sequential(
        nn.Embedding(vocabulary, units),
        nn.LSTM(units, units, batch_first=True),
        First(),
        nn.Linear(units, vocabulary),
    )
    return module, *text(batch, time, vocabulary)


def transformer(vocabulary=256, width=256, heads=4, blocks=2, time=128, batch=32):
    return Transformer(vocabulary, width, heads, blocks, time), *text(batch, time, vocabulary)


NETWORKS = {"mlp": mlp, "cnn": cnn, "lstm": lstm, "transformer": transformer}


class First(nn.Module):
    """The outputs alone of a recurrent layer."""

    def forward(self, outputs_and_state):
        return outputs_and_state[0]


class Transformer(nn.Module):
    def __init__(self, vocabulary, width, heads, blocks, time):
        super().__init__()
        self.token, self.position = nn.Embedding(vocabulary, width), nn.Embedding(time, width)
        self.blocks = nn.Sequential(*(Block(width, heads) for _ in range(blocks)))
        self.norm, self.decoder = nn.LayerNorm(width), nn.Linear(width, vocabulary)

    def forward(self, tokens):
        x = self.token(tokens) + self.position(torch.arange(tokens.shape[-1]))
        return self.decoder(self.norm(self.blocks(x)))


class Block(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.wide, self.narrow = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x):
        split = self.qkv(self.norm1(x)).unflatten(-1, (3, self.heads, -1))
        q, k, v = split.movedim(-3, 0).transpose(-3, -2)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(mixed.transpose(-3, -2).flatten(-2))
        return x + self.narrow(F.gelu(self.wide(self.norm2(x))))


def images(batch, shape, classes):
    rng = np.random.default_rng(0)
    inputs = rng.normal(size=(batch, *shape)).astype(np.float32)
    return torch.from_numpy(inputs), torch.from_numpy(rng.integers(classes, size=batch))


def text(batch, time, vocabulary):
    words = np.random.default_rng(0).integers(vocabulary, size=(batch, time + 1))
    return torch.from_numpy(words[:, :-1].copy()), torch.from_numpy(words[:, 1:].copy())


def total_loss(logits, labels):
    """Cross-entropy, summed over examples and, in a text, over positions."""
    return F.cross_entropy(logits.flatten(0, -2), labels.flatten(), reduction="sum")


def mean_loss(logits, labels):
    return total_loss(logits, labels) / len(labels)


# --- Libraries: each a function from a network and its batch to what runs -------------------------


def gradient(module, inputs, labels):
    parameters = list(module.parameters())
    return lambda: torch.autograd.grad(mean_loss(module(inputs), labels), parameters)


def with_backpack(module, inputs, labels):
    import backpack

    backpack.extend(module)

    def run():
        module.zero_grad()
        with backpack.backpack(backpack.extensions.SumGradSquared()):
            total_loss(module(inputs), labels).backward()
        found = {
            name: getattr(p, "sum_grad_squared", None) for name, p in module.named_parameters()
        }
        return [total / len(labels) for total in complete(found)]

    return run


def with_torch_func(module, inputs, labels, chunk=8):
    """Gradients of a chunk of examples exist at a time: of the batch they would be gigabytes."""
    params = {name: p.detach() for name, p in module.named_parameters()}

    def loss(params, one, label):
        return total_loss(torch.func.functional_call(module, params, (one[None],)), label[None])

    gradients = torch.func.vmap(torch.func.grad(loss), (None, 0, 0))

    def run():
        totals = [torch.zeros_like(p) for p in params.values()]
        for some in zip(inputs.split(chunk), labels.split(chunk), strict=True):
            for total, g in zip(totals, gradients(params, *some).values(), strict=True):
                total += g.square().sum(0)
        return [total / len(labels) for total in totals]

    return run


def with_nngeometry(module, inputs, labels):
    from nngeometry.backend import TorchHooksJacobianBackend
    from nngeometry.object import PMatDiag
    from torch.utils.data import DataLoader, TensorDataset

    # Its own FIM sums over labels that the model may give; the Jacobian of the loss is the
    # empirical one.
    def losses(inputs, labels):
        return F.cross_entropy(module(inputs), labels, reduction="none")

    backend = TorchHooksJacobianBackend(module, losses)
    batch = DataLoader(TensorDataset(inputs, labels), batch_size=len(labels))
    sizes = [p.numel() for p in module.parameters()]
    return lambda: PMatDiag(backend, examples=batch).get_diag().split(sizes)


def with_asdl(module, inputs, labels):
    from asdl import FISHER_EMP, LOSS_CROSS_ENTROPY, SHAPE_DIAG, FisherConfig, get_fisher_maker

    config = FisherConfig(FISHER_EMP, [SHAPE_DIAG], LOSS_CROSS_ENTROPY, data_size=len(labels))
    maker = get_fisher_maker(module, config)
    logits = maker.setup_model_call(module, inputs)
    maker.setup_loss_call(F.cross_entropy, logits.flatten(0, -2), labels.flatten())

    def run():
        maker.forward_and_backward()
        found = {}
        for name, _ in module.named_parameters():
            owner, _, leaf = name.rpartition(".")
            found[name] = maker.get_fisher_tensor(module.get_submodule(owner), "diag", leaf)
        return complete(found)

    return run


def with_avalanche(module, inputs, labels):
    try:
        import torchvision  # noqa: F401
    except RuntimeError:  # built for CUDA beside a torch that is not: its operators are not there
        library = torch.library.Library("torchvision", "DEF")
        for name in ("nms", "qnms"):
            library.define(f"{name}(Tensor dets, Tensor scores, float threshold) -> Tensor")
    from avalanche.training.plugins import EWCPlugin
    from torch.utils.data import TensorDataset

    data = TensorDataset(inputs, labels, torch.zeros(len(labels), dtype=torch.long))
    optimiser = torch.optim.SGD(module.parameters())
    ewc = EWCPlugin(1.0)

    def run():
        found = ewc.compute_importances(module, mean_loss, optimiser, data, "cpu", len(labels))
        return [importance.data for importance in found.values()]

    return run


def complete(found):
    """The values, where a library has not left out, silently, what it does not know."""
    missing = [name for name, value in found.items() if value is None]
    if missing:
        raise NotImplementedError(f"nothing for {missing[0]} and {len(missing) - 1} more")
    return list(found.values())


LIBRARIES = {
    "gradient": gradient,
    "backpack": with_backpack,
    "torch.func": with_torch_func,
    "nngeometry": with_nngeometry,
    "asdl": with_asdl,
    "avalanche": with_avalanche,
}


def build(network, library, seed=0, **sizes):
    torch.manual_seed(seed)
    return LIBRARIES[library](*NETWORKS[network](**sizes))


CASES = {
    f"{network}/{library}": functools.partial(build, network, library)
    for network in NETWORKS
    for library in LIBRARIES
}
