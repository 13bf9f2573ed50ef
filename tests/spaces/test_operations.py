"""The operations of cells against plain convolutions and pooling."""

import functools

import jax
import jax.numpy as jnp
import jax.test_util
import numpy as np
import pytest
from jax import jit
from plain_micro_cnn import BATCH, KERNELS, close, convolution, norm, operation

from wpl_jax.spaces.micro_cnn import OPERATIONS, network
from wpl_jax.spaces.operations import (
    batch_norm,
    convolution_3x3,
    depthwise,
    pointwise,
    run_one,
)


def inward(x, groups=2):
    """Images as the network has them inside: [groups, height, channels, width, batch]."""
    return x.reshape(groups, -1, *x.shape[1:]).transpose(0, 2, 4, 3, 1)


def outward(x):
    return x.transpose(0, 4, 1, 3, 2).reshape(-1, x.shape[1], x.shape[3], x.shape[2])


def random_weights(rng, channels):
    shapes = {
        name: {
            "depthwise": (2, channels, size, size),
            "pointwise": (2, channels, channels),
            **dict.fromkeys(("scale", "bias"), (2, channels)),
        }
        for name, size in KERNELS.items()
    }
    return jax.tree.map(
        lambda shape: rng.normal(size=shape), shapes, is_leaf=lambda s: isinstance(s, tuple)
    )


@pytest.mark.parametrize("size", [(5, 4), (2, 1)], ids=str)
@pytest.mark.parametrize("name", OPERATIONS)
def test_operations(name, size, float64):
    """Values and gradients, of the input and of the weights, also where the window is larger."""
    rng = np.random.default_rng(0)
    x, weights = rng.normal(size=(BATCH, *size, 3)), random_weights(rng, 3)
    branch = network.BRANCHES[OPERATIONS.index(name)]

    def run(x, weights):
        y, statistics = branch(inward(x), weights, None)
        return outward(y), statistics

    def pull(function):
        def both(x, weights, cotangent):
            y, back, statistics = jax.vjp(function, x, weights, has_aux=True)
            return y, statistics, back(cotangent)

        return jit(both)(x, weights, rng.normal(size=x.shape))

    rng = np.random.default_rng(1)
    actual = pull(run)
    rng = np.random.default_rng(1)
    close(actual, pull(lambda x, weights: operation(name, x, weights)), rtol=1e-9)


def test_pooling_at_the_border(float64):
    """By hand: what is outside of the image counts in neither."""
    x = np.array([[1.0, -2, 3], [-4, 5, -6]])

    def pool(name, x):
        branch = network.BRANCHES[OPERATIONS.index(name)]
        return outward(branch(inward(x[None, :, :, None], 1), {}, None)[0])[0, :, :, 0]

    average = [[0, -0.5, 0], [0, -0.5, 0]]
    np.testing.assert_allclose(pool("avg_pool_3x3", x), average, atol=1e-12)
    np.testing.assert_array_equal(pool("max_pool_3x3", -abs(x)), [[-1, -1, -2], [-1, -1, -2]])


@pytest.mark.parametrize(("size", "height", "width"), [(3, 6, 5), (5, 2, 3)])
def test_depthwise_and_pointwise_gradients(size, height, width, float64):
    """Against finite differences; of an image that is smaller than the kernel, too."""
    rng = np.random.default_rng(size)
    check = functools.partial(jax.test_util.check_grads, order=1, modes=["rev"])
    x, kernel = rng.normal(size=(2, height, 3, width, 2)), rng.normal(size=(3, size, size))
    check(depthwise, (x, kernel))
    expected = convolution(outward(x), kernel.transpose(1, 2, 0)[:, :, None], groups=3)
    close(outward(depthwise(x, kernel)), expected)
    kernel = rng.normal(size=(size, 3))
    check(pointwise, (x, kernel))
    close(outward(pointwise(x, kernel)), outward(x) @ kernel.T)


@pytest.mark.parametrize(("stride", "size"), [(1, (5, 4)), (1, (1, 2)), (2, (5, 4)), (3, (4, 7))])
def test_a_3x3_convolution(stride, size, float64):
    """Values and gradients, of the input and of the kernel, at all strides and odd sizes."""
    rng = np.random.default_rng(0)
    x, kernel = rng.normal(size=(BATCH, *size, 2)), rng.normal(size=(3, 4, 3, 2))

    def ours(x, kernel):
        return outward(convolution_3x3(inward(x), kernel, stride))

    def plain(x, kernel):  # from columns, after, rows, before
        return convolution(x, kernel.transpose(2, 0, 3, 1), stride)

    cotangent = rng.normal(size=(BATCH, *(-(-n // stride) for n in size), 4))
    close(*(pulled(function)(x, kernel, cotangent) for function in (ours, plain)))


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("by", ["the batch", "given statistics"])
def test_batch_norm(by, affine, float64):
    """Values, statistics and gradients."""
    rng = np.random.default_rng(0)
    x, channels = rng.normal(3, 2, size=(BATCH, 3, 2, 5)), 5
    params = {name: rng.normal(size=channels) for name in ("scale", "bias")}
    given = rng.uniform(0.5, 1.5, size=(2, channels)) if by == "given statistics" else None
    plain = {"scale": jnp.ones(channels), "bias": jnp.zeros(channels)}

    def ours(x, params):
        y, statistics = batch_norm(inward(x), params if affine else None, given)
        return outward(y), statistics

    def by_hand(x, params):
        y, statistics = norm(x, params if affine else plain, given)
        return y, jax.lax.stop_gradient(statistics)

    cotangents = rng.normal(size=x.shape), rng.normal(size=(2, channels))
    close(*(pulled(function)(x, params, cotangents) for function in (ours, by_hand)))


def pulled(function):
    """The function's value and gradients, given the gradient of the value last."""

    def run(x, weights, cotangent):
        value, back = jax.vjp(function, x, weights)
        return value, back(cotangent)

    return jit(run)


@pytest.mark.parametrize("index", range(3))
def test_one_branch_runs_and_has_its_gradients(index, float64):
    branches = (
        lambda x, w, given: (x * w["a"] + given, 2 * x),
        lambda x, w, given: (jnp.sin(x * w["b"]), given * x),
        lambda x, w, given: (x, jnp.zeros_like(x)),
    )
    rng = np.random.default_rng(0)
    x, given = rng.normal(size=(2, 4))
    weights = {"a": rng.normal(size=4), "b": rng.normal(size=4)}

    def run(i, x, w):
        return run_one(branches, i, x, w, given)

    close(run(index, x, weights), branches[index](x, weights, given))
    jax.test_util.check_grads(
        lambda x, w: run(index, x, w)[0], (x, weights), order=1, modes=["rev"]
    )
    grads = jax.grad(lambda w: run(index, x, w)[0].sum())(weights)
    assert {name for name, grad in grads.items() if grad.any()} == set("ab"[index : index + 1])
