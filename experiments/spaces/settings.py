"""Settings that searches, or final trainings, have in common, whatever the space."""

import dataclasses
import re
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

import jax
import jax.numpy as jnp
import optax
import tyro

from experiments.running import records
from wpl_jax.search import (
    Distillation,
    MomentumGroups,
    Reinforced,
    Replay,
    SearchConfig,
)
from wpl_jax.settings import (
    Count,
    Few,
    Nonnegative,
    Positive,
    Range,
    Seed,
    Share,
    Size,
    Unfit,
    check,
)

PLACES = ("out", "resume", "data_dir", "text_dir", "image_dir")
"""Settings that say where things are. What is read there has a fingerprint of its own."""


@dataclasses.dataclass(frozen=True)
class InSpace:
    """Settings with those of a search space among them, in a field of any name."""

    space: str = "rnn"
    """rnn: recurrent cells. micro_cnn: cells for images. nas_bench_201: cells for images that are \
all published. module:Class: a task of your own."""
    preset: str = "paper"
    """smoke: embedded data, minutes. cpu: real data, minutes. paper: full sizes, for a GPU."""
    out: Path | None = None
    """Folder of the results; one in results, named by the settings, if not given."""
    seed: Seed = 0
    """Where all random numbers come from."""
    resume: bool = False
    """Go on with the run whose checkpoints are in --out, if there are any."""

    inessential: ClassVar[tuple[str, ...]] = PLACES
    """Settings that the states of a run do not depend on."""

    def __post_init__(self) -> None:
        """Refuse what cannot work, by the types of all fields, a subclass's among them."""
        check(self)

    def essential(self) -> dict[str, object]:
        """By name, the settings that the states of a run depend on, as JSON has them."""
        plain = records.plain(dataclasses.asdict(self))
        return {name: plain[name] for name in sorted(plain) if name not in self.inessential}

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

    devices: Few | None = None
    """Devices that share each batch; all if not given."""
    distributed: bool = False
    """Run this search in several processes, each started with the same flags. On a cluster that \
JAX knows, nothing more is needed; elsewhere also give --coordinator, --num-processes and \
--process-id."""
    coordinator: str | None = None
    """HOST:PORT, the machine of the first process and a port of it that is free."""
    num_processes: Few | None = None
    """How many processes there are."""
    process_id: Count | None = None
    """Which of them this one is, from 0, which is the one that writes."""

    def __post_init__(self) -> None:
        """Refuse what cannot work."""
        check(self)
        alone = (self.coordinator, self.num_processes, self.process_id) == (None,) * 3
        if not (self.distributed or alone):
            raise ValueError("--coordinator, --num-processes and --process-id need --distributed")
        if self.coordinator is not None and not re.fullmatch(r"\S+:\d{1,5}", self.coordinator):
            raise Unfit(self, "coordinator", "HOST:PORT")
        if self.process_id is not None:
            if self.num_processes is None:
                raise ValueError("--process-id needs --num-processes")
            if self.process_id >= self.num_processes:
                raise Unfit(self, "process_id", f"below --num-processes ({self.num_processes})")
        if self.distributed and self.devices is not None:
            raise ValueError("--devices and --distributed exclude each other: all devices are used")


@dataclasses.dataclass(frozen=True)
class Fisher:
    """The Fisher of WPL; the same fields as those of :class:`wpl_jax.search.WPL`."""

    fisher_decay: Share = 0.1
    """What is left of the Fisher after each architecture, the paper's 1 - eta."""
    fisher_max_norm: Nonnegative | None = 10.0
    """What the norm of each parameter's Fisher is clipped at."""
    flush_every: Count = 3
    """Epochs after which the Fisher is set to zero; 0 for never."""

    def __post_init__(self) -> None:
        """Refuse what cannot work."""
        check(self)


