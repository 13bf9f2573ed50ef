"""Weight sharing without forgetting: the Weight Plasticity Loss as an optax transformation."""

from wpl_jax.diagnosis import Diagnosis, diagnose
from wpl_jax.fisher import (
    empirical_fisher,
    exact_fisher,
    explain,
    sampled_fisher,
    squared_batch_gradient,
)
from wpl_jax.forgetting import relative_reduction
from wpl_jax.plasticity import (
    PlasticityState,
    add_plasticity,
    consolidate,
    flush,
    plasticity_loss,
    proximal_plasticity,
    weight_plasticity,
)

__version__ = "0.1.0"

__all__ = [
    "Diagnosis",
    "PlasticityState",
    "add_plasticity",
    "consolidate",
    "diagnose",
    "empirical_fisher",
    "exact_fisher",
    "explain",
    "flush",
    "plasticity_loss",
    "proximal_plasticity",
    "relative_reduction",
    "sampled_fisher",
    "squared_batch_gradient",
    "weight_plasticity",
]
