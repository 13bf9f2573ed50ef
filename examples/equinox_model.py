"""Equinox: a model's arrays are the parameters, combined with its other parts inside the loss.

A network learns digits, and then the same digits turned by a quarter.

    python -m examples.equinox_model
"""

import equinox as eqx
import jax
import optax

import wpl_jax
from examples import digits

upright, turned = digits.load(), digits.load(turned=True)
network = eqx.nn.MLP(784, 10, width_size=128, depth=2, key=jax.random.key(0))
params, static = eqx.partition(network, eqx.is_inexact_array)


def nll(params, example):
    logits = eqx.combine(params, static)(example.images)  # of one example, as is Equinox's custom
    return optax.softmax_cross_entropy_with_integer_labels(logits, example.labels)


def train(tx, params, opt_state, data):
    @jax.jit
    def step(params, opt_state, batch):
        grads = jax.grad(lambda params: jax.vmap(nll, (None, 0))(params, batch).mean())(params)
        updates, opt_state = tx.update(grads, opt_state, params)
        return eqx.apply_updates(params, updates), opt_state

    for batch in digits.batches(data, steps=400):
        params, opt_state = step(params, opt_state, batch)
    return params, opt_state


def accuracies(params):
    model = jax.vmap(eqx.combine(params, static))
    return [(model(t.images).argmax(-1) == t.labels).mean() for t in (upright.test, turned.test)]


learning_rate, momentum = 0.05, 0.9
rows = {}
for name, strength in {"without plasticity": 0.0, "with plasticity": 1000.0}.items():
    tx = optax.chain(
        optax.sgd(learning_rate, momentum),
        wpl_jax.proximal_plasticity(strength, learning_rate / (1 - momentum)),
    )
    trained, opt_state = train(tx, params, tx.init(params), upright.train)
    rows["upright learned"] = accuracies(trained)

    fisher = jax.jit(wpl_jax.empirical_fisher(nll))(trained, upright.train)
    opt_state = wpl_jax.consolidate(opt_state, trained, fisher)
    trained, opt_state = train(tx, trained, opt_state, turned.train)
    rows[f"turned, {name}"] = accuracies(trained)

digits.show(["upright", "turned"], rows)
