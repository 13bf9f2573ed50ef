"""MAS against per-example gradients and closed forms; SI against NumPy and the fall of the loss."""

import functools

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from hypothesis import strategies as st
from jax.test_util import check_grads

import wpl_jax
from wpl_jax import PathIntegralState


def normal(seed, *shape):
    """In NumPy: what is done with it there, XLA need not compile."""
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def assert_close(tree, expected, rtol=1e-5, atol=0.0):
    assert jax.tree.structure(tree) == jax.tree.structure(expected)
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=rtol, atol=atol), tree, expected
    )


def mesh(axis_type):
    return jax.make_mesh((8,), ("data",), axis_types=(axis_type,))


# --- Memory Aware Synapses ------------------------------------------------------------------------

PARAMS = {"w": normal(0, 3, 4), "b": normal(1, 4), "out": normal(2, 4, 2)}
BATCH = {"x": normal(3, 16, 3)}


def output(params, example):
    """Of one example, a tree."""
    hidden = jnp.tanh(example["x"] @ params["w"] + params["b"])
    return {"logits": hidden @ params["out"], "norm": jnp.sum(hidden**2)}


@jax.jit
@jax.grad
def gradient_of_squared_norm(params, example):
    out = output(params, example)
    return jnp.sum(out["logits"] ** 2) + out["norm"] ** 2


def written_out(params, batch, weights=None):
    """Mean over examples of |d ||output||**2 / d params|, by a loop."""
    n = len(batch["x"])
    weights = np.ones(n) if weights is None else np.asarray(weights)
    total = jax.tree.map(np.zeros_like, params)
    for i in range(n):
        grads = gradient_of_squared_norm(params, jax.tree.map(lambda x, i=i: x[i], batch))
        total = jax.tree.map(lambda t, g, w=weights[i]: t + w * np.abs(g), total, grads)
    return jax.tree.map(lambda t: t / weights.sum(), total)


@pytest.mark.parametrize("promotion", ["standard", "strict"])
def test_a_path_in_a_narrow_dtype_is_that_of_the_stored_weights(promotion):
    """In one program, which may leave out that they are rounded between its steps."""
    tx, params = wpl_jax.synaptic_intelligence(optax.sgd(0.0123)), jnp.linspace(1, 2, 7)

    def steps(state, params):
        for _ in range(4):
            updates, state = tx.update(jnp.ones(7, jnp.bfloat16), state, params)
            params = optax.apply_updates(params, updates)
        return state, params

    start = params.astype(jnp.bfloat16)
    with jax.numpy_dtype_promotion(promotion):
        state, end = jax.jit(steps)(tx.init(start), start)
        wpl_jax.path_importance(state, end)
    moved = start.astype(float) - end.astype(float)
    np.testing.assert_allclose(state.path_integral, moved, rtol=1e-6)

    small = jnp.array([5e-5], jnp.float16)  # which is no normal number of that dtype
    tx = wpl_jax.synaptic_intelligence(optax.sgd(0.0))
    _, state = tx.update(jnp.ones(1, jnp.float16), tx.init(small), small)
    assert state.path_integral == 0


@pytest.mark.parametrize("jit", [False, True])
@pytest.mark.parametrize("size", [None, 1, 5, 16, 100])
def test_mas_is_the_mean_absolute_gradient_of_single_examples(size, jit):
    importance = wpl_jax.mas_importance(output, size)
    importance = jax.jit(importance) if jit else importance
    assert_close(importance(PARAMS, BATCH), written_out(PARAMS, BATCH))


def test_mas_takes_the_absolute_value_before_the_mean():
    """Gradients of opposite signs do not cancel."""
    importance = wpl_jax.mas_importance(lambda w, x: w[0] + x * w[1])
    batch = jnp.array([2.0, -2.0])
    np.testing.assert_allclose(importance(jnp.array([0.0, 1.0]), batch), [4.0, 8.0])


