from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from wpl_jax.trees import align, align_mask, is_hidden, path_name


class Attention(NamedTuple):
    """Named so that one field collides with the name NNX gives a variable's content."""

    query: jax.Array
    key: jax.Array
    value: jax.Array


REFERENCE = {"a": jnp.zeros((2, 3)), "b": {"c": jnp.zeros(4)}}


def numbers(tree):
    """The tree with its i-th leaf filled with i."""
    leaves, structure = jax.tree.flatten(tree)
    return jax.tree.unflatten(structure, [jnp.full_like(leaf, i) for i, leaf in enumerate(leaves)])


def identify(leaves):
    return [None if leaf is None else int(leaf.ravel()[0]) for leaf in leaves]


# --- align ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "reference",
    [
        REFERENCE,
        jnp.zeros(2),
        (jnp.zeros(2), [jnp.zeros(3)]),
        Attention(jnp.zeros(2), jnp.zeros(2), jnp.zeros(2)),
        {"attention": Attention(jnp.zeros(2), {"w": jnp.zeros(1)}, {"w": jnp.zeros(3)})},
        {},
    ],
)
def test_align_keeps_the_order_of_the_reference(reference):
    assert identify(align("params", numbers(reference), reference)) == list(
        range(len(jax.tree.leaves(reference)))
    )


@pytest.mark.parametrize("hidden", Attention._fields)
def test_align_skips_what_is_hidden(hidden):
    tree = numbers(Attention(jnp.zeros(2), {"w": jnp.zeros(2), "b": jnp.zeros(2)}, jnp.zeros(2)))
    numbered = dict(query=[0], key=[1, 2], value=[3])
    expected = [i for field, ids in numbered.items() if field != hidden for i in ids]
    for nothing in (optax.MaskedNode(), None):
        assert identify(align("params", tree, tree._replace(**{hidden: nothing}))) == expected


def test_align_matches_variables_to_arrays():
    variables = nnx.state(nnx.Linear(2, 3, rngs=nnx.Rngs(0)), nnx.Param)
    arrays = nnx.to_pure_dict(variables)
    for tree, reference in [(variables, arrays), (arrays, variables), (variables, variables)]:
        aligned = align("params", numbers(tree), reference)
        assert identify(aligned) == [0, 1]
        assert [leaf.shape for leaf in aligned] == [(3,), (2, 3)]


def test_align_lets_a_leaf_be_none():
    tree = {"a": None, "b": {"c": jnp.ones(4)}}
    assert identify(align("updates", tree, REFERENCE, optional=True)) == [None, 1]
    with pytest.raises(ValueError, match=r"params is None at \['a'\].*shape \(2, 3\)"):
        align("params", tree, REFERENCE)


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({"a": jnp.zeros((2, 3))}, r"fisher has no leaf at \['b'\]\['c'\], .* shape \(4,\)"),
        ({**REFERENCE, "d": 1.0}, r"fisher has a leaf at \['d'\], .* have none"),
        (
            {**REFERENCE, "a": jnp.zeros((3, 2))},
            r"fisher has shape \(3, 2\) at \['a'\], .* have \(2, 3\)",
        ),
        (jnp.zeros((2, 3)), r"fisher has no leaf at \['a'\]"),
    ],
)
def test_align_names_the_first_path_that_differs(tree, message):
    with pytest.raises(ValueError, match=message):
        align("fisher", tree, REFERENCE)


# --- align_mask -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mask", "expected"),
    [
        (True, (True, True)),
        (jnp.array(False), (False, False)),
        ({"a": True, "b": False}, (True, False)),
        ({"a": np.array([[True], [False]]), "b": {"c": True}}, ([[True], [False]], True)),
        ({"a": jnp.array([True, False, True]), "b": True}, ([True, False, True], True)),
    ],
)
def test_align_mask_broadcasts_a_prefix(mask, expected):
    leaves = align_mask(mask, REFERENCE)
    for leaf, want, shape in zip(leaves, expected, [(2, 3), (4,)], strict=True):
        np.testing.assert_array_equal(leaf, np.broadcast_to(want, shape), strict=True)


def test_align_mask_without_a_mask_or_a_parameter():
    assert align_mask(None, REFERENCE) == [None, None]
    hidden = {"a": optax.MaskedNode(), "b": {"c": jnp.zeros(1), "d": None}}
    assert align_mask(None, hidden) == [None]
    assert [leaf.shape for leaf in align_mask(True, hidden)] == [(1,)]


@pytest.mark.parametrize(
    "mask",
    [
        {"a": True, "pool": False, "none": {"inner": {}}},
        {"a": True, "pool": {"scale": True}},
        {"a": True, "none": True},
        True,
    ],
)
def test_align_mask_of_layers_without_parameters(mask):
    params = {"a": jnp.zeros(2), "pool": {}, "none": {"inner": ()}}
    assert [bool(leaf.all()) for leaf in align_mask(mask, params)] == [True]


def test_align_mask_of_no_parameters():
    assert align_mask(True, {}) == []


def test_align_mask_of_a_field_called_value():
    params = Attention(jnp.zeros(2), jnp.zeros(2), {"w": jnp.zeros(2)})
    leaves = align_mask(Attention(query=True, key=True, value=False), params)
    assert [bool(leaf.all()) for leaf in leaves] == [True, True, False]


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        ({"a": True}, r"mask has no leaf at or above \['b'\]\['c'\]"),
        ({"a": True, "b": None}, r"mask has no leaf at or above \['b'\]\['c'\]"),
        ({"a": 1.0, "b": True}, r"mask must hold booleans, got 1.0 at \['a'\]"),
        ({"a": jnp.ones((2, 3), int), "b": True}, r"booleans, got int32 at \['a'\]"),
        (
            {"a": jnp.ones(2, bool), "b": True},
            r"shape \(2,\) at \['a'\], .* parameter's \(2, 3\)",
        ),
        ({"a": True, "b": jnp.ones((4, 4), bool)}, r"shape \(4, 4\) at \['b'\]\['c'\]"),
        ({"a": True, "b": True, "d": False}, r"mask has a leaf at \['d'\], .* no parameter"),
    ],
)
def test_align_mask_refuses(mask, message):
    with pytest.raises(ValueError, match=message):
        align_mask(mask, REFERENCE)


# --- is_hidden, path_name -------------------------------------------------------------------------


def test_is_hidden():
    assert is_hidden(optax.MaskedNode()) and is_hidden(None)
    assert not any(map(is_hidden, [jnp.zeros(2), 0.0, (), {}, REFERENCE]))


def test_path_name():
    paths = [path for path, _ in jax.tree.leaves_with_path({"a": [0.0, Attention(1.0, 2.0, 3.0)]})]
    assert [path_name(path) for path in paths[::3]] == ["['a'][0]", "['a'][1].value"]
    assert path_name(()) == "the root"
