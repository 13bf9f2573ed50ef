"""Merging models by their Fishers: the closed form, what it is the minimum of, and its errors."""

import functools

import hypothesis.extra.numpy as hnp
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.optimize
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import wpl_jax

SHAPES = {"kernel": (4, 3), "bias": (3,), "gain": ()}


def tree(seed, of=np.random.Generator.normal):
    rng = np.random.default_rng(seed)
    return {name: jnp.asarray(of(rng, size=shape), jnp.float32) for name, shape in SHAPES.items()}


def fisher(seed):
    return tree(seed, np.random.Generator.exponential)


MODELS = [tree(i) for i in range(3)]
FISHERS = [fisher(10 + i) for i in range(3)]
WEIGHTS = [1.0, 0.5, 4.0]


def expected(params, fishers, weights):
    """In float64, leaf by leaf."""

    def mean(*leaves):
        leaves = [np.asarray(leaf, np.float64) for leaf in leaves]
        thetas, fs = leaves[: len(params)], leaves[len(params) :]
        shares = [w * f for w, f in zip(weights, fs, strict=True)]
        return sum(s * t for s, t in zip(shares, thetas, strict=True)) / sum(shares)

    return jax.tree.map(mean, *params, *fishers)


def assert_close(actual, wanted, rtol=2e-6):
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, rtol=rtol, atol=rtol), actual, wanted
    )


def assert_same_bits(actual, wanted):
    jax.tree.map(np.testing.assert_array_equal, actual, wanted)


# --- The formula ----------------------------------------------------------------------------------


@pytest.mark.parametrize("jit", [lambda f: f, jax.jit], ids=["eager", "jit"])
@pytest.mark.parametrize("weights", [None, WEIGHTS, np.array(WEIGHTS), jnp.array(WEIGHTS)])
def test_is_the_weighted_mean(jit, weights):
    merged = jit(wpl_jax.merge)(MODELS, FISHERS, weights)
    wanted = expected(MODELS, FISHERS, [1.0] * 3 if weights is None else WEIGHTS)
    assert_close(merged, wanted)
    assert jax.tree.map(lambda leaf: leaf.dtype, merged) == dict.fromkeys(SHAPES, jnp.float32)


def test_without_fishers_is_the_plain_mean():
    assert_close(wpl_jax.merge(MODELS), expected(MODELS, [tree(0, unit)] * 3, [1.0] * 3))
    assert_same_bits(wpl_jax.merge(MODELS), wpl_jax.merge(MODELS, [2.5] * 3))


def unit(rng, size):
    return np.ones(size)


def test_a_number_stands_for_all_entries():
    numbers = [0.0, 1.0, jnp.array(3.0)]
    trees = [jax.tree.map(lambda p, n=n: jnp.full_like(p, n), MODELS[0]) for n in numbers]
    assert_same_bits(wpl_jax.merge(MODELS, numbers), wpl_jax.merge(MODELS, trees))
    mixed = [numbers[0], trees[1], numbers[2]]
    assert_same_bits(wpl_jax.merge(MODELS, mixed), wpl_jax.merge(MODELS, trees))


def test_what_is_absent_from_a_fisher_counts_as_nothing():
    part = {"kernel": 2.0, "bias": None}
    zeros = {name: jnp.zeros(shape) for name, shape in SHAPES.items()}
    whole = zeros | {"kernel": jnp.full(SHAPES["kernel"], 2.0)}
    others = FISHERS[1:]
    assert_same_bits(
        wpl_jax.merge(MODELS, [part, *others]), wpl_jax.merge(MODELS, [whole, *others])
    )


def test_is_the_minimum_of_the_sum_of_quadratics():
    """By a general optimiser, which is not told the formula."""
    flat, unravel = jax.flatten_util.ravel_pytree(jax.tree.map(jnp.zeros_like, MODELS[0]))

    def total(vector):
        params = unravel(jnp.asarray(vector, jnp.float32))
        return sum(
            w * jnp.sum(f * (p - own) ** 2) / 2
            for w, model, fisher in zip(WEIGHTS, MODELS, FISHERS, strict=True)
            for p, own, f in zip(*map(jax.tree.leaves, (params, model, fisher)), strict=True)
        )

    value_and_grad = jax.jit(jax.value_and_grad(total))
    found = scipy.optimize.minimize(
        lambda v: tuple(np.asarray(x, np.float64) for x in value_and_grad(v)), flat, jac=True
    )
    assert_close(unravel(jnp.asarray(found.x, jnp.float32)), merge_all(), rtol=1e-3)


def merge_all():
    return wpl_jax.merge(MODELS, FISHERS, WEIGHTS)


