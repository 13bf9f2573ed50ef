"""Fine-tuning: plasticity protects a pretrained backbone, while a head and an adapter are free.

The backbone is pretrained on digits. A new head, with an adapter before it, then learns the digits
turned by a quarter. The backbone is trained too: optax.partition gives it an optimiser of its own,
with plasticity. The old head, on the same backbone, shows how much of the pretraining is left.

    python -m examples.finetune_backbone
"""

import jax
import jax.numpy as jnp
import optax

import wpl_jax
from examples import digits

upright, turned = digits.load(), digits.load(turned=True)


def layer(key, rows, columns):
    kernel = jax.nn.initializers.he_normal()(key, (rows, columns))
    return {"kernel": kernel, "bias": jnp.zeros(columns)}


def apply(layer, x):
    return x @ layer["kernel"] + layer["bias"]


def features(backbone, images):
    x = jax.nn.relu(apply(backbone["in"], images))
    return jax.nn.relu(apply(backbone["out"], x))


def old_model(params, images):
    return apply(params["head"], features(params["backbone"], images))


def new_model(params, images):
    x = features(params["backbone"], images)
    x = x + apply(params["adapter"]["up"], jax.nn.relu(apply(params["adapter"]["down"], x)))
    return apply(params["head"], x)


def nll(model):
    """Of one example; of a batch, one each."""
    return lambda params, example: optax.softmax_cross_entropy_with_integer_labels(
        model(params, example.images), example.labels
    )


def train(tx, model, params, opt_state, data):
    @jax.jit
    def step(params, opt_state, batch):
        grads = jax.grad(lambda params: nll(model)(params, batch).mean())(params)
        updates, opt_state = tx.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state

    for batch in digits.batches(data, steps=400):
        params, opt_state = step(params, opt_state, batch)
    return params


def accuracy(model, params, data):
    return (model(params, data.images).argmax(-1) == data.labels).mean()


keys = jax.random.split(jax.random.key(0), 6)
pretrained = {
    "backbone": {"in": layer(keys[0], 784, 128), "out": layer(keys[1], 128, 128)},
    "head": layer(keys[2], 128, 10),
}
sgd = optax.sgd(0.05, momentum=0.9)
pretrained = train(sgd, old_model, pretrained, sgd.init(pretrained), upright.train)
fisher = jax.jit(wpl_jax.empirical_fisher(nll(old_model)))(pretrained, upright.train)
rows = {"pretrained": [accuracy(old_model, pretrained, upright.test), None]}

start = {
    "backbone": pretrained["backbone"],
    "adapter": {
        "down": layer(keys[3], 128, 16),
        "up": jax.tree.map(jnp.zeros_like, layer(keys[4], 16, 128)),  # at first it changes nothing
    },
    "head": layer(keys[5], 128, 10),
}
held = optax.chain(wpl_jax.add_plasticity(1000.0), sgd)
for name, backbone in {
    "backbone free": sgd,
    "backbone frozen": optax.set_to_zero(),
    "backbone with plasticity": held,
}.items():
    tx = optax.partition(
        {"backbone": backbone, "free": sgd},
        {"backbone": "backbone", "adapter": "free", "head": "free"},
    )
    opt_state = tx.init(start)
    if backbone is held:  # its part of the parameters is all that it sees
        opt_state = wpl_jax.consolidate(opt_state, start, {"backbone": fisher["backbone"]})
    params = train(tx, new_model, start, opt_state, turned.train)
    old = {"backbone": params["backbone"], "head": pretrained["head"]}
    rows[name] = [
        accuracy(old_model, old, upright.test),
        accuracy(new_model, params, turned.test),
    ]

digits.show(["old head", "new head"], rows)
