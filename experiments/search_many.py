"""Searches as one program, side by side: for a GPU, which a single small network leaves idle.

Each search is given by its flags of experiments.search, --out among them, where it leaves what it
leaves alone. The searches may differ in their seeds and in numbers such as --strength or
--learning-rate. On a CPU they are faster one after another: with several networks side by side, all
operations of a space are computed wherever one of them is chosen.

The same command with --resume goes on with what was interrupted.
"""

import contextlib
import copy
import dataclasses
import functools
import operator
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import tyro

from experiments import search
from experiments.running import command_line, folder, processes, records
from experiments.running.folder import Held
from experiments.running.progress import Display, Diverged, MetricsLog, interruptible
from experiments.running.script import Script
from experiments.search import Job
from experiments.spaces.settings import SearchRun
from wpl_jax.checkpoint import Checkpoints, fingerprint_in
from wpl_jax.search.state import Epoch, Progress, SearchState

script = Script("search_many", "--resume goes on from the last checkpoint")

# What each search has of its own (0), and what they have in common (None).
OWN = SearchState(**dict.fromkeys(SearchState._fields, 0) | {"trained": None})
OWN_PROGRESS = Progress(loss=0, err1=0, finished=None, epoch=0)


@dataclasses.dataclass(frozen=True)
class SearchMany:
    """Settings."""

    out: Path
    """Folder of what they have in common: checkpoints and, at the end, summary.json."""
    search: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """The flags of a search, as in --search='--space rnn --seed 1 --out results/1'; give one for \
each."""
    resume: bool = False
    """Go on with the searches whose checkpoints are in --out, if there are any."""


@dataclasses.dataclass(frozen=True)
class Many:
    """All that the searches work with, made once from their settings."""

    config: SearchMany
    jobs: list[Job]  # of each search; they share the data
    numbers: dict[str, jax.Array]  # float32 [searches], by the name of a setting that differs

    @property
    def first(self) -> Job:
        return self.jobs[0]

    def each(self, function: Callable[..., Any], in_axes: tuple, out_axes: Any) -> Callable:
        """``function(search, *arguments)`` of every search at once.

        ``in_axes`` and ``out_axes`` say, as for :func:`jax.vmap`, what each search has of its own.
        """

        def of_one(numbers, *arguments):
            return function(search.search_of(replaced(self.first.config, numbers)), *arguments)

        mapped = jax.vmap(of_one, (0, *in_axes), out_axes)
        return functools.partial(mapped, self.numbers)

    @functools.cached_property
    def init(self) -> Any:
        """Jitted: the states of all searches at the start, given a key for each."""
        return jax.jit(self.each(lambda search, key: search.init(key), (0,), OWN))

    @functools.cached_property
    def step(self) -> Any:
        """Jitted: a step of all searches, given their state, which it takes, and the data."""
        axes = (OWN, None), (OWN, OWN_PROGRESS)
        step = self.each(lambda search, *both: search.step(*both), *axes)
        return jax.jit(step, donate_argnums=0)


@script
def main(argv: Sequence[str] | None = None) -> int:
    with contextlib.ExitStack() as stack:
        with script.preparing():
            many = prepare(parse(argv))
            for out in (many.config.out, *(job.out for job in many.jobs)):
                stack.enter_context(Held(out))
            checkpoints = stack.enter_context(open_checkpoints(many))
        return run(many, checkpoints)


def parse(argv: Sequence[str] | None) -> SearchMany:
    return command_line.read(
        SearchMany(out=tyro.MISSING),
        argv,
        prog="python -m experiments.search_many",
        description=__doc__,
    )


def prepare(config: SearchMany) -> Many:
    """Read the data; refuses searches that are not alike."""
    if not config.search:
        raise ValueError("--search must be given, once for each search")
    configs = [search.parse(command_line.words("--search", f, ())) for f in config.search]
    configs = [dataclasses.replace(settings, resume=True) for settings in configs]
    numbers = differing(configs)
    first = search.prepare(configs[0])
    if len(first.whole.device_set) > 1 or first.config.sharing.distributed:
        raise ValueError("several searches share one device: give each --devices 1")
    given, read = (settings.search_space for settings in (configs[0], first.config))
    names = (field.name for field in dataclasses.fields(read))
    sizes = {n: getattr(read, n) for n in names if getattr(read, n) != getattr(given, n)}
    configs = [settings.with_space(**sizes) for settings in configs]
    jobs = [
        first._replace(
            config=settings,
            search=search.search_of(settings),
            out=search.folder_of(settings, first.task),
        )
        for settings in configs
    ]
    folders = [config.out, *(job.out for job in jobs)]
    if len({folder.resolve() for folder in folders}) < len(folders):
        raise ValueError("each search must have an --out of its own")
    many = Many(config, jobs, numbers)
    if numbers and not can_differ(many):
        names = [
            n for n in numbers if not can_differ(dataclasses.replace(many, numbers={n: numbers[n]}))
        ]
        raise ValueError(
            f"searches of one program cannot differ in {', '.join(names or numbers)}: give all the "
            "same, or run them apart"
        )
    return many


