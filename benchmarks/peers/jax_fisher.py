"""The diagonal of the Fisher in JAX, by kfac-jax and laplax, on the networks of torch_fisher.

kfac-jax gives the empirical Fisher. laplax gives the generalised Gauss-Newton matrix, which for a
softmax is the expectation of the Fisher over labels that the model draws: another matrix, though of
the same size. A case returns the diagonal in the library's own structure.
"""

import functools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

MOST_PRODUCTS = (
    100_000  # of a matrix and a vector, in laplax: each is a forward and a backward pass
)


# --- Networks: each with a batch, as (module, inputs, labels) -------------------------------------


def mlp(width=1024, depth=4, batch=1024, inputs=784, classes=10):
    hidden = [layer for _ in range(depth) for layer in (nn.Dense(width), nn.relu)]
    return nn.Sequential([*hidden, nn.Dense(classes)]), *images(batch, (inputs,), classes)


def cnn(batch=128, classes=10):
    def convolution(channels, size, padding):
        pool = functools.partial(nn.max_pool, window_shape=(3, 3), strides=(2, 2), padding="SAME")
        return nn.Conv(channels, (size, size), padding=padding), nn.relu, pool

    module = nn.Sequential(
        [
            *convolution(64, 5, "VALID"),
            *convolution(96, 3, "VALID"),
            *convolution(128, 3, "SAME"),
            lambda x: x.reshape(len(x), -1),
            *(nn.Dense(512), nn.relu, nn.Dense(256), nn.relu, nn.Dense(classes)),
        ]
    )
    return module, *images(batch, (32, 32, 3), classes)


def lstm(vocabulary=10_000, units=200, time=35, batch=64):
    layers = [nn.Embed(vocabulary, units), nn.RNN(nn.LSTMCell(units)), nn.Dense(vocabulary)]
    return nn.Sequential(layers), *text(batch, time, vocabulary)


def transformer(vocabulary=256, width=256, heads=4, blocks=2, time=128, batch=32):
    module = Transformer(vocabulary, width, heads, blocks, time)
    return module, *text(batch, time, vocabulary)


class Transformer(nn.Module):
    vocabulary: int
    width: int
    heads: int
    blocks: int
    time: int

    @nn.compact
    def __call__(self, tokens):
        x = nn.Embed(self.vocabulary, self.width)(tokens)
        x += nn.Embed(self.time, self.width)(jnp.arange(tokens.shape[-1]))
        mask = nn.make_causal_mask(tokens)
        for _ in range(self.blocks):
            x += nn.SelfAttention(self.heads)(nn.LayerNorm()(x), mask)
            wide = nn.gelu(nn.Dense(4 * self.width)(nn.LayerNorm()(x)), approximate=False)
            x += nn.Dense(self.width)(wide)
        return nn.Dense(self.vocabulary)(nn.LayerNorm()(x))


NETWORKS = {"mlp": mlp, "cnn": cnn, "lstm": lstm, "transformer": transformer}


def images(batch, shape, classes):
    rng = np.random.default_rng(0)
    inputs = rng.normal(size=(batch, *shape)).astype(np.float32)
    return inputs, rng.integers(classes, size=batch)


def text(batch, time, vocabulary):
    words = np.random.default_rng(0).integers(vocabulary, size=(batch, time + 1))
    return words[:, :-1], words[:, 1:]


# --- Libraries: each a function from a network and its batch to what runs -------------------------


def with_kfac_jax(module, inputs, labels):
    import kfac_jax
    from kfac_jax._src import tag_graph_matcher

    # kfac-jax 0.0.8 unpacks what JAX 0.10 no longer returns as a pair.
    tag_graph_matcher.eval_jaxpr_eqn = evaluate

    def loss(params, batch):
        inputs, labels = batch
        logits = module.apply(params, inputs)
        kfac_jax.register_softmax_cross_entropy_loss(logits, labels)
        picked = jnp.take_along_axis(nn.log_softmax(logits), labels[..., None], -1)
        return -picked.sum() / len(labels)

    diagonal = {
        "dense": kfac_jax.DenseDiagonal,
        "conv2d": kfac_jax.Conv2DDiagonal,
        "scale_and_shift": kfac_jax.ScaleAndShiftDiagonal,
    }
    estimator = kfac_jax.BlockDiagonalCurvature(
        loss, default_estimation_mode="fisher_empirical", layer_tag_to_block_ctor=diagonal
    )
    arguments = module.init(jax.random.key(0), inputs), (inputs, labels)
    start = estimator.init(jax.random.key(0), arguments, (), ())
    # For what it does not know it takes the square of the batch gradient, or Kronecker factors.
    others = {type(b).__name__ for b in estimator.blocks} - {d.__name__ for d in diagonal.values()}
    if others:
        raise NotImplementedError(f"kfac-jax takes {', '.join(sorted(others))} for some layers")

    @jax.jit
    def update(arguments):
        state = estimator.update_curvature_matrix_estimate(
            start, 0.0, 1.0, 0.0, len(labels), jax.random.key(0), arguments
        )
        return [
            # Its empirical Fisher is that of the mean loss: less by the size of the batch.
            tuple(len(labels) * factor.value for factor in block.diagonal_factors)
            for block in state.blocks_states
        ]

    return lambda: jax.block_until_ready(update(arguments))


def evaluate(equation, values):
    """The outputs of one equation of a program."""
    primitive = equation.primitive
    outputs = primitive.bind(*values, **primitive.get_bind_params(equation.params))
    return outputs if primitive.multiple_results else [outputs]


def with_laplax(module, inputs, labels):
    from laplax.curv.diagonal import create_diagonal_curvature
    from laplax.curv.ggn import create_ggn_mv

    params = module.init(jax.random.key(0), inputs)
    size = sum(math.prod(p.shape) for p in jax.tree.leaves(params))
    if size > MOST_PRODUCTS:
        raise NotImplementedError(f"a matrix-vector product for each of {size:,} parameters")

    @jax.jit
    def diagonal(params, inputs, labels):
        data = {"input": inputs, "target": labels}
        product = create_ggn_mv(
            lambda input, params: module.apply(params, input), params, data, "cross_entropy"
        )
        return create_diagonal_curvature(product, params) / len(labels)

    return lambda: jax.block_until_ready(diagonal(params, inputs, labels))


LIBRARIES = {"kfac-jax": with_kfac_jax, "laplax": with_laplax}


def build(network, library, **sizes):
    return LIBRARIES[library](*NETWORKS[network](**sizes))


CASES = {
    f"{network}/{library}": functools.partial(build, network, library)
    for network in NETWORKS
    for library in LIBRARIES
}
CASES["mlp 20-16-3/laplax"] = functools.partial(
    build, "mlp", "laplax", inputs=20, width=16, depth=1, classes=3, batch=32
)
