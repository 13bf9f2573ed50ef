"""Figures of how well architectures are ranked, beside their accuracies after full training.

Needs matplotlib and scipy, which the ``experiments`` extra installs. Nothing is shown or
saved here.
"""

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from wpl_jax.figures import style
from wpl_jax.figures.style import OKABE_ITO
from wpl_jax.forgetting import mean_interval

try:
    from matplotlib.axes import Axes
    from matplotlib.colors import LinearSegmentedColormap, LogNorm
    from matplotlib.figure import Figure
    from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator
    from scipy.ndimage import gaussian_filter
except ImportError as error:
    raise ImportError(
        "figures need matplotlib and scipy: pip install '.[experiments]' in the checkout of wpl_jax"
    ) from error

__all__ = ["predicted_against_true", "rankings", "tau_curves"]

Array = npt.NDArray[np.floating]

_DENSITY = LinearSegmentedColormap.from_list(
    "density", ["#BBDDF0", OKABE_ITO["sky blue"], OKABE_ITO["blue"], OKABE_ITO["black"]]
)


_CELLS = 80  # in each direction, in which architectures are counted


def predicted_against_true(predicted: Mapping[str, Array], accuracy: Array) -> Figure:
    """True accuracies of architectures over what is predicted of them, a panel a prediction.

    The darker, the more architectures lie there. Accuracies are on a scale that is logarithmic in
    what lacks to 100 %, where the best can be told apart. What is not finite is left out.

    Args:
      predicted: by name, errors or losses, lower is better, shape ``(n,)``.
      accuracy: in percent, shape ``(n,)``.

    Example:
      >>> import numpy as np
      >>> from wpl_jax.figures import predicted_against_true
      >>> accuracy = np.linspace(10, 94, 50)
      >>> figure = predicted_against_true({"error rate": 1 - accuracy / 100}, accuracy)
      >>> [ax.get_xlabel() for ax in figure.axes]
      ['error rate']
    """
    fig, axes = style.panels(len(predicted), height=3.2, ylabel="true accuracy (%)")
    for ax, (name, values) in zip(axes, predicted.items(), strict=True):
        there = np.isfinite(values)
        _scatter(ax, values[there], accuracy[there])
        ax.set(xlabel=name)
    return fig


def _scatter(ax: Axes, x: Array, accuracy: Array) -> None:
    """Points, each in the colour of how many there are about it, the densest on top."""
    lacking = np.maximum(100 - accuracy, 0.01)
    places = _cells(x), _cells(np.log(lacking))
    counts = np.zeros((_CELLS, _CELLS))
    np.add.at(counts, places, 1)
    density = gaussian_filter(counts, 2)[places]
    order = np.argsort(density, kind="stable")
    ax.scatter(
        x[order],
        lacking[order],
        c=density[order],
        cmap=_DENSITY,
        norm=LogNorm(density.min(initial=1), density.max(initial=2)),
        s=np.clip(800 / max(len(x), 1), 5, 25),  # points²; a few are hardly seen otherwise
        linewidths=0,
        rasterized=True,
    )
    ax.set_yscale("log")
    ax.invert_yaxis()
    ticks = [10, 30, 50, 70, 80, 85, 90, 92, 94, 96, 98, 99]
    ax.yaxis.set_major_locator(FixedLocator([100 - tick for tick in ticks]))
    ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 - value:g}"))
    ax.yaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_major_locator(MaxNLocator(nbins=5, steps=[1, 2, 5, 10]))


def _cells(values):
    """In which of so many cells, equally wide, between their ends."""
    low, width = values.min(initial=np.inf), np.ptp(values) if len(values) else 0.0
    return np.minimum(_CELLS * (values - low) / (width or 1), _CELLS - 1).astype(int)


def tau_curves(
    runs: Mapping[str, Array],
    epochs: Array,
    colors: Mapping[str, str],
    baselines: Mapping[str, float],
    value_name: str = "Kendall's τ",
) -> Figure:
    """Kendall's τ of several methods over epochs: their means bold, their seeds as thin lines.

    Args:
      runs: by method, shape ``(seeds, epochs)``, NaN where nothing was measured.
      epochs: shape ``(epochs,)``.
      colors: by method.
      baselines: what knows nothing of a search, by name; a line each.
      value_name: says of which order τ is.
    """
    fig, (ax,) = style.panels(1, height=3.8, xlabel="epoch", ylabel=value_name)
    ends = []
    for name, values in runs.items():
        for seed in values:
            found = np.isfinite(seed)
            ax.plot(epochs[found], seed[found], color=colors[name], linewidth=0.7, alpha=0.45)
        measured = np.isfinite(values).any(0)
        means = np.nanmean(values[:, measured], 0)
        ax.plot(epochs[measured], means, color=colors[name], linewidth=2.4)
        if len(means):
            ends.append((float(means[-1]), name))
    ax.margins(x=0.02)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
    for height in baselines.values():
        ax.axhline(height, color="0.4", linewidth=1, linestyle=":", zorder=1)
    ends += [(height, name) for name, height in baselines.items()]
    style.label_ends(ax, ends, {**colors, **dict.fromkeys(baselines, "0.3")})
    return fig


def rankings(
    methods: Mapping[str, Array],
    baselines: Mapping[str, float],
    xlabel: str,
    colors: Mapping[str, str],
) -> Figure:
    """A number of each method: seeds as points, and their mean with its 95 % interval.

    Args:
      methods: by name, from top to bottom, shape ``(seeds,)``; of one seed there is no interval.
      baselines: what knows nothing of a search, by name: below the methods, and a line across them.
      xlabel: what the number is.
      colors: by method.
    """
    names = [*methods, *baselines]
    fig, (ax,) = style.panels(1, height=1.0 + 0.36 * len(names), xlabel=xlabel)
    for row, (name, values) in enumerate(methods.items()):
        color, seeds = colors[name], values[np.isfinite(values)]
        ax.plot(seeds, np.full(len(seeds), row - 0.2), "o", color=color, ms=4, alpha=0.5, mew=0)
        if len(seeds):
            ax.plot(seeds.mean(), row + 0.15, "o", color=color, ms=8)
        if len(seeds) > 1:
            _, low, high = mean_interval(seeds)
            ax.plot([low, high], [row + 0.15] * 2, color=color, linewidth=2.4)
    for row, value in enumerate(baselines.values(), start=len(methods)):
        ax.plot([value, value], [-0.5, row], color="0.4", linewidth=1, linestyle="--", zorder=1)
        ax.plot(value, row, "D", color="0.3", ms=6)
    ax.set_yticks(range(len(names)), names)
    ax.set_ylim(len(names) - 0.5, -0.5)
    ax.grid(visible=False, axis="y")
    return fig
