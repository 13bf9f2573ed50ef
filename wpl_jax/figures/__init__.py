"""Figures of two models (``curves``), ``searches``, how they rank (``ranking``), and ``cells``.

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
from wpl_jax.figures.ranking import predicted_against_true, rankings, tau_curves
from wpl_jax.figures.searches import (
    error_against_forgetting,
    forgetting_curves,
    run_curves,
    search_curves,
)

__all__ = [
    "band",
    "dot",
    "draw",
    "error_against_forgetting",
    "forgetting_curves",
    "heat_maps",
    "predicted_against_true",
    "rankings",
    "run_curves",
    "search_curves",
    "strength_curves",
    "tau_curves",
    "trade_off",
    "training_curves",
]
