"""Any number of finished runs on one page, which opens offline.

Reads every summary.json under the folders given, of whichever script: the runs side by side in a
table that sorts by any column, the settings in which they differ, and for each run its figures and
cells, the metrics of its epochs, and the command and the versions that it came from.
"""

import base64
import dataclasses
import html
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import tyro

from experiments.running import command_line, records

ORIGIN = ("command", "python", "versions", "devices", "machine")


@dataclasses.dataclass(frozen=True)
class Report:
    """Settings of a report."""

    dirs: Annotated[tuple[Path, ...], tyro.conf.Positional] = (Path("results"),)
    """Folders of runs, or that hold such folders."""
    out: Path = Path("results/report.html")
    """The page."""


@dataclasses.dataclass(frozen=True)
class Run:
    """A folder with a summary."""

    name: str
    folder: Path
    summary: Mapping[str, Any]

    @property
    def script(self) -> str:
        """How its command begins: ``python -m experiments.search``, say."""
        return " ".join(str(self.summary.get("command", "runs")).split()[:3])

    @property
    def settings(self) -> dict[str, Any]:
        return dict(flat(self.summary.get("configuration", {})))

    @property
    def results(self) -> dict[str, float]:
        """The numbers of its summary that are not in a list."""
        rest = {k: v for k, v in self.summary.items() if k not in ("configuration", *ORIGIN)}
        numbers = (int, float)
        return {name: v for name, v in flat(rest) if isinstance(v, numbers) and v is not True}


def main(argv: Sequence[str] | None = None) -> int:
    prog = "python -m experiments.report"
    try:
        config = command_line.read(Report(), argv, prog=prog, description=__doc__)
        runs = find(config.dirs)
        records.writable_folder(config.out.parent)
    except (ValueError, OSError) as error:
        print(f"report: {error}", file=sys.stderr)
        return 2
    records.write_atomically(config.out, page(runs))
    print(f"{len(runs)} runs on {config.out}")
    return 0


def find(dirs: Sequence[Path]) -> list[Run]:
    """The finished runs under some folders, in the order of their names.

    Raises:
      ValueError: if a folder has none, or a summary cannot be read.
    """
    folders: list[Path] = []
    for root in dirs:
        below = sorted(path.parent for path in root.rglob("summary.json"))
        if not below:
            raise ValueError(f"no finished run, which has a summary.json, in or under {root}")
        folders += [folder for folder in below if folder not in folders]
    runs = []
    for folder in folders:
        try:
            summary = json.loads((folder / "summary.json").read_text())
        except ValueError as error:
            raise ValueError(f"{folder / 'summary.json'} is damaged: {error}") from error
        runs.append(Run(str(folder), folder, summary))
    return runs


