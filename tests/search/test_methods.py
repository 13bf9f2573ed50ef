"""Each method against a plain loop in NumPy, on a space of softmax regressions."""

import functools
import math

import classifiers
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from classifiers import CLASSES, SPACE, softmax

from wpl_jax.search import (
    WPL,
    Data,
    Distillation,
    L2Anchor,
    MomentumGroups,
    Replay,
    Search,
    SearchConfig,
    Trainee,
    Uniform,
)
from wpl_jax.search.methods.distillation import AverageState
from wpl_jax.search.methods.momentum import GroupsState

RATE, MOMENTUM, BATCHES, EPOCH, STEPS = 0.3, 0.8, 2, 3, 9
jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


def train_split():
    """With a batch that is not finite: every fifth step is skipped."""
    inputs, labels = classifiers.split(0, 5)
    return inputs.at[3, 0, 0].set(jnp.nan), labels


DATA = Data(train_split(), classifiers.split(1, 2))
METHODS = {
    "l2": L2Anchor(strength=0.7, warmup_epochs=1, protect="all"),
    "l2, proximal, edges": L2Anchor(strength=0.7, learning_rate=RATE),
    "replay": Replay(weight=0.4, memory=2),
    "replay, novel": Replay(weight=0.4, memory=3, novel=True),
    "momentum": MomentumGroups(groups=2, slope=0.8, steps=30),
    "distillation": Distillation(weight=0.6, temperature=2.0, decay=0.7),
}
methods = pytest.mark.parametrize("name", METHODS)


@functools.cache
def search_of(name):
    config = SearchConfig(architectures=EPOCH, batches=BATCHES, chunk=1, eval_batches=1)
    optimizer = optax.sgd(RATE, momentum=MOMENTUM)
    return Search(SPACE, config, optimizer, Uniform(), METHODS[name])


@functools.cache
def compiled(name):
    return jit(lambda state, data: search_of(name).step(state, data))


@functools.cache
def run(name):
    """The states, the first one first, and what each step reported."""
    states, reports = [search_of(name).init(jax.random.key(2))], []
    for _ in range(STEPS):
        state, report = compiled(name)(states[-1], DATA)
        states.append(state)
        reports.append(report)
    return states, reports


def sampled(name):
    return [np.asarray(state.actions)[n % EPOCH] for n, state in enumerate(run(name)[0][1:])]


def memory(state):
    """What is known of each weight: by name, a tree like the parameters."""
    if grouped := nodes(state.opt_state, GroupsState):
        return {i: optax.tree.get(m, "trace") for i, m in enumerate(grouped[0].memories)}
    found = {name: optax.tree.get(state.opt_state, name) for name in ("trace", "anchor", "fisher")}
    averages = nodes(state.opt_state, AverageState)
    return found | {"average": averages[0].average} if averages else found


def nodes(tree, kind):
    leaves = jax.tree.leaves(tree, is_leaf=lambda node: isinstance(node, kind))
    return [leaf for leaf in leaves if isinstance(leaf, kind)]


# --- By hand --------------------------------------------------------------------------------------


class Hand:
    """A plain search: parameters and momentum as dictionaries of NumPy arrays."""

    def __init__(self, method, params):
        self.method = method
        self.params = {name: np.float64(x) for name, x in params.items()}
        self.trace = {name: np.zeros_like(x) for name, x in self.params.items()}
        self.step = self.number = 0

    def gradient(self, actions, batch, carry):
        return classifiers.gradient(self.params, actions, batch, carry)

    def before(self, actions):
        pass

    def after(self, actions):
        pass

    def factor(self):
        return 1.0

    def moved(self, name, new):
        return new

    def train(self, actions):
        """An architecture's turn; the mean loss of its steps."""
        self.before(actions)
        own, carry, losses = classifiers.own(actions), np.zeros(CLASSES), []
        for i in range(BATCHES):
            batch = [x[(self.number * BATCHES + i) % len(x)] for x in DATA.train]
            loss, carry, grads = self.gradient(actions, batch, carry)
            losses.append(loss)
            if np.isfinite(loss):
                for name, grad in grads.items():
                    trace = MOMENTUM * self.trace[name] + grad
                    new = self.params[name] - RATE * self.factor() * trace
                    new = self.moved(name, new)
                    self.trace[name] = np.where(own[name], trace, self.trace[name])
                    self.params[name] = np.where(own[name], new, self.params[name])
                self.stepped(own)
            else:
                carry = np.zeros(CLASSES)
            self.step += 1
        self.after(actions)
        self.number += 1
        return np.mean(losses)

    def stepped(self, own):
        pass

    def known(self):
        return {"trace": self.trace}


