"""One architecture, trained from scratch on weights of its own (table 1).

Writes architecture.json, metrics.jsonl, TensorBoard's scalars, checkpoints and, once all epochs are
over and it is tested, summary.json and a drawing to --out. A run that was interrupted goes on with
--resume.
"""

import contextlib
import dataclasses
import re
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from experiments import spaces
from experiments.running import command_line, folder, processes, records
from experiments.running.folder import Held
from experiments.running.progress import Display, Diverged, MetricsLog, interruptible
from experiments.running.script import Script
from experiments.spaces import cells
from experiments.spaces.settings import FinalRun
from experiments.spaces.training import Training
from wpl_jax.checkpoint import Checkpoints
from wpl_jax.search import Data
from wpl_jax.settings import Unfit

script = Script("train_final", "--resume goes on from the last checkpoint")


@script
def main(argv: Sequence[str] | None = None) -> int:
    with contextlib.ExitStack() as stack:
        with script.preparing():
            training, corpus, data = prepare(*read_architecture(parse(argv)))
            out = folder_of(training)
            stack.enter_context(Held(out))
            checkpoints = stack.enter_context(
                open_checkpoints(training, training.task.fingerprint(corpus), out)
            )
            size = training.space.num_batches(data.train)
            folder.check_epochs(out, checkpoints, training.config.epochs, size)
        return run(training, checkpoints, corpus, jax.device_put(data), out)


def parse(argv: Sequence[str] | None) -> FinalRun:
    return spaces.settings(
        "finals", argv, prog="python -m experiments.train_final", description=__doc__
    )


def read_architecture(config: FinalRun) -> tuple[FinalRun, Any]:
    """The architecture, and the settings with as many nodes as it has.

    One that is neither random nor in a file is read by the space's ``from_string``, if it has one.
    """
    shipped = spaces.find(config.space).cells()
    known = f"random, {', '.join(shipped)}"
    if config.architecture is None:
        raise ValueError(f"--architecture must be given: a JSON file, or one of {known}")
    if config.architecture == "random":
        seed = config.seed if config.seed_architecture is None else config.seed_architecture
        actions = cells.random_actions(config.search_space, seed)
        return config, config.search_space.decode(actions)
    path = shipped.get(config.architecture, Path(config.architecture))
    if path.is_file():
        return cells.read(config, path)
    refusal = f"--architecture: there is no file {path}; give a JSON file, or one of {known}"
    if not hasattr(config.search_space, "from_string"):
        raise FileNotFoundError(refusal)
    try:
        return config, config.search_space.from_string(config.architecture)
    except ValueError as error:
        raise ValueError(f"{refusal}, or a string: {error}") from error


def prepare(config: FinalRun, architecture: Any) -> tuple[Training, Any, Data]:
    """The training, all of its data, and what it reads of them."""
    task, corpus, config = spaces.read(config)
    training = task.training(config, architecture, task)
    return training, corpus, cut(training, corpus)


