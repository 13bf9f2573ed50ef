"""A small model, and the forms of the plasticity term around an optimiser."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import wpl_jax

LEARNING_RATE = 0.125
STRENGTH = 4.0
MAX = float(np.finfo(np.float32).max)


def normal(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def normal_like(tree, seed):
    leaves, structure = jax.tree.flatten(tree)
    draws = [normal(seed + i, *leaf.shape).astype(leaf.dtype) for i, leaf in enumerate(leaves)]
    return jax.tree.unflatten(structure, draws)


def nll(params, example):
    out = jnp.tanh(example["x"] @ params["hidden"]["kernel"] + params["hidden"]["bias"])
    return 0.5 * jnp.square(params["gain"] * out.sum() - example["y"])


@jax.jit
def mean_gradient(params, batch):
    return jax.grad(lambda params: jax.vmap(nll, (None, 0))(params, batch).mean())(params)


PARAMS = {"hidden": {"kernel": normal(0, 3, 2), "bias": normal(1, 2)}, "gain": normal(2)}
ANCHOR = normal_like(PARAMS, 10)
GRADS = normal_like(PARAMS, 20)
FISHER = {
    "hidden": {"kernel": jnp.abs(normal(30, 3, 2)), "bias": jnp.array([0.0, 2.0])},
    "gain": jnp.array(0.5),
}
BATCH = {"x": normal(3, 6, 3), "y": normal(4, 6)}


def add(inner, strength=STRENGTH):
    return optax.chain(wpl_jax.add_plasticity(strength), inner)


def proximal(inner, strength=STRENGTH):
    return optax.chain(inner, wpl_jax.proximal_plasticity(strength, LEARNING_RATE))


def weight(inner, strength=STRENGTH, **options):
    return wpl_jax.weight_plasticity(inner, strength=strength, nll=nll, **options)


def weight_proximal(inner, strength=STRENGTH, **options):
    return weight(inner, strength, learning_rate=LEARNING_RATE, **options)


def sgd():
    return optax.sgd(LEARNING_RATE, momentum=0.9)


def adamw():
    return optax.adamw(LEARNING_RATE, weight_decay=0.1)


forms = pytest.mark.parametrize("form", [add, proximal, weight, weight_proximal])
inners = pytest.mark.parametrize("inner", [sgd, adamw])
both_weights = pytest.mark.parametrize("form", [weight, weight_proximal])


def protected(tx, params=PARAMS, anchor=ANCHOR, fisher=FISHER):
    """The state of an optimiser of `params` that has consolidated elsewhere: the term pulls."""
    return wpl_jax.consolidate(tx.init(params), anchor, fisher)


def run(tx, params, opt_state, grads, steps=3, **extra):
    """Steps along given gradients, in which the term is the only thing that sees the weights."""
    for _ in range(steps):
        updates, opt_state = tx.update(grads, opt_state, params, **extra)
        params = optax.apply_updates(params, updates)
    return params, opt_state


def trainer(tx):
    """A function that takes jitted steps on the model's own loss.

    LLVM's optimisations are off: they may contract a product and a sum into one operation with one
    rounding, and which ones they do contract depends on the rest of the program.
    """

    @functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
    def step(params, opt_state):
        updates, opt_state = tx.update(mean_gradient(params, BATCH), opt_state, params)
        return optax.apply_updates(params, updates), opt_state

    def train(params, opt_state, steps=4):
        for _ in range(steps):
            params, opt_state = step(params, opt_state)
        return params, opt_state

    return train


def one_step(tx, **options):
    """Counts its traces in `step.traces`."""

    @jax.jit
    def step(params, opt_state, batch, last, mask=None):
        step.traces += 1
        updates, opt_state = tx.update(
            mean_gradient(params, batch),
            opt_state,
            params,
            batch=batch,
            consolidate=last,
            mask=mask,
            **options,
        )
        return optax.apply_updates(params, updates), opt_state

    step.traces = 0
    return step


def assert_same_bits(actual, expected):
    chex.assert_trees_all_equal_shapes_and_dtypes(actual, expected)
    for a, e in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        assert np.asarray(a).tobytes() == np.asarray(e).tobytes(), (a, e)


def assert_close(actual, expected, rtol=1e-5):
    chex.assert_trees_all_close(actual, expected, rtol=rtol, atol=1e-6)


def assert_differ(actual, expected):
    assert not np.allclose(
        *(np.concatenate([x.ravel() for x in jax.tree.leaves(t)]) for t in (actual, expected)),
        rtol=1e-3,
    )


def plasticity(opt_state):
    """The plasticity state of a chain or of a weight_plasticity."""
    (state,) = [s for s in opt_state if isinstance(s, wpl_jax.PlasticityState)]
    return state
