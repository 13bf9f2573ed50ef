"""Measures of forgetting, how much an earlier model lost, and their intervals over seeds."""

import chex
import numpy as np

__all__ = ["mean_interval", "relative_reduction"]


def relative_reduction(
    baseline: chex.Numeric, plain: chex.Numeric, protected: chex.Numeric
) -> chex.Numeric:
    """Share of the forgetting that protection prevented (section 4.1): ``(d - d_wpl) / d``.

    Args:
      baseline: accuracy of the first model before the second trained.
      plain: its accuracy after the second trained without protection, ``d = baseline - plain``.
      protected: its accuracy after the second trained with it, ``d_wpl = baseline - protected``.

    Returns:
      1 where nothing was forgotten, 0 where protection did nothing, more than 1 where the first
      model ended better than it began. It has no meaning where ``d`` is not well above 0.

    Example:
      >>> import wpl_jax
      >>> round(wpl_jax.relative_reduction(baseline=0.9, plain=0.5, protected=0.8), 3)
      0.75
    """
    return (protected - plain) / (baseline - plain)


def mean_interval(
    values: chex.ArrayNumpy, level: float = 0.95
) -> tuple[chex.ArrayNumpy, chex.ArrayNumpy, chex.ArrayNumpy]:
    """Mean over seeds and the Student-t interval of that mean.

    Args:
      values: shape ``(seeds, ...)``, at least 2 seeds.
      level: how often the interval covers the mean, were the values of the seeds normal.

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
