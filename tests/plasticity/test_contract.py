"""The contract: what a step of every transformation is, compiles, stores and refuses."""

import functools
import itertools
import math
import warnings

import chex
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
    LEARNING_RATE,
    PARAMS,
    ROWS,
    STRENGTH,
    TRANSFORMATIONS,
    ZEROS,
    assert_close,
    assert_same_bits,
    cast,
    closed_form,
    every_row,
    flat,
    held,
    is_plasticity,
    of_all_dtypes,
    over,
    plain_rows,
    plain_training_rows,
    plasticity,
    protected,
    replace_plasticity,
    step,
    types,
    wide,
)

import wpl_jax
from wpl_jax.checkpoint import Checkpoints

# --- What a step is -------------------------------------------------------------------------------


@every_row
def test_the_first_step_is_the_closed_form(row):
    tx = row.tx()
    assert_close(step(tx, PARAMS, protected(tx))[0], held(row))


@every_row
@over("inner", {"momentum": optax.sgd(LEARNING_RATE, 0.9), "adamw": optax.adamw(0.1)})
def test_with_nothing_to_protect_an_update_is_the_inner_optimisers_bit_for_bit(row, inner):
    """Before the first consolidate, after a flush, where F is 0, and with strength 0."""
    grads = {**GRADS, "head": jnp.full((8, 2), -0.0)}
    expected, _ = inner.update(grads, inner.init(PARAMS), PARAMS)
    tx = row.tx(inner)
    for opt_state in (tx.init(PARAMS), wpl_jax.flush(protected(tx)), protected(tx, fisher=ZEROS)):
        assert_same_bits(tx.update(grads, opt_state, PARAMS)[0], expected)
    for strength in (0.0, jnp.zeros([]), lambda count: 0.0 * count):
        tx = row.tx(inner, strength=strength)
        assert_same_bits(tx.update(grads, protected(tx), PARAMS)[0], expected)


@plain_rows
def test_two_terms_in_one_chain_add_up_or_are_refused_aloud(row):
    """At rest between two anchors with equal F, as eq. 8 says: half way."""
    params, fisher = {"w": jnp.zeros(1)}, {"w": jnp.array([0.5])}
    anchors = iter([{"w": jnp.array([1.0])}, {"w": jnp.array([-2.0])}])

    def protect(node):
        return wpl_jax.consolidate(node, next(anchors), fisher) if is_plasticity(node) else node

    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        try:
            tx = row.tx(row.tx())
            opt_state = jax.tree.map(protect, tx.init(params), is_leaf=is_plasticity)
            for _ in range(40):
                params, opt_state = step(tx, params, opt_state, {"w": jnp.zeros(1)})
        except ValueError:
            return
    assert said or params["w"] == pytest.approx(-0.5, abs=1e-3)


# --- Extra arguments ------------------------------------------------------------------------------


@every_row
def test_extra_arguments_of_others_are_accepted(row):
    tx = row.tx()
    expected, _ = tx.update(GRADS, protected(tx), PARAMS)
    updates, _ = tx.update(GRADS, protected(tx), PARAMS, value=1.0, value_fn=print, grad=GRADS)
    assert_same_bits(updates, expected)


@every_row
def test_extra_arguments_reach_the_inner_optimiser(row):
    def update(updates, state, params=None, *, factor, **extra_args):
        return optax.tree.scale(factor, updates), state

    tx = row.tx(optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update))
    updates, _ = tx.update(GRADS, tx.init(PARAMS), PARAMS, factor=3.0)
    assert_close(updates, optax.tree.scale(3.0, GRADS))


@every_row
def test_it_can_be_sent_to_another_process(row):
    """By what Ray, Dask and joblib send functions with."""
    cloudpickle = pytest.importorskip("cloudpickle")
    sent = cloudpickle.loads(cloudpickle.dumps(row.tx()))
    assert_same_bits(step(sent, PARAMS, protected(sent)), step(row.tx(), PARAMS, protected(sent)))


@every_row
def test_params_are_required(row):
    tx = row.tx()
    with pytest.raises(ValueError, match=r"update\(grads, opt_state, params\)"):
        tx.update(GRADS, tx.init(PARAMS))


# --- No recompilation, and dtypes -----------------------------------------------------------------


@every_row
def test_one_compilation_serves_every_step(row):
    """Of a fresh state, a protected one and a flushed one; consolidating in the step or not."""
    tx = row.tx()
    one_step = jax.jit(functools.partial(step, tx))
    params, opt_state = PARAMS, tx.init(PARAMS)
    for last in (False, True):
        last = {"batch": BATCH, "consolidate": jnp.array(last)} if row.trains else {}
        params, opt_state = one_step(params, opt_state, **last)
        opt_state = wpl_jax.consolidate(opt_state, params, FISHER)
        params, opt_state = one_step(params, opt_state, **last)
        opt_state = wpl_jax.flush(opt_state)
    assert one_step._cache_size() == 1


