"""The page, with everything that it shows inside it."""

import base64
import json
import posixpath
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

from experiments.report.headlines import Curve, Headline, Row, headline
from experiments.report.markdown import rendered
from experiments.report.numbers import Cell, number
from experiments.report.overlay import overlay
from experiments.report.runs import Run, flat

TEMPLATE = Path(__file__).with_name("template.html")
OPEN = 8  # figures of curves that are not folded away


def page(runs: Sequence[Run], left_out: Sequence[str] = ()) -> str:
    """The page; runs of one kind are side by side."""
    anchors = {run.name: f"run{i}" for i, run in enumerate(runs)}
    groups: dict[str, list[tuple[Run, Headline]]] = {}
    for run in runs:
        found = headline(run)
        groups.setdefault(found.kind, []).append((run, found))
    parts = [remarks(left_out), *(side_by_side(groups[kind], anchors) for kind in sorted(groups))]
    parts += [section(anchors[run.name], run) for run in runs]
    return TEMPLATE.read_text(encoding="utf-8").replace("<!-- runs -->", "\n".join(parts))


class Shown(NamedTuple):
    """A run among others of its kind."""

    run: Run
    headline: Headline
    name: str  # below the folder that they have in common
    anchor: str


def side_by_side(runs: Sequence[tuple[Run, Headline]], anchors: Mapping[str, str]) -> str:
    """Headline numbers, settings that differ and curves of runs of one kind."""
    folder = posixpath.commonpath([posixpath.dirname(run.name) for run, _ in runs]) or "."
    group = [
        Shown(run, found, posixpath.relpath(run.name, folder), anchors[run.name])
        for run, found in runs
    ]
    kind, note = group[0].headline.kind, group[0].headline.note
    parts = [f"<h2>{escape(kind)}</h2>", f"<p>{escape(note)}</p>" * bool(note)]
    for title in dict.fromkeys(title for s in group for title in s.headline.tables):
        rows = [
            (link(s, row.part, alone=len(group) == 1), row)
            for s in group
            for row in s.headline.tables.get(title, ())
        ]
        parts += [f"<h3>{escape(title)}</h3>" * bool(title), table("run", rows)]
    settings = [s.run.settings for s in group]
    names = dict.fromkeys(name for of_run in settings for name in of_run if name != "out")
    differing = [n for n in names if len({json.dumps(s.get(n)) for s in settings}) > 1]
    if differing:
        rows = [
            (link(s), Row("", {n: cell(v) for n, v in s.run.settings.items() if n in differing}))
            for s in group
        ]
        parts += ["<h3>Settings that differ</h3>", table("run", rows)]
    return "".join([*parts, curves(group)])


def link(of: Shown, part: str = "", *, alone: bool = False) -> str:
    """To all of a run, or from the part that a row is about if there is no other run."""
    if alone and part:
        return f'<a href="#{of.anchor}">{escape(part)}</a>'
    name = escape(of.name).replace("/", "/<wbr/>")
    return f'<a href="#{of.anchor}">{name}</a>' + f"<br/>{escape(part)}" * bool(part)


def curves(group: Sequence[Shown]) -> str:
    """A figure a metric that at least two runs have; after the first ones they are folded."""
    drawn: dict[str, dict[str, Curve]] = {}
    for s in group:
        for metric, by_part in s.headline.curves.items():
            for part, curve in by_part.items():
                drawn.setdefault(metric, {})[f"{s.name}, {part}" if part else s.name] = curve
    figures = [
        figure(metric, "svg+xml", overlay(metric, lines, group[0].headline.xlabel))
        for metric, lines in drawn.items()
        if sum(metric in s.headline.curves for s in group) > 1
    ]
    if not figures:
        return ""
    at_once, rest = "".join(figures[:OPEN]), "".join(figures[OPEN:])
    return f"<h3>Curves</h3><div class=figures>{at_once}</div>" + folded(
        "More curves", f"<div class=figures>{rest}</div>" * bool(rest)
    )


def section(anchor: str, run: Run) -> str:
    """All that a run has left."""
    report, inlined = rendered(run.report, run.figures)
    figures = "".join(
        figure(name.removesuffix(".png").replace("_", " "), "png", data)
        for name, data in run.figures.items()
        if name not in inlined
    )
    names = list(dict.fromkeys(name for record in run.metrics for name in record))
    epochs = [
        (text(record.get("epoch")), Row("", {n: cell(record[n]) for n in names if n in record}))
        for record in run.metrics
    ]
    origin = run.origin
    command = origin.pop("command", "")
    return (
        f'<section id="{anchor}"><h2>{escape(run.name)}</h2>{remarks(run.left_out)}'
        + f"<pre class=command>{escape(str(command))}</pre>" * bool(command)
        + folded("Report", f"<article>{report}</article>" if report else "", is_open=True)
        + f"<div class=figures>{figures}</div>" * bool(figures)
        + folded("Epochs", table("epoch", epochs, without=["epoch"]) if epochs else "")
        + folded("Settings", pairs(run.settings))
        + folded("Where it ran", pairs(dict(flat(origin)) if origin else {}))
        + folded("Summary", f"<pre>{escape(json.dumps(run.summary, indent=1))}</pre>")
        + "</section>"
    )


def remarks(left_out: Sequence[str]) -> str:
    return "".join(f"<p class=remark>Left out: {escape(line)}</p>" for line in left_out)


def table(head: str, rows: Sequence[tuple[str, Row]], without: Sequence[str] = ()) -> str:
    """A table that sorts by the column whose head is clicked, of rows with their first cell."""
    filled = {name for _, row in rows for name, of in row.cells.items() if of.text} - {*without}
    names = [n for n in dict.fromkeys(n for _, row in rows for n in row.cells) if n in filled]
    numeric = {n for _, row in rows for n, of in row.cells.items() if of.value is not None}
    heads = "".join(
        f"<th tabindex=0 class={'number' if name in numeric else 'text'}>{escape(name)}</th>"
        for name in [head, *names]
    )
    body = "".join(
        f'<tr><th scope="row">{first}</th>'
        + "".join(data(row.cells.get(name, Cell())) for name in names)
        + "</tr>"
        for first, row in rows
    )
    return (
        f'<div class="wide"><table class="sorts"><thead><tr>{heads}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def data(of: Cell) -> str:
    if of.value is None:
        return f"<td>{escape(of.text)}</td>"
    return f'<td data-value="{of.value:.12g}">{escape(of.text)}</td>'


def pairs(values: Mapping[str, Any]) -> str:
    rows = "".join(f"<tr><th>{escape(k)}</th><td>{text(v)}</td></tr>" for k, v in values.items())
    return f'<div class="wide"><table>{rows}</table></div>' if rows else ""


def folded(title: str, content: str, *, is_open: bool = False) -> str:
    if not content:
        return ""
    return f"<details{' open' * is_open}><summary>{title}</summary>{content}</details>"


def figure(caption: str, kind: str, image: bytes) -> str:
    url = f"data:image/{kind};base64,{base64.b64encode(image).decode()}"
    said = "" if kind == "svg+xml" else f"<figcaption>{escape(caption)}</figcaption>"
    return f'<figure><img alt="{escape(caption)}" src="{url}">{said}</figure>'


def cell(value: Any) -> Cell:
    """Of a setting or a metric, which is shown as it is."""
    return number(value, None) if number(value, None).text else Cell(plain(value))


def text(value: Any) -> str:
    return escape(cell(value).text)


def plain(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
