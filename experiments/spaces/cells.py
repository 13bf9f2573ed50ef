"""Architectures that no search finds: random ones, and those in files."""

import json
from pathlib import Path
from typing import Any, TypeVar

import jax
import jax.numpy as jnp

from experiments.spaces.settings import InSpace
from wpl_jax.spaces import Space

Settings = TypeVar("Settings", bound=InSpace)


def random_actions(space: Space, seed: int) -> jax.Array:
    """Decisions drawn uniformly, the same for a seed wherever a random architecture is meant."""
    decisions = jnp.array(space.decisions)
    key = jax.random.split(jax.random.key(seed), 3)[2]
    return jax.random.randint(key, decisions.shape, 0, decisions)


def restored(config: Settings, stored: Any) -> tuple[Settings, Any]:
    """What a space has stored of an architecture, and the settings with as many nodes as it has."""
    values = stored.values() if isinstance(stored, dict) else ()
    cell = [value for value in values if isinstance(value, list)]
    if cell and hasattr(config.search_space, "nodes"):
        config = config.with_space(nodes=len(cell[0]))
    return config, config.search_space.from_json(stored)


def read(config: Settings, path: Path) -> tuple[Settings, Any]:
    """The architecture in a file, and the settings with as many nodes as it has.

    Raises:
      ValueError: naming the file and what is wrong with it.
    """
    try:
        return restored(config, json.loads(path.read_bytes()))
    except Exception as error:  # the system's, JSON's, what a space does not expect, depth, size
        raise ValueError(
            f"{path} is not an architecture of --space {config.space}: "
            f"{'' if isinstance(error, ValueError) else f'{type(error).__name__}: '}{error}"
        ) from error
