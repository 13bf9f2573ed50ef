"""The contract: wrappers around every transformation, optimisers inside it, and masks."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from contract import (
    ANCHOR,
    BATCH,
    FISHER,
    GRADS,
    PARAMS,
    ROWS,
    STRENGTH,
    ZEROS,
    assert_close,
    assert_same_bits,
    closed_form,
    eager_or_jit,
    every_row,
    flat,
    held,
    model,
    normal,
    of_all_dtypes,
    over,
    plain_rows,
    plain_training_rows,
    plasticity,
    protected,
    step,
    types,
    wide,
)

import wpl_jax

# --- Wrappers around it ---------------------------------------------------------------------------


class Wrapper(NamedTuple):
    wrap: Callable[..., Any]  # of a transformation
    steps: int = 1  # calls of update for one step of what is inside
    covers: Callable = lambda params: params  # the part of the weights that it passes on
    enter: Callable = lambda params: params  # the weights as it wants them
    leave: Callable = lambda params: params  # and back
    shows: Callable = lambda params: params  # the weights as what is inside sees them


def the_layer(params):
    return params["layer"]


LAYER, NOT_LAYER = {"layer": True, "head": False}, {"layer": False, "head": True}
KERNEL = {"layer": {"kernel": True, "gate": False}, "head": False}

WRAPPERS = {
    "chain": Wrapper(lambda tx: optax.chain(optax.identity(), tx)),
    "named_chain": Wrapper(lambda tx: optax.named_chain(("a", optax.identity()), ("b", tx))),
    "masked": Wrapper(lambda tx: optax.masked(tx, LAYER), covers=the_layer),
    "masked_by_callable": Wrapper(lambda tx: optax.masked(tx, lambda _: LAYER), covers=the_layer),
    "masked_twice": Wrapper(
        lambda tx: optax.masked(optax.masked(tx, KERNEL), LAYER),
        covers=lambda params: params["layer"]["kernel"],
    ),
    "partition": Wrapper(
        lambda tx: optax.partition({0: tx, 1: optax.sgd(0.5)}, {"layer": 0, "head": 1}),
        covers=the_layer,
    ),
    "selective": Wrapper(
        lambda tx: optax.selective_transform(tx, freeze_mask=NOT_LAYER), covers=the_layer
    ),
    "apply_if_finite": Wrapper(lambda tx: optax.apply_if_finite(tx, 3)),
    "conditionally_transform": Wrapper(
        lambda tx: optax.conditionally_transform(tx, lambda step: step >= 0)
    ),
    "conditionally_mask": Wrapper(
        lambda tx: optax.conditionally_mask(tx, lambda step: step % 2 == 1), steps=2
    ),
    "MultiSteps": Wrapper(lambda tx: optax.MultiSteps(tx, 2).gradient_transformation(), steps=2),
    "lookahead": Wrapper(
        lambda tx: optax.lookahead(tx, sync_period=9, slow_step_size=0.5),
        enter=optax.LookaheadParams.init_synced,
        leave=lambda params: params.fast,
    ),
    "flatten": Wrapper(optax.flatten, shows=flat),
    "sam": Wrapper(lambda tx: optax.contrib.sam(tx, optax.sgd(0.0)), steps=2),
}


@plain_rows
@over("wrapper", WRAPPERS)
def test_works_inside(row, wrapper):
    """A step is the one without the wrapper, for as much of the weights as it covers."""
    tx = wrapper.wrap(row.tx())
    params = wrapper.enter(PARAMS)
    opt_state = wpl_jax.consolidate(tx.init(params), wrapper.shows(ANCHOR), wrapper.shows(FISHER))
    one_step = jax.jit(functools.partial(step, tx))
    for _ in range(wrapper.steps):
        params, opt_state = one_step(params, opt_state)
    assert_close(wrapper.covers(wrapper.leave(params)), wrapper.covers(held(row)))
    assert not np.any(flat(plasticity(wpl_jax.flush(opt_state)).fisher))


@every_row
@over("wrapper", WRAPPERS)
def test_types_never_change_inside(row, wrapper):
    tx = wrapper.wrap(row.tx())
    params = wrapper.enter(PARAMS)
    initial = jax.eval_shape(tx.init, params)
    _, opt_state = jax.eval_shape(functools.partial(step, tx), params, initial)
    assert types(opt_state) == types(initial)


@every_row
def test_the_strength_can_be_injected(row):
    """And changed in the state between steps, without a new compilation."""
    tx = optax.inject_hyperparams(lambda strength: row.tx(strength=strength))(strength=STRENGTH)
    update = jax.jit(tx.update)
    opt_state = protected(tx)
    for strength in (STRENGTH, 2 * STRENGTH):
        opt_state.hyperparams["strength"] = jnp.float32(strength)
        updates, opt_state = update(GRADS, opt_state, PARAMS)
        assert_close(optax.apply_updates(PARAMS, updates), held(row, strength))
    assert update._cache_size() == 1


THAT_MAY_NOT_EMIT = {
    "MultiSteps": lambda tx: optax.MultiSteps(tx, 2).gradient_transformation(),
    "conditionally_transform": lambda tx: optax.conditionally_transform(tx, lambda step: step == 1),
    "conditionally_mask": lambda tx: optax.conditionally_mask(tx, lambda step: step == 1),
}


@plain_training_rows
@over("wrap", THAT_MAY_NOT_EMIT)
@pytest.mark.parametrize("last", [True, jnp.array(True)], ids=["python", "array"])
@eager_or_jit
def test_a_consolidate_is_never_dropped(row, wrap, last, jit):
    """Asked for in a step that emits nothing, it is done all the same, or refused aloud."""
    tx = wrap(row.tx())
    update = jit(functools.partial(tx.update, consolidate=last))
    try:
        _, opt_state = update(GRADS, tx.init(PARAMS), PARAMS, batch=BATCH)
    except ValueError as error:
        assert "consolidate" in str(error)
    else:
        assert plasticity(opt_state).consolidations == 1


# --- Optimisers inside it -------------------------------------------------------------------------

WITHOUT_EXTRA_ARGUMENTS = optax.GradientTransformation(
    lambda params: (), lambda updates, state, params=None: (optax.tree.scale(-0.1, updates), state)
)

STILL = optax.set_to_zero()

INNERS = {
    "without_extra_arguments": WITHOUT_EXTRA_ARGUMENTS,
    "adamw": optax.adamw(0.1),
    "adafactor": optax.adafactor(0.1, min_dim_size_to_factor=2),
    "sm3": optax.sm3(0.1),
    "flatten": optax.flatten(optax.adam(0.1)),
    "sam": optax.contrib.sam(optax.sgd(0.1), optax.sgd(0.1)),
    "schedule_free": optax.contrib.schedule_free(optax.sgd(0.1), 0.1),
    "masked": optax.masked(optax.adam(0.1), LAYER),
    "partition": optax.partition({0: optax.adam(0.1), 1: STILL}, {"layer": 0, "head": 1}),
    "inject_hyperparams": optax.inject_hyperparams(optax.adam)(0.1),
    "apply_if_finite": optax.apply_if_finite(optax.adam(0.1), 3),
    "MultiSteps": optax.MultiSteps(optax.adam(0.1), 1).gradient_transformation(),
}  # fmt: skip


def inside(mask):
    """A tree like the model's, of booleans in the shape of each weight."""
    mask = mask(PARAMS) if callable(mask) else mask
    mask = jax.tree.broadcast(True if mask is None else mask, PARAMS)
    return jax.tree.map(lambda m, p: np.broadcast_to(m, p.shape), mask, PARAMS)


