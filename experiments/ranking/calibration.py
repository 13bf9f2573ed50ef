r"""Errors of all architectures, predicted from a few of them that were trained from scratch.

A search measures every architecture, but on weights that others have trained too. Training from
scratch tells the truth, but of few. A Gaussian process joins them. It is fitted to the errors of
those that were trained, as a function of what is known of every architecture: its places
:math:`x_i` in some orders, as by what a search predicts or by size; and its choices,
:math:`d_{ij}` of which differ between two architectures.

.. math:: k_{ij} = a\, x_i \cdot x_j + b\, e^{-d_{ij} / \ell} + c\, [i = j]

The first term follows the orders, the second corrects architectures that are alike, alike, and the
third is the noise of training. a, b, c and ℓ are those that make the errors most likely (Rasmussen
and Williams, 2006, eq. 5.8). Only orders matter here, and errors have outliers, as those of
networks that cut off their input. So all values are replaced by normal scores: what the k-th
smallest of n draws of a normal distribution is about.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from scipy.linalg import cho_factor, cho_solve
from scipy.optimize import minimize

from experiments.ranking.statistics import normal_scores

Floats = npt.NDArray[np.floating]

FEWEST = 10  # architectures from which anything is predicted

# Of a, b, c and ℓ.
START = (0.3, 0.5, 0.2, 3.0)
BOUNDS = ((1e-4, 10), (1e-4, 10), (1e-2, 10), (0.3, 30))


def predicted(orders: Sequence[Floats], actions: npt.NDArray[np.integer], errors: Floats) -> Floats:
    """Errors of all architectures, as normal scores: the lowest is the best.

    Args:
      orders: what else is known of all architectures, each float [n]; NaN is above every number.
      actions: int32 [n, decisions].
      errors: of those that were trained from scratch, NaN for all others, float [n].

    Returns:
      float [n].
    """
    trained = np.flatnonzero(np.isfinite(errors))
    places = np.array([*map(normal_scores, orders), np.zeros(len(errors))]).T
    along = places @ places[trained].T
    differ = sum(column[:, None] != column[trained] for column in actions.T)
    targets = normal_scores(errors[trained])

    def covariance(a, b, length):
        return a * along + b * np.exp(-differ / length)

    def with_noise(a, b, c, length):
        return covariance(a, b, length)[trained] + c * np.eye(len(trained))

    def unlikeliness(logs):
        factor = cho_factor(with_noise(*np.exp(logs)))
        fit = targets @ cho_solve(factor, targets) / 2
        return fit + np.log(np.diagonal(factor[0])).sum()

    logs = minimize(unlikeliness, np.log(START), bounds=np.log(BOUNDS)).x
    a, b, c, length = np.exp(logs)
    weights = cho_solve(cho_factor(with_noise(a, b, c, length)), targets)
    return covariance(a, b, length) @ weights
