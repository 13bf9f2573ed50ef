"""The contract: what every transformation promises, as a table of transformations by properties.

A new transformation is one more line of `TRANSFORMATIONS`; each test below then holds it to
everything that the others promise. What belongs to one transformation alone is tested elsewhere.
"""

import functools
import itertools
import math
import sys
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import P
from jax.flatten_util import ravel_pytree
from jax.test_util import check_grads

import wpl_jax
from wpl_jax.checkpoint import Checkpoints

LEARNING_RATE = 0.125
STRENGTH = 4.0

# --- The table ------------------------------------------------------------------------------------


def nll(params, example):
    """Entrywise operations and sums, which run on every mesh; real for complex weights too."""
    x = example["x"][:, None]
    hidden = jnp.tanh(params["layer"]["kernel"] * x) * params["layer"]["gate"]
    return 0.5 * jnp.square(jnp.abs((hidden + params["head"] * x).sum()))


def add(inner, strength, **dtypes):
    return optax.chain(wpl_jax.add_plasticity(strength, **dtypes), inner)


def proximal(inner, strength, **dtypes):
    return optax.chain(inner, wpl_jax.proximal_plasticity(strength, LEARNING_RATE, **dtypes))


def weight(inner, strength, **options):
    return wpl_jax.weight_plasticity(inner, strength=strength, nll=nll, **options)


def weight_proximal(inner, strength, **options):
    return weight(inner, strength, learning_rate=LEARNING_RATE, **options)


def path_integral(inner, strength, **dtypes):
    return wpl_jax.synaptic_intelligence(add(inner, strength, **dtypes))


def schedule(count):
    """Begins at STRENGTH, and grows."""
    return STRENGTH * (1 + count)


class Row(NamedTuple):
    """A transformation: how it is built around an optimiser, and what its updates are."""

    build: Callable[..., optax.GradientTransformationExtraArgs]  # of inner, strength and dtypes
    implicit: bool  # acts on the step, otherwise on the gradient
    trains: bool = False  # takes batch and consolidate, and moves nothing outside a mask
    strength: float | optax.Schedule = STRENGTH  # STRENGTH in the first step, in every row
    dtypes: dict[str, Any] = {}  # fisher_dtype and anchor_dtype, where not the default

    def tx(self, inner=None, **options):
        inner = optax.sgd(LEARNING_RATE) if inner is None else inner
        return self.build(inner, **{"strength": self.strength, **self.dtypes, **options})

    @property
    def is_plain(self):
        return not (callable(self.strength) or self.dtypes)


NARROW = {"fisher_dtype": jnp.bfloat16, "anchor_dtype": jnp.bfloat16}

TRANSFORMATIONS = {
    "add": Row(add, implicit=False),
    "proximal": Row(proximal, implicit=True),
    "weight": Row(weight, implicit=False, trains=True),
    "weight_proximal": Row(weight_proximal, implicit=True, trains=True),
    "synaptic_intelligence": Row(path_integral, implicit=False),
    "add_scheduled": Row(add, implicit=False, strength=schedule),
    "weight_proximal_scheduled": Row(weight_proximal, True, trains=True, strength=schedule),
    "proximal_narrow": Row(proximal, implicit=True, dtypes=NARROW),
    "weight_narrow": Row(weight, implicit=False, trains=True, dtypes=NARROW),
}


def over(name, cases):
    """Parametrise over a dictionary, whose keys are the ids: the same in every process."""
    return pytest.mark.parametrize(name, cases.values(), ids=cases.keys())


def rows(choose):
    return over("row", {name: row for name, row in TRANSFORMATIONS.items() if choose(row)})


every_row = rows(lambda row: True)
of_all_dtypes = rows(lambda row: not callable(row.strength))  # where a schedule cannot matter
plain_rows = rows(lambda row: row.is_plain)  # where a dtype of the state cannot matter either
plain_training_rows = rows(lambda row: row.is_plain and row.trains)
eager_or_jit = over("jit", {"eager": lambda fn: fn, "jit": jax.jit})

