"""Every estimator against a Python loop over examples, closed forms, and laplax on two networks."""

import functools
import re
from collections.abc import Callable
from typing import NamedTuple

import chex
import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, nnx
from hypothesis import strategies as st
from jax.experimental import sparse
from laplax.curv.ggn import create_ggn_mv
from laplax.util.mv import diagonal

import wpl_jax

N = 7  # examples

# --- Models and their scores ----------------------------------------------------------------------


class Layer(NamedTuple):
    kernel: jax.Array
    bias: jax.Array


class Model(NamedTuple):
    params: chex.ArrayTree
    logits: Callable  # logits(params, example) -> (classes,)
    batch: chex.ArrayTree


def normal(seed, *shape):
    """NumPy's, as all data here: what is done with them there, XLA need not compile."""
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def labels(seed, n, classes):
    return np.random.default_rng(seed).integers(classes, size=n).astype(np.int32)


def softmax_regression(n=N):
    def logits(params, example):
        return example["x"] @ params

    return Model(normal(0, 3, 2), logits, {"x": normal(1, n, 3), "y": labels(2, n, 2)})


def mlp(n=N):
    """Two inputs, a dictionary of named tuples."""
    params = {
        "hidden": Layer(normal(0, 3, 4), normal(1, 4)),
        "out": Layer(normal(2, 4, 3), normal(3, 3)),
    }

    def logits(params, example):
        left, right = example["x"]
        hidden, out = params["hidden"], params["out"]
        return jnp.tanh((left + right) @ hidden.kernel + hidden.bias) @ out.kernel + out.bias

    return Model(params, logits, {"x": (normal(4, n, 3), normal(5, n, 3)), "y": labels(6, n, 3)})


models = pytest.mark.parametrize("make_model", [softmax_regression, mlp])


def nll_of(logits):
    return lambda params, example: -jax.nn.log_softmax(logits(params, example))[example["y"]]


def examples(batch):
    n = len(jax.tree.leaves(batch)[0])
    return [jax.tree.map(lambda x, i=i: x[i], batch) for i in range(n)]


def flat(tree):
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)])


@functools.cache
def scores(make_model):
    """d nll / d params of every example at every label, and their probabilities, by a loop."""
    params, logits, batch = make_model()
    softmax = jax.jit(lambda example: jax.nn.softmax(logits(params, example)))
    probs = np.stack([softmax(e) for e in examples(batch)])
    grad = jax.jit(jax.grad(nll_of(logits)))

    def score(example, label):
        return flat(grad(params, {**example, "y": np.int32(label)}))

    labels = range(probs.shape[1])
    of_all = [[score(e, y) for y in labels] for e in examples(batch)]
    return np.array(of_all, np.float64), probs.astype(np.float64)


# --- The estimators: how to call them, and what they are ------------------------------------------


def empirical(logits, *args, **options):
    return wpl_jax.empirical_fisher(nll_of(logits), *args, **options)


def sampled(logits, *args, **options):
    fisher = wpl_jax.sampled_fisher(logits, *args, **options)
    return lambda params, batch, weights=None: fisher(params, batch, jax.random.key(2), weights)


def exact(logits, *args, **options):
    return wpl_jax.exact_fisher(logits, *args, **options)


def squared_batch(logits, microbatch_size=None):
    return wpl_jax.squared_batch_gradient(nll_of(logits), microbatch_size)


estimators = pytest.mark.parametrize("estimator", [empirical, sampled, exact, squared_batch])


@functools.cache
def drawn_labels(make_model):
    """The labels that `sampled` drew: with all weight on one example, one of its scores squared."""
    params, logits, batch = make_model()
    each = jax.jit(jax.vmap(sampled(logits), (None, None, 0)))
    alone = jax.device_get(each(params, batch, np.eye(N, dtype=np.float32)))
    alone = np.concatenate([leaf.reshape(N, -1) for leaf in jax.tree.leaves(alone)], axis=1)
    candidates = scores(make_model)[0] ** 2
    distances = np.abs(alone[:, None] - candidates).max(axis=-1)
    assert np.all(distances.min(axis=1) < 1e-5 * candidates.max())
    return distances.argmin(axis=1)


def expected(estimator, make_model, weights=None):
    """The estimator's formula, in NumPy, from the scores."""
    of_all, probs = scores(make_model)
    labels = drawn_labels(make_model) if estimator is sampled else make_model().batch["y"]
    of_labels = of_all[np.arange(N), labels]
    if estimator is squared_batch:
        return np.average(of_labels, axis=0, weights=weights) ** 2
    if estimator is exact:
        squares = np.sum(probs[..., None] * of_all**2, axis=1)
    else:
        squares = of_labels**2
    return np.average(squares, axis=0, weights=weights)


