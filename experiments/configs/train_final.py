"""Settings of the training of one architecture from scratch, one instance a preset."""

import dataclasses
from pathlib import Path
from typing import ClassVar, Literal

from experiments.command_line import check
from experiments.configs.space import InSpace
from wpl_jax.spaces.rnn import RNN


@dataclasses.dataclass(frozen=True)
class FinalRun(InSpace):
    """Settings; the defaults are those of the preset that --preset names."""

    preset: str = "paper"
    """smoke: embedded text, seconds. cpu: real text, minutes. paper: published sizes, for a GPU."""
    space: Literal["rnn"] = "rnn"
    """The search space that the architecture is from."""
    architecture: str | None = None
    """A JSON file, such as the search's best.json; or one that ships: enas, darts_style; or random.

    Must be given. The number of nodes is the file's; a random cell has --rnn.nodes."""
    seed_architecture: int | None = None
    """Where a random architecture comes from; --seed if not given."""
    data: Literal["ptb", "topics"] = "ptb"
    """ptb: Penn Treebank. topics: Python's own help texts, which need no download."""
    data_dir: Path | None = None
    """Folder with the files of ptb; a cache that they are downloaded into if not given."""
    text_dir: Path | None = None
    """Folder with train.txt, valid.txt and test.txt, to be read instead of --data."""
    out: Path | None = None
    """Folder of the results.

    results/train_final/<space>/<preset>_<architecture>_<seed> if not given."""
    seed: int = 0
    """Where all random numbers come from."""
    resume: bool = False
    """Go on with the run whose checkpoints are in --out, if there are any."""

    epochs: int = 500
    """Passes over the training text."""
    batch_size: int = 64
    """Streams of text in a batch."""
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
    max_skipped: int = 100
    """Training steps in a row without a finite loss and gradient after which the run stops."""

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
        check(
            self,
            at_least_1=(
                *("epochs", "batch_size", "length", "patience", "average_after", "max_skipped"),
                *("windows_per_call", "validation_batch_size", "test_batch_size"),
            ),
            above_0=("learning_rate", "clip"),
            not_negative=("weight_decay", "seed", "seed_architecture"),
        )


_SMALL = RNN(
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
        "paper": FinalRun(),
        # Real text at sizes that one core trains in two minutes: too few weights and epochs to need
        # dropout.
        "cpu": FinalRun(
            preset="cpu",
            epochs=5,
            batch_size=32,
            length=20,
            learning_rate=10.0,
            average_after=3,
            validation_batch_size=32,
            rnn=_SMALL,
        ),
        # Whether all of it works.
        "smoke": FinalRun(
            preset="smoke",
            data="topics",
            epochs=6,
            batch_size=16,
            length=20,
            learning_rate=20.0,
            average_after=3,
            validation_batch_size=8,
            rnn=dataclasses.replace(_SMALL, vocabulary=1_000, units=32, init_scale=0.2),
        ),
    },
}
