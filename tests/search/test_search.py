"""The search against a plain loop, on recurrent cells and on a space small enough to enumerate."""

import dataclasses
import functools
import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from wpl_jax.search import WPL, Data, Plain, Reinforced, Search, SearchConfig, Uniform, evaluation
from wpl_jax.search.controller import Controller
from wpl_jax.spaces.rnn import RNN

UNITS = 5

# --- A space that can be enumerated, and searches of it -------------------------------------------


@dataclasses.dataclass(frozen=True)
class Toy:
    """Linear regression: each decision adds one of its weight vectors, and has its own cost.

    The costs are so large beside what training can gain that (1, 0, 2) is the best architecture.
    """

    noise: float = 0.0
    decisions = (3, 1, 4)

    @property
    def costs(self):
        return jnp.array([[0.6, 0.0, 1.2, 0.0], [0.0] * 4, [0.9, 0.5, 0.0, 1.5]])

    def decode(self, actions):
        return actions

    def init(self, key):
        return {"arms": 0.1 * jax.random.normal(key, (3, 4, UNITS)), "shared": jnp.ones(UNITS)}

    def mask(self, architecture):
        return {"arms": jax.nn.one_hot(architecture, 4, dtype=bool)[..., None], "shared": True}

    def rows(self, architecture):
        return {"arms": architecture[:, None], "shared": ...}

    def num_batches(self, split):
        return len(split)

    def batch(self, split, step, key=None):
        return split[step % len(split)]

    def start(self, batch):
        return jnp.zeros([])

    def residual(self, params, architecture, batch, carry):
        arms = params["arms"]
        own = arms[:, 0] if arms.shape[1] == 1 else arms[jnp.arange(3), architecture]
        weights = params["shared"] + own.sum(0)
        return batch[:, :-1] @ weights - batch[:, -1] + 0.1 * carry

    def loss(self, params, architecture, batch, carry, key):
        residual = self.residual(params, architecture, batch, carry)
        if key is not None and self.noise:
            residual += self.noise * jax.random.normal(key, residual.shape)
        return jnp.mean(residual**2) / 2, carry / 2 + residual.mean()

    def score(self, params, architecture, batch, carry):
        residual = self.residual(params, architecture, batch, carry)
        cost = self.costs[jnp.arange(3), architecture].sum()
        total = jnp.sum(residual**2 + cost)
        return (total, jnp.float32(len(batch))), carry / 2 + residual.mean()

    def error(self, mean_score):
        return mean_score

    def reward(self, error):
        return jnp.where(jnp.isfinite(error), 1 / (1 + error), 0.0)


ALL = np.indices(Toy.decisions).reshape(3, -1).T.astype(np.int32)
OPTIMUM = (1, 0, 2)


def regression(seed, batches):
    """Inputs and what weights of 1, 1, … make of them: float [batches, examples, UNITS + 1]."""
    inputs = np.random.default_rng(seed).normal(size=(batches, 8, UNITS))
    return jnp.float32(np.concatenate([inputs, inputs.sum(-1, keepdims=True)], axis=-1))


def text(seed, windows, sequences=4, time=5, vocabulary=11):
    words = np.random.default_rng(seed).integers(vocabulary, size=(windows, sequences, time + 1))
    return jnp.int32(words)


# Most of the time is LLVM's: its optimisations are off. They also contract products and sums into
# one rounding, here in one program and not in another.
jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


@functools.cache
def compiled(search):
    return jit(lambda state, data: search.step(state, data), donate_argnums=0)


def copy(state):
    """By NumPy, which needs no program for each shape."""
    return jax.tree.map(jnp.array, jax.device_get(state))


def run(search, data, steps, state):
    """The states after each step, ``state`` first, and what each step reported."""
    states, progress = [state], []
    for _ in range(steps):
        state, report = compiled(search)(copy(state), data)
        states.append(state)
        progress.append(report)
    return states, progress


def assert_same_bits(actual, expected):
    chex.assert_trees_all_equal_shapes_and_dtypes(actual, expected)
    for a, e in zip(*map(jax.tree.leaves, (raw(actual), raw(expected))), strict=True):
        assert np.asarray(a).tobytes() == np.asarray(e).tobytes(), (a, e)


