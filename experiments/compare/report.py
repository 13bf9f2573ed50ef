"""What the comparison of searches writes: numbers, tables, figures and cells."""

import dataclasses
import io
import json
import math
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from rich import box
from rich.table import Table

from experiments.compare.settings import Compare
from experiments.running import records
from experiments.running.pool import Run, clock, flat
from experiments.spaces import final_settings as final_settings
from experiments.spaces import search_settings as search_settings
from experiments.spaces.final_settings import FinalRun
from experiments.spaces.search_settings import SearchRun
from experiments.spaces.tasks import TASKS, Task
from wpl_jax import figures
from wpl_jax.forgetting import mean_interval

# Differences of errors, by name in metrics.jsonl: heading.
FORGETTING = {
    "forgetting_mean": "mean",
    "forgetting_best5": "best 5",
    "forgetting_max": "max",
}
# By name in metrics.jsonl: heading, digits.
METRICS = {
    **{name: (heading, 2) for name, heading in FORGETTING.items()},
    "forgetting_share": ("share worse", 2),
    "kendall_tau": ("Kendall's τ", 2),
    "err2_mean": ("err2", 1),
    "reward": ("reward", 3),
}
# Where the error of a cell is measured: heading.
ERRORS = {"derived": "in the search", "validation": "validation", "test": "test"}
# Settings that say how a run is named, kept or computed, but not what it computes.
ASIDE = (
    *("preset", "data_dir", "text_dir", "out", "resume", "seed", "max_skipped"),
    *("plasticity", "search.strategy", "search.chunk", "search.at_once"),
    *("architecture", "seed_architecture", "windows_per_call", "steps_per_call", "probes"),
)


class Arm(NamedTuple):
    """A kind of search."""

    plasticity: str
    strategy: str

    @property
    def name(self) -> str:
        return f"{self.plasticity}_{self.strategy}"

    @property
    def label(self) -> str:
        who = {"reinforce": "controller", "random": "random"}[self.strategy]
        return f"{'WPL' if self.plasticity == 'wpl' else 'plain'}, {who}"


ARMS = tuple(
    Arm(plasticity, strategy)
    for strategy in ("reinforce", "random")
    for plasticity in ("none", "wpl")
)
# Cool: plain, warm: WPL.
STYLES = {
    "plain, controller": {"color": "tab:blue"},
    "WPL, controller": {"color": "tab:red"},
    "plain, random": {"color": "tab:cyan", "linestyle": "--"},
    "WPL, random": {"color": "tab:orange", "linestyle": "--"},
}
OTHERS = {"random": "random cells", "enas": "ENAS's cell", "darts_style": "DARTS-style cell"}


class Plan(NamedTuple):
    """What is to be compared."""

    config: Compare
    search: SearchRun  # what all searches have in common
    final: FinalRun  # what all final trainings have in common
    sizes: dict[str, dict]  # of "search" and "final": what their data decide about the space
    facts: dict[str, dict]  # of both: what there is to say of their data
    out: Path
    runs: Path

    @property
    def task(self) -> Task:
        return TASKS[self.config.space]

    def key(self, part: str) -> str:
        """By which an error is stored: of a part of the data, or in the search."""
        return f"{part}_{records.key(self.task.ERROR)}"


class Searched(NamedTuple):
    """A search that has finished."""

    metrics: dict[str, np.ndarray]  # shape=(epochs,), NaN where there was nothing to measure
    summary: dict
    cell: dict
    probes: Sequence[dict] = ()  # random cells' errors on the shared weights at the end, by seed

    def after_warmup(self, name: str) -> np.ndarray:
        """A metric of the epochs that plasticity, if any, has acted in."""
        return self.metrics[name][self.summary["configuration"]["search"]["warmup_epochs"] :]


class Results(NamedTuple):
    """What the runs came to; None, or no entry, for one that failed."""

    strength: float
    candidates: dict[float, list[Searched | None]]  # by strength, of the seeds that choose it
    arms: dict[Arm, list[Searched | None]]  # of each seed
    finals: dict[tuple[str, int], dict]  # by name of an arm or cell, and seed: summaries
    runs: list[Run]
    failed: list[str]  # a line each


