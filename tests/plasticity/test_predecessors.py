"""Several models before the one in training: which sum of penalties the one state stands for."""

import hypothesis
import hypothesis.extra.numpy as hnp
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import strategies as st

import wpl_jax

TX = wpl_jax.add_plasticity(1.0)

finite = st.floats(-4, 4, width=32)
fishers = st.floats(0, 8, width=32)


def consolidated(models, **options):
    """The state after models, each with its weights, its Fisher and perhaps its mask."""
    state = TX.init(jnp.zeros(models[0][0].shape))
    for params, fisher, *mask in models:
        mask = mask[0] if mask else None
        state = wpl_jax.consolidate(state, params, fisher, mask=mask, **options)
    return state


@hypothesis.settings(max_examples=40, deadline=None)
@hypothesis.given(
    weights=hnp.arrays(np.float32, (4, 6), elements=finite),
    importance=hnp.arrays(np.float32, (4, 6), elements=fishers),
    masks=hnp.arrays(bool, (4, 6)),
    decay=st.sampled_from([0.0, 0.1, 0.5, 1.0]),
    points=hnp.arrays(np.float32, (2, 6), elements=finite),
)
def test_the_mean_anchor_is_the_sum_of_all_penalties(weights, importance, masks, decay, points):
    """Written out: each model's own penalty, times the decay once for each later one, but for a
    constant; so differences between two points, and gradients, are those of the sum."""
    with jax.enable_x64(True):
        models = [tuple(map(jnp.asarray, m)) for m in zip(weights, importance, masks, strict=True)]
        models = [(p.astype(float), f.astype(float), m) for p, f, m in models]
        state = consolidated(models, decay=decay, anchor="mean")

        def written_out(theta):
            total = 0.0
            for i, (params, fisher, mask) in enumerate(models):
                share = jnp.ones(6)  # what later models leave of this one, weight by weight
                for _, _, later in models[i + 1 :]:
                    share = jnp.where(later, decay * share, share)
                total += jnp.sum(jnp.where(mask, share * fisher, 0) * (theta - params) ** 2) / 2
            return total

        def of_state(theta):
            return wpl_jax.plasticity_loss(state, theta, 1.0)

        first, second = jnp.asarray(points, float)
        scale = 1 + abs(float(written_out(first))) + abs(float(written_out(second)))
        difference = of_state(first) - of_state(second)
        expected = written_out(first) - written_out(second)
        np.testing.assert_allclose(difference, expected, atol=1e-9 * scale)
        gradient, _ = TX.update(jnp.zeros(6), state, first)
        np.testing.assert_allclose(gradient, jax.grad(written_out)(first), atol=1e-9 * scale)


def test_the_latest_anchor_is_one_penalty_centred_at_the_last_model():
    """Online EWC: Fishers add up with their decay, and all of them pull to the last weights."""
    rng = np.random.default_rng(0)
    models = [(jnp.asarray(rng.normal(size=4)), jnp.asarray(rng.random(4))) for _ in range(3)]
    state = consolidated(models, decay=0.5)
    expected = 0.25 * models[0][1] + 0.5 * models[1][1] + models[2][1]
    np.testing.assert_allclose(state.fisher, expected, rtol=1e-6)
    np.testing.assert_array_equal(state.anchor, models[2][0])


def test_they_are_the_same_where_weights_have_not_moved():
    params, first, second = jnp.array([1.0, -2.0]), jnp.array([3.0, 0.1]), jnp.array([0.7, 5.0])
    latest, mean = (
        consolidated([(params, first), (params, second)], decay=0.3, anchor=anchor)
        for anchor in ("latest", "mean")
    )
    np.testing.assert_array_equal(latest.anchor, mean.anchor)
    np.testing.assert_array_equal(latest.fisher, mean.fisher)


def test_where_nothing_was_protected_the_mean_is_the_new_weights_bit_for_bit():
    params = jnp.asarray(np.random.default_rng(0).normal(size=100), jnp.float32)
    state = consolidated([(params, jnp.ones(100))], decay=1.0, anchor="mean")
    np.testing.assert_array_equal(state.anchor, params)


def test_where_the_new_model_needs_nothing_the_mean_stays():
    old, new = jnp.array([1.0, 1.0]), jnp.array([5.0, 5.0])
    state = consolidated([(old, 2.0), (new, jnp.array([0.0, 2.0]))], decay=1.0, anchor="mean")
    np.testing.assert_array_equal(state.anchor, [1.0, 3.0])
    np.testing.assert_array_equal(state.fisher, [2.0, 4.0])


@pytest.mark.parametrize("fisher", [2e-38, 1.0, 3e38])
def test_the_mean_is_one_of_any_size_of_fisher(fisher):
    """Also where the sum of Fishers overflows, and is cut at the largest number."""
    models = [(jnp.zeros(1), jnp.full(1, fisher)), (jnp.ones(1), jnp.full(1, fisher))]
    state = consolidated(models, decay=1.0, anchor="mean")
    np.testing.assert_allclose(state.anchor, [0.5], rtol=1e-6)
    assert 0 < state.fisher[0] < np.inf


@pytest.mark.parametrize("learning_rate", [None, 0.1])
def test_training_consolidates_both_ways(learning_rate):
    """weight_plasticity passes the choice on, in one compiled step."""

    def nll(params, example):
        return 0.5 * jnp.square(params @ example)

    batch = jnp.asarray(np.random.default_rng(0).normal(size=(5, 3)), jnp.float32)
    for anchor in ("latest", "mean"):
        tx = wpl_jax.weight_plasticity(
            optax.sgd(0.1),
            strength=1.0,
            nll=nll,
            fisher_decay=0.5,
            anchor=anchor,
            learning_rate=learning_rate,
        )

        @jax.jit
        def step(params, state, tx=tx):
            grads = jax.grad(lambda p: jax.vmap(nll, (None, 0))(p, batch).mean())(params)
            updates, state = tx.update(grads, state, params, batch=batch, consolidate=True)
            return optax.apply_updates(params, updates), state

        params = jnp.ones(3)
        state = tx.init(params)
        models = []
        for _ in range(3):
            params, state = step(params, state)
            models.append((params, wpl_jax.empirical_fisher(nll)(params, batch)))
        expected = consolidated(models, decay=0.5, anchor=anchor)
        found = wpl_jax.get_plasticity(state)
        np.testing.assert_allclose(found.anchor, expected.anchor, rtol=1e-5)
        np.testing.assert_allclose(found.fisher, expected.fisher, rtol=1e-5)


def test_what_cannot_be_meant_is_refused():
    params = jnp.ones(2)
    with pytest.raises(ValueError, match=r'"latest" or "mean", got .first.'):
        wpl_jax.consolidate(TX.init(params), params, 1.0, anchor="first")
    with pytest.raises(ValueError, match=r"decay=None forgets the earlier ones: pass decay=1.0"):
        wpl_jax.consolidate(TX.init(params), params, 1.0, anchor="mean")
    message = r"fisher_decay=None forgets the earlier ones: pass fisher_decay=1.0"
    with pytest.raises(ValueError, match=message):
        wpl_jax.weight_plasticity(optax.sgd(0.1), strength=1.0, anchor="mean")
