"""Checkpoints: bit for bit what was saved, whole or not at all, and of the same run."""

import json
import shutil
import signal
import subprocess
import sys
import time
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from wpl_jax import checkpoint
from wpl_jax.checkpoint import Checkpoints, fingerprint_in


class Part(NamedTuple):
    weights: jax.Array
    nothing: None
    count: jax.Array


def all_kinds():
    """One leaf of every kind that a state may hold, in every kind of node."""
    params = {"w": jax.random.normal(jax.random.key(0), (3, 4)), "a/b": {"c.d": jnp.ones(2)}}
    tx = optax.chain(optax.clip(1.0), optax.masked(optax.adam(0.1), {"w": True, "a/b": False}))
    return {
        "params": params,
        "opt_state": tx.init(params),
        "part": Part(jnp.linspace(-1, 1, 7, dtype=jnp.bfloat16), None, jnp.int32(-3)),
        "key": jax.random.key(1),
        "keys": jax.random.split(jax.random.key(2, impl="rbg"), 3),
        "odd": jnp.array([jnp.nan, -0.0, jnp.inf, 1e-42], jnp.float32),
        "mask": jnp.array([True, False]),
        "bytes": jnp.arange(5, dtype=jnp.uint8),
        "empty": jnp.zeros((0, 3)),
        "weak": {"rate": jnp.asarray(0.1), "step": jnp.asarray(3), "row": jnp.full(3, 0.1)},
        "tuple": (np.arange(3.0), np.float64(0.1), 7, True, 0.1),
    }


def bits(leaf):
    if hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return leaf.dtype, bits(jax.random.key_data(leaf))
    array = np.asarray(leaf)
    is_weak = getattr(leaf, "weak_type", None)
    return type(leaf), is_weak, array.dtype, array.shape, array.tobytes()


def assert_same(state, expected):
    assert jax.tree.structure(state) == jax.tree.structure(expected)
    jax.tree.map_with_path(
        lambda path, a, b: pytest.fail(f"{path}: {a} != {b}") if bits(a) != bits(b) else None,
        state,
        expected,
    )


def test_every_kind_of_leaf_comes_back_bit_for_bit(tmp_path):
    state = all_kinds()
    with Checkpoints(tmp_path / "new" / "folder", {}) as checkpoints:
        checkpoints.save(3, state)
    with Checkpoints(tmp_path / "new" / "folder", {}) as checkpoints:
        assert checkpoints.latest() == 3
        assert_same(checkpoints.restore(state), state)


def test_shapes_are_enough_to_restore(tmp_path):
    state = {k: v for k, v in all_kinds().items() if k != "tuple"}
    with Checkpoints(tmp_path, {}) as checkpoints:
        checkpoints.save(0, state)
        assert_same(checkpoints.restore(jax.eval_shape(lambda: state)), state)


def test_python_numbers_stand_for_what_jax_makes_of_them(tmp_path):
    """As the step of a fresh TrainState does for that of one which a compiled step returned."""
    fresh = {"step": 0, "rate": 0.0, "done": False}
    state = jax.jit(lambda tree: jax.tree.map(lambda x: x, tree))({**fresh, "step": 7, "rate": 0.5})
    with Checkpoints(tmp_path, {}) as checkpoints:
        checkpoints.save(1, state)
        assert_same(checkpoints.restore(fresh), {"step": 7, "rate": 0.5, "done": False})
        assert_same(checkpoints.restore(state), state)
        for like in ({**fresh, "step": 0.0}, {**fresh, "rate": np.float64(0)}):
            with pytest.raises(ValueError, match=r"where the state has float64\[\]"):
                checkpoints.restore(like)


@pytest.mark.parametrize("state", [{}, None, {"a": jnp.zeros((0, 3)), "b": ()}])
def test_a_state_without_entries(state, tmp_path):
    with Checkpoints(tmp_path, {}) as checkpoints:
        checkpoints.save(1, state)
        assert_same(checkpoints.restore(state), state)
        with pytest.raises(
            ValueError, match=r"has nothing at \['w'\], where the state has float32"
        ):
            checkpoints.restore({"w": jnp.ones(2)})


