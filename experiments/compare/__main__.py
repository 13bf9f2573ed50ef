"""Searches with and without plasticity, by a controller and at random, compared (figures 3 to 5).

In turn, each stage by runs of experiments.search or experiments.train_final: searches that choose
the strength, the searches to compare, and final trainings of their cells and of others. Writes
summary.json, curves.npz, report.md, figures and cells to --out. A comparison that was interrupted
goes on where it stopped when the same command is given again. To draw report and figures anew from
what is in --out: python -m experiments.compare.report OUT.
"""

import contextlib
import dataclasses
import json
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import jax
import numpy as np
from rich.console import Console

from experiments import search, spaces, train_final
from experiments.compare import report, summary, tables
from experiments.compare.plan import ARMS, Arm, Plan, Results, Searched
from experiments.compare.settings import Compare
from experiments.grid import cells
from experiments.running import command_line
from experiments.running.folder import Held, check_report
from experiments.running.pool import Interrupted, Pool, Run
from experiments.running.progress import interruptible, read_metrics
from experiments.running.script import Failed, Script

script = Script("compare", "the same command goes on from here")

TRIAL = Arm("wpl", "controller")  # what the strength is chosen by


class NoResult(Failed):
    """A stage has left nothing to go on with."""


@script
def main(argv: Sequence[str] | None = None) -> int:
    with contextlib.ExitStack() as stack:
        with script.preparing():
            config = parse(argv)
            plan = plan_of(config)
            stop = stack.enter_context(interruptible(again=signal.default_int_handler))
            pool = stack.enter_context(Pool(plan.runs, config.jobs, stop))
            stack.enter_context(Held(plan.out))
            check_report(plan.out, "compare", config)
        try:
            results = experiment(plan, pool)
        except (Interrupted, KeyboardInterrupt):
            print("compare: interrupted; the same command goes on from here", file=sys.stderr)
            return stop.exit_code
        saved = summary.gathered(plan, results)
        report.write(saved, plan.out)
        saved.write(plan.out)
        Console().print(tables.terminal(saved))
        print(f"Written to {plan.out}")
        if hint := spaces.next_preset("comparisons", config):
            print(hint, file=sys.stderr)
        return 1 if results.failed else 0


def parse(argv: Sequence[str] | None) -> Compare:
    return spaces.settings(
        "comparisons", argv, prog="python -m experiments.compare", description=__doc__
    )


def plan_of(config: Compare) -> Plan:
    """The plan; refuses what every run would refuse: bad settings, data that are not there."""
    searches = search.parse(search_flags(config))
    finals = train_final.parse(final_flags(config))
    if searches.epochs <= searches.warmup_epochs:
        raise ValueError(
            f"searches must have more epochs than the {searches.warmup_epochs} of the "
            f"warm-up, got --epochs {searches.epochs}"
        )
    task, of_search, searches = spaces.read(searches)
    search.cut(searches, task, of_search)
    _, of_final, finals = spaces.read(finals, task)
    corpora = {"search": of_search, "final": of_final}
    sizes = {name: task.sizes(corpus) for name, corpus in corpora.items()}
    folder = Path("results/compare", task.name)
    return Plan(
        dataclasses.replace(config, random_cells=config.random_cells or config.seeds),
        searches,
        finals,
        sizes,
        facts={name: task.facts(corpus) for name, corpus in corpora.items()},
        data={name: task.fingerprint(corpus) for name, corpus in corpora.items()},
        out=config.out or folder / config.preset,
        runs=config.runs or folder / f"{config.preset}_runs",
    )


def search_flags(config: Compare) -> list[str]:
    """Those that all searches have in common."""
    own = ("method", "sampler", "strength", "probes")
    return common_flags(config, "--search-flags", config.search_flags, own)


def final_flags(config: Compare) -> list[str]:
    """Those that all final trainings have in common."""
    own = ("architecture", "seed-architecture")
    return common_flags(config, "--final-flags", config.final_flags, own)


def common_flags(config: Compare, flag: str, more: str, own: Sequence[str]) -> list[str]:
    data_dir = ["--data-dir", str(config.data_dir)] if config.data_dir else []
    taken = ["space", "preset", "seed", "out", "resume", *own, *["data-dir"] * bool(data_dir)]
    words = command_line.words(flag, more, taken)
    return ["--space", config.space, "--preset", config.preset, *data_dir, *words]


