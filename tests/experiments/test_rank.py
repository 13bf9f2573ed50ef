"""Architectures are ranked on the weights of a search, and judged by a truth."""

import dataclasses
import json
import os
import shutil
import signal
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from examples.layers_space import Digits, Layers, LayersSearch
from experiments import rank, search
from experiments.ranking import baselines, measuring, statistics
from experiments.running import progress as running
from experiments.running.folder import Held
from wpl_jax.data import Images, Splits
from wpl_jax.search import SearchConfig
from wpl_jax.spaces.images import ImageSpace

SEARCH = ["--space", "test_rank:RankedDigits", "--devices", "1"]
FLAGS = ["--batches", "3", "--search-flags=--devices 1"]


class Listed(Layers):
    """A space that can list its architectures, and says that activations make no difference."""

    def every(self):
        return np.indices(self.decisions).reshape(len(self.decisions), -1).T

    def classes_of_isomorphism(self):
        kernels = self.every()[:, 0::2]
        _, first, place = np.unique(kernels, axis=0, return_index=True, return_inverse=True)
        return first[place]


@dataclasses.dataclass(frozen=True)
class ListedSearch(LayersSearch):
    layers: Listed = Listed(layers=2, kernels=2, width=6)


class RankedDigits(Digits):
    searches = {
        "smoke": ListedSearch(
            sampler="uniform",
            method="none",
            epochs=1,
            batch_size=50,
            derive_samples=2,
            derive_batches=2,
            search=SearchConfig(architectures=2, batches=6, chunk=2, eval_batches=1),
        )
    }

    def read(self, config):
        rng = np.random.default_rng(0)
        labels = rng.integers(0, 10, 300).astype(np.int32)
        images = (rng.integers(0, 128, (300, 28, 28, 1)) + 12 * labels[:, None, None, None]).astype(
            np.uint8
        )
        part = Images(images, labels)
        return Splits(part, part, part)


@pytest.fixture(scope="module")
def searched(tmp_path_factory):
    out = tmp_path_factory.mktemp("search")
    assert search.main([*SEARCH, "--out", str(out)]) == 0
    return out


@pytest.fixture
def run(searched, tmp_path):
    """A search that has not been ranked."""
    return shutil.copytree(searched, tmp_path / "run")


@pytest.fixture(scope="module")
def ranked(searched, tmp_path_factory):
    """One that has, and the truth that it was judged by."""
    run = shutil.copytree(searched, tmp_path_factory.mktemp("ranked") / "run")
    assert rank.main([str(run), *FLAGS]) == 0
    return run


def read(run, name="predictions.npz"):
    with np.load(run / name) as file:
        return dict(file)


def job_of(run):
    return search.prepare(rank.settings_of(rank.Rank((run,), search_flags="--devices 1"), run))


def test_every_architecture_is_measured(ranked):
    found, job = read(ranked), job_of(ranked)
    space, validation = job.search.space, job.data.validation
    like = jax.eval_shape(job.search.init, jax.random.key(0))
    params = search.open_checkpoints(job).restore(like).params
    names = [json.dumps(space.to_json(space.decode(a))) for a in space.every()]
    assert found["architectures"].tolist() == names and len(set(names)) == 36
    evaluate = jax.jit(job.search.evaluate, static_argnums=3)
    for i in (0, 7, 35):
        architecture = space.decode(space.every()[i])
        error = evaluate(params, space.every()[i], validation, 3)
        np.testing.assert_allclose(found["error"][i], error, atol=1e-6)
        losses = [
            space.loss(params, architecture, space.batch(validation, step, None), (), None)[0]
            for step in range(3)
        ]
        np.testing.assert_allclose(found["loss"][i], np.mean(losses), rtol=1e-5)
    assert json.loads(str(found["settings"])).keys() == {"search", "trained", "batches", "patterns"}
    assert not (ranked / "rank.json").exists()


