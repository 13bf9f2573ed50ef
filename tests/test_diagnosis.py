"""diagnose: its numbers in closed form, each warning when and only when it is due, everywhere."""

import functools
import re
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from flax.training.train_state import TrainState

import wpl_jax

STRENGTH, LEARNING_RATE = 4.0, 0.5
PARAMS = {"kernel": jnp.array([[1.0, -1.0], [2.0, 0.5]]), "bias": jnp.array([3.0])}
ANCHOR = {"kernel": jnp.array([[0.0, -1.0], [2.0, 0.5]]), "bias": jnp.array([1.0])}
FISHER = {"kernel": jnp.array([[0.25, 0.0], [0.5, 0.125]]), "bias": jnp.array([0.75])}
GRADS = {"kernel": jnp.array([[3.0, 0.0], [0.0, 0.0]]), "bias": jnp.array([4.0])}


def protected(tx, params=PARAMS, anchor=ANCHOR, fisher=FISHER):
    return wpl_jax.consolidate(tx.init(params), anchor, fisher)


def diagnose(opt_state, params=PARAMS, learning_rate=LEARNING_RATE, **extra):
    return wpl_jax.diagnose(opt_state, params, learning_rate, **extra)


def weight(inner):
    return wpl_jax.weight_plasticity(inner, strength=STRENGTH)


def of_strength(strength, **trees):
    return protected(wpl_jax.add_plasticity(strength), **trees)


ADD = wpl_jax.add_plasticity(STRENGTH)
STATE = protected(ADD)

# --- Numbers --------------------------------------------------------------------------------------

# c = 0.5 * 4 * F: [[0.5, 0], [1, 0.25]], [1.5]; the pull 4 F (params - anchor): 1 and 6, else 0.
EXPECTED = {
    "consolidations": 1,
    "rejected": 0,
    "count": 0,
    "proximal": False,
    "strength": 4,
    "learning_rate": 0.5,
    "max_fisher": 0.75,
    "stability": 1.5,
    "frozen": 2 / 5,
    "loss": 2 * (0.25 * 1 + 0.75 * 4),
    "gradient_ratio": 37**0.5 / 5,
}


def assert_found(diagnosis, **expected):
    actual = {name: np.asarray(getattr(diagnosis, name)) for name in expected}
    chex.assert_trees_all_close(actual, jax.tree.map(np.asarray, expected), rtol=1e-6)


@pytest.mark.parametrize("jit", [lambda f: f, jax.jit], ids=["eager", "jit"])
def test_numbers_in_closed_form(jit):
    found = jit(wpl_jax.diagnose)(STATE, PARAMS, LEARNING_RATE, GRADS)
    assert_found(found, **EXPECTED)
    assert found.warnings() == []


def test_the_gradient_ratio_is_that_of_the_gradients():
    pull = jax.grad(lambda params: wpl_jax.plasticity_loss(STATE, params, STRENGTH))(PARAMS)
    ratio = optax.tree.norm(pull) / optax.tree.norm(GRADS)
    assert_found(diagnose(STATE, grads=GRADS), gradient_ratio=ratio)
    assert diagnose(STATE).gradient_ratio is None
    # At the anchor nothing pulls; a loss whose gradient vanishes leaves the pull alone.
    zeros = jax.tree.map(jnp.zeros_like, GRADS)
    assert diagnose(STATE, ANCHOR, grads=zeros).gradient_ratio == 0
    assert diagnose(STATE, grads=zeros).gradient_ratio == jnp.inf
    partial = diagnose(STATE, grads={**GRADS, "bias": None})  # where nothing is updated
    assert_found(partial, gradient_ratio=37**0.5 / 3)


def test_above_2_and_only_there_the_additive_form_moves_away():
    """The stability number is what it says: on the term alone, distances grow beyond it."""
    for strength in (2.0, 5.0, 5.5, 20.0):
        tx = optax.chain(wpl_jax.add_plasticity(strength), optax.sgd(LEARNING_RATE))
        params, opt_state = PARAMS, protected(tx)
        for _ in range(20):
            zeros = jax.tree.map(jnp.zeros_like, params)
            updates, opt_state = tx.update(zeros, opt_state, params)
            params = optax.apply_updates(params, updates)
        grown = abs(params["bias"] - ANCHOR["bias"]) > abs(PARAMS["bias"] - ANCHOR["bias"])
        assert grown == (diagnose(opt_state, params).stability > 2)


