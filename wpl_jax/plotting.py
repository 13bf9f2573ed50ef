"""Figures, drawn from arrays of results; curves are means over seeds with their 95 % intervals.

Needs matplotlib, which the ``experiments`` extra installs. Nothing is shown or saved here: every
figure function returns a ``matplotlib.figure.Figure``.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from wpl_jax.forgetting import mean_interval

try:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle
except ImportError as error:
    raise ImportError("plotting needs matplotlib: pip install 'wpl_jax[experiments]'") from error

__all__ = ["band", "heat_maps", "strength_curves", "trade_off", "training_curves"]

Array = npt.NDArray[np.float64]
Style = Mapping[str, object]


def band(ax: Axes, x: Array, values: Array, **style: object) -> None:
    """Draw the mean of ``values``, shape ``(seeds, points)``, and its interval as a band."""
    mean, low, high = mean_interval(values)
    (line,) = ax.plot(x, mean, **style)  # type: ignore[arg-type]
    ax.fill_between(x, low, high, color=line.get_color(), alpha=0.2, linewidth=0)


def training_curves(
    panels: Mapping[str, Mapping[str, Array]],
    steps: Array,
    styles: Mapping[str, Style],
    baselines: Mapping[str, Array],
) -> Figure:
    """Accuracies while the second model trains, one panel a condition (figures 1 and 2).

    Args:
      panels: by title, by label, accuracies of shape ``(seeds, points)``.
      steps: the training steps of the points, shape ``(points,)``.
      styles: by label, matplotlib's line properties.
      baselines: by title, the first model's accuracy before, shape ``(seeds,)``.
    """
    fig, axes = _grid(len(panels), "training step of B", "validation accuracy (%)")
    for ax, (title, curves) in zip(axes, panels.items(), strict=True):
        if title in baselines:
            baseline = 100 * np.mean(baselines[title])
            ax.axhline(baseline, color="black", linestyle=":", label="A before B trains")
        for label, values in curves.items():
            band(ax, steps, 100 * values, label=label, **styles[label])
        ax.set(title=title, xlim=(0, steps[-1]), ylim=(0, 100))
    _legend_below(fig, axes)
    return fig


def strength_curves(
    panels: Mapping[str, Mapping[str, tuple[Array, Array]]],
    references: Mapping[str, Mapping[str, Array]],
    styles: Mapping[str, Style],
    xlabel: str,
) -> Figure:
    """Accuracies against the strength, one panel a condition.

    Args:
      panels: by title, by label, strengths ``(n,)`` and accuracies ``(seeds, n)``.
      references: by title, by label, accuracies ``(seeds,)`` that depend on no strength.
      styles: by label, matplotlib's line properties.
      xlabel: what the strengths are.
    """
    fig, axes = _grid(len(panels), xlabel, "validation accuracy (%)")
    for ax, (title, curves) in zip(axes, panels.items(), strict=True):
        for label, (strengths, values) in curves.items():
            band(ax, strengths, 100 * values, label=label, marker="o", **styles[label])
        for label, values in references[title].items():
            ax.axhline(100 * np.mean(values), label=label, **styles[label])
        ax.set(title=title, xscale="log", ylim=(0, 100))
    _legend_below(fig, axes)
    return fig


def trade_off(
    panels: Mapping[str, Mapping[str, tuple[Array, Array]]],
    baselines: Mapping[str, Array],
    styles: Mapping[str, Style],
) -> Figure:
    """What A keeps against what B reaches, along the strengths, one panel a condition.

    Args:
      panels: by title, by label, accuracies of A and of B, each of shape ``(seeds, n)``; crosses
        are the intervals of both.
      baselines: by title, the first model's accuracy before, shape ``(seeds,)``.
      styles: by label, matplotlib's line properties.
    """
    fig, axes = _grid(len(panels), "final accuracy of A (%)", "final accuracy of B (%)")
    for ax, (title, curves) in zip(axes, panels.items(), strict=True):
        baseline = 100 * np.mean(baselines[title])
        ax.axvline(baseline, color="black", linestyle=":", label="A before B trains")
        for label, (values_a, values_b) in curves.items():
            a, a_low, a_high = mean_interval(100 * values_a)
            b, b_low, b_high = mean_interval(100 * values_b)
            ax.errorbar(
                a,
                b,
                xerr=(a - a_low, a_high - a),
                yerr=(b - b_low, b_high - b),
                label=label,
                elinewidth=0.8,
                **styles[label],
            )
        ax.set(title=title)
        ax.margins(0.08)
    _legend_below(fig, axes)
    return fig


def heat_maps(
    panels: Mapping[str, Array],
    rows: Sequence[float],
    columns: Sequence[float],
    row_name: str,
    column_name: str,
    value_name: str,
    marked: tuple[int, int] | None,
) -> Figure:
    """Numbers over two settings, one panel a quantity, on one scale.

    Args:
      panels: by title, percentages of shape ``(rows, columns)``.
      rows: settings along the vertical axis.
      columns: settings along the horizontal axis.
      row_name: what the rows are.
      column_name: what the columns are.
      value_name: what the numbers are.
      marked: the cell to frame, as ``(row, column)``, or none.
    """
    fig, axes = _grid(len(panels), column_name, row_name, share=False)
    limit = max(np.abs(values).max() for values in panels.values())
    for ax, (title, values) in zip(axes, panels.items(), strict=True):
        image = ax.imshow(values, cmap="RdBu_r", vmin=-limit, vmax=limit, aspect="auto")
        for (i, j), value in np.ndenumerate(values):
            color = "white" if abs(value) > 0.6 * limit else "black"
            ax.text(j, i, f"{round(value)}", ha="center", va="center", color=color)
        ax.set(title=title)
        ax.set_xticks(range(len(columns)), [f"{c:g}" for c in columns])
        ax.set_yticks(range(len(rows)), [f"{r:g}" for r in rows])
        if marked is not None:
            corner = (marked[1] - 0.47, marked[0] - 0.47)
            ax.add_patch(Rectangle(corner, 0.94, 0.94, fill=False, edgecolor="black", lw=2.5))
    fig.colorbar(image, ax=axes, label=value_name)
    return fig


def _grid(panels, xlabel, ylabel, share=True):
    """Panels side by side, two a row from four on, with one name for each axis."""
    columns = panels if panels < 4 else 2
    rows = -(-panels // columns)
    fig = Figure(figsize=(4.2 * columns, 3.1 * rows + 0.6), layout="constrained")
    axes = fig.subplots(rows, columns, squeeze=False)
    for i, ax in np.ndenumerate(axes):
        ax.set(xlabel=xlabel if i[0] == rows - 1 else None, ylabel=None if i[1] else ylabel)
        if share:
            ax.grid(alpha=0.3)
    for ax in axes.ravel()[panels:]:
        ax.set_axis_off()
    return fig, list(axes.ravel()[:panels])


def _legend_below(fig, axes):
    entries: dict = {}
    for ax in axes:
        entries |= dict(zip(*reversed(ax.get_legend_handles_labels()), strict=True))
    fig.legend(entries.values(), entries.keys(), loc="outside lower center", ncols=4)
