"""Drawings of the cells that a search finds, for any search space.

A cell is a directed graph of operations. Each node has a ``label``, its text, and a ``kind``, which
decides its colour: an activation, an operation, ``"input"`` or ``"output"``. An edge may have a
``label``.

This module needs matplotlib, networkx and scipy, which the ``experiments`` extra installs. It does
not need graphviz. Nothing is shown or saved here: :func:`draw` returns a
``matplotlib.figure.Figure``, :func:`dot` a string.
"""

from collections.abc import Hashable, Iterable, Mapping
from itertools import chain, combinations, pairwise
from typing import NamedTuple

import numpy as np

try:
    import networkx as nx
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D
    from matplotlib.patches import Circle, FancyArrowPatch
    from matplotlib.path import Path
    from scipy.linalg import block_diag
    from scipy.optimize import lsq_linear
except ImportError as error:
    raise ImportError(
        "drawing needs matplotlib, networkx and scipy: pip install '.[experiments]' in the checkout"
    ) from error

__all__ = ["dot", "draw"]

# Paul Tol's "light" scheme: told apart with every kind of colour vision, and under black text.
_ENDS = {"input": "#DDDDDD", "output": "#FFFFFF"}
_NAMED = {"tanh": "#77AADD", "relu": "#EE8866", "identity": "#EEDD88", "sigmoid": "#44BB99"}
_UNNAMED = ("#FFAABB", "#99DDFF", "#AAAA00", "#BBCC33")
_INK = "#333333"

# Inches; sizes of text are in points.
_NODE_TEXT, _EDGE_TEXT, _PANEL_TEXT, _TITLE_TEXT = 8, 7, 10, 12
_GAP = 0.12  # between neighbours in a layer
_DROP = 0.22  # between layers, and more where an edge goes far to the side
_MARGIN = 0.15
_PAGE = 9.0  # a panel that would make a row wider than this begins another


class _Layout(NamedTuple):
    """Where a graph is drawn, in inches from the upper left corner."""

    nodes: dict[Hashable, tuple[float, float]]  # centres
    edges: list[Path]
    labels: list[tuple[str, tuple[float, float]]]  # of edges, and their centres
    width: float
    height: float