def assert_close(actual, expected, rtol=1e-5, scale=None):
    """Close relative to ``scale``, the largest entry unless given: small ones are differences."""
    actual, expected = flat(actual), flat(expected)
    assert np.all(np.isfinite(expected)) and np.max(expected) > 0
    scale = np.max(expected) if scale is None else scale
    np.testing.assert_allclose(actual, expected, rtol=0, atol=rtol * scale)


# --- Each is what its name says -------------------------------------------------------------------


@models
@estimators
def test_equals_a_loop_over_examples(make_model, estimator):
    params, logits, batch = make_model()
    fisher = jax.jit(estimator(logits))(params, batch)
    chex.assert_trees_all_equal_shapes(fisher, params)
    assert_close(fisher, expected(estimator, make_model))


@functools.cache
def jitted(estimator, microbatch_size):
    return jax.jit(estimator(softmax_regression().logits, microbatch_size))


@estimators
@hypothesis.settings(max_examples=30, deadline=None)
@hypothesis.given(
    microbatch_size=st.sampled_from([None, 1, 3]),  # 3 does not divide N
    weights=st.lists(st.integers(0, 3), min_size=N, max_size=N).filter(any),
    scale=st.floats(1e-3, 1e3),
    junk=st.sampled_from([np.nan, np.inf, -np.inf, 1e30]),
)
def test_is_a_weighted_mean_without_the_padding(estimator, microbatch_size, weights, scale, junk):
    """Weights of 0 drop rows, whatever is in them; integer weights repeat rows; microbatches do
    not matter.
    """
    params, _, batch = softmax_regression()
    weights = np.array(weights)
    x = np.where(weights[:, None] == 0, junk, batch["x"])
    fisher = jitted(estimator, microbatch_size)(
        params, {**batch, "x": x}, (scale * weights).astype(np.float32)
    )
    scale = np.max(scores(softmax_regression)[0] ** 2)
    assert_close(fisher, expected(estimator, softmax_regression, weights), scale=scale)


@estimators
@pytest.mark.parametrize("microbatch_size", [1, 3, N + 2])
def test_does_not_depend_on_microbatch_size(estimator, microbatch_size):
    params, _, batch = softmax_regression()
    fisher = jitted(estimator, microbatch_size)(params, batch)
    assert_close(fisher, expected(estimator, softmax_regression))


@pytest.mark.parametrize("estimator", [empirical, squared_batch])
@pytest.mark.parametrize("dtype", [bool, int, jnp.bfloat16])
def test_weights_may_have_any_dtype(estimator, dtype):
    params, _, batch = softmax_regression()
    weights = np.array([0, 1, 1, 0, 1, 0, 1], dtype)
    fisher = jitted(estimator, None)(params, batch, weights)
    assert_close(fisher, expected(estimator, softmax_regression, weights.astype(float)))


def test_sampled_labels_have_the_frequencies_of_the_model():
    """Every draw is the squared gradient at one label; their mean is the exact Fisher."""
    params, logits, batch = mlp()
    one = jax.tree.map(lambda x: x[:1], batch)
    draws = 4000
    keys = jax.random.split(jax.random.key(3), draws)
    fishers = jax.jit(jax.vmap(wpl_jax.sampled_fisher(logits), (None, None, 0)))(params, one, keys)
    leaves = jax.tree.leaves(jax.device_get(fishers))
    drawn = np.concatenate([leaf.reshape(draws, -1) for leaf in leaves], axis=1)

    of_all, probs = scores(mlp)
    candidates = of_all[0] ** 2
    distances = np.abs(drawn[:, None] - candidates).max(axis=-1)
    assert np.all(distances.min(axis=1) < 1e-5 * candidates.max())
    counts = np.bincount(distances.argmin(axis=1), minlength=3)
    standard_error = np.sqrt(draws * probs[0] * (1 - probs[0]))
    assert np.all(np.abs(counts - draws * probs[0]) < 5 * standard_error)

    expectation = flat(jax.jit(wpl_jax.exact_fisher(logits))(params, one))
    spread = np.sqrt(np.average((candidates - expectation) ** 2, axis=0, weights=probs[0]))
    assert np.all(np.abs(drawn.mean(axis=0) - expectation) < 5 * spread / np.sqrt(draws) + 1e-6)


