"""Random architectures from scratch: each as train_final trains it alone, kept as they come."""

import csv
import json
import os
import signal

import jax.numpy as jnp
import numpy as np
import pytest

from experiments import train_final, train_many
from experiments.ranking import truth
from experiments.running import progress as running
from experiments.spaces import cells
from experiments.spaces.sgd import SGDTraining

FLAGS = "--space examples.layers_space:Digits --layers.width 8 --epochs 2"


def main(out, *flags, training=FLAGS):
    return train_many.main([f"--training-flags={training}", "--out", str(out), *flags])


def rows(out):
    with (out / "errors.csv").open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    out = tmp_path_factory.mktemp("trained")
    assert main(out, "--count", "3") == 0
    return out


@pytest.fixture(scope="module")
def recurrent(tmp_path_factory):
    """Tiny recurrent cells on a text of their own, averaged before the end; and the flags."""
    folder, out = tmp_path_factory.mktemp("text"), tmp_path_factory.mktemp("recurrent")
    words = np.random.default_rng(0).choice(list("abcdefgh"), (40, 12))
    for name in ("train", "valid", "test"):
        (folder / f"{name}.txt").write_text("\n".join(map(" ".join, words)))
    flags = (
        f"--text-dir {folder} --rnn.nodes 3 --rnn.units 8 --batch-size 4 --length 10 "
        "--test-batch-size 4 --learning-rate 1 --epochs 3 --average-after 1"
    )
    assert main(out, "--count", "3", training=flags) == 0
    return out, flags


@pytest.mark.parametrize("space", ["layers", "recurrent"])
@pytest.mark.usefixtures("undrawn")
def test_each_is_trained_as_if_alone(space, trained, recurrent, tmp_path):
    many, flags = {"layers": (trained, FLAGS), "recurrent": recurrent}[space]
    found = rows(many)
    assert [row["seed"] for row in found] == ["0", "1", "2"]
    space = train_final.parse(flags.split()).search_space
    for seed, row in enumerate(found):
        stored = space.to_json(space.decode(cells.random_actions(space, seed)))
        assert json.loads(row["architecture"]) == stored
    alone = tmp_path / "alone"
    cell = tmp_path / "cell.json"
    cell.write_text(found[1]["architecture"])
    alone_flags = [*flags.split(), "--architecture", str(cell), "--seed", "1"]
    assert train_final.main([*alone_flags, "--out", str(alone)]) == 0
    last = json.loads((alone / "metrics.jsonl").read_text().splitlines()[-1])
    (key,) = {name for name in found[1] if name.startswith("validation_")}
    assert float(found[1][key]) == pytest.approx(last[key], abs=1e-6)
    assert len({row[key] for row in found}) > 1


def test_it_is_a_truth(trained):
    accuracies = truth.read(trained / "errors.csv")
    errors = [float(row["validation_error_rate"]) for row in rows(trained)]
    np.testing.assert_allclose(list(accuracies.values()), 100 * (1 - np.array(errors)))


def test_more_are_added_and_none_is_trained_again(trained, tmp_path):
    assert main(tmp_path, "--count", "1") == 0
    assert main(tmp_path, "--count", "3") == 0
    assert rows(tmp_path) == rows(trained)


def test_what_no_error_depends_on_may_change(trained, capsys):
    before = rows(trained)
    flags = FLAGS + " --max-skipped 7 --steps-per-call 3"
    assert main(trained, "--count", "3", training=flags) == 0
    assert "trained" not in capsys.readouterr().err
    assert rows(trained) == before


def test_other_epochs_are_another_truth_of_recurrent_cells_too(recurrent, capsys):
    out, flags = recurrent
    assert main(out, training=f"{flags} --epochs 4") == 2
    assert "begun with other settings or data" in capsys.readouterr().err


def test_what_diverges_is_left_out(trained, tmp_path, monkeypatch, capsys):
    attempt = SGDTraining.attempt

    def with_one_not_finite(self, state, batches, key):
        loss, *others = attempt(self, state, batches, key)
        second = self.space.decode(cells.random_actions(self.space, 1))
        same = [(a == b).all() for a, b in zip(state.architecture, second, strict=True)]
        return jnp.where(jnp.stack(same).all(), jnp.nan, loss), *others

    monkeypatch.setattr(SGDTraining, "attempt", with_one_not_finite)
    flags = FLAGS + " --max-skipped 10"
    assert main(tmp_path, "--count", "3", training=flags) == 0
    assert "left out 2/3  seed 1 has diverged" in capsys.readouterr().err
    expected = [row for row in rows(trained) if row["seed"] != "1"]
    assert rows(tmp_path) == expected
    assert main(tmp_path, "--count", "3", training=flags) == 0  # goes on behind it
    assert capsys.readouterr().err == ""
    assert rows(tmp_path) == expected
    alone = ["--first", "1", "--count", "1"]
    assert main(tmp_path / "alone", *alone, training=flags) == 1
    assert "all 1 trainings have diverged" in capsys.readouterr().err


def test_others_begin_with_another_seed(trained, tmp_path):
    assert main(tmp_path, "--first", "1", "--count", "2") == 0
    assert rows(tmp_path) == rows(trained)[1:]


def test_an_interrupted_one_goes_on(trained, tmp_path, monkeypatch, capsys):
    class Display(running.Shown):
        def update(self, task, *, completed):
            super().update(task, completed=completed)
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(train_many, "Shown", Display)
        assert main(tmp_path, "--count", "3") == 128 + signal.SIGTERM
    assert "go on by the same command" in capsys.readouterr().err
    assert rows(tmp_path) == rows(trained)[:1]
    assert main(tmp_path, "--count", "3") == 0
    assert rows(tmp_path) == rows(trained)


@pytest.mark.parametrize(
    ("flags", "training", "says"),
    [
        (["--count", "0"], FLAGS, "--count must be at least 1, got 0"),
        (["--first", "-1"], FLAGS, "--first must be at least 0, got -1"),
        ([], FLAGS + " --epochs 0", "--epochs must be at least 1, got 0"),
        ([], "--space cnn", "--space must be one of"),
        ([], FLAGS + " --epochs 1", "begun with other settings or data: choose another --out"),
        (["--first", "1"], FLAGS, "begun with other settings or data: choose another --out"),
    ],
)
def test_what_cannot_work_is_one_line(trained, flags, training, says, capsys):
    before = rows(trained)
    assert main(trained, *flags, training=training) == 2
    said = capsys.readouterr()
    assert said.out == "" and said.err.count("\n") == 1
    assert said.err.startswith("train_many: ") and says in said.err
    assert rows(trained) == before
