"""Figures show the numbers that they are given."""

import numpy as np
import pytest
from matplotlib.figure import Figure

from wpl_jax import figures
from wpl_jax.forgetting import mean_interval

STYLES = {"A, plain": {"color": "tab:blue"}, "B, plain": {"color": "tab:red", "linestyle": "--"}}


@pytest.fixture
def values():
    return np.random.default_rng(0).uniform(size=(4, 5))


def legend_of(figure):
    return [text.get_text() for text in figure.legends[0].get_texts()]


def test_band_draws_the_mean_and_its_interval(values):
    ax = Figure().subplots()
    figures.band(ax, np.arange(5), values, color="tab:blue")
    mean, low, high = mean_interval(values)
    np.testing.assert_allclose(ax.lines[0].get_ydata(), mean)
    (path,) = ax.collections[0].get_paths()
    np.testing.assert_allclose(path.vertices[:, 1].min(), low.min())
    np.testing.assert_allclose(path.vertices[:, 1].max(), high.max())


def test_training_curves_have_a_panel_a_condition_and_one_legend(values):
    panels = {title: {"A, plain": values, "B, plain": values / 2} for title in ("one", "two")}
    figure = figures.training_curves(panels, np.arange(5), STYLES, {"one": values[:, 0]})
    assert [ax.get_title() for ax in figure.axes] == ["one", "two"]
    assert legend_of(figure) == ["A before B trains", "A, plain", "B, plain"]
    baseline, a, b = figure.axes[0].lines
    np.testing.assert_allclose(baseline.get_ydata(), 100 * values[:, 0].mean())
    np.testing.assert_allclose(a.get_ydata(), 100 * values.mean(0))
    np.testing.assert_allclose(b.get_ydata(), 50 * values.mean(0))


