"""A drawing shows every node and edge of a cell, readably: nothing overlaps, nothing is cut off."""

import importlib
import re
import sys
from itertools import combinations

import networkx as nx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.colors import to_hex
from matplotlib.patches import Circle, FancyArrowPatch
from matplotlib.path import Path

from wpl_jax.figures.cells import dot, draw

ACTIVATIONS = ("tanh", "relu", "identity", "sigmoid")
OPERATIONS = ("identity", "sep 3×3", "sep 5×5", "avg pool", "max pool")


def recurrent_cell(predecessors):
    """A cell whose node j reads node ``predecessors[j - 1]``; loose ends meet in the output."""
    graph = nx.DiGraph()
    for name in ("xₜ", "hₜ₋₁"):
        graph.add_node(name, label=name, kind="input")
        graph.add_edge(name, 0)
    nodes = range(len(predecessors) + 1)
    for j in nodes:
        activation = ACTIVATIONS[j % 4]
        graph.add_node(j, label=f"{j}\n{activation}", kind=activation)
    graph.add_edges_from((p, j) for j, p in enumerate(predecessors, start=1))
    graph.add_node("hₜ", label="hₜ\nmean", kind="output")
    graph.add_edges_from((j, "hₜ") for j in nodes if j not in predecessors)
    return graph


CHAIN, STAR = recurrent_cell(range(11)), recurrent_cell([0] * 11)
PREDECESSORS = st.integers(1, 12).flatmap(
    lambda n: st.tuples(*(st.integers(0, j - 1) for j in range(1, n)))
)


@st.composite
def convolutional_cells(draw_from):
    """Nodes with two inputs each, edges labelled by their operations."""
    graph = nx.DiGraph()
    names = ["h[i-2]", "h[i-1]"]
    graph.add_nodes_from(names, kind="input")
    for j in range(draw_from(st.integers(1, 5))):
        for source in draw_from(st.permutations(names))[:2]:
            graph.add_edge(source, j, label=draw_from(st.sampled_from(OPERATIONS)))
        graph.add_node(j, kind="add")
        names.append(j)
    loose = [j for j in names if not graph.out_degree(j)]
    graph.add_edges_from((j, "concat") for j in loose)
    graph.add_node("concat", kind="output")
    for node, data in graph.nodes(data=True):
        data["label"] = str(node)
    return graph


def circles(ax):
    return [patch for patch in ax.patches if isinstance(patch, Circle)]


def curves(ax):
    """Points along the line of every edge."""
    lines = []
    for arrow in ax.patches:
        if isinstance(arrow, FancyArrowPatch):
            path = arrow.get_path()
            end = np.flatnonzero(path.codes == path.MOVETO)[1]  # where the arrow's head begins
            line = Path(path.vertices[:end], path.codes[:end])
            pieces = [piece(np.linspace(0, 1, 12)) for piece, _ in line.iter_bezier()]
            lines.append(np.concatenate(pieces))
    return lines


def boxes(texts):
    return [text.get_window_extent() for text in texts if text.get_text()]


def distance(point, circle):
    return np.linalg.norm(np.subtract(point, circle.center), axis=-1)


def check_layout(graph):
    """What must hold for every cell; circles are in the order of the graph's nodes."""
    (ax,) = draw({"cell": graph}).axes
    places = dict(zip(graph, circles(ax), strict=True))
    for a, b in combinations(places.values(), 2):
        assert distance(a.center, b) > a.radius + b.radius
    for (u, v), curve in zip(graph.edges, curves(ax), strict=True):
        assert distance(curve[0], places[u]) == pytest.approx(places[u].radius, abs=0.02)
        assert distance(curve[-1], places[v]) == pytest.approx(places[v].radius, abs=0.02)
        assert np.all(np.diff(curve[:, 1]) > -1e-9), "an edge goes up"
        for node, circle in places.items():
            if node not in (u, v):
                assert np.all(distance(curve, circle) > circle.radius), f"{u, v} touches {node}"
    return ax


