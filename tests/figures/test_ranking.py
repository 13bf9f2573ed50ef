"""Figures of rankings show the numbers that they are given."""

import numpy as np
import pytest

from wpl_jax import figures

COLORS = {"plain": "tab:blue", "WPL": "tab:red"}
BASELINES = {"number of parameters": 0.577, "convolutions": 0.614}
EPOCHS = np.arange(10, 60, 10)


def runs(seeds=3):
    rng = np.random.default_rng(0)
    return {name: rng.uniform(0.3, 0.6, (seeds, len(EPOCHS))) for name in COLORS}


def inside(figure):
    """Whether all texts are within the figure."""
    figure.draw_without_rendering()
    bounds = figure.bbox.padded(0.5)
    boxes = [ax.get_tightbbox() for ax in figure.axes]
    return all(bounds.contains(b.x0, b.y0) and bounds.contains(b.x1, b.y1) for b in boxes)


def test_predicted_against_true():
    rng = np.random.default_rng(0)
    accuracy = np.append(rng.uniform(10, 94, 99), 100.0)
    errors = {"error rate": rng.uniform(0, 1, 100), "cross-entropy": rng.uniform(0, 3, 100)}
    errors["error rate"][:3] = np.nan, np.inf, 0
    figure = figures.predicted_against_true(errors, accuracy)
    assert [ax.get_xlabel() for ax in figure.axes] == list(errors)
    for ax, values in zip(figure.axes, errors.values(), strict=True):
        (points,) = ax.collections
        there = np.isfinite(values)
        shown, expected = points.get_offsets(), np.stack([values, 100 - accuracy], 1)[there]
        expected[expected[:, 1] == 0, 1] = 0.01
        np.testing.assert_allclose(sorted(shown.tolist()), sorted(expected.tolist()))
        density = points.get_array()
        assert (np.diff(density) >= 0).all()  # the densest on top
        low, high = ax.get_ylim()
        assert low > high  # the most accurate above
    assert inside(figure)


@pytest.mark.parametrize("values", [np.full(4, np.nan), np.full(4, 0.5)])
def test_predictions_that_are_missing_or_equal_are_drawn(values):
    figure = figures.predicted_against_true({"error rate": values}, np.full(4, 70.0))
    assert inside(figure)


@pytest.mark.parametrize("seeds", [1, 5])
def test_tau_over_epochs(seeds):
    values = runs(seeds)
    values["WPL"][:, 0] = np.nan
    values["plain"][0, 1] = np.nan
    figure = figures.tau_curves(values, EPOCHS, COLORS, BASELINES)
    (ax,) = figure.axes
    bold = {line.get_color(): line for line in ax.lines if line.get_linewidth() > 2}
    for name, color in COLORS.items():
        thin = [x for x in ax.lines if x.get_color() == color and x.get_linewidth() < 1]
        for line, seed in zip(thin, values[name], strict=True):  # no gap where others are measured
            found = np.isfinite(seed)
            np.testing.assert_array_equal(line.get_xdata(), EPOCHS[found])
            np.testing.assert_array_equal(line.get_ydata(), seed[found])
        known = np.isfinite(values[name]).any(0)
        np.testing.assert_array_equal(bold[color].get_xdata(), EPOCHS[known])
        means = np.nanmean(values[name][:, known], 0)
        np.testing.assert_allclose(bold[color].get_ydata(), means)
    assert {text.get_text() for text in ax.texts} == {*COLORS, *BASELINES}
    heights = [line.get_ydata()[0] for line in ax.lines if line.get_linestyle() == ":"]
    assert heights == list(BASELINES.values())
    assert inside(figure)


def test_methods_beside_baselines():
    values = {"plain": np.array([0.4, 0.5, 0.45, np.nan]), "WPL": np.array([0.6])}
    figure = figures.rankings(values, BASELINES, "Kendall's τ", COLORS)
    (ax,) = figure.axes
    assert [label.get_text() for label in ax.get_yticklabels()] == [*values, *BASELINES]
    of_plain = [line for line in ax.lines if line.get_color() == "tab:blue"]
    seeds, mean, interval = (line.get_xdata() for line in of_plain)
    np.testing.assert_allclose(seeds, [0.4, 0.5, 0.45])
    np.testing.assert_allclose(mean, 0.45)
    assert interval[0] < 0.4 < 0.5 < interval[1]
    of_wpl = [line for line in ax.lines if line.get_color() == "tab:red"]
    assert [line.get_xdata().tolist() for line in of_wpl] == [[0.6], [0.6]]  # without an interval
    dashed = [line.get_xdata()[0] for line in ax.lines if line.get_linestyle() == "--"]
    assert dashed == list(BASELINES.values())
    assert inside(figure)
