"""What the settings of searches and final trainings have in common: a search space in them."""

import dataclasses
from typing import ClassVar, Literal, Self, TypeAlias

from wpl_jax.spaces.micro_cnn import MicroCNN
from wpl_jax.spaces.rnn import RNN

SpaceName: TypeAlias = Literal["rnn", "micro_cnn"]
PresetName: TypeAlias = Literal["smoke", "cpu", "paper"]


@dataclasses.dataclass(frozen=True)
class InSpace:
    """Settings with those of a search space among them, under a name of the space's own."""

    preset: PresetName = "paper"
    """smoke: embedded data, seconds. cpu: real data, minutes. paper: published sizes, for a GPU."""
    space: SpaceName = "rnn"
    """rnn: recurrent cells. micro_cnn: cells for images. Each has settings of its own."""

    space_field: ClassVar[str]

    @property
    def search_space(self) -> RNN | MicroCNN:
        """The space itself, whichever it is; ``--space`` is its name."""
        return getattr(self, self.space_field)

    def with_space(self, **changes: object) -> Self:
        """The settings with changes to those of the space."""
        changed = dataclasses.replace(self.search_space, **changes)
        return dataclasses.replace(self, **{self.space_field: changed})
