"""Batches of images: their order, and each augmentation."""

import functools
import itertools
from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import jit
from plain_micro_cnn import ODD, PLAIN

from wpl_jax.spaces.micro_cnn import MicroCNN


@functools.partial(jit, static_argnums=0)
def batch(space, split, step, key=None):
    return space.batch(split, step, key)


def told_apart(batches=5, size=4, shape=(3, 2, 1)):
    """A split whose images are of one grey each, the label."""
    labels = np.arange(batches * size, dtype=np.int32).reshape(batches, size)
    images = np.broadcast_to(labels[..., None, None, None], (*labels.shape, *shape))
    return images.astype(np.uint8), labels


def grey(labels):
    return (np.asarray(labels, np.float32) - 127.5) / 64


def test_batches_go_around_without_a_key():
    split = told_apart()
    assert ODD.num_batches(split) == 5
    for step in range(11):
        images, labels = batch(ODD, split, jnp.int32(step))
        np.testing.assert_array_equal(labels, split[1][step % 5])
        np.testing.assert_array_equal(images, grey(split[0][step % 5]))
    assert images.dtype == jnp.float32 and ODD.start((images, labels)) == ()
    ends = batch(ODD, (np.array([0, 255], np.uint8).reshape(1, 2, 1, 1, 1), split[1]), 0)[0]
    np.testing.assert_allclose(np.ravel(ends), [-127.5 / 64, 127.5 / 64])


def test_a_pass_with_a_key_has_every_image_once():
    """Labels stay with images, images with their places, and passes differ."""
    split, passes = told_apart(), []
    for turn in range(4):
        seen = []
        for i in range(5):
            images, labels = batch(ODD, split, jnp.int32(5 * turn + i), jax.random.key(turn))
            np.testing.assert_array_equal(
                images, np.broadcast_to(grey(labels)[:, None, None, None], images.shape)
            )
            seen.append(np.asarray(labels))
        assert sorted(np.ravel(seen)) == list(range(20))
        np.testing.assert_array_equal(np.sort(seen, axis=0), split[1])
        passes.append(seen)
    sets = [{frozenset(labels.tolist()) for labels in seen} for seen in passes]
    assert all(a != b for a, b in itertools.combinations(sets, 2))
    again = batch(ODD, split, jnp.int32(5), jax.random.key(9))[1]  # of whatever key
    np.testing.assert_array_equal(again, passes[1][0])


AUGMENTED = (9, 8, 2)  # the shape of an image


@functools.cache
def augment(**options):
    """Images of one photograph, as a batch of 400, and the photograph, scaled."""
    space = MicroCNN(image_shape=AUGMENTED, **{**PLAIN, **options})
    photograph = np.random.default_rng(0).integers(1, 255, AUGMENTED).astype(np.uint8)
    split = np.broadcast_to(photograph, (1, 400, *AUGMENTED)), np.zeros((1, 400), np.int32)
    first, same, other = (
        np.asarray(batch(space, split, 0, jax.random.key(k))[0]) for k in (0, 0, 1)
    )
    np.testing.assert_array_equal(first, same)
    assert (first != other).any()
    plain = np.asarray(batch(space, split, 0)[0])
    scaled = (photograph.astype(np.float32) - 127.5) / 64
    np.testing.assert_array_equal(plain, np.broadcast_to(scaled, plain.shape))
    return first, scaled


def assert_about_uniform(images, candidates):
    """Each image is one of the candidates, of given probabilities."""
    flat = np.array([image.ravel() for image, _ in candidates])
    equal = (images.reshape(len(images), 1, -1) == flat[None]).all(-1)
    assert (equal.sum(1) == 1).all()
    p = np.array([probability for _, probability in candidates])
    np.testing.assert_allclose(p.sum(), 1)
    deviation = (equal.mean(0) - p) / np.sqrt(p * (1 - p) / len(images))
    assert np.abs(deviation).max() < 4.5


def test_crops():
    """Every shift, of what is outside grey."""
    images, photograph = augment(crop_padding=2)
    padded = np.pad(photograph, ((2, 2), (2, 2), (0, 0)))
    corners = itertools.product(range(5), range(5))
    assert_about_uniform(images, [(padded[i : i + 9, j : j + 8], 1 / 25) for i, j in corners])


def test_flips():
    images, photograph = augment(flip=True)
    assert_about_uniform(images, [(photograph, 0.5), (photograph[:, ::-1], 0.5)])


@pytest.mark.parametrize("size", [3, 4])
def test_cutout(size):
    """A square around any pixel, as much of it as is in the image."""
    images, photograph = augment(cutout=size)
    squares = Counter()
    for i, j in itertools.product(range(9), range(8)):
        rows = max(i - size // 2, 0), i - size // 2 + size
        columns = max(j - size // 2, 0), j - size // 2 + size
        cut = photograph.copy()
        cut[slice(*rows), slice(*columns)] = 0
        squares[cut.tobytes()] += 1 / 72
    shape = photograph.shape
    candidates = [(np.frombuffer(cut, np.float32).reshape(shape), p) for cut, p in squares.items()]
    assert_about_uniform(images, candidates)
    blank = (images == 0).all(-1).sum((1, 2))
    assert blank.max() == size**2 and blank.min() >= (size // 2) ** 2


def test_all_augmentations_together():
    """And all that is grey is where the photograph is not."""
    images, photograph = augment(crop_padding=2, flip=True, cutout=3)
    pixels = {pixel.tobytes() for pixel in photograph.reshape(-1, 2)}
    grey_ = (images == 0).all(-1)
    assert all(pixel.tobytes() in pixels for pixel in images[~grey_][::50])
    assert 0 < grey_.mean() < 0.5 and len(np.unique(images, axis=0)) > 350