def test_several_searches_are_ranked_by_their_mean(ranked, run, tmp_path, capsys):
    """And each of them by itself, if it was not before."""
    both = tmp_path / "both"
    assert rank.main([str(ranked), str(run), *FLAGS, "--out", str(both)]) == 0
    of_each = read(ranked), read(run)
    for name in ("error", "loss"):
        mean = np.mean([found[name] for found in of_each], axis=0)
        np.testing.assert_array_equal(read(both)[name], mean)
    assert rank.main([str(ranked), str(run), *FLAGS]) == 2
    assert "several searches need --out" in capsys.readouterr().err
    before = (run / "predictions.npz").read_bytes()
    assert rank.main([str(ranked), str(run), *FLAGS, "--out", str(run)]) == 2
    assert "--out must not be one of the searches" in capsys.readouterr().err
    assert (run / "predictions.npz").read_bytes() == before
    other = shutil.copytree(run, tmp_path / "other")
    before = {path.name for path in other.iterdir()}
    assert rank.main([str(ranked), str(run), *FLAGS, "--out", str(other)]) == 2
    assert f"{other} holds another run: choose another --out" in capsys.readouterr().err
    assert {path.name for path in other.iterdir()} == before
    with Held(both):
        assert rank.main([str(ranked), str(run), *FLAGS, "--out", str(both)]) == 2
    assert f"another run is at work in {both}" in capsys.readouterr().err
    assert rank.main([str(ranked), *FLAGS, "--out", str(both)]) == 2


def interrupted(number, after):
    """A display that sends the process a signal when so many architectures are measured."""

    class Display(running.Shown):
        def update(self, task, *, completed):
            super().update(task, completed=completed)
            if completed == after:
                os.kill(os.getpid(), number)

    return Display


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_one_that_is_interrupted_goes_on(run, ranked, number, monkeypatch, capsys):
    monkeypatch.setattr(rank, "CHUNK", 10)
    with monkeypatch.context() as patch:
        patch.setattr(rank, "Shown", interrupted(number, after=20))
        assert rank.main([str(run), *FLAGS]) == 128 + number
    assert "the same command goes on from here" in capsys.readouterr().err
    assert not (run / "predictions.npz").exists()
    assert len(read(run, "predictions.part.npz")["error"]) == 20
    calls = []
    whole = measuring.measure
    monkeypatch.setattr(
        measuring, "measure", lambda *args: [calls.append(args[3].shape), whole(*args)][1]
    )
    assert rank.main([str(run), *FLAGS]) == 0
    assert calls == [(10, 4)]  # traced once, for the chunk that is 6 architectures as well
    assert not (run / "predictions.part.npz").exists()
    for name, values in read(run).items():
        np.testing.assert_array_equal(values, read(ranked)[name])


def test_what_is_measured_is_not_measured_again(run, ranked, monkeypatch):
    calls, whole = [], rank.measure
    monkeypatch.setattr(rank, "measure", lambda *args: [calls.append(args), whole(*args)][1])
    for _ in range(2):
        assert rank.main([str(run), *FLAGS]) == 0
        assert len(calls) == 1
        for name, values in read(run).items():
            np.testing.assert_array_equal(values, read(ranked)[name])
    assert rank.main([str(run), "--batches", "2", *FLAGS[2:]]) == 0
    assert len(calls) == 2 and json.loads(str(read(run)["settings"]))["batches"] == 2


@pytest.fixture
def true(ranked, tmp_path):
    """A truth that is, of three quarters of the architectures, what was measured."""
    found = read(ranked)
    lines = [
        f'"{name.replace(chr(34), 2 * chr(34))}",{100 - 100 * error}'
        for name, error in zip(found["architectures"], found["error"].astype(float), strict=True)
    ]
    path = tmp_path / "truth.csv"
    path.write_text("\n".join(["architecture,toy_accuracy", *lines[:27]]) + "\n")
    return path


def test_a_truth_is_agreed_with(ranked, true, capsys):
    assert rank.main([str(ranked), *FLAGS, "--truth", str(true)]) == 0
    found = json.loads((ranked / "rank.json").read_text())
    assert found["architectures"] == 27
    orders = found["orders"]
    assert list(orders) == ["error rate", "cross-entropy", "random choice"]  # no parameters differ
    assert orders["error rate"]["kendall"]["value"] == pytest.approx(1)
    assert orders["error rate"]["regret"]["value"] == pytest.approx(0)
    assert orders["error rate"]["accuracy_of_best"]["value"] == found["best_accuracy"]
    assert 0 < orders["cross-entropy"]["kendall"]["value"] < 1
    assert orders["random choice"]["kendall"] == {"value": 0, "low": 0, "high": 0}
    assert found["batches"] == 3 and found["trained"] == 2 and found["command"]
    assert (ranked / "rank.png").read_bytes().startswith(b"\x89PNG")
    said = capsys.readouterr().out
    assert "36 architectures" in said and "27 of them" in said
    assert "error rate     1.000 [1.000, 1.000]" in said


