"""Compiling in haste, for tests whose time is the compiler's."""

import contextlib
import functools
from collections.abc import Iterator

import jax
from jax.experimental.compilation_cache import compilation_cache

OPTIONS = {"xla_backend_optimization_level": 0}
if jax.__version_info__ < (0, 11):
    OPTIONS["xla_cpu_use_fusion_emitters"] = False  # a slow way to fuse

jit = functools.partial(jax.jit, compiler_options=OPTIONS)


@contextlib.contextmanager
def compiled_once(folder) -> Iterator[dict[str, str]]:
    """Within it programs are compiled once and in haste; for a process, the same as variables."""
    settings = {
        "jax_compilation_cache_dir": str(folder),
        "jax_persistent_cache_min_compile_time_secs": 0,
        "jax_persistent_cache_min_entry_size_bytes": -1,
        "jax_disable_most_optimizations": True,
    }
    before = {name: jax.config.values[name] for name in settings}
    for name, value in settings.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()
    yield {name.upper(): str(value) for name, value in settings.items()}
    for name, value in before.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()
