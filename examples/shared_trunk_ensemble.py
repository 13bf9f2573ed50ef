"""An ensemble whose members share a trunk and are trained in turn.

Every member has a head of its own and sees its own random half of the pixels. While one member is
trained, a mask leaves the heads of the others as they are. weight_plasticity protects what the
trunk has learned so far: in the last step of each member it adds the member's Fisher and moves the
anchor. (The paper leaves such ensembles to future work.)

    python -m examples.shared_trunk_ensemble
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax

import wpl_jax
from examples import digits

MEMBERS, STEPS, LEARNING_RATE = 4, 300, 0.05
data = digits.load()
pixels = np.random.default_rng(0).random((MEMBERS, 784)) < 0.5


def init(key):
    he = jax.nn.initializers.he_normal()
    keys = jax.random.split(key, 3)
    trunk = [he(keys[0], (784, 128)), he(keys[1], (128, 128))]
    return {"trunk": trunk, "heads": he(keys[2], (128, 10 * MEMBERS)).T.reshape(MEMBERS, 10, 128)}


def logits(params, member, images):
    x = jnp.where(jnp.asarray(pixels)[member], images, 0)
    for kernel in params["trunk"]:
        x = jax.nn.relu(x @ kernel)
    return x @ params["heads"][member].T


def nll(params, example):
    """Of one example, which says whose it is."""
    digit, member = example
    scores = logits(params, member, digit.images)
    return optax.softmax_cross_entropy_with_integer_labels(scores, digit.labels)


def of(member, batch):
    return batch, jnp.full(len(batch.labels), member)


@jax.jit
def log_probs(params):
    scores = [logits(params, member, data.test.images) for member in range(MEMBERS)]
    return jax.nn.log_softmax(jnp.stack(scores))


def accuracy(scores):
    return (scores.argmax(-1) == data.test.labels).mean()


columns = [f"member {member}" for member in range(MEMBERS)]
rows, together = {}, {}
for name, strength in {"without": 0.0, "with": 1000.0}.items():
    tx = wpl_jax.weight_plasticity(
        optax.sgd(LEARNING_RATE),
        nll=nll,
        strength=strength,
        learning_rate=LEARNING_RATE,  # the proximal form
        fisher_decay=1.0,  # all earlier members count alike
    )

    @jax.jit
    def step(params, opt_state, member, batch, last, tx=tx):
        def loss(params):
            return jax.vmap(nll, (None, 0))(params, of(member, batch)).mean()

        mask = {"trunk": True, "heads": (jnp.arange(MEMBERS) == member)[:, None, None]}
        updates, opt_state = tx.update(
            jax.grad(loss)(params),
            opt_state,
            params,
            batch=of(member, data.train),  # for the Fisher
            consolidate=last,
            mask=mask,
        )
        return optax.apply_updates(params, updates), opt_state

    params = init(jax.random.key(0))
    opt_state = tx.init(params)
    own = []
    for member in range(MEMBERS):
        for i, batch in enumerate(digits.batches(data.train, STEPS)):
            params, opt_state = step(params, opt_state, member, batch, i == STEPS - 1)
        own.append(accuracy(log_probs(params)[member]))
    rows[f"{name} plasticity: just trained"] = own
    scores = log_probs(params)
    rows[f"{name} plasticity: at the end"] = [accuracy(s) for s in scores]
    together[name] = float(accuracy(scores.mean(0)))

digits.show(columns, rows)
for name, value in together.items():
    print(f"the ensemble, {name} plasticity: {100 * value:.1f}")
