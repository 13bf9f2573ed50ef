"""The report and the figures of a comparison, drawn from what it has saved.

Reads summary.json, curves.npz and cells in the folder, and writes report.md and the figures into it
anew: nothing is trained.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import jax

from experiments.compare import claims, pictures, saved, tables
from experiments.compare.saved import Saved
from experiments.running import records
from experiments.running.pool import clock
from experiments.running.wording import signed
from wpl_jax.figures.curves import FEW_SEEDS


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m experiments.compare.report", description=__doc__.partition("\n")[0]
    )
    parser.add_argument("folder", type=Path, help="the --out of an earlier experiments.compare")
    folder = parser.parse_args(argv).folder
    try:
        written = write(saved.read(folder), folder)
    except (ValueError, OSError, ImportError) as error:
        print(f"report: {error}", file=sys.stderr)
        return 2
    print(f"Drawn anew in {folder}: {', '.join(written)}")
    return 0


def write(comparison: Saved, folder: Path) -> list[str]:
    """Write report and figures; returns the names of the files."""
    written = records.write_figures(folder, pictures.drawn(comparison), dpi=150)
    records.write_atomically(folder / "report.md", page(comparison))
    return [*written, "report.md"]


def page(comparison: Saved) -> str:
    """The comparison as a page of Markdown."""
    summary, base, task = comparison.summary, comparison.search, comparison.task
    config, search = comparison.config, comparison.search.search
    devices = ", ".join(sorted(set(summary["devices"])))
    return f"""# Architecture search with and without plasticity

Does plasticity (WPL) keep architectures that share weights from forgetting, and does a search \
find better ones by it? Here are {config.seeds} searches of each of four kinds on \
{task.source(base)}: plain weight sharing (as in ENAS) or WPL, with architectures chosen by a \
controller that is trained by REINFORCE, or uniformly at random.

`{summary["command"]}`

{failures(summary)}## In short

{claims.in_short(comparison)}

{intervals(comparison)}

## Forgetting

![What searches forget, and the reward they reach, over epochs]({comparison.figure}.png)

Each search has {base.epochs} epochs of {search.architectures} architectures, each of which is \
trained on {search.batches} batches. Of every architecture, err1 is its validation {task.error} \
right after its own training, and err2 that at the end of the epoch. Its forgetting is err2 − \
err1. The tables have the mean over the architectures of an epoch, the mean over the 5 with the \
lowest err1, and the maximum, all averaged over the {base.epochs - base.warmup_epochs} epochs \
after a warm-up of {base.warmup_epochs}, in which WPL does not act yet, so that searches with \
and without it are alike. The 5 are chosen for a low err1, which some of them have by chance, so \
that part of their rise is a return to the mean, in every kind of search. WPL's strength is \
{comparison.strength:,.12g}. In the figure, {in_the_figure(config.seeds)}.

{tables.of_reduction(comparison)}

What WPL takes off is (d − d_WPL) / d, where d is what plain search forgets in the mean over seeds \
and epochs. Where d or the difference is not distinguishable from 0, there is no share to state.

*τ within the epoch* is Kendall's τ between the orders of an epoch's architectures by err1 and by \
err2: 1 if the epoch kept their order, 0 if it left nothing of it. err2 and the reward \
({task.reward(base.search_space)}) are means over architectures.

{tables.of_forgetting(comparison)}

What WPL changes besides, paired by seed:

{tables.of_changes(comparison)}

## The cells that were found

Each search derives the best of {base.derive_samples} sampled cells by its {task.error} on the \
shared weights (*in the search*, {base.derive_batches} validation batches). It is then trained \
from scratch for {comparison.final.epochs} epochs, as are random cells of as many nodes and \
published ones, and evaluated on {task.whole}.

{tables.of_cells(comparison)}

