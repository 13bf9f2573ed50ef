"""The controller against a plain loop, an enumerated space and closed forms; what it learns."""

import functools
import itertools

import chex
import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import strategies as st
from scipy.special import expit, log_softmax

from wpl_jax.search.controller import Controller, reinforce_loss, update_baseline

SMALL = Controller(decisions=(3, 1, 2, 4), units=8, temperature=0.5)
RNN = Controller(decisions=(4, 1, 4, 2, 4, 3, 4), units=8)


def init(controller, seed):
    """Weights ten times as large as the initial ones, so that choices are far from uniform."""
    initial = functools.partial(controller.init, n=1, method="sample")
    leaves, structure = jax.tree.flatten(jax.eval_shape(initial, *[jax.random.key(0)] * 2))
    rng = np.random.default_rng(seed)
    drawn = [rng.uniform(-1, 1, leaf.shape) for leaf in leaves]
    return jax.tree.unflatten(structure, [jnp.asarray(leaf, jnp.float32) for leaf in drawn])


@functools.partial(jax.jit, static_argnums=(0, 3))
def sample(controller, params, key, n):
    return controller.apply(params, key, n, method="sample")


@functools.partial(jax.jit, static_argnums=0)
def log_prob(controller, params, actions):
    return controller.apply(params, actions, method="log_prob")


def everything(decisions):
    """All architectures of a space, shape (their number, decisions)."""
    return np.array(list(itertools.product(*map(range, decisions))))


# --- Distributions --------------------------------------------------------------------------------


def by_hand(controller, params, actions):
    """Log-probability and entropy of one architecture in float64, decision by decision."""
    params = jax.tree.map(np.float64, params["params"])
    cell, log_probability, entropy, previous = params["cell"], 0.0, 0.0, 0
    memory, hidden = np.zeros(controller.units), np.zeros(controller.units)
    for step, (choices, action) in enumerate(zip(controller.decisions, actions, strict=True)):
        inputs = params["embeddings"][step, previous]
        gates = {
            gate: inputs @ cell[f"i{gate}"]["kernel"]
            + hidden @ cell[f"h{gate}"]["kernel"]
            + cell[f"h{gate}"]["bias"]
            for gate in "ifgo"
        }
        memory = expit(gates["f"]) * memory + expit(gates["i"]) * np.tanh(gates["g"])
        hidden = expit(gates["o"]) * np.tanh(memory)
        logits = hidden @ params["heads"][step, :, :choices]
        logits = controller.tanh_constant * np.tanh(logits / controller.temperature)
        log_probs = log_softmax(logits)
        log_probability += log_probs[action]
        entropy -= np.exp(log_probs) @ log_probs
        previous = action
    return log_probability, entropy


@pytest.mark.parametrize("temperature, tanh_constant", [(5.0, 2.5), (0.7, 1.3)])
def test_a_plain_loop_gives_the_same(temperature, tanh_constant):
    controller = RNN.clone(temperature=temperature, tanh_constant=tanh_constant)
    params = init(controller, 0)
    drawn = sample(controller, params, jax.random.key(1), 20)
    expected = [by_hand(controller, params, actions) for actions in np.asarray(drawn.actions)]
    np.testing.assert_allclose(
        np.stack([drawn.log_probs, drawn.entropies], axis=1), expected, rtol=1e-5
    )


@pytest.mark.parametrize("n", [1, 500])
def test_log_prob_recomputes_what_sampling_gave(n):
    params = init(RNN, 0)
    actions, *sampled = sample(RNN, params, jax.random.key(1), n)
    chex.assert_shape([actions, *sampled], [(n, 7), (n,), (n,)])
    chex.assert_type([actions, *sampled], [jnp.int32, jnp.float32, jnp.float32])
    chex.assert_trees_all_close(log_prob(RNN, params, actions), tuple(sampled), rtol=1e-6)