@dataclasses.dataclass(frozen=True)
class SearchRun(InSpace):
    """Settings of a search."""

    sampler: Literal["controller", "uniform", "fair", "balanced", "distinct"] = "controller"
    """Who is trained next. controller: what a controller picks, which learns from rewards. \
uniform: any architecture. fair: every choice equally often. balanced: every number of \
operations with weights equally often. distinct: any class of those that compute the same."""
    method: Literal["none", "wpl", "l2", "replay", "momentum", "distillation"] = "wpl"
    """What protects earlier architectures. none: nothing. wpl: weights are held by their Fisher. \
l2: all weights are held alike. replay: earlier ones are trained again. momentum: groups of \
architectures have momentum of their own. distillation: they learn from the average weights."""
    strength: Positive = 60.0
    """How strongly wpl and l2 hold weights, eps, once the warm-up is over."""
    strength_decay: Nonnegative = 1.0
    """What it decreases by in each epoch after --decay-from, down to 0."""
    decay_from: Count = 15
    """The last epoch, counted from 0, in which --strength has not decayed; for rnn, nor has the \
learning rate."""
    proximal: bool = False
    """Hold weights by a proximal step, stable for every strength, instead of by a gradient."""
    warmup_epochs: Count = 5
    """Epochs at the start in which wpl and l2 do not act yet."""
    protect: Literal["edges", "all"] = "edges"
    """What wpl and l2 hold: the weights that only some architectures use, or all."""

    epochs: Size = 150
    """Epochs of the search."""
    batch_size: Size = 64
    """Streams of text, or images, in a batch."""
    max_skipped: Size = 100
    """Training steps in a row without a finite loss and gradient after which the run stops."""

    derive_samples: Annotated[int, Range(1, 100_000)] = 100
    """Architectures that the best is chosen from at the end."""
    derive_batches: Size = 30
    """Validation batches that they are ranked by."""
    probes: Annotated[int, Range(0, 100_000)] = 0
    """How many random architectures to measure on the shared weights at the end. They are the \
same in every search, so searches can be compared by them."""
    probe_every: Count = 0
    """Measure them also whenever so many epochs have passed; 0 for only at the end."""

    sharing: Annotated[Sharing, tyro.conf.OmitArgPrefixes] = Sharing()
    """Many devices, many processes."""
    search: SearchConfig = SearchConfig()
    """The search itself."""
    controller: Reinforced = Reinforced()
    """For --sampler controller."""
    wpl: Fisher = Fisher()
    """For --method wpl, as are --strength and the flags after it, up to --protect."""
    replay: Replay = Replay()
    """For --method replay."""
    momentum_groups: MomentumGroups = MomentumGroups()
    """For --method momentum."""
    distillation: Distillation = Distillation()
    """For --method distillation."""

    inessential: ClassVar[tuple[str, ...]] = (
        *InSpace.inessential,
        *("max_skipped", "sharing", "derive_samples", "derive_batches", "probes", "probe_every"),
    )

    def __post_init__(self) -> None:
        """Refuse what cannot work."""
        super().__post_init__()
        if self.epochs * self.steps_per_epoch >= 2**31:
            raise Unfit(self, "epochs", f"below {2**31 // self.steps_per_epoch:,}, for 2^31 steps")
        if self.probe_every and not self.probes:
            raise ValueError(
                f"--probe-every is for the architectures of --probes, got {self.probe_every} "
                "without any"
            )

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
        """How strongly weights are held in a training step: not at all in the warm-up."""
        decayed = self.strength - self.strength_decay * self.epochs_of_decay(step)
        warming_up = step // self.steps_per_epoch < self.warmup_epochs
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
    """A file, such as a search's best.json; one that ships, such as enas or resnet; random; or \
for nas_bench_201 a published string, as in "|op~0|+|op~0|op~1|+|op~0|op~1|op~2|"."""
    seed_architecture: Seed | None = None
    """Where a random architecture comes from; --seed if not given."""

    epochs: Size = 500
    """Passes over the training data."""
    batch_size: Size = 64
    """Streams of text, or images, in a batch."""
    max_skipped: Size = 100
    """Training steps in a row without a finite loss and gradient after which the run stops."""

    inessential: ClassVar[tuple[str, ...]] = (
        *InSpace.inessential,
        *("seed_architecture", "max_skipped", "windows_per_call", "steps_per_call"),
    )
