"""Training steps and evaluations of NAS-Bench-201's networks, beside XLA's own convolutions.

    python -m benchmarks.nas_bench_201

The search's program takes an architecture as data. The reference, in the layout [batch, height,
width, channels], is written out for one architecture, without a switch, and compiled for it alone,
a batch in a call; the search loops over architectures. Both train with the search's augmentation
and optimiser. Times are of one batch.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks.report import chosen, report
from benchmarks.timing import Steps, compare
from wpl_jax.spaces.images import cross_entropy
from wpl_jax.spaces.nas_bench_201 import EDGES, OPERATIONS, NASBench201

BATCH, BATCHES = 64, 8
NETWORKS = {  # and in how many turns they run
    NASBench201(channels=8, cells=1, image_shape=(16, 16, 3), crop_padding=2): 11,
    NASBench201(channels=5, cells=5, image_shape=(16, 16, 3), crop_padding=2): 11,
    NASBench201(channels=16, cells=5, image_shape=(32, 32, 3)): 3,
}
ONE = "nor_conv_3x3", "avg_pool_3x3", "nor_conv_1x1", "skip_connect", "none", "nor_conv_3x3"


def main():
    tables = []
    for space, turns in NETWORKS.items():
        height, width, _ = space.image_shape
        cells = f"{space.cells} cell{'s' * (space.cells > 1)} a stage"
        network = f"{space.channels} channels, {cells}, {height} × {width}"
        for what, of_form in (("A training step", training), ("An evaluation", evaluation)):
            tables.append(timed(f"{what}, {network}", forms(space, of_form), turns))
            report("nas_bench_201", tables)  # after each: all of them take minutes


def timed(title, forms, turns):
    """A table, which also says how long its forms took to compile."""
    built = {name: build() for name, build in forms.items()}
    table = compare(title, {name: lambda form=form: form for name, form in built.items()}, turns)
    seconds = ", ".join(f"{form.compile_seconds:.0f} s" for form in built.values())
    return table | {"text": f"Compiled, in this order, in {seconds}."}


def forms(space, of_form):
    """What is timed, by name."""
    one = np.tile([OPERATIONS.index(name) for name in ONE], (BATCHES, 1))
    random = np.random.default_rng(0).integers(space.decisions, size=one.shape)
    return {
        "an architecture as data": functools.partial(of_form, space, space.apply, one),
        "written out, XLA's convolutions": functools.partial(of_form, space, written_out, one[:1]),
        f"{BATCHES} random architectures as data": functools.partial(
            of_form, space, space.apply, random
        ),
    }


def training(space, apply, actions):
    """A training step of each architecture in turn, on the shared parameters."""
    tx = optax.chain(
        optax.clip_by_global_norm(5.0),
        optax.add_decayed_weights(5e-4),
        optax.sgd(0.05, 0.9, nesterov=True),
    )

    def run(state, actions, split):
        def step(state, inputs):
            params, opt_state = state
            i, actions = inputs
            images, labels = space.batch(split, i, jax.random.fold_in(jax.random.key(0), i))

            def loss(params):
                return cross_entropy(apply(params, space.decode(actions), images).logits, labels)

            updates, opt_state = tx.update(jax.grad(loss)(params), opt_state, params)
            return optax.apply_updates(params, updates), opt_state

        return in_turn(step, state, actions)

    params = space.init(jax.random.key(0))
    return Steps(run, (params, tx.init(params)), actions, images_of(space), steps=len(actions))


def evaluation(space, apply, actions):
    """A batch measured by each architecture in turn; the state is the sum of all logits."""

    def run(total, params, actions, split):
        def step(total, inputs):
            i, actions = inputs
            images, _ = space.batch(split, i)
            return total + apply(params, space.decode(actions), images).logits.sum()

        return in_turn(step, total, actions)

    arguments = space.init(jax.random.key(0)), actions, images_of(space)
    return Steps(run, jnp.zeros([]), *arguments, steps=len(actions))


def in_turn(step, state, actions):
    """The state after ``step(state, (number, actions))`` for each, in a loop if there are several.

    In a loop, even of one turn, XLA's convolutions are many times as slow.
    """
    if len(actions) == 1:
        return step(state, (0, actions[0]))
    inputs = jnp.arange(len(actions)), actions
    return jax.lax.scan(lambda *carried: (step(*carried), None), state, inputs)[0]


def images_of(space):
    """Random images and labels, as a split."""
    rng = np.random.default_rng(0)
    images = rng.integers(256, size=(BATCHES, BATCH, *space.image_shape))
    labels = rng.integers(space.classes, size=(BATCHES, BATCH))
    return jnp.asarray(images, jnp.uint8), jnp.asarray(labels, jnp.int32)


# --- Written out; images are [batch, height, width, channels] -------------------------------------


class Output(NamedTuple):
    """What a network makes of a batch of images."""

    logits: jax.Array  # shape=(batch, classes)


def written_out(params, architecture, images):
    """The network of ``ONE``, whatever the architecture."""
    del architecture
    x = norm(convolve(images, from_columns(params["stem"]["kernel"])), params["stem"])
    for stage, weights in enumerate(params["stages"]):
        if stage:
            x = halve(x, params["blocks"][stage - 1])
        for n in range(len(weights["nor_conv_1x1"]["kernel"])):
            x = cell(x, {name: own["kernel"][n] for name, own in weights.items()})
    pooled = jax.nn.relu(norm(x, params["norm"])).mean((1, 2))
    return Output(pooled @ params["classifier"]["kernel"].T + params["classifier"]["bias"])


def cell(x, kernels):
    nodes = [x, 0, 0, 0]
    for edge, ((source, node), name) in enumerate(zip(EDGES, ONE, strict=True)):
        if name == "none":
            continue
        y = nodes[source]
        if name == "avg_pool_3x3":
            y = window_sum(y, 3, 1) / window_sum(jnp.ones_like(y[:1, :, :, :1]), 3, 1)
        elif name == "nor_conv_1x1":
            y = norm(convolve(jax.nn.relu(y), kernels[name][edge].T[None, None]))
        elif name == "nor_conv_3x3":
            y = norm(convolve(jax.nn.relu(y), from_columns(kernels[name][edge])))
        nodes[node] += y
    return nodes[-1]


def halve(x, params):
    y = x
    for name, stride in (("first", 2), ("second", 1)):
        kernel = from_columns(params[name]["kernel"])
        y = norm(convolve(jax.nn.relu(y), kernel, stride), params[name])
    return y + convolve(window_sum(x, 2, 2) / 4, params["shortcut"].T[None, None])


def from_columns(kernel):
    """A kernel of 3×3 in XLA's order of axes."""
    return kernel.transpose(2, 0, 3, 1)


def convolve(x, kernel, stride=1):
    pad = kernel.shape[0] // 2
    return jax.lax.conv_general_dilated(
        *(x, kernel, (stride, stride), [(pad, pad)] * 2),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )


def window_sum(x, size, stride):
    window, strides = (1, size, size, 1), (1, stride, stride, 1)
    return jax.lax.reduce_window(x, 0.0, jax.lax.add, window, strides, "SAME")


def norm(x, params=None):
    mean, variance = x.mean((0, 1, 2)), x.var((0, 1, 2))
    x = (x - mean) * jax.lax.rsqrt(variance + 1e-5)
    return x if params is None else x * params["scale"] + params["bias"]


if __name__ == "__main__":
    chosen(__doc__)
    main()
