"""The search script as its user meets it: outputs, stopping and resuming, bad input, divergence."""

import json
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import search, spaces, train_final
from experiments.ranking import probes
from experiments.running import progress as running
from experiments.spaces import cells
from experiments.spaces.micro_cnn.task import MicroCNNTask
from experiments.spaces.rnn.settings import RNNFinal
from wpl_jax.data import Images, Splits
from wpl_jax.data.text import Text
from wpl_jax.search import Distillation, L2Anchor, MomentumGroups, Replay
from wpl_jax.spaces.rnn import RNN

TINY = shlex.split(
    "--preset smoke --epochs 3 --batch-size 4 --length 4 --rnn.units 4 --rnn.nodes 3 "
    "--rnn.vocabulary 12 --search.architectures 2 --search.batches 3 --search.chunk 1 "
    "--search.eval-batches 2 --controller.steps 3 --warmup-epochs 1 "
    "--derive-samples 5 --derive-batches 3 --probes 2 --probe-every 1 --devices 1"
)
IMAGES = shlex.split(
    "--space micro_cnn --preset smoke --epochs 2 --batch-size 8 --cnn.nodes 1 --cnn.channels 2 "
    "--method none --sampler uniform --search.architectures 2 --search.batches 2 "
    "--search.eval-batches 1 --warmup-epochs 1 --derive-samples 2 --derive-batches 2 "
    "--probes 2"
)


@pytest.fixture(scope="module")
def text_dir(tmp_path_factory):
    """A text of more words than are told apart, and of <unk> that stands for others already."""
    folder = tmp_path_factory.mktemp("text")
    words = ["<unk>", *"abcdefghijklmnop"]  # of which 12 are kept
    rng = np.random.default_rng(0)
    for name, sentences in (("train", 80), ("valid", 20), ("test", 10)):
        lines = (" ".join(rng.choice(words, 5)) for _ in range(sentences))
        (folder / f"{name}.txt").write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture(scope="module")
def flags(text_dir):
    return [*TINY, "--text-dir", str(text_dir)]


@pytest.fixture(scope="module")
def finished(flags, tmp_path_factory):
    out = tmp_path_factory.mktemp("search")
    assert search.main([*flags, "--out", str(out)]) == 0
    return out


def read(path):
    return json.loads(path.read_text(), parse_constant=pytest.fail)  # JSON knows no NaN


def metrics(out):
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def results(out):
    """What must not depend on interruptions, to the last bit."""
    records = [{k: v for k, v in record.items() if k != "seconds"} for record in metrics(out)]
    files = ("best.json", "ranking.json", "probes.json", "probes.npz")
    return records, [(out / name).read_bytes() for name in files]


def checkpoints(out):
    return sorted(int(path.parent.name) for path in (out / "checkpoints").glob("*/seal.json"))


def signalled(number, after):
    """A display that sends the process a signal when so many architectures were trained."""

    class Display(running.Display):
        trained = 0

        def show(self, done, **numbers):
            super().show(done, **numbers)
            self.trained += "loss" in numbers
            if self.trained == after:
                os.kill(os.getpid(), number)

    return Display


def test_everything_promised_is_written(finished):
    assert {path.name for path in finished.iterdir()} == {
        "metrics.jsonl",
        "tensorboard",
        "checkpoints",
        "best.json",
        "ranking.json",
        "probes.json",
        "probes.npz",
        "summary.json",
        "cell.dot",
        "cell.png",
        "curves.png",
    }
    assert checkpoints(finished) == [4, 6]
    (board,) = (finished / "tensorboard").iterdir()
    assert board.stat().st_size > 0
    assert (finished / "cell.dot").read_text().startswith("digraph")
    for figure in ("cell.png", "curves.png"):
        assert (finished / figure).read_bytes().startswith(b"\x89PNG")


