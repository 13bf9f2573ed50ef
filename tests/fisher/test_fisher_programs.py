"""The empirical Fisher against `vmap(grad)`: of programs drawn at random, and of named ones.

The default run draws the same few dozen programs each time. More, and others:

    FISHER_PROGRAMS=2000 FISHER_SEED=1 make test PYTEST_ARGS='-m slow -k many_programs'
"""

import collections
import contextlib
import functools
import os

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import programs
import pytest
from jax import jit, lax
from jax.experimental import pallas
from jax.extend import core
from jax.sharding import NamedSharding, PartitionSpec

import wpl_jax

SEED = int(os.environ.get("FISHER_SEED", 0))
PROGRAMS = int(os.environ.get("FISHER_PROGRAMS", 10_000))
SHARDS, AT_A_TIME = 6, 250
QUICK = 48  # programs by default

# Of each profile: the error allowed; below which share of the largest entry of all parameters, and
# below which value, a parameter's entries are taken to be 0 but for rounding.
TOLERANCES = {
    "float32": (2e-5, 1e-6, 1e-9),
    "singular": (2e-5, 1e-6, 1e-9),
    "mixed": (2e-5, 1e-6, 1e-9),
    "float64": (1e-9, 1e-12, 1e-20),
    "low": (5e-2, 1e-3, 1e-4),
}


# --- Comparing ------------------------------------------------------------------------------------


def gradients(loss, params, batch):
    return jax.vmap(jax.grad(loss), (None, 0))(params, batch)


@functools.cache
def compiled_gradients(loss):
    """Once for all that a loss is tested with."""
    return jit(lambda params, batch: gradients(loss, params, batch))


def mean_of_squares(grads, weights=None):
    def of_leaf(g):
        g = np.asarray(g)
        shares = np.ones(len(g)) if weights is None else np.asarray(weights, np.float64)
        with np.errstate(all="ignore"):
            squares = np.square(g.astype(jnp.promote_types(g.dtype, np.float32)))
            weighted = squares * shares.reshape(-1, *[1] * (g.ndim - 1))
            return np.sum(weighted, axis=0) / np.sum(shares)

    return jax.tree.map(of_leaf, grads)


def check_form(found, grads):
    """Shapes, dtypes and signs."""
    assert jax.tree.structure(found) == jax.tree.structure(grads)
    for (path, a), g in zip(jax.tree.leaves_with_path(found), jax.tree.leaves(grads), strict=True):
        assert a.shape == g.shape[1:], path
        assert a.dtype == jnp.promote_types(g.dtype, jnp.float32), path
        assert not np.any(np.asarray(a) < 0), path


def errors(found, wanted, tolerances):
    """Of each parameter, relative to its largest entry; infinite where NaNs are elsewhere."""
    _, share, floor = tolerances
    pairs = zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True)
    pairs = [(np.asarray(a, np.float64), np.asarray(b, np.float64)) for a, b in pairs]
    largest = [np.max(b, where=np.isfinite(b), initial=0) for _, b in pairs]

    def error(a, b, scale):
        finite = np.isfinite(b)
        if not np.array_equal(a[~finite], b[~finite], equal_nan=True) or np.isnan(a[finite]).any():
            return np.inf
        difference = np.max(np.abs(a[finite] - b[finite]), initial=0)
        return difference / max(scale, share * max(largest), floor)

    return np.array([error(a, b, scale) for (a, b), scale in zip(pairs, largest, strict=True)])


def check_equal(found, grads, weights=None, profile="float32", name="the loss"):
    check_form(found, grads)
    wanted = mean_of_squares(grads, weights)
    off = errors(found, wanted, TOLERANCES[profile])
    assert np.all(off <= TOLERANCES[profile][0]), f"{name}: off by {off}\n{found}\n{wanted}"


def check(losses, params, batch, weights=None, profile="float32", **options):
    """One loss, or each of some by name, in one program: equal to vmap(grad)."""

    def both(params, batch, weights):
        return {
            name: (
                gradients(loss, params, batch),
                wpl_jax.empirical_fisher(loss, **options)(params, batch, weights),
            )
            for name, loss in losses.items()
        }

    losses = losses if isinstance(losses, dict) else {"the loss": losses}
    for name, (grads, found) in jit(both)(params, batch, weights).items():
        check_equal(found, grads, weights, profile, name)


# --- Programs drawn at random ---------------------------------------------------------------------


def padded(batch, real):
    """The batch with NaN, or an impossible integer, for all examples that are not real."""

    def of_leaf(x):
        hole = 999 if x.dtype == np.int32 else np.nan
        return np.where(real.reshape(-1, *[1] * (x.ndim - 1)), x, np.array(hole, x.dtype))

    return jax.tree.map(of_leaf, batch)


class NoReference(Exception):
    """That `vmap(grad)` fails."""


