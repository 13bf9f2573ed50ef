"""A space that is not ours, by the name of its class, through all scripts."""

import dataclasses
import json

import pytest

from examples.layers_space import Digits, Layers
from experiments import search, spaces, train_final
from experiments.grid import __main__ as grid
from experiments.grid import published
from experiments.spaces import cells
from experiments.spaces.sgd import SGDSearch

SPACE = ["--space", "examples.layers_space:Digits"]
SMALL = ["--epochs", "3", "--derive-samples", "4", "--search.architectures", "2"]
SMALL += ["--search.chunk", "2", "--search.batches", "3", "--layers.width", "8", "--devices", "1"]


class Bare(spaces.Task):
    """A task that does not say enough."""

    read = Digits.read
    cut = Digits.cut


@dataclasses.dataclass(frozen=True)
class Spaceless(SGDSearch):
    """Settings without a space."""


class NoSpace(Digits):
    searches = {"smoke": Spaceless()}


def read(path):
    return json.loads(path.read_text())


def test_search_and_final_training(tmp_path, capsys):
    found, trained = tmp_path / "search", tmp_path / "final"
    assert search.main([*SPACE, *SMALL, "--out", str(found)]) == 0
    said = capsys.readouterr().err.splitlines()
    assert said[0] == "compiling the search" and said[1].startswith("compiled in ")
    assert [line.split("  ")[0] for line in said[2:6]] == [
        *(f"epoch {i}/3" for i in (1, 2, 3)),
        "ranking 4 architectures",
    ]
    names = {path.name for path in found.iterdir()}
    assert {"best.json", "network.dot", "cell.png", "curves.png"} <= names
    best, summary = read(found / "best.json"), read(found / "summary.json")
    assert summary["configuration"]["space"] == SPACE[1]
    assert summary["configuration"]["layers"] == {"layers": 3, "kernels": 4, "width": 8}

    flags = ["--architecture", str(found / "best.json"), "--layers.width", "8", "--epochs", "2"]
    assert train_final.main([*SPACE, *flags, "--out", str(trained)]) == 0
    summary = read(trained / "summary.json")
    assert summary["architecture"] == {k: best[k] for k in ("kernels", "activations")}
    assert summary["parameters"] == 784 * 8 + 3 * 8 * 8 + 8 * 10
    assert 0 < summary["test_error_rate"] < 1
    log = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]
    assert log[1]["train_loss"] < log[0]["train_loss"]
    assert summary["validation_error_rate"] == log[-1]["validation_error_rate"]


def test_a_grid_is_planned_with_its_presets():
    plan = grid.plan_of(grid.parse([*SPACE, "--arms", "a:", "--cells", "--random-cells", "1"]))
    ((settings,),) = plan.settings.values()
    assert (settings.preset, settings.warmup_epochs, settings.strength) == ("smoke", 2, 300)
    assert plan.task.cells() == {}
    ((key, run),) = grid.cells.runs(plan, {}).items()
    assert key == ("random", 0) and "nodes" not in " ".join(run.flags)
    assert published.differences(plan, {"a": 0}) == []


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("cnn", "--space must be one of rnn, micro_cnn, nas_bench_201, or module:Class"),
        ("no_such_module:Task", "no_such_module cannot be imported: No module named"),
        ("examples.layers_space:Digit", "has no class Digit"),
        ("examples.layers_space:Layers", "it has Digits"),
        ("experiments.spaces.task:Task", "Task must define cut, finals, name, read"),
        (":x", "--space :x:"),
        ("test_own_space:Bare", "Bare must define finals, name, searches, test"),
    ],
)
def test_a_space_that_is_not_there_is_one_line(name, says, tmp_path, capsys):
    with pytest.raises(ValueError, match="--space"):
        spaces.find(name)
    for script, more in ((search, []), (train_final, []), (grid, ["--arms", "a:"])):
        assert script.main(["--space", name, "--out", str(tmp_path), *more]) == 2
        said = capsys.readouterr()
        assert said.out == "" and said.err.count("\n") == 1
        assert says in said.err


@pytest.mark.parametrize(
    ("code", "says"),
    [
        ("def f(:", "SyntaxError: invalid syntax (broken.py, line 1)"),
        ("\nx = {}['y']", "KeyError: 'y' (broken.py, line 2)"),
    ],
)
def test_a_module_that_cannot_be_imported_is_one_line(code, says, tmp_path, monkeypatch, capsys):
    (tmp_path / "broken.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    assert search.main(["--space", "broken:Task", "--out", str(tmp_path)]) == 2
    assert capsys.readouterr().err == (
        f"search: --space broken:Task: broken cannot be imported: {says}\n"
    )


def test_settings_without_a_space_are_one_line(tmp_path, capsys):
    assert search.main(["--space", "test_own_space:NoSpace", "--out", str(tmp_path)]) == 2
    assert "Spaceless must have one field that holds the space" in capsys.readouterr().err


def test_a_file_of_something_else_is_refused_in_a_line(tmp_path):
    class Trusting(Layers):
        def from_json(self, stored):
            return stored["kernels"]

    file = tmp_path / "other.json"
    file.write_text('{"edges": [1]}')
    config = dataclasses.replace(Digits.finals["smoke"], layers=Trusting())
    with pytest.raises(ValueError, match=r"other.json is not an architecture .*KeyError"):
        cells.read(config, file)
