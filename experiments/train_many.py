"""Random architectures, each trained from scratch: a truth of one's own to judge rankings by.

One compiled program trains them all, one after another. Their validation errors go, as they come,
to errors.csv in --out, which `experiments.rank --truth` reads; the same command goes on from there.
Searches that measure --probes measure the same architectures, those of the seeds 0, 1, …, as long
as --first is 0.
"""

import csv
import dataclasses
import io
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np
import tyro
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn

from experiments import train_final
from experiments.ranking import measuring
from experiments.running import command_line, records
from experiments.running.progress import Shown, interruptible
from experiments.spaces import cells
from experiments.spaces.training import Training
from wpl_jax.search import Data
from wpl_jax.settings import Seed, Size, Unfit, check

SET = ("architecture", "seed", "seed-architecture", "out", "resume")  # here, for each training


@dataclasses.dataclass(frozen=True)
class TrainMany:
    """Settings."""

    out: Path
    """Folder of the results."""
    count: Size = 50
    """How many architectures, those of the seeds --first, --first + 1, …"""
    first: Seed = 0
    """The first seed; with another one, other architectures."""
    training_flags: str = ""
    """Flags of train_final, as in --training-flags='--space micro_cnn --preset cpu'."""

    def __post_init__(self) -> None:
        """Refuse what cannot work."""
        check(self)
        if self.first + self.count > 2**32:
            raise Unfit(self, "first", f"at most {2**32 - self.count:,}, for --count {self.count}")


def main(argv: Sequence[str] | None = None) -> int:
    try:
        config = command_line.read(
            TrainMany(out=tyro.MISSING),
            argv,
            prog="python -m experiments.train_many",
            description=__doc__,
        )
        flags = command_line.words("--training-flags", config.training_flags, SET)
        final = train_final.parse(flags)
        actions = cells.random_actions(final.search_space, 0)
        first, corpus, data = train_final.prepare(final, final.search_space.decode(actions))
        data = jax.device_put(data)
        out = records.writable_folder(config.out)
        settings = train_final.settings(first.config) | first.task.fingerprint(corpus)
        rows = begun(out, settings | {"first": config.first})
    except (ValueError, OSError, ImportError) as error:
        print(f"train_many: {error}", file=sys.stderr)
        return 2
    try:
        return run(config, first, data, rows)
    except KeyboardInterrupt:
        print("train_many: interrupted; the same command goes on from here", file=sys.stderr)
        return 130


def begun(out: Path, settings: dict[str, object]) -> list[dict[str, str]]:
    """What an earlier run has left; refuses what was made with other settings."""
    path, settings = out / "settings.json", json.loads(json.dumps(settings))
    if path.exists() and json.loads(path.read_bytes()) != settings:
        raise ValueError(f"{out} was begun with other settings or data: choose another --out")
    records.write_json(path, settings)
    table = out / "errors.csv"
    if not table.exists():
        return []
    with table.open(newline="") as file:
        return list(csv.DictReader(file))


def run(config: TrainMany, first: Training, data: Data, rows: list[dict[str, str]]) -> int:
    """Train those that are missing."""
    task, space = first.task, first.space
    size, error_key = space.num_batches(data.train), f"validation_{records.key(task.error)}"
    # All that these read of an architecture is in the state: one program trains them all.
    train, finish = (jax.jit(f, donate_argnums=0) for f in (first.train, first.finish))

    @jax.jit
    def init(key, architecture):
        return dataclasses.replace(first, architecture=architecture).init(key, data.train)

    count = MofNCompleteColumn()
    with (
        interruptible() as stop,
        Shown(
            TextColumn("trained"), BarColumn(None), count, TextColumn("architectures")
        ) as display,
    ):
        bar = display.add_task("", total=config.count, completed=len(rows))
        for done in range(len(rows), config.count):
            seed = config.first + done
            actions = cells.random_actions(space, seed)
            state = init(jax.random.key(seed), space.decode(actions))
            while int(state.trained) < first.config.epochs * size:
                state = train(state, data.train)
                if stop:
                    print("train_many: interrupted; go on by the same command", file=sys.stderr)
                    return stop.exit_code
            error = float(finish(state, data.train, data.validation)[1])
            name = measuring.names(space, np.asarray(actions)[None])[0]
            rows.append({"seed": str(seed), "architecture": name, error_key: str(error)})
            write(config.out / "errors.csv", rows)
            display.update(bar, completed=done + 1)
            display.say(f"trained {done + 1}/{config.count}  {error_key} {error:.4g}")
    print(f"Written to {config.out}")
    return 0


def write(path: Path, rows: Sequence[dict[str, str]]) -> None:
    buffer = io.StringIO()
    table = csv.DictWriter(buffer, list(rows[0]), lineterminator="\n")
    table.writeheader()
    table.writerows(rows)
    records.write_atomically(path, buffer.getvalue())


if __name__ == "__main__":
    sys.exit(main())
