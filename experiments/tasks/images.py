"""Image classification, what convolutional cells are for."""

import hashlib
import logging
from typing import TypeVar

import jax

from experiments.configs.search import CNNSearch
from experiments.configs.train_final import CNNFinal
from wpl_jax.data import Images, Splits, batches, load_images
from wpl_jax.search import Data

Settings = TypeVar("Settings", CNNSearch, CNNFinal)

ERROR = "error rate"


def read(config: CNNSearch | CNNFinal) -> Splits:
    logging.getLogger("absl").setLevel(logging.ERROR)  # TFDS recommends to install OpenCV
    splits = load_images(config.data, config.data_dir)
    there, wanted = len(splits.train.labels), config.train_images
    if wanted is None:
        return splits
    if wanted > there:
        raise ValueError(
            f"--train-images must be at most {there}, all the training images of {config.data}, "
            f"got {wanted}"
        )
    return splits._replace(train=Images(*(part[:wanted] for part in splits.train)))


def fit(config: Settings, splits: Splits) -> Settings:
    shape = splits.train.images.shape[1:]
    return config.with_space(classes=splits.classes, image_shape=shape)


def cut(config: CNNSearch, splits: Splits) -> Data:
    return Data(
        batches(splits.train, config.batch_size),
        batches(splits.validation, config.batch_size),
    )


def fingerprint(splits: Splits) -> dict[str, object]:
    digest = hashlib.sha256()
    for array in jax.tree.leaves(splits):
        digest.update(array.tobytes())
    return {"images": digest.hexdigest()}


def facts(splits: Splits) -> dict[str, object]:
    return {"images": {name: len(part.labels) for name, part in splits._asdict().items()}}
