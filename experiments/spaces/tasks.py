"""What architectures are trained for, a module a search space, and what is asked of one."""

from collections.abc import Mapping
from typing import Any, Protocol

from experiments.spaces.micro_cnn import data as images
from experiments.spaces.rnn import data as language
from wpl_jax.search import Data


class Task(Protocol):
    """Where the data of a space come from, and what its errors are called."""

    ERROR: str  # as in "a lower perplexity"
    UNIT: str  # that errors are reported in
    SCALE: float  # what an error is multiplied by for that
    WHOLE: str  # what architectures are tested on
    FIGURE: int  # of the paper's, that shows what searches forget
    PUBLISHED: Mapping[str, float]  # what WPL takes off the differences there, as "up to"

    def read(self, config: Any) -> Any:
        """What is to be learned, whole, that the settings name."""

    def sizes(self, corpus: Any) -> dict[str, object]:
        """What the data decide about the space, by the names of its fields."""

    def cut(self, config: Any, corpus: Any) -> Data:
        """What a search reads of it."""

    def fingerprint(self, corpus: Any) -> dict[str, object]:
        """What changes whenever it does."""

    def facts(self, corpus: Any) -> dict[str, object]:
        """What a summary says of it."""

    def source(self, config: Any) -> str:
        """Where it comes from, for a report."""

    def reward(self, space: Any) -> str:
        """The controller's reward, for a report."""

    def remarks(self, settings: Mapping[str, Any], facts: Mapping[str, Any]) -> str:
        """What a report says of the data of searches and final trainings, by these names."""


TASKS: Mapping[str, Task] = {"rnn": language, "micro_cnn": images}
