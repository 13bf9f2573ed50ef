"""What architectures are trained for, a module a search space, and what is asked of one."""

from collections.abc import Mapping
from typing import Any, Protocol

from experiments.tasks import images, language
from wpl_jax.search import Data


class Task(Protocol):
    """Where the data of a space come from, and what its errors are called."""

    ERROR: str  # as in "a lower perplexity"

    def read(self, config: Any) -> Any:
        """What is to be learned, whole, that the settings name."""

    def fit(self, config: Any, corpus: Any) -> Any:
        """The settings, with what the data decide about the space."""

    def cut(self, config: Any, corpus: Any) -> Data:
        """What a search reads of it."""

    def fingerprint(self, corpus: Any) -> dict[str, object]:
        """What changes whenever it does."""

    def facts(self, corpus: Any) -> dict[str, object]:
        """What a summary says of it."""


TASKS: Mapping[str, Task] = {"rnn": language, "micro_cnn": images}
