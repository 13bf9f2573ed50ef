"""docs/nas_bench_201.md: its commands are accepted, and its code writes a truth that is read."""

import re
import shlex
import sys
import types
from pathlib import Path

import pytest

from experiments import search, train_final
from experiments.rank import Rank
from experiments.ranking import truth
from experiments.running import command_line
from experiments.train_many import TrainMany

PAGE = (Path(__file__).parents[2] / "docs" / "nas_bench_201.md").read_text()
COMMANDS = [
    shlex.split(line)
    for line in re.findall(
        r"^    python -m experiments\.(.*)$", PAGE.replace("\\\n", ""), re.MULTILINE
    )
]
(WRITE,) = re.findall(r"```python\n(import csv.*?)```", PAGE, re.DOTALL)


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_commands_are_accepted(command):
    script, *flags = command
    if script == "search":
        config = search.parse(flags)
    else:
        settings = {"rank": Rank(), "train_many": TrainMany(out=Path())}[script]
        config = command_line.read(settings, flags, prog=script, description=None)
    if isinstance(config, TrainMany):
        config = train_final.parse(shlex.split(config.training_flags))
    assert isinstance(config, Rank) or config.space == "nas_bench_201"


class API:
    """As much of NATS-Bench as the code uses."""

    names = ("|none~0|", "|skip_connect~0|")

    def __len__(self):
        return len(self.names)

    def __getitem__(self, index):
        return self.names[index]

    def get_more_info(self, index, dataset, hp, is_random):
        assert (dataset, hp, is_random) == ("cifar10", "200", False)
        return {"test-accuracy": 90.0 + index}


def test_the_truth_that_the_code_writes_is_read(tmp_path, monkeypatch):
    module = types.SimpleNamespace(create=lambda *args, **kwargs: API())
    monkeypatch.setitem(sys.modules, "nats_bench", module)
    monkeypatch.chdir(tmp_path)
    exec(WRITE, {})
    assert truth.read(Path("accuracies.csv")) == dict(zip(API.names, (90.0, 91.0), strict=True))