def summarise(plan: Plan, results: Results) -> dict:
    """The numbers of the comparison: means over seeds with 95 % intervals."""
    values = {arm: by_seed(plan, results, arm) for arm in ARMS}
    keys = [plan.key(part) for part in ERRORS]
    finished = [found for of_arm in results.arms.values() for found in of_arm if found]
    trials = [found for runs in results.candidates.values() for found in runs if found]
    summaries = [found.summary for found in (*finished, *trials)] + list(results.finals.values())
    cells = [
        {"name": arm.name, "seed": seed} | {key: finite(values[arm][key][seed]) for key in keys}
        for arm in ARMS
        for seed, found in enumerate(results.arms[arm])
        if found
    ]
    names = {arm.name for arm in ARMS}
    others = dict.fromkeys(name for name, _ in results.finals if name not in names)
    return {
        "arms": [
            arm._asdict()
            | {"name": arm.name, "runs": sum(map(bool, results.arms[arm]))}
            | {"parameters": parameters(arm.name, results)}
            | {name: interval(of_seeds) for name, of_seeds in values[arm].items()}
            for arm in ARMS
        ],
        "wpl_against_plain": [
            against(plan, strategy, values[Arm("none", strategy)], values[Arm("wpl", strategy)])
            for strategy in ("reinforce", "random")
        ],
        "published_reduction": plan.task.PUBLISHED,
        "cells": cells,
        "others": [other(plan, name, results) for name in others],
        "rank_correlation": rank_correlation(*([cell[key] for cell in cells] for key in keys[:2])),
        "probes": plan.config.random_cells,
        "strength": {
            "chosen": results.strength,
            "rule": rule(plan) if results.candidates else "given",
            "candidates": [
                {"strength": strength} | candidate(found)
                for strength, found in results.candidates.items()
            ],
        },
        "failed": results.failed,
        **{
            name: {run: facts[name] for run, facts in plan.facts.items()}
            for name in plan.facts["search"]
        },
        "configuration": {
            name: {key: str(v) if isinstance(v, Path) else v for key, v in settings.items()}
            for name, settings in (
                ("compare", dataclasses.asdict(plan.config)),
                ("search", dataclasses.asdict(plan.search)),
                ("final", dataclasses.asdict(plan.final)),
            )
        },
        "seconds": sum(summary["seconds"] for summary in summaries),
        **records.provenance(),
        **{name: summaries[0][name] for name in ("versions", "devices", "machine")},  # of the runs
    }


def rule(plan: Plan) -> str:
    return (
        f"the lowest err2, the mean {plan.task.ERROR} at the end of an epoch of all its "
        "architectures, over the epochs after the warm-up and the seeds"
    )


def by_seed(plan: Plan, results: Results, arm: Arm) -> dict[str, np.ndarray]:
    """By name, what each seed came to; NaN for a run that failed."""
    found = results.arms[arm]
    values = {
        name: [mean(search.after_warmup(name)) if search else math.nan for search in found]
        for name in METRICS
    }
    best = plan.key("best")
    values[plan.key("derived")] = [search.summary[best] if search else math.nan for search in found]
    for key in (plan.key("validation"), plan.key("test")):
        values[key] = [
            results.finals.get((arm.name, seed), {}).get(key, math.nan)
            for seed in range(len(found))
        ]
    values["probes_tau"] = [
        probes_tau(plan, results, search) if search else math.nan for search in found
    ]
    return {name: np.array(of_seeds, np.float64) for name, of_seeds in values.items()}


def probes_tau(plan: Plan, results: Results, search: Searched) -> float:
    """Kendall's tau between the orders of random cells on shared weights and trained alone."""
    error, validation = records.key(plan.task.ERROR), plan.key("validation")
    finals = (results.finals.get(("random", p["seed"]), {}) for p in search.probes)
    alone = [summary.get(validation) for summary in finals]
    found = rank_correlation([probe[error] for probe in search.probes], alone)
    tau = found["kendall_tau"]
    return math.nan if tau is None or found["cells"] < 3 else tau


