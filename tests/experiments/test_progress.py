"""A long run: it stops when asked to, and its log and display say what it did."""

import contextlib
import io
import json
import os
import signal
import subprocess
import sys
import threading
import time

import jax.numpy as jnp
import numpy as np
import pytest
from rich.console import Console
from tensorboardX.proto.event_pb2 import Event

from experiments.running import progress as running
from experiments.running.progress import Display, MetricsLog, Stop, interruptible

HEEDED = pytest.mark.skipif(
    signal.getsignal(signal.SIGHUP) is signal.SIG_IGN, reason="SIGHUP is ignored, as under nohup"
)
SIGNALS = [
    (signal.SIGINT, 130),
    (signal.SIGTERM, 143),
    pytest.param(signal.SIGHUP, 129, marks=HEEDED),
]


@pytest.mark.parametrize(("number", "code"), SIGNALS)
def test_a_signal_asks_to_stop_and_the_old_handlers_come_back(number, code):
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with interruptible() as stop:
        assert not stop and stop.exit_code == 0
        os.kill(os.getpid(), number)
        assert stop and stop.by == number and stop.exit_code == code
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


def test_a_second_interrupt_does_not_wait():
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt), interruptible() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        assert stop
        os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


def test_elsewhere_than_in_the_main_thread_signals_are_left_alone():
    before, found = signal.getsignal(signal.SIGINT), []

    def run():
        with interruptible() as stop:
            found.extend([stop, signal.getsignal(signal.SIGINT)])

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert found == [Stop(), before]


@contextlib.contextmanager
def killed_at_last(run):
    """A test that fails must not wait for what it has started."""
    try:
        yield
    finally:
        run.kill()


RUN = """
import sys, time
from experiments.running.progress import interruptible
with interruptible() as stop:
    print("started", flush=True)
    for step in range(1000):
        time.sleep(0.05)
        if stop:
            print("saved", flush=True)
            sys.exit(stop.exit_code)
"""


def test_a_run_ends_its_step_saves_and_says_by_its_exit_code_what_stopped_it():
    command = [sys.executable, "-c", RUN]
    with (
        subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as run,
        killed_at_last(run),
    ):
        assert run.stdout.readline() == "started\n"
        run.send_signal(signal.SIGTERM)
        output, _ = run.communicate(timeout=60)
    assert (run.returncode, output) == (143, "saved\n")


# While it imports JAX, while Python runs, and while a compiled program does, for hours.
BUSY = """
from experiments.running import script
script.begin("name")
print("ready", flush=True)
import jax
from experiments.running.progress import interruptible
with interruptible() as stop:
    pass
print("ready", flush=True)
jax.lax.while_loop(lambda x: x < 2, lambda x: x * 0.5, 1.0).block_until_ready()
"""


@pytest.mark.parametrize(("number", "code"), SIGNALS)
@pytest.mark.parametrize("lines", [1, 2])
def test_until_a_run_can_save_a_signal_ends_it_at_once_in_a_line(number, code, lines):
    command = [sys.executable, "-c", BUSY]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, **pipes) as run, killed_at_last(run):
        for _ in range(lines):
            assert run.stdout.readline() == "ready\n"
        time.sleep(0.5 * (lines - 1))
        run.send_signal(number)
        _, errors = run.communicate(timeout=60)
    assert (run.returncode, errors) == (code, "name: interrupted before it began\n")


def test_nohup_is_left_alone():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with interruptible() as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            assert not stop
    finally:
        signal.signal(signal.SIGHUP, before)


def metrics(epoch):
    return {
        "epoch": epoch,
        "loss": np.float32(1 / epoch),
        "reward": jnp.float32(jnp.nan if epoch == 2 else 0.1 * epoch),
        "best": [float("inf"), 0.5],
        "skipped": 0,
    }


def scalars(folder):
    """What TensorBoard would read, by name and step."""
    (file,) = (folder / "tensorboard").iterdir()
    content, found = file.read_bytes(), {}
    while content:
        size = int.from_bytes(content[:8], "little")
        event = Event.FromString(content[12 : 12 + size])
        found |= {(value.tag, event.step): value.simple_value for value in event.summary.value}
        content = content[16 + size :]
    return found


def test_a_record_is_in_the_file_at_once_and_holds_numbers_or_null(tmp_path):
    with MetricsLog(tmp_path) as log:
        log.append(metrics(2))
        (line,) = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert json.loads(line) == {
        "epoch": 2,
        "loss": 0.5,
        "reward": None,
        "best": [None, 0.5],
        "skipped": 0,
    }


