"""The settings of a search, whatever its sampler and its method."""

import dataclasses

from wpl_jax.settings import Size, Unfit, check

__all__ = ["SearchConfig"]


@dataclasses.dataclass(frozen=True)
class SearchConfig:
    """Settings of a search; the defaults are those of the paper's recurrent search.

    Raises:
      ValueError: for a setting that cannot work; the message names it.

    Example:
      >>> from wpl_jax.search import SearchConfig
      >>> SearchConfig(architectures=10, batches=40, chunk=2).measured
      10
      >>> SearchConfig(architectures=6, chunk=4)
      Traceback (most recent call last):
      wpl_jax.settings.Unfit: chunk must be a divisor of architectures (6), got 4
    """

    architectures: Size = 60
    """Architectures trained in an epoch."""
    batches: Size = 7
    """Training batches of each."""
    chunk: Size = 60
    """Architectures trained in one call of the compiled step; divides ``architectures``."""
    eval_batches: Size = 8
    """Validation batches behind err1 and err2, the same for all."""
    measure_every: Size = 1
    """One of so many architectures has err1 and err2 measured; divides ``architectures``."""
    at_once: Size | None = None
    """Architectures evaluated at once, outside of training; by default 1 on a CPU, 10 elsewhere."""

    def __post_init__(self) -> None:
        """Refuse what cannot work."""
        check(self)
        for name in ("chunk", "measure_every"):
            if self.architectures % getattr(self, name):
                raise Unfit(self, name, f"a divisor of architectures ({self.architectures})")

    @property
    def measured(self) -> int:
        """How many architectures of an epoch are measured."""
        return self.architectures // self.measure_every