def can_differ(many: Many) -> bool:
    """Whether a program can be given the numbers: what reads them must not ask for their values."""
    keys = jax.random.split(jax.random.key(0), len(many.jobs))
    try:
        many.step.eval_shape(many.init.eval_shape(keys), many.first.data)
    except jax.errors.ConcretizationTypeError:
        return False
    return True


def differing(configs: Sequence[SearchRun]) -> dict[str, jax.Array]:
    """By name, the numbers that differ between searches, float32 [searches].

    Raises:
      ValueError: naming another setting that does.
    """
    given = [records.flat(records.plain(dataclasses.asdict(settings))) for settings in configs]
    found = {}
    for name in dict.fromkeys(name for settings in given for name in settings):
        values = [settings.get(name) for settings in given]
        if name in ("out", "seed") or len(set(values)) == 1:
            continue
        if not all(isinstance(value, float) for value in values):
            raise ValueError(
                "searches of one program may differ in --seed and in numbers with a point alone, "
                f"not in {name}: {', '.join(map(str, dict.fromkeys(values)))}"
            )
        found[name] = jnp.array(values, jnp.float32)
    return found


def replaced(settings: Any, numbers: Mapping[str, jax.Array]) -> Any:
    """Settings with numbers that a program is given, which each search's own have been checked."""
    for name, value in numbers.items():
        field, _, rest = name.partition(".")
        new = copy.copy(settings)
        object.__setattr__(  # no check can read a number that the program is not given yet
            new, field, replaced(getattr(settings, field), {rest: value}) if rest else value
        )
        settings = new
    return settings


def open_checkpoints(many: Many) -> Checkpoints:
    """Those of all searches together; refuses folders that hold other runs."""
    of_each = [job.config.essential() for job in many.jobs]
    fingerprint = {"searches": of_each} | many.first.fingerprint
    out, resume = many.config.out, many.config.resume
    if not resume and fingerprint_in(out / "checkpoints"):
        raise ValueError(f"{out} holds searches: go on with --resume, or choose another --out")
    checkpoints = folder.open_checkpoints(out, fingerprint, resume)
    first = many.first.config
    folder.check_epochs(out, checkpoints, first.epochs, first.search.architectures)
    latest = checkpoints.latest()
    for job in many.jobs:
        if latest is None and any((job.out / "checkpoints").glob("*")):
            raise ValueError(f"{job.out} holds a run already: choose another --out for this search")
        if latest is None:
            opened = folder.open_checkpoints(job.out, job.identity, resume)
        else:
            opened = Checkpoints(job.out / "checkpoints", job.identity)
        with opened as own:
            if (own.latest() or 0) > (latest or 0):
                raise ValueError(f"{job.out} has been trained further: choose another --out")
    return checkpoints


