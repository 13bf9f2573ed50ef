"""What serves any space: SGD with momentum whose learning rate falls along half a cosine."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax

from experiments.running import records
from experiments.running.progress import Diverged
from experiments.spaces.settings import FinalRun, SearchRun
from experiments.spaces.training import Training
from wpl_jax.settings import Nonnegative, Positive, Share, Size, Unfit


@dataclasses.dataclass(frozen=True)
class SGDSearch(SearchRun):
    """Settings of a search whose shared parameters are trained by SGD along half a cosine."""

    learning_rate: Positive = 0.05
    """Of SGD for the shared parameters, at the start."""
    learning_rate_min: Nonnegative = 0.0005
    """What it falls to by the end of the last epoch, along half a cosine."""
    momentum: Share = 0.9
    """Nesterov's."""
    clip: Positive = 5.0
    """What the norm of the gradient is clipped at."""
    weight_decay: Nonnegative = 1e-4
    """The L2 strength alpha of eq. 8."""

    def __post_init__(self) -> None:
        """Refuse what cannot work."""
        super().__post_init__()
        check_fall(self)

    def learning_rate_at(self, step: jax.typing.ArrayLike) -> jax.Array:
        """It falls along half a cosine, over all epochs."""
        lowest = self.learning_rate_min / self.learning_rate
        steps = self.epochs * self.steps_per_epoch
        return optax.cosine_decay_schedule(self.learning_rate, steps, lowest)(step)

    def optimizer(self) -> optax.GradientTransformation:
        """SGD with Nesterov's momentum."""
        return optax.chain(
            optax.clip_by_global_norm(self.clip),
            optax.add_decayed_weights(self.weight_decay),
            optax.sgd(self.learning_rate_at, self.momentum, nesterov=True),
        )


@dataclasses.dataclass(frozen=True)
class SGDFinal(FinalRun):
    """Settings of a training from scratch by SGD along half a cosine."""

    learning_rate: Positive = 0.05
    """Of SGD, at the start."""
    learning_rate_min: Nonnegative = 0.0
    """What it falls to by the end of the last epoch, along half a cosine."""
    momentum: Share = 0.9
    """Nesterov's."""
    clip: Positive = 5.0
    """What the norm of the gradient is clipped at."""
    weight_decay: Nonnegative = 2e-4
    """The L2 strength alpha of eq. 8."""

    steps_per_call: Size = 10
    """Training steps in one call of the compiled program: what a signal to stop waits for."""

    def __post_init__(self) -> None:
        """Refuse what cannot work."""
        super().__post_init__()
        check_fall(self)

    def learning_rate_at(self, progress: jax.typing.ArrayLike) -> jax.Array:
        """Where a share of all training steps has passed."""
        lowest = self.learning_rate_min / self.learning_rate
        return optax.cosine_decay_schedule(self.learning_rate, 1, lowest)(progress)


def check_fall(config: SGDSearch | SGDFinal) -> None:
    """Refuse a learning rate that rises."""
    if config.learning_rate_min > config.learning_rate:
        wanted = f"at most --learning-rate ({config.learning_rate})"
        raise Unfit(config, "learning_rate_min", wanted)


class State(NamedTuple):
    """All that a training knows; saved and restored, it goes on bit for bit."""

    params: chex.ArrayTree
    opt_state: chex.ArrayTree
    carry: chex.ArrayTree  # what passes from a training batch to the next
    architecture: Any  # of these, see Training
    key: jax.Array
    trained: jax.Array
    loss: jax.Array
    steps: jax.Array
    skipped: jax.Array
    streak: jax.Array


class SGDTraining(Training):
    """The training of an architecture by what its space says of itself; the last epoch counts."""

    config: SGDFinal

    @property
    def steps_per_call(self) -> int:
        return self.config.steps_per_call

    def init(self, key: jax.Array, batches: chex.ArrayTree) -> State:
        init_key, key = jax.random.split(key)
        params = self.own(self.space.init(init_key))
        return State(
            params=params,
            opt_state=self._tx().init(params),
            carry=self.first_carry(batches),
            **self.common(key),
        )

    def first_carry(self, batches: chex.ArrayTree) -> chex.ArrayTree:
        """The carry before the first of these batches."""
        return self.space.start(self.space.batch(batches, 0, None))

    def loss(
        self,
        params: chex.ArrayTree,
        state: State,
        batch: chex.ArrayTree,
        key: jax.Array,
        progress: jax.Array,
    ) -> tuple[jax.Array, chex.ArrayTree]:
        """The training loss, and the carry that the next batch is given."""
        del progress
        return self.space.loss(params, state.architecture, batch, state.carry, key)

    def held_out(self, corpus: Any) -> dict[str, chex.ArrayTree]:
        """The batches of the parts "validation" and "test", all of both."""
        return {
            "validation": self.task.cut(self.config, corpus).validation,
            "test": self.task.test(self.config, corpus),
        }

    def score(
        self, state: State, batch: chex.ArrayTree, carry: chex.ArrayTree
    ) -> tuple[tuple[jax.Array, jax.Array], chex.ArrayTree]:
        """In evaluation, what the space's ``score`` gives."""
        return self.space.score(state.params, state.architecture, batch, carry)

    def begin(self, state: State, batches: chex.ArrayTree) -> State:
        return super().begin(state, batches)._replace(carry=self.first_carry(batches))

    def attempt(
        self, state: State, batches: chex.ArrayTree, key: jax.Array
    ) -> tuple[jax.Array, chex.ArrayTree, State]:
        config, space = self.config, self.space
        batch_key, loss_key = jax.random.split(key)
        batch = space.batch(batches, state.trained, batch_key)
        progress = state.trained / (config.epochs * space.num_batches(batches))
        (loss, carry), grads = jax.value_and_grad(self.loss, has_aux=True)(
            state.params, state, batch, loss_key, progress
        )
        direction, opt_state = self._tx().update(grads, state.opt_state, state.params)
        updates = optax.tree.scale(-config.learning_rate_at(progress), direction)
        moved = state._replace(
            params=optax.apply_updates(state.params, updates), opt_state=opt_state, carry=carry
        )
        return loss, grads, moved

    def finish(
        self, state: State, batches: chex.ArrayTree, validation: chex.ArrayTree
    ) -> tuple[State, jax.Array]:
        """The end of an epoch: its validation error, and nothing else."""
        del batches
        return state, self.error(state, validation)

    def results(self, state: State, corpus: Any, metrics: Sequence[Mapping]) -> dict[str, object]:
        del metrics
        error, name = jax.jit(self.error), records.key(self.task.error)
        splits = self.held_out(corpus)
        errors = {f"{part}_{name}": float(error(state, splits[part])) for part in splits}
        if not all(map(math.isfinite, errors.values())):
            raise Diverged("the network gives no finite outputs; try a lower --learning-rate")
        return errors

    def error(self, state: State, split: chex.ArrayTree) -> jax.Array:
        """Of all the batches of a split."""
        space = self.space

        def score(carry, step):
            return self.score(state, space.batch(split, step, None), carry)[::-1]

        steps = jnp.arange(space.num_batches(split))
        start = space.start(space.batch(split, 0, None))
        _, (totals, counts) = jax.lax.scan(score, start, steps)
        return space.error(totals.sum() / counts.sum())

    def _tx(self):
        """The direction of a step, to be multiplied by the learning rate."""
        config = self.config
        return optax.chain(
            optax.clip_by_global_norm(config.clip),
            optax.add_decayed_weights(config.weight_decay),
            optax.trace(config.momentum, nesterov=True),
        )