class L2Hand(Hand):
    def __init__(self, method, params):
        super().__init__(method, params)
        self.anchor = dict(self.params)
        self.held = {name: np.zeros(x.shape, bool) for name, x in self.params.items()}

    def gradient(self, actions, batch, carry):
        loss, carry, grads = super().gradient(actions, batch, carry)
        if self.method.learning_rate is None:
            for name, theta in self.params.items():
                pull = self.held[name] * (theta - self.anchor[name])
                grads[name] = grads[name] + self.method.strength * pull
        return loss, carry, grads

    def moved(self, name, new):
        if self.method.learning_rate is None:
            return new
        weight = self.method.learning_rate * self.method.strength * self.held[name]
        return (new + weight * self.anchor[name]) / (1 + weight)

    def after(self, actions):
        if self.number // EPOCH >= self.method.warmup_epochs:
            for name, own in classifiers.own(actions).items():
                if self.method.protect == "all" or name == "arms":
                    self.anchor[name] = np.where(own, self.params[name], self.anchor[name])
                    self.held[name] = self.held[name] | own

    def known(self):
        fisher = {name: np.float64(held) for name, held in self.held.items()}
        return {"trace": self.trace, "anchor": self.anchor, "fisher": fisher}


class ReplayHand(Hand):
    archive: tuple = ()  # what the search has in its own, before each architecture

    def gradient(self, actions, batch, carry):
        loss, carry, grads = super().gradient(actions, batch, carry)
        if not self.archive:
            return loss, carry, grads
        share, own = self.method.weight, classifiers.own(actions)
        loss, grads = (1 - share) * loss, {k: (1 - share) * g for k, g in grads.items()}
        for other in self.archive:
            extra, _, more = super().gradient(other, batch, np.zeros(CLASSES))
            loss += share / len(self.archive) * extra
            for name in grads:
                grads[name] += share / len(self.archive) * own[name] * more[name]
        return loss, carry, grads


class MomentumHand(Hand):
    def __init__(self, method, params):
        super().__init__(method, params)
        self.traces = [dict(self.trace) for _ in range(method.groups)]
        rng = jax.random.randint(jax.random.key(0), (1000, 3), 0, jnp.array([SPACE.decisions]))
        self.mean = np.mean([self.complexity(actions) for actions in np.asarray(rng)])

    def complexity(self, actions):
        return math.log(sum(own.sum() for own in classifiers.own(actions).values()))

    def before(self, actions):
        number = sum(classifiers.used(actions))  # 1, 2 or 3: two bins, of 1 and 2, and of 3
        self.group = number // 3
        self.trace = self.traces[self.group]
        self.gamma = 1 - self.method.slope * (self.complexity(actions) - self.mean)
        assert 0 < self.gamma < 2

    def factor(self):
        return (1 - self.step / self.method.steps) ** (self.gamma - 1)

    def known(self):
        return dict(enumerate(self.traces))


class DistillationHand(Hand):
    def __init__(self, method, params):
        super().__init__(method, params)
        self.average = dict(self.params)

    def gradient(self, actions, batch, carry):
        inputs, labels = (np.asarray(x) for x in batch)
        loss, after, grads = super().gradient(actions, batch, carry)
        there, heat = labels >= 0, self.method.temperature
        p, q = (
            softmax(classifiers.logits(params, actions, np.float64(inputs), carry) / heat)[there]
            for params in (self.params, self.average)
        )
        weight = self.method.weight * heat**2 / there.sum()
        loss += weight * (q * np.log(q / p)).sum()
        extra = classifiers.spread(actions, weight * np.float64(inputs)[there].T @ (p - q) / heat)
        return loss, after, {name: grads[name] + extra[name] for name in grads}

    def stepped(self, own):
        for name, old in self.average.items():
            new = self.method.decay * old + (1 - self.method.decay) * self.params[name]
            self.average[name] = np.where(own[name], new, old)

    def known(self):
        return {"trace": self.trace, "average": self.average}


