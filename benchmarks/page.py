"""The page ``docs/benchmarks.md``, from the files in ``benchmarks/results``."""

import json

from benchmarks.timing import COLUMNS, FEW, ROOT, SLOW, cells

RESULTS = ROOT / "benchmarks" / "results"
PAGE = ROOT / "docs" / "benchmarks.md"
FIRST = ("fisher", "fisher_models")  # the others follow by name
HEAD = f"""# Benchmarks

Written by `make bench` from `benchmarks/results/*.json`; not to be edited by hand.

Forms in one table ran alternately on one machine. The figures are medians over the turns with their
quartiles (what takes over {SLOW:g} s has {FEW} turns); a ratio is taken within a turn, to the first
row unless a row says otherwise. MiB is the memory beyond arguments and results: XLA's temporary
buffers for what is jitted, and the growth of the process (so an upper bound) for a peer in a
process of its own.
"""


def write() -> None:
    """Write the page anew."""
    results = sorted((json.loads(path.read_text()) for path in RESULTS.glob("*.json")), key=_place)
    machines = [_said(result["machine"]) for result in results]
    usual = max(machines, key=machines.count)
    parts = [HEAD, f"Machine, unless a section names another: {usual}."]
    for result, machine in zip(results, machines, strict=True):
        parts += [f"## {result['benchmark']}", f"`{result['command']}`"]
        for table in result["tables"]:
            columns = table.get("columns", COLUMNS)
            lines = [_line(columns), _line(["---"] * len(columns))]
            lines += [_line(row.get("cells") or cells(row)) for row in table["rows"]]
            parts += [f"### {table['title']}", table.get("text", ""), "\n".join(lines)]
            parts += ["\n".join(f"{i}. {note}" for i, note in enumerate(table.get("notes", ()), 1))]
        for figure in result.get("figures", ()):
            parts.append(f"![{figure['caption']}](../benchmarks/results/{figure['file']})")
        turns = sorted({table["turns"] for table in result["tables"] if "turns" in table})
        said = [f"{' or '.join(map(str, turns))} turns."] if turns else []  # a count has none
        said += [] if machine == usual else [f"Machine: {machine}."]
        parts.append(" ".join(said))
    PAGE.parent.mkdir(exist_ok=True)
    PAGE.write_text("\n\n".join(part.strip() for part in parts if part) + "\n")


def _place(result):
    name = result["benchmark"]
    return (FIRST.index(name) if name in FIRST else len(FIRST)), name


def _said(machine):
    return ", ".join(f"{key} {value}" for key, value in machine.items())


def _line(values):
    return f"| {' | '.join(values)} |"


if __name__ == "__main__":
    write()
