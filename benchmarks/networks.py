"""The networks of benchmarks/fisher.py, which other libraries have too.

Each is a loss of one example, parameters and a batch.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn


class Problem(NamedTuple):
    """What an estimator takes."""

    nll: Callable[[Any, Any], jax.Array]
    params: Any
    batch: Any


def mlp(batch: int = 1024, width: int = 1024, depth: int = 4) -> Problem:
    """784 - width x depth - 10, as on MNIST."""

    class MLP(nn.Module):
        @nn.compact
        def __call__(self, x):
            for _ in range(depth):
                x = nn.relu(nn.Dense(width)(x))
            return nn.Dense(10)(x)

    return classification(MLP(), (784,), batch)


def cnn(batch: int = 128) -> Problem:
    """DeepOBS's 3c3d, on CIFAR-10's shapes: three convolutions and three dense layers."""

    class CNN(nn.Module):
        @nn.compact
        def __call__(self, x):
            for features, size, padding in (64, 5, "VALID"), (96, 3, "VALID"), (128, 3, "SAME"):
                x = nn.relu(nn.Conv(features, (size, size), padding=padding)(x))
                x = nn.max_pool(x, (3, 3), (2, 2), "SAME")
            x = x.ravel()
            for width in 512, 256:
                x = nn.relu(nn.Dense(width)(x))
            return nn.Dense(10)(x)

    return classification(CNN(), (32, 32, 3), batch)


def lstm(batch: int = 64, vocabulary: int = 10_000, units: int = 200, steps: int = 35) -> Problem:
    """A language model of one LSTM layer."""

    class LanguageModel(nn.Module):
        @nn.compact
        def __call__(self, words):
            x = nn.Embed(vocabulary, units)(words)
            return nn.Dense(vocabulary)(nn.RNN(nn.OptimizedLSTMCell(units))(x))

    return language(LanguageModel(), vocabulary, batch, steps)


def transformer(
    batch: int = 32, vocabulary: int = 256, width: int = 256, depth: int = 2, steps: int = 128
) -> Problem:
    """A language model of causal pre-norm blocks, four heads."""

    class Block(nn.Module):
        @nn.compact
        def __call__(self, x):
            mask = nn.make_causal_mask(jnp.zeros(len(x)))
            x = x + nn.MultiHeadDotProductAttention(4)(nn.LayerNorm()(x), mask=mask)
            hidden = nn.gelu(nn.Dense(4 * width)(nn.LayerNorm()(x)))
            return x + nn.Dense(width)(hidden)

    class LanguageModel(nn.Module):
        @nn.compact
        def __call__(self, words):
            places = self.param("places", nn.initializers.normal(0.02), (steps, width))
            x = nn.Embed(vocabulary, width)(words) + places
            for _ in range(depth):
                x = Block()(x)
            return nn.Dense(vocabulary)(nn.LayerNorm()(x))

    return language(LanguageModel(), vocabulary, batch, steps)


NETWORKS = {"mlp": mlp, "cnn": cnn, "lstm": lstm, "transformer": transformer}


def classification(model, shape, batch, classes=10):
    x = jax.random.normal(jax.random.key(1), (batch, *shape))
    labels = jax.random.randint(jax.random.key(2), (batch,), 0, classes)

    def nll(params, example):
        x, label = example
        logits = model.apply(params, x)
        return optax.softmax_cross_entropy_with_integer_labels(logits, label)

    return Problem(nll, jax.jit(model.init)(jax.random.key(0), x[0]), (x, labels))


def random_words(batch, steps, vocabulary):
    return jax.random.randint(jax.random.key(1), (batch, steps + 1), 0, vocabulary)


def language(model, vocabulary, batch, steps):
    words = random_words(batch, steps, vocabulary)

    def nll(params, example):
        logits = model.apply(params, example[:-1])
        return total(logits, example[1:])

    return Problem(nll, jax.jit(model.init)(jax.random.key(0), words[0, :-1]), words)


def total(logits, labels):
    """The negative log-likelihood of a text, in nats."""
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).sum()