# --- A small model, protected elsewhere -----------------------------------------------------------


def normal(seed):
    return jnp.asarray(np.random.default_rng(seed).normal(size=(8, 2)), jnp.float32)


def rounded(seed):
    """Exact in bfloat16, so that a narrow state holds the same numbers as a wide one."""
    return normal(seed).astype(jnp.bfloat16).astype(jnp.float32)


def model(leaf, seed):
    """A tree of ``leaf(seed)``, all of one shape, which JAX compiles fewer operations for."""
    return {"layer": {"kernel": leaf(seed), "gate": leaf(seed + 1)}, "head": leaf(seed + 2)}


PARAMS = model(normal, 0)
GRADS = model(normal, 10)
ANCHOR = model(rounded, 20)
FISHER = jax.tree.map(lambda x: jnp.maximum(x, 0), model(rounded, 33))  # some are 0
ZEROS = optax.tree.zeros_like(PARAMS)
BATCH = {"x": normal(40) @ normal(41).T}


def protected(tx, params=PARAMS, anchor=ANCHOR, fisher=FISHER):
    """The state of an optimiser of `params` that has consolidated elsewhere: the term pulls."""
    return wpl_jax.consolidate(tx.init(params), anchor, fisher)


def step(tx, params, opt_state, grads=GRADS, **extra):
    updates, opt_state = tx.update(grads, opt_state, params, **extra)
    return optax.apply_updates(params, updates), opt_state


def closed_form(row, params, grads, anchor, fisher, strength=STRENGTH):
    """The weights after a step of gradient descent with the term: the mathematics."""

    def new(p, g, a, f):
        c = LEARNING_RATE * strength * f
        stepped = p - LEARNING_RATE * g
        return (stepped + c * a) / (1 + c) if row.implicit else stepped - c * (p - a)

    return jax.tree.map(new, params, grads, anchor, fisher)


def held(row, strength=STRENGTH):
    """The model's weights after a step under protection."""
    return closed_form(row, PARAMS, GRADS, ANCHOR, FISHER, strength)


def is_plasticity(node):
    return isinstance(node, wpl_jax.PlasticityState)


def plasticity(opt_state):
    (state,) = filter(is_plasticity, jax.tree.leaves(opt_state, is_leaf=is_plasticity))
    return state


def replace_plasticity(opt_state, **fields):
    def replace(node):
        return node._replace(**fields) if is_plasticity(node) else node

    return jax.tree.map(replace, opt_state, is_leaf=is_plasticity)


def flat(tree):
    return ravel_pytree(tree)[0]


def cast(tree, dtype):
    return jax.tree.map(lambda x: jnp.asarray(x).astype(dtype), tree)


def wide(opt_state):
    """Anchor and Fisher, in float32."""
    return cast((plasticity(opt_state).anchor, plasticity(opt_state).fisher), jnp.float32)


def types(tree):
    """Shapes, dtypes and weak types: what decides whether JAX compiles again."""
    return jax.tree.map(lambda x: (jnp.shape(x), jnp.result_type(x), x.weak_type), tree)


def member(tree, i):
    """One model of a stack of them."""
    return jax.tree.map(lambda x: x[i], tree)


def assert_close(actual, expected, rtol=1e-5):
    chex.assert_trees_all_close(actual, expected, rtol=rtol, atol=rtol / 10)


def assert_same_bits(actual, expected):
    chex.assert_trees_all_equal_shapes_and_dtypes(actual, expected)
    for a, e in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        assert np.asarray(a).tobytes() == np.asarray(e).tobytes(), (a, e)


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
ROWS = {  # the first three rows of the kernel, and the gate
    "layer": {"kernel": (np.arange(8) < 3)[:, None], "gate": np.True_},
    "head": np.False_,
}


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


# --- Many devices ---------------------------------------------------------------------------------

AUTO, EXPLICIT = jax.sharding.AxisType.Auto, jax.sharding.AxisType.Explicit
MESHES = {  # the types of its axes, and how the weights are cut
    "auto_replicated": (AUTO, P()),
    "auto_fsdp": (AUTO, P("model")),
    "explicit_replicated": (EXPLICIT, P()),  # JAX's default
    "explicit_fsdp": (EXPLICIT, P("model")),
}


