"""What the two-model experiment writes: numbers, tables and figures."""

import dataclasses
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from rich import box
from rich.table import Table

from experiments.running import records
from experiments.two_models.settings import TwoModels
from experiments.two_models.training import NEVER, Accuracies, Outcome, compared
from wpl_jax import figures
from wpl_jax.forgetting import mean_interval, relative_reduction

COLUMNS = {"plain": "plain", "wpl": "WPL", "l2_anchor": "L2 anchor", "frozen": "frozen"}
COLORS = {"plain": "tab:blue", "wpl": "tab:orange", "l2_anchor": "tab:green", "frozen": "tab:gray"}
STYLES = {
    f"{model}, {label}": {"color": COLORS[name], "linestyle": line}
    for name, label in COLUMNS.items()
    for model, line in (("A", "-"), ("B", "--"))
}


class Condition(NamedTuple):
    """What B meets: how far A was trained, and how many of its layers they share."""

    stop_at: float
    shared: int


class Regime(NamedTuple):
    """How plain training fares over learning rates (rows) and momenta (columns) of B."""

    forgetting: dict[float, np.ndarray]  # by ``stop_at``: accuracy that A lost, mean over seeds
    worst_b: np.ndarray  # the lowest accuracy of B in any condition and seed
    learning_rate: float  # the chosen ones
    momentum: float


class Result(NamedTuple):
    """Of one condition. Leading axis: seeds, in ``outcome`` followed by the compared methods."""

    condition: Condition
    baseline: Accuracies
    outcome: Outcome
    chosen: dict[str, int]  # by name of a method, the place of its chosen strength


def summarise(config: TwoModels, regime: Regime, results: dict[str, Result]) -> dict:
    """The numbers of the run: accuracies on the test set as means with 95 % intervals."""
    return {
        "conditions": [condition_summary(config, name, r) for name, r in results.items()],
        "regime": {
            "learning_rate": regime.learning_rate,
            "momentum": regime.momentum,
            "learning_rates": config.map_learning_rates,
            "momenta": config.map_momenta,
            "forgetting": {title(s): f.round(4).tolist() for s, f in regime.forgetting.items()},
            "worst_b": regime.worst_b.round(4).tolist(),
        },
        "configuration": dataclasses.asdict(config) | {"out": None, "data_dir": None},
    }


def condition_summary(config: TwoModels, name: str, result: Result) -> dict:
    baseline, plain = result.baseline.test, final(result, "plain")[0]
    summary = {
        "name": name,
        "shared_layers": result.condition.shared,
        "seeds": config.seeds,
        "baseline_a": interval(baseline),
    }
    for method, place in result.chosen.items():
        a, b = final(result, method)
        summary[method] = {
            "strength": compared(config)[place][1] if method in ("wpl", "l2_anchor") else None,
            "final_a": interval(a),
            "final_b": interval(b),
        }
        if method != "plain":
            with np.errstate(divide="ignore", invalid="ignore"):  # a seed that forgot nothing
                ratios = relative_reduction(baseline, plain, a)
                ratio = relative_reduction(baseline.mean(), plain.mean(), a.mean())
            summary[method]["relative_reduction"] = {
                "mean_of_ratios": interval(ratios),
                "ratio_of_means": finite(ratio),
            }
    summary["relative_reduction"] = summary["wpl"]["relative_reduction"]
    return summary


def final(result: Result, method: str) -> tuple[np.ndarray, np.ndarray]:
    """Test accuracies of A and B at the end, at the chosen strength, each of shape (seeds,)."""
    place = result.chosen[method]
    outcome = result.outcome
    return outcome.final_a.test[:, place], outcome.final_b.test[:, place]


def interval(values: np.ndarray) -> dict[str, float | None]:
    numbers = mean_interval(values)
    return {k: finite(v) for k, v in zip(("mean", "low", "high"), numbers, strict=True)}


def finite(number: float) -> float | None:
    """JSON knows no infinity and no NaN."""
    return float(number) if np.isfinite(number) else None


def title(stop: float) -> str:
    return "A converged" if stop == NEVER else f"A stopped at {stop:.0%}".replace("%", " %")


HEADER = (
    "condition",
    "A before",
    *(f"{model} {label}" for model in "AB" for label in COLUMNS.values()),
    "WPL prevents",
    "L2 prevents",
    "WPL strength",
    "L2 strength",
)
TERMINAL_COLUMNS = ("condition", "A before", "A plain", "A WPL", "B plain", "B WPL", "WPL prevents")


