"""The report and the figures of a grid, drawn from what it has saved.

Reads summary.json, curves.npz and cells in the folder, and writes report.md and the figures into it
anew: nothing is trained.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np
from rich import box
from rich.table import Table

from experiments import rank
from experiments.grid import pictures, saved
from experiments.grid.saved import Measure, Saved
from experiments.running import records
from experiments.running.intervals import (
    Number,
    best,
    detectable,
    difference,
    differs_from_0,
    interval,
    is_above_0,
    reduction,
)
from experiments.running.measures import FORGETTING
from experiments.running.wording import (
    clock,
    count,
    listed,
    markdown,
    percent,
    show,
    show_mean,
    signed,
)
from wpl_jax.figures.curves import FEW_SEEDS


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m experiments.grid.report", description=__doc__.partition("\n")[0]
    )
    parser.add_argument("folder", type=Path, help="the --out of an earlier experiments.grid")
    folder = parser.parse_args(argv).folder
    try:
        written = write(saved.read(folder), folder)
    except (ValueError, OSError, ImportError) as error:
        print(f"report: {error}", file=sys.stderr)
        return 2
    print(f"Drawn anew in {folder}: {', '.join(written)}")
    return 0


def write(grid: Saved, folder: Path) -> list[str]:
    """Write report and figures; returns the names of the files."""
    drawn = pictures.drawn(grid)
    written = records.write_figures(folder, drawn, dpi=150)
    records.write_atomically(folder / "report.md", page(grid, list(drawn)))
    return [*written, "report.md"]


def terminal(grid: Saved) -> Table:
    """The numbers for a terminal of 80 columns."""
    measures = [grid.measure("after_warmup", n) for n in ("err2_mean", "forgetting_mean")]
    measures += [grid.of_ranking(order, "kendall") for order in grid.orders]
    headings = [m.heading for m in measures[:2]] + [f"τ by {order}" for order in grid.orders]
    view = Table(title="Means over epochs and seeds", box=box.SIMPLE, pad_edge=False)
    view.add_column("")
    for heading in headings:
        view.add_column(heading, justify="right")
    for arm in grid.arms:
        numbers = [arm["numbers"].get(m.key) for m in measures]
        shown = [show_mean(n, m.digits, m.scale) for n, m in zip(numbers, measures, strict=True)]
        view.add_row(arm["name"], *shown)
    return view


# --- The page -------------------------------------------------------------------------------------


def page(grid: Saved, drawn: Sequence[str]) -> str:
    """The grid as a page of Markdown; ``drawn`` are the names of the figures that there are."""
    summary, task = grid.summary, grid.summary["task"]
    known = grid.arms[0]["numbers"]  # early ones lack some
    parts = [
        f"# Searches of {task['name']} compared",
        f"`{summary['command']}`",
        failures(summary),
        "## In short",
        in_short(grid),
        how_to_read(grid),
        "## What was run",
        what_was_run(grid),
        "## How settings were chosen",
        choices(grid),
        "## What searches forget",
        f"{span(grid, 'measured')} architectures of an epoch are measured: err1 is the validation "
        f"{grid.error} of one right after its own training, and err2 that at the end of the epoch. "
        "Its forgetting is err2 − err1: in the mean of all, in the mean of the 5 with the lowest "
        "err1 (some of which are among them by chance, so that part of their rise is a return to "
        "the mean), and the maximum. *τ within the epoch* is Kendall's τ between the orders by "
        "err1 and by err2. *Reward* is the controller's, "
        f"{task['reward']}. All are means over "
        + epochs_that_count(grid)
        + ", but for those of the last epoch."
        + " *err2, median* is the median over an epoch's architectures, in which one whose error "
        "explodes counts no more than another."
        * ("after_warmup/err2_median" in known)
        + " *Agreement of seeds* is Kendall's τ between the orders in which two searches put the "
        "same random architectures at their end, in the mean over pairs; it takes no truth. Its "
        "seeds depend on each other, so its intervals are too narrow." * grid.agreed,
        images(drawn, "map_forgetting", "map_err2", "map_tau", "seeds_forgetting", "seeds_err2"),
        images(drawn, "err2_against"),
        images(drawn, "forgetting"),
        in_the_curves(grid),
        table(grid, grid.of_searches),
        differences(grid, grid.of_searches),
        taken_off(grid),
        *ranking(grid, drawn),
        *cells(grid, drawn),
        *differing(grid),
        "## How it was run",
        how_it_was_run(grid),
    ]
    return "\n\n".join(filter(None, parts)) + "\n"


def failures(summary: dict) -> str:
    if not summary["failed"]:
        return ""
    lines = "\n".join(f"- {line}" for line in summary["failed"])
    return f"**What failed, and is missing below:**\n\n{lines}"


def in_short(grid: Saved) -> str:
    """For each of the main numbers, its range over a map, and how arms differ."""
    measures = [grid.measure("after_warmup", n) for n in ("forgetting_mean", "err2_mean")]
    asked = [(m, m.heading) for m in measures]
    for order in grid.orders:
        measure = grid.of_ranking(order, "kendall")
        asked.append((measure, f"{measure.heading} of all architectures, by {order}"))
    if grid.cells:
        asked.append((grid.of_cells[2], f"test {grid.error} of the cells that are found"))
    lines = []
    for measure, heading in asked:
        if grid.axes:
            said = [reached(grid, measure, method) for method in grid.methods]
            lines.append(f"- **{heading}**: {'; '.join(filter(None, said))}.")
        for reference in grid.references if grid.seeds > 1 else []:
            said = [compared(grid, measure, m, reference) for m in grid.others(reference)]
            if said:
                lines.append(f"- **{heading}**, less that of {reference}: {'; '.join(said)}.")
    return "\n".join([*lines, *beyond_random(grid)])


def reached(grid: Saved, measure: Measure, method: str) -> str:
    """The lowest and the highest mean of a method, and where."""
    arms = [arm for arm in grid.arms if arm["method"] == method]
    known = [arm for arm in arms if arm["numbers"][measure.key]["mean"] is not None]
    if not known:
        return ""

    def mean(arm):
        return arm["numbers"][measure.key]["mean"]

    ends = [
        f"{signed(measure.scale * mean(arm), measure.digits)} ({saved.words(arm['place'])})"
        for arm in (min(known, key=mean), max(known, key=mean))
    ]
    return (f"{method} " if len(grid.methods) > 1 else "") + f"from {ends[0]} to {ends[1]}"


def compared(grid: Saved, measure: Measure, method: str, reference: str) -> str:
    """How a method differs from a reference, at the one place or in how many."""
    arms = [arm for arm in grid.arms if arm["method"] == method]
    found = [grid.less(arm, reference, measure.key) for arm in arms]
    if len(found) == 1:
        (number,) = found
        told = "" if number and differs_from_0(number) else ", which cannot be told from 0"
        return f"{method} {measure.show(number)}{told}"
    told = [n["mean"] for n in found if n and differs_from_0(n)]
    places = {
        "lower": sum(mean < 0 for mean in told),
        "higher": sum(mean > 0 for mean in told),
        "not told from 0": len(found) - len(told),
    }
    said = [f"{what} at {number}" for what, number in places.items() if number]
    return f"{method} {listed(said)} of {len(found)} places"


def how_to_read(grid: Saved) -> str:
    percentages = (
        f" Every {grid.error} is in percent, and differences are in percentage points."
        if "%" in grid.unit
        else ""
    )
    if grid.seeds == 1:
        return f"Numbers are those of one seed: nothing is known of how they scatter.{percentages}"
    said = "Numbers are means over seeds, ± half of their 95 % interval. "
    said += "In a column of the tables of numbers, bold marks the best and those that cannot be "
    said += "told from it; where that would be all, none."
    if len(grid.methods) > 1:
        said += (
            f" Differences are from {listed(grid.references)}"
            f"{' at the same place' if grid.axes else ''}, paired by seed. Bold are those whose "
            "interval leaves 0 out. In brackets is the difference that could have been seen: one "
            "of that size, with seeds that scatter as they do, is told from 0 in four of five such "
            "comparisons. Of many differences where there is nothing, one in twenty is told from 0 "
            "all the same."
        )
    return said + percentages


def seeds(grid: Saved) -> str:
    return "seed 0" if grid.seeds == 1 else f"the seeds 0 to {grid.seeds - 1}"


def what_was_run(grid: Saved) -> str:
    """The arms and what they have in common."""
    summary = grid.summary
    arms = {arm["method"]: arm["candidates"] for arm in grid.arms}
    rows = [
        [method, " <br> ".join(f"`{c['flags'] or 'nothing more'}`" for c in candidates)]
        for method, candidates in arms.items()
    ]
    varied = ""
    if grid.axes:
        values = listed([f"`--{flag}` ({', '.join(values)})" for flag, values in grid.axes.items()])
        varied = f" Each is run with every combination of {values}."
    return (
        f"Searches on {summary['task']['source']}, with the flags "
        f"`{summary['configuration']['common_flags']}` and those of the arm, and {seeds(grid)}. "
        f"A search has {span(grid, 'epochs')} epochs of {span(grid, 'architectures')} "
        f"architectures, each of which is trained on {batches(span(grid, 'batches'))}. Means are "
        f"over {epochs_that_count(grid)}.{varied}\n\n"
        + markdown(["arm", "flags"], rows, left=2)
        + "\n\n"
        + summary.get("remarks", "")
    ).strip()


def epochs_that_count(grid: Saved) -> str:
    """In words: all, or those after the warm-up, which is the same for all arms."""
    warmup = max(arm["warmup_epochs"] for arm in grid.arms)
    if not warmup:
        return "all epochs"
    return f"the epochs after a warm-up of {warmup}, in which an arm may not hold anything yet"


def span(grid: Saved, name: str) -> str:
    """A setting of all arms, or its ends."""
    values = [arm[name] for arm in grid.arms]
    ends = f"{min(values):,}", f"{max(values):,}"
    return " to ".join(dict.fromkeys(ends))


def batches(count: object) -> str:
    return f"{count} batch" if str(count) == "1" else f"{count} batches"


def choices(grid: Saved) -> str:
    arms = [arm for arm in grid.arms if len(arm["candidates"]) > 1]
    if not arms:
        return "Nothing was chosen: every arm has the flags that it was given."
    measure = grid.measure("after_warmup", "err2_mean")
    rows = []
    for arm in arms:
        for i, candidate in enumerate(arm["candidates"]):
            values = np.array(candidate["err2"], np.float64)
            each = ", ".join(measure.show({"mean": v, "high": None}) for v in candidate["err2"])
            mean = show(interval(values), measure.digits + 1, measure.scale)
            whole = np.isfinite(values).all()
            rows.append(
                [
                    arm["name"],
                    f"`{candidate['flags']}`",
                    each,
                    mean if whole else "failed or diverged",
                    "chosen" if i == arm["chosen"] else "",
                ]
            )
    trial_seeds = ", ".join(map(str, grid.summary["configuration"]["grid"]["trial_seeds"]))
    return (
        f"Of several flags for an arm, those are taken that a rule chooses, on searches of their "
        f"own (seeds {trial_seeds}): {grid.summary['rule']}.\n\n"
        + markdown(["arm", "flags", "err2, each seed", "mean", ""], rows, left=2)
    )


def images(drawn: Sequence[str], *prefixes: str) -> str:
    """Links to the figures whose names begin so, in the order of the prefixes."""
    names = [name for prefix in prefixes for name in drawn if name.startswith(prefix)]
    return "\n\n".join(f"![{name.replace('_', ' ')}]({name}.png)" for name in names)


def in_the_curves(grid: Saved) -> str:
    if grid.seeds == 1:
        return ""
    if grid.seeds > FEW_SEEDS:
        return "Lines over epochs are means over seeds, and bands their 95 % intervals."
    return "Thin lines over epochs are seeds, and thick ones their means."


def table(grid: Saved, measures: Sequence[Measure], baselines: Sequence[Sequence[str]] = ()) -> str:
    """A row an arm, a column a number; the best of a column in bold."""
    columns = []
    for measure in measures:
        numbers = [arm["numbers"].get(measure.key) for arm in grid.arms]
        places = set() if measure.size else best(numbers, measure.low_is_good)
        columns.append(bold(measure, numbers, places))
    rows = [
        [arm["name"], f"{arm['runs']}", *of_arm]
        for arm, *of_arm in zip(grid.arms, *columns, strict=True)
    ]
    header = ["arm", "seeds", *(measure.heading for measure in measures)]
    return markdown(header, [*rows, *baselines])


def differences(grid: Saved, measures: Sequence[Measure]) -> str:
    """For each reference a table: a row an arm that comes after it, a column a number."""
    return "\n\n".join(
        less(grid, measures, reference) for reference in grid.references if grid.others(reference)
    )


def less(grid: Saved, measures: Sequence[Measure], reference: str) -> str:
    """The table of one reference; in brackets, the differences that could have been seen."""
    arms = [arm for arm in grid.arms if arm["method"] in grid.others(reference)]
    columns = []
    for measure in measures:
        numbers = [grid.less(arm, reference, measure.key) for arm in arms]
        told = {i for i, n in enumerate(numbers) if n and differs_from_0(n)}
        written = bold(measure, numbers, told)
        seen = [n and detectable(n) for n in numbers]
        columns.append(
            [
                text if d is None else f"{text} ({signed(measure.scale * d, measure.digits)})"
                for text, d in zip(written, seen, strict=True)
            ]
        )
    rows = [[arm["name"], *of_arm] for arm, *of_arm in zip(arms, *columns, strict=True)]
    header = [f"− {reference}", *(measure.heading for measure in measures)]
    return f"Less those of {reference}:\n\n" + markdown(header, rows)


def bold(measure: Measure, numbers: Sequence[Number | None], places: set[int]) -> list[str]:
    written = [measure.show(number) for number in numbers]
    return [f"**{text}**" if i in places else text for i, text in enumerate(written)]


def ranking(grid: Saved, drawn: Sequence[str]) -> list[str]:
    """How well the searches rank all architectures, if that was asked."""
    if not grid.orders:
        return []
    config = grid.summary["configuration"]["grid"]
    parts = [
        "## How they rank all architectures",
        f"After each search, every architecture of the space is measured on the shared weights, "
        f"on {batches(config['rank_batches'])} of validation data. The orders by its {grid.error}, "
        "by its cross-entropy, and by both cross-entropy and number of parameters, are compared "
        f"with the accuracies of `{config['truth']}`. "
        "*Regret* is what the architecture that is predicted to be the best lacks to the best. "
        + "Each prediction is the mean over the architectures that compute the same. "
        * config["average_isomorphic"]
        + "The last rows know nothing of any search.",
        images(drawn, "map_kendall", "seeds_kendall", "tau"),
        probes(grid, drawn),
    ]
    for order in grid.orders:
        measures = [grid.of_ranking(order, name) for name in rank.COLUMNS]
        knows_nothing = [
            [name, "", *(f"{of[s]:.{rank.digits(s)}f}" for s in rank.COLUMNS)]
            for name, of in grid.summary["baselines"].items()
        ]
        parts += [
            f"### By {order}",
            table(grid, measures, knows_nothing),
            differences(grid, measures),
        ]
    return parts


def probes(grid: Saved, drawn: Sequence[str]) -> str:
    """What the curves of τ are of."""
    if not any(name.startswith("tau_") for name in drawn):
        return ""
    numbers = [v for name, v in grid.curves.items() if name.endswith("/probes_of_truth")]
    return (
        f"τ over epochs is that of the {int(numbers[0])} probes, random architectures measured as "
        "the search trains, whose accuracy is known. Dotted: what knows nothing, of all "
        "architectures."
    )


# --- What a method takes off what the first one forgets -------------------------------------------


def taken_off(grid: Saved) -> str:
    """A row a method and kind of forgetting; nothing where settings are varied."""
    reference, *others = grid.arms
    if grid.axes or not others or grid.seeds < 2:
        return ""
    published = grid.summary.get("published_reduction") or {}
    rows = []
    for arm in others:
        for name in FORGETTING:
            measure = grid.measure("after_warmup", name)
            plain, held = (a["numbers"][measure.key] for a in (reference, arm))
            share = reduction(plain, held) if differs_from_0(difference(plain, held)) else None
            rows.append(
                [
                    f"{arm['name']}: {measure.heading}",
                    "–" if share is None else percent(share),
                    of_best_epoch(grid, reference, arm, name),
                    *([percent(published[name])] if published else []),
                ]
            )
    header = ["", "mean of epochs", "best epoch", *["the paper, up to"] * bool(published)]
    return (
        f"A method takes off (d − d′) / d, where d is what {reference['name']} forgets, and d′ "
        "what the method does. In the mean over epochs it is stated where d is above 0, and d and "
        "d′ can be told apart. The best epoch is that with the largest share of those in which d "
        "is above 0 by its own interval; it was chosen for being the best, and so is better than "
        "the method is. It is not stated of arms that have other numbers of epochs, and so other "
        "learning rates in the same one.\n\n" + markdown(header, rows)
    )


def of_best_epoch(grid: Saved, reference: dict, arm: dict, name: str) -> str:
    """The largest share in an epoch that counts, and its number."""
    plain, held = (grid.curves.get(f"{a['name']}/{name}") for a in (reference, arm))
    if plain is None or held is None or plain.shape[1] != held.shape[1]:
        return "–"
    shares = {}
    for epoch in range(arm["warmup_epochs"], plain.shape[1]):
        of_plain, of_held = interval(plain[:, epoch]), interval(held[:, epoch])
        if is_above_0(of_plain) and of_held["mean"] is not None:
            shares[epoch + 1] = reduction(of_plain, of_held) or 0.0
    if not shares:
        return "–"
    best_epoch = max(shares, key=shares.__getitem__)
    return f"{percent(shares[best_epoch])} (epoch {best_epoch})"


# --- Cells ----------------------------------------------------------------------------------------


def cells(grid: Saved, drawn: Sequence[str]) -> list[str]:
    """What the cells are worth that searches find, if they were trained."""
    if not grid.cells:
        return []
    measures = grid.of_cells
    others = [
        [cell["name"], count(cell["runs"]), *(m.show(cell.get(m.key)) for m in measures)]
        for cell in grid.cells["others"]
    ]
    return [
        "## The cells that were found",
        f"Each search derives the best of the cells that it samples at its end, by its {grid.error}"
        " on the shared weights (*in the search*). That cell is trained from scratch, as are "
        "random cells and published ones; searches of the same seed that find the same cell share "
        f"its training. All trainings have the flags `{grid.cells['flags']}`. *τ with "
        "training alone* is Kendall's τ between two orders of the random cells: by their "
        f"{grid.error} on a search's shared weights, and by that when each is trained from "
        "scratch.",
        table(grid, measures, others),
        differences(grid, [m for m in measures if not m.size]),
        less_random(grid),
        images(drawn, "best_cells"),
        "All cells that were found are files in the folder `cells`, for "
        "`experiments.train_final --architecture`.",
    ]


def random_cells(grid: Saved) -> dict | None:
    return next(
        (c for c in (grid.cells or {"others": []})["others"] if c["name"] == "random"), None
    )


def less_random(grid: Saved) -> str:
    """A row an arm: its cells' errors less those of the random ones."""
    random = random_cells(grid)
    if random is None:
        return ""
    measures = [m for m in grid.of_cells if m.key in random and not m.size]
    rows = []
    for arm in grid.arms:
        found = [difference(arm["numbers"][m.key], random[m.key]) for m in measures]
        told = {i for i, number in enumerate(found) if differs_from_0(number)}
        rows.append([arm["name"]])
        for i, (measure, number) in enumerate(zip(measures, found, strict=True)):
            text, seen = bold(measure, found, told)[i], detectable(number)
            rows[-1].append(
                text if seen is None else f"{text} ({signed(measure.scale * seen, measure.digits)})"
            )
    header = ["− random", *(measure.heading for measure in measures)]
    return "Less the random cells, with Welch's intervals:\n\n" + markdown(header, rows)