LAYOUTS = {name: (*mesh, jax.jit) for name, mesh in MESHES.items()} | {
    "eager": (*MESHES["explicit_fsdp"], lambda fn: fn)
}


@plain_rows
@over("layout", LAYOUTS)
def test_on_many_devices_all_is_as_on_one(row, layout):
    """Every function, with masks, norms and decay; the state stays where the weights lie.

    The batch is cut over one axis of the mesh, the weights over the other.
    """
    axis_type, spec, jit = layout
    tx = row.tx(fisher_decay=0.5, max_norm=1.0) if row.trains else row.tx()
    last = {"consolidate": True} if row.trains else {}

    def run(params, grads, anchor, fisher, batch, mask):
        initial = tx.init(params)
        old = wpl_jax.consolidate(initial, anchor, fisher, mask=True)
        new, stepped = step(tx, params, old, grads, batch=batch, mask=mask, **last)
        options = {"decay": 0.5, "max_norm": 1.0, "mask": mask}
        consolidated = wpl_jax.consolidate(stepped, params, fisher, **options)
        states = map(plasticity, [initial, old, stepped, consolidated, wpl_jax.flush(old)])
        weights = [new, *((state.anchor, state.fisher) for state in states)]
        loss = wpl_jax.plasticity_loss(consolidated, params, 1.0)
        return weights, (loss, wpl_jax.diagnose(consolidated, params, LEARNING_RATE, grads))

    trees = (PARAMS, GRADS, ANCHOR, FISHER)
    expected = run(*trees, BATCH, ROWS)
    mesh = jax.make_mesh((4, 2), ("data", "model"), axis_types=2 * (axis_type,))
    with jax.set_mesh(mesh):
        trees = jax.device_put(trees, jax.NamedSharding(mesh, spec))
        batch = jax.device_put(BATCH, jax.NamedSharding(mesh, P("data")))
        weights, numbers = jit(run)(*trees, batch, ROWS)
    assert_close(jax.device_get((weights, numbers)), jax.device_get(expected), rtol=1e-4)
    for path, leaf in jax.tree.leaves_with_path(weights):
        is_same = leaf.sharding.is_equivalent_to(trees[0]["head"].sharding, leaf.ndim)
        assert is_same, (jax.tree_util.keystr(path), leaf.sharding)


def by_shard_map(fn, check_vma):
    """``fn(params, opt_state, batch)`` on each device, which sees its part of the batch."""
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AUTO,))
    specs = {"in_specs": (P(), P(), P("data")), "out_specs": P("data")}

    def stacked(*args):
        return jax.tree.map(lambda x: x[None], fn(*args))

    return jax.jit(jax.shard_map(stacked, mesh=mesh, check_vma=check_vma, **specs))


def by_pmap(fn):
    def on_each_device(params, opt_state, batch):
        batch = jax.tree.map(lambda x: x[:, None], batch)
        return jax.pmap(fn, axis_name="data")(*eight((params, opt_state)), batch)

    return on_each_device


def eight(tree):
    """Replicated, as pmap wants it."""
    return jax.tree.map(lambda x: jnp.stack(8 * [x]), tree)


MAPS = {
    "shard_map": functools.partial(by_shard_map, check_vma=True),
    "shard_map_unchecked": functools.partial(by_shard_map, check_vma=False),
    "pmap": by_pmap,
}


@plain_rows
@over("mapped", MAPS)
def test_mapped_over_devices_replicated_states_stay_equal(row, mapped):
    """And are those of one device that sees the whole batch."""

    options = {"fisher_decay": 0.5, "max_norm": 0.5} if row.trains else {}

    def one_step(tx):
        return lambda *args: step(tx, *args[:2], batch=args[2], consolidate=row.trains)

    tx, alone = (
        row.tx(**options, **({"axis_name": "data"} if row.trains else {})),
        row.tx(**options),
    )
    results = jax.device_get(mapped(one_step(tx))(PARAMS, protected(tx), BATCH))
    for i in range(1, 8):
        assert_same_bits(member(results, i), member(results, 0))
    expected = one_step(alone)(PARAMS, protected(alone), BATCH)
    assert_close(member(results, 0), jax.device_get(expected))