def test_is_the_anchor_of_the_models_in_turn():
    opt_state = wpl_jax.add_plasticity(1.0).init(MODELS[0])
    for params, fisher in zip(MODELS, FISHERS, strict=True):
        opt_state = wpl_jax.consolidate(opt_state, params, fisher, decay=1.0, anchor="mean")
    assert_close(optax.tree.get(opt_state, "anchor"), wpl_jax.merge(MODELS, FISHERS))


ENTRIES = hnp.arrays(np.float32, (3, 5), elements=st.floats(-100, 100, width=32))
IMPORTANCES = hnp.arrays(
    np.float32, (3, 5), elements=st.just(0.0) | st.floats(2.0**-40, 2.0**40, width=32)
)


@settings(deadline=None, max_examples=200)
@given(ENTRIES, IMPORTANCES)
def test_of_any_numbers(params, fishers):
    merged = np.asarray(wpl_jax.merge(list(params), list(fishers)), np.float64)
    params, fishers = params.astype(np.float64), fishers.astype(np.float64)
    shares = np.where(fishers.sum(0) > 0, fishers, 1)
    wanted = (shares * params).sum(0) / shares.sum(0)
    np.testing.assert_allclose(merged, wanted, rtol=1e-5, atol=1e-36 + 1e-5 * np.abs(params).max())
    counted = np.where(shares > 0, params, np.nan)
    slack = 1e-36 + 1e-6 * np.abs(params).max()  # on a CPU the least numbers are taken for 0
    assert (merged >= np.nanmin(counted, 0) - slack).all()
    assert (merged <= np.nanmax(counted, 0) + slack).all()


# --- Invariants -----------------------------------------------------------------------------------


def test_one_model_is_itself_bit_for_bit():
    for fishers in (None, [FISHERS[0]], [0.0]):
        assert_same_bits(wpl_jax.merge(MODELS[:1], fishers), MODELS[0])


def test_a_model_that_alone_counts_is_itself_bit_for_bit():
    assert_same_bits(wpl_jax.merge(MODELS, [0.0, FISHERS[1], 0.0]), MODELS[1])
    assert_same_bits(wpl_jax.merge(MODELS, FISHERS, [0.0, 1.0, 0.0]), MODELS[1])


@pytest.mark.parametrize("scale", [2.0**-60, 2.0**-10, 2.0**60])
def test_only_ratios_of_fishers_count(scale):
    scaled = jax.tree.map(lambda f: scale * f, FISHERS)
    assert_same_bits(wpl_jax.merge(MODELS, scaled, WEIGHTS), merge_all())
    assert_same_bits(wpl_jax.merge(MODELS, FISHERS, [scale * w for w in WEIGHTS]), merge_all())


def test_order_does_not_count():
    turned = wpl_jax.merge(MODELS[::-1], FISHERS[::-1], WEIGHTS[::-1])
    assert_close(turned, merge_all())


def test_where_no_model_knows_more_is_the_mean_by_weights():
    nothing = [jax.tree.map(lambda f: f.at[...].set(0), f) for f in FISHERS]
    assert_close(
        wpl_jax.merge(MODELS, nothing, WEIGHTS), expected(MODELS, [tree(0, unit)] * 3, WEIGHTS)
    )
    # Of the entries of one tensor some may be known, and some not.
    fishers = [{"w": jnp.array([1.0, 0.0])}, {"w": jnp.array([3.0, 0.0])}]
    models = [{"w": jnp.zeros(2)}, {"w": jnp.ones(2)}]
    assert_close(wpl_jax.merge(models, fishers)["w"], np.array([0.75, 0.5]))
    # A model of weight 0 knows nothing.
    assert_close(wpl_jax.merge(models, [fishers[0], 0.0], [0.0, 1.0])["w"], np.ones(2))


@pytest.mark.parametrize("size", [1e-37, 3e38])
def test_neither_overflows_nor_vanishes(size):
    models, fishers = [jnp.array([-1.0]), jnp.array([1.0])], [jnp.array([size])] * 2
    for weights in (None, [1e30, 1e30], [1e-30, 1e-30]):
        assert_close(wpl_jax.merge(models, fishers, weights), np.zeros(1))
    large = [jnp.array([3e38])] * 2
    assert_close(wpl_jax.merge(large, fishers) / 3e38, np.ones(1))


@pytest.mark.parametrize(
    "weights",
    [
        [3 * 10**9, 10**9],
        [3 * 10**30, 10**30],
        [3e39, 1e39],
        np.array([3 * 10**9, 10**9]),
        np.array([3e39, 1e39]),
        [np.int64(3 * 10**9), jnp.float32(1e9)],
    ],
)
def test_weights_of_any_size(weights):
    merged = wpl_jax.merge([jnp.zeros(1), jnp.ones(1)], weights=weights)
    np.testing.assert_allclose(merged, [0.25], rtol=1e-6)


