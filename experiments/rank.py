"""How a search ranks all architectures of its space, and how well, where the truth is known.

Measures every architecture of the space on the shared parameters of a search, on the first
validation batches, and writes predictions.npz to the search's folder. The search may be finished or
interrupted, but must not be running. If interrupted itself, the same command goes on from there.
The space must list its architectures, as nas_bench_201 does (docs/your_space.md).

With --truth, a file of accuracies after full training, also writes rank.json and rank.png there:
how well the order by error rate and that by cross-entropy agree with the truth, beside orders that
know nothing. The truth is for judging a search. Nothing is chosen by it. A search trains all alike,
and not for long, which is least enough for the large ones; so one more order is by cross-entropy
and size: the sum of the places in both, as normal scores.

With --patterns, one more is by the activation patterns of the untrained network, one by the sum of
all three, and one by that of size and patterns, without the search.

Given several searches, which share nothing but the space, ranks by each, and by the mean of their
predictions, which goes to --out.
"""

import contextlib
import dataclasses
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, NamedTuple

import chex
import jax
import numpy as np
import numpy.typing as npt
import tyro
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn

from experiments import search, spaces
from experiments.ranking import baselines, measuring, statistics, truth
from experiments.ranking.measuring import Floats, Measured
from experiments.ranking.statistics import Estimate
from experiments.running import command_line, processes, records
from experiments.running.folder import Held
from experiments.running.progress import Shown, Stop, interruptible
from experiments.running.script import Script
from experiments.search import Job
from experiments.spaces.settings import SearchRun
from wpl_jax.checkpoint import fingerprint_in
from wpl_jax.settings import Several, Size, check

script = Script("rank", "the same command goes on from the last chunk")

CHUNK = 125  # architectures in a call, after which they are kept
PATTERNS, WITHOUT = "activation patterns", "size and patterns"  # which know nothing of a search

# Statistics by their names in rank.json: heading.
COLUMNS = {
    "kendall": "Kendall's τ",
    "kendall_better_half": "of the better half",
    "spearman": "Spearman's ρ",
    "precision_top_5": "top 5 % found",
    "accuracy_of_best": "accuracy of the best",
    "regret": "regret",
}


@dataclasses.dataclass(frozen=True)
class Rank:
    """Settings."""

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional, Several()] = ()
    """The folder of a search, or several."""
    batches: Size = 10
    """Validation batches, the first ones, that every architecture is measured on."""
    untrained: bool = False
    """Measure the parameters that the search began with; the files go to its folder's untrained."""
    truth: Path | None = None
    """A CSV file: a column architecture, and one that ends in _accuracy (%) or _error_rate."""
    column: str | None = None
    """Which accuracy of the truth, if there are several."""
    out: Path | None = None
    """Folder of the ranking by the mean, needed where several searches are given."""
    patterns: bool = False
    """Also order by how well the untrained network tells images apart (Mellor et al., 2021)."""
    average_isomorphic: bool = False
    """Predict of each architecture the mean over those that the space says compute the same."""
    search_flags: str = ""
    """Flags for where the search's data and devices are, as in --search-flags='--data-dir data'."""

    def __post_init__(self) -> None:
        check(self)
        if self.truth is None and self.column is not None:
            raise ValueError("--column needs --truth")
        if self.truth is None and self.average_isomorphic:
            raise ValueError("--average-isomorphic needs --truth")


class Ranking(NamedTuple):
    """All that a ranking works with."""

    config: Rank
    job: Job
    params: chex.ArrayTree  # the shared ones
    untrained: chex.ArrayTree | None  # as they were at first, if activation patterns are asked for
    actions: npt.NDArray[np.integer]  # shape=(n, decisions), of all architectures
    names: list[str]
    accuracy: Floats | None  # shape=(n,), NaN where it is not known
    settings: dict[str, object]  # what the predictions depend on
    out: Path


@script
def main(argv: Sequence[str] | None = None) -> int:
    with contextlib.ExitStack() as stack:
        with script.preparing():
            config = command_line.read(
                Rank(), argv, prog="python -m experiments.rank", description=__doc__
            )
            if not config.runs:
                raise ValueError("give the folder of a search, or of several")
            if (len(config.runs) > 1) != (config.out is not None):
                raise ValueError("several searches need --out, and one does not take it")
            folders = {folder.resolve(): folder for folder in config.runs}
            if config.out is not None and config.out.resolve() in folders:
                raise ValueError(f"--out must not be one of the searches, got {config.out}")
            for folder in folders.values():
                if folder.is_dir():
                    stack.enter_context(Held(folder, "folder"))
            if config.out is not None:
                stack.enter_context(Held(config.out))
                if any((config.out / "checkpoints").glob("*")):
                    raise ValueError(f"{config.out} holds another run: choose another --out")
            rankings = [prepare(config, folder) for folder in config.runs]
            together = None if config.out is None else combined(rankings, config.out)
        with interruptible() as stop:
            found = []
            for ranking in rankings:
                found.append(run(ranking, stop))
                if stop:
                    return stop.exit_code
            if together is not None:
                mean = Measured(*(np.mean(of_runs, axis=0) for of_runs in zip(*found, strict=True)))
                write(together, mean)
                conclude(together, mean)
        return 0