HANDS = {
    L2Anchor: L2Hand,
    Replay: ReplayHand,
    MomentumGroups: MomentumHand,
    Distillation: DistillationHand,
}


@methods
def test_a_search_is_a_plain_loop(name):
    states, reports = run(name)
    hand = HANDS[type(METHODS[name])](METHODS[name], states[0].params)
    plain = Hand(None, states[0].params)
    for before, after, report, actions in zip(
        states[:-1], states[1:], reports, sampled(name), strict=True
    ):
        if isinstance(hand, ReplayHand):
            filled = min(int(before.method.seen), hand.method.memory)
            hand.archive = tuple(np.asarray(before.method.actions)[:filled])
        loss = hand.train(actions)
        plain.train(actions)
        np.testing.assert_allclose(report.loss, [loss], rtol=1e-4)
        actual, expected = {"params": after.params} | memory(after), hand.known()
        for key, tree in (expected | {"params": hand.params}).items():
            for part, values in tree.items():
                np.testing.assert_allclose(actual[key][part], values, rtol=1e-3, atol=2e-5)
    assert 2 <= states[-1].skipped <= 5
    away = max(np.abs(hand.params[part] - plain.params[part]).max() for part in plain.params)
    assert away > 0.01  # plain training is something else


@methods
def test_what_is_not_the_architectures_own_does_not_change(name):
    states, _ = run(name)
    for before, after, actions in zip(states[:-1], states[1:], sampled(name), strict=True):
        known = [{"params": state.params} | memory(state) for state in (before, after)]
        for key in known[0]:
            for part, own in classifiers.own(actions).items():
                old, new = (np.asarray(tree[key][part])[~own] for tree in known)
                assert old.tobytes() == new.tobytes(), (key, part)


@methods
def test_a_resumed_run_is_one_run_by_one_program(name):
    states, _ = run(name)
    stored = jax.tree.map(lambda x: np.asarray(x), raw(states[4]))
    state = jax.tree.map(jnp.asarray, stored)
    state = state._replace(key=jax.random.wrap_key_data(state.key))
    for _ in range(STEPS - 4):
        state, _ = compiled(name)(state, DATA)
    for a, b in zip(*map(jax.tree.leaves, (raw(state), raw(states[-1]))), strict=True):
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()
    assert compiled(name)._cache_size() == 1


def raw(state):
    return state._replace(key=jax.random.key_data(state.key))


# --- Replay ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("seen", [0, 1, 5])
def test_the_gradient_of_replay_is_that_of_the_written_out_loss(seen):
    method = Replay(weight=0.4, memory=2)
    archive = jnp.array([[1, 0, 1], [2, 0, 3]])
    state = method.init(SPACE)._replace(actions=archive, seen=jnp.int32(seen))
    params, actions = SPACE.init(jax.random.key(0)), jnp.array([1, 0, 3])
    batch, carry = SPACE.batch(DATA.validation, 0, None), jnp.arange(3.0)

    def loss(params):
        there = archive[: min(seen, 2)]
        start = SPACE.start(batch)
        others = [SPACE.loss(params, a, batch, start, None)[0] for a in there]
        own = SPACE.loss(params, actions, batch, carry, None)[0]
        return 0.6 * own + 0.4 * sum(others) / len(others) if others else own

    key = jax.random.key(0)
    (value, _), grads = jit(functools.partial(method.gradient, SPACE))(
        *(state, (), params, actions, batch, carry, key)
    )
    wanted, expected = jax.value_and_grad(loss)(params)
    np.testing.assert_allclose(value, wanted, rtol=1e-6)
    plain = jax.grad(lambda p: SPACE.loss(p, actions, batch, carry, None)[0])(params)
    for part in params:
        np.testing.assert_allclose(grads[part], expected[part], atol=1e-6)
        away = np.abs(grads[part] - 0.6 * plain[part]).max()
        assert (away > 0.01) or not seen


