"""How much earlier models have forgotten, with intervals over seeds."""

from typing import NamedTuple

import chex
import numpy as np

__all__ = ["Forgetting", "forgetting", "mean_interval", "relative_reduction"]


class Forgetting(NamedTuple):
    """How much the architectures of an epoch have forgotten, in units of the error (section 3.2).

    The forgetting of an architecture is ``err2 - err1``. One whose ``err1`` or ``err2`` is not
    finite is counted in ``diverged`` and in nothing else. A number is NaN where too few
    architectures are left to compute it from.
    """

    mean: float  # mean over the architectures
    best: float  # mean over the few architectures with the lowest err1
    max: float  # the largest
    share: float  # the share of architectures that got worse, from 0 to 1
    rank_correlation: float  # Kendall's tau (b) between the orders by err1 and by err2
    diverged: int  # how many have an error that is not finite


def forgetting(err1: chex.ArrayNumpy, err2: chex.ArrayNumpy, best: int = 5) -> Forgetting:
    """What architectures forget between the end of their own training and the end of the epoch.

    Args:
      err1: the error of each architecture right after its own training, shape
        ``(architectures,)``.
      err2: their errors at the end of the epoch, in the same order.
      best: over how many architectures with the lowest ``err1`` to take the mean ``best``.

    Raises:
      ValueError: if the shapes differ.

    Example:
      >>> from wpl_jax.forgetting import forgetting
      >>> lost = forgetting(err1=[70.0, 80.0, 90.0], err2=[76.0, 79.0, 91.0], best=1)
      >>> print(lost.mean, lost.best, lost.max, round(lost.share, 2), lost.rank_correlation)
      2.0 6.0 6.0 0.67 1.0
    """
    from scipy import stats

    err1, err2 = np.asarray(err1, np.float64), np.asarray(err2, np.float64)
    if err1.ndim != 1 or err1.shape != err2.shape:
        raise ValueError(
            f"err1 and err2 must have one shape, (architectures,), got {err1.shape}, {err2.shape}"
        )
    finite = np.isfinite(err1) & np.isfinite(err2)
    err1, err2 = err1[finite], err2[finite]
    diverged = int(np.sum(~finite))
    if not len(err1):
        nan = float("nan")
        return Forgetting(nan, nan, nan, nan, nan, diverged)
    lost = err2 - err1
    return Forgetting(
        mean=float(lost.mean()),
        best=float(lost[np.argsort(err1, kind="stable")[:best]].mean()),
        max=float(lost.max()),
        share=float(np.mean(lost > 0)),
        rank_correlation=float(stats.kendalltau(err1, err2).statistic) if len(err1) > 1 else np.nan,
        diverged=diverged,
    )


def relative_reduction(
    baseline: chex.Numeric, plain: chex.Numeric, protected: chex.Numeric
) -> chex.Numeric:
    r"""The share of the forgetting that protection has prevented (section 4.1).

    .. math::
        \frac{d - d_\text{WPL}}{d} \qquad \text{with} \quad d = \text{baseline} - \text{plain},
        \quad d_\text{WPL} = \text{baseline} - \text{protected}

    Args:
      baseline: accuracy of the first model before the second was trained.
      plain: its accuracy after the second was trained without protection.
      protected: its accuracy after the second was trained with protection.

    Returns:
      1 if nothing was forgotten, 0 if protection made no difference, and more than 1 if the first
      model ended better than it began. It has no meaning unless ``d`` is well above 0, that is
      unless something is forgotten without protection.

    Example:
      >>> import wpl_jax
      >>> round(wpl_jax.relative_reduction(baseline=0.9, plain=0.5, protected=0.8), 3)
      0.75
    """
    return (protected - plain) / (baseline - plain)


def mean_interval(
    values: chex.ArrayNumpy, level: float = 0.95
) -> tuple[chex.ArrayNumpy, chex.ArrayNumpy, chex.ArrayNumpy]:
    """The mean over seeds, and the Student-t confidence interval of that mean.

    Args:
      values: shape ``(seeds, ...)``, at least 2 seeds.
      level: the confidence level, which holds for values that are normally distributed.

    Returns:
      The mean and the lower and upper ends of the interval, each of shape ``(...)``.

    Raises:
      ValueError: for fewer than 2 seeds.

    Example:
      >>> from wpl_jax.forgetting import mean_interval
      >>> mean, low, high = mean_interval([1.0, 2.0, 3.0])
      >>> print(f"{mean:.2f} ({low:.2f} to {high:.2f})")
      2.00 (-0.48 to 4.48)
    """
    from scipy import special

    values = np.asarray(values, np.float64)
    if values.ndim == 0 or len(values) < 2:
        raise ValueError(f"an interval needs at least 2 seeds, got shape {values.shape}")
    quantile = special.stdtrit(len(values) - 1, (1 + level) / 2)
    mean, error = values.mean(0), values.std(0, ddof=1) / np.sqrt(len(values))
    return mean, mean - quantile * error, mean + quantile * error