DTYPES = {  # of the parameters and of the gradients
    "bfloat16": (jnp.bfloat16, jnp.bfloat16),
    "float16": (jnp.float16, jnp.float16),
    "float32": (jnp.float32, jnp.float32),
    "float64": (jnp.float64, jnp.float64),
    "complex64": (jnp.complex64, jnp.complex64),
    "bfloat16_and_float32": (jnp.bfloat16, jnp.float32),
    "float32_and_bfloat16": (jnp.float32, jnp.bfloat16),
    "float64_and_float32": (jnp.float64, jnp.float32),
}


def is_complex(dtype):
    return jnp.issubdtype(dtype, jnp.complexfloating)


@every_row
@over("dtypes", DTYPES)
def test_types_never_change(row, dtypes):
    """Updates have the gradients' dtype, the state its own, weak types too, in every function."""
    param_dtype, grad_dtype = dtypes
    tx = row.tx(optax.identity())

    def all_functions(params, grads):
        initial = tx.init(params)
        old = wpl_jax.consolidate(initial, params, FISHER, decay=0.5, max_norm=1.0)
        last = row.trains and not is_complex(param_dtype)  # of which there is no Fisher
        updates, new = tx.update(grads, old, params, batch=BATCH, consolidate=last)
        return updates, initial, old, new, wpl_jax.flush(new)

    with jax.enable_x64(param_dtype == jnp.float64):
        params, grads = cast(PARAMS, param_dtype), cast(GRADS, grad_dtype)
        updates, initial, *states = jax.eval_shape(all_functions, params, grads)
    chex.assert_trees_all_equal_shapes_and_dtypes(updates, grads)
    assert all(types(opt_state) == types(initial) for opt_state in states)
    state = plasticity(initial)
    default = jnp.promote_types(jnp.finfo(param_dtype).dtype, jnp.float32)
    assert state.fisher["head"].dtype == row.dtypes.get("fisher_dtype", default)
    if not is_complex(param_dtype):  # of which there is no bfloat16
        assert state.anchor["head"].dtype == row.dtypes.get("anchor_dtype", param_dtype)


@plain_rows
@pytest.mark.parametrize("name", ["fisher_dtype", "anchor_dtype"])
@over("dtype", {"float32": jnp.float32, "bfloat16": jnp.bfloat16, "float16": jnp.float16})
def test_each_dtype_of_the_state_is_a_choice(row, name, dtype):
    """Independent of the other, and of the parameters'."""
    tx = row.tx(**{name: dtype})
    for param_dtype in (jnp.float32, jnp.bfloat16):
        state = plasticity(jax.eval_shape(tx.init, cast(PARAMS, param_dtype)))
        expected = {"fisher_dtype": jnp.float32, "anchor_dtype": param_dtype} | {name: dtype}
        assert state.fisher["head"].dtype == expected["fisher_dtype"]
        assert state.anchor["head"].dtype == expected["anchor_dtype"]


@plain_rows
@over("dtypes", DTYPES)
def test_a_step_is_the_closed_form_in_every_dtype(row, dtypes):
    """To the precision of the weights; complex ones are pulled by the gradient of |distance|**2."""
    param_dtype, grad_dtype = dtypes
    turn = 1 + 2j if is_complex(param_dtype) else 1
    tx = row.tx()
    with jax.enable_x64(param_dtype == jnp.float64):
        params, anchor = (cast(optax.tree.scale(turn, t), param_dtype) for t in (PARAMS, ANCHOR))
        grads = cast(optax.tree.scale(turn, GRADS), grad_dtype)
        new, opt_state = step(tx, params, protected(tx, params, anchor), grads)
        loss = wpl_jax.plasticity_loss(opt_state, params, 1.0)
    chex.assert_trees_all_equal_dtypes(new, params)
    exact = jax.tree.map(lambda x: np.asarray(x, complex), (params, grads, anchor, FISHER))
    new = jax.tree.map(lambda x: np.asarray(x, complex), new)
    rtol = 4 * max(float(jnp.finfo(dtype).eps) for dtype in (jnp.float32, *dtypes))
    assert_close(new, closed_form(row, *exact), rtol)
    params, _, anchor, fisher = (np.hstack([x.ravel() for x in jax.tree.leaves(t)]) for t in exact)
    assert loss == pytest.approx(0.5 * np.sum(fisher.real * abs(params - anchor) ** 2), rel=1e-4)


