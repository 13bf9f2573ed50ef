"""A run's folder: one run's at a time, nothing in it lost, and what is damaged is made again."""

import json
import logging
import shlex
import shutil

import jax.numpy as jnp
import numpy as np
import pytest

from experiments import rank, search, train_final, train_many
from experiments.importances import __main__ as importances
from experiments.ranking import probes
from experiments.running import folder, records
from experiments.running.folder import Held
from experiments.running.progress import MetricsLog
from experiments.running.script import Script
from experiments.two_models import __main__ as two_models
from wpl_jax.checkpoint import Checkpoints

DIGITS = "--space examples.layers_space:Digits --layers.width 8 "
SEARCH = shlex.split(
    DIGITS + "--epochs 4 --search.architectures 2 --search.chunk 1 --search.batches 2 "
    "--warmup-epochs 0 --derive-samples 2 --probes 2 --probe-every 1 --devices 1 --sampler uniform"
)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    out = tmp_path_factory.mktemp("whole")
    assert search.main([*SEARCH, "--out", str(out)]) == 0
    return out


@pytest.fixture
def copy(whole, tmp_path):
    return shutil.copytree(whole, tmp_path / "copy")


def results(out):
    log = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    files = [(out / name).read_bytes() for name in ("best.json", "ranking.json", "probes.npz")]
    return [record | {"seconds": 0} for record in log], files


def one_line(capsys):
    said = capsys.readouterr()
    assert said.out == "" and said.err.count("\n") == 1
    return said.err


# --- One run at a time ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("main", "flags"),
    [
        (search.main, [*SEARCH, "--resume", "--out"]),
        (train_final.main, [*shlex.split(DIGITS + "--architecture random"), "--out"]),
        (train_many.main, [f"--training-flags={DIGITS}", "--out"]),
        (two_models.main, ["--preset", "demo", "--out"]),
        (importances.main, ["--out"]),
        (rank.main, []),
    ],
)
def test_a_second_run_in_a_folder_is_refused(main, flags, tmp_path, capsys):
    with Held(tmp_path):
        assert main([*flags, str(tmp_path)]) == 2
    assert f"another run is at work in {tmp_path}: wait for it, or" in one_line(capsys)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_is_let_go_of_and_nothing_is_left_in_it(tmp_path):
    for _ in range(2):
        with Held(tmp_path / "new"):
            assert list((tmp_path / "new").iterdir()) == []


# --- What a folder holds is not written over ------------------------------------------------------


def test_results_of_another_run_are_not_written_over(whole, copy, capsys):
    before = (copy / "summary.json").read_bytes()
    for main, flags in (
        (two_models.main, ["--preset", "demo"]),
        (importances.main, []),
        (train_final.main, [*shlex.split(DIGITS + "--architecture random"), "--resume"]),
    ):
        assert main([*flags, "--out", str(copy)]) == 2
        assert f"{copy} holds the results of" in one_line(capsys)
    with pytest.raises(ValueError, match="holds other results"):
        folder.check_report(copy, "grid", two_models.parse([]))
    assert (copy / "summary.json").read_bytes() == before
    assert results(copy) == results(whole)


