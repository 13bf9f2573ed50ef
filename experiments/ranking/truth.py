"""The file that has the accuracies of architectures after full training."""

import collections
import csv
import math
import statistics
from collections.abc import Mapping
from pathlib import Path

from experiments.running import records

SUFFIXES = ("_accuracy", "_error_rate")


def read(path: Path, column: str | None = None) -> dict[str, float]:
    """Accuracies by the names of the architectures, as a CSV file has them.

    Its first line names the columns: ``architecture``, and one or more whose names end in
    ``_accuracy``, in percent, or in ``_error_rate``, from 0 to 1. Others are left alone. Of an
    architecture that has several lines, as one that was trained with several seeds, it is the mean.

    Args:
      path: the file.
      column: which accuracy; may be left out where there is one.

    Raises:
      ValueError: in a line, naming what is wrong with the file.
      OSError: if it cannot be read.
    """
    with path.open(newline="", encoding="utf-8-sig") as file:  # with or without its mark
        try:
            rows = csv.DictReader(file, strict=True)
            column = _chosen(path, list(rows.fieldnames or ()), column)
            found: dict[str, list[float]] = collections.defaultdict(list)
            for row in rows:
                where = f"{path}, line {rows.line_num}"
                if not row["architecture"]:
                    raise ValueError(f"{where}: has no architecture")
                found[row["architecture"]].append(_accuracy(where, column, row[column]))
        except (csv.Error, UnicodeDecodeError) as error:
            raise ValueError(f"{path} is not a CSV file: {error}") from error
    if not found:
        raise ValueError(f"{path} has no architectures below its first line")
    if column.endswith("_accuracy") and max(map(max, found.values())) <= 1:
        raise ValueError(
            f"{path}: {column} must be in percent, 0 to 100, but none is above 1; shares are read "
            "from a column whose name ends in _error_rate, as 1 - accuracy"
        )
    return {name: statistics.fmean(accuracies) for name, accuracies in found.items()}


def digest(accuracies: Mapping[str, float]) -> str:
    """A short hash of what is known, by which it is told from another truth at the same place."""
    return records.digest(sorted(accuracies.items()))


def _chosen(path, columns, column):
    """The column of the accuracy."""
    if "architecture" not in columns:
        there = ", ".join(columns) or "nothing"
        raise ValueError(f"the first line of {path} must name a column architecture, has {there}")
    if twice := [name for name, times in collections.Counter(columns).items() if times > 1]:
        raise ValueError(
            f"the first line of {path} must name each column once, has {twice[0]} twice"
        )
    accuracies = [name for name in columns if name.endswith(SUFFIXES)]
    if not accuracies:
        raise ValueError(
            f"{path} must have a column whose name ends in {' or '.join(SUFFIXES)}, has "
            f"{', '.join(columns)}"
        )
    if column is None and len(accuracies) > 1:
        raise ValueError(f"{path} has {', '.join(accuracies)}: choose one with --column")
    if column is not None and column not in accuracies:
        raise ValueError(f"--column must be one of {', '.join(accuracies)}, got {column!r}")
    return column or accuracies[0]


def _accuracy(where, column, text):
    """In percent."""
    try:
        value = float(text)
    except (TypeError, ValueError):
        value = math.nan
    accuracy = 100 * (1 - value) if column.endswith("_error_rate") else value
    if not 0 <= accuracy <= 100:
        wanted = "from 0 to 1" if column.endswith("_error_rate") else "in percent, 0 to 100"
        raise ValueError(f"{where}: {column} must be {wanted}, got {text!r}")
    return accuracy
