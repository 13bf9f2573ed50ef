"""Final training: it learns, averages, resumes, tests on every word, and refuses bad input."""

import dataclasses
import functools
import itertools
import json
import os
import shlex
import shutil
import signal

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.experimental.compilation_cache import compilation_cache

from experiments import train_final
from experiments.running.progress import Display
from experiments.spaces.rnn import final as rnn
from experiments.spaces.rnn.final import RNNTraining as Training
from experiments.spaces.rnn.settings import FINALS, RNNFinal
from experiments.spaces.rnn.task import LanguageModelling
from wpl_jax.checkpoint import Checkpoints
from wpl_jax.data.text import Text, load_text
from wpl_jax.spaces.rnn import RNN

TINY = shlex.split(
    "--preset smoke --architecture enas --rnn.vocabulary 60 --rnn.units 16 --rnn.input-dropout 0.1 "
    "--batch-size 8 --length 10 --epochs 4 --average-after 2 --windows-per-call 1"
)
WINDOWS = (6_000 - 1) // (8 * 10)
SHIPPED = LanguageModelling().cells()
READ = LanguageModelling.read


@pytest.fixture(scope="module", autouse=True)
def compiled_once(tmp_path_factory):
    """All runs here share their compiled programs."""
    settings = {
        "jax_compilation_cache_dir": str(tmp_path_factory.mktemp("compiled")),
        "jax_persistent_cache_min_compile_time_secs": 0,
    }
    before = {name: getattr(jax.config, name) for name in settings}
    for name, value in settings.items():
        jax.config.update(name, value)
    yield
    for name, value in before.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()


@pytest.fixture(scope="module", autouse=True)
def text():
    """The text of TINY, cut short, and read by every run."""
    whole = load_text("topics", vocabulary_size=60)
    text = Text(whole.train[:6_000], whole.validation[:1000], whole.test[:600], whole.vocabulary)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LanguageModelling, "read", lambda self, config: text)
        yield text


@pytest.fixture(scope="module")
def tiny(text):
    """TINY's training, its compiled step, the state at the start, and the data."""
    config, architecture = train_final.read_architecture(train_final.parse(TINY))
    training = Training(config, architecture, LanguageModelling())
    data = training.cut(text)
    state = jax.jit(training.init)(jax.random.key(3), data.train)
    step = jax.jit(training.train, donate_argnums=0)  # as in a run, so that it is compiled once

    def train(state, *args):
        return step(jax.tree.map(jnp.array, jax.device_get(state)), *args)

    return training, train, state, data


@pytest.fixture(scope="module")
def traced():
    """What has been traced while `finished` ran."""
    return []


@pytest.fixture(scope="module")
def finished(tmp_path_factory, traced):
    def counted(function):
        @functools.wraps(function)
        def wrapper(*args):
            traced.append(function.__name__)
            return function(*args)

        return wrapper

    out = tmp_path_factory.mktemp("finished")
    with pytest.MonkeyPatch.context() as patch:
        for name in ("train", "finish"):
            patch.setattr(Training, name, counted(getattr(Training, name)))
        assert train_final.main([*TINY, "--out", str(out)]) == 0
    return out


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory):
    """The folder of a run that was asked to stop in the middle of its second epoch."""
    out = tmp_path_factory.mktemp("interrupted")
    original, calls = Display.show, []

    def show(self, done, **numbers):
        calls.append(done)
        if len(calls) == WINDOWS + 20:
            os.kill(os.getpid(), signal.SIGTERM)
        original(self, done, **numbers)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Display, "show", show)
        assert train_final.main([*TINY, "--out", str(out)]) == 128 + signal.SIGTERM
    return out


def read(path):
    return json.loads(path.read_text())


def metrics(out):
    """The log, without what the clock said."""
    records = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in record.items() if k != "seconds"} for record in records]


