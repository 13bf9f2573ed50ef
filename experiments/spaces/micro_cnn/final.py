"""A network of two cells from scratch, with drop-path and an auxiliary head."""

import chex
import jax

from experiments.spaces.images import ImageTraining
from experiments.spaces.micro_cnn.settings import CNNFinal
from wpl_jax.data import Images
from wpl_jax.spaces.images import cross_entropy
from wpl_jax.spaces.micro_cnn import Architecture


class CNNTraining(ImageTraining):
    """Image classification with one pair of cells; more is dropped the further training is."""

    config: CNNFinal

    def forward(
        self,
        params: chex.ArrayTree,
        architecture: Architecture,
        batch: Images,
        key: jax.Array,
        progress: jax.Array,
    ) -> tuple[jax.Array, chex.ArrayTree]:
        """The cross-entropy, with the auxiliary head's, and the statistics of batch norm."""
        images, labels = batch
        output = self.space.apply(params, architecture, images, key=key, progress=progress)
        loss = cross_entropy(output.logits, labels)
        if output.auxiliary is not None:
            loss += self.space.auxiliary * cross_entropy(output.auxiliary, labels)
        return loss, output.statistics
