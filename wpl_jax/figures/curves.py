"""Figures, drawn from arrays of results; curves are means over seeds with their 95 % intervals.

Needs matplotlib, which the ``experiments`` extra installs. Nothing is shown or saved here: every
figure function returns a ``matplotlib.figure.Figure``.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from wpl_jax.figures import style
from wpl_jax.figures.style import FONT_SIZE
from wpl_jax.forgetting import mean_interval

try:
    from matplotlib.axes import Axes
    from matplotlib.collections import LineCollection
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle
    from matplotlib.ticker import LogLocator, NullLocator
except ImportError as error:
    raise ImportError(
        "plotting needs matplotlib: pip install '.[experiments]' in the checkout"
    ) from error

__all__ = [
    "band",
    "heat_maps",
    "strength_curves",
    "trade_off",
    "training_curves",
]

FEW_SEEDS = 3  # up to so many are drawn one by one
MANY_COLUMNS = 5  # of a heat map: with more, it is as wide as the figure

Array = npt.NDArray[np.float64]
Style = Mapping[str, object]


def band(ax: Axes, x: Array, values: Array, **style: Any) -> None:
    """Draw the mean of ``values``, shape ``(seeds, points)``, and how far the seeds differ.

    From four seeds on that is the mean's interval, as a band; of two or three it is a thin line a
    seed. Each point is of the seeds that are not NaN there: where there is one, it is that one,
    where there is none, nothing.
    """
    mean, low, high = _measured_interval(values)
    (line,) = ax.plot(x, mean, **style)
    color = line.get_color()
    if len(values) > FEW_SEEDS:
        ax.fill_between(x, low, high, color=color, alpha=0.2, linewidth=0)
    elif len(values) > 1:
        seeds = [np.column_stack([x, seed]) for seed in np.asarray(values, np.float64)]
        ax.add_collection(LineCollection(seeds, colors=color, alpha=0.5, linewidths=0.7))


def training_curves(
    panels: Mapping[str, Mapping[str, Array]],
    steps: Array,
    colors: Mapping[str, str],
    baselines: Mapping[str, Array],
) -> Figure:
    """Accuracies while the second model trains, two panels a row (figures 1 and 2).

    Args:
      panels: by title, by label, accuracies of shape ``(seeds, points)``.
      steps: the training steps of the points, shape ``(points,)``.
      colors: by label.
      baselines: by title, the first model's accuracy before, shape ``(seeds,)``.
    """
    fig, axes = style.panels(
        len(panels), xlabel="training step of B", ylabel="validation accuracy (%)"
    )
    for ax, (title, curves) in zip(axes, panels.items(), strict=True):
        if title in baselines:
            ax.axhline(_percent(baselines[title]), color="black", linestyle=":", linewidth=1)
        for label, values in curves.items():
            band(ax, steps, 100 * values, label=label, color=colors[label])
        ax.set(title=title, xlim=(0, steps[-1]), ylim=(0, 100))
    ends = [
        [(_percent(values[:, -1]), label) for label, values in curves.items()]
        for curves in panels.values()
    ]
    style.label_panels(axes, ends, colors)
    return fig


def strength_curves(
    panels: Mapping[str, Mapping[str, tuple[Array, Array]]],
    references: Mapping[str, Mapping[str, Array]],
    colors: Mapping[str, str],
    xlabel: str,
) -> Figure:
    """Accuracies against the strength, two panels a row.

    Args:
      panels: by title, by label, strengths ``(n,)`` and accuracies ``(seeds, n)``.
      references: by title, by label, accuracies ``(seeds,)`` that depend on no strength.
      colors: by label.
      xlabel: what the strengths are.
    """
    fig, axes = style.panels(len(panels), xlabel=xlabel, ylabel="validation accuracy (%)")
    for ax, (title, curves) in zip(axes, panels.items(), strict=True):
        for label, (strengths, values) in curves.items():
            band(ax, strengths, 100 * values, label=label, color=colors[label], marker="o", ms=4)
        for label, values in references[title].items():
            ax.axhline(_percent(values), linestyle="--", linewidth=1, color=colors[label])
        ax.set(title=title, xscale="log", ylim=(0, 100))
        ax.xaxis.set_major_locator(LogLocator(numticks=5))
        ax.xaxis.set_minor_locator(NullLocator())
    ends = [
        [(_percent(values[:, -1]), label) for label, (_, values) in curves.items()]
        + [(_percent(values), label) for label, values in references[title].items()]
        for title, curves in panels.items()
    ]
    style.label_panels(axes, ends, colors)
    return fig


def trade_off(
    panels: Mapping[str, Mapping[str, tuple[Array, Array, Array]]],
    points: Mapping[str, Mapping[str, tuple[Array, Array]]],
    baselines: Mapping[str, Array],
    colors: Mapping[str, str],
) -> Figure:
    """What A keeps against what B reaches, one panel a condition, below each other.

    A curve goes from strength to strength, each written beside its point where there is room.
    Crosses are the 95 % intervals of both accuracies.

    Args:
      panels: by title, by label, strengths ``(n,)``, accuracies of A and of B ``(seeds, n)``.
      points: by title, by label, accuracies ``(seeds,)`` of A and of B without any strength.
      baselines: by title, the first model's accuracy before, shape ``(seeds,)``.
      colors: by label.
    """
    fig, axes = style.panels(
        len(panels),
        columns=1,
        height=3.9,
        xlabel="validation accuracy of A (%)",
        ylabel="validation accuracy of B (%)",
    )
    for ax, (title, curves) in zip(axes, panels.items(), strict=True):
        ax.axvline(
            _percent(baselines[title]),
            color="black",
            linestyle=":",
            linewidth=1,
            label="A before B trains",
        )
        for label, (_, a, b) in curves.items():
            _cross(ax, a, b, label=label, color=colors[label], marker="o", markersize=4)
        for label, (a, b) in points[title].items():
            _cross(ax, a, b, label=label, color=colors[label], marker="s", linestyle="none")
        ax.set(title=title)
    fig.draw_without_rendering()  # from here on, scales are final
    for ax, curves in zip(axes, panels.values(), strict=True):
        _write_strengths(ax, curves, colors)
    entries = dict(zip(*reversed(axes[0].get_legend_handles_labels()), strict=True))
    fig.legend(
        entries.values(), entries.keys(), loc="outside upper center", ncols=3, fontsize=FONT_SIZE
    )
    return fig


def heat_maps(
    panels: Mapping[str, Array],
    rows: Sequence[float | str],
    columns: Sequence[float | str],
    row_name: str,
    column_name: str,
    value_name: str,
    marked: tuple[int, int] | None = None,
    *,
    digits: int = 0,
    diverging: bool = True,
    high_is_good: bool = False,
) -> Figure:
    """Numbers over two settings, one panel a quantity, on one scale of colours.

    The scale ends at twice what nine of ten numbers are within, so that a few that are far off do
    not make all others look alike. A dash stands where there is no number.

    Args:
      panels: by title, numbers of shape ``(rows, columns)``, NaN where there is none.
      rows: settings along the vertical axis.
      columns: settings along the horizontal axis.
      row_name: what the rows are.
      column_name: what the columns are.
      value_name: what the numbers are.
      marked: the cell to frame, as ``(row, column)``, or none.
      digits: of the numbers, after the point.
      diverging: whether what is above and below 0 is told apart by red and blue; otherwise colours
        begin at the lowest number.
      high_is_good: with blue for what is above 0.
    """
    wide = len(columns) > MANY_COLUMNS
    fig, axes = style.panels(
        len(panels),
        columns=1 if wide else 2,
        height=max(2.6, 0.9 + 0.4 * len(rows)),
        xlabel=column_name,
        ylabel=row_name,
    )
    every = np.concatenate([np.ravel(values) for values in panels.values()])
    low, high = _ends(every, diverging)
    cmap = "Blues" if not diverging else "RdBu" if high_is_good else "RdBu_r"
    for ax, (title, values) in zip(axes, panels.items(), strict=True):
        image = ax.imshow(values, cmap=cmap, vmin=low, vmax=high, aspect="auto")
        dark = image.to_rgba(values)[..., :3] @ [0.3, 0.6, 0.1] < 0.45  # as bright as it looks
        for (i, j), value in np.ndenumerate(values):
            color = "white" if dark[i, j] and np.isfinite(value) else "black"
            number = _number(value, digits)
            ax.text(j, i, number, ha="center", va="center", color=color, size=FONT_SIZE)
        ax.set(title=title)
        ax.grid(visible=False)
        ax.set_xticks(range(len(columns)), [_setting(c) for c in columns])
        ax.set_yticks(range(len(rows)), [_setting(r) for r in rows])
        if marked is not None:
            corner = (marked[1] - 0.47, marked[0] - 0.47)
            ax.add_patch(Rectangle(corner, 0.94, 0.94, fill=False, edgecolor="black", lw=2.5))
    bar = fig.colorbar(image, ax=axes, location="bottom", aspect=40, fraction=0.05)
    bar.set_label(value_name, size=FONT_SIZE)
    return fig


def _number(value, digits):
    """With a minus sign, which 0 has not; a dash where there is none."""
    if not np.isfinite(value):
        return "–"
    text = f"{value:.{digits}f}"
    return text.replace("-", "−" if float(text) else "")


def _setting(value):
    return value if isinstance(value, str) else f"{value:g}"


def _ends(values, diverging):
    """Where the scale of the colours of numbers begins and ends."""
    there = values[np.isfinite(values)]
    there = there if len(there) else np.zeros(1)
    low = 0.0 if diverging else there.min()
    off = np.abs(there - low)
    end = min(off.max(), 2 * np.quantile(off, 0.9) or np.inf) or 1.0
    return -end if diverging else low, low + end


def _percent(values):
    return 100 * float(np.mean(values))


def _cross(ax, a, b, **line):
    """A curve of means, with the intervals of both directions, which end at 100 %."""
    (a, a_low, a_high), (b, b_low, b_high) = mean_interval(100 * a), mean_interval(100 * b)
    ax.errorbar(
        a,
        b,
        xerr=np.array([a - np.maximum(a_low, 0), np.minimum(a_high, 100) - a]).reshape(2, -1),
        yerr=np.array([b - np.maximum(b_low, 0), np.minimum(b_high, 100) - b]).reshape(2, -1),
        elinewidth=0.6,
        **line,
    )


def _write_strengths(ax, curves, colors):
    """Each strength above its point, unless another one is already written there."""
    written: list[np.ndarray] = []
    room = np.array([3.2, 1.3]) * FONT_SIZE * ax.figure.dpi / 72
    for label, (strengths, a, b) in curves.items():
        for strength, *means in zip(strengths, 100 * a.mean(0), 100 * b.mean(0), strict=True):
            place = ax.transData.transform(means)
            if all((np.abs(place - other) > room).any() for other in written):
                written.append(place)
                ax.annotate(
                    _power(strength),
                    means,
                    xytext=(3, 3),
                    textcoords="offset points",
                    color=colors[label],
                    size=FONT_SIZE - 1,
                )


def _power(number):
    """10⁴ for 10,000; 0.03 stays as it is."""
    exponent = np.log10(number) if number > 0 else 0.5
    if exponent == round(exponent) and abs(exponent) > 2:
        return f"$10^{{{round(exponent)}}}$"
    return f"{number:g}"


def _measured_interval(values):
    """``mean_interval`` of each point's seeds that are not NaN."""
    points = []
    for column in np.asarray(values, np.float64).T:
        measured = column[~np.isnan(column)]
        if len(measured) > 1:
            with np.errstate(invalid="ignore", over="ignore"):  # an infinite mean has no interval
                points.append(mean_interval(measured))
        else:
            points.append((measured.sum() if len(measured) else np.nan, np.nan, np.nan))
    return np.transpose(points)
