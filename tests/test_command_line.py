"""The command lines of all scripts alike: help, and what cannot be read is said in a line."""

import importlib

import pytest

SCRIPTS = ("search", "train_final", "compare", "two_models", "report")


def call(script, *flags):
    return importlib.import_module(f"experiments.{script}").main(flags)


@pytest.mark.parametrize("script", SCRIPTS)
def test_help(script, capsys):
    with pytest.raises(SystemExit) as end:
        call(script, "--help")
    assert end.value.code == 0
    said = capsys.readouterr()
    assert said.out.startswith(f"usage: python -m experiments.{script} ")
    assert "--out" in said.out
    assert said.err == ""


@pytest.mark.parametrize("space", ["rnn", "micro_cnn"])
def test_help_is_grouped_and_is_that_of_the_space(space, capsys):
    with pytest.raises(SystemExit):
        call("search", "--space", space, "--preset", "smoke", "--help")
    output = capsys.readouterr().out
    own = {"rnn": "rnn", "micro_cnn": "cnn"}[space]
    lines = [line.strip(" ╭╮─") for line in output.splitlines()]
    titles = [line for line in lines if line.endswith("options")]
    assert titles == ["options", "sharing options", "search options", f"{own} options"]


@pytest.mark.parametrize("columns", ["40", "120"])
@pytest.mark.parametrize("script", SCRIPTS)
def test_an_unknown_flag_is_one_line(script, columns, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", columns)
    assert call(script, "--ou", "x") == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err == f"{script}: Unrecognized options: --ou, x; did you mean --out?\n"


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--seed", "three"], "Error parsing --seed: invalid literal for int() with base 10"),
        (["--seed"], "Missing value for argument '--seed'"),
        (["--preset"], "argument --preset: expected one argument"),
        (["--preset", "big"], "--preset must be one of paper, cpu, smoke, got 'big'"),
        (["--plasticity", "some"], "invalid choice 'some' for argument '--plasticity'"),
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
