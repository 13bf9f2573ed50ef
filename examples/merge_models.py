"""Merge two models that were fine-tuned separately, weighted by their Fishers.

A network is pretrained on digits. One copy is trained further on them, another on the same digits
turned by a quarter. Neither can do both. A merged model can, without any training. Two ways to
merge are compared: the plain mean, and the mean weighted by the models' exact Fishers (Matena and
Raffel, 2022).

    python -m examples.merge_models
"""

import jax
import jax.numpy as jnp
import optax

import wpl_jax
from examples import digits

upright, turned = digits.load(), digits.load(turned=True)
WIDTHS = [784, 128, 128, 10]


def init(key):
    layers = zip(jax.random.split(key, len(WIDTHS) - 1), WIDTHS[:-1], WIDTHS[1:], strict=True)
    normal = jax.nn.initializers.he_normal()
    return [{"kernel": normal(key, (m, n)), "bias": jnp.zeros(n)} for key, m, n in layers]


def logits(params, example):
    x = example.images
    for layer in params[:-1]:
        x = jax.nn.relu(x @ layer["kernel"] + layer["bias"])
    return x @ params[-1]["kernel"] + params[-1]["bias"]


def loss(params, batch):
    return optax.softmax_cross_entropy_with_integer_labels(
        logits(params, batch), batch.labels
    ).mean()


tx = optax.sgd(0.05, momentum=0.9)


@jax.jit
def step(params, opt_state, batch):
    updates, opt_state = tx.update(jax.grad(loss)(params, batch), opt_state, params)
    return optax.apply_updates(params, updates), opt_state


def train(params, data):
    opt_state = tx.init(params)
    for batch in digits.batches(data, steps=400):
        params, opt_state = step(params, opt_state, batch)
    return params


def accuracies(params):
    each = [(logits(params, t.test).argmax(-1) == t.test.labels).mean() for t in (upright, turned)]
    return [*each, sum(each) / 2]


pretrained = train(init(jax.random.key(0)), upright.train)
tasks = {"upright": upright, "turned": turned}
models = [train(pretrained, task.train) for task in tasks.values()]

estimate = jax.jit(wpl_jax.exact_fisher(logits))
fishers = [estimate(model, task.train) for model, task in zip(models, tasks.values(), strict=True)]

rows = {"pretrained": pretrained, **dict(zip(tasks, models, strict=True))}
rows["plain mean of the two"] = wpl_jax.merge(models)
rows["merged by their Fishers"] = wpl_jax.merge(models, fishers)
digits.show(["upright", "turned", "mean"], {name: accuracies(p) for name, p in rows.items()})
