"""Weight-sharing architecture search: :class:`Search`, its controller, and many devices."""

from wpl_jax.search.controller import Controller, Sample, reinforce_loss, update_baseline
from wpl_jax.search.parallel import everywhere, split_batches
from wpl_jax.search.settings import SearchConfig
from wpl_jax.search.state import Data, Epoch, Progress, SearchState
from wpl_jax.search.step import Search

__all__ = [
    "Controller",
    "Data",
    "Epoch",
    "Progress",
    "Sample",
    "Search",
    "SearchConfig",
    "SearchState",
    "everywhere",
    "reinforce_loss",
    "split_batches",
    "update_baseline",
]