def beyond_random(grid: Saved) -> list[str]:
    """A line: whether the cells of any arm are better than random ones."""
    random, measure = random_cells(grid), (grid.of_cells[2] if grid.cells else None)
    if random is None or measure is None or grid.axes:
        return []
    said = []
    for arm in grid.arms:
        number = difference(arm["numbers"][measure.key], random[measure.key])
        told = "" if differs_from_0(number) else ", which cannot be told from 0"
        said.append(f"{arm['name']} {measure.show(number)}{told}")
    return [
        f"- **test {grid.error} of the cells that are found**, less that of {random['runs']} "
        f"random cells: {'; '.join(said)}."
    ]


def differing(grid: Saved) -> list[str]:
    """The settings that are not the published ones."""
    found = grid.summary.get("published_differences") or []
    rows = [
        [f"`{of['setting']}`", ", ".join(map(value, of["here"])), value(of["paper"])]
        for of in found
    ]
    if not rows:
        return []
    return [
        "## What differs from the published search",
        "Of the settings of `--preset paper`, which are the published ones as far as they are "
        "known, those that some arm here has otherwise. Where arms differ, all their values are "
        "listed.",
        markdown(["setting", "here", "`paper`"], rows),
    ]


def value(setting: object) -> str:
    """As it is written in a table."""
    if isinstance(setting, bool):
        return "yes" if setting else "no"
    if setting is None:
        return "not set"
    if isinstance(setting, float):
        return f"{setting:,.12g}"
    return f"{setting:,}" if isinstance(setting, int) else str(setting)


def how_it_was_run(grid: Saved) -> str:
    summary = grid.summary
    devices = ", ".join(sorted(set(summary["devices"])))
    lines = "\n".join(summary["commands"])
    trained = summary.get("finals")
    trainings = f" and {trained:,} trainings from scratch" if trained else ""
    return (
        f"{summary['searches']:,} searches{trainings}, {clock(summary['seconds'])} of training in "
        f"all, on {summary['machine']} ({devices}), jax {summary['versions']['jax']}. The first of "
        f"each stage; the others have other flags and seeds.\n\n```\n{lines}\n```"
    )


if __name__ == "__main__":
    jax.config.update("jax_platforms", "cpu")
    sys.exit(main())
