"""The transformations: a table of forms and wrappers by shared properties, then each on its own."""

import functools
import subprocess
import sys
from typing import NamedTuple

import chex
import hypothesis
import hypothesis.extra.numpy as hnp
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from flax import nnx
from flax.training.train_state import TrainState
from hypothesis import strategies as st

import wpl_jax

LEARNING_RATE = 0.125
STRENGTH = 4.0
MAX = float(np.finfo(np.float32).max)

# --- A model, and the forms of the term around an optimiser ---------------------------------------


def normal(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def normal_like(tree, seed):
    leaves, structure = jax.tree.flatten(tree)
    draws = [normal(seed + i, *leaf.shape).astype(leaf.dtype) for i, leaf in enumerate(leaves)]
    return jax.tree.unflatten(structure, draws)


def nll(params, example):
    out = jnp.tanh(example["x"] @ params["hidden"]["kernel"] + params["hidden"]["bias"])
    return 0.5 * jnp.square(params["gain"] * out.sum() - example["y"])


@jax.jit
def mean_gradient(params, batch):
    return jax.grad(lambda params: jax.vmap(nll, (None, 0))(params, batch).mean())(params)


PARAMS = {"hidden": {"kernel": normal(0, 3, 2), "bias": normal(1, 2)}, "gain": normal(2)}
ANCHOR = normal_like(PARAMS, 10)
GRADS = normal_like(PARAMS, 20)
FISHER = {
    "hidden": {"kernel": jnp.abs(normal(30, 3, 2)), "bias": jnp.array([0.0, 2.0])},
    "gain": jnp.array(0.5),
}
BATCH = {"x": normal(3, 6, 3), "y": normal(4, 6)}


def add(inner, strength=STRENGTH):
    return optax.chain(wpl_jax.add_plasticity(strength), inner)


def proximal(inner, strength=STRENGTH):
    return optax.chain(inner, wpl_jax.proximal_plasticity(strength, LEARNING_RATE))


def weight(inner, strength=STRENGTH, **options):
    return wpl_jax.weight_plasticity(inner, strength=strength, nll=nll, **options)


def weight_proximal(inner, strength=STRENGTH, **options):
    return weight(inner, strength, learning_rate=LEARNING_RATE, **options)


def sgd():
    return optax.sgd(LEARNING_RATE, momentum=0.9)


def adamw():
    return optax.adamw(LEARNING_RATE, weight_decay=0.1)


forms = pytest.mark.parametrize("form", [add, proximal, weight, weight_proximal])
inners = pytest.mark.parametrize("inner", [sgd, adamw])
both_weights = pytest.mark.parametrize("form", [weight, weight_proximal])


def protected(tx, params=PARAMS, anchor=ANCHOR, fisher=FISHER):
    """The state of an optimiser of `params` that has consolidated elsewhere: the term pulls."""
    return wpl_jax.consolidate(tx.init(params), anchor, fisher)


def run(tx, params, opt_state, grads, steps=3, **extra):
    """Steps along given gradients, in which the term is the only thing that sees the weights."""
    for _ in range(steps):
        updates, opt_state = tx.update(grads, opt_state, params, **extra)
        params = optax.apply_updates(params, updates)
    return params, opt_state


def trainer(tx):
    """A function that takes jitted steps on the model's own loss.

    LLVM's optimisations are off: they may contract a product and a sum into one operation with one
    rounding, and which ones they do contract depends on the rest of the program.
    """

    @functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
    def step(params, opt_state):
        updates, opt_state = tx.update(mean_gradient(params, BATCH), opt_state, params)
        return optax.apply_updates(params, updates), opt_state

    def train(params, opt_state, steps=4):
        for _ in range(steps):
            params, opt_state = step(params, opt_state)
        return params, opt_state

    return train


def assert_same_bits(actual, expected):
    chex.assert_trees_all_equal_shapes_and_dtypes(actual, expected)
    for a, e in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        assert np.asarray(a).tobytes() == np.asarray(e).tobytes(), (a, e)


def assert_close(actual, expected, rtol=1e-5):
    chex.assert_trees_all_close(actual, expected, rtol=rtol, atol=1e-6)


def assert_differ(actual, expected):
    assert not np.allclose(
        *(np.concatenate([x.ravel() for x in jax.tree.leaves(t)]) for t in (actual, expected)),
        rtol=1e-3,
    )


def plasticity(opt_state):
    """The plasticity state of a chain or of a weight_plasticity."""
    (state,) = [s for s in opt_state if isinstance(s, wpl_jax.PlasticityState)]
    return state


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
    for strength in (2.0, np.float64(2), jnp.array(2.0), optax.constant_schedule(2.0)):
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


# --- consolidate and flush ------------------------------------------------------------------------


def consolidate_in_numpy(state, params, fisher, decay, mask):
    """What consolidate should do to one tensor, without clipping."""
    valid = np.isfinite(fisher) & (fisher >= 0)
    new = np.where(valid, fisher, 0) + (0 if decay is None else np.float32(decay) * state.fisher)
    return wpl_jax.PlasticityState(
        count=state.count,
        anchor=np.where(mask, params, state.anchor),
        fisher=np.where(mask, np.minimum(new, MAX), state.fisher),
        rejected=state.rejected + np.sum(mask & ~valid),
        consolidations=state.consolidations + 1,
        last_strength=state.last_strength,
    )


@functools.cache
def jitted_consolidate(**options):
    return jax.jit(functools.partial(wpl_jax.consolidate, **options))


@hypothesis.settings(max_examples=60, deadline=None)
@hypothesis.given(
    fishers=hnp.arrays(np.float32, (2, 5), elements=st.floats(width=32, allow_subnormal=False)),
    masks=hnp.arrays(bool, (2, 5)),
    decay=st.sampled_from([None, 0.0, 0.125, 1.0]),
)
@hypothesis.example(np.full((2, 5), np.nan, np.float32), np.ones((2, 5), bool), 1.0)
@hypothesis.example(np.full((2, 5), MAX, np.float32), np.ones((2, 5), bool), 1.0)
def test_only_what_is_finite_not_negative_and_inside_enters(fishers, masks, decay):
    """Two models in turn, against NumPy: NaN, infinities and negative numbers are counted."""
    state = wpl_jax.add_plasticity(1.0).init(jnp.zeros(5))
    expected = jax.tree.map(np.asarray, state)
    for i in range(2):
        params = normal(i, 5)
        state = jitted_consolidate(decay=decay)(state, params, fishers[i], mask=masks[i])
        with np.errstate(over="ignore"):
            expected = consolidate_in_numpy(expected, params, fishers[i], decay, masks[i])
    assert np.all(np.isfinite(state.fisher)) and np.all(state.fisher >= 0)
    assert state.rejected == expected.rejected
    np.testing.assert_array_equal(state.anchor, expected.anchor)
    np.testing.assert_allclose(state.fisher, expected.fisher, rtol=1e-6, atol=1e-37)


def test_what_overflows_the_dtype_of_the_state_is_refused():
    with jax.enable_x64(True):
        params = jnp.ones(3, jnp.float32)
        state = wpl_jax.add_plasticity(1.0).init(params)
        state = wpl_jax.consolidate(state, params, jnp.array([1e300, 2.0, -1e300]))
    np.testing.assert_array_equal(state.fisher, np.array([0, 2, 0], np.float32), strict=True)
    assert state.rejected == 2


def test_rejected_never_overflows():
    state = wpl_jax.add_plasticity(1.0).init(PARAMS)
    nearly = jnp.array(2**31 - 3, jnp.int32)
    nan = jax.tree.map(lambda p: jnp.full_like(p, jnp.nan), PARAMS)
    state = wpl_jax.consolidate(state._replace(rejected=nearly), PARAMS, nan)
    assert state.rejected >= nearly and state.rejected.dtype == jnp.int32


EXPERTS = {
    "experts": normal(0, 4, 2, 3),
    "dense": {"kernel": normal(1, 3, 2), "bias": normal(2, 2)},
}


@pytest.mark.parametrize("jit", [False, True], ids=["eager", "jit"])
@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e19, 1e30, 1e38])
def test_max_norm_clips_each_tensor(scale, jit):
    """Also where squares overflow or vanish in float32."""
    state = wpl_jax.add_plasticity(1.0).init(EXPERTS)
    fisher = jax.tree.map(lambda e: scale * jnp.minimum(jnp.abs(e), 3.0), EXPERTS)
    fisher["dense"]["bias"] = jnp.array([1e-3, 2e-3])  # below max_norm in every case
    consolidate = jitted_consolidate() if jit else wpl_jax.consolidate
    clipped = consolidate(state, EXPERTS, fisher, max_norm=2.0).fisher

    def clip(f):
        f = np.asarray(f, np.float64)
        return f * min(1, 2.0 / np.linalg.norm(f.ravel()))

    chex.assert_trees_all_close(clipped, jax.tree.map(clip, fisher), rtol=1e-5)