def test_a_frozen_weight_keeps_at_most_half_of_a_step():
    """Exactly those that `frozen` counts, in the proximal form."""
    tx = wpl_jax.proximal_plasticity(STRENGTH, LEARNING_RATE)
    step = jax.tree.map(jnp.ones_like, PARAMS)
    updates, opt_state = tx.update(step, protected(tx, anchor=PARAMS), PARAMS)
    held = np.concatenate([np.ravel(u) for u in jax.tree.leaves(updates)]) <= 0.5
    assert_found(diagnose(opt_state), frozen=held.mean())


def test_schedules():
    """The strength is that of the update that was, the learning rate that of the update to come."""
    tx = wpl_jax.add_plasticity(lambda n: 3.0 * (n + 1))
    opt_state = protected(tx)
    assert_found(diagnose(opt_state), count=0, strength=3)
    for count, strength in ((1, 3), (2, 6)):
        _, opt_state = tx.update(GRADS, opt_state, PARAMS)
        rate = 1 / (1 + count)
        expected = {
            "strength": strength,
            "learning_rate": rate,
            "stability": rate * strength * 0.75,
        }
        found = diagnose(opt_state, learning_rate=lambda n: 1 / (1 + n))
        assert_found(found, count=count, **expected)


def test_a_strength_that_is_changed_between_updates():
    tx = optax.inject_hyperparams(wpl_jax.add_plasticity)(strength=STRENGTH)
    opt_state = protected(tx)
    opt_state.hyperparams["strength"] = jnp.float32(9.0)
    _, opt_state = tx.update(GRADS, opt_state, PARAMS)
    assert_found(diagnose(opt_state), strength=9)


def test_in_low_precision_and_in_double():
    for dtype in (jnp.bfloat16, jnp.float64):
        with jax.enable_x64(dtype == jnp.float64):
            params, anchor, grads = optax.tree.cast((PARAMS, ANCHOR, GRADS), dtype)
            found = diagnose(protected(ADD, params, anchor), params, grads=grads)
            assert_found(found, **EXPECTED)
            assert {n.dtype for n in found.not_finite.values()} == {jnp.dtype(jnp.int32)}


# --- Wherever consolidate finds the state ---------------------------------------------------------

WRAPPERS = {
    "add": optax.chain(ADD, optax.adam(0.1)),
    "proximal": optax.chain(optax.sgd(0.1), wpl_jax.proximal_plasticity(STRENGTH, 0.1)),
    "weight_plasticity": weight(optax.adam(0.1)),
    "named_chain": optax.named_chain(("plastic", ADD), ("sgd", optax.sgd(0.1))),
    "MultiSteps": optax.MultiSteps(weight(optax.sgd(0.1)), 2),
    "apply_if_finite": optax.apply_if_finite(ADD, 3),
    "inject_hyperparams": optax.inject_hyperparams(wpl_jax.add_plasticity)(strength=STRENGTH),
}


@pytest.mark.parametrize("jit", [lambda f: f, jax.jit], ids=["eager", "jit"])
@pytest.mark.parametrize("name", WRAPPERS)
def test_finds_the_state_in(name, jit):
    tx, expected = WRAPPERS[name], EXPECTED | {"proximal": name == "proximal"}
    find = jit(functools.partial(diagnose, grads=GRADS))
    assert find(tx.init(PARAMS)).consolidations == 0
    assert_found(find(protected(tx)), **expected)


COVERS_THE_KERNEL = {
    "masked": optax.masked(ADD, {"kernel": True, "bias": False}),
    "partition": optax.partition(
        {"plastic": ADD, "plain": optax.sgd(0.1)}, {"kernel": "plastic", "bias": "plain"}
    ),
}


@pytest.mark.parametrize("tx", COVERS_THE_KERNEL.values(), ids=COVERS_THE_KERNEL)
def test_counts_what_the_transformation_covers(tx):
    found = diagnose(protected(tx), grads=GRADS)
    assert_found(found, max_fisher=0.5, stability=1, frozen=1 / 4, loss=0.5, gradient_ratio=1 / 3)


