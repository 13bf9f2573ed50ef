"""The README's example runs, and its links and figures exist."""

import re
from pathlib import Path

import jax
import optax
import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def test_the_example_protects_what_it_consolidates():
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    names = {}
    exec(code, names)
    tx, params, opt_state = names["tx"], names["params"], names["opt_state"]
    fisher = optax.tree.get(opt_state, "fisher")["w"]
    assert (fisher > 0).all()
    grads = jax.tree.map(lambda p: p * 0, params)
    moved = jax.tree.map(lambda p: p + 1, params)
    updates, _ = tx.update(grads, opt_state, moved)
    assert (updates["w"] < 0).all()


@pytest.mark.parametrize("target", re.findall(r"\]\((?!https?:)([^)#]+)\)", README))
def test_what_the_readme_links_to_exists(target):
    assert (ROOT / target).exists()