def test_max_norm_sees_what_is_valid_and_inside_before_the_decay():
    state = wpl_jax.add_plasticity(1.0).init(jnp.zeros(4))._replace(fisher=jnp.full(4, 100.0))
    state = wpl_jax.consolidate(
        state,
        jnp.zeros(4),
        jnp.array([3.0, 4.0, jnp.nan, 1e6]),
        decay=0.5,
        mask=jnp.array([True, True, True, False]),
        max_norm=1.0,
    )
    np.testing.assert_allclose(state.fisher, [50.6, 50.8, 50.0, 100.0], rtol=1e-6)


def test_max_norm_of_nothing():
    """All zero, or no entry at all, with a norm of at most zero: no 0 / 0."""
    params = {"zero": jnp.ones(2), "empty": jnp.ones((0, 3)), "some": jnp.ones(2)}
    fisher = {"zero": jnp.zeros(2), "empty": jnp.ones((0, 3)), "some": jnp.ones(2)}
    state = wpl_jax.add_plasticity(1.0).init(params)
    for max_norm in (0.0, 1.0, 1e39):
        state = wpl_jax.consolidate(state, params, fisher, max_norm=max_norm)
        assert_same_bits(state.fisher["zero"], jnp.zeros(2))
        assert jnp.linalg.norm(state.fisher["some"]) == pytest.approx(min(max_norm, 2**0.5))