def test_everything_promised_is_written_and_agrees(finished):
    expected = {"architecture.json", "cell.png", "checkpoints", "metrics.jsonl", "summary.json"}
    assert {path.name for path in finished.iterdir()} == expected | {"tensorboard"}
    summary, log = read(finished / "summary.json"), metrics(finished)
    assert summary["architecture"] == read(finished / "architecture.json")
    assert summary["architecture"]["nodes"] == read(SHIPPED["enas"])["nodes"]
    assert {"command", "versions", "configuration", "unknown_share"} <= set(summary)
    assert summary["parameters"] == 60 * 16 + 60 + 16 * 32 * (2 + 11)
    assert [record["epoch"] for record in log] == [1, 2, 3, 4]
    best = min(log, key=lambda record: record["validation_perplexity"])
    assert summary["best_epoch"] == best["epoch"] == log[-1]["best_epoch"]
    # One stream at the end, eight after an epoch.
    assert summary["validation_perplexity"] == pytest.approx(best["validation_perplexity"], rel=0.1)


def test_it_learns_more_than_how_frequent_words_are(finished, text):
    counts = np.bincount(text.train, minlength=60) + 1
    unigram = np.exp(-np.mean(np.log(counts / counts.sum())[text.test]))
    assert read(finished / "summary.json")["test_perplexity"] < 0.9 * unigram


def test_averaging_starts_on_time_and_helps(finished):
    log = metrics(finished)
    assert [record["averaged"] for record in log] == [0, 1, 1 + WINDOWS, 1 + 2 * WINDOWS]
    assert log[2]["validation_perplexity"] < log[1]["validation_perplexity"]
    assert read(finished / "summary.json")["averaged"]


def test_it_is_compiled_once(finished, traced):
    assert sorted(traced) == ["finish", "train"]


def close(actual, expected):
    np.testing.assert_allclose(actual, expected, atol=1e-6)


def test_the_average_is_the_mean_of_the_iterates_since_it_began(tiny):
    _, train, state, data = tiny
    for _ in range(5):
        state = train(state, data.train)
        jax.tree.map(close, state.average, state.params)
    state = state._replace(averaged=jnp.ones_like(state.averaged))
    iterates = [state.params]
    for _ in range(20):
        state = train(state, data.train)
        iterates.append(state.params)
    mean = jax.tree.map(lambda *leaves: np.mean(leaves, axis=0), *iterates)
    jax.tree.map(close, state.average, mean)
    assert optax.tree.norm(optax.tree.sub(mean, state.params)) > 1e-2


@pytest.mark.parametrize(("epoch", "best_epoch"), [(2, 1), (3, 1), (8, 8), (9, 9)])
def test_averaging_starts_when_validation_no_longer_improves(tiny, epoch, best_epoch, monkeypatch):
    training, _, state, data = tiny
    config = dataclasses.replace(training.config, patience=2, average_after=9)
    training = Training(config, training.architecture, training.task)
    monkeypatch.setattr(Training, "perplexity", lambda *_: jnp.array(5.0))
    state = state._replace(
        trained=epoch * WINDOWS, best_epoch=best_epoch, best_perplexity=jnp.array(4.0)
    )
    after, perplexity = training.finish(state, data.train, data.validation)
    assert (perplexity, after.best_epoch, after.best_perplexity) == (5, best_epoch, 4)
    assert after.averaged == (epoch - best_epoch >= 2 or epoch >= 9)


def test_what_is_not_finite_changes_no_weight_and_is_counted(tiny):
    _, train, state, data = tiny
    state = train(state, data.train)
    broken = state._replace(params=jax.tree.map(lambda x: jnp.full_like(x, jnp.nan), state.params))
    after = train(broken, data.train)
    for name in ("params", "average", "loss", "steps"):
        jax.tree.map(np.testing.assert_array_equal, getattr(after, name), getattr(broken, name))
    assert (after.skipped, after.streak, after.trained) == (1, 1, 2)
    assert not after.hidden.any() and state.hidden.any()
    after = train(after._replace(params=state.params), data.train)
    assert (after.skipped, after.streak, after.trained, after.steps) == (1, 0, 3, 2)


def test_only_the_cells_own_edges_are_trained(tiny):
    training, train, state, data = tiny
    state = train(state, data.train)
    used = np.asarray(training.space.mask(training.architecture)["edges"])[:, 0, 0]
    edges = np.asarray(state.params["edges"])
    assert used.sum() == 11 and edges[used].any((1, 2)).all() and not edges[~used].any()