def raw(tree):
    """The tree with keys as the numbers in them, and one NaN: a GPU has another than a CPU."""

    def of_leaf(leaf):
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            return jax.random.key_data(leaf)
        return np.where(leaf == leaf, leaf, np.nan).astype(leaf.dtype)

    return jax.tree.map(of_leaf, tree)


def same_bits(actual, expected):
    try:
        assert_same_bits(actual, expected)
    except AssertionError:
        return False
    return True


# REINFORCE, with noise in training; explicit plasticity from the second epoch on.
TOY = Search(
    Toy(noise=0.1),
    SearchConfig(
        architectures=4,
        batches=2,
        chunk=1,
        eval_batches=2,
    ),
    optax.sgd(0.1, momentum=0.5),
    Reinforced(steps=80, samples=2, learning_rate=0.01),
    WPL(strength=1.0, warmup_epochs=1, flush_every=2),
)
TOY_DATA = Data(regression(0, 5), regression(1, 3))


@functools.cache
def initial(search):
    return jit(search.init)


def begun(search, seed):
    return initial(search)(jax.random.key(seed))


@functools.cache
def toy_run():
    return run(TOY, TOY_DATA, 12, begun(TOY, 0))


# --- A known optimum ------------------------------------------------------------------------------


def test_reinforce_finds_the_best_architecture():
    states, progress = toy_run()
    rewards = [report.epoch.reward.mean() for report in progress if report.finished]
    assert len(rewards) == 3
    assert rewards[0] < rewards[1] < rewards[2] and rewards[2] > rewards[0] + 0.1
    entropies = np.concatenate([report.epoch.entropy for report in progress if report.finished])
    assert abs(entropies[0] - np.log(12)) < 0.05 and entropies[-50:].mean() < 1

    controller = Controller(Toy.decisions)
    log_prob = jit(lambda params: controller.apply(params, ALL, method="log_prob")[0])
    log_probs, before = (np.asarray(log_prob(states[i].sampler.params)) for i in (-1, 0))
    assert tuple(ALL[log_probs.argmax()]) == OPTIMUM and log_probs.max() > np.log(0.8)
    assert before.max() < np.log(0.12)


def test_random_search_samples_uniformly():
    """Before training and after it, whatever the errors; it has no controller to train."""
    n = 6_000
    search, data = PLAIN_LOOPS["toy, proximal, all"]
    states, progress = plain_run("toy, proximal, all")
    rank = jit(lambda state, key: search.rank(state, data.validation, key, n, 1))
    for state in (states[0], states[-1]):
        actions, _ = rank(state, jax.random.key(3))
        counts = (np.asarray(actions)[:, None] == ALL[None]).all(-1).sum(0)
        assert counts.sum() == n
        deviation = (counts - n / 12) / np.sqrt(n / 12 * (11 / 12))
        assert np.abs(deviation).max() < 4
    assert not jax.tree.leaves(states[-1].sampler)
    for report in progress:
        assert report.epoch.reward.size == report.epoch.entropy.size == 0
    trained = np.concatenate([r.epoch.actions for r in progress if r.finished])
    assert len(np.unique(trained, axis=0)) > 4  # it is not one architecture all the time


# --- A plain loop ---------------------------------------------------------------------------------

LEARNING_RATE, MOMENTUM, DECAY = 0.1, 0.8, 0.01


def plain_loop_search(space, data, **options):
    """A search that a plain loop can follow: nothing random in a loss, one batch to validate on."""
    config = SearchConfig(architectures=3, batches=2, chunk=1, eval_batches=1)
    method = WPL(warmup_epochs=1, flush_every=2, fisher_decay=0.3, **options)
    optimizer = optax.chain(
        optax.add_decayed_weights(DECAY), optax.sgd(LEARNING_RATE, momentum=MOMENTUM)
    )
    return Search(space, config, optimizer, Uniform(), method), data


