"""What the forms of wpl_jax/spaces/operations.py gain over the plain ones, on this machine.

    python -m benchmarks.micro_cnn

Each form is timed in turn with its alternatives, forward and backward, and the table gives medians
and their ratios to the form chosen. At the end, how long the search's whole step takes to compile.
"""

import functools
import statistics
import time
from unittest import mock

import jax
import jax.numpy as jnp
import optax
from rich.console import Console
from rich.table import Table

from benchmarks.report import chosen
from wpl_jax.search import WPL, Data, Reinforced, Search, SearchConfig
from wpl_jax.spaces.micro_cnn import MicroCNN, network
from wpl_jax.spaces.operations import depthwise, max_pool, run_one

REPEATS = 11
SIZE, CHANNELS, BATCH = 16, 8, 64  # of the cpu preset's first stage
SPACE = MicroCNN(channels=CHANNELS, cells=1, stem_stride=2)


def main():
    table = Table("what", "form", "ms", "ratio", "MiB", title=jax.devices()[0].device_kind)
    for what, forms in {
        **{f"depthwise {size}×{size}": convolving(size) for size in (3, 5)},
        "max pooling 3×3": pooling(),
        "8 training steps": training_steps(),
    }.items():
        for name, (median, ratio, memory) in timed(forms).items():
            numbers = f"{1000 * median:.2f}", f"{ratio:.1f}", f"{memory / 2**20:.0f}"
            table.add_row(what, name, *numbers)
    Console().print(table)
    print(f"the search's step, plastic, with a controller: compiled in {compiling():.0f} s")


def timed(forms):
    """Of each form: median seconds, their ratio to the first form's in its turn, bytes."""
    compiled = {name: jax.jit(form).lower(*args).compile() for name, (form, args) in forms}
    seconds = {name: [] for name in compiled}
    for _ in range(REPEATS + 1):
        for name, (_, arguments) in forms:
            start = time.perf_counter()
            jax.block_until_ready(compiled[name](*arguments))
            seconds[name].append(time.perf_counter() - start)
    first = next(iter(seconds.values()))
    return {
        name: (
            statistics.median(of_form[1:]),
            statistics.median(t / f for t, f in zip(of_form[1:], first[1:], strict=True)),
            compiled[name].memory_analysis().temp_size_in_bytes,
        )
        for name, of_form in seconds.items()
    }


def backward(function):
    """The function's value and gradients, given the gradient of the value last."""

    def run(*arguments):
        value, pullback = jax.vjp(function, *arguments[:-1])
        return value, pullback(arguments[-1])

    return run


def images(key, layout):
    sizes = {"g": 1, "h": SIZE, "c": CHANNELS, "w": SIZE, "n": BATCH}
    return jax.random.normal(jax.random.key(key), [sizes[axis] for axis in layout])


def convolving(size):
    x, g, kernel = images(0, "ghcwn"), images(1, "ghcwn"), jnp.ones((CHANNELS, size, size))
    nhwc, hwio = images(0, "nhwc"), jnp.ones((size, size, 1, CHANNELS))
    convolution = functools.partial(
        jax.lax.conv_general_dilated,
        window_strides=(1, 1),
        padding="SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=CHANNELS,
    )
    return [
        (
            "shifted blocks, kernel's gradient by products",
            (backward(depthwise), (x, kernel, g)),
        ),
        (
            "shifted blocks, differentiated by JAX",
            (backward(depthwise.fun), (x, kernel, g)),
        ),
        (
            "XLA's grouped convolution, NHWC",
            (backward(convolution), (nhwc, hwio, images(1, "nhwc"))),
        ),
    ]


def pooling():
    def reduce_window(x):
        return jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, 3, 3, 1), (1, 1, 1, 1), "SAME")

    return [
        (
            "maxima of shifted blocks",
            (backward(max_pool), (images(0, "ghcwn"), images(1, "ghcwn"))),
        ),
        (
            "XLA's reduce_window, NHWC",
            (backward(reduce_window), (images(0, "nhwc"), images(1, "nhwc"))),
        ),
    ]


def training_steps():
    """Steps of random architectures, in the forms in which a step can run one operation of five."""

    def differentiated(branches, index, x, weights, given):
        return jax.lax.switch(index, branches, x, weights, given)

    def masked(branches, index, x, weights, given):
        outputs, statistics = zip(*(b(x, weights, given) for b in branches), strict=True)
        chosen = jax.nn.one_hot(index, len(branches))
        return tuple(
            None if parts[0] is None else jnp.tensordot(chosen, jnp.stack(parts), 1)
            for parts in (outputs, statistics)
        )

    params, split = SPACE.init(jax.random.key(0)), random_images(0)
    decisions = jnp.array(SPACE.decisions)
    actions = jax.random.randint(jax.random.key(0), (8, len(decisions)), 0, decisions[None])

    def steps(form):
        def step(params, actions, key):
            batch = SPACE.batch(split, 0, key)
            return jax.grad(lambda p: SPACE.loss(p, SPACE.decode(actions), batch)[0])(params)

        def run(params, actions, key):
            with mock.patch.object(network, "run_one", form):
                return jax.lax.scan(lambda _, a: (None, step(params, a, key)), None, actions)[1]

        return run

    arguments = params, actions, jax.random.key(1)
    return [
        ("a branch, run again for its gradient", (steps(run_one), arguments)),
        ("a branch, differentiated by JAX", (steps(differentiated), arguments)),
        ("all operations, all but one times 0", (steps(masked), arguments)),
    ]


def random_images(key):
    pixels = jax.random.randint(jax.random.key(key), (16, BATCH, 32, 32, 3), 0, 256)
    return pixels.astype(jnp.uint8), jnp.zeros((16, BATCH), jnp.int32)


def compiling():
    search = Search(
        SPACE,
        SearchConfig(architectures=10, batches=40, chunk=2),
        optax.sgd(0.1, momentum=0.9, nesterov=True),
        sampler=Reinforced(steps=60),
        method=WPL(strength=1.0, learning_rate=0.1),
    )
    data = Data(random_images(0), random_images(1))
    state = jax.jit(search.init)(jax.random.key(0))
    start = time.perf_counter()
    jax.jit(search.step, donate_argnums=0).lower(state, data).compile()
    return time.perf_counter() - start


if __name__ == "__main__":
    chosen(__doc__)
    main()
