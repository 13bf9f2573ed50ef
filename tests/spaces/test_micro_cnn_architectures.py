"""Architectures of the micro-CNN space: decisions, sizes, files and graphs."""

import copy
import dataclasses
import functools
import itertools
import json
import math

import chex
import hypothesis
import jax
import jax.extend
import jax.numpy as jnp
import networkx as nx
import numpy as np
import pytest
from hypothesis import strategies as st
from jax import jit
from plain_micro_cnn import (
    EVEN,
    KERNELS,
    ODD,
    STAGES,
    by_hand,
    cell,
    layers,
    loose_ends,
    multiplications,
    random_architecture,
)

from wpl_jax.figures.cells import draw as draw_graphs
from wpl_jax.spaces.micro_cnn import OPERATIONS, Architecture, MicroCNN

# --- Architectures --------------------------------------------------------------------------------


def test_decisions():
    assert MicroCNN().decisions == 2 * (2, 5, 2, 5, 3, 5, 3, 5, 4, 5, 4, 5, 5, 5, 5, 5, 6, 5, 6, 5)
    actions = np.array([0, 1, 1, 4, 2, 3, 0, 0, 1, 2, 0, 3, 1, 1, 2, 4])
    architecture = ODD.decode(actions)
    expected = Architecture(
        cell((0, "sep_conv_3x3", 1, "max_pool_3x3"), (2, "avg_pool_3x3", 0, "identity")),
        cell((1, "sep_conv_5x5", 0, "avg_pool_3x3"), (1, "sep_conv_3x3", 2, "max_pool_3x3")),
    )
    chex.assert_trees_all_equal(architecture, expected)
    chex.assert_type(jax.tree.leaves(architecture), jnp.int32)
    chex.assert_trees_all_equal(jit(ODD.decode)(actions), expected)


def architectures(space):
    actions = st.tuples(*(st.integers(0, n - 1) for n in space.decisions))
    return actions.map(lambda a: jax.device_get(space.decode(np.array(a))))


@hypothesis.settings(deadline=None, max_examples=30)
@hypothesis.given(architectures(EVEN))
def test_an_architecture_is_read_as_it_was_written(architecture):
    read = EVEN.from_json(json.loads(json.dumps(EVEN.to_json(architecture))))
    chex.assert_trees_all_equal(read, architecture)
    chex.assert_trees_all_equal_shapes_and_dtypes(read, architecture)
    chex.assert_trees_all_equal(EVEN.from_json(EVEN.to_json(read)), architecture)


@pytest.mark.parametrize("space", [EVEN, ODD], ids=["even", "odd"])
def test_the_numbers_of_parameters_and_of_multiplications(space):
    for seed in range(3):
        architecture = random_architecture(space, seed)
        assert space.num_parameters(architecture) == parameters_by_hand(space, architecture)
        params = jax.eval_shape(space.init, jax.random.key(0))
        image = jax.ShapeDtypeStruct((1, *space.image_shape), jnp.float32)
        program = jax.make_jaxpr(
            lambda p, x, a=architecture: by_hand(dataclasses.replace(space, auxiliary=0.0), p, a, x)
        )(params, image)
        assert space.multiply_adds(architecture) == multiplications(program.jaxpr)


def parameters_by_hand(space, architecture):
    c = [space.channels * 2**stage for stage in range(STAGES)]

    def of(cell, c):
        sizes = [KERNELS.get(OPERATIONS[i]) for i in cell.operations.ravel()]
        edges = sum(2 * (c * k * k + c * c + 2 * c) for k in sizes if k)
        return edges + len(loose_ends(cell)) * c * c + 2 * c

    total = 9 * space.image_shape[2] * c[0] + 2 * c[0]
    for stage, n in enumerate(c):
        total += sum(of(getattr(architecture, name), n) for name in layers(space, stage))
    total += 2 * sum(a * b + 2 * b for a, b in itertools.pairwise(c))
    total += c[-1] * space.classes + space.classes
    if space.auxiliary:  # where 2x2 pixels are left, pooled to one
        total += 128 * c[-1] + 2 * 128 + 768 * 128 + 2 * 768 + 769 * space.classes
    return total


STORED = {
    "space": "micro_cnn",
    "normal": [
        [{"input": 0, "operation": "sep_conv_3x3"}, {"input": 1, "operation": "identity"}],
        [{"input": 2, "operation": "max_pool_3x3"}, {"input": 0, "operation": "identity"}],
    ],
    "reduction": [
        [{"input": 1, "operation": "sep_conv_5x5"}, {"input": 1, "operation": "avg_pool_3x3"}],
        [{"input": 1, "operation": "identity"}, {"input": 1, "operation": "max_pool_3x3"}],
    ],
}
READ = Architecture(
    cell((0, "sep_conv_3x3", 1, "identity"), (2, "max_pool_3x3", 0, "identity")),
    cell((1, "sep_conv_5x5", 1, "avg_pool_3x3"), (1, "identity", 1, "max_pool_3x3")),
)


def test_the_form_of_a_file():
    assert ODD.to_json(READ) == STORED
    chex.assert_trees_all_equal(ODD.from_json(STORED), READ)


def changed(*path, to):
    stored = copy.deepcopy(STORED)
    inner = functools.reduce(lambda tree, place: tree[place], path[:-1], stored)
    inner[path[-1]] = to
    return stored


