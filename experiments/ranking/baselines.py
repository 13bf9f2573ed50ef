"""Orders of architectures that know nothing of a search, as errors: the lowest is the best."""

from collections.abc import Sequence

import jax
import numpy as np
import numpy.typing as npt

from wpl_jax.spaces import Space
from wpl_jax.spaces.parameters import count_parameters

Floats = npt.NDArray[np.floating]

SIZE, CONVOLUTIONS, RANDOM = NAMES = "number of parameters", "2·(3×3) + (1×1)", "random choice"


def errors(space: Space, actions: Floats, names: Sequence[str]) -> dict[str, Floats]:
    """By its name, the errors of each baseline, float [n].

    More parameters are better; more convolutions are, where names have them, one of 3×3 being worth
    two of 1×1; and a random choice knows no better or worse at all.
    """
    found = {
        SIZE: -num_parameters(space, actions).astype(np.float64),
        CONVOLUTIONS: -np.array([_convolutions(name) for name in names], np.float64),
        RANDOM: np.zeros(len(names)),
    }
    return {k: v for k, v in found.items() if np.ptp(v) or k == RANDOM}


def num_parameters(space: Space, actions: Floats) -> npt.NDArray[np.int32]:
    """How many of the shared parameters each architecture uses, int32 [n].

    Args:
      space: whose architectures they are.
      actions: int32 [n, decisions].
    """

    def of_one(actions):
        return count_parameters(space, space.decode(actions))

    return np.asarray(jax.jit(lambda a: jax.lax.map(of_one, a, batch_size=256))(actions))


def _convolutions(name):
    return 2 * name.count("conv_3x3") + name.count("conv_1x1")
