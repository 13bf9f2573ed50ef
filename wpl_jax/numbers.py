"""Numbers that users give, which may be of Python, of NumPy or traced, in one form."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

__all__ = ["floating"]


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
