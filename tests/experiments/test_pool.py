"""Runs of scripts: what is launched, what is not, how they fail and how they are interrupted."""

import json
import os
import sys

import pytest

from experiments.running import pool
from experiments.running.pool import Interrupted, Pool, Run
from experiments.running.progress import Stop

SUMMARY = {"epochs": 3, "configuration": {"seed": 0, "rnn": {"units": 8}}}
# A run that works until it is asked to stop, and then saves; resumed, it is done at once.
SCRIPT = f"""
import json, os, pathlib, signal, sys, time
out = pathlib.Path(sys.argv[sys.argv.index("--out") + 1])
def save(*_):
    (out / "saved").touch()
    sys.exit(143)
signal.signal(signal.SIGTERM, save)
(out / "cores").write_text(json.dumps(sorted(os.sched_getaffinity(0))))
while not (out / "saved").exists():
    time.sleep(0.01)
(out / "summary.json").write_text(json.dumps({SUMMARY}))
"""


def a_run(name, **changes):
    return Run(name, "search", ("--seed", "0"), SUMMARY | changes)


@pytest.fixture
def scripts(monkeypatch):
    """The commands launched, each of them replaced by SCRIPT."""
    commands, launch = [], pool.launch

    def replaced(command, log, lock):
        commands.append(command)
        return launch([sys.executable, "-c", SCRIPT, *command[3:]], log, lock)

    monkeypatch.setattr(pool, "launch", replaced)
    return commands


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="the script asks for its cores")
def test_interrupted_runs_save_and_the_same_call_goes_on(tmp_path, scripts, capsys):
    class Asked(Stop):
        """Asked to stop as soon as two runs are at work."""

        def __bool__(self):
            return len(list(tmp_path.glob("*/cores"))) == 2

    runs = [a_run("a"), a_run("b"), a_run("c")]
    first = Pool(tmp_path, 2, Asked())
    with pytest.raises(Interrupted):
        first.execute("stage", runs)
    first.close()
    assert {path.parent.name for path in tmp_path.glob("*/saved")} == {"a", "b"}
    assert first.failed == []
    assert first.summary(runs[0]) is None
    assert scripts[0] == [
        *(sys.executable, "-m", "experiments.search", "--seed", "0"),
        *("--out", str(tmp_path / "a"), "--resume"),
    ]
    cores = [json.loads((tmp_path / name / "cores").read_text()) for name in "ab"]
    every = sorted(os.sched_getaffinity(0))
    assert cores == ([every[0::2], every[1::2]] if len(every) > 1 else [every, every])

    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "saved").touch()
    second = Pool(tmp_path, 2, Stop())
    second.execute("stage", runs)
    second.close()
    assert [second.summary(run) for run in runs] == [SUMMARY] * 3
    lines = capsys.readouterr().err.splitlines()
    assert "stage: waiting for 2 runs to save" in lines
    assert "stage 3/3: c" in lines


def test_a_run_with_other_settings_is_not_taken_for_this_one(tmp_path, scripts):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "summary.json").write_text(json.dumps(SUMMARY))
    runs = Pool(tmp_path, 1, Stop())
    other = a_run("a", configuration={"seed": 1, "rnn": {"units": 8}})
    runs.execute("stage", [other])
    assert scripts == []
    assert runs.summary(other) is None
    (line,) = runs.failed
    assert line.startswith("a: its folder holds a run with seed=0, not 1; delete it")
    runs.close()


def test_a_finished_run_with_fewer_epochs_goes_on(tmp_path, scripts):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "saved").touch()
    (tmp_path / "a" / "summary.json").write_text(json.dumps(SUMMARY | {"epochs": 2}))
    runs = Pool(tmp_path, 1, Stop())
    runs.execute("stage", [a_run("a")])
    assert len(scripts) == 1
    assert runs.summary(a_run("a")) == SUMMARY
    runs.close()


def torn(folder):
    (folder / "summary.json").write_text(json.dumps(SUMMARY)[:20])


def no_object(folder):
    (folder / "summary.json").write_text("[]")


def without_the_rest(folder):
    (folder / "rest").unlink()


@pytest.mark.parametrize("damage", [torn, no_object, without_the_rest])
def test_a_result_that_is_damaged_is_made_again_and_said(damage, tmp_path, scripts, capsys):
    folder = tmp_path / "a"
    folder.mkdir()
    for name in ("saved", "rest"):
        (folder / name).touch()
    (folder / "summary.json").write_text(json.dumps(SUMMARY))
    damage(folder)
    # Once it is launched again, the rest is there.
    run = a_run("a")._replace(read=lambda folder: scripts or (folder / "rest").read_bytes())
    with Pool(tmp_path, 1, Stop()) as runs:
        runs.execute("stage", [run])
        assert runs.summary(run) == SUMMARY and runs.failed == []
    assert len(scripts) == 1
    assert "is damaged (" in capsys.readouterr().err


def test_a_run_on_other_data_is_not_taken_for_this_one(tmp_path, scripts):
    (tmp_path / "a").mkdir()
    for data, failures in (({}, 0), ({"data": {"content": "1"}}, 1)):  # early ones do not say
        (tmp_path / "a" / "summary.json").write_text(json.dumps(SUMMARY | data))
        with Pool(tmp_path, 1, Stop()) as runs:
            runs.execute("stage", [a_run("a", data={"content": "2"})])
            assert len(runs.failed) == failures
    assert scripts == []


def test_a_run_may_have_another_result_and_be_done_again(tmp_path, scripts):
    class Other(Run):
        result = "summary.json"

        def place(self, folder):
            return ["--out", str(folder)]

        def goes_on(self, found):
            return found["epochs"] != 3

    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "saved").touch()
    (tmp_path / "a" / "summary.json").write_text(json.dumps(SUMMARY | {"epochs": 4}))
    runs, other = Pool(tmp_path, 1, Stop()), Other("a", "search", (), SUMMARY)
    runs.execute("stage", [other])
    assert scripts == [[sys.executable, "-m", "experiments.search", "--out", str(tmp_path / "a")]]
    assert runs.summary(other) == SUMMARY and runs.failed == []
    runs.execute("stage", [other])
    assert len(scripts) == 1
    runs.close()


def test_a_folder_is_one_pool_s_and_that_of_the_runs_it_has_left(tmp_path, scripts):
    pools = Pool(tmp_path, 1, Stop())
    with pytest.raises(OSError, match="at work in .*--runs"):
        Pool(tmp_path, 1, Stop())
    (tmp_path / "a").mkdir()
    with (tmp_path / "a" / "log.txt").open("w") as log:
        command = [*"---", "--out", str(tmp_path / "a")]
        left = pool.launch(command, log, pools._lock.fileno())
    pools.close()
    with pytest.raises(OSError, match="at work in .*--runs"):
        Pool(tmp_path, 1, Stop())
    left.kill()
    left.wait()
    Pool(tmp_path, 1, Stop()).close()
