"""What users are told of how their Fisher is computed, and whether it is right."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import wpl_jax


def nll(p, x):
    return jnp.sum(p["v"].sum() * jnp.tanh(x @ p["w"] + p["b"][None]) @ p["w"].T)


PARAMS = {"w": jnp.full((4, 4), 0.3), "b": jnp.ones(4), "v": jnp.ones(4), "unused": jnp.ones(2)}
BATCH = jnp.asarray(np.random.default_rng(0).normal(size=(6, 3, 4)), jnp.float32)
SUM = {"b": jnp.ones(4), "w": jnp.full((4, 4), 0.3)}


def test_says_the_route_its_memory_and_why():
    def fn(p, x):
        return jnp.sum(jnp.tanh(x @ p["w"]) + p["b"][None])

    found = wpl_jax.explain(fn, SUM, BATCH)
    assert found["w"] == "outer products of 3 positions"
    assert found["w"].bytes == 2 * 3 * 4 * 4  # operand and gradient, 3 positions of 4 float32
    assert found["w"].reason == ""
    assert (found["b"], found["b"].bytes) == ("per-example gradients", 16)
    assert "add" in found["b"].reason
    header, *lines = str(found).splitlines()
    assert header.split("  ")[0] == "parameter" and len(lines) == 2
    assert lines[1].startswith("['w']") and "outer products" in lines[1]


def test_several_uses_and_functions_of_parameters_are_named():
    found = wpl_jax.explain(nll, PARAMS, BATCH)
    assert found["w"].reason == "used by dot_general"
    assert found["unused"] == "no gradient"

    def normed(p, x):
        return jnp.sum(x @ (p["w"] / jnp.linalg.norm(p["w"])))

    found = wpl_jax.explain(normed, SUM, BATCH)
    assert "through functions of parameters" in found["w"].reason


def test_an_expert_is_not_a_row():
    def fn(p, x):
        return jnp.sum(jnp.tanh(x @ p["experts"][jnp.argmax(x[0])]))

    found = wpl_jax.explain(fn, {"experts": jnp.ones((8, 4, 4))}, BATCH)
    assert found["experts"] == "slices of a stack of 8"


def test_is_a_tree_like_the_parameters():
    found = wpl_jax.explain(nll, PARAMS, BATCH)
    assert jax.tree.structure(found.routes) == jax.tree.structure(PARAMS)
    assert len(jax.tree.leaves(found)) == len(PARAMS)


def test_check_passes_and_says_so():
    check = wpl_jax.check_fisher(nll, PARAMS, BATCH)
    assert check.passed
    assert "all 4 parameters agree" in str(check)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_check_allows_for_narrow_dtypes(dtype):
    params = jax.tree.map(lambda x: x.astype(dtype), PARAMS)
    assert wpl_jax.check_fisher(nll, params, BATCH).passed


def test_check_names_what_differs():
    """A loss that is another one each time it is traced."""
    scales = iter(range(1, 100))

    def changing(p, x):
        return next(scales) * jnp.sum(x @ p["w"]) + jnp.sum(p["b"])

    check = wpl_jax.check_fisher(changing, SUM, BATCH)
    assert not check.passed
    assert str(check).startswith("['w'] differs by")
    assert check.errors["['b']"] == 0


def test_check_notices_nan_and_infinity():
    """Where both are infinite or NaN they agree, with nothing to be said of how much."""

    def root(p, x):
        return jnp.sum(jnp.sqrt(jnp.abs(p["w"])) * x[0, 0])

    params = {"w": jnp.array([0.0, 1.0])}
    assert wpl_jax.check_fisher(root, params, BATCH).passed


def test_a_loss_with_auxiliary_results_is_refused():
    for call in (wpl_jax.check_fisher, wpl_jax.explain):
        with pytest.raises(TypeError, match=r"one array, got a tuple.*lambda params, example"):
            call(lambda p, x: (nll(p, x), x), PARAMS, BATCH)


@pytest.mark.parametrize("examples", [0, -1])
def test_at_least_one_example_is_checked(examples):
    with pytest.raises(ValueError, match=f"examples must be at least 1, got {examples}"):
        wpl_jax.check_fisher(lambda p, x: p * x, jnp.ones([]), jnp.ones(8), examples=examples)
