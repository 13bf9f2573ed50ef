"""The tables of the report."""

import dataclasses
from collections.abc import Sequence

import numpy as np
from rich import box
from rich.table import Table

from experiments.compare.saved import ERRORS, METRICS, Saved
from experiments.compare.wording import label
from experiments.running.intervals import Number, best, interval
from experiments.running.measures import DIGITS, FORGETTING, amount, change, heading, scale
from experiments.running.pool import flat
from experiments.running.wording import (
    NOT_DISTINGUISHABLE,
    count,
    markdown,
    percent,
    show,
    show_mean,
)
from experiments.spaces.settings import PLACES, InSpace

HIGH_IS_GOOD = ("reward", "tau_within_epoch", "tau_training_alone")
# Settings that say how a run is named, kept or computed, but not what it computes.
ASIDE = (
    *(*PLACES, "preset", "seed", "max_skipped"),
    *("method", "sampler", "search.chunk", "search.at_once"),
    *("architecture", "seed_architecture", "windows_per_call", "steps_per_call"),
    *("probes", "probe_every"),
)


def terminal(saved: Saved) -> Table:
    """The numbers for a terminal of 80 columns."""
    task = saved.task
    view = Table(
        title=f"Forgetting after the warm-up, and {task.error}{task.unit}; means over seeds",
        box=box.SIMPLE,
        collapse_padding=True,
        pad_edge=False,
    )
    for column in ("", "mean", "best 5", "max", "reward", "in search", "valid.", "test"):
        view.add_column(column, justify="right" if column else "left")
    for arm in saved.summary["arms"]:
        numbers = [
            show_mean(arm[name], DIGITS.get(name, 2), scale(saved.task, name))
            for name in (*FORGETTING, "reward")
        ]
        numbers += [show_mean(arm[saved.key(part)], 1, task.scale) for part in ERRORS]
        view.add_row(label(arm["name"]), *numbers)
    for cell in saved.summary["others"]:
        parts = ("validation", "test")
        tested = [show_mean(cell[saved.key(part)], 1, task.scale) for part in parts]
        view.add_row(label(cell["name"]), *[""] * 5, *tested)
    return view


def of_forgetting(saved: Saved) -> str:
    """A row a kind of search, a column a measure of an epoch."""
    arms = saved.summary["arms"]
    columns = [column(saved, name, [arm[name] for arm in arms]) for name in METRICS]
    rows = zip((label(arm["name"]) for arm in arms), *columns, strict=True)
    return markdown(["search", *(heading(saved.task, name) for name in METRICS)], list(rows))


def of_reduction(saved: Saved) -> str:
    """A row a sampler and kind of forgetting: what it is, and what WPL takes off."""
    published = saved.summary["published_reduction"]
    rows = []
    for pair in saved.summary["wpl_against_plain"]:
        plain, wpl = (of_kind(saved, method, pair["sampler"]) for method in ("none", "wpl"))
        for name in FORGETTING:
            share = pair["reduction"][name]
            rows.append(
                [
                    f"{pair['sampler']}: {heading(saved.task, name)}",
                    amount(saved.task, name, plain[name]),
                    amount(saved.task, name, wpl[name]),
                    amount(saved.task, name, pair["difference"][name]),
                    NOT_DISTINGUISHABLE if share is None else percent(share),
                    *([percent(published[name])] if published else []),
                ]
            )
    header = ["forgetting", "plain", "WPL", "WPL − plain", "WPL takes off"]
    return markdown(header + ["the paper, up to"] * bool(published), rows)


def of_changes(saved: Saved) -> str:
    """A row a measure, a column a sampler: WPL's less that of plain search."""
    pairs = saved.summary["wpl_against_plain"]
    names = [name for name in METRICS if name not in FORGETTING]
    headings = {name: heading(saved.task, name) for name in names}
    for part, where in ERRORS.items():
        headings[saved.key(part)] = f"{saved.task.error} of the found cells, {where}"
    rows = [
        [text, *(change(saved.task, name, pair["difference"].get(name)) for pair in pairs)]
        for name, text in headings.items()
    ]
    return markdown(["WPL − plain", *(pair["sampler"] for pair in pairs)], rows)


