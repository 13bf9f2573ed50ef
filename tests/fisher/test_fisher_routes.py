"""Squares of per-example gradients against `vmap(grad)`: every route, form of use and framework."""

import functools
import math
import re

import equinox
import haiku
import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx
from hypothesis import strategies as st
from jax import jit

import wpl_jax
from wpl_jax.fisher.microbatches import Bound
from wpl_jax.fisher.plan import Plan

N = 5  # examples
STEPS, WORDS, WIDTH = 6, 11, 4


def normal(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def near(params, seed=1):
    """Parameters with no entry at its initial value: biases, say, are not all 0."""
    leaves, structure = jax.tree.flatten(params)
    noise = (np.float32(0.3) * np.asarray(normal(seed + i, *x.shape)) for i, x in enumerate(leaves))
    moved = [jnp.asarray(np.asarray(x) + y) for x, y in zip(leaves, noise, strict=True)]
    return jax.tree.unflatten(structure, moved)


def squares(fn, params, batch, weights=None, max_bytes=2**28):
    """By the library, of a function of any output: d (sum of outputs) / d params."""
    evaluation = Plan.of(fn, params, batch).evaluation(params, Bound(max_bytes, max_bytes))
    outputs, sums, finish = evaluation(batch)
    return finish(sums(jnp.ones_like(outputs), weights))


def by_vmap(fn, params, batch, weights):
    grads = jax.vmap(jax.grad(lambda p, e: fn(p, e).sum()), (None, 0))(params, batch)
    return jax.tree.map(lambda g: jnp.tensordot(weights, g.astype(jnp.float32) ** 2, 1), grads)


def check(fns, params, batch, **options):
    """Of one function, or of each of some by name, in one program: equal to vmap(grad).

    Entry by entry, to 1e-5 of the largest entry of each parameter.
    """
    weights = np.arange(1, 1 + len(jax.tree.leaves(batch)[0]), dtype=np.float32)
    fns = fns if isinstance(fns, dict) else {"": fns}

    def both(params, batch):
        return {
            name: (
                squares(fn, params, batch, weights, **options),
                by_vmap(fn, params, batch, weights),
            )
            for name, fn in fns.items()
        }

    # Of NumPy's arrays, nothing is compiled.
    for name, (found, wanted) in jax.device_get(jit(both)(params, batch)).items():
        check_equal(name, found, wanted)


def check_equal(name, found, wanted):
    largest = max(float(np.max(leaf)) for leaf in jax.tree.leaves(wanted))
    for (path, a), b in zip(jax.tree.leaves_with_path(found), jax.tree.leaves(wanted), strict=True):
        assert a.shape == b.shape and a.dtype == b.dtype
        assert np.all(a >= 0), (name, path)
        # What is 0 but for rounding, such as an attention's key bias, is so on another scale.
        scale = max(float(np.max(b)), 1e-6 * largest)
        where = f"{name} {path}"
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-5 * scale, err_msg=where)


def cross_entropy(logits, labels):
    return -jnp.take_along_axis(jax.nn.log_softmax(logits), labels[..., None], -1).sum()


# --- Forms of use, by hand ------------------------------------------------------------------------

WORD_BATCH = np.random.default_rng(0).integers(WORDS, size=(N, STEPS))
PARAMS = {
    "w": normal(0, WIDTH, WIDTH),
    "table": normal(1, WORDS, WIDTH),
    "b": normal(2, WIDTH),
    "scale": normal(3),
}
SEQUENCES = {"x": normal(4, N, STEPS, WIDTH), "words": jnp.asarray(WORD_BATCH)}


def dense(p, e):
    return jnp.tanh(p["w"].T @ e["x"][0] + p["b"])


def two_positions(p, e):
    return jnp.tanh(e["x"][:2] @ p["w"])


def sequence(p, e):
    return jnp.tanh(e["x"] @ p["w"] + p["b"][None])


