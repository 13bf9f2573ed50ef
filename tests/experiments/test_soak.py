"""The commands of `make soak` are such as the scripts take."""

import importlib
from pathlib import Path

import pytest
import soak

from experiments.running import command_line


@pytest.mark.parametrize("name", soak.COMMANDS)
def test_a_command_is_taken_and_writes_to_its_folder(name, tmp_path, monkeypatch):
    class Read(Exception):
        pass

    def read(*args, **options):
        raise Read(reads(*args, **options))

    reads = command_line.read
    monkeypatch.setattr(command_line, "read", read)
    script, *flags = soak.arguments(soak.COMMANDS[name], tmp_path)
    module = {"two_models": "two_models.__main__", "grid": "grid.__main__"}.get(script, script)
    with pytest.raises(Read) as found:
        importlib.import_module(f"experiments.{module}").main(flags)
    (config,) = found.value.args
    assert tmp_path in (config.out, Path(config.out).parent)