CELLS = RNN(
    **{"vocabulary": 11, "nodes": 4, "units": UNITS, "init_scale": 0.5},
    **{"input_dropout": 0.0, "output_dropout": 0.0},
    **{"drop_connect": 0.0, "embedding_dropout": 0.0},
)
# 99 is not a word: the loss of this window is NaN, and every fifth step is skipped.
TEXT = Data(text(0, windows=5).at[3, 0, -1].set(99), text(1, windows=1))
NUMBERS = Data(regression(2, 5).at[3, 0, 0].set(jnp.nan), regression(3, 1))
PLAIN_LOOPS = {
    "cells, explicit, edges": plain_loop_search(
        CELLS, TEXT, protect="edges", fisher_max_norm=4e-3, strength=lambda count: 200.0 * count
    ),
    "toy, proximal, all": plain_loop_search(
        *(Toy(), NUMBERS),
        **{"protect": "all", "fisher_max_norm": 0.3, "strength": lambda count: 3.0 * count},
        learning_rate=lambda count: LEARNING_RATE * (1 + count / 10),
    ),
    "toy, strength 0": plain_loop_search(
        Toy(), NUMBERS, protect="all", fisher_max_norm=None, strength=0.0
    ),
}
# Twelve architectures. The first three are the warm-up; the Fisher goes after nine.
plain_loops = pytest.mark.parametrize("name", PLAIN_LOOPS)
plastic_loops = pytest.mark.parametrize("name", list(PLAIN_LOOPS)[:2])


@functools.cache
def plain_run(name):
    search, data = PLAIN_LOOPS[name]
    return run(search, data, 12, begun(search, 1))


def memory(state):
    """What the optimiser remembers: momentum, anchor, Fisher."""
    return {name: optax.tree.get(state.opt_state, name) for name in ("trace", "anchor", "fisher")}


def inside(search, actions, params):
    """The mask of an architecture, in the shapes of the parameters."""
    mask = search.space.mask(search.space.decode(actions))
    return {
        name: jax.tree.map(lambda x, m=mask[name]: np.broadcast_to(m, x.shape), params[name])
        for name in params
    }


@functools.cache
def gradient_of(space):
    return jit(jax.value_and_grad(space.loss, has_aux=True), static_argnums=4)


@functools.cache
def evaluation_of(search):
    """Errors of several architectures, one after another."""

    def evaluate(params, actions, split):
        def one(actions):
            return search.evaluate(params, actions, split, search.config.eval_batches)

        return jax.lax.map(one, actions)

    return jit(evaluate)


def by_hand(search, data, params, sampled, plasticity=True):
    """What a search of the sampled actions should do, in NumPy but for losses and gradients.

    Yields, after each architecture, parameters, momentum, anchor, Fisher, err1, mean loss, skipped
    steps and their streak, and which tensors of the Fisher were clipped.
    """
    space, config, method = search.space, search.config, search.method
    gradient, evaluate = gradient_of(space), evaluation_of(search)
    shared = [name for name in params if name not in ("arms", "edges")]
    protected = {name: method.protect == "all" or name not in shared for name in params}

    flat, unflatten = jax.tree.flatten(jax.tree.map(np.float64, jax.device_get(params)))
    protected = jax.tree.leaves(
        {name: jax.tree.map(lambda _, p=protected[name]: p, params[name]) for name in params}
    )
    trace, fisher = ([np.zeros_like(x) for x in flat] for _ in range(2))
    anchor, count, skipped, streak, clipped = list(flat), 0, 0, 0, []

    def tree(leaves):
        return jax.tree.unflatten(unflatten, [np.float32(x) for x in leaves])

    for n, actions in enumerate(sampled):
        epoch = n // config.architectures
        architecture = space.decode(actions)
        mask = jax.tree.leaves(inside(search, actions, params))
        carry, losses = space.start(data.train[0]), []
        for i in range(config.batches):
            batch = data.train[(n * config.batches + i) % len(data.train)]
            (loss, carry), grads = gradient(tree(flat), architecture, batch, carry, None)
            losses.append(loss)
            epsilon = method.strength(count) if plasticity else 0.0
            rate = method.learning_rate(count) if method.learning_rate else None
            count += 1
            if not np.isfinite(loss):
                skipped, streak, carry = skipped + 1, streak + 1, space.start(batch)
                continue
            streak = 0
            for k, g in enumerate(map(np.float64, jax.tree.leaves(grads))):
                theta, pull = flat[k], epsilon * fisher[k]
                if rate is None:
                    g = g + pull * (theta - anchor[k])
                moved = MOMENTUM * trace[k] + g + DECAY * theta
                new = theta - LEARNING_RATE * moved
                if rate is not None:
                    new = (new + rate * pull * anchor[k]) / (1 + rate * pull)
                trace[k] = np.where(mask[k], moved, trace[k])
                flat[k] = np.where(mask[k], new, theta)
        if epoch >= method.warmup_epochs and plasticity:
            batch = data.validation[0]
            _, grads = gradient(tree(flat), architecture, batch, space.start(batch), None)
            for k, g in enumerate(map(np.float64, jax.tree.leaves(grads))):
                if protected[k]:
                    new = np.where(mask[k], g**2, 0)
                    norm = np.linalg.norm(new)
                    clipped.append(norm > method.fisher_max_norm)
                    new *= min(1, method.fisher_max_norm / norm)
                    fisher[k] = np.where(mask[k], method.fisher_decay * fisher[k] + new, fisher[k])
                    anchor[k] = np.where(mask[k], flat[k], anchor[k])
        if n + 1 == 9:  # three epochs: that of the warm-up, and two more
            fisher = [np.zeros_like(f) for f in fisher]
        err1 = evaluate(tree(flat), actions[None], data.validation)
        yield {
            **{"params": tree(flat), "trace": tree(trace), "anchor": tree(anchor)},
            **{"fisher": tree(fisher), "err1": err1, "clipped": clipped},
            **{"loss": np.mean(losses), "skipped": skipped, "streak": streak},
        }


