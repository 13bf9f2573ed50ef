"""Whole searches: an epoch of a small one, and the calls that the presets' runs consist of.

    python -m benchmarks.end_to_end

On random words and pixels of a fixed seed, which take as long as real ones. Compilation, once a
run, is listed apart, behind each name. In the presets a call trains ``chunk`` architectures and
measures err1 of each; every fourth or fifth also ends an epoch, with err2 and the controller, and
so the median is of a call that does not.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks.report import chosen, report
from benchmarks.search_step import RATES
from benchmarks.timing import Steps, compare
from experiments import spaces
from experiments.search import search_of
from experiments.spaces.rnn.settings import RNNSearch
from wpl_jax.search import WPL, Data, Search, SearchConfig, Uniform
from wpl_jax.spaces.rnn import RNN


def main():
    report(
        "end_to_end",
        [
            small(),
            *(preset(space, name) for space in ("rnn", "micro_cnn") for name in ("smoke", "cpu")),
        ],
    )


def small():
    space = RNN(vocabulary=2_000, nodes=8, units=64, **dict.fromkeys(RATES, 0.0))
    config = SearchConfig(architectures=20, chunk=20, batches=7)
    plastic = WPL(strength=10.0, learning_rate=1.0, warmup_epochs=0)
    optimizer = optax.chain(optax.clip_by_global_norm(0.25), optax.sgd(1.0))
    searches = {
        "without plasticity": Search(space, config, optimizer, Uniform()),
        "with it, proximal": Search(space, config, optimizer, Uniform(), plastic),
    }
    title = "An epoch of random search, 20 cells of 8 nodes of 64 units, 2,000 words, 7 batches"
    return timed(f"{title} of 32 × 20, err1 and err2 on 8", searches, words(space, 32, 20))


def preset(space, name):
    config = spaces.find(space).searches[name]
    # Plastic from the start, as after the warm-up.
    config = dataclasses.replace(config, warmup_epochs=0)
    if getattr(config, "data", None) == "mnist5k":
        config = config.with_space(image_shape=(28, 28, 1))
    data = data_of(config)
    searches = {
        label: search_of(dataclasses.replace(config, method=method))
        for label, method in (("without plasticity", "none"), ("with it, proximal", "wpl"))
    }
    search = config.search
    title = f"Preset {name} of {space}: {search.chunk} architecture{'s' * (search.chunk > 1)}"
    return timed(f"{title}, {search.batches} batches each, and err1", searches, data)


def timed(title, searches, data):
    forms = {}
    for name, search in searches.items():
        state = jax.jit(search.init)(jax.random.key(0))
        form = Steps(lambda state, data, s=search: s.step(state, data)[0], state, data, steps=1)
        forms[f"{name} (compiled in {form.compile_seconds:.0f} s)"] = lambda form=form: form
    return compare(title, forms, repeats=7)


def data_of(config):
    """Random words or pixels, of the sizes that a search's settings give."""
    if isinstance(config, RNNSearch):
        return words(config.rnn, config.batch_size, config.length)
    return pictures(config.search_space, config.batch_size)


def words(space, batch, time):
    drawn = np.random.default_rng(0).integers(space.vocabulary, size=(128, batch, time + 1))
    return Data(*2 * [jnp.asarray(drawn, jnp.int32)])


def pictures(space, batch):
    rng = np.random.default_rng(0)
    images = jnp.asarray(rng.integers(256, size=(64, batch, *space.image_shape)), jnp.uint8)
    labels = jnp.asarray(rng.integers(space.classes, size=(64, batch)), jnp.int32)
    return Data(*2 * [(images, labels)])


if __name__ == "__main__":
    chosen(__doc__)
    main()
