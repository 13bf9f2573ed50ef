"""The command lines of all scripts alike: help, and what cannot be read is said in a line."""

import importlib.util
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPTS = (
    *("search", "search_many", "train_final", "train_many", "grid"),
    *("rank", "two_models", "importances", "report"),
)


def call(script, *flags):
    package = importlib.util.find_spec(f"experiments.{script}").submodule_search_locations
    name = f"experiments.{script}.__main__" if package else f"experiments.{script}"
    return importlib.import_module(name).main(flags)


@pytest.mark.parametrize("script", SCRIPTS)
def test_help(script, capsys):
    with pytest.raises(SystemExit) as end:
        call(script, "--help")
    assert end.value.code == 0
    said = capsys.readouterr()
    assert said.out.startswith(f"usage: python -m experiments.{script} ")
    assert "--out" in said.out
    assert said.err == ""


@pytest.mark.parametrize("space", ["rnn", "micro_cnn", "nas_bench_201"])
def test_help_is_grouped_and_is_that_of_the_space(space, capsys):
    with pytest.raises(SystemExit):
        call("search", "--space", space, "--preset", "smoke", "--help")
    output = capsys.readouterr().out
    own = {"rnn": "rnn", "micro_cnn": "cnn", "nas_bench_201": "nas"}[space]
    lines = [line.strip(" ╭╮─") for line in output.splitlines()]
    titles = [line for line in lines if line.endswith("options")]
    samplers = ["controller options"]
    methods = ["wpl options", "replay options", "momentum-groups options", "distillation options"]
    common = ["options", "sharing options", "search options", *samplers, *methods]
    assert titles == [*common, f"{own} options"]


def test_what_takes_long_to_import_is_not_waited_for():
    code = "import sys, experiments.search, experiments.train_final; print(*sys.modules)"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"matplotlib.figure", "scipy.stats", "tensorflow_datasets"} & {*said.stdout.split()}


@pytest.mark.parametrize("columns", ["40", "120"])
@pytest.mark.parametrize("script", SCRIPTS)
def test_an_unknown_flag_is_one_line(script, columns, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", columns)
    needed = ["--out", "a"] * script.endswith("_many")
    assert call(script, *needed, "--outt", "x") == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err == f"{script}: Unrecognized options: --outt, x; did you mean --out?\n"


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--seed", "three"], "Error parsing --seed: invalid literal for int() with base 10"),
        (["--seed"], "Missing value for argument '--seed'"),
        (["--preset"], "argument --preset: expected one argument"),
        (["--preset", "big"], "--preset must be one of paper, cpu, smoke, got 'big'"),
        (["--method", "some"], "invalid choice 'some' for argument '--method'"),
        (["--search.architectures", "0"], "architectures must be"),
        (["--devices", "0"], "--devices must be at least 1, got 0"),
        (["somewhere"], "Unrecognized options: somewhere"),
    ],
)
def test_what_cannot_be_read_is_one_line(flags, says, capsys):
    assert call("search", *flags) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("search: ")
    assert says in said.err
    assert said.err.count("\n") == 1


FILES = (
    "docs",
    "examples",
    "experiments",
    "experiments/compiled",
    "experiments/comp.bash",
    "results",
)


def here(beginning):
    """What is in the folder that the user is in."""
    return [name for name in FILES if name.startswith(beginning) and "/" not in name]


COMPLETIONS = {
    "-m experiments.t": [
        f"experiments.{name}" for name in ("train_final", "train_many", "two_models")
    ],
    "-m experiments.search --meth": ["--method"],
    "-m experiments.search --sampler ": [
        *("controller", "uniform", "fair", "balanced", "distinct"),
    ],
    "-m experiments.search --space ": ["rnn", "micro_cnn", "nas_bench_201"],
    "-m experiments.search --preset c": ["cpu"],
    "-m experiments.train_final --architecture e": ["enas", *here("e")],
    "-m experiments.train_final --space micro_cnn --architecture d": here("d"),
    "-m experiments.train_final --space nas_bench_201 --architecture res": [
        *("resnet", *here("res")),
    ],
    "-m experiments.train_final --space = nas_bench_201 --architecture = b": [
        *("best_cifar10", *here("b")),
    ],
    "-m experiments.train_final --architecture =": [
        *("random", "darts_style", "enas"),
        *here(""),
    ],
    "-m experiments.search --cnn.f": [],
    "-m experiments.search --out experiments/comp": [
        "experiments/compiled",
        "experiments/comp.bash",
    ],
    "-m experiments.search --space micro_cnn --cnn.f": ["--cnn.flip"],
    "-m pip --v": [],
    "exp": [],
}


def test_completion(tmp_path):
    """What bash is told: scripts, the flags of the space, values, files; or nothing."""
    for name in FILES:
        (tmp_path / name).mkdir()
    script = [f"source {shlex.quote(str(ROOT / 'experiments' / 'completion.bash'))}"]
    for line in COMPLETIONS:
        words = [sys.executable, *line.split(" ")]
        script += [
            f"COMP_WORDS=({shlex.join(words)}) COMP_CWORD={len(words) - 1} COMPREPLY=()",
            "_wpl_jax_complete",
            'echo "${COMPREPLY[*]}"',
        ]
    said = subprocess.run(
        ["bash", "-c", "\n".join(script)],
        **{"cwd": tmp_path, "check": True, "capture_output": True, "text": True},
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    found = [sorted(line.split()) for line in said.stdout.split("\n")[:-1]]
    assert found == [sorted(words) for words in COMPLETIONS.values()]
    assert said.stderr == ""