def run(many: Many, checkpoints: Checkpoints) -> int:
    """Search until --epochs are over, then write what each has found."""
    config, data = many.first.config, many.first.data
    size, number = config.search.architectures, len(many.jobs)
    keys = jnp.stack([jax.random.key(job.config.seed) for job in many.jobs])
    state = many.init(keys)
    processes.say(f"compiling {number} searches")
    start = time.monotonic()
    compiled = many.step.lower(state, data).compile()
    memory = search.memory_per_device(compiled)
    print(
        f"compiled {number} searches in {time.monotonic() - start:.0f} s; "
        f"{memory / 2**20:,.0f} MiB on the device",
        file=sys.stderr,
    )
    if checkpoints.latest() is not None:
        state = checkpoints.restore(state)
    probes = search.probes_of(many.first)
    measure = None if probes is None else jax.jit(jax.vmap(probes.of_params, (0, None)))
    done, after = int(state.trained) // size, search.ranking_units(config)
    with contextlib.ExitStack() as stack:
        stop = stack.enter_context(interruptible())
        of_each = [checkpoints.notes.setdefault(str(i), {}) for i in range(number)]
        logs = [
            stack.enter_context(MetricsLog(job.out, done, notes))
            for job, notes in zip(many.jobs, of_each, strict=True)
        ]
        display = stack.enter_context(Display(config.epochs, size, "architectures", done, after))
        start = time.monotonic()
        while int(state.trained) < config.epochs * size and not stop:
            state, progress = compiled(state, data)
            progress, trained = jax.device_get(progress), int(state.trained)
            shown = {"loss": progress.loss.mean(), "err1": progress.err1.mean()}
            display.show((trained - 1) % size + 1, **shown)
            if not progress.finished:
                continue
            epoch = trained // size
            rows = summaries(many, epoch, state, progress.epoch)
            seconds = round((time.monotonic() - start) / number, 3)  # a search's share
            for log, row in zip(logs, rows, strict=True):
                log.append(row | {"seconds": seconds})
            if probes and measure and config.probe_every and epoch % config.probe_every == 0:
                measured = jax.device_get(measure(state.params, data.validation))
                for i, job in enumerate(many.jobs):
                    own_part = jax.tree.map(operator.itemgetter(i), measured)
                    probes.keep(job.out, epoch, own_part, of_each[i])
            columns = ("err1_mean", "err2_mean", "forgetting_mean", "forgetting_best5")
            display.end_epoch(**{n: float(np.nanmean([row[n] for row in rows])) for n in columns})
            start = time.monotonic()
            if checkpoints.is_due():
                checkpoints.save(trained, state)
        if checkpoints.step != int(state.trained):
            checkpoints.save(int(state.trained), state)
    if stop:
        print("search_many: interrupted and saved; --resume goes on from here", file=sys.stderr)
        return stop.exit_code
    display.say(f"ranking {config.derive_samples} architectures of each search")
    probed = None if measure is None else measure(state.params, data.validation).error
    finish(many, checkpoints.notes, state, memory // number, probed)
    return 0


def own(state: SearchState, i: int) -> SearchState:
    """The state of one search."""
    return SearchState(
        *(
            part if axis is None else jax.tree.map(operator.itemgetter(i), part)
            for part, axis in zip(state, OWN, strict=True)
        )
    )


def summaries(many: Many, epoch: int, state: SearchState, result: Epoch) -> list[dict[str, Any]]:
    """Each search's record of an epoch."""
    nothing: Any = ()  # of the state, no more than is read of it
    told = state._replace(params=nothing, opt_state=nothing, method=nothing, key=nothing)
    told, result = jax.device_get((told, result))
    return [
        search.summarise(
            job.search, epoch, jax.tree.map(operator.itemgetter(i), result), own(told, i)
        )
        for i, job in enumerate(many.jobs)
    ]


def finish(
    many: Many,
    notes: Mapping[str, dict[str, Any]],
    state: SearchState,
    memory: int,
    probed: chex.Array | None,
) -> None:
    """Write what each search leaves when it runs alone, and then that all are done.

    Args:
      many: the searches.
      notes: by the number of a search, what its own checkpoints keep beside its state.
      state: that of all of them.
      memory: bytes that one needs.
      probed: the errors of the probes of each, if there are any.
    """
    config, data = many.first.config, many.first.data
    sizes = config.derive_samples, config.derive_batches

    def rank(search, state, key, validation):
        return search.rank(state, validation, key, *sizes)

    keys = jnp.stack([search.ranking_key(job.config) for job in many.jobs])
    ranked = jax.jit(many.each(rank, (OWN, 0, None), 0))(state, keys, data.validation)
    actions, errors = jax.device_get(ranked)
    streaks, failed = jax.device_get(state.streak), []
    own_of = jax.jit(own)  # one program for all parts of all searches
    for i, job in enumerate(many.jobs):
        with Checkpoints(job.out / "checkpoints", job.identity) as checkpoints:
            checkpoints.notes = notes[str(i)]
            checkpoints.save(int(state.trained), own_of(state, i))
        try:
            if streaks[i] >= config.max_skipped:
                raise Diverged(search.diverged(job.config, own_of(state, i)))
            ranking = search.best_first(job, actions[i], errors[i])
        except Diverged as error:
            failed.append(f"{job.out}: {error}")
            print(f"search_many: {failed[-1]}", file=sys.stderr)
            continue
        log = notes[str(i)]["log"]
        search.write_results(job, log, ranking, memory, () if probed is None else probed[i])
    summary = {
        "epochs": config.epochs,
        "configuration": {"search": list(many.config.search)},
        "failed": failed,
    }
    records.write_json(many.config.out / records.SUMMARY, summary | records.provenance())


if __name__ == "__main__":
    sys.exit(main())
