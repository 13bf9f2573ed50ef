"""Cross-entropy of a linear decoder that never holds all of its logits."""

import jax
import jax.numpy as jnp

from wpl_jax.numbers import wide_dtype, widen

__all__ = ["linear_cross_entropy"]

_MAX_LOGITS = 2**22  # logits that exist at a time: 16 MiB in float32


@jax.custom_vjp
def linear_cross_entropy(
    hidden: jax.Array,
    kernel: jax.Array,
    bias: jax.Array,
    labels: jax.Array,
    weights: jax.Array,
) -> jax.Array:
    """Weighted sum of the negative log-likelihoods of ``softmax(hidden @ kernel.T + bias)``.

    A language model's logits, tokens x vocabulary, are its largest array by far, and the usual
    form keeps several copies of them for the backward pass. Here tokens are taken in chunks, and
    the gradients of a chunk are computed as soon as its logits exist, so that one chunk of them is
    all that ever does, and each logit is computed and exponentiated once. Differentiable once.

    Products are of the dtype of ``hidden``, to which the decoder's weights are rounded, and are
    summed in at least float32 (:mod:`wpl_jax.spaces.precision`).

    Args:
      hidden: float [tokens, units].
      kernel: the decoder's weights, float [vocabulary, units]: an embedding, where they are tied.
      bias: float [vocabulary].
      labels: the true words, int [tokens]; one that is not in the vocabulary makes the loss NaN.
      weights: float [tokens]; 0 for padding.

    Returns:
      A scalar, ``-sum_n weights[n] log p(labels[n] | hidden[n])``, in nats.

    Example:
      >>> import jax.numpy as jnp
      >>> from wpl_jax.spaces.cross_entropy import linear_cross_entropy
      >>> nll = linear_cross_entropy(
      ...     jnp.ones((3, 2)), jnp.zeros((8, 2)), jnp.zeros(8), jnp.arange(3), jnp.ones(3)
      ... )
      >>> print((nll / 3).round(3))  # log 8: all words are equally likely
      2.079
    """
    kernel, bias = kernel.astype(hidden.dtype), bias.astype(hidden.dtype)

    def add(_, chunk):
        (hidden,) = chunk
        exp, top = _exp(_product(hidden, kernel.T) + bias[None])
        return None, jnp.log(exp.sum(-1)) + top

    _, normalisers = jax.lax.scan(add, None, _chunks(len(bias), hidden))
    return weights @ (_joined(normalisers, len(labels)) - _label(hidden, kernel, bias, labels))


def _forward(hidden, kernel, bias, labels, weights):
    """The loss and, while the logits are there, its gradients.

    Each pass over the logits costs, and another copy of them more. So the products that there must
    be take the bias and its gradient with them, as the weight of an input that is 1, and what is
    the labels' alone is left to the end.
    """
    dtypes, dtype = (hidden.dtype, kernel.dtype, bias.dtype), hidden.dtype
    kernel, bias = kernel.astype(dtype), bias.astype(dtype)
    with_bias = jnp.concatenate([kernel, bias[:, None]], 1)

    def add(grad, chunk):
        hidden, weights = chunk
        inputs = jnp.pad(hidden, ((0, 0), (0, 1)), constant_values=1)
        exp, top = _exp(_product(inputs, with_bias.T))
        total = exp.sum(-1)
        shares = (inputs * (weights / total)[:, None]).astype(dtype)
        exp = exp.astype(dtype)
        grad = grad + _product(shares.T, exp)
        return grad, (_product(exp, kernel) / total[:, None], jnp.log(total) + top)

    start = widen(jnp.zeros_like(with_bias.T))
    grad, chunks = jax.lax.scan(add, start, _chunks(len(bias), hidden, weights))
    expected, normalisers = (_joined(x, len(labels)) for x in chunks)
    nll = normalisers - _label(hidden, kernel, bias, labels)
    gradients = (
        (expected - kernel[labels]) * weights[:, None],
        grad[:-1].T.at[labels].add(-hidden * weights[:, None]),
        grad[-1].at[labels].add(-weights),
    )
    return weights @ nll, (*(g.astype(d) for g, d in zip(gradients, dtypes, strict=True)), nll)


def _backward(gradients, cotangent):
    hidden, kernel, bias, nll = (cotangent.astype(g.dtype) * g for g in gradients)
    return hidden, kernel, bias, None, nll


linear_cross_entropy.defvjp(_forward, _backward)


def _chunks(vocabulary, *arrays):
    """Tokens in as few equal chunks as the bound on logits allows, padded by zeros if need be.

    A chunk takes one token in so many, from all over, for each device to have its part of every
    chunk where tokens are spread over several. Padding would shift them: rather a few chunks more.
    """
    tokens = len(arrays[0])
    least = max(1, -(-tokens * vocabulary // _MAX_LOGITS))
    count = next((n for n in range(least, 2 * least) if tokens % n == 0), least)
    size = -(-tokens // count)

    def split(x):
        padded = jnp.pad(x, [(0, count * size - tokens)] + [(0, 0)] * (x.ndim - 1))
        return padded.reshape(size, count, *x.shape[1:]).swapaxes(0, 1)

    return jax.tree.map(split, arrays)


def _joined(chunks, tokens):
    return chunks.swapaxes(0, 1).reshape(-1, *chunks.shape[2:])[:tokens]


def _product(left, right):
    return jnp.matmul(left, right, preferred_element_type=wide_dtype(left, right))


def _exp(logits):
    """Exponentials [tokens, vocabulary] of the logits less their maxima; and these, [tokens]."""
    top = logits.max(-1)
    return jnp.exp(logits - top[:, None]), top


def _label(hidden, kernel, bias, labels):
    """The labels' logits: taken from the logits, they would hold these beside the exponentials."""
    own = kernel.at[labels].get(mode="fill", fill_value=jnp.nan)
    return (widen(hidden) * own).sum(-1) + bias[labels]
