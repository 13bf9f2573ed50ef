"""Numbers that users give, of any kind, in one form; the dtypes to compute in; and rounding."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

__all__ = ["capped", "differentiated_as", "floating", "rounded", "wide_dtype", "widen", "widened"]


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
    if jnp.issubdtype(widest, jnp.complexfloating):
        return widest
    complex_ones = [dtype for dtype in dtypes if jnp.issubdtype(dtype, jnp.complexfloating)]
    return jnp.dtype(jnp.complex128) if complex_ones else widest


def widen(x: jax.Array) -> jax.Array:
    """The array in the dtype to compute squares and sums in: float32, or its own where wider."""
    return x.astype(wide_dtype(x))


def widened(*arrays: jax.Array) -> list[jax.Array]:
    """Arrays in one dtype to compute with: float32, or that of one of them which is wider."""
    dtype = wide_dtype(*arrays)
    return [x.astype(dtype) for x in arrays]


def capped(value: jax.typing.ArrayLike) -> jax.typing.ArrayLike:
    """A Python number that no array would hold as the largest that one does."""
    if isinstance(value, float):
        return min(value, float(jnp.finfo(jnp.result_type(float)).max))
    return value


def rounded(x: jax.Array, dtype: Any) -> jax.Array:
    """The numbers that ``dtype`` has nearest to ``x``, in the wider dtype of ``x``.

    That they are rounded is certain. A cast to 16 bits and back is not: a compiled program may
    leave both out, and on GPUs does. The derivative is that of ``x``.
    """
    info, wide = jnp.finfo(dtype), jnp.finfo(x.dtype)
    if info.bits != 16:  # nor are there infinities in all formats of 8 bits
        return x.astype(dtype).astype(x.dtype)

    @differentiated_as(lambda x: x)
    def nearest(x):
        normal = jax.lax.reduce_precision(x, info.nexp, info.nmant)
        if info.nexp == wide.nexp:
            return normal
        gap = float(info.smallest_subnormal)  # below the normal numbers, which is all that it keeps
        return jnp.where(jnp.abs(x) < float(info.smallest_normal), jnp.round(x / gap) * gap, normal)

    return nearest(x)


def differentiated_as(formula: Callable) -> Callable[[Callable], Callable]:
    """Give a function the derivatives of ``formula``, which it computes with exceptions.

    The values are the function's own: where a factor of the term is 0, an update comes back as it
    was, bit for bit. Derivatives are those of the mathematics, there as well.
    """

    def decorate(function):
        function = jax.custom_jvp(function)

        @function.defjvp
        def jvp(primals, tangents):
            return function(*primals), jax.jvp(formula, primals, tangents)[1]

        return function

    return decorate