@plain_rows
def test_an_ensemble_is_its_members(row):
    """A state that is stacked, or replicated for pmap: each model has its own norm and counts."""
    tx = row.tx()
    trees = [
        jax.tree.map(lambda x: jnp.stack([(i + 1) * x for i in range(8)]), tree)
        for tree in (PARAMS, GRADS, ANCHOR, FISHER)
    ]
    trees[-1]["head"] = trees[-1]["head"].at[1].set(jnp.nan)  # of one of them only

    def run_with(of_each):
        @jax.jit
        def run(opt_state, params, grads, anchor, fisher):
            """What is between two models sees the whole stack; only the optimiser is mapped."""
            opt_state = wpl_jax.consolidate(opt_state, anchor, fisher, decay=0.5, max_norm=1.0)
            new = of_each(functools.partial(step, tx))(params, opt_state, grads)
            return new, wpl_jax.diagnose(new[1], params, LEARNING_RATE), wpl_jax.flush(new[1])

        return lambda params, *rest: run(of_each(tx.init)(params), params, *rest)

    of_stack, of_one = run_with(jax.vmap), run_with(lambda fn: fn)
    results = [of_stack(*trees)]
    mesh = jax.make_mesh((8,), ("member",), axis_types=(EXPLICIT,))
    with jax.set_mesh(mesh):  # cut over the members
        results.append(of_stack(*jax.device_put(trees, jax.NamedSharding(mesh, P("member")))))
        for _, diagnosis, _ in results:
            assert isinstance(diagnosis.warnings(), list) and str(diagnosis)
    for i in range(3):
        expected = jax.device_get(of_one(*member(trees, i)))
        for result in results:
            assert_close(member(jax.device_get(result), i), expected)


@plain_rows
def test_a_model_on_each_device_trains_in_a_scan(row):
    """Inside shard_map with checks, where what differs between devices has a type of its own."""
    tx = row.tx()
    params = jax.tree.map(lambda x: jnp.stack([(i + 1) * x for i in range(8)]), PARAMS)

    def train(stacked):
        def body(carry, _):
            return step(tx, *carry), None

        carry, _ = jax.lax.scan(body, member(stacked, 0), length=2)
        return jax.tree.map(lambda x: x[None], carry)

    mesh = jax.make_mesh((8,), ("data",), axis_types=(AUTO,))
    on_each = jax.shard_map(train, mesh=mesh, in_specs=P("data"), out_specs=P("data"))
    stacked = (params, wpl_jax.consolidate(jax.vmap(tx.init)(params), params, 1.0))
    new = jax.jit(on_each)(stacked)
    expected = jax.jit(train)(jax.tree.map(lambda x: x[2:3], stacked))
    assert_close(jax.device_get(member(new, 2)), jax.device_get(member(expected, 0)))


# --- Memory ---------------------------------------------------------------------------------------


def consolidated(tx, params, fisher):
    return wpl_jax.consolidate(tx.init(params), params, fisher)


SOURCES = {
    "init": lambda tx, params, fisher: tx.init(params),
    "consolidate": consolidated,
    "consolidate_in_jit": jax.jit(consolidated, static_argnums=0),
    "flush": lambda tx, params, fisher: wpl_jax.flush(consolidated(tx, params, fisher)),
    "put": lambda tx, params, fisher: wpl_jax.put_plasticity(
        tx.init(params), wpl_jax.get_plasticity(consolidated(tx, params, fisher))
    ),
}


