"""Random architectures, each trained from scratch: a truth of one's own to judge rankings by.

One compiled program trains them all, one after another. Their validation errors after the last
epoch go, as they come, to errors.csv in --out, which `experiments.rank --truth` reads; the same
command goes on from there. An architecture whose training diverges is left out. Searches that
measure --probes measure the same architectures, those of the seeds 0, 1, …, as long as --first
is 0.
"""

import contextlib
import csv
import dataclasses
import io
import math
import sys
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np
import tyro
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn

from experiments import train_final
from experiments.ranking import measuring
from experiments.running import command_line, processes, records
from experiments.running.folder import Held, claim
from experiments.running.progress import Diverged, Shown, interruptible
from experiments.running.script import Script
from experiments.spaces import cells
from experiments.spaces.training import Training
from wpl_jax.search import Data
from wpl_jax.settings import Seed, Size, Unfit, check

SET = ("architecture", "seed", "seed-architecture", "out", "resume")  # here, for each training

script = Script("train_many", "the same command goes on from the last architecture")


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


@script
def main(argv: Sequence[str] | None = None) -> int:
    with contextlib.ExitStack() as stack:
        with script.preparing():
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
            stack.enter_context(Held(config.out))
            # Of recurrent cells too, whose states do not depend on when the training ends.
            depends_on = {"epochs": first.config.epochs, "first": config.first}
            settings = first.config.essential() | first.task.fingerprint(corpus) | depends_on
            claim(config.out, settings, "errors.csv")
        return run(config, first, data, begun(config, first))


def begun(config: TrainMany, first: Training) -> list[dict[str, str]]:
    """What an earlier run has left, up to the first row that is not as it was written.

    Seeds in between that have no row are those of architectures that were left out.
    """
    path, key = config.out / "errors.csv", error_key(first)
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8", errors="replace") as file:
        rows = list(csv.DictReader(line.replace("\0", "") for line in file))
    following = config.first
    for place, row in enumerate(rows):
        try:
            seed = int(row["seed"])
            whole = seed >= following and row["architecture"] == name_of(first, seed)
            float(row[key])
        except (KeyError, TypeError, ValueError, OverflowError):
            whole = False
        if not whole:
            processes.say(f"{path} is damaged: trained again from seed {following} on")
            return rows[:place]
        following = seed + 1
    return rows


def error_key(first: Training) -> str:
    return f"validation_{records.key(first.task.error)}"


def name_of(first: Training, seed: int) -> str:
    """What the architecture of a seed is called."""
    actions = cells.random_actions(first.space, seed)
    return measuring.names(first.space, np.asarray(actions)[None])[0]


def run(config: TrainMany, first: Training, data: Data, rows: list[dict[str, str]]) -> int:
    """Train those that are missing."""
    space, size, key = first.space, first.space.num_batches(data.train), error_key(first)
    epochs, max_skipped = first.config.epochs, first.config.max_skipped
    # One program trains them all: these have no architecture but that in the state.
    every = dataclasses.replace(first, architecture=None)
    train, finish = (jax.jit(f, donate_argnums=0) for f in (every.train, every.finish))

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
        following = int(rows[-1]["seed"]) + 1 if rows else config.first
        bar = display.add_task("", total=config.count, completed=following - config.first)
        for seed in range(following, config.first + config.count):
            actions = cells.random_actions(space, seed)
            state, error = init(jax.random.key(seed), space.decode(actions)), math.nan
            while int(state.trained) < epochs * size and int(state.streak) < max_skipped:
                state = train(state, data.train)
                if stop:
                    print("train_many: interrupted; go on by the same command", file=sys.stderr)
                    return stop.exit_code
                if int(state.trained) % size == 0:
                    state, error = finish(state, data.train, data.validation)
            done, error = seed + 1 - config.first, float(error)
            if int(state.streak) < max_skipped and math.isfinite(error):
                row = {"seed": str(seed), "architecture": name_of(first, seed), key: str(error)}
                rows.append(row)
                write(config.out / "errors.csv", rows)
                said = f"trained {done}/{config.count}  {key} {error:.4g}"
            else:
                said = f"left out {done}/{config.count}  seed {seed} has diverged"
            display.update(bar, completed=done)
            display.say(said)
    if not rows:
        raise Diverged(f"all {config.count} trainings have diverged; try a lower --learning-rate")
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