def test_fishers_that_are_integers_of_any_size():
    merged = wpl_jax.merge([jnp.zeros(1), jnp.ones(1)], [3 * 10**10, np.array([10**10])])
    np.testing.assert_allclose(merged, [0.25], rtol=1e-6)


@pytest.mark.parametrize("weight", [0.0, 1e-45])
@pytest.mark.parametrize("jit", [lambda f: f, jax.jit], ids=["eager", "jit"])
def test_what_a_model_of_weight_0_knows_does_not_count(weight, jit):
    models = [jnp.array([x]) for x in (1.0, 2.0, 7.0)]
    fishers = [jnp.array([x]) for x in (1e28, 1e-20, 0.0)]
    np.testing.assert_allclose(jit(wpl_jax.merge)(models, fishers, [weight, 1.0, 1.0]), [2.0])


def test_what_has_no_share_may_be_anything():
    models = [jnp.array([jnp.nan, 1.0]), jnp.array([2.0, 3.0])]
    merged = wpl_jax.merge(models, [jnp.array([0.0, 1.0]), jnp.array([1.0, 1.0])])
    assert_close(merged, np.array([2.0, 2.0]))


# --- Dtypes, devices, frameworks ------------------------------------------------------------------


def test_bfloat16_is_computed_in_float32():
    models = [jax.tree.map(lambda p: p.astype(jnp.bfloat16), m) for m in MODELS]
    merged = wpl_jax.merge(models, FISHERS)
    wide = wpl_jax.merge(
        [jax.tree.map(lambda p: p.astype(jnp.float32), m) for m in models], FISHERS
    )
    assert_same_bits(merged, jax.tree.map(lambda p: p.astype(jnp.bfloat16), wide))
    assert jax.tree.leaves(merged)[0].dtype == jnp.bfloat16


def test_float64_stays():
    with jax.enable_x64(True):
        models, fishers = jax.tree.map(
            lambda a: jnp.asarray(np.asarray(a, np.float64)), (MODELS, FISHERS)
        )
        merged = wpl_jax.merge(models, fishers)
        assert merged["bias"].dtype == jnp.float64
        assert_close(merged, expected(MODELS, FISHERS, [1.0] * 3), rtol=1e-14)


def test_complex_parameters():
    models = [jnp.array([1 + 2j]), jnp.array([3 - 2j])]
    merged = wpl_jax.merge(models, [jnp.array([1.0]), jnp.array([3.0])])
    assert merged.dtype == jnp.complex64
    np.testing.assert_allclose(merged, [2.5 - 1j], rtol=1e-6)
    with pytest.raises(ValueError, match=r"fishers\[1\] must be real, got complex64"):
        wpl_jax.merge(models, [1.0, models[1]])


@pytest.mark.devices(8)
@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit])
@pytest.mark.parametrize("jit", [lambda f: f, jax.jit], ids=["eager", "jit"])
def test_stays_where_the_parameters_are(axis_type, jit):
    mesh = jax.make_mesh((4,), ("model",), axis_types=(axis_type,))
    specs = {"kernel": PartitionSpec("model"), "bias": PartitionSpec(), "gain": PartitionSpec()}
    shardings = {name: NamedSharding(mesh, spec) for name, spec in specs.items()}
    models, fishers = ([jax.device_put(t, shardings) for t in trees] for trees in (MODELS, FISHERS))
    merged = jit(wpl_jax.merge)(models, fishers)
    assert merged["kernel"].sharding.is_equivalent_to(shardings["kernel"], 2)
    assert_close(merged, wpl_jax.merge(MODELS, FISHERS))


def test_nnx_models_and_their_states():
    models = [nnx.Linear(3, 2, rngs=nnx.Rngs(i)) for i in range(2)]
    states = [nnx.state(model, nnx.Param) for model in models]
    fishers = [jax.tree.map(jnp.square, state) for state in states]
    merged = wpl_jax.merge(models, fishers)
    plain = wpl_jax.merge(
        [nnx.to_pure_dict(s) for s in states], [nnx.to_pure_dict(f) for f in fishers]
    )
    assert_same_bits(nnx.to_pure_dict(merged), plain)
    assert_same_bits(nnx.to_pure_dict(wpl_jax.merge(states, fishers)), plain)
    nnx.update(models[0], merged)
    np.testing.assert_array_equal(models[0].kernel[...], plain["kernel"])


def test_inside_jit_with_known_fishers():
    merged = jax.jit(lambda models: wpl_jax.merge(models, FISHERS, WEIGHTS))(MODELS)
    assert_close(merged, merge_all())
    with pytest.raises(ValueError, match=r"fishers\[0\] must be finite and not negative, got -1"):
        jax.jit(lambda models: wpl_jax.merge(models, [-1.0, 1.0, 1.0]))(MODELS)


