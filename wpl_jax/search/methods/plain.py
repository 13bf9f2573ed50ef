"""Weight sharing as it is; the other methods change a part of it."""

import dataclasses
from typing import Any, ClassVar

import chex
import jax
import optax

from wpl_jax.plasticity import weight_plasticity
from wpl_jax.search.methods.protocol import Trainee
from wpl_jax.spaces import Space

__all__ = ["Plain"]


@dataclasses.dataclass(frozen=True)
class Plain:
    """Weight sharing without anything that preserves what was learned before, as in ENAS."""

    needs: ClassVar[tuple[str, ...]] = ()
    whole: ClassVar[bool] = False

    def wrap(
        self, optimizer: optax.GradientTransformation
    ) -> optax.GradientTransformationExtraArgs:
        """The optimiser, which changes nothing outside of the mask."""
        return weight_plasticity(optimizer, strength=0.0)

    def init(self, space: Space) -> chex.ArrayTree:
        """Nothing."""
        del space
        return ()

    def before(
        self, space: Space, state: chex.ArrayTree, opt_state: chex.ArrayTree, trainee: Trainee
    ) -> chex.ArrayTree:
        """As the architecture before has left it."""
        del space, state, trainee
        return opt_state

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
        """Of the space's loss."""
        del state, opt_state
        loss = jax.value_and_grad(space.loss, has_aux=True)
        return loss(params, architecture, batch, carry, key)

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
        """Nothing changes."""
        del space, params, trainee, validation, key
        return state, opt_state

    def end_epoch(self, opt_state: chex.ArrayTree, epochs: jax.Array) -> chex.ArrayTree:
        """Nothing changes."""
        del epochs
        return opt_state