@hypothesis.settings(max_examples=4, deadline=None)
@hypothesis.given(
    decisions=st.lists(st.integers(1, 12), min_size=1, max_size=8), seed=st.integers(0, 2**31 - 1)
)
def test_actions_are_choices_of_their_decisions(decisions, seed):
    controller = Controller(tuple(decisions), units=4)
    params = init(controller, seed)
    actions, log_probs, entropies = sample(controller, params, jax.random.key(seed), 200)
    assert (actions >= 0).all() and (actions < np.array([decisions])).all()
    assert np.isfinite(log_probs).all() and (log_probs <= 0).all()
    assert (entropies >= 0).all() and (entropies <= np.log(decisions).sum() + 1e-5).all()


def test_probabilities_sum_to_1_and_samples_follow_them():
    params, n = init(SMALL, 2), 50_000
    actions = everything(SMALL.decisions)
    probabilities = np.exp(np.float64(log_prob(SMALL, params, actions)[0]))
    np.testing.assert_allclose(probabilities.sum(), 1, rtol=1e-6)
    assert probabilities.max() > 10 * probabilities.min()

    drawn = sample(SMALL, params, jax.random.key(3), n).actions
    counts = (np.asarray(drawn)[:, None] == actions[None]).all(-1).sum(0)
    deviation = (counts - n * probabilities) / np.sqrt(n * probabilities * (1 - probabilities))
    assert np.abs(deviation).max() < 4


def test_the_mean_entropy_is_that_of_the_joint_distribution():
    params, n = init(SMALL, 2), 50_000
    log_probs, entropies = map(np.float64, log_prob(SMALL, params, everything(SMALL.decisions)))
    joint = -np.exp(log_probs) @ log_probs
    np.testing.assert_allclose(np.exp(log_probs) @ entropies, joint, rtol=1e-5)  # the chain rule
    assert np.ptp(entropies) > 0.1  # and not because all are alike
    for estimates in (drawn := sample(SMALL, params, jax.random.key(4), n))[2], -drawn.log_probs:
        assert abs(estimates.mean() - joint) < 4 * estimates.std() / np.sqrt(n)


# --- Masked choices -------------------------------------------------------------------------------


def test_a_larger_decision_elsewhere_changes_no_other():
    small, large = Controller((3, 2), units=8), Controller((3, 2, 7), units=8)
    params = init(large, 0)
    cut = {
        "cell": params["params"]["cell"],
        "heads": params["params"]["heads"][:2, :, :3],
        "embeddings": params["params"]["embeddings"][:2, :3],
    }
    expected, _ = log_prob(small, {"params": cut}, everything((3, 2)))
    got, _ = log_prob(large, params, everything((3, 2, 7)))
    marginal = jax.nn.logsumexp(got.reshape(6, 7), axis=1)
    np.testing.assert_allclose(marginal, expected, rtol=1e-5)


def test_masked_weights_have_no_effect_and_no_gradient():
    controller = Controller((2, 1, 5, 3), units=8)
    params = init(controller, 0)
    actions = everything(controller.decisions)
    valid = np.arange(5)[None] < np.array([controller.decisions]).T
    read = np.concatenate([np.arange(5)[None] < 1, valid[:-1]])  # the choices before each decision
    unused = {
        "cell": jax.tree.map(np.zeros_like, params["params"]["cell"]),
        "heads": np.broadcast_to(~valid[:, None, :], (4, 8, 5)),
        "embeddings": np.broadcast_to(~read[:, :, None], (4, 5, 8)),
    }
    changed = jax.tree.map(lambda p, u: jnp.where(u, 1e6, p), params, {"params": unused})
    chex.assert_trees_all_equal(
        log_prob(controller, changed, actions), log_prob(controller, params, actions)
    )

    def total(params):
        log_probs, entropies = controller.apply(params, actions, method="log_prob")
        return jnp.sum(log_probs * jnp.arange(30)) + jnp.sum(entropies)

    for grad, hidden in zip(
        *map(jax.tree.leaves, (jax.jit(jax.grad(total))(changed), unused)), strict=True
    ):
        assert np.isfinite(grad).all() and grad.any()
        assert not np.any(np.where(hidden, grad, 0))


