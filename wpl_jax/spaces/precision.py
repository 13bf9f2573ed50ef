"""Mixed precision: what a network computes in half the bits, and what stays as it is.

Parameters are float32, and so are their gradients, the optimiser and everything that a method
remembers. Where a space computes in bfloat16, so are the images or hidden states that flow through
its network: each operation rounds its weights to the dtype of what it is given, and the gradient of
a weight is summed in float32. Means and variances, logits and the loss are float32 as well, as is
recommended by `Micikevicius et al., 2018 <https://arxiv.org/abs/1710.03740>`_. bfloat16 has the
range of float32, so no loss is scaled.
"""

from typing import Literal

import jax

__all__ = ["ComputeDtype", "rounded"]

ComputeDtype = Literal["float32", "bfloat16"]


def rounded(x: jax.Array, compute_dtype: ComputeDtype) -> jax.Array:
    """What flows through a network, in the dtype that it computes in; float32 leaves it as it is.

    Example:
      >>> import jax.numpy as jnp
      >>> from wpl_jax.spaces.precision import rounded
      >>> rounded(jnp.ones(2), "bfloat16").dtype.name, rounded(jnp.ones(2), "float32").dtype.name
      ('bfloat16', 'float32')
    """
    return x if compute_dtype == "float32" else x.astype(compute_dtype)
