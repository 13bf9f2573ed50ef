"""Save and resume with Orbax in the middle of the second task: nothing is lost.

The plasticity state is part of the optimiser's state, and is saved with it.

    python -m examples.save_and_restore
"""

import tempfile
from pathlib import Path

import jax
import numpy as np
import optax
import orbax.checkpoint as ocp

import wpl_jax
from examples import digits

upright, turned = digits.load(), digits.load(turned=True)
tx = optax.chain(wpl_jax.add_plasticity(1000.0), optax.sgd(0.05, momentum=0.9))


def nll(params, example):
    """Of one example; of a batch, one each."""
    x = jax.nn.relu(example.images @ params["hidden"])
    return optax.softmax_cross_entropy_with_integer_labels(x @ params["out"], example.labels)


@jax.jit
def step(state, batch):
    grads = jax.grad(lambda params: nll(params, batch).mean())(state["params"])
    updates, opt_state = tx.update(grads, state["opt_state"], state["params"])
    return {"params": optax.apply_updates(state["params"], updates), "opt_state": opt_state}


def train(state, batches):
    for batch in batches:
        state = step(state, batch)
    return state


def start():
    he = jax.nn.initializers.he_normal()
    key_hidden, key_out = jax.random.split(jax.random.key(0))
    params = {"hidden": he(key_hidden, (784, 128)), "out": he(key_out, (128, 10))}
    return {"params": params, "opt_state": tx.init(params)}


state = train(start(), digits.batches(upright.train, steps=200))
fisher = jax.jit(wpl_jax.empirical_fisher(nll))(state["params"], upright.train)
state["opt_state"] = wpl_jax.consolidate(state["opt_state"], state["params"], fisher)

second = list(digits.batches(turned.train, steps=200))
half = train(state, second[:100])
uninterrupted = train(half, second[100:])

with tempfile.TemporaryDirectory() as folder, ocp.StandardCheckpointer() as checkpointer:
    checkpointer.save(Path(folder) / "half", half)
    checkpointer.wait_until_finished()
    # As a new process would, which has only the shapes; `start` itself would do as well.
    restored = checkpointer.restore(Path(folder) / "half", jax.eval_shape(start))

print(f"restored after {optax.tree.get(restored, 'count')} updates")
resumed = train(restored, second[100:])
equal = all(
    np.asarray(a).tobytes() == np.asarray(b).tobytes()
    for a, b in zip(jax.tree.leaves(resumed), jax.tree.leaves(uninterrupted), strict=True)
)
print(
    f"{len(jax.tree.leaves(resumed))} arrays, resumed and uninterrupted, bit for bit equal: {equal}"
)


def accuracies(state):
    hidden, out = state["params"]["hidden"], state["params"]["out"]
    return [
        ((jax.nn.relu(t.images @ hidden) @ out).argmax(-1) == t.labels).mean()
        for t in (upright.test, turned.test)
    ]


states = {"when saved": half, "resumed": resumed, "uninterrupted": uninterrupted}
digits.show(["upright", "turned"], {name: accuracies(s) for name, s in states.items()})