def test_finds_the_state_in_flax():
    state = TrainState.create(apply_fn=None, params=PARAMS, tx=WRAPPERS["add"])
    assert diagnose(state).consolidations == 0
    assert_found(diagnose(wpl_jax.consolidate(state, ANCHOR, FISHER), grads=GRADS), **EXPECTED)

    model = nnx.Linear(2, 2, rngs=nnx.Rngs(0))
    params = nnx.state(model, nnx.Param)
    ones = jax.tree.map(jnp.ones_like, params)
    for name in ("add", "proximal"):
        optimizer = nnx.Optimizer(model, WRAPPERS[name], wrt=nnx.Param)
        optimizer.opt_state = wpl_jax.consolidate(optimizer.opt_state, params, ones)
        expected = {"stability": 2, "frozen": 1, "gradient_ratio": 0, "proximal": name != "add"}
        for jit in (lambda f: f, nnx.jit):
            found = jit(lambda o, p, g: diagnose(o, p, grads=g))(optimizer.opt_state, params, ones)
            assert_found(found, consolidations=1, count=0, **expected)
            assert found.warnings() == []


def test_counts_consolidations_inside_a_step():
    def nll(params, example):
        return example * jnp.sum(params["kernel"]) + jnp.sum(params["bias"])

    tx = wpl_jax.weight_plasticity(optax.sgd(0.1), strength=STRENGTH, nll=nll)
    opt_state = tx.init(PARAMS)
    for last in (False, True, False, True):
        _, opt_state = tx.update(GRADS, opt_state, PARAMS, batch=jnp.ones(3), consolidate=last)
    assert_found(diagnose(opt_state), consolidations=2, count=4)


# --- Warnings -------------------------------------------------------------------------------------

ZEROS = jax.tree.map(jnp.zeros_like, FISHER)
TINY = jax.tree.map(lambda f: 1e-12 * f, FISHER)
NAN = {**FISHER, "bias": jnp.array([jnp.nan])}
MESSAGES = {
    "consolidate": r"never consolidated, .*wpl_jax\.consolidate\(opt_state, params, fisher\)",
    "zero": "the Fisher is all zero",
    "strength": "the strength is 0 after 0 updates",
    "stability": r"stability number 15 > 2: .*proximal_plasticity.*strength <= [58]",
    "tiny": r"largest entry is 7\.5e-13.*mean over its positions.*at most 2\.67e\+12",
    "rejected": "consolidate has refused 1 entry",
}
CASES = {
    "none": ({}, []),
    "exactly 2": ({"opt_state": of_strength(16 / 3)}, []),
    "just above": ({"opt_state": of_strength(40.0)}, ["stability"]),
    "never": ({"opt_state": ADD.init(PARAMS)}, ["consolidate"]),
    "never, strong": ({"opt_state": wpl_jax.add_plasticity(1e9).init(PARAMS)}, ["consolidate"]),
    "flushed": ({"opt_state": wpl_jax.flush(STATE)}, ["zero"]),
    "zero": ({"opt_state": of_strength(STRENGTH, fisher=ZEROS)}, ["zero"]),
    "strength": ({"opt_state": of_strength(0.0)}, ["strength"]),
    "tiny": ({"opt_state": of_strength(STRENGTH, fisher=TINY)}, ["tiny"]),
    "tiny, and made up for": ({"opt_state": of_strength(4e12, fisher=TINY)}, []),
    "before a warmup": ({"learning_rate": 0.0}, []),
    "rejected": ({"opt_state": of_strength(STRENGTH, fisher=NAN)}, ["rejected"]),
    "rejected, strong": (
        {"opt_state": of_strength(60.0, fisher={**NAN, "bias": -FISHER["bias"]})},
        ["stability", "rejected"],
    ),
}


@pytest.mark.parametrize(("case", "expected"), CASES.values(), ids=CASES)
def test_warns_when_and_only_when_due(case, expected):
    found = diagnose(**{"opt_state": STATE, **case})
    warnings = found.warnings()
    assert len(warnings) == len(expected)
    for warning, name in zip(warnings, expected, strict=True):
        assert re.search(MESSAGES[name], warning)
        assert f"\nwarning: {warning}" in str(found)


