"""Settings of searches and final trainings for recurrent cells, and their presets."""

import dataclasses
from pathlib import Path
from typing import Annotated, ClassVar, Literal

import jax
import optax

from experiments.spaces.settings import FinalRun, Fisher, InSpace, SearchRun
from wpl_jax.search import Reinforced, SearchConfig
from wpl_jax.settings import Nonnegative, Positive, Range, Size
from wpl_jax.spaces.rnn import RNN


@dataclasses.dataclass(frozen=True)
class OfText(InSpace):
    """Which text is to be predicted, and in what pieces."""

    data: Literal["ptb", "topics"] = "ptb"
    """ptb: Penn Treebank. topics: Python's own help texts, which need no download."""
    data_dir: Path | None = None
    """Folder with the files of ptb; a cache that they are downloaded into if not given."""
    text_dir: Path | None = None
    """Folder with train.txt, valid.txt and test.txt, to be read instead of --data."""

    length: Size = 35
    """Time steps of truncated backpropagation."""


@dataclasses.dataclass(frozen=True)
class RNNSearch(OfText, SearchRun):
    """Settings; the defaults are those of the preset that --preset names."""

    learning_rate: Positive = 20.0
    """Of SGD for the shared parameters."""
    learning_rate_decay: Annotated[float, Range(1e-30, 1)] = 0.96
    """What it is multiplied by in each epoch after --decay-from."""
    clip: Positive = 0.25
    """What the norm of the gradient is clipped at."""
    weight_decay: Nonnegative = 1e-7
    """The L2 strength alpha of eq. 8."""

    rnn: RNN = RNN(vocabulary=10_000)
    """The recurrent space; its vocabulary is the most words that are told apart."""

    # A finished run may be trained further: nothing before the end depends on when it is.
    inessential: ClassVar[tuple[str, ...]] = (*SearchRun.inessential, "epochs")

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
class RNNFinal(OfText, FinalRun):
    """Settings; the defaults are those of the preset that --preset names."""

    learning_rate: Positive = 20.0
    """Of SGD, throughout."""
    clip: Positive = 0.25
    """What the norm of the gradient is clipped at."""
    weight_decay: Nonnegative = 1e-7
    """The L2 strength alpha of eq. 8."""
    patience: Size = 5
    """Weights are averaged once the validation perplexity has not improved for so many epochs."""
    average_after: Size = 250
    """They are averaged after so many epochs at the latest."""

    windows_per_call: Size = 50
    """Training steps in one call of the compiled program: what a signal to stop waits for."""
    validation_batch_size: Size = 64
    """Streams that the validation text is cut into after an epoch."""
    test_batch_size: Size = 1
    """Parallel streams that the validation and test texts are cut into for the final test. With \
1, the hidden state carries through the whole text."""

    rnn: RNN = RNN(vocabulary=10_000, batch_norm=False)
    """The recurrent space; its vocabulary is the most words that are told apart."""

    # An interrupted run may end sooner or later: nothing before the end depends on when it is.
    inessential: ClassVar[tuple[str, ...]] = (*FinalRun.inessential, "epochs")


_NOTHING_DROPPED = {
    "input_dropout": 0.0,
    "output_dropout": 0.0,
    "drop_connect": 0.0,
    "embedding_dropout": 0.0,
}

_SMALL_RNN = RNN(
    vocabulary=2_000,
    units=64,
    batch_norm=False,
    init_scale=0.1,
    **_NOTHING_DROPPED,
)

SEARCHES = {
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
        strength=1e4,
        strength_decay=0.0,
        proximal=True,
        derive_batches=60,
        rnn=RNN(vocabulary=2_000, units=64, **_NOTHING_DROPPED),
        warmup_epochs=4,
        protect="all",
        search=SearchConfig(architectures=10, batches=40, chunk=2, eval_batches=20),
        controller=Reinforced(steps=100, samples=4, learning_rate=2e-3),
        wpl=Fisher(fisher_max_norm=0.5),
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
        proximal=True,
        derive_samples=20,
        derive_batches=10,
        rnn=RNN(vocabulary=500, nodes=6, units=32, **_NOTHING_DROPPED),
        warmup_epochs=2,
        protect="all",
        search=SearchConfig(architectures=8, batches=20, chunk=2, eval_batches=5),
        controller=Reinforced(steps=50, samples=2, learning_rate=2e-3),
        wpl=Fisher(fisher_max_norm=0.5),
    ),
}

FINALS = {
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
}
