"""The fine-tuning example: it runs, resumes, reads its own results, and its page is up to date."""

import functools
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

import wpl_jax
from examples.finetune_language_model import __main__ as command
from examples.finetune_language_model import model, report, runs, texts, tuning


class Killed(Exception):
    """In place of a signal."""


def killed_at(monkeypatch, where, name, call):
    """Make a method's n-th call raise, as if the process had been killed there."""
    method, calls = getattr(where, name), []

    def counted(*args, **kwargs):
        calls.append(args)
        if len(calls) == call:
            raise Killed
        return method(*args, **kwargs)

    monkeypatch.setattr(where, name, counted)


@pytest.fixture(scope="module")
def embedded():
    return texts.load(None)


@pytest.fixture(scope="module")
def smoke(embedded, tmp_path_factory):
    folder = tmp_path_factory.mktemp("smoke") / "whole"
    return folder, command.run_all(runs.SMOKE, embedded, folder)


@pytest.mark.slow
def test_every_setting_of_every_way_has_a_result(smoke):
    folder, results = smoke
    assert json.loads((folder / "results.json").read_text()) == results
    assert (folder / "frontiers.png").stat().st_size > 10_000
    settings = runs.SMOKE
    wanted = {(run.method, run.arm, run.knob, run.seed) for run in runs.plan(settings)}
    found = {(run["method"], run["arm"], run["knob"], run["seed"]) for run in results["runs"]}
    for method in ("full", "lora"):  # of plain runs, the knob is the number of steps
        wanted -= {(method, runs.NOTHING, 1.0, 0)}
        wanted |= {(method, runs.NOTHING, k, 0) for k in (*settings.stops, settings.steps)}
    assert found == wanted
    assert all(math.isfinite(run["old"]) and math.isfinite(run["new"]) for run in results["runs"])
    table = report.tables(results)
    assert all(arm in table for arms in report.ARMS.values() for arm in arms)


@pytest.mark.slow
def test_goes_on_where_it_was_killed(smoke, embedded, tmp_path):
    """In pretraining after a checkpoint, and in a run: the results are bit for bit the same."""
    for where, name, call in (runs.Checkpoints, "save", 2), (runs.Bench, "run", 3):
        with pytest.MonkeyPatch.context() as patch:
            killed_at(patch, where, name, call)
            with pytest.raises(Killed):
                command.run_all(runs.SMOKE, embedded, tmp_path)
    finished = {path: path.read_text() for path in tmp_path.glob("*-seed0.json")}
    assert len(finished) == 2
    # The others need not be trained once more to see that they are the same.
    whole, results = smoke
    for path in (*whole.glob("lora-*.json"), whole / "costs.json"):
        (tmp_path / path.name).write_text(path.read_text())
    resumed = command.run_all(runs.SMOKE, embedded, tmp_path)
    for what in ("pretrained", "runs", "texts", "parameters"):
        assert resumed[what] == results[what]
    assert {path: path.read_text() for path in finished} == finished  # were not done again


@pytest.mark.slow
def test_a_folder_holds_one_setting(smoke, embedded):
    folder, _ = smoke
    other = runs.dataclasses.replace(runs.SMOKE, steps=5)
    with pytest.raises(ValueError, match="steps=4, not 5"):
        command.run_all(other, embedded, folder)


def test_what_is_not_the_treebank_says_so_and_is_not_published(monkeypatch, capsys, tmp_path):
    monkeypatch.delenv("WPL_DATA_DIR", raising=False)
    with pytest.raises(SystemExit):
        command.main(["--publish", "--out", str(tmp_path)])
    assert "NOT THE PENN TREEBANK" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())
    monkeypatch.setenv("WPL_DATA_DIR", str(tmp_path))  # named, but without the treebank
    with pytest.raises(FileNotFoundError):
        command.main(["--out", str(tmp_path)])


def test_topics_are_read_as_the_treebank_is_written(embedded):
    topics = texts.load_text("topics")
    new = texts._as_in_treebank(topics, ("<unk>", "N", "the", "statement", "<eos>"))
    assert new.train[:5].tolist() == [2, 0, 3, 4, 0]  # the assert statement <eos> assert
    words = [topics.vocabulary[token] for token in topics.train]
    assert (new.train == 1).sum() == sum(word.isdigit() for word in words)
    assert len(new.train) < len(topics.train)  # punctuation is gone


@pytest.fixture(scope="module")
def tiny():
    graph, base = model.make(model.Size(vocabulary=50, units=8, layers=1, heads=2, length=6), 0)
    tokens = jax.random.randint(jax.random.key(1), (3, 7), 0, 50)
    return graph, base, tokens


def test_the_loss_is_that_of_the_logits(tiny):
    graph, base, tokens = tiny
    each = jax.jit(jax.vmap(functools.partial(model.sequence_nll, graph, base)))(tokens)
    total = jax.jit(functools.partial(model.total_nll, graph))(base, tokens, jnp.ones((3, 6)))
    np.testing.assert_allclose(total, each.sum(), rtol=1e-5)