def test_impossible_actions_have_probability_0():
    controller = Controller((4, 1, 3), units=8)
    actions = np.array([[0, 0, 3], [0, 1, 0], [4, 0, 0], [0, 0, -1], [9, -9, 9], [3, 0, 2]])
    log_probs, entropies = log_prob(controller, init(controller, 0), actions)
    assert np.isneginf(log_probs).tolist() == [True] * 5 + [False]
    assert np.isfinite(entropies).all()


def test_decisions_with_one_choice_cost_nothing():
    controller = Controller((1, 1, 1), units=8)

    @functools.partial(jax.jacrev, has_aux=True)
    def run(params):
        actions, *rest = controller.apply(params, jax.random.key(1), 10, method="sample")
        return rest, (actions, rest)

    for leaf in jax.tree.leaves(jax.jit(run)(init(controller, 0))):
        assert not leaf.any()


# --- Temperature and tanh constant ----------------------------------------------------------------


@pytest.mark.parametrize("temperature, tanh_constant", [(5.0, 2.5), (0.5, 1.0)])
def test_the_tanh_constant_bounds_the_logits_and_the_temperature_divides_them(
    temperature, tanh_constant
):
    controller = Controller((2,), 8, temperature, tanh_constant)
    params = init(controller, 0)
    column = params["params"]["heads"][0, :, :1]

    def log_odds(size):
        heads = size * jnp.concatenate([column, -column], axis=1)[None]
        changed = {"params": params["params"] | {"heads": heads}}
        log_probs, _ = log_prob(controller, changed, np.array([[0], [1]]))
        return np.subtract(*log_probs)

    unit = np.arctanh(log_odds(1e-2) / (2 * tanh_constant)) * temperature  # the first logit, / 100
    assert unit != 0
    for size in (0.1, 1.0):
        expected = 2 * tanh_constant * np.tanh(100 * size * unit / temperature)
        np.testing.assert_allclose(log_odds(size), expected, rtol=1e-3)
    np.testing.assert_allclose(abs(log_odds(1e6)), 2 * tanh_constant, rtol=1e-6)


def test_initial_weights_are_uniform_within_a_tenth():
    initial = functools.partial(Controller((4, 4)).init, n=1, method="sample")
    for param in jax.tree.leaves(jax.jit(initial)(jax.random.key(0), jax.random.key(1))):
        assert np.abs(param).max() <= 0.1
        assert abs(param.mean()) < 5 * 0.1 / np.sqrt(3 * param.size)
        np.testing.assert_allclose(param.std(), 0.1 / np.sqrt(3), rtol=0.2)


# --- Transformations ------------------------------------------------------------------------------


def test_one_trace_serves_all_keys_and_weights():
    traces = []

    @jax.jit
    def run(params, key):
        traces.append(None)
        return SMALL.apply(params, key, 4, method="sample")

    first, second = (run(init(SMALL, seed), jax.random.key(seed)) for seed in range(2))
    assert len(traces) == 1
    assert not np.array_equal(first.actions, second.actions)


def test_the_program_does_not_grow_with_the_decisions():
    def equations(steps):
        controller = Controller((4,) * steps, units=8)
        params = init(controller, 0)
        run = functools.partial(controller.apply, method="sample", n=4)
        return len(jax.make_jaxpr(run)(params, key=jax.random.key(0)).eqns)

    assert equations(2) == equations(20)


def test_vmap_over_weights_and_keys_is_a_scan_over_them():
    params = jax.tree.map(lambda *leaves: jnp.stack(leaves), *(init(SMALL, i) for i in range(3)))
    inputs = params, jax.random.split(jax.random.key(0), 3)

    def run(params, key):
        return SMALL.apply(params, key, 5, method="sample")

    together = jax.jit(jax.vmap(run))(*inputs)
    _, in_turn = jax.lax.scan(lambda _, each: (None, run(*each)), None, inputs)
    chex.assert_trees_all_close(together, in_turn, rtol=1e-5)


