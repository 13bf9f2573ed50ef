"""Weight sharing without forgetting: the Weight Plasticity Loss as an optax transformation."""

from wpl_jax.diagnosis import Diagnosis, diagnose
from wpl_jax.fisher import (
    Check,
    Explanation,
    RunningFisher,
    RunningFisherState,
    check_fisher,
    empirical_fisher,
    exact_fisher,
    explain,
    fisher_of_batches,
    merge_running_fishers,
    running_fisher,
    sampled_fisher,
    squared_batch_gradient,
)
from wpl_jax.forgetting import relative_reduction
from wpl_jax.importance import (
    PathIntegralState,
    mas_importance,
    path_importance,
    synaptic_intelligence,
)
from wpl_jax.merging import merge
from wpl_jax.plasticity import (
    PlasticityState,
    add_plasticity,
    consolidate,
    flush,
    get_plasticity,
    plasticity_loss,
    proximal_plasticity,
    put_plasticity,
    weight_plasticity,
)

__version__ = "0.1.0"

__all__ = [
    "Check",
    "Diagnosis",
    "Explanation",
    "PathIntegralState",
    "PlasticityState",
    "RunningFisher",
    "RunningFisherState",
    "add_plasticity",
    "check_fisher",
    "consolidate",
    "diagnose",
    "empirical_fisher",
    "exact_fisher",
    "explain",
    "fisher_of_batches",
    "flush",
    "get_plasticity",
    "mas_importance",
    "merge",
    "merge_running_fishers",
    "path_importance",
    "plasticity_loss",
    "proximal_plasticity",
    "put_plasticity",
    "relative_reduction",
    "running_fisher",
    "sampled_fisher",
    "squared_batch_gradient",
    "synaptic_intelligence",
    "weight_plasticity",
]