@forms
def test_consolidate_and_flush_change_the_plasticity_state_only(form):
    tx = form(adamw())
    _, opt_state = run(tx, PARAMS, protected(tx), GRADS, steps=1)
    for new in (
        wpl_jax.consolidate(opt_state, ANCHOR, GRADS, decay=0.1, max_norm=1.0),
        jax.jit(wpl_jax.consolidate)(opt_state, ANCHOR, GRADS),
        wpl_jax.flush(opt_state),
    ):
        chex.assert_trees_all_equal_shapes_and_dtypes(new, opt_state)
        assert plasticity(new).count == 1
        for a, b in zip(new, opt_state, strict=True):
            if not isinstance(a, wpl_jax.PlasticityState):
                assert_same_bits(a, b)
    flushed = plasticity(wpl_jax.flush(opt_state))
    assert_same_bits(flushed.anchor, ANCHOR)
    assert not any(np.any(f) for f in jax.tree.leaves(flushed.fisher))


def test_a_strength_that_is_an_array_outlives_a_donated_state():
    strength = jnp.array(2.0)
    tx = wpl_jax.add_plasticity(strength)
    opt_state = tx.init(PARAMS)
    for update in (tx.update, jax.jit(tx.update, donate_argnums=1)):
        _, opt_state = update(GRADS, opt_state, PARAMS)
    assert strength == opt_state.last_strength == 2.0


# --- weight_plasticity: everything in one step ----------------------------------------------------


def one_step(tx, **options):
    """Counts its traces in `step.traces`."""

    @jax.jit
    def step(params, opt_state, batch, last, mask=None):
        step.traces += 1
        updates, opt_state = tx.update(
            mean_gradient(params, batch),
            opt_state,
            params,
            batch=batch,
            consolidate=last,
            mask=mask,
            **options,
        )
        return optax.apply_updates(params, updates), opt_state

    step.traces = 0
    return step


@both_weights
def test_one_compiled_step_equals_the_sequence_by_hand(form):
    tx = form(adamw(), fisher_decay=0.5, max_norm=1.5, microbatch_size=4)
    step = one_step(tx)
    by_hand = (add if form is weight else proximal)(adamw())
    estimate = jax.jit(wpl_jax.empirical_fisher(nll))
    params, opt_state = PARAMS, tx.init(PARAMS)
    hand_params, hand_state = PARAMS, by_hand.init(PARAMS)
    for i, last in enumerate([False, True, False, True, False]):
        batch = {"x": normal(40 + i, 6, 3), "y": normal(50 + i, 6)}
        params, opt_state = step(params, opt_state, batch, last)
        grads = mean_gradient(hand_params, batch)
        updates, hand_state = by_hand.update(grads, hand_state, hand_params)
        hand_params = optax.apply_updates(hand_params, updates)
        if last:
            hand_state = wpl_jax.consolidate(
                hand_state, hand_params, estimate(hand_params, batch), decay=0.5, max_norm=1.5
            )
        assert_close(params, hand_params)
        assert_close(opt_state, hand_state)
    assert step.traces == 1


@both_weights
def test_consolidates_inside_the_mask_only(form):
    tx = form(sgd(), fisher_decay=0.5)
    mask = {"hidden": {"kernel": jnp.array([True, False]), "bias": True}, "gain": False}
    old_state = protected(tx)
    params, opt_state = one_step(tx)(PARAMS, old_state, BATCH, True, mask)
    old, new = plasticity(old_state), plasticity(opt_state)
    fisher = wpl_jax.empirical_fisher(nll)(params, BATCH)
    inside = jax.tree.broadcast(mask, PARAMS)
    assert_same_bits(new.anchor, jax.tree.map(jnp.where, inside, params, old.anchor))
    assert_close(
        new.fisher,
        jax.tree.map(lambda i, f, o: jnp.where(i, f + 0.5 * o, o), inside, fisher, old.fisher),
    )


MASK = {"a": np.arange(20).reshape(5, 4) % 3 == 0, "b": np.array([True, False, False])}
INNERS = {
    "sgd": sgd(),
    "adamw": adamw(),
    "chain": optax.chain(optax.clip_by_global_norm(1.0), optax.nadam(0.1)),
    "masked": optax.masked(adamw(), {"a": True, "b": False}),
    "partition": optax.partition({"x": sgd(), "y": adamw()}, {"a": "x", "b": "y"}),
    "inject_hyperparams": optax.inject_hyperparams(optax.adamw)(0.1, weight_decay=0.1),
}


