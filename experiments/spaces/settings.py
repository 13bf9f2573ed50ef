"""Settings that searches, or final trainings, have in common, whatever the space."""

import dataclasses
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

import jax
import jax.numpy as jnp
import optax
import tyro

from experiments.running.command_line import check
from wpl_jax.search import SearchConfig

PLACES = ("out", "resume", "data_dir", "text_dir", "image_dir")
"""Settings that say where things are. What is read there has a fingerprint of its own."""


@dataclasses.dataclass(frozen=True)
class InSpace:
    """Settings with those of a search space among them, in a field of any name."""

    space: str = "rnn"
    """rnn: recurrent cells. micro_cnn: cells for images. module:Class: a task of your own."""
    preset: str = "paper"
    """smoke: embedded data, seconds. cpu: real data, minutes. paper: published sizes, for a GPU."""
    out: Path | None = None
    """Folder of the results; one in results, named by the settings, if not given."""
    seed: int = 0
    """Where all random numbers come from."""
    resume: bool = False
    """Go on with the run whose checkpoints are in --out, if there are any."""

    def __post_init__(self) -> None:
        """Refuse what cannot work, as every class of settings does for its own fields."""
        check(self, not_negative=("seed",))

    @property
    def space_field(self) -> str:
        """The name of the field that holds the space, which is that of its group of flags."""
        names = [field.name for field in dataclasses.fields(self)]
        found = [name for name in names if hasattr(getattr(self, name), "decode")]
        if len(found) != 1:
            raise ValueError(
                f"{type(self).__name__} must have one field that holds the space, with its "
                f"decode, has {len(found)}"
            )
        return found[0]

    @property
    def search_space(self) -> Any:
        """The space itself, a :class:`wpl_jax.spaces.StoredSpace`."""
        return getattr(self, self.space_field)

    def with_space(self, **changes: object) -> Self:
        """The settings with changes to those of the space."""
        changed = dataclasses.replace(self.search_space, **changes)
        return dataclasses.replace(self, **{self.space_field: changed})


@dataclasses.dataclass(frozen=True)
class Sharing:
    """Who computes a search."""

    devices: int | None = None
    """Devices that share each batch; all if not given."""
    distributed: bool = False
    """Be one of several processes of the same flags; if no cluster says which, the next three."""
    coordinator: str | None = None
    """HOST:PORT, the machine of the first process and a port of it that is free."""
    num_processes: int | None = None
    """How many processes there are."""
    process_id: int | None = None
    """Which of them this one is, from 0, which is the one that writes."""

    def __post_init__(self) -> None:
        """Refuse what cannot work."""
        check(self, at_least_1=("devices", "num_processes"), not_negative=("process_id",))
        alone = (self.coordinator, self.num_processes, self.process_id) == (None,) * 3
        if not (self.distributed or alone):
            raise ValueError("--coordinator, --num-processes and --process-id need --distributed")
        if self.distributed and self.devices is not None:
            raise ValueError("--devices and --distributed exclude each other: all devices are used")


@dataclasses.dataclass(frozen=True)
class SearchRun(InSpace):
    """Settings of a search."""

    plasticity: Literal["none", "wpl"] = "wpl"
    """Whether what earlier architectures have learned is protected."""
    strength: float = 60.0
    """The plasticity strength, eps, once the warm-up is over."""
    strength_decay: float = 1.0
    """What it decreases by in an epoch, from --decay-from on, down to 0."""
    decay_from: int = 15
    """The epoch from which on the strength decays, and a learning rate that does so by epochs."""
    proximal: bool = False
    """Apply plasticity as a proximal step, stable for every strength, instead of a gradient."""

    epochs: int = 150
    """Epochs of the search."""
    batch_size: int = 64
    """Streams of text, or images, in a batch."""
    max_skipped: int = 100
    """Training steps in a row without a finite loss and gradient after which the run stops."""

    derive_samples: int = 100
    """Architectures that the best is chosen from at the end."""
    derive_batches: int = 30
    """Validation batches that they are ranked by."""
    probes: int = 0
    """Random architectures, those of the seeds 0, 1, …, that are measured at the end as well."""

    sharing: Annotated[Sharing, tyro.conf.OmitArgPrefixes] = Sharing()
    """Many devices, many processes."""
    search: SearchConfig = SearchConfig()
    """The search itself."""

    inessential: ClassVar[tuple[str, ...]] = (
        *PLACES,
        *("max_skipped", "sharing", "derive_samples", "derive_batches", "probes"),
    )
    """Settings that the states of a run do not depend on."""

    def __post_init__(self) -> None:
        """Refuse what cannot work."""
        super().__post_init__()
        check(
            self,
            at_least_1=("epochs", "batch_size", "max_skipped", "derive_samples", "derive_batches"),
            above_0=("strength",),
            not_negative=("strength_decay", "decay_from", "probes"),
        )
        if self.seed >= 2**32:  # a key has the same numbers as that of the remainder
            raise ValueError(f"--seed must be below 2**32, got {self.seed}")

    def space_over(self, devices: int) -> Any:
        """The search space, computed on so many devices."""
        del devices
        return self.search_space

    @property
    def steps_per_epoch(self) -> int:
        """Training steps of the shared parameters."""
        return self.search.architectures * self.search.batches

    def epochs_of_decay(self, step: jax.typing.ArrayLike) -> jax.Array:
        """How many epochs before that of a training step have decayed what decays."""
        return jnp.maximum(step // self.steps_per_epoch - self.decay_from, 0)

    def strength_at(self, step: jax.typing.ArrayLike) -> jax.Array:
        """The plasticity strength in a training step: none in the warm-up."""
        decayed = self.strength - self.strength_decay * self.epochs_of_decay(step)
        warming_up = step // self.steps_per_epoch < self.search.warmup_epochs
        return jnp.where(warming_up, 0.0, jnp.maximum(decayed, 0.0))

    def learning_rate_at(self, step: jax.typing.ArrayLike) -> jax.Array:
        """The learning rate of the shared parameters in a training step."""
        raise NotImplementedError

    def optimizer(self) -> optax.GradientTransformation:
        """Of the shared parameters."""
        raise NotImplementedError


@dataclasses.dataclass(frozen=True)
class FinalRun(InSpace):
    """Settings of the training of one architecture from scratch."""

    architecture: str | None = None
    """A file, such as a search's best.json; or one that ships, such as enas; or random."""
    seed_architecture: int | None = None
    """Where a random architecture comes from; --seed if not given."""

    epochs: int = 500
    """Passes over the training data."""
    batch_size: int = 64
    """Streams of text, or images, in a batch."""
    max_skipped: int = 100
    """Training steps in a row without a finite loss and gradient after which the run stops."""

    inessential: ClassVar[tuple[str, ...]] = (
        *PLACES,
        *("seed_architecture", "max_skipped", "windows_per_call", "steps_per_call"),
    )
    """Settings that the states of a run do not depend on."""

    def __post_init__(self) -> None:
        """Refuse what cannot work."""
        super().__post_init__()
        check(
            self,
            at_least_1=("epochs", "batch_size", "max_skipped"),
            not_negative=("seed_architecture",),
        )
