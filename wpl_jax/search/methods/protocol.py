"""What a search asks of a method."""

from typing import Any, ClassVar, NamedTuple, Protocol

import chex
import jax
import optax

from wpl_jax.spaces import Space

__all__ = ["Method", "Trainee"]


class Trainee(NamedTuple):
    """An architecture whose turn it is."""

    actions: jax.Array  # shape=(decisions,), int32
    architecture: Any
    mask: chex.ArrayTree  # of the weights that it trains on: True, or booleans that broadcast
    epoch: jax.Array  # shape=(), int32: how many epochs were finished before


class Method(Protocol):
    """What keeps architectures that share weights from undoing each other's training.

    A method is a frozen dataclass of settings, and its functions are pure. It may remember things
    in two places. What it knows of each weight belongs in the optimiser's state, as something of
    the parameters' shape: an architecture then trains on its own rows of it, and outside of its
    mask it does not change, without the method doing anything for it. All else is the ``state``
    that ``init`` makes and ``after`` moves on.

    ``params`` and ``opt_state`` are an architecture's own rows, unless the method is ``whole``.
    """

    needs: ClassVar[tuple[str, ...]]
    """What it reads of a space beside what is asked of every :class:`~wpl_jax.spaces.Space`."""

    whole: ClassVar[bool]
    """Whether training reads weights that are not the architecture's own.

    Then it is given all of them, and gradients outside of the mask are set to 0. It is slower.
    """

    def wrap(
        self, optimizer: optax.GradientTransformation
    ) -> optax.GradientTransformationExtraArgs:
        """The optimiser to train with; its ``update`` takes a ``mask``."""

    def init(self, space: Space) -> chex.ArrayTree:
        """What it remembers at the start."""

    def before(
        self, space: Space, state: chex.ArrayTree, opt_state: chex.ArrayTree, trainee: Trainee
    ) -> chex.ArrayTree:
        """The optimiser's state that an architecture's training begins with."""

    def gradient(
        self,
        space: Space,
        state: chex.ArrayTree,
        opt_state: chex.ArrayTree,
        params: chex.ArrayTree,
        architecture: Any,
        batch: chex.ArrayTree,
        carry: chex.ArrayTree,
        key: jax.Array,
    ) -> tuple[tuple[jax.Array, chex.ArrayTree], chex.ArrayTree]:
        """The loss of a training step and the next carry, and the gradient, like ``params``."""

    def after(
        self,
        space: Space,
        state: chex.ArrayTree,
        opt_state: chex.ArrayTree,
        params: chex.ArrayTree,
        trainee: Trainee,
        validation: chex.ArrayTree,
        key: jax.Array,
    ) -> tuple[chex.ArrayTree, chex.ArrayTree]:
        """``state`` and ``opt_state`` once an architecture has trained.

        ``validation`` is the split of the data that nothing is trained on.
        """

    def end_epoch(self, opt_state: chex.ArrayTree, epochs: jax.Array) -> chex.ArrayTree:
        """The optimiser's state, all of it, after an epoch; ``epochs`` were finished with it."""
