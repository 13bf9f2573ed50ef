"""The plasticity term: nothing where there is nothing to protect, and otherwise its closed form."""

import functools

import hypothesis
import hypothesis.extra.numpy as hnp
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from forms import (
    ANCHOR,
    BATCH,
    FISHER,
    GRADS,
    LEARNING_RATE,
    MAX,
    PARAMS,
    STRENGTH,
    adamw,
    add,
    assert_close,
    assert_differ,
    assert_same_bits,
    forms,
    inners,
    mean_gradient,
    nll,
    plasticity,
    protected,
    proximal,
    run,
    sgd,
    trainer,
)
from hypothesis import strategies as st

import wpl_jax

# --- Without anything to protect, the inner optimiser ---------------------------------------------


@functools.cache
def trained_without_plasticity(inner):
    tx = inner()
    return trainer(tx)(PARAMS, tx.init(PARAMS))[0]


@forms
@inners
def test_with_nothing_to_protect_is_the_inner_optimiser_bit_for_bit(form, inner):
    """Before the first consolidate, after a flush, where F is 0; for strength 0, in any form."""
    expected = trained_without_plasticity(inner)
    tx = form(inner())
    train = trainer(tx)
    zeros = jax.tree.map(jnp.zeros_like, FISHER)
    for opt_state in (
        tx.init(PARAMS),
        wpl_jax.flush(protected(tx)),
        protected(tx, fisher=zeros),
    ):
        assert_same_bits(train(PARAMS, opt_state)[0], expected)
    assert_differ(train(PARAMS, protected(tx))[0], expected)
    for strength in (0.0, lambda count: 0.0 * count):
        tx = form(inner(), strength)
        assert_same_bits(trainer(tx)(PARAMS, protected(tx))[0], expected)


@forms
@inners
def test_with_a_constant_strength_of_0_the_compiled_step_is_the_inner_optimisers(form, inner):
    def trained(tx, opt_state, params=PARAMS):
        @jax.jit
        def step(params, opt_state):
            updates, opt_state = tx.update(mean_gradient(params, BATCH), opt_state, params)
            return optax.apply_updates(params, updates), opt_state

        for _ in range(3):
            params, opt_state = step(params, opt_state)
        return params

    tx = form(inner(), strength=0.0)
    assert_same_bits(trained(tx, protected(tx)), trained(inner(), inner().init(PARAMS)))


@pytest.mark.parametrize("form", [add, proximal])
@pytest.mark.parametrize(
    ("strength", "fisher", "params"),
    [(0.0, MAX, 1e30), (STRENGTH, 0.0, jnp.nan), (STRENGTH, 0.0, jnp.inf), (STRENGTH, -0.0, 1.0)],
    ids=["strength", "fisher_nan", "fisher_inf", "fisher_negative_zero"],
)
def test_a_term_of_zero_is_not_added(form, strength, fisher, params):
    """Not even as 0, which would turn -0.0 into 0.0, or as 0 times infinity."""
    tx = form(optax.identity(), strength)
    grads = jnp.array([-0.0, 0.0, 2.0])
    opt_state = protected(tx, jnp.full(3, params), jnp.zeros(3), jnp.full(3, fisher))
    updates, _ = tx.update(grads, opt_state, jnp.full(3, params))
    assert_same_bits(updates, grads)


@forms
def test_strength_is_a_number_an_array_or_a_schedule(form):
    tx = form(sgd(), 2)
    expected, _ = run(tx, PARAMS, protected(tx), GRADS)
    for strength in (
        2.0,
        np.float64(2),
        jnp.array(2.0),
        optax.constant_schedule(2.0),
        lambda count: 2.0 + 0.0 * count.astype(jnp.float32),  # of an array, also in init
    ):
        tx = form(sgd(), strength)
        assert_same_bits(run(tx, PARAMS, protected(tx), GRADS)[0], expected)


@pytest.mark.parametrize("form", [add, proximal])
def test_a_schedule_is_read_at_the_count_of_updates(form):
    scheduled = form(optax.sgd(LEARNING_RATE), lambda count: 3.0 * count)
    opt_state = protected(scheduled)
    for count in range(3):
        constant = form(optax.sgd(LEARNING_RATE), 3.0 * count)
        expected, _ = constant.update(GRADS, opt_state, PARAMS)
        updates, opt_state = scheduled.update(GRADS, opt_state, PARAMS)
        assert_close(updates, expected)
    assert plasticity(opt_state).count == 3


def test_a_scheduled_learning_rate_of_the_proximal_form():
    scheduled = wpl_jax.proximal_plasticity(STRENGTH, lambda count: 0.5 / (1 + count))
    opt_state = protected(scheduled)
    for rate in (0.5, 0.25):
        constant = wpl_jax.proximal_plasticity(STRENGTH, rate)
        expected, _ = constant.update(GRADS, opt_state, PARAMS)
        updates, opt_state = scheduled.update(GRADS, opt_state, PARAMS)
        assert_close(updates, expected)


