"""The README fits on one screen or two, and its examples run."""

import re
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

README = (Path(__file__).parents[2] / "README.md").read_text()
OPTAX, NNX = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


@pytest.fixture(scope="module")
def names():
    """What the first example defines."""
    found = {}
    exec(OPTAX, found)
    return found


def test_it_is_short():
    assert len(README.encode()) <= 6 * 1024


def test_the_optax_example_holds_the_weight_that_a_depends_on(names):
    tx, params, opt_state = names["tx"], names["params"], names["opt_state"]
    assert names["fisher"]["w"].tolist() == [0.625, 0.0]
    moved = jax.tree.map(lambda p: p + 1, params)
    updates, _ = tx.update(jax.tree.map(jnp.zeros_like, params), opt_state, moved)
    assert updates["w"][0] < 0
    assert updates["w"][1] == 0


def test_the_nnx_example_goes_on_from_the_first(names, capsys):
    exec(NNX, dict(names))
    assert "consolidations: 1, updates: 110" in capsys.readouterr().out


@pytest.mark.parametrize(("code", "lines"), [(OPTAX, 8), (NNX, 10)])
def test_the_examples_are_as_short_as_they_look(code, lines):
    written = [line for line in code.splitlines() if line and not line.startswith("#")]
    assert len(written) == lines