def matrix_on_the_left(p, e):
    return jnp.tanh(jnp.einsum("ij,tj->it", p["w"], e["x"]))


def scaled(p, e):
    return jnp.tanh(e["x"] * p["b"][None] * p["scale"])


def looked_up(p, e):
    return jnp.tanh(p["table"][e["words"]])


def one_word(p, e):
    return jnp.tanh(p["table"][e["words"][0]])


def tied(p, e):
    return cross_entropy(jnp.tanh(p["table"][e["words"]]) @ p["table"].T, e["words"])


def unrolled(p, e):
    hidden = e["x"][0]
    for x in e["x"][1:4]:
        hidden = jnp.tanh(p["w"] @ hidden + x)
    return hidden


def unrolled_long(p, e):
    hidden = e["x"][0]
    for x in e["x"]:
        hidden = jnp.tanh(hidden @ p["w"] + x)
    return hidden


def recurrent(p, e):
    def step(hidden, inputs):
        x, word = inputs
        hidden = jnp.tanh(p["w"].T @ hidden + p["scale"] * x + p["b"] + p["table"][word])
        return hidden, hidden

    return jax.lax.scan(step, p["b"], (e["x"], e["words"]), reverse=True)[1]


def layers_scanned(p, e):
    """Rows of the table are the layers' scales; a weight of all layers beside them."""

    def layer(x, inputs):
        row, number = inputs
        kernel = row.reshape(2, 2)
        return jnp.tanh((x.reshape(STEPS, 2, 2) @ kernel).reshape(STEPS, 4) @ p["w"]), number

    return jax.lax.scan(layer, e["x"], (p["table"], jnp.arange(WORDS)))[0]


def nested_loops(p, e):
    def outer(hidden, x):
        def inner(hidden, row):
            return jnp.tanh(row * x + hidden @ p["w"]), None

        return jax.lax.scan(inner, hidden, p["table"][:3])[0], None

    return jax.lax.scan(outer, jnp.ones(WIDTH), e["x"])[0]


def shared_by_layers(p, e):
    """In a loop's carry: what it becomes there depends on the example."""

    def step(carry, x):
        kernel = carry * (1 + 0.1 * x[0])
        return kernel, jnp.tanh(x @ kernel)

    return jax.lax.scan(step, p["w"], e["x"])[1]


def penalised(p, e):
    return dense(p, e).sum() + jnp.sum(p["w"] ** 2) + p["scale"] ** 2


def only_the_penalty(p, e):
    del e
    return jnp.sum(p["w"] ** 2)


def normalised(p, e):
    return jnp.tanh(e["x"] @ (p["w"] / jnp.linalg.norm(p["w"])))


def rearranged(p, e):
    kernel = jnp.concatenate([p["w"].T[:, ::-1], p["table"][:6].reshape(4, 6)], axis=1)
    return jnp.tanh(e["x"] @ kernel.astype(jnp.float32))


MASK = jnp.asarray(np.random.default_rng(5).integers(2, size=(WIDTH, WIDTH)), jnp.float32)


def masked(p, e):
    """And scaled: as weights that architectures share are."""
    kernel = jnp.where(MASK > 0, -p["w"].T, 0.5)
    return jnp.tanh(e["x"][0] @ (kernel * (1 + MASK) / 3))


def spectral(p, e):
    """Divided by what a loop over the weight alone finds."""
    v = jax.lax.fori_loop(0, 3, lambda _, v: p["w"].T @ (p["w"] @ v) / 9, jnp.ones(WIDTH))
    return jnp.tanh(e["x"] @ (p["w"] / jnp.linalg.norm(v)))


def branches_in_a_loop(p, e):
    def step(hidden, x):
        branch = jax.lax.cond(x[0] > 0, lambda h: h @ p["w"], lambda h: h * p["b"], hidden)
        return jnp.tanh(branch + x), None

    return jax.lax.scan(step, e["x"][0], e["x"])[0]


