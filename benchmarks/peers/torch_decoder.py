"""A linear decoder with softmax cross-entropy in PyTorch: the loss and its gradients."""

import numpy as np
import torch
import torch.nn.functional as F


def build(compiled, tokens, units, vocabulary):
    rng = np.random.default_rng(0)
    hidden, kernel, bias = (
        torch.from_numpy(rng.normal(size=shape).astype(np.float32)).requires_grad_()
        for shape in ((tokens, units), (vocabulary, units), (vocabulary,))
    )
    labels = torch.from_numpy(rng.integers(vocabulary, size=tokens))

    def loss(hidden, kernel, bias):
        return F.cross_entropy(F.linear(hidden, kernel, bias), labels, reduction="sum")

    if compiled:
        loss = torch.compile(loss)
    return lambda: torch.autograd.grad(loss(hidden, kernel, bias), (hidden, kernel, bias))


CASES = {
    "eager": lambda **sizes: build(False, **sizes),
    "compiled": lambda **sizes: build(True, **sizes),
}