@settings(max_examples=15, deadline=None)
@given(PREDECESSORS)
def test_nothing_overlaps_and_no_edges_cross_in_a_recurrent_cell(predecessors):
    graph = recurrent_cell(predecessors)
    ax = check_layout(graph)
    for (edge, a), (other, b) in combinations(zip(graph.edges, curves(ax), strict=True), 2):
        y = np.linspace(max(a[0, 1], b[0, 1]), min(a[-1, 1], b[-1, 1]), 100)
        gap = np.interp(y, *a.T[::-1]) - np.interp(y, *b.T[::-1])
        crossed = y[0] < y[-1] and gap.min() < -0.01 and gap.max() > 0.01
        assert not crossed, f"{edge} crosses {other}"


@settings(max_examples=15, deadline=None)
@given(convolutional_cells())
def test_nothing_overlaps_in_a_cell_with_labelled_edges(graph):
    ax = check_layout(graph)
    texts = boxes(ax.texts)
    assert len(texts) == len(graph) + len(nx.get_edge_attributes(graph, "label"))
    for a, b in combinations(texts, 2):
        assert not a.overlaps(b)


@pytest.mark.parametrize("graph", [CHAIN, STAR], ids=["chain", "star"])
def test_the_extremes_of_twelve_nodes(graph):
    ax = check_layout(graph)
    heights = {circle.center[1] for circle in circles(ax)}
    assert len(heights) == nx.dag_longest_path_length(graph) + 1


def test_every_node_and_edge_is_drawn_once_with_its_label():
    graphs = {"one": CHAIN, "two": recurrent_cell((0, 0, 1))}
    figure = draw(graphs, title="cells")
    assert figure.get_suptitle() == "cells"
    for ax, (name, graph) in zip(figure.axes, graphs.items(), strict=True):
        assert ax.get_title() == name
        assert [text.get_text() for text in ax.texts] == [
            label for _, label in graph.nodes(data="label")
        ]
        assert len(circles(ax)) == len(graph)
        assert len(curves(ax)) == graph.number_of_edges()


def test_the_legend_says_what_the_colours_mean():
    graph = recurrent_cell((0, 1, 1, 1))
    graph.nodes[4].update(label="4", kind="swish")
    figure = draw({"cell": graph})
    (legend,) = figure.legends
    colors = {
        text.get_text(): to_hex(handle.get_markerfacecolor())
        for text, handle in zip(legend.get_texts(), legend.legend_handles, strict=True)
    }
    assert list(colors) == ["input", "tanh", "relu", "identity", "sigmoid", "swish", "output"]
    assert len(set(colors.values())) == len(colors)
    drawn = [to_hex(circle.get_facecolor()) for circle in circles(figure.axes[0])]
    assert drawn == [colors[kind] for _, kind in graph.nodes(data="kind")]


def test_a_kind_keeps_its_colour_when_others_are_absent():
    def color_of(node, graph):
        circle = dict(zip(graph, circles(draw({"": graph}).axes[0]), strict=True))[node]
        return to_hex(circle.get_facecolor())

    assert color_of(1, recurrent_cell((0,))) == color_of(1, CHAIN)


@pytest.mark.parametrize(
    ("graphs", "title"),
    [
        ({"chain": CHAIN}, None),
        ({"star": STAR}, "A title that is much wider than anything that stands below it " * 2),
        ({"a heading far wider than this small cell" * 2: recurrent_cell(())}, "cell"),
        ({f"{i}\nof nine": recurrent_cell((0, 1, 0, i % 4)) for i in range(9)}, "nine"),
    ],
    ids=["chain", "star", "one node", "nine"],
)
def test_all_text_is_inside_the_figure_and_apart(graphs, title):
    figure = draw(graphs, title)
    figure.draw_without_rendering()  # places the legend
    cells = [text for ax in figure.axes for text in (ax.title, *ax.texts)]
    texts = boxes([*figure.texts, *cells, *figure.legends[0].get_texts()])
    for box in texts:
        assert figure.bbox.x0 <= box.x0 < box.x1 <= figure.bbox.x1
        assert figure.bbox.y0 <= box.y0 < box.y1 <= figure.bbox.y1
    for a, b in combinations(texts, 2):
        assert not a.overlaps(b)


