"""Elastic Weight Consolidation: the digits 0 to 4, then the digits 5 to 9.

The two tasks share two layers, and each has a classifier of its own. EWC (Kirkpatrick et al., 2017)
takes one transformation in the chain, and one call of consolidate between the tasks.

    python -m examples.ewc_split_digits
"""

import jax
import jax.numpy as jnp
import optax

import wpl_jax
from examples import digits

TASKS = {"0 to 4": digits.load(range(5)), "5 to 9": digits.load(range(5, 10))}


def init(key):
    def layer(key, rows, columns):
        kernel = jax.nn.initializers.he_normal()(key, (rows, columns))
        return {"kernel": kernel, "bias": jnp.zeros(columns)}

    keys = jax.random.split(key, 4)
    return {
        "shared": [layer(keys[0], 784, 128), layer(keys[1], 128, 128)],
        **{name: layer(k, 128, 5) for name, k in zip(TASKS, keys[2:], strict=True)},
    }


def logits(params, name, images):
    x = images
    for layer in params["shared"]:
        x = jax.nn.relu(x @ layer["kernel"] + layer["bias"])
    return x @ params[name]["kernel"] + params[name]["bias"]


def nll(name):
    """Of one example; of a batch, one each."""
    return lambda params, example: optax.softmax_cross_entropy_with_integer_labels(
        logits(params, name, example.images), example.labels
    )


def train(tx, params, opt_state, name):
    @jax.jit
    def step(params, opt_state, batch):
        grads = jax.grad(lambda params: nll(name)(params, batch).mean())(params)
        updates, opt_state = tx.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state

    for batch in digits.batches(TASKS[name].train, steps=400):
        params, opt_state = step(params, opt_state, batch)
    return params, opt_state


def accuracies(params):
    return [
        (logits(params, name, task.test.images).argmax(-1) == task.test.labels).mean()
        for name, task in TASKS.items()
    ]


first, second = TASKS
rows = {}
for name, strength in {"without EWC": 0.0, "with EWC": 1000.0}.items():
    tx = optax.chain(wpl_jax.add_plasticity(strength), optax.sgd(0.05, momentum=0.9))
    params = init(jax.random.key(0))
    params, opt_state = train(tx, params, tx.init(params), first)
    rows[f"{first} learned"] = accuracies(params)

    fisher = jax.jit(wpl_jax.empirical_fisher(nll(first)))(params, TASKS[first].train)
    opt_state = wpl_jax.consolidate(opt_state, params, fisher)

    params, opt_state = train(tx, params, opt_state, second)
    rows[f"{second}, {name}"] = accuracies(params)

digits.show(TASKS, rows)