@plain_rows
@over("source", SOURCES)
def test_the_state_shares_no_buffer(row, source):
    """With the parameters, or what consolidate was given: all can be donated together."""
    tx = row.tx()
    params, fisher = jax.tree.map(jnp.copy, (PARAMS, FISHER))
    opt_state = source(tx, params, fisher)
    donated = jax.jit(lambda tree: jax.tree.map(lambda x: x + x, tree), donate_argnums=0)
    donated((params, fisher, opt_state))
    assert all(x.is_deleted() for x in jax.tree.leaves((params, fisher, opt_state)))


@every_row
def test_an_update_donates_its_state_and_parameters(row):
    tx = row.tx()
    params = jax.tree.map(jnp.copy, PARAMS)
    opt_state = protected(tx, params)
    new, _ = jax.jit(functools.partial(step, tx), donate_argnums=(0, 1))(params, opt_state)
    assert all(x.is_deleted() for x in jax.tree.leaves((params, plasticity(opt_state).fisher)))
    assert_close(new, held(row))


@plain_rows
def test_consolidate_in_jit_holds_at_most_one_copy_of_its_state(row):
    params = {"w": jnp.zeros((256, 256)), "v": jnp.zeros((256, 256))}
    opt_state = row.tx().init(params)
    consolidate = jax.jit(functools.partial(wpl_jax.consolidate, decay=0.5, max_norm=1.0))
    memory = consolidate.lower(opt_state, params, params).compile().memory_analysis()
    size = sum(x.nbytes for x in jax.tree.leaves(opt_state))
    assert memory.output_size_in_bytes + memory.temp_size_in_bytes < 2.1 * size


@plain_rows
def test_a_state_in_the_memory_of_the_host_stays_there(row):
    tx = row.tx()
    on_host = jax.NamedSharding(jax.make_mesh((1,), ("data",)), P(), memory_kind="pinned_host")
    opt_state = protected(tx)
    opt_state = replace_plasticity(
        opt_state,
        anchor=jax.device_put(plasticity(opt_state).anchor, on_host),
        fisher=jax.device_put(plasticity(opt_state).fisher, on_host),
    )
    new, after = jax.jit(functools.partial(step, tx))(PARAMS, opt_state)
    assert_close(new, held(row))
    for state in (
        after,
        jax.jit(wpl_jax.consolidate)(opt_state, PARAMS, FISHER),
        wpl_jax.consolidate(opt_state, PARAMS, FISHER),
        jax.jit(wpl_jax.flush)(opt_state),
    ):
        for leaf in jax.tree.leaves((plasticity(state).anchor, plasticity(state).fisher)):
            assert leaf.sharding.memory_kind == "pinned_host"


def lines_of_the_package(fn):
    """How many lines of wpl_jax run in a call: its work in Python, without asking a clock."""
    count = 0

    def trace(frame, event, argument):
        nonlocal count
        if not frame.f_globals.get("__name__", "").startswith("wpl_jax"):
            return None
        count += event == "line"
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        fn()
    finally:
        sys.settrace(before)
    return count


@plain_rows
def test_the_work_of_tracing_is_linear_in_hidden_leaves(row):
    def work(leaves):
        params = {str(i): jax.ShapeDtypeStruct((2,), jnp.float32) for i in range(leaves)}
        tx = optax.masked(row.tx(), {str(i): i % 10 == 0 for i in range(leaves)})
        opt_state = jax.eval_shape(tx.init, params)
        update = functools.partial(jax.eval_shape, tx.update, params, opt_state, params)
        return lines_of_the_package(update)

    assert work(200) < 2.2 * work(100)


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


# --- Derivatives ----------------------------------------------------------------------------------

WEIGHTS = {"w": np.array([0.5, -1.0, 0.25])}
ANYWHERE = {
    "params": WEIGHTS,
    "grads": {"w": np.array([0.3, -0.7, 1.1])},
    "anchor": {"w": np.array([-0.25, 0.75, 1.0])},
    "fisher": {"w": np.array([0.5, 2.0, 1.0])},
    "strength": np.array(2.0),
}
AT_ANCHOR = {"anchor": WEIGHTS}
AT_STRENGTH_0 = {"strength": np.array(0.0)}
AT_FISHER_0 = {"fisher": {"w": np.zeros(3)}}
POINTS = [  # each in turn, where a test is parametrised by row only so as to compile once
    ANYWHERE,
    ANYWHERE | AT_ANCHOR,
    ANYWHERE | AT_STRENGTH_0,
    ANYWHERE | AT_FISHER_0,
    ANYWHERE | AT_ANCHOR | AT_STRENGTH_0 | AT_FISHER_0,
    ANYWHERE | {"fisher": {"w": np.array([0.5, 0.0, 0.0])}},
]


