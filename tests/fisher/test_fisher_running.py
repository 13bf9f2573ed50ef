"""The Fisher over many batches, against the Fisher of all examples at once."""

import functools
import itertools
import json
import math

import chex
import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
import two_processes
from flax import nnx
from hypothesis import strategies as st

import wpl_jax
from wpl_jax.checkpoint import Checkpoints
from wpl_jax.fisher.running import (
    RunningFisherState,
    fisher_of_batches,
    merge_running_fishers,
    running_fisher,
)
from wpl_jax.search.parallel import everywhere

N = 24  # examples
PARAMS = {  # of NumPy: a process that imports this has not touched a device
    "hidden": {
        "kernel": np.random.default_rng(1).normal(size=(3, 4)).astype(np.float32),
        "scale": np.array(1.5, np.float32),
    },
    "out": np.random.default_rng(2).normal(size=(4, 2)).astype(np.float32),
}


def logits(params, example):
    hidden = jnp.tanh(params["hidden"]["scale"] * (example["x"] @ params["hidden"]["kernel"]))
    return hidden @ params["out"]


def nll(params, example):
    return -jax.nn.log_softmax(logits(params, example))[example["y"]]


def examples(n=N, seed=0):
    """Of NumPy, as loaders give them; of very different sizes, so that weights matter."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, 3)) * np.geomspace(0.01, 2, n)[:, None]
    return {"x": x.astype(np.float32), "y": rng.integers(2, size=n)}


def batches_of(data, sizes):
    """Consecutive parts of these sizes."""
    ends = list(itertools.accumulate(sizes))
    return [
        jax.tree.map(lambda a, i=i, j=j: a[i:j], data) for i, j in itertools.pairwise([0, *ends])
    ]


EMPIRICAL = wpl_jax.empirical_fisher(nll)
whole = jax.jit(EMPIRICAL)
UNEVEN = batches_of(examples(), [7, 1, 7, 9])


def over(batches, estimator=EMPIRICAL, params=PARAMS, **options):
    """The loop that users write."""
    running = running_fisher(estimator)
    update = jax.jit(running.update, donate_argnums=0)
    state = running.init(params)
    for batch in batches:
        state = update(state, params, batch, **options)
    return state


def assert_close(actual, expected, rtol=1e-5):
    for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        assert np.max(np.abs(b)) > 0
        np.testing.assert_allclose(a, b, rtol=0, atol=rtol * np.max(np.abs(b)))


# --- It is the weighted mean ----------------------------------------------------------------------


@pytest.mark.parametrize("estimator", [EMPIRICAL, wpl_jax.exact_fisher(logits)])
def test_uneven_batches_give_the_fisher_of_all_examples(estimator):
    state = over(UNEVEN, estimator)
    assert_close(state.fisher, jax.jit(estimator)(PARAMS, examples()))
    assert (state.weight, state.batches) == (N, 4)
    chex.assert_trees_all_equal_shapes_and_dtypes(state.fisher, PARAMS)
    means = [jax.jit(estimator)(PARAMS, batch)["out"] for batch in UNEVEN]
    assert not np.allclose(np.mean(means, axis=0), state.fisher["out"], rtol=0.1)


def test_squared_batch_gradients_are_averaged_as_they_are():
    estimator = wpl_jax.squared_batch_gradient(nll)
    squares = [jax.jit(estimator)(PARAMS, batch)["out"] for batch in UNEVEN]
    expected = np.average(squares, axis=0, weights=[7, 1, 7, 9])
    assert_close(over(UNEVEN, estimator).fisher["out"], expected)


@functools.cache
def jitted():
    running = running_fisher(lambda params, x, weights=None: jnp.average(x, 0, weights))
    return running, jax.jit(running.update)


@hypothesis.settings(max_examples=50, deadline=None)
@hypothesis.example(parts=[[(1, 0)] * 3, [(2, 1)] * 3, [(3, 0)] * 3], scale=1.0, cut=1)
@hypothesis.given(
    parts=st.lists(
        st.lists(st.tuples(st.integers(0, 1000), st.integers(0, 3)), min_size=3, max_size=3),
        min_size=1,
        max_size=6,
    ).filter(lambda parts: any(weight for part in parts for _, weight in part)),
    scale=st.floats(1e-3, 1e3),
    cut=st.integers(0, 6),
)
def test_weights_count_however_batches_are_cut_and_merged(parts, scale, cut):
    """Batches of weight 0, whose mean is 0/0, add nothing."""
    running, update = jitted()
    params = jnp.zeros([])

    def of(parts):
        state = running.init(params)
        for part in parts:
            values, weights = (np.array(column) for column in zip(*part, strict=True))
            state = update(
                state, params, values.astype(np.float32), weights=np.float32(scale * weights)
            )
        return state

    values, weights = np.array([pair for part in parts for pair in part]).T
    for state in [of(parts), merge_running_fishers(of(parts[:cut]), of(parts[cut:]))]:
        np.testing.assert_allclose(
            state.fisher, np.average(values, weights=weights), rtol=1e-5, atol=1e-5 * values.max()
        )
        np.testing.assert_allclose(state.weight, scale * weights.sum(), rtol=1e-5)
        assert state.batches == len(parts)


@pytest.mark.parametrize("first", [True, False])
def test_a_batch_of_weight_0_adds_nothing_whatever_is_in_it(first):
    junk = examples(5)
    junk["x"][:] = np.nan
    before = over([] if first else UNEVEN)
    running = running_fisher(EMPIRICAL)
    after = jax.jit(running.update)(before, PARAMS, junk, weights=jnp.zeros(5))
    chex.assert_trees_all_equal(after[:2], before[:2])
    assert after.batches == before.batches + 1


def test_weight_0_is_no_nan_for_those_who_look_for_them():
    running = running_fisher(EMPIRICAL)
    empty = running.init(PARAMS)
    with jax.debug_nans(True):
        after = running.update(empty, PARAMS, examples(5), weights=[0] * 5)
        merged = merge_running_fishers(empty, after)
    chex.assert_trees_all_equal(merged.fisher, empty.fisher)


def test_merging_with_states_of_no_examples_changes_nothing():
    state, nothing = over(UNEVEN), running_fisher(EMPIRICAL).init(PARAMS)
    chex.assert_trees_all_equal(state, merge_running_fishers(state))
    chex.assert_trees_all_equal(state, merge_running_fishers(nothing, state, nothing))


@pytest.mark.parametrize("kind", ["equal", "random"])
@pytest.mark.parametrize(("x64", "rtol"), [(False, 1e-5), (True, 2e-14)])
def test_ten_thousand_batches_against_exact_sums(kind, x64, rtol):
    """Equal ones give exactly what one does; else rounding is a random walk, sqrt(10,000) long."""
    rng = np.random.default_rng(0)
    fishers = rng.exponential(size=(10_000, 5)) * 10.0 ** np.arange(-10, 15, 5)
    sizes = rng.integers(1, 200, size=10_000)
    if kind == "equal":
        fishers, sizes = np.tile(fishers[0], (10_000, 1)), np.full(10_000, 100)
    with jax.enable_x64(x64):
        params = jnp.zeros(5, float)
        running = running_fisher(lambda params, batch, weights: batch[0])
        steps = jnp.asarray(fishers, float)[:, None], jnp.asarray(sizes, float)[:, None]
        state, _ = jax.lax.scan(
            lambda state, step: (running.update(state, params, step[0], weights=step[1]), None),
            running.init(params),
            steps,
        )
        assert state.weight == sizes.sum() and state.batches == 10_000
        assert state.fisher.dtype == state.weight.dtype == (np.float64 if x64 else np.float32)
    if kind == "equal":
        np.testing.assert_array_equal(state.fisher, np.asarray(steps[0][0, 0]))
    sums = np.array([math.fsum(column * sizes) for column in fishers.T])
    np.testing.assert_allclose(state.fisher, sums / sizes.sum(), rtol=rtol)


@pytest.mark.parametrize("dtype", [bool, int, jnp.bfloat16])
def test_weights_may_have_any_dtype(dtype):
    """Their sum is not rounded to it: 257 is not a bfloat16."""
    running, update = jitted()
    state = update(
        running.init(jnp.zeros([])), jnp.zeros([]), jnp.ones(257), weights=jnp.ones(257, dtype)
    )
    assert state.weight == 257 and state.weight.dtype == jnp.float32


def test_bfloat16_parameters_have_a_float32_fisher():
    params = jax.tree.map(lambda p: p.astype(jnp.bfloat16), PARAMS)
    state = over(UNEVEN, params=params)
    assert {leaf.dtype for leaf in jax.tree.leaves(state.fisher)} == {jnp.dtype("float32")}
    assert_close(state.fisher, whole(params, examples()), rtol=0.05)


# --- Keys -----------------------------------------------------------------------------------------


def test_one_key_draws_other_labels_in_every_batch():
    estimator, key = wpl_jax.sampled_fisher(logits), jax.random.key(3)
    batch = UNEVEN[-1]
    fishers = [
        jax.jit(estimator)(PARAMS, batch, jax.random.fold_in(key, i))["out"] for i in range(3)
    ]
    assert not np.allclose(fishers[0], fishers[1], rtol=0.01)
    looped = over([batch] * 3, estimator, key=key)
    assert_close(looped.fisher["out"], np.mean(fishers, axis=0))
    chex.assert_trees_all_equal(fisher_of_batches(estimator, PARAMS, [batch] * 3, key=key), looped)


# --- Compiled once, donated -----------------------------------------------------------------------


def counted(estimator):
    """The estimator, and the list of how often it is traced."""
    traces = []

    def fisher(*args, **options):
        traces.append(1)
        return estimator(*args, **options)

    return fisher, traces


def padded(batch, n):
    """To ``n`` examples, the last ones junk."""
    missing = n - len(batch["y"])
    x = np.pad(batch["x"], [(0, missing), (0, 0)], constant_values=np.nan)
    weights = np.repeat(np.float32([1, 0]), [n - missing, missing])
    return {"x": x, "y": np.pad(batch["y"], (0, missing)), "weight": weights}


def test_is_compiled_once_if_the_last_batch_is_padded():
    batches = [padded(batch, 7) for batch in batches_of(examples(), [7, 7, 7, 3])]
    estimator, traces = counted(EMPIRICAL)
    running = running_fisher(estimator)
    update = jax.jit(running.update, donate_argnums=0)
    state = running.init(PARAMS)
    for batch in batches:
        state = update(state, PARAMS, batch, weights=batch["weight"])
    assert len(traces) == update._cache_size() == 1
    assert_close(state.fisher, whole(PARAMS, examples()))
    assert state.weight == N

    def weights_of(batch):
        return batch["weight"]

    for _ in range(2):  # nor is the second call
        again = fisher_of_batches(estimator, PARAMS, batches, weights_of=weights_of)
        chex.assert_trees_all_equal(again, state)
    assert len(traces) == 2


def test_is_compiled_once_a_shape():
    estimator, traces = counted(EMPIRICAL)
    fisher_of_batches(estimator, PARAMS, batches_of(examples(), [7, 7, 7, 3]))
    assert len(traces) == 2


@pytest.mark.parametrize("x64", [False, True])
def test_the_state_is_donated_and_the_parameters_are_not(x64):
    """Warnings are errors here: of a donated buffer that is not used, too."""
    with jax.enable_x64(x64):
        params = {"w": jnp.zeros(3), "scale": jnp.zeros([]), "half": jnp.zeros(2, jnp.bfloat16)}
        running = running_fisher(lambda params, batch: jax.tree.map(jnp.ones_like, params))
        update = jax.jit(running.update, donate_argnums=0)
        states = [running.init(params)]
        for _ in range(3):
            states.append(update(states[-1], params, jnp.ones(4)))
        assert all(leaf.is_deleted() for leaf in jax.tree.leaves(states[:-1]))
        assert not any(leaf.is_deleted() for leaf in jax.tree.leaves((params, states[-1])))


# --- The convenience ------------------------------------------------------------------------------


def test_the_convenience_is_the_loop():
    by_call = fisher_of_batches(EMPIRICAL, PARAMS, iter(UNEVEN))
    chex.assert_trees_all_equal(by_call, over(UNEVEN))


def test_batches_may_be_tuples_or_single_arrays():
    def nll_of_pair(params, example):
        return nll(params, {"x": example[0], "y": example[1]})

    pairs = [(batch["x"], batch["y"]) for batch in UNEVEN]
    state = fisher_of_batches(wpl_jax.empirical_fisher(nll_of_pair), PARAMS, pairs)
    assert_close(state.fisher, whole(PARAMS, examples()))
    squares = wpl_jax.empirical_fisher(lambda w, x: w * x)
    state = fisher_of_batches(squares, jnp.array(1.0), [np.float32([1, 2]), np.float32([4])])
    assert state.fisher == 7


def test_goes_on_from_a_state_which_stays_valid():
    half = fisher_of_batches(EMPIRICAL, PARAMS, UNEVEN[:2])
    rest = itertools.islice(UNEVEN, int(half.batches), None)
    resumed = fisher_of_batches(EMPIRICAL, PARAMS, rest, state=half)
    chex.assert_trees_all_equal(resumed, over(UNEVEN))
    assert half.weight == 8
    chex.assert_trees_all_equal(fisher_of_batches(EMPIRICAL, PARAMS, [], state=resumed), resumed)


def test_takes_the_state_of_an_nnx_module():
    module = nnx.Linear(3, 2, rngs=nnx.Rngs(0))
    graph, params = nnx.split(module)
    estimator = wpl_jax.exact_fisher(lambda params, e: nnx.merge(graph, params)(e["x"]))
    state = fisher_of_batches(estimator, params, UNEVEN)
    assert_close(state.fisher, jax.jit(estimator)(params, examples()))
    tx = wpl_jax.add_plasticity(1.0)
    protected = wpl_jax.consolidate(tx.init(params), params, state.fisher)
    chex.assert_trees_all_equal(jax.tree.leaves(protected.fisher), jax.tree.leaves(state.fisher))


def test_what_is_hidden_in_the_parameters_stays_hidden():
    params = {"w": jnp.ones(3), "none": None, "masked": optax.MaskedNode()}
    squares = wpl_jax.empirical_fisher(lambda params, x: params["w"] @ x)
    state = fisher_of_batches(squares, params, [np.ones((2, 3), np.float32)])
    assert jax.tree.structure(state.fisher) == jax.tree.structure(params)


# --- Saved and resumed ----------------------------------------------------------------------------


def saved_by_wpl_jax(folder, state):
    with Checkpoints(folder, {}) as checkpoints:
        checkpoints.save(int(state.batches), state)
        return checkpoints.restore(jax.eval_shape(running_fisher(EMPIRICAL).init, PARAMS))


def saved_by_orbax(folder, state):
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(folder / "state", state)
        checkpointer.wait_until_finished()
        return checkpointer.restore(
            folder / "state", jax.eval_shape(running_fisher(EMPIRICAL).init, PARAMS)
        )


@pytest.mark.parametrize("save_and_restore", [saved_by_wpl_jax, saved_by_orbax])
def test_is_resumed_bit_for_bit(tmp_path, save_and_restore):
    estimator, key = wpl_jax.sampled_fisher(logits), jax.random.key(0)
    half = fisher_of_batches(estimator, PARAMS, UNEVEN[:2], key=key)
    restored = save_and_restore(tmp_path, half)
    assert isinstance(restored, RunningFisherState)
    chex.assert_trees_all_equal(restored, half)
    resumed = fisher_of_batches(estimator, PARAMS, UNEVEN[2:], key=key, state=restored)
    uninterrupted = fisher_of_batches(estimator, PARAMS, UNEVEN, key=key)
    chex.assert_trees_all_equal(resumed, uninterrupted)


# --- Transformations, devices, processes ----------------------------------------------------------


def test_works_under_scan_and_vmap():
    stacked = jax.tree.map(lambda a: a.reshape(4, 6, *a.shape[1:]), examples())
    running = running_fisher(EMPIRICAL)

    @jax.jit
    @jax.vmap
    def scanned(params):
        def step(state, batch):
            return running.update(state, params, batch), None

        return jax.lax.scan(step, running.init(params), stacked)[0]

    both = jax.tree.map(lambda p: jnp.stack([p, 2 * p]), PARAMS)
    states = scanned(both)
    for i in range(2):
        params, fisher = (jax.tree.map(lambda a, i=i: a[i], t) for t in (both, states.fisher))
        assert_close(fisher, whole(params, examples()))


@pytest.mark.devices(8)
@pytest.mark.parametrize("split_params", [False, True])
def test_batches_may_be_split_over_devices(split_params):
    """And the parameters too; compiled once, and the Fisher is where they are."""
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    split = jax.NamedSharding(mesh, jax.P("data"))
    params = {"w": jax.random.normal(jax.random.key(0), (16,)), "b": jnp.ones([])}
    placed = jax.device_put(
        params, {"w": split if split_params else everywhere(), "b": everywhere()}
    )
    squares = wpl_jax.empirical_fisher(lambda p, x: jnp.tanh(p["w"] @ x + p["b"]))
    batches = np.random.default_rng(0).normal(size=(3, 32, 16)).astype(np.float32)
    running = running_fisher(squares)
    update = jax.jit(running.update, donate_argnums=0)
    state = running.init(placed)
    for batch in batches:
        state = update(state, placed, jax.device_put(batch, split))
    assert update._cache_size() == 1
    for fisher, param in zip(*map(jax.tree.leaves, (state.fisher, placed)), strict=True):
        assert fisher.sharding.is_equivalent_to(param.sharding, param.ndim)
    one = over(batches, squares, params)
    assert_close(jax.device_get(state.fisher), one.fisher)
    assert (state.weight, state.batches) == (96, 3)


def one_of_two_processes(coordinator, number):
    """What each of two processes runs: its own batches, merged; and parts of the same batches."""
    from jax.experimental import multihost_utils

    number = int(number)
    jax.distributed.initialize(coordinator, 2, number, initialization_timeout=60)
    own = fisher_of_batches(EMPIRICAL, PARAMS, UNEVEN[number::2])
    states = multihost_utils.process_allgather(own)
    merged = merge_running_fishers(
        *(jax.tree.map(lambda a, i=i: a[i], states) for i in range(jax.process_count()))
    )

    mesh = jax.make_mesh((4,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    split, whole = (jax.NamedSharding(mesh, spec) for spec in (jax.P("data"), jax.P()))
    params = jax.tree.map(lambda p: jax.make_array_from_process_local_data(whole, p), PARAMS)
    halves = (
        jax.tree.map(
            lambda a: jax.make_array_from_process_local_data(split, np.split(a, 2)[number]), batch
        )
        for batch in batches_of(examples(), [8, 12, 4])
    )
    together = fisher_of_batches(EMPIRICAL, params, halves)
    print(
        json.dumps(
            [
                [np.asarray(leaf).tolist() for leaf in jax.tree.leaves(state)]
                for state in (merged, together)
            ]
        )
    )


def test_two_processes_give_what_one_does():
    with two_processes.reporting("test_fisher_running", timeout=300) as reports:
        found = reports()
    expected = [*jax.tree.leaves(whole(PARAMS, examples())), np.float32(N)]
    for merged, together in found:
        assert (merged.pop(), together.pop()) == (4, 3)
        for state in (merged, together):
            assert_close([np.array(leaf) for leaf in state], expected)


# --- Errors ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("batches", [[], iter([])])
@pytest.mark.parametrize("goes_on", [False, True])
def test_refuses_no_batches(batches, goes_on):
    state = running_fisher(EMPIRICAL).init(PARAMS) if goes_on else None
    with pytest.raises(ValueError, match="batches is empty, .* make it anew"):
        fisher_of_batches(EMPIRICAL, PARAMS, batches, state=state)


def test_refuses_other_parameters():
    state = over(UNEVEN)
    for params, message in [
        ({"out": PARAMS["out"]}, r"params has no leaf at \['hidden'\]\['kernel'\]"),
        (PARAMS | {"out": jnp.ones((4, 5))}, r"params has shape \(4, 5\) at \['out'\]"),
    ]:
        with pytest.raises(ValueError, match=message):
            fisher_of_batches(EMPIRICAL, params, UNEVEN, state=state)


def test_refuses_results_that_are_not_like_the_parameters():
    running = running_fisher(lambda params, batch: {"w": jnp.ones(2), "b": jnp.ones([])})
    params = {"w": jnp.ones(2)}
    with pytest.raises(ValueError, match=r"fisher has a leaf at \['b'\]"):
        running.update(running.init(params), params, jnp.ones(3))
    other = running.init({"w": jnp.ones(3)})
    with pytest.raises(ValueError, match=r"fisher has shape .* where the first state's has \(2,\)"):
        merge_running_fishers(running.init(params), other)


def test_refuses_batches_without_one_leading_axis():
    with pytest.raises(ValueError, match="same leading axis"):
        fisher_of_batches(EMPIRICAL, PARAMS, [examples() | {"y": np.zeros(3, int)}])


@pytest.mark.parametrize("batch", [{}, np.ones([])], ids=["empty", "scalar"])
def test_refuses_batches_without_examples(batch):
    running = running_fisher(EMPIRICAL)
    with pytest.raises(ValueError, match="same leading axis of one or more examples"):
        running.update(running.init(PARAMS), PARAMS, batch)


def test_refuses_weights_of_another_shape():
    with pytest.raises(ValueError, match=r"weights must have shape \(24,\)"):
        fisher_of_batches(EMPIRICAL, PARAMS, [examples()], weights_of=lambda batch: jnp.ones(3))


def test_refuses_what_is_no_state():
    states = [running_fisher(EMPIRICAL).init(PARAMS)] * 2
    with pytest.raises(TypeError, match=r"\(\*states\), got a list"):
        merge_running_fishers(states)