def search_run(plan: Plan, name: str, arm: Arm, seed: int, strength: float) -> Run:
    flags = search_flags(plan.config)
    flags += ["--method", arm.method, "--sampler", arm.sampler]
    flags += ["--strength", f"{strength:.12g}"] if arm.method == "wpl" else []
    flags += ["--seed", f"{seed}", "--probes", f"{plan.config.random_cells}"]
    settings = search.parse(flags).with_space(**plan.sizes["search"])
    expected = {
        "configuration": search.settings(settings) | {"probes": settings.probes},
        "epochs": settings.epochs,
        "data": plan.data["search"],
    }
    return Run(name, "search", tuple(flags), expected, left_by_search)


def final_run(plan: Plan, name: str, architecture: str, seed: int) -> Run:
    return cells.final_run(
        *(name, final_flags(plan.config), architecture, seed, plan.search),
        *(plan.sizes["final"], plan.data["final"]),
    )


def experiment(plan: Plan, pool: Pool) -> Results:
    """All that trains, a stage after another."""
    config = plan.config
    trials = {
        strength: [
            search_run(plan, f"strength/{strength:g}_{seed}", TRIAL, seed, strength)
            for seed in config.strength_seeds
        ]
        for strength in (config.strengths if len(config.strengths) > 1 else ())
    }
    pool.execute("strength", sum(trials.values(), []))
    candidates = {
        strength: [searched(plan, pool, run) for run in runs] for strength, runs in trials.items()
    }
    strength = choose(candidates) if candidates else config.strengths[0]

    searches = {
        arm: [
            search_run(plan, f"search/{arm.name}_{seed}", arm, seed, strength)
            for seed in range(config.seeds)
        ]
        for arm in ARMS
    }
    pool.execute("search", sum(searches.values(), []))
    arms = {arm: [searched(plan, pool, run) for run in runs] for arm, runs in searches.items()}
    if not any(found for of_arm in arms.values() for found in of_arm):
        raise NoResult("no search has finished")

    architectures = {
        (arm.name, seed): str(plan.runs / run.name / "best.json")
        for arm, runs in searches.items()
        for seed, run in enumerate(runs)
        if arms[arm][seed]
    }
    architectures |= {("random", seed): "random" for seed in range(config.random_cells)}
    for name in plan.task.cells():
        architectures |= {(name, seed): name for seed in range(config.seeds)}
    finals = {
        (name, seed): final_run(plan, f"final/{name}_{seed}", architecture, seed)
        for (name, seed), architecture in architectures.items()
    }
    pool.execute("final", list(finals.values()))
    return Results(
        strength,
        candidates,
        arms,
        {key: left for key, run in finals.items() if (left := pool.summary(run))},
        sum([*trials.values(), *searches.values()], []) + list(finals.values()),
        pool.failed,
    )


def searched(plan: Plan, pool: Pool, run: Run) -> Searched | None:
    """What a search has left, if it has finished."""
    if not (left := pool.summary(run)):
        return None
    metrics, cell, probes = left_by_search(plan.runs / run.name)
    return Searched(metrics, left, cell, probes)


def left_by_search(folder: Path) -> tuple[dict, dict, list[dict]]:
    """What a search leaves beside its summary: its metrics, its best cell, and its probes."""
    cell, probes = (json.loads((folder / f"{n}.json").read_bytes()) for n in ("best", "probes"))
    return read_metrics(folder), cell, probes


def choose(candidates: Mapping[float, Sequence[Searched | None]]) -> float:
    """The strength with the lowest err2, mean over architectures, epochs after warm-up, and seeds.

    None that made a search fail, or left an epoch without a finite error, is chosen.
    """
    errors = {
        strength: np.mean([found.after_warmup("err2_mean").mean() for found in runs])
        for strength, runs in candidates.items()
        if all(runs)
    }
    errors = {strength: error for strength, error in errors.items() if np.isfinite(error)}
    if not errors:
        raise NoResult("no strength can be chosen: with each, a search failed or diverged")
    return min(errors, key=errors.__getitem__)


if __name__ == "__main__":
    jax.config.update("jax_platforms", "cpu")  # for the drawings; a GPU is for the runs
    sys.exit(main())