@pytest.mark.parametrize("batch_size", [1, 8])
def test_perplexity_is_that_of_a_loop_over_every_token(tiny, text, batch_size):
    training, _, state, _ = tiny
    part = rnn.part(training.config, text, text.test, batch_size)
    stream = part.tokens[..., 1:].size // batch_size
    apply = jax.jit(training.space.apply)
    total, hidden, words = 0.0, None, [text.vocabulary.index("<eos>"), *text.test]
    for n, (word, label) in enumerate(itertools.pairwise(words)):
        hidden = jnp.zeros((1, 16)) if n % stream == 0 else hidden
        word = jnp.array([[word]])
        output, hidden = apply(state.params, training.architecture, word, hidden)
        logits = np.asarray(state.params["embedding"] @ output[0, 0], np.float64)
        total += np.log(np.exp(logits).sum()) - logits[label]  # the bias is still 0
    perplexity = jax.jit(training.perplexity)(state.params, training.architecture, part)
    np.testing.assert_allclose(perplexity, np.exp(total / len(text.test)), rtol=1e-5)


@pytest.mark.usefixtures("undrawn")
def test_a_resumed_run_ends_as_one_that_was_never_interrupted(
    interrupted, finished, tmp_path, monkeypatch, capsys
):
    out = shutil.copytree(interrupted, tmp_path / "run")
    command = [*TINY, "--out", str(out), "--resume"]

    def killed(*_):
        raise KeyboardInterrupt

    save = Checkpoints.save
    with monkeypatch.context() as patch:  # after the third epoch was logged, before it was saved
        patch.setattr(
            Checkpoints,
            "save",
            lambda self, step, state: killed() if step == 3 * WINDOWS else save(self, step, state),
        )
        assert train_final.main(command) == 130
    with monkeypatch.context() as patch:
        patch.setattr(train_final, "write_results", killed)
        assert train_final.main(command) == 130
    assert "--resume" in capsys.readouterr().err
    assert not (out / "summary.json").exists()
    assert train_final.main(command) == 0
    assert metrics(out) == metrics(finished)
    resumed, whole = read(out / "summary.json"), read(finished / "summary.json")
    for name in ("validation_perplexity", "test_perplexity", "best_epoch", "averaged"):
        assert resumed[name] == whole[name]


@pytest.mark.usefixtures("undrawn")
def test_an_interrupted_run_may_end_sooner(interrupted, finished, tmp_path, monkeypatch, capsys):
    out = shutil.copytree(interrupted, tmp_path / "run")
    command = [*TINY, "--out", str(out), "--resume", "--epochs"]
    assert train_final.main([*command, "1"]) == 0  # it was stopped in the middle of the second
    assert metrics(out) == metrics(finished)[:1]
    assert read(out / "summary.json")["best_epoch"] == 1

    monkeypatch.setattr(Checkpoints, "latest", lambda self: 2 * WINDOWS)
    (out / "summary.json").unlink()
    assert train_final.main([*command, "1"]) == 2
    assert "--epochs must be at least 2" in capsys.readouterr().err


def test_checkpoints_of_another_run_are_refused(interrupted, text, monkeypatch, capsys):
    command = [*TINY, "--out", str(interrupted)]
    for flags, message in {
        "": "holds a run",
        "--resume --learning-rate 5": "learning_rate=20.0, not 5.0",
        "--resume --architecture darts_style": "architecture",
    }.items():
        assert train_final.main([*command, *flags.split()]) == 2
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1
    other = text._replace(test=text.test[:-1])
    monkeypatch.setattr(LanguageModelling, "read", lambda self, config: other)
    assert train_final.main([*command, "--resume"]) == 2
    assert "content=" in capsys.readouterr().err


def test_a_run_that_only_skips_stops_and_says_so(tmp_path, monkeypatch, capsys):
    init = Training.init

    def broken(self, key, batches):
        state = init(self, key, batches)
        return state._replace(params=jax.tree.map(lambda x: x * jnp.nan, state.params))

    monkeypatch.setattr(Training, "init", broken)
    assert train_final.main([*TINY, "--max-skipped", "30", "--out", str(tmp_path)]) == 1
    message = capsys.readouterr().err.splitlines()[-1]
    assert "stopped in epoch 1 at step 30" in message and "--learning-rate" in message