@plain_loops
def test_the_search_is_a_plain_loop(name):
    search, data = PLAIN_LOOPS[name]
    states, progress = plain_run(name)
    sampled = [state.actions[n % 3] for n, state in enumerate(states[1:])]
    plasticity = name != "toy, strength 0"
    expected = list(by_hand(search, data, states[0].params, sampled, plasticity))
    for state, report, wanted in zip(states[1:], progress, expected, strict=True):
        actual = {"params": state.params, **memory(state)}
        for key, tree in actual.items():
            chex.assert_trees_all_close(tree, wanted[key], rtol=1e-3, atol=1e-5)
        np.testing.assert_allclose(report.err1, wanted["err1"], rtol=1e-4)
        np.testing.assert_allclose(report.loss, [wanted["loss"]], rtol=1e-4)
        assert (state.skipped, state.streak) == (wanted["skipped"], wanted["streak"])
    assert 0 < states[-1].skipped < 12 and max(state.streak for state in states) == 1
    if plasticity:  # what was compared is not the same without it
        without = list(by_hand(search, data, states[0].params, sampled, plasticity=False))[-1]
        kept, moved = (
            optax.tree.norm(optax.tree.sub(states[-1].params, other))
            for other in (without["params"], states[0].params)
        )
        assert kept > 0.02 * moved
        assert {*expected[-1]["clipped"]} == {True, False}


# --- The order of events --------------------------------------------------------------------------


@plain_loops
def test_err1_is_measured_after_training_and_err2_at_the_end_of_the_epoch(name):
    search, data = PLAIN_LOOPS[name]
    states, progress = plain_run(name)
    evaluate = functools.partial(evaluation_of(search), split=data.validation)
    for end in (3, 6, 9, 12):
        epoch = progress[end - 1].epoch
        np.testing.assert_array_equal(epoch.actions, states[end].actions)
        for place in range(3):
            own = states[end - 2 + place]  # the state right after it was trained
            np.testing.assert_array_equal(own.actions[place], epoch.actions[place])
            err1 = evaluate(own.params, epoch.actions[place : place + 1])
            np.testing.assert_allclose(epoch.err1[place : place + 1], err1, rtol=1e-6)
            assert progress[end - 3 + place].err1[0] == epoch.err1[place]
            np.testing.assert_array_equal(progress[end - 3 + place].loss[0], epoch.loss[place])
        err2 = [evaluate(states[end].params, actions[None])[0] for actions in epoch.actions]
        np.testing.assert_allclose(epoch.err2, err2, rtol=1e-6)
        assert (np.abs(epoch.err2 - epoch.err1)[:2] > 1e-3).any()
        np.testing.assert_allclose(epoch.err2[2], epoch.err1[2], rtol=1e-6)


