"""LoRA: a term on the adapters does not protect the base; a term on the merged weights does.

A network is pretrained on digits. Adapters of rank 8 for its matrices (W + A B, at first with B = 0
everywhere) then learn the digits turned by a quarter. A transformation in the optimiser sees only
the adapters, and their Fishers say little about the base: that of A is 0 at first because B is, and
that of B is right only while A does not move. So the term belongs in the loss:
wpl_jax.plasticity_loss of the merged weights, with the Fisher of the base.

Each of the two has the strength that is best on validation images, among the powers of ten from 100
to 10**6, by the mean of both accuracies.

    python -m examples.lora_weight_space
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax

import wpl_jax
from examples import digits

upright, turned = digits.load(), digits.load(turned=True)
WIDTHS = [784, 128, 128, 10]
SHAPES = list(zip(WIDTHS[:-1], WIDTHS[1:], strict=True))
RANK, STEPS, VALIDATION = 8, 400, 500
STRENGTHS = [10.0**power for power in range(2, 7)]


def init_base(key):
    normal = jax.nn.initializers.he_normal()
    keys = jax.random.split(key, len(SHAPES))
    return [
        {"kernel": normal(key, shape), "bias": jnp.zeros(shape[1])}
        for key, shape in zip(keys, SHAPES, strict=True)
    ]


def init_adapters(key):
    keys = jax.random.split(key, len(SHAPES))
    return [
        {"A": jax.random.normal(key, (m, RANK)) / m**0.5, "B": jnp.zeros((RANK, n))}
        for key, (m, n) in zip(keys, SHAPES, strict=True)
    ]


def merged(base, adapters):
    return [
        {"kernel": layer["kernel"] + adapter["A"] @ adapter["B"], "bias": layer["bias"]}
        for layer, adapter in zip(base, adapters, strict=True)
    ]


def logits(params, images):
    for layer in params[:-1]:
        images = jax.nn.relu(images @ layer["kernel"] + layer["bias"])
    return images @ params[-1]["kernel"] + params[-1]["bias"]


def nll(params, example):
    """Of one example; of a batch, one each."""
    scores = logits(params, example.images)
    return optax.softmax_cross_entropy_with_integer_labels(scores, example.labels)


def fit(loss, tx, opt_state, params, batches):
    """All steps in one program."""

    def step(carry, batch):
        params, opt_state = carry
        updates, opt_state = tx.update(jax.grad(loss)(params, batch), opt_state, params)
        return (optax.apply_updates(params, updates), opt_state), None

    return jax.lax.scan(step, (params, opt_state), batches)[0][0]


def split(data):
    """For training, and to choose a strength by."""
    cut = len(data.labels) - VALIDATION
    return digits.Digits(*(x[:cut] for x in data)), digits.Digits(*(x[cut:] for x in data))


def stacked(data):
    return jax.tree.map(lambda *xs: np.stack(xs), *digits.batches(data, STEPS))


@jax.jit
def accuracies(params, *parts):
    each = [(logits(params, data.images).argmax(-1) == data.labels).mean() for data in parts]
    return jnp.stack([*each, sum(each) / 2])


(old, old_validation), (new, new_validation) = split(upright.train), split(turned.train)


def pretrain(params, batches):
    def loss(params, batch):
        return nll(params, batch).mean()

    tx = optax.sgd(0.05, momentum=0.9)
    return fit(loss, tx, tx.init(params), params, batches)


base = jax.jit(pretrain)(init_base(jax.random.key(0)), stacked(old))
adapters = init_adapters(jax.random.key(1))
fisher = jax.jit(wpl_jax.empirical_fisher(nll))(base, old)
hold = wpl_jax.consolidate(wpl_jax.add_plasticity(0.0).init(base), base, fisher)


def adapted_nll(adapters, example):
    return nll(merged(base, adapters), example)


adapters_fisher = jax.jit(wpl_jax.empirical_fisher(adapted_nll))(adapters, old)


def new_loss(adapters, batch):
    return adapted_nll(adapters, batch).mean()


def nothing(strength, batches):
    tx = optax.adam(1e-3)
    return fit(new_loss, tx, tx.init(adapters), adapters, batches)


def on_the_adapters(strength, batches):
    tx = optax.chain(wpl_jax.add_plasticity(strength), optax.adam(1e-3))
    opt_state = wpl_jax.consolidate(tx.init(adapters), adapters, adapters_fisher)
    return fit(new_loss, tx, opt_state, adapters, batches)


def on_merged_weights(strength, batches):
    def loss(adapters, batch):
        term = wpl_jax.plasticity_loss(hold, merged(base, adapters), strength)
        return new_loss(adapters, batch) + term

    tx = optax.adam(1e-3)
    return fit(loss, tx, tx.init(adapters), adapters, batches)


batches = stacked(new)
rows = {"pretrained": accuracies(base, upright.test, turned.test)}
for how in (nothing, on_the_adapters, on_merged_weights):
    train = jax.jit(how)
    found = {}
    for strength in STRENGTHS if how is not nothing else [0.0]:
        params = merged(base, train(strength, batches))
        found[strength] = params, accuracies(params, old_validation, new_validation)[-1]
    best = max(found, key=lambda strength: found[strength][1])
    name = how.__name__.replace("_", " ") + (f", strength {best:g}" if best else "")
    rows[name] = accuracies(found[best][0], upright.test, turned.test)

digits.show(["upright", "turned", "mean"], rows)
