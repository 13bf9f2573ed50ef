"""A tiny space with all that a sampler or a method may ask of one, and its arithmetic in NumPy."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

FEATURES, CLASSES = 4, 3
SHAPE = (FEATURES, CLASSES)


@dataclasses.dataclass(frozen=True)
class Classifiers:
    """Softmax regression: the weights are the sum of those shared and one arm of each decision.

    An arm that is not parametric adds nothing, and has no weights in the mask. What passes from a
    batch to the next is the mean of its logits.
    """

    decisions = (3, 1, 4)
    parametric = ((False, True, True), (True,), (False, True, False, True))

    def decode(self, actions):
        return actions

    def used(self, architecture):
        """Whether each of the chosen arms is parametric, bool [3]."""
        table = np.zeros((3, 4), bool)
        for row, choices in zip(table, self.parametric, strict=True):
            row[: len(choices)] = choices
        return jnp.asarray(table)[jnp.arange(3), architecture]

    def distinct(self):
        return np.array([[0, 0, 0], [1, 0, 0], [2, 0, 1], [1, 0, 3], [0, 0, 3]], np.int32)

    def init(self, key):
        arms, shared = jax.random.split(key)
        return {
            "arms": 0.5 * jax.random.normal(arms, (3, 4, *SHAPE)),
            "shared": jax.random.normal(shared, SHAPE),
        }

    def mask(self, architecture):
        chosen = jax.nn.one_hot(architecture, 4, dtype=bool) & self.used(architecture)[:, None]
        return {"arms": chosen[..., None, None], "shared": True}

    def rows(self, architecture):
        return {"arms": architecture[:, None], "shared": ...}

    def num_batches(self, split):
        return len(split[0])

    def batch(self, split, step, key):
        del key
        return jax.tree.map(lambda x: x[step % len(x)], split)

    def start(self, batch):
        del batch
        return jnp.zeros(CLASSES)

    def log_probs(self, params, architecture, batch, carry, key):
        del key
        arms, (inputs, labels) = params["arms"], batch
        own = arms[:, 0] if arms.shape[1] == 1 else arms[jnp.arange(3), architecture]
        own = jnp.where(self.used(architecture)[:, None, None], own, 0)
        logits = inputs @ (params["shared"] + own.sum(0)) + 0.1 * carry[None]
        there = (labels >= 0)[:, None]
        return jnp.where(there, jax.nn.log_softmax(logits), 0), logits.mean(0)

    def loss(self, params, architecture, batch, carry, key):
        log_probs, carry = self.log_probs(params, architecture, batch, carry, key)
        labels = batch[1]
        picked = jnp.take_along_axis(log_probs, jnp.maximum(labels, 0)[:, None], 1)
        return -picked.sum() / (labels >= 0).sum(), carry

    def score(self, params, architecture, batch, carry):
        loss, carry = self.loss(params, architecture, batch, carry, None)
        count = jnp.sum(batch[1] >= 0).astype(jnp.float32)
        return (count * loss, count), carry

    def error(self, mean_score):
        return mean_score

    def reward(self, error):
        return jnp.where(jnp.isfinite(error), 1 / (1 + error), 0.0)


SPACE = Classifiers()
ALL = np.indices(SPACE.decisions).reshape(3, -1).T.astype(np.int32)
USED = np.array([[c[a] for c, a in zip(SPACE.parametric, row, strict=True)] for row in ALL])
NUMBERS = USED.sum(1)


def split(seed, batches):
    """Inputs, float [batches, 8, features], and labels, of which some are padding."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(CLASSES, size=(batches, 8)).astype(np.int32)
    labels[:, -2:] = -1
    return jnp.float32(rng.normal(size=(batches, 8, FEATURES))), jnp.asarray(labels)


# --- The same by hand -----------------------------------------------------------------------------


def used(actions):
    return [c[a] for c, a in zip(SPACE.parametric, actions, strict=True)]


def own(actions):
    """The mask, in the shapes of the parameters."""
    arms = np.zeros((3, 4, *SHAPE), bool)
    for decision, (action, is_used) in enumerate(zip(actions, used(actions), strict=True)):
        arms[decision, action] = is_used
    return {"arms": arms, "shared": np.ones(SHAPE, bool)}


def logits(params, actions, inputs, carry):
    weights = params["shared"] + (params["arms"] * own(actions)["arms"]).sum((0, 1))
    return inputs @ weights + 0.1 * carry


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def spread(actions, gradient):
    """The gradient of the sum of weights, as that of each of them."""
    return {name: mask * gradient for name, mask in own(actions).items()}


def gradient(params, actions, batch, carry):
    """Loss, next carry, and gradient."""
    inputs, labels = (np.asarray(x) for x in batch)
    inputs = np.float64(inputs)
    z = logits(params, actions, inputs, carry)
    there = labels >= 0
    errors = softmax(z)[there] - np.eye(CLASSES)[labels[there]]
    loss = -np.log(softmax(z)[there, labels[there]]).mean()
    return loss, z.mean(0), spread(actions, inputs[there].T @ errors / there.sum())
