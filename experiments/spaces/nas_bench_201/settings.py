"""Settings of searches and final trainings for NAS-Bench-201, and their presets."""

import dataclasses

from experiments.spaces.images import ImageFinal, ImageSearch
from wpl_jax.search import SearchConfig
from wpl_jax.spaces.nas_bench_201 import NASBench201


@dataclasses.dataclass(frozen=True)
class NASSearch(ImageSearch):
    """Settings; the defaults are those of the preset that --preset names."""

    space: str = "nas_bench_201"
    nas: NASBench201 = NASBench201()
    """The space of cells; the classes and the shape of images are those of --data."""


@dataclasses.dataclass(frozen=True)
class NASFinal(ImageFinal):
    """Settings; the defaults are those of the preset that --preset names."""

    space: str = "nas_bench_201"
    nas: NASBench201 = NASBench201(affine=True)
    """The space of cells; the classes and the shape of images are those of --data."""


SEARCHES = {
    # One-shot training as it is published for this benchmark, an architecture for each batch and
    # nothing to protect them, but on 45,000 images instead of 25,000; hours on a GPU.
    "paper": NASSearch(
        sampler="uniform",
        method="none",
        epochs=250,
        learning_rate=0.025,
        learning_rate_min=0.001,
        weight_decay=5e-4,
        search=SearchConfig(architectures=700, batches=1, chunk=100, measure_every=50),
    ),
    # Real images at sizes that two cores can train.
    "cpu": NASSearch(
        preset="cpu",
        image_size=16,
        sampler="uniform",
        method="none",
        epochs=30,
        learning_rate=0.05,
        learning_rate_min=0.0,
        weight_decay=5e-4,
        nas=NASBench201(channels=5, crop_padding=2),
        search=SearchConfig(architectures=700, batches=1, chunk=100, measure_every=50),
    ),
    # Whether all of it works.
    "smoke": NASSearch(
        preset="smoke",
        data="mnist5k",
        image_size=14,
        sampler="uniform",
        epochs=3,
        batch_size=32,
        strength=1e2,
        strength_decay=0.0,
        proximal=True,
        warmup_epochs=1,
        protect="all",
        derive_samples=10,
        derive_batches=5,
        nas=NASBench201(channels=4, cells=1, crop_padding=1, flip=False),
        search=SearchConfig(
            architectures=100, batches=1, chunk=20, eval_batches=2, measure_every=20
        ),
    ),
}

FINALS = {
    # How the benchmark has trained its architectures, on 45,000 images instead of all 50,000. It
    # does not clip, nor does a norm that no gradient has.
    "paper": NASFinal(epochs=200, batch_size=256, learning_rate=0.1, weight_decay=5e-4, clip=1e6),
    # Real images at sizes that two cores can train.
    "cpu": NASFinal(
        preset="cpu",
        image_size=16,
        train_images=10_000,
        epochs=10,
        learning_rate=0.1,
        weight_decay=5e-4,
        nas=NASBench201(channels=5, affine=True, crop_padding=2),
    ),
    # Whether all of it works.
    "smoke": NASFinal(
        preset="smoke",
        data="mnist5k",
        image_size=14,
        epochs=2,
        batch_size=32,
        nas=NASBench201(channels=4, cells=1, affine=True, crop_padding=1, flip=False),
    ),
}