def test_complex_parameters_with_wider_fishers():
    with jax.enable_x64(True):
        models = [jnp.array([z], jnp.complex64) for z in (1 + 1j, 3 + 3j)]
        assert_close(wpl_jax.merge(models, [jnp.ones(1)] * 2), np.array([2 + 2j]))


def test_what_is_not_a_fisher_counts_as_nothing_where_it_cannot_be_read():
    models = [jnp.zeros(3), jnp.ones(3)]
    fishers = [jnp.array([-1.0, jnp.nan, jnp.inf]), jnp.ones(3)]
    assert_close(jax.jit(wpl_jax.merge)(models, fishers), np.ones(3))


@pytest.mark.parametrize(
    ("weights", "expected"),
    [
        ([np.nan, 1.0], 1),
        ([np.inf, 1.0], 1),
        ([-1.0, 1.0], 1),
        ([0.0, 0.0], np.nan),
        ([-1.0, -2.0], np.nan),
    ],
    ids=str,
)
def test_what_is_no_weight_counts_as_nothing_where_it_cannot_be_read(weights, expected):
    models = [jnp.zeros(3), jnp.ones(3)]
    merged = jax.jit(wpl_jax.merge)(models, None, jnp.array(weights))
    np.testing.assert_array_equal(merged, np.full(3, expected))


# --- Errors ---------------------------------------------------------------------------------------

BAD = FISHERS[0] | {"bias": jnp.array([1.0, -2.0, 0.0])}
ERRORS = {
    "no models": (([],), r"at least one model's parameters, got none"),
    "fishers": ((MODELS, FISHERS[:2]), r"fishers must be as many as the models, got 2 for 3"),
    "weights": ((MODELS, FISHERS, [1.0, 2.0]), r"weights must be 3 numbers.*shapes \[\(\), \(\)\]"),
    "negative weight": ((MODELS, FISHERS, [1.0, -2.0, 1.0]), r"weights must be finite.*-2\.0"),
    "no weight": ((MODELS, FISHERS, [0.0] * 3), r"not all 0, got \[0\.0, 0\.0, 0\.0\]"),
    "negative": (
        (MODELS, [*FISHERS[:2], BAD]),
        r"fishers\[2\] must be finite and not negative, got -2\.0 at \['bias'\]",
    ),
    "not finite": (
        (MODELS, [*FISHERS[:2], float("nan")]),
        r"fishers\[2\] must be finite and not negative, got nan",
    ),
    "a missing leaf": (
        ([*MODELS[:2], {"kernel": MODELS[2]["kernel"]}], FISHERS),
        r"params\[2\] has no leaf at \['bias'\], where params\[0\] has one of shape \(3,\)",
    ),
    "another shape": (
        (MODELS, [FISHERS[0], FISHERS[1] | {"bias": jnp.ones(2)}, FISHERS[2]]),
        r"fishers\[1\] has shape \(2,\) at \['bias'\], where params\[0\] has \(3,\)",
    ),
    "a leaf too many": (
        (MODELS, [FISHERS[0], FISHERS[1], FISHERS[2] | {"head": jnp.ones(2)}]),
        r"fishers\[2\] has a leaf at \['head'\], where params\[0\] has none",
    ),
}


@pytest.mark.parametrize(("args", "message"), ERRORS.values(), ids=ERRORS)
def test_errors_name_what_is_wrong_and_where(args, message):
    with pytest.raises(ValueError, match=message):
        wpl_jax.merge(*args)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (({"a": MODELS[0], "b": MODELS[1]},), "params must be a sequence.* got a dict"),
        ((MODELS, 1.0), "fishers must be a sequence.* got a float"),
        ((MODELS, None, {"a": 1.0, "b": 2.0, "c": 1.0}), "weights must be a sequence.* got a dict"),
    ],
)
def test_what_is_no_sequence_of_models_is_named(args, message):
    with pytest.raises(TypeError, match=message):
        wpl_jax.merge(*args)


def test_a_fisher_may_name_a_layer_without_parameters():
    models = [{"w": jnp.zeros(2), "pool": {}}, {"w": jnp.ones(2), "pool": {}}]
    merged = wpl_jax.merge(models, [{"w": 1.0, "pool": 1.0}, {"w": 3.0, "pool": 1.0}])
    np.testing.assert_allclose(merged["w"], 0.75)


def test_integers_have_no_mean():
    with pytest.raises(TypeError, match=r"params\[0\] must be floating.*int32 at \['steps'\]"):
        wpl_jax.merge([{"steps": jnp.array(3)}])