def test_a_finished_run_of_two_models_is_not_run_again(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(two_models, "experiment", lambda *_: pytest.fail("it was run"))
    monkeypatch.setattr(two_models.results, "load", lambda out: "the run")
    monkeypatch.setattr(two_models.report, "show", lambda run, out: print(run))
    config = two_models.parse(["--preset", "demo"])
    summary = {"configuration": vars(config) | two_models.AWAY}
    records.write_json(tmp_path / "summary.json", summary)
    command = ["--preset", "demo", "--out", str(tmp_path)]
    assert two_models.main(command) == 0
    assert capsys.readouterr().out == "the run\n"
    assert two_models.main([*command, "--width", "9"]) == 2
    assert "holds the results of another run" in one_line(capsys)


def test_parts_of_a_run_with_other_settings_are_not_written_over(tmp_path):
    records.kept(tmp_path / "a.npz", "one", lambda: np.zeros(2))
    folder.check_parts(tmp_path, "one")
    with pytest.raises(ValueError, match="holds parts of a run with other settings"):
        folder.check_parts(tmp_path, "two")


@pytest.mark.parametrize("lost", ["checkpoints", "checkpoints/*/seal.json"])
def test_a_search_does_not_begin_anew_over_what_is_left_of_it(copy, lost, capsys):
    for path in list(copy.glob(lost)):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    log = (copy / "metrics.jsonl").read_bytes()
    for more in ([], ["--resume"]):
        assert search.main([*SEARCH, "--out", str(copy), *more]) == 2
        assert str(copy) in one_line(capsys)
    assert (copy / "metrics.jsonl").read_bytes() == log


# --- What is damaged ------------------------------------------------------------------------------


def flip(path, place):
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


@pytest.mark.usefixtures("undrawn")
def test_whatever_becomes_of_the_log_a_resumed_search_is_as_a_whole_one(whole, copy, capsys):
    log = (copy / "metrics.jsonl").read_bytes().splitlines()
    flip(copy / "checkpoints" / "8" / "seal.json", 30)  # in the settings
    (copy / "metrics.jsonl").write_bytes(b"\n".join([b"", log[1], log[1], log[2][:20], b"7", b"["]))
    (copy / "probes.npz").unlink()
    (copy / "summary.json").write_text('{"epochs": ')
    assert search.main([*SEARCH, "--out", str(copy), "--resume"]) == 0
    said = capsys.readouterr().err
    assert "checkpoint of step 8 is damaged or unfinished: going on from that of step 6" in said
    assert results(copy) == results(whole)
    assert json.loads((copy / "summary.json").read_text())["epochs"] == 4


@pytest.mark.usefixtures("undrawn")
def test_checkpoints_of_early_versions_are_gone_on_with(whole, copy, capsys):
    for path in copy.glob("checkpoints/*/seal.json"):
        seal = json.loads(path.read_text())
        path.write_text(json.dumps({k: seal[k] for k in ("fingerprint", "sha256")}))
    lines = (copy / "metrics.jsonl").read_text().splitlines(keepends=True)
    (copy / "metrics.jsonl").write_text("".join([lines[0], "\n", *lines[2:]]))
    shutil.rmtree(copy / "checkpoints" / "8")
    assert search.main([*SEARCH, "--out", str(copy), "--resume"]) == 0
    assert "metrics.jsonl lacks the epochs 2" in capsys.readouterr().err
    assert [r["epoch"] for r in results(copy)[0]] == [1, 3, 4]
    np.testing.assert_array_equal(probes.read(copy)["loss"], probes.read(whole)["loss"])


def rows(number):
    return [{"epoch": epoch, "loss": 1 / epoch} for epoch in range(1, number + 1)]


def test_the_log_is_written_anew_from_what_is_kept_beside_the_states(tmp_path):
    notes = {"log": rows(3)}
    with MetricsLog(tmp_path, 3, notes) as log:
        log.append({"epoch": 4, "loss": 0.25})
    assert records.read_json_lines(tmp_path / "metrics.jsonl") == rows(4) == notes["log"]


def test_a_log_that_has_nothing_of_a_run_is_refused(tmp_path):
    with pytest.raises(OSError, match=r"metrics.jsonl has none of the 2 epochs"):
        MetricsLog(tmp_path, 2)


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(b"nothing"),
        lambda path: path.write_bytes(path.read_bytes()[:-100]),
        lambda path: path.write_bytes(path.read_bytes()[:60]),
        lambda path: flip(path, 80),
        lambda path: path.write_bytes(records.npz({"leaf0": np.zeros(3)})),
        lambda path: path.write_bytes(
            records.npz({"fingerprint": np.array("one"), "leaf0": np.zeros(2), "seconds": 1.0})
        ),
    ],
)
def test_a_part_that_is_damaged_is_made_again_and_said(damage, tmp_path, capsys):
    path = tmp_path / "part.npz"
    records.kept(path, "one", lambda: jnp.arange(3.0))
    damage(path)
    again, _ = records.kept(path, "one", lambda: jnp.arange(3.0))
    np.testing.assert_array_equal(again, np.arange(3.0))
    assert f"{path} is damaged (" in one_line(capsys)
    kept, _ = records.kept(path, "one", lambda: jnp.zeros(3))
    np.testing.assert_array_equal(kept, again)


