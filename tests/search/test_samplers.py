"""Samplers against exact enumeration."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.stats
from classifiers import ALL, NUMBERS, SPACE

from wpl_jax.search import (
    Balanced,
    Distillation,
    Distinct,
    Fair,
    MomentumGroups,
    Reinforced,
    Replay,
    Search,
    SearchConfig,
    Uniform,
)
from wpl_jax.search.samplers import _parametric_table
from wpl_jax.spaces.micro_cnn import MicroCNN
from wpl_jax.spaces.rnn import RNN

N = 6_000


def sample(sampler, n=N, seed=0, trained=0, space=SPACE):
    state = sampler.init(space, jax.random.key(100))
    draw = jax.jit(lambda key: sampler.sample(space, state, key, n, trained))
    actions = draw(jax.random.key(seed))
    assert actions.shape == (n, len(space.decisions)) and actions.dtype == jnp.int32
    return np.asarray(actions)


def is_likely(counts, probabilities):
    """Pearson's test, which such counts pass 9,999 times in 10,000."""
    expected = counts.sum() * np.asarray(probabilities)
    if counts[expected == 0].any():
        return False
    counts, expected = counts[expected > 0], expected[expected > 0]
    statistic = ((counts - expected) ** 2 / expected).sum()
    return statistic < scipy.stats.chi2.isf(1e-4, len(counts) - 1)


def counts_of(actions):
    """How often each of all architectures was sampled."""
    return (actions[:, None] == ALL[None]).all(-1).sum(0)


def of_number():
    """The probabilities of balanced sampling: those of a number have a third, in equal parts."""
    assert set(NUMBERS) == {1, 2, 3}
    return np.array([1 / 3 / (number == NUMBERS).sum() for number in NUMBERS])


LISTED = (ALL[:, None] == SPACE.distinct()[None]).all(-1).any(1)


RULES = {
    Uniform(): np.full(len(ALL), 1 / len(ALL)),
    Balanced(): of_number(),
    Distinct(): LISTED / LISTED.sum(),
}


@pytest.mark.parametrize("sampler", RULES, ids=str)
def test_samples_have_the_probabilities_of_the_rule(sampler):
    actions = sample(sampler)
    for rule, probabilities in RULES.items():  # and not those of the others
        assert is_likely(counts_of(actions), probabilities) == (rule == sampler)
    assert not np.array_equal(actions, sample(sampler, seed=1))
    rest = sampler.learn(SPACE, (), jax.random.key(0), None)
    assert rest[0] == () and rest[1].shape == rest[2].shape == (0,)


def test_balanced_probabilities_are_exact():
    """Sequentially, those of each architecture multiply to what the rule says."""
    numbers, table = _parametric_table(SPACE.parametric)
    assert numbers.tolist() == [1, 2, 3]
    for actions, number, expected in zip(ALL, NUMBERS, of_number(), strict=True):
        probability, left = 1 / 3, number
        for i, (choices, action) in enumerate(zip(SPACE.parametric, actions, strict=True)):
            share, parametric = table[i, left], sum(choices)
            is_parametric = choices[action]
            probability *= share / parametric if is_parametric else 1 - share
            probability /= 1 if is_parametric else len(choices) - parametric
            left -= is_parametric
        np.testing.assert_allclose(probability, expected, rtol=1e-12)


class Vast:
    """More architectures than any float64 could count."""

    decisions = (1000,) * 150
    parametric = ((True,) * 900 + (False,) * 100,) * 150


def test_balanced_does_not_overflow():
    assert 150 * math.log10(1000) > 308
    numbers, table = _parametric_table(Vast.parametric)
    assert numbers.tolist() == list(range(151)) and np.isfinite(table).all()
    actions = sample(Balanced(), 3_020, space=Vast())
    found = (actions < 900).sum(1)
    assert is_likely(np.bincount(found, minlength=151), np.full(151, 1 / 151))
    middle = actions[found == 75]  # where they are, is uniform
    assert is_likely(np.histogram(np.nonzero(middle < 900)[1], 10)[0], np.full(10, 0.1))


def test_fair_gives_each_choice_once_in_turn():
    actions = sample(Fair(), 48)
    for column, choices in zip(actions.T, SPACE.decisions, strict=True):
        turns = column.reshape(-1, choices)
        assert (np.sort(turns, axis=1) == np.arange(choices)[None]).all()
    assert len(np.unique(actions[:, 2].reshape(-1, 4), axis=0)) > 3  # orders differ by turn
    # A function of the number and of the run's key: not of the key of the draw, nor of n.
    np.testing.assert_array_equal(sample(Fair(), 5, seed=7, trained=17), actions[17:22])


class Alike:
    decisions = (3, 3)


def test_fair_is_uniform_over_runs_and_independent_between_decisions():
    def pairs(key):
        state = Fair().init(Alike(), key)
        return Fair().sample(Alike(), state, key, 1, 4)[0]

    actions = np.asarray(jax.jit(jax.vmap(pairs))(jax.random.split(jax.random.key(0), N)))
    counts = np.bincount(3 * actions[:, 0] + actions[:, 1], minlength=9)
    assert is_likely(counts, np.full(9, 1 / 9))


# --- What samplers ask of spaces ------------------------------------------------------------------


@pytest.mark.parametrize("space", [RNN(vocabulary=9, nodes=3), MicroCNN(nodes=2)], ids=type)
def test_spaces_say_which_choices_have_weights(space):
    assert tuple(map(len, space.parametric)) == space.decisions
    rng = np.random.default_rng(0)
    for _ in range(4):
        actions = rng.integers(space.decisions)
        number = sum(c[a] for c, a in zip(space.parametric, actions, strict=True))
        if isinstance(space, RNN):
            assert number == space.nodes - 1  # edges, each a matrix
        else:
            stored = space.to_json(space.decode(actions))
            edges = itertools.chain(*stored["normal"], *stored["reduction"])
            assert number == sum(edge["operation"].startswith("sep") for edge in edges)


@pytest.mark.parametrize(
    ("part", "name"),
    [
        ({"sampler": Distinct()}, "distinct"),
        ({"sampler": Balanced()}, "parametric"),
        ({"method": MomentumGroups()}, "parametric"),
        ({"method": Distillation()}, "log_probs"),
    ],
)
def test_what_a_space_lacks_is_said_at_construction(part, name):
    class Bare(Alike):
        pass

    with pytest.raises(ValueError, match=f"needs {name} of the space, which Bare does not have"):
        Search(Bare(), SearchConfig(), optax.sgd(0.1), **part)
    Search(Bare(), SearchConfig(), optax.sgd(0.1), Fair(), Replay())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"steps": 0}, "steps must be at least 1, got 0"),
        ({"samples": -1}, "samples must be at least 1, got -1"),
        ({"learning_rate": 0.0}, "learning_rate must be at least 1e-30, got 0.0"),
        ({"entropy_weight": math.nan}, "entropy_weight must be at least 0, got nan"),
        ({"baseline_decay": 1.0}, "baseline_decay must be below 1, got 1.0"),
    ],
)
def test_settings_that_cannot_work(settings, message):
    with pytest.raises(ValueError, match=message):
        Reinforced(**settings)
