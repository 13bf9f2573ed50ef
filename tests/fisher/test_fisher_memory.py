"""What a Fisher holds at once, as the compiler counts it, against the bound that was asked for."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax import lax

import wpl_jax
from wpl_jax.fisher import microbatches

MIB = 2**20


def normal(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def words(seed, *shape, vocabulary):
    return jnp.asarray(np.random.default_rng(seed).integers(vocabulary, size=shape))


@dataclasses.dataclass
class Problem:
    nll: Callable[..., Any]
    params: Any
    batch: Any


def block(p, x):
    """One layer of a transformer with one head."""
    scores = (x @ p["q"]) @ (x @ p["k"]).T / np.sqrt(x.shape[-1])
    x = jax.nn.standardize(x + jax.nn.softmax(scores) @ (x @ p["v"]))
    return p["scale"][None] * jax.nn.standardize(x + jax.nn.gelu(x @ p["up"]) @ p["down"])


def layers(depth, width):
    shapes = {name: (width, width) for name in "qkv"}
    shapes |= {"up": (width, 2 * width), "down": (2 * width, width)}
    params = {n: normal(i, depth, *s) / np.sqrt(s[0]) for i, (n, s) in enumerate(shapes.items())}
    return params | {"scale": jnp.ones((depth, width))}


def transformer(examples, positions, remat=False, width=32, depth=4):
    """Scanned layers over long sequences."""
    one = jax.checkpoint(block, prevent_cse=False) if remat else block

    def nll(p, x):
        return jnp.sum(jnp.tanh(lax.scan(lambda x, q: (one(q, x), None), x, p)[0]))

    return Problem(nll, layers(depth, width), normal(9, examples, positions, width))


def look_up(positions, rows=64, width=32):
    """Many positions that look up few rows."""

    def nll(p, ids):
        return jnp.sum(jnp.tanh(p["table"][ids] @ p["w"]))

    params = {"table": normal(0, rows, width), "w": normal(1, width, width)}
    return Problem(nll, params, words(2, 2, positions, vocabulary=rows))


def derived_table(rows=4096, rank=4, width=64):
    """Few rows of a large table that is computed of small parameters."""

    def nll(p, ids):
        return jnp.sum(jnp.tanh((p["a"] @ p["b"])[ids]))

    params = {"a": normal(0, rows, rank), "b": normal(1, rank, width)}
    return Problem(nll, params, words(2, 8, 16, vocabulary=rows))


def only_scales(examples=64, positions=64):
    """What is trained is small, and what examples compute is not."""
    whole = transformer(examples, positions)
    frozen = {name: x for name, x in whole.params.items() if name != "scale"}
    scales = {"scale": whole.params["scale"]}
    return Problem(lambda p, x: whole.nll(frozen | p, x), scales, whole.batch)


def stem(examples=16, size=32):
    """A convolution of 7 x 7, with stride 2, and one of 3 x 3."""
    numbers = ("NHWC", "HWIO", "NHWC")

    def nll(p, x):
        x = lax.conv_general_dilated(x[None], p["w"], (2, 2), "SAME", dimension_numbers=numbers)
        x = lax.conv_general_dilated(jnp.tanh(x), p["v"], (1, 1), "SAME", dimension_numbers=numbers)
        return jnp.sum(jnp.tanh(x))

    params = {"w": normal(0, 7, 7, 3, 16), "v": normal(1, 3, 3, 16, 16)}
    return Problem(nll, params, normal(2, examples, size, size, 3))


def stacked(depth=8, width=64):
    """Layers in a fori_loop, each taken from a stack by its number."""

    def nll(p, x):
        return jnp.sum(lax.fori_loop(0, depth, lambda i, x: jnp.tanh(x @ p["w"][i]), x))

    return Problem(nll, {"w": normal(0, depth, width, width) / 8}, normal(1, 8, 16, width))


def dense(examples=256, width=128):
    def nll(p, x):
        return jnp.sum(jnp.tanh(jnp.tanh(x @ p["w"]) @ p["v"]))

    return Problem(
        nll,
        {"w": normal(0, width, width), "v": normal(1, width, width)},
        normal(2, examples, width),
    )


def branches(examples=64, width=128):
    """Two weights, of which each example takes one."""

    def nll(p, x):
        weight = lax.cond(x[0] > 0, lambda: x @ p["w"], lambda: x @ p["v"])
        return jnp.sum(jnp.tanh(weight))

    return dataclasses.replace(dense(examples, width), nll=nll)


PROBLEMS = {
    "scanned transformer": lambda: transformer(4, 128),
    "with remat, long": lambda: transformer(2, 1024, remat=True),
    "few rows, many positions": lambda: look_up(2**13),
    "derived table": derived_table,
    "only scales": only_scales,
    "7 x 7 stem": stem,
    "layers in a fori_loop": stacked,
    "dense layers": dense,
    "branches": branches,
}


def held(fn, problem):
    compiled = jax.jit(fn).lower(problem.params, problem.batch).compile()
    return compiled.memory_analysis().temp_size_in_bytes


def gradient(problem):
    def of_batch(p, batch):
        return jax.grad(lambda p: jax.vmap(problem.nll, (None, 0))(p, batch).mean())(p)

    return of_batch


@pytest.fixture(params=["on a CPU", "elsewhere"])
def platform(request, monkeypatch):
    """Elsewhere gradients of more examples are taken at once: that branch is run here as well."""
    if request.param == "elsewhere":
        monkeypatch.setattr(microbatches, "CPU_BYTES", 2**40)
    return request.param


@pytest.mark.parametrize("max_bytes", [4 * MIB, 64 * MIB])
@pytest.mark.parametrize("name", PROBLEMS)
def test_holds_no_more_than_the_gradient_and_the_bound(name, max_bytes, platform):
    problem = PROBLEMS[name]()
    fisher = held(wpl_jax.empirical_fisher(problem.nll, max_bytes=max_bytes), problem)
    assert fisher <= held(gradient(problem), problem) + max_bytes


@pytest.mark.parametrize("max_bytes", [MIB])
@pytest.mark.parametrize("name", PROBLEMS)
def test_the_bound_does_not_change_the_result(name, max_bytes, platform):
    problem = PROBLEMS[name]()
    found = jax.jit(wpl_jax.empirical_fisher(problem.nll, max_bytes=max_bytes))(
        problem.params, problem.batch
    )

    def one_at_a_time(p, batch):
        def add(total, x):
            grads = jax.grad(problem.nll)(p, x)
            return jax.tree.map(lambda t, g: t + g * g, total, grads), None

        total, _ = lax.scan(add, jax.tree.map(jnp.zeros_like, p), batch)
        return jax.tree.map(lambda t: t / len(batch), total)

    wanted = jax.jit(one_at_a_time)(problem.params, problem.batch)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=2e-5 * float(b.max()))


def test_long_sequences_keep_their_rematerialisation():
    """Where operands of one example are too many, the function is left as it is."""
    problem = transformer(2, 256, remat=True)
    routes_of = wpl_jax.explain(problem.nll, problem.params, problem.batch, max_bytes=2**16)
    assert set(jax.tree.leaves(routes_of)) == {"per-example gradients"}
    assert "holds" in routes_of["q"].reason
    plain = wpl_jax.explain(problem.nll, problem.params, problem.batch)
    assert plain["q"] == "per-example products of 256 positions"


def test_gradients_from_a_branch_are_taken_one_after_another():
    """As all that fill the caches of a CPU, though they are results twice: of the branch too."""
    problem = branches()
    assert held(wpl_jax.empirical_fisher(problem.nll), problem) < 4 * problem.params["w"].nbytes


@pytest.mark.parametrize("size", [1, 3])
@pytest.mark.parametrize("weighted", [False, True])
def test_a_large_batch_is_not_copied(size, weighted):
    """In microbatches: only these are held, though those of size 3 do not divide the batch."""

    def nll(p, x):
        return jnp.sum(jnp.tanh(x.mean(0) @ p))

    params, batch = normal(0, 16, 4), normal(1, 60, 2**12, 16)
    weights = jnp.arange(60.0) if weighted else None
    fisher = jax.jit(wpl_jax.empirical_fisher(nll, microbatch_size=size))
    compiled = fisher.lower(params, batch, weights).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < batch.nbytes / 60 * (4 * size + 4)


@pytest.mark.parametrize("in_turn", [False, True])
@given(max_bytes=st.integers(1, 2**40), held=st.integers(0, 2**40))
def test_so_many_examples_at_a_time_stay_below_the_bound(in_turn, max_bytes, held):
    for size in microbatches.sizes(microbatches.Bound(max_bytes, max_bytes), held, in_turn):
        assert 1 <= size <= microbatches.LONG_SUM
        assert size == 1 or size * held <= max_bytes
