"""What all trainings from scratch share: steps, of which those that are not finite are skipped."""

import abc
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import chex
import jax
import jax.numpy as jnp
import optax

from wpl_jax.search import Data


@dataclasses.dataclass(frozen=True, eq=False)
class Training(abc.ABC):
    """The training of one architecture as pure functions of its state.

    The state, which is all that a training knows, is a named tuple with, among others::

        architecture: Any  # what steps read, so that one compiled program trains them all
        key: jax.Array  # shape=(), a typed key
        trained: jax.Array  # shape=(), int32: steps, since the start
        loss: jax.Array  # shape=(), float32: the sum over this epoch's steps
        steps: jax.Array  # shape=(), int32: this epoch's, those skipped apart
        skipped: jax.Array  # shape=(), int32: steps whose loss or gradient was not finite
        streak: jax.Array  # shape=(), int32: how many of the last steps were, in a row
    """

    config: Any
    architecture: Any
    task: Any  # an experiments.spaces.Task

    @property
    def space(self) -> Any:
        return self.config.search_space

    @property
    @abc.abstractmethod
    def steps_per_call(self) -> int:
        """Training steps in one call of :meth:`train`: what a signal to stop waits for."""

    def cut(self, corpus: Any) -> Data:
        """What training reads of the data."""
        return self.task.cut(self.config, corpus)

    @abc.abstractmethod
    def init(self, key: jax.Array, batches: chex.ArrayTree) -> Any:
        """The state at the start of a training on these batches."""

    def common(self, key: jax.Array) -> dict[str, Any]:
        """What every state has, at the start."""
        zero = jnp.zeros([], jnp.int32)
        counts = dict.fromkeys(("trained", "steps", "skipped", "streak"), zero)
        return {"architecture": self.architecture, "key": key, "loss": jnp.zeros([]), **counts}

    def begin(self, state: Any, batches: chex.ArrayTree) -> Any:
        """The state at the start of an epoch."""
        del batches
        return state._replace(loss=jnp.zeros_like(state.loss), steps=jnp.zeros_like(state.steps))

    @abc.abstractmethod
    def attempt(
        self, state: Any, batches: chex.ArrayTree, key: jax.Array
    ) -> tuple[jax.Array, chex.ArrayTree, Any]:
        """The loss of the next step, its gradient, and the state after it, if they are finite."""

    def skip(self, state: Any) -> Any:
        """The state after a step whose loss or gradient is not finite."""
        return state

    @abc.abstractmethod
    def finish(
        self, state: Any, batches: chex.ArrayTree, validation: chex.ArrayTree
    ) -> tuple[Any, jax.Array]:
        """The end of an epoch: its validation error, and what follows from it."""

    def notes(self, state: Any) -> dict[str, float]:
        """What the record of an epoch has beside loss and error."""
        del state
        return {}

    @abc.abstractmethod
    def results(self, state: Any, corpus: Any, metrics: Sequence[Mapping]) -> dict[str, object]:
        """What the summary says of the end: errors on validation and test data, all of them.

        Raises:
          Diverged: if there is nothing to test.
        """

    def own(self, params: chex.ArrayTree) -> chex.ArrayTree:
        """The shared parameters, those that the architecture does not use being zero.

        Zero they stay: they have no gradient, and nothing to decay.
        """
        mask = jax.tree.broadcast(self.space.mask(self.architecture), params)
        return jax.tree.map(lambda m, p: jnp.where(m, p, 0), mask, params)

    def train(self, state: Any, batches: chex.ArrayTree) -> Any:
        """Train on the next ``steps_per_call`` batches, or as many as the epoch has left."""
        size = self.space.num_batches(batches)
        place = state.trained % size
        stop = state.trained + jnp.minimum(self.steps_per_call, size - place)
        state = optax.tree.where(place == 0, self.begin(state, batches), state)
        return jax.lax.while_loop(
            lambda state: state.trained < stop, lambda state: self._step(state, batches), state
        )

    def _step(self, state, batches):
        """Train on a batch; one whose loss or gradient is not finite changes no weight."""
        key = jax.random.fold_in(state.key, state.trained)
        loss, grads, moved = self.attempt(state, batches, key)
        moved = moved._replace(
            loss=state.loss + loss, steps=state.steps + 1, streak=jnp.zeros_like(state.streak)
        )
        stayed = self.skip(state)._replace(skipped=state.skipped + 1, streak=state.streak + 1)
        finite = jnp.isfinite(loss) & jnp.isfinite(optax.tree.norm(grads))
        return optax.tree.where(finite, moved, stayed)._replace(trained=state.trained + 1)