@pytest.mark.devices(8)
def test_arrays_return_to_their_devices(tmp_path):
    mesh = jax.make_mesh((8,), ("x",), (jax.sharding.AxisType.Auto,))
    spread = jax.NamedSharding(mesh, jax.P("x"))
    state = {
        "spread": jax.device_put(jnp.arange(16.0), spread),
        "keys": jax.device_put(jax.random.split(jax.random.key(0), 8), spread),
        "third": jax.device_put(jnp.ones(2), jax.devices()[3]),
        "anywhere": jnp.ones(2),
        "weak": jax.device_put(jnp.full(8, 0.1), spread),
    }
    with Checkpoints(tmp_path, {}) as checkpoints:
        checkpoints.save(1, state)
        restored = checkpoints.restore(state)
        shapes = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state
        )
        by_shape = checkpoints.restore(shapes)
    assert_same(restored, state)
    for name, leaf in state.items():
        assert restored[name].sharding == by_shape[name].sharding == leaf.sharding
        assert restored[name].committed == leaf.committed


def test_a_restored_state_can_be_donated_and_saved_again(tmp_path):
    step = jax.jit(lambda state: jax.tree.map(lambda x: 2 * x + 1, state), donate_argnums=0)
    state = {"w": jnp.arange(1000.0)}
    with Checkpoints(tmp_path, {}) as checkpoints:
        checkpoints.save(1, state)
        once = step(checkpoints.restore(state))
        checkpoints.save(2, once)
        np.testing.assert_array_equal(step(once)["w"], step(checkpoints.restore(state))["w"])


def test_the_last_ones_are_kept(tmp_path):
    with Checkpoints(tmp_path, {}, keep=3) as checkpoints:
        for step in range(6):
            checkpoints.save(step, {"w": jnp.full(2, step)})
        for step in (3, 4, 5):
            assert checkpoints.restore({"w": jnp.zeros(2, int)}, step)["w"][0] == step
        with pytest.raises(FileNotFoundError, match=f"no checkpoint of step 2 in {tmp_path}"):
            checkpoints.restore({"w": jnp.zeros(2, int)}, 2)
    assert {path.name for path in tmp_path.iterdir()} == {"3", "4", "5"}


def test_saving_an_earlier_step_replaces_what_came_after(tmp_path):
    with Checkpoints(tmp_path, {}) as checkpoints:
        for step in (8, 9):
            checkpoints.save(step, {"w": jnp.float32(step)})
        checkpoints.save(9, {"w": jnp.float32(-9)})
        assert checkpoints.restore({"w": jnp.float32(0)})["w"] == -9
        checkpoints.save(1, {"w": jnp.float32(1)})
        assert checkpoints.latest() == 1