@pytest.mark.parametrize(
    ("inner", "learning_rate"), [*((i, None) for i in INNERS), ("adamw", LEARNING_RATE)]
)
def test_outside_the_mask_nothing_changes(inner, learning_rate):
    """Not the weights (nor their signs of zero), the optimiser's memory, the anchor or F."""

    def nll(params, example):
        return jnp.sum(params["a"] * example) + jnp.square(params["b"]).sum()

    tx = wpl_jax.weight_plasticity(
        INNERS[inner], nll=nll, strength=2.0, fisher_decay=0.5, learning_rate=learning_rate
    )
    params = {"a": normal(0, 5, 4).at[0, 1].set(-0.0), "b": normal(1, 3)}
    grads = normal_like(params, 10)
    opt_state = protected(tx, params, grads, jax.tree.map(jnp.abs, grads))
    _, opt_state = tx.update(grads, opt_state, params)  # momenta that are not zero

    @jax.jit
    def step(params, opt_state, mask):
        updates, opt_state = tx.update(
            grads, opt_state, params, batch=normal(2, 6, 5, 4), consolidate=True, mask=mask
        )
        return optax.apply_updates(params, updates), opt_state

    before = (params, opt_state)
    after = step(*before, MASK)
    masks = {mask.shape: mask for mask in MASK.values()}
    frozen = 0
    for old, new in zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True):
        if old.shape in masks:
            outside = ~masks[old.shape]
            assert np.asarray(old)[outside].tobytes() == np.asarray(new)[outside].tobytes()
            frozen += 1
    assert frozen >= 7  # weights, anchors, Fishers and some memory
    for old, new in zip(jax.tree.leaves(before[0]), jax.tree.leaves(after[0]), strict=True):
        assert np.all(np.asarray(old != new)[masks[old.shape]])


def test_memory_that_weights_share_moves_with_any_of_them():
    """adafactor keeps a row and a column a matrix: frozen where the whole matrix is outside."""
    tx = wpl_jax.weight_plasticity(optax.adafactor(0.1, min_dim_size_to_factor=2), strength=1.0)
    params = {"in": normal(0, 3, 2), "out": normal(1, 3, 2)}
    mask = {"in": jnp.array([True, False]), "out": jnp.array(False)}
    before = tx.init(params)
    updates, after = jax.jit(tx.update)(normal_like(params, 5), before, params, mask=mask)
    chex.assert_trees_all_equal_shapes_and_dtypes(before, after)
    assert not np.any(updates["in"][:, 1]) and np.all(updates["in"][:, 0])
    old, new = (optax.tree.get(state, "v_row") for state in (before, after))
    assert_same_bits(old["out"], new["out"])
    assert np.all(old["in"] != new["in"])


def test_no_fisher_is_computed_unless_asked_for():
    examples_seen = []

    def observed_nll(params, example):
        jax.debug.callback(lambda x: examples_seen.append(x), example["y"])
        return nll(params, example)

    tx = wpl_jax.weight_plasticity(sgd(), strength=1.0, nll=observed_nll)
    step = one_step(tx)
    for last, calls in ((False, 0), (True, 6), (False, 6)):
        step(PARAMS, tx.init(PARAMS), BATCH, last)
        jax.effects_barrier()
        assert len(examples_seen) == calls
    assert step.traces == 1


# --- Inside other transformations -----------------------------------------------------------------


def test_one_step_inside_a_chain():
    """weight_plasticity consolidates from inside, at the weights after the step."""
    tx = optax.chain(optax.identity(), weight(sgd()))
    step = one_step(tx)
    params, opt_state = step(PARAMS, tx.init(PARAMS), BATCH, True)
    assert_differ(params, PARAMS)
    assert_close(optax.tree.get(opt_state, "anchor"), params)
    assert_close(optax.tree.get(opt_state, "fisher"), wpl_jax.empirical_fisher(nll)(params, BATCH))


SKIPPING = {
    "MultiSteps": lambda tx: optax.MultiSteps(tx, 2),
    "apply_if_finite": lambda tx: optax.apply_if_finite(tx, 3),
    "conditionally_mask": lambda tx: optax.conditionally_mask(tx, lambda step: step % 2 == 1),
    "conditionally_transform": lambda tx: optax.conditionally_transform(
        tx, lambda step: step % 2 == 1
    ),
}


