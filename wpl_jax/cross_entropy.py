"""Cross-entropy of a linear decoder that never holds all of its logits."""

import jax
import jax.numpy as jnp

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

    Args:
      hidden: float [tokens, units].
      kernel: the decoder's weights, float [vocabulary, units]: an embedding, where they are tied.
      bias: float [vocabulary].
      labels: the true words, int [tokens].
      weights: float [tokens]; 0 for padding.

    Returns:
      A scalar, ``-sum_n weights[n] log p(labels[n] | hidden[n])``, in nats.

    Example:
      >>> import jax.numpy as jnp
      >>> from wpl_jax.cross_entropy import linear_cross_entropy
      >>> nll = linear_cross_entropy(
      ...     jnp.ones((3, 2)), jnp.zeros((8, 2)), jnp.zeros(8), jnp.arange(3), jnp.ones(3)
      ... )
      >>> print((nll / 3).round(3))  # log 8: all words are equally likely
      2.079
    """

    def add(total, chunk):
        hidden, labels, weights = chunk
        return total + weights @ _nll(hidden @ kernel.T + bias[None], labels)[0], None

    return jax.lax.scan(add, jnp.zeros([], hidden.dtype), _chunks(hidden, kernel, labels, weights))[
        0
    ]


def _forward(hidden, kernel, bias, labels, weights):
    """The loss and, while the logits are there, its gradients."""

    def add(totals, chunk):
        hidden, labels, weights = chunk
        nll, probs = _nll(hidden @ kernel.T + bias[None], labels)
        residual = probs * weights[:, None]
        residual = residual.at[jnp.arange(labels.size), labels].add(-weights)
        loss, grad_kernel, grad_bias = totals
        totals = (
            loss + weights @ nll,
            grad_kernel + residual.T @ hidden,
            grad_bias + residual.sum(0),
        )
        return totals, (residual @ kernel, nll)

    start = (jnp.zeros([], hidden.dtype), jnp.zeros_like(kernel), jnp.zeros_like(bias))
    (loss, grad_kernel, grad_bias), chunks = jax.lax.scan(
        add, start, _chunks(hidden, kernel, labels, weights)
    )
    grad_hidden, nll = (x.reshape(-1, *x.shape[2:])[: labels.size] for x in chunks)
    return loss, (grad_hidden, grad_kernel, grad_bias, nll)


def _backward(gradients, cotangent):
    hidden, kernel, bias, nll = jax.tree.map(lambda g: cotangent * g, gradients)
    return hidden, kernel, bias, None, nll


linear_cross_entropy.defvjp(_forward, _backward)


def _chunks(hidden, kernel, labels, weights):
    """Tokens in as few equal chunks as the bound on logits allows, padded by weight 0."""
    tokens, vocabulary = len(labels), len(kernel)
    count = max(1, -(-tokens * vocabulary // _MAX_LOGITS))
    size = -(-tokens // count)

    def split(x):
        padded = jnp.pad(x, [(0, count * size - tokens)] + [(0, 0)] * (x.ndim - 1))
        return padded.reshape(count, size, *x.shape[1:])

    return split(hidden), split(labels), split(weights)


def _nll(logits, labels):
    """Negative log-likelihoods [tokens] and probabilities [tokens, vocabulary]."""
    shifted = logits - logits.max(-1, keepdims=True)
    exp = jnp.exp(shifted)
    total = exp.sum(-1, keepdims=True)
    label = jnp.take_along_axis(shifted, labels[:, None], -1)
    return (jnp.log(total) - label)[:, 0], exp / total
