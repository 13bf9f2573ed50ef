"""Final training of a network of cells: what is measured changes nothing, all images are tested."""

import json
import math
import shlex

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import train_final
from experiments.spaces import cells
from experiments.spaces.micro_cnn.final import CNNTraining
from experiments.spaces.micro_cnn.settings import FINALS, CNNFinal
from experiments.spaces.micro_cnn.task import MicroCNNTask
from wpl_jax.checkpoint import Checkpoints
from wpl_jax.data import Images, Splits
from wpl_jax.spaces.micro_cnn import MicroCNN

TINY = shlex.split(
    "--space micro_cnn --preset smoke --architecture random --cnn.nodes 1 --cnn.channels 4 "
    "--cnn.crop-padding 0 --cnn.auxiliary 0.3 --batch-size 8 --test-batch-size 7 --epochs 2 "
    "--steps-per-call 1"
)
STEPS = 6


@pytest.fixture(scope="module", autouse=True)
def splits():
    """Images of 3 classes, bright in one of three places; read by every run."""
    rng = np.random.default_rng(0)

    def some(count):
        labels = rng.integers(0, 3, count, np.int32)
        pixels = rng.integers(0, 40, (count, 6, 6, 1))
        for image, label in zip(pixels, labels, strict=True):
            image[2 * label : 2 * label + 2] += 200
        return Images(pixels.astype(np.uint8), labels)

    splits = Splits(some(8 * STEPS + 3), some(20), some(19))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(MicroCNNTask, "read", lambda self, config: splits)
        yield splits


def copy(state):
    """By NumPy, which needs no program for each shape."""
    return jax.tree.map(jnp.array, jax.device_get(state))


@pytest.fixture(scope="module")
def tiny(splits):
    """TINY's training, its compiled step, the state at the start, and the data."""
    config, architecture = train_final.read_architecture(train_final.parse(TINY))
    task = MicroCNNTask()
    training = CNNTraining(config.with_space(**task.sizes(splits)), architecture, task)
    state = jax.jit(training.init)(jax.random.key(3), splits.train)
    step = jax.jit(training.train, donate_argnums=0)  # as in a run, so that it is compiled once
    data = training.cut(splits)

    def train(state, *args):
        return step(copy(state), *args)

    train.program = step.lower(state, data.train).as_text()
    return training, train, state, data


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    out = tmp_path_factory.mktemp("finished")
    assert train_final.main([*TINY, "--out", str(out)]) == 0
    return out


def read(path):
    return json.loads(path.read_text())


def metrics(out):
    """The log, without what the clock said."""
    records = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in record.items() if k != "seconds"} for record in records]