![Each kind's cell with the lowest validation {task.error}]({comparison.figure_of_cells}.png)

{tables.of_each_cell(comparison)}

## Whether shared weights rank cells

*τ with training alone* is another Kendall's τ: between the order of cells by their {task.error} \
on the shared weights, at a search's end, and the order by their validation {task.error} when each \
is trained from scratch. It takes 3 cells at least.

{of_random_cells(comparison)}

{of_found_cells(summary)}

## The strength

{strength(comparison)}

## What differs from the published search

Of the settings that `--preset paper` has, as far as they are known:

{tables.of_differences(comparison)}

With `--proximal`, plasticity is a step after the optimiser's instead of a part of the gradient.
`--protect` is what it protects: edges, which only some architectures use, or all weights.
`--search.batches` is what an architecture trains for in an epoch. `--help` describes the others.

{task.remarks({"search": base, "final": comparison.final}, summary["data"])}

## How it was run

{runs(summary)} runs, {clock(summary["seconds"])} of training in all, on {summary["machine"]} \
({devices}), jax {summary["versions"]["jax"]}. \
{commands(summary)}
"""


def failures(summary: dict) -> str:
    if not summary["failed"]:
        return ""
    lines = "\n".join(f"- {line}" for line in summary["failed"])
    return f"**Runs that failed, and are missing below:**\n\n{lines}\n\n"


def intervals(comparison: Saved) -> str:
    """How to read the numbers."""
    percentages = (
        f" Every {comparison.task.error} is in percent, and differences are in percentage points."
        if comparison.unit == "%"
        else ""
    )
    return (
        "Numbers are means over seeds, ± half of their 95 % interval. Differences are paired by "
        "seed; those from cells that no search has found are not, and have Welch's interval. One "
        "whose interval includes 0 is *not distinguishable from 0*. Bold marks the best of a "
        "column and those that cannot be told from it; where that would be all, none."
        f"{percentages}"
    )


def in_the_figure(seeds: int) -> str:
    if seeds > FEW_SEEDS:
        return "lines are means over seeds, and bands their 95 % intervals"
    return "thin lines are seeds, and thick ones their means; what is far off the means is cut off"


def of_random_cells(comparison: Saved) -> str:
    arms, number = comparison.summary["arms"], comparison.summary["random_cells"]
    if all((arm.get("tau_training_alone") or {"mean": None})["mean"] is None for arm in arms):
        return "Of random cells, every search having measured the same ones, it was not measured."
    return f"""Of the same {number} random cells, which every search has measured, it is:

{tables.of_ranking(comparison)}"""


def of_found_cells(summary: dict) -> str:
    tau, cells = summary["found_tau_training_alone"].values()
    if tau is None:
        return "Of the found cells there are too few for such a τ."
    return (
        f"Of the {cells} cells that the searches found, each measured on its own search's shared "
        f"weights, it is {signed(tau, 2)}."
    )


def strength(comparison: Saved) -> str:
    found = comparison.summary["strength"]
    if not found["candidates"]:
        return f"It was given: {found['chosen']:,.12g}."
    seeds = ", ".join(map(str, comparison.config.strength_seeds))
    return f"""Chosen by a rule on searches of their own (WPL, controller, seeds {seeds}): \
{found["rule"]}. A strength with which a search failed is not chosen.

{tables.of_strengths(comparison)}"""


def runs(summary: dict) -> int:
    """How many have finished."""
    trials = [e for row in summary["strength"]["candidates"] for e in row["err2_mean"]]
    searches = sum(arm["runs"] for arm in summary["arms"])
    test = next(key for key in summary["cells"][0] if key.startswith("test_"))
    finals = sum(cell[test] is not None for cell in summary["cells"])
    others = sum(cell["runs"] for cell in summary["others"])
    return sum(e is not None for e in trials) + searches + finals + others


def commands(summary: dict) -> str:
    if "commands" not in summary:
        return (
            "The commands of the single runs were not kept with these results; the command at the "
            "top launches them."
        )
    lines = "\n".join(summary["commands"])
    return f"One of each kind; the others have other seeds.\n\n```\n{lines}\n```"


if __name__ == "__main__":
    jax.config.update("jax_platforms", "cpu")
    sys.exit(main())