def updated(row):
    """The weights after a step, and the loss, as functions of everything they depend on."""

    def outcome(at):
        strength = at["strength"]
        tx = row.tx(strength=(lambda count: strength) if callable(row.strength) else strength)
        opt_state = tx.init(at["params"])
        opt_state = replace_plasticity(opt_state, anchor=at["anchor"], fisher=at["fisher"])
        new, _ = step(tx, at["params"], opt_state, at["grads"])
        return new, wpl_jax.plasticity_loss(opt_state, at["params"], strength)

    return outcome


def mathematics(row):
    def outcome(at):
        trees = [at[name] for name in ("params", "grads", "anchor", "fisher")]
        distance = jax.tree.map(
            lambda f, p, a: jnp.sum(f * (p - a) ** 2), trees[3], trees[0], trees[2]
        )
        loss = at["strength"] / 2 * optax.tree.sum(distance)
        return closed_form(row, *trees, at["strength"]), loss

    return outcome


@rows(lambda row: not row.dtypes)
def test_derivatives_are_those_of_the_mathematics(row):
    """Everywhere, by parameters, gradients, anchor, Fisher and strength; forward and reverse."""
    with jax.enable_x64(True):
        forward, reverse = (jax.jit(jac(updated(row))) for jac in (jax.jacfwd, jax.jacrev))
        expected = jax.jit(jax.jacrev(mathematics(row)))
        for at in POINTS:
            assert_close(forward(at), expected(at), rtol=1e-9)
            assert_close(reverse(at), expected(at), rtol=1e-9)


@plain_rows
def test_derivatives_pass_check_grads(row):
    """Against differences of the functions themselves, to second order."""
    with jax.enable_x64(True):
        outcome = jax.jit(updated(row))
        for at in POINTS:
            check_grads(outcome, (jax.tree.map(jnp.asarray, at),), order=2)


@plain_rows
def test_a_strength_can_be_learned_from_0(row):
    """Through steps of training: its derivative there is not 0, and by the weights is right."""

    def distance(strength, params):
        tx = row.tx(strength=strength)
        opt_state = protected(tx)
        for _ in range(2):
            params, opt_state = step(tx, params, opt_state)
        return optax.tree.norm(optax.tree.sub(params, ANCHOR), squared=True)

    by_strength, by_params = jax.grad(distance, argnums=(0, 1))(0.0, PARAMS)
    assert by_strength < -0.1
    moved = jax.tree.map(lambda p, g: p - 2 * LEARNING_RATE * g, PARAMS, GRADS)
    assert_close(by_params, jax.tree.map(lambda m, a: 2 * (m - a), moved, ANCHOR))


@plain_rows
def test_derivatives_pass_through_consolidate(row):
    """By the Fisher and the anchor, also where a tensor of F is all zero."""
    tx = row.tx()
    fisher = {**jax.tree.map(lambda f: f + 0.1, FISHER), "head": jnp.zeros((8, 2))}

    def loss(fisher, anchor):
        opt_state = wpl_jax.consolidate(tx.init(PARAMS), anchor, fisher, max_norm=100.0)
        return wpl_jax.plasticity_loss(opt_state, PARAMS, 2.0)

    by_fisher, by_anchor = jax.grad(loss, argnums=(0, 1))(fisher, ANCHOR)
    distance = optax.tree.sub(PARAMS, ANCHOR)
    assert_close(by_fisher, jax.tree.map(jnp.square, distance))
    assert_close(by_anchor, jax.tree.map(lambda f, d: -2 * f * d, fisher, distance))


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
