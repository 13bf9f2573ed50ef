"""Searches side by side in one program: each leaves what it leaves alone."""

import json
import os
import shlex
import signal

import chex
import jax
import numpy as np
import pytest

from experiments import search, search_many
from experiments.ranking import probes
from experiments.running import progress as running
from wpl_jax.checkpoint import Checkpoints

COMMON = (
    "--space examples.layers_space:Digits --epochs 2 --layers.width 8 --search.architectures 4 "
    "--search.chunk 2 --search.batches 3 --search.measure-every 2 --warmup-epochs 0 "
    "--derive-samples 3 --probes 4 --probe-every 1 --devices 1"
)
SEARCHES = [
    "--seed 0 --strength 10",
    "--seed 1 --strength 1000 --learning-rate 0.02 --weight-decay 0.001",
]


pytestmark = pytest.mark.usefixtures("undrawn")


def command(folder, searches=SEARCHES, common=COMMON):
    several = [
        f"--search={common} {flags} --out {shlex.quote(str(folder / str(i)))}"
        for i, flags in enumerate(searches)
    ]
    return [*several, "--out", str(folder / "all")]


def lines(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def same(found, wanted):
    """But for rounding, which may change how single examples are classified."""
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        if name != "seconds":
            tolerance = 1e-4 if name == "train_loss" else 0.01
            assert np.isclose(found[name] or 0, value or 0, rtol=tolerance, atol=tolerance), name


@pytest.fixture(scope="module")
def together(tmp_path_factory):
    folder = tmp_path_factory.mktemp("together")
    assert search_many.main(command(folder)) == 0
    return folder


@pytest.mark.parametrize("i", range(len(SEARCHES)))
def test_each_leaves_what_it_leaves_alone(together, tmp_path, i):
    flags = shlex.split(f"{COMMON} {SEARCHES[i]}")
    assert search.main([*flags, "--out", str(tmp_path)]) == 0
    folder = together / str(i)
    for found, wanted in zip(lines(folder), lines(tmp_path), strict=True):
        same(found, wanted)
    assert {p.name for p in folder.iterdir()} == {p.name for p in tmp_path.iterdir()}
    here, there = (json.loads((f / "summary.json").read_text()) for f in (folder, tmp_path))
    assert here.keys() == there.keys() and here["configuration"] == there["configuration"]
    kept, alone = probes.read(folder), probes.read(tmp_path)
    for name in ("epoch", "seed", "architectures"):
        np.testing.assert_array_equal(kept[name], alone[name])
    np.testing.assert_allclose(kept["loss"], alone["loss"], rtol=1e-3)
    states = []
    for out in (folder, tmp_path):  # it can go on, and be ranked
        job = search.prepare(search.parse([*flags, "--out", str(out), "--resume"]))
        with search.open_checkpoints(job) as checkpoints:
            assert checkpoints.latest() == 8
            states.append(checkpoints.restore(jax.eval_shape(job.search.init, jax.random.key(9))))
    together, alone = states
    np.testing.assert_array_equal(together.actions, alone.actions)
    chex.assert_trees_all_close(together.params, alone.params, rtol=1e-3, atol=1e-4)


def test_numbers_are_those_of_each(together):
    """And no search is that of another's seed, strength or learning rate."""
    losses = {tuple(line["train_loss"] for line in lines(together / str(i))) for i in range(2)}
    assert len(losses) == 2
    assert [lines(together / str(i))[0]["strength"] for i in range(2)] == [10, 1000]


def test_an_interrupted_one_goes_on(together, tmp_path, monkeypatch, capsys):
    class Display(running.Display):
        def show(self, done, **numbers):
            super().show(done, **numbers)
            if self._epoch == 1 and done == 2:
                os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(search_many, "Display", Display)
        assert search_many.main(command(tmp_path)) == 128 + signal.SIGTERM
    assert "--resume goes on from here" in capsys.readouterr().err
    assert not (tmp_path / "all" / "summary.json").exists()
    assert search_many.main(command(tmp_path)) == 2
    assert "holds searches: go on with --resume" in capsys.readouterr().err
    assert search_many.main([*command(tmp_path), "--resume"]) == 0
    for i in range(len(SEARCHES)):
        for found, wanted in zip(*(lines(f / str(i)) for f in (tmp_path, together)), strict=True):
            assert found | {"seconds": 0} == wanted | {"seconds": 0}
        kept, whole = (probes.read(f / str(i)) for f in (tmp_path, together))
        np.testing.assert_array_equal(kept["loss"], whole["loss"])


def test_one_that_diverges_is_said_and_the_others_finish(tmp_path, capsys):
    searches = ["--learning-rate 0.05", "--learning-rate 1e30"]
    common = f"{COMMON} --max-skipped 3 --method none --clip 1e30 --sampler uniform"
    assert search_many.main(command(tmp_path, searches, common)) == 0
    assert f"{tmp_path / '1'}: stopped" in capsys.readouterr().err
    assert (tmp_path / "0" / "summary.json").exists()
    assert not (tmp_path / "1" / "summary.json").exists()
    failed = json.loads((tmp_path / "all" / "summary.json").read_text())["failed"]
    assert len(failed) == 1
    flags = shlex.split(f"{common} {searches[1]}")
    assert search.main([*flags, "--out", str(tmp_path / "1"), "--resume"]) == 1  # as it would alone


@pytest.mark.parametrize(
    ("searches", "says"),
    [
        ([], "--search must be given, once for each search"),
        (["--epochs 3", "--epochs 4"], "not in epochs: 3, 4"),
        (["--method wpl", "--method none"], "not in method: wpl, none"),
        (["--wpl.fisher-max-norm 3", "--wpl.fisher-max-norm None"], "wpl.fisher_max_norm: 3.0, No"),
        (["--strength 0", ""], "--strength must be at least 1e-30, got 0.0"),
        (
            ["--strength 1 --wpl.fisher-decay 0.1", "--strength 2 --wpl.fisher-decay 0.2"],
            "cannot differ in wpl.fisher_decay: give all the same, or run them apart",
        ),
    ],
)
def test_what_cannot_work_is_one_line(searches, says, tmp_path, capsys):
    assert search_many.main(command(tmp_path, searches)) == 2
    said = capsys.readouterr()
    assert said.out == "" and said.err.count("\n") == 1
    assert said.err.startswith("search_many: ") and says in said.err
    assert list(tmp_path.iterdir()) == []


def test_searches_do_not_end_after_fewer_epochs_than_they_have(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(Checkpoints, "latest", lambda self: 3 * 4)
    assert search_many.main([*command(tmp_path), "--resume"]) == 2
    said = f"--epochs must be at least 3, as many as {tmp_path / 'all'} has, got 2"
    assert said in capsys.readouterr().err


def test_a_folder_of_another_search_is_not_touched(together, tmp_path, capsys):
    flags = [f"--search={COMMON} --out {together / '0'}", "--out", str(tmp_path)]
    assert search_many.main(flags) == 2
    assert "holds a run already" in capsys.readouterr().err
    flags = [f"--search={COMMON} --out {tmp_path / '0'}"] * 2 + ["--out", str(tmp_path)]
    assert search_many.main(flags) == 2
    assert "an --out of its own" in capsys.readouterr().err
