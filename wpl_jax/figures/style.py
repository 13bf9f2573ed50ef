"""How figures look: colours, panels, and the names of lines written at their ends.

The colours are those of Okabe and Ito, which most colour-blind readers can tell apart. Sizes are
chosen for a telephone: a figure is at most 6.4 inches wide, so that its text of 11 points is still
legible where the figure is 420 pixels wide.

References:
  Okabe and Ito, `Color universal design <https://jfly.uni-koeln.de/color/>`_, 2008.
"""

import itertools
from collections.abc import Mapping, Sequence

try:
    import matplotlib as mpl
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
except ImportError as error:
    raise ImportError(
        "figures need matplotlib: pip install '.[experiments]' in the checkout of wpl_jax"
    ) from error

__all__ = [
    "FONT_SIZE",
    "METHOD_COLORS",
    "OKABE_ITO",
    "colors_of",
    "label_ends",
    "label_panels",
    "panels",
]

OKABE_ITO = {
    "black": "#000000",
    "orange": "#E69F00",
    "sky blue": "#56B4E9",
    "green": "#009E73",
    "yellow": "#F0E442",
    "blue": "#0072B2",
    "vermilion": "#D55E00",
    "purple": "#CC79A7",
}

METHOD_COLORS = {
    "plain": OKABE_ITO["vermilion"],
    "WPL": OKABE_ITO["blue"],
    "L2 anchor": OKABE_ITO["green"],
    "frozen": OKABE_ITO["black"],
}

WIDTH = 6.4  # inches
FONT_SIZE = 11.0  # points


def colors_of(names: Sequence[str]) -> dict[str, str]:
    """A colour for each name: that of the method if it is one, else one that is left.

    Yellow, which is hardly seen on white, is not used. If there are more names than colours, some
    share one.

    Example:
      >>> from wpl_jax.figures.style import colors_of
      >>> colors_of(["WPL", "replay"])
      {'WPL': '#0072B2', 'replay': '#CC79A7'}
    """
    taken = {METHOD_COLORS[name] for name in names if name in METHOD_COLORS}
    order = ("purple", "orange", "sky blue", "green", "black", "vermilion", "blue")
    left = [OKABE_ITO[color] for color in order if OKABE_ITO[color] not in taken]
    others = itertools.cycle(left or [OKABE_ITO["black"]])
    return {name: METHOD_COLORS[name] if name in METHOD_COLORS else next(others) for name in names}


def panels(
    number: int, *, columns: int = 2, height: float = 2.6, xlabel: str = "", ylabel: str = ""
) -> tuple[Figure, list[Axes]]:
    """Panels, in rows, without the frame's upper and right side.

    Args:
      number: of panels.
      columns: of panels in a row, where there are so many.
      height: of a panel, in inches.
      xlabel: below each panel of the last row.
      ylabel: beside each panel of the first column.
    """
    columns = min(number, columns)
    rows = -(-number // columns)
    with mpl.rc_context({"font.size": FONT_SIZE, "axes.titlesize": FONT_SIZE}):
        fig = Figure(figsize=(WIDTH, height * rows), layout="constrained")
        fig.get_layout_engine().set(h_pad=0.08)  # type: ignore[union-attr, call-arg]
        axes = list(fig.subplots(rows, columns, squeeze=False).ravel())
        for i, ax in enumerate(axes):
            ax.spines[["top", "right"]].set_visible(False)
            ax.grid(alpha=0.25)
            ax.set(ylabel="" if i % columns else ylabel)
            ax.set(xlabel=xlabel if i + columns >= number else "")
    for ax in axes[number:]:
        ax.set_axis_off()
    return fig, axes[:number]


def label_ends(
    ax: Axes, ends: Sequence[tuple[float, str]], colors: Mapping[str, str], size: float = FONT_SIZE
) -> None:
    """Write the names of lines at the right of a panel, one below the other where they are close.

    Call it when the scale of the vertical axis is final and nothing else will change the panel's
    height. Several panels of a figure are faster labelled together, by :func:`label_panels`.

    Args:
      ax: the panel.
      ends: of each line, its last height and its name.
      colors: by name.
      size: of the text, in points.
    """
    label_panels([ax], [ends], colors, size)


def label_panels(
    axes: Sequence[Axes],
    ends: Sequence[Sequence[tuple[float, str]]],
    colors: Mapping[str, str],
    size: float = FONT_SIZE,
) -> None:
    """Write the names of lines as :func:`label_ends` does, in several panels of one figure.

    The figure is laid out only once, which takes longer than all the rest.

    Args:
      axes: the panels.
      ends: of each panel, of each line, its last height and its name.
      colors: by name.
      size: of the text, in points.
    """
    if axes:
        axes[0].figure.draw_without_rendering()  # type: ignore[union-attr]
    for ax, of_panel in zip(axes, ends, strict=True):
        inches = ax.get_window_extent().height / ax.figure.dpi
        line = 1.2 * size / 72 / inches  # as a share of the panel's height
        to_share = ax.transData + ax.transAxes.inverted()
        shares = sorted((float(to_share.transform((1, y))[1]), name) for y, name in of_panel)
        places = _apart(
            [share for share, _ in shares], [line * (1 + name.count("\n")) for _, name in shares]
        )
        for place, (_, name) in zip(places, shares, strict=True):
            style = {"color": colors[name], "size": size, "va": "center", "linespacing": 1.1}
            ax.text(1.02, place, name, transform=ax.transAxes, **style)  # type: ignore[arg-type]


def _apart(places: Sequence[float], heights: Sequence[float]) -> list[float]:
    """Places in ascending order, moved as little as needed for texts of these heights."""
    groups: list[list[tuple[float, float]]] = []  # of texts that touch: (place, height)
    for place, height in zip(places, heights, strict=True):
        groups.append([(place, height)])
        while len(groups) > 1 and _bounds(groups[-2])[1] > _bounds(groups[-1])[0]:
            groups[-2:] = [groups[-2] + groups[-1]]
    found = []
    for group in groups:
        low, _ = _bounds(group)
        for _, height in group:
            found.append(low + height / 2)
            low += height
    return found


def _bounds(group):
    """The lower and upper end of a stack of texts around the mean of their places, or below 1."""
    half = sum(height for _, height in group) / 2
    middle = min(sum(place for place, _ in group) / len(group), 1 - half)
    return middle - half, middle + half