@every_row
def test_the_distance_is_taken_before_anything_is_rounded(row):
    """A thousandth of a weight is not lost, whatever the dtypes of the state."""
    tx = row.tx()
    ones = optax.tree.ones_like(PARAMS)
    params = jax.tree.map(lambda x: x + 1e-3, ones)
    updates, opt_state = tx.update(ZEROS, protected(tx, params, ones, ones), params)
    new, distance = closed_form(row, 1.001, 0.0, 1.0, 1.0), np.float32(1.001) - np.float32(1)
    np.testing.assert_allclose(flat(updates), (new - 1.001) / 1e-3 * distance, rtol=1e-5)
    loss = wpl_jax.plasticity_loss(opt_state, params, 2.0)
    assert loss == pytest.approx(flat(params).size * distance**2, rel=1e-5)


# --- What never enters the state ------------------------------------------------------------------


@every_row
@pytest.mark.parametrize("debug_nans", [False, True], ids=["", "debug_nans"])
def test_what_is_not_finite_or_negative_is_refused_and_counted(row, debug_nans):
    params = {"w": jnp.array([1.0, jnp.nan, jnp.inf, 4.0, 5.0, 6.0, -jnp.inf])}
    fisher = {"w": jnp.array([1.0, 1.0, 1.0, -1.0, jnp.nan, jnp.inf, jnp.nan])}
    opt_state = row.tx().init({"w": jnp.zeros(7)})
    with jax.debug_nans(debug_nans):
        opt_state = wpl_jax.consolidate(opt_state, params, fisher)
    anchor, in_state = wide(opt_state)
    np.testing.assert_array_equal(anchor["w"], [1, 0, 0, 4, 5, 6, 0])
    assert np.all(np.isfinite(in_state["w"])) and in_state["w"][0] == 1
    assert not np.any(in_state["w"][3:])
    assert plasticity(opt_state).rejected == 6


@plain_training_rows
def test_a_step_to_weights_that_are_not_finite_does_not_become_the_anchor(row):
    tx = row.tx()
    old = protected(tx)
    nan = optax.tree.full_like(GRADS, jnp.nan)
    _, new = step(tx, PARAMS, old, nan, batch=BATCH, consolidate=True)
    assert_same_bits(plasticity(new).anchor, plasticity(old).anchor)
    assert np.all(np.isfinite(flat(plasticity(new).fisher)))
    assert plasticity(new).rejected > 0


@every_row
@pytest.mark.parametrize("decay", [-3.0, math.nan, math.inf])
def test_no_decay_makes_the_fisher_negative_or_not_finite(row, decay):
    """A wrong constant is refused; with a traced one, which cannot be, the state stays sound."""
    opt_state = protected(row.tx())
    with pytest.raises(ValueError, match="decay must be finite and not negative"):
        wpl_jax.consolidate(opt_state, PARAMS, FISHER, decay=decay)
    new = jax.jit(lambda d: wpl_jax.consolidate(opt_state, PARAMS, FISHER, decay=d))(decay)
    fisher = flat(wide(new)[1])
    assert np.all(np.isfinite(fisher)) and np.all(fisher >= 0)


# --- NaN ------------------------------------------------------------------------------------------


@every_row
def test_no_function_makes_a_nan_on_the_way(row):
    """Operation by operation; with F, gradients and norm 0, and a strength near the largest."""
    fisher = {**FISHER, "head": jnp.zeros((8, 2))}
    with jax.debug_nans(True):
        for strength in (row.strength, 3e38):
            tx = row.tx(strength=strength)
            opt_state = tx.init(PARAMS)
            for max_norm, new in itertools.product((None, 0.0, 1.0), (fisher, ZEROS, fisher)):
                opt_state = wpl_jax.consolidate(
                    opt_state, PARAMS, new, decay=0.5, max_norm=max_norm
                )
            for grads in (ZEROS, GRADS):
                updates, opt_state = tx.update(grads, opt_state, PARAMS)
                diagnosis = wpl_jax.diagnose(opt_state, PARAMS, LEARNING_RATE, grads)
                assert isinstance(diagnosis.warnings(), list) and str(diagnosis)
                assert np.all(np.isfinite(flat(updates)))
            assert np.isfinite(wpl_jax.plasticity_loss(opt_state, PARAMS, 3e38))
            wpl_jax.flush(opt_state)


