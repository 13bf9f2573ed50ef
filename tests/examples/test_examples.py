"""Every example runs as its docstring says, and prints what its docstring claims."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROGRAMS = sorted(
    path.stem
    for path in (ROOT / "examples").glob("*.py")
    if path.stem not in ("__init__", "digits", "layers_space")  # the last is for the scripts
)


def run(name):
    done = subprocess.run(
        [sys.executable, "-W", "error", "-m", f"examples.{name}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def accuracies(output):
    """Rows of the table by name, in percent."""
    row = re.compile(r"^(.{32})((?: +(?:[\d.]+|-))+)$", re.MULTILINE)
    return {
        name.strip(): [None if cell == "-" else float(cell) for cell in cells.split()]
        for name, cells in row.findall(output)
    }


def turned_digits(output):
    """Both runs learn the second task; with plasticity, the first one is kept better."""
    rows = accuracies(output)
    before, plain, held = (
        rows[name]
        for name in ("upright learned", "turned, without plasticity", "turned, with plasticity")
    )
    assert before[0] > 85 and plain[1] > 85
    assert held[0] > plain[0] + 10
    assert held[1] > plain[1] - 10


def linen_train_state(output):
    turned_digits(output)
    assert "stability number" in output and "warning" not in output


def ewc_split_digits(output):
    rows = accuracies(output)
    plain, held = rows["5 to 9, without EWC"], rows["5 to 9, with EWC"]
    assert rows["0 to 4 learned"][0] > max(plain[0], 90)
    assert held[0] > plain[0] and held[1] > plain[1] - 3


def finetune_backbone(output):
    rows = accuracies(output)
    free, frozen, held = (rows[f"backbone {how}"] for how in ("free", "frozen", "with plasticity"))
    assert frozen[0] == rows["pretrained"][0]
    assert held[0] > free[0] + 10 and held[1] > frozen[1]


def shared_trunk_ensemble(output):
    rows = accuracies(output)

    def forgotten(name):
        own, end = (rows[f"{name} plasticity: {when}"] for when in ("just trained", "at the end"))
        assert own[-1] == end[-1]  # nobody came after the last one
        return sum(own) - sum(end)

    assert forgotten("with") < forgotten("without") / 2
    assert len(re.findall(r"the ensemble, .*: [\d.]+$", output, re.MULTILINE)) == 2


def merge_models(output):
    """Neither copy can do both tasks, their plain mean does better, and the Fishers better yet."""
    rows = accuracies(output)
    first, second = rows["upright"], rows["turned"]
    assert min(first[0], second[1]) > 85 and max(first[1], second[0]) < 50
    plain, merged = rows["plain mean of the two"], rows["merged by their Fishers"]
    assert merged[2] > plain[2] + 1
    assert plain[2] > max(first[2], second[2]) + 5


def lora_weight_space(output):
    """A term on the adapters protects the base a little, one on merged weights much better."""
    rows = {name.split(",")[0]: values for name, values in accuracies(output).items()}
    adapters, merged = rows["on the adapters"], rows["on merged weights"]
    assert rows["pretrained"][0] > 85 and rows["nothing"][1] > 75
    assert rows["nothing"][0] < 50
    assert merged[0] > adapters[0] + 5 and merged[2] > adapters[2] + 5


def data_parallel(output):
    devices = int(re.match(r"(\d+) devices", output)[1])
    assert f"(64, 784) as ({64 // devices}, 784)" in output
    assert "equal, but for rounding: True" in output


def save_and_restore(output):
    assert "bit for bit equal: True" in output
    rows = accuracies(output)
    assert rows["resumed"] == rows["uninterrupted"] != rows["when saved"]


CHECKS = {
    "linen_train_state": linen_train_state,
    "nnx_optimizer": turned_digits,
    "equinox_model": turned_digits,
    "ewc_split_digits": ewc_split_digits,
    "finetune_backbone": finetune_backbone,
    "shared_trunk_ensemble": shared_trunk_ensemble,
    "merge_models": merge_models,
    "lora_weight_space": lora_weight_space,
    "data_parallel": data_parallel,
    "save_and_restore": save_and_restore,
}


SLOW = (
    *("data_parallel", "equinox_model", "ewc_split_digits", "finetune_backbone"),
    *("lora_weight_space", "merge_models", "nnx_optimizer"),
    *("save_and_restore", "shared_trunk_ensemble"),
)


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[pytest.mark.slow] * (name in SLOW)) for name in PROGRAMS],
)
def test_prints_what_it_shows(name):
    CHECKS[name](run(name))


@pytest.mark.parametrize("name", PROGRAMS)
def test_is_described(name):
    """By its docstring with its command, and in the examples' README."""
    assert f"\n    python -m examples.{name}\n" in (ROOT / "examples" / f"{name}.py").read_text()
    assert f"({name}.py)" in (ROOT / "examples" / "README.md").read_text()
