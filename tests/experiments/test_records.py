"""Result files: never half written, and never taken for those of another run."""

import json

import jax.numpy as jnp
import numpy as np
import pytest

from experiments.running import records


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "summary.json"
    records.write_atomically(path, "old")
    monkeypatch.setattr(records.os, "replace", lambda *_: (_ for _ in ()).throw(OSError("full")))
    with pytest.raises(OSError, match="full"):
        records.write_atomically(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_kept_computes_once_for_a_fingerprint(tmp_path):
    calls = []

    def compute():
        calls.append(None)
        return {"a": jnp.full(3, len(calls)), "b": (jnp.float32(0.5),)}

    path = tmp_path / "part.npz"
    first, seconds = records.kept(path, "one", compute)
    again, same_seconds = records.kept(path, "one", compute)
    other, _ = records.kept(path, "another", compute)
    np.testing.assert_array_equal(again["a"], first["a"])
    assert again["b"] == (0.5,)
    assert seconds == same_seconds
    assert other["a"][0] > first["a"][0]


def test_json_lines_are_read_up_to_a_torn_one(tmp_path):
    path = tmp_path / "metrics.jsonl"
    assert records.read_json_lines(path) == []
    path.write_bytes(b'{"epoch": 1, "reward": null}\n{"epoch": 2}\n{"epoch": 3, "rew')
    assert records.read_json_lines(path) == [{"epoch": 1, "reward": None}, {"epoch": 2}]


def test_provenance_is_json_and_names_what_a_reader_needs():
    known = json.loads(json.dumps(records.provenance()))
    assert known["command"].startswith("python -m ")
    assert {"jax", "optax"} <= set(known["versions"])
    assert known["devices"]
