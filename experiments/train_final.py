"""One architecture, trained from scratch on weights of its own (table 1).

Plain SGD, then averaged SGD; the best epoch by validation is what is tested, once, at the end.
Writes architecture.json, metrics.jsonl, TensorBoard's scalars, checkpoints and, at the end,
summary.json and a drawing to --out. A run that was interrupted goes on with --resume.
"""

import dataclasses
import hashlib
import io
import math
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
from rich.console import Console

from experiments import cells, command_line, records
from experiments.configs.train_final import PRESETS, FinalRun
from experiments.running import Display, MetricsLog, interruptible
from experiments.search import Diverged, write_json
from experiments.tasks import language
from wpl_jax import drawing
from wpl_jax.checkpoint import Checkpoints
from wpl_jax.spaces.rnn import RNN, Architecture
from wpl_jax.text import EOS, Text, every_token, unknown_share, windows


class Part(NamedTuple):
    """A text to evaluate on, as `every_token` cuts it."""

    tokens: chex.Array  # shape=(windows, batch, time + 1), int32
    weights: chex.Array  # shape=(windows, batch, time), float32


class Data(NamedTuple):
    """What is read during training."""

    train: chex.Array  # shape=(windows, batch, time + 1), int32
    validation: Part


class State(NamedTuple):
    """All that a training knows; saved and restored, it goes on bit for bit."""

    params: chex.ArrayTree
    opt_state: chex.ArrayTree
    average: chex.ArrayTree  # what is evaluated: the mean of the iterates since averaging began
    averaged: jax.Array  # shape=(), int32: iterates in it; 0 before, when it is the last iterate
    best: chex.ArrayTree  # what was evaluated as the best so far
    best_perplexity: jax.Array  # shape=(), float32
    best_epoch: jax.Array  # shape=(), int32, from 1; 0 before the first
    hidden: jax.Array  # shape=(batch, units): the carry from window to window
    key: jax.Array  # shape=(), a typed key
    trained: jax.Array  # shape=(), int32: windows, since the start
    loss: jax.Array  # shape=(), float32: the sum over this epoch's steps
    steps: jax.Array  # shape=(), int32: this epoch's, those skipped apart
    skipped: jax.Array  # shape=(), int32: steps whose loss or gradient was not finite
    streak: jax.Array  # shape=(), int32: how many of the last steps were, in a row


