import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import wpl_jax
from wpl_jax.forgetting import forgetting


@pytest.mark.parametrize(
    ("baseline", "plain", "protected", "expected"),
    [
        (0.9, 0.5, 0.9, 1.0),  # nothing was forgotten
        (0.9, 0.5, 0.5, 0.0),  # protection did nothing
        (0.9, 0.5, 0.8, 0.75),
        (0.9, 0.5, 0.3, -0.5),  # protection made it worse
        (0.9, 0.5, 1.0, 1.25),  # the first model gained
    ],
)
def test_relative_reduction(baseline, plain, protected, expected):
    assert wpl_jax.relative_reduction(baseline, plain, protected) == pytest.approx(expected)


def test_relative_reduction_of_arrays():
    baseline, plain, protected = jnp.array([[0.9, 0.8], [0.5, 0.1], [0.9, 0.7]])
    reduction = jax.jit(wpl_jax.relative_reduction)(baseline, plain, protected)
    np.testing.assert_allclose(reduction, [1.0, 6 / 7], rtol=1e-6)


errors = st.lists(st.floats(1.0, 1e3), min_size=2, max_size=12)


def test_forgetting_of_a_hand_computed_epoch():
    lost = forgetting([10.0, 30.0, 20.0, 40.0], [16.0, 29.0, 22.0, 37.0], best=2)
    assert lost.mean == pytest.approx((6 - 1 + 2 - 3) / 4)
    assert lost.best == pytest.approx((6 + 2) / 2)
    assert lost.max == 6
    assert lost.share == 0.5
    assert lost.rank_correlation == 1
    assert lost.diverged == 0


@given(errors, st.floats(-0.5, 50.0))
def test_a_loss_that_all_share_is_their_mean_best_and_maximum(err1, shift):
    lost = forgetting(err1, np.array(err1) + shift)
    np.testing.assert_allclose((lost.mean, lost.best, lost.max), shift, atol=1e-9)


@given(errors, st.randoms())
def test_forgetting_depends_on_no_order(err1, random):
    err2 = [error + i for i, error in enumerate(err1)]
    pairs = list(zip(err1, err2, strict=True))
    random.shuffle(pairs)
    if len(set(err1)) == len(err1):  # among equals, which are the best is arbitrary
        np.testing.assert_allclose(
            forgetting(*zip(*pairs, strict=True)), forgetting(err1, err2), rtol=1e-9
        )


def test_the_rank_correlation_is_of_the_orders_alone():
    err1 = np.array([3.0, 1.0, 2.0, 5.0])
    assert forgetting(err1, np.exp(err1)).rank_correlation == 1
    assert forgetting(err1, -err1).rank_correlation == -1
    assert np.isnan(forgetting(err1, np.ones(4)).rank_correlation)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_diverged_is_counted_and_left_out(bad):
    lost = forgetting([1.0, bad, 3.0, 4.0], [2.0, 5.0, 3.0, bad])
    assert lost == forgetting([1.0, 3.0], [2.0, 3.0])._replace(diverged=2)
    nothing = forgetting([bad], [1.0])
    assert nothing.diverged == 1
    assert np.isnan(nothing[:5]).all()


def test_errors_of_different_epochs_are_refused():
    with pytest.raises(ValueError, match=r"one shape, \(architectures,\), got \(2,\), \(3,\)"):
        forgetting([1.0, 2.0], [1.0, 2.0, 3.0])
