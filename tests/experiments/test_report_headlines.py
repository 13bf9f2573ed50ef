"""What the page of runs shows of each kind of run."""

from pathlib import Path

import numpy as np
from report_summaries import SUMMARIES

from experiments.report import __main__ as report
from experiments.report.headlines import headline
from experiments.report.runs import Run, find

RESULTS = Path(report.__file__).parents[1] / "results"


def tables_of(summary):
    """By title, each row's part, and its cells' texts by column."""
    found = headline(Run("a", summary))
    return {
        title: {row.part: {n: c.text for n, c in row.cells.items() if c.text} for row in rows}
        for title, rows in found.tables.items()
    }


def test_headline_of_a_search():
    assert tables_of(SUMMARIES["search"]) == {
        "": {
            "": {
                "forgetting, mean": "1.50",
                "forgetting, best 5": "2.50",
                "forgetting, max": "9.00",
                "τ within the epoch": "0.40",
                "err2": "47.00",
                "best perplexity": "42.12",
                "parameters": "30,900",
                "epochs": "6",
                "time": "1:02:03",
            }
        }
    }


def test_headline_of_a_final_training_is_in_percent_where_errors_are_shares():
    found = headline(Run("a", SUMMARIES["final"]))
    assert found.kind == "Final trainings (error rate, %)"
    (row,) = tables_of(SUMMARIES["final"])[""].values()
    assert row == {"validation": "38.0", "test": "40.5", "parameters": "24,318", "epochs": "2"}


def test_headline_of_a_grid_is_its_arms_and_how_they_differ():
    measured, changed = tables_of(SUMMARIES["grid"]).values()
    assert measured == {
        "plain": {
            "runs": "2",
            "err2": "60.0 ± 1.0",
            "test": "50.0 ± 1.0",
            "τ with the truth, by error rate": "0.50",
        },
        "WPL": {"runs": "2", "err2": "61.0 ± 1.0"},
        "enas": {"runs": "3", "test": "52.0 ± 1.0"},
    }
    assert changed == {"WPL": {"err2": "(1.0 ± 2.0)"}}
    assert headline(Run("a", SUMMARIES["grid"])).kind == "Grids of searches (error rate, %)"


def test_headline_of_two_models():
    accuracies, differences = tables_of(SUMMARIES["two_models"]).values()
    assert accuracies["A converged"] == {
        "A before": "96.8 ± 0.4",
        "A, plain": "52.5 ± 20.0",
        "A, WPL": "97.0 ± 1.0",
        "B, plain": "94.4 ± 1.0",
        "B, WPL": "95.0 ± 1.0",
    }
    assert differences["A converged"] == {
        "A, WPL − plain": "44.5 ± 20.0",
        "B, WPL − plain": "(0.6 ± 1.0)",
    }


def test_headline_of_importances():
    (rows,) = tables_of(SUMMARIES["importances"]).values()
    assert rows["one head: SI"] == {
        "mean": "85.0 ± 1.0",
        "first task": "90.0 ± 1.0",
        "last task": "80.0 ± 1.0",
        "forgotten": "10.0 ± 1.0",
        "beyond the L2 anchor": "(0.5 ± 1.0)",
        "strength": "10",
    }


def test_headline_of_anything_else_is_all_its_numbers():
    assert tables_of(SUMMARIES["other"]) == {"": {"": {"score.here": "0.5"}}}


def test_the_projects_own_results_have_headlines():
    """What the scripts write is what is read here."""
    runs, left_out = find([RESULTS])
    assert left_out == []
    columns = {
        "Grids of searches": {"forgetting, mean", "τ within the epoch", "err2", "runs"},
        "Final trainings": {"validation", "test", "parameters", "epochs"},
        "Importances": {"mean", "first task", "last task", "beyond the L2 anchor"},
        "Searches": {"forgetting, mean", "τ within the epoch", "best perplexity", "parameters"},
        "Two models": {"A before", "A, plain", "A, WPL", "B, plain", "B, L2 anchor", "B, frozen"},
    }
    seen = set()
    for run in runs:
        kind = headline(run).kind.partition(" (")[0]
        first = next(iter(next(iter(tables_of(run.summary).values())).values()))
        assert columns[kind] <= set(first), run.name
        seen.add(kind)
    assert seen == set(columns)


def test_curves_of_two_models_are_at_the_chosen_strength():
    curves = np.arange(2 * 3 * 4, dtype=np.float32).reshape(2, 3, 4) / 100
    arrays = {
        "methods": np.array(["plain", "WPL", "WPL"]),
        "strengths": np.array([0.0, 1.0, 100.0]),
        "A converged/curve_a": curves,
    }
    found = headline(Run("a", SUMMARIES["two_models"], arrays=arrays)).curves
    assert list(found) == ["A's accuracy (%), A converged"]
    by_method = found["A's accuracy (%), A converged"]
    for method, place in (("plain", 0), ("WPL", 2)):
        np.testing.assert_array_equal(by_method[method].x, [0, 50, 100, 150])
        np.testing.assert_allclose(by_method[method].y, 100 * curves[:, place].mean(0))


def test_curves_of_a_grid_are_means_of_what_was_measured():
    values = np.array([[1.0, 2.0, np.nan], [3.0, np.nan, np.nan]])
    arrays = {"plain/epoch": np.arange(1, 4), "plain/reward": values}
    found = headline(Run("a", SUMMARIES["grid"], arrays=arrays)).curves
    np.testing.assert_array_equal(found["reward"]["plain"].y, [2.0, 2.0, np.nan])
