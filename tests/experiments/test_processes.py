"""Runs of several processes: none begins where another cannot, or would do something else."""

import time

import numpy as np
import pytest

from experiments.running import processes


def test_a_process_alone_agrees_with_itself():
    with processes.all_or_none():
        pass
    assert processes.agree(2**32 - 1) and processes.is_first()
    with pytest.raises(OSError, match="disk"), processes.all_or_none():
        raise OSError("disk")


def test_none_begins_where_another_cannot(monkeypatch):
    said = []

    def all_have(number):
        said.append(number)
        return np.array([number, 1])  # the other has failed

    monkeypatch.setattr(processes, "all_have", all_have)
    assert processes.agree(1) and not processes.agree(0)
    with (
        pytest.raises(ValueError, match="another process could not begin"),
        processes.all_or_none(),
    ):
        pass
    with pytest.raises(OSError, match="disk"), processes.all_or_none():
        raise OSError("disk")
    assert said == [1, 0, 0, 1]


def test_what_takes_long_is_said_and_what_does_not_is_not(capsys, monkeypatch):
    with processes.saying("reading a line"):
        pass
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(processes, "SOON", 0.01)
    with processes.saying("reading a book"):
        time.sleep(0.5)
    assert capsys.readouterr().err == "reading a book\n"
