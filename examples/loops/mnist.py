"""A convolutional network on data sets of images, one after another, in the style of Flax's MNIST.

mnist.diff adds plasticity.
"""

import dataclasses

import jax
import numpy as np
import optax
from flax import linen as nn
from flax.training.train_state import TrainState


@dataclasses.dataclass
class Config:
    learning_rate: float = 0.1
    momentum: float = 0.9
    batch_size: int = 128
    num_epochs: int = 10


class CNN(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(features=32, kernel_size=(3, 3))(x))
        x = nn.avg_pool(x, window_shape=(2, 2), strides=(2, 2))
        x = nn.relu(nn.Conv(features=64, kernel_size=(3, 3))(x))
        x = nn.avg_pool(x, window_shape=(2, 2), strides=(2, 2))
        x = x.reshape(*x.shape[:-3], -1)
        x = nn.relu(nn.Dense(features=256)(x))
        return nn.Dense(features=10)(x)


def loss_fn(params, batch):
    logits = CNN().apply({"params": params}, batch["image"])
    return optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"]).mean()


@jax.jit
def apply_model(state, batch):
    loss, grads = jax.value_and_grad(loss_fn)(state.params, batch)
    return grads, loss


@jax.jit
def update_model(state, grads):
    return state.apply_gradients(grads=grads)


@jax.jit
def evaluate(state, dataset):
    logits = state.apply_fn({"params": state.params}, dataset["image"])
    return (logits.argmax(-1) == dataset["label"]).mean()


def train_epoch(state, dataset, batch_size, rng):
    steps = len(dataset["image"]) // batch_size
    order = rng.permutation(len(dataset["image"]))[: steps * batch_size]
    losses = []
    for index in order.reshape(steps, batch_size):
        grads, loss = apply_model(state, {name: x[index] for name, x in dataset.items()})
        state = update_model(state, grads)
        losses.append(loss)
    return state, np.mean(losses)


def create_train_state(key, config, image):
    model = CNN()
    params = jax.jit(model.init)(key, image[None])["params"]
    tx = optax.sgd(config.learning_rate, config.momentum)
    return TrainState.create(apply_fn=model.apply, params=params, tx=tx)


def train_and_evaluate(config, datasets):
    """Trains on pairs of a training and a test set, dictionaries of images and labels."""
    rng = np.random.default_rng(0)
    state = create_train_state(jax.random.key(0), config, datasets[0][0]["image"][0])
    for train, test in datasets:
        for epoch in range(config.num_epochs):
            state, loss = train_epoch(state, train, config.batch_size, rng)
            print(f"epoch {epoch}: loss {loss:.4f}, accuracy {evaluate(state, test):.2%}")
    return state
