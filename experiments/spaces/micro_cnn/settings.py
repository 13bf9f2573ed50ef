"""Settings of searches and final trainings for convolutional cells, and their presets."""

import dataclasses

from experiments.spaces.images import ImageFinal, ImageSearch
from experiments.spaces.settings import Fisher
from wpl_jax.search import Reinforced, SearchConfig
from wpl_jax.spaces.micro_cnn import MicroCNN


@dataclasses.dataclass(frozen=True)
class CNNSearch(ImageSearch):
    """Settings; the defaults are those of the preset that --preset names."""

    space: str = "micro_cnn"
    cnn: MicroCNN = MicroCNN()
    """The space of cells; the classes and the shape of images are those of --data."""


@dataclasses.dataclass(frozen=True)
class CNNFinal(ImageFinal):
    """Settings; the defaults are those of the preset that --preset names."""

    space: str = "micro_cnn"
    cnn: MicroCNN = MicroCNN(channels=36, cells=5, cutout=16, drop_path=0.2, auxiliary=0.4)
    """The space of cells; the classes and the shape of images are those of --data."""


SEARCHES = {
    # ENAS's search on CIFAR-10, an epoch of which is a pass over the training images, with the
    # warm-up of the paper's; hours on a GPU.
    "paper": CNNSearch(
        batch_size=160,
        warmup_epochs=3,
        search=SearchConfig(architectures=60, batches=5),
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
        proximal=True,
        derive_batches=16,
        cnn=MicroCNN(channels=8, cells=1, stem_stride=2),
        warmup_epochs=3,
        protect="all",
        search=SearchConfig(architectures=10, batches=40, chunk=2, eval_batches=16),
        controller=Reinforced(steps=60, samples=4, learning_rate=3.5e-3),
        wpl=Fisher(fisher_max_norm=1.0),
    ),
    # Whether all of it works.
    "smoke": CNNSearch(
        preset="smoke",
        data="mnist5k",
        epochs=5,
        batch_size=32,
        strength=1e2,
        strength_decay=0.0,
        proximal=True,
        derive_samples=10,
        derive_batches=5,
        cnn=MicroCNN(nodes=2, channels=4, cells=1, crop_padding=2, flip=False),
        warmup_epochs=2,
        protect="all",
        search=SearchConfig(architectures=4, batches=10, chunk=1, eval_batches=2),
        controller=Reinforced(steps=5, samples=2, learning_rate=2e-3),
    ),
}

FINALS = {
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
}
