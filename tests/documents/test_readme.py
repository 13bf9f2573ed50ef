"""The README's examples run."""

import re
from pathlib import Path

import jax
import optax

README = (Path(__file__).parents[2] / "README.md").read_text()


FIRST, NNX = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


def run(code):
    names = {}
    exec(code, names)
    return names


def test_the_example_protects_what_it_consolidates():
    names = run(FIRST)
    tx, params, opt_state = names["tx"], names["params"], names["opt_state"]
    fisher = optax.tree.get(opt_state, "fisher")["w"]
    assert (fisher > 0).all()
    grads = jax.tree.map(lambda p: p * 0, params)
    moved = jax.tree.map(lambda p: p + 1, params)
    updates, _ = tx.update(grads, opt_state, moved)
    assert (updates["w"] < 0).all()


def test_the_nnx_example_protects_both_tasks(capsys):
    run(NNX)
    assert "consolidations: 2, updates: 200" in capsys.readouterr().out