def test_every_epoch_has_a_record_of_finite_numbers(finished):
    records = metrics(finished)
    assert [record["epoch"] for record in records] == [1, 2, 3]
    assert [record["strength"] for record in records] == [0, 1e4, 1e4]  # the warm-up is one epoch
    expected = "train_loss err1_mean err2_mean err2_median err2_best forgetting_mean "
    expected += "forgetting_best5 forgetting_max forgetting_share tau_within_epoch reward "
    expected += "controller_reward entropy baseline skipped seconds"
    for record in records:
        assert all(np.isfinite(value) for value in record.values())
        assert set(expected.split()) <= set(record)
        assert record["skipped"] == 0
        assert record["err2_best"] <= min(record["err2_mean"], record["err2_median"])
        np.testing.assert_allclose(
            record["err2_mean"] - record["err1_mean"], record["forgetting_mean"], atol=1e-4
        )


def test_the_best_architecture_leads_a_sorted_ranking(finished):
    best, ranking = read(finished / "best.json"), read(finished / "ranking.json")
    assert len(ranking) == 5
    assert best == ranking[0]
    perplexities = [entry["perplexity"] for entry in ranking]
    assert perplexities == sorted(perplexities)
    space = RNN(vocabulary=12, nodes=3)
    for entry in ranking:
        stored = space.to_json(space.from_json(entry))
        assert entry == {"perplexity": entry["perplexity"], **stored}


def test_probes_are_the_random_cells_of_final_training(finished, flags):
    job = search.prepare(search.parse([*flags, "--out", str(finished), "--resume"]))
    config = job.config
    like = jax.eval_shape(job.search.init, jax.random.key(0))
    params = search.open_checkpoints(job).restore(like).params
    windows = jnp.asarray(job.data.validation[:3])
    probed = read(finished / "probes.json")
    assert [probe["seed"] for probe in probed] == [0, 1]
    for probe in probed:
        settings = RNNFinal(architecture="random", seed=7, seed_architecture=probe["seed"])
        _, cell = train_final.read_architecture(settings.with_space(nodes=3))
        total, hidden = 0.0, config.rnn.start(windows[0])
        for window in windows:
            (nll, count), hidden = config.rnn.score(params, cell, window, hidden)
            total += nll / count / len(windows)
        np.testing.assert_allclose(probe["perplexity"], np.exp(total), rtol=1e-4)


@pytest.mark.usefixtures("undrawn")
def test_probes_are_measured_after_every_epoch_and_change_nothing(finished, flags, tmp_path):
    kept = probes.read(finished)
    assert kept["epoch"].tolist() == [1, 2, 3] and kept["seed"].tolist() == [0, 1]
    assert kept["error"].shape == kept["loss"].shape == (3, 2)
    at_the_end = [probe["perplexity"] for probe in read(finished / "probes.json")]
    np.testing.assert_array_equal(kept["error"][-1], np.float32(at_the_end))
    np.testing.assert_allclose(kept["loss"], np.log(kept["error"]), rtol=1e-5)
    space = RNN(vocabulary=12, nodes=3)
    stored = [space.to_json(space.decode(cells.random_actions(space, s))) for s in range(2)]
    assert [json.loads(name) for name in kept["architectures"]] == stored

    every = ["--probes", "0", "--probe-every", "0"]
    assert search.main([*flags, *every, "--out", str(tmp_path / "out")]) == 0
    assert not list((tmp_path / "out").glob("probes.*"))
    for name in ("best.json", "ranking.json"):
        assert (tmp_path / "out" / name).read_bytes() == (finished / name).read_bytes()


@pytest.fixture(scope="module")
def of_images(tmp_path_factory):
    """A search for cells for images; the images are MNIST's, cut small."""
    out = tmp_path_factory.mktemp("search")
    whole = MicroCNNTask().read(search.parse(IMAGES))
    small = [Images(p.images[:48, 8:20:2, 8:20:2], p.labels[:48]) for p in whole]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(MicroCNNTask, "read", lambda self, config: Splits(*small))
        assert search.main([*IMAGES, "--out", str(out)]) == 0
    return out


@pytest.mark.slow
def test_cells_for_images_are_searched_for_by_the_same_script(of_images):
    names = {path.name for path in of_images.iterdir()}
    assert {"normal_cell.dot", "reduction_cell.dot", "cell.png", "curves.png"} <= names
    summary, best = read(of_images / "summary.json"), read(of_images / "best.json")
    assert best["space"] == "micro_cnn"
    assert summary["best_error_rate"] == best["error_rate"]
    assert summary["configuration"]["cnn"]["image_shape"] == [6, 6, 1]
    assert summary["images"] == {"train": 48, "validation": 48, "test": 48}
    assert len(metrics(of_images)) == 2
    errors = [entry["error_rate"] for entry in read(of_images / "probes.json")]
    assert len(errors) == 2 and all(0 <= error <= 1 for error in errors)