def test_the_log_of_a_resumed_run_is_that_of_an_uninterrupted_one(tmp_path):
    for name in ("whole", "resumed"):
        (tmp_path / name).mkdir()
    with MetricsLog(tmp_path / "whole") as log:
        for epoch in range(1, 6):
            log.append(metrics(epoch))
    with MetricsLog(tmp_path / "resumed") as log:
        for epoch in range(1, 5):
            log.append(metrics(epoch))
    with (tmp_path / "resumed" / "metrics.jsonl").open("a") as file:
        file.write('{"epoch": 5, "lo')  # killed here; the last checkpoint is that of epoch 3
    with MetricsLog(tmp_path / "resumed", resume_from=3) as log:
        for epoch in (4, 5):
            log.append(metrics(epoch))
    whole, resumed = (
        (tmp_path / name / "metrics.jsonl").read_bytes() for name in ("whole", "resumed")
    )
    assert resumed == whole
    drawn = scalars(tmp_path / "whole")
    assert scalars(tmp_path / "resumed") == drawn
    assert drawn["loss", 4] == 0.25
    assert set(drawn) == {
        (name, epoch)
        for name in ("loss", "reward", "skipped")
        for epoch in range(1, 6)
        if (name, epoch) != ("reward", 2)
    }


def test_a_run_from_the_start_begins_a_new_log(tmp_path):
    for _ in range(2):
        with MetricsLog(tmp_path) as log:
            log.append(metrics(1))
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 1


def test_a_run_goes_on_without_tensorboardx(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    with MetricsLog(tmp_path) as log:
        log.append(metrics(1))
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 1
    assert "going on without TensorBoard's scalars: " in capsys.readouterr().err


def test_without_a_terminal_the_display_is_a_line_an_epoch(capsys):
    with Display(epochs=3, per_epoch=10, unit="architectures", start=1) as display:
        for epoch in range(2):
            display.show(5, loss=2.0)
            time.sleep(0.01)
            display.end_epoch(train_loss=1.5, reward=[0.25, jnp.float32(jnp.nan)][epoch])
    output, errors = capsys.readouterr()
    assert output == ""
    first, last = errors.splitlines()
    assert first.startswith("epoch 2/3  train_loss 1.5  reward 0.25  ETA 0:00:0")
    assert last == "epoch 3/3  train_loss 1.5  reward nan  ETA 0:00:00"


def test_the_time_left_includes_what_comes_after_the_epochs(capsys):
    with Display(epochs=2, per_epoch=10, unit="steps", after=1000) as display:
        for _ in range(2):
            time.sleep(0.02)
            display.end_epoch(loss=1.0)
    display.say("testing")
    *_, last, testing = capsys.readouterr().err.splitlines()
    assert testing.startswith("testing  ETA 0:00:0") and not testing.endswith("0:00:00")
    assert last.startswith("epoch 2/2  loss 1  ETA ") and not last.endswith("0:00:00")


@pytest.mark.parametrize("columns", [60, 100])
def test_on_a_terminal_the_display_shows_the_bar_and_the_numbers(columns, monkeypatch):
    terminal = Console(force_terminal=True, force_interactive=True, record=True, width=columns)
    monkeypatch.setattr(running, "Console", lambda stderr: terminal)
    with Display(epochs=150, per_epoch=40, unit="architectures", start=11) as display:
        display.show(17, loss=4.5678, perplexity=96.25)
    bar, numbers = terminal.export_text().splitlines()[-2:]
    assert bar.startswith(("epoch 12/150 ━", "epoch 12/150 ╸"))
    assert "━ 17/40 architectures 0:00:00 ETA -:--:--" in bar
    assert numbers.strip() == "loss 4.568  perplexity 96.25"


@pytest.mark.parametrize("error", [BrokenPipeError(), OSError(28, "No space left on device")])
def test_a_run_outlives_what_it_is_shown_on(error, monkeypatch):
    class Broken(io.StringIO):
        def write(self, text):
            raise error

    monkeypatch.setattr(sys, "stderr", Broken())
    with Display(epochs=2, per_epoch=1, unit="architectures") as display:
        display.end_epoch(loss=1.0)
        display.end_epoch(loss=1.0)


def test_what_cannot_be_printed_is_given_up_in_silence():
    code = "from experiments.running import script; script.begin('name'); import sys\n"
    code += "for _ in range(3):\n    print('line', flush=True); print('line', file=sys.stderr)\n"
    code += "print('ł', file=sys.stdout)"
    read, write = os.pipe()
    os.close(read)
    run = subprocess.run(
        [sys.executable, "-c", code],
        **{"stdout": write, "stderr": write, "check": False},
        env=os.environ | {"PYTHONIOENCODING": "ascii"},
    )
    os.close(write)
    assert run.returncode == 0


def test_finished_epochs_stay_on_a_terminal(monkeypatch):
    terminal = Console(force_terminal=True, force_interactive=True, record=True, width=60)
    monkeypatch.setattr(running, "Console", lambda stderr: terminal)
    names = ("err1", "err2", "forgetting", "best5", "reward")
    with Display(epochs=2, per_epoch=1, unit="architectures") as display:
        display.end_epoch(**dict.fromkeys(names, -0.12345))
        display.end_epoch(loss=2.0)
    said = terminal.export_text().splitlines()
    (first,) = (i for i, line in enumerate(said) if line.startswith("epoch 1/2  err1 -0.1235"))
    assert said[first + 1].split() == ["best5", "-0.1235", "reward", "-0.1235"]
    assert any(line.strip() == "epoch 2/2  loss 2" for line in said)
