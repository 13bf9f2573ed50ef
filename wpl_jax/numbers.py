"""Numbers in one form: those that users give, of any kind, and what sums are taken in."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

__all__ = ["floating", "wide_dtype", "widen"]


def floating(x: Any) -> Any:
    """Numbers as floating-point ones; anything that is no number as it is.

    A single one that JAX does not hold becomes Python's: JAX would cut it to 32 bits. As Python's
    own do, it leaves the dtypes of what it is multiplied with as they are.
    """
    if isinstance(x, bool | int | float):
        return float(x)
    if not isinstance(x, np.ndarray | np.generic | jax.Array):
        return x
    if jnp.issubdtype(x.dtype, jnp.integer) or jnp.issubdtype(x.dtype, jnp.bool_):
        x = x.astype(float)
    known = not isinstance(x, jax.Array) and jnp.issubdtype(x.dtype, jnp.floating)
    return float(x) if known and x.ndim == 0 else x


def wide_dtype(*arrays: Any) -> Any:
    """The dtype to compute squares and sums in: float32, or a wider one that some array has.

    It is complex if an array is; float64 beside complex64 makes complex128, which holds both.
    """
    dtypes = [jnp.dtype(jnp.float32), *map(jnp.result_type, arrays)]
    dtypes = [dtype for dtype in dtypes if jnp.issubdtype(dtype, jnp.inexact)]
    widest = max(dtypes, key=lambda dtype: (jnp.finfo(dtype).nmant, dtype.itemsize))
    is_complex = [jnp.issubdtype(dtype, jnp.complexfloating) for dtype in (widest, *dtypes)]
    return jnp.dtype(jnp.complex128) if any(is_complex) and not is_complex[0] else widest


def widen(x: jax.Array) -> jax.Array:
    """The array in the dtype to compute squares and sums in: float32, or its own where wider."""
    return x.astype(wide_dtype(x))
