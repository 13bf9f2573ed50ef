"""Images of your own, from a folder with a folder for each class, or from an .npz file."""

import hashlib
import io
import os
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from wpl_jax.data.images import Images, Splits, cached, missing_extra, shrink

# The names of each part, in folders and before _images and _labels in .npz files.
_PARTS = {"train": ("train",), "validation": ("validation", "valid", "val"), "test": ("test",)}
_ALL = "all"  # what a data set that has no parts is called here
_ENDS = [0.8, 0.9]  # how much of it precedes the end of the training and of the validation part

_FOLDERS = (
    "the folders train, validation (or valid, val) and test, with a folder of images for each "
    "class in each of them, or only a folder of images for each class"
)
_ARRAYS = (
    "train_images, train_labels, validation_images, validation_labels (or valid_…, val_…), "
    "test_images and test_labels, or only images and labels"
)


def read_image_dir(path: str | os.PathLike[str], image_size: int | None = None) -> Splits:
    """Reads images of your own, from a folder or an .npz file.

    * A folder with the folders train, validation (or valid, or val) and test, each of which has a
      folder of images for every class. The classes are the folders of train, sorted by their names,
      and numbered from 0. Images may be of any format that Pillow reads. They have one channel
      if all are grey, or else three; transparency is ignored. Hidden files, and files beside the
      folders of parts and classes, are not read.
    * A folder that has only the folders of the classes. The parts are then chosen by a hash of each
      file: about 80 % of the images are for training, 10 % for validation and 10 % for the test.
      An image stays in its part when others are added, and copies of it are in the same part.
    * An .npz file with train_images, train_labels, validation_images, validation_labels (or
      `valid_…`, `val_…`), test_images and test_labels, or with images and labels alone, which are
      split as above. Images are uint8 [n, height, width, channels] or [n, height, width], labels
      are integers [n] or [n, 1] from 0, and other arrays are not read.

    Within a part, images are in the order of the hash, of the file or of the pixels in an .npz
    file, which mixes the classes.

    Images of a folder are decoded once, as those of TFDS are by `load_images`: the arrays are kept
    in wpl_jax/images in the user's cache directory until a file has changed.

    Args:
      path: The folder or file.
      image_size: The height and width that images of a folder are resized to, after cutting off
        what is not in the square at their centre. Those of a file must be square, of a multiple of
        this size (see `shrink`). By default images are read as they are, and must all have one
        size.

    Returns:
      The three splits.

    Raises:
      FileNotFoundError: If there is no such folder or file, or a part of it is missing.
      OSError: If a file cannot be read.
      ValueError: If the images or labels are not as described above. The message names the file or
        folder, and says what to do.
      ImportError: If Pillow is missing.

    Example:
      >>> import tempfile
      >>> from pathlib import Path
      >>> import numpy as np
      >>> from wpl_jax.data import read_image_dir
      >>> pixels = np.random.default_rng(0).integers(0, 256, (100, 8, 8, 3), np.uint8)
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     path = Path(folder, "mine.npz")
      ...     np.savez(path, images=pixels, labels=np.arange(100) % 4)
      ...     splits = read_image_dir(path)
      >>> [len(part.labels) for part in splits], splits.classes
      ([79, 13, 8], 4)
    """
    path = Path(path)
    if image_size is not None and image_size < 1:
        raise ValueError(f"image_size must be at least 1, got {image_size}")
    if path.is_dir():
        return _read_folder(path, image_size)
    if not path.is_file():
        raise FileNotFoundError(
            f"there is no folder or file {path}: name (--image-dir in the experiments) a folder "
            f"with {_FOLDERS}, or an .npz file"
        )
    splits = _read_npz(path)
    if image_size is None:
        return splits
    try:
        return shrink(splits, image_size)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


class _File(NamedTuple):
    """An image in a folder."""

    path: Path
    part: str
    label: int


