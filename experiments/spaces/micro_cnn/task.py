"""Image classification, what convolutional cells are for."""

import logging
from collections.abc import Mapping
from typing import Any

from experiments.spaces.micro_cnn.final import CNNTraining
from experiments.spaces.micro_cnn.settings import (
    COMPARISONS,
    FINALS,
    SEARCHES,
    CNNFinal,
    CNNSearch,
)
from experiments.spaces.task import Task
from wpl_jax.data import Images, Splits, batches, load_images, read_image_dir
from wpl_jax.search import Data
from wpl_jax.spaces.micro_cnn import MicroCNN


class ImageClassification(Task):
    """Pairs of cells that classify images."""

    name = "micro_cnn"
    searches = SEARCHES
    finals = FINALS
    comparisons = COMPARISONS
    training = CNNTraining

    unit = " (%)"
    scale = 100
    whole = "all validation and test images"
    figure = 4
    published = {"forgetting_mean": 0.99, "forgetting_best5": 0.96, "forgetting_max": 0.98}

    def read(self, config: CNNSearch | CNNFinal) -> Splits:
        if config.image_dir is not None:
            splits = read_image_dir(config.image_dir, config.image_size)
        else:
            logging.getLogger("absl").setLevel(logging.ERROR)  # TFDS recommends to install OpenCV
            splits = load_images(config.data, config.data_dir)
        there, wanted = len(splits.train.labels), config.train_images
        if wanted is None:
            return splits
        if wanted > there:
            raise ValueError(
                f"--train-images must be at most {there}, all the training images of "
                f"{self.source(config)}, got {wanted}"
            )
        return splits._replace(train=Images(*(part[:wanted] for part in splits.train)))

    def cut(self, config: CNNSearch, splits: Splits) -> Data:
        return Data(
            batches(splits.train, config.batch_size),
            batches(splits.validation, config.batch_size),
        )

    def sizes(self, splits: Splits) -> dict[str, object]:
        return {"classes": splits.classes, "image_shape": splits.train.images.shape[1:]}

    def facts(self, splits: Splits) -> dict[str, Any]:
        return {"images": {name: len(part.labels) for name, part in splits._asdict().items()}}

    def source(self, config: CNNSearch | CNNFinal) -> str:
        return config.data if config.image_dir is None else str(config.image_dir)

    def reward(self, space: MicroCNN) -> str:
        del space
        return "1 − err2"

    def remarks(
        self, settings: Mapping[str, CNNSearch | CNNFinal], facts: Mapping[str, Mapping]
    ) -> str:
        """How many images there are in each part."""
        del settings

        def counts(name):
            return ", ".join(f"{n:,} ({part})" for part, n in facts[name]["images"].items())

        if counts("search") == counts("final"):
            return f"Images: {counts('search')}."
        return f"Images: {counts('search')} in the searches, {counts('final')} in final training."
