"""Figures of searches show the numbers that they are given, on a scale on which they are seen."""

import numpy as np
import pytest

from wpl_jax import figures
from wpl_jax.figures import style

COLORS = {"plain": "tab:blue", "WPL": "tab:red"}
KEYS = ("forgetting_mean", "forgetting_best5", "forgetting_max", "reward")
EPOCHS = np.arange(1, 9)


def searches(seeds, labels=tuple(COLORS)):
    rng = np.random.default_rng(1)
    return {
        label: {key: rng.uniform(-5, 5, size=(seeds, len(EPOCHS))) for key in KEYS}
        | {"epoch": EPOCHS}
        for label in labels
    }


def drawn(runs, warmup=0):
    return figures.search_curves(runs, COLORS, warmup, "rise in perplexity", "80 / err2")


@pytest.mark.parametrize("seeds", [1, 3, 4])
def test_search_curves_have_a_row_a_measure(seeds):
    runs = searches(seeds)
    runs["WPL"]["forgetting_best5"][:, :2] = np.nan
    figure = drawn(runs, warmup=3)
    assert "rise in perplexity" in figure.get_suptitle()
    for key, ax in zip(KEYS, figure.axes, strict=True):
        for label, curve in zip(COLORS, ax.lines, strict=False):
            np.testing.assert_allclose(curve.get_ydata(), runs[label][key].mean(0))
            assert curve.get_color() == COLORS[label]
        thin = [c for c in ax.collections if hasattr(c, "get_segments")]
        assert [len(lines.get_segments()) for lines in thin] == ([3, 3] if seeds == 3 else [])
        assert {text.get_text() for text in ax.texts} >= set(COLORS)  # at the ends of the lines
        assert ax.get_xlim()[0] < 1 < 8 < ax.get_xlim()[1]
    for ax in figure.axes[:3]:
        assert list(ax.lines[2].get_ydata()) == [0, 0]
        assert ax.get_yscale() == "linear"
    assert figure.axes[-1].get_xlabel() == "epoch"


