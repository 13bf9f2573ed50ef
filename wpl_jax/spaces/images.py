"""Images for a space: batches of a split, augmented to train on, and what is made of logits.

:class:`ImageSpace` has all of it that does not depend on what the architectures are. A split is a
pair of images, uint8 [batches, batch, height, width, channels], and labels, int32 [batches, batch],
where -1 is for padding, which no loss and no score counts.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Annotated, Any

import chex
import jax
import jax.numpy as jnp

from wpl_jax.settings import Count, Range, check
from wpl_jax.spaces.precision import ComputeDtype

__all__ = [
    "ImageSpace",
    "Split",
    "augmented",
    "batch_of",
    "cross_entropy",
    "log_probs",
    "misclassified",
]

Split = tuple[jax.Array, jax.Array]
Augment = Callable[[jax.Array, jax.Array], jax.Array]


def batch_of(
    split: Split, step: jax.typing.ArrayLike, key: jax.Array | None, augment: Augment
) -> tuple[jax.Array, jax.Array]:
    """Batch ``step`` of a split, around and around.

    With a key images are augmented, and every pass over the split has other batches: each place in
    the batch goes around the batches from a start of its own, drawn for the pass. So every image
    comes once a pass, and a device that holds some of the places needs no other.

    Args:
      split: images and labels.
      step: any integer >= 0.
      key: of the augmentation.
      augment: ``augment(images, key)``, of images as they are returned.

    Returns:
      Images, float [batch, height, width, channels], about -2 to 2, and labels, int32 [batch].
    """
    images, labels = split
    turn, place = jnp.divmod(jnp.asarray(step, jnp.int32), len(images))
    if key is None:
        return _scaled(images[place]), labels[place]
    pass_key = jax.random.fold_in(jax.random.key(0), turn)  # one order for all runs
    start = jax.random.randint(pass_key, labels.shape[1:], 0, len(images))
    rows = (place + start) % len(images)
    pick = jax.vmap(lambda column, row: column[row], in_axes=(1, 0))
    return augment(_scaled(pick(images, rows)), key), pick(labels, rows)


def _scaled(images):
    """Pixels from 0 to 255 as floats around 0, where padding and blanks are grey."""
    return (images.astype(jnp.float32) - 127.5) / 64


def augmented(
    images: jax.Array, key: jax.Array, *, crop_padding: int = 0, flip: bool = False, cutout: int = 0
) -> jax.Array:
    """Shift, mirror and blank, each image on its own.

    Args:
      images: float [batch, height, width, channels].
      key: of what is drawn.
      crop_padding: images are shifted by up to so many pixels.
      flip: every other image is mirrored.
      cutout: a square of so many pixels is blanked, at a random place.
    """
    count, height, width, _ = images.shape
    crop_key, flip_key, cut_key = jax.random.split(key, 3)
    if crop_padding:
        pad = crop_padding
        padded = jnp.pad(images, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
        corners = jax.random.randint(crop_key, (count, 2), 0, 2 * pad + 1)

        def crop(image, corner):
            return jax.lax.dynamic_slice(image, (*corner, 0), images.shape[1:])

        images = jax.vmap(crop)(padded, corners)
    if flip:
        flipped = jax.random.bernoulli(flip_key, shape=(count, 1, 1, 1))
        images = jnp.where(flipped, images[:, :, ::-1], images)
    if cutout:
        centres = jax.random.randint(cut_key, (count, 2), 0, jnp.array([[height, width]]))
        low, high = centres - cutout // 2, centres + (cutout + 1) // 2

        def between(size, axis):
            place = jnp.arange(size)[None]
            return (place >= low[:, axis, None]) & (place < high[:, axis, None])

        blank = between(height, 0)[:, :, None] & between(width, 1)[:, None, :]
        images = jnp.where(blank[..., None], 0, images)
    return images


def cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Mean cross-entropy in nats of the labels that are not negative.

    Args:
      logits: float [batch, classes].
      labels: int32 [batch]; a negative one is padding.
    """
    there = labels >= 0
    picked = jnp.take_along_axis(jax.nn.log_softmax(logits), jnp.maximum(labels, 0)[:, None], 1)
    return -jnp.sum(jnp.where(there, picked[:, 0], 0)) / jnp.maximum(there.sum(), 1)


