"""What is asked of a search space: by the search, and by the scripts that store and draw."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

import chex
import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    import networkx

__all__ = [
    "DistinctSpace",
    "ParametricSpace",
    "PredictiveSpace",
    "Space",
    "StoredSpace",
    "checked_actions",
]


class Space(Protocol):
    """A set of architectures that share one tree of parameters.

    All methods are pure and can be jitted. Architectures are data, trees of int32 arrays whose
    shapes depend on the space alone, so that one compiled program serves them all. ``carry`` is
    what passes from a batch to the next (a recurrent state), or an empty tree.

    Methods that take ``params`` take the shared parameters or, of those, an architecture's own,
    which ``rows`` picks: an architecture is trained on them for as long as it takes, so that the
    rest costs nothing in each step.
    """

    @property
    def decisions(self) -> tuple[int, ...]:
        """How many choices there are in each decision that makes an architecture."""

    def decode(self, actions: jax.Array) -> Any:
        """The architecture of ``actions``, int32 [decisions], by :func:`checked_actions`."""

    def init(self, key: jax.Array) -> chex.ArrayTree:
        """The shared parameters."""

    def mask(self, architecture: Any) -> chex.ArrayTree:
        """Which parameters it uses: a prefix of their tree, with leaves that broadcast to them.

        Leaves are boolean arrays, or ``True`` itself where every architecture uses all of it.
        """

    def rows(self, architecture: Any) -> chex.ArrayTree:
        """Where in the parameters its own are: a prefix of their tree.

        Leaves are ``...`` where all of a parameter is taken, as it is, or positions: int32 [n] on
        the first axis of parameters, [a, n] on the second for each place on the first, and so on,
        none of them twice. Along these axes the mask's leaves have the parameters' lengths.
        """

    def num_batches(self, split: chex.ArrayTree) -> int:
        """How many batches there are in a data split."""

    def batch(
        self, split: chex.ArrayTree, step: jax.typing.ArrayLike, key: jax.Array | None
    ) -> chex.ArrayTree:
        """Batch number ``step`` of a data split, around and around.

        With ``key`` it is to train on: it may be shuffled and augmented. Without, it is to measure.
        """

    def start(self, batch: chex.ArrayTree) -> chex.ArrayTree:
        """The carry before the first of several batches such as this one."""

    def loss(
        self,
        params: chex.ArrayTree,
        architecture: Any,
        batch: chex.ArrayTree,
        carry: chex.ArrayTree,
        key: jax.Array | None,
    ) -> tuple[jax.Array, chex.ArrayTree]:
        """The training loss and the next carry; without ``key``, the likelihood's part alone."""

    def score(
        self,
        params: chex.ArrayTree,
        architecture: Any,
        batch: chex.ArrayTree,
        carry: chex.ArrayTree,
    ) -> tuple[tuple[jax.Array, jax.Array], chex.ArrayTree]:
        """In evaluation: a sum over examples, their number, and the next carry."""

    def error(self, mean_score: jax.Array) -> jax.Array:
        """The error, lower is better, of a mean score."""

    def reward(self, error: jax.Array) -> jax.Array:
        """The controller's reward for an error; finite, whatever the error."""


class StoredSpace(Space, Protocol):
    """A space whose architectures can be stored, read and drawn, as the scripts do."""

    def num_parameters(self, architecture: Any) -> int:
        """How many of the shared parameters it uses."""

    def to_json(self, architecture: Any) -> dict[str, Any]:
        """The architecture in a form to store as JSON and to read."""

    def from_json(self, stored: Any) -> Any:
        """The architecture that :meth:`to_json` stored; other entries beside it are left alone.

        Raises:
          ValueError: naming what is wrong with it.
        """

    def graphs(self, architecture: Any) -> "dict[str, networkx.DiGraph]":
        """By the name of a cell its graph, for :func:`wpl_jax.figures.cells.draw`."""


class ParametricSpace(Space, Protocol):
    """A space that says which choices add operations with weights.

    :class:`wpl_jax.search.Balanced` and :class:`wpl_jax.search.MomentumGroups` ask for it.
    """

    @property
    def parametric(self) -> tuple[tuple[bool, ...], ...]:
        """For each decision, for each of its choices, whether it adds an operation with weights."""


class DistinctSpace(Space, Protocol):
    """A space that knows which architectures compute the same.

    :class:`wpl_jax.search.Distinct` asks for it.
    """

    def distinct(self) -> np.ndarray:
        """One architecture of each class of those that compute the same, int32 [n, decisions]."""


class PredictiveSpace(Space, Protocol):
    """A space whose architectures predict classes.

    :class:`wpl_jax.search.Distillation` asks for it.
    """

    def log_probs(
        self,
        params: chex.ArrayTree,
        architecture: Any,
        batch: chex.ArrayTree,
        carry: chex.ArrayTree,
        key: jax.Array | None,
    ) -> tuple[jax.Array, chex.ArrayTree]:
        """Log-probabilities, float [examples, classes], and the next carry.

        With the key that ``loss`` is given, the same is dropped as there; without, nothing is. The
        row of an example that is padding is zeros, which are no log-probabilities.
        """


def checked_actions(actions: npt.ArrayLike, decisions: Sequence[int]) -> jax.Array:
    """The actions of one architecture, for a space's ``decode``.

    Args:
      actions: integers [decisions], the choice in each decision, from 0.
      decisions: how many choices there are in each.

    Returns:
      The same as an int32 array.

    Raises:
      ValueError: for another shape, or a choice that there is not. Inside ``jit`` and ``vmap`` no
        choice is known, and none is checked: JAX would read another operation's weights.
      TypeError: if they are not integers.

    Example:
      >>> from wpl_jax.spaces import checked_actions
      >>> checked_actions([3, 0, 1], decisions=(4, 1, 4))
      Array([3, 0, 1], dtype=int32)
      >>> checked_actions([3, 1, 1], decisions=(4, 1, 4))
      Traceback (most recent call last):
      ...
      ValueError: action 1 must be from 0 to 0, got 1
    """
    array = actions if isinstance(actions, jax.Array) else np.asarray(actions)
    if array.shape != (len(decisions),):
        raise ValueError(
            f"actions must have a choice for each of the {len(decisions)} decisions, got an array "
            f"of shape {array.shape}; for several architectures, use jax.vmap"
        )
    if not jnp.issubdtype(array.dtype, jnp.integer):
        raise TypeError(f"actions must be integers, got {array.dtype}")
    if not isinstance(array, jax.core.Tracer) and getattr(array, "is_fully_addressable", True):
        for number, (action, choices) in enumerate(zip(np.asarray(array), decisions, strict=True)):
            if not 0 <= action < choices:
                raise ValueError(f"action {number} must be from 0 to {choices - 1}, got {action}")
    return jnp.asarray(array, jnp.int32)
