"""Flags are chosen by the error at the end of trials, and never those that fail."""

import numpy as np
import pytest

from experiments.grid.choosing import choose, late_error
from experiments.grid.plan import Searched


def found(*errors, diverged=0):
    """A search with these errors; so many architectures of its last epoch have diverged."""
    metrics = {
        "epoch": np.arange(1.0, len(errors) + 1),
        "err2_mean": np.array(errors, np.float64),
        "diverged": np.array([9] + [0] * (len(errors) - 2) + [diverged], np.float64),
    }
    return Searched(metrics, {})


def test_the_last_quarter_of_the_epochs_counts():
    assert late_error(found(9, 9, 9, 9, 9, 9, 1, 3)) == 2
    assert late_error(found(9, 9, 9, 3, 1)) == 2  # a quarter of five is more than one
    assert late_error(found(9, 9, 1)) == 1
    assert np.isnan(late_error(found(9, 9, 9, 1, diverged=1)))


@pytest.mark.parametrize(
    ("candidates", "chosen"),
    [
        ([[5, 7], [6, 5], [1, 90]], 1),
        ([[5, 7], [1, None]], 0),
        ([[5, 7], [1, np.nan]], 0),
        ([[5], [5]], 0),
        ([[None], [np.nan]], None),
    ],
)
def test_the_lowest_mean_over_seeds_is_chosen(candidates, chosen):
    runs = [[None if e is None else found(99, 99, 99, e) for e in of] for of in candidates]
    assert choose(runs) == chosen


def test_one_that_diverged_is_not_chosen():
    assert choose([[found(9, 9, 9, 1, diverged=1)], [found(9, 9, 9, 8)]]) == 1