def compare(program):
    """Compare, and say in a few words what came of it. Raises where the estimator is wrong."""
    tolerances = TOLERANCES[program.profile]
    params, batch, weights = program.arguments()
    real = np.ones(len(batch["y"]), bool) if weights is None else weights > 0
    kept = None if weights is None else weights[real]

    def of_real(batch):
        return jax.tree.map(lambda x: x[real], batch)

    def both(params, batch, holed, weights):
        try:
            grads = gradients(program.loss(), params, batch)
        except Exception as error:
            raise NoReference from error
        fisher = wpl_jax.empirical_fisher(
            program.loss(), program.microbatch_size, program.max_bytes
        )
        return grads, fisher(params, holed, weights)

    with jax.enable_x64(program.needs_x64), jax.numpy_rank_promotion("allow"):
        try:
            grads, found = jit(both)(params, of_real(batch), padded(batch, real), weights)
        except NoReference:
            return "no reference"
    check_form(found, grads)
    wanted = mean_of_squares(grads, kept)
    off = errors(found, wanted, tolerances)
    if np.all(off <= tolerances[0]):
        finite = all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(wanted))
        return "equal" if finite else "equal, not finite"
    assert np.all(np.isfinite(off)), f"not finite elsewhere\nfound {found}\nwanted {wanted}"
    # Where rounding is amplified, vmap(grad) is off too, from what float64 gives.
    with jax.enable_x64(True), jax.numpy_rank_promotion("allow"):
        params, batch, _ = program.arguments(wide=True)
        grads = jit(lambda p, b: gradients(program.loss(wide=True), p, b))(params, of_real(batch))
    exact = mean_of_squares(grads, kept)
    ours, theirs = errors(found, exact, tolerances), errors(wanted, exact, tolerances)
    assert np.all(ours <= 4 * theirs + tolerances[0]), (
        f"off by {off}; from float64 by {ours}, vmap(grad) by {theirs}\n{found}\n{wanted}"
    )
    return "as far from float64"


