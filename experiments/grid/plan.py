"""What is to be run, checked before anything is; and what the runs came to."""

import dataclasses
import json
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from experiments import rank, search, spaces, train_final
from experiments.grid.arms import Arm, Flags, arms_of, axes_of
from experiments.grid.settings import Grid
from experiments.ranking import measuring, probes, truth
from experiments.running import command_line, records
from experiments.running.pool import Run
from experiments.running.progress import read_metrics
from experiments.spaces import Task, cells
from experiments.spaces.settings import PLACES, FinalRun, SearchRun
from experiments.spaces.sgd import SGDSearch
from wpl_jax.spaces import StoredSpace

TAKEN = ("space", "preset", "seed", "out", "resume")  # of searches, by the script
HOLDING = ("wpl", "l2")  # the methods that hold nothing yet in a warm-up

# Settings that do not say what data are read, whatever else a space's settings have.
NO_DATA = {field.name for field in dataclasses.fields(SGDSearch)}


class OfData(NamedTuple):
    """What a run's data decide."""

    known_by: dict[str, object]
    sizes: dict[str, object]  # of the space
    facts: dict[str, Any]  # for a report


class Plan(NamedTuple):
    """What is to be compared."""

    config: Grid
    axes: dict[str, tuple[str, ...]]  # by flag, the values that --vary gives
    arms: list[Arm]
    settings: dict[str, list[SearchRun]]  # by arm, of each of its candidates
    data: dict[str, list[OfData]]  # in the same way
    accuracies: dict[str, float]  # the truth, by architecture; empty if there is none
    of_finals: OfData | None  # if there are final trainings
    out: Path
    runs: Path

    @property
    def task(self) -> Task:
        return spaces.find(self.config.space)

    @property
    def final(self) -> FinalRun | None:
        """What all final trainings have in common, if there are any."""
        if self.of_finals is None:
            return None
        return train_final.parse(final_flags(self.config)).with_space(**self.of_finals.sizes)

    @property
    def warmup(self) -> int:
        """The first epochs, which count in no arm: the longest in which one does not hold yet."""
        of_all = [s for of_arm in self.settings.values() for s in of_arm]
        return max((s.warmup_epochs for s in of_all if s.method in HOLDING), default=0)


class Searched(NamedTuple):
    """A search that has finished."""

    metrics: Mapping[str, np.ndarray]  # shape=(epochs,), NaN where there was nothing to measure
    summary: Mapping[str, Any]
    probes: Mapping[str, np.ndarray] | None = None  # as experiments.ranking.probes.read
    probed: Sequence[Mapping[str, Any]] = ()  # errors of random cells at its end, as probes.json
    cell: Mapping[str, Any] | None = None  # the one that it has found, as best.json


class Results(NamedTuple):
    """What the runs came to; None for one that failed."""

    trials: dict[str, list[list[Searched | None]]]  # by arm, by candidate, by seed
    chosen: dict[str, int | None]  # by arm, the candidate; None if none can be
    searches: dict[str, list[Searched | None]]  # by arm, by seed
    rankings: dict[str, list[dict | None]]  # by arm, by seed, rank.json
    trained: dict[tuple[str, int], str]  # by arm or cell, and seed, the run of its training
    tested: dict[str, dict]  # by run, what trainings from scratch have left
    runs: list[Run]
    failed: list[str]  # a line each

    @property
    def finals(self) -> dict[tuple[str, int], dict]:
        """By arm or cell, and seed, what its training has left; several may share one."""
        return {k: self.tested[name] for k, name in self.trained.items() if name in self.tested}


class Ranking(Run):
    """experiments.rank in the folder of a search, which replaces what was ranked otherwise."""

    result = "rank.json"

    def place(self, folder: Path) -> list[str]:
        return [str(folder)]

    def goes_on(self, found: Mapping[str, Any]) -> bool:
        return bool(records.differences(self.expected, found))


def plan_of(config: Grid) -> Plan:
    """The plan; refuses what the searches would refuse, and what could not be compared.

    Raises:
      ValueError: in one line.
      OSError: for data or a truth that cannot be read.
    """
    if not config.arms and not config.vary:
        raise ValueError("--arms or --vary must say what to compare")
    if config.seeds < 2 and not config.vary:
        raise ValueError(
            f"--seeds must be at least 2, for intervals, got {config.seeds}; 1 is for maps, by "
            "--vary"
        )
    axes = axes_of(config.vary)
    arms = arms_of(config.arms, axes)
    seeds = config.trial_seeds
    if any(len(arm.candidates) > 1 for arm in arms) and (not seeds or min(seeds) < config.seeds):
        raise ValueError(
            f"--trial-seeds must be one or more different seeds >= {config.seeds}, which no other "
            f"search uses, got {seeds}"
        )
    final = train_final.parse(final_flags(config)) if config.cells else None
    folder = config.out or Path("results/grid", spaces.find(config.space).name, config.preset)
    settings, data = settings_of(config, arms)
    plan = Plan(
        config,
        {flag: tuple(values) for flag, values in axes.items()},
        arms,
        settings,
        data,
        {} if config.truth is None else truth.read(config.truth, config.column),
        data_of_finals(final, arms, settings) if final else None,
        out=folder,
        runs=config.runs or folder.with_name(f"{folder.name}_runs"),
    )
    check_different(plan)
    fewest = min(settings.epochs for of_arm in plan.settings.values() for settings in of_arm)
    if fewest <= plan.warmup:
        raise ValueError(
            f"--epochs must be more than the {plan.warmup} of the warm-up, got {fewest}"
        )
    if plan.accuracies:
        check_ranking(plan)
    return plan


