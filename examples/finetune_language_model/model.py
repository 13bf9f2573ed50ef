"""A transformer language model in Flax NNX, its loss, and LoRA on it."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from wpl_jax.spaces.cross_entropy import linear_cross_entropy


class Size(NamedTuple):
    vocabulary: int = 10_000
    units: int = 192
    layers: int = 3
    heads: int = 4
    length: int = 64  # tokens that it reads at a time


class Block(nnx.Module):
    def __init__(self, size: Size, rngs: nnx.Rngs):
        units = size.units
        self.heads = size.heads
        self.norm_attention = nnx.LayerNorm(units, rngs=rngs)
        self.qkv = nnx.Linear(units, 3 * units, rngs=rngs)
        self.out = nnx.Linear(units, units, rngs=rngs)
        self.norm_mlp = nnx.LayerNorm(units, rngs=rngs)
        self.up = nnx.Linear(units, 4 * units, rngs=rngs)
        self.down = nnx.Linear(4 * units, units, rngs=rngs)

    def __call__(self, x):
        qkv = self.qkv(self.norm_attention(x))
        qkv = qkv.reshape(*x.shape[:-1], 3, self.heads, -1)
        query, key, value = (qkv[:, :, i] for i in range(3))
        attended = jax.nn.dot_product_attention(query, key, value, is_causal=True)
        x = x + self.out(attended.reshape(x.shape))
        return x + self.down(nnx.gelu(self.up(self.norm_mlp(x))))


class LanguageModel(nnx.Module):
    def __init__(self, size: Size, rngs: nnx.Rngs):
        self.embedding = nnx.Embed(size.vocabulary, size.units, rngs=rngs)
        self.position = nnx.Param(jnp.zeros((1, size.length, size.units)))
        self.blocks = nnx.List([Block(size, rngs) for _ in range(size.layers)])
        self.norm = nnx.LayerNorm(size.units, rngs=rngs)
        self.decoder = nnx.Linear(size.units, size.vocabulary, rngs=rngs)

    def features(self, tokens):
        """Of shape (batch, length, units), for tokens of shape (batch, length)."""
        x = self.embedding(tokens) + self.position[...]
        for block in self.blocks:
            x = block(x)
        return self.norm(x)

    def __call__(self, tokens):
        return self.decoder(self.features(tokens))


def make(size: Size, seed: int):
    """A model as a pair: its graph, which is static, and its parameters, a tree of arrays."""
    return nnx.split(LanguageModel(size, nnx.Rngs(seed)), nnx.Param)


def total_nll(graph, params, tokens, weights):
    """Weighted sum of the tokens' negative log-likelihoods.

    Tokens have the shape (batch, length + 1), weights (batch, length). The same as from the logits
    by optax, but at half the time, because it never holds all of them.
    """
    model = nnx.merge(graph, params)
    features = model.features(tokens[:, :-1])
    return linear_cross_entropy(
        features.reshape(-1, features.shape[-1]),
        model.decoder.kernel[...].T,
        model.decoder.bias[...],
        tokens[:, 1:].ravel(),
        weights.ravel(),
    )


def sequence_nll(graph, params, tokens):
    """The negative log-likelihood of one sequence: what the Fisher is computed from."""
    logits = nnx.merge(graph, params)(tokens[None, :-1])[0]
    return optax.softmax_cross_entropy_with_integer_labels(logits, tokens[1:]).sum()


def init_adapters(params, rank: int, key):
    """LoRA: ``down @ up`` for every matrix, the embedding and the decoder's too; zero at first."""
    adapters = {}
    for path, leaf in jax.tree.leaves_with_path(params):
        if leaf.ndim == 2:
            key, own = jax.random.split(key)
            rows, columns = leaf.shape
            # So that what comes out of down is about 1; an embedding's input is one row, whole.
            scale = 1 if (name := _name(path)).startswith("embedding") else rows**-0.5
            adapters[name] = {
                "down": scale * jax.random.normal(own, (rows, rank)),
                "up": jnp.zeros((rank, columns)),
            }
    return adapters


def merged(params, adapters):
    """The matrices that are adapted, by name: ``W + down @ up``."""
    return {
        name: matrix + adapters[name]["down"] @ adapters[name]["up"]
        for name, matrix in adapted(params, adapters).items()
    }


def adapted(tree, adapters):
    """The leaves of a tree like the parameters for which there are adapters, by name."""
    leaves = {_name(path): leaf for path, leaf in jax.tree.leaves_with_path(tree)}
    return {name: leaves[name] for name in adapters}


def put(params, matrices):
    """The parameters with some of them replaced, by name."""
    return jax.tree.map_with_path(lambda path, leaf: matrices.get(_name(path), leaf), params)


def _name(path):
    return jax.tree_util.keystr(path, simple=True, separator="/").removesuffix("/value")