def draw(
    graphs: Mapping[str, nx.DiGraph], title: str | None = None, *, page_width: float = _PAGE
) -> Figure:
    """Draw cells from top to bottom, one panel each, with one legend for the colours.

    A node stands below everything that it depends on. Edges are led around the nodes that they do
    not belong to.

    Args:
      graphs: graphs without cycles, by the titles of their panels.
      title: a title above all panels; by default none.
      page_width: inches that panels may fill side by side; one that is wider stands alone.

    Raises:
      ValueError: for no graph, a graph without nodes or with a cycle, or more kinds than colours.

    Example:
      >>> import networkx as nx
      >>> from wpl_jax.figures.cells import draw
      >>> cell = nx.DiGraph([("x", 0), (0, "h")])
      >>> cell.nodes["x"].update(label="xₜ", kind="input")
      >>> cell.nodes[0].update(label="0, tanh", kind="tanh")
      >>> cell.nodes["h"].update(label="hₜ", kind="output")
      >>> [ax.get_title() for ax in draw({"one node": cell}).axes]
      ['one node']
    """
    if not graphs:
        raise ValueError("there is nothing to draw: give at least one graph")
    for name, graph in graphs.items():
        if not graph:
            raise ValueError(f"the graph {name!r} has no nodes")
        if not nx.is_directed_acyclic_graph(graph):
            raise ValueError(f"the graph {name!r} has a cycle: {nx.find_cycle(graph)}")
    colors = _colors(graphs.values())
    labels = {data["label"] for graph in graphs.values() for _, data in graph.nodes(data=True)}
    radius = max(np.hypot(*_size(label, _NODE_TEXT)) for label in labels) / 2 + 0.02
    layouts = {name: _layout(graph, radius) for name, graph in graphs.items()}
    names = {name: _size(name, _PANEL_TEXT) for name in graphs}
    heading = max(height for _, height in names.values()) + 2 * _MARGIN
    widths = {n: max(layouts[n].width, width) + 2 * _MARGIN for n, (width, _) in names.items()}
    rows = _rows(widths, page_width)
    row_widths = [sum(widths[name] for name in row) for row in rows]
    row_heights = [heading + max(layouts[name].height for name in row) for row in rows]

    fig = Figure()
    legend_width, legend_height = _legend(fig, colors, max(page_width, *row_widths))
    title_width, title_height = _size(title or "", _TITLE_TEXT)
    width = max(*row_widths, legend_width + 2 * _MARGIN, title_width + 2 * _MARGIN)
    height = title_height + sum(row_heights) + 2 * _MARGIN + legend_height
    fig.set_size_inches(width, height)
    if title:
        fig.suptitle(title, fontsize=_TITLE_TEXT, y=1 - _MARGIN / height)
    top = height - title_height
    for row, row_width, row_height in zip(rows, row_widths, row_heights, strict=True):
        left = (width - row_width) / 2
        for name in row:
            layout = layouts[name]
            x = left + (widths[name] - layout.width) / 2
            y = top - heading - layout.height
            ax = fig.add_axes(
                (x / width, y / height, layout.width / width, layout.height / height),
                xlim=(0, layout.width),
                ylim=(layout.height, 0),
            )
            ax.set_axis_off()
            ax.set_title(name, fontsize=_PANEL_TEXT)
            _draw_cell(ax, graphs[name], layout, radius, colors)
            left += widths[name]
        top -= row_height
    return fig


def dot(graph: nx.DiGraph, name: str) -> str:
    r"""The graph in graphviz's DOT language, with the colours of :func:`draw`.

    Args:
      graph: a graph as :func:`draw` takes it.
      name: its name in the DOT text.

    Example:
      >>> import networkx as nx
      >>> from wpl_jax.figures.cells import dot
      >>> cell = nx.DiGraph([(0, "h")])
      >>> cell.nodes[0].update(label="0, tanh", kind="tanh")
      >>> cell.nodes["h"].update(label="hₜ", kind="output")
      >>> print(dot(cell, "one node"))
      digraph "one node" {
        node [shape=circle, style=filled];
        "0" [label="0, tanh", fillcolor="#77AADD"];
        "h" [label="hₜ", fillcolor="#FFFFFF"];
        "0" -> "h";
      }
    """
    colors = _colors([graph])
    lines = [f"digraph {_quote(name)} {{", "  node [shape=circle, style=filled];"]
    for node, data in graph.nodes(data=True):
        label, color = _quote(data["label"]), _quote(colors[data["kind"]])
        lines.append(f"  {_quote(node)} [label={label}, fillcolor={color}];")
    for u, v, label in graph.edges(data="label"):
        attributes = f" [label={_quote(label)}]" if label else ""
        lines.append(f"  {_quote(u)} -> {_quote(v)}{attributes};")
    return "\n".join([*lines, "}"])


def _quote(text):
    escaped = str(text).replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
    return f'"{escaped}"'


def _colors(graphs: Iterable[nx.DiGraph]) -> dict[str, str]:
    """By kind, inputs first and outputs last; a kind that has no colour takes the next free one."""
    kinds = {data["kind"] for graph in graphs for _, data in graph.nodes(data=True)}
    inner = {kind: color for kind, color in _NAMED.items() if kind in kinds}
    others = sorted(kinds - inner.keys() - _ENDS.keys())
    free = [c for c in (*_UNNAMED, *_NAMED.values()) if c not in inner.values()]
    if len(others) > len(free):
        raise ValueError(
            f"there are colours for {len(_NAMED) + len(_UNNAMED)} kinds of node, got "
            f"{', '.join([*inner, *others])}"
        )
    inner |= dict(zip(others, free, strict=False))
    colors = {"input": _ENDS["input"]} | inner | {"output": _ENDS["output"]}
    return {kind: color for kind, color in colors.items() if kind in kinds}


