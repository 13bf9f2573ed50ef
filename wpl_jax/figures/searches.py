"""Figures of searches over their epochs: of many that are compared, and of one."""

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from wpl_jax.figures import style
from wpl_jax.figures.curves import band
from wpl_jax.figures.style import OKABE_ITO
from wpl_jax.forgetting import mean_interval

try:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, MaxNLocator, NullLocator
except ImportError as error:
    raise ImportError(
        "figures need matplotlib: pip install '.[experiments]' in the checkout of wpl_jax"
    ) from error

__all__ = ["error_against_forgetting", "forgetting_curves", "run_curves", "search_curves"]

Array = npt.NDArray[np.float64]

_FORGETTING = {
    "forgetting_mean": "mean of all",
    "forgetting_best5": "mean of\nthe best 5",
    "forgetting_max": "maximum",
}
_COLORS = (OKABE_ITO["blue"], OKABE_ITO["vermilion"], OKABE_ITO["green"])
_LINES = ("-", "--", ":")
# Markers, so that a point between two gaps can be seen.
_POINTS: dict = {"marker": ".", "markersize": 4, "linewidth": 1.8}


def search_curves(
    runs: Mapping[str, Mapping[str, Array]],
    colors: Mapping[str, str],
    warmup: int,
    rise: str,
    reward: str,
) -> Figure:
    """What searches forget and the reward they reach, over epochs (figures 3 and 4).

    A row a measure. Its scale shows what follows the warm-up; what lies before it may be cut off.
    Where a few large differences would hide all others, it is linear around 0 and logarithmic
    beyond. Searches of different numbers of epochs are drawn over the share of each that is done.

    Args:
      runs: by label, by name, ``"epoch"``, the numbers of the epochs, shape ``(epochs,)``, and
        ``"forgetting_mean"``, ``"forgetting_best5"``, ``"forgetting_max"`` and ``"reward"``,
        values of shape ``(seeds, epochs)``, NaN where nothing was measured.
      colors: by label.
      warmup: how many epochs pass before the plasticity begins, drawn in grey; none for 0.
      rise: what forgetting is, ``"rise in perplexity"`` say.
      reward: what the reward is, ``"80 / err2"`` say.
    """
    rows = _FORGETTING | {"reward": f"mean reward\n{reward}"}
    epochs = {label: np.asarray(metrics["epoch"]) for label, metrics in runs.items()}
    alike = len({len(of) for of in epochs.values()}) == 1
    x = epochs if alike else {label: 100 * of / of[-1] for label, of in epochs.items()}
    xlabel = "epoch" if alike else "share of the search (%)"
    fig, axes = style.panels(len(rows), columns=1, height=1.9, xlabel=xlabel)
    for ax, (name, text) in zip(axes, rows.items(), strict=True):
        for label, metrics in runs.items():
            band(ax, x[label], metrics[name], color=colors[label], **_POINTS)
        _scale_epochs(ax, np.unique(np.concatenate(list(x.values()))))
        if alike:
            _shade(ax, next(iter(x.values())), warmup, "warm-up" if name == "reward" else "")
        lost = name in _FORGETTING
        values = [m[name][:, _first(m["epoch"], warmup) * lost :] for m in runs.values()]
        _scale([ax], [_means(v) for v in values], values, 0.0 if lost else None)
        ax.set_ylabel(text)
    fig.suptitle(f"forgetting ({rise}) and reward", fontsize="medium")
    lines = [{label: _means(metrics[name]) for label, metrics in runs.items()} for name in rows]
    style.label_panels(axes, [_line_ends(of_panel) for of_panel in lines], colors)
    return fig


def forgetting_curves(
    panels: Mapping[str, Mapping[str, Array]],
    epochs: Array,
    colors: Mapping[str, str],
    warmup: int,
    ylabel: str,
) -> Figure:
    """What searches forget over epochs, in the mean of all architectures: one panel a regime.

    All panels have one scale, which is chosen as in :func:`search_curves`.

    Args:
      panels: by title, by label, values of shape ``(seeds, epochs)``, NaN where nothing was
        measured.
      epochs: the numbers of the epochs, shape ``(epochs,)``.
      colors: by label.
      warmup: how many epochs pass before plasticity begins, drawn in grey; none for 0.
      ylabel: what the values are.
    """
    fig, axes = style.panels(len(panels), height=2.2, xlabel="epoch", ylabel=ylabel)
    for ax, (title, labelled) in zip(axes, panels.items(), strict=True):
        for label, values in labelled.items():
            band(ax, epochs, values, color=colors[label], **_POINTS)
        ax.set(title=title)
        _scale_epochs(ax, epochs)
        _shade(ax, epochs, warmup, "")
    every = [v[:, _first(epochs, warmup) :] for of in panels.values() for v in of.values()]
    _scale(axes, [_means(values) for values in every], every, 0.0)
    lines = [
        {label: _means(values) for label, values in labelled.items()}
        for labelled in panels.values()
    ]
    style.label_panels(axes, [_line_ends(of_panel) for of_panel in lines], colors)
    return fig


