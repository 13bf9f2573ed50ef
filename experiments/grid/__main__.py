"""Many searches, each arm at its own best settings, ranked and compared.

In turn, each stage by runs of a script of its own: trials, which choose the flags of each arm that
has several to choose from, by validation, on seeds of their own; searches of every arm with every
seed; with --truth, the ranking of all architectures by each of them; and with --cells, the training
from scratch of the cells that they have found, of random ones and of published ones.
Writes summary.json, curves.npz, the cells of --cells, report.md and figures to --out: a map of
regimes with --vary, otherwise every seed and the intervals of all arms. What was interrupted goes
on where it stopped when the same command is given again. To draw report and figures anew from what
is in --out: python -m experiments.grid.report OUT.
"""

import contextlib
import signal
import sys
from collections.abc import Sequence

import jax
from rich.console import Console

from experiments.grid import cells, report, summary
from experiments.grid.choosing import choose
from experiments.grid.plan import (
    Plan,
    Results,
    Searched,
    all_searches,
    left_by_search,
    plan_of,
    ranking_run,
    search_run,
    together,
)
from experiments.grid.settings import Grid
from experiments.running import command_line
from experiments.running.folder import Held, check_report
from experiments.running.pool import Interrupted, Pool, Run
from experiments.running.progress import interruptible
from experiments.running.script import Failed, Script

script = Script("grid", "the same command goes on from here")


class NoResult(Failed):
    """The searches have left nothing to report."""


@script
def main(argv: Sequence[str] | None = None) -> int:
    with contextlib.ExitStack() as stack:
        with script.preparing():
            plan = plan_of(parse(argv))
            stop = stack.enter_context(interruptible(again=signal.default_int_handler))
            pool = stack.enter_context(Pool(plan.runs, plan.config.jobs, stop))
            stack.enter_context(Held(plan.out))
            check_report(plan.out, "grid", plan.config)
        try:
            results = experiment(plan, pool)
        except (Interrupted, KeyboardInterrupt):
            print("grid: interrupted; the same command goes on from here", file=sys.stderr)
            return stop.exit_code
        saved = summary.gathered(plan, results)
        saved.write(plan.out)  # first, so that nothing is lost if it cannot be drawn
        report.write(saved, plan.out)
        Console().print(report.terminal(saved))
        print(f"Written to {plan.out}")
        return 1 if results.failed else 0


def parse(argv: Sequence[str] | None) -> Grid:
    return command_line.read(Grid(), argv, prog="python -m experiments.grid", description=__doc__)


def experiment(plan: Plan, pool: Pool) -> Results:
    """All that is run, a stage after another."""
    config = plan.config
    if config.together:  # what follows finds what it needs
        arms = [a for a in plan.arms if not all(map(pool.summary, all_searches(plan, a)))]
        pool.execute("together", [together(plan, arm) for arm in arms])
    tried = {
        arm.name: [
            [search_run(plan, "trial", arm, i, seed) for seed in config.trial_seeds]
            for i in range(len(arm.candidates))
        ]
        for arm in plan.arms
        if len(arm.candidates) > 1
    }
    trials = [run for candidates in tried.values() for runs in candidates for run in runs]
    pool.execute("trial", trials)
    candidates = {
        name: [[searched(plan, pool, run) for run in runs] for runs in of_arm]
        for name, of_arm in tried.items()
    }
    chosen = {
        arm.name: choose(candidates[arm.name]) if arm.name in candidates else 0 for arm in plan.arms
    }
    failed = [
        f"{name}: no flags can be chosen: with each, a search failed or diverged"
        for name, candidate in chosen.items()
        if candidate is None
    ]

    # All arms of a seed before the next seed, so that they are looked at side by side early.
    places = [
        (arm, chosen[arm.name], seed)
        for seed in range(config.seeds)
        for arm in plan.arms
        if chosen[arm.name] is not None
    ]
    searches = {
        (arm.name, seed): search_run(plan, "search", arm, i, seed) for arm, i, seed in places
    }
    pool.execute("search", list(searches.values()))
    finished = {key: searched(plan, pool, run) for key, run in searches.items()}
    if not any(finished.values()):
        raise NoResult("no search has finished: " + "; ".join([*failed, *pool.failed][:3]))

    ranked = {
        (arm.name, seed): ranking_run(plan, arm, i, seed)
        for arm, i, seed in places
        if plan.accuracies and finished[arm.name, seed]
    }
    pool.execute("rank", list(ranked.values()))

    found = {
        key: plan.runs / run.name / "best.json" for key, run in searches.items() if finished[key]
    }
    trained = cells.shared(cells.runs(plan, found), pool) if config.cells else {}
    trainings = {run.name: run for run in trained.values()}
    pool.execute("final", list(trainings.values()))
    tested = {name: pool.summary(run) for name, run in trainings.items()}

    def by_seed(found):
        return {
            arm.name: [found.get((arm.name, seed)) for seed in range(config.seeds)]
            for arm in plan.arms
        }

    return Results(
        candidates,
        chosen,
        by_seed(finished),
        by_seed({key: pool.summary(run) for key, run in ranked.items()}),
        {key: run.name for key, run in trained.items()},
        {name: left for name, left in tested.items() if left},
        [*trials, *searches.values(), *ranked.values(), *trainings.values()],
        [*failed, *pool.failed],
    )


def searched(plan: Plan, pool: Pool, run: Run) -> Searched | None:
    """What a search has left, if it has finished."""
    if not (left := pool.summary(run)):
        return None
    metrics, *others = left_by_search(plan.runs / run.name)
    return Searched(metrics, left, *others)


if __name__ == "__main__":
    jax.config.update("jax_platforms", "cpu")  # for the drawings; a GPU is for the runs
    sys.exit(main())