class _Part(NamedTuple):
    """A part of the data, in the order of the hashes."""

    images: Images
    hashes: npt.NDArray[np.float64]  # from 0 to 1, [n]


def _read_folder(root: Path, image_size: int | None) -> Splits:
    places = _places(root) or {_ALL: root}
    training = places.get("train", root)
    classes = [folder.name for folder in _folders(training)]
    if len(classes) < 2:
        raise ValueError(
            f"{training} has {_listed(classes, 'no folders')}, but there must be two classes or "
            f"more, each a folder of images: name a folder with {_FOLDERS}"
        )
    files = []
    for part, place in places.items():
        for folder in _folders(place):
            if folder.name not in classes:
                raise ValueError(
                    f"{folder} is a class that {training} does not have: add training "
                    f"images of {folder.name}, or remove the folder"
                )
            label = classes.index(folder.name)
            files += [_File(path, part, label) for path in _images_in(folder)]

    def read() -> Splits:
        images, hashes = _decoded([file.path for file in files], image_size)
        labels = np.array([file.label for file in files], np.int32)
        parts = {}
        for part in places:
            chosen = np.flatnonzero([file.part == part for file in files])
            order = chosen[np.argsort(hashes[chosen], kind="stable")]
            pixels = np.stack([images[i] for i in order])
            parts[part] = _Part(Images(_with_channels(pixels), labels[order]), hashes[order])
        return _splits(root, parts, classes)

    name = f"{root.resolve().name}-{image_size or 'unchanged'}"
    return cached("images", name, root, lambda: [file.path for file in files], read)


def _places(root: Path) -> dict[str, Path]:
    """The folder of each part; none if there are only classes."""
    there = [folder.name for folder in _folders(root)]
    found = {part: [name for name in names if name in there] for part, names in _PARTS.items()}
    if not any(found.values()):
        return {}
    for part, names in found.items():
        alternatives = " or ".join(_PARTS[part])
        if not names:
            raise FileNotFoundError(
                f"there is no folder {root / part}: {root} has {_listed(there)}, but needs "
                f"{alternatives} too; move some images of each class there, or leave only a folder "
                "for each class in it, to be split for you"
            )
        if len(names) > 1:
            raise ValueError(f"{root} has {_listed(names)}: keep one of them")
    if unknown := sorted(set(there) - set(sum(found.values(), []))):
        raise ValueError(
            f"{root / unknown[0]} is none of the parts train, validation (or valid, val) and test, "
            f"which {root} is divided into: rename it, or move it elsewhere"
        )
    return {part: root / name for part, [name] in found.items()}


def _folders(folder: Path) -> list[Path]:
    return [path for path in _visible(folder) if path.is_dir()]


def _images_in(folder: Path) -> list[Path]:
    paths = _visible(folder)
    if not paths:
        raise ValueError(f"{folder} has no images: put some there, or remove the folder")
    for path in paths:
        if not path.is_file():
            raise ValueError(
                f"{path} is not a file, but {folder} is a class, which must hold its images "
                "directly: move it elsewhere"
            )
    return paths


def _visible(folder: Path) -> list[Path]:
    """What is in a folder and not hidden, sorted by name."""
    try:
        paths = sorted(folder.iterdir(), key=lambda path: path.name)
    except OSError as error:
        raise OSError(
            f"{folder} cannot be read ({error.strerror}): change its permissions, or move it "
            "elsewhere"
        ) from error
    paths = [path for path in paths if not path.name.startswith(".")]
    for path in paths:
        if path.is_symlink() and not path.exists():
            raise FileNotFoundError(f"{path} is a link that leads nowhere: mend or delete it")
    return paths