@both_weights
@pytest.mark.parametrize("wrapper", SKIPPING)
@pytest.mark.parametrize("jit", [lambda f: f, jax.jit], ids=["eager", "jit"])
def test_a_step_that_may_be_left_out_does_not_consolidate(form, wrapper, jit):
    """Around it, the wrapper would drop the request with the step; inside, it is heard."""
    tx = SKIPPING[wrapper](form(sgd()))
    update = jit(lambda state, last: tx.update(GRADS, state, PARAMS, batch=BATCH, consolidate=last))
    with pytest.raises(ValueError, match=rf"consolidate inside optax\.{wrapper} would be lost"):
        update(tx.init(PARAMS), True)
    tx.update(GRADS, tx.init(PARAMS), PARAMS, batch=BATCH, consolidate=False)

    tx = form(optax.with_extra_args_support(SKIPPING[wrapper](sgd())))
    updates, opt_state = update(tx.init(PARAMS), True)  # the first step, which may emit nothing
    assert plasticity(opt_state).consolidations == 1
    assert_close(plasticity(opt_state).anchor, optax.apply_updates(PARAMS, updates))


def test_mini_steps_inside_are_those_of_the_accumulated_gradient():
    tx, expected = weight(optax.MultiSteps(sgd(), 2)), weight(sgd())
    opt_state = protected(tx)
    for scale in (0.5, 1.5):
        grads = jax.tree.map(lambda g, scale=scale: scale * g, GRADS)
        updates, opt_state = tx.update(grads, opt_state, PARAMS)
    assert_close(updates, expected.update(GRADS, protected(expected), PARAMS)[0])


@pytest.mark.parametrize(
    ("factory", "hyperparams"),
    [
        (optax.inject_hyperparams(wpl_jax.add_plasticity), {}),
        (optax.inject_hyperparams(wpl_jax.proximal_plasticity), {"learning_rate": LEARNING_RATE}),
        (
            optax.inject_hyperparams(
                wpl_jax.weight_plasticity, static_args=("nll", "microbatch_size")
            ),
            {
                "inner": sgd(),
                "nll": nll,
                "fisher_decay": 0.5,
                "max_norm": 1e6,
                "learning_rate": LEARNING_RATE,
                "microbatch_size": 4,
            },
        ),
    ],
    ids=["add", "proximal", "weight"],
)
def test_hyperparameters_can_be_injected(factory, hyperparams):
    """And changed between steps without a new compilation; a schedule is a hyperparameter too."""
    tx = factory(strength=1.0, **hyperparams)
    scheduled = factory(strength=lambda count: 1.0 + 2 * count, **hyperparams)
    plain = factory.__wrapped__
    extra = {"batch": BATCH, "consolidate": True} if "nll" in hyperparams else {}
    step = jax.jit(lambda state: tx.update(GRADS, state, PARAMS, **extra))
    scheduled_step = jax.jit(lambda state: scheduled.update(GRADS, state, PARAMS, **extra))
    state, scheduled_state = protected(tx), protected(scheduled)
    expected_state = protected(plain(strength=1.0, **hyperparams))
    for strength in (1.0, 3.0):
        state.hyperparams["strength"] = jnp.array(strength)
        updates, state = step(state)
        scheduled_updates, scheduled_state = scheduled_step(scheduled_state)
        expected, expected_state = plain(strength=strength, **hyperparams).update(
            GRADS, expected_state, PARAMS, **extra
        )
        assert_close(updates, expected)
        assert_close(scheduled_updates, expected)
        assert_close(state.inner_state, expected_state)
    assert step._cache_size() == 1


# --- Dtypes and containers ------------------------------------------------------------------------


def test_float64_is_used_where_it_is_there():
    """A pull of 1e-12 of the weight is not lost."""
    with jax.enable_x64(True):
        for tx in (wpl_jax.add_plasticity(1.0), wpl_jax.proximal_plasticity(1.0, 1.0)):
            params, anchor = jnp.ones(1), jnp.ones(1) + 1e-12
            updates, _ = tx.update(jnp.zeros(1), protected(tx, params, anchor, jnp.ones(1)), params)
            assert 4e-13 < abs(updates.item()) < 1.1e-12


class Attention(NamedTuple):
    query: jax.Array
    key: jax.Array
    value: jax.Array


class Optional(NamedTuple):
    present: jax.Array
    absent: jax.Array | None


CONTAINERS = {
    "array": lambda a, b, c: a,
    "tuple": lambda a, b, c: (a, (b, c)),
    "list": lambda a, b, c: [a, [b], c],
    "namedtuple": lambda a, b, c: Attention(a, b, c),
    "nested": lambda a, b, c: {"layers": (Attention(a, {"w": b}, c), {})},
    "none": lambda a, b, c: {"a": None, "b": Optional(a, None), "c": c},
}