# --- REINFORCE ------------------------------------------------------------------------------------


def test_reinforce_loss_by_hand():
    log_probs, entropies = jnp.array([-1.0, -2.0]), jnp.array([0.5, 1.5])
    rewards, baseline = jnp.array([3.0, 1.0]), 1.5
    value, grads = jax.value_and_grad(reinforce_loss, argnums=(0, 1, 2, 3))(
        log_probs, entropies, rewards, baseline, 0.1
    )
    # -(-1 * 1.5 + -2 * -0.5) / 2 - 0.1 * 1
    np.testing.assert_allclose(value, 0.15, rtol=1e-6)
    expected = ([-0.75, 0.25], [-0.05, -0.05], [0.0, 0.0], 0.0)
    for got, wanted in zip(grads, expected, strict=True):
        np.testing.assert_allclose(got, wanted, rtol=1e-6)


def test_the_expected_gradient_is_that_of_the_expected_reward():
    params, actions = init(SMALL, 5), everything(SMALL.decisions)
    rewards, baseline = jnp.asarray(np.random.default_rng(0).normal(size=24), jnp.float32), 0.7
    probabilities = jnp.exp(log_prob(SMALL, params, actions)[0])

    def expected_reward(params):
        return jnp.exp(SMALL.apply(params, actions, method="log_prob")[0]) @ rewards

    def expected_loss(params):
        log_probs, entropies = SMALL.apply(params, actions, method="log_prob")
        weighted = baseline + 24 * probabilities * (rewards - baseline)  # the loss takes the mean
        return reinforce_loss(log_probs, entropies, weighted, baseline, 0.0)

    @jax.jit
    def grads(params):
        return jax.grad(expected_loss)(params), jax.grad(lambda p: -expected_reward(p))(params)

    chex.assert_trees_all_close(*grads(params), atol=1e-6)


def test_rewards_that_are_not_finite_change_nothing():
    log_probs, entropies = jnp.array([-1.0, -2.0, -3.0, -4.0]), jnp.ones(4)
    rewards = jnp.array([1.0, jnp.nan, jnp.inf, -jnp.inf])
    grads = jax.grad(reinforce_loss)(log_probs, entropies, rewards, 0.5)
    np.testing.assert_array_equal(grads, [-0.125, 0, 0, 0])
    np.testing.assert_allclose(update_baseline(2.0, rewards, 0.9), 0.9 * 2 + 0.1 * 1)
    assert update_baseline(2.0, rewards[1:], 0.9) == 2
    assert np.isnan(update_baseline(jnp.nan, rewards[1:], 0.9))
    assert not jax.grad(reinforce_loss)(log_probs, entropies, rewards, jnp.nan).any()


def test_the_baseline_is_a_moving_average_from_the_first_rewards_on():
    rewards, decay = np.random.default_rng(0).normal(size=(30, 4)).astype(np.float32), 0.8

    @jax.jit
    def run(rewards):
        def step(baseline, rewards):
            baseline = update_baseline(baseline, rewards, decay)
            return baseline, baseline

        return jax.lax.scan(step, jnp.float32(jnp.nan), rewards)[1]

    means = rewards.mean(1)
    for t, baseline in enumerate(run(rewards)):
        weights = (1 - decay) * decay ** np.arange(t, -1, -1)
        weights[0] = decay**t
        np.testing.assert_allclose(baseline, weights @ means[: t + 1], rtol=1e-4, atol=1e-6)


