"""Weight-sharing architecture search: :class:`Search`, its samplers and methods, many devices."""

from wpl_jax.search.controller import Controller, Sample, reinforce_loss, update_baseline
from wpl_jax.search.methods import (
    WPL,
    Distillation,
    L2Anchor,
    Method,
    MomentumGroups,
    Plain,
    Replay,
    ReplayState,
    Trainee,
)
from wpl_jax.search.parallel import everywhere, split_batches
from wpl_jax.search.samplers import (
    Balanced,
    Distinct,
    Fair,
    Reinforced,
    ReinforcedState,
    Sampler,
    Uniform,
)
from wpl_jax.search.settings import SearchConfig
from wpl_jax.search.state import Data, Epoch, Progress, SearchState
from wpl_jax.search.step import Search

__all__ = [
    "WPL",
    "Balanced",
    "Controller",
    "Data",
    "Distillation",
    "Distinct",
    "Epoch",
    "Fair",
    "L2Anchor",
    "Method",
    "MomentumGroups",
    "Plain",
    "Progress",
    "Reinforced",
    "ReinforcedState",
    "Replay",
    "ReplayState",
    "Sample",
    "Sampler",
    "Search",
    "SearchConfig",
    "SearchState",
    "Trainee",
    "Uniform",
    "everywhere",
    "reinforce_loss",
    "split_batches",
    "update_baseline",
]