def test_strength_curves_have_a_logarithmic_axis_and_their_references(values):
    strengths = 10.0 ** np.arange(5)
    figure = figures.strength_curves(
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
    figure = figures.trade_off(
        {"one": {"A, plain": (values, values / 2)}}, {"one": values[:, 0]}, STYLES
    )
    points = figure.axes[0].containers[0].lines[0]
    np.testing.assert_allclose(points.get_xdata(), 100 * values.mean(0))
    np.testing.assert_allclose(points.get_ydata(), 50 * values.mean(0))


@pytest.mark.parametrize("marked", [(1, 2), None])
def test_heat_maps_write_every_number_and_frame_the_marked_one(marked):
    numbers = np.array([[1.0, -20.0, 3.0], [40.0, -0.3, 60.0]])
    figure = figures.heat_maps(
        {"one": numbers}, (0.1, 0.2), (0.0, 0.5, 0.9), "rate", "momentum", "points", marked
    )
    ax = figure.axes[0]
    assert [text.get_text() for text in ax.texts] == ["1", "-20", "3", "40", "0", "60"]
    assert [label.get_text() for label in ax.get_yticklabels()] == ["0.1", "0.2"]
    assert [label.get_text() for label in ax.get_xticklabels()] == ["0", "0.5", "0.9"]
    frames = [(patch.get_x() + 0.47, patch.get_y() + 0.47) for patch in ax.patches]
    assert frames == ([] if marked is None else [pytest.approx(marked[::-1])])


def test_band_is_of_the_seeds_that_were_measured(values):
    values[0, 1] = values[1:, 2] = values[:, 3] = np.nan
    ax = Figure().subplots()
    figures.band(ax, np.arange(5), values)
    expected = [mean_interval(values[:, 0]), mean_interval(values[1:, 1]), values[0, 2], np.nan]
    drawn = ax.lines[0].get_ydata()
    np.testing.assert_allclose(drawn[:4], [expected[0][0], expected[1][0], *expected[2:]])
    pieces = [path.vertices for path in ax.collections[0].get_paths()]
    assert [set(piece[:, 0]) for piece in pieces] == [{0.0, 1.0}, {4.0}]
    for x, (_, low, high) in enumerate(expected[:2]):
        heights = pieces[0][pieces[0][:, 0] == x, 1]
        np.testing.assert_allclose((heights.min(), heights.max()), (low, high))


def test_band_of_one_seed_is_a_line(values):
    ax = Figure().subplots()
    figures.band(ax, np.arange(5), values[:1])
    np.testing.assert_allclose(ax.lines[0].get_ydata(), values[0])
    assert not ax.collections[0].get_paths()


def test_band_breaks_where_the_mean_is_infinite(values):
    values[1, 2] = np.inf
    ax = Figure().subplots()
    figures.band(ax, np.arange(5), values)
    assert np.isinf(ax.lines[0].get_ydata()[2])
    assert len(ax.collections[0].get_paths()) == 2


KEYS = ("forgetting_mean", "forgetting_best5", "forgetting_max", "reward")
EPOCHS = np.arange(1, 9)


def searches(seeds, labels=tuple(STYLES)):
    rng = np.random.default_rng(1)
    return {
        label: {key: rng.uniform(-5, 5, size=(seeds, len(EPOCHS))) for key in KEYS}
        for label in labels
    }


@pytest.mark.parametrize("seeds", [1, 3])
def test_search_curves_have_a_panel_a_measure(seeds):
    runs = searches(seeds)
    runs["B, plain"]["forgetting_best5"][:, :2] = np.nan
    figure = figures.search_curves(runs, EPOCHS, STYLES, warmup=3, error_name="perplexity")
    assert [ax.get_title() for ax in figure.axes] == [
        "forgetting, mean over all",
        "forgetting, mean over the best 5",
        "forgetting, maximum",
        "reward",
    ]
    for ax, key in zip(figure.axes, KEYS, strict=True):
        curves = dict(zip(runs, ax.lines, strict=False))
        for label, curve in curves.items():
            np.testing.assert_allclose(curve.get_ydata(), runs[label][key].mean(0))
        assert len(ax.collections[0].get_paths()) == (seeds > 1)
        assert ax.lines[2].get_xdata() == [3.5, 3.5]
        assert ax.get_xlim()[0] < 1 < 8 < ax.get_xlim()[1]
        assert ax.get_xlabel() == "epoch"
    for ax in figure.axes[:3]:
        assert ax.lines[3].get_ydata() == [0, 0]
        assert ax.get_ylabel() == "rise in perplexity, err2 − err1"
        assert ax.get_yscale() == "linear"
    assert legend_of(figure) == ["A, plain", "B, plain", "end of the warm-up"]


@pytest.mark.parametrize("warmup", [0, len(EPOCHS)])
def test_search_curves_show_no_end_of_a_warm_up_that_has_none(warmup):
    figure = figures.search_curves(searches(2), EPOCHS, STYLES, warmup, "perplexity")
    assert legend_of(figure) == ["A, plain", "B, plain"]


@pytest.mark.parametrize("scale", [1.0, 1e-4])
def test_one_large_difference_does_not_hide_the_others(scale):
    runs = searches(1, labels=("A, plain",))
    values = scale * np.array([[-700.0, 4, 5, 3, -4, 5, 4, 6]])
    runs["A, plain"]["forgetting_max"] = values
    figure = figures.search_curves(runs, EPOCHS, STYLES, 0, "error rate")
    figure.draw_without_rendering()
    ax = figure.axes[2]
    low, high = ax.get_ylim()
    assert low < values.min()
    assert high > values.max()
    heights = ax.transAxes.inverted().transform(ax.transData.transform([(0, 0), (0, 5 * scale)]))
    assert heights[1, 1] - heights[0, 1] > 0.1
    ticks = [f"{scale * tick:g}".replace("-", "−") for tick in (-1000, -100, -10, -5, 0, 5, 10)]
    shown = [label.get_text() for label in ax.get_yticklabels()]
    assert [tick for tick in shown if tick in ticks] == ticks


def test_the_warm_up_and_wide_intervals_do_not_hide_the_differences():
    runs = searches(3)
    for metrics in runs.values():
        metrics["forgetting_mean"][:, :3] = 700
    runs["A, plain"]["forgetting_mean"][:, 5] = [-100, 0, 100]
    ax = figures.search_curves(runs, EPOCHS, STYLES, 3, "perplexity").axes[0]
    means = [metrics["forgetting_mean"].mean(0)[3:] for metrics in runs.values()]
    low, high = ax.get_ylim()
    assert low < np.min(means) < np.max(means) < high
    assert high - low < 1.5 * np.ptp([0, *np.ravel(means)])


def test_ticks_stay_few_when_differences_explode():
    runs = searches(1, labels=("A, plain",))
    runs["A, plain"]["forgetting_mean"][0, 4] = 1e24
    figure = figures.search_curves(runs, EPOCHS, STYLES, 0, "perplexity")
    low, high = figure.axes[0].get_ylim()
    assert high > 1e24
    assert sum(low < tick < high for tick in figure.axes[0].get_yticks()) < 16


def run_metrics(epochs=8):
    rng = np.random.default_rng(2)
    keys = (*KEYS, "err1_mean", "err2_mean", "err2_best", "kendall_tau", "forgetting_share")
    metrics = {key: rng.uniform(1, 2, size=epochs) for key in (*keys, "entropy", "train_loss")}
    return metrics | {"epoch": np.arange(epochs)}


def test_run_curves_draw_every_metric_once():
    metrics = run_metrics()
    figure = figures.run_curves(metrics, "error rate")
    assert figure.axes[0].get_title() == "validation error rate"
    assert figure.axes[1].get_ylabel() == "rise in error rate, err2 − err1"
    drawn = [line.get_ydata() for ax in figure.axes for line in ax.lines]
    for key in metrics.keys() - {"epoch"}:
        assert sum(np.array_equal(metrics[key], values) for values in drawn) == 1, key
    assert len(drawn) == len(metrics)  # and a line at 0
    labels = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
    assert labels == [
        "err1, after own training: mean",
        "err2, at the end of the epoch: mean",
        "err2: best",
    ]


def test_run_curves_say_what_was_not_measured():
    metrics = run_metrics()
    metrics["entropy"][:] = np.nan
    metrics["kendall_tau"][3] = np.nan
    figure = figures.run_curves(metrics, "perplexity")
    said = {ax.get_title(): [text.get_text() for text in ax.texts] for ax in figure.axes}
    assert said.pop("controller") == ["not measured"]
    assert not any(said.values())


def test_run_curves_have_a_logarithmic_scale_for_errors_over_decades():
    metrics = run_metrics()
    assert figures.run_curves(metrics, "perplexity").axes[0].get_yscale() == "linear"
    metrics["err1_mean"][0], metrics["err2_mean"][1] = 9000.0, np.inf
    assert figures.run_curves(metrics, "perplexity").axes[0].get_yscale() == "log"


@pytest.mark.parametrize("epochs", [1, 8, 150])
def test_texts_of_search_figures_are_inside(epochs):
    metrics = run_metrics(epochs)
    metrics["forgetting_max"][0] = 2000
    runs = {label: {key: metrics[key][None] for key in KEYS} for label in STYLES}
    for figure in (
        figures.run_curves(metrics, "perplexity"),
        figures.search_curves(runs, metrics["epoch"], STYLES, 3, "perplexity"),
    ):
        figure.draw_without_rendering()
        bounds = figure.bbox.padded(0.5)
        for ax in figure.axes:
            box = ax.get_tightbbox()
            assert bounds.contains(box.x0, box.y0)
            assert bounds.contains(box.x1, box.y1)
