"""Compiled programs are kept, so that a script starts in seconds when it is run again."""

import hashlib
import os
import platform
from pathlib import Path

import jax
import platformdirs

VARIABLE = "JAX_COMPILATION_CACHE_DIR"
BYTES = 2_000_000_000  # what was used longest ago goes first


def keep() -> None:
    """Keep them in the user's folder of caches, unless JAX has been told of a folder.

    With the variable JAX_ENABLE_COMPILATION_CACHE=false nothing is kept, and where there is no such
    folder, or none can be made, either.
    """
    if VARIABLE in os.environ or jax.config.jax_compilation_cache_dir is not None:
        return
    folder = platformdirs.user_cache_path("wpl_jax") / "compiled" / _machine()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError):
        return
    if os.access(folder, os.W_OK):
        jax.config.update("jax_compilation_cache_dir", str(folder))
        jax.config.update("jax_compilation_cache_max_size", BYTES)


def _machine() -> str:
    """The kind of processor: a program that is compiled for one may not run on another."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    known = sorted({line for line in lines if line.startswith(("flags", "model name", "Features"))})
    digest = hashlib.sha256("\n".join([platform.machine(), *known]).encode()).hexdigest()
    return f"{platform.machine()}-{digest[:8]}"
