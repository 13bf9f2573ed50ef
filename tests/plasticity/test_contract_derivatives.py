"""The contract: derivatives through every transformation."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from contract import (
    ANCHOR,
    FISHER,
    GRADS,
    LEARNING_RATE,
    PARAMS,
    assert_close,
    closed_form,
    plain_rows,
    protected,
    replace_plasticity,
    rows,
    step,
)
from jax.test_util import check_grads

import wpl_jax

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
