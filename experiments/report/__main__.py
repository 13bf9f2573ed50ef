"""Any number of finished runs on one page, which opens offline.

Reads every summary.json under the folders given, of whichever script: the headline numbers side by
side in tables that sort by any column, the settings in which runs differ, their curves on common
axes, and for each run its report, figures, epochs, settings and origin. What cannot be read, or
lies outside a run's folder, is left out and named, in a line each; the exit status is then 1.
"""

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import tyro

from experiments.report.page import page
from experiments.report.runs import find
from experiments.running import command_line, records


@dataclasses.dataclass(frozen=True)
class Report:
    """Settings of a report."""

    dirs: Annotated[tuple[Path, ...], tyro.conf.Positional] = (Path("results"),)
    """Folders of runs, or that hold such folders."""
    out: Path = Path("results/report.html")
    """The page."""


def main(argv: Sequence[str] | None = None) -> int:
    prog = "python -m experiments.report"
    try:
        config = command_line.read(Report(), argv, prog=prog, description=__doc__)
        if config.out.is_dir():
            raise ValueError(f"--out must be a file, got the folder {config.out}")
        runs, left_out = find(config.dirs)
        records.writable_folder(config.out.parent)
        records.write_atomically(config.out, page(runs, left_out).encode(errors="replace"))
    except (ValueError, OSError) as error:
        say(str(error))
        return 2
    left_out += [line for run in runs for line in run.left_out]
    for line in left_out:
        say(f"left out: {line}")
    print(f"{len(runs)} run{'s' * (len(runs) != 1)} on {config.out}")
    return 1 if left_out else 0


def say(text: str) -> None:
    """In a line, whatever the names of files have in them."""
    print(f"report: {text}".replace("\n", "\\n"), file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