@plain_training_rows
def test_consolidating_in_a_step_makes_no_nan_on_the_way(row):
    tx = row.tx(fisher_decay=0.5, max_norm=1.0)
    batch = optax.tree.zeros_like(BATCH)  # of which the Fisher is 0
    with jax.debug_nans(True):
        _, opt_state = step(tx, PARAMS, tx.init(PARAMS), ZEROS, batch=batch, consolidate=True)
    assert plasticity(opt_state).consolidations == 1


@plain_rows
@pytest.mark.parametrize("debug_nans", [False, True], ids=["", "debug_nans"])
@pytest.mark.parametrize("where", ["parameters", "anchor", "gradients", "strength"])
def test_diagnose_says_where_a_nan_is(row, where, debug_nans):
    """Instead of raising, or of saying nothing."""
    nan = {**PARAMS, "head": jnp.full((8, 2), jnp.nan)}
    tx = row.tx(strength=(lambda count: jnp.float32(jnp.nan)) if where == "strength" else STRENGTH)
    opt_state = protected(tx)
    if where == "anchor":
        opt_state = replace_plasticity(opt_state, anchor=nan)
    params = nan if where == "parameters" else PARAMS
    grads = nan if where == "gradients" else GRADS
    with jax.debug_nans(debug_nans):
        said = wpl_jax.diagnose(opt_state, params, LEARNING_RATE, grads).warnings()
    assert any(where in line and ("finite" in line or "NaN" in line) for line in said), said


# --- Checkpoints, and the plasticity state alone --------------------------------------------------


@every_row
def test_a_checkpoint_gives_the_state_back_bit_for_bit(row, tmp_path):
    tx = row.tx(optax.adam(0.1))
    params, opt_state = step(tx, PARAMS, protected(tx))
    with Checkpoints(tmp_path, {}) as checkpoints:
        checkpoints.save(1, opt_state)
        restored = checkpoints.restore(tx.init(PARAMS))
    assert type(plasticity(restored)) is type(plasticity(opt_state))
    assert_same_bits(restored, opt_state)
    assert_same_bits(step(tx, params, restored), step(tx, params, opt_state))


@every_row
def test_the_plasticity_state_can_be_saved_alone(row, tmp_path):
    tx = row.tx(optax.adam(0.1))
    saved = wpl_jax.get_plasticity(protected(tx))
    with Checkpoints(tmp_path, {}) as checkpoints:
        checkpoints.save(1, saved)
        restored = checkpoints.restore(wpl_jax.get_plasticity(tx.init(PARAMS)))
    assert_same_bits(wpl_jax.put_plasticity(tx.init(PARAMS), restored), protected(tx))


@every_row
@pytest.mark.parametrize("source", ["add", "weight_proximal", "proximal_narrow"])
def test_the_plasticity_state_can_be_carried_into_any_other(row, source):
    """Into another optimiser and another form, whose strength and dtypes are its own."""
    source = TRANSFORMATIONS[source]
    carried = wpl_jax.get_plasticity(protected(source.tx(optax.adam(0.1))))
    assert is_plasticity(carried) and carried.consolidations == 1
    tx = row.tx()
    opt_state = wpl_jax.put_plasticity(tx.init(PARAMS), carried)
    assert type(plasticity(opt_state)) is type(plasticity(tx.init(PARAMS)))
    assert types(opt_state) == types(tx.init(PARAMS))
    assert_close(step(tx, PARAMS, opt_state)[0], held(row))


@every_row
def test_entries_that_are_new_are_free_and_those_that_are_gone_are_named(row):
    carried = wpl_jax.get_plasticity(protected(row.tx()))
    params = {"layer": PARAMS["layer"], "new": jnp.ones(2)}  # a new head, and the old one gone
    tx = row.tx()
    with pytest.warns(UserWarning, match=r"\['head'\]"):
        opt_state = wpl_jax.put_plasticity(tx.init(params), carried)
    assert types(opt_state) == types(tx.init(params))
    new, _ = step(tx, params, opt_state, {"layer": GRADS["layer"], "new": jnp.ones(2)})
    assert_close(new, {"layer": held(row)["layer"], "new": jnp.full(2, 1 - LEARNING_RATE)})


# --- Odd parameters -------------------------------------------------------------------------------

