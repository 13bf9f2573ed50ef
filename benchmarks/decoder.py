"""The decoder of a language model: loss and gradients of a linear layer and its softmax.

python -m benchmarks.decoder
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks.report import chosen, report
from benchmarks.timing import Jitted, Peer, compare
from wpl_jax.spaces.cross_entropy import linear_cross_entropy

# A window of ENAS's search on PTB, 64 texts of 35 words; the paper's cells have 1,000 units.
SIZES = {"tokens": 64 * 35, "units": 100, "vocabulary": 10_000}


def main():
    arguments = problem(**SIZES)
    forms = {
        "by hand: the limit": lambda: Jitted(by_hand, *arguments),
        "wpl_jax.spaces.cross_entropy": lambda: Jitted(gradients(ours), *arguments),
        "optax, all logits at once": lambda: Jitted(gradients(usual), *arguments),
        "PyTorch": lambda: Peer("torch_decoder", "eager", **SIZES),
        "PyTorch, torch.compile": lambda: Peer("torch_decoder", "compiled", **SIZES),
    }
    title = "{tokens:,} tokens × {units:,} units × {vocabulary:,} words, forward and backward"
    report("decoder", [compare(title.format(**SIZES), forms)])


def problem(tokens, units, vocabulary):
    rng = np.random.default_rng(0)
    hidden, kernel, bias = (
        jnp.asarray(rng.normal(size=shape), jnp.float32)
        for shape in ((tokens, units), (vocabulary, units), (vocabulary,))
    )
    return hidden, kernel, bias, jnp.asarray(rng.integers(vocabulary, size=tokens), jnp.int32)


def by_hand(hidden, kernel, bias, labels, chunks=7):
    """In closed form: an exp for each logit, in its place, and three products, the bias in them."""
    with_bias = jnp.concatenate([kernel, bias[:, None]], 1)
    inputs = jnp.concatenate([hidden, jnp.ones((len(hidden), 1))], 1)

    def add(grad, inputs):
        logits = inputs @ with_bias.T
        top = logits.max(-1, keepdims=True)
        exp = jnp.exp(logits - top)
        total = exp.sum(-1, keepdims=True)
        grad = grad + (inputs / total).T @ exp
        return grad, (exp @ kernel / total, jnp.log(total) + top)

    start = jnp.zeros_like(with_bias.T)
    grad, (expected, normalisers) = jax.lax.scan(
        add, start, inputs.reshape(chunks, -1, inputs.shape[1])
    )
    grad = grad.T.at[labels].add(-inputs)
    nll = normalisers.ravel() - (inputs * with_bias[labels]).sum(-1)
    return nll.sum(), (expected.reshape(hidden.shape) - kernel[labels], grad[:, :-1], grad[:, -1])


def gradients(loss):
    return jax.value_and_grad(loss, (0, 1, 2))


def ours(hidden, kernel, bias, labels):
    return linear_cross_entropy(hidden, kernel, bias, labels, jnp.ones(labels.shape))


def usual(hidden, kernel, bias, labels):
    logits = hidden @ kernel.T + bias
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).sum()


if __name__ == "__main__":
    chosen(__doc__)
    main()