@forms
@pytest.mark.parametrize("container", CONTAINERS.values(), ids=CONTAINERS)
def test_params_may_be_in_any_container(form, container):
    """The leaves move as they do in a flat list, under a mask of the same structure as well."""
    tx = form(sgd())

    def tree(seed):
        return container(normal(seed, 3), normal(seed + 1, 2, 2), normal(seed + 2, 4))

    params, anchor, fisher, grads = tree(0), tree(5), jax.tree.map(jnp.abs, tree(10)), tree(15)
    for mask in (None, jax.tree.map(lambda p: p > 0, params)):
        new, opt_state = run(tx, params, protected(tx, params, anchor, fisher), grads, mask=mask)
        chex.assert_trees_all_equal_structs(new, params, plasticity(opt_state).anchor)
        params_, anchor_, fisher_, grads_, mask_ = map(
            jax.tree.leaves, (params, anchor, fisher, grads, mask)
        )
        expected, _ = run(
            tx, params_, protected(tx, params_, anchor_, fisher_), grads_, mask=mask_ or None
        )
        assert_close(jax.tree.leaves(new), expected)


# --- Flax and Orbax -------------------------------------------------------------------------------


@pytest.mark.parametrize("form", [add, proximal])
def test_in_a_linen_train_state(form):
    tx = form(sgd())
    state = TrainState.create(apply_fn=None, params=PARAMS, tx=tx)
    whole = wpl_jax.consolidate(state, ANCHOR, FISHER)
    part = state.replace(opt_state=wpl_jax.consolidate(state.opt_state, ANCHOR, FISHER))
    assert_same_bits(whole.opt_state, part.opt_state)
    assert_same_bits(whole.params, PARAMS)
    for _ in range(3):
        whole = whole.apply_gradients(grads=GRADS)
    assert_close(whole.params, run(tx, PARAMS, protected(tx), GRADS)[0])
    assert wpl_jax.plasticity_loss(whole, whole.params, 1.0) > 0
    assert wpl_jax.plasticity_loss(wpl_jax.flush(whole), whole.params, 1.0) == 0


class Network(nnx.Module):
    def __init__(self):
        self.linear = nnx.Linear(3, 2, rngs=nnx.Rngs(0))
        self.gain = nnx.Param(jnp.array(0.5))
        self.calls = nnx.Variable(jnp.array(0))  # not a parameter

    def __call__(self, x):
        return self.gain[...] * jnp.tanh(self.linear(x)).sum()


GRAPH, NNX_PARAMS, NNX_REST = nnx.split(Network(), nnx.Param, ...)


def nnx_nll(params, example):
    network = nnx.merge(GRAPH, params, NNX_REST)
    return 0.5 * jnp.square(network(example["x"]) - example["y"])


def nnx_gradient(params):
    return jax.grad(lambda params: jax.vmap(nnx_nll, (None, 0))(params, BATCH).mean())(params)


def nnx_network():
    return nnx.merge(GRAPH, jax.tree.map(jnp.copy, NNX_PARAMS), jax.tree.map(jnp.copy, NNX_REST))


@functools.cache
def nnx_expected(form):
    """What the steps below should give, on a plain dictionary."""
    tx = form(sgd())
    params = nnx.to_pure_dict(NNX_PARAMS)
    estimate = jax.jit(wpl_jax.empirical_fisher(nnx_nll))
    gradient = jax.jit(nnx_gradient)
    opt_state = tx.init(params)
    for i in range(4):
        updates, opt_state = tx.update(gradient(params), opt_state, params)
        params = optax.apply_updates(params, updates)
        if i == 1:
            opt_state = wpl_jax.consolidate(opt_state, params, estimate(params, BATCH))
    return params, float(wpl_jax.plasticity_loss(opt_state, params, 1.0))


@pytest.mark.parametrize("form", [add, proximal])
@pytest.mark.parametrize("jit", [lambda f: f, nnx.jit], ids=["eager", "nnx.jit"])
def test_in_an_nnx_optimizer(form, jit):
    network = nnx_network()
    optimizer = nnx.Optimizer(network, form(sgd()), wrt=nnx.Param)

    @nnx.jit
    def step(network, optimizer):
        optimizer.update(network, nnx_gradient(nnx.state(network, nnx.Param)))

    @jit
    def finish(network, optimizer):
        params = nnx.state(network, nnx.Param)
        fisher = wpl_jax.empirical_fisher(nnx_nll)(params, BATCH)
        optimizer.opt_state = wpl_jax.consolidate(optimizer.opt_state, params, fisher)

    for i in range(4):
        step(network, optimizer)
        if i == 1:
            finish(network, optimizer)
    params, loss = nnx_expected(form)
    assert_close(nnx.to_pure_dict(nnx.state(network, nnx.Param)), params)
    actual = wpl_jax.plasticity_loss(optimizer.opt_state, nnx.state(network, nnx.Param), 1.0)
    assert actual == pytest.approx(loss, rel=1e-4) and loss > 0
    optimizer.opt_state = wpl_jax.flush(optimizer.opt_state)
    step(network, optimizer)
    assert wpl_jax.plasticity_loss(optimizer.opt_state, params, 1.0) == 0