@pytest.mark.parametrize(
    "strength",
    [1e39, np.float64(1e39), lambda count: np.inf, lambda count: jnp.full([], jnp.inf)],
    ids=["number", "numpy", "infinite", "infinite_array"],
)
@pytest.mark.parametrize(
    "learning_rate",
    [0.0, lambda count: 0.0, optax.linear_schedule(0.0, 0.1, 10)],
    ids=["constant", "schedule", "warmup"],
)
@pytest.mark.parametrize(
    "form",
    [
        wpl_jax.proximal_plasticity,
        lambda s, rate: wpl_jax.weight_plasticity(optax.identity(), strength=s, learning_rate=rate),
    ],
    ids=["proximal", "weight"],
)
def test_a_learning_rate_of_0_is_no_pull_however_strong(form, strength, learning_rate):
    params, grads = jnp.ones(3), jnp.array([-0.0, 1.0, 2.0])
    tx = form(strength, learning_rate)
    opt_state = protected(tx, params, 0 * params, jnp.array([0.0, 1.0, MAX]))
    for update in (tx.update, jax.jit(tx.update)):
        assert_same_bits(update(grads, opt_state, params)[0], grads)


# --- The term, in closed form ---------------------------------------------------------------------


def test_plasticity_loss_is_the_last_term_of_equation_8():
    opt_state = protected(adamw_with_plasticity := add(adamw()))
    expected = sum(
        float(np.sum(np.asarray(f, np.float64) * (np.asarray(p, np.float64) - a) ** 2))
        for f, p, a in zip(*map(jax.tree.leaves, (FISHER, PARAMS, ANCHOR)), strict=True)
    )
    for strength in (3.0, lambda count: 3.0 + count):
        loss = wpl_jax.plasticity_loss(opt_state, PARAMS, strength)
        assert loss.shape == () and loss == pytest.approx(1.5 * expected, rel=1e-5)
    _, opt_state = adamw_with_plasticity.update(GRADS, opt_state, PARAMS)
    scheduled = wpl_jax.plasticity_loss(opt_state, PARAMS, lambda count: 3.0 + count)
    assert scheduled == pytest.approx(2.0 * expected, rel=1e-5)
    assert wpl_jax.plasticity_loss(wpl_jax.flush(opt_state), PARAMS, 3.0) == 0


HUGE = [10**10, np.int64(10**10), np.array(10**10), lambda count: 10**10]
HUGE += [lambda count: np.int64(10**10), 1e10]


@pytest.mark.parametrize("huge", HUGE)
@pytest.mark.parametrize("jit", [lambda f: f, jax.jit], ids=["eager", "jit"])
def test_integers_may_be_larger_than_an_int32(huge, jit):
    params = jnp.ones(1)
    for tx, expected in (
        (wpl_jax.add_plasticity(huge), 1.0),
        (wpl_jax.proximal_plasticity(huge, 1.0), -0.5),
        (wpl_jax.proximal_plasticity(1.0, huge), -0.5),
    ):
        opt_state = wpl_jax.consolidate(tx.init(params), params - 1, 1e-10)
        updates, opt_state = jit(tx.update)(0 * params, opt_state, params)
        np.testing.assert_allclose(updates, [expected], rtol=1e-6)
    np.testing.assert_allclose(wpl_jax.plasticity_loss(opt_state, params, huge), 0.5, rtol=1e-6)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "float8_e4m3fn"])
@pytest.mark.parametrize("fisher_dtype", [None, jnp.bfloat16])
@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (wpl_jax.add_plasticity, -4.0),
        (functools.partial(wpl_jax.proximal_plasticity, learning_rate=1.0), 2.0),
    ],
    ids=["add", "proximal"],
)
def test_under_strict_promotion(dtype, fisher_dtype, make, expected):
    params = jnp.ones(2, dtype)
    with jax.numpy_dtype_promotion("strict"):
        tx = make(1.0, fisher_dtype=fisher_dtype)
        opt_state = tx.init(params)
        for anchor in ("latest", "mean"):
            opt_state = wpl_jax.consolidate(
                opt_state, params * 4, jnp.ones(2), decay=0.5, max_norm=2.0, anchor=anchor
            )
        updates, _ = tx.update(params * 0.5, opt_state, params)
        loss = wpl_jax.plasticity_loss(opt_state, params, 1.0)
        assert wpl_jax.diagnose(opt_state, params, 1.0, grads=params).frozen == 1.0
    assert updates.dtype == dtype
    np.testing.assert_allclose(updates.astype(float), expected, rtol=1e-6)
    assert loss == 1.5 / 2 * 2 * 9


def test_add_adds_the_gradient_of_the_loss():
    tx = wpl_jax.add_plasticity(STRENGTH)
    opt_state = protected(tx)

    def loss(params):
        own = jax.vmap(nll, (None, 0))(params, BATCH).mean()
        return own + wpl_jax.plasticity_loss(opt_state, params, STRENGTH)

    updates, _ = tx.update(mean_gradient(PARAMS, BATCH), opt_state, PARAMS)
    assert_close(updates, jax.jit(jax.grad(loss))(PARAMS))