def test_more_epochs_are_another_search_where_the_learning_rate_depends_on_them():
    assert search.parse(IMAGES).essential()["epochs"] == 2
    assert "epochs" not in search.parse(TINY).essential()


def test_the_learning_rate_of_cells_for_images_falls_along_half_a_cosine():
    config = search.parse([*IMAGES, "--learning-rate", "0.4", "--learning-rate-min", "0.2"])
    rates = [float(config.learning_rate_at(step)) for step in (0, 4, 8)]  # of 2 x 2 x 2
    np.testing.assert_allclose(rates, [0.4, 0.3, 0.2], rtol=1e-6)


def test_the_summary_says_what_was_run_and_with_what(finished, text_dir):
    summary = read(finished / "summary.json")
    assert {"command", "python", "versions", "devices", "machine"} <= set(summary)
    configuration = summary["configuration"]
    assert configuration["text_dir"] == str(text_dir)
    assert configuration["rnn"]["vocabulary"] == 12
    assert configuration["controller"]["steps"] == 3
    assert (configuration["derive_samples"], configuration["derive_batches"]) == (5, 3)
    assert configuration["probes"] == 2
    assert summary["epochs"] == 3
    assert summary["best_perplexity"] == read(finished / "best.json")["perplexity"]
    after = np.mean([record["err2_mean"] for record in metrics(finished)[1:]])
    np.testing.assert_allclose(summary["after_warmup"]["err2_mean"], after)
    assert 0 < summary["unknown_share"]["train"] < 0.5
    assert summary["memory_per_device"] > 0


@pytest.mark.usefixtures("undrawn")
def test_a_run_killed_in_mid_epoch_goes_on_as_if_it_had_not_been(finished, flags, tmp_path):
    command = [*flags, "--out", str(tmp_path / "out")]
    code = "import sys; import test_search_script as test\n"
    code += "test.search.Display = test.signalled(9, after=3)\n"
    code += "test.search.main(sys.argv[1:])"
    folders = [str(folder) for folder in Path(__file__).parents[:3]]
    environment = {
        "JAX_NUM_CPU_DEVICES": str(jax.config.jax_num_cpu_devices),
        "JAX_COMPILATION_CACHE_DIR": jax.config.jax_compilation_cache_dir,  # has its programs
        "JAX_COMPILATION_CACHE_MAX_SIZE": "-1",
        "PYTHONPATH": os.pathsep.join(folders),
    }
    run = subprocess.run(
        [sys.executable, "-c", code, *command],
        env=os.environ | environment,
        stderr=subprocess.PIPE,
        check=False,
    )
    assert run.returncode == -signal.SIGKILL, run.stderr
    assert checkpoints(tmp_path / "out") == [2]
    assert search.main([*command, "--resume"]) == 0
    assert results(tmp_path / "out") == results(finished)


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize(("due", "saved"), [(True, [2, 3]), (False, [1, 3])])
def test_a_signal_stops_and_saves_in_mid_epoch(
    due, saved, finished, flags, tmp_path, monkeypatch, capsys
):
    command = [*flags, "--out", str(tmp_path / "out")]
    monkeypatch.setattr(search.Checkpoints, "is_due", lambda _: due)
    with monkeypatch.context() as patch:
        patch.setattr(search, "Display", signalled(signal.SIGINT, after=1))
        assert search.main(command) == 130
        assert "--resume" in capsys.readouterr().err.splitlines()[-1]
        assert checkpoints(tmp_path / "out") == [1]

        patch.setattr(search, "Display", signalled(signal.SIGTERM, after=2))
        assert search.main([*command, "--resume"]) == 143
        assert checkpoints(tmp_path / "out") == saved
    assert not (tmp_path / "out" / "best.json").exists()
    assert search.main([*command, "--resume"]) == 0
    assert results(tmp_path / "out") == results(finished)