def gradient_inside(p, e):
    return jax.grad(lambda x: jnp.sum(jnp.tanh(x @ p["w"]) ** 2))(e["x"])


def complex_numbers(p, e):
    phases = jnp.exp(1j * e["x"])
    return jnp.abs(phases @ p["w"].astype(jnp.complex64)) ** 2


def twice_in_one(p, e):
    return jnp.tanh(e["x"] @ jnp.concatenate([p["w"], p["w"].T], axis=1))


def branches(p, e):
    forms = [lambda w: jnp.sum(w**3), lambda w: jnp.sum(w**2) * e["x"][0, 0]]
    return jax.lax.switch(e["words"][0] % 2, forms, p["w"])


def by_the_parameters(p, e):
    """An index that depends on parameters has no gradient, what it picks has."""
    return p["w"][jnp.argmax(p["b"])] @ e["x"][0] * jax.lax.stop_gradient(p["scale"])


@jax.custom_vjp
def clipped(x, w):
    return x @ w


clipped.defvjp(
    lambda x, w: (x @ w, (x, w)),
    lambda saved, g: (g @ saved[1].T, jnp.clip(saved[0].T @ g, -0.1, 0.1)),
)


def custom_rule(p, e):
    return jnp.tanh(clipped(e["x"], p["w"]))


def rematerialised(p, e):
    return jax.checkpoint(lambda w, x: jnp.tanh(jnp.tanh(x @ w) @ w))(p["w"], e["x"])


def experts(p, e):
    """A batch axis that the weights and the example's data share."""
    return jnp.tanh(jnp.einsum("ebi,eio->ebo", e["x"].reshape(2, 3, 4), p["w"].reshape(2, 4, 2)))


def columns(p, e):
    return jnp.tanh(jnp.take(p["table"].T, e["words"], axis=1))


def entries(p, e):
    return jnp.tanh(p["w"][e["words"][:3] % 4, e["words"][1:4] % 4])


GRADIENTS = "per-example gradients"
PRODUCTS = "per-example products of {} positions"
FORMS = {
    dense: {"w": "squared operands", "b": GRADIENTS},
    two_positions: {"w": "outer products of 2 positions"},
    sequence: {"w": PRODUCTS.format(STEPS), "b": GRADIENTS},
    matrix_on_the_left: {"w": PRODUCTS.format(STEPS)},
    scaled: {"scale": GRADIENTS},
    looked_up: {"table": "rows of a table", "w": "no gradient"},
    one_word: {"table": "rows of a table"},
    tied: {"table": GRADIENTS},
    unrolled: {"w": "outer products of 3 positions"},
    unrolled_long: {"w": PRODUCTS.format(STEPS)},
    recurrent: {"w": PRODUCTS.format(STEPS), "table": "rows of a table"},
    layers_scanned: {"table": PRODUCTS.format(12), "w": PRODUCTS.format(WORDS * STEPS)},
    nested_loops: {"w": PRODUCTS.format(3 * STEPS), "table": GRADIENTS},
    shared_by_layers: {"w": GRADIENTS},
    penalised: {"w": GRADIENTS},
    only_the_penalty: {"w": GRADIENTS},
    normalised: {"w": GRADIENTS},
    rearranged: {"w": PRODUCTS.format(STEPS), "table": PRODUCTS.format(STEPS)},
    masked: {"w": "squared operands"},
    spectral: {"w": GRADIENTS},
    branches_in_a_loop: {"w": GRADIENTS},
    gradient_inside: {"w": GRADIENTS},
    complex_numbers: {"w": GRADIENTS},
    twice_in_one: {"w": GRADIENTS},
    branches: {"w": GRADIENTS},
    by_the_parameters: {"w": "squared operands", "b": "no gradient"},
    custom_rule: {"w": GRADIENTS},
    rematerialised: {"w": PRODUCTS.format(2 * STEPS)},
    experts: {"w": "outer products of 3 positions"},
    columns: {"table": "rows of a table"},
    entries: {"w": "rows of a table"},
}


