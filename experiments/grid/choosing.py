"""How an arm's flags are chosen among several."""

import math
from collections.abc import Sequence

import numpy as np

from experiments.grid.plan import Searched

RULE = (
    "the lowest err2, the mean validation error of architectures at the end of an epoch, in the "
    "mean over the last quarter of the epochs and over seeds. Flags with which a search failed, or "
    "with which an architecture of these epochs had no finite error, are not chosen"
)


def late_error(found: Searched) -> float:
    """The mean err2 of the last quarter of the epochs; NaN if an architecture has diverged."""
    last = slice(-math.ceil(len(found.metrics["epoch"]) / 4), None)
    if found.metrics["diverged"][last].any():
        return math.nan
    return float(np.mean(found.metrics["err2_mean"][last]))


def mean_late_error(runs: Sequence[Searched | None]) -> float:
    """Over the searches of a candidate; NaN if one of them failed or has diverged."""
    return float(np.mean([late_error(found) for found in runs])) if all(runs) else math.nan


def choose(candidates: Sequence[Sequence[Searched | None]]) -> int | None:
    """The number of the candidate that the rule chooses; None if there is none."""
    errors = list(map(mean_late_error, candidates))
    known = [i for i, error in enumerate(errors) if math.isfinite(error)]
    return min(known, key=errors.__getitem__) if known else None