def test_a_label_stays_within_its_circle():
    graph = recurrent_cell((0, 1))
    graph.nodes[1]["label"] = "1\na rather long name"
    ax = draw({"cell": graph}).axes[0]
    for circle, text in zip(circles(ax), ax.texts, strict=True):
        corners = ax.transData.inverted().transform(text.get_window_extent().corners())
        assert np.all(distance(corners, circle) < circle.radius)


def test_panels_fill_a_page_and_then_another_row():
    figure = draw({str(i): CHAIN for i in range(10)})
    lefts = [ax.get_position().x0 for ax in figure.axes]
    tops = [ax.get_position().y1 for ax in figure.axes]
    assert figure.get_figwidth() < 9.5
    assert len(set(np.round(tops, 6))) > 1
    assert sorted(zip(-np.round(tops, 6), lefts, strict=True)) == list(
        zip(-np.round(tops, 6), lefts, strict=True)
    )


@pytest.mark.parametrize(
    ("graphs", "message"),
    [
        ({}, "nothing to draw"),
        ({"empty": nx.DiGraph()}, "'empty' has no nodes"),
        ({"ring": nx.DiGraph([(0, 1), (1, 0)])}, r"'ring' has a cycle: \[\(0, 1\), \(1, 0\)\]"),
    ],
)
def test_what_is_no_cell_is_refused(graphs, message):
    with pytest.raises(ValueError, match=message):
        draw(graphs)


def test_more_kinds_than_colours_are_refused():
    graph = nx.DiGraph()
    for i in range(9):
        graph.add_node(i, label=str(i), kind=f"kind {i}")
    with pytest.raises(ValueError, match=r"colours for 8 kinds of node, got kind 0, .* kind 8"):
        dot(graph, "cell")


STRING = r'"((?:[^"\\]|\\.)*)"'


def parse(text):
    """Nodes' labels and edges' of a DOT text, which must hold nothing else."""

    def plain(quoted):
        return re.sub(r"\\(.)", lambda m: {"n": "\n"}.get(m[1], m[1]), quoted)

    head, settings_line, *lines, foot = text.split("\n")
    name = re.fullmatch(f"digraph {STRING} {{", head)
    assert settings_line == "  node [shape=circle, style=filled];"
    assert foot == "}"
    nodes, edges = {}, {}
    for line in lines:
        if found := re.fullmatch(
            rf'  {STRING} \[label={STRING}, fillcolor="#[0-9A-F]{{6}}"\];', line
        ):
            nodes[plain(found[1])] = plain(found[2])
        else:
            found = re.fullmatch(rf"  {STRING} -> {STRING}(?: \[label={STRING}\])?;", line)
            edges[plain(found[1]), plain(found[2])] = found[3] and plain(found[3])
    return plain(name[1]), nodes, edges


@pytest.mark.parametrize(
    "text", ["cell", 'a "quoted" name', "C:\\n and \\", "two\nlines", "{x; -> y}"]
)
def test_dot_holds_every_node_and_edge_whatever_their_text(text):
    graph = recurrent_cell((0, 0, 1))
    graph.nodes[2]["label"] = text
    graph.edges[0, 2]["label"] = text
    graph = nx.relabel_nodes(graph, {3: text})
    name, nodes, edges = parse(dot(graph, text))
    assert name == text
    assert nodes == {str(node): label for node, label in graph.nodes(data="label")}
    assert edges == {(str(u), str(v)): label for u, v, label in graph.edges(data="label")}


@pytest.mark.parametrize("module", ["matplotlib.figure", "networkx", "scipy.optimize"])
def test_a_missing_package_names_the_extra(monkeypatch, module):
    monkeypatch.delitem(sys.modules, "wpl_jax.figures.cells")
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=r"pip install '.\[experiments\]'"):
        importlib.import_module("wpl_jax.figures.cells")