def test_the_cells_that_ship_are_those_that_were_published():
    space = RNN(vocabulary=9)
    cells = {name: read(path) for name, path in SHIPPED.items()}
    assert set(cells) == {"enas", "darts_style"} and all(cell["source"] for cell in cells.values())
    # scripts/ptb_final.sh of melodyguan/enas: activation, then predecessor and activation.
    actions = [0, 0, 0, 1, 1, 2, 1, 2, 0, 2, 0, 5, 1, 1, 0, 6, 1, 8, 1, 8, 1, 8, 1]
    enas = space.to_json(space.decode(jnp.array(actions)))
    assert cells["enas"]["nodes"] == enas["nodes"]
    # rnn/genotypes.py of quark0/darts, node 0 being tanh of the input.
    genotype = [("sigmoid", 0), ("relu", 1), ("relu", 1), ("identity", 1), ("tanh", 2)]
    genotype += [("sigmoid", 5), ("tanh", 3), ("relu", 5)]
    darts = [{"predecessor": predecessor, "activation": name} for name, predecessor in genotype]
    assert cells["darts_style"]["nodes"] == [{"activation": "tanh"}, *darts]
    for name, cell in cells.items():
        config, _ = train_final.read_architecture(RNNFinal(architecture=name))
        assert config.rnn.nodes == len(cell["nodes"])


def test_a_random_cell_depends_on_its_seed_alone(tmp_path):
    def cell(**flags):
        config, architecture = train_final.read_architecture(
            RNNFinal(architecture="random", **flags)
        )
        return config.rnn.to_json(architecture)

    assert cell(seed=1) == cell(seed=2, seed_architecture=1) != cell(seed=2)
    (tmp_path / "cell.json").write_text(json.dumps(cell(seed=1)))
    config, architecture = train_final.read_architecture(
        RNNFinal(architecture=str(tmp_path / "cell.json"))
    )
    assert config.rnn.to_json(architecture) == cell(seed=1)


ONE = {"activation": "relu"}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "Expecting property name"),
        ('{"space": "cnn"}', '"space": "rnn", got \'cnn\''),
        ("[]", "got []"),
        ('{"space": "rnn"}', "nodes"),
        ('{"space": "rnn", "nodes": []}', "nodes must be at least 1"),
        (json.dumps({"space": "rnn", "nodes": [ONE, ONE]}), "node 1 must have"),
        (
            json.dumps({"space": "rnn", "nodes": [ONE, ONE | {"predecessor": 1}]}),
            "node 1's predecessor must be a node before it",
        ),
    ],
)
def test_a_file_that_is_no_cell_is_named(content, message, tmp_path, capsys):
    path = tmp_path / "cell.json"
    path.write_text(content)
    out = tmp_path / "out"
    assert train_final.main([*TINY, "--architecture", str(path), "--out", str(out)]) == 2
    error = capsys.readouterr().err
    assert str(path) in error and message in error and error.count("\n") == 1
    assert not out.exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--preset tiny", "--preset must be one of"),
        ("--architecture None", "--architecture must be given"),
        ("--architecture {tmp}/none.json", "there is no file {tmp}/none.json"),
        ("--epochs 0", "--epochs must be at least 1"),
        ("--learning-rate nan", "--learning-rate must be at least 1e-30"),
        ("--weight-decay -1", "--weight-decay must be at least 0"),
        ("--batch-size 2000", "do not fill one window"),
        ("--out {tmp}/file", "cannot write to {tmp}/file"),
        ("--out {finished} --resume", "finished run"),
    ],
)
def test_bad_input_gives_one_clear_line_and_exit_code_2(flags, message, finished, tmp_path, capsys):
    (tmp_path / "file").touch()
    names = {"tmp": tmp_path, "finished": finished}
    command = [*TINY, "--out", str(tmp_path / "out"), *flags.format(**names).split()]
    assert train_final.main(command) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.count("\n") == 1
    assert message.format(**names) in captured.err


def test_missing_data_are_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(LanguageModelling, "read", READ)
    flags = ["--data", "ptb", "--data-dir", str(tmp_path / "none"), "--out", str(tmp_path / "out")]
    assert train_final.main([*TINY, *flags]) == 2
    error = capsys.readouterr().err
    assert str(tmp_path / "none") in error and error.count("\n") == 1


def test_every_preset_is_accepted():
    for name, preset in FINALS.items():
        assert preset.preset == name and not preset.rnn.batch_norm
