"""Settings of the architecture search, one instance a preset."""

import dataclasses
from pathlib import Path
from typing import Literal

from wpl_jax.search import SearchConfig
from wpl_jax.spaces.rnn import RNN


@dataclasses.dataclass(frozen=True)
class SearchRun:
    """Settings; the defaults are those of the preset that --preset names."""

    preset: str = "paper"
    """smoke: embedded text, seconds. cpu: real text, minutes. paper: published sizes, for a GPU."""
    space: Literal["rnn"] = "rnn"
    """The search space."""
    data: Literal["ptb", "topics"] = "ptb"
    """ptb: Penn Treebank. topics: Python's own help texts, which need no download."""
    data_dir: Path | None = None
    """Folder with the files of ptb; a cache that they are downloaded into if not given."""
    text_dir: Path | None = None
    """Folder with train.txt, valid.txt and test.txt, to be read instead of --data."""
    out: Path | None = None
    """Folder of the results.

    results/search/<space>/<preset>_<plasticity>_<strategy>_<seed> if not given."""
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
    implicit: bool = False
    """Apply plasticity as a proximal step, stable for every strength, instead of a gradient."""

    epochs: int = 150
    """Epochs of the search."""
    batch_size: int = 64
    """Streams of text, or images, in a batch."""
    length: int = 35
    """Time steps of truncated backpropagation."""
    learning_rate: float = 20.0
    """Of SGD for the shared parameters."""
    learning_rate_decay: float = 0.96
    """What it is multiplied by in an epoch, from --decay-from on."""
    decay_from: int = 15
    """The epoch from which on learning rate and strength decay."""
    clip: float = 0.25
    """What the norm of the gradient is clipped at."""
    weight_decay: float = 1e-7
    """The L2 strength alpha of eq. 8."""
    max_skipped: int = 100
    """Training steps in a row without a finite loss and gradient after which the run stops."""

    derive_samples: int = 100
    """Architectures that the best is chosen from at the end."""
    derive_batches: int = 30
    """Validation batches that they are ranked by."""

    rnn: RNN = RNN(vocabulary=10_000)
    """The recurrent space; its vocabulary is the most words that are told apart."""
    search: SearchConfig = SearchConfig()
    """The search itself."""


PRESETS = {
    # What is known of the published search; hours on a GPU.
    "paper": SearchRun(),
    # Real text at sizes that two cores can train, where plain search visibly forgets: the paper's 7
    # batches for each architecture would drown that in general progress, here each trains for 40,
    # at a learning rate little below where nothing is learned any more.
    "cpu": SearchRun(
        preset="cpu",
        epochs=16,
        batch_size=32,
        length=20,
        learning_rate=12.0,
        strength=1e4,  # which experiments.compare chose
        strength_decay=0.0,
        implicit=True,
        derive_batches=60,
        rnn=RNN(
            vocabulary=2_000,
            units=64,
            input_dropout=0.0,
            output_dropout=0.0,
            drop_connect=0.0,
            embedding_dropout=0.0,
        ),
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
    "smoke": SearchRun(
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
        rnn=RNN(
            vocabulary=500,
            nodes=6,
            units=32,
            input_dropout=0.0,
            output_dropout=0.0,
            drop_connect=0.0,
            embedding_dropout=0.0,
        ),
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
}
