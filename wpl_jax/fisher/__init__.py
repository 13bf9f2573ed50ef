"""Diagonal Fishers of any JAX loss.

- ``estimators``: which Fisher is which, and the bound on their memory;
- ``averaging``: what they share with every mean over examples;
- ``running``: a Fisher over the batches of a data loader;
- ``explanation``: how a function's Fisher is computed, and whether it is right;
- ``plan``: how it is done, with the modules that it imports.
"""

from wpl_jax.fisher.estimators import (
    empirical_fisher,
    exact_fisher,
    sampled_fisher,
    squared_batch_gradient,
)
from wpl_jax.fisher.explanation import Check, Explanation, check_fisher, explain
from wpl_jax.fisher.running import (
    RunningFisher,
    RunningFisherState,
    fisher_of_batches,
    merge_running_fishers,
    running_fisher,
)

__all__ = [
    "Check",
    "Explanation",
    "RunningFisher",
    "RunningFisherState",
    "check_fisher",
    "empirical_fisher",
    "exact_fisher",
    "explain",
    "fisher_of_batches",
    "merge_running_fishers",
    "running_fisher",
    "sampled_fisher",
    "squared_batch_gradient",
]
