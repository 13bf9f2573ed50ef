"""Data as arrays in memory: :mod:`wpl_jax.data.images` and :mod:`wpl_jax.data.text`."""

from wpl_jax.data.images import Images, Splits, batches, load_images
from wpl_jax.data.text import Text, load_text, read_text_dir, windows

__all__ = [
    "Images",
    "Splits",
    "Text",
    "batches",
    "load_images",
    "load_text",
    "read_text_dir",
    "windows",
]
