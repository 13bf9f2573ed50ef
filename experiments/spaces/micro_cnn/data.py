"""Image classification, what convolutional cells are for."""

import hashlib
import logging
from collections.abc import Mapping

import jax

from experiments.spaces.final_settings import CNNFinal
from experiments.spaces.search_settings import CNNSearch
from wpl_jax.data import Images, Splits, batches, load_images
from wpl_jax.search import Data
from wpl_jax.spaces.micro_cnn import MicroCNN

ERROR = "error rate"
UNIT = " (%)"
SCALE = 100
WHOLE = "all validation and test images"
FIGURE = 4
PUBLISHED = {"forgetting_mean": 0.99, "forgetting_best5": 0.96, "forgetting_max": 0.98}


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


def sizes(splits: Splits) -> dict[str, object]:
    return {"classes": splits.classes, "image_shape": splits.train.images.shape[1:]}


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


def source(config: CNNSearch) -> str:
    return config.data


def reward(space: MicroCNN) -> str:
    del space
    return "1 − err2"


def remarks(settings: Mapping[str, CNNSearch | CNNFinal], facts: Mapping[str, Mapping]) -> str:
    """How many images there are in each part."""
    del settings

    def counts(name):
        return ", ".join(f"{n:,} ({part})" for part, n in facts[name]["images"].items())

    if counts("search") == counts("final"):
        return f"Images: {counts('search')}."
    return f"Images: {counts('search')} in the searches, {counts('final')} in final training."