def test_a_step_says_whether_it_finished_an_epoch():
    states, progress = toy_run()
    assert [bool(report.finished) for report in progress] == 3 * [False, False, False, True]
    assert [int(state.trained) for state in states] == list(range(13))
    for report in progress:
        size = sum(np.count_nonzero(leaf) for leaf in jax.tree.leaves(report.epoch))
        assert (size > 100) == report.finished


def test_errors_are_of_the_first_batches_in_turn():
    """The mean over their examples, with the carry from one batch to the next."""
    space, params = TOY.space, begun(TOY, 2).params
    evaluate = jit(TOY.evaluate, static_argnums=3)
    for actions, batches in ((ALL[3], 1), (ALL[7], 3), (ALL[7], 4)):
        carry, squares = 0.0, []
        for i in range(batches):
            batch = np.float64(TOY_DATA.validation[i % 3])
            weights = params["shared"] + sum(params["arms"][i, a] for i, a in enumerate(actions))
            residual = batch[:, :-1] @ np.float64(weights) - batch[:, -1] + 0.1 * carry
            squares.append(residual**2)
            carry = carry / 2 + residual.mean()
        expected = np.mean(squares) + sum(space.costs[i, a] for i, a in enumerate(actions))
        actual = evaluate(params, actions, TOY_DATA.validation, batches)
        np.testing.assert_allclose(actual, expected, rtol=1e-5)


# --- Whose weights --------------------------------------------------------------------------------


@plain_loops
def test_weights_off_the_path_do_not_change(name):
    """Not by momentum, not by weight decay, not by plasticity; nor does what is known of them."""
    search, _ = PLAIN_LOOPS[name]
    states, _ = plain_run(name)
    for n, (before, after) in enumerate(zip(states[:-1], states[1:], strict=True)):
        mask = inside(search, after.actions[n % 3], before.params)
        known = [{"params": s.params, **memory(s)} for s in (before, after)]
        if n + 1 == 9:  # where the Fisher is flushed
            known = [{k: v for k, v in tree.items() if k != "fisher"} for tree in known]
        for key in known[0]:
            outside = [
                jax.tree.map(lambda x, m: np.asarray(x)[~m], tree[key], mask) for tree in known
            ]
            assert_same_bits(*outside)
        changed = jax.tree.map(lambda a, b: np.asarray(a != b), before.params, after.params)
        moved = jax.tree.map(lambda c, m: (c & m).any(), changed, mask)
        assert all(jax.tree.leaves(moved))


@pytest.mark.parametrize(
    "optimizer",
    [
        optax.adafactor(0.01, min_dim_size_to_factor=2),  # weights share its memory
        optax.masked(optax.sgd(0.1, momentum=0.5), {"arms": True, "shared": False}),
    ],
    ids=["adafactor", "masked"],
)
def test_weights_off_the_path_do_not_change_whatever_the_optimizer(optimizer):
    search = dataclasses.replace(TOY, optimizer=optimizer)
    states, _ = run(search, TOY_DATA, 3, begun(search, 0))
    for n, (before, after) in enumerate(zip(states[:-1], states[1:], strict=True)):
        own = inside(search, after.actions[n], before.params)["arms"]
        arms = [np.asarray(state.params["arms"]) for state in (before, after)]
        assert_same_bits(*(a[~own] for a in arms))
        assert (arms[0] != arms[1])[own].all()


@plastic_loops
def test_what_is_protected(name):
    """Edges that were trained, or all; anchored where they were left, from the warm-up's end."""
    search, _ = PLAIN_LOOPS[name]
    states, _ = plain_run(name)
    for n, state in enumerate(states[1:]):
        mask = inside(search, state.actions[n % 3], state.params)
        known = (
            states[0].params,
            state.params,
            memory(state)["anchor"],
            memory(state)["fisher"],
            mask,
        )
        for part in state.params:
            selective = part in ("arms", "edges")
            protected = n >= 3 and (search.method.protect == "all" or selective)
            leaves = zip(*[jax.tree.leaves(tree[part]) for tree in known], strict=True)
            for start, param, anchor, fisher, own in leaves:
                np.testing.assert_array_equal(anchor[own], (param if protected else start)[own])
                assert np.any(fisher[own]) == (protected and n + 1 != 9)  # flushed after the ninth
                assert protected or not np.any(fisher)


