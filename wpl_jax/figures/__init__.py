"""Figures of results (:mod:`wpl_jax.figures.curves`) and of cells (:mod:`wpl_jax.figures.cells`).

Needs what the ``experiments`` extra installs. Nothing is shown or saved here.
"""

from wpl_jax.figures.cells import dot, draw
from wpl_jax.figures.curves import (
    band,
    heat_maps,
    run_curves,
    search_curves,
    strength_curves,
    trade_off,
    training_curves,
)

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