def main(argv: Sequence[str] | None = None) -> int:
    try:
        config = parse(argv)
        config, architecture = read_architecture(config)
        text = language.read(config)
        config = language.fit(config, text)
        training = Training(config, architecture)
        data = cut(config, text)
        out = records.writable_folder(folder_of(config))
        checkpoints = open_checkpoints(training, text, out)
    except (ValueError, OSError, ImportError) as error:
        print(f"train_final: {error}", file=sys.stderr)
        return 2
    try:
        with checkpoints:
            return run(training, checkpoints, text, jax.device_put(data), out)
    except Diverged as error:
        print(f"train_final: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        message = "interrupted; --resume goes on from the last checkpoint"
        print(f"train_final: {message}", file=sys.stderr)
        return 130


def parse(argv: Sequence[str] | None) -> FinalRun:
    return command_line.parse(
        PRESETS,
        argv,
        prog="python -m experiments.train_final",
        description=__doc__,
        flags={"space": "rnn", "preset": "paper"},
    )


def read_architecture(config: FinalRun) -> tuple[FinalRun, Architecture]:
    """The architecture, and the settings with as many nodes as it has."""
    shipped = cells.shipped(config.space)
    known = f"random, {', '.join(shipped)}"
    if config.architecture is None:
        raise ValueError(f"--architecture must be given: a JSON file, or one of {known}")
    if config.architecture == "random":
        seed = config.seed if config.seed_architecture is None else config.seed_architecture
        actions = cells.random_actions(config.search_space, seed)
        return config, config.search_space.decode(actions)
    path = shipped.get(config.architecture, Path(config.architecture))
    if not path.is_file():
        raise FileNotFoundError(
            f"--architecture: there is no file {path}; give a JSON file, or one of {known}"
        )
    return cells.read(config, config.space, path)


def cut(config: FinalRun, text: Text) -> Data:
    return Data(
        windows(text.train, config.batch_size, config.length),
        part(config, text, text.validation, config.validation_batch_size),
    )


def part(config: FinalRun, text: Text, tokens: np.ndarray, batch_size: int) -> Part:
    """All of a text, in windows of about as many tokens as in training."""
    length = max(1, config.batch_size * config.length // batch_size)
    return Part(*every_token(tokens, batch_size, length, text.vocabulary.index(EOS)))


def folder_of(config: FinalRun) -> Path:
    name = f"{config.preset}_{Path(str(config.architecture)).stem}_{config.seed}"
    return config.out or Path("results/train_final", config.space, name)


def open_checkpoints(training: "Training", text: Text, out: Path) -> Checkpoints:
    config = training.config
    if (out / "summary.json").exists():
        raise ValueError(f"{out} holds the results of a finished run: choose another --out")
    started = any((out / name).exists() for name in ("checkpoints", "metrics.jsonl"))
    if started and not config.resume:
        raise ValueError(f"{out} holds a run: go on with it with --resume, or choose another --out")
    digest = hashlib.sha256("\n".join(text.vocabulary).encode())
    for tokens in (text.train, text.validation, text.test):
        digest.update(tokens.tobytes())
    inessential = ("out", "resume", "data_dir", "text_dir", "seed_architecture", "max_skipped")
    fingerprint = {
        name: value
        for name, value in settings(config).items()
        if name not in (*inessential, "windows_per_call")
    }
    fingerprint |= {
        "architecture": config.rnn.to_json(training.architecture),
        "text": digest.hexdigest(),
    }
    checkpoints = Checkpoints(out / "checkpoints", fingerprint)
    checkpoints.latest()  # damage shows here
    return checkpoints


def settings(config: FinalRun) -> dict[str, object]:
    """The settings as JSON has them."""
    plain = dataclasses.asdict(config)
    return {name: str(v) if isinstance(v, Path) else v for name, v in plain.items()}


@dataclasses.dataclass(frozen=True, eq=False)
class Training:
    """The training of one architecture as pure functions of its state."""

    config: FinalRun
    architecture: Architecture

    @property
    def space(self) -> RNN:
        return self.config.rnn

    def init(self, key: jax.Array) -> State:
        """The state at the start."""
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
            hidden=jnp.zeros((self.config.batch_size, self.space.units)),
            key=key,
            trained=zero,
            loss=jnp.zeros([]),
            steps=zero,
            skipped=zero,
            streak=zero,
        )

    def own(self, params: chex.ArrayTree) -> chex.ArrayTree:
        """The shared parameters, those that the architecture does not use being zero.

        Zero they stay: they have no gradient, and nothing to decay.
        """
        mask = jax.tree.broadcast(self.space.mask(self.architecture), params)
        return jax.tree.map(lambda m, p: jnp.where(m, p, 0), mask, params)

    def train(self, state: State, windows: jax.Array) -> State:
        """Train on the next ``windows_per_call`` windows, or as many as the epoch has left."""
        place = state.trained % len(windows)
        stop = state.trained + jnp.minimum(self.config.windows_per_call, len(windows) - place)
        first = place == 0
        state = state._replace(
            hidden=jnp.where(first, 0, state.hidden),
            loss=jnp.where(first, 0, state.loss),
            steps=jnp.where(first, 0, state.steps),
        )
        return jax.lax.while_loop(
            lambda state: state.trained < stop, lambda state: self._step(state, windows), state
        )

    def finish(self, state: State, windows: jax.Array, validation: Part) -> tuple[State, jax.Array]:
        """The end of an epoch: its validation perplexity, and whether to average from here on."""
        config, epoch = self.config, state.trained // len(windows)
        perplexity = self.perplexity(state.average, validation)
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

    def perplexity(self, params: chex.ArrayTree, part: Part) -> jax.Array:
        """Of every token of a text, the hidden state carried from window to window."""

        def score(hidden, window):
            tokens, weights = window
            return self.space.score(params, self.architecture, tokens, hidden, weights)[::-1]

        _, (totals, counts) = jax.lax.scan(score, self.space.start(part.tokens[0]), part)
        return self.space.error(totals.sum() / counts.sum())

    def _step(self, state, windows):
        """Train on a window; one whose loss or gradient is not finite changes no weight."""
        window = windows[state.trained % len(windows)]
        key = jax.random.fold_in(state.key, state.trained)
        (loss, hidden), grads = jax.value_and_grad(self.space.loss, has_aux=True)(
            state.params, self.architecture, window, state.hidden, key
        )
        updates, opt_state = self._tx().update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        averaged = state.averaged + (state.averaged > 0)
        share = 1 / jnp.maximum(averaged, 1)
        moved = state._replace(
            params=params,
            opt_state=opt_state,
            average=optax.incremental_update(params, state.average, share),
            averaged=averaged,
            hidden=hidden,
            loss=state.loss + loss,
            steps=state.steps + 1,
            streak=jnp.zeros_like(state.streak),
        )
        stayed = state._replace(
            hidden=jnp.zeros_like(hidden), skipped=state.skipped + 1, streak=state.streak + 1
        )
        finite = jnp.isfinite(loss) & jnp.isfinite(optax.tree.norm(grads))
        return optax.tree.where(finite, moved, stayed)._replace(trained=state.trained + 1)

    def _tx(self):
        config = self.config
        return optax.chain(
            optax.clip_by_global_norm(config.clip),
            optax.add_decayed_weights(config.weight_decay),
            optax.sgd(config.learning_rate),
        )


def run(training: Training, checkpoints: Checkpoints, text: Text, data: Data, out: Path) -> int:
    """Train until --epochs are over, then test the best epoch."""
    config = training.config
    state = jax.jit(training.init)(jax.random.key(config.seed))
    if checkpoints.latest() is not None:
        state = checkpoints.restore(state)
    write_json(out / "architecture.json", config.rnn.to_json(training.architecture))
    train = jax.jit(training.train, donate_argnums=0)
    finish = jax.jit(training.finish, donate_argnums=0)
    size = len(data.train)
    done = int(state.trained) // size
    with (
        interruptible() as stop,
        MetricsLog(out, done) as log,
        Display(config.epochs, size, "windows", done) as display,
    ):
        start = time.monotonic()
        while int(state.trained) < config.epochs * size and not stop:
            state = train(state, data.train)
            trained, loss = int(state.trained), float(state.loss) / max(int(state.steps), 1)
            display.show((trained - 1) % size + 1, loss=loss)
            if int(state.streak) >= config.max_skipped:
                raise Diverged(diverged(state, size))
            if trained % size == 0:
                state, perplexity = finish(state, data.train, data.validation)
                log.append(
                    {
                        "epoch": trained // size,
                        "train_loss": loss,
                        "validation_perplexity": float(perplexity),
                        "best_epoch": int(state.best_epoch),
                        "averaged": int(state.averaged),
                        "skipped": int(state.skipped),
                        "seconds": round(time.monotonic() - start, 3),
                    }
                )
                display.end_epoch(loss=loss, validation=float(perplexity))
                start = time.monotonic()
            if trained % size == 0 or stop:
                checkpoints.save(trained, state)
    if stop:
        print("train_final: interrupted and saved; --resume goes on from here", file=sys.stderr)
        return stop.exit_code
    if not math.isfinite(state.best_perplexity):
        raise Diverged("no epoch had a finite validation perplexity; try a lower --learning-rate")
    write_results(training, state, text, out)
    return 0


def diverged(state: State, size: int) -> str:
    epoch, place = divmod(int(state.trained) - 1, size)
    return (
        f"stopped in epoch {epoch + 1} at window {place + 1}: the last {int(state.streak)} "
        "training steps were skipped because their loss or gradient was not finite; try a lower "
        "--learning-rate; the last checkpoint is kept"
    )


def write_results(training: Training, state: State, text: Text, out: Path) -> None:
    """Test the best epoch and write every output, the summary last."""
    config, space, architecture = training.config, training.space, training.architecture
    perplexity = jax.jit(training.perplexity)
    tested = {
        name: float(perplexity(state.best, part(config, text, tokens, config.test_batch_size)))
        for name, tokens in (("validation", text.validation), ("test", text.test))
    }
    graphs = space.graphs(architecture)
    buffer = io.BytesIO()
    drawing.draw(graphs).savefig(buffer, format="png", dpi=150)
    records.write_atomically(out / "cell.png", buffer.getvalue())
    metrics = records.read_json_lines(out / "metrics.jsonl")
    best_epoch = int(state.best_epoch)
    summary = {
        "validation_perplexity": tested["validation"],
        "test_perplexity": tested["test"],
        "best_epoch": best_epoch,
        "averaged": metrics[best_epoch - 1]["averaged"] > 1,
        "parameters": space.num_parameters(architecture),
        "unknown_share": unknown_share(text),
        "architecture": space.to_json(architecture),
        "epochs": len(metrics),
        "skipped": int(state.skipped),
        "seconds": round(sum(record["seconds"] for record in metrics)),
        "configuration": settings(config),
    } | records.provenance()
    write_json(out / "summary.json", summary)
    Console().print(
        f"Perplexity {tested['test']:.2f} on the test text, {tested['validation']:.2f} on the "
        f"validation text, after epoch {best_epoch}. Written to {out}",
        highlight=False,
    )


if __name__ == "__main__":
    sys.exit(main())