def test_no_more_than_a_tenth_of_the_time_goes_into_saving(tmp_path, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr("wpl_jax.checkpoint.time.monotonic", lambda: clock[0])

    def save(checkpoints, step, seconds):
        def slowly(path):
            clock[0] += seconds
            return sha256(path)

        sha256 = checkpoint._sha256
        with monkeypatch.context() as patched:
            patched.setattr(checkpoint, "_sha256", slowly)
            checkpoints.save(step, {"w": np.ones(3)})

    with Checkpoints(tmp_path, {}) as checkpoints:
        assert checkpoints.step is None
        assert checkpoints.is_due()
        save(checkpoints, 1, seconds=1e-3)
        assert checkpoints.is_due(), "a fast one always is"
        start = clock[0]
        save(checkpoints, 2, seconds=5)
        took = clock[0] - start
        clock[0] = start + 9.9 * took
        assert not checkpoints.is_due()
        clock[0] = start + 10 * took
        assert checkpoints.is_due()
        assert checkpoints.step == 2
        checkpoints.restore({"w": np.ones(3)}, step=1)
        assert checkpoints.step == 1


def test_an_empty_folder_has_nothing_to_resume(tmp_path):
    with Checkpoints(tmp_path, {}) as checkpoints:
        assert checkpoints.latest() is None
        with pytest.raises(FileNotFoundError, match=f"there is no checkpoint in {tmp_path}"):
            checkpoints.restore({})


def test_one_checkpoint_is_not_enough_to_be_safe(tmp_path):
    with pytest.raises(ValueError, match="keep must be at least 2.*got 1"):
        Checkpoints(tmp_path, {}, keep=1)


def test_the_fingerprint_in_a_folder(tmp_path):
    assert fingerprint_in(tmp_path / "none") is None
    with Checkpoints(tmp_path, {"sizes": (1, 2)}) as checkpoints:
        assert fingerprint_in(tmp_path) is None
        for step in (9, 10):
            checkpoints.save(step, jnp.ones(1))
    assert fingerprint_in(tmp_path) == {"sizes": [1, 2]}
    (tmp_path / "10" / "seal.json").write_text("{")
    assert fingerprint_in(str(tmp_path)) == {"sizes": [1, 2]}  # of the one before


def test_another_configuration_is_refused_by_name(tmp_path):
    made = {"search": {"architectures": 10, "rates": (0.5, 1e-3)}, "seed": 0, "old": "x"}
    with Checkpoints(tmp_path, made) as checkpoints:
        checkpoints.save(1, {"w": jnp.ones(2)})
    with Checkpoints(tmp_path, made) as checkpoints:  # tuples are lists in JSON
        assert checkpoints.latest() == 1
    given = {"search": {"architectures": 12, "rates": (0.5, 1e-4)}, "seed": 0, "new": None}
    with pytest.raises(ValueError) as error:
        Checkpoints(tmp_path, given)
    assert str(error.value) == (
        f"checkpoints in {tmp_path} were made with search.architectures=10, not 12, "
        'search.rates=[0.5, 0.001], not [0.5, 0.0001], old="x", not (unset), and 1 more; '
        "choose another folder or give the same settings"
    )


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"w": jnp.ones((3, 2))}, r"has float32\[2,3\] at \['w'\].*the state has float32\[3,2\]"),
        ({"w": jnp.ones((2, 3), jnp.bfloat16)}, r"has float32.*state has bfloat16\[2,3\]"),
        ({"w": jnp.ones((2, 3)), "b": 1}, r"has nothing at \['b'\], where the state has int64"),
        ({}, r"has float32\[2,3\] at \['w'\], where the state has nothing"),
        ({"w": jax.random.key(0)}, r"has float32\[2,3\].*state has uint32\[2\]"),
    ],
)
def test_another_structure_is_refused_by_name(tmp_path, other, message):
    with Checkpoints(tmp_path, {}) as checkpoints:
        checkpoints.save(1, {"w": jnp.ones((2, 3))})
        with pytest.raises(ValueError, match=message):
            checkpoints.restore(other)


def test_a_setting_that_json_does_not_have_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"fingerprint cannot be .* JSON at 'opt\.lr': .*float32"):
        Checkpoints(tmp_path / "new", {"seed": 0, "opt": {"lr": np.float32(0.1)}})
    assert not (tmp_path / "new").exists()


def remove(path):
    path.unlink()