SCALED = {
    "one position": lambda w, x, c: (w * c) @ (x[0] / c),
    "some positions": lambda w, x, c: jnp.sin((w * c) @ (x[:2].T / c)).sum(),
    "many positions": lambda w, x, c: jnp.sin((x / c) @ (c * w).T).sum(),
    "rows": lambda w, x, c: jnp.sin((w / c)[jnp.array([1, 1, 0])] * c * x[:3, :WIDTH]).sum(),
    "a loop": lambda w, x, c: jax.lax.scan(
        lambda h, row: (h + jnp.sin(c * row @ (x[0] / c)), ()), 0.0, w
    )[0],
    "after a slice": lambda w, x, c: jnp.sin((w[1:] * c) @ (x[0] / c)).sum(),
    "by each entry": lambda w, x, c: jnp.sin((w * c * jnp.arange(3.0)[:, None]) @ (x[0] / c)).sum(),
}


@pytest.mark.parametrize("of_c", [lambda c: c, jnp.float32], ids=["a literal", "an array"])
@pytest.mark.parametrize("c", [1e21, 1e-21])
def test_a_weight_times_a_constant_of_any_size(c, of_c):
    """Its gradient is of the usual size, that of the product has a square that float32 has not."""

    def scaled(fn):
        return lambda w, x: jnp.asarray(fn(w, x, of_c(c)))

    fns = {name: scaled(fn) for name, fn in SCALED.items()}
    check(fns, normal(0, 3, WIDTH), normal(1, N, STEPS, WIDTH))


@pytest.mark.parametrize("some", range(4))
def test_equals_vmap_of_grad(some):
    check({fn.__name__: fn for fn in list(FORMS)[some::4]}, PARAMS, SEQUENCES)


@pytest.mark.parametrize("fn", FORMS, ids=lambda fn: fn.__name__)
def test_takes_the_route_that_suits(fn):
    routes = Plan.of(fn, PARAMS, SEQUENCES).routes()
    assert {name: routes[name] for name in FORMS[fn]} == FORMS[fn]


@pytest.mark.parametrize("mode", ["clip", "fill", "wrap"])
def test_rows_out_of_bounds_are_treated_as_the_lookup_does(mode):
    def fn(p, e):
        return jnp.nan_to_num(jnp.take(p["table"], 3 * e["words"] - 12, axis=0, mode=mode))

    check(lambda p, e: jnp.tanh(fn(p, e)), PARAMS, SEQUENCES)


@hypothesis.settings(max_examples=12, deadline=None)
@hypothesis.given(data=st.data(), flip=st.booleans())
def test_of_any_product(data, flip):
    """Any assignment of axes to a product's two operands and its result."""
    kinds = data.draw(st.lists(st.sampled_from(["xw", "xo", "wo", "xwo"]), min_size=1, max_size=5))
    sizes = data.draw(st.lists(st.integers(1, 3), min_size=len(kinds), max_size=len(kinds)))
    letters = dict(zip("abcde", zip(kinds, sizes, strict=False), strict=False))

    def axes(operand):
        chosen = [letter for letter, (kind, _) in letters.items() if operand in kind]
        return "".join(data.draw(st.permutations(chosen)))

    x, w, o = axes("x"), axes("w"), axes("o")

    def shape(operand):
        return [letters[letter][1] for letter in operand]

    def fn(p, e):
        both = (p, e) if flip else (e, p)
        return jnp.sin(jnp.einsum(f"{w},{x}->{o}" if flip else f"{x},{w}->{o}", *both))

    check(fn, normal(0, *shape(w)), normal(1, N, *shape(x)))


