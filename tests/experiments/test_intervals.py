"""What can be told apart by intervals over seeds, and what is in bold."""

import numpy as np
import pytest
from scipy import stats

from experiments.running import intervals

A, B = np.array([1.0, 2.0, 4.0]), np.array([2.0, 3.5, 4.5, 9.0])


def bounds(number):
    return [number["low"], number["high"]]


def test_a_difference_is_paired_where_both_have_seeds():
    found = intervals.difference(intervals.of_seeds(A), intervals.of_seeds(B[:3]))
    expected = stats.ttest_rel(A, B[:3]).confidence_interval()
    np.testing.assert_allclose(bounds(found), expected)


def test_a_difference_is_welchs_where_they_have_not():
    found = intervals.difference(intervals.of_seeds(A), intervals.interval(B))
    expected = stats.ttest_ind(A, B, equal_var=False).confidence_interval()
    np.testing.assert_allclose(bounds(found), expected)
    alone = intervals.difference(intervals.interval(A[:1]), intervals.interval(B))
    assert bounds(alone) == [None, None]
    assert intervals.difference(intervals.interval(A[:0]), intervals.interval(B))["mean"] is None


def test_the_difference_that_could_be_seen_is_seen_in_four_of_five_experiments():
    rng = np.random.default_rng(0)
    number = intervals.interval(np.array([1.0, 4.0, 2.0, 6.0]))
    deviation = np.std([1, 4, 2, 6], ddof=1)
    experiments = rng.normal(intervals.detectable(number), deviation, (4_000, 4))
    told = [intervals.is_above_0(intervals.interval(seeds)) for seeds in experiments]
    assert np.mean(told) == pytest.approx(0.8, abs=0.02)
    assert intervals.detectable(intervals.interval(np.array([1.0]))) is None
    assert intervals.detectable(intervals.interval(np.ones(3))) == 0


@pytest.mark.parametrize("sign", [1, -1])
def test_bold_are_the_best_and_those_that_cannot_be_told_from_it(sign):
    rng = np.random.default_rng(0)
    first, close, far = (sign * (at + 0.1 * rng.normal(size=5)) for at in (1, 1.05, 9))
    numbers = [intervals.of_seeds(far), None, intervals.of_seeds(close), intervals.of_seeds(first)]
    assert intervals.best(numbers, low_is_good=sign > 0) == {2, 3}
    assert intervals.best(numbers[1:], low_is_good=sign > 0) == set()  # nothing to tell apart
    assert intervals.best([None, None], low_is_good=True) == set()


@pytest.mark.parametrize(
    ("plain", "wpl", "share"),
    [
        ([9, 10, 11], [2, 2, 2], 0.8),
        ([-9, 10, 11], [2, 2, 2], None),
        ([-2, -1, -1], [0, 0, 0], None),
    ],
)
def test_a_share_is_stated_only_of_what_is_forgotten(plain, wpl, share):
    of = [intervals.interval(np.array(values, float)) for values in (plain, wpl)]
    assert intervals.reduction(*of) == share


@pytest.mark.parametrize(
    ("errors", "tau"), [(([1, 2], [1, 2]), None), (([1, 2, 3, 9], [4, 5, 6, None]), 1)]
)
def test_a_tau_takes_three_cells_that_were_measured(errors, tau):
    assert intervals.kendall_tau(*errors) == tau