def cut(training: Training, corpus: Any) -> Data:
    """What a training reads of the data; refuses settings that do not fit them."""
    config = training.config
    with command_line.naming_flags(config):
        data = training.cut(corpus)
        if (most := (2**31 - 1) // training.space.num_batches(data.train)) < config.epochs:
            raise Unfit(config, "epochs", f"at most {most:,}, for fewer than 2^31 steps")
    return data


def folder_of(training: Training) -> Path:
    config = training.config
    architecture = re.sub(r"[^\w.-]+", "_", Path(str(config.architecture)).stem).strip("_")
    name = f"{config.preset}_{architecture}_{config.seed}"
    return config.out or Path("results/train_final", training.task.name, name)


def open_checkpoints(training: Training, data: Mapping[str, object], out: Path) -> Checkpoints:
    config = training.config
    if records.read_json(out / records.SUMMARY):
        raise ValueError(f"{out} holds the results of a finished run: choose another --out")
    architecture = training.space.to_json(training.architecture)
    fingerprint = config.essential() | {"architecture": architecture, **data}
    return folder.open_checkpoints(out, fingerprint, config.resume)


def settings(config: FinalRun) -> dict[str, object]:
    """The settings as JSON has them."""
    return records.plain(dataclasses.asdict(config))


def run(training: Training, checkpoints: Checkpoints, corpus: Any, data: Data, out: Path) -> int:
    """Train until --epochs are over, then test."""
    config, space = training.config, training.space
    error_key = records.key(training.task.error)
    processes.say("compiling the training")
    state = jax.jit(training.init)(jax.random.key(config.seed), data.train)
    if checkpoints.latest() is not None:
        state = checkpoints.restore(state)
    records.write_json(out / "architecture.json", space.to_json(training.architecture))
    train = jax.jit(training.train, donate_argnums=0)
    finish = jax.jit(training.finish, donate_argnums=0)
    size = space.num_batches(data.train)
    # Testing reads the validation data again, and about as many; a step is three evaluations.
    after = 2 * len(jax.tree.leaves(data.validation)[0]) / 3
    done = int(state.trained) // size
    with (
        interruptible() as stop,
        MetricsLog(out, done, checkpoints.notes) as log,
        Display(config.epochs, size, "steps", done, after) as display,
    ):
        start = time.monotonic()
        while int(state.trained) < config.epochs * size and not stop:
            state = train(state, data.train)
            trained, loss = int(state.trained), float(state.loss) / max(int(state.steps), 1)
            display.show((trained - 1) % size + 1, loss=loss)
            if int(state.streak) >= config.max_skipped:
                raise Diverged(diverged(state, size))
            if trained % size == 0:
                state, error = finish(state, data.train, data.validation)
                log.append(
                    {
                        "epoch": trained // size,
                        "train_loss": loss,
                        f"validation_{error_key}": float(error),
                        **training.notes(state),
                        "skipped": int(state.skipped),
                        "seconds": round(time.monotonic() - start, 3),
                    }
                )
                display.end_epoch(loss=loss, validation=float(error))
                start = time.monotonic()
                if checkpoints.is_due():
                    checkpoints.save(trained, state)
        if checkpoints.step != int(state.trained):
            checkpoints.save(int(state.trained), state)
    if stop:
        print("train_final: interrupted and saved; --resume goes on from here", file=sys.stderr)
        return stop.exit_code
    display.say("testing")
    write_results(training, state, corpus, log.records, out)
    return 0


def diverged(state: Any, size: int) -> str:
    epoch, place = divmod(int(state.trained) - 1, size)
    return (
        f"stopped in epoch {epoch + 1} at step {place + 1}: the last {int(state.streak)} "
        "training steps were skipped because their loss or gradient was not finite; try a lower "
        "--learning-rate; the last checkpoint is kept"
    )


def write_results(
    training: Training, state: Any, corpus: Any, metrics: Sequence[Mapping[str, Any]], out: Path
) -> None:
    """Test, and write every output, the summary last."""
    from wpl_jax import figures  # matplotlib takes long to import: not before the first word

    config, space, architecture = training.config, training.space, training.architecture
    task = training.task
    results = training.results(state, corpus, metrics)
    records.write_png(out / "cell.png", figures.draw(space.graphs(architecture)), dpi=150)
    summary = {
        **results,
        "parameters": space.num_parameters(architecture),
        **task.facts(corpus),
        "data": task.fingerprint(corpus),
        "architecture": space.to_json(architecture),
        "epochs": len(metrics),
        "skipped": int(state.skipped),
        "seconds": round(sum(record["seconds"] for record in metrics)),
        "configuration": settings(config),
    } | records.provenance()
    records.write_json(out / records.SUMMARY, summary)
    key = records.key(task.error)
    print(
        f"{task.error.capitalize()} {results[f'test_{key}']:.4g} on the test data, "
        f"{results[f'validation_{key}']:.4g} on the validation data. Written to {out}"
    )
    if hint := spaces.next_preset("finals", config):
        processes.say(hint)


if __name__ == "__main__":
    sys.exit(main())