@hypothesis.settings(max_examples=12, deadline=None)
@hypothesis.given(data=st.data())
def test_of_any_convolution(data):
    def draw(low, high):
        return data.draw(st.integers(low, high))

    spatial, groups = draw(1, 2), draw(1, 2)
    kernel = [draw(1, 3) for _ in range(spatial)]
    specs = [data.draw(st.permutations(letters + "HW"[:spatial])) for letters in ("NC", "IO", "NC")]
    options = {
        "window_strides": [draw(1, 2) for _ in range(spatial)],
        "padding": [(draw(0, 2), draw(-1, 2)) for _ in range(spatial)],
        "lhs_dilation": [draw(1, 2) for _ in range(spatial)],
        "rhs_dilation": [draw(1, 2) for _ in range(spatial)],
        "dimension_numbers": tuple("".join(spec) for spec in specs),
        "feature_group_count": groups,
    }
    sizes = {"N": draw(1, 2), "C": 2 * groups, "I": 2, "O": 3 * groups, "H": 7, "W": 6}
    x = [sizes[letter] for letter in specs[0]]
    w = [{**sizes, **dict(zip("HW", kernel, strict=False))}[letter] for letter in specs[1]]

    def fn(p, e):
        return jnp.sin(jax.lax.conv_general_dilated(e, p, **options))

    check(fn, normal(0, *w), normal(1, N, *x))
    assert "of patches" in Plan.of(fn, normal(0, *w), normal(1, N, *x)).routes()


# --- Frameworks -----------------------------------------------------------------------------------


class Convolutional(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(4, (3, 3), strides=2)(x))
        x = nn.relu(nn.Conv(8, (3, 2), feature_group_count=2, kernel_dilation=(2, 1))(x))
        x = nn.max_pool(nn.ConvTranspose(4, (3, 3), strides=(2, 2))(x), (2, 2), (2, 2))
        return nn.Dense(3)(nn.LayerNorm()(nn.Conv(4, (1, 1))(x)).ravel())


class Recurrent(nn.Module):
    @nn.compact
    def __call__(self, words):
        x = nn.Embed(WORDS, WIDTH)(words)
        x = nn.RNN(nn.OptimizedLSTMCell(5))(x)
        x = nn.RNN(nn.GRUCell(5), reverse=True, keep_order=True)(x)
        return nn.Dense(WORDS)(nn.RNN(nn.LSTMCell(5))(x))


class Block(nn.Module):
    @nn.compact
    def __call__(self, x, _=None):
        x = x + nn.MultiHeadDotProductAttention(2)(nn.LayerNorm()(x))
        return x + nn.Dense(8)(nn.gelu(nn.Dense(16)(nn.LayerNorm()(x)))), None


class Transformer(nn.Module):
    tied: bool = False
    scanned: bool = False

    @nn.compact
    def __call__(self, words):
        embedding = nn.Embed(WORDS, 8)
        places = self.param("places", nn.initializers.normal(), (STEPS + 2, 8))
        x = embedding(words) + places[:STEPS]
        if self.scanned:
            axes = {"variable_axes": {"params": 0}, "split_rngs": {"params": True}}
            x, _ = nn.scan(nn.remat(Block), length=3, **axes)()(x, None)
        else:
            for _ in range(2):
                x, _ = Block()(x)
        return embedding.attend(x) if self.tied else nn.Dense(WORDS)(x)


def linen(model, x, labels):
    shapes = jax.eval_shape(model.init, jax.random.key(0), x[0])
    params = near(jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes))
    return lambda p, e: cross_entropy(model.apply(p, e[0]), e[1]), params, (x, labels)


IMAGES = normal(0, N, 9, 10, 3), jnp.arange(N) % 3
SENTENCES = SEQUENCES["words"], jnp.roll(SEQUENCES["words"], 1, axis=1)


def of_nnx():
    class Model(nnx.Module):
        def __init__(self, rngs):
            self.conv = nnx.Conv(3, 4, (3, 3), rngs=rngs)
            self.dense = nnx.Linear(9 * 10 * 4, 3, rngs=rngs)

        def __call__(self, x):
            return self.dense(nnx.relu(self.conv(x)).ravel())

    graph, params = nnx.split(Model(nnx.Rngs(0)), nnx.Param)
    return lambda p, e: cross_entropy(nnx.merge(graph, p)(e[0]), e[1]), near(params), IMAGES


