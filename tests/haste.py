"""Compiling in haste, for tests whose time is the compiler's."""

import functools

import jax

OPTIONS = {"xla_backend_optimization_level": 0}
if jax.__version_info__ < (0, 11):
    OPTIONS["xla_cpu_use_fusion_emitters"] = False  # a slow way to fuse

jit = functools.partial(jax.jit, compiler_options=OPTIONS)
