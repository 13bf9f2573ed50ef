"""What the scripts ask of a search space and of the data that its architectures are trained on."""

import abc
import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import chex

from experiments.running import records
from experiments.spaces.settings import FinalRun, SearchRun
from experiments.spaces.sgd import SGDTraining
from experiments.spaces.training import Training
from wpl_jax.search import Data
from wpl_jax.spaces import Space


class Task(abc.ABC):
    """A search space, and what its architectures are trained for.

    A subclass gives the presets and says how data are read; everything else has a default. The
    settings of a preset hold the space itself, a :class:`wpl_jax.spaces.StoredSpace`, in a field
    of any name, which is then the group of its flags.
    """

    name: ClassVar[str]
    """In the names of folders, and in the files of its architectures."""
    searches: ClassVar[Mapping[str, SearchRun]]
    """By the name of a preset, the settings of a search; ``smoke`` is the default of scripts."""
    finals: ClassVar[Mapping[str, FinalRun]]
    """By the name of a preset, the settings of the training of one architecture from scratch."""
    training: ClassVar[type[Training]] = SGDTraining
    """How an architecture is trained from scratch."""

    error: ClassVar[str] = "error rate"
    """What errors are called, as in "a lower error rate"; of the space's ``error``."""
    unit: ClassVar[str] = ""
    """What errors are reported in, as in ``" (%)"``."""
    scale: ClassVar[float] = 1
    """What an error is multiplied by for that."""
    published: ClassVar[Mapping[str, float]] = {}
    """What WPL is published to take off the forgetting at most, by the metrics' names."""

    @abc.abstractmethod
    def read(self, config: Any) -> Any:
        """The data, whole, that the settings of a search or of a final training name."""

    @abc.abstractmethod
    def cut(self, config: Any, corpus: Any) -> Data:
        """The batches that a search reads of the data."""

    def test(self, config: Any, corpus: Any) -> chex.ArrayTree:
        """The batches of the test data; needed where ``training`` is :class:`SGDTraining`."""
        raise NotImplementedError(f"{type(self).__name__} must define test(config, corpus)")

    def sizes(self, corpus: Any) -> dict[str, object]:
        """What the data decide about the space, by the names of its fields."""
        del corpus
        return {}

    def fingerprint(self, corpus: Any) -> dict[str, object]:
        """What changes whenever the data do: by default a hash of all arrays in them."""
        return {"content": records.digest(corpus)}

    def facts(self, corpus: Any) -> dict[str, Any]:
        """What a summary says of the data."""
        del corpus
        return {}

    def source(self, config: Any) -> str:
        """Where the data come from, for a report."""
        return str(getattr(config, "data", self.name))

    def reward(self, space: Space) -> str:
        """The controller's reward as a formula, for a report."""
        del space
        return "the space's own"

    def remarks(self, settings: Mapping[str, Any], facts: Mapping[str, Any]) -> str:
        """What a report says of the data of "search" and, if any, of "final", by these names."""
        del settings, facts
        return ""

    def cells(self) -> dict[str, Path]:
        """By name, the files of published architectures: those in ``cells`` beside the module."""
        folder = Path(inspect.getfile(type(self))).parent / "cells"
        return {path.stem: path for path in sorted(folder.glob("*.json"))}