@plain_rows
@over("inner", INNERS)
def test_works_around(row, inner):
    """With nothing to protect the update is the optimiser's, in a mask as without one."""
    tx = row.tx(inner)
    expected, _ = inner.update(GRADS, inner.init(PARAMS), PARAMS)
    updates, opt_state = tx.update(GRADS, tx.init(PARAMS), PARAMS)
    assert_same_bits(updates, expected)
    if row.trains:  # outside the mask nothing moves, not even a sign of zero
        updates, opt_state = tx.update(GRADS, tx.init(PARAMS), PARAMS, mask=ROWS)
        still = jax.tree.map(lambda m, u: jnp.where(m, u, -0.0), inside(ROWS), expected)
        assert_same_bits(updates, still)
    assert types(opt_state) == types(tx.init(PARAMS))


# --- Masks ----------------------------------------------------------------------------------------

MASKS = {
    "none": None,
    "true": True,
    "false": False,
    "numpy_true": np.True_,
    "numpy_false": np.False_,
    "array_of_one": np.array(True),
    "prefix": {"layer": True, "head": False},
    "prefix_of_numpy": {"layer": np.True_, "head": np.False_},
    "rows": ROWS,
    "columns": {"layer": {"kernel": np.array([True, False]), "gate": False}, "head": True},
    "whole": jax.tree.map(lambda x: np.asarray(x > 0), model(normal, 50)),
    "callable": lambda params: jax.tree.map(lambda p: p.shape == (8, 2), params),
    "callable_of_prefix": lambda params: {"layer": True, "head": False},
    "callable_of_values": lambda params: jax.tree.map(lambda p: p > 0, params),
}


