"""The ways to fine-tune: for each, a training step that is compiled once, whatever its knob.

Strength, learning rate and the weight of replay are arguments of the step, not constants in it.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

import wpl_jax
from examples.finetune_language_model import model


class Knobs(NamedTuple):
    """What may differ between runs of one compiled step."""

    rate: float
    strength: float = 0.0
    replay: float = 0.0  # weight of old tokens in the loss, beside 1 for the new ones


class Tuning(NamedTuple):
    """One way to fine-tune.

    ``init(base, key, fisher)`` gives what is trained and the optimiser's state; ``step(trained,
    opt_state, base, old, new, knobs)`` gives both anew; ``whole(base, trained)`` gives the model's
    parameters.
    """

    init: Callable[..., Any]
    step: Callable[..., Any]
    whole: Callable[..., Any]


def full(graph, form: str) -> Tuning:
    """All parameters are trained."""

    def optimiser(knobs):
        adam = optax.adam(knobs.rate)
        if form == "additive":
            return optax.chain(wpl_jax.add_plasticity(knobs.strength), adam)
        if form == "proximal":
            return optax.chain(adam, wpl_jax.proximal_plasticity(knobs.strength, knobs.rate))
        return adam  # plain, or replay

    def init(base, key, fisher):
        opt_state = optimiser(Knobs(0.0)).init(base)
        if form in ("additive", "proximal"):
            opt_state = wpl_jax.consolidate(opt_state, base, fisher)
        return jax.tree.map(jnp.copy, base), opt_state

    def step(params, opt_state, base, old, new, knobs):
        grads = jax.grad(lambda params: _loss(graph, params, old, new, knobs.replay))(params)
        updates, opt_state = optimiser(knobs).update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state

    return Tuning(init, step, lambda base, params: params)


def lora(graph, form: str, rank: int) -> Tuning:
    """The base is frozen; low-rank adapters of all its matrices are trained.

    ``"merged"`` is the term on the matrices that the model computes with, W + down @ up. An optax
    transformation never sees those: it is the loss form. ``"adapters"`` is the transformation on
    the adapters themselves, whose anchor is their start and whose Fisher is their own.
    """

    def optimiser(knobs):
        adam = optax.adam(knobs.rate)
        if form == "adapters":
            return optax.chain(wpl_jax.add_plasticity(knobs.strength), adam)
        return adam

    def init(base, key, fisher):
        adapters = model.init_adapters(base, rank, key)
        opt_state = optimiser(Knobs(0.0)).init(adapters)
        if form == "adapters":
            opt_state = wpl_jax.consolidate(opt_state, adapters, fisher)
        if form == "merged":
            matrices = model.adapted(base, adapters)
            memory = wpl_jax.add_plasticity(0.0).init(matrices)
            opt_state = opt_state, wpl_jax.consolidate(memory, matrices, fisher)
        return adapters, opt_state

    def step(adapters, opt_state, base, old, new, knobs):
        opt_state, memory = opt_state if form == "merged" else (opt_state, None)

        def loss(adapters):
            matrices = model.merged(base, adapters)
            nll = _loss(graph, model.put(base, matrices), old, new, knobs.replay)
            if memory is None:
                return nll
            return nll + wpl_jax.plasticity_loss(memory, matrices, knobs.strength)

        updates, opt_state = optimiser(knobs).update(jax.grad(loss)(adapters), opt_state, adapters)
        adapters = optax.apply_updates(adapters, updates)
        return adapters, opt_state if memory is None else (opt_state, memory)

    def whole(base, adapters):
        return model.put(base, model.merged(base, adapters))

    return Tuning(init, step, whole)


def _loss(graph, params, old, new, replay):
    """Mean over the new tokens and, where there are old ones, ``replay`` times that over them."""
    tokens = new if old is None else jnp.concatenate([new, old])
    weights = jnp.full(new[:, 1:].shape, 1 / new[:, 1:].size)
    if old is not None:
        old_weights = jnp.full(old[:, 1:].shape, replay / old[:, 1:].size)
        weights = jnp.concatenate([weights, old_weights])
    return model.total_nll(graph, params, tokens, weights)