@pytest.mark.parametrize(
    ("content", "kept"),
    [("", 0), ("seed,x\n0,1\n", 0), ("{0}\n{1}\n1,x\n", 1), ("{0}\n{1}\n{2}\n{1}\n", 2)],
)
def test_rows_of_train_many_that_are_damaged_are_trained_again(content, kept, tmp_path):
    training = train_final.parse(shlex.split(DIGITS))
    task = search.spaces.find(training.space)
    first = task.training(training, None, task)
    config, key = train_many.TrainMany(tmp_path), train_many.error_key(first)
    good = [
        {"seed": str(i), "architecture": train_many.name_of(first, i), key: "0.5"} for i in range(2)
    ]
    train_many.write(tmp_path / "errors.csv", good)
    lines = (tmp_path / "errors.csv").read_text().splitlines()
    (tmp_path / "errors.csv").write_text(content.format(*lines))
    assert train_many.begun(config, first) == good[:kept]


def test_rows_of_unknown_settings_are_not_gone_on_with(tmp_path):
    (tmp_path / "errors.csv").write_text("seed\n")
    (tmp_path / "settings.json").write_text("{")
    with pytest.raises(ValueError, match=r"settings.json cannot be read.*delete both"):
        folder.claim(tmp_path, {"seed": 0}, "errors.csv")


# --- What cannot be written -----------------------------------------------------------------------


def test_a_full_disk_is_one_line(tmp_path, monkeypatch, capsys):
    def full(self, step, state):
        raise OSError(f"cannot save a checkpoint in {self._folder}: No space left on device")

    monkeypatch.setattr(Checkpoints, "save", full)
    assert search.main([*SEARCH, "--out", str(tmp_path)]) == 1
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("search: cannot save") and line.endswith("from the last checkpoint")


def test_a_folder_that_is_renamed_in_mid_run_is_noticed(tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    with MetricsLog(out) as log, Checkpoints(out / "checkpoints", {}) as checkpoints:
        out.rename(tmp_path / "elsewhere")
        with pytest.raises(OSError, match="renamed"):
            log.append({"epoch": 1})
        with pytest.raises(OSError, match="renamed"):
            checkpoints.save(1, {"w": np.zeros(1)})
    assert not out.exists()


def test_a_run_goes_on_without_tensorboard(tmp_path, capsys):
    (tmp_path / "tensorboard").touch()
    with MetricsLog(tmp_path) as log:
        log.append({"epoch": 1, "loss": 0.5})
    assert "going on without TensorBoard's scalars: " in one_line(capsys)
    assert records.read_json_lines(tmp_path / "metrics.jsonl") == [{"epoch": 1, "loss": 0.5}]


def test_what_named_a_folder_that_cannot_be_written_is_said(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match=r"cannot write to .*; choose another --runs"):
        Held(tmp_path / "file", "--runs")


def test_a_name_that_cannot_be_written_is_refused(tmp_path):
    with pytest.raises(OSError, match=r"another --runs, or set LC_ALL=C.UTF-8"):
        Held(tmp_path / "r\udcc3s", "--runs")


def test_reading_images_leaves_it_silent_what_tfds_logs():
    """What TFDS logs as an error, it also raises, so that it would be said twice."""
    with Script("name", "").preparing():
        search.spaces.read(search.parse(["--space", "micro_cnn"]))
        assert logging.getLogger("absl").level == logging.CRITICAL


def test_what_ends_a_script_is_a_line(capsys):
    script = Script("name", "the same command goes on")

    def ends(code, error, prepared=False):
        @script
        def main(argv):
            with script.preparing():
                if not prepared:
                    raise error
            raise error

        assert main([]) == code
        return one_line(capsys)

    assert ends(2, ValueError("two\nlines")) == "name: two lines\n"
    assert ends(2, PermissionError(13, "Denied", "file")) == "name: file: Denied\n"
    line = "name: file: Full; the same command goes on\n"
    assert ends(1, OSError(28, "Full", "file"), prepared=True) == line
    line = "name: interrupted; the same command goes on\n"
    assert ends(130, KeyboardInterrupt(), prepared=True) == line