def prepare(config: Rank, folder: Path) -> Ranking:
    """Read the search and the truth; refuses what does not fit together."""
    accuracies = None if config.truth is None else truth.read(config.truth, config.column)
    settings = settings_of(config, folder)
    space = settings.search_space
    needed = {
        "every": True,
        "classes_of_isomorphism": config.average_isomorphic,
        "activation_kernel": config.patterns,
    }
    for method in (name for name, asked in needed.items() if asked):
        if not hasattr(space, method):
            raise ValueError(
                f"{folder} is a search of {settings.space}, whose {type(space).__name__} has "
                f"no method {method}(), which this needs"
            )
    job = search.prepare(settings)
    there = job.search.space.num_batches(job.data.validation)
    if config.batches > there:
        raise ValueError(
            f"--batches must be at most {there}, all the validation batches, got {config.batches}"
        )
    actions = np.asarray(space.every(), np.int32)
    names = measuring.names(space, actions)
    accuracy = None if accuracies is None else matched(accuracies, names)
    out = job.out / "untrained" if config.untrained else job.out
    records.writable_folder(out, "folder")
    untrained, params, steps = restore(job)
    if config.untrained:
        params, steps = untrained, 0
    depends_on = {
        "search": job.identity,
        "trained": steps,
        "batches": config.batches,
        "patterns": config.patterns,
    }
    at_first = untrained if config.patterns else None
    return Ranking(config, job, params, at_first, actions, names, accuracy, depends_on, out)


def settings_of(config: Rank, folder: Path) -> SearchRun:
    """The settings of the search, as its checkpoints have them."""
    stored = fingerprint_in(folder / "checkpoints")
    if stored is None or not {"space", "preset", "search"} <= stored.keys():
        raise ValueError(f"{folder} must be the folder of a search that has a checkpoint")
    presets = spaces.find(stored["space"]).searches
    settings = records.restored(presets.get(stored["preset"], next(iter(presets.values()))), stored)
    words = command_line.words("--search-flags", config.search_flags, ("out", "resume"))
    settings = command_line.read(settings, words, prog="--search-flags", description=None)
    return dataclasses.replace(settings, out=folder, resume=True)


def matched(accuracies: Mapping[str, float], names: Sequence[str]) -> Floats:
    """Accuracies in the order of the names, NaN where there is none."""
    if strangers := sorted(accuracies.keys() - set(names)):
        raise ValueError(
            f"--truth has {len(strangers):,} architectures that the space has not, as "
            f"{strangers[0]!r}; the space has {len(names):,}, as {names[0]!r}"
        )
    return np.array([accuracies.get(name, np.nan) for name in names])


def restore(job: Job) -> tuple[chex.ArrayTree, chex.ArrayTree, int]:
    """The shared parameters before the first step, and at the last checkpoint; after how many."""
    first = jax.jit(job.search.init, out_shardings=job.whole)(jax.random.key(job.config.seed))
    with search.open_checkpoints(job) as checkpoints:  # which refuses other data
        state = checkpoints.restore(first)
    return first.params, state.params, int(state.trained)


def combined(rankings: Sequence[Ranking], out: Path) -> Ranking:
    """The ranking by the mean of several; refuses those that cannot have one."""
    first = rankings[0]
    for ranking in rankings[1:]:
        if ranking.names != first.names:
            raise ValueError(
                f"{first.out} and {ranking.out} have different architectures, so that there is no "
                "mean of their predictions"
            )
    settings = {"mean_of": [ranking.settings for ranking in rankings]}
    return first._replace(settings=settings, out=out)


def run(ranking: Ranking, stop: Stop) -> Measured:
    """Measure what has not been measured, write it, and say how good it is."""
    path, part = (ranking.out / f"predictions{end}.npz" for end in ("", ".part"))
    # What has more than is asked for will do.
    measured = measuring.read(path, ranking.settings, ranking.settings | {"patterns": True})
    if not len(measured.error):
        measured = measure(ranking, part, stop)
        if stop:
            processes.say("rank: interrupted and kept; the same command goes on from here")
            return measured
        write(ranking, measured)
        part.unlink(missing_ok=True)
    conclude(ranking, measured)
    return measured


def write(ranking: Ranking, measured: Measured) -> None:
    """Write what is predicted."""
    names = np.array(ranking.names)
    path = ranking.out / "predictions.npz"
    measuring.write(path, measured, ranking.settings, architectures=names)


def conclude(ranking: Ranking, measured: Measured) -> None:
    """Say what has been done, and judge it if the truth is known."""
    batches = ranking.config.batches
    print(f"{len(ranking.names):,} architectures, measured on {batches} validation batches.")
    if ranking.config.patterns and not np.isfinite(measured.patterns).any():
        processes.say(
            "rank: no activation patterns differ: two images of the first validation batch may be "
            "the same"
        )
    if ranking.accuracy is not None:
        judge(ranking, ranking.accuracy, predictions(ranking, measured))
    print(f"Written to {ranking.out}")