def test_strength_0_is_weight_sharing_without_plasticity():
    """Bit for bit the same as if the strength of a schedule happens to be 0."""
    states, progress = plain_run("toy, strength 0")
    search, data = PLAIN_LOOPS["toy, strength 0"]
    method = dataclasses.replace(search.method, strength=lambda count: 0.0 * count)
    scheduled = dataclasses.replace(search, method=method)
    others, reports = run(scheduled, data, 12, begun(scheduled, 1))
    for state, other in zip(states, others, strict=True):
        assert_same_bits(state._replace(opt_state=None), other._replace(opt_state=None))
        assert_same_bits(memory(state)["trace"], memory(other)["trace"])
    assert_same_bits(progress, reports)
    assert_same_bits(memory(states[-1])["anchor"], states[0].params)
    assert not any(map(np.any, jax.tree.leaves(memory(states[-1])["fisher"])))
    assert any(map(np.any, jax.tree.leaves(memory(others[-1])["fisher"])))
    plain = dataclasses.replace(search, method=Plain())
    assert_same_bits(run(plain, data, 12, begun(plain, 1)), (states, progress))


# --- The controller's turn ------------------------------------------------------------------------


def test_the_controller_learns_at_the_end_of_an_epoch():
    states, progress = toy_run()
    for report, before, after in zip(progress, states[:-1], states[1:], strict=True):
        for name in before.sampler._fields:
            same = same_bits(getattr(before.sampler, name), getattr(after.sampler, name))
            assert same != report.finished, name


def test_rewards_are_of_two_architectures_on_one_validation_batch():
    """And the baseline is their moving average."""
    states, progress = toy_run()
    evaluate = jit(lambda params, actions, split: TOY.evaluate(params, actions, split, 1))
    every = jax.vmap(jax.vmap(evaluate, (None, 0, None)), (None, None, 0))
    baseline = None
    for end in (4, 8, 12):
        errors = every(states[end].params, ALL, TOY_DATA.validation[:, None])
        rewards = np.asarray(1 / (1 + errors))
        means = (rewards[:, :, None] + rewards[:, None, :]).reshape(3, -1) / 2
        found = progress[end - 1].epoch.reward
        distances = np.abs(found[:, None, None] - means[None]).min(-1)  # to those of each batch
        assert distances.min(1).max() < 1e-6
        assert set(distances.argmin(1)) == {0, 1, 2}
        for reward in np.float64(found):
            baseline = reward if baseline is None else 0.95 * baseline + 0.05 * reward
        np.testing.assert_allclose(states[end].sampler.baseline, baseline, rtol=1e-5)


# --- Divergence -----------------------------------------------------------------------------------


def poisoned(state, decision, choice):
    arms = state.params["arms"].at[decision, choice].set(jnp.nan)
    return state._replace(params={**state.params, "arms": arms})


def test_a_step_that_is_not_finite_is_skipped_and_counted():
    search, data = PLAIN_LOOPS["toy, strength 0"]
    data = Data(jnp.nan_to_num(data.train), data.validation)
    start = poisoned(begun(search, 5), 0, 2)
    states, progress = run(search, data, 12, start)
    skipped = streak = 0
    streaks = []
    for n, (before, after) in enumerate(zip(states[:-1], states[1:], strict=True)):
        hit = after.actions[n % 3][0] == 2
        skipped, streak = (skipped + 2, streak + 2) if hit else (skipped, 0)
        streaks.append(streak)
        assert (after.skipped, after.streak) == (skipped, streak)
        assert np.isnan(progress[n].loss[0]) == np.isnan(progress[n].err1[0]) == hit
        same = [
            same_bits(before.params, after.params),
            same_bits(memory(before), memory(after)),
        ]
        assert same == [hit, hit]
    assert max(streaks) >= 4 and streaks[-1] < skipped and 0 in streaks
    rest = {**states[-1].params, "arms": states[-1].params["arms"].at[0, 2].set(0)}
    chex.assert_tree_all_finite((rest, memory(states[-1])["trace"]))


class Carrying(Toy):
    """One whose carry does not start at 0."""

    def start(self, batch):
        return jnp.ones([])


