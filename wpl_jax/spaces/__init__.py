"""Search spaces, a file or a folder each; what is asked of one, and a check that it is kept."""

from wpl_jax.spaces.checking import check
from wpl_jax.spaces.protocol import (
    DistinctSpace,
    ParametricSpace,
    PredictiveSpace,
    Space,
    StoredSpace,
    checked_actions,
)

__all__ = [
    "DistinctSpace",
    "ParametricSpace",
    "PredictiveSpace",
    "Space",
    "StoredSpace",
    "check",
    "checked_actions",
]