def of_haiku():
    def forward(words):
        x = haiku.Embed(WORDS, WIDTH)(words)
        core = haiku.LSTM(5)
        x, _ = haiku.dynamic_unroll(core, x, core.initial_state(None))
        return haiku.Linear(WORDS)(x)

    model = haiku.without_apply_rng(haiku.transform(forward))
    params = near(model.init(jax.random.key(0), SENTENCES[0][0]))
    return lambda p, e: cross_entropy(model.apply(p, e[0]), e[1]), params, SENTENCES


def of_equinox():
    keys = jax.random.split(jax.random.key(0), 3)
    model = equinox.nn.Sequential(
        [
            equinox.nn.Conv2d(3, 4, 3, stride=2, key=keys[0]),
            equinox.nn.Lambda(lambda x: jnp.tanh(x).ravel()),
            equinox.nn.MLP(4 * 4 * 4, 3, width_size=8, depth=2, key=keys[1]),
        ]
    )
    params, static = equinox.partition(model, equinox.is_inexact_array)

    def fn(p, e):
        return cross_entropy(equinox.combine(p, static)(jnp.moveaxis(e[0], -1, 0)), e[1])

    return fn, near(params), IMAGES


MODELS = {
    "linen convolutional": lambda: linen(Convolutional(), *IMAGES),
    "linen recurrent": lambda: linen(Recurrent(), *SENTENCES),
    "linen transformer": lambda: linen(Transformer(), *SENTENCES),
    "linen transformer, tied": lambda: linen(Transformer(tied=True), *SENTENCES),
    "linen transformer, scanned": lambda: linen(Transformer(scanned=True), *SENTENCES),
    "nnx": of_nnx,
    "haiku": of_haiku,
    "equinox": of_equinox,
}


@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
def test_of_models(make):
    """None of them has a matrix whose per-example gradients are built, but where it is tied."""
    fn, params, batch = make()
    check(fn, params, batch)
    routes = wpl_jax.explain(fn, params, batch)
    for (path, leaf), route in zip(
        jax.tree.leaves_with_path(params), jax.tree.leaves(routes), strict=True
    ):
        if leaf.ndim >= 2 and route == GRADIENTS:
            name = jax.tree_util.keystr(path)
            biases = ("bias", "scale", "places")  # attention's, and those of all layers
            assert any(b in name for b in biases) or " and " in route.reason, name


# --- Memory, types, errors ------------------------------------------------------------------------


def arrays(fn, *args):
    """The shapes of all arrays in a function's jaxpr."""
    text = str(jax.make_jaxpr(fn)(*args))
    return [tuple(map(int, s.split(","))) for s in re.findall(r"f32\[([\d,]+)\]", text)]


@pytest.mark.parametrize("fn", [dense, sequence, looked_up, tied])
def test_per_example_gradients_are_not_held(fn):
    """No array has an axis of examples and the size of their gradients."""
    shapes = arrays(functools.partial(squares, fn, max_bytes=1), PARAMS, SEQUENCES)
    of_weights = [WORDS * WIDTH] if fn in (looked_up, tied) else [WIDTH * WIDTH]
    assert not any(s[0] == N and math.prod(s[1:]) in of_weights for s in shapes)


@pytest.mark.parametrize("max_bytes", [1, 2 * WIDTH * WIDTH * 4, 2**20])
def test_chunks_of_any_size_give_the_same(max_bytes):
    """Two examples at a time do not divide the batch."""
    fns = {fn.__name__: fn for fn in (sequence, tied, normalised)}
    check(fns, PARAMS, SEQUENCES, max_bytes=max_bytes)