def test_one_step_in_an_nnx_optimizer():
    network = nnx_network()
    tx = wpl_jax.weight_plasticity(sgd(), strength=STRENGTH, nll=nnx_nll)
    optimizer = nnx.Optimizer(network, tx, wrt=nnx.Param)

    @nnx.jit
    def step(network, optimizer, last):
        grads = nnx_gradient(nnx.state(network, nnx.Param))
        optimizer.update(network, grads, batch=BATCH, consolidate=last)

    for i in range(4):
        step(network, optimizer, jnp.array(i == 1))
    params, _ = nnx_expected(add)
    assert_close(nnx.to_pure_dict(nnx.state(network, nnx.Param)), params)


@forms
def test_a_run_resumed_from_orbax_equals_an_uninterrupted_one(form, tmp_path):
    tx = form(adamw())
    train = trainer(tx)
    params, opt_state = train(PARAMS, protected(tx), steps=2)
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "state", {"params": params, "opt_state": opt_state})
        checkpointer.wait_until_finished()
        fresh = {"params": PARAMS, "opt_state": tx.init(PARAMS)}
        restored = checkpointer.restore(tmp_path / "state", fresh)
    assert_same_bits(restored["opt_state"], opt_state)
    resumed = train(restored["params"], restored["opt_state"], steps=2)
    assert_same_bits(resumed, train(params, opt_state, steps=2))


# --- JAX's transformations ------------------------------------------------------------------------


@pytest.mark.parametrize("form", [weight, weight_proximal])
def test_steps_in_a_scan(form):
    tx = form(sgd())
    step = one_step(tx)
    lasts = jnp.array([False, True, False, True])

    @jax.jit
    def scanned(params, opt_state):
        def body(carry, last):
            return step(*carry, BATCH, last), None

        return jax.lax.scan(body, (params, opt_state), lasts)[0]

    params, opt_state = PARAMS, tx.init(PARAMS)
    for last in lasts:
        params, opt_state = step(params, opt_state, BATCH, last)
    assert_close(scanned(PARAMS, tx.init(PARAMS)), (params, opt_state))


def stack(*trees):
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


@pytest.mark.parametrize("form", [weight, weight_proximal])
def test_vmap_over_seeds(form):
    """Parameters, states, batches and the end of a model may all differ between seeds."""
    tx = form(sgd())
    step = one_step(tx)
    seeds = [normal_like(PARAMS, seed) for seed in (0, 10)]
    batches = [BATCH, jax.tree.map(lambda x: 2 * x, BATCH)]
    params = stack(*seeds)
    opt_state = jax.vmap(tx.init)(params)
    for lasts in ([True, False], [False, False]):
        params, opt_state = jax.vmap(step)(params, opt_state, stack(*batches), jnp.array(lasts))
    for i, last in enumerate([True, False]):
        expected = step(seeds[i], tx.init(seeds[i]), batches[i], last)
        expected = step(*expected, batches[i], False)
        assert_close(jax.tree.map(lambda x, i=i: x[i], (params, opt_state)), expected)


@forms
def test_vmap_over_strengths(form):
    def step(strength):
        tx = form(sgd(), strength)
        return run(tx, PARAMS, protected(tx), GRADS)[0]

    strengths = jnp.array([0.0, 1.0, 50.0])
    results = jax.jit(jax.vmap(step))(strengths)
    for i, strength in enumerate(strengths):
        assert_close(jax.tree.map(lambda r, i=i: r[i], results), step(strength))


# --- Errors ---------------------------------------------------------------------------------------

TX = wpl_jax.add_plasticity(1.0)
STATE = TX.init(PARAMS)
WITHOUT_BIAS = {**PARAMS, "hidden": {"kernel": PARAMS["hidden"]["kernel"]}}
WITH_MORE = {**PARAMS, "more": jnp.ones(2)}
TRANSPOSED = {**PARAMS, "hidden": jax.tree.map(jnp.transpose, PARAMS["hidden"])}


@pytest.mark.parametrize(
    "call",
    [
        lambda tree: TX.update(tree, STATE, PARAMS),
        lambda tree: TX.update(GRADS, STATE, tree),
        lambda tree: wpl_jax.proximal_plasticity(1.0, 0.1).update(GRADS, STATE, tree),
        lambda tree: wpl_jax.consolidate(STATE, tree, FISHER),
        lambda tree: wpl_jax.plasticity_loss(STATE, tree, 1.0),
    ],
    ids=["updates", "params", "proximal", "consolidate", "plasticity_loss"],
)
@pytest.mark.parametrize(
    ("tree", "message"),
    [
        (WITHOUT_BIAS, r"has no leaf at \['hidden'\]\['bias'\].*shape \(2,\)"),
        (WITH_MORE, r"has a leaf at \['more'\].*none"),
        (TRANSPOSED, r"shape \(2, 3\) at \['hidden'\]\['kernel'\].*have \(3, 2\)"),
    ],
    ids=["missing", "extra", "shape"],
)
def test_trees_that_do_not_match(call, tree, message):
    with pytest.raises(ValueError, match=message):
        call(tree)


