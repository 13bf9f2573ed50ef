"""Flax Linen: the plasticity state lives in a TrainState, where consolidate finds it.

A network learns digits, and then the same digits turned by a quarter. apply_gradients does not pass
a mask on to the optimiser; docs/howto/frameworks.md, "Flax Linen", shows what to write instead.

    python -m examples.linen_train_state
"""

import jax
import optax
from flax import linen as nn
from flax.training.train_state import TrainState

import wpl_jax
from examples import digits

upright, turned = digits.load(), digits.load(turned=True)


class MLP(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Dense(128)(x))
        x = nn.relu(nn.Dense(128)(x))
        return nn.Dense(10)(x)


model = MLP()


def nll(params, example):
    """Of one example; of a batch, one each."""
    logits = model.apply({"params": params}, example.images)
    return optax.softmax_cross_entropy_with_integer_labels(logits, example.labels)


@jax.jit
def train_step(state, batch):
    grads = jax.grad(lambda params: nll(params, batch).mean())(state.params)
    return state.apply_gradients(grads=grads)


def train(state, data):
    for batch in digits.batches(data, steps=400):
        state = train_step(state, batch)
    return state


def accuracies(state):
    return [
        (model.apply({"params": state.params}, t.images).argmax(-1) == t.labels).mean()
        for t in (upright.test, turned.test)
    ]


learning_rate = 0.05
params = model.init(jax.random.key(0), upright.train.images[:1])["params"]
rows = {}
for name, strength in {"without plasticity": 0.0, "with plasticity": 300.0}.items():
    tx = optax.chain(
        wpl_jax.add_plasticity(strength),
        optax.sgd(learning_rate, momentum=0.9),
    )
    state = TrainState.create(apply_fn=model.apply, params=params, tx=tx)
    state = train(state, upright.train)
    rows["upright learned"] = accuracies(state)

    fisher = jax.jit(wpl_jax.empirical_fisher(nll))(state.params, upright.train)
    state = wpl_jax.consolidate(state, state.params, fisher)
    diagnosis = wpl_jax.diagnose(state, state.params, learning_rate)

    state = train(state, turned.train)
    rows[f"turned, {name}"] = accuracies(state)

digits.show(["upright", "turned"], rows)
print(f"\nwhat wpl_jax.diagnose said before the turned digits:\n{diagnosis}")