def test_searches_of_different_numbers_of_epochs_end_together():
    runs = searches(2)
    runs["WPL"] = {k: v[..., : len(EPOCHS) // 2] for k, v in runs["WPL"].items()}
    figure = drawn(runs, warmup=1)
    for ax in figure.axes:
        assert [line.get_xdata()[-1] for line in ax.lines[:2]] == [100, 100]
        assert not ax.patches  # the warm-up is another share of each
    assert figure.axes[-1].get_xlabel() == "share of the search (%)"


@pytest.mark.parametrize(("warmup", "named"), [(0, False), (3, True), (len(EPOCHS), False)])
def test_the_warm_up_is_grey_where_something_follows_it(warmup, named):
    figure = drawn(searches(2), warmup)
    texts = [text.get_text() for ax in figure.axes for text in ax.texts]
    assert ("warm-up" in texts) == named
    assert all(len(ax.patches) == named for ax in figure.axes)


@pytest.mark.parametrize("scale", [1.0, 1e-4])
def test_one_large_difference_does_not_hide_the_others(scale):
    runs = searches(1, ("plain",))
    values = scale * np.array([[-700.0, 4, 5, 3, -4, 5, 4, 6]])
    runs["plain"]["forgetting_max"] = values
    figure = drawn(runs)
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


def test_the_warm_up_and_a_seed_far_off_do_not_hide_the_differences():
    runs = searches(3)
    for metrics in runs.values():
        metrics["forgetting_mean"][:, :3] = 700
    runs["plain"]["forgetting_mean"][:, 5] = [-100, 0, 100]
    ax = drawn(runs, 3).axes[0]
    means = [metrics["forgetting_mean"].mean(0)[3:] for metrics in runs.values()]
    low, high = ax.get_ylim()
    assert low < np.min(means) < np.max(means) < high
    assert high - low < 2.5 * np.ptp([0, *np.ravel(means)])


def test_ticks_stay_few_when_differences_explode():
    runs = searches(1, ("plain",))
    runs["plain"]["forgetting_mean"][0, 4] = 1e24
    ax = drawn(runs).axes[0]
    low, high = ax.get_ylim()
    assert high > 1e24
    assert sum(low < tick < high for tick in ax.get_yticks()) < 16


def test_a_search_that_is_not_there_has_no_line():
    runs = searches(2)
    for key in KEYS:
        runs["plain"][key][:] = np.nan
    texts = [text.get_text() for text in drawn(runs).axes[0].texts]
    assert texts == ["WPL"]


def run_metrics(epochs=8):
    rng = np.random.default_rng(2)
    keys = (*KEYS, "err1_mean", "err2_mean", "err2_best", "tau_within_epoch", "forgetting_share")
    metrics = {key: rng.uniform(1, 2, size=epochs) for key in (*keys, "entropy", "train_loss")}
    return metrics | {"epoch": np.arange(epochs)}


def test_run_curves_draw_every_metric_once():
    metrics = run_metrics()
    figure = figures.run_curves(metrics, "error rate")
    assert figure.axes[0].get_title() == "validation error rate"
    lines = [line.get_ydata() for ax in figure.axes for line in ax.lines]
    for key in metrics.keys() - {"epoch"}:
        assert sum(np.array_equal(metrics[key], values) for values in lines) == 1, key
    assert len(lines) == len(metrics)  # and a line at 0
    labels = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
    assert labels == ["err1: mean", "err2: mean", "err2: best"]


def test_run_curves_say_what_was_not_measured():
    metrics = run_metrics()
    metrics["entropy"][:] = np.nan
    metrics["tau_within_epoch"][3] = np.nan
    figure = figures.run_curves(metrics, "perplexity")
    said = {ax.get_title(): [text.get_text() for text in ax.texts] for ax in figure.axes}
    assert said.pop("controller's entropy (nats)") == ["not measured"]
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
    one = {key: metrics[key][None] for key in KEYS} | {"epoch": metrics["epoch"]}
    runs = dict.fromkeys(COLORS, one)
    for figure in (
        figures.run_curves(metrics, "perplexity"),
        drawn(runs, 3),
    ):
        figure.draw_without_rendering()
        bounds = figure.bbox.padded(0.5)
        for ax in figure.axes:
            box = ax.get_tightbbox()
            assert bounds.contains(box.x0, box.y0)
            assert bounds.contains(box.x1, box.y1)


def test_forgetting_curves_have_a_panel_a_regime_and_one_scale():
    rng = np.random.default_rng(0)
    panels = {
        rate: {label: rng.normal(size=(2, len(EPOCHS))) for label in COLORS}
        for rate in ("rate=1", "rate=2", "rate=3")
    }
    panels["rate=2"]["WPL"][:, :3] = np.nan
    panels["rate=3"]["WPL"][:] = np.nan
    figure = figures.forgetting_curves(panels, EPOCHS, COLORS, 2, "rise")
    assert [ax.get_title() for ax in figure.axes[:3]] == list(panels)
    assert len({ax.get_ylim() for ax in figure.axes[:3]}) == 1
    for ax, of in zip(figure.axes, panels.values(), strict=False):
        for line, (label, values) in zip(ax.lines, of.items(), strict=False):
            np.testing.assert_allclose(line.get_ydata(), values.mean(0))
            assert line.get_color() == COLORS[label]
    assert {text.get_text() for text in figure.axes[2].texts} >= {"plain"}


def test_names_that_are_methods_have_their_colours_and_no_two_the_same():
    colors = style.colors_of(["plain", "replay", "WPL", "momentum", "L2 anchor", "distillation"])
    assert colors["plain"] == style.METHOD_COLORS["plain"]
    assert len(set(colors.values())) == 6
    assert len(style.colors_of([f"arm {i}" for i in range(20)])) == 20
