"""The curves of several runs on one axis."""

import io
import warnings
from collections.abc import Mapping

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from experiments.report.headlines import Curve
from wpl_jax.figures.style import OKABE_ITO, label_ends

ORDER = ("blue", "vermilion", "green", "purple", "orange", "sky blue", "black")  # yellow is pale
COLORS = [OKABE_ITO[name] for name in ORDER]
DASHES = ("-", "--", ":", "-.")
WIDTH = 4.8  # inches: legible on a telephone too
LABEL = 9.0  # points
LONGEST = 24  # letters of a label


def overlay(title: str, curves: Mapping[str, Curve], xlabel: str) -> bytes:
    """An SVG image of one line a run, its label at its end; the same bytes for the same curves.

    Args:
      title: what is drawn.
      curves: by label.
      xlabel: what it is drawn over.
    """
    height = max(2.9, 1.25 * LABEL / 72 * len(curves) + 0.9)  # inches: the labels have room
    names, colors, ends = clipped(list(curves)), {}, []
    settings = {"font.size": 10, "svg.fonttype": "none", "svg.hashsalt": "runs"}
    with rc_context(settings), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph")  # the browser's fonts may have what ours lack
        figure = Figure(figsize=(WIDTH, height), layout="constrained")
        ax = figure.add_subplot()
        for place, (name, (x, y)) in enumerate(zip(names, curves.values(), strict=True)):
            dash, color = divmod(place, len(COLORS))
            colors[name] = COLORS[color]
            ax.plot(x, y, DASHES[dash % len(DASHES)], color=colors[name], marker=".", markersize=3)
            if (there := np.isfinite(x) & np.isfinite(y)).any():
                ends.append((y[there][-1], name))
        ax.set(xlabel=xlabel)
        ax.set_title(plain(title), loc="left", fontsize=11)
        ax.spines[["top", "right"]].set_visible(False)
        ax.margins(x=0.02)
        ax.xaxis.set_major_locator(MaxNLocator("auto", integer=True))
        label_ends(ax, ends, colors, size=LABEL)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    return buffer.getvalue()


def clipped(labels: list[str]) -> list[str]:
    """Labels of which the ends of the long ones are left, if they still differ then."""
    short = [text if len(text) <= LONGEST else f"…{text[1 - LONGEST :]}" for text in labels]
    return [plain(text) for text in (short if len(set(short)) == len(labels) else labels)]


def plain(text: str) -> str:
    """Text that can stand in an SVG image, and that matplotlib takes for no formula."""
    return "".join(c if c.isprintable() else "\ufffd" for c in text).replace("$", r"\$")
