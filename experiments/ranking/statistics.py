r"""How well predicted errors order architectures whose accuracies are known.

There are n architectures with predicted errors e (lower is better) and true accuracies a. An error
that is NaN is worse than every other. A statistic of them is a function of weights: how often,
:math:`w_i`, architecture i is in a resample. Where all :math:`w_i` are 1, that is the table itself.
The 95 % interval lies between quantiles of the statistic on resamples, each of n architectures
drawn uniformly with replacement.

2,000 resamples of 15,625 architectures take seconds, because nothing is sorted for a resample: the
statistics are sums of weights along orders that are the table's. Kendall's τ is a sum over pairs,
and is taken to first order in :math:`w_i - 1` (see :func:`kendall`).
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.stats import norm, rankdata

Floats = npt.NDArray[np.floating]
OfWeights = Callable[[Floats], Floats]

TOP = 0.05


class Estimate(NamedTuple):
    """A statistic of the table, and its 95 % interval."""

    value: float
    low: float
    high: float


def normal_scores(values: Floats) -> Floats:
    """Blom's normal scores of the ranks of values, float [n]; equal ones share theirs."""
    ranks = rankdata(np.where(np.isnan(values), np.inf, values))
    return norm.ppf((ranks - 3 / 8) / (len(values) + 1 / 4))


