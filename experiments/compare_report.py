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

from experiments import records
from experiments.configs import search as search_settings
from experiments.configs import train_final as final_settings
from experiments.configs.compare import Compare
from experiments.configs.search import SearchRun
from experiments.configs.train_final import FinalRun
from experiments.pool import Run, clock, flat
from wpl_jax import drawing, plotting
from wpl_jax.forgetting import mean_interval

# What WPL takes off the differences in the paper (figure 3), as "up to".
PUBLISHED = {"forgetting_mean": 0.95, "forgetting_best5": 0.59, "forgetting_max": 0.51}
# By name in metrics.jsonl: heading, digits.
METRICS = {
    "forgetting_mean": ("mean", 2),
    "forgetting_best5": ("best 5", 2),
    "forgetting_max": ("max", 2),
    "forgetting_share": ("share worse", 2),
    "kendall_tau": ("Kendall's τ", 2),
    "err2_mean": ("err2", 1),
    "reward": ("reward", 3),
}
RULE = (
    "the lowest err2, the mean perplexity at the end of an epoch of all its architectures, over "
    "the epochs after the warm-up and the seeds"
)
# By name in the summary: heading.
PERPLEXITIES = {
    "derived_perplexity": "in the search",
    "validation_perplexity": "validation",
    "test_perplexity": "test",
}
# Settings that say how a run is named, kept or computed, but not what it computes.
ASIDE = (
    *("preset", "data_dir", "text_dir", "out", "resume", "seed", "max_skipped"),
    *("plasticity", "search.strategy", "search.chunk", "search.at_once"),
    *("architecture", "seed_architecture", "windows_per_call"),
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
    out: Path
    runs: Path


class Searched(NamedTuple):
    """A search that has finished."""

    metrics: dict[str, np.ndarray]  # shape=(epochs,), NaN where there was nothing to measure
    summary: dict
    cell: dict

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
    values = {arm: by_seed(results, arm) for arm in ARMS}
    finished = [found for of_arm in results.arms.values() for found in of_arm if found]
    trials = [found for runs in results.candidates.values() for found in runs if found]
    summaries = [found.summary for found in (*finished, *trials)] + list(results.finals.values())
    cells = [
        {"name": arm.name, "seed": seed}
        | {name: finite(values[arm][name][seed]) for name in PERPLEXITIES}
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
            against(strategy, values[Arm("none", strategy)], values[Arm("wpl", strategy)])
            for strategy in ("reinforce", "random")
        ],
        "published_reduction": PUBLISHED,
        "cells": cells,
        "others": [other(name, results) for name in others],
        "rank_correlation": rank_correlation(cells),
        "strength": {
            "chosen": results.strength,
            "rule": RULE if results.candidates else "given",
            "candidates": [
                {"strength": strength} | candidate(found)
                for strength, found in results.candidates.items()
            ],
        },
        "failed": results.failed,
        "unknown_share": {
            "search": finished[0].summary["unknown_share"],
            "final": next((s["unknown_share"] for s in results.finals.values()), None),
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


def by_seed(results: Results, arm: Arm) -> dict[str, np.ndarray]:
    """By name, what each seed came to; NaN for a run that failed."""
    found = results.arms[arm]
    values = {
        name: [mean(search.after_warmup(name)) if search else math.nan for search in found]
        for name in METRICS
    }
    values["derived_perplexity"] = [
        search.summary["best_perplexity"] if search else math.nan for search in found
    ]
    for name in ("validation_perplexity", "test_perplexity"):
        values[name] = [
            results.finals.get((arm.name, seed), {}).get(name, math.nan)
            for seed in range(len(found))
        ]
    return {name: np.array(of_seeds, np.float64) for name, of_seeds in values.items()}


def against(strategy: str, plain: dict[str, np.ndarray], wpl: dict[str, np.ndarray]) -> dict:
    """What WPL changes: shares of the differences, (d - d_wpl) / d, and perplexities by seed."""
    differences = {name: (mean(plain[name]), mean(wpl[name])) for name in PUBLISHED}
    return {
        "strategy": strategy,
        "reduction": {
            name: finite((d - d_wpl) / d) if d > 0 else None
            for name, (d, d_wpl) in differences.items()
        },
        "difference": {name: interval(wpl[name] - plain[name]) for name in PERPLEXITIES},
    }


def other(name: str, results: Results) -> dict:
    """Of a cell that no search here has found."""
    runs = [summary for (key, _), summary in results.finals.items() if key == name]
    perplexities = ("validation_perplexity", "test_perplexity")
    return {"name": name, "runs": len(runs), "parameters": parameters(name, results)} | {
        key: interval(np.array([run[key] for run in runs], np.float64)) for key in perplexities
    }


def parameters(name: str, results: Results) -> int | None:
    """How many a cell has in final training; cells of one name have as many nodes."""
    return next((s["parameters"] for (key, _), s in results.finals.items() if key == name), None)


def candidate(found: Sequence[Searched | None]) -> dict:
    """Of a strength, by seed: None for a run that failed."""
    return {
        name: [finite(mean(search.after_warmup(name))) if search else None for search in found]
        for name in ("err2_mean", *PUBLISHED)
    }


def rank_correlation(cells: Sequence[dict]) -> dict:
    """Kendall's tau between the orders of cells in their searches and after training alone."""
    from scipy import stats

    pairs = [(cell["derived_perplexity"], cell["validation_perplexity"]) for cell in cells]
    pairs = [pair for pair in pairs if None not in pair]
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
    for name, figure in figures(plan, results).items():
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


def best(results: Results) -> dict[Arm, int]:
    """Each arm's seed with the lowest validation perplexity: trained alone, or else in its search.

    An arm without a search that has finished has none.
    """
    chosen = {}
    for arm, found in results.arms.items():
        values = by_seed(results, arm)
        order = np.lexsort((values["derived_perplexity"], values["validation_perplexity"]))
        if there := [int(seed) for seed in order if found[seed]]:
            chosen[arm] = there[0]
    return chosen


def figures(plan: Plan, results: Results) -> dict:
    """By file name, the figures of the comparison."""
    graphs = {}
    for arm, seed in best(results).items():
        cell = results.arms[arm][seed].cell
        space = dataclasses.replace(plan.search.rnn, nodes=len(cell["nodes"]))
        graphs[f"{arm.label}, seed {seed}"] = space.graphs(space.from_json(cell))["cell"]
    return {
        "figure3": plotting.search_curves(
            {arm.label: curves(plan, results, arm) for arm in ARMS},
            epochs(plan),
            STYLES,
            plan.search.search.warmup_epochs,
            "perplexity",
        ),
        "figure5": drawing.draw(graphs),
    }


def show(number: dict[str, float | None], digits: int) -> str:
    """A mean and half of its interval."""
    if number["mean"] is None:
        return "–"
    text = signed(number["mean"], digits)
    if number["high"] is not None:
        text += f" ± {number['high'] - number['mean']:.{digits}f}"
    return text


def show_mean(number: dict[str, float | None], digits: int) -> str:
    return show(number | {"high": None}, digits)


def percent(share: float | None) -> str:
    return "–" if share is None else f"{signed(100 * share, 0)} %"


def signed(number: float, digits: int) -> str:
    return f"{number:.{digits}f}".replace("-", "−")


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table whose first column is text and whose others are numbers."""
    lines = [header, ["---"] + ["---:"] * (len(header) - 1), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def table(summary: dict) -> Table:
    """The summary for a terminal of 80 columns."""
    view = Table(
        title="Forgetting after the warm-up, and perplexities; means over seeds",
        box=box.SIMPLE,
        collapse_padding=True,
        pad_edge=False,
    )
    for column in ("", "mean", "best 5", "max", "reward", "in search", "valid.", "test"):
        view.add_column(column, justify="right" if column else "left")
    for arm in summary["arms"]:
        numbers = [show_mean(arm[name], METRICS[name][1]) for name in (*PUBLISHED, "reward")]
        numbers += [show_mean(arm[name], 1) for name in PERPLEXITIES]
        view.add_row(label(arm["name"]), *numbers)
    for cell in summary["others"]:
        tested = [show_mean(cell[f"{part}_perplexity"], 1) for part in ("validation", "test")]
        view.add_row(label(cell["name"]), *[""] * 5, *tested)
    return view


def label(name: str) -> str:
    return ({arm.name: arm.label for arm in ARMS} | OTHERS).get(name, name)


def report(plan: Plan, results: Results, summary: dict) -> str:
    """The comparison as a page of Markdown."""
    config, base = plan.config, plan.search
    devices = ", ".join(sorted(set(summary["devices"])))
    return f"""# Architecture search with and without plasticity

`{summary["command"]}`

{config.seeds} searches of each kind on {base.data if base.text_dir is None else base.text_dir}, \
{base.epochs} epochs of {base.search.architectures} architectures with {base.search.batches} \
training batches each; {len(results.runs) - len(results.failed)} runs, {clock(summary["seconds"])} \
of training in all, on {summary["machine"]} ({devices}), jax {summary["versions"]["jax"]}.

"Plain" is weight sharing as it is (ENAS), "WPL" the same with plasticity of strength \
{results.strength:g} after {base.search.warmup_epochs} epochs of warm-up. A "controller" trained \
by REINFORCE chooses the architectures, or they are "random", uniformly. Numbers are means over \
seeds, ± half of their 95 % interval.
{failures(summary)}
## Forgetting

Of every architecture: err1 is its validation perplexity right after its own training, err2 that at
the end of the epoch, and forgetting the difference err2 − err1: its mean over the architectures of
an epoch, the mean over the 5 with the lowest err1, the maximum, and the share of architectures that
got worse. Kendall's τ compares the orders by err1 and by err2; err2 and the reward \
({base.rnn.reward_scale:g} / err2) are means over architectures. All are averaged over the \
{base.epochs - base.search.warmup_epochs} epochs after the warm-up.

{forgetting_table(summary)}

What WPL takes off, (d − d_WPL) / d, where d is a plain search's mean over epochs and seeds ("–" \
where d is not above 0: nothing was forgotten); and by how much it changes the perplexity of the \
derived cells (below 0: better), paired by seed. Over 100 % architectures gained with WPL; where \
the interval of d, above, reaches 0, the share says little.

{reduction_table(summary)}

![What searches forget, and the reward they reach, over epochs](figure3.png)

## The cells that were found

Each search derives the best of {base.derive_samples} sampled cells by its perplexity on shared \
weights ("in the search", {base.derive_batches} validation batches). It is then trained from \
scratch for {plan.final.epochs} epochs, as are random cells of as many nodes and published ones, \
and evaluated on every token of the validation and test texts.{other_text(plan)}

{cell_table(summary)}

{correlation(summary)}

![Each kind's cell with the lowest validation perplexity](figure5.png)

{every_cell(summary)}

## The strength

{strength_section(plan, results, summary)}

## What differs from the published search

Of the settings that `--preset paper` has, as far as they are known:

{difference_table(plan, results)}

`--implicit` is the proximal form of plasticity, not added to the gradient. `--search.protect` is
what it protects: edges, which only some architectures use, or all weights. `--search.batches` is
what an architecture trains for in an epoch. `--help` describes the others.

{unknown(plan, summary)} `<unk>` is predicted as any other word. Perplexities under different \
vocabularies do not compare.

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


def forgetting_table(summary: dict) -> str:
    return markdown(
        ["search", *(heading for heading, _ in METRICS.values())],
        [
            [label(arm["name"]), *(show(arm[name], n) for name, (_, n) in METRICS.items())]
            for arm in summary["arms"]
        ],
    )


def reduction_table(summary: dict) -> str:
    rows = [
        [
            label(f"wpl_{pair['strategy']}").removeprefix("WPL, "),
            *(percent(pair["reduction"][name]) for name in PUBLISHED),
            *(show(pair["difference"][name], 2) for name in PERPLEXITIES),
        ]
        for pair in summary["wpl_against_plain"]
    ]
    rows.append(["the paper, up to", *map(percent, PUBLISHED.values()), "", "", ""])
    return markdown(
        [
            "architectures by",
            *(METRICS[name][0] for name in PUBLISHED),
            *(f"perplexity, {heading}" for heading in PERPLEXITIES.values()),
        ],
        rows,
    )


def other_text(plan: Plan) -> str:
    here, there = plan.search.rnn.vocabulary, plan.final.rnn.vocabulary
    if here == there:
        return ""
    return (
        f" They read {there:,} words, the searches {here:,}: the perplexities are of different "
        "texts, and only the orders compare."
    )


def cell_table(summary: dict) -> str:
    rows = [
        [
            label(arm["name"]),
            f"{arm['runs']}",
            count(arm["parameters"]),
            *(show(arm[name], 2) for name in PERPLEXITIES),
        ]
        for arm in summary["arms"]
    ]
    for cell in summary["others"]:
        tested = (show(cell[f"{part}_perplexity"], 2) for part in ("validation", "test"))
        rows.append(
            [label(cell["name"]), f"{cell['runs']}", count(cell["parameters"]), "", *tested]
        )
    return markdown(["cells", "runs", "parameters", *PERPLEXITIES.values()], rows)


def count(number: int | None) -> str:
    return "–" if number is None else f"{number:,}"


def correlation(summary: dict) -> str:
    tau, count = summary["rank_correlation"].values()
    if tau is None:
        return "There are too few cells for a rank correlation."
    return (
        f"Kendall's τ between the orders of the {count} cells in their searches and, trained from "
        f"scratch, on the validation text: {signed(tau, 2)}."
    )


def every_cell(summary: dict) -> str:
    """A row for each cell that was found, with the file that it is in."""
    rows = []
    for cell in summary["cells"]:
        name = f"{cell['name']}_{cell['seed']}"
        numbers = ("–" if cell[key] is None else f"{cell[key]:.2f}" for key in PERPLEXITIES)
        rows.append([f"[{label(cell['name'])}, seed {cell['seed']}](cells/{name}.json)", *numbers])
    return markdown(["cell", *PERPLEXITIES.values()], rows)


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
                show(interval(np.array(row[name], np.float64)), 2)
                for name in ("err2_mean", *PUBLISHED)
            ),
        ]
        for row in summary["strength"]["candidates"]
    ]
    header = ["strength", *(METRICS[name][0] for name in ("err2_mean", *PUBLISHED))]
    return f"""Chosen by a rule on searches of their own (WPL, controller, seeds {seeds}): \
{RULE}. A strength with which a search failed is not chosen.

{markdown(header, rows)}"""