@pytest.mark.parametrize("form", ["additive", "proximal"])
def test_strength_0_is_plain(tiny, form):
    """Adam's first step is the learning rate, but where a gradient is 0 up to rounding."""
    graph, base, tokens = tiny
    fisher = jax.tree.map(jnp.ones_like, base)
    ends = []
    for way in tuning.full(graph, "plain"), tuning.full(graph, form):
        params, opt_state = jax.jit(way.init)(base, jax.random.key(0), fisher)
        step = jax.jit(functools.partial(way.step, old=None, knobs=tuning.Knobs(0.01)))
        params, _ = step(params, opt_state, base, new=tokens)
        ends.append(ravel_pytree(params)[0])
    plain, protected = ends
    moved = np.isclose(np.abs(plain - ravel_pytree(base)[0]), 0.01, rtol=0.01)
    assert moved.mean() > 0.8
    np.testing.assert_allclose(protected[moved], plain[moved], atol=1e-5)


def test_loras_term_is_on_what_the_model_computes_with(tiny):
    """Its gradient is that of the written-out penalty on W + down @ up, to the adapters."""
    graph, base, tokens = tiny
    way = tuning.lora(graph, "merged", rank=2)
    adapters = model.init_adapters(base, 2, jax.random.key(0))
    moved = jax.tree.map(lambda x: x + 0.1, adapters)
    fisher = {name: jnp.full(x.shape, 2.0) for name, x in model.adapted(base, adapters).items()}
    _, (_, memory) = jax.jit(way.init)(base, jax.random.key(0), fisher)

    def term(adapters):
        merged = model.merged(base, adapters)
        return wpl_jax.plasticity_loss(memory, merged, strength=3.0)

    def written_out(adapters):
        return sum(3.0 * jnp.sum((a["down"] @ a["up"]) ** 2) for a in adapters.values())

    found, wanted = (jax.jit(jax.grad(loss))(moved) for loss in (term, written_out))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), found, wanted)
    assert set(adapters) == {  # every matrix has adapters
        "embedding/embedding",
        "decoder/kernel",
        *(f"blocks/0/{name}/kernel" for name in ("qkv", "out", "up", "down")),
    }


def results_of(arms):
    """Of one seed: plain fine-tuning, and arms with points of (knob, old, new)."""
    rows = {runs.NOTHING: [(2, 120.0, 150.0), (4, 200.0, 50.0)], **arms}
    return {
        "pretrained": {"old": 100.0, "new": 200.0},
        "settings": {"seeds": [0]},
        "runs": [
            {"method": "full", "arm": arm, "seed": 0, "knob": knob, "old": old, "new": new}
            for arm, rows in rows.items()
            for knob, old, new in rows
        ],
    }


def test_ways_are_compared_at_the_same_perplexity_of_the_old_text():
    results = results_of({runs.L2: [(0.0, 150.0, 80.0), (2.0, 105.0, 120.0)]})
    curve = report.curve(results, "full", runs.L2, 0)
    assert curve.tolist() == [[100, 200], [105, 120], [150, 80], [200, 50]]
    at = [report.new_at(results, "full", runs.L2, 0, budget) for budget in (0.99, 1.05, 1.5, 3.0)]
    np.testing.assert_allclose(at, [200, 120, 80, 50], rtol=1e-6)
    between = report.new_at(results, "full", runs.L2, 0, (1.05 * 1.5) ** 0.5)
    np.testing.assert_allclose(between, (120 * 80) ** 0.5, rtol=1e-6)


def test_curves_run_from_what_is_held_to_plain_fine_tuning():
    results = results_of(
        {
            runs.LOWER_RATE: [(0.3, 150.0, 80.0), (0.1, 110.0, 130.0)],
            runs.REPLAY: [(1.0, 120.0, 60.0), (10.0, 90.0, 110.0)],
            runs.REPLAY_RATE: [(0.1, 95.0, 90.0)],
        }
    )
    before, after = [100, 200], [200, 50]
    for arm, points in {
        runs.STOPPING: [before, [120, 150], after],
        runs.LOWER_RATE: [before, [110, 130], [150, 80], after],
        runs.REPLAY: [[90, 110], [120, 60], after],
        runs.REPLAY_RATE: [before, [95, 90], [120, 60]],
    }.items():
        assert report.curve(results, "full", arm, 0).tolist() == points


def test_interval_is_students():
    mean, half = report.interval([1.0, 2.0, 3.0])
    np.testing.assert_allclose([mean, half], [2.0, 4.302653 / 3**0.5], rtol=1e-6)
    assert math.isnan(report.interval([1.0])[1])


def test_the_page_is_written_from_the_results():
    results = json.loads(command.RESULTS.read_text())
    page = report.PAGE.read_text()
    assert report.page(page, results) == page
    assert not results["texts"]["old"]["name"].startswith("help")
    assert results["parameters"] >= 5_000_000 and len(results["settings"]["seeds"]) >= 3
    assert report.FIGURE.stat().st_size < 100_000
