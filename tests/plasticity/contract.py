"""The contract: what every transformation promises, as a table of transformations by properties.

A new transformation is one more line of `TRANSFORMATIONS`; each test in `test_contract*.py` then
holds it to everything that the others promise. What belongs to one transformation alone is tested
elsewhere.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.flatten_util import ravel_pytree

import wpl_jax

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
    proximal: bool  # acts on the step, otherwise on the gradient
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
    "add": Row(add, proximal=False),
    "proximal": Row(proximal, proximal=True),
    "weight": Row(weight, proximal=False, trains=True),
    "weight_proximal": Row(weight_proximal, proximal=True, trains=True),
    "synaptic_intelligence": Row(path_integral, proximal=False),
    "add_scheduled": Row(add, proximal=False, strength=schedule),
    "weight_proximal_scheduled": Row(weight_proximal, True, trains=True, strength=schedule),
    "proximal_narrow": Row(proximal, proximal=True, dtypes=NARROW),
    "weight_narrow": Row(weight, proximal=False, trains=True, dtypes=NARROW),
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
ROWS = {  # the first three rows of the kernel, and the gate
    "layer": {"kernel": (np.arange(8) < 3)[:, None], "gate": np.True_},
    "head": np.False_,
}


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
        return (stepped + c * a) / (1 + c) if row.proximal else stepped - c * (p - a)

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