def log_probs(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Log-probabilities of the classes, float [batch, classes]; zeros where there is padding.

    Args:
      logits: float [batch, classes].
      labels: int32 [batch]; a negative one is padding.
    """
    return jnp.where((labels >= 0)[:, None], jax.nn.log_softmax(logits), 0.0)


def misclassified(logits: jax.Array, labels: jax.Array) -> tuple[jax.Array, jax.Array]:
    """How many images are misclassified, and how many there are; padding counts in neither.

    An image whose logits are not all finite makes the first NaN.

    Args:
      logits: float [batch, classes].
      labels: int32 [batch]; a negative one is padding.
    """
    wrong = jnp.where(jnp.isfinite(logits).all(-1), logits.argmax(-1) != labels, jnp.nan)
    there = labels >= 0
    total = jnp.sum(jnp.where(there, wrong, 0))
    return total, jnp.sum(there).astype(total.dtype)


@dataclasses.dataclass(frozen=True)
class ImageSpace:
    """What spaces of image classifiers have in common: their data, what is trained and measured.

    A subclass has ``apply(params, architecture, images, statistics=None, *, key=None)``, whose
    result has ``logits``, float [batch, classes]. A data split is a pair of images, uint8 [batches,
    batch, height, width, channels], and labels, int32 [batches, batch], where -1 is for padding,
    which no loss and no score counts (see :func:`wpl_jax.data.batches`); by the statistics of the
    batch it would be normalised with the rest, so measure padded batches by running ones.
    """

    crop_padding: Annotated[int, Range(0, 1_000)] = 4
    """In training images are shifted by up to so many pixels, at random; 0 for not."""
    flip: bool = True
    """In training every other image is mirrored, at random."""
    cutout: Count = 0
    """In training a square of so many pixels is blanked, at a random place; 0 for none."""
    compute_dtype: ComputeDtype = "float32"
    """What images are within the network. bfloat16: half the bits, for a GPU or TPU; \
parameters, statistics and the loss stay float32."""

    def __post_init__(self) -> None:
        """Refuse what cannot work."""
        check(self)

    def apply(
        self,
        params: chex.ArrayTree,
        architecture: Any,
        images: jax.Array,
        statistics: chex.ArrayTree | None = None,
        key: jax.Array | None = None,
    ) -> Any:
        """What an architecture makes of images."""
        raise NotImplementedError

    def num_batches(self, split: Split) -> int:
        """How many batches there are in a split."""
        return len(split[0])

    def batch(
        self, split: Split, step: jax.typing.ArrayLike, key: jax.Array | None = None
    ) -> tuple[jax.Array, jax.Array]:
        """Batch ``step`` of a split, around and around.

        With a key images are augmented, and every pass over the split has other batches; see
        :func:`wpl_jax.spaces.images.batch_of`.

        Args:
          split: images, uint8 [batches, batch, height, width, channels], and labels.
          step: any integer >= 0.
          key: of the augmentation.

        Returns:
          Images, float [batch, height, width, channels], about -2 to 2, and labels, int32 [batch].
        """
        augment = functools.partial(
            augmented, crop_padding=self.crop_padding, flip=self.flip, cutout=self.cutout
        )
        return batch_of(split, step, key, augment)

    def start(self, batch: tuple[jax.Array, jax.Array]) -> tuple[()]:
        """The carry, of which images need none."""
        del batch
        return ()

    def loss(
        self,
        params: chex.ArrayTree,
        architecture: Any,
        batch: tuple[jax.Array, jax.Array],
        carry: tuple[()] = (),
        key: jax.Array | None = None,
    ) -> tuple[jax.Array, tuple[()]]:
        """Mean cross-entropy in nats an image; with a key, as in training."""
        images, labels = batch
        output = self.apply(params, architecture, images, key=key)
        return cross_entropy(output.logits, labels), carry

    def log_probs(
        self,
        params: chex.ArrayTree,
        architecture: Any,
        batch: tuple[jax.Array, jax.Array],
        carry: tuple[()] = (),
        key: jax.Array | None = None,
    ) -> tuple[jax.Array, tuple[()]]:
        """Log-probabilities of the classes, float [batch, classes]; with a key, as in training."""
        images, labels = batch
        logits = self.apply(params, architecture, images, key=key).logits
        return log_probs(logits, labels), carry

    def score(
        self,
        params: chex.ArrayTree,
        architecture: Any,
        batch: tuple[jax.Array, jax.Array],
        carry: tuple[()] = (),
        statistics: chex.ArrayTree | None = None,
    ) -> tuple[tuple[jax.Array, jax.Array], tuple[()]]:
        """Evaluation: how many images are misclassified, and how many there are.

        An image whose logits are not all finite makes the first NaN.
        """
        images, labels = batch
        logits = self.apply(params, architecture, images, statistics).logits
        return misclassified(logits, labels), carry

    def error(self, mean_score: jax.Array) -> jax.Array:
        """The error rate, from 0 to 1."""
        return mean_score

    def reward(self, error: jax.Array) -> jax.Array:
        """The controller's reward: the accuracy; 0 for an error that is not finite."""
        return jnp.where(jnp.isfinite(error), 1 - error, 0.0)