def difference_table(plan: Plan, results: Results) -> str:
    """The settings in which searches and final trainings are not the paper's."""
    rows = []
    for script, settings, paper in (
        ("search", plan.search, search_settings.PRESETS["rnn"]["paper"]),
        ("train_final", plan.final, final_settings.PRESETS["rnn"]["paper"]),
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


def unknown(plan: Plan, summary: dict) -> str:
    """How many words are told apart, and the share of all others."""
    sentences: dict[str, list[str]] = {}
    for name, who in (("search", "The searches"), ("final", "the final trainings")):
        if shares := summary["unknown_share"][name]:
            words = getattr(plan, name).rnn.vocabulary
            parts = ", ".join(f"{100 * share:.1f} % ({part})" for part, share in shares.items())
            told = (
                f"tell {words:,} words apart; all others are one, `<unk>`: {parts} of the tokens."
            )
            sentences.setdefault(told, []).append(who)
    lines = [f"{' and '.join(who)} {told}" for told, who in sentences.items()]
    return "\n".join(line[0].upper() + line[1:] for line in lines)


def commands(plan: Plan, results: Results) -> str:
    kinds: dict[str, str] = {}
    for run in results.runs:
        command = ["python", *run.command, "--out", str(plan.runs / run.name)]
        kinds.setdefault(run.name.rpartition("_")[0], shlex.join(command))
    return "\n".join(kinds.values())
