"""The term with what others have: transformations, dtypes, containers, Flax, Orbax, JAX."""

import functools
import subprocess
import sys
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax
import orbax.checkpoint as ocp
import pytest
from flax import nnx
from flax.training.train_state import TrainState
from forms import (
    ANCHOR,
    BATCH,
    FISHER,
    GRADS,
    LEARNING_RATE,
    PARAMS,
    STRENGTH,
    adamw,
    add,
    assert_close,
    assert_differ,
    assert_same_bits,
    both_weights,
    forms,
    nll,
    normal,
    normal_like,
    one_step,
    plasticity,
    protected,
    proximal,
    run,
    sgd,
    trainer,
    weight,
    weight_proximal,
)

import wpl_jax

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


@pytest.mark.parametrize(
    ("tx", "pulled"),
    [
        (wpl_jax.add_plasticity(1.0, fisher_dtype=jnp.float64), 2 + 2j),
        (wpl_jax.proximal_plasticity(1.0, 1.0, fisher_dtype=jnp.float64), -1 - 1j),
    ],
    ids=["additive", "proximal"],
)
def test_a_wide_fisher_keeps_both_parts_of_complex_weights(tx, pulled):
    """2 + 2i away from the anchor, of importance 1: a gradient of that, or half of the way back."""
    with jax.enable_x64(True):
        params = jnp.array([2 + 2j], jnp.complex64)
        opt_state = protected(tx, params, jnp.zeros_like(params), jnp.ones(1))
        updates, _ = tx.update(jnp.zeros_like(params), opt_state, params)
        assert updates.item() == pulled


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
