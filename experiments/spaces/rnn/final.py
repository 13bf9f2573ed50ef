"""A recurrent cell from scratch: plain SGD, then averaged SGD; the best epoch is what is tested."""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.running.progress import Diverged
from experiments.spaces.rnn.settings import RNNFinal
from experiments.spaces.training import Training
from wpl_jax.data.text import EOS, Text, every_token, windows
from wpl_jax.search import Data
from wpl_jax.spaces.rnn import Architecture


class Part(NamedTuple):
    """A text to evaluate on, as `every_token` cuts it."""

    tokens: chex.Array  # shape=(windows, batch, time + 1), int32
    weights: chex.Array  # shape=(windows, batch, time), float32


class State(NamedTuple):
    """All that a training knows; saved and restored, it goes on bit for bit."""

    params: chex.ArrayTree
    opt_state: chex.ArrayTree
    average: chex.ArrayTree  # what is evaluated: the mean of the iterates since averaging began
    averaged: jax.Array  # shape=(), int32: iterates in it; 0 before, when it is the last iterate
    best: chex.ArrayTree  # what was evaluated as the best so far
    best_perplexity: jax.Array  # shape=(), float32
    best_epoch: jax.Array  # shape=(), int32, from 1; 0 before the first
    hidden: jax.Array  # shape=(batch, …): the carry from window to window
    architecture: Architecture  # of these, see Training
    key: jax.Array
    trained: jax.Array
    loss: jax.Array
    steps: jax.Array
    skipped: jax.Array
    streak: jax.Array


class RNNTraining(Training):
    """Language modelling with one cell; a batch is a window of text."""

    config: RNNFinal

    @property
    def steps_per_call(self) -> int:
        return self.config.windows_per_call

    def cut(self, corpus: Text) -> Data:
        config = self.config
        return Data(
            windows(corpus.train, config.batch_size, config.length),
            part(config, corpus, corpus.validation, config.validation_batch_size),
        )

    def init(self, key: jax.Array, batches: jax.Array) -> State:
        init_key, key = jax.random.split(key)
        params = self.own(self.space.init(init_key))
        zero = jnp.zeros([], jnp.int32)
        return State(
            params=params,
            opt_state=self._tx().init(params),
            average=params,
            averaged=zero,
            best=params,
            best_perplexity=jnp.array(jnp.inf, jnp.float32),  # not weakly typed: compiled once
            best_epoch=zero,
            hidden=self.space.start(batches[0]),
            **self.common(key),
        )

    def begin(self, state: State, batches: jax.Array) -> State:
        """The state at the start of an epoch, which is that of the text."""
        return super().begin(state, batches)._replace(hidden=jnp.zeros_like(state.hidden))

    def attempt(
        self, state: State, batches: jax.Array, key: jax.Array
    ) -> tuple[jax.Array, chex.ArrayTree, State]:
        window = self.space.batch(batches, state.trained)
        (loss, hidden), grads = jax.value_and_grad(self.space.loss, has_aux=True)(
            state.params, state.architecture, window, state.hidden, key
        )
        updates, opt_state = self._tx().update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        averaged = state.averaged + (state.averaged > 0)
        moved = state._replace(
            params=params,
            opt_state=opt_state,
            average=optax.incremental_update(params, state.average, 1 / jnp.maximum(averaged, 1)),
            averaged=averaged,
            hidden=hidden,
        )
        return loss, grads, moved

    def skip(self, state: State) -> State:
        return state._replace(hidden=jnp.zeros_like(state.hidden))

    def finish(self, state: State, batches: jax.Array, validation: Part) -> tuple[State, jax.Array]:
        """The end of an epoch: its validation perplexity, and whether to average from here on."""
        config, epoch = self.config, state.trained // len(batches)
        perplexity = self.perplexity(state.average, state.architecture, validation)
        better = perplexity < state.best_perplexity
        best_epoch = jnp.where(better, epoch, state.best_epoch)
        due = (epoch >= config.average_after) | (epoch - best_epoch >= config.patience)
        state = state._replace(
            best=optax.tree.where(better, state.average, state.best),
            best_perplexity=jnp.where(better, perplexity, state.best_perplexity),
            best_epoch=best_epoch,
            averaged=jnp.where(due, jnp.maximum(state.averaged, 1), state.averaged),
        )
        return state, perplexity

    def notes(self, state: State) -> dict[str, float]:
        return {"best_epoch": int(state.best_epoch), "averaged": int(state.averaged)}

    def results(self, state: State, corpus: Text, metrics: Sequence[Mapping]) -> dict[str, object]:
        if not math.isfinite(state.best_perplexity):
            raise Diverged(
                "no epoch had a finite validation perplexity; try a lower --learning-rate"
            )
        perplexity = jax.jit(self.perplexity)

        def of(tokens):
            whole = part(self.config, corpus, tokens, self.config.test_batch_size)
            return float(perplexity(state.best, state.architecture, whole))

        best_epoch = int(state.best_epoch)
        return {
            "validation_perplexity": of(corpus.validation),
            "test_perplexity": of(corpus.test),
            "best_epoch": best_epoch,
            "averaged": metrics[best_epoch - 1]["averaged"] > 1,
        }

    def perplexity(
        self, params: chex.ArrayTree, architecture: Architecture, part: Part
    ) -> jax.Array:
        """Of every token of a text, the hidden state carried from window to window."""

        def score(hidden, window):
            tokens, weights = window
            return self.space.score(params, architecture, tokens, hidden, weights)[::-1]

        _, (totals, counts) = jax.lax.scan(score, self.space.start(part.tokens[0]), part)
        return self.space.error(totals.sum() / counts.sum())

    def _tx(self):
        config = self.config
        return optax.chain(
            optax.clip_by_global_norm(config.clip),
            optax.add_decayed_weights(config.weight_decay),
            optax.sgd(config.learning_rate),
        )


def part(config: RNNFinal, text: Text, tokens: np.ndarray, batch_size: int) -> Part:
    """All of a text, in windows of about as many tokens as in training."""
    batch_size = min(batch_size, len(tokens))
    length = max(1, config.batch_size * config.length // batch_size)
    return Part(*every_token(tokens, batch_size, length, text.vocabulary.index(EOS)))
