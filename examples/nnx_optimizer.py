"""Flax NNX: the plasticity state lives in an nnx.Optimizer, the parameters in an nnx.Module.

A network learns digits, and then the same digits turned by a quarter. With Adam, the term is best
applied after the step (proximal_plasticity), like AdamW's weight decay.

    python -m examples.nnx_optimizer
"""

import optax
from flax import nnx

import wpl_jax
from examples import digits

upright, turned = digits.load(), digits.load(turned=True)


class MLP(nnx.Module):
    def __init__(self, rngs):
        self.hidden_0 = nnx.Linear(784, 128, rngs=rngs)
        self.hidden_1 = nnx.Linear(128, 128, rngs=rngs)
        self.out = nnx.Linear(128, 10, rngs=rngs)

    def __call__(self, x):
        x = nnx.relu(self.hidden_0(x))
        return self.out(nnx.relu(self.hidden_1(x)))


def loss(model, batch):
    """Of a batch the mean, of one example its own."""
    logits = model(batch.images)
    return optax.softmax_cross_entropy_with_integer_labels(logits, batch.labels).mean()


@nnx.jit
def train_step(model, optimizer, batch):
    optimizer.update(model, nnx.grad(loss)(model, batch))


@nnx.jit
def protect(model, optimizer, data):
    """Before it, model.eval() is for models with dropout or batch norm."""
    fisher = wpl_jax.empirical_fisher(loss)(model, data)
    wpl_jax.consolidate(optimizer, model, fisher)


def train(model, optimizer, data):
    for batch in digits.batches(data, steps=400):
        train_step(model, optimizer, batch)


def accuracies(model):
    return [(model(t.images).argmax(-1) == t.labels).mean() for t in (upright.test, turned.test)]


learning_rate = 1e-3
rows = {}
for name, strength in {"without plasticity": 0.0, "with plasticity": 1e5}.items():
    tx = optax.chain(
        optax.adam(learning_rate),
        wpl_jax.proximal_plasticity(strength, learning_rate),
    )
    model = MLP(nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
    train(model, optimizer, upright.train)
    rows["upright learned"] = accuracies(model)

    protect(model, optimizer, upright.train)
    train(model, optimizer, turned.train)
    rows[f"turned, {name}"] = accuracies(model)

digits.show(["upright", "turned"], rows)