def against(
    plan: Plan, strategy: str, plain: dict[str, np.ndarray], wpl: dict[str, np.ndarray]
) -> dict:
    """What WPL changes: shares of the differences, (d - d_wpl) / d, and by seed what is last."""
    differences = {name: (mean(plain[name]), mean(wpl[name])) for name in FORGETTING}
    last = (*map(plan.key, ERRORS), "probes_tau")
    return {
        "strategy": strategy,
        "reduction": {
            name: finite((d - d_wpl) / d) if d > 0 else None
            for name, (d, d_wpl) in differences.items()
        },
        "difference": {name: interval(wpl[name] - plain[name]) for name in last},
    }


def other(plan: Plan, name: str, results: Results) -> dict:
    """Of a cell that no search here has found."""
    runs = [summary for (key, _), summary in results.finals.items() if key == name]
    keys = (plan.key("validation"), plan.key("test"))
    return {"name": name, "runs": len(runs), "parameters": parameters(name, results)} | {
        key: interval(np.array([run[key] for run in runs], np.float64)) for key in keys
    }


def parameters(name: str, results: Results) -> int | None:
    """How many a cell has in final training; cells of one name have as many nodes."""
    return next((s["parameters"] for (key, _), s in results.finals.items() if key == name), None)


def candidate(found: Sequence[Searched | None]) -> dict:
    """Of a strength, by seed: None for a run that failed."""
    return {
        name: [finite(mean(search.after_warmup(name))) if search else None for search in found]
        for name in ("err2_mean", *FORGETTING)
    }


def rank_correlation(*errors: Sequence[float | None]) -> dict:
    """Kendall's tau between the orders of cells by two errors; None where there is none."""
    from scipy import stats

    pairs = [pair for pair in zip(*errors, strict=True) if None not in pair]
    tau = stats.kendalltau(*zip(*pairs, strict=True)).statistic if len(pairs) > 1 else math.nan
    return {"kendall_tau": finite(tau), "cells": len(pairs)}


def mean(values: np.ndarray) -> float:
    """Of what is finite; NaN if nothing is."""
    measured = values[np.isfinite(values)]
    return float(measured.mean()) if len(measured) else math.nan


def interval(values: np.ndarray) -> dict[str, float | None]:
    """Mean and 95 % interval of what is finite; None where there are too few seeds for it."""
    measured = values[np.isfinite(values)]
    low = high = math.nan
    if len(measured) > 1:
        _, low, high = mean_interval(measured)
    return {"mean": finite(mean(measured)), "low": finite(low), "high": finite(high)}


def finite(number: float) -> float | None:
    """JSON knows no infinity and no NaN."""
    return float(number) if math.isfinite(number) else None


def write(plan: Plan, results: Results, summary: dict) -> None:
    """Write every output, the summary last."""
    for name, figure in draw_figures(plan, results).items():
        for suffix in ("png", "pdf"):
            buffer = io.BytesIO()
            figure.savefig(buffer, format=suffix, dpi=150)
            records.write_atomically(plan.out / f"{name}.{suffix}", buffer.getvalue())
    (plan.out / "cells").mkdir(exist_ok=True)
    for arm, of_arm in results.arms.items():
        for seed, search in enumerate(of_arm):
            if search:
                text = json.dumps(search.cell, indent=1) + "\n"
                records.write_atomically(plan.out / "cells" / f"{arm.name}_{seed}.json", text)
    arrays = {"epochs": epochs(plan)}
    for arm in ARMS:
        arrays |= {f"{arm.name}/{name}": v for name, v in curves(plan, results, arm).items()}
    records.write_atomically(plan.out / "curves.npz", records.npz(arrays))
    records.write_atomically(plan.out / "report.md", report(plan, results, summary))
    records.write_atomically(
        plan.out / "summary.json", json.dumps(summary, indent=1, allow_nan=False) + "\n"
    )


def epochs(plan: Plan) -> np.ndarray:
    return np.arange(1, plan.search.epochs + 1)


def curves(plan: Plan, results: Results, arm: Arm) -> dict[str, np.ndarray]:
    """By metric, shape ``(seeds, epochs)``."""
    names = next(list(found.metrics) for runs in results.arms.values() for found in runs if found)
    nothing = np.full(plan.search.epochs, np.nan)
    return {
        name: np.stack([s.metrics[name] if s else nothing for s in results.arms[arm]])
        for name in names
        if name not in ("epoch", "seconds")
    }


