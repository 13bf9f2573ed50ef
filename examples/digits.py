"""What the examples share: handwritten digits as tasks, and a table of accuracies."""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import jax
import numpy as np

from wpl_jax.data import Images, load_images


class Digits(NamedTuple):
    """A batch of digits, or one of them without the leading axis."""

    images: np.ndarray | jax.Array  # (n, 784), float32 in [0, 1]
    labels: np.ndarray | jax.Array  # (n,), int32


class Task(NamedTuple):
    train: Digits
    test: Digits


def load(classes: Iterable[int] = range(10), turned: bool = False) -> Task:
    """The digits of some classes, counted from the lowest; if turned, by a quarter."""
    classes = sorted(classes)

    def part(data: Images) -> Digits:
        data = Images(*(x[np.isin(data.labels, classes)] for x in data))
        images = np.rot90(data.images, axes=(1, 2)) if turned else data.images
        return Digits(images.reshape(len(images), -1) / np.float32(255), data.labels - classes[0])

    splits = load_images("mnist5k")
    return Task(part(splits.train), part(splits.test))


def batches(data: Digits, steps: int, size: int = 64) -> Iterator[Digits]:
    """The same random batches in every call."""
    rng = np.random.default_rng(0)
    for _ in range(steps):
        index = rng.integers(len(data.labels), size=size)
        yield Digits(data.images[index], data.labels[index])


def show(columns: Iterable[str], rows: dict[str, Iterable[float | jax.Array | None]]) -> None:
    """Prints accuracies in percent; None is none."""
    columns = list(columns)
    print(f"{'test accuracy in %':32}" + "".join(f"{column:>10}" for column in columns))
    for name, values in rows.items():
        cells = ["-" if value is None else f"{100 * float(value):.1f}" for value in values]
        print(f"{name:32}" + "".join(f"{cell:>10}" for cell in cells))