PROXIMAL = {
    "alone": wpl_jax.proximal_plasticity(1e9, LEARNING_RATE),
    "in a chain": optax.chain(optax.sgd(0.5), wpl_jax.proximal_plasticity(1e9, 0.5)),
    "wrapped": wpl_jax.weight_plasticity(optax.sgd(0.5), strength=1e9, learning_rate=0.5),
}


@pytest.mark.parametrize("tx", PROXIMAL.values(), ids=PROXIMAL)
def test_the_proximal_form_is_stable_at_any_strength(tx):
    """Which form it is shows from the start, after an update, compiled or not, and consolidated."""
    states = [protected(tx)]
    for update in (tx.update, jax.jit(tx.update)):
        states.append(update(GRADS, states[-1], PARAMS)[1])
    states.append(wpl_jax.consolidate(states[-1], PARAMS, FISHER))
    for state in states:
        found = jax.jit(diagnose)(state)
        assert found.proximal and found.stability > 1e8
        assert found.warnings() == []
        assert "the proximal form is stable at any" in str(found)


def test_the_remedies_help():
    """What the warnings advise, followed, leaves nothing to warn of."""
    for strength, fisher, before in (
        (100.0, FISHER, "strength <= "),
        (STRENGTH, TINY, "at most "),
    ):
        (warning,) = diagnose(of_strength(strength, fisher=fisher)).warnings()
        advised = float(warning.rpartition(before)[2])
        assert diagnose(of_strength(advised, fisher=fisher)).warnings() == []


LATE = wpl_jax.proximal_plasticity(1.0, 0.1)
SGD = optax.sgd(0.1)
HEAD = {"kernel": False, "bias": True}
PLACES = {
    "right: additive": (optax.chain(ADD, optax.adam(0.1)), None),
    "right: proximal": (WRAPPERS["proximal"], None),
    "right: clipped": (optax.chain(optax.clip(1.0), optax.chain(ADD, optax.sgd(0.1))), None),
    "right: alone": (ADD, None),
    "right: clipped within": (optax.chain(optax.chain(optax.clip(1.0), ADD), SGD), None),
    "right: freeze": (optax.chain(SGD, LATE, optax.freeze(HEAD)), None),
    "right: masked": (optax.chain(SGD, LATE, optax.masked(optax.set_to_zero(), HEAD)), None),
    "right: partition": (
        optax.chain(
            SGD,
            LATE,
            optax.partition(
                {"on": optax.identity(), "off": optax.set_to_zero()},
                {"kernel": "on", "bias": "off"},
            ),
        ),
        None,
    ),
    "right: watched": (optax.chain(SGD, LATE, optax.snapshot("step", lambda u: u)), None),
    "right: measured": (optax.chain(SGD, LATE, optax.monitor({"step": optax.tree.norm})), None),
    "additive last but for what watches": (
        optax.chain(SGD, ADD, optax.snapshot("step", lambda u: u)),
        "additive term is last",
    ),
    "additive last": (optax.chain(optax.sgd(0.1), ADD), r"additive term is last.*chain\(add_pl"),
    "proximal first": (
        optax.chain(wpl_jax.proximal_plasticity(1.0, 0.1), optax.sgd(0.1)),
        r"something follows the proximal term.*chain\(optimizer, proximal_plasticity",
    ),
    "proximal, scaled": (optax.chain(SGD, LATE, optax.scale(0.5)), "something follows"),
    "proximal, scaled around": (
        optax.chain(optax.chain(SGD, LATE), optax.scale(0.5)),
        "something follows",
    ),
    "proximal, masked optimiser": (
        optax.chain(LATE, optax.masked(SGD, HEAD)),
        "something follows",
    ),
    "additive last but for freeze": (
        optax.chain(SGD, ADD, optax.freeze(HEAD)),
        "additive term is last",
    ),
}


@pytest.mark.parametrize(("tx", "message"), PLACES.values(), ids=PLACES)
def test_a_term_in_the_wrong_place_is_named(tx, message):
    """Where it pushes away from the anchor; not for what else lies beside an optimiser's state."""
    state = protected(tx)
    for opt_state in (state, (state, jnp.array(3)), (state, optax.adam(0.1).init(PARAMS))):
        if isinstance(state, wpl_jax.PlasticityState) and opt_state is not state:
            continue
        warnings = " ".join(diagnose(opt_state, learning_rate=1e-3).warnings())
        assert re.search(message, warnings) if message else "chain" not in warnings