def assert_equal(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def test_it_learns_and_the_last_epoch_is_tested(finished):
    expected = {"architecture.json", "cell.png", "checkpoints", "metrics.jsonl", "summary.json"}
    assert {path.name for path in finished.iterdir()} == expected | {"tensorboard"}
    summary, log = read(finished / "summary.json"), metrics(finished)
    assert [record["epoch"] for record in log] == [1, 2]
    assert summary["validation_error_rate"] == log[-1]["validation_error_rate"]
    assert log[-1]["train_loss"] < log[0]["train_loss"]
    assert summary["architecture"] == read(finished / "architecture.json")
    assert summary["images"] == {"train": 8 * STEPS + 3, "validation": 20, "test": 19}
    assert summary["multiply_adds"] > 0 and summary["parameters"] > 0
    wrong = 19 * summary["test_error_rate"]
    assert math.isclose(wrong, round(wrong), abs_tol=1e-5)  # of 19 images, not of 3 batches of 7


def test_training_moves_the_running_statistics_and_measuring_does_not(tiny, splits):
    training, train, state, data = tiny
    assert_equal(state.carry, training.space.init_statistics())
    after = train(state, data.train)
    pairs = zip(*(jax.tree.leaves(s.carry) for s in (after, state)), strict=True)
    assert any(np.any(np.asarray(a) != np.asarray(b)) for a, b in pairs)

    before = jax.device_get(copy(after))
    finish = jax.jit(training.finish, donate_argnums=0)  # as in a run
    measured, error = finish(copy(after), data.train, data.validation)
    assert_equal(jax.tree.map(np.asarray, measured.carry), before.carry)
    assert 0 <= error <= 1
    results = training.results(after, splits, [])
    assert_equal(after.carry, before.carry)
    assert results["validation_error_rate"] == pytest.approx(float(error))


def test_the_running_statistics_are_averages_of_those_of_the_training_batches(tiny):
    training, train, state, data = tiny
    after = train(state, data.train)
    key = jax.random.split(jax.random.fold_in(state.key, 0))[0]
    pixels = np.pad(training.space.batch(data.train, 0, key)[0], ((0, 0), (1, 1), (1, 1), (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(pixels, (3, 3), (1, 2))
    kernel = state.params["stem"]["kernel"][..., 0]  # columns, channels, rows
    stem = windows.reshape(-1, 9) @ kernel.transpose(2, 0, 1).reshape(9, -1)
    expected = [0.1 * stem.mean(0), 0.9 + 0.1 * stem.var(0)]
    np.testing.assert_allclose(after.carry["stem"], expected, atol=1e-5)


def test_what_is_not_finite_changes_no_weight_and_no_statistics_and_is_counted(tiny):
    _, train, state, data = tiny
    broken = state._replace(
        params=jax.tree.map(lambda x: np.full(x.shape, np.nan, x.dtype), state.params)
    )
    after = train(broken, data.train)
    for name in ("params", "opt_state", "carry", "loss", "steps"):
        assert_equal(getattr(after, name), getattr(broken, name))
    assert (after.skipped, after.streak, after.trained) == (1, 1, 1)


def test_only_what_the_architecture_uses_is_trained(tiny):
    training, train, state, data = tiny
    state = train(state, data.train)
    used = jax.tree.broadcast(training.space.mask(training.architecture), state.params)
    jax.tree.map(
        lambda m, p: np.testing.assert_array_equal(np.where(m, 0, p), 0), used, state.params
    )


def test_one_compiled_program_trains_every_architecture(tiny):
    training, train, state, data = tiny
    actions = cells.random_actions(training.space, 1)
    other = CNNTraining(training.config, training.space.decode(actions), training.task)
    pairs = zip(*(jax.tree.leaves(t.architecture) for t in (other, training)), strict=True)
    assert any(np.any(a != b) for a, b in pairs)
    state = jax.eval_shape(other.init, jax.random.key(0), data.train)
    program = jax.jit(other.train, donate_argnums=0).lower(state, data.train)
    assert program.as_text() == train.program


@pytest.mark.usefixtures("undrawn")
def test_an_interrupted_run_goes_on_as_if_it_had_not_been(finished, tmp_path, monkeypatch):
    save = Checkpoints.save

    def save_and_interrupt(*args):
        save(*args)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "save", save_and_interrupt)
        assert train_final.main([*TINY, "--out", str(tmp_path)]) == 130
    assert len(metrics(tmp_path)) == 1
    assert train_final.main([*TINY, "--out", str(tmp_path), "--resume"]) == 0
    assert metrics(tmp_path) == metrics(finished)
    ours, theirs = read(tmp_path / "summary.json"), read(finished / "summary.json")
    for name in ("validation_error_rate", "test_error_rate", "architecture"):
        assert ours[name] == theirs[name]


def test_the_learning_rate_falls_along_half_a_cosine():
    config = CNNFinal(learning_rate=0.4, learning_rate_min=0.2)
    rates = [float(config.learning_rate_at(share)) for share in (0.0, 0.5, 1.0)]
    np.testing.assert_allclose(rates, [0.4, 0.3, 0.2], rtol=1e-6)


def test_the_cell_that_ships_is_the_one_that_was_published():
    config, architecture = train_final.read_architecture(CNNFinal(architecture="enas"))
    (path,) = MicroCNNTask().cells().values()
    assert read(path)["source"]
    # scripts/cifar10_micro_final.sh of melodyguan/enas, in its order of operations.
    arc = "0 2 0 0 0 4 0 1 0 4 1 1 1 0 0 1 0 2 1 1 1 0 1 0 0 3 0 2 1 1 3 1 1 0 0 4 0 3 1 1"
    theirs = ("sep_conv_3x3", "sep_conv_5x5", "avg_pool_3x3", "max_pool_3x3", "identity")
    numbers = np.array([int(n) for n in arc.split()]).reshape(2, 5, 2, 2)
    stored = MicroCNN().to_json(architecture)
    for name, cell in zip(("normal", "reduction"), numbers, strict=True):
        assert stored[name] == [
            [{"input": i, "operation": theirs[o]} for i, o in node] for node in cell.tolist()
        ]
    assert config.cnn.nodes == 5


def test_a_file_decides_how_many_nodes_there_are(tmp_path):
    space = MicroCNN(nodes=3)
    actions = cells.random_actions(space, 5)
    path = tmp_path / "cell.json"
    path.write_text(json.dumps(space.to_json(space.decode(actions))))
    config, architecture = train_final.read_architecture(CNNFinal(architecture=str(path)))
    assert config.cnn.nodes == 3
    assert_equal(architecture, space.decode(actions))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--architecture {tmp}/rnn.json", "not an architecture of --space micro_cnn"),
        ("--architecture darts_style", "one of random, enas"),
        ("--train-images 0", "--train-images must be at least 1, got 0"),
        ("--momentum nan", "--momentum must be at least 0, got nan"),
        ("--batch-size 9999", "--batch-size must be at most"),
        (
            "--space cnn",
            "--space must be one of rnn, micro_cnn, nas_bench_201, or module:Class for a task",
        ),
        ("--cnn.drop-path 1", "--cnn.drop-path must be below 1, got 1.0"),
    ],
)
def test_bad_input_gives_one_clear_line_and_exit_code_2(flags, message, tmp_path, capsys):
    (tmp_path / "rnn.json").write_text('{"space": "rnn", "nodes": [{"activation": "tanh"}]}')
    command = [*TINY, "--out", str(tmp_path / "out"), *flags.format(tmp=tmp_path).split()]
    assert train_final.main(command) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.count("\n") == 1
    assert message in captured.err


def test_every_preset_is_accepted():
    for name, preset in FINALS.items():
        assert preset.preset == name and preset.space == "micro_cnn"
