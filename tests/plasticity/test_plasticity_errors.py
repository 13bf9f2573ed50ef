"""What the transformations refuse, and what they say."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from forms import BATCH, FISHER, GRADS, PARAMS, adamw, sgd, weight

import wpl_jax

TX = wpl_jax.add_plasticity(1.0)
STATE = TX.init(PARAMS)
WITHOUT_BIAS = {**PARAMS, "hidden": {"kernel": PARAMS["hidden"]["kernel"]}}
WITH_MORE = {**PARAMS, "more": jnp.ones(2)}
TRANSPOSED = {**PARAMS, "hidden": jax.tree.map(jnp.transpose, PARAMS["hidden"])}


@pytest.mark.parametrize(
    "call",
    [
        lambda tree: TX.update(tree, STATE, PARAMS),
        lambda tree: TX.update(GRADS, STATE, tree),
        lambda tree: wpl_jax.proximal_plasticity(1.0, 0.1).update(GRADS, STATE, tree),
        lambda tree: wpl_jax.consolidate(STATE, tree, FISHER),
        lambda tree: wpl_jax.plasticity_loss(STATE, tree, 1.0),
    ],
    ids=["updates", "params", "proximal", "consolidate", "plasticity_loss"],
)
@pytest.mark.parametrize(
    ("tree", "message"),
    [
        (WITHOUT_BIAS, r"has no leaf at \['hidden'\]\['bias'\].*shape \(2,\)"),
        (WITH_MORE, r"has a leaf at \['more'\].*none"),
        (TRANSPOSED, r"shape \(2, 3\) at \['hidden'\]\['kernel'\].*have \(3, 2\)"),
    ],
    ids=["missing", "extra", "shape"],
)
def test_trees_that_do_not_match(call, tree, message):
    with pytest.raises(ValueError, match=message):
        call(tree)


HYPERPARAMETERS = {
    "add_plasticity": ("strength", wpl_jax.add_plasticity),
    "proximal_plasticity": ("strength", lambda v: wpl_jax.proximal_plasticity(v, 0.1)),
    "proximal_rate": ("learning_rate", lambda v: wpl_jax.proximal_plasticity(1.0, v)),
    "weight_plasticity": ("strength", lambda v: weight(sgd(), v)),
    "weight_rate": ("learning_rate", lambda v: weight(sgd(), 1.0, learning_rate=v)),
    "fisher_decay": ("fisher_decay", lambda v: weight(sgd(), 1.0, fisher_decay=v)),
    "weight_max_norm": ("max_norm", lambda v: weight(sgd(), 1.0, max_norm=v)),
    "plasticity_loss": ("strength", lambda v: wpl_jax.plasticity_loss(STATE, PARAMS, v)),
    "decay": ("decay", lambda v: wpl_jax.consolidate(STATE, PARAMS, FISHER, decay=v)),
    "max_norm": ("max_norm", lambda v: wpl_jax.consolidate(STATE, PARAMS, FISHER, max_norm=v)),
}


@pytest.mark.parametrize(("name", "call"), HYPERPARAMETERS.values(), ids=HYPERPARAMETERS)
@pytest.mark.parametrize("value", [-1.0, np.nan, np.inf, np.float32(-1), jnp.array(-2.0), -1])
def test_hyperparameters_must_be_finite_and_not_negative(name, call, value):
    with pytest.raises(ValueError, match=f"{name} must be finite and not negative, got {value}"):
        call(value)


@pytest.mark.parametrize(("name", "call"), HYPERPARAMETERS.values(), ids=HYPERPARAMETERS)
@pytest.mark.parametrize("value", ["1", {"w": 1.0}])
def test_hyperparameters_must_be_numbers(name, call, value):
    with pytest.raises(ValueError, match=f"{name} must be a number or an array of one, got"):
        call(value)


@pytest.mark.parametrize(
    "make",
    [
        lambda **dtypes: wpl_jax.add_plasticity(1.0, **dtypes),
        lambda **dtypes: wpl_jax.proximal_plasticity(1.0, 0.1, **dtypes),
    ],
    ids=["add", "proximal"],
)
@pytest.mark.parametrize("name", ["fisher_dtype", "anchor_dtype"])
@pytest.mark.parametrize("dtype", [jnp.int8, bool, np.uint32, jnp.float8_e8m0fnu])
def test_dtypes_must_be_floating_point(make, name, dtype):
    with pytest.raises(ValueError, match=f"{name} must be a floating-point dtype"):
        make(**{name: dtype})


def test_a_fisher_is_not_complex():
    with pytest.raises(ValueError, match="fisher_dtype must be a floating-point dtype"):
        wpl_jax.add_plasticity(1.0, fisher_dtype=jnp.complex64)


def test_a_schedule_must_give_a_scalar():
    with pytest.raises(ValueError, match=r"a schedule must give a scalar, got one of shape \(2,\)"):
        wpl_jax.add_plasticity(lambda count: jnp.ones(2)).init(PARAMS)


@pytest.mark.parametrize(("name", "call"), HYPERPARAMETERS.values(), ids=HYPERPARAMETERS)
@pytest.mark.parametrize("value", [np.ones(2), jnp.ones((1, 1))])
def test_hyperparameters_must_be_scalars(name, call, value):
    with pytest.raises(ValueError, match=rf"{name} must be a scalar, .* \({value.shape[0]},"):
        call(value)


FINDERS = {
    "consolidate": lambda state: wpl_jax.consolidate(state, PARAMS, FISHER),
    "flush": wpl_jax.flush,
    "plasticity_loss": lambda state: wpl_jax.plasticity_loss(state, PARAMS, 1.0),
}


@pytest.mark.parametrize("find", FINDERS.values(), ids=FINDERS)
def test_there_must_be_one_plasticity_state(find):
    with pytest.raises(ValueError, match="no plasticity state: was it made by .*add_plasticity"):
        find(adamw().init(PARAMS))
    tx = optax.chain(TX, optax.identity(), wpl_jax.proximal_plasticity(1.0, 0.1))
    opt_state = tx.init(PARAMS)
    with pytest.raises(ValueError, match=r"2 plasticity states, at \[0\], \[2\]: pass the part"):
        find(opt_state)
    find(opt_state[2])  # as the message says


def test_consolidating_in_update_needs_batch_and_nll():
    tx = wpl_jax.weight_plasticity(sgd(), strength=1.0)
    opt_state = tx.init(PARAMS)
    tx.update(GRADS, opt_state, PARAMS)  # without consolidate, neither
    with pytest.raises(ValueError, match="consolidate needs nll"):
        tx.update(GRADS, opt_state, PARAMS, batch=BATCH, consolidate=True)
    with pytest.raises(ValueError, match="consolidate needs batch"):
        weight(sgd()).update(GRADS, opt_state, PARAMS, consolidate=jnp.array(True))
    with pytest.raises(ValueError, match="microbatch_size must be at least 1"):
        weight(sgd(), microbatch_size=0)