@functools.partial(jax.jit, static_argnums=0)
def learn(controller, params, table, key, entropy_weight):
    """Probabilities of all architectures after REINFORCE on noisy rewards from a table."""
    tx, n = optax.adam(2e-2), 16

    def step(carry, key):
        params, opt_state, baseline = carry
        action_key, noise_key = jax.random.split(key)
        actions, _, _ = controller.apply(params, action_key, n, method="sample")
        rewards = table[tuple(actions.T)] + 0.1 * jax.random.normal(noise_key, (n,))
        baseline = update_baseline(baseline, rewards)

        def loss(params):
            log_probs, entropies = controller.apply(params, actions, method="log_prob")
            return reinforce_loss(log_probs, entropies, rewards, baseline, entropy_weight)

        updates, opt_state = tx.update(jax.grad(loss)(params), opt_state, params)
        return (optax.apply_updates(params, updates), opt_state, baseline), None

    start = params, tx.init(params), jnp.float32(jnp.nan)
    return jax.lax.scan(step, start, jax.random.split(key, 300))[0][0]


def learned(table, entropy_weight, seed):
    """The table of probabilities that a controller has learned from the table of rewards."""
    controller, table = Controller(np.shape(table), units=16), jnp.array(table)
    start = jax.tree.map(lambda param: 0.1 * param, init(controller, seed))
    params = learn(controller, start, table, jax.random.key(seed), entropy_weight)
    log_probs, _ = log_prob(controller, params, everything(controller.decisions))
    return np.exp(log_probs).reshape(table.shape)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    "table",
    [
        pytest.param([0.0, 0.5, 0.2, 1.0, 0.8], id="bandit"),
        # The best second choice depends on the first; the best first one is the worst on average.
        pytest.param([[0.0, 1.0, 0.0], [0.6, 0.4, 0.5], [0.4, 0.5, 0.6]], id="two-step"),
    ],
)
def test_it_finds_the_best(table, seed):
    probabilities = learned(table, 1e-4, seed)
    assert probabilities.ravel()[np.argmax(table)] > 0.9, probabilities


@pytest.mark.parametrize("seed", range(3))
def test_the_entropy_bonus_keeps_what_is_equally_good(seed):
    """Pairs that match are rewarded: all three stay likely, the second choice made by the first.

    Reward plus 0.3 times entropy is largest for probabilities proportional to exp(reward / 0.3).
    """
    table = np.eye(3)
    best = np.exp(table / 0.3) / np.exp(table / 0.3).sum()
    np.testing.assert_allclose(learned(table, 0.3, seed), best, atol=0.08)


# --- Refusals -------------------------------------------------------------------------------------


@pytest.mark.parametrize("decisions", [(), (3, 0), (2, -1), (2.0, 3), ("ab",)])
def test_decisions_that_are_not_numbers_of_choices_are_refused(decisions):
    with pytest.raises(ValueError, match=r"decisions must be .* got \("):
        Controller(decisions)


@pytest.mark.parametrize("name", ["units", "temperature", "tanh_constant"])
def test_what_is_not_positive_is_refused(name):
    with pytest.raises(ValueError, match=f"{name} must be positive, got 0"):
        Controller((2,), **{name: 0})


@pytest.mark.parametrize(
    "actions, got",
    [
        (np.zeros((5, 3), int), r"int32 of shape \(5, 3\)"),
        (np.zeros(4, int), r"int32 of shape \(4,\)"),
        (np.zeros((2, 5, 4), int), r"int32 of shape \(2, 5, 4\)"),
        (np.zeros((5, 4), np.float32), r"float32 of shape \(5, 4\)"),
    ],
)
def test_actions_of_another_shape_or_type_are_refused(actions, got):
    params = init(SMALL, 0)
    with pytest.raises(ValueError, match=rf"integers of shape \(n, 4\), .* got {got}"):
        SMALL.apply(params, actions, method="log_prob")


def test_rewards_of_another_shape_are_refused():
    with pytest.raises(ValueError, match=r"got \(2,\), \(2,\) and \(2, 1\)"):
        reinforce_loss(jnp.zeros(2), jnp.zeros(2), jnp.zeros((2, 1)), 0.0)
