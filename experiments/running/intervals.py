"""Means over seeds, their 95 % intervals, and what can be told apart by them.

A number is a dictionary, as summary.json has it: ``mean``, ``low`` and ``high`` ends of the
interval, ``n`` seeds, and, of searches, the values by seed, ``seeds``. None is what is not known.
"""

import math
from collections.abc import Sequence

import numpy as np
from scipy import special

from wpl_jax.forgetting import mean_interval

Number = dict[str, float | None]


def mean(values: np.ndarray) -> float:
    """Of what is finite; NaN if nothing is."""
    measured = values[np.isfinite(values)]
    return float(measured.mean()) if len(measured) else math.nan


def interval(values: np.ndarray) -> Number:
    """Mean and 95 % interval of what is finite; None where there are too few seeds for it."""
    measured = values[np.isfinite(values)]
    low = high = math.nan
    if len(measured) > 1:
        _, low, high = mean_interval(measured)
    found = {"mean": finite(mean(measured)), "low": finite(low), "high": finite(high)}
    return found | {"n": len(measured)}


def of_seeds(values: np.ndarray) -> dict:
    """An interval with the values that it is of."""
    return interval(values) | {"seeds": [finite(value) for value in values]}


def difference(a: dict, b: dict) -> Number:
    """The interval of a − b: paired by seed where both have seeds, else Welch's."""
    if a.get("seeds") and b.get("seeds"):
        return interval(np.array(a["seeds"], np.float64) - np.array(b["seeds"], np.float64))
    if None in (a["mean"], b["mean"]):
        return {"mean": None, "low": None, "high": None, "n": 0}
    between = a["mean"] - b["mean"]
    found = {"mean": between, "low": None, "high": None, "n": min(a["n"], b["n"])}
    if found["n"] < 2:
        return found
    freedom = np.array([a["n"] - 1, b["n"] - 1])
    halves = np.array([number["high"] - number["mean"] for number in (a, b)])
    squares = (halves / special.stdtrit(freedom, 0.975)) ** 2  # of the standard errors
    total = squares.sum()
    half = 0.0
    if total > 0:
        half = special.stdtrit(total**2 / (squares**2 / freedom).sum(), 0.975) * math.sqrt(total)
    return found | {"low": between - half, "high": between + half}


def is_above_0(number: Number) -> bool:
    return number["low"] is not None and number["low"] > 0


def differs_from_0(number: Number) -> bool:
    """Whether the interval leaves 0 out."""
    return is_above_0(number) or (number["high"] is not None and number["high"] < 0)


def detectable(number: Number) -> float | None:
    """The difference that would have been told from 0 with a probability of 80 %.

    That is with as many seeds, and a standard error like that of this interval: t has then a
    noncentral distribution. None where there is no interval.
    """
    if number["high"] is None:
        return None
    freedom = number["n"] - 1
    quantile = special.stdtrit(freedom, 0.975)
    error = (number["high"] - number["mean"]) / quantile
    return float(error * special.nctdtrinc(freedom, 0.2, quantile))


def best(numbers: Sequence[dict | None], low_is_good: bool) -> set[int]:
    """The places of the best number and of those that cannot be told from it.

    None where that is all of them, or where nothing is known of how they scatter.
    """
    sign = 1 if low_is_good else -1
    there = {i: n for i, n in enumerate(numbers) if n and n["mean"] is not None}
    if not there:
        return set()
    first = min(there, key=lambda i: sign * there[i]["mean"])
    worse = {i for i, n in there.items() if is_above_0(_times(sign, difference(n, there[first])))}
    return set(there) - worse if worse else set()


def reduction(plain: Number, wpl: Number) -> float | None:
    """(d − d_WPL) / d, the share of a forgetting d that WPL takes off; None if d is not above 0."""
    if not is_above_0(plain) or wpl["mean"] is None:
        return None
    return (plain["mean"] - wpl["mean"]) / plain["mean"]


def kendall_tau(*errors: Sequence[float | None]) -> float | None:
    """Kendall's tau between the orders of cells by two errors; None for fewer than 3 cells."""
    from scipy import stats  # a second to import, of what every script waits for

    pairs = [pair for pair in zip(*errors, strict=True) if None not in pair]
    if len(pairs) < 3:
        return None
    return finite(stats.kendalltau(*zip(*pairs, strict=True)).statistic)


def finite(number: float) -> float | None:
    """JSON knows no infinity and no NaN."""
    return float(number) if math.isfinite(number) else None


def _times(sign: int, number: Number) -> Number:
    if sign > 0 or number["low"] is None:
        return number
    return {"mean": -number["mean"], "low": -number["high"], "high": -number["low"]}
