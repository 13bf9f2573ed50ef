"""What the comparison of importances writes: numbers and tables."""

from pathlib import Path
from typing import NamedTuple

import numpy as np

from experiments.running import records
from experiments.running.intervals import interval
from experiments.running.wording import markdown, show

ANCHOR, REPLAY = "L2 anchor", "replay, no anchor"
ARMS = ("nothing", ANCHOR, "empirical Fisher", "MAS", "SI", REPLAY)
CONTINUAL = ("a head for each pair", "one head")
SCENARIOS = ("A converged", "A stopped at 55 %", *CONTINUAL)
EDGE = "†"


class Result(NamedTuple):
    """Of one scenario. Accuracies on test images, (seeds, arms, tasks)."""

    validation: dict[str, list[tuple[float, float]]]  # by arm, strengths and their scores
    chosen: dict[str, float]  # by arm, the strength with the highest one
    learned: np.ndarray  # right after a task was learned
    final: np.ndarray  # when all have been


def summarise(results: dict[str, Result]) -> dict:
    """The numbers of the run: test accuracies as means with 95 % intervals."""
    return {"scenarios": {name: scenario_summary(name, r) for name, r in results.items()}}


def scenario_summary(name: str, result: Result) -> dict:
    """Forgotten is what was lost of the tasks before the last; all accuracies are kept."""
    before_last = result.learned[..., :-1] - result.final[..., :-1]
    means = dict(zip(result.chosen, result.final.mean(-1).T, strict=True))
    arms = {}
    for place, (arm, strength) in enumerate(result.chosen.items()):
        final = result.final[:, place]
        candidates = [candidate for candidate, _ in result.validation[arm]]
        arms[arm] = {
            "strength": strength,
            "at_edge": len(candidates) > 1 and strength in (candidates[0], candidates[-1]),
            "first": interval(final[:, 0]),
            "last": interval(final[:, -1]),
            "mean": interval(means[arm]),
            "over_anchor": interval(means[arm] - means[ANCHOR]),  # paired by seed
            "forgotten": interval(before_last[:, place].mean(1)),
            "by_seed": {
                "learned": result.learned[:, place].astype(float).round(4).tolist(),
                "final": final.astype(float).round(4).tolist(),
            },
        }
    return {
        "seeds": len(result.final),
        "first_learned": interval(result.learned[:, 0, 0]),
        "arms": arms,
        "validation": result.validation,
    }


def write(summary: dict, out: Path) -> None:
    records.write_atomically(out / "report.md", report(summary))
    records.write_json(out / records.SUMMARY, summary)


def report(summary: dict) -> str:
    """The page, of the summary alone."""
    scenarios, config = summary["scenarios"], summary["configuration"]
    minutes, seconds = divmod(summary["seconds"], 60)
    seeds = next(iter(scenarios.values()))["seeds"]
    edge = any(arm["at_edge"] for s in scenarios.values() for arm in s["arms"].values())
    parts = [
        "# Importances compared",
        f"`{summary['command']}`",
        f"{seeds} seeds, {minutes} min {seconds} s on {summary['machine']} "
        f"({', '.join(summary['devices'])}), jax {summary['versions']['jax']}.",
        "Test accuracies in percent, means over seeds with half of their 95 % interval. What is "
        f"forgotten, and how far a mean is beyond that of the {ANCHOR} (seed by seed), are in "
        "percentage points. Each strength is the one with the highest validation accuracy, mean "
        f"over tasks and over {config['choice_seeds']} other seeds, of its row in the last table."
        + (f" {EDGE}: it is the first or last there, and a better one may lie beyond." * edge),
    ]
    for name, scenario in scenarios.items():
        parts += [f"## {title(name)}", table(name, scenario)]
    parts += ["## Strengths", strengths(summary)]
    return "\n\n".join(parts) + "\n"


def title(name: str) -> str:
    return f"Five pairs of digits, {name}" if name in CONTINUAL else f"Two models, {name}"


def table(name: str, scenario: dict) -> str:
    """A row an arm."""
    if name in CONTINUAL:
        columns = {
            "mean of five": "mean",
            "beyond the anchor's": "over_anchor",
            "first pair": "first",
            "last pair": "last",
            "forgotten, of the first four": "forgotten",
        }
    else:
        columns = {
            "A": "first",
            "B": "last",
            "mean of both": "mean",
            "beyond the anchor's": "over_anchor",
            "A forgot": "forgotten",
        }
    rows = [
        [
            arm,
            shown_strength(values),
            *(
                "–" if column == "over_anchor" and arm == ANCHOR else show(values[column], 1, 100)
                for column in columns.values()
            ),
        ]
        for arm, values in scenario["arms"].items()
    ]
    return markdown(["", "strength", *columns], rows)


def strengths(summary: dict) -> str:
    """Validation accuracies along the strengths."""
    rows = []
    for name, scenario in summary["scenarios"].items():
        for arm, found in scenario["validation"].items():
            if len(found) > 1:
                values = ", ".join(f"{100 * score:.1f}" for _, score in found)
                rows.append([title(name), arm, f"{found[0][0]:g} to {found[-1][0]:g}", values])
    return markdown(["", "", "strengths, in decades", "validation accuracy"], rows)


def shown_strength(arm: dict) -> str:
    return f"{arm['strength']:g}{EDGE * arm['at_edge']}" if arm["strength"] else "–"
