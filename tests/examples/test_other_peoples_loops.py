"""Training loops in the style of Flax's examples get plasticity by diffs of three lines."""

import importlib.util
import itertools
import re
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import wpl_jax

LOOPS = Path(__file__).parents[2] / "examples" / "loops"


def pictures(seed):
    """Noise about one picture a class, other ones for each seed."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(10, size=96).astype(np.int32)
    images = rng.normal(size=(10, 8, 8, 1))[labels] + 0.1 * rng.normal(size=(96, 8, 8, 1))
    dataset = {"image": images.astype(np.float32), "label": labels}
    return dataset, dataset


def text(seed):
    """Each word is followed by one other, another one for each seed."""
    rng = np.random.default_rng(seed)
    follower = rng.permutation(13)
    columns = itertools.accumulate(range(8), lambda now, _: follower[now], initial=np.arange(13))
    return np.stack(list(columns), axis=1).astype(np.int32)


SMALL = {
    "mnist": ({"batch_size": 16, "num_epochs": 3, "learning_rate": 0.02}, pictures),
    "lm": (
        {"vocab_size": 13, "emb_dim": 16, "num_heads": 2, "num_layers": 1, "mlp_dim": 32}
        | {"max_len": 8, "batch_size": 8, "num_train_steps": 40}
        | {"learning_rate": 0.01, "warmup_steps": 10},
        text,
    ),
}
both_loops = pytest.mark.parametrize("name", ["mnist", pytest.param("lm", marks=pytest.mark.slow)])


def patched(name):
    """The loop with its diff applied."""
    source = (LOOPS / f"{name}.py").read_text()
    _, *hunks = re.split(r"^@@.*@@\n", (LOOPS / f"{name}.diff").read_text(), flags=re.MULTILINE)
    for hunk in hunks:
        lines = hunk.splitlines(keepends=True)
        before = "".join(line[1:] for line in lines if line[0] in " -")
        after = "".join(line[1:] for line in lines if line[0] in " +")
        assert source.count(before) == 1, f"{name}.diff does not fit {name}.py at\n{before}"
        source = source.replace(before, after)
    return source


def trained(source, name, tmp_path, monkeypatch):
    """The state after two data sets in turn, by the loop as if it were a file of one's own."""
    path = tmp_path / f"{name}_loop.py"
    path.write_text(source)
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, path.stem, module)
    spec.loader.exec_module(module)
    settings, data = SMALL[name]
    with jax.numpy_rank_promotion("allow"):  # these are other people's
        return module.train_and_evaluate(module.Config(**settings), [data(0), data(1)])


@both_loops
def test_a_diff_changes_at_most_three_lines(name):
    lines = (LOOPS / f"{name}.diff").read_text().splitlines()[2:]
    assert 0 < sum(line.startswith("+") for line in lines) <= 3
    assert sum(line.startswith("-") for line in lines) <= 3
    assert all(len(line) <= 101 for line in lines)
    compile(patched(name), name, "exec")


@both_loops
def test_the_loop_is_as_before_at_strength_0_and_else_protects(name, tmp_path, monkeypatch):
    consolidated = []

    def record(state, params, fisher):
        consolidated.append((params, fisher))
        return consolidate(state, params, fisher)

    consolidate = wpl_jax.consolidate
    monkeypatch.setattr(wpl_jax, "consolidate", record)
    plain = trained((LOOPS / f"{name}.py").read_text(), name, tmp_path, monkeypatch)
    moved = {}
    for strength in (0.0, 1000.0):
        source, changes = re.subn(r"strength=[\d.e]+", f"strength={strength}", patched(name))
        assert changes == 1
        state = trained(source, name, tmp_path, monkeypatch)
        if strength == 0:
            for leaf, expected in zip(
                jax.tree.leaves(state.params), jax.tree.leaves(plain.params), strict=True
            ):
                assert np.asarray(leaf).tobytes() == np.asarray(expected).tobytes()
        (first, fisher), (second, _) = consolidated
        consolidated.clear()
        distance = jax.tree.map(lambda f, a, b: jnp.sum(f * (a - b) ** 2), fisher, first, second)
        moved[strength] = optax.tree.sum(distance)
    assert 0 < moved[1000.0] < moved[0.0] / 2, moved
