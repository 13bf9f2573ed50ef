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
    from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, MaxNLocator, NullLocator
except ImportError as error:
    raise ImportError("plotting needs matplotlib: pip install 'wpl_jax[experiments]'") from error

__all__ = [
    "band",
    "heat_maps",
    "run_curves",
    "search_curves",
    "strength_curves",
    "trade_off",
    "training_curves",
]

Array = npt.NDArray[np.float64]
Style = Mapping[str, object]

_DIFFERENCES = {
    "forgetting_mean": "mean over all",
    "forgetting_best5": "mean over the best 5",
    "forgetting_max": "maximum",
}
# Markers, so that a point between two gaps can be seen.
_POINTS: dict = {"marker": ".", "markersize": 3, "linewidth": 1.2}
_RUN_STYLES: tuple[dict, ...] = (
    {"color": "tab:blue"},
    {"color": "tab:orange", "linestyle": "--"},
    {"color": "tab:green", "linestyle": ":"},
)


def band(ax: Axes, x: Array, values: Array, **style: object) -> None:
    """Draw the mean of ``values``, shape ``(seeds, points)``, and its interval as a band.

    Each point is of the seeds that are not NaN there: with one there is no band, with none nothing.
    """
    mean, low, high = _measured_interval(values)
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


def search_curves(
    runs: Mapping[str, Mapping[str, Array]],
    epochs: Array,
    styles: Mapping[str, Style],
    warmup: int,
    error_name: str,
) -> Figure:
    """What searches forget and the reward they reach, over epochs (figures 3 and 4).

    The scale of the differences shows the means after the warm-up; what lies before it, and wide
    intervals, may be cut off. Where a few large means would hide all others, it is linear around 0
    and logarithmic beyond.

    Args:
      runs: by label, by name (``"forgetting_mean"``, ``"forgetting_best5"``, ``"forgetting_max"``
        and ``"reward"``), values of shape ``(seeds, epochs)``, NaN where nothing was measured.
      epochs: the numbers of the epochs, shape ``(epochs,)``.
      styles: by label, matplotlib's line properties.
      warmup: how many epochs pass before the plasticity begins, at a dotted line; none for 0.
      error_name: what err1 and err2 are, ``"perplexity"`` say.
    """
    fig, axes = _grid(4, "epoch", None)
    start = warmup if warmup < len(epochs) else 0
    for ax, (key, title) in zip(axes, [*_DIFFERENCES.items(), ("reward", "reward")], strict=True):
        for label, metrics in runs.items():
            band(ax, epochs, metrics[key], label=label, **{**_POINTS, **styles[label]})
        if 0 < warmup < len(epochs):
            begins = (epochs[warmup - 1] + epochs[warmup]) / 2
            ax.axvline(begins, color="black", linestyle=":", label="end of the warm-up")
        _scale_epochs(ax, epochs)
        if key in _DIFFERENCES:
            ax.set_title(f"forgetting, {title}")
            means = [_measured_interval(metrics[key])[0][start:] for metrics in runs.values()]
            _scale_differences(ax, means, error_name)
        else:
            ax.set(title=title, ylabel="mean reward")
    _legend_below(fig, axes)
    return fig


def run_curves(metrics: Mapping[str, Array], error_name: str) -> Figure:
    """One search over its epochs: errors, forgetting, ranks, reward, entropy, loss.

    Args:
      metrics: by name, arrays of shape ``(epochs,)``, NaN where nothing was measured:
        ``"epoch"``, ``"err1_mean"``, ``"err2_mean"``, ``"err2_best"``, ``"forgetting_mean"``,
        ``"forgetting_best5"``, ``"forgetting_max"``, ``"forgetting_share"``, ``"kendall_tau"``,
        ``"reward"``, ``"entropy"`` and ``"train_loss"``.
      error_name: what err1 and err2 are, ``"perplexity"`` say.
    """
    panels = [
        (
            f"validation {error_name}",
            error_name,
            {
                "err1_mean": "err1, after own training: mean",
                "err2_mean": "err2, at the end of the epoch: mean",
                "err2_best": "err2: best",
            },
        ),
        ("forgetting", "", _DIFFERENCES),
        (
            "how the epoch changed the ranking",
            "",
            {
                "kendall_tau": "Kendall's τ, err1 and err2",
                "forgetting_share": "share that got worse",
            },
        ),
        ("reward", "mean reward", {"reward": ""}),
        ("controller", "entropy (nats)", {"entropy": ""}),
        ("training", "mean loss", {"train_loss": ""}),
    ]
    fig, axes = _grid(len(panels), "epoch", None)
    for ax, (title, ylabel, names) in zip(axes, panels, strict=True):
        values = [np.asarray(metrics[key], np.float64) for key in names]
        for line, label, style in zip(values, names.values(), _RUN_STYLES, strict=False):
            ax.plot(metrics["epoch"], line, label=label, **_POINTS, **style)
        ax.set(title=title, ylabel=ylabel)
        _scale_epochs(ax, metrics["epoch"])
        if names is _DIFFERENCES:
            _scale_differences(ax, values, error_name)
        elif "err1_mean" in names:
            _scale_errors(ax, values)
        if np.isnan(values).all():
            ax.text(0.5, 0.5, "not measured", transform=ax.transAxes, ha="center", va="center")
            ax.set_yticks([])
        elif len(names) > 1:
            ax.legend(fontsize="small")
    return fig


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


def _scale_epochs(ax, epochs):
    margin = max(0.5, 0.02 * (epochs[-1] - epochs[0]))
    ax.set(xlabel="epoch", xlim=(epochs[0] - margin, epochs[-1] + margin))
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))


def _scale_differences(ax, values, error_name):
    """A line at 0, and a scale on which both the typical and the largest difference are seen."""
    ax.axhline(0, color="black", linewidth=0.8)
    ax.set_ylabel(f"rise in {error_name}, err2 − err1")
    shown = np.concatenate([[0], *map(np.ravel, values)])
    shown = shown[np.isfinite(shown)]
    sizes = np.abs(shown[shown != 0])
    if sizes.size and sizes.max() > 20 * np.median(sizes):
        linear = 10.0 ** np.round(np.log10(np.median(sizes)))
        decades = int(np.ceil(np.log10(sizes.max() / linear)))
        ticks = linear * np.array([0.5, *10.0 ** np.arange(0, decades + 1, 1 + decades // 6)])
        ax.set_yscale("symlog", linthresh=linear)
        _set_ticks(ax, FixedLocator([*-ticks[::-1], 0, *ticks]))
    elif sizes.size:
        margin = 0.08 * np.ptp(shown)
        ax.set_ylim(shown.min() - margin, shown.max() + margin)


def _scale_errors(ax, values):
    finite = np.concatenate(values)
    finite = finite[np.isfinite(finite)]
    if finite.size and finite.max() > 10 * finite.min() > 0:
        ax.set_yscale("log")
        _set_ticks(ax, LogLocator(subs=(1, 2, 5)))


def _set_ticks(ax, locator):
    ax.yaxis.set_major_locator(locator)
    ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}".replace("-", "−")))
    ax.yaxis.set_minor_locator(NullLocator())
    ax.autoscale_view(scalex=False)


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
    columns = -(-len(entries) // -(-len(entries) // 4))  # as few rows as four columns need
    fig.legend(entries.values(), entries.keys(), loc="outside lower center", ncols=columns)
