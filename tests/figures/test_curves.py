"""Figures show the numbers that they are given."""

import numpy as np
import pytest
from matplotlib.figure import Figure

from wpl_jax import figures
from wpl_jax.figures import style
from wpl_jax.forgetting import mean_interval

COLORS = {"A, plain": "tab:blue", "B, plain": "tab:red"}
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


def texts_of(ax):
    return {text.get_text(): text for text in ax.texts}


@pytest.mark.parametrize("seeds", [2, 3])
def test_band_of_few_seeds_is_a_thin_line_for_each(values, seeds):
    ax = Figure().subplots()
    figures.band(ax, np.arange(5), values[:seeds])
    np.testing.assert_allclose(ax.lines[0].get_ydata(), values[:seeds].mean(0))
    (lines,) = ax.collections
    drawn = [path.vertices[:, 1] for path in lines.get_paths()]
    np.testing.assert_allclose(drawn, values[:seeds])


def test_training_curves_have_a_panel_a_condition_and_names_at_their_ends(values):
    panels = {title: {"A, plain": values, "B, plain": values / 2} for title in ("one", "two")}
    figure = figures.training_curves(panels, np.arange(5), COLORS, {"one": values[:, 0]})
    assert [ax.get_title() for ax in figure.axes] == ["one", "two"]
    assert not figure.legends
    baseline, a, b = figure.axes[0].lines
    np.testing.assert_allclose(baseline.get_ydata(), 100 * values[:, 0].mean())
    np.testing.assert_allclose(a.get_ydata(), 100 * values.mean(0))
    np.testing.assert_allclose(b.get_ydata(), 50 * values.mean(0))
    for ax in figure.axes:
        names = texts_of(ax)
        assert {name: text.get_color() for name, text in names.items()} == COLORS
        for name, values_of in panels["one"].items():
            assert abs(names[name].get_position()[1] - values_of[:, -1].mean()) < 0.2


def test_names_of_lines_that_end_alike_are_apart_and_inside():
    fig, (ax,) = style.panels(1)
    ax.set_ylim(0, 100)
    colors = dict.fromkeys(["one", "two\nlines", "three", "four"], "black")
    ends = [(99.0, "one"), (99.5, "two\nlines"), (100.0, "three"), (20.0, "four")]
    style.label_ends(ax, ends, colors)
    fig.draw_without_rendering()
    boxes = {text.get_text(): text.get_window_extent() for text in ax.texts}
    for name, box in boxes.items():
        assert not any(box.overlaps(other) for n, other in boxes.items() if n != name)
        assert box.y1 <= ax.get_window_extent().y1 + 2
    assert texts_of(ax)["four"].get_position()[1] == pytest.approx(0.2)
    heights = [texts_of(ax)[name].get_position()[1] for name in ("one", "two\nlines", "three")]
    assert heights == sorted(heights)


def test_strength_curves_have_a_logarithmic_axis_and_their_references(values):
    strengths = 10.0 ** np.arange(5)
    figure = figures.strength_curves(
        {"one": {"A, plain": (strengths, values)}},
        {"one": {"B, plain": values[:, 0]}},
        COLORS,
        xlabel="strength",
    )
    (ax,) = figure.axes
    assert (ax.get_xscale(), ax.get_xlabel()) == ("log", "strength")
    np.testing.assert_allclose(ax.lines[0].get_xdata(), strengths)
    np.testing.assert_allclose(ax.lines[1].get_ydata(), 100 * values[:, 0].mean())
    assert set(texts_of(ax)) == set(COLORS)