def rows(summary: dict, show: Callable[[dict], str]) -> list[dict[str, str]]:
    """One row a condition, with ``HEADER`` as keys; ``show`` writes a mean and its interval."""
    return [
        dict(
            zip(
                HEADER,
                (
                    condition["name"],
                    show(condition["baseline_a"]),
                    *(show(condition[m][f"final_{model}"]) for model in "ab" for m in COLUMNS),
                    *(prevented(condition, m) for m in ("wpl", "l2_anchor")),
                    *(f"{condition[m]['strength']:g}" for m in ("wpl", "l2_anchor")),
                ),
                strict=True,
            )
        )
        for condition in summary["conditions"]
    ]


def percent(number: dict[str, float]) -> str:
    return f"{100 * number['mean']:.1f}"


def percent_with_interval(number: dict[str, float]) -> str:
    return f"{100 * number['mean']:.1f} ± {50 * (number['high'] - number['low']):.1f}"


def prevented(condition: dict, method: str) -> str:
    """The relative reduction, where there is something to reduce."""
    if condition["plain"]["final_a"]["mean"] >= condition["baseline_a"]["mean"]:
        return "–"
    return f"{100 * condition[method]['relative_reduction']['ratio_of_means']:.1f}"


def table(summary: dict) -> Table:
    """The summary for a terminal of 80 columns."""
    view = Table(title="Test accuracy (%) after B has trained, means over seeds", box=box.SIMPLE)
    for column in TERMINAL_COLUMNS:
        view.add_column(column, justify="left" if column == "condition" else "right")
    for row in rows(summary, percent):
        view.add_row(*(row[column] for column in TERMINAL_COLUMNS))
    return view


def write(
    config: TwoModels, regime: Regime, results: dict[str, Result], summary: dict, out: Path
) -> None:
    """Write every output to ``out``, the summary last."""
    for name, figure in draw_figures(config, regime, results).items():
        for suffix in ("png", "pdf"):
            buffer = io.BytesIO()
            figure.savefig(buffer, format=suffix, dpi=150)
            records.write_atomically(out / f"{name}.{suffix}", buffer.getvalue())
    records.write_atomically(out / "curves.npz", records.npz(curves(config, results)))
    records.write_atomically(out / "report.md", report(config, regime, results, summary))
    records.write_atomically(
        out / "summary.json", json.dumps(summary, indent=1, allow_nan=False) + "\n"
    )


def curves(config: TwoModels, results: dict[str, Result]) -> dict[str, np.ndarray]:
    """Per-seed arrays behind the figures, named ``condition/quantity``."""
    names, strengths = zip(*compared(config), strict=True)
    arrays = {
        "steps": steps(config),
        "methods": np.array(names),
        "strengths": np.array(strengths),
    }
    for name, result in results.items():
        arrays[f"{name}/baseline_validation"] = result.baseline.validation
        arrays[f"{name}/baseline_test"] = result.baseline.test
        for model in "ab":
            arrays[f"{name}/curve_{model}"] = getattr(result.outcome, f"curve_{model}")
            for part, values in getattr(result.outcome, f"final_{model}")._asdict().items():
                arrays[f"{name}/final_{model}_{part}"] = values
    return arrays


def steps(config: TwoModels) -> np.ndarray:
    return np.arange(0, config.b_steps + 1, config.eval_every)


def draw_figures(config: TwoModels, regime: Regime, results: dict[str, Result]) -> dict:
    """By file name, the figures of the experiment."""
    stopping = {title(r.condition.stop_at): r for r in results.values() if r.condition.shared == 4}
    sharing = sorted(
        (r for r in results.values() if r.condition.stop_at == NEVER),
        key=lambda r: r.condition.shared,
    )
    baselines = {heading: r.baseline.validation for heading, r in stopping.items()}

    def curves_of(result):
        return {"A": result.outcome.curve_a, "B": result.outcome.curve_b}

    def finals_of(result):
        outcome = result.outcome
        return {"A": outcome.final_a.validation, "B": outcome.final_b.validation}

    def before(result):  # on the images behind the curves; the same for every method
        return result.outcome.curve_a[:, 0, 0]

    def by_strength(result, method, values):
        places = [i for i, (name, _) in enumerate(compared(config)) if name == method]
        return np.array([compared(config)[i][1] for i in places]), values[:, places]

    def over_strengths(method):
        return figures.strength_curves(
            {
                heading: {
                    f"{model}, {COLUMNS[method]}": by_strength(r, method, values)
                    for model, values in finals_of(r).items()
                }
                for heading, r in stopping.items()
            },
            {
                heading: {
                    f"{model}, {COLUMNS[other]}": values[:, r.chosen[other]]
                    for other in ("plain", "frozen")
                    for model, values in finals_of(r).items()
                }
                for heading, r in stopping.items()
            },
            STYLES,
            xlabel=f"strength of {COLUMNS[method]}",
        )

    def kept_against_reached(result):
        return {
            label: tuple(by_strength(result, method, v)[1] for v in finals_of(result).values())
            for method, label in COLUMNS.items()
        }

    map_titles = {title(stop): 100 * values for stop, values in regime.forgetting.items()}
    chosen = (
        (
            config.map_learning_rates.index(regime.learning_rate),
            config.map_momenta.index(regime.momentum),
        )
        if regime.learning_rate in config.map_learning_rates
        and regime.momentum in config.map_momenta
        else None
    )
    return {
        "figure1": figures.training_curves(
            {
                f"{r.condition.shared} of 4 layers shared": {
                    f"{model}, plain": curve[:, r.chosen["plain"]]
                    for model, curve in curves_of(r).items()
                }
                for r in sharing
            },
            steps(config),
            STYLES,
            {f"{r.condition.shared} of 4 layers shared": before(r) for r in sharing},
        ),
        "figure2": figures.training_curves(
            {
                heading: {
                    f"{model}, {COLUMNS[method]}": curve[:, r.chosen[method]]
                    for method in ("plain", "l2_anchor", "wpl")
                    for model, curve in curves_of(r).items()
                }
                for heading, r in stopping.items()
            },
            steps(config),
            STYLES,
            {heading: before(r) for heading, r in stopping.items()},
        ),
        "strength_wpl": over_strengths("wpl"),
        "strength_l2": over_strengths("l2_anchor"),
        "trade_off": figures.trade_off(
            {heading: kept_against_reached(r) for heading, r in stopping.items()},
            baselines,
            {
                label: {"color": COLORS[method], "marker": "o", "linestyle": "-"}
                for method, label in COLUMNS.items()
            },
        ),
        "regime_map": figures.heat_maps(
            map_titles,
            config.map_learning_rates,
            config.map_momenta,
            row_name="learning rate of B",
            column_name="momentum of B",
            value_name="points of accuracy that A forgot",
            marked=chosen,
        ),
    }


