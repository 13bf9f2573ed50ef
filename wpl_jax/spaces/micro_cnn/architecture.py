"""The two cells of an architecture: as data, as JSON and as graphs."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

if TYPE_CHECKING:
    import networkx

OPERATIONS = ("identity", "sep_conv_3x3", "sep_conv_5x5", "avg_pool_3x3", "max_pool_3x3")


class Cell(NamedTuple):
    """A cell, as data; row ``j`` is node ``j + 2``, after the two that the cell reads."""

    inputs: jax.Array  # shape=(nodes, 2), int32: earlier nodes
    operations: jax.Array  # shape=(nodes, 2), int32: positions in OPERATIONS


class Architecture(NamedTuple):
    """The two cells that a network is made of."""

    normal: Cell
    reduction: Cell


def edge_index(cell: Cell) -> jax.Array:
    """Where a cell's edges are among all: those of node 2 first, and of it, those of one place."""
    nodes = jnp.arange(len(cell.inputs))[:, None]
    places = jnp.arange(2)[None]
    return (nodes * (nodes + 3) + places * (nodes + 2) + cell.inputs).ravel()


def loose_ends(cell: Cell) -> jax.Array:
    """Which nodes no other reads, bool [nodes + 2]."""
    read = jnp.zeros(len(cell.inputs) + 2, bool).at[cell.inputs.ravel()].set(True)
    return ~read


def to_json(architecture: Architecture) -> dict[str, Any]:
    """The cells in a form to store as JSON and to read."""
    stored: dict[str, Any] = {"space": "micro_cnn"}
    for name, cell in architecture._asdict().items():
        inputs, operations = np.asarray(cell.inputs), np.asarray(cell.operations)
        stored[name] = [
            [{"input": int(i), "operation": OPERATIONS[o]} for i, o in zip(*choices, strict=True)]
            for choices in zip(inputs, operations, strict=True)
        ]
    return stored


def from_json(stored: Any, count: int) -> Architecture:
    """The architecture that :func:`to_json` stored.

    Args:
      stored: what JSON holds.
      count: how many nodes each cell must have.

    Raises:
      ValueError: naming what is wrong with it.
    """
    if not isinstance(stored, Mapping) or stored.get("space") != "micro_cnn":
        space = stored.get("space") if isinstance(stored, Mapping) else stored
        raise ValueError(f'a micro-CNN architecture has "space": "micro_cnn", got {space!r}')
    return Architecture(*(_read_cell(name, stored, count) for name in Architecture._fields))


def _read_cell(name, stored, count):
    nodes = stored.get(name)
    if not isinstance(nodes, list) or len(nodes) != count:
        found = len(nodes) if isinstance(nodes, list) else repr(nodes)
        raise ValueError(f"the {name} cell must have {count} nodes, got {found}")
    for j, node in enumerate(nodes, start=2):
        where = f"node {j} of the {name} cell"
        if not isinstance(node, list) or len(node) != 2:
            raise ValueError(f"{where} must be a list of two inputs, got {node!r}")
        for choice in node:
            if not isinstance(choice, Mapping) or set(choice) != {"input", "operation"}:
                raise ValueError(f"{where} must have input and operation twice, got {choice!r}")
            if choice["operation"] not in OPERATIONS:
                raise ValueError(
                    f"an operation of {where} must be one of {', '.join(OPERATIONS)}, got "
                    f"{choice['operation']!r}"
                )
            if type(choice["input"]) is not int or not 0 <= choice["input"] < j:
                raise ValueError(
                    f"an input of {where} must be a node before it, 0 to {j - 1}, got "
                    f"{choice['input']!r}"
                )
    return Cell(
        jnp.array([[c["input"] for c in node] for node in nodes], jnp.int32),
        jnp.array([[OPERATIONS.index(c["operation"]) for c in n] for n in nodes], jnp.int32),
    )


_LABELS = {
    "identity": "id",
    "sep_conv_3x3": "sep\n3×3",
    "sep_conv_5x5": "sep\n5×5",
    "avg_pool_3x3": "avg\n3×3",
    "max_pool_3x3": "max\n3×3",
}


def graph(cell: Cell) -> "networkx.DiGraph":
    """The cell as a graph, for :mod:`wpl_jax.figures.cells`."""
    import networkx

    graph = networkx.DiGraph()
    for i, label in enumerate(("hₖ₋₂", "hₖ₋₁")):
        graph.add_node(i, label=label, kind="input")
    inputs, operations = np.asarray(cell.inputs), np.asarray(cell.operations)
    for j in range(2, len(inputs) + 2):
        graph.add_node(j, label=f"{j}", kind="sum")
        for place in range(2):
            name = OPERATIONS[operations[j - 2, place]]
            operation = (j, place)
            graph.add_node(operation, label=_LABELS[name], kind=name)
            graph.add_edge(int(inputs[j - 2, place]), operation)
            graph.add_edge(operation, j)
    graph.add_node("hₖ", label="hₖ", kind="output")
    graph.add_edges_from((int(j), "hₖ") for j in np.flatnonzero(loose_ends(cell)))
    return graph