def two_processes(command, environment, stop=False):
    """Exit code, output and errors of each of two processes; the second is sent a signal or not."""
    with socket.socket() as listener:
        listener.bind(("localhost", 0))
        port = listener.getsockname()[1]
    code = "import sys; import test_search_script as test\n"
    code += "if int(sys.argv[1]):\n    test.search.Display = test.signalled(15, after=1)\n"
    code += "sys.exit(test.search.main(sys.argv[2:]))"
    folders = [str(folder) for folder in Path(__file__).parents[:3]]
    environment = {k: v for k, v in os.environ.items() if "proxy" not in k.lower()} | environment
    environment |= {"JAX_NUM_CPU_DEVICES": "1", "PYTHONPATH": os.pathsep.join(folders)}
    processes = []
    for number in range(2):
        flags = ["--distributed", "--coordinator", f"localhost:{port}", "--num-processes", "2"]
        flags += ["--process-id", str(number), "--devices", "None"]
        arguments = [str(int(stop and number == 1)), *command, *flags]
        process = subprocess.Popen(
            [sys.executable, "-c", code, *arguments],
            **{"env": environment, "text": True},
            **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE},
        )
        processes.append(process)
    try:
        outputs = [process.communicate(timeout=300) for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [
        (process.returncode, *output) for process, output in zip(processes, outputs, strict=True)
    ]


@pytest.mark.slow
def test_two_processes_stop_together_resume_and_find_what_one_does(finished, flags, tmp_path):
    command = [*flags, "--out", str(tmp_path / "out")]
    stopped = two_processes(command, {}, stop=True)
    assert [code for code, *_ in stopped] == [143, 143], stopped
    assert "--resume goes on from here" in stopped[0][2]
    assert checkpoints(tmp_path / "out") == [1]  # and no baseline yet: NaN

    resumed = two_processes([*command, "--resume"], {})
    assert [code for code, *_ in resumed] == [0, 0], resumed
    assert "epoch 3/3" in resumed[0][2] and "epoch 3/3" not in resumed[1][2]
    assert "Best of 5" in resumed[0][1] and "Best of" not in resumed[1][1]
    assert {p.name for p in (tmp_path / "out").iterdir()} == {p.name for p in finished.iterdir()}
    assert checkpoints(tmp_path / "out") == [4, 6]
    records, *_ = results(tmp_path / "out")
    expected, *_ = results(finished)
    assert [record.keys() for record in records] == [record.keys() for record in expected]
    for record, wanted in zip(records, expected, strict=True):
        np.testing.assert_allclose(
            *([*r.values()] for r in (record, wanted)), rtol=2e-3, atol=2e-3, err_msg=str(wanted)
        )
    errors = [
        [entry["perplexity"] for entry in read(out / "ranking.json")]
        for out in (tmp_path / "out", finished)
    ]
    np.testing.assert_allclose(*errors, rtol=2e-3)


@pytest.mark.usefixtures("undrawn")
def test_a_finished_run_trained_further_is_one_long_run(finished, flags, tmp_path):
    command = [*flags, "--out", str(tmp_path / "out")]
    assert search.main([*command, "--epochs", "2"]) == 0
    assert search.main([*command, "--resume"]) == 0
    assert results(tmp_path / "out") == results(finished)


def test_a_run_that_diverges_stops_says_where_and_is_saved(tmp_path, capsys):
    command = [*TINY, "--out", str(tmp_path), "--learning-rate", "1e30", "--clip", "1e30"]
    command += ["--sampler", "uniform", "--method", "none", "--resume"]

    assert search.main([*command, "--max-skipped", "2"]) == 1
    message = capsys.readouterr().err.splitlines()[-1]
    assert "epoch 1 at architecture 1: the last 2 training steps" in message
    assert "try a lower --learning-rate" in message
    assert (checkpoints(tmp_path), metrics(tmp_path)) == ([1], [])

    # The first step alone was finite. This goes on from the state that the others left as it was.
    assert search.main([*command, "--max-skipped", "5"]) == 1
    assert "epoch 1 at architecture 2: the last 5" in capsys.readouterr().err
    assert checkpoints(tmp_path) == [1, 2]
    (record,) = metrics(tmp_path)
    assert (record["epoch"], record["skipped"], record["diverged"]) == (1, 5, 2)
    assert record["err2_best"] is None

    job = search.prepare(search.parse([*command, "--resume"]))
    like = jax.eval_shape(job.search.init, jax.random.key(0))
    state = search.open_checkpoints(job).restore(like)
    assert int(state.streak) == 5
    assert all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(state.params))

    assert search.main([*command, "--max-skipped", "6", "--epochs", "1"]) == 1
    assert "none of the 5 architectures" in capsys.readouterr().err
    assert not (tmp_path / "best.json").exists()