def common_flags(config: Grid) -> Flags:
    return (*_of_space(config), *_more("--search-flags", config.search_flags, config))


def final_flags(config: Grid) -> Flags:
    """What all final trainings have in common."""
    more = _more("--final-flags", config.final_flags, config, "architecture", "seed-architecture")
    return (*_of_space(config), *more)


def _of_space(config):
    data_dir = ("--data-dir", str(config.data_dir)) if config.data_dir else ()
    return ("--space", config.space, "--preset", config.preset, *data_dir)


def _more(flag, text, config, *taken):
    """The flags that a flag of ours holds."""
    return command_line.words(flag, text, [*TAKEN, *taken, *["data-dir"] * bool(config.data_dir)])


def data_of_finals(
    final: FinalRun, arms: Sequence[Arm], settings: Mapping[str, Sequence[SearchRun]]
) -> OfData:
    """What the data of final trainings decide; refuses what the trainings would refuse.

    Args:
      final: what they have in common.
      arms: whose cells are trained.
      settings: by arm, of each of its candidates.
    """
    task = spaces.find(final.space)
    taken = {"random", *task.cells()} & {arm.folder for arm in arms}
    if taken:
        raise ValueError(f"with --cells, no arm can be called {taken.pop()}, as a cell is")
    try:
        _, corpus, final = spaces.read(final, task)
        read = [cells.read(final, path) for path in task.cells().values()]
        for name, of_arm in settings.items():
            read += [of_last_choices(final, name, searched.search_space) for searched in of_arm]
        for config, architecture in {repr(config): (config, a) for config, a in read}.values():
            spaces.check_memory(config)
            train_final.cut(task.training(config, architecture, task), corpus)
    except ValueError as error:
        raise ValueError(f"--final-flags: {error}") from error
    return OfData(task.fingerprint(corpus), task.sizes(corpus), task.facts(corpus))


def of_last_choices(final: FinalRun, arm: str, space: StoredSpace) -> tuple[FinalRun, Any]:
    """The architecture that a smaller space would not have, as a training from scratch reads it."""
    last = space.decode(jnp.array(space.decisions) - 1)
    try:
        return cells.restored(final, space.to_json(last))
    except Exception as error:  # whatever a space of one's own does
        raise ValueError(
            f"--{final.space_field} must have the sizes that it has in the arm {arm}, which finds "
            f"what is no architecture here: {error}"
        ) from error


def settings_of(
    config: Grid, arms: Sequence[Arm]
) -> tuple[dict[str, list[SearchRun]], dict[str, list[OfData]]]:
    """By arm, the settings of its candidates, and what the data of each decide.

    Among the settings is what the data decide about the space.
    """
    task, common, corpora = spaces.find(config.space), common_flags(config), {}

    def of_one(arm, candidate):
        settings = search.parse([*common, *arm.all_flags(candidate)])
        if settings.space != config.space:
            raise ValueError(f"--space must be that of all, {config.space}, got {settings.space}")
        values = vars(settings).items()
        read_by = [v for v in values if v[0] not in {*NO_DATA, settings.space_field}]
        key = repr((read_by, getattr(settings.search_space, "vocabulary", None)))
        if key not in corpora:
            _, corpus, _ = spaces.read(settings, task)
            of_data = OfData(task.fingerprint(corpus), task.sizes(corpus), task.facts(corpus))
            corpora[key] = corpus, of_data
        corpus, of_data = corpora[key]
        settings = settings.with_space(**of_data.sizes)
        spaces.check_memory(settings)
        split = search.cut(settings, task, corpus).validation
        search.search_of(settings)
        there = settings.search_space.num_batches(split)
        if config.truth and config.rank_batches > there:
            raise ValueError(
                f"--rank-batches must be at most {there}, all the validation batches, got "
                f"{config.rank_batches}"
            )
        return settings, of_data

    found: dict[str, list[tuple[SearchRun, OfData]]] = {}
    for arm in arms:
        try:
            found[arm.name] = [of_one(arm, i) for i in range(len(arm.candidates))]
        except ValueError as error:
            raise ValueError(f"the arm {arm.name}: {error}") from error
    return (
        {name: [settings for settings, _ in pairs] for name, pairs in found.items()},
        {name: [of_data for _, of_data in pairs] for name, pairs in found.items()},
    )