ODD = {  # what users have in the place of, or beside, a tree of arrays
    "numpy": lambda tree: jax.tree.map(np.asarray, tree),
    "python_float": lambda tree: {**tree, "scale": float(tree["head"][0, 0])},
    "numpy_scalar": lambda tree: {**tree, "scale": np.float32(tree["head"][0, 0])},
    "scalar": lambda tree: {**tree, "scale": tree["head"][0, 0]},
    "zero_size": lambda tree: {**tree, "empty": jnp.ones((0, 3))},
    "none": lambda tree: {**tree, "nothing": None},
    "masked_node": lambda tree: {**tree, "hidden": optax.MaskedNode()},
    "empty_containers": lambda tree: {**tree, "a": {}, "b": [], "c": ()},
    "sequences": lambda tree: (tree["layer"], [tree["head"]]),
    "numbers_for_keys": lambda tree: {0: tree["layer"], 1: tree["head"]},
    "one_array": lambda tree: tree["head"],
    "one_python_float": lambda tree: float(tree["head"][0, 0]),
}


@of_all_dtypes
@over("odd", ODD)
def test_odd_parameters(row, odd):
    """Work in every function, as plain arrays do."""
    params, grads, anchor, fisher = map(odd, (PARAMS, GRADS, ANCHOR, FISHER))
    tx = row.tx()
    opt_state = tx.init(params)
    opt_state = wpl_jax.consolidate(opt_state, anchor, fisher, decay=0.5, max_norm=1e9, mask=True)
    assert plasticity(opt_state).rejected == 0
    assert types(opt_state) == types(tx.init(params))
    new, _ = step(tx, params, opt_state, grads)
    assert_close(new, closed_form(row, params, grads, anchor, fisher))
    unmoved, opt_state = tx.update(grads, opt_state, params, mask=False)
    assert jax.tree.structure(unmoved) == jax.tree.structure(grads)
    assert np.isfinite(wpl_jax.plasticity_loss(opt_state, params, 1.0))
    assert str(wpl_jax.diagnose(opt_state, params, LEARNING_RATE, grads))
    assert not np.any(flat(plasticity(wpl_jax.flush(opt_state)).fisher))


@every_row
def test_updates_may_be_none_where_nothing_is_to_be_updated(row):
    tx = row.tx(optax.identity())
    for mask in (None, ROWS):
        updates, _ = tx.update({**GRADS, "head": None}, protected(tx), PARAMS, mask=mask)
        expected, _ = tx.update(GRADS, protected(tx), PARAMS, mask=mask)
        assert updates["head"] is None
        assert_same_bits(updates["layer"], expected["layer"])


@every_row
def test_a_typed_key_among_the_parameters_is_left_alone(row):
    """Nothing pulls it: it has neither an anchor nor a Fisher, and its update comes back."""

    def beside(tree, key=None):
        return {**tree, "key": key}

    tx = row.tx(optax.identity())
    params = beside(PARAMS, jax.random.key(0))
    opt_state = wpl_jax.consolidate(
        tx.init(params), beside(ANCHOR, jax.random.key(1)), FISHER, decay=0.5, max_norm=1e9
    )
    updates, opt_state = tx.update(beside(GRADS), opt_state, params)
    expected, _ = tx.update(GRADS, protected(tx), PARAMS)
    assert updates.pop("key", 0) is None
    assert_close(updates, expected)
    assert types(plasticity(tx.init(params))) == types(plasticity(opt_state))
    assert wpl_jax.plasticity_loss(opt_state, params, 1.0) > 0
    assert str(wpl_jax.diagnose(opt_state, params, LEARNING_RATE, beside(GRADS)))


@every_row
def test_a_parameter_of_none_is_named_by_its_path(row):
    tx = row.tx()
    opt_state = protected(tx)
    without = {**PARAMS, "layer": {**PARAMS["layer"], "gate": None}}
    for call in (
        lambda: tx.update(GRADS, opt_state, without),
        lambda: wpl_jax.consolidate(opt_state, without, FISHER),
        lambda: wpl_jax.plasticity_loss(opt_state, without, 1.0),
        lambda: wpl_jax.diagnose(opt_state, without, LEARNING_RATE),
    ):
        with pytest.raises(ValueError, match=r"\['layer'\]\['gate'\]"):
            call()


@every_row
def test_a_partial_fisher_protects_what_it_has(row):
    """What is absent or None counts as 0; a number stands for a tensor, or for all of them."""
    tx = row.tx()
    ones = optax.tree.ones_like(PARAMS)
    for fisher, meant in (
        (1.0, ones),
        ({"layer": 1.0, "head": 0.0}, {"layer": ones["layer"], "head": ZEROS["head"]}),
        ({"layer": FISHER["layer"]}, {"layer": FISHER["layer"], "head": ZEROS["head"]}),
        (
            {"layer": None, "head": FISHER["head"]},
            {"layer": ZEROS["layer"], "head": FISHER["head"]},
        ),
        ({}, ZEROS),
    ):
        assert_same_bits(protected(tx, fisher=fisher), protected(tx, fisher=meant))
