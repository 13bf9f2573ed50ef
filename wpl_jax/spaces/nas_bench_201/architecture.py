"""The cell: as data, as published, as JSON and as a graph; all cells, and which are alike."""

import functools
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    import networkx

OPERATIONS = ("none", "skip_connect", "nor_conv_1x1", "nor_conv_3x3", "avg_pool_3x3")

EDGES = ((0, 1), (0, 2), (1, 2), (0, 3), (1, 3), (2, 3))
"""The node that each edge reads and the one that it is added to, in the order of the strings."""

Ints = npt.NDArray[np.int32]


class Architecture(NamedTuple):
    """The cell that a network is made of, as data."""

    operations: jax.Array  # shape=(6,), int32: for each edge a position in OPERATIONS


def to_string(architecture: Architecture) -> str:
    """The published string of an architecture: the edges into node 1, into node 2, into node 3.

    Example:
      >>> from wpl_jax.spaces.nas_bench_201.architecture import Architecture, to_string
      >>> to_string(Architecture([3, 0, 1, 2, 4, 1]))
      '|nor_conv_3x3~0|+|none~0|skip_connect~1|+|nor_conv_1x1~0|avg_pool_3x3~1|skip_connect~2|'
    """
    groups: dict[int, str] = {}
    for (source, node), operation in zip(EDGES, np.asarray(architecture.operations), strict=True):
        groups[node] = f"{groups.get(node, '|')}{OPERATIONS[operation]}~{source}|"
    return "+".join(groups.values())


def from_string(string: Any) -> Architecture:
    """The architecture of a published string.

    Raises:
      ValueError: naming what is wrong with it.
    """
    form = "|op~0|+|op~0|op~1|+|op~0|op~1|op~2|"
    if not isinstance(string, str):
        raise ValueError(f"an architecture is a string, {form}, got {string!r}")
    if re.sub(r"[^|~+]+(?=~)", "op", string) != form:
        raise ValueError(f"an architecture is {form}, got {string!r}")
    names = re.findall(r"[^|~+]+(?=~)", string)
    for (source, node), name in zip(EDGES, names, strict=True):
        if name not in OPERATIONS:
            raise ValueError(
                f"the operation from node {source} to node {node} must be one of "
                f"{', '.join(OPERATIONS)}, got {name!r} in {string!r}"
            )
    return Architecture(jnp.array([OPERATIONS.index(name) for name in names], jnp.int32))


def to_json(architecture: Architecture) -> dict[str, Any]:
    """The cell in a form to store as JSON and to read: its published string."""
    return {"space": "nas_bench_201", "architecture": to_string(architecture)}


def from_json(stored: Any) -> Architecture:
    """The architecture that :func:`to_json` stored.

    Raises:
      ValueError: naming what is wrong with it.
    """
    if not isinstance(stored, Mapping) or stored.get("space") != "nas_bench_201":
        space = stored.get("space") if isinstance(stored, Mapping) else stored
        raise ValueError(
            f'a NAS-Bench-201 architecture has "space": "nas_bench_201", got {space!r}'
        )
    return from_string(stored.get("architecture"))


# --- All of them ----------------------------------------------------------------------------------


@functools.cache
def every() -> Ints:
    """The operations of all architectures in counting order, int32 [15625, 6]; not to be changed.

    The last edge counts fastest, so the first architecture has no operation at all, and the second
    a ``skip_connect`` from node 2 to node 3.
    """
    shape = (len(OPERATIONS),) * len(EDGES)
    return _constant(np.indices(shape).reshape(len(shape), -1).T)


def number(operations: npt.ArrayLike) -> npt.NDArray[np.intp]:
    """Where architectures are in :func:`every`: int [...] for operations, int [..., 6].

    Example:
      >>> from wpl_jax.spaces.nas_bench_201.architecture import every, number
      >>> int(number([0, 0, 0, 0, 1, 2])), every()[7].tolist()
      (7, [0, 0, 0, 0, 1, 2])
    """
    return np.asarray(operations) @ len(OPERATIONS) ** np.arange(len(EDGES))[::-1]


@functools.cache
def classes() -> Ints:
    """For each architecture the first in its class of isomorphism; int32 [15625].

    Architectures are in one class where the benchmark says that they are, by what node 3 adds up,
    written as a string. The input is ``0``. An edge with ``none``, or one that reads a node that is
    ``#``, is ``#``, nothing; with ``skip_connect``, what it reads; with any other operation,
    ``(what it reads)@operation``. A node is its edges, sorted and joined by ``+``. That leaves
    6,466 classes.

    Architectures of one class compute the same functions, if a convolution that is added twice may
    as well be two. The reverse does not hold: the rule does not see that ``#+#`` is nothing too,
    nor that a sum within a sum can be taken in any order.

    References:
      Dong and Yang, `NAS-Bench-201 <https://arxiv.org/abs/2001.00326>`_, 2020, section 2.1.
    """
    expressions = [_expression(operations) for operations in every().tolist()]
    _, first, place = np.unique(expressions, return_index=True, return_inverse=True)
    return _constant(first[place])


@functools.cache
def distinct() -> Ints:
    """The operations of the first architecture of each class; int32 [6466, 6]."""
    return _constant(every()[np.unique(classes())])


def _expression(operations):
    """What node 3 adds up; see :func:`classes`."""
    nodes, edges = ["0"], iter(operations)
    for _ in range(3):
        terms = []
        for source in nodes:
            name = OPERATIONS[next(edges)]
            if name == "none" or source == "#":
                terms.append("#")
            else:
                terms.append(source if name == "skip_connect" else f"({source})@{name}")
        nodes.append("+".join(sorted(terms)))
    return nodes[-1]


def _constant(array):
    array = np.ascontiguousarray(array, np.int32)
    array.flags.writeable = False
    return array


# --- Drawing --------------------------------------------------------------------------------------

_LABELS = {
    "skip_connect": "id",
    "nor_conv_1x1": "conv\n1×1",
    "nor_conv_3x3": "conv\n3×3",
    "avg_pool_3x3": "avg\n3×3",
}


def graph(architecture: Architecture) -> "networkx.DiGraph":
    """The cell as a graph, for :mod:`wpl_jax.figures.cells`; edges with ``none`` are left out."""
    import networkx

    graph = networkx.DiGraph()
    graph.add_node(0, label="x", kind="input")
    for node in (1, 2):
        graph.add_node(node, label=f"{node}", kind="sum")
    graph.add_node(3, label="h", kind="output")
    for (source, node), place in zip(EDGES, np.asarray(architecture.operations), strict=True):
        name = OPERATIONS[place]
        if name != "none":
            graph.add_node((source, node), label=_LABELS[name], kind=name)
            graph.add_edges_from([(source, (source, node)), ((source, node), node)])
    return graph