def best(plan: Plan, results: Results) -> dict[Arm, int]:
    """Each arm's seed with the lowest validation error: trained alone, or else in its search.

    An arm without a search that has finished has none.
    """
    chosen = {}
    for arm, found in results.arms.items():
        values = by_seed(plan, results, arm)
        order = np.lexsort((values[plan.key("derived")], values[plan.key("validation")]))
        if there := [int(seed) for seed in order if found[seed]]:
            chosen[arm] = there[0]
    return chosen


def draw_figures(plan: Plan, results: Results) -> dict:
    """By file name, the figures of the comparison."""
    task, space, graphs = plan.task, plan.search.search_space, {}
    for arm, seed in best(plan, results).items():
        cells = space.graphs(space.from_json(results.arms[arm][seed].cell))
        for name, graph in cells.items():
            title = f"{arm.label}, seed {seed}"
            graphs[title if len(cells) == 1 else f"{title}, {name}"] = graph

    def shown(arm):
        by_name = curves(plan, results, arm)
        return by_name | {name: task.SCALE * by_name[name] for name in FORGETTING}

    return {
        f"figure{task.FIGURE}": figures.search_curves(
            {arm.label: shown(arm) for arm in ARMS},
            epochs(plan),
            STYLES,
            plan.search.search.warmup_epochs,
            task.ERROR + task.UNIT,
        ),
        "figure5": figures.draw(graphs),
    }


def show(number: dict[str, float | None], digits: int, scale: float = 1) -> str:
    """A mean and half of its interval."""
    if number["mean"] is None:
        return "–"
    text = signed(scale * number["mean"], digits)
    if number["high"] is not None:
        text += f" ± {scale * (number['high'] - number['mean']):.{digits}f}"
    return text


def show_mean(number: dict[str, float | None], digits: int, scale: float = 1) -> str:
    return show(number | {"high": None}, digits, scale)


def scale(plan: Plan, metric: str) -> float:
    """What a metric is multiplied by to be shown."""
    return plan.task.SCALE if metric in (*FORGETTING, "err2_mean") else 1


def percent(share: float | None) -> str:
    return "–" if share is None else f"{signed(100 * share, 0)} %"


def signed(number: float, digits: int) -> str:
    return f"{number:.{digits}f}".replace("-", "−")


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table whose first column is text and whose others are numbers."""
    lines = [header, ["---"] + ["---:"] * (len(header) - 1), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def table(plan: Plan, summary: dict) -> Table:
    """The summary for a terminal of 80 columns."""
    task = plan.task
    view = Table(
        title=f"Forgetting after the warm-up, and {task.ERROR}{task.UNIT}; means over seeds",
        box=box.SIMPLE,
        collapse_padding=True,
        pad_edge=False,
    )
    for column in ("", "mean", "best 5", "max", "reward", "in search", "valid.", "test"):
        view.add_column(column, justify="right" if column else "left")
    for arm in summary["arms"]:
        numbers = [
            show_mean(arm[name], METRICS[name][1], scale(plan, name))
            for name in (*FORGETTING, "reward")
        ]
        numbers += [show_mean(arm[plan.key(part)], 1, task.SCALE) for part in ERRORS]
        view.add_row(label(arm["name"]), *numbers)
    for cell in summary["others"]:
        parts = ("validation", "test")
        tested = [show_mean(cell[plan.key(part)], 1, task.SCALE) for part in parts]
        view.add_row(label(cell["name"]), *[""] * 5, *tested)
    return view


def label(name: str) -> str:
    return ({arm.name: arm.label for arm in ARMS} | OTHERS).get(name, name)


def report(plan: Plan, results: Results, summary: dict) -> str:
    """The comparison as a page of Markdown."""
    config, base, task = plan.config, plan.search, plan.task
    devices = ", ".join(sorted(set(summary["devices"])))
    return f"""# Architecture search with and without plasticity

`{summary["command"]}`

{config.seeds} searches of each kind on {task.source(base)}, \
{base.epochs} epochs of {base.search.architectures} architectures with {base.search.batches} \
training batches each; {len(results.runs) - len(results.failed)} runs, {clock(summary["seconds"])} \
of training in all, on {summary["machine"]} ({devices}), jax {summary["versions"]["jax"]}.