def along_strengths(config: TwoModels, results: dict[str, Result]) -> list[str]:
    """Rows of Markdown: test accuracies of A and B for every strength, all 4 layers shared."""
    return [
        f"| {name} | {COLUMNS[method]} | {strength:g} "
        f"| {percent_with_interval(interval(r.outcome.final_a.test[:, place]))} "
        f"| {percent_with_interval(interval(r.outcome.final_b.test[:, place]))} |"
        for name, r in results.items()
        for place, (method, strength) in enumerate(compared(config))
        if r.condition.shared == 4 and method in ("wpl", "l2_anchor")
    ]


def report(config: TwoModels, regime: Regime, results: dict[str, Result], summary: dict) -> str:
    """The run as a page of Markdown."""
    lines = ["| " + " | ".join(row.values()) + " |" for row in rows(summary, percent_with_interval)]
    seconds = summary["seconds"]
    return f"""# Two models that share weights

`{summary["command"]}`

{config.seeds} seeds on {config.data}, {seconds // 60} min {seconds % 60} s on \
{summary["machine"]} ({", ".join(summary["devices"])}), jax {summary["versions"]["jax"]}.

A ({config.a_steps:,} steps of SGD, or stopped early) is followed by B ({config.b_steps:,} steps of
SGD, learning rate {regime.learning_rate:g}, momentum {regime.momentum:g}), which trains the layers
it shares with A further. Numbers are test accuracies in percent, means over seeds with half of
their 95 % interval. "Prevents" is the share of A's loss that does not happen, (d - d_method) / d
of the mean losses; over 100 % means that A ended better than it began. (The mean of the seeds' own
ratios is in summary.json: where a seed loses next to nothing, its ratio says nothing.)

| {" | ".join(HEADER)} |
| --- |{" ---: |" * (len(HEADER) - 1)}
{chr(10).join(lines)}

Strengths were chosen on validation data, for WPL and for the L2 anchor (F = 1) by the same rule
among as many candidates: the highest sum of A's and B's mean accuracy. B's learning rate and
momentum were {
        "given"
        if config.b_learning_rate
        else "chosen on the regime map, where plain training "
        "forgets most while B reaches " + format(config.map_min_accuracy, ".0%") + " in every run"
    }.

## Figure 1: the more layers B shares, the more A forgets

![A's accuracy while B trains, by number of shared layers](figure1.png)

## Figure 2: with A converged, and stopped early

![Accuracies of A and B while B trains, by method](figure2.png)

## How much the strength matters

![Final accuracies against the strength of WPL](strength_wpl.png)

![Final accuracies against the strength of the L2 anchor](strength_l2.png)

| condition | method | strength | A | B |
| --- | --- | ---: | ---: | ---: |
{chr(10).join(along_strengths(config, results))}

## What A keeps against what B reaches

![Final accuracy of B against final accuracy of A, along the strengths](trade_off.png)

## Where plain training forgets

{config.map_seeds} seeds of their own, all 4 layers shared. Framed: the setting used above.

![Accuracy that A forgot, over learning rate and momentum of B](regime_map.png)
"""