def empty(path):
    path.write_bytes(b"")


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.fixture(scope="module")
def two_checkpoints(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoints")
    with Checkpoints(folder, {"seed": 0}) as checkpoints:
        for step in (1, 2):
            checkpoints.save(step, {"w": jax.random.normal(jax.random.key(step), (50, 50))})
    return folder


@pytest.mark.parametrize("damage", [remove, empty, cut, flip])
def test_no_damage_to_any_file_goes_unnoticed(two_checkpoints, tmp_path, damage, capfd):
    like = {"w": jnp.zeros((50, 50))}
    files = [p.relative_to(two_checkpoints) for p in two_checkpoints.glob("2/**/*") if p.is_file()]
    assert len(files) > 8
    for i, name in enumerate(files):
        folder = tmp_path / str(i)
        shutil.copytree(two_checkpoints, folder)
        damage(folder / name)
        with Checkpoints(folder, {"seed": 0}) as checkpoints:
            assert checkpoints.latest() == 1, name
            restored = checkpoints.restore(like)
            np.testing.assert_array_equal(
                restored["w"], jax.random.normal(jax.random.key(1), (50, 50))
            )
            with pytest.raises((ValueError, FileNotFoundError), match="step 2 in .*"):
                checkpoints.restore(like, 2)
            if i == 0:  # a run goes on from there
                checkpoints.save(2, like)
                assert checkpoints.latest() == 2
    assert capfd.readouterr() == ("", "")


def test_if_all_are_damaged_resuming_fails_in_one_line(two_checkpoints, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(two_checkpoints, folder)
    for step in (1, 2):
        (folder / str(step) / "state" / "_METADATA").unlink()
    with (
        Checkpoints(folder, {"seed": 0}) as checkpoints,
        pytest.raises(ValueError, match=r"every checkpoint in .* is damaged \(steps \[2, 1\]\)"),
    ):
        checkpoints.latest()


def test_a_seal_with_a_wrong_bit_is_damage_and_no_other_settings(two_checkpoints, tmp_path):
    folder = shutil.copytree(two_checkpoints, tmp_path / "copy")
    seal = folder / "2" / "seal.json"
    whole = seal.read_bytes()
    for place in range(0, len(whole), 7):
        seal.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        with Checkpoints(folder, {"seed": 0}) as checkpoints:
            assert (checkpoints.latest(), checkpoints.incomplete()) in ((1, [2]), (2, []))
    shutil.rmtree(folder / "1")
    seal.write_bytes(whole.replace(b'"seed": 0', b'"seed": 1'))
    with (
        Checkpoints(folder, {"seed": 0}) as checkpoints,
        pytest.raises(ValueError, match="is damaged"),
    ):
        checkpoints.latest()


@pytest.mark.parametrize(("seals", "found"), [(2, 2), (1, 1), (0, None)])
def test_seals_that_are_missing_are_damage_but_that_of_the_first(
    two_checkpoints, tmp_path, seals, found
):
    folder = shutil.copytree(two_checkpoints, tmp_path / "copy")
    for step in (2, 1)[: 2 - seals]:
        (folder / str(step) / "seal.json").unlink()
    with Checkpoints(folder, {"seed": 0}) as checkpoints:
        if found is None:
            with pytest.raises(ValueError, match="every checkpoint in .* is damaged"):
                checkpoints.latest()
            shutil.rmtree(folder / "2")  # a run was killed while it saved the first
        assert checkpoints.latest() == found


def test_notes_are_those_of_the_state_that_is_restored(tmp_path):
    state = {"w": jnp.ones(2)}
    with Checkpoints(tmp_path, {}) as checkpoints:
        assert checkpoints.notes == {}
        log = checkpoints.notes["log"] = []
        for step in (1, 2):
            log.append({"epoch": step, "loss": 0.1 * step})
            checkpoints.save(step, state)
    with Checkpoints(tmp_path, {}) as checkpoints:
        for step in (1, 2):
            checkpoints.restore(state, step)
            assert checkpoints.notes == {"log": log[:step]}


def test_checkpoints_of_early_versions_have_no_notes(two_checkpoints, tmp_path):
    folder = shutil.copytree(two_checkpoints, tmp_path / "copy")
    for path in folder.glob("*/seal.json"):
        seal = json.loads(path.read_text())
        path.write_text(json.dumps({name: seal[name] for name in ("fingerprint", "sha256")}))
    with Checkpoints(folder, {"seed": 0}) as checkpoints:
        checkpoints.restore({"w": jnp.zeros((50, 50))})
        assert (checkpoints.latest(), checkpoints.notes) == (2, {})
    (folder / "2" / "seal.json").write_text(path.read_text().replace('"seed": 0', '"seed": 1'))
    with Checkpoints(folder, {"seed": 0}) as checkpoints:
        assert checkpoints.latest() == 1


@pytest.mark.parametrize(
    ("step", "state", "notes", "message"),
    [
        (2, {"w": np.ones(2)}, {"loss": np.float32(1.5)}, "notes cannot be .* JSON at 'loss'"),
        (2, {"w": np.ones(2), "name": "abc"}, {}, r"numbers, got <U3 at \['name'\]"),
        (2, {"w": 10**30}, {}, r"numbers, got object at \['w'\]"),
        (2, {"w": jnp.ones(2, jnp.uint4)}, {}, r"holds no uint4, which is at \['w'\]"),
        (2, {"w": np.ones(2)}, {"a": {"b": {1}}}, r"notes cannot be .* JSON at 'a\.b'"),
        (-1, {"w": np.ones(2)}, {}, "step must be a whole number, 0 or more, got -1"),
        (1.5, {"w": np.ones(2)}, {}, "step must be a whole number, 0 or more, got 1.5"),
    ],
)
def test_what_cannot_be_saved_is_named_and_nothing_is_lost(step, state, notes, message, tmp_path):
    with Checkpoints(tmp_path, {}) as checkpoints:
        checkpoints.save(2, {"w": np.ones(2)})
        checkpoints.notes |= notes
        with pytest.raises(ValueError, match=message):
            checkpoints.save(step, state)
        assert checkpoints.latest() == checkpoints.step == 2
        assert not checkpoints.incomplete()


def test_what_cannot_be_written_is_an_error_of_the_system(tmp_path, monkeypatch):
    with Checkpoints(tmp_path, {}) as checkpoints:
        checkpoints.save(1, {"w": jnp.ones(2)})

        def full(*args, **kwargs):
            raise ValueError("OUT_OF_RANGE: Failed to write [os_error_code='28']\n and more")

        monkeypatch.setattr(checkpoints._manager, "save", full)
        with pytest.raises(OSError, match=r"cannot save a checkpoint in .*: No space left on dev"):
            checkpoints.save(2, {"w": jnp.ones(2)})
        assert checkpoints.latest() == 1


SAVE_FOREVER = """
import itertools, sys
import jax.numpy as jnp
from wpl_jax.checkpoint import Checkpoints, fingerprint_in
with Checkpoints(sys.argv[1], {"seed": 0}) as checkpoints:
    state = {"w": jnp.zeros(10_000, jnp.int32), "step": jnp.int32(0)}
    if checkpoints.latest() is not None:
        state = checkpoints.restore(state)
    for step in itertools.count(int(state["step"]) + 1):
        checkpoints.save(step, {"w": jnp.full(10_000, step), "step": jnp.int32(step)})
        print(step, flush=True)
"""


def test_a_run_that_is_killed_while_it_saves_resumes(tmp_path):
    like = {"w": jnp.zeros(10_000, jnp.int32), "step": jnp.int32(0)}
    saved = 0
    for milliseconds in (0, 25, 55):
        command = [sys.executable, "-c", SAVE_FOREVER, str(tmp_path)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as run:
            for _ in range(3):
                saved = int(run.stdout.readline())
            time.sleep(milliseconds / 1000)
            run.kill()
            output, errors = run.communicate()
        saved = int((output.split() or [saved])[-1])
        assert run.returncode == -signal.SIGKILL
        assert errors == b""
        with Checkpoints(tmp_path, {"seed": 0}) as checkpoints:
            latest = checkpoints.latest()
            assert latest in (saved, saved + 1)
            restored = checkpoints.restore(like)
        assert restored["step"] == latest
        assert (restored["w"] == latest).all()
    assert latest >= 9