def kendall(errors: Floats, accuracy: Floats) -> OfWeights:
    r"""Kendall's τ-b between −e and a; 0 where all of either are equal.

    .. math:: \tau_b = \frac{\sum_{ij} s_{ij}}
        {\sqrt{\sum_{ij} [e_i \neq e_j] \sum_{ij} [a_i \neq a_j]}}, \qquad
        s_{ij} = \operatorname{sign}(e_j - e_i) \operatorname{sign}(a_i - a_j)

    In a resample each of the three sums, :math:`\sum_{ij} w_i w_j x_{ij}`, is taken to first order
    in :math:`w_i - 1`: :math:`\sum_{ij} (2 w_i - 1) x_{ij}`. What is left out,
    :math:`\sum_{ij} (w_i - 1) (w_j - 1) x_{ij}`, changes τ by about 1 / n, the first order by about
    :math:`1 / \sqrt n`.

    Args:
      errors: e, float [n].
      accuracy: a, float [n].

    Returns:
      A function of weights, float [n, resamples], to the statistic, float [resamples].
    """
    e, a = _Order.of(errors), _Order.of(accuracy)
    s = np.empty(len(errors))
    for i in np.array_split(np.arange(len(s)), -(-len(s) // 100)):  # of n² pairs, few at a time
        s[i] = np.einsum("ij,ij->i", _signs(e.place, i), -_signs(a.place, i))
    sums = np.stack([s, len(s) - e.sizes[e.place], len(s) - a.sizes[a.place]])

    def of(weights):
        pairs, errors_differ, accuracies_differ = sums @ (2 * weights - 1)
        return _ratio(pairs, errors_differ * accuracies_differ)

    return of


def spearman(errors: Floats, accuracy: Floats) -> OfWeights:
    r"""Spearman's ρ between −e and a; 0 where all of either are equal.

    .. math:: \rho = -\frac{\sum_i w_i r_i q_i}{\sqrt{\sum_i w_i r_i^2 \sum_i w_i q_i^2}}

    with the ranks r of e and q of a in the resample, less their mean. Equal ones share a rank.

    Args and returns are those of :func:`kendall`.
    """
    e, a = _Order.of(errors), _Order.of(accuracy)

    def of(weights):
        r, q = e.ranks(weights), a.ranks(weights)
        return _ratio(-_sum(weights, r, q), _sum(weights, r, r) * _sum(weights, q, q))

    return of


def kendall_of_better_half(errors: Floats, accuracy: Floats) -> OfWeights:
    """:func:`kendall` of the architectures whose accuracy is at least the median of the table.

    Args and returns are those of :func:`kendall`.
    """
    better = accuracy >= np.median(accuracy)
    of = kendall(errors[better], accuracy[better])
    return lambda weights: of(weights[better])


def precision_at_top(errors: Floats, accuracy: Floats) -> OfWeights:
    r"""The share of the predicted best 5 % that are among the true best 5 %.

    .. math:: \frac1k \sum_i w_i p_i q_i, \qquad k = \lceil 0.05\, n \rceil

    where p is 1 for the k lowest errors, and q for the k highest accuracies, else 0. Of equal ones
    of which some are among the k, each has the same share: that is the mean over all ways to break
    the tie.

    Args and returns are those of :func:`kendall`.
    """
    e, a = _Order.of(errors), _Order.of(-accuracy)
    k = int(np.ceil(TOP * len(errors)))
    return lambda weights: _sum(weights, e.among_first(k, weights), a.among_first(k, weights)) / k


def accuracy_of_best(errors: Floats, accuracy: Floats) -> OfWeights:
    """The true accuracy of the architecture with the lowest error; the mean where several have it.

    Args and returns are those of :func:`kendall`.
    """
    e = _Order.of(errors)
    return lambda weights: accuracy @ (weights * e.among_first(1, weights))


def regret(errors: Floats, accuracy: Floats) -> OfWeights:
    """The highest accuracy, less :func:`accuracy_of_best`; of a resample, which may lack the best.

    Args and returns are those of :func:`kendall`.
    """
    reached = accuracy_of_best(errors, accuracy)
    highest = accuracy_of_best(-accuracy, accuracy)
    return lambda weights: highest(weights) - reached(weights)


STATISTICS: dict[str, Callable[[Floats, Floats], OfWeights]] = {
    "kendall": kendall,
    "spearman": spearman,
    "kendall_better_half": kendall_of_better_half,
    "precision_top_5": precision_at_top,
    "accuracy_of_best": accuracy_of_best,
    "regret": regret,
}
"""By the names that they have in files."""


def estimates(
    errors: Floats, accuracy: Floats, *, resamples: int = 2_000, seed: int = 0
) -> dict[str, Estimate]:
    """All statistics, with their 95 % intervals over resamples of the architectures.

    Calls with the same seed, and as many architectures, use the same resamples.

    Args:
      errors: of each architecture, float [n]; may be NaN or infinite.
      accuracy: of each architecture, float [n], finite.
      resamples: how many.
      seed: where they come from.

    Example:
      >>> import numpy as np
      >>> from experiments.ranking.statistics import estimates
      >>> found = estimates(np.array([0.3, 0.1, 0.2]), np.array([70.0, 90.0, 80.0]))
      >>> round(found["kendall"].value, 3), found["accuracy_of_best"].value
      (1.0, 90.0)
    """
    statistics = {name: statistic(errors, accuracy) for name, statistic in STATISTICS.items()}
    values: dict[str, list[Floats]] = {name: [] for name in statistics}
    for weights in _resamples(len(errors), resamples, np.random.default_rng(seed)):
        for name, of in statistics.items():
            values[name].append(of(weights))
    found = {}
    for name, of in statistics.items():
        (value,) = of(np.ones((len(errors), 1)))
        low, high = np.quantile(np.concatenate(values[name]), (0.025, 0.975))
        found[name] = Estimate(float(value), float(low), float(high))
    return found


def _resamples(n: int, resamples: int, rng: np.random.Generator) -> Iterator[Floats]:
    """Weights of resamples, so few at a time that they stay in a processor's cache."""
    for start in range(0, resamples, 20):
        drawn = rng.integers(n, size=(min(20, resamples - start), n))
        yield np.stack([np.bincount(row, minlength=n) for row in drawn], 1).astype(np.float64)


class _Order(NamedTuple):
    """Numbers in ascending order, those that are equal in one group."""

    order: npt.NDArray[np.intp]  # shape=(n,)
    starts: npt.NDArray[np.intp]  # shape=(groups,): where in the order each group begins
    sizes: npt.NDArray[np.intp]  # shape=(groups,)
    place: npt.NDArray[np.intp]  # shape=(n,): the group of each number

    @classmethod
    def of(cls, numbers: Floats) -> "_Order":
        """Of numbers, float [n]; NaN comes last."""
        _, place, sizes = np.unique(numbers, return_inverse=True, return_counts=True)
        return cls(np.argsort(place, kind="stable"), np.cumsum(sizes) - sizes, sizes, place)

    def ranks(self, weights: Floats) -> Floats:
        """Ranks in resamples less their mean, float [n, resamples]."""
        there, before = self._groups(weights)
        return (before + (there - weights.sum(0)) / 2)[self.place]

    def among_first(self, k: int, weights: Floats) -> Floats:
        """How much of each is among the ``k`` lowest in resamples, 0 to 1, [n, resamples]."""
        there, before = self._groups(weights)
        return (np.clip(k - before, 0, there) / np.maximum(there, 1))[self.place]

    def _groups(self, weights):
        """How many are in each group and how many before it, each [groups, resamples]."""
        there = np.add.reduceat(weights[self.order], self.starts)
        return there, np.cumsum(there, 0) - there


def _signs(place, i):
    """Of the differences of numbers from those at ``i``, by their groups: float [len(i), n]."""
    place = place.astype(np.float32)  # exact, and fast
    return np.sign(place[None] - place[i, None])


def _sum(*factors):
    """Over architectures; float [resamples]."""
    return np.einsum(",".join(["nb"] * len(factors)) + "->b", *factors)


def _ratio(part, square):
    """``part / sqrt(square)``; 0 where the square is not above 0, for nothing is ordered."""
    return np.divide(
        part, np.sqrt(np.maximum(square, 0)), out=np.zeros_like(part), where=square > 0
    )
