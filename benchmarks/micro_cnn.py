"""What the forms chosen in wpl_jax/spaces/micro_cnn.py gain over the plain ones, on this machine.

    python -m benchmarks.micro_cnn

Each form is timed in turn with its alternatives, forward and backward, and the table gives medians
and their ratios to the form chosen. At the end, how long the search's whole step takes to compile.
"""

import functools
import statistics
import time

import jax
import jax.numpy as jnp
import optax
from rich.console import Console
from rich.table import Table

from wpl_jax.search import Data, Search, SearchConfig
from wpl_jax.spaces import micro_cnn
from wpl_jax.spaces.micro_cnn import OPERATIONS, MicroCNN

REPEATS = 11
SIZE, CHANNELS, BATCH = 16, 8, 64  # of the cpu preset's first stage
SPACE = MicroCNN(channels=CHANNELS, cells=1, stem_stride=2)


def main():
    table = Table("what", "form", "ms", "ratio", title=f"{jax.devices()[0].device_kind}")
    for what, forms in {
        **{f"depthwise {size}×{size}": depthwise(size) for size in (3, 5)},
        "max pooling 3×3": max_pooling(),
        "one edge, of 5 operations": edge(),
    }.items():
        for name, (median, ratio) in timed(forms).items():
            table.add_row(what, name, f"{1000 * median:.2f}", f"{ratio:.1f}")
    Console().print(table)
    print(f"a training step of an architecture: {1000 * training_step():.0f} ms")
    print(f"the search's step, plastic, with a controller: compiled in {compiling():.0f} s")


def timed(forms):
    """Median seconds of each form, run in turn, and the ratio to the first's, round by round."""
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


def depthwise(size):
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
            (backward(micro_cnn._depthwise), (x, kernel, g)),
        ),
        (
            "shifted blocks, differentiated by JAX",
            (backward(micro_cnn._depthwise.fun), (x, kernel, g)),
        ),
        (
            "XLA's grouped convolution, NHWC",
            (backward(convolution), (nhwc, hwio, images(1, "nhwc"))),
        ),
    ]


def max_pooling():
    def reduce_window(x):
        return jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, 3, 3, 1), (1, 1, 1, 1), "SAME")

    def chosen(x):
        return micro_cnn._max_pool(x, None, None)[0]

    return [
        ("maxima of shifted blocks", (backward(chosen), (images(0, "ghcwn"), images(1, "ghcwn")))),
        (
            "XLA's reduce_window, NHWC",
            (backward(reduce_window), (images(0, "nhwc"), images(1, "nhwc"))),
        ),
    ]


def edge():
    """The mean over all operations of an edge, forward and backward."""
    params = SPACE.init(jax.random.key(0))["stages"][0]
    weights = {name: jax.tree.map(lambda p: p[0, 0], params[name]) for name in micro_cnn._SEPARABLE}
    branches = micro_cnn._BRANCHES

    def chosen(index, x, weights):
        return micro_cnn._run_one(branches, index, x, weights, None)[0]

    def switch(index, x, weights):
        return jax.lax.switch(index, branches, x, weights, None)[0]

    def masked(index, x, weights):
        outputs = jnp.stack([branch(x, weights, None)[0] for branch in branches])
        return jnp.tensordot(jax.nn.one_hot(index, len(branches)), outputs, 1)

    def every(form):
        def run(x, weights, g):
            def one(_, index):
                return None, backward(functools.partial(form, index))(x, weights, g)

            return jax.lax.scan(one, None, jnp.arange(len(OPERATIONS)))[1]

        return run

    arguments = images(0, "ghcwn"), weights, images(1, "ghcwn")
    return [
        ("a branch, run again for its gradient", (every(chosen), arguments)),
        ("a branch, differentiated by JAX", (every(switch), arguments)),
        ("all operations, all but one times 0", (every(masked), arguments)),
    ]


def random_images(key):
    pixels = jax.random.randint(jax.random.key(key), (16, BATCH, 32, 32, 3), 0, 256)
    return pixels.astype(jnp.uint8), jnp.zeros((16, BATCH), jnp.int32)


def training_step():
    """Median seconds over random architectures."""
    params, split = SPACE.init(jax.random.key(0)), random_images(0)

    @jax.jit
    def step(params, actions, key):
        batch = SPACE.batch(split, 0, key)
        return jax.grad(lambda p: SPACE.loss(p, SPACE.decode(actions), batch)[0])(params)

    seconds = []
    for i in range(REPEATS + 1):
        key = jax.random.key(i)
        actions = jax.random.randint(key, (len(SPACE.decisions),), 0, jnp.array(SPACE.decisions))
        start = time.perf_counter()
        jax.block_until_ready(step(params, actions, key))
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds[1:])


def compiling():
    search = Search(
        SPACE,
        SearchConfig(architectures=10, batches=40, chunk=2, controller_steps=60),
        optax.sgd(0.1, momentum=0.9, nesterov=True),
        strength=1.0,
        learning_rate=0.1,
    )
    data = Data(random_images(0), random_images(1))
    state = jax.jit(search.init)(jax.random.key(0))
    start = time.perf_counter()
    jax.jit(search.step, donate_argnums=0).lower(state, data).compile()
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
