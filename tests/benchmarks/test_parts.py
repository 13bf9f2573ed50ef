"""A benchmark's command line: which of its parts are measured."""

import pytest

from benchmarks.report import chosen


def parts(monkeypatch, *arguments):
    monkeypatch.setattr("sys.argv", ["python -m benchmarks.some", *arguments])
    return chosen("What it measures.", ["peaks", "steps"])


def test_all_parts_are_measured_if_none_is_named(monkeypatch):
    assert parts(monkeypatch) == ["peaks", "steps"]
    assert parts(monkeypatch, "steps") == ["steps"]


@pytest.mark.parametrize(
    ("argument", "code", "said"),
    [("--help", 0, "What it measures."), ("peeks", 2, "no peeks: choose of peaks, steps")],
)
def test_nothing_is_measured_where_it_is_asked_or_mistaken(
    argument, code, said, monkeypatch, capsys
):
    with pytest.raises(SystemExit) as stopped:
        parts(monkeypatch, argument)
    assert stopped.value.code == code
    assert said in "".join(capsys.readouterr())
