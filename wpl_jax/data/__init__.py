"""Data sets as arrays in memory: images, and texts (:mod:`wpl_jax.data.text`)."""

from wpl_jax.data.image_dir import read_image_dir
from wpl_jax.data.images import Images, Splits, batches, load_images, shrink
from wpl_jax.data.text import Text, load_text, read_text_dir, windows

__all__ = [
    "Images",
    "Splits",
    "Text",
    "batches",
    "load_images",
    "load_text",
    "read_image_dir",
    "read_text_dir",
    "shrink",
    "windows",
]
