"""What plasticity adds to a training step.

    python -m benchmarks.plasticity

A step is a gradient and an update by the experiments' own optimisers, without plasticity and with
both its forms, after a ``consolidate``; many to a call, their state donated, on random numbers of a
fixed seed. Last, the recurrent search, where each architecture's seven steps end with the Fisher of
a validation batch and the move of the anchor.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax

import wpl_jax
from benchmarks import search_step
from benchmarks.report import chosen, report
from benchmarks.timing import Steps, compare
from experiments.two_models import training as shared_mlps
from experiments.two_models.settings import TwoModels
from wpl_jax.data import Images

STRENGTH = 10.0


def main():
    report("plasticity", [mlp(seeds=1), mlp(seeds=TwoModels().seeds), rnn(), search()])


def forms(inner, rate, train, params, data, steps):
    """Of ``params, opt_state = train(tx, params, opt_state, data, i)``; seeds lead in params."""

    def form(tx, plastic=True):
        def run(state, data):
            def step(state, i):
                return train(tx, *state, data, i), None

            return jax.vmap(lambda s: jax.lax.scan(step, s, jnp.arange(steps))[0])(state)

        opt_state = jax.vmap(tx.init)(params)
        if plastic:
            fisher = jax.tree.map(lambda x: jax.random.uniform(jax.random.key(0), x.shape), params)
            opt_state = jax.vmap(wpl_jax.consolidate)(opt_state, params, fisher)
        return functools.partial(Steps, run, (params, opt_state), data, steps=steps)

    return {
        "without plasticity": form(inner, plastic=False),
        "add_plasticity": form(optax.chain(wpl_jax.add_plasticity(STRENGTH), inner)),
        "proximal_plasticity": form(
            optax.chain(inner, wpl_jax.proximal_plasticity(STRENGTH, rate))
        ),
    }


def mlp(seeds):
    """Model B of the two-model experiment."""
    config, rng = TwoModels(), np.random.default_rng(0)
    model, key = shared_mlps.model_b(config), jax.random.key(0)
    images = jnp.asarray(rng.integers(256, size=(5_000, 28, 28, 1)), jnp.uint8)
    images = Images(images, jnp.asarray(rng.integers(10, size=5_000), jnp.int32))
    params = jax.vmap(lambda k: model.init(k, images.images[:1])["params"])(
        jax.random.split(key, seeds)
    )

    def train(tx, params, opt_state, images, i):
        batch = shared_mlps.sample_batch(config, images, key, i)
        return shared_mlps.sgd_step(model, tx, params, opt_state, batch)

    title = f"Two-model experiment's MLP, 784-6 × {config.width}-10, {config.batch_size} images"
    return compare(
        f"{title}, {seeds} seed{'s' * (seeds > 1)}",
        forms(optax.sgd(0.01, 0.7), 0.01 / 0.3, train, params, images, steps=200),
    )


def rnn():
    """The recurrent search's model, of one cell."""
    space, words, architecture = search_step.recurrent(search_step.NODES, search_step.UNITS)
    params = jax.vmap(space.init)(jax.random.split(jax.random.key(0), 1))

    def train(tx, params, opt_state, words, i):
        batch = space.batch(words, i)
        grads = jax.grad(lambda p: space.loss(p, architecture, batch, space.start(batch), None)[0])(
            params
        )
        updates, opt_state = tx.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state

    inner = search_step.optimizer(1.0, 0.25)
    return compare(
        f"Training {search_step.named(space)}", forms(inner, 1.0, train, params, words, 7)
    )


def search():
    """The recurrent search."""
    space, words, _ = search_step.recurrent(search_step.NODES, search_step.UNITS)
    form = functools.partial(search_step.searching, space, words, search_step.optimizer(1.0, 0.25))
    return compare(
        f"Search over {search_step.named(space)}, consolidated every {search_step.BATCHES} steps",
        {
            "without plasticity": lambda: form(search_step.BATCHES),
            "additive": lambda: form(search_step.BATCHES, strength=STRENGTH),
            "proximal": lambda: form(search_step.BATCHES, strength=STRENGTH, rate=1.0),
        },
    )


if __name__ == "__main__":
    chosen(__doc__)
    main()