"Plain" is weight sharing as it is (ENAS), "WPL" the same with plasticity of strength \
{results.strength:g} after {base.search.warmup_epochs} epochs of warm-up. A "controller" trained \
by REINFORCE chooses the architectures, or they are "random", uniformly. Numbers are means over \
seeds, ± half of their 95 % interval.{percent_points(plan)}
{failures(summary)}
## Forgetting

Of every architecture: err1 is its validation {task.ERROR} right after its own training, err2 \
that at the end of the epoch, and forgetting the difference err2 − err1: its mean over the \
architectures of an epoch, the mean over the 5 with the lowest err1, the maximum, and the share of \
architectures that got worse. Kendall's τ compares the orders by err1 and by err2; err2 and the \
reward ({task.reward(base.search_space)}) are means over architectures. All are averaged over the \
{base.epochs - base.search.warmup_epochs} epochs after the warm-up.

{forgetting_table(plan, summary)}

What WPL takes off, (d − d_WPL) / d, where d is a plain search's mean over epochs and seeds ("–" \
where d is not above 0: nothing was forgotten); and by how much it changes the {task.ERROR} of the \
derived cells (below 0: better), paired by seed. Over 100 % architectures gained with WPL; where \
the interval of d, above, reaches 0, the share says little.

{reduction_table(plan, summary)}

![What searches forget, and the reward they reach, over epochs](figure{task.FIGURE}.png)

## The cells that were found

Each search derives the best of {base.derive_samples} sampled cells by its {task.ERROR} on shared \
weights ("in the search", {base.derive_batches} validation batches). It is then trained from \
scratch for {plan.final.epochs} epochs, as are random cells of as many nodes and published ones, \
and evaluated on {task.WHOLE}.

{cell_table(plan, summary)}

{correlation(summary)}