@pytest.mark.usefixtures("undrawn")
def test_isomorphic_architectures_are_averaged(ranked, true):
    flags = [*FLAGS, "--truth", str(true), "--average-isomorphic"]
    assert rank.main([str(ranked), *flags]) == 0
    found = json.loads((ranked / "rank.json").read_text())
    assert found["average_isomorphic"]
    assert 0 < found["orders"]["error rate"]["kendall"]["value"] < 0.95


def test_size_is_added_where_it_differs(run):
    """Here by hand: no parameters differ."""
    ranking = rank.prepare(rank.Rank((run,), batches=3, search_flags="--devices 1"), run)
    sizes = np.arange(36.0)[::-1]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(baselines, "num_parameters", lambda *args: sizes)
        orders = rank.predictions(
            ranking, measuring.Measured(np.arange(36.0), np.arange(36.0) ** 2)
        )
    assert list(orders) == [
        "error rate",
        "cross-entropy",
        "cross-entropy and size",
        "number of parameters",
        "random choice",
    ]
    np.testing.assert_array_equal(np.argsort(orders["number of parameters"]), np.arange(36))
    np.testing.assert_allclose(
        orders["cross-entropy and size"], 2 * statistics.normal_scores(np.arange(36.0))
    )


def test_activation_patterns_are_one_more_order(run):
    config = rank.Rank((run,), batches=3, search_flags="--devices 1")
    ranking = rank.prepare(config, run)
    ranking = ranking._replace(config=dataclasses.replace(config, patterns=True))
    loss, sizes, patterns = np.random.default_rng(0).normal(size=(3, 36))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(baselines, "num_parameters", lambda *args: -sizes)
        orders = rank.predictions(ranking, measuring.Measured(loss, loss, patterns))
    np.testing.assert_array_equal(orders["activation patterns"], patterns)
    of_loss, of_sizes, of_patterns = map(statistics.normal_scores, (loss, sizes, patterns))
    all_three = orders["cross-entropy, size and patterns"]
    np.testing.assert_allclose(all_three, of_loss + of_sizes + of_patterns)
    np.testing.assert_allclose(orders["size and patterns"], of_sizes + of_patterns)


def test_what_has_patterns_need_not_be_measured_again_without(run, ranked, capsys):
    """Nor is what has none taken for what has."""
    settings = json.loads(str(read(ranked)["settings"])) | {"patterns": True}
    measured = measuring.Measured(*3 * [np.arange(36.0)])
    measuring.write(run / "predictions.npz", measured, settings)
    assert rank.main([str(run), *FLAGS]) == 0
    np.testing.assert_array_equal(read(run)["error"], np.arange(36.0))
    assert rank.main([str(run), *FLAGS, "--patterns"]) == 2
    assert "Listed has no method activation_kernel(), which this needs" in capsys.readouterr().err


@pytest.mark.parametrize("damage", [b"", b"text", b"PK\3\4 cut off"])
def test_what_is_damaged_is_measured_again(run, ranked, damage, capsys):
    (run / "predictions.npz").write_bytes(damage)
    assert rank.main([str(run), *FLAGS]) == 0
    assert "predictions.npz is damaged" in capsys.readouterr().err
    np.testing.assert_array_equal(read(run)["error"], read(ranked)["error"])


def test_averages_are_of_what_is_known():
    values = np.array([1, np.nan, 3, np.nan, 5, np.inf])
    found = measuring.averaged(values, np.array([0, 0, 2, 3, 0, 2]))
    np.testing.assert_array_equal(found, [3, 3, 3, np.nan, 3, 3])


def test_an_untrained_search_is_measured_beside(run, ranked):
    assert rank.main([str(run), *FLAGS, "--untrained"]) == 0
    found = read(run / "untrained")
    np.testing.assert_allclose(found["loss"], np.log(10), atol=0.1)
    assert json.loads(str(found["settings"]))["trained"] == 0
    assert (read(ranked)["loss"] < found["loss"].min()).any()
    assert not (run / "predictions.npz").exists()


def test_baselines_count():
    space = Listed(layers=1, kernels=3, width=2)
    counts = baselines.num_parameters(space, space.every())
    assert counts.tolist() == [space.num_parameters(space.decode(a)) for a in space.every()]
    names = ["|nor_conv_3x3~0|avg_pool_3x3~1|", "|nor_conv_1x1~0|nor_conv_1x1~1|", "|none~0|"]
    found = baselines.errors(space, space.every()[:3], names)
    assert {name: errors.tolist() for name, errors in found.items()} == {
        "2·(3×3) + (1×1)": [-2, -2, 0],
        "random choice": [0, 0, 0],
    }