def test_trade_off_puts_a_against_b_and_writes_the_strengths(values):
    strengths = np.array([0.01, 1, 1e4, 100, 10])
    values[:] = [0.1, 0.4, 0.7, 0.7, 0.71]  # the last three are one place
    values[0] += 0.05
    figure = figures.trade_off(
        {"one": {"A, plain": (strengths, values, values / 2)}},
        {"one": {"B, plain": (values[:, 0], values[:, 1])}},
        {"one": values[:, 0]},
        COLORS,
    )
    (ax,) = figure.axes
    curve, point = (container.lines[0] for container in ax.containers)
    np.testing.assert_allclose(curve.get_xdata(), 100 * values.mean(0))
    np.testing.assert_allclose(curve.get_ydata(), 50 * values.mean(0))
    np.testing.assert_allclose(point.get_xydata(), [100 * values[:, :2].mean(0)])
    assert set(texts_of(ax)) == {"0.01", "1", "$10^{4}$"}
    assert legend_of(figure) == ["A before B trains", "A, plain", "B, plain"]


def test_intervals_of_a_trade_off_end_at_100_percent():
    values = np.array([[0.99], [1.0], [0.9], [1.0]])
    figure = figures.trade_off(
        {"one": {"A, plain": (np.ones(1), values, values)}},
        {"one": {}},
        {"one": values[:, 0]},
        COLORS,
    )
    (container,) = figure.axes[0].containers
    for bars in container.lines[2]:
        assert np.max([segment.max() for segment in bars.get_segments()]) == pytest.approx(100)


@pytest.mark.parametrize("marked", [(1, 2), None])
def test_heat_maps_write_every_number_and_frame_the_marked_one(marked):
    numbers = np.array([[1.0, -20.0, 3.0], [40.0, -0.3, 60.0]])
    figure = figures.heat_maps(
        {"one": numbers}, (0.1, 0.2), (0.0, 0.5, 0.9), "rate", "momentum", "points", marked
    )
    ax = figure.axes[0]
    assert [text.get_text() for text in ax.texts] == ["1", "−20", "3", "40", "0", "60"]
    assert [label.get_text() for label in ax.get_yticklabels()] == ["0.1", "0.2"]
    assert [label.get_text() for label in ax.get_xticklabels()] == ["0", "0.5", "0.9"]
    frames = [(patch.get_x() + 0.47, patch.get_y() + 0.47) for patch in ax.patches]
    assert frames == ([] if marked is None else [pytest.approx(marked[::-1])])


def test_heat_maps_have_a_dash_where_there_is_no_number_and_other_names():
    numbers = {"one": np.array([[1.04, np.nan, -0.04]]), "two": np.array([[2.0, 3.0, 999.0]])}
    flags = {"digits": 1, "diverging": False}
    names = ("first",), ("a", "b", "c"), "", "choice", "error"
    figure = figures.heat_maps(numbers, *names, **flags)
    one, two, _ = figure.axes
    assert [text.get_text() for text in one.texts] == ["1.0", "–", "0.0"]
    assert [text.get_text() for text in two.texts] == ["2.0", "3.0", "999.0"]
    assert [label.get_text() for label in one.get_xticklabels()] == ["a", "b", "c"]
    (image,) = one.images
    assert image.get_clim()[0] == -0.04
    empty = figures.heat_maps({"one": np.full((1, 3), np.nan)}, *names)
    assert [text.get_text() for text in empty.axes[0].texts] == ["–"] * 3


def test_a_number_that_is_far_off_does_not_make_the_others_look_alike():
    numbers = np.append(np.arange(20.0), 1e6).reshape(3, 7)
    figure = figures.heat_maps({"one": numbers}, "abc", "defghij", "", "", "")
    (image,) = figure.axes[0].images
    assert 20 < image.get_clim()[1] == -image.get_clim()[0] < 50
    assert image.get_cmap().name == "RdBu_r"
    figure = figures.heat_maps({"one": numbers}, "abc", "defghij", "", "", "", high_is_good=True)
    assert figure.axes[0].images[0].get_cmap().name == "RdBu"


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
    assert not ax.collections


def test_band_breaks_where_the_mean_is_infinite(values):
    values[1, 2] = np.inf
    ax = Figure().subplots()
    figures.band(ax, np.arange(5), values)
    assert np.isinf(ax.lines[0].get_ydata()[2])
    assert len(ax.collections[0].get_paths()) == 2
