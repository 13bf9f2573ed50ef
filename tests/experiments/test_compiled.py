"""What scripts compile is kept in the user's folder of caches, and found when they run again."""

import os
import subprocess
import sys

import pytest

PROGRAM = "import experiments, jax; jax.jit(lambda x: x * 3 + 1)(2.0).block_until_ready()"


def files(folder):
    return {path.name for path in folder.rglob("*-cache")}


@pytest.fixture
def environment(tmp_path):
    kept = {k: v for k, v in os.environ.items() if not k.startswith("JAX_COMPILATION_CACHE")}
    return kept | {
        "XDG_CACHE_HOME": str(tmp_path / "caches"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }


def run(environment, program=PROGRAM):
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stderr == ""
    return done.stdout


@pytest.mark.skipif(sys.platform != "linux", reason="other systems keep caches elsewhere")
def test_programs_are_kept_and_found_again(environment, tmp_path):
    run(environment)
    kept = files(tmp_path / "caches" / "wpl_jax" / "compiled")
    assert kept
    run(environment)
    assert files(tmp_path / "caches") == kept


@pytest.mark.parametrize(
    ("change", "where"),
    [
        ({"JAX_ENABLE_COMPILATION_CACHE": "false"}, None),
        ({"JAX_COMPILATION_CACHE_DIR": "{tmp}/own"}, "own"),
        ({"XDG_CACHE_HOME": "/proc/nowhere"}, None),
    ],
)
def test_they_are_kept_nowhere_or_elsewhere(environment, tmp_path, change, where):
    run(environment | {k: v.format(tmp=tmp_path) for k, v in change.items()})
    found = {path.relative_to(tmp_path).parts[0] for path in tmp_path.rglob("*-cache")}
    assert found == ({where} if where else set())


def test_a_notebook_that_has_chosen_a_folder_keeps_it(environment, tmp_path):
    own = tmp_path / "chosen"
    before = f"import jax; jax.config.update('jax_compilation_cache_dir', {str(own)!r}); "
    run(environment, before + PROGRAM)
    assert files(own) and not (tmp_path / "caches").exists()
