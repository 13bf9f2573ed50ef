"""The settings of a search, whatever its sampler and its method."""

import dataclasses

from wpl_jax.search.validation import require

__all__ = ["SearchConfig"]


@dataclasses.dataclass(frozen=True)
class SearchConfig:
    """Settings of a search; the defaults are those of the paper's recurrent search."""

    architectures: int = 60
    """Architectures trained in an epoch."""
    batches: int = 7
    """Training batches of each."""
    chunk: int = 60
    """Architectures trained in one call of the compiled step; divides ``architectures``."""
    eval_batches: int = 8
    """Validation batches behind err1 and err2, the same for all."""
    measure_every: int = 1
    """One of so many architectures has err1 and err2 measured; divides ``architectures``."""
    at_once: int = 1
    """Architectures evaluated at once, outside of training: 1 is fastest on a CPU."""

    def __post_init__(self) -> None:
        """Refuse what cannot work."""
        for field in dataclasses.fields(self):
            require(self, field.name, lambda value: value >= 1, "at least 1")
        for name in ("chunk", "measure_every"):
            require(
                self,
                name,
                lambda value: self.architectures % value == 0,
                f"a divisor of architectures ({self.architectures})",
            )

    @property
    def measured(self) -> int:
        """How many architectures of an epoch are measured."""
        return self.architectures // self.measure_every