def test_after_a_skipped_step_the_carry_is_that_of_the_start():
    config = SearchConfig(architectures=1, batches=2, chunk=1, eval_batches=1, measure_every=1)
    search = Search(Carrying(), config, optax.sgd(0.1), Uniform(), Plain())
    train = regression(0, 2).at[0].set(jnp.nan)
    states, _ = run(search, Data(train, regression(1, 1)), 1, begun(search, 0))
    before, after = states
    assert after.skipped == 1

    def loss(params):
        return search.space.loss(params, after.actions[0], train[1], jnp.ones([]), None)[0]

    expected = jax.tree.map(lambda p, g: p - 0.1 * g, before.params, jax.grad(loss)(before.params))
    chex.assert_trees_all_close(after.params, expected, rtol=1e-5)


def test_what_diverged_does_not_reach_the_fisher_or_the_controller():
    states, _ = toy_run()
    actions = states[5].actions[0]  # what the fifth step will sample
    start = poisoned(states[4], 2, actions[2])
    states, progress = run(TOY, TOY_DATA, 4, start)
    np.testing.assert_array_equal(states[1].actions[0], actions)
    assert states[1].skipped == 2 and np.isnan(states[1].err1[0])
    assert optax.tree.get(states[1].opt_state, "rejected") >= 2 * UNITS
    chex.assert_tree_all_finite([memory(state)["fisher"] for state in states])
    chex.assert_tree_all_finite((states[-1].sampler.params, states[-1].sampler.baseline))
    diverged = np.isnan(progress[-1].epoch.err2)
    np.testing.assert_array_equal(diverged, states[-1].actions[:, 2] == actions[2])
    rewards = progress[-1].epoch.reward
    assert (rewards >= 0).all() and (rewards == 0).any() and (rewards > 0).any()


# --- One program ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["toy", "cells"])
def test_one_compilation_for_all_architectures_epochs_and_seeds(name):
    """And the buffers of the state are used again, where those of the data stay."""
    search, data = (TOY, TOY_DATA) if name == "toy" else PLAIN_LOOPS["cells, explicit, edges"]
    states, _ = toy_run() if name == "toy" else plain_run("cells, explicit, edges")
    assert len(np.unique(np.concatenate([state.actions for state in states]), axis=0)) >= 4
    others = Data(data.train[::-1], data.validation + 0)
    for seed, given in ((2, data), (3, others)):
        state = begun(search, seed)
        for _ in range(5):  # into a second epoch, and past the warm-up
            buffers = jax.tree.leaves(state)
            state, _ = compiled(search)(state, given)
            assert all(buffer.is_deleted() for buffer in buffers)
        assert not any(leaf.is_deleted() for leaf in jax.tree.leaves((state, given)))
    assert compiled(search)._cache_size() == 1


@plain_loops
def test_a_run_is_a_function_of_the_key(name):
    search, data = PLAIN_LOOPS[name]
    states, progress = plain_run(name)
    again = run(search, data, 12, begun(search, 1))
    assert_same_bits(again, (states, progress))
    assert not same_bits(begun(search, 2).params, states[0].params)


def test_the_key_decides_what_is_random_in_training():
    """Another key, from the same parameters on the same data."""
    states, _ = toy_run()
    first, other = (
        run(TOY, TOY_DATA, 4, copy(states[0])._replace(key=jax.random.key(key)))[0][-1]
        for key in (10, 11)
    )
    assert not np.allclose(first.params["shared"], other.params["shared"], atol=1e-4)
    assert not same_bits(first.sampler, other.sampler)


CHUNKED = dataclasses.replace(TOY, config=dataclasses.replace(TOY.config, chunk=4))


def test_a_chunk_is_as_many_steps():
    states, progress = toy_run()
    (*_, end), reports = run(CHUNKED, TOY_DATA, 3, begun(CHUNKED, 0))
    chex.assert_trees_all_close(raw(end), raw(states[-1]), rtol=1e-4, atol=1e-5)
    for i, report in enumerate(reports):
        singles = progress[4 * i : 4 * i + 4]
        assert report.finished and report.loss.shape == report.err1.shape == (4,)
        chex.assert_trees_all_close(report.epoch, singles[-1].epoch, rtol=1e-3, atol=1e-5)
        for name in ("loss", "err1"):
            expected = np.concatenate([getattr(single, name) for single in singles])
            np.testing.assert_allclose(getattr(report, name), expected, rtol=1e-4)