def _decoded(
    paths: Sequence[Path], image_size: int | None
) -> tuple[list[npt.NDArray[np.uint8]], npt.NDArray[np.float64]]:
    """The images of the files, all of one shape, and a hash of each file."""
    try:
        from PIL import Image
    except ImportError as error:
        raise missing_extra("a folder of images", "pillow") from error
    Image.init()  # here, before there are threads
    first, _ = _decode(paths[0], image_size)

    def decode(path: Path) -> tuple[npt.NDArray[np.uint8], float]:
        image, hashed = _decode(path, image_size)
        if image.shape[:2] != first.shape[:2]:
            sizes = [
                f"{width} × {height} pixels" for height, width, *_ in (image.shape, first.shape)
            ]
            raise ValueError(
                f"{path} has {sizes[0]}, but {paths[0]} has {sizes[1]}: name one size that all "
                "images are resized to (image_size)"
            )
        return image, hashed

    with ThreadPoolExecutor() as pool:
        decoded = list(pool.map(decode, paths))
    images = [image for image, _ in decoded]
    if any(image.ndim == 3 for image in images):
        images = [image if image.ndim == 3 else np.stack([image] * 3, -1) for image in images]
    return images, np.array([hashed for _, hashed in decoded])


def _decode(path: Path, image_size: int | None) -> tuple[npt.NDArray[np.uint8], float]:
    """An image, [height, width] if it is grey or else [height, width, 3], and its file's hash."""
    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        content = path.read_bytes()
        with Image.open(io.BytesIO(content)) as image:
            if image_size is not None:  # a JPEG is decoded much faster at about this size
                image.draft(None, (2 * image_size, 2 * image_size))
            mode = image.mode
            upright = ImageOps.exif_transpose(image)
            if mode == "P":  # or Pillow warns of palettes with transparency
                upright = upright.convert("RGBA")
            plain = upright.convert("L" if mode in ("1", "L", "LA") else "RGB")
            if image_size is not None:
                plain = ImageOps.fit(plain, (image_size, image_size))
    except UnidentifiedImageError as error:
        raise OSError(
            f"{path} is not an image that Pillow can read: move it elsewhere, or save it as PNG"
        ) from error
    except Exception as error:  # Pillow's decoders share no error type
        raise OSError(
            f"{path} cannot be read ({_in_a_line(error)}): replace it, or move it elsewhere"
        ) from error
    if mode[0] in "IF":
        raise ValueError(
            f"{path} has pixels of more than 8 bits (Pillow's mode {mode}): save it with 8 bits a "
            "channel"
        )
    return np.asarray(plain), _hash(content)


def _read_npz(path: Path) -> Splits:
    prefixes = ["", *(f"{name}_" for names in _PARTS.values() for name in names)]
    known = {f"{prefix}{kind}" for prefix in prefixes for kind in ("images", "labels")}
    try:
        with path.open("rb") as opened, np.load(opened) as file:
            there = list(file.files)
            arrays = {name: np.asarray(file[name]) for name in there if name in known}
    except Exception as error:  # np.load has many errors for what is no, or a damaged, file
        raise OSError(
            f"{path} cannot be read as an .npz file ({_in_a_line(error)}): write it with np.savez"
        ) from error

    parts, shapes = {}, {}
    for part, prefix in _prefixes(path, there).items():
        names = (f"{prefix}images", f"{prefix}labels")
        if missing := [name for name in names if name not in arrays]:
            raise FileNotFoundError(
                f"{path} has no array {missing[0]}, but {_listed(there)}: save it with {_ARRAYS}"
            )
        images = _checked(path, names, *(arrays[name] for name in names))
        hashes = np.array([_hash(image.tobytes()) for image in images.images])
        order = np.argsort(hashes, kind="stable")
        parts[part] = _Part(Images(images.images[order], images.labels[order]), hashes[order])
        shapes[names[0]] = images.images.shape[1:]
    first = next(iter(shapes))
    for name, shape in shapes.items():
        if shape != shapes[first]:
            raise ValueError(
                f"{name} of {path} has images of the shape {shape}, but {first} has "
                f"{shapes[first]}: all images must have one shape, so resize some of them"
            )
    return _splits(path, parts)


