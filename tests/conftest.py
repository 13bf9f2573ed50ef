"""What all tests share: eight CPU devices to shard over, no silent rank promotion, real data."""

import os
from pathlib import Path

import jax
import pytest

# Before JAX starts. Arrays still go to the first device unless a test says otherwise.
jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The folder of real data: the one that WPL_DATA_DIR names, or ../shared/data."""
    beside = Path(__file__).parents[2] / "shared" / "data"
    folder = Path(os.environ.get("WPL_DATA_DIR", beside))
    if not folder.is_dir():
        pytest.skip(f"no real data: {folder} is not a folder; set WPL_DATA_DIR")
    return folder