![Each kind's cell with the lowest validation {task.ERROR}](figure5.png)

{every_cell(plan, summary)}

## Whether shared weights rank cells

At its end every search measures the same {summary["probes"]} random cells on its shared weights. \
Kendall's τ between their order and that by their validation {task.ERROR} when each is trained \
from scratch ("–" for fewer than 3 cells); and WPL's less that of plain search, paired by seed.

{ranking_table(summary)}

## The strength

{strength_section(plan, results, summary)}

## What differs from the published search

Of the settings that `--preset paper` has, as far as they are known:

{difference_table(plan, results)}

`--implicit` is the proximal form of plasticity, not added to the gradient. `--search.protect` is
what it protects: edges, which only some architectures use, or all weights. `--search.batches` is
what an architecture trains for in an epoch. `--help` describes the others.

{task.remarks({"search": plan.search, "final": plan.final}, plan.facts)}

## Commands

One of each kind; the others have other seeds.

```
{commands(plan, results)}
```
"""


def failures(summary: dict) -> str:
    if not summary["failed"]:
        return ""
    lines = "\n".join(f"- {line}" for line in summary["failed"])
    return f"\n**Runs that failed, and are missing below:**\n\n{lines}\n"


def percent_points(plan: Plan) -> str:
    error = plan.task.ERROR
    return f" Each {error} is in percent, and so are differences." if plan.task.UNIT else ""


def forgetting_table(plan: Plan, summary: dict) -> str:
    rows = [
        [
            label(arm["name"]),
            *(show(arm[name], n, scale(plan, name)) for name, (_, n) in METRICS.items()),
        ]
        for arm in summary["arms"]
    ]
    return markdown(["search", *(heading for heading, _ in METRICS.values())], rows)


def ranking_table(summary: dict) -> str:
    rows = [[label(arm["name"]), show(arm["probes_tau"], 2)] for arm in summary["arms"]]
    rows += [
        [
            f"WPL − plain, {label('wpl_' + pair['strategy']).removeprefix('WPL, ')}",
            show(pair["difference"]["probes_tau"], 2),
        ]
        for pair in summary["wpl_against_plain"]
    ]
    return markdown(["search", "Kendall's τ"], rows)


def reduction_table(plan: Plan, summary: dict) -> str:
    task = plan.task
    rows = [
        [
            label(f"wpl_{pair['strategy']}").removeprefix("WPL, "),
            *(percent(pair["reduction"][name]) for name in FORGETTING),
            *(show(pair["difference"][plan.key(part)], 2, task.SCALE) for part in ERRORS),
        ]
        for pair in summary["wpl_against_plain"]
    ]
    rows.append(["the paper, up to", *map(percent, task.PUBLISHED.values()), "", "", ""])
    return markdown(
        [
            "architectures by",
            *FORGETTING.values(),
            *(f"{task.ERROR}, {heading}" for heading in ERRORS.values()),
        ],
        rows,
    )


def cell_table(plan: Plan, summary: dict) -> str:
    factor = plan.task.SCALE
    rows = [
        [
            label(arm["name"]),
            f"{arm['runs']}",
            count(arm["parameters"]),
            *(show(arm[plan.key(part)], 2, factor) for part in ERRORS),
        ]
        for arm in summary["arms"]
    ]
    for cell in summary["others"]:
        tested = (show(cell[plan.key(part)], 2, factor) for part in ("validation", "test"))
        rows.append(
            [label(cell["name"]), f"{cell['runs']}", count(cell["parameters"]), "", *tested]
        )
    return markdown(["cells", "runs", "parameters", *ERRORS.values()], rows)


def count(number: int | None) -> str:
    return "–" if number is None else f"{number:,}"


def correlation(summary: dict) -> str:
    tau, count = summary["rank_correlation"].values()
    if tau is None:
        return "There are too few cells for a rank correlation."
    return (
        f"Kendall's τ between the orders of the {count} cells in their searches and, trained from "
        f"scratch, on validation data: {signed(tau, 2)}."
    )


def every_cell(plan: Plan, summary: dict) -> str:
    """A row for each cell that was found, with the file that it is in."""
    rows, factor = [], plan.task.SCALE
    for cell in summary["cells"]:
        name = f"{cell['name']}_{cell['seed']}"
        errors = [cell[plan.key(part)] for part in ERRORS]
        numbers = ("–" if error is None else f"{factor * error:.2f}" for error in errors)
        rows.append([f"[{label(cell['name'])}, seed {cell['seed']}](cells/{name}.json)", *numbers])
    return markdown(["cell", *ERRORS.values()], rows)


def strength_section(plan: Plan, results: Results, summary: dict) -> str:
    if not results.candidates:
        return f"It was given: {results.strength:g}."
    seeds = ", ".join(map(str, plan.config.strength_seeds))
    rows = [
        [
            f"**{row['strength']:g}**"
            if row["strength"] == results.strength
            else f"{row['strength']:g}",
            *(
                show(interval(np.array(row[name], np.float64)), 2, scale(plan, name))
                for name in ("err2_mean", *FORGETTING)
            ),
        ]
        for row in summary["strength"]["candidates"]
    ]
    header = ["strength", *(METRICS[name][0] for name in ("err2_mean", *FORGETTING))]
    return f"""Chosen by a rule on searches of their own (WPL, controller, seeds {seeds}): \
{rule(plan)}. A strength with which a search failed is not chosen.

{markdown(header, rows)}"""


def difference_table(plan: Plan, results: Results) -> str:
    """The settings in which searches and final trainings are not the paper's."""
    rows = []
    for script, settings, paper in (
        ("search", plan.search, search_settings.PRESETS[plan.config.space]["paper"]),
        ("train_final", plan.final, final_settings.PRESETS[plan.config.space]["paper"]),
    ):
        if script == "search":
            settings = dataclasses.replace(settings, strength=results.strength)
        here, there = flat(dataclasses.asdict(settings)), flat(dataclasses.asdict(paper))
        rows += [
            [f"{script} `--{name.replace('_', '-')}`", value(here[name]), value(there[name])]
            for name in here
            if name not in ASIDE and here[name] != there[name]
        ]
    return markdown(["setting", "here", "paper"], rows) if rows else "There is no difference."


def value(setting: object) -> str:
    if isinstance(setting, bool):
        return "yes" if setting else "no"
    if isinstance(setting, float):
        return f"{setting:g}"
    return f"{setting:,}" if isinstance(setting, int) else str(setting)


def commands(plan: Plan, results: Results) -> str:
    kinds: dict[str, str] = {}
    for run in results.runs:
        command = ["python", *run.command, "--out", str(plan.runs / run.name)]
        kinds.setdefault(run.name.rpartition("_")[0], shlex.join(command))
    return "\n".join(kinds.values())