def test_sampled_labels_of_different_examples_are_independent():
    """Otherwise many equal examples would all have the same label, and the mean would not help."""
    n, p = 4000, 0.25
    fisher = wpl_jax.sampled_fisher(lambda params, example: jnp.stack([params, jnp.zeros([])]))
    draws = jax.jit(fisher)(np.float32(np.log(p / (1 - p))), np.zeros(n), jax.random.key(0))
    standard_error = abs((1 - p) ** 2 - p**2) * np.sqrt(p * (1 - p) / n)  # of score (1 - p) or -p
    assert abs(draws - p * (1 - p)) < 5 * standard_error


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float32])
def test_sampled_labels_of_narrow_logits_are_those_of_the_model(dtype):
    """Of noise of few bits many classes would have the same, and the first of them be drawn."""
    n, classes = 4000, 500
    fisher = wpl_jax.sampled_fisher(lambda b, example: b.astype(dtype))
    squares = jax.jit(fisher)(np.zeros(classes, np.float32), np.zeros(n), jax.random.key(0))
    halves = squares[: classes // 2].sum(), squares[classes // 2 :].sum()
    assert 0.9 < halves[0] / halves[1] < 1.1


@pytest.mark.parametrize("impl", ["threefry2x32", "rbg", "unsafe_rbg"])
def test_labels_depend_on_the_key_and_the_place_alone(impl):
    params, logits, batch = mlp()
    key = jax.random.key(0, impl=impl)
    whole, by_one = (jitted_sampled(logits, size)(params, batch, key) for size in (None, 1))
    assert_close(whole, by_one)


def jitted_sampled(logits, size):
    return jax.jit(wpl_jax.sampled_fisher(logits, microbatch_size=size))


def test_sampled_is_a_function_of_its_key():
    params, logits, batch = mlp()
    fisher = jax.jit(wpl_jax.sampled_fisher(logits))
    first, again, other = (fisher(params, batch, jax.random.key(i)) for i in (0, 0, 1))
    chex.assert_trees_all_equal(first, again)
    assert not np.allclose(first["hidden"].kernel, other["hidden"].kernel, rtol=1e-2)


@pytest.mark.parametrize("w", [-2.0, 0.0, 0.5])
def test_logistic_regression_has_a_closed_form(w):
    """p(y=1) = sigmoid(w x): the score is (p - y) x, its expected square p (1 - p) x**2."""
    x = np.array([0.5, -1.0, 3.0], np.float32)
    y = np.array([0, 1, 1])
    p = 1 / (1 + np.exp(-w * x))

    def logits(params, example):
        return jnp.stack([jnp.zeros([]), params["w"] * example["x"]])

    def all_three(*arguments):
        return [make(logits)(*arguments) for make in (empirical, exact, squared_batch)]

    fishers = jax.jit(all_three)({"w": np.float32(w)}, {"x": x, "y": y})
    assert_close(fishers[0], {"w": np.mean((p - y) ** 2 * x**2)})
    assert_close(fishers[1], {"w": np.mean(p * (1 - p) * x**2)})
    assert_close(fishers[2], {"w": np.mean((p - y) * x) ** 2})


def test_exact_and_empirical_agree_where_the_model_is_right():
    """Labels in the proportions of the model: the expectation over labels is the data's mean."""
    p = np.array([1, 2, 5]) / 8
    params = np.log(8 * p).astype(np.float32)
    batch = {"y": np.repeat(np.arange(3), [1, 2, 5])}

    def logits(params, example):
        return params

    assert_close(jax.jit(empirical(logits))(params, batch), p * (1 - p))
    assert_close(jax.jit(exact(logits))(params, batch), p * (1 - p))


def test_a_loss_over_the_whole_batch_is_one_example():
    """As the docstring says: a loss that normalises over the batch cannot be split."""
    x, w = normal(0, 5, 3), np.array([1.0, -2.0, 0.5], np.float32)

    def loss(w, batch):
        out = jnp.exp(batch @ w)
        return jnp.sum(jnp.square(out / out.mean() - 1))

    fisher = jax.jit(wpl_jax.squared_batch_gradient(loss))(w, x[None])
    assert_close(fisher, np.square(jax.jit(jax.grad(loss))(w, x)))


# --- Memory, types, transformations, sharding -----------------------------------------------------


@pytest.mark.parametrize("estimator", [empirical, sampled, exact])
@pytest.mark.parametrize("bound", [{"microbatch_size": 3}, {"max_bytes": 3 * 2 * 20}])
def test_microbatches_bound_what_is_held(estimator, bound):
    """An example's use of the weights holds 3 floats of its data and 2 of its logits: 20 bytes."""
    params, logits, batch = softmax_regression()
    whole = str(jax.make_jaxpr(estimator(logits))(params, batch))
    parts = str(jax.make_jaxpr(estimator(logits, **bound))(params, batch))
    assert re.search(rf"f32\[{N},2\] = dot_general", whole)
    assert not re.search(rf"f32\[{N},2\] = dot_general", parts)
    assert re.search(r"f32\[3,2\] = dot_general", parts)


@estimators
@pytest.mark.parametrize(
    ("x64", "dtype", "wanted"),
    [
        (False, jnp.bfloat16, jnp.float32),
        (False, jnp.float32, jnp.float32),
        (True, jnp.bfloat16, jnp.float32),
        (True, jnp.float32, jnp.float32),
        (True, jnp.float64, jnp.float64),
    ],
)
def test_squares_are_at_least_float32(estimator, x64, dtype, wanted):
    """In the parameters' dtype where that is wider, whatever the dtype of data and weights."""
    logits = softmax_regression().logits
    with jax.enable_x64(x64):
        params = np.ones((3, 2), dtype)
        batch = {"x": np.ones((N, 3)), "y": np.ones(N, int)}
        for weights in ((), (np.ones(N),)):
            fisher = jax.eval_shape(estimator(logits, 3), params, batch, *weights)
            assert fisher.dtype == wanted


@pytest.mark.parametrize("make_fisher", [wpl_jax.empirical_fisher, wpl_jax.squared_batch_gradient])
def test_bfloat16_gradients_are_squared_in_float32(make_fisher):
    x = 1 + 2**-7  # a bfloat16, whose square is not
    fisher = make_fisher(lambda w, x: w * x)(jnp.bfloat16(1), jnp.array([x], jnp.bfloat16))
    assert fisher == x**2 and fisher.dtype == jnp.float32


@pytest.mark.parametrize("estimator", [empirical, exact, squared_batch])
def test_of_bfloat16_weights_is_that_of_float32_but_for_rounding(estimator):
    params, logits, batch = softmax_regression()
    params, x = params.astype(jnp.bfloat16), batch["x"].astype(jnp.bfloat16)
    fisher = jax.jit(estimator(logits))(params, {**batch, "x": x})
    assert_close(fisher, expected(estimator, softmax_regression), rtol=0.05)


@estimators
def test_works_under_vmap(estimator):
    params, logits, batch = softmax_regression()
    fishers = jax.jit(jax.vmap(estimator(logits, 3), (0, None)))(
        np.stack([2 * params, params]), batch
    )
    assert_close(fishers[1], expected(estimator, softmax_regression))
    assert not np.allclose(fishers[0], fishers[1], rtol=0.01)


@pytest.mark.devices(8)
@estimators
def test_a_batch_may_be_sharded(estimator):
    params, logits, batch = softmax_regression(n=16)
    weights = np.arange(16, dtype=np.float32)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    fisher = jax.jit(estimator(logits, 8))
    sharded = fisher(
        jax.device_put(params, jax.NamedSharding(mesh, jax.P())),
        *jax.device_put((batch, weights), jax.NamedSharding(mesh, jax.P("data"))),
    )
    assert len(sharded.devices()) == 8
    assert_close(jax.device_get(sharded), fisher(params, batch, weights))


# --- An independent library -----------------------------------------------------------------------
#
# laplax gives the product of sum_i J_i' H_i J_i with a vector, J_i the Jacobian of the logits of
# example i, and reads the diagonal off the products with unit vectors. It sums where the estimators
# average. With its own H_i = diag(p) - p p' for cross-entropy, this is the generalised Gauss-Newton
# matrix, which is the exact Fisher; with H_i = g g', g = p - onehot(y), given to it, the empirical.


class Dense(linen.Module):
    @linen.compact
    def __call__(self, x):
        return linen.Dense(3)(jnp.tanh(linen.Dense(4)(x)))


class Convolutional(nnx.Module):
    def __init__(self, rngs):
        self.conv = nnx.Conv(1, 3, (3, 3), strides=2, rngs=rngs)
        self.linear = nnx.Linear(12, 4, rngs=rngs)

    def __call__(self, x):
        return self.linear(jax.nn.relu(self.conv(x)).ravel())


def linen_mlp(key):
    module = Dense()
    params = jax.jit(module.init)(key, jnp.zeros(3))
    return params, module.apply, (3,), 3


def nnx_convolutional(key):
    graph, params = nnx.split(Convolutional(nnx.Rngs(key)), nnx.Param)
    return nnx.to_pure_dict(params), lambda p, x: nnx.merge(graph, p)(x), (4, 4, 1), 4


def empirical_hessian_mv(jv, pred, target):
    gradient = jax.nn.softmax(pred) - jax.nn.one_hot(target, pred.size)
    return gradient * (gradient @ jv)


@pytest.mark.parametrize("network", [linen_mlp, nnx_convolutional])
@pytest.mark.parametrize(
    ("estimator", "middle"),
    [
        (empirical, {"loss_hessian_mv": empirical_hessian_mv}),
        (exact, {"loss_fn": "cross_entropy"}),
    ],
    ids=["empirical", "exact"],
)
def test_agrees_with_laplax(network, estimator, middle):
    params, apply, shape, classes = network(jax.random.key(0))
    n = 6
    x, y = normal(1, n, *shape), labels(2, n, classes)
    product = create_ggn_mv(
        lambda input, params: apply(params, input), params, {"input": x, "target": y}, **middle
    )
    expected = jax.jit(lambda: diagonal(product, params))() / n
    fisher = estimator(lambda params, example: apply(params, example["x"]))
    actual = jax.jit(fisher)(params, {"x": x, "y": y})
    assert np.count_nonzero(expected) > 0.5 * expected.size
    assert_close(actual, expected)


# --- Errors ---------------------------------------------------------------------------------------

X = jnp.ones((4, 2))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: wpl_jax.empirical_fisher(lambda p, x: p * x)(jnp.ones(2), X),
            r"nll\(params, example\) must be a scalar .* got shape \(2,\)",
        ),
        (
            lambda: wpl_jax.squared_batch_gradient(lambda p, x: p * x)(jnp.ones(2), X),
            r"loss\(params, example\) must be a scalar .* got shape \(2,\)",
        ),
        (
            lambda: wpl_jax.exact_fisher(lambda p, x: p @ x)(jnp.ones(2), X),
            r"logits\(params, example\) must be one-dimensional.* got shape \(\)",
        ),
        (
            lambda: wpl_jax.sampled_fisher(lambda p, x: p[None] * x)(
                jnp.ones(2), X[:, None], jax.random.key(0)
            ),
            r"logits\(params, example\) must be one-dimensional.* got shape \(1, 2\)",
        ),
    ],
)
def test_refuses_outputs_of_a_wrong_rank(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@estimators
@pytest.mark.parametrize(
    ("batch", "message"),
    [
        ({"x": jnp.ones((4, 3)), "y": jnp.zeros(5, int)}, r"leading axis .*\(4, 3\), \(5,\)"),
        ({"x": jnp.ones((4, 3)), "y": jnp.array(0)}, r"leading axis .*\(4, 3\), \(\)"),
        ({"x": jnp.ones((0, 3)), "y": jnp.zeros(0, int)}, r"one or more examples"),
        ({}, r"got leaves of shapes \[\]"),
    ],
)
def test_refuses_batches_without_one_leading_axis(estimator, batch, message):
    params, logits, _ = softmax_regression()
    with pytest.raises(ValueError, match=message):
        estimator(logits)(params, batch)


@pytest.mark.parametrize("estimator", [wpl_jax.empirical_fisher, sampled, exact])
@pytest.mark.parametrize("dtype", [jnp.complex64, jnp.int32, bool])
def test_refuses_what_has_no_gradient(estimator, dtype):
    params, logits, batch = softmax_regression()
    of_loss = estimator is wpl_jax.empirical_fisher

    def fn(params, example):
        out = logits(params, example)
        return (out.sum() if of_loss else out).astype(dtype)

    name = "nll" if of_loss else "logits"
    with pytest.raises(TypeError, match=rf"{name}\(params, example\) must be real and floating"):
        estimator(fn)(params, batch)


@pytest.mark.parametrize("estimator", [sampled, exact])
def test_refuses_logits_of_no_class(estimator):
    params, logits, batch = softmax_regression()
    with pytest.raises(ValueError, match=r"must be of one class or more, got \(0,\)"):
        estimator(lambda params, example: logits(params, example)[:0])(params, batch)


def test_refuses_what_is_no_function():
    with pytest.raises(TypeError, match="nll must be a function .*, got 3"):
        wpl_jax.empirical_fisher(3)


@pytest.mark.parametrize("estimator", [wpl_jax.sampled_fisher, wpl_jax.exact_fisher])
def test_refuses_logits_that_are_no_function(estimator):
    with pytest.raises(TypeError, match="logits must be a function .*, got 3"):
        estimator(3)


def test_refuses_sparse_examples():
    indices = jnp.zeros((5, 12, 2), int)
    examples = sparse.BCOO((jnp.ones((5, 12)), indices), shape=(5, 3, 4))
    fisher = wpl_jax.empirical_fisher(lambda w, example: jnp.sum(example["m"] @ w))
    with pytest.raises(TypeError, match=r"batch holds a BCOO at \['m'\]"):
        fisher(jnp.ones((4, 2)), {"m": examples})


@estimators
@pytest.mark.parametrize("size", [0, -3, 2.5])
def test_refuses_microbatch_sizes_below_one(estimator, size):
    with pytest.raises(ValueError, match=f"microbatch_size must be at least 1, .* got {size}"):
        estimator(lambda params, example: params, size)


@pytest.mark.parametrize("estimator", [empirical, sampled, exact])
def test_refuses_no_memory(estimator):
    with pytest.raises(ValueError, match="max_bytes, in bytes, must be at least 1, .* got 0"):
        estimator(lambda params, example: params, max_bytes=0)
    with pytest.raises(ValueError, match="max_bytes, in bytes, must be at least 1, .* got 0"):
        wpl_jax.explain(lambda params, example: params, jnp.ones(2), jnp.ones(3), max_bytes=0)


@pytest.mark.parametrize("max_bytes", [2.5, float("nan"), float("inf"), "1GB"])
def test_refuses_what_is_no_number_of_bytes(max_bytes):
    with pytest.raises(ValueError, match=f"max_bytes, in bytes, .* got {max_bytes!r}"):
        empirical(lambda params, example: params, max_bytes=max_bytes)


def test_a_number_of_bytes_may_be_written_as_1e4():
    params, logits, batch = softmax_regression()
    fishers = [empirical(logits, max_bytes=size) for size in (1e4, 10_000)]
    few, more = jax.jit(lambda *args: [fisher(*args) for fisher in fishers])(params, batch)
    chex.assert_trees_all_equal(few, more)


def test_refuses_leaves_that_are_no_numbers():
    with pytest.raises(TypeError, match=r"batch must be of arrays of numbers, .* at \['name'\]"):
        empirical(lambda params, e: params)(jnp.ones([]), {"name": np.array(["a"])})


@pytest.mark.parametrize("key", [0, np.int32(0), jax.random.split(jax.random.key(0))], ids=str)
def test_refuses_what_is_not_one_key(key):
    params, logits, batch = softmax_regression()
    with pytest.raises(TypeError, match="key must be one key, such as"):
        wpl_jax.sampled_fisher(logits)(params, batch, key)


@pytest.mark.parametrize("weights", [[None] * 7, np.ones(7, complex)], ids=["object", "complex"])
def test_refuses_weights_that_are_no_real_numbers(weights):
    params, logits, batch = softmax_regression()
    with pytest.raises(TypeError, match="weights must be real numbers, got an array of"):
        empirical(logits)(params, batch, weights)


@estimators
@pytest.mark.parametrize("shape", [(), (6,), (7, 1)])
def test_refuses_weights_of_another_shape(estimator, shape):
    params, logits, batch = softmax_regression()
    with pytest.raises(ValueError, match=r"weights must have shape \(7,\)"):
        estimator(logits)(params, batch, jnp.ones(shape))


@pytest.mark.parametrize(
    "fisher",
    [
        wpl_jax.empirical_fisher,
        sampled,
        exact,
        wpl_jax.squared_batch_gradient,
        jax.jit(wpl_jax.empirical_fisher(lambda p, x: noisy(p, x))),
    ],
    ids=["empirical", "sampled", "exact", "squared", "jitted"],
)
def test_a_warning_names_the_line_that_asked(fisher):
    """Python shows the same text of the same line only once."""
    of_loss = fisher not in (sampled, exact)
    with pytest.warns(UserWarning, match="do not depend on the example") as warned:
        if hasattr(fisher, "lower"):
            fisher(jnp.ones(3), jnp.ones((4, 3)))
        else:
            out = noisy if of_loss else lambda p, x: noisy(p, x) * x
            fisher(out)(jnp.ones(3), jnp.ones((4, 3)))
    assert {w.filename for w in warned} == {__file__}


def noisy(params, x):
    return jnp.sum(params * x) * jax.random.normal(jax.random.key(0))
