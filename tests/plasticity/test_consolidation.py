"""`consolidate` and `flush`, against NumPy."""

import functools

import chex
import hypothesis
import hypothesis.extra.numpy as hnp
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from forms import (
    ANCHOR,
    GRADS,
    MAX,
    PARAMS,
    adamw,
    assert_same_bits,
    forms,
    normal,
    plasticity,
    protected,
    run,
)
from hypothesis import strategies as st

import wpl_jax
from wpl_jax.plasticity import consolidation


def consolidate_in_numpy(state, params, fisher, decay, mask):
    """What consolidate should do to one tensor, without clipping."""
    valid = np.isfinite(fisher) & (fisher >= 0)
    new = np.where(valid, fisher, 0) + (0 if decay is None else np.float32(decay) * state.fisher)
    return wpl_jax.PlasticityState(
        count=state.count,
        anchor=np.where(mask, params, state.anchor),
        fisher=np.where(mask, np.minimum(new, MAX), state.fisher),
        rejected=state.rejected + np.sum(mask & ~valid),
        consolidations=state.consolidations + 1,
        last_strength=state.last_strength,
    )


@functools.cache
def jitted_consolidate(**options):
    return jax.jit(functools.partial(wpl_jax.consolidate, **options))


@hypothesis.settings(max_examples=60, deadline=None)
@hypothesis.given(
    fishers=hnp.arrays(np.float32, (2, 5), elements=st.floats(width=32, allow_subnormal=False)),
    masks=hnp.arrays(bool, (2, 5)),
    decay=st.sampled_from([None, 0.0, 0.125, 1.0]),
)
@hypothesis.example(np.full((2, 5), np.nan, np.float32), np.ones((2, 5), bool), 1.0)
@hypothesis.example(np.full((2, 5), MAX, np.float32), np.ones((2, 5), bool), 1.0)
def test_only_what_is_finite_not_negative_and_inside_enters(fishers, masks, decay):
    """Two models in turn, against NumPy: NaN, infinities and negative numbers are counted."""
    state = wpl_jax.add_plasticity(1.0).init(jnp.zeros(5))
    expected = jax.tree.map(np.asarray, state)
    for i in range(2):
        params = normal(i, 5)
        state = jitted_consolidate(decay=decay)(state, params, fishers[i], mask=masks[i])
        with np.errstate(over="ignore"):
            expected = consolidate_in_numpy(expected, params, fishers[i], decay, masks[i])
    assert np.all(np.isfinite(state.fisher)) and np.all(state.fisher >= 0)
    assert state.rejected == expected.rejected
    np.testing.assert_array_equal(state.anchor, expected.anchor)
    np.testing.assert_allclose(state.fisher, expected.fisher, rtol=1e-6, atol=1e-37)


def test_what_overflows_the_dtype_of_the_state_is_refused():
    with jax.enable_x64(True):
        params = jnp.ones(3, jnp.float32)
        state = wpl_jax.add_plasticity(1.0).init(params)
        state = wpl_jax.consolidate(state, params, jnp.array([1e300, 2.0, -1e300]))
    np.testing.assert_array_equal(state.fisher, np.array([0, 2, 0], np.float32), strict=True)
    assert state.rejected == 2


@pytest.mark.parametrize("huge", [10**10, np.int64(10**10), np.array(10**10), np.array([10**10])])
def test_integers_may_be_larger_than_an_int32(huge):
    params = jnp.ones(1)
    state = wpl_jax.add_plasticity(1.0).init(params)
    large = wpl_jax.consolidate(state, params, huge)
    np.testing.assert_array_equal(large.fisher, [np.float32(1e10)])
    if np.ndim(huge) == 0:
        one = wpl_jax.consolidate(state, params, 1.0, max_norm=huge)
        np.testing.assert_array_equal(one.fisher, [1.0])
        decayed = wpl_jax.consolidate(one, params, 0.0, decay=huge)
        np.testing.assert_array_equal(decayed.fisher, [np.float32(1e10)])


@pytest.mark.parametrize("dtype", [jnp.float8_e4m3fn, jnp.float8_e5m2, jnp.bfloat16, jnp.float16])
def test_in_a_narrow_dtype_the_fisher_is_right_on_average(dtype):
    """Also in the dtypes of 8 bits, and at the largest number, where there is no next one."""
    params, largest = jnp.zeros(10_000), float(jnp.finfo(dtype).max)
    state = wpl_jax.add_plasticity(1.0, fisher_dtype=dtype, anchor_dtype=dtype).init(params)
    for anchor in ("latest", "mean"):
        state = wpl_jax.consolidate(state, params + 0.3, 0.9, decay=0.5, anchor=anchor)
    assert state.fisher.dtype == state.anchor.dtype == dtype
    np.testing.assert_allclose(state.fisher.astype(float).mean(), 1.35, rtol=0.02)
    np.testing.assert_allclose(state.anchor.astype(float).mean(), 0.3, rtol=0.1)
    full = wpl_jax.consolidate(state, params, largest, decay=1.0)
    np.testing.assert_array_equal(full.fisher.astype(float), largest)
    assert full.rejected == 0