def predictions(ranking: Ranking, measured: Measured) -> dict[str, Floats]:
    """Errors of all architectures, by the names of the orders: the lowest is the best."""
    space = ranking.job.search.space
    of_search = {ranking.job.task.error: measured.error, "cross-entropy": measured.loss}
    baseline = baselines.errors(space, ranking.actions, ranking.names)
    if ranking.config.patterns:
        baseline |= {PATTERNS: measured.patterns}
    places = {
        "cross-entropy": average(ranking, measured.loss),
        "size": baseline.get(baselines.SIZE),
        "patterns": baseline.get(PATTERNS),
    }
    scores = {name: statistics.normal_scores(e) for name, e in places.items() if e is not None}
    sums = {}
    if "size" in scores:
        sums["cross-entropy and size"] = scores["cross-entropy"] + scores["size"]
    if len(scores) == 3:
        sums["cross-entropy, size and patterns"] = sum(scores.values())
        baseline[WITHOUT] = scores["size"] + scores["patterns"]
    # The baselines are averaged too, so that no order has an advantage.
    orders = of_search | sums | baseline
    return {name: average(ranking, errors) for name, errors in orders.items()}


def average(ranking: Ranking, errors: Floats) -> Floats:
    """Over the architectures that compute the same, if this is asked for."""
    if not ranking.config.average_isomorphic:
        return errors
    return measuring.averaged(errors, ranking.job.search.space.classes_of_isomorphism())


def measure(ranking: Ranking, part: Path, stop: Stop) -> Measured:
    """Measure chunk by chunk, each of which is kept in a file, unless asked to stop."""
    job, actions = ranking.job, ranking.actions
    space, size, chunk = job.search.space, len(actions), min(CHUNK, len(actions))
    batches, at_once = ranking.config.batches, job.config.search.at_once
    of_chunk = jax.jit(
        lambda *args: measuring.measure(space, *args[:3], batches, at_once, args[3]),
        out_shardings=job.whole,
    )
    measured = measuring.read(part, ranking.settings)
    unit = TextColumn("architectures")
    with Shown(TextColumn("measured"), BarColumn(None), MofNCompleteColumn(), unit) as display:
        task = display.add_task("", total=size, completed=len(measured.error))
        while (done := len(measured.error)) < size and not stop:
            some = np.resize(actions[done : done + chunk], (chunk, actions.shape[1]))
            found = jax.device_get(
                of_chunk(ranking.params, job.data.validation, some, ranking.untrained)
            )
            both = zip(measured, found, strict=True)
            measured = Measured(*(np.append(*pair)[:size] for pair in both))
            measuring.write(part, measured, ranking.settings)
            done = len(measured.error)
            display.update(task, completed=done)
            if done == size or done // chunk % 10 == 0:
                display.say(f"measured {done:,}/{size:,} architectures")
    return measured


def judge(ranking: Ranking, accuracy: Floats, predicted: Mapping[str, Floats]) -> None:
    """Write and print how well the architectures are ordered whose accuracy is known."""
    from wpl_jax import figures  # matplotlib takes long to import: not before the first word

    known = np.isfinite(accuracy)
    orders = {name: np.asarray(errors[known], np.float64) for name, errors in predicted.items()}
    found = {name: statistics.estimates(e, accuracy[known]) for name, e in orders.items()}
    summary = {
        "architectures": int(known.sum()),
        "best_accuracy": float(accuracy[known].max()),
        "orders": {
            name: {key: estimate._asdict() for key, estimate in estimates.items()}
            for name, estimates in found.items()
        },
        "truth": str(ranking.config.truth),
        "true_accuracies": truth.digest(
            {name: a for name, a in zip(ranking.names, accuracy, strict=True) if np.isfinite(a)}
        ),
        "column": ranking.config.column,
        "average_isomorphic": ranking.config.average_isomorphic,
    }
    records.write_json(ranking.out / "rank.json", summary | ranking.settings | records.provenance())
    knows_nothing = {PATTERNS, WITHOUT, *baselines.NAMES}
    shown = {name: errors for name, errors in orders.items() if name not in knows_nothing}
    figure = figures.predicted_against_true(shown, accuracy[known])
    records.write_png(ranking.out / "rank.png", figure, dpi=150)
    print(f"{known.sum():,} of them have a true accuracy. In brackets: 95 % intervals.")
    print(table(found))


def table(found: Mapping[str, Mapping[str, Estimate]]) -> str:
    """The statistics of each order, a line each, for a terminal."""
    header = ["", *COLUMNS.values()]
    rows = [
        [name, *(_written(estimates[key], key) for key in COLUMNS)]
        for name, estimates in found.items()
    ]
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    return "\n".join(
        "  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip()
        for line in [header, *rows]
    )


def digits(statistic: str) -> int:
    """With how many after the point it is written."""
    return 2 if statistic in ("accuracy_of_best", "regret") else 3


def _written(estimate, key):
    value, low, high = (f"{number:.{digits(key)}f}" for number in estimate)
    return f"{value} [{low}, {high}]"


if __name__ == "__main__":
    sys.exit(main())