@hypothesis.settings(max_examples=30, deadline=None)
@hypothesis.given(
    numbers=hnp.arrays(np.float64, (3, 4), elements=st.floats(-10, 10)),
    fisher=hnp.arrays(np.float64, 4, elements=st.floats(0, 1e6)),
    strength=st.floats(0, 1e6),
    learning_rate=st.floats(1e-6, 10),
)
def test_proximal_minimises_its_objective(numbers, fisher, strength, learning_rate):
    """The new weights are the closed form, and no point near them has a smaller objective."""
    with jax.enable_x64(True):
        params, anchor, grads = jnp.asarray(numbers)
        tx = optax.chain(optax.sgd(0.1), wpl_jax.proximal_plasticity(strength, learning_rate))
        opt_state = protected(tx, params, anchor, jnp.asarray(fisher))
        updates, _ = tx.update(grads, opt_state, params)
        new = np.asarray(optax.apply_updates(params, updates))
    step, c = numbers[0] - 0.1 * numbers[2], learning_rate * strength * fisher
    np.testing.assert_allclose(new, (step + c * numbers[1]) / (1 + c), rtol=1e-9, atol=1e-9)

    def objective(theta):
        return c / 2 * (theta - numbers[1]) ** 2 + (theta - step) ** 2 / 2

    for nearby in (new - 1e-3, new + 1e-3):
        assert np.all(objective(nearby) >= objective(new) - 1e-9 * (1 + objective(new)))


@pytest.mark.parametrize("c", [0.5, 1.9, 2.1, 30.0, 1e8, 1e38])
def test_only_the_additive_form_diverges(c):
    """c = learning_rate * strength * F; each step scales the distance to the anchor by a factor."""
    inner, strength, params = optax.sgd(LEARNING_RATE), c / LEARNING_RATE / 2, jnp.array([1.0])
    anchor, fisher, grads = jnp.zeros(1), jnp.array([2.0]), jnp.zeros(1)
    if c / LEARNING_RATE / 2 <= MAX:
        tx = proximal(inner, strength)
        distance = run(tx, params, protected(tx, params, anchor, fisher), grads)[0]
        np.testing.assert_allclose(distance, (1 / (1 + c)) ** 3, rtol=1e-4, atol=1e-7)
    if c <= 1e8:  # beyond it, the additive form overflows
        tx = add(inner, strength)
        distance = run(tx, params, protected(tx, params, anchor, fisher), grads)[0]
        np.testing.assert_allclose(distance, (1 - c) ** 3, rtol=1e-4)
        assert (abs(distance.item()) > 1) == (c > 2)


@pytest.mark.parametrize(
    ("form", "momentum"),
    [(add, None), (add, 0.5), (proximal, None), (proximal, 0.5)],
)
def test_fixed_points_are_those_of_equation_8(form, momentum):
    """On a/2 (theta - target)**2 they are at (a target + eps F anchor) / (a + eps F)."""
    a, target, anchor, fisher, eps = 0.5, 4.0, -1.0, 2.0, 0.75
    if form is add or momentum is None:
        tx = form(optax.sgd(LEARNING_RATE, momentum), eps)
    else:  # as the docstring says
        term = wpl_jax.proximal_plasticity(eps, LEARNING_RATE / (1 - momentum))
        tx = optax.chain(optax.sgd(LEARNING_RATE, momentum), term)
    params = jnp.array([0.0])
    opt_state = protected(tx, params, jnp.array([anchor]), jnp.array([fisher]))

    def step(carry, _):
        params, opt_state = carry
        updates, opt_state = tx.update(a * (params - target), opt_state, params)
        return (optax.apply_updates(params, updates), opt_state), None

    (params, _), _ = jax.lax.scan(step, (params, opt_state), length=200)
    expected = (a * target + eps * fisher * anchor) / (a + eps * fisher)
    np.testing.assert_allclose(params, [expected], rtol=1e-5)


@pytest.mark.filterwarnings("ignore:overflow encountered in cast")  # 1e39, to float32
@pytest.mark.parametrize("strength", [1e-30, 1.0, 3e38, 1e39])
@pytest.mark.parametrize("learning_rate", [1e-3, 10.0])
def test_no_overflow_at_the_anchor(strength, learning_rate):
    """However large a finite strength or F: with params at the anchor the result is finite."""
    fisher = jnp.array([0.0, 1e-37, 1.0, 3e38, MAX])
    params, grads = jnp.array([1.0, -2.0, 1e30, 3.0, 0.0]), jnp.array([1.0, 0.0, -2.0, 3.0, -1e-30])

    tx = wpl_jax.add_plasticity(strength)
    updates, _ = jax.jit(tx.update)(grads, protected(tx, params, params, fisher), params)
    assert_same_bits(updates, grads)

    tx = wpl_jax.proximal_plasticity(strength, learning_rate)
    updates, _ = jax.jit(tx.update)(grads, protected(tx, params, params, fisher), params)
    c = learning_rate * strength * np.asarray(fisher, np.float64)
    expected = np.asarray(grads, np.float64) / (1 + c)
    np.testing.assert_allclose(updates, expected, rtol=1e-6, atol=1e-36)