def test_many_seeds_at_once():
    keys = jax.random.split(jax.random.key(4), 2)
    starts = [initial(CHUNKED)(key) for key in keys]
    stacked = jit(lambda *states: jax.tree.map(lambda *leaves: jnp.stack(leaves), *states))(*starts)
    states, reports = jit(jax.vmap(CHUNKED.step, (0, None)))(stacked, TOY_DATA)
    reports = jax.device_get(reports)
    for seed, start in enumerate(starts):
        (_, state), (report,) = run(CHUNKED, TOY_DATA, 1, start)
        mine = jax.tree.map(lambda x, seed=seed: x[seed], (raw(states), reports))
        chex.assert_trees_all_close(mine, (raw(state), report), rtol=1e-3, atol=1e-3)
    assert not np.allclose(states.params["shared"][0], states.params["shared"][1], atol=1e-3)


# --- Ranking --------------------------------------------------------------------------------------


@pytest.mark.parametrize("at_once", [1, 5])
def test_rank(at_once):
    """The best first, those that diverged last; 17 are not a multiple of those at once."""
    state = poisoned(toy_run()[0][2], 2, 0)
    search = dataclasses.replace(TOY, config=dataclasses.replace(TOY.config, at_once=at_once))
    rank = jit(lambda state, key: search.rank(state, TOY_DATA.validation, key, 17, 3))
    actions, errors = rank(state, jax.random.key(0))
    diverged = np.asarray(actions)[:, 2] == 0
    assert 0 < diverged.sum() < 17 and not diverged[: -diverged.sum()].any()
    np.testing.assert_array_equal(np.isnan(errors), diverged)
    assert (np.diff(errors[~diverged]) >= 0).all() and errors[0] < errors[~diverged][-1]
    evaluate = jit(lambda a: TOY.evaluate(state.params, a, TOY_DATA.validation, 3))
    expected = [evaluate(a) for a in actions]
    np.testing.assert_allclose(errors, expected, rtol=1e-6)
    assert len(np.unique(actions, axis=0)) > 6
    others, _ = rank(state, jax.random.key(1))
    assert not np.array_equal(actions, others)


@pytest.mark.parametrize(("backend", "rounds"), [("cpu", 20), ("gpu", 2), ("tpu", 2)])
def test_ten_are_measured_at_once_but_for_a_cpu(monkeypatch, backend, rounds):
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    measured = jax.make_jaxpr(lambda a: evaluation.in_turn(jnp.sum, a, None))(jnp.ones((20, 3)))
    assert [e.params["length"] for e in measured.eqns if e.primitive.name == "scan"] == [rounds]


def test_rank_samples_as_the_controller_does():
    state = toy_run()[0][-1]
    rank = jit(lambda key: TOY.rank(state, TOY_DATA.validation, key, 200, 1)[0])
    log_probs, _ = Controller(Toy.decisions).apply(state.sampler.params, ALL, method="log_prob")
    share = (np.asarray(rank(jax.random.key(0))) == np.array([OPTIMUM])).all(1).mean()
    p = math.exp(log_probs.max())
    assert abs(share - p) < 4 * math.sqrt(p * (1 - p) / 200)


# --- Errors ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        *[
            ({name: value}, f"{name} must be at least 1, got {value}")
            for name in ("architectures", "batches", "chunk", "eval_batches", "at_once")
            for value in (0, -1)
        ],
        ({"architectures": 6, "chunk": 4}, r"a divisor of architectures \(6\), got 4"),
        ({"architectures": 6, "chunk": 12}, r"a divisor of architectures \(6\), got 12"),
        ({"architectures": 6}, r"a divisor of architectures \(6\), got 60"),
        ({"batches": 2.5}, "batches must be a whole number, got 2.5"),
        ({"batches": "7"}, "batches must be a whole number, got '7'"),
    ],
)
def test_settings_that_cannot_work(settings, message):
    with pytest.raises(ValueError, match=message):
        SearchConfig(**settings)
