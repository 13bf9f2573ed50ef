"""A cell: as data, as JSON and as a graph."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

if TYPE_CHECKING:
    import networkx

ACTIVATIONS = ("tanh", "relu", "identity", "sigmoid")


class Architecture(NamedTuple):
    """A cell, as data."""

    activations: jax.Array  # shape=(nodes,), int32: positions in ACTIVATIONS
    predecessors: jax.Array  # shape=(nodes - 1,), int32: the node that node 1, 2, … reads


def edge_index(architecture: Architecture) -> jax.Array:
    """Where the edges of a cell are in the shared tensor: edge ``i -> j`` at ``j(j-1)/2 + i``."""
    j = jnp.arange(1, len(architecture.activations))
    return j * (j - 1) // 2 + architecture.predecessors


def to_json(architecture: Architecture) -> dict[str, Any]:
    """The cell in a form to store as JSON and to read."""
    activations = [ACTIVATIONS[a] for a in np.asarray(architecture.activations)]
    nodes: list[dict[str, Any]] = [{"activation": activations[0]}]
    nodes += [
        {"predecessor": int(p), "activation": a}
        for p, a in zip(np.asarray(architecture.predecessors), activations[1:], strict=True)
    ]
    return {"space": "rnn", "nodes": nodes}


def from_json(stored: Any, count: int) -> Architecture:
    """The cell that :func:`to_json` stored.

    Args:
      stored: what JSON holds.
      count: how many nodes it must have.

    Raises:
      ValueError: naming what is wrong with it.
    """
    if not isinstance(stored, Mapping) or stored.get("space") != "rnn":
        space = stored.get("space") if isinstance(stored, Mapping) else stored
        raise ValueError(f'an RNN cell has "space": "rnn", got {space!r}')
    nodes = stored.get("nodes")
    if not isinstance(nodes, list) or len(nodes) != count:
        found = len(nodes) if isinstance(nodes, list) else repr(nodes)
        raise ValueError(f"the cell must have {count} nodes, got {found}")
    for j, node in enumerate(nodes):
        wanted = {"activation"} | ({"predecessor"} if j else set())
        if not isinstance(node, Mapping) or set(node) != wanted:
            raise ValueError(f"node {j} must have {' and '.join(sorted(wanted))}, got {node}")
        if node["activation"] not in ACTIVATIONS:
            raise ValueError(
                f"node {j}'s activation must be one of {', '.join(ACTIVATIONS)}, "
                f"got {node['activation']!r}"
            )
        if j and (type(node["predecessor"]) is not int or not 0 <= node["predecessor"] < j):
            raise ValueError(
                f"node {j}'s predecessor must be a node before it, 0 to {j - 1}, "
                f"got {node['predecessor']!r}"
            )
    return Architecture(
        jnp.array([ACTIVATIONS.index(node["activation"]) for node in nodes], jnp.int32),
        jnp.array([node["predecessor"] for node in nodes[1:]], jnp.int32),
    )


def graph(architecture: Architecture) -> "networkx.DiGraph":
    """The cell as a graph, for :mod:`wpl_jax.figures.cells`."""
    import networkx

    predecessors = [int(p) for p in architecture.predecessors]
    graph = networkx.DiGraph()
    for label in ("xₜ", "hₜ₋₁"):
        graph.add_node(label, label=label, kind="input")
        graph.add_edge(label, 0)
    for j, number in enumerate(architecture.activations):
        activation = ACTIVATIONS[int(number)]
        graph.add_node(j, label=f"{j}\n{activation}", kind=activation)
    graph.add_node("hₜ", label="hₜ", kind="output")
    graph.add_edges_from((p, j) for j, p in enumerate(predecessors, start=1))
    graph.add_edges_from((j, "hₜ") for j in range(len(predecessors) + 1) if j not in predecessors)
    return graph