@pytest.mark.parametrize("max_bytes", [2**17, 2**20])
def test_memory_is_bounded(max_bytes):
    """At most twice the parameters and max_bytes more than a batch gradient needs."""
    params, batch = {"w": normal(0, 200, 300), "v": normal(1, 300, 200)}, normal(2, 64, 8, 200)

    def nll(p, x):
        return jnp.sum(jnp.tanh(jnp.tanh(x @ p["w"]) @ p["v"]))

    def gradient(p, batch):
        return jax.grad(lambda p: jax.vmap(nll, (None, 0))(p, batch).mean())(p)

    def held(fn):
        return jax.jit(fn).lower(params, batch).compile().memory_analysis().temp_size_in_bytes

    of_params = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
    fisher = held(wpl_jax.empirical_fisher(nll, max_bytes=max_bytes))
    assert fisher <= held(gradient) + 2 * of_params + max_bytes
    assert held(lambda p, b: by_vmap(nll, p, b, jnp.ones(64))) > 20 * of_params  # what is avoided


@pytest.mark.parametrize("fn", [dense, sequence, looked_up, tied, scaled])
def test_of_bfloat16_parameters_are_float32(fn):
    """Within rounding of the gradients themselves."""
    params, batch = jax.tree.map(
        lambda x: x.astype(jnp.bfloat16), jax.device_get((PARAMS, SEQUENCES["x"]))
    )
    batch = {"x": batch, "words": SEQUENCES["words"]}
    found = jit(functools.partial(squares, fn))(params, batch)
    exact = jax.tree.map(
        lambda x: x.astype(jnp.float32) if x.dtype == jnp.bfloat16 else x, (params, batch)
    )
    wanted = jit(functools.partial(by_vmap, fn))(*exact, np.ones(N, np.float32))
    for a, b in zip(*map(jax.tree.leaves, jax.device_get((found, wanted))), strict=True):
        assert a.dtype == jnp.float32
        np.testing.assert_allclose(a, b, rtol=0.05, atol=0.05 * float(np.max(b)))


@pytest.mark.parametrize("fn", [dense, two_positions, sequence, looked_up, tied])
def test_in_float64(fn):
    with jax.enable_x64(True):
        params, batch = jax.tree.map(
            lambda x: x.astype(np.float64) if x.dtype == np.float32 else x,
            jax.device_get((PARAMS, SEQUENCES)),
        )
        found = jit(functools.partial(squares, fn))(params, batch)
        grads = jit(jax.vmap(jax.grad(lambda p, e: fn(p, e).sum()), (None, 0)))(params, batch)
        for a, b in zip(*map(jax.tree.leaves, jax.device_get((found, grads))), strict=True):
            assert a.dtype == np.float64
            np.testing.assert_allclose(a, np.square(b).sum(0), rtol=1e-9, atol=1e-12)


def test_works_under_vmap_over_parameters():
    many = jax.tree.map(lambda x: np.stack([x, 2 * np.asarray(x)]), PARAMS)
    of_one = functools.partial(squares, sequence)
    found, one_by_one = jit(jax.vmap(of_one, (0, None)))(many, SEQUENCES), jit(of_one)
    for i in range(2):
        one = one_by_one(jax.tree.map(lambda x, i=i: x[i], many), SEQUENCES)
        for a, b in zip(*map(jax.tree.leaves, (jax.device_get(found), one)), strict=True):
            np.testing.assert_allclose(a[i], b, rtol=1e-5)


def test_explain_takes_shapes():
    shapes = jax.eval_shape(lambda *x: x, PARAMS, SEQUENCES)
    assert wpl_jax.explain(sequence, *shapes) == wpl_jax.explain(sequence, PARAMS, SEQUENCES)


def test_refuses_parameters_without_gradients():
    with pytest.raises(TypeError, match=r"floating-point.*int32 at \['n'\]"):
        wpl_jax.explain(dense, {**PARAMS, "n": jnp.arange(3)}, SEQUENCES)
