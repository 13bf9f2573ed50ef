"""A network of two cells from scratch: SGD along half a cosine, with running batch norm.

The learning rate falls to its lowest in the last epoch, which is the one that is tested. Batch norm
trains with the statistics of the batch and measures with their running average, which training
steps alone change.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import chex
import jax
import optax

from experiments.spaces.micro_cnn.settings import CNNFinal
from experiments.spaces.sgd import SGDTraining, State
from wpl_jax import data
from wpl_jax.data import Images, Splits
from wpl_jax.search import Data
from wpl_jax.spaces.images import cross_entropy


class CNNTraining(SGDTraining):
    """Image classification with one pair of cells; the carry is batch norm's running average."""

    config: CNNFinal

    def cut(self, corpus: Splits) -> Data:
        return Data(
            data.batches(corpus.train, self.config.batch_size), self._whole(corpus.validation)
        )

    def held_out(self, corpus: Splits) -> dict[str, Images]:
        return {
            "validation": self._whole(corpus.validation),
            "test": self._whole(corpus.test),
        }

    def first_carry(self, batches: Images) -> chex.ArrayTree:
        """The running average before there are any statistics."""
        del batches
        return self.space.init_statistics()

    def begin(self, state: State, batches: Images) -> State:
        """The state at the start of an epoch, through which the running average goes on."""
        return super().begin(state, batches)._replace(carry=state.carry)

    def loss(
        self,
        params: chex.ArrayTree,
        state: State,
        batch: Images,
        key: jax.Array,
        progress: jax.Array,
    ) -> tuple[jax.Array, chex.ArrayTree]:
        """The cross-entropy, with the auxiliary head's, and the next running average."""
        images, labels = batch
        output = self.space.apply(params, state.architecture, images, key=key, progress=progress)
        loss = cross_entropy(output.logits, labels)
        if output.auxiliary is not None:
            loss += self.space.auxiliary * cross_entropy(output.auxiliary, labels)
        step_size = 1 - self.config.statistics_momentum
        return loss, optax.incremental_update(output.statistics, state.carry, step_size)

    def score(
        self, state: State, batch: Images, carry: chex.ArrayTree
    ) -> tuple[tuple[jax.Array, jax.Array], chex.ArrayTree]:
        """In evaluation, what the space's ``score`` gives with the running average."""
        return self.space.score(state.params, state.architecture, batch, carry, state.carry)

    def results(self, state: State, corpus: Any, metrics: Sequence[Mapping]) -> dict[str, object]:
        errors = super().results(state, corpus, metrics)
        return errors | {"multiply_adds": self.space.multiply_adds(self.architecture)}

    def _whole(self, images):
        return data.batches(images, self.config.test_batch_size, pad=True)