CHOICE = {"input": 0, "operation": "identity"}


@pytest.mark.parametrize(
    ("stored", "message"),
    [
        (None, '"space": "micro_cnn", got None'),
        ([STORED], '"space": "micro_cnn", got '),
        ({}, '"space": "micro_cnn", got None'),
        (changed("space", to="rnn"), "got 'rnn'"),
        ({"space": "micro_cnn"}, "the normal cell must have 2 nodes, got None"),
        (changed("reduction", to={}), "the reduction cell must have 2 nodes, got {}"),
        (changed("normal", to=STORED["normal"][:1]), "normal cell must have 2 nodes, got 1"),
        (changed("normal", to=STORED["normal"] * 2), "normal cell must have 2 nodes, got 4"),
        (changed("normal", 0, to="sep"), "node 2 of the normal cell must be a list .* got 'sep'"),
        (changed("reduction", 1, to=[CHOICE]), "node 3 of the reduction cell .* two inputs, got"),
        (changed("reduction", 1, to=[CHOICE] * 3), "node 3 of the reduction cell .* two inputs"),
        (
            changed("normal", 0, 1, to=0),
            "node 2 of the normal cell .* input and operation .* got 0",
        ),
        (changed("normal", 0, 1, to={"input": 0}), "must have input and operation twice, got {'in"),
        (changed("normal", 1, 0, "activation", to="relu"), "node 3 of the normal .*'activation'"),
        (
            changed("normal", 1, 0, "operation", to="conv"),
            "operation of node 3 of the normal cell must be one of identity, .*, got 'conv'",
        ),
        (changed("normal", 1, 0, "operation", to=["conv"]), r"must be one of .*, got \['conv'\]"),
        (changed("normal", 1, 0, "operation", to=1), "must be one of .*, got 1"),
        (
            changed("reduction", 0, 1, "input", to=2),
            "input of node 2 of the reduction cell must be a node before it, 0 to 1, got 2",
        ),
        (changed("reduction", 1, 1, "input", to=3), "node 3 of the reduction .* 0 to 2, got 3"),
        (changed("normal", 0, 0, "input", to=-1), "0 to 1, got -1"),
        (changed("normal", 0, 0, "input", to=1.0), r"0 to 1, got 1\.0"),
        (changed("normal", 0, 0, "input", to=True), "0 to 1, got True"),
        (changed("normal", 0, 0, "input", to="0"), "0 to 1, got '0'"),
        (changed("normal", 0, 0, "input", to=None), "0 to 1, got None"),
    ],
)
def test_files_that_are_no_architecture(stored, message):
    with pytest.raises(ValueError, match=message) as error:
        ODD.from_json(stored)
    assert "\n" not in str(error.value)


def test_graphs():
    graphs = ODD.graphs(READ)
    assert list(graphs) == ["normal cell", "reduction cell"]
    normal, reduction = graphs.values()
    assert dict(normal.nodes(data="kind")) == {
        **{0: "input", 1: "input", 2: "sum", 3: "sum", "hₖ": "output"},
        **{(2, 0): "sep_conv_3x3", (2, 1): "identity"},
        **{(3, 0): "max_pool_3x3", (3, 1): "identity"},
    }
    nodes = [((2, 0), 2), ((2, 1), 2), ((3, 0), 3), ((3, 1), 3)]
    assert set(normal.edges) == {
        *[(0, (2, 0)), (1, (2, 1)), (2, (3, 0)), (0, (3, 1)), (3, "hₖ"), *nodes]
    }
    assert set(reduction.edges) == {
        *[(1, (2, 0)), (1, (2, 1)), (1, (3, 0)), (1, (3, 1))],
        *[(0, "hₖ"), (2, "hₖ"), (3, "hₖ"), *nodes],
    }


def test_graphs_are_drawn():
    space = MicroCNN(nodes=5)
    graphs = space.graphs(random_architecture(space, 0))
    for graph in graphs.values():
        assert nx.is_directed_acyclic_graph(graph)
        assert sum(kind in OPERATIONS for _, kind in graph.nodes(data="kind")) == 10
        assert all(label for _, label in graph.nodes(data="label"))
    titles = [ax.get_title() for ax in draw_graphs(graphs).axes]
    assert titles == ["normal cell", "reduction cell"]


# --- Errors ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "value", "wanted"),
    [
        *[
            (name, value, "at least 1")
            for name in ("classes", "nodes", "channels", "cells", "stem_stride", "groups")
            for value in (0, -3)
        ],
        *[
            ("image_shape", value, "height, width and channels")
            for value in ((), (32, 32), (1, 32, 32, 3))
        ],
        ("image_shape", (32, 0, 3), "at least 1 each"),
        *[(name, -1, "at least 0") for name in ("crop_padding", "cutout")],
        *[("drop_path", value, "at least 0") for value in (-0.1, math.nan)],
        *[("drop_path", value, "below 1") for value in (1, 2.0)],
        *[("auxiliary", value, "at least 0") for value in (-0.1, math.nan)],
        ("auxiliary", math.inf, "at most 1e+30"),
    ],
)
def test_settings_that_cannot_work(name, value, wanted):
    with pytest.raises(ValueError) as error:
        MicroCNN(**{name: value})
    assert str(error.value) == f"{name} must be {wanted}, got {value}"