def run(seed, count, settings):
    """Compare a number of programs: what came of them."""
    outcomes, passed = collections.Counter(), set()

    @hypothesis.seed(seed)
    @hypothesis.settings(
        settings,
        max_examples=count,
        database=None,
        deadline=None,
        print_blob=False,
        phases=[hypothesis.Phase.generate, hypothesis.Phase.shrink],
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    @hypothesis.given(programs.programs())
    def test(program):
        if repr(program) in passed:
            outcome = "drawn before"
        else:
            outcome = compare(program)
            passed.add(repr(program))
            if len(passed) % 50 == 0:
                jax.clear_caches()
        outcomes[program.profile, outcome] += 1
        hypothesis.event(f"{program.profile}: {outcome}")
        hypothesis.assume(outcome != "no reference")

    test()
    return outcomes


@pytest.mark.parametrize("shard", range(SHARDS))
def test_programs(shard):
    outcomes = run(shard, QUICK // SHARDS, hypothesis.settings(derandomize=True))
    assert sum(n for (_, word), n in outcomes.items() if word == "no reference") < QUICK / 60


@pytest.mark.slow
@pytest.mark.parametrize("shard", range(-(-PROGRAMS // AT_A_TIME)))
def test_many_programs(shard, record_property):
    cached = jax.config.jax_enable_compilation_cache
    jax.config.update("jax_enable_compilation_cache", False)  # none is compiled twice
    try:
        outcomes = run(f"{SEED}, {shard}", min(AT_A_TIME, PROGRAMS), hypothesis.settings())
    finally:
        jax.config.update("jax_enable_compilation_cache", cached)
        jax.clear_caches()
    for (profile, word), n in sorted(outcomes.items()):
        record_property(f"{profile}: {word}", n)
        print(f"{profile}: {word}: {n}")


# --- Named programs -------------------------------------------------------------------------------

N, T, D, K = 5, 3, 4, 6


def normal(seed, *shape):
    return np.random.default_rng(seed).normal(0, 0.5, shape).astype(np.float32)


PARAMS = {
    "w": normal(0, D, D),
    "v": normal(1, D),
    "t": normal(2, K, D),
    "s": normal(3),
    "layers": normal(4, 3, D, D),
    "a": normal(5, D, 2),
    "b": normal(6, 2, D),
    "empty": normal(7, 0),
}
BATCH = {
    "x": normal(8, N, T, D),
    "ids": np.random.default_rng(9).integers(K, size=(N, T)),
    "y": normal(10, N),
}
C = normal(11, D, D)
MASK = C > 0
INTEGERS = np.random.default_rng(12).integers(-2, 3, (D, D))


def total(x):
    return jnp.sum(jnp.tanh(x))


def clip(x):
    return programs.clip_gradient(x)


@jax.custom_vjp
def scaled_sign(x):
    return x


scaled_sign.defvjp(lambda x: (x, None), lambda _, g: (0.3 * jnp.sign(g),))

# Functions of a weight, before it is used.
OF_WEIGHTS = {
    "times exp(-c)": lambda w: w * jnp.exp(-C),
    "times 2c": lambda w: w * (2 * C),
    "times a negative constant": lambda w: w * -C * -2.0,
    "over a computed constant": lambda w: w / (1 + C**2),
    "1 + w": lambda w: 1 + w,
    "c - w": lambda w: C - w,
    "where a computed mask": lambda w: jnp.where(-C < 0.1, w, 0),
    "where a mask, 0": lambda w: jnp.where(MASK, w, 0),
    "where a mask, -1": lambda w: jnp.where(MASK, w, -1.0),
    "where not a mask, c": lambda w: jnp.where(~MASK, C, w),
    "times integers": lambda w: w * INTEGERS,
    "times integers, computed": lambda w: w * (1 - INTEGERS),
    "times a mask": lambda w: w * MASK,
    "times not a mask": lambda w: w * ~MASK,
    "times a mask as float": lambda w: w * MASK.astype(np.float32),
    "times one row": lambda w: w * C[:1],
    "clipped": clip,
    "clipped, scaled": lambda w: 2 * clip(w * C),
    "sign": scaled_sign,
    "spread": lambda w: jnp.broadcast_to(w[:1], w.shape),
    "a column times all": lambda w: w[:, :1] * C,
    "a row over all": lambda w: w[:1] / (1 + C**2),
    "an entry times all": lambda w: w[0, 0] * C,
    "all plus an entry": lambda w: C + w[0, 0],
    "some set": lambda w: w.at[0].set(0.5),
    "some added to": lambda w: w.at[jnp.array([0, 0, 1])].add(w[:3]),
}

WAYS = {
    "at one position": lambda w, e: total(e["x"][0] @ w),
    "at two": lambda w, e: total(e["x"][:2] @ w),
    "at three": lambda w, e: total(w @ e["x"].T),
    "as rows": lambda w, e: total(w[e["ids"] % D] * e["x"]),
    "as entries": lambda w, e: total(w[e["ids"] % D, e["ids"] // 2]),
    "tied": lambda w, e: total(jnp.tanh(w[e["ids"] % D]) @ w.T),
    "elementwise": lambda w, e: total(e["x"] @ (w * e["y"])),
}


@pytest.mark.parametrize("of_weight", OF_WEIGHTS.values(), ids=OF_WEIGHTS)
def test_functions_of_a_weight(of_weight):
    def used(way):
        return lambda p, e: way(of_weight(p["w"]), e)

    check({name: used(way) for name, way in WAYS.items()}, {"w": PARAMS["w"]}, BATCH)


def recurrent(p, e, use=lambda w: w):
    return total(lax.scan(lambda h, x: (jnp.tanh(use(p["w"]) @ h + x), None), p["v"], e["x"])[0])


# Custom rules.


def clipped_twice(p, e):
    w = clip(p["w"])
    return total(jnp.tanh(e["x"] @ w) @ w)


def clipped_tied(p, e):
    t = clip(p["t"])
    return total(jnp.tanh(t[e["ids"]]) @ t.T)


def clipped_each_of_two(p, e):
    return total(jnp.tanh(e["x"] @ clip(p["w"])) @ clip(p["w"]))


def clipped_unrolled(p, e):
    w, h = clip(p["w"]), e["x"][0]
    for x in e["x"]:
        h = jnp.tanh(w @ h + x)
    return total(h)


def clipped_recurrent(p, e):
    return recurrent({**p, "w": clip(p["w"])}, e)


def clipped_each_step(p, e):
    return recurrent(p, e, clip)


def clipped_layers(p, e):
    return total(lax.scan(lambda x, w: (jnp.tanh(x @ w), None), e["x"], clip(p["layers"]))[0])


def clipped_in_layers(p, e):
    return total(lax.scan(lambda x, w: (jnp.tanh(x @ clip(w)), None), e["x"], p["layers"])[0])


def clipped_under_vmap(p, e):
    return total(jax.vmap(lambda x: x @ clip(p["w"]))(e["x"]))


def clipped_in_a_branch(p, e):
    return total(
        lax.cond(e["y"] > 0, lambda w: e["x"] @ clip(w), lambda w: 0.1 * e["x"] @ (w * w), p["w"])
    )


# Look-ups.


def at_an_infinite_derivative(p, e):
    """The row that is 0 gets an infinite gradient, or NaN, the others theirs."""
    return jnp.sum(jnp.sqrt(jnp.abs((p["t"] - PARAMS["t"][2:3])[e["ids"][0]])))


def at_an_infinite_derivative_of_all(p, e):
    return jnp.sum(jnp.sqrt(jnp.square(p["t"] - PARAMS["t"][2:3]))[e["ids"]])


def a_root_of_rows(p, e):
    return total(jnp.linalg.norm(p["t"][e["ids"]] - PARAMS["t"][2:3], axis=-1))


def out_of_bounds_filled(p, e):
    return total(p["t"].at[2 * e["ids"] - 3].get(mode="fill", fill_value=0.5))


def out_of_bounds_filled_with_nan(p, e):
    return total(jnp.nan_to_num(jnp.take(p["t"], 2 * e["ids"] - 8, axis=0, mode="fill")))


def out_of_bounds_nan(p, e):
    return total(jnp.take(p["t"], e["ids"] + 2, axis=0, mode="fill") @ p["w"])


def out_of_bounds_clipped(p, e):
    return total(p["t"].at[2 * e["ids"] - 3].get(mode="clip") * e["x"])


def out_of_bounds_wrapped(p, e):
    return total(jnp.take(p["t"], 2 * e["ids"] - 3, axis=0, mode="wrap") * e["x"])


def out_of_bounds_unless_promised(p, e):
    """The default: clipped forwards, and dropped backwards."""
    return total(p["t"][2 * e["ids"] - 3] * e["x"])


def a_slice_out_of_bounds(p, e):
    return total(lax.dynamic_slice(p["t"], (e["ids"][0] * 2, 0), (2, D)))


# Loops.


def scans_over_an_argmax(p, e):
    def step(carry, i):
        h, t = carry
        return (jnp.tanh(h + t[i]), t), None

    return total(lax.scan(step, (e["x"][0], p["t"]), jnp.argmax(p["t"], axis=1))[0][0])


def scans_over_an_order(p, e):
    return total(
        lax.scan(lambda h, i: (h @ p["layers"][i], None), e["x"], jnp.argsort(p["v"][:3]))[0]
    )


def carries_two(p, e):
    def step(carry, _):
        x, v, w = carry
        return (jnp.tanh(x @ v + x), w, v), None

    return total(lax.scan(step, (e["x"], p["w"], p["layers"][0]), length=3)[0][0])


def carries_what_changes(p, e):
    step = lambda carry, x: ((jnp.tanh(carry[0] @ carry[1] + x), 0.9 * carry[1].T), None)  # noqa: E731
    return total(lax.scan(step, (p["v"], p["w"]), e["x"])[0][0])


def scans_nothing(p, e):
    h, ys = lax.scan(lambda h, x: (jnp.tanh(h @ p["w"] + x), h), p["v"], e["x"][:0])
    return total(h * e["x"][0]) + jnp.sum(ys @ p["w"])


def scans_no_layers(p, e):
    return total(lax.scan(lambda x, w: (x @ w, w.sum()), e["x"] @ p["w"], p["layers"][:0])[0])


def scans_one(p, e):
    return total(lax.scan(lambda h, x: (jnp.tanh(h @ p["w"] + x), h), p["v"], e["x"][:1])[0])


def scans_what_a_loop_gives(p, e):
    """A loop over parameters alone, and one over its results."""
    rows = p["t"][:3] * p["v"][None]
    rows = lax.scan(lambda total, row: (total + row, total), rows[0], rows)[1]
    return total(lax.scan(lambda h, row: (jnp.tanh(h * row), None), e["x"][0], rows)[0])


def masks_each_step(p, e):
    """A weight that is the same in all turns, scaled otherwise in each."""
    masks = C[:, None] > C[None] - 0.3

    def step(h, mask):
        return jnp.tanh(h @ (p["w"] * mask) + h @ jnp.where(mask, p["w"], 0)), None

    return total(lax.scan(step, e["x"][0], masks)[0])


def shares_layers(p, e):
    def step(h, i):
        return jnp.tanh(h @ p["layers"][i]), None

    return total(lax.scan(step, e["x"], jnp.array([0, 1, 0, 1, 2]))[0])


def completes_each_step(p, e):
    def step(h, rest):
        return jnp.tanh(h @ jnp.concatenate([p["w"][:2], rest])), None

    return total(lax.scan(step, e["x"][0], normal(30, 3, D - 2, D))[0])


def overlaps(p, e):
    """Pieces of a parameter of which one occurs in another place again."""
    apart = jnp.concatenate([p["t"][:1], p["t"][3:4]])
    return total(e["x"][:, :2] @ apart) + total(e["x"][:, :2] @ p["t"][:2])


def overlaps_in_one(p, e):
    apart = jnp.concatenate([jnp.concatenate([p["t"][:1], p["t"][3:4]]), p["t"][:2]])
    return total(e["x"] @ apart)


def cut_with_gaps(p, e):
    """A piece of every second column, and the columns where it would lie without the gaps."""
    pieces = p["t"][:, ::2][:, 1:2], p["t"][:, 1:2]
    return sum(total(piece[:3] * e["x"][0, :3, None]) for piece in pieces)


NORMS = {
    "left over": lambda norm, x: (x, norm + x)[0],
    "without a gradient": lambda norm, x: lax.stop_gradient(norm * x),
    "rounded": lambda norm, x: jnp.floor(norm * x),
    "compared": lambda norm, x: jnp.where(norm * x > 1, x, 2 * x),
}
"""What passes nothing on to a norm, whose gradient at 0 would be a NaN."""


def goes_a_long_way(p, e):
    w = p["w"]
    for _ in range(300):
        w = w * 1.001
    return total(e["x"] @ w)


def squares_a_mask_often(p, e):
    """Work on what is known must not grow with the number of ways in which it is shared."""

    def step(h, mask):
        for _ in range(40):
            mask = mask * mask
        return jnp.tanh(h @ (p["w"] * mask)), None

    return total(lax.scan(step, e["x"][0], np.full((2, 1, D), 0.9, np.float32))[0])


def adds_in_place(p, e):
    reference = jax.new_ref(jnp.asarray(e["x"][0]))
    jax.ref.addupdate(reference, ..., p["v"])
    return total(reference[...])


def loops_in_place(p, e):
    reference = jax.new_ref(jnp.asarray(e["x"][0]))

    def step(i, _):
        reference[...] = jnp.tanh(reference[...] @ p["w"])

    lax.fori_loop(0, 3, step, None)
    return total(reference[...])


def changes_its_own(p, e):
    """A kernel's arrays are no one else's, nor are those of a branch."""

    def branch(x):
        reference = jax.new_ref(x)
        reference[...] = jnp.sin(reference[...])
        return reference[...]

    x = jax.lax.cond(e["x"][0, 0] > 0, branch, jnp.cos, e["x"])
    return total(x @ p["w"])


def changes_a_copy(p, e):
    reference = jax.new_ref(jnp.asarray(p["v"]))
    reference[...] = reference[...] * e["x"][0]
    return total(reference[...])


def indexes_layers(p, e):
    def layer(i, x):
        return jnp.tanh(x @ p["layers"][i] + p["t"][i][None])

    return total(lax.fori_loop(0, 3, layer, e["x"]))


# Types.


def prefers_an_element_type(p, e):
    x, w = e["x"].astype(jnp.bfloat16), p["w"].astype(jnp.bfloat16)
    return total(jnp.matmul(x, w, preferred_element_type=jnp.float32))


def used_twice(p, e):
    return total(jnp.tanh(e["x"] @ p["w"]) @ p["w"])


def tied(p, e):
    return total(jnp.tanh(p["t"][e["ids"]] + e["x"]) @ p["t"].T)


def scaled_by_a_norm(p, e):
    return total(e["x"] @ (p["w"] / jnp.linalg.norm(p["w"])))


def low_rank(p, e):
    return total(e["x"] @ (p["w"] + p["a"] @ p["b"]))


def sliced(p, e):
    return total(e["x"] @ p["w"][:, 1:]) + total(e["x"] @ p["w"][:, :2])


def extended(p, e):
    return total(e["x"] @ jnp.pad(p["w"], ((0, 0), (1, 1)))[:, :D])


def layered(p, e):
    return total(lax.scan(lambda x, w: (jnp.tanh(x @ w), None), e["x"], p["layers"])[0])


def elementwise(p, e):
    return total((e["x"] + p["v"][None]) * p["s"] * p["v"][None])


# Stops.


def stops_at_a_while_loop(p, e):
    s = lax.stop_gradient(p["s"])
    return total(e["x"] @ p["w"]) * lax.while_loop(lambda x: x < 2, lambda x: x + s**2 + 1, e["y"])


def stops_at_a_callback(p, e):
    v = lax.stop_gradient(p["v"])
    shape = jax.ShapeDtypeStruct((D,), np.float32)
    y = jax.pure_callback(
        lambda v, x: np.asarray(v) * np.asarray(x), shape, v, e["x"][0], vmap_method="sequential"
    )
    return total(y @ p["w"])


def prints_a_parameter(p, e):
    jax.debug.print("{}", p["s"])
    return total(p["s"] * e["x"] @ p["w"])


def without_entries(p, e):
    return total(e["x"] @ p["w"]) + jnp.sum(p["empty"]) + total(p["empty"] * e["y"])


def only_without_entries(p, e):
    return e["y"] + jnp.sum(p["empty"] * e["y"])


def constant(p, e):
    return jnp.sum(e["x"])


NAMED = {
    "custom rules": [
        clipped_twice,
        clipped_tied,
        clipped_each_of_two,
        clipped_unrolled,
        clipped_recurrent,
        clipped_each_step,
        clipped_layers,
        clipped_in_layers,
        clipped_under_vmap,
        clipped_in_a_branch,
    ],
    "look-ups": [
        at_an_infinite_derivative,
        at_an_infinite_derivative_of_all,
        a_root_of_rows,
        out_of_bounds_filled,
        out_of_bounds_filled_with_nan,
        out_of_bounds_nan,
        out_of_bounds_clipped,
        out_of_bounds_wrapped,
        out_of_bounds_unless_promised,
        a_slice_out_of_bounds,
    ],
    "loops": [
        scans_over_an_argmax,
        scans_over_an_order,
        carries_two,
        carries_what_changes,
        scans_nothing,
        scans_no_layers,
        scans_one,
        scans_what_a_loop_gives,
        masks_each_step,
        shares_layers,
        completes_each_step,
    ],
    "pieces and long ways": [
        overlaps,
        overlaps_in_one,
        cut_with_gaps,
        goes_a_long_way,
        squares_a_mask_often,
    ],
    "in place": [
        adds_in_place,
        loops_in_place,
        changes_its_own,
        changes_a_copy,
        indexes_layers,
        recurrent,
    ],
    "stops": [
        stops_at_a_while_loop,
        stops_at_a_callback,
        prints_a_parameter,
        without_entries,
        only_without_entries,
        constant,
    ],
}
OF_TYPES = [
    prefers_an_element_type,
    used_twice,
    tied,
    scaled_by_a_norm,
    low_rank,
    sliced,
    extended,
    layered,
    elementwise,
]
named = {"ids": lambda fn: fn.__name__}


def by_name(losses):
    return {loss.__name__: loss for loss in losses}


@pytest.mark.parametrize("losses", [*NAMED.values(), OF_TYPES[1:]], ids=[*NAMED, "types"])
def test_named_programs(losses):
    weights = np.arange(1, N + 1, dtype=np.float32)
    check(by_name(losses), PARAMS, BATCH, weights, microbatch_size=2)


def test_what_gets_no_gradient_passes_on_none():
    def loss(pass_on, p, e):
        norm = jnp.linalg.norm(p["v"] - PARAMS["v"])
        return total(pass_on(norm, e["x"]) @ p["w"]) + total(p["v"] * e["x"][0])

    losses = {name: functools.partial(loss, pass_on) for name, pass_on in NORMS.items()}
    check(losses, PARAMS, BATCH)


def test_what_is_left_over_decides_no_route():
    def loss(p, e):
        nll = total(e["x"] @ p["w"])
        return nll, nll + jnp.sum(p["w"] ** 2)  # an auxiliary result

    alone = wpl_jax.explain(lambda p, e: total(e["x"] @ p["w"]), PARAMS, BATCH)
    assert str(wpl_jax.explain(lambda p, e: loss(p, e)[0], PARAMS, BATCH)) == str(alone)


def test_what_an_operation_changes_within_itself_decides_no_route():
    def kernel(x, out):
        out[...] = x[...] * 2

    def doubled(x):
        shape = jax.ShapeDtypeStruct(x.shape, x.dtype)
        return pallas.pallas_call(kernel, out_shape=shape, interpret=True)(x)

    def loss(double, p, e):
        return total(double(e["x"]) @ p["w"])

    params = {"w": PARAMS["w"]}
    of_kernel, plain = (functools.partial(loss, f) for f in (doubled, lambda x: x * 2))
    explained = (wpl_jax.explain(nll, params, BATCH) for nll in (of_kernel, plain))
    assert len(set(map(str, explained))) == 1
    check(of_kernel, params, BATCH)


@pytest.mark.parametrize("size", [1e-30, 1e30])
def test_operands_whose_squares_are_no_numbers(size):
    """A pooled sentinel, say, whose gradient is 0, or small where it is large."""

    def nll(p, e):
        return jnp.where(e["real"], total(jnp.tanh(e["x"] @ p["w"] / size)), 0.0)

    real = np.arange(N) % 3 > 0
    x = np.where(real[:, None], normal(0, N, D), -1) * np.float32(size)
    check(nll, {"w": PARAMS["w"]}, {"x": x, "real": real})


def test_rows_of_zeros_count_for_nothing_whatever_their_gradient_is():
    def nll(p, e):
        return 1e20 * total(e["x"] @ p["w"])

    for size in (0.0, 1e-10):
        x = normal(0, N, D) * np.float32(size)
        x[0] = 0
        check(nll, {"w": PARAMS["w"]}, {"x": x})


def test_contractions_over_nothing():
    """As of adapters of rank 0."""

    def nll(p, e):
        return jnp.sum(jnp.sin(e["x"] @ p["down"] @ p["up"]))

    params = {"down": np.ones((D, 0), np.float32), "up": np.ones((0, 2), np.float32)}
    check(nll, params, {"x": normal(0, N, D)})


def clips_backwards(z, e):
    @jax.custom_gradient
    def clip(z):
        return z, lambda g: (jnp.clip(g, -(e["x"][0, 0] ** 2), e["x"][0, 0] ** 2),)

    return clip(z)


def has_a_backward_pass(z, e):
    index = e["ids"][0]

    @jax.custom_vjp
    def scaled(z):
        return z * e["x"][0, 0]

    def forward(z):
        return scaled(z), z

    def backward(z, g):
        return (g * z * e["x"][index % 2, 1],)

    scaled.defvjp(forward, backward)
    return scaled(z)


def has_a_derivative(z, e):
    @jax.custom_jvp
    def sine(z):
        return jnp.sin(z)

    @sine.defjvp
    def derivative(primals, tangents):
        return sine(*primals), tangents[0] * e["x"][0, 0]

    return sine(z)


@pytest.mark.parametrize("rule", [clips_backwards, has_a_backward_pass, has_a_derivative], **named)
def test_custom_derivatives_that_close_over_the_example(rule):
    def nll(p, e):
        return jnp.sum(jnp.tanh(rule(e["x"] @ p["w"], e) * p["v"][None, :1]))

    grads = compiled_gradients(nll)(PARAMS, BATCH)
    for weights, size in (None, 2), (np.arange(N, dtype=np.float32), None):
        fisher = wpl_jax.empirical_fisher(nll, microbatch_size=size)
        for step in (jit, lambda fn: fn):
            check_equal(step(fisher)(PARAMS, BATCH, weights), grads, weights)
    assert wpl_jax.explain(nll, PARAMS, BATCH)["w"].reason.startswith("a custom derivative closes")

    constants = {"x": jnp.full((T, D), 0.5), "ids": [1]}  # are no reason

    def of_a_constant(p, e):
        return jnp.sum(rule(e["x"] @ p["w"], constants))

    assert "a custom derivative" not in str(wpl_jax.explain(of_a_constant, PARAMS, BATCH))


def test_leaves_no_tracers_behind():
    def nll(p, e):
        return total(e["x"] @ (p["w"] / jnp.linalg.norm(p["w"])))

    with jax.checking_leaks():
        check(nll, PARAMS, BATCH)


@pytest.mark.parametrize("precision", [None, "high", "highest"])
def test_products_have_the_precision_of_the_functions_own(precision):
    def nll(p, e):
        x = jnp.matmul(e["x"], p["w"], precision=precision)
        image = e["x"][None, :, :, None]
        kernel = p["w"][None, :1, None, :1]
        y = lax.conv_general_dilated(
            image,
            kernel,
            (1, 1),
            "SAME",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            precision=precision,
        )
        z = jnp.matmul(x.mean(0), p["a"], precision=precision)
        return total(x) + total(y) + total(z)

    def products(jaxpr):
        for eqn in jaxpr.eqns:
            if eqn.primitive.name in ("dot_general", "conv_general_dilated"):
                yield eqn.params["precision"]
            for inner in core.jaxprs_in_params(eqn.params):
                yield from products(inner)

    found = jax.make_jaxpr(wpl_jax.empirical_fisher(nll))(PARAMS, BATCH)
    for asked in products(found.jaxpr):
        assert str(asked) == "None" if precision is None else precision in str(asked).lower()


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_parameters_of_low_precision(dtype):
    params = jax.tree.map(lambda x: x.astype(jnp.dtype(dtype)), PARAMS)
    check(by_name(OF_TYPES), params, BATCH, profile="low")


def wide(tree):
    return jax.tree.map(lambda x: x.astype(np.float64) if x.dtype == np.float32 else x, tree)


@pytest.mark.parametrize("twice", [False, True])
@pytest.mark.parametrize("positions", [1, 2, 64])
def test_data_of_float64_are_computed_with_as_such(positions, twice):
    """Where parameters are float32: far from the mean, and beyond what a float32 holds."""

    def standardized(p, x):
        return jnp.sum(jnp.arange(4.0)[None] * jnp.tanh(jax.nn.standardize(x @ p["w"], axis=0)))

    def nll(p, e):
        loss = 1e60 * standardized(p, e["x"] * 1e-60)
        return loss + standardized(p, e["x"]) if twice else loss

    with jax.enable_x64(True):
        x = 1e4 + np.random.default_rng(0).normal(size=(N, 4 * positions, 4))
        params = {"w": normal(1, 4, 4)}
        found = jit(wpl_jax.empirical_fisher(nll))(params, {"x": x})
        wanted = mean_of_squares(compiled_gradients(nll)(wide(params), {"x": x}))
    assert found["w"].dtype == np.float32
    np.testing.assert_allclose(found["w"], wanted["w"], rtol=0, atol=1e-6 * wanted["w"].max())


def test_float64():
    """Of the data, and then of the parameters too."""
    losses = by_name(OF_TYPES[1:])
    with jax.enable_x64(True):
        check(losses, wide(PARAMS), wide(BATCH), profile="float64")
        del losses["layered"]  # whose carry would change its type
        check(losses, PARAMS, wide(BATCH), profile="mixed")
        check(losses, {**PARAMS, "w": wide(PARAMS["w"])}, wide(BATCH), profile="mixed")


def looked_up(p, e):
    return jnp.sum(jnp.tanh(p["t"][e["ids"]]).astype(jnp.float32))


@pytest.mark.parametrize("dtype", ["bfloat16", "float8_e4m3fn"])
def test_strict_promotion_of_low_precision(dtype):
    params = {"t": PARAMS["t"].astype(dtype)}
    with jax.numpy_dtype_promotion("strict"):
        found = jit(wpl_jax.empirical_fisher(looked_up))(params, BATCH)
    assert found["t"].dtype == jnp.float32 and np.isfinite(found["t"]).all()


def test_strict_promotion():
    losses = by_name([used_twice, tied, low_rank, layered, recurrent])
    weights = np.arange(1, N + 1, dtype=np.float32)
    with jax.numpy_dtype_promotion("strict"):
        check(losses, PARAMS, BATCH, weights, microbatch_size=2)
        check(losses, PARAMS, BATCH)


@pytest.mark.parametrize("options", [{}, {"max_bytes": 1}], ids=str)
@pytest.mark.parametrize("size", [1, 2, 3, N, N + 2, None])
def test_microbatches(size, options):
    grads = compiled_gradients(tied)(PARAMS, BATCH)
    found = jit(wpl_jax.empirical_fisher(tied, microbatch_size=size, **options))(PARAMS, BATCH)
    check_equal(found, grads)


@pytest.mark.parametrize("loss", [used_twice, elementwise, layered], **named)
def test_without_jit_of_numpy_arrays(loss):
    grads = compiled_gradients(loss)(PARAMS, BATCH)
    check_equal(wpl_jax.empirical_fisher(loss)(PARAMS, BATCH), grads)


def test_parameters_that_are_python_numbers():
    def loss(p, e):
        return total(p["scale"] * e["x"] + p["shift"])

    params = {"scale": 0.5, "shift": -0.25}
    found = wpl_jax.empirical_fisher(loss)(params, BATCH)
    wanted = mean_of_squares(gradients(loss, params, BATCH))
    np.testing.assert_allclose(found["scale"], wanted["scale"], rtol=1e-5)
    np.testing.assert_allclose(found["shift"], wanted["shift"], rtol=1e-5)
    assert found["scale"].dtype == jnp.float32


# --- Rounding -------------------------------------------------------------------------------------


def test_differences_of_near_inputs():
    """Where gradients nearly cancel, no less exact than those that vmap(grad) squares."""

    def loss(p, e):
        better, worse = (jnp.tanh(x @ p["w"] + p["v"]) @ p["a"] for x in (e["x"], e["x"] + e["d"]))
        return jax.nn.softplus(jnp.sum(worse - better))

    fisher = jit(wpl_jax.empirical_fisher(loss))
    params = {name: PARAMS[name] for name in "wva"}
    for apart in (1e-1, 1e-2, 1e-3):
        batch = {"x": normal(0, 20, D), "d": apart * normal(1, 20, D)}
        found = fisher(params, batch)
        theirs = mean_of_squares(compiled_gradients(loss)(params, batch))
        with jax.enable_x64(True):
            exact = mean_of_squares(compiled_gradients(loss)(wide(params), wide(batch)))
        for k in exact:
            off, allowed = (np.max(np.abs(tree[k] - exact[k])) for tree in (found, theirs))
            assert off <= 10 * allowed + 2e-6 * np.max(exact[k]), (apart, k, off, allowed)


@pytest.mark.parametrize(
    "options", [{}, {"microbatch_size": 1000}, {"microbatch_size": 7001}], ids=str
)
def test_long_sums(options):
    n = 300_000
    x, y = normal(0, n, 3), normal(1, n)
    w, b = normal(2, 3), normal(3)

    def loss(p, e):
        return 0.5 * (e["x"] @ p["w"] + p["b"] - e["y"]) ** 2

    found = jit(wpl_jax.empirical_fisher(loss, **options))({"w": w, "b": b}, {"x": x, "y": y})
    x, y, w, b = wide((x, y, w, b))
    errors = (x @ w + b - y)[:, None]
    np.testing.assert_allclose(found["w"], np.mean((errors * x) ** 2, 0), rtol=5e-6)
    np.testing.assert_allclose(found["b"], np.mean(errors**2), rtol=5e-6)


# --- Devices --------------------------------------------------------------------------------------

MANY = {
    "x": normal(20, 16, T, D),
    "ids": np.random.default_rng(21).integers(K, size=(16, T)),
    "y": normal(22, 16),
}
ON_DEVICES = [used_twice, elementwise, layered, recurrent, low_rank]


def on_devices(weights=None):
    """A mesh with explicit axes, on it the parameters, and split over it the batch and weights."""
    mesh = jax.make_mesh((8,), ("data",))
    whole, split = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in ([], ["data"]))
    return mesh, jax.device_put(PARAMS, whole), *jax.device_put((MANY, weights), split)


@functools.cache
def gradients_of_many():
    """Of all losses on devices, and of the tied one."""
    losses = by_name([*ON_DEVICES, tied])
    return jit(lambda p, b: {name: gradients(losses[name], p, b) for name in losses})(PARAMS, MANY)


def check_on_devices(found, weights=None):
    for name, fisher in found.items():
        wanted = mean_of_squares(gradients_of_many()[name], weights)
        off = errors(fisher, wanted, TOLERANCES["float32"])
        assert np.all(off <= TOLERANCES["float32"][0]), f"{name}: off by {off}"


def fishers(losses, *arguments, **options):
    """Of each of some losses, by name."""
    return {
        name: wpl_jax.empirical_fisher(loss, **options)(*arguments)
        for name, loss in by_name(losses).items()
    }


@pytest.mark.devices(8)
@pytest.mark.parametrize("options", [{}, {"max_bytes": 1}, {"microbatch_size": 1}], ids=str)
@pytest.mark.parametrize("varying", [False, True], ids=["", "varying"])
def test_in_shard_map(varying, options):
    """Of each device's examples, and then their mean."""
    mesh, params, batch, _ = on_devices()

    def of_shard(params, batch):
        if varying:
            params = lax.pcast(params, "data", to="varying")
        return lax.pmean(fishers([*ON_DEVICES, tied], params, batch, **options), "data")

    whole, split = PartitionSpec(), PartitionSpec("data")
    fisher = jax.shard_map(of_shard, mesh=mesh, in_specs=(whole, split), out_specs=whole)
    check_on_devices(jit(fisher)(params, batch))


@pytest.mark.devices(8)
@pytest.mark.parametrize("options", [{}, {"microbatch_size": 1}], ids=str)
def test_in_shard_map_over_a_split_model(options):
    """Each device has some columns and rows of the weights, and some examples."""
    mesh = jax.make_mesh((4, 2), ("data", "model"), axis_types=(jax.sharding.AxisType.Auto,) * 2)

    def loss(p, e, add=lambda x: x):
        return total(add(jnp.tanh(e["x"] @ p["w"]) @ p["layers"][0]) + p["v"][None])

    def of_shard(params, batch):
        of_split = functools.partial(loss, add=lambda x: lax.psum(x, "model"))
        fisher = wpl_jax.empirical_fisher(of_split, **options)(params, batch)
        return lax.pmean(fisher, "data")

    axes = {"w": (None, "model"), "layers": (None, "model"), "v": ()}
    specs = {name: PartitionSpec(*of_one) for name, of_one in axes.items()}
    of_batch = PartitionSpec("data")
    params = {name: PARAMS[name] for name in axes}
    found = jit(jax.shard_map(of_shard, mesh=mesh, in_specs=(specs, of_batch), out_specs=specs))(
        params, MANY
    )
    wanted = mean_of_squares(compiled_gradients(loss)(params, MANY))
    for name in axes:
        np.testing.assert_allclose(found[name], wanted[name], atol=2e-5 * wanted[name].max())


@pytest.mark.devices(8)
@pytest.mark.parametrize("manual", [("data",), ("data", "model")], ids=str)
def test_in_shard_map_of_keys_and_of_some_axes(manual):
    mesh = jax.make_mesh((4, 2), ("data", "model"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    batch, params = jax.random.split(jax.random.key(0), 8), {"w": PARAMS["w"]}

    def loss(p, key):
        return total(jax.random.normal(key, (D,)) @ p["w"])

    def of_shard(params, batch):
        return lax.pmean(wpl_jax.empirical_fisher(loss)(params, batch), "data")

    whole, split = PartitionSpec(), PartitionSpec("data")
    fisher = jax.shard_map(
        of_shard, mesh=mesh, in_specs=(whole, split), out_specs=whole, axis_names=set(manual)
    )
    wanted = mean_of_squares(compiled_gradients(loss)(params, batch))["w"]
    np.testing.assert_allclose(jit(fisher)(params, batch)["w"], wanted, atol=2e-5 * wanted.max())


@pytest.mark.devices(8)
@pytest.mark.parametrize("weighted", [False, True], ids=["", "weighted"])
@pytest.mark.parametrize("with_mesh_set", [False, True], ids=["", "set_mesh"])
def test_on_an_explicit_mesh(with_mesh_set, weighted):
    """Without look-ups by data, of which JAX asks a sharding there."""
    weights = np.arange(16, dtype=np.float32) if weighted else None
    mesh, *arguments = on_devices(weights)
    with jax.set_mesh(mesh) if with_mesh_set else contextlib.nullcontext():
        found = jit(functools.partial(fishers, ON_DEVICES))(*arguments)
    check_on_devices(found, weights)


# --- What is refused ------------------------------------------------------------------------------


def test_refuses_negative_weights():
    with pytest.raises(ValueError, match="negative"):
        wpl_jax.empirical_fisher(used_twice)(PARAMS, BATCH, np.array([1, 1, -1, 1, 1], np.float32))


def test_refuses_a_loss_with_more_outputs():
    def loss(p, e):
        return used_twice(p, e), {"y": e["y"]}

    with pytest.raises((TypeError, ValueError), match=r"aux|\[0\]"):
        wpl_jax.empirical_fisher(loss)(PARAMS, BATCH)