HYPERPARAMETERS = {
    "add_plasticity": ("strength", wpl_jax.add_plasticity),
    "proximal_plasticity": ("strength", lambda v: wpl_jax.proximal_plasticity(v, 0.1)),
    "proximal_rate": ("learning_rate", lambda v: wpl_jax.proximal_plasticity(1.0, v)),
    "weight_plasticity": ("strength", lambda v: weight(sgd(), v)),
    "weight_rate": ("learning_rate", lambda v: weight(sgd(), 1.0, learning_rate=v)),
    "fisher_decay": ("fisher_decay", lambda v: weight(sgd(), 1.0, fisher_decay=v)),
    "weight_max_norm": ("max_norm", lambda v: weight(sgd(), 1.0, max_norm=v)),
    "plasticity_loss": ("strength", lambda v: wpl_jax.plasticity_loss(STATE, PARAMS, v)),
    "decay": ("decay", lambda v: wpl_jax.consolidate(STATE, PARAMS, FISHER, decay=v)),
    "max_norm": ("max_norm", lambda v: wpl_jax.consolidate(STATE, PARAMS, FISHER, max_norm=v)),
}


@pytest.mark.parametrize(("name", "call"), HYPERPARAMETERS.values(), ids=HYPERPARAMETERS)
@pytest.mark.parametrize("value", [-1.0, np.nan, np.inf, np.float32(-1), jnp.array(-2.0), -1])
def test_hyperparameters_must_be_finite_and_not_negative(name, call, value):
    with pytest.raises(ValueError, match=f"{name} must be finite and not negative, got {value}"):
        call(value)


@pytest.mark.parametrize(("name", "call"), HYPERPARAMETERS.values(), ids=HYPERPARAMETERS)
@pytest.mark.parametrize("value", ["1", {"w": 1.0}])
def test_hyperparameters_must_be_numbers(name, call, value):
    with pytest.raises(ValueError, match=f"{name} must be a number or an array of one, got"):
        call(value)


def test_a_schedule_must_give_a_scalar():
    with pytest.raises(ValueError, match=r"a schedule must give a scalar, got one of shape \(2,\)"):
        wpl_jax.add_plasticity(lambda count: jnp.ones(2)).init(PARAMS)


@pytest.mark.parametrize(("name", "call"), HYPERPARAMETERS.values(), ids=HYPERPARAMETERS)
@pytest.mark.parametrize("value", [np.ones(2), jnp.ones((1, 1))])
def test_hyperparameters_must_be_scalars(name, call, value):
    with pytest.raises(ValueError, match=rf"{name} must be a scalar, .* \({value.shape[0]},"):
        call(value)


FINDERS = {
    "consolidate": lambda state: wpl_jax.consolidate(state, PARAMS, FISHER),
    "flush": wpl_jax.flush,
    "plasticity_loss": lambda state: wpl_jax.plasticity_loss(state, PARAMS, 1.0),
}


@pytest.mark.parametrize("find", FINDERS.values(), ids=FINDERS)
def test_there_must_be_one_plasticity_state(find):
    with pytest.raises(ValueError, match="no plasticity state: was it made by .*add_plasticity"):
        find(adamw().init(PARAMS))
    tx = optax.chain(TX, optax.identity(), wpl_jax.proximal_plasticity(1.0, 0.1))
    opt_state = tx.init(PARAMS)
    with pytest.raises(ValueError, match=r"2 plasticity states, at \[0\], \[2\]: pass the part"):
        find(opt_state)
    find(opt_state[2])  # as the message says


def test_consolidating_in_update_needs_batch_and_nll():
    tx = wpl_jax.weight_plasticity(sgd(), strength=1.0)
    opt_state = tx.init(PARAMS)
    tx.update(GRADS, opt_state, PARAMS)  # without consolidate, neither
    with pytest.raises(ValueError, match="consolidate needs nll"):
        tx.update(GRADS, opt_state, PARAMS, batch=BATCH, consolidate=True)
    with pytest.raises(ValueError, match="consolidate needs batch"):
        weight(sgd()).update(GRADS, opt_state, PARAMS, consolidate=jnp.array(True))
    with pytest.raises(ValueError, match="microbatch_size must be at least 1"):
        weight(sgd(), microbatch_size=0)


# --- Imports --------------------------------------------------------------------------------------


def test_import_brings_nothing_but_jax_optax_and_chex():
    program = """
import sys
import chex, jax, optax
before = set(sys.modules)
import wpl_jax
print(*sorted(set(sys.modules) - before))
"""
    output = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, check=True, text=True
    ).stdout.split()
    packages = {name.partition(".")[0] for name in output} - set(sys.stdlib_module_names)
    assert packages - {"jax"} == {"wpl_jax"}, output
