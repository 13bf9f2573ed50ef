"""Launches and waits are counted as often as they happen."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from benchmarks.launches import counts


def of(function, *arguments):
    return counts(jax.jit(function).lower(*arguments).compile().as_text())


X = jnp.ones((40, 40))


def scanned(length, body):
    def run(x, i):
        return jax.lax.scan(lambda x, _: (body(x, i), None), x, length=length)[0]

    return of(run, X, 1)


def chosen(x, i):
    return jax.lax.switch(i, [jnp.sin, lambda x: jnp.sort(x @ x) @ x, jnp.cos], x)


def test_a_loop_counts_as_often_as_it_runs():
    once, twice, often = (scanned(n, lambda x, i: jnp.sin(x @ x)) for n in (20, 40, 60))
    assert once.launches >= 20 and once.waits == 0
    assert often.launches - twice.launches == twice.launches - once.launches >= 20


def test_a_loop_within_a_loop():
    def inner(x, i):
        return jax.lax.fori_loop(0, 30, lambda _, x: jnp.sin(x @ x), x)

    assert scanned(20, inner).launches >= 600


@pytest.mark.parametrize("length", [20, 50])
def test_a_branch_is_a_wait_each_time(length):
    found = scanned(length, chosen)
    assert found.waits == found.branches == length


def test_a_branch_that_became_a_selection_is_none():
    found = of(jax.vmap(chosen), X[None], jnp.ones(1, jnp.int32))
    assert found.waits == 0 and found.launches > 0


def test_of_branches_the_longest_counts():
    short = of(lambda x, i: jax.lax.switch(i, [jnp.sin, jnp.cos], x), X, 1)
    assert of(chosen, X, 1).launches > short.launches


def test_a_loop_of_unknown_length_waits():
    found = of(lambda x: jax.lax.while_loop(lambda x: x.sum() < 1e9, lambda x: x @ x + x, x), X)
    assert (found.waits, found.branches) == (1, 0)


def test_text_that_is_no_program_is_refused():
    with pytest.raises(ValueError, match="not the text of a compiled program: 'hello'"):
        counts("hello")


@pytest.mark.slow
def test_the_published_search_for_recurrent_cells_waits_for_nothing():
    """Not even for which cell is trained: a bound on launches, and none on a decision."""
    program = "from benchmarks import launches as l; import json; print(json.dumps(l.table('rnn')))"
    # In a process of its own, whose compiler optimises, as that of the tests does not.
    without = ("XLA_FLAGS", "JAX_DISABLE_MOST_OPTIMIZATIONS", "JAX_COMPILATION_CACHE_DIR")
    env = {name: value for name, value in os.environ.items() if name not in without}
    command = [sys.executable, "-c", program]
    printed = subprocess.check_output(command, env=env, text=True, cwd=Path(__file__).parents[2])
    rows = {row["name"]: row["cells"] for row in json.loads(printed.splitlines()[-1])["rows"]}
    assert len(rows) == 5
    for _, launches, *waits in rows.values():
        assert int(launches.replace(",", "")) < 8_000
        assert waits == ["0", "0"]
