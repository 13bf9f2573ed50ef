"""docs/your_data.md: its examples print what it says, and its commands are accepted."""

import re
import shlex
from pathlib import Path

import pytest

from experiments import search, spaces, train_final
from experiments.grid import __main__ as grid

PAGE = (Path(__file__).parents[2] / "docs" / "your_data.md").read_text()
WRITE, READ = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
COMMANDS = [
    shlex.split(line)
    for line in re.findall(
        r"^    python -m (experiments\..*)$", PAGE.replace("\\\n", ""), re.MULTILINE
    )
    if "tfds" not in line
]


@pytest.fixture(scope="module")
def samples(tmp_path_factory):
    """A folder in which there is what the page's first example writes."""
    folder = tmp_path_factory.mktemp("checkout")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        exec(WRITE, {})
    return folder


@pytest.fixture(autouse=True)
def in_folder(samples, monkeypatch):
    monkeypatch.chdir(samples)
    monkeypatch.setenv("XDG_CACHE_HOME", str(samples / "cache"))


def test_arrays_are_as_printed(capsys):
    exec(READ, {})
    expected = re.findall(r"print\(.*\)  # (.*)", READ)
    assert capsys.readouterr().out.splitlines() == expected


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command[-1])
def test_commands_are_accepted(command):
    script, *flags = command
    if script == "experiments.search":
        assert search.prepare(search.parse(flags)).data.train is not None
    elif script == "experiments.grid":
        plan = grid.plan_of(grid.parse(flags))
        assert plan.final.cnn.image_shape == plan.settings["WPL"][0].cnn.image_shape == (28, 28, 1)
    else:
        assert script == "experiments.train_final"
        config = train_final.parse(flags)
        assert config.architecture == "runs/digits/best.json"
        assert spaces.find(config.space).read(config).classes == 10
