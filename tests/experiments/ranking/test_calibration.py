"""A regression on few architectures predicts all of them."""

import numpy as np
from scipy import stats

from experiments.ranking import calibration

ACTIONS = np.indices((3,) * 5).reshape(5, -1).T
CHOSEN = np.random.default_rng(0).permutation(len(ACTIONS))[:60]


def few(errors):
    """Those of the chosen architectures, NaN for others."""
    found = np.full(len(errors), np.nan)
    found[CHOSEN] = errors[CHOSEN]
    return found


def agreement(predicted, errors):
    others = np.setdiff1d(np.arange(len(errors)), CHOSEN)
    return stats.kendalltau(predicted[others], errors[others]).statistic


def true_errors():
    """Of operations with effects of their own, and two that are good only together."""
    effects = np.random.default_rng(1).normal(size=(5, 3))
    sums = effects[np.arange(5), ACTIONS].sum(1)
    return np.exp(sums - 3.0 * (ACTIONS[:, 0] == 1) * (ACTIONS[:, 1] == 1))


def test_operations_alone_predict():
    errors = true_errors()
    assert agreement(calibration.predicted([], ACTIONS, few(errors)), errors) > 0.8


def test_what_a_search_predicts_is_used_as_far_as_it_is_right():
    rng = np.random.default_rng(2)
    own = rng.normal(size=len(ACTIONS))  # of each architecture, which no operations explain
    errors = true_errors() * np.exp(own)
    search = own + 0.5 * rng.normal(size=len(ACTIONS))
    both, of_operations, with_useless = (
        agreement(calibration.predicted(orders, ACTIONS, few(errors)), errors)
        for orders in ([search], [], [rng.normal(size=len(ACTIONS))])
    )
    assert both > max(agreement(search, errors), of_operations) + 0.1
    assert with_useless > of_operations - 0.05


def test_only_the_order_of_errors_counts():
    errors, order = true_errors(), np.arange(len(ACTIONS))[::-1]
    orders = calibration.predicted([order], ACTIONS, few(errors))
    np.testing.assert_array_equal(
        calibration.predicted([np.exp(order / 100)], ACTIONS, few(errors**3)), orders
    )


def test_errors_that_are_all_equal_predict_nothing():
    found = calibration.predicted([], ACTIONS, few(np.full(len(ACTIONS), 90.0)))
    np.testing.assert_allclose(found, found[0], atol=1e-6)