def test_where_a_run_is_another_one_is_refused(finished, flags, capsys):
    before = results(finished)
    command = [*flags, "--out", str(finished)]
    for more, message in (
        ([], f"{finished} holds a run: go on with it with --resume, or choose another --out"),
        (["--resume", "--learning-rate", "3"], "made with learning_rate=5.0, not 3.0"),
        (
            ["--resume", "--epochs", "2"],
            f"--epochs must be at least 3, as many as {finished} has, got 2",
        ),
        (["--resume", "--search.batches", "4"], "made with search.batches=3, not 4"),
        (["--resume", "--rnn.vocabulary", "9"], "rnn.vocabulary=12, not 9"),
    ):
        assert search.main([*command, *more]) == 2
        assert_one_line(capsys, message)
    assert results(finished) == before


def test_damaged_checkpoints_are_named(finished, flags, tmp_path, capsys):
    out = shutil.copytree(finished, tmp_path / "out")
    for step in checkpoints(out):
        (out / "checkpoints" / str(step) / "seal.json").write_text("{")
    assert search.main([*flags, "--out", str(out), "--resume"]) == 2
    assert_one_line(capsys, f"every checkpoint in {out / 'checkpoints'} is damaged")


def assert_one_line(capsys, message):
    output, errors = capsys.readouterr()
    assert output == ""
    assert message in errors
    assert errors.startswith("search: ") and errors.count("\n") == 1


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ("--train-images 9999", "--train-images must be at most 3500, all the training images of"),
        ("--train-images 7", "--batch-size must be at most the number of images, 7, got 8"),
        ("--data iris_pictures", "--data must be mnist5k or one of"),
        ("--search.batches 999", "--search.batches must be at most 437, all the batches of the"),
        ("--learning-rate-min -1", "--learning-rate-min must be at least 0, got -1"),
    ],
)
def test_bad_input_about_images_gives_one_clear_line_and_exit_code_2(
    more, message, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(search, "run", lambda *args: pytest.fail("the search began"))
    assert search.main([*IMAGES, "--out", str(tmp_path / "out"), *more.split()]) == 2
    assert_one_line(capsys, message)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (
            "--space cnn",
            "--space must be one of rnn, micro_cnn, nas_bench_201, or module:Class for a task",
        ),
        ("--probes -1", "--probes must be at least 0, got -1"),
        ("--probes 0 --probe-every 2", "--probe-every is for the architectures of --probes, got"),
        ("--preset tiny", "--preset must be one of paper, cpu, smoke, got 'tiny'"),
        ("--data ptb --data-dir {tmp}", "--data-dir"),
        ("--text-dir {tmp}/missing", "there is no file {tmp}/missing/train.txt"),
        ("--text-dir {tmp}/empty", "{tmp}/empty/train.txt holds no words"),
        (
            "--rnn.vocabulary 2",
            "--rnn.vocabulary must be at least 3, <eos>, <unk> and a word, got 2",
        ),
        ("--search.batches 9999", "--search.batches must be at most"),
        ("--search.eval-batches 9999", "--search.eval-batches must be at most"),
        ("--derive-batches 9999", "--derive-batches must be at most"),
        ("--batch-size 99999", "lower --batch-size or --length"),
        ("--batch-size 0", "--batch-size must be at least 1, got 0"),
        ("--epochs -1", "--epochs must be at least 1, got -1"),
        ("--max-skipped 0", "--max-skipped must be at least 1, got 0"),
        ("--learning-rate nan", "--learning-rate must be at least 1e-30, got nan"),
        ("--strength inf", "--strength must be at most 1e+30, got inf"),
        ("--weight-decay -1", "--weight-decay must be at least 0, got -1.0"),
        ("--devices 9", "--devices must be at most 8, got 9"),
        ("--devices None", "--batch-size must be a multiple of the 8 devices that share a batch"),
        ("--process-id 0", "--coordinator, --num-processes and --process-id need --distributed"),
        ("--distributed", "--devices and --distributed exclude each other"),
        ("--distributed --devices None", "--distributed: jax.distributed.initialize() must be"),
        ("--seed -1", "--seed must be at least 0, got -1"),
        ("--seed 4294967296", "--seed must be at most 4,294,967,295, got 4294967296"),
        ("--search.chunk 3", "--search.chunk must be a divisor of architectures (2), got 3"),
        ("--rnn.units 0", "--rnn.units must be at least 1, got 0"),
        ("--warmup-epochs -1", "--warmup-epochs must be at least 0, got -1"),
        ("--wpl.fisher-decay 2", "--wpl.fisher-decay must be below 1, got 2.0"),
        ("--replay.memory 0", "--replay.memory must be at least 1, got 0"),
        ("--sampler distinct", "Distinct needs distinct of the space, which RNN does not have"),
        ("--out {tmp}/file/out", "cannot write to {tmp}/file/out"),
    ],
)
def test_bad_input_gives_one_clear_line_and_exit_code_2(
    more, message, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(search, "run", lambda *args: pytest.fail("the search began"))
    (tmp_path / "file").touch()
    (tmp_path / "empty").mkdir()
    for name in ("train", "valid", "test"):
        (tmp_path / "empty" / f"{name}.txt").touch()
    more = shlex.split(more.format(tmp=tmp_path))
    assert search.main([*TINY, "--out", str(tmp_path / "out"), *more]) == 2
    assert_one_line(capsys, message.format(tmp=tmp_path))


@pytest.mark.parametrize(
    ("space", "preset"),
    [
        pytest.param(space, preset, marks=[pytest.mark.slow] * (space != "rnn"))
        for space in spaces.TASKS
        for preset in spaces.find(space).searches
    ],
)
def test_every_preset_can_train(space, preset):
    config = search.parse(["--space", space, "--preset", preset])
    task = spaces.find(space)
    assert config == task.searches[preset]
    assert (config.space, config.preset) == (space, preset)
    there = corpus(config)
    config = config.with_space(**task.sizes(there))
    data = jax.eval_shape(lambda: search.cut(config, task, there))
    found = search.search_of(config)
    state = jax.eval_shape(found.init, jax.random.key(0))
    after, progress = jax.eval_shape(found.step, state, data)
    assert jax.tree.map(jnp.shape, after) == jax.tree.map(jnp.shape, state)
    assert progress.epoch.err2.shape == (config.search.measured,)


@pytest.mark.parametrize(
    ("method", "sampler", "flags", "found"),
    [
        ("l2", "controller", "--protect edges", L2Anchor),
        ("replay", "uniform", "--replay.novel", Replay),
        (
            "momentum",
            "fair",
            "--momentum-groups.slope 0.5 --momentum-groups.steps 18",
            MomentumGroups,
        ),
        ("distillation", "balanced", "--distillation.weight 2", Distillation),
    ],
)
def test_every_method_can_train_by_every_sampler(method, sampler, flags, found, text_dir):
    flags = [*TINY, "--method", method, "--sampler", sampler, *flags.split()]
    config = search.parse([*flags, "--text-dir", str(text_dir)])
    of_text, task = search.search_of(config), spaces.find("rnn")
    assert type(of_text.method) is found
    data = jax.eval_shape(lambda: search.cut(config, task, task.read(config)))
    state = jax.eval_shape(of_text.init, jax.random.key(0))
    after, _ = jax.eval_shape(of_text.step, state, data)
    assert jax.tree.map(jnp.shape, after) == jax.tree.map(jnp.shape, state)
    assert search.folder_of(config, task).name == f"smoke_{method}_{sampler}_0"


def corpus(config):
    """Data of the sizes of those that a preset names."""
    if config.data == "ptb":
        ptb = (np.zeros(size, np.int32) for size in (929_589, 73_760, 82_430))
        return Text(*ptb, ("",) * config.rnn.vocabulary)
    if config.data == "cifar10":
        sizes = (config.train_images or 45_000, 5_000, 10_000)
        return Splits(
            *(Images(np.zeros((n, 32, 32, 3), np.uint8), np.zeros(n, np.int32)) for n in sizes)
        )
    return spaces.find(config.space).read(config)
