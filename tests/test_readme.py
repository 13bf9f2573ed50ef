"""The README's example runs."""

import re
from pathlib import Path

import jax
import optax

README = (Path(__file__).parents[1] / "README.md").read_text()


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