@hypothesis.given(
    st.integers(1, 5),
    st.integers(1, 4),
    st.integers(1, 9),
    st.integers(1, 10),
    st.integers(0, 2**31),
)
@hypothesis.settings(deadline=None, max_examples=8)
def test_mas_of_a_linear_model_in_closed_form(inputs, outputs, n, size, seed):
    """||W x||**2 has the gradient 2 (W x) x'."""
    rng = np.random.default_rng(seed)
    weights, x = rng.normal(size=(outputs, inputs)), rng.normal(size=(n, inputs))
    importance = jax.jit(wpl_jax.mas_importance(lambda w, x: w @ x, size))(
        weights.astype(np.float32), x.astype(np.float32)
    )
    y = x @ weights.T
    expected = np.mean(np.abs(2 * y[:, :, None] * x[:, None, :]), axis=0)
    np.testing.assert_allclose(importance, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("size", [None, 3])
def test_mas_weights_its_examples_and_padding_does_not_count(size):
    weights = np.array([0.0, 2.0, 0.5, *[1.0] * 12, 0.0], np.float32)
    expected = written_out(PARAMS, BATCH, weights)
    padded = {"x": np.where(weights[:, None] == 0, np.nan, BATCH["x"])}
    importance = jax.jit(wpl_jax.mas_importance(output, size))
    assert_close(importance(PARAMS, padded, weights), expected)


@pytest.mark.parametrize("of", [list, np.array])
def test_mas_with_weights_larger_than_an_int32(of):
    importance, large = wpl_jax.mas_importance(output), of([3 * 10**9] * 8 + [1] * 8)
    assert_close(importance(PARAMS, BATCH, large), written_out(PARAMS, BATCH, large))


def test_mas_memory_stays_within_the_bound():
    """Of ever more examples: as for a bound of no more than one of them."""
    params = normal(0, 64, 64)

    def needed(n, **bounds):
        importance = jax.jit(wpl_jax.mas_importance(lambda w, x: jnp.tanh(x @ w), **bounds))
        compiled = importance.lower(params, jnp.ones((n, 64))).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    assert needed(512, microbatch_size=512) > 512 * params.nbytes / 2
    assert needed(512, max_bytes=2**20) < 2**20 + 4 * params.nbytes


def test_mas_of_bfloat16_is_in_float32():
    params, batch = jax.tree.map(lambda x: x.astype(jnp.bfloat16), (PARAMS, BATCH))
    importance = jax.jit(wpl_jax.mas_importance(output))(params, batch)
    assert all(x.dtype == jnp.float32 for x in jax.tree.leaves(importance))
    assert_close(importance, written_out(PARAMS, BATCH), rtol=0.1, atol=0.1)


def test_mas_under_vmap():
    many = jax.tree.map(lambda x: np.stack([x, 2 * x]), PARAMS)
    importances = jax.jit(jax.vmap(wpl_jax.mas_importance(output, 3), (0, None)))(many, BATCH)
    second = jax.tree.map(lambda x: x[1], importances)
    assert_close(second, written_out(jax.tree.map(lambda x: 2 * x, PARAMS), BATCH), rtol=1e-4)


@pytest.mark.devices(8)
@pytest.mark.parametrize("axis_type", [jax.sharding.AxisType.Auto, jax.sharding.AxisType.Explicit])
def test_mas_of_a_batch_on_eight_devices(axis_type):
    over = mesh(axis_type)
    with jax.set_mesh(over):
        sharded = jax.jit(wpl_jax.mas_importance(output, 8))(
            jax.device_put(PARAMS, jax.NamedSharding(over, jax.P())),
            jax.device_put(BATCH, jax.NamedSharding(over, jax.P("data"))),
        )
        assert len(sharded["w"].devices()) == 8
    assert_close(jax.device_get(sharded), written_out(PARAMS, BATCH))


@pytest.mark.devices(8)
def test_mas_in_shard_map_is_that_of_a_devices_own_examples():
    importance = wpl_jax.mas_importance(output)

    def local(params, batch):
        return jax.tree.map(lambda x: jax.lax.pmean(x, "data"), importance(params, batch))

    mapped = jax.shard_map(
        local,
        mesh=mesh(jax.sharding.AxisType.Auto),
        in_specs=(jax.P(), jax.P("data")),
        out_specs=jax.P(),
    )
    assert_close(jax.jit(mapped)(PARAMS, BATCH), written_out(PARAMS, BATCH))


def test_mas_over_a_data_loader():
    importance = wpl_jax.mas_importance(output)
    loader = [{"x": BATCH["x"][:10]}, {"x": BATCH["x"][10:]}]
    state = wpl_jax.fisher_of_batches(importance, PARAMS, loader)
    assert_close(state.fisher, written_out(PARAMS, BATCH))
    running = wpl_jax.running_fisher(importance)
    state = running.update(running.init(PARAMS), PARAMS, BATCH, weights=jnp.arange(16.0))
    assert_close(state.fisher, written_out(PARAMS, BATCH, np.arange(16.0)))


def test_mas_of_complex_outputs():
    importance = wpl_jax.mas_importance(lambda w, x: w * x)(
        jnp.array(2.0), jnp.array([3 + 4j], jnp.complex64)
    )
    np.testing.assert_allclose(importance, 2 * 2 * 25, rtol=1e-6)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: wpl_jax.mas_importance(output, 0), ValueError, "microbatch_size"),
        (lambda: wpl_jax.mas_importance(output, max_bytes=0), ValueError, "max_bytes"),
        (
            lambda: wpl_jax.mas_importance(output)({"w": jnp.ones(3, int)}, BATCH),
            TypeError,
            "floating-point to have gradients, got int32 at .*w",
        ),
        (
            lambda: wpl_jax.mas_importance(lambda p, x: (p["w"] @ x).argmax())(
                {"w": jnp.eye(2)}, jnp.ones((3, 2))
            ),
            TypeError,
            "got int32 at the root: return logits",
        ),
        (
            lambda: wpl_jax.mas_importance(lambda p, x: None)(PARAMS, BATCH),
            ValueError,
            "array or a tree of them, got None",
        ),
        (
            lambda: wpl_jax.mas_importance(output)(PARAMS, BATCH, jnp.ones(3)),
            ValueError,
            r"shape \(16,\)",
        ),
        (
            lambda: wpl_jax.mas_importance(output)(PARAMS, BATCH, jnp.full(16, -1.0)),
            ValueError,
            "negative",
        ),
        (
            lambda: wpl_jax.mas_importance(output)(PARAMS, {**BATCH, "y": jnp.ones(3)}),
            ValueError,
            "leading axis",
        ),
    ],
)
def test_mas_refuses(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_mas_warns_of_noise_that_all_examples_share():
    def dropped(params, example):
        keep = jax.random.bernoulli(example["key"], shape=(3,))
        return (keep * example["x"]) @ params["w"]

    keys = jax.random.split(jax.random.key(0), 16)
    importance = wpl_jax.mas_importance(dropped)({"w": PARAMS["w"]}, {**BATCH, "key": keys})
    assert (importance["w"] > 0).any()  # without a warning: each example has a key of its own
    one = wpl_jax.mas_importance(lambda p, example: dropped(p, {**example, "key": keys[0]}))
    with pytest.warns(UserWarning, match=r"output_fn draws random numbers .*split\(key, n\)"):
        one({"w": PARAMS["w"]}, BATCH)


# --- Synaptic Intelligence ------------------------------------------------------------------------

CURVATURE = jnp.array([3.0, 1.0, 0.0])
TARGET = jnp.array([1.0, -2.0, 5.0])
START = {"w": jnp.zeros(3)}


def loss(params):
    """A quadratic that does not depend on the last weight."""
    return 0.5 * jnp.sum(CURVATURE * (params["w"] - TARGET) ** 2)


def run(tx, params, steps, opt_state=None, loss=loss, gradient=jax.grad):
    @jax.jit
    def many(params, opt_state):
        def step(carry, _):
            params, opt_state = carry
            updates, opt_state = tx.update(gradient(loss)(params), opt_state, params)
            return (optax.apply_updates(params, updates), opt_state), None

        return jax.lax.scan(step, (params, opt_state), length=steps)[0]

    return many(params, tx.init(params) if opt_state is None else opt_state)


@pytest.mark.parametrize("momentum", [0.0, 0.5])
def test_the_path_integral_is_the_fall_of_the_loss_to_first_order(momentum):
    """Equation 3 of the paper: the difference is proportional to the learning rate."""
    errors = []
    for halvings in range(4):
        rate = 0.04 / 2**halvings
        tx = wpl_jax.synaptic_intelligence(optax.sgd(rate, momentum))
        params, opt_state = run(tx, START, 25 * 2**halvings)
        fell = loss(START) - loss(params)
        assert fell > 2
        errors.append(abs(float(jnp.sum(opt_state.path_integral["w"]) - fell)))
    order = np.log2(np.array(errors[:-1]) / np.array(errors[1:]))
    np.testing.assert_allclose(order, 1, atol=0.15)
    assert errors[-1] < 0.05


@pytest.mark.parametrize("proximal", [False, True])
def test_synaptic_intelligence_against_numpy(proximal):
    """Two tasks by momentum SGD with the plasticity term inside, written out in float64."""
    rate, momentum, strength, damping, steps = 0.05, 0.6, 3.0, 0.01, 12
    a, b = np.array([3.0, 1.0, 0.5]), np.array([1.0, 2.0, 0.0])
    targets = np.array([1.0, -2.0, 0.5]), np.array([-1.0, 1.0, 3.0])
    if proximal:
        inner = optax.chain(optax.sgd(rate, momentum), wpl_jax.proximal_plasticity(strength, rate))
    else:
        inner = optax.chain(wpl_jax.add_plasticity(strength), optax.sgd(rate, momentum))
    tx = wpl_jax.synaptic_intelligence(inner)
    params = {"w": jnp.zeros(3)}
    opt_state = tx.init(params)
    w, trace, anchor, total = np.zeros(3), np.zeros(3), np.zeros(3), np.zeros(3)
    for curvature, target in zip((a, b), targets, strict=True):

        def task(params, curvature=curvature, target=target):
            return 0.5 * jnp.sum(jnp.asarray(curvature) * (params["w"] - jnp.asarray(target)) ** 2)

        params, opt_state = run(tx, params, steps, opt_state, task)
        importance, opt_state = wpl_jax.path_importance(opt_state, params, damping=damping)
        opt_state = wpl_jax.consolidate(opt_state, params, importance, decay=1.0)

        start, omega = w.copy(), np.zeros(3)
        for _ in range(steps):
            gradient = curvature * (w - target)
            pull = 0 if proximal else strength * total * (w - anchor)
            trace = momentum * trace + gradient + pull
            new = w - rate * trace
            if proximal:
                c = rate * strength * total
                new = (new + c * anchor) / (1 + c)
            omega -= gradient * (new - w)
            w = new
        expected = np.maximum(omega, 0) / ((w - start) ** 2 + damping)
        total, anchor = total + expected, w.copy()
        np.testing.assert_allclose(importance["w"], expected, rtol=2e-4, atol=1e-5)
    np.testing.assert_allclose(params["w"], w, rtol=1e-4)
    np.testing.assert_allclose(optax.tree.get(opt_state, "fisher")["w"], total, rtol=2e-4)
    np.testing.assert_array_equal(optax.tree.get(opt_state, "anchor")["w"], params["w"])


def test_importance_of_a_quadratic_is_half_its_curvature():
    """So that a published c and a strength of 2 c are the same penalty, the loss of the task."""
    tx = wpl_jax.synaptic_intelligence(optax.sgd(1e-3))
    params, opt_state = run(tx, START, 12_000)
    importance, opt_state = wpl_jax.path_importance(opt_state, params, damping=1e-6)
    np.testing.assert_allclose(importance["w"], CURVATURE / 2, rtol=2e-3)
    before = {"w": params["w"] + jnp.array([0.3, -0.2, 4.0])}
    opt_state = (opt_state, wpl_jax.add_plasticity(2.0).init(params))
    opt_state = wpl_jax.consolidate(opt_state, params, importance)
    penalty = wpl_jax.plasticity_loss(opt_state, before, strength=2.0)
    np.testing.assert_allclose(penalty, loss(before) - loss(params), rtol=5e-3)


@hypothesis.given(
    st.lists(st.sampled_from([(0, 2), (1, 3), (3, 2), (5,)]), min_size=1, max_size=3),
    st.integers(0, 2**31),
)
@hypothesis.settings(deadline=None, max_examples=5)
def test_the_updates_and_the_inner_state_are_the_inner_optimisers(shapes, seed):
    rng = np.random.default_rng(seed)

    def tree():
        return [rng.normal(size=shape).astype(np.float32) for shape in shapes]

    inner = optax.adam(0.1)
    tx = wpl_jax.synaptic_intelligence(inner)
    params, inner_state = tree(), None
    opt_state = tx.init(params)
    inner_state = inner.init(params)
    expected = [np.zeros(shape) for shape in shapes]
    for _ in range(3):
        grads = tree()
        updates, opt_state = tx.update(grads, opt_state, params)
        wanted, inner_state = inner.update(grads, inner_state, params)
        jax.tree.map(np.testing.assert_array_equal, updates, wanted)
        jax.tree.map(np.testing.assert_array_equal, opt_state.inner_state, inner_state)
        new = optax.apply_updates(params, updates)
        expected = [
            e - np.asarray(g) * (np.asarray(n) - np.asarray(p))
            for e, g, n, p in zip(expected, grads, new, params, strict=True)
        ]
        params = new
    for found, wanted in zip(opt_state.path_integral, expected, strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)


def test_what_went_against_the_gradient_is_not_important():
    """Momentum may carry a weight uphill: its path integral is negative, its importance 0."""
    tx = wpl_jax.synaptic_intelligence(optax.sgd(1.0))
    opt_state = tx.init(START)._replace(path_integral={"w": jnp.array([-1.0, 2.0, 0.0])})
    importance, _ = wpl_jax.path_importance(opt_state, {"w": jnp.ones(3)}, damping=1.0)
    np.testing.assert_allclose(importance["w"], [0.0, 1.0, 0.0])


@pytest.mark.parametrize("jit", [lambda f: f, jax.jit], ids=["eager", "jit"])
def test_what_has_not_moved_is_not_important(jit):
    """Also where the damping is too small for a float32 to hold."""
    opt_state = wpl_jax.synaptic_intelligence(optax.sgd(1.0)).init(START)
    importance, _ = jit(wpl_jax.path_importance)(opt_state, START, damping=1e-40)
    np.testing.assert_array_equal(importance["w"], np.zeros(3))


@pytest.mark.parametrize("damping", [3 * 10**9, np.int64(3 * 10**9), np.array(3 * 10**9)])
def test_a_damping_larger_than_an_int32(damping):
    opt_state = wpl_jax.synaptic_intelligence(optax.sgd(1.0)).init(START)
    opt_state = opt_state._replace(path_integral={"w": jnp.ones(3)})
    importance, _ = wpl_jax.path_importance(opt_state, START, damping=damping)
    np.testing.assert_allclose(importance["w"], np.full(3, 1 / 3e9), rtol=1e-6)


def test_the_next_path_begins_where_this_one_ends():
    tx = wpl_jax.synaptic_intelligence(optax.sgd(0.1, 0.9))
    params, opt_state = run(tx, START, 5)
    _, begun = jax.jit(wpl_jax.path_importance)(opt_state, params)
    np.testing.assert_array_equal(begun.start["w"], params["w"])
    np.testing.assert_array_equal(begun.path_integral["w"], jnp.zeros(3))
    assert begun.start["w"] is not params["w"]
    jax.tree.map(np.testing.assert_array_equal, begun.inner_state, opt_state.inner_state)
    # Nothing of the first path is in the second.
    fresh = tx.init(params)._replace(inner_state=opt_state.inner_state)
    jax.tree.map(
        np.testing.assert_array_equal, run(tx, params, 5, begun), run(tx, params, 5, fresh)
    )


def test_one_compiled_step_serves_all_tasks_and_may_be_donated_everything():
    tx = wpl_jax.synaptic_intelligence(
        optax.chain(wpl_jax.add_plasticity(1.0), optax.sgd(0.1, 0.9))
    )
    traces = []

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def step(params, opt_state):
        traces.append(1)
        updates, opt_state = tx.update(jax.grad(loss)(params), opt_state, params)
        return optax.apply_updates(params, updates), opt_state

    @functools.partial(jax.jit, donate_argnums=1)
    def next_task(params, opt_state):
        traces.append(1)
        importance, opt_state = wpl_jax.path_importance(opt_state, params)
        return wpl_jax.consolidate(opt_state, params, importance, decay=1.0)

    params = jax.tree.map(jnp.copy, START)
    opt_state = tx.init(params)
    shapes = jax.tree.map(jax.typeof, opt_state)
    for _ in range(3):
        for _ in range(3):
            params, opt_state = step(params, opt_state)
        opt_state = next_task(params, opt_state)
        assert jax.tree.map(jax.typeof, opt_state) == shapes
    assert len(traces) == 2
    assert optax.tree.get(opt_state, "consolidations") == 3


def test_the_start_is_a_copy():
    params = jax.tree.map(jnp.copy, START)
    opt_state = wpl_jax.synaptic_intelligence(optax.sgd(0.1)).init(params)
    jax.tree.map(lambda x: x.delete(), params)
    np.testing.assert_array_equal(opt_state.start["w"], START["w"])


@pytest.mark.parametrize("jit", [False, True])
def test_the_movement_is_the_one_after_rounding(jit):
    """A bfloat16 of 1 does not move by 1e-4, though XLA, left alone, sees it do so."""
    tx = wpl_jax.synaptic_intelligence(optax.sgd(1.0))
    params = {"w": jnp.ones(3, jnp.bfloat16)}
    grads = {"w": jnp.array([1e-4, 0.3, -1e-2], jnp.bfloat16)}

    def step(opt_state):
        updates, opt_state = tx.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state

    new, opt_state = (jax.jit(step) if jit else step)(tx.init(params))
    moved = np.asarray(new["w"], np.float32) - 1
    assert moved[0] == 0 and np.all(moved[1:] != 0)
    path = opt_state.path_integral["w"]
    assert path.dtype == jnp.float32 and opt_state.start["w"].dtype == jnp.bfloat16
    np.testing.assert_allclose(path, -np.asarray(grads["w"], np.float32) * moved, rtol=1e-6)


def test_a_step_that_is_refused_adds_nothing():
    inner = optax.apply_if_finite(optax.sgd(0.1), max_consecutive_errors=3)
    tx = wpl_jax.synaptic_intelligence(inner)
    opt_state = tx.init(START)
    _, opt_state = tx.update({"w": jnp.array([1.0, jnp.nan, jnp.inf])}, opt_state, START)
    np.testing.assert_array_equal(opt_state.path_integral["w"], jnp.zeros(3))


def test_derivatives_go_through_an_update():
    tx = wpl_jax.synaptic_intelligence(optax.sgd(0.1))

    def path(grads, params):
        return tx.update({"w": grads}, tx.init({"w": params}), {"w": params})[1].path_integral["w"]

    check_grads(path, (jnp.array([0.5, -1.0, 0.0]), jnp.array([0.1, 0.2, 0.3])), 1, rtol=1e-2)


def test_complex_weights_count_as_pairs_of_real_ones():
    def modulus(params):
        return jnp.sum(jnp.abs(params - jnp.array([1 + 2j, -1j])) ** 2)

    def descent(loss):  # needs the conjugate of JAX's gradient
        return lambda params: jnp.conj(jax.grad(loss)(params))

    tx = wpl_jax.synaptic_intelligence(optax.sgd(1e-3))
    start = jnp.array([0.5 + 0j, 1.0])
    params, opt_state = run(tx, start, 200, loss=modulus, gradient=descent)
    assert opt_state.path_integral.dtype == jnp.float32
    fell = modulus(start) - modulus(params)
    np.testing.assert_allclose(jnp.sum(opt_state.path_integral), fell, rtol=1e-2)
    importance, _ = wpl_jax.path_importance(opt_state, params, damping=0.1)
    moved = np.abs(np.asarray(params - start)) ** 2
    np.testing.assert_allclose(importance, opt_state.path_integral / (moved + 0.1), rtol=1e-5)


def test_a_mask_reaches_weight_plasticity_inside():
    nll = lambda params, x: 0.5 * (params["w"] @ x) ** 2  # noqa: E731
    tx = wpl_jax.synaptic_intelligence(
        wpl_jax.weight_plasticity(optax.sgd(0.1), nll=nll, strength=1.0)
    )
    params, batch = {"w": jnp.ones(3)}, jnp.eye(3)
    mask = {"w": jnp.array([True, False, True])}
    updates, opt_state = tx.update(
        {"w": jnp.ones(3)}, tx.init(params), params, mask=mask, batch=batch, consolidate=True
    )
    np.testing.assert_allclose(updates["w"], [-0.1, 0.0, -0.1])
    np.testing.assert_allclose(opt_state.path_integral["w"], [0.1, 0.0, 0.1], rtol=1e-5)
    assert optax.tree.get(opt_state, "consolidations") == 1
    wpl_jax.path_importance(opt_state, optax.apply_updates(params, updates))


TWO = {"a": jnp.zeros(2), "b": jnp.zeros(3)}


@pytest.mark.parametrize(
    "wrap",
    [
        lambda tx: optax.chain(tx),
        lambda tx: optax.masked(tx, {"a": True, "b": False}),
        lambda tx: optax.partition(
            {"path": tx, "other": optax.sgd(1.0)}, {"a": "path", "b": "other"}
        ),
        lambda tx: optax.MultiSteps(tx, 1),
        lambda tx: optax.named_chain(("only", tx)),
    ],
)
def test_the_path_is_found_wherever_it_is(wrap):
    tx = wrap(
        wpl_jax.synaptic_intelligence(optax.chain(wpl_jax.add_plasticity(1.0), optax.sgd(1.0)))
    )
    opt_state = tx.init(TWO)
    updates, opt_state = tx.update(jax.tree.map(jnp.ones_like, TWO), opt_state, TWO)
    params = {"a": updates["a"], "b": TWO["b"]}  # b's importance, where it has one, is 0/damping
    importance, opt_state = wpl_jax.path_importance(opt_state, params, damping=1.0)
    np.testing.assert_allclose(importance["a"], [0.5, 0.5])
    # It is what consolidate takes, hidden parts and all.
    opt_state = wpl_jax.consolidate(opt_state, params, importance, decay=1.0)
    (found,) = (
        x
        for x in jax.tree.leaves(opt_state, is_leaf=lambda x: isinstance(x, PathIntegralState))
        if isinstance(x, PathIntegralState)
    )
    np.testing.assert_array_equal(found.start["a"], params["a"])
    np.testing.assert_allclose(optax.tree.get(found, "fisher")["a"], [0.5, 0.5])


def test_updates_may_be_none():
    frozen = optax.GradientTransformation(
        lambda params: optax.EmptyState(), lambda u, s, p=None: ({"a": u["a"], "b": None}, s)
    )
    tx = wpl_jax.synaptic_intelligence(frozen)
    updates, opt_state = tx.update({"a": jnp.ones(2), "b": None}, tx.init(TWO), TWO)
    assert updates["b"] is None
    np.testing.assert_array_equal(opt_state.path_integral["b"], jnp.zeros(3))
    np.testing.assert_array_equal(opt_state.path_integral["a"], -jnp.ones(2))


def test_a_multi_step_has_the_mean_gradient_of_its_batches():
    tx = optax.MultiSteps(wpl_jax.synaptic_intelligence(optax.sgd(0.5)), 2)
    opt_state = tx.init(START)
    for gradient in (1.0, 3.0):
        _, opt_state = tx.update({"w": jnp.full(3, gradient)}, opt_state, START)
    np.testing.assert_allclose(optax.tree.get(opt_state, "path_integral")["w"], 2.0 * 0.5 * 2.0)


def test_in_an_nnx_optimizer():
    model = nnx.Linear(3, 2, rngs=nnx.Rngs(0))
    optimizer = nnx.Optimizer(
        model,
        wpl_jax.synaptic_intelligence(optax.chain(wpl_jax.add_plasticity(1.0), optax.sgd(0.01))),
        wrt=nnx.Param,
    )
    x, y = normal(0, 8, 3), normal(1, 8, 2)
    squared = nnx.value_and_grad(lambda model: jnp.mean((model(x) - y) ** 2))

    @nnx.jit
    def step(model, optimizer):
        value, grads = squared(model)
        optimizer.update(model, grads)
        return value

    values = [step(model, optimizer) for _ in range(50)]
    params = nnx.state(model, nnx.Param)
    total = sum(jnp.sum(x) for x in jax.tree.leaves(optimizer.opt_state.path_integral))
    np.testing.assert_allclose(total, values[0] - squared(model)[0], rtol=0.05)
    expected, _ = wpl_jax.path_importance(optimizer.opt_state, params)
    importance, same = wpl_jax.path_importance(optimizer, model)  # which begins a new path
    assert same is optimizer
    assert not any(jnp.any(x) for x in jax.tree.leaves(optimizer.opt_state.path_integral))
    jax.tree.map(np.testing.assert_array_equal, importance, expected)
    wpl_jax.consolidate(optimizer, model, importance, decay=1.0)
    step(model, optimizer)


def test_an_ensemble_by_vmap():
    tx = wpl_jax.synaptic_intelligence(optax.sgd(0.05))
    many = {"w": jnp.stack([START["w"], START["w"] + 1])}
    params, opt_state = jax.vmap(lambda p: run(tx, p, 10))(many)
    importance, _ = jax.vmap(wpl_jax.path_importance)(opt_state, params)
    alone, alone_state = run(tx, {"w": START["w"] + 1}, 10)
    expected, _ = wpl_jax.path_importance(alone_state, alone)
    np.testing.assert_allclose(importance["w"][1], expected["w"], rtol=1e-5)


@pytest.mark.devices(8)
@pytest.mark.parametrize("axis_type", [jax.sharding.AxisType.Auto, jax.sharding.AxisType.Explicit])
def test_parameters_on_eight_devices_have_paths_there(axis_type):
    tx = wpl_jax.synaptic_intelligence(optax.sgd(0.1))
    over = mesh(axis_type)
    where = jax.NamedSharding(over, jax.P("data"))
    params = {"w": jax.device_put(normal(0, 16), where)}
    squares = lambda params: jnp.sum(params["w"] ** 2)  # noqa: E731
    with jax.set_mesh(over):
        new, opt_state = run(tx, params, 3, loss=squares)
        importance, opt_state = jax.jit(wpl_jax.path_importance)(opt_state, new)
        begun = jax.jit(tx.init)(params)
    states = (
        importance,
        opt_state.start,
        opt_state.path_integral,
        begun.start,
        begun.path_integral,
    )
    for x in states:
        assert x["w"].sharding.is_equivalent_to(where, 1)
    alone = {"w": jnp.asarray(jax.device_get(params["w"]))}
    alone_new, alone_state = run(tx, alone, 3, loss=squares)
    expected, _ = wpl_jax.path_importance(alone_state, alone_new)
    np.testing.assert_allclose(jax.device_get(importance["w"]), expected["w"], rtol=1e-5)


@pytest.mark.parametrize(
    "wrongly",
    [
        lambda: optax.chain(
            wpl_jax.add_plasticity(1.0), wpl_jax.synaptic_intelligence(optax.sgd(1.0))
        ),
        lambda: optax.chain(
            wpl_jax.synaptic_intelligence(optax.sgd(1.0)), wpl_jax.proximal_plasticity(1.0, 1.0)
        ),
        lambda: wpl_jax.weight_plasticity(
            wpl_jax.synaptic_intelligence(optax.sgd(1.0)), strength=1.0
        ),
    ],
)
def test_the_plasticity_term_must_be_inside(wrongly):
    with pytest.raises(ValueError, match="plasticity term lies outside of synaptic_intelligence"):
        wpl_jax.path_importance(wrongly().init(START), START)


def test_a_plasticity_term_of_other_parameters_may_lie_elsewhere():
    tx = optax.partition(
        {
            "path": wpl_jax.synaptic_intelligence(optax.sgd(1.0)),
            "other": optax.chain(wpl_jax.add_plasticity(1.0), optax.sgd(1.0)),
        },
        {"a": "path", "b": "other"},
    )
    wpl_jax.path_importance(tx.init(TWO), TWO)


def test_a_path_leaves_integers_alone():
    params = {"w": jnp.ones(2), "table": jnp.arange(3)}
    tx = wpl_jax.synaptic_intelligence(optax.sgd(0.5))
    updates, opt_state = tx.update({"w": jnp.ones(2), "table": None}, tx.init(params), params)
    importance, _ = wpl_jax.path_importance(
        opt_state, {"w": params["w"] + updates["w"], "table": params["table"]}, damping=0.25
    )
    np.testing.assert_allclose(importance["w"], 1.0)  # 0.5 / (0.5**2 + 0.25)
    np.testing.assert_array_equal(importance["table"], 0)


@pytest.mark.parametrize(
    "wrap",
    [wpl_jax.synaptic_intelligence, functools.partial(wpl_jax.weight_plasticity, strength=1.0)],
)
def test_an_optimiser_that_was_not_made_is_named(wrap):
    with pytest.raises(TypeError, match=r"inner must be an optax transformation, .* got <function"):
        wrap(optax.sgd)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda tx: tx.update(START, tx.init(START)),
            r"needs the parameters, .*call update\(grads, opt_state, params\)",
        ),
        (
            lambda tx: tx.update({"v": START["w"]}, tx.init(START), START),
            "updates has no leaf at .*w",
        ),
        (
            lambda tx: wpl_jax.path_importance(tx.init(START), {"w": jnp.zeros(2)}),
            r"params has shape \(2,\)",
        ),
        (lambda tx: wpl_jax.path_importance(optax.EmptyState(), START), "holds no path"),
        (
            lambda tx: wpl_jax.path_importance((tx.init(START), tx.init(START)), START),
            r"holds 2 paths, at \[0\], \[1\]",
        ),
        *(
            (
                lambda tx, damping=damping: wpl_jax.path_importance(
                    tx.init(START), START, damping=damping
                ),
                "damping must be a finite number above 0, got",
            )
            for damping in (0.0, -1.0, float("nan"), float("inf"), np.ones(2), jnp.ones(2), "1", 1j)
        ),
    ],
)
def test_synaptic_intelligence_refuses(call, message):
    with pytest.raises(ValueError, match=message):
        call(wpl_jax.synaptic_intelligence(optax.sgd(1.0)))
