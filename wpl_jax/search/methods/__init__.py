"""What happens between one architecture's training and the next's: the methods of a search."""

from wpl_jax.search.methods.anchored import WPL, L2Anchor
from wpl_jax.search.methods.distillation import Distillation
from wpl_jax.search.methods.momentum import MomentumGroups
from wpl_jax.search.methods.plain import Plain
from wpl_jax.search.methods.protocol import Method, Trainee
from wpl_jax.search.methods.replay import Replay, ReplayState

__all__ = [
    "WPL",
    "Distillation",
    "L2Anchor",
    "Method",
    "MomentumGroups",
    "Plain",
    "Replay",
    "ReplayState",
    "Trainee",
]