def assert_masks(row, mask, jit=lambda fn: fn):
    """In `update` and in `consolidate`; a mask that is not callable is an argument of `jit`."""
    tx = row.tx()
    opt_state = protected(tx)
    static, traced = ({"mask": mask}, {}) if callable(mask) else ({}, {"mask": mask})
    update = jit(functools.partial(tx.update, **static))
    updates, _ = update(GRADS, opt_state, PARAMS, **traced)
    free = PARAMS if row.trains else closed_form(row, PARAMS, GRADS, ANCHOR, ZEROS)
    expected = jax.tree.map(np.where, inside(mask), held(row), free)
    assert_close(optax.apply_updates(PARAMS, updates), expected)
    consolidate = jit(functools.partial(wpl_jax.consolidate, **static))
    anchor, fisher = wide(consolidate(opt_state, PARAMS, FISHER_OF_NEXT, **traced))
    assert_close(anchor, jax.tree.map(np.where, inside(mask), PARAMS, ANCHOR), rtol=1e-2)
    assert_close(fisher, jax.tree.map(np.where, inside(mask), FISHER_OF_NEXT, FISHER), rtol=1e-2)


FISHER_OF_NEXT = jax.tree.map(jnp.square, GRADS)


@of_all_dtypes
@over("mask", MASKS)
def test_masks_of_every_kind(row, mask):
    assert_masks(row, mask)


@plain_rows
@pytest.mark.parametrize("name", ["true", "rows", "whole", "callable_of_values"])
def test_masks_may_be_traced(row, name):
    assert_masks(row, MASKS[name], jax.jit)


WRONG_MASKS = {
    "string": ({"layer": "frozen", "head": True}, r"frozen.*\['layer'\]"),
    "string_at_the_root": ("frozen", "frozen"),
    "number": ({"layer": 0.5, "head": True}, r"(0\.5|float).*\['layer'\]"),
    "integers": ({"layer": np.ones((8, 2), np.int32), "head": True}, r"int32.*\['layer'\]"),
    "object": ({"layer": object(), "head": True}, r"object.*\['layer'\]"),
    "function_inside": ({"layer": callable, "head": True}, r"callable.*\['layer'\]"),
    "callable_of_strings": (lambda params: {**LAYER, "layer": "frozen"}, r"frozen.*\['layer'\]"),
    "missing": ({"layer": True}, r"\['head'\]"),
    "shape": ({**ROWS, "head": np.ones(3, bool)}, r"\(3,\).*\['head'\].*\(8, 2\)"),
}


@plain_rows
@over("case", WRONG_MASKS)
def test_a_wrong_mask_names_its_value_and_path(row, case):
    mask, message = case
    tx = row.tx()
    opt_state = tx.init(PARAMS)
    with pytest.raises(ValueError, match=message):
        tx.update(GRADS, opt_state, PARAMS, mask=mask)
    with pytest.raises(ValueError, match=message):
        wpl_jax.consolidate(opt_state, PARAMS, FISHER, mask=mask)
