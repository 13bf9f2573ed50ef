"""`weight_plasticity`: training, the Fisher and the anchor in one step."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from forms import (
    BATCH,
    LEARNING_RATE,
    PARAMS,
    adamw,
    add,
    assert_close,
    assert_differ,
    assert_same_bits,
    both_weights,
    mean_gradient,
    nll,
    normal,
    normal_like,
    one_step,
    plasticity,
    protected,
    proximal,
    sgd,
    weight,
)

import wpl_jax


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


def cubes(params):
    return sum(jnp.sum(jnp.abs(x - 3) ** 3) for x in jax.tree.leaves(params))


def third_step(inner, params, mask):
    """The optimiser's state before and after a step in a mask, which comes after two without."""
    tx = wpl_jax.weight_plasticity(inner, strength=1.0)

    @jax.jit
    def step(params, opt_state, mask):
        value, grads = jax.value_and_grad(cubes)(params)
        searched = {"value": value, "grad": grads, "value_fn": cubes}
        updates, opt_state = tx.update(grads, opt_state, params, mask=mask, **searched)
        return optax.apply_updates(params, updates), opt_state

    opt_state = tx.init(params)
    for _ in range(2):
        params, opt_state = step(params, opt_state, True)
    return opt_state[1], step(params, opt_state, mask)[1][1]


LOOKING = {
    "lbfgs": optax.lbfgs(memory_size=4),
    "line_search": optax.chain(
        optax.adam(0.1), optax.scale_by_backtracking_linesearch(5, store_grad=True)
    ),
    "monitor": optax.chain(optax.monitor({"norm": optax.tree.norm}), optax.adam(0.1)),
}


@pytest.mark.parametrize("inner", LOOKING.values(), ids=LOOKING)
@pytest.mark.parametrize("container", [dict, lambda **tree: tuple(tree.values())])
def test_memory_of_what_looks_at_the_parameters_or_grows(inner, container):
    """A line search asks for the first parameter's dtype; a monitor begins with no measurement."""
    params = container(a=normal(0, 4, 4), b=normal(1, 3), c=normal(2))
    mask = container(a=np.array([[True], [False], [True], [True]]), b=False, c=False)
    old, new = third_step(inner, params, mask)
    last = jax.tree.leaves_with_path(params)[-1][0]
    moved = []
    for (path, was), now in zip(jax.tree.leaves_with_path(old), jax.tree.leaves(new), strict=True):
        if was.shape[-2:] == (4, 4):  # of L-BFGS several in one
            assert_same_bits(was[..., 1, :], now[..., 1, :])
            moved.append(np.any(was != now))
        elif was.shape[-1:] == (3,) or path[-1:] == last:
            assert_same_bits(was, now)
    assert len(moved) >= 2 and all(moved)
    assert {int(count) for _, count in optax.tree.get_all_with_path(new, "count")} == {3}
    if "weights_memory" in str(new):
        assert_differ(*(optax.tree.get(state, "weights_memory") for state in (old, new)))


@pytest.mark.parametrize("of", [lambda tree: tree, lambda tree: tree["a"]], ids=["tree", "array"])
def test_memory_in_another_basis_moves_as_a_whole(of):
    """GaLore's, also where it has the parameter's shape; that of a vector is entrywise."""
    inner = optax.contrib.galore(0.1, rank=128, update_proj_gap=2)
    params = of({"a": normal(0, 4, 4), "b": normal(1, 4)})
    rows = np.array([[True], [False], [True], [True]])
    entries = np.array([True, False, False, True])
    old, unmasked = third_step(inner, params, True)
    _, new = third_step(inner, params, of({"a": rows, "b": entries}))
    for name in ("projector", "mu", "nu"):
        was, whole, now = (optax.tree.get(state, name) for state in (old, unmasked, new))
        if isinstance(params, dict):
            if name != "projector":
                assert_same_bits(now["b"], jnp.where(entries, whole["b"], was["b"]))
            was, whole, now = was["a"], whole["a"], now["a"]
        assert_same_bits(now, whole)
        assert_differ(now, was)
    _, outside = third_step(inner, params, of({"a": False, "b": False}))
    for name in ("projector", "mu", "nu"):
        assert_same_bits(optax.tree.get(outside, name), optax.tree.get(old, name))


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


@both_weights
def test_a_parameter_without_an_update_stays(form):
    """It is consolidated with the others."""
    tx = form(sgd())
    grads = {**mean_gradient(PARAMS, BATCH), "gain": None}
    updates, opt_state = jax.jit(tx.update)(
        grads, tx.init(PARAMS), PARAMS, batch=BATCH, consolidate=True
    )
    assert updates["gain"] is None
    new_params = {**optax.apply_updates({**PARAMS, "gain": None}, updates), "gain": PARAMS["gain"]}
    assert_close(plasticity(opt_state).anchor, new_params)
    assert_close(plasticity(opt_state).fisher, wpl_jax.empirical_fisher(nll)(new_params, BATCH))


@pytest.mark.parametrize("wrap", [weight, wpl_jax.synaptic_intelligence])
@pytest.mark.parametrize("as_transformation", [False, True])
def test_extra_arguments_reach_what_takes_them(wrap, as_transformation):
    """Also through MultiSteps, whose type does not say so; others are not bothered with them."""

    def scaled(updates, state, params=None, *, value, **extra_args):
        return jax.tree.map(lambda u: value * u, updates), state

    takes = optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), scaled)
    steps = optax.MultiSteps(takes, 1)
    steps = steps.gradient_transformation() if as_transformation else steps
    for inner, factor in ((steps, 3.0), (takes, 3.0), (optax.identity(), 1.0)):
        tx = wrap(inner)
        updates, _ = tx.update(PARAMS, tx.init(PARAMS), PARAMS, value=3.0)
        assert_close(updates, jax.tree.map(lambda p, f=factor: f * p, PARAMS))
