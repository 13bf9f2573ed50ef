"""Figures show the numbers that they are given."""

import numpy as np
import pytest
from matplotlib.figure import Figure

from wpl_jax import plotting
from wpl_jax.forgetting import mean_interval

STYLES = {"A, plain": {"color": "tab:blue"}, "B, plain": {"color": "tab:red", "linestyle": "--"}}


@pytest.fixture
def values():
    return np.random.default_rng(0).uniform(size=(4, 5))


def legend_of(figure):
    return [text.get_text() for text in figure.legends[0].get_texts()]


def test_band_draws_the_mean_and_its_interval(values):
    ax = Figure().subplots()
    plotting.band(ax, np.arange(5), values, color="tab:blue")
    mean, low, high = mean_interval(values)
    np.testing.assert_allclose(ax.lines[0].get_ydata(), mean)
    (path,) = ax.collections[0].get_paths()
    np.testing.assert_allclose(path.vertices[:, 1].min(), low.min())
    np.testing.assert_allclose(path.vertices[:, 1].max(), high.max())


def test_training_curves_have_a_panel_a_condition_and_one_legend(values):
    panels = {title: {"A, plain": values, "B, plain": values / 2} for title in ("one", "two")}
    figure = plotting.training_curves(panels, np.arange(5), STYLES, {"one": values[:, 0]})
    assert [ax.get_title() for ax in figure.axes] == ["one", "two"]
    assert legend_of(figure) == ["A before B trains", "A, plain", "B, plain"]
    baseline, a, b = figure.axes[0].lines
    np.testing.assert_allclose(baseline.get_ydata(), 100 * values[:, 0].mean())
    np.testing.assert_allclose(a.get_ydata(), 100 * values.mean(0))
    np.testing.assert_allclose(b.get_ydata(), 50 * values.mean(0))


def test_strength_curves_have_a_logarithmic_axis_and_their_references(values):
    strengths = 10.0 ** np.arange(5)
    figure = plotting.strength_curves(
        {"one": {"A, plain": (strengths, values)}},
        {"one": {"B, plain": values[:, 0]}},
        STYLES,
        xlabel="strength",
    )
    (ax,) = figure.axes
    assert (ax.get_xscale(), ax.get_xlabel()) == ("log", "strength")
    np.testing.assert_allclose(ax.lines[0].get_xdata(), strengths)
    np.testing.assert_allclose(ax.lines[1].get_ydata(), 100 * values[:, 0].mean())


def test_trade_off_puts_a_against_b(values):
    figure = plotting.trade_off(
        {"one": {"A, plain": (values, values / 2)}}, {"one": values[:, 0]}, STYLES
    )
    points = figure.axes[0].containers[0].lines[0]
    np.testing.assert_allclose(points.get_xdata(), 100 * values.mean(0))
    np.testing.assert_allclose(points.get_ydata(), 50 * values.mean(0))


@pytest.mark.parametrize("marked", [(1, 2), None])
def test_heat_maps_write_every_number_and_frame_the_marked_one(marked):
    numbers = np.array([[1.0, -20.0, 3.0], [40.0, -0.3, 60.0]])
    figure = plotting.heat_maps(
        {"one": numbers}, (0.1, 0.2), (0.0, 0.5, 0.9), "rate", "momentum", "points", marked
    )
    ax = figure.axes[0]
    assert [text.get_text() for text in ax.texts] == ["1", "-20", "3", "40", "0", "60"]
    assert [label.get_text() for label in ax.get_yticklabels()] == ["0.1", "0.2"]
    assert [label.get_text() for label in ax.get_xticklabels()] == ["0", "0.5", "0.9"]
    frames = [(patch.get_x() + 0.47, patch.get_y() + 0.47) for patch in ax.patches]
    assert frames == ([] if marked is None else [pytest.approx(marked[::-1])])