def of_cells(saved: Saved) -> str:
    """A row a kind of search and each other cell."""
    summary = saved.summary
    rows = [*summary["arms"], *summary["others"]]
    columns = [column(saved, key, [row.get(key) for row in rows]) for key in map(saved.key, ERRORS)]
    sizes = [mean_size(saved, row) for row in rows]
    header = ["cells", "runs", "parameters", *(h + saved.task.unit for h in ERRORS.values())]
    left = [[label(r["name"]), f"{r['runs']}", s] for r, s in zip(rows, sizes, strict=True)]
    return markdown(header, [[*r, *n] for r, *n in zip(left, *columns, strict=True)])


def of_each_cell(saved: Saved) -> str:
    """A row for each cell that was found, with the file that it is in."""
    rows = []
    for cell in saved.summary["cells"]:
        name = f"{cell['name']}_{cell['seed']}"
        errors = [cell[saved.key(part)] for part in ERRORS]
        numbers = ("–" if e is None else f"{saved.task.scale * e:.2f}" for e in errors)
        link = f"[{label(cell['name'])}, seed {cell['seed']}](cells/{name}.json)"
        rows.append([link, count(cell["parameters"]), *numbers])
    return markdown(["cell", "parameters", *(h + saved.task.unit for h in ERRORS.values())], rows)


def of_ranking(saved: Saved) -> str:
    """A row a kind of search, and what WPL changes."""
    name, arms = "tau_training_alone", saved.summary["arms"]
    numbers = column(saved, name, [arm.get(name) for arm in arms])
    rows = [[label(arm["name"]), n] for arm, n in zip(arms, numbers, strict=True)]
    rows += [
        [
            f"WPL − plain, {pair['sampler']}",
            change(saved.task, name, pair["difference"].get(name)),
        ]
        for pair in saved.summary["wpl_against_plain"]
    ]
    return markdown(["search", "τ with training alone"], rows)


def of_strengths(saved: Saved) -> str:
    """A row a candidate; the chosen one says so."""
    names = ("err2_mean", *FORGETTING)
    rows = [
        [
            f"{row['strength']:,.12g}{' (chosen)' * (row['strength'] == saved.strength)}",
            *(
                show(interval(np.array(row[name], np.float64)), 2, scale(saved.task, name))
                for name in names
            ),
        ]
        for row in saved.summary["strength"]["candidates"]
    ]
    return markdown(["strength", *(heading(saved.task, name) for name in names)], rows)


def of_differences(saved: Saved) -> str:
    """The settings in which searches and final trainings are not the paper's."""
    searches, finals = saved.task.searches, saved.task.finals
    if "paper" not in searches or "paper" not in finals:
        return "There is no `--preset paper` of this space."
    search = dataclasses.replace(saved.search, strength=saved.strength)
    rows = [
        *differences("search", search, searches["paper"], saved.was_set("search")),
        *differences("train_final", saved.final, finals["paper"], saved.was_set("final")),
    ]
    return markdown(["setting", "here", "paper"], rows) if rows else "There is no difference."


def differences(script: str, settings: InSpace, paper: InSpace, stored: dict) -> list[list[str]]:
    """A row for each setting of a script that was stored and is not the paper's."""
    here, there = flat(dataclasses.asdict(settings)), flat(dataclasses.asdict(paper))
    known = flat(stored)
    return [
        [f"{script} `--{name.replace('_', '-')}`", value(here[name]), value(there.get(name))]
        for name in here
        if name in known
        and name not in ASIDE
        and not name.startswith("sharing.")
        and here[name] != there.get(name)
    ]


def column(saved: Saved, name: str, numbers: Sequence[Number | None]) -> list[str]:
    """Numbers of one name, the best in bold, and what cannot be told from it."""
    bold = best(numbers, name not in HIGH_IS_GOOD)
    written = [amount(saved.task, name, n) if n else "" for n in numbers]
    return [f"**{text}**" if i in bold else text for i, text in enumerate(written)]


def of_kind(saved: Saved, method: str, sampler: str) -> dict:
    kind = (method, sampler)
    return next(a for a in saved.summary["arms"] if (a["method"], a["sampler"]) == kind)


def mean_size(saved: Saved, row: dict) -> str:
    """Parameters of a kind's cells in the mean."""
    if "parameters" in row:
        return count(row["parameters"])
    cells = [c["parameters"] for c in saved.summary["cells"] if c["name"] == row["name"]]
    known = [size for size in cells if size is not None]
    return count(round(sum(known) / len(known)) if known else None)


def value(setting: object) -> str:
    if isinstance(setting, bool):
        return "yes" if setting else "no"
    if setting is None:
        return "not set"
    if isinstance(setting, float):
        return f"{setting:,.12g}"
    return f"{setting:,}" if isinstance(setting, int) else str(setting)