class Weights(NamedTuple):
    kernel: jax.Array
    bias: jax.Array


@pytest.mark.parametrize(
    "params", [tuple(PARAMS.values()), Weights(**PARAMS), (Weights(**PARAMS),)]
)
def test_parameters_beside_a_term_are_no_transformation(params):
    masked = optax.masked(ADD, lambda tree: jax.tree.map(lambda x: x.ndim > 1, tree))
    for tx in (ADD, masked, wpl_jax.proximal_plasticity(STRENGTH, LEARNING_RATE)):
        state = wpl_jax.consolidate(tx.init(params), params, 1.0)
        counts = (jnp.array(3), jnp.array(4))
        for opt_state in ((params, state), (state, params), (counts, state), (state, counts)):
            warnings = diagnose(opt_state, params, learning_rate=1e-3).warnings()
            assert "chain" not in " ".join(warnings)


@pytest.mark.parametrize("where", ["the parameters", "the anchor", "the gradients"])
def test_what_is_not_finite_is_counted_and_left_out(where):
    """In each member of a stacked state."""
    trees = {"the parameters": PARAMS, "the anchor": ANCHOR, "the gradients": GRADS}
    stacked = {name: jax.tree.map(lambda x: jnp.stack([x, x]), t) for name, t in trees.items()}
    stacked[where]["bias"] = stacked[where]["bias"].at[1].set(jnp.nan)
    states = jax.vmap(lambda p: ADD.init(p))(stacked["the parameters"])
    fishers = jax.tree.map(lambda f: jnp.stack([f, f]), FISHER)
    states = states._replace(
        anchor=stacked["the anchor"], fisher=fishers, consolidations=jnp.ones(2, jnp.int32)
    )
    with jax.debug_nans(True):
        found = diagnose(states, stacked["the parameters"], grads=stacked["the gradients"])
    assert found.not_finite[where].tolist() == [0, 1]
    (warning,) = found.warnings()
    assert re.match(rf"model 1: not finite: 1 of {where};", warning)
    assert str(found).startswith("model 0\nconsolidations: 1")


def test_the_text_of_what_cannot_be_read_is_the_tuple():
    texts = []

    @jax.jit
    def step(opt_state):
        texts.append(str(diagnose(opt_state)))

    step(STATE)
    assert all(text.startswith("Diagnosis(") for text in texts)


# --- What users get wrong -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: diagnose(optax.adam(0.1).init(PARAMS)), "no plasticity state"),
        (lambda: diagnose(STATE, {"kernel": PARAMS["kernel"]}), r"params has no leaf at \['bias'"),
        (lambda: diagnose(STATE, {"params": PARAMS}), r"params has no leaf at \['bias'\]"),
        (lambda: diagnose(STATE, grads={**GRADS, "b": 1.0}), r"grads has a leaf at \['b'\]"),
        (lambda: diagnose(STATE, learning_rate=np.nan), "learning_rate must be finite"),
    ],
)
def test_refuses(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_consolidating_the_variables_or_another_models_weights():
    """The trees that are easily mistaken for the parameters, in a loop as people write it."""
    state = TrainState.create(apply_fn=None, params=PARAMS, tx=WRAPPERS["add"])
    for params, fisher, message in [
        ({"params": PARAMS}, FISHER, r"params has no leaf at \['bias'\]"),
        (state, FISHER, r"params has no leaf at \['bias'\]"),
        (PARAMS, {"params": FISHER}, r"fisher has a leaf at \['params'\]\['bias'\], .* none"),
        (PARAMS, {**FISHER, "kernel": jnp.ones((3, 2))}, r"\(3, 2\) at \['kernel'\].* \(2, 2\)"),
        (PARAMS, jnp.ones(2), r"fisher has an array of shape \(2,\) at the root, .* only a scalar"),
    ]:
        with pytest.raises(ValueError, match=message):
            wpl_jax.consolidate(state, params, fisher)