def error_against_forgetting(
    panels: Mapping[str, Mapping[str, Mapping[str, tuple[Array, Array]]]],
    ylabel: str,
    colors: Mapping[str, str],
) -> Figure:
    """One number over others, a panel each: what it costs to have less of these.

    A point is the mean over seeds, a cross its 95 % intervals. Those of a group are joined, and its
    name is at the right, at the height of its last.

    Args:
      panels: by what is on the horizontal axis, by the name of a group, by what is written at the
        point (a strength, say), two arrays of shape ``(seeds,)``: what it says, and the other.
      ylabel: what the other number is.
      colors: by the name of a group.
    """
    fig, axes = style.panels(len(panels), columns=1, height=3.6, ylabel=ylabel)
    ends = []
    for ax, (xlabel, groups) in zip(axes, panels.items(), strict=True):
        ax.set_xlabel(xlabel)
        ends.append(_trade_off(ax, groups, colors))
    style.label_panels(axes, ends, colors)
    return fig


def _line_ends(lines):
    """The last height and the name of each line that has points."""
    return [(float(line[-1]), label) for label, line in lines.items() if len(line)]


def _trade_off(ax, groups, colors):
    """Returns the height and name of each group."""
    ends: list[tuple[float, str]] = []
    for name, points in groups.items():
        color, middles = colors[name], []
        for text, both in points.items():
            x, y = (np.asarray(v)[np.isfinite(v)] for v in both)
            if not (len(x) and len(y)):
                continue
            middles.append((x.mean(), y.mean()))
            if len(x) > 1 and len(y) > 1:
                _, *interval = mean_interval(x)
                ax.plot(interval, [y.mean()] * 2, color=color, linewidth=1, alpha=0.5)
                _, *interval = mean_interval(y)
                ax.plot([x.mean()] * 2, interval, color=color, linewidth=1, alpha=0.5)
            if text:
                ax.annotate(text, middles[-1], (4, 4), textcoords="offset points", color=color)
        if middles:
            ax.plot(*zip(*middles, strict=True), "o-", color=color, markersize=7, linewidth=1.2)
            ends.append((middles[-1][1], name))
    ax.margins(x=0.15, y=0.12)
    ax.xaxis.set_major_locator(MaxNLocator(nbins=6))
    return ends


def run_curves(metrics: Mapping[str, Array], error_name: str) -> Figure:
    """One search over its epochs: errors, forgetting, ranks, reward, entropy, loss.

    Args:
      metrics: by name, arrays of shape ``(epochs,)``, NaN where nothing was measured:
        ``"epoch"``, ``"err1_mean"``, ``"err2_mean"``, ``"err2_best"``, ``"forgetting_mean"``,
        ``"forgetting_best5"``, ``"forgetting_max"``, ``"forgetting_share"``,
        ``"tau_within_epoch"``, ``"reward"``, ``"entropy"`` and ``"train_loss"``.
      error_name: what err1 and err2 are, ``"perplexity"`` say.
    """
    of_errors = {
        "err1_mean": "err1: mean",
        "err2_mean": "err2: mean",
        "err2_best": "err2: best",
    }
    of_ranks = {"tau_within_epoch": "τ within the epoch", "forgetting_share": "share worse"}
    panels = [
        (f"validation {error_name}", of_errors),
        ("forgetting, err2 − err1", _FORGETTING),
        ("the ranking in an epoch", of_ranks),
        ("mean reward", {"reward": ""}),
        ("controller's entropy (nats)", {"entropy": ""}),
        ("mean training loss", {"train_loss": ""}),
    ]
    fig, axes = style.panels(len(panels), xlabel="epoch")
    for ax, (title, names) in zip(axes, panels, strict=True):
        values = [np.asarray(metrics[name], np.float64) for name in names]
        texts = [text.replace("\n", " ") for text in names.values()]
        for line, text, color, dashes in zip(values, texts, _COLORS, _LINES, strict=False):
            ax.plot(metrics["epoch"], line, label=text, color=color, linestyle=dashes, **_POINTS)
        ax.set(title=title)
        _scale_epochs(ax, metrics["epoch"])
        if names is _FORGETTING:
            _scale([ax], values, values, 0)
        elif names is of_errors:
            _scale_errors(ax, values)
        if np.isnan(values).all():
            ax.text(0.5, 0.5, "not measured", transform=ax.transAxes, ha="center", va="center")
            ax.set_yticks([])
        elif len(names) > 1:
            ax.legend(fontsize="x-small", framealpha=0.6)
    return fig