def test_rejected_never_overflows():
    state = wpl_jax.add_plasticity(1.0).init(PARAMS)
    nearly = jnp.array(2**31 - 3, jnp.int32)
    nan = jax.tree.map(lambda p: jnp.full_like(p, jnp.nan), PARAMS)
    state = wpl_jax.consolidate(state._replace(rejected=nearly), PARAMS, nan)
    assert state.rejected >= nearly and state.rejected.dtype == jnp.int32


EXPERTS = {
    "experts": normal(0, 4, 2, 3),
    "dense": {"kernel": normal(1, 3, 2), "bias": normal(2, 2)},
}


@pytest.mark.parametrize("jit", [False, True], ids=["eager", "jit"])
@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e19, 1e30, 1e38])
def test_max_norm_clips_each_tensor(scale, jit):
    """Also where squares overflow or vanish in float32."""
    state = wpl_jax.add_plasticity(1.0).init(EXPERTS)
    fisher = jax.tree.map(lambda e: scale * jnp.minimum(jnp.abs(e), 3.0), EXPERTS)
    fisher["dense"]["bias"] = jnp.array([1e-3, 2e-3])  # below max_norm in every case
    consolidate = jitted_consolidate() if jit else wpl_jax.consolidate
    clipped = consolidate(state, EXPERTS, fisher, max_norm=2.0).fisher

    def clip(f):
        f = np.asarray(f, np.float64)
        return f * min(1, 2.0 / np.linalg.norm(f.ravel()))

    chex.assert_trees_all_close(clipped, jax.tree.map(clip, fisher), rtol=1e-5)


def test_max_norm_sees_what_is_valid_and_inside_before_the_decay():
    state = wpl_jax.add_plasticity(1.0).init(jnp.zeros(4))._replace(fisher=jnp.full(4, 100.0))
    state = wpl_jax.consolidate(
        state,
        jnp.zeros(4),
        jnp.array([3.0, 4.0, jnp.nan, 1e6]),
        decay=0.5,
        mask=jnp.array([True, True, True, False]),
        max_norm=1.0,
    )
    np.testing.assert_allclose(state.fisher, [50.6, 50.8, 50.0, 100.0], rtol=1e-6)


def test_max_norm_of_nothing():
    """All zero, or no entry at all, with a norm of at most zero: no 0 / 0."""
    params = {"zero": jnp.ones(2), "empty": jnp.ones((0, 3)), "some": jnp.ones(2)}
    fisher = {"zero": jnp.zeros(2), "empty": jnp.ones((0, 3)), "some": jnp.ones(2)}
    state = wpl_jax.add_plasticity(1.0).init(params)
    for max_norm in (0.0, 1.0, 1e39):
        state = wpl_jax.consolidate(state, params, fisher, max_norm=max_norm)
        assert_same_bits(state.fisher["zero"], jnp.zeros(2))
        assert jnp.linalg.norm(state.fisher["some"]) == pytest.approx(min(max_norm, 2**0.5))


@forms
def test_consolidate_and_flush_change_the_plasticity_state_only(form):
    tx = form(adamw())
    _, opt_state = run(tx, PARAMS, protected(tx), GRADS, steps=1)
    for new in (
        wpl_jax.consolidate(opt_state, ANCHOR, GRADS, decay=0.1, max_norm=1.0),
        jax.jit(wpl_jax.consolidate)(opt_state, ANCHOR, GRADS),
        wpl_jax.flush(opt_state),
    ):
        chex.assert_trees_all_equal_shapes_and_dtypes(new, opt_state)
        assert plasticity(new).count == 1
        for a, b in zip(new, opt_state, strict=True):
            if not isinstance(a, wpl_jax.PlasticityState):
                assert_same_bits(a, b)
    flushed = plasticity(wpl_jax.flush(opt_state))
    assert_same_bits(flushed.anchor, ANCHOR)
    assert not any(np.any(f) for f in jax.tree.leaves(flushed.fisher))


def test_a_strength_that_is_an_array_outlives_a_donated_state():
    strength = jnp.array(2.0)
    tx = wpl_jax.add_plasticity(strength)
    opt_state = tx.init(PARAMS)
    for update in (tx.update, jax.jit(tx.update, donate_argnums=1)):
        _, opt_state = update(GRADS, opt_state, PARAMS)
    assert strength == opt_state.last_strength == 2.0


def test_one_program_is_compiled_for_all_models_of_the_same_shapes():
    """And not one for each operation and shape, which would take longer to compile."""
    tx = wpl_jax.add_plasticity(1.0)
    params = {"w": jnp.ones((3, 5)), "b": jnp.ones(5)}
    state, before = tx.init(params), consolidation._consolidated._cache_size()
    for decay in (0.1, 0.5):
        state = wpl_jax.consolidate(state, params, params, decay=decay, max_norm=1.0)
        params = jax.tree.map(lambda p: p + 1, params)
    assert consolidation._consolidated._cache_size() == before + 1
