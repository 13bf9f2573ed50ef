"""Statistics of rankings, beside scipy's and beside resamples that are written out."""

import itertools

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st
from scipy import stats

from experiments.ranking import statistics
from experiments.ranking.statistics import STATISTICS

WHOLE = {
    "kendall": lambda e, a: stats.kendalltau(-stats.rankdata(e), a).statistic,
    "spearman": lambda e, a: stats.spearmanr(-stats.rankdata(e), a).statistic,
    "kendall_better_half": lambda e, a: WHOLE["kendall"](
        e[a >= np.median(a)], a[a >= np.median(a)]
    ),
    "precision_top_5": lambda e, a: np.isin(
        np.argsort(e)[: -(-len(e) // 20)], np.argsort(-a)[: -(-len(e) // 20)]
    ).mean(),
    "accuracy_of_best": lambda e, a: a[np.nanargmin(e)],
    "regret": lambda e, a: a.max() - a[np.nanargmin(e)],
}


def of_table(name, errors, accuracy):
    return STATISTICS[name](errors, accuracy)(np.ones((len(errors), 1)))[0]


def table(n, seed=0, digits=6):
    """Errors and accuracies that agree somewhat."""
    rng = np.random.default_rng(seed)
    accuracy = rng.normal(size=n)
    errors = rng.normal(size=n) - accuracy
    return errors.round(digits), accuracy.round(digits)


@pytest.mark.parametrize("name", STATISTICS)
@pytest.mark.parametrize("n", [3, 40, 333])
def test_of_a_table_they_are_what_they_say(name, n):
    errors, accuracy = table(n)
    found, expected = of_table(name, errors, accuracy), WHOLE[name](errors, accuracy)
    np.testing.assert_allclose(found, expected, atol=1e-12)
    np.testing.assert_allclose(of_table(name, np.exp(errors), accuracy), expected, atol=1e-12)


@pytest.mark.parametrize("name", ["kendall", "spearman", "kendall_better_half"])
def test_equal_numbers_share_a_rank_as_in_scipy(name):
    for seed in range(5):
        errors, accuracy = table(60, seed, digits=0)
        expected = WHOLE[name](errors, accuracy)
        np.testing.assert_allclose(of_table(name, errors, accuracy), expected, atol=1e-12)


@pytest.mark.parametrize("name", STATISTICS)
def test_an_error_that_is_nan_is_the_worst(name):
    errors, accuracy = table(50)
    worst = errors.copy()
    errors[[3, 7]], worst[[3, 7]] = np.nan, 1e9
    assert of_table(name, errors, accuracy) == of_table(name, worst, accuracy)
    errors[5], worst[5] = np.inf, 1e8
    assert of_table(name, errors, accuracy) == of_table(name, worst, accuracy)


@pytest.mark.parametrize("name", ["precision_top_5", "accuracy_of_best", "regret"])
def test_of_equal_numbers_they_are_means_over_all_orders(name):
    rng = np.random.default_rng(0)
    for _ in range(5):
        errors, accuracy = (
            rng.integers(0, 2, 24).astype(float),
            rng.integers(0, 3, 24).astype(float),
        )
        values = [
            WHOLE[name](errors + 0.1 * rng.random(24), accuracy + 1e-9 * rng.random(24))
            for _ in range(3_000)
        ]
        error = 4 * np.std(values) / np.sqrt(len(values)) + 1e-8
        np.testing.assert_allclose(of_table(name, errors, accuracy), np.mean(values), atol=error)


@pytest.mark.parametrize("constant", [0.0, np.nan, np.inf])
def test_who_predicts_nothing_chooses_at_random(constant):
    _, accuracy = table(40)
    found = {name: of_table(name, np.full(40, constant), accuracy) for name in STATISTICS}
    assert found["kendall"] == found["spearman"] == found["kendall_better_half"] == 0
    assert found["precision_top_5"] == pytest.approx(0.05)
    assert found["accuracy_of_best"] == pytest.approx(accuracy.mean())
    assert found["regret"] == pytest.approx(accuracy.max() - accuracy.mean())


@pytest.mark.parametrize("digits", [0, 6])
@pytest.mark.parametrize("name", sorted(STATISTICS.keys() - {"kendall", "kendall_better_half"}))
def test_of_a_resample_they_are_those_of_its_table(name, digits):
    errors, accuracy = table(70, digits=digits)
    drawn = np.random.default_rng(1).integers(70, size=(9, 70))
    weights = np.stack([np.bincount(row, minlength=70) for row in drawn], 1).astype(float)
    found = STATISTICS[name](errors, accuracy)(weights)
    for value, row in zip(found, drawn, strict=True):
        np.testing.assert_allclose(value, of_table(name, errors[row], accuracy[row]), atol=1e-9)


@hypothesis.settings(deadline=None, max_examples=50)
@hypothesis.given(
    st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=2, max_size=12)
)
def test_tau_counts_pairs(pairs):
    errors, accuracy = np.array(pairs, np.float64).T
    signs = [
        (np.sign(f - e), np.sign(a - b))
        for (e, a), (f, b) in itertools.product(zip(errors, accuracy, strict=True), repeat=2)
    ]
    square = sum(x != 0 for x, _ in signs) * sum(y != 0 for _, y in signs)
    expected = sum(x * y for x, y in signs) / np.sqrt(square) if square else 0
    np.testing.assert_allclose(of_table("kendall", errors, accuracy), expected, atol=1e-12)


@pytest.mark.parametrize("digits", [1, 6])
def test_tau_of_resamples_is_right_to_first_order(digits):
    n = 400
    errors, accuracy = table(n, digits=digits)
    drawn = np.random.default_rng(1).integers(n, size=(200, n))
    weights = np.stack([np.bincount(row, minlength=n) for row in drawn], 1).astype(float)
    found = statistics.kendall(errors, accuracy)(weights)
    exact = np.array([WHOLE["kendall"](errors[row], accuracy[row]) for row in drawn])
    assert np.abs(found - exact).max() < 4 / n < exact.std() / 2
    np.testing.assert_allclose(found.std(), exact.std(), rtol=0.05)


def test_intervals_cover_what_they_should():
    """Of tables drawn from a larger one, about 95 % have its τ in their interval."""
    errors, accuracy = table(20_000)
    truth = stats.kendalltau(-errors, accuracy).statistic
    rng, covered = np.random.default_rng(2), 0
    for seed in range(60):
        some = rng.choice(len(errors), 200, replace=False)
        estimates = statistics.estimates(errors[some], accuracy[some], resamples=400, seed=seed)
        assert all(e.low <= e.high for e in estimates.values())
        covered += estimates["kendall"].low <= truth <= estimates["kendall"].high
    assert 51 <= covered <= 60


def test_intervals_are_the_same_for_the_same_seed():
    errors, accuracy = table(60)
    once = statistics.estimates(errors, accuracy, resamples=50)
    assert once == statistics.estimates(errors, accuracy, resamples=50)
    assert once != statistics.estimates(errors, accuracy, resamples=50, seed=1)
    for name, estimate in once.items():
        assert estimate.value == of_table(name, errors, accuracy)


def test_normal_scores():
    scores = statistics.normal_scores(np.array([3.0, np.nan, 1.0, 3.0]))
    assert scores[2] == pytest.approx(stats.norm.ppf((1 - 3 / 8) / 4.25))
    assert scores[0] == scores[3] == pytest.approx(0)
    assert scores[1] == pytest.approx(-scores[2])
