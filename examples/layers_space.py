"""A search space of one's own, with all that the scripts need of it.

    python -m experiments.search --space examples.layers_space:Digits

Networks read digits through three layers. In each, an architecture picks one of four kernels, which
architectures share, and one of three activations: (4 · 3)³ = 1,728 architectures.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.spaces import Task
from experiments.spaces.sgd import SGDFinal, SGDSearch
from wpl_jax.data import Images, Splits, batches, load_images
from wpl_jax.search import Data, Reinforced, SearchConfig
from wpl_jax.settings import Few, Size, check
from wpl_jax.spaces import checked_actions
from wpl_jax.spaces.parameters import num_parameters

ACTIVATIONS = {"relu": jax.nn.relu, "tanh": jnp.tanh, "sin": jnp.sin}


class Architecture(NamedTuple):
    """Architectures are data: arrays of whole numbers. One compiled program serves them all."""

    kernels: jax.Array  # shape=(layers,)
    activations: jax.Array  # shape=(layers,)


@dataclasses.dataclass(frozen=True)
class Layers:
    """The space: what its architectures are, what they share, how one is trained and measured."""

    layers: Few = 3
    """Layers of a network."""
    kernels: Few = 4
    """Kernels to choose from in each."""
    width: Size = 64
    """Units in a layer."""

    def __post_init__(self):
        check(self)  # that settings are as their types say

    # What an architecture is.

    @property
    def decisions(self) -> tuple[int, ...]:
        """The choices in each decision, in the order in which the controller makes them."""
        return (self.kernels, len(ACTIVATIONS)) * self.layers

    def decode(self, actions: jax.Array) -> Architecture:
        actions = checked_actions(actions, self.decisions)  # an error for a choice there is not
        return Architecture(actions[0::2], actions[1::2])

    # What architectures share, and which part of it is whose.

    def init(self, key: jax.Array) -> dict[str, jax.Array]:
        keys = jax.random.split(key, 3)
        shape = (self.layers, self.kernels, self.width, self.width)
        return {
            "first": jax.random.normal(keys[0], (784, self.width)) / 28,
            "kernels": jax.random.normal(keys[1], shape) * (2 / self.width) ** 0.5,
            "last": jax.random.normal(keys[2], (self.width, 10)) * 0.01,
        }

    def mask(self, architecture: Architecture) -> dict[str, Any]:
        """Leaves that broadcast to the parameters; True itself for what all architectures use."""
        own = jax.nn.one_hot(architecture.kernels, self.kernels, dtype=bool)
        return {"first": True, "kernels": own[:, :, None, None], "last": True}

    def rows(self, architecture: Architecture) -> dict[str, Any]:
        """Where its own are: in each layer (the first axis) one kernel (on the second)."""
        return {"first": ..., "kernels": architecture.kernels[:, None], "last": ...}

    # How one is trained and measured.

    def logits(self, params, architecture, images):
        x = images.reshape(len(images), -1) / 255.0 @ params["first"]
        # In training, params hold the architecture's own kernels only: one in each layer.
        chosen = jnp.where(params["kernels"].shape[1] == 1, 0, architecture.kernels)
        for i in range(self.layers):
            x = x @ params["kernels"][i, chosen[i]]
            x = jax.lax.switch(architecture.activations[i], list(ACTIVATIONS.values()), x)
        return x @ params["last"]

    def loss(self, params, architecture, batch, carry, key):
        del key  # nothing random here
        scores = self.logits(params, architecture, batch.images)
        losses = optax.softmax_cross_entropy_with_integer_labels(scores, batch.labels)
        return losses.mean(), carry

    def score(self, params, architecture, batch, carry):
        """How many answers are wrong, and of how many."""
        wrong = self.logits(params, architecture, batch.images).argmax(-1) != batch.labels
        return (wrong.sum().astype(jnp.float32), jnp.float32(len(wrong))), carry

    def error(self, mean_score):
        return mean_score

    def reward(self, error):
        return jnp.where(jnp.isfinite(error), 1 - error, 0.0)

    # The data: batches in a row, and nothing that passes from one to the next.

    def num_batches(self, split):
        return len(split.labels)

    def batch(self, split, step, key):
        del key  # neither shuffled nor augmented
        return jax.tree.map(lambda x: x[step % len(split.labels)], split)

    def start(self, batch):
        del batch
        return ()

    # What the scripts store and draw.

    def num_parameters(self, architecture: Architecture) -> int:
        return num_parameters(self, architecture)

    def to_json(self, architecture: Architecture) -> dict[str, Any]:
        kernels, activations = map(np.asarray, architecture)
        names = [list(ACTIVATIONS)[a] for a in activations]
        return {"kernels": kernels.tolist(), "activations": names}

    def from_json(self, stored: Any) -> Architecture:
        try:
            kernels = [range(self.kernels).index(k) for k in stored["kernels"]]
            activations = [list(ACTIVATIONS).index(a) for a in stored["activations"]]
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"kernels and activations must be known: {error}") from error
        if not len(kernels) == len(activations) == self.layers:
            raise ValueError(f"there must be {self.layers} kernels and activations, got {stored}")
        return Architecture(jnp.array(kernels, jnp.int32), jnp.array(activations, jnp.int32))

    def graphs(self, architecture: Architecture):
        import networkx

        graph = networkx.DiGraph()
        graph.add_node(0, label="image", kind="input")
        pairs = zip(*self.to_json(architecture).values(), strict=True)
        for i, (kernel, activation) in enumerate(pairs, start=1):
            graph.add_node(i, label=activation, kind=activation)
            graph.add_edge(i - 1, i, label=f"kernel {kernel}")
        return {"network": graph}


@dataclasses.dataclass(frozen=True)
class LayersSearch(SGDSearch):
    """Settings of a search: those of any search by SGD, and the space in a field of its own."""

    layers: Layers = Layers()
    """The space of layers."""


@dataclasses.dataclass(frozen=True)
class LayersFinal(SGDFinal):
    """Settings of a training from scratch, in the same way."""

    layers: Layers = Layers()
    """The space of layers."""


class Digits(Task):
    """What --space names: the space, its presets and its data."""

    name = "layers"
    unit = " (%)"
    scale = 100
    searches = {
        "smoke": LayersSearch(
            epochs=8,
            batch_size=50,
            learning_rate=0.05,
            strength=300.0,
            strength_decay=0.0,
            proximal=True,
            derive_samples=30,
            derive_batches=10,
            warmup_epochs=2,
            protect="all",
            search=SearchConfig(architectures=10, batches=10, chunk=10, eval_batches=10),
            controller=Reinforced(steps=50, learning_rate=5e-3),
        ),
    }
    finals = {"smoke": LayersFinal(epochs=3, batch_size=50)}

    def read(self, config: LayersSearch | LayersFinal) -> Splits:
        return load_images("mnist5k")

    def cut(self, config: LayersSearch | LayersFinal, corpus: Splits) -> Data:
        return Data(*(batches(part, config.batch_size) for part in corpus[:2]))

    def test(self, config: LayersFinal, corpus: Splits) -> Images:
        return batches(corpus.test, config.batch_size)

    def reward(self, space: Layers) -> str:
        return "1 − err2"

    def source(self, config: LayersSearch) -> str:
        return "5,000 images of MNIST"