def _size(text: str, points: float) -> tuple[float, float]:
    """Width and height of a text in inches."""
    fig = Figure()
    box = fig.text(0, 0, text, fontsize=points).get_window_extent()
    return box.width / fig.dpi, box.height / fig.dpi


def _rows(widths: dict[str, float], page: float) -> list[list[str]]:
    rows: list[list[str]] = [[]]
    for name, width in widths.items():
        if rows[-1] and sum(widths[other] for other in rows[-1]) + width > page:
            rows.append([])
        rows[-1].append(name)
    return rows


def _legend(fig, colors, page):
    """The legend's width and height in inches, once it stands below, in as few rows as fit."""
    handles = [
        Line2D([], [], linestyle="", marker="o", markersize=9, mfc=color, mec=_INK, label=kind)
        for kind, color in colors.items()
    ]
    for rows in range(-(-len(colors) // 6), len(colors) + 1):
        legend = fig.legend(
            handles=handles,
            loc="lower center",
            ncols=-(-len(colors) // rows),
            fontsize=_NODE_TEXT,
            frameon=False,
            handletextpad=0.2,
        )
        size = legend.get_window_extent().size / fig.dpi
        if size[0] + 2 * _MARGIN <= page or rows == len(colors):
            break
        legend.remove()
    return size


def _draw_cell(ax, graph, layout, radius, colors):
    line: dict = {"edgecolor": _INK, "linewidth": 0.9, "clip_on": False}
    for path in layout.edges:
        arrow = FancyArrowPatch(
            path=path, arrowstyle="-|>", mutation_scale=8, facecolor=_INK, **line
        )
        ax.add_artist(arrow)
    for text, place in layout.labels:
        box = {"facecolor": "white", "edgecolor": "none", "pad": 1}
        ax.text(*place, text, fontsize=_EDGE_TEXT, ha="center", va="center", bbox=box)
    for node, place in layout.nodes.items():
        data = graph.nodes[node]
        ax.add_artist(Circle(place, radius, facecolor=colors[data["kind"]], **line))
        ax.text(*place, data["label"], fontsize=_NODE_TEXT, ha="center", va="center")


def _layout(graph: nx.DiGraph, radius: float) -> _Layout:
    """Layers by longest path (Sugiyama's method).

    Every edge becomes a route of one step a layer, with a bend in each layer that it skips. Bends
    take part in the placing as nodes do, so that nothing else lies on a route.
    """
    texts: dict = {}
    routes: dict = {}
    for u, v, label in graph.edges(data="label"):
        bends = [object()] if label else []  # where the label stands
        texts |= dict.fromkeys(bends, label)
        routes[u, v] = [u, *bends, v]
    layers = nx.topological_generations(_steps(graph, routes))
    depths = {place: depth for depth, layer in enumerate(layers) for place in layer}
    for edge, route in routes.items():
        routes[edge] = route[:1]
        for a, b in pairwise(route):
            routes[edge] += [*(object() for _ in range(depths[b] - depths[a] - 1)), b]
    steps = _steps(depths, routes)
    half = dict.fromkeys(steps, (0.0, 0.0)) | dict.fromkeys(graph, (radius, radius))
    for bend, text in texts.items():
        width, height = _size(text, _EDGE_TEXT)
        half[bend] = (width / 2 + 0.03, height / 2 + 0.03)

    layers = _ordered(steps, [list(layer) for layer in nx.topological_generations(steps)])
    x = _abscissae(steps, layers, {place: width for place, (width, _) in half.items()}, set(graph))
    y: dict = {}
    reach: dict = {}  # how far a route runs straight on either side of a place
    bottom = 0.0
    for layer in layers:
        aside = [abs(x[u] - x[v]) for u, v in steps.in_edges(layer)]
        reach |= dict.fromkeys(layer, max(half[place][1] for place in layer))
        bottom += (_DROP + 0.15 * max(aside) if aside else 0.0) + 2 * reach[layer[0]]
        y |= dict.fromkeys(layer, bottom - reach[layer[0]])
    reach |= dict.fromkeys(graph, radius)
    return _Layout(
        nodes={node: (x[node], y[node]) for node in graph},
        edges=[_curve([(x[p], y[p], reach[p]) for p in route]) for route in routes.values()],
        labels=[(text, (x[bend], y[bend])) for bend, text in texts.items()],
        width=max(x[place] + width for place, (width, _) in half.items()),
        height=bottom,
    )


def _steps(places, routes):
    steps = nx.DiGraph()
    steps.add_nodes_from(places)
    for route in routes.values():
        nx.add_path(steps, route)
    return steps


def _ordered(steps: nx.DiGraph, layers: list[list]) -> list[list]:
    """The layers, each ordered by its neighbours' means, down and up: few crossings, or none."""
    best = layers
    for sweep in range(16):
        down = sweep % 2 == 0
        neighbours = steps.predecessors if down else steps.successors
        layers = [list(layer) for layer in layers]
        rank: dict = {}
        for layer in layers if down else reversed(layers):
            means = {
                place: np.mean([rank[other] for other in neighbours(place)] or [i])
                for i, place in enumerate(layer)
            }
            layer.sort(key=means.__getitem__)
            rank |= {place: i for i, place in enumerate(layer)}
        best = min(best, layers, key=lambda candidate: _crossings(steps, candidate))
    return best


def _crossings(steps, layers):
    rank = {place: i for layer in layers for i, place in enumerate(layer)}
    return sum(
        (rank[a] - rank[c]) * (rank[b] - rank[d]) < 0
        for layer in layers
        for (a, b), (c, d) in combinations(steps.out_edges(layer), 2)
    )


def _abscissae(steps: nx.DiGraph, layers: list[list], half_widths: dict, nodes: set) -> dict:
    """Where steps go least sideways, in least squares, given the order and the gaps of the layers.

    The unknowns are each layer's first place and the distances between neighbours, which have lower
    bounds. Steps between two bends count most, so that long edges are straight.
    """
    to_places = block_diag(*(np.tril(np.ones((len(layer), len(layer)))) for layer in layers))
    bounds = list(
        chain.from_iterable(
            [-np.inf, *(half_widths[a] + half_widths[b] + _GAP for a, b in pairwise(layer))]
            for layer in layers
        )
    )
    index = {place: i for i, place in enumerate(chain.from_iterable(layers))}
    stiffness = {0: 6.0, 1: 1.0, 2: 1.5}  # by how many of the two are nodes
    rows = [
        stiffness[(u in nodes) + (v in nodes)] * (to_places[index[u]] - to_places[index[v]])
        for u, v in steps.edges
    ]
    rows.append(to_places[0])  # else all could move together
    result = lsq_linear(rows, np.zeros(len(rows)), (bounds, np.inf), method="bvls")
    x = to_places @ result.x
    x -= min(x[i] - half_widths[place] for place, i in index.items())
    return {place: float(x[i]) for place, i in index.items()}


def _curve(places: list[tuple[float, float, float]]) -> Path:
    """From below the first place to above the last, straight down past the ones between."""
    vertices, codes = [], []
    for (x, y, reach), (x_next, y_next, reach_next) in pairwise(places):
        start, end = y + reach, y_next - reach_next
        middle = (start + end) / 2
        vertices += [(x, start), (x, middle), (x_next, middle), (x_next, end)]
        codes += [Path.LINETO, Path.CURVE4, Path.CURVE4, Path.CURVE4]
    return Path(vertices, [Path.MOVETO, *codes[1:]])
