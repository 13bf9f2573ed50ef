"""The settings of a search."""

import dataclasses
from typing import Literal

__all__ = ["SearchConfig"]


@dataclasses.dataclass(frozen=True)
class SearchConfig:
    """Settings of a search; the defaults are those of the paper's recurrent search."""

    strategy: Literal["reinforce", "random"] = "reinforce"
    """Who is sampled: by the controller, or uniformly (random search with weight sharing)."""
    architectures: int = 60
    """Architectures trained in an epoch."""
    batches: int = 7
    """Training batches of each."""
    chunk: int = 60
    """Architectures trained in one call of the compiled step; divides ``architectures``."""
    eval_batches: int = 8
    """Validation batches behind err1 and err2, the same for all."""
    at_once: int = 1
    """Architectures evaluated at once, outside of training: 1 is fastest on a CPU."""

    controller_steps: int = 2_000
    """Steps of REINFORCE at the end of an epoch."""
    controller_samples: int = 1
    """Architectures in each, rewarded on one validation batch drawn for all of them."""
    controller_learning_rate: float = 3.5e-4
    """Of Adam."""
    entropy_weight: float = 1e-4
    """Times the entropy of the controller's distribution, added to the reward."""
    baseline_decay: float = 0.95
    """Of the moving average of rewards."""

    warmup_epochs: int = 5
    """Epochs without plasticity at the start."""
    flush_every: int = 3
    """Epochs after which the Fisher is set to zero; 0 for never."""
    fisher_decay: float = 0.1
    """What is left of the Fisher after each architecture, the paper's 1 - eta."""
    fisher_max_norm: float | None = 10.0
    """What the norm of each parameter's Fisher is clipped at."""
    protect: Literal["edges", "all"] = "edges"
    """The parameters protected: those that only some architectures use, or all."""

    def __post_init__(self) -> None:
        """Refuse what cannot work."""
        for name in ("architectures", "batches", "chunk", "eval_batches", "at_once"):
            self._check(name, getattr(self, name) >= 1, "at least 1")
        for name in ("controller_steps", "controller_samples"):
            self._check(name, getattr(self, name) >= 1, "at least 1")
        for name in ("warmup_epochs", "flush_every", "entropy_weight"):
            self._check(name, getattr(self, name) >= 0, ">= 0")
        for name in ("fisher_decay", "baseline_decay"):
            self._check(name, 0 <= getattr(self, name) < 1, ">= 0 and < 1")
        self._check("strategy", self.strategy in ("reinforce", "random"), "reinforce or random")
        self._check("protect", self.protect in ("edges", "all"), "edges or all")
        self._check(
            "chunk",
            self.architectures % self.chunk == 0,
            f"a divisor of architectures ({self.architectures})",
        )

    def _check(self, name, holds, wanted):
        if not holds:
            raise ValueError(f"{name} must be {wanted}, got {getattr(self, name)!r}")
