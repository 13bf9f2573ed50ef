"""The page ``docs/benchmarks.md``, from the files in ``benchmarks/results``."""

import json

from benchmarks.timing import FEW, RESULTS, ROOT, SLOW, cells

PAGE = ROOT / "docs" / "benchmarks.md"
HEAD = f"""# Benchmarks

Written by `make bench` from `benchmarks/results/*.json`; not to be edited by hand.

Forms in one table ran alternately on the machine named under it. The figures are medians over the
turns with their quartiles (what takes over {SLOW:g} s has {FEW} turns); a ratio is taken within a
turn, to the first row unless a row says otherwise. MiB is the memory beyond arguments and results:
XLA's temporary buffers for what is jitted, and the growth of the process (so an upper bound) for a
peer in a process of its own.
"""
COLUMNS = ("", "ms", "quartiles", "ratio", "quartiles", "MiB")


def write() -> None:
    """Write the page anew."""
    parts = [HEAD]
    for path in sorted(RESULTS.glob("*.json")):
        result = json.loads(path.read_text())
        parts += [f"## {result['benchmark']}", f"`{result['command']}`"]
        for table in result["tables"]:
            columns = table.get("columns", COLUMNS)
            lines = [_line(columns), _line(["---"] * len(columns))]
            lines += [_line(row.get("cells") or cells(row)) for row in table["rows"]]
            parts += [f"### {table['title']}", table.get("text", ""), "\n".join(lines)]
            parts += ["\n".join(f"{i}. {note}" for i, note in enumerate(table.get("notes", ()), 1))]
        for figure in result.get("figures", ()):
            parts.append(f"![{figure['caption']}](../benchmarks/results/{figure['file']})")
        machine = ", ".join(f"{key} {value}" for key, value in result["machine"].items())
        turns = sorted({table["turns"] for table in result["tables"]})
        parts.append(f"{', '.join(map(str, turns))} turns. Machine: {machine}.")
    PAGE.parent.mkdir(exist_ok=True)
    PAGE.write_text("\n\n".join(part.strip() for part in parts if part) + "\n")


def _line(values):
    return f"| {' | '.join(values)} |"


if __name__ == "__main__":
    write()
