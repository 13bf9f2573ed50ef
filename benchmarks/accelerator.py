"""The Fishers of four networks, and training steps of the published searches, on a GPU or TPU.

    python -m benchmarks.accelerator
    python -m benchmarks.accelerator peaks fisher micro_cnn  # some of it; no file is written

First, what the device can do at most. The searches are the presets ``paper`` of the three spaces,
on random words and pixels of a fixed seed, which take as long as real ones. A step's time includes
its share of what is done once an architecture: with WPL, also the Fisher of a validation batch and
the move of the anchor. What is measured of the architectures (err1, err2) is left out. Products are
rounded as JAX does by default, on NVIDIA's tensor cores to TF32, unless a row says ``float32``, or
``bfloat16``, which activations are then as well.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp

import wpl_jax
from benchmarks import end_to_end
from benchmarks.fisher import OURS, in_jax
from benchmarks.networks import NETWORKS
from benchmarks.report import chosen, report
from benchmarks.search_step import Training
from benchmarks.timing import Jitted, Steps, compare
from experiments import spaces
from experiments.search import search_of
from experiments.search_many import OWN
from wpl_jax.search import Data

SIDE_BY_SIDE = 8, 32  # searches
ARCHITECTURES = {"rnn": 10, "micro_cnn": 8, "nas_bench_201": 50}  # trained in a call


def main():
    made = {"peaks": peaks, "fisher": fishers}
    made |= {space: functools.partial(steps, space) for space in ARCHITECTURES}
    made |= {"together": together}
    names = chosen(__doc__, list(made))
    tables = []
    for name in names:
        tables += made[name]()
        if names == list(made):  # after each, so that what was measured outlives an interruption
            report("accelerator", tables)


def peaks():
    """A copy, and products of matrices."""
    size, bytes_moved = 8192, 2 * 2**31
    key = jax.random.key(0)
    long = jax.random.normal(key, (2**29,))
    square = jax.random.normal(key, (size, size))
    narrow = square.astype(jnp.bfloat16)

    def product(precision):
        return functools.partial(jnp.matmul, precision=precision)

    forms = {
        "copy of 2 GiB": (jnp.negative, (long,)),
        "product in bfloat16": (product(None), (narrow, narrow)),
        "product in float32, rounded as by default": (product(None), (square, square)),
        "product in float32": (product("highest"), (square, square)),
    }
    table = compare(
        f"A copy, and products of two matrices {size} × {size}",
        {name: functools.partial(Jitted, f, *arguments) for name, (f, arguments) in forms.items()},
    )
    of_product, rates = 2 * size**3, []
    for row in table["rows"]:
        seconds = row["milliseconds"]["median"] / 1000
        if row["name"].startswith("copy"):
            rates.append(f"{bytes_moved / seconds / 1e12:.2f} TB/s")
        else:
            rates.append(f"{of_product / seconds / 1e12:.0f} TFLOP/s")
    return [table | {"text": f"In this order: {', '.join(rates)}."}]


def fishers():
    """Ours, by its bound on memory; a batch gradient and vmap(grad)."""
    tables = []
    for name, network in NETWORKS.items():
        problem = network()
        forms = in_jax(*problem)
        for bound, said in ((2**28, "256 MiB"), (2**32, "4 GiB")):
            bounded = wpl_jax.empirical_fisher(problem.nll, max_bytes=bound)
            forms[f"{OURS}, max_bytes of {said}"] = functools.partial(
                Jitted, bounded, problem.params, problem.batch
            )
        tables.append(compare(name, forms))
    return tables


def steps(name):
    """Plain, and with WPL, in several precisions."""
    config = spaces.find(name).searches["paper"]
    data = end_to_end.data_of(config)
    plain, wpl = (dataclasses.replace(config, method=m, warmup_epochs=0) for m in ("none", "wpl"))
    half = {"compute_dtype": "bfloat16"}
    table = compare(
        f"A training step of preset paper of {name}",
        {
            "plain": functools.partial(step, plain, data),
            "WPL": functools.partial(step, wpl, data),
            "plain, float32": functools.partial(step, plain, data, "highest"),
            "plain, bfloat16": functools.partial(step, plain.with_space(**half), data),
            "WPL, bfloat16": functools.partial(step, wpl.with_space(**half), data),
        },
        repeats=7,
    )
    search = config.search
    of_run = config.epochs * search.architectures * search.batches
    hours = [f"{row['milliseconds']['median'] * of_run / 3.6e6:.1f}" for row in table["rows"]]
    text = f"Hours for the {of_run:,} steps of {config.epochs} epochs: {', '.join(hours)}."
    print(text)
    return [table | {"text": text}]


def together():
    """Steps of a small search, alone and of several in one program (experiments.search_many)."""
    config = spaces.find("nas_bench_201").searches["cpu"]
    config = config.with_space(image_shape=(config.image_size, config.image_size, 3))
    search, count = training(config), ARCHITECTURES["nas_bench_201"]
    data = end_to_end.data_of(config)

    def several(number):
        next_ = jax.vmap(search._next, (OWN, None), OWN)
        keys = jax.random.split(jax.random.key(0), number)
        state = jax.jit(jax.vmap(search.init, out_axes=OWN))(keys)

        def run(state, data):
            return jax.lax.scan(lambda s, _: (next_(s, data), None), state, length=count)[0]

        return Steps(run, state, data, steps=count)

    return [
        compare(
            "A training step of preset cpu of nas_bench_201, of all searches in a program",
            {"one": functools.partial(step, config, data)}
            | {f"{n} side by side": functools.partial(several, n) for n in SIDE_BY_SIDE},
            repeats=7,
        )
    ]


def training(config, devices=1):
    """The search of settings, without what is measured of architectures."""
    whole = search_of(config, devices)
    return Training(*(getattr(whole, field.name) for field in dataclasses.fields(whole)))


def trained(search, count):
    """What trains so many architectures."""

    def run(state, data):
        return jax.lax.scan(lambda s, _: (search._next(s, data), None), state, length=count)[0]

    return run


def step(config, data: Data, precision=None):
    """Steps of random architectures, or of those that the preset's controller samples."""
    search, count = training(config), ARCHITECTURES[config.space]

    def run(state, data):
        with jax.default_matmul_precision(precision):
            return trained(search, count)(state, data)

    state = jax.jit(search.init)(jax.random.key(0))
    form = Steps(run, state, data, steps=count * config.search.batches)
    print(f"{config.space}, {config.method}: compiled in {form.compile_seconds:.0f} s", flush=True)
    return form


if __name__ == "__main__":
    main()