def _first(epochs, warmup):
    """The first epoch after the warm-up; the first of all if none is after it."""
    return warmup if warmup < len(epochs) else 0


def _means(values):
    """Of the seeds that are finite, in each epoch that has some; shape ``(epochs,)``."""
    finite = np.where(np.isfinite(values), values, np.nan)
    measured = ~np.isnan(finite).all(0)
    return np.nanmean(finite[:, measured], 0)


def _scale_epochs(ax, epochs):
    margin = max(0.5, 0.02 * (epochs[-1] - epochs[0]))
    ax.set(xlim=(epochs[0] - margin, epochs[-1] + margin))
    ax.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))


def _shade(ax, epochs, warmup, text):
    """Grey for the epochs of the warm-up, with its name."""
    if not _first(epochs, warmup):
        return
    left, begins = ax.get_xlim()[0], (epochs[warmup - 1] + epochs[warmup]) / 2
    ax.axvspan(left, begins, color="0.92", zorder=0)
    ax.annotate(
        *(text, (left, 0.97), (4, 0)),
        xycoords=ax.get_xaxis_transform(),
        textcoords="offset points",
        va="top",
        size="small",
        color="0.3",
        zorder=5,
        bbox={"facecolor": "0.92", "edgecolor": "none", "alpha": 0.8, "pad": 1},
    )


def _scale(
    axes: Sequence[Axes], means: Sequence[Array], seeds: Sequence[Array], zero: float | None
) -> None:
    """One scale for all panels, on which the means, and seeds that are not far off, are seen.

    Where ``zero`` is given, it is a line, and the scale may be logarithmic beyond what is typical.
    """
    shown = np.concatenate([[] if zero is None else [zero], *map(np.ravel, means)])
    shown = shown[np.isfinite(shown)]
    sizes = np.abs(shown[shown != 0])
    if zero is not None:
        for ax in axes:
            ax.axhline(zero, color="black", linewidth=0.8, zorder=1)
    if not sizes.size:
        return
    if zero is not None and sizes.max() > 20 * np.median(sizes):
        linear = 10.0 ** np.round(np.log10(np.median(sizes)))
        decades = int(np.ceil(np.log10(sizes.max() / linear)))
        ticks = linear * 10.0 ** np.arange(0, decades + 1, 1 + decades // 6)
        low, high = (2 * min(shown.min(), 0.0) - linear / 2, 2 * max(shown.max(), 0.0) + linear / 2)
        beside_zero = np.r_[-ticks, ticks]
        if np.sum((low < beside_zero) & (beside_zero < high)) < 5:
            ticks = np.r_[linear / 2, ticks]
        for ax in axes:
            ax.set_yscale("symlog", linthresh=linear)
            _set_ticks(ax, FixedLocator([*-ticks[::-1], 0, *ticks]))
            ax.set_ylim(low, high)
        return
    spread = np.ptp(shown) or 1.0
    every = np.concatenate([np.ravel(values) for values in seeds])
    every = every[np.isfinite(every)]
    low = max(min(every.min(), shown.min()), shown.min() - 0.5 * spread) - 0.05 * spread
    high = min(max(every.max(), shown.max()), shown.max() + 0.5 * spread) + 0.05 * spread
    for ax in axes:
        ax.set_ylim(low, high)
        ax.yaxis.set_major_locator(MaxNLocator(nbins=5))


def _scale_errors(ax, values):
    finite = np.concatenate(values)
    finite = finite[np.isfinite(finite)]
    if finite.size and finite.max() > 10 * finite.min() > 0:
        ax.set_yscale("log")
        _set_ticks(ax, LogLocator(subs=(1, 2, 5)))
        ax.autoscale_view(scalex=False)


def _set_ticks(ax, locator):
    ax.yaxis.set_major_locator(locator)
    ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}".replace("-", "−")))
    ax.yaxis.set_minor_locator(NullLocator())