def flat(tree: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The leaves of nested objects, named by their path; lists are leaves."""
    if isinstance(tree, Mapping):
        for key, value in tree.items():
            yield from flat(value, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, tree


def page(runs: Sequence[Run]) -> str:
    """The page; runs of one script are side by side."""
    anchors = {run.name: f"run{i}" for i, run in enumerate(runs)}
    scripts = dict.fromkeys(run.script for run in runs)
    parts = [side_by_side(s, [run for run in runs if run.script == s], anchors) for s in scripts]
    parts += [section(anchors[run.name], run) for run in runs]
    return PAGE.replace("BODY", "\n".join(parts))


def side_by_side(script: str, runs: Sequence[Run], anchors: Mapping[str, str]) -> str:
    links = {r.name: f'<a href="#{anchors[r.name]}">{escape(r.name)}</a>' for r in runs}
    measured = list(dict.fromkeys(name for run in runs for name in run.results))
    rows = [[links[run.name], *cells(run.results, measured)] for run in runs]
    parts = [f"<h2>{escape(script)}</h2>", table(["run", *measured], rows)]
    differing = [
        name
        for name in dict.fromkeys(name for run in runs for name in run.settings)
        if len({json.dumps(run.settings.get(name)) for run in runs}) > 1
    ]
    if differing:
        rows = [[links[run.name], *cells(run.settings, differing)] for run in runs]
        parts += ["<h3>Settings that differ</h3>", table(["run", *differing], rows)]
    return "".join(parts)


def section(anchor: str, run: Run) -> str:
    figures = "".join(
        f'<figure><img alt="{escape(path.stem)}" src="{data_url(path)}">'
        f"<figcaption>{escape(path.stem.replace('_', ' '))}</figcaption></figure>"
        for path in sorted(run.folder.glob("*.png"))
    )
    metrics = records.read_json_lines(run.folder / "metrics.jsonl")
    names = list(dict.fromkeys(name for record in metrics for name in record))
    epochs = table(names, [cells(record, names) for record in metrics]) if metrics else ""
    origin = {name: run.summary[name] for name in ORIGIN if name in run.summary}
    return (
        f'<section id="{anchor}"><h2>{escape(run.name)}</h2>'
        f"<pre>{escape(str(origin.pop('command', '')))}</pre><div class=figures>{figures}</div>"
        + folded("Epochs", epochs)
        + folded("Settings", pairs(run.settings))
        + folded("Where it ran", pairs(dict(flat(origin))))
        + folded("Summary", f"<pre>{escape(json.dumps(run.summary, indent=1))}</pre>")
        + "</section>"
    )


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table that sorts by the column whose head is clicked."""
    heads = "".join(f"<th tabindex=0>{escape(name)}</th>" for name in head)
    body = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in rows)
    return (
        f'<div class="wide"><table class="sorts"><thead><tr>{heads}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def pairs(values: Mapping[str, Any]) -> str:
    rows = zip(values, cells(values, list(values)), strict=True)
    return (
        f"<table>{''.join(f'<tr><th>{escape(k)}</th><td>{v}</td></tr>' for k, v in rows)}</table>"
    )


def folded(title: str, content: str) -> str:
    return f"<details><summary>{title}</summary>{content}</details>" if content else ""


def cells(values: Mapping[str, Any], names: Sequence[str]) -> list[str]:
    return [text(values[name]) if name in values else "" for name in names]


def text(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.5g}"
    return escape(value if isinstance(value, str) else json.dumps(value))


def escape(value: str) -> str:
    return html.escape(value)


def data_url(path: Path) -> str:
    return f"data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}"


PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Runs</title>
<style>
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 75rem; padding: 0 1rem }
h2 { margin-top: 2.5rem; overflow-wrap: anywhere }
pre { background: #f4f4f4; overflow-x: auto; padding: .5rem }
.wide { overflow-x: auto }
table { border-collapse: collapse; font-variant-numeric: tabular-nums }
th, td { border-bottom: 1px solid #ddd; padding: .2rem .6rem; text-align: left }
th, td { white-space: nowrap }
.sorts th { cursor: pointer; vertical-align: bottom }
.sorts th[aria-sort=ascending]::after { content: " ▲" }
.sorts th[aria-sort=descending]::after { content: " ▼" }
.figures { display: flex; flex-wrap: wrap; gap: 1rem }
figure { margin: 0; max-width: 30rem }
figure img { cursor: zoom-in; max-height: 22rem; max-width: 100% }
figcaption { color: #555 }
details { margin: .5rem 0 }
dialog { border: 0; height: 96vh; max-height: none; max-width: none; overflow: auto; width: 96vw }
dialog img { cursor: zoom-out; min-width: 60% }
</style>
<h1>Runs</h1>
<p>Click a column's head to sort by it, and a figure to enlarge it.</p>
BODY
<dialog><img alt=""></dialog>
<script>
const number = cell => parseFloat(cell.textContent);
const order = (a, b, sign) => {
  const [x, y] = [number(a), number(b)];
  if (isNaN(x) && isNaN(y)) return sign * a.textContent.localeCompare(b.textContent);
  return isNaN(x) - isNaN(y) || sign * (x - y);  // what is not a number comes last
};
function sort(head) {
  const table = head.closest("table"), column = head.cellIndex;
  const down = head.getAttribute("aria-sort") === "ascending";
  for (const other of table.querySelectorAll("th")) other.removeAttribute("aria-sort");
  head.setAttribute("aria-sort", down ? "descending" : "ascending");
  const rows = [...table.tBodies[0].rows];
  rows.sort((a, b) => order(a.cells[column], b.cells[column], down ? -1 : 1));
  table.tBodies[0].append(...rows);
}
for (const head of document.querySelectorAll(".sorts th")) {
  head.onclick = () => sort(head);
  head.onkeydown = event => { if (event.key === "Enter") sort(head); };
}
const dialog = document.querySelector("dialog");
for (const image of document.querySelectorAll("figure img"))
  image.onclick = () => { dialog.firstChild.src = image.src; dialog.showModal(); };
dialog.onclick = () => dialog.close();
</script>
</html>
"""

if __name__ == "__main__":
    sys.exit(main())
