"""What all tests share: compiled programs, 8 CPU devices, no silent rank promotion, real data."""

import atexit
import functools
import gc
import importlib.metadata
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

# What one program that the tests start has compiled, the others find. JAX locks this folder, and
# reads all of it whenever it adds to it, only if its size (in bytes) is limited.
if "PYTEST_XDIST_WORKER" not in os.environ:
    os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="wpl_jax_compiled_")
    os.environ["JAX_COMPILATION_CACHE_MAX_SIZE"] = "4000000000"
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.05"
    atexit.register(shutil.rmtree, os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)
    # Half of the time of the tests is the compiler's: it is to optimise little.
    os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "true")
    if importlib.metadata.version("jax").startswith("0.10."):  # with a slow way to fuse
        # A program in one part: to split and link small ones takes longer than to compile them.
        flags = "--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
        os.environ.setdefault("XLA_FLAGS", flags)

import jax
import pytest
from jax._src.interpreters import mlir

# What a process of the tests itself compiles is in a folder that no other one uses: no lock.
COMPILED = tempfile.mkdtemp(prefix="wpl_jax_compiled_")
atexit.register(shutil.rmtree, COMPILED, ignore_errors=True)
jax.config.update("jax_compilation_cache_dir", COMPILED)
jax.config.update("jax_compilation_cache_max_size", -1)
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)

# Before JAX starts. Arrays still go to the first device unless a test says otherwise.
jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")
# Programs of many devices that are dispatched ahead can wait for each other's threads, and abort.
jax.config.update("jax_cpu_enable_async_dispatch", False)


# JAX sets up the compiler's dialects anew for each program that it lowers, which for a small one
# takes longer than to lower it: the programs of a module of tests share what it sets up.
mlir.make_ir_context = functools.cache(mlir.make_ir_context)

# Programs live as long as the tests, in millions of objects: looking through them all is slow.
gc.set_threshold(100_000, 50, 100)


def pytest_addoption(parser: pytest.Parser) -> None:
    """For the loop of work: every test, but one of its cases."""
    parser.addoption("--one-case", action="store_true", help="run each test's first case alone")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leaves out what --one-case does not run."""
    if config.getoption("--one-case"):
        first = {item.nodeid.partition("[")[0]: item for item in reversed(items)}.values()
        config.hook.pytest_deselected(items=[item for item in items if item not in first])
        items[:] = reversed(first)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skips what needs more devices than there are: on CPUs there are 8, but few have 8 GPUs."""
    marker = item.get_closest_marker("devices")
    if marker and jax.device_count() < marker.args[0]:
        pytest.skip(f"needs {marker.args[0]} devices, there are {jax.device_count()}")


@pytest.fixture(scope="module", autouse=True)
def programs_of_a_module() -> Iterator[None]:
    """Forgets them after it: a worker would grow to many gigabytes."""
    yield
    jax.clear_caches()
    mlir.make_ir_context.cache_clear()


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The folder of real data: the one that WPL_DATA_DIR names, or ../shared/data."""
    beside = Path(__file__).parents[2] / "shared" / "data"
    folder = Path(os.environ.get("WPL_DATA_DIR", beside))
    if not folder.is_dir():
        pytest.skip(f"no real data: {folder} is not a folder; set WPL_DATA_DIR")
    return folder