def check_different(plan: Plan) -> None:
    """Refuse a method that is the same at two places, or twice among its candidates.

    Numbers may be written in several ways. Arms of different names may share settings.
    """
    seen: dict[tuple[str, str], Arm] = {}
    for arm in plan.arms:
        for settings in plan.settings[arm.name]:
            other = seen.setdefault((arm.method, repr(settings)), arm)
            if other is not arm:
                raise ValueError(f"{other.name} and {arm.name} are the same settings: leave one")
        if len({repr(settings) for settings in plan.settings[arm.name]}) < len(arm.candidates):
            raise ValueError(f"the arm {arm.name} has the same settings twice to choose from")


def check_ranking(plan: Plan) -> None:
    """Refuse what no ranking could be judged by."""
    space = plan.settings[plan.arms[0].name][0].search_space
    needed = ["every", *["classes_of_isomorphism"] * plan.config.average_isomorphic]
    if missing := [method for method in needed if not hasattr(space, method)]:
        raise ValueError(
            f"--truth needs a space that has {missing[0]}(), which the {type(space).__name__} of "
            f"--space {plan.config.space} has not"
        )
    rank.matched(plan.accuracies, measuring.names(space, np.asarray(space.every(), np.int32)))


def search_run(plan: Plan, stage: str, arm: Arm, candidate: int, seed: int) -> Run:
    """A search; its folder is named by the number of the candidate where there are several."""
    settings = dataclasses.replace(plan.settings[arm.name][candidate], seed=seed)
    expected = {
        "configuration": settings.essential()
        | {"probes": settings.probes, "probe_every": settings.probe_every},
        "epochs": settings.epochs,
        "data": plan.data[arm.name][candidate].known_by,
    }
    flags = (*common_flags(plan.config), *arm.all_flags(candidate), "--seed", str(seed))
    return Run(
        f"{stage}/{arm.folder_of(candidate)}_{seed}", "search", flags, expected, left_by_search
    )


def left_by_search(folder: Path) -> tuple[dict, dict | None, Sequence[Mapping[str, Any]], dict]:
    """What a search leaves beside its summary: metrics, probes if it has any, and its cell."""
    try:
        over_epochs = probes.read(folder)
    except FileNotFoundError:
        over_epochs = None
    path = folder / "probes.json"
    probed = json.loads(path.read_bytes()) if path.exists() else ()
    cell = json.loads((folder / "best.json").read_bytes())
    return read_metrics(folder), over_epochs, probed, cell


def all_searches(plan: Plan, arm: Arm) -> list[Run]:
    """Those of an arm that may be needed, whichever of its flags are chosen."""
    stages = {"search": range(plan.config.seeds)}
    if len(arm.candidates) > 1:
        stages |= {"trial": plan.config.trial_seeds}
    return [
        search_run(plan, stage, arm, candidate, seed)
        for stage, seeds in stages.items()
        for candidate in range(len(arm.candidates))
        for seed in seeds
    ]


def together(plan: Plan, arm: Arm) -> Run:
    """All searches of an arm as one program."""
    each = all_searches(plan, arm)
    searches = [shlex.join([*run.flags, "--out", str(plan.runs / run.name)]) for run in each]
    expected = {"configuration": {"search": searches}, "epochs": each[0].expected["epochs"]}
    flags = tuple(f"--search={flags}" for flags in searches)
    return Run(f"together/{arm.folder}", "search_many", flags, expected)


def ranking_run(plan: Plan, arm: Arm, candidate: int, seed: int) -> Ranking:
    """The ranking of all architectures by a search."""
    config = plan.config
    settings = dataclasses.replace(plan.settings[arm.name][candidate], seed=seed)
    flags = ["--truth", str(config.truth), "--batches", str(config.rank_batches)]
    flags += ["--column", config.column] if config.column else []
    flags += ["--average-isomorphic"] if config.average_isomorphic else []
    data = {name: getattr(settings, name, None) for name in PLACES if name.endswith("_dir")}
    where = [f"--{name.replace('_', '-')}={path}" for name, path in data.items() if path]
    flags += [f"--search-flags={shlex.join(where)}"] if where else []
    expected = {
        "search": settings.essential(),
        "trained": settings.epochs * settings.search.architectures,
        "batches": config.rank_batches,
        "truth": str(config.truth),
        "true_accuracies": truth.digest(plan.accuracies),
        "column": config.column,
        "average_isomorphic": config.average_isomorphic,
    }
    name = search_run(plan, "search", arm, candidate, seed).name
    return Ranking(name, "rank", tuple(flags), expected)