def archives(method, rows, keys):
    """The archive after each of the architectures, for each key."""

    def one(key):
        def enter(state, inputs):
            i, actions = inputs
            trainee = Trainee(actions, actions, None, 0)
            key_of = jax.random.fold_in(key, i)
            state, _ = method.after(SPACE, state, (), None, trainee, None, key_of)
            return state, state

        xs = jnp.arange(len(rows)), jnp.asarray(rows)
        return jax.lax.scan(enter, method.init(SPACE), xs)[1]

    return jax.tree.map(np.asarray, jit(jax.vmap(one))(keys))


def test_the_archive_is_a_uniform_sample_of_all_that_have_trained():
    rows = np.stack([np.arange(10)] * 3, axis=1)
    found = archives(Replay(memory=3), rows, jax.random.split(jax.random.key(0), 3_000))
    assert found.seen[0].tolist() == list(range(1, 11))
    np.testing.assert_array_equal(found.actions[0, 2, :, 0], [0, 1, 2])
    counts = np.bincount(found.actions[:, -1, :, 0].ravel(), minlength=10) / 3_000
    assert np.abs(counts - 0.3).max() < 4 * math.sqrt(0.3 * 0.7 / 3_000)


def test_a_novel_archive_keeps_those_that_differ():
    rows = np.random.default_rng(0).integers(4, size=(40, 5))
    method = Replay(memory=4, novel=True)

    class Space:
        decisions = (4,) * 5

    state, archive, replaced = method.init(Space()), [], 0
    enter = jit(lambda state, a: method.after(None, state, (), None, trainee(a), None, None)[0])

    def trainee(actions):
        return Trainee(actions, actions, None, 0)

    def distance(a, b):
        return sum(x != y for x, y in zip(a, b, strict=True))

    for row in rows.tolist():
        state = enter(state, jnp.array(row))
        if len(archive) < 4:
            archive.append(row)
        else:
            k = int(np.argmin([distance(row, b) for b in archive]))
            rest = archive[:k] + archive[k + 1 :]
            if sum(distance(row, b) for b in rest) > sum(distance(archive[k], b) for b in rest):
                archive[k], replaced = row, replaced + 1
        assert np.asarray(state.actions)[: len(archive)].tolist() == archive
    assert 2 <= replaced <= 30


# --- Settings -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "settings", "message"),
    [
        (WPL, {"strength": -1.0}, "strength must be finite and not negative, got -1.0"),
        (WPL, {"strength": math.nan}, "strength must be finite and not negative"),
        (WPL, {"strength": 1.0, "flush_every": -1}, "flush_every must be at least 0, got -1"),
        (WPL, {"strength": 1.0, "fisher_decay": 1}, "fisher_decay must be below 1, got 1"),
        (WPL, {"strength": 1.0, "fisher_max_norm": -1}, "fisher_max_norm must be at least 0"),
        (
            L2Anchor,
            {"strength": 1.0, "warmup_epochs": -1},
            "warmup_epochs must be at least 0, got -1",
        ),
        (L2Anchor, {"strength": 1.0, "protect": "no"}, "protect must be edges or all, got 'no'"),
        (Replay, {"weight": 1.1}, "weight must be at most 1, got 1.1"),
        (Replay, {"memory": 0}, "memory must be at least 1, got 0"),
        (MomentumGroups, {"groups": 0}, "groups must be at least 1, got 0"),
        (MomentumGroups, {"slope": -1.0}, "slope must be at least 0, got -1.0"),
        (MomentumGroups, {"slope": 1.0}, "steps must be given with a slope of 1.0, got None"),
        (MomentumGroups, {"steps": 0}, "steps must be at least 1, got 0"),
        (Distillation, {"weight": math.inf}, "weight must be at most 1e\\+30, got inf"),
        (Distillation, {"temperature": 0.0}, "temperature must be at least 1e-30, got 0.0"),
        (Distillation, {"decay": 1.0}, "decay must be below 1, got 1.0"),
    ],
)
def test_settings_that_cannot_work(method, settings, message):
    with pytest.raises(ValueError, match=message):
        method(**settings)
