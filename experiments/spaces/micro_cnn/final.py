"""A network of two cells from scratch: SGD along half a cosine, with running batch norm.

The learning rate falls to its lowest in the last epoch, which is the one that is tested. Batch norm
trains with the statistics of the batch and measures with their running average, which training
steps alone change.
"""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax

from experiments.running.progress import Diverged
from experiments.spaces.final_settings import CNNFinal
from experiments.spaces.training import Data, Training
from wpl_jax import data
from wpl_jax.data import Images, Splits
from wpl_jax.spaces.micro_cnn import Architecture, cross_entropy


class State(NamedTuple):
    """All that a training knows; saved and restored, it goes on bit for bit."""

    params: chex.ArrayTree
    opt_state: chex.ArrayTree
    statistics: chex.ArrayTree  # of batch norm: the running average
    architecture: Architecture  # so that one compiled program trains them all
    key: jax.Array  # of these, see Training
    trained: jax.Array
    loss: jax.Array
    steps: jax.Array
    skipped: jax.Array
    streak: jax.Array


class CNNTraining(Training):
    """Image classification with one pair of cells."""

    config: CNNFinal

    @property
    def steps_per_call(self) -> int:
        return self.config.steps_per_call

    def cut(self, corpus: Splits) -> Data:
        return Data(
            data.batches(corpus.train, self.config.batch_size), self._whole(corpus.validation)
        )

    def init(self, key: jax.Array) -> State:
        init_key, key = jax.random.split(key)
        params = self.own(self.space.init(init_key))
        zero = jnp.zeros([], jnp.int32)
        return State(
            params=params,
            opt_state=self._tx().init(params),
            statistics=self.space.init_statistics(),
            architecture=self.architecture,
            key=key,
            trained=zero,
            loss=jnp.zeros([]),
            steps=zero,
            skipped=zero,
            streak=zero,
        )

    def attempt(
        self, state: State, batches: Images, key: jax.Array
    ) -> tuple[jax.Array, chex.ArrayTree, State]:
        config, space = self.config, self.space
        batch_key, drop_key = jax.random.split(key)
        images, labels = space.batch(batches, state.trained, batch_key)
        progress = state.trained / (config.epochs * space.num_batches(batches))

        def loss(params):
            output = space.apply(
                params, state.architecture, images, key=drop_key, progress=progress
            )
            loss = cross_entropy(output.logits, labels)
            if output.auxiliary is not None:
                loss += space.auxiliary * cross_entropy(output.auxiliary, labels)
            return loss, output.statistics

        (loss_value, statistics), grads = jax.value_and_grad(loss, has_aux=True)(state.params)
        direction, opt_state = self._tx().update(grads, state.opt_state, state.params)
        updates = optax.tree.scale(-config.learning_rate_at(progress), direction)
        moved = state._replace(
            params=optax.apply_updates(state.params, updates),
            opt_state=opt_state,
            statistics=optax.incremental_update(
                statistics, state.statistics, 1 - config.statistics_momentum
            ),
        )
        return loss_value, grads, moved

    def finish(self, state: State, batches: Images, validation: Images) -> tuple[State, jax.Array]:
        """The end of an epoch: its validation error rate, and nothing else."""
        del batches
        return state, self.error_rate(state, validation)

    def results(
        self, state: State, corpus: Splits, metrics: Sequence[Mapping]
    ) -> dict[str, object]:
        error_rate = jax.jit(self.error_rate)
        rates = {
            f"{name}_error_rate": float(error_rate(state, self._whole(part)))
            for name, part in (("validation", corpus.validation), ("test", corpus.test))
        }
        if not all(map(math.isfinite, rates.values())):
            raise Diverged("the network gives no finite logits; try a lower --learning-rate")
        return rates | {"multiply_adds": self.space.multiply_adds(self.architecture)}

    def error_rate(self, state: State, images: Images) -> jax.Array:
        """Of all the images of batches that may be padded, from 0 to 1."""
        space = self.space

        def score(_, step):
            batch = space.batch(images, step)
            return space.score(state.params, state.architecture, batch, (), state.statistics)[::-1]

        steps = jnp.arange(space.num_batches(images))
        _, (totals, counts) = jax.lax.scan(score, (), steps)
        return space.error(totals.sum() / counts.sum())

    def _whole(self, images):
        return data.batches(images, self.config.test_batch_size, pad=True)

    def _tx(self):
        """The direction of a step, to be multiplied by the learning rate."""
        config = self.config
        return optax.chain(
            optax.clip_by_global_norm(config.clip),
            optax.add_decayed_weights(config.weight_decay),
            optax.trace(config.momentum, nesterov=True),
        )