class Linear(ImageSpace):
    """Image classifiers that look at one pixel of eight."""

    passes = 0

    def decode(self, actions):
        return actions[0]

    def apply(self, params, architecture, images, statistics=None, *, key=None):
        self.__class__.passes += 1
        pixel = images.reshape(len(images), -1)[:, architecture]
        return SimpleNamespace(logits=pixel[:, None] * params)

    def activation_kernel(self, params, architecture, images):
        return params * (1 + architecture) * jnp.eye(len(images))


def test_where_there_are_logits_one_pass_gives_both():
    space, actions = Linear(), np.arange(8)[:, None]
    images = np.random.default_rng(0).integers(0, 256, (2, 5, 2, 2, 2)).astype(np.uint8)
    split = images, np.array([[0, 1, 2, 0, 1], [2, 2, 0, -1, -1]], np.int32)
    params = np.array([[-1.0, 0.5, 1.0]], np.float32)
    found = jax.jit(measuring.measure, static_argnums=(0, 4, 5))(
        space, params, jax.tree.map(jnp.asarray, split), actions, 2, 2, jnp.float32(3)
    )
    np.testing.assert_allclose(found.patterns, -5 * np.log(3 * (1 + np.arange(8.0))), rtol=1e-6)
    assert Linear.passes == 1  # traced once
    for i in (0, 5):
        wrong, loss = 0.0, 0.0
        for step in range(2):
            batch = space.batch(jax.tree.map(jnp.asarray, split), step)
            (total, count), _ = space.score(params, i, batch)
            wrong, loss = wrong + total, loss + count * space.loss(params, i, batch)[0]
        np.testing.assert_allclose(found.error[i], wrong / 8, rtol=1e-6)
        np.testing.assert_allclose(found.loss[i], loss / 8, rtol=1e-5)


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--batches", "0"], "--batches must be at least 1, got 0"),
        (["--batches", "99"], "--batches must be at most 6, all the validation batches, got 99"),
        (["--column", "x"], "--column needs --truth"),
        (["--average-isomorphic"], "--average-isomorphic needs --truth"),
        (["--truth", "nothing.csv"], "nothing.csv"),
        (["--search-flags=--devices 0"], "--devices must be at least 1, got 0"),
        (["--search-flags=--layers.width 7 --devices 1"], "width=6, not 7"),
    ],
)
def test_what_cannot_work_is_one_line(searched, flags, says, capsys):
    assert rank.main([str(searched), *FLAGS, *flags]) == 2
    said = capsys.readouterr()
    assert said.out == "" and said.err.count("\n") == 1
    assert said.err.startswith("rank: ") and says in said.err


def test_a_truth_of_another_space_is_one_line(searched, tmp_path, capsys):
    path = tmp_path / "truth.csv"
    path.write_text("architecture,toy_accuracy\n|none~0|,10\n")
    assert rank.main([str(searched), *FLAGS, "--truth", str(path)]) == 2
    assert "1 architectures that the space has not, as '|none~0|'" in capsys.readouterr().err


def test_a_folder_without_a_search_is_one_line(tmp_path, capsys):
    assert rank.main([str(tmp_path)]) == 2
    assert "must be the folder of a search that has a checkpoint" in capsys.readouterr().err


def test_a_space_that_cannot_list_its_architectures_is_one_line(run, capsys, monkeypatch):
    monkeypatch.delattr(Listed, "every")
    assert rank.main([str(run), *FLAGS]) == 2
    said = capsys.readouterr().err
    assert "a search of test_rank:RankedDigits, whose Listed has no method every(), which" in said


def test_help_and_unknown_flags(capsys):
    with pytest.raises(SystemExit) as end:
        rank.main(["--help"])
    assert end.value.code == 0
    assert capsys.readouterr().out.startswith("usage: python -m experiments.rank ")
    assert rank.main([]) == 2
    assert rank.main(["somewhere", "--trut", "x"]) == 2
    first, second = capsys.readouterr().err.splitlines()
    assert first.startswith("rank: ")
    assert second == "rank: Unrecognized options: --trut, x; did you mean --truth?"