def _prefixes(path: Path, there: Sequence[str]) -> dict[str, str]:
    """What the names of each part's arrays begin with."""
    found = {
        part: [name for name in names if {f"{name}_images", f"{name}_labels"} & set(there)]
        for part, names in _PARTS.items()
    }
    if not any(found.values()):
        return {_ALL: ""}
    for names in found.values():
        if len(names) > 1:
            raise ValueError(f"{path} has arrays of {_listed(names)}: keep one of them")
    return {part: f"{(names or [part])[0]}_" for part, names in found.items()}


def _checked(
    path: Path, names: tuple[str, str], images: npt.NDArray[Any], labels: npt.NDArray[Any]
) -> Images:
    """A part of an .npz file, if it is as it must be."""
    of_images, of_labels = (f"{name} of {path}" for name in names)
    if images.dtype != np.uint8:
        raise ValueError(
            f"{of_images} must be uint8, pixels from 0 to 255, got {images.dtype}: convert them, "
            "with (255 * images).astype(np.uint8) if they are from 0 to 1"
        )
    if images.ndim not in (3, 4) or 0 in images.shape or (images.ndim == 4 and images.shape[3] > 4):
        raise ValueError(
            f"{of_images} must be some images [n, height, width, channels], with up to 4 channels, "
            f"or [n, height, width], got the shape {images.shape}: move the axes, or reshape them"
        )
    if labels.dtype.kind not in "iu":
        raise ValueError(
            f"{of_labels} must be integers, the numbers of classes, got {labels.dtype}: convert "
            "them, with np.unique(labels, return_inverse=True)[1] if they are names"
        )
    if labels.shape not in ((len(images),), (len(images), 1)):
        raise ValueError(
            f"{of_labels} must have the shape ({len(images)},), a label for each of {names[0]}, "
            f"got {labels.shape}: save one integer for each image"
        )
    for label in (labels.min(), labels.max()):
        if not 0 <= label < 2**31:
            raise ValueError(
                f"{of_labels} must be the numbers of classes, from 0, got {label}: number them "
                "with np.unique(labels, return_inverse=True)[1]"
            )
    return Images(_with_channels(images), labels.ravel().astype(np.int32))


def _splits(path: Path, parts: Mapping[str, _Part], classes: Sequence[str] | None = None) -> Splits:
    """The parts; split by the hashes if they are one, and checked for classes without images."""
    if _ALL in parts:
        (images, labels), hashes = parts[_ALL]
        cuts = np.searchsorted(hashes, _ENDS)
        splits = Splits(*map(Images, np.split(images, cuts), np.split(labels, cuts)))
        for part, some in splits._asdict().items():
            if not len(some.labels):
                raise ValueError(
                    f"{path} has {len(labels)} images to be split at random, and none of them "
                    f"falls into the {part} part: add more of them, or split them yourself"
                )
    else:
        splits = Splits(*(parts[part].images for part in Splits._fields))

    known = set(splits.train.labels.tolist())
    gap = next((label for label in range(splits.classes) if label not in known), None)
    if gap is not None and classes:  # only by chance
        raise ValueError(
            f"{path} is split at random, and no image of class {classes[gap]} falls into the "
            "training part: add more of them, or split them yourself"
        )
    if gap is not None or len(known) < 2:
        raise ValueError(
            f"{path} has labels up to {splits.classes - 1}, but "
            + (f"no training image of label {gap}" if gap is not None else "there is no other")
            + ": number two classes or more from 0 without gaps, and give each training images"
        )
    return splits


def _hash(content: bytes) -> float:
    """A number from 0 to 1."""
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest()) / 2**64


def _with_channels(images: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    return images if images.ndim == 4 else images[..., None]


def _listed(names: Iterable[str], none: str = "nothing") -> str:
    return ", ".join(names) or none


def _in_a_line(error: Exception) -> str:
    return " ".join(str(error).split())
