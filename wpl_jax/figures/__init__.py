"""Figures of two models (``curves``), of searches (``searches``) and of cells (``cells``).

Needs what the ``experiments`` extra installs. Nothing is shown or saved here.
"""

from wpl_jax.figures.cells import dot, draw
from wpl_jax.figures.curves import (
    band,
    heat_maps,
    strength_curves,
    trade_off,
    training_curves,
)
from wpl_jax.figures.searches import run_curves, search_curves

__all__ = [
    "band",
    "dot",
    "draw",
    "heat_maps",
    "run_curves",
    "search_curves",
    "strength_curves",
    "trade_off",
    "training_curves",
]
