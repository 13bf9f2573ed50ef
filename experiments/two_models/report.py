"""The report and the figures of a finished run, drawn anew from its summary.json and curves.npz."""

import dataclasses
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import tyro
from rich import box
from rich.console import Console
from rich.table import Table

from experiments.running import command_line, records
from experiments.running.wording import markdown
from experiments.two_models import drawing, findings, results
from experiments.two_models.findings import accuracy, as_power, difference, with_interval
from experiments.two_models.results import METHODS, RIVALS, Run, choose, summarise

STRENGTHS = ("L2 anchor", "WPL")  # the methods that have one


@dataclasses.dataclass(frozen=True)
class Report:
    """Settings of the report."""

    folder: tyro.conf.Positional[Path]
    """Folder of a finished run, in which the report and the figures are replaced."""


def main(argv: Sequence[str] | None = None) -> int:
    try:
        config = command_line.read(
            Report(Path("results/two_models/mnist5k")),
            argv,
            prog="python -m experiments.two_models.report",
            description=__doc__,
        )
        run = results.load(records.writable_folder(config.folder, "folder"))
    except (ValueError, OSError) as error:
        print(f"two_models.report: {error}", file=sys.stderr)
        return 2
    results.save(run, config.folder)
    write(run, config.folder)
    show(run, config.folder)
    return 0


def write(run: Run, out: Path) -> None:
    """Write the report and the figures to ``out``."""
    drawn = drawing.draw(run)
    records.write_figures(out, drawn, dpi=200, bbox_inches="tight")
    records.write_atomically(out / "report.md", page(summarise(run), drawn))


def show(run: Run, out: Path) -> None:
    """Print what A and B have kept and learned, on a short screen."""
    summary = summarise(run)
    conditions = summary["conditions"]
    console = Console()
    console.print(table(conditions) if len(conditions) > 1 else before_and_after(run))
    console.print(f"Figure: {out / 'first_look.png'}", soft_wrap=True)
    console.print(f"Report: {out / 'report.md'}", soft_wrap=True)


def table(conditions: Sequence[Mapping]) -> Table:
    """A line a condition, for a terminal of 80 columns."""
    view = Table(title="Test accuracy in percent, means over seeds", box=box.SIMPLE)
    view.add_column("")
    for name in ("A before", "A plain", "A WPL", "B plain", "B WPL"):
        view.add_column(name, justify="right")
    for c in conditions:
        numbers = [c["before_a"], *(c[m][f"final_{x}"] for x in "ab" for m in ("plain", "WPL"))]
        view.add_row(c["name"], *map(accuracy, numbers))
    return view


def before_and_after(run: Run) -> Table:
    """The only condition, a line for each state: means, and in brackets every seed."""
    (result,) = run.results.values()
    view = Table(title="Test accuracy in percent: mean (each seed)", box=box.SIMPLE)
    view.add_column("")
    for name in ("model A", "model B"):
        view.add_column(name, justify="right")

    def of_seeds(values):
        return f"{100 * values.mean():.1f} ({', '.join(f'{100 * v:.0f}' for v in values)})"

    view.add_row("before B trains", of_seeds(result.before.test), "untrained")
    chosen = choose(run.config, result.outcome)
    for method, said in (("plain", "after B, plainly trained"), ("WPL", "after B, with WPL")):
        finals = (result.outcome.final_a, result.outcome.final_b)
        view.add_row(said, *(of_seeds(final.test[:, chosen[method]]) for final in finals))
    return view


# --- The page -------------------------------------------------------------------------------------


def page(summary: Mapping, drawn: Sequence[str] | Mapping) -> str:
    """The run as a page of Markdown."""
    settings, regime = summary["configuration"], summary["regime"]
    conditions, seconds = summary["conditions"], summary["seconds"]
    parts = [
        f"""# Two models that share weights

`{summary["command"]}`

{settings["seeds"]} seeds on {settings["data"]}, {seconds // 60} min {seconds % 60} s on \
{summary["machine"]} ({", ".join(summary["devices"])}), jax {summary["versions"]["jax"]}.

Model A learns to read digits ({settings["a_steps"]:,} steps of SGD, or stopped early at a given
validation accuracy). It has four hidden layers of {settings["width"]} ReLUs and a classifier. Then
model B, which has two hidden layers more and a classifier of its own, trains \
({settings["b_steps"]:,} steps of SGD, learning rate {regime["learning_rate"]:g}, momentum
{regime["momentum"]:g}; a step has {settings["batch_size"]} images): it starts from A's hidden
layers, all four if not said otherwise, and changes them. *Plain*: nothing holds them. *WPL*: each
shared weight is pulled back to where A left it, in proportion to its Fisher information. *L2
anchor*: all are pulled back alike. *Frozen*: they do not move at all. Numbers are test accuracies
in percent, means over seeds ± half of their 95 % interval. **Bold**: the best of the row,
and what cannot be distinguished from it.""",
        section("What holds, and what does not", findings.claims(summary)),
        section("Model A, after B has trained", accuracies(conditions, "a")),
        section("Model B", accuracies(conditions, "b")),
        section("Differences, seed by seed", differences(conditions)),
    ]
    if any("L2 anchor" in c for c in conditions):
        parts.append(section("How strengths were chosen", chosen_strengths(conditions)))
    for name, heading, caption in (
        ("figure1", "The more layers B shares, the more A forgets", "Plain training of B."),
        ("figure2", "A and B while B trains", "Dotted: A before B trains."),
        (
            "trade_off",
            "What A keeps against what B reaches",
            "Each point is a strength, written beside it; crosses are 95 % intervals.",
        ),
    ):
        if name in drawn:
            parts.append(section(heading, f"{caption}\n\n![{heading}]({name}.png)"))
    if summary["checks"]:
        parts.append(section(findings.VALLEY_HEADING, findings.valley(summary)))
    if "strength_wpl" in drawn:
        figures = "\n\n".join(
            f"![Final accuracies against the strength of {method}]({name}.png)"
            for name, method in (("strength_wpl", "WPL"), ("strength_l2", "the L2 anchor"))
        )
        text = f"{figures}\n\n{along_strengths(conditions)}"
        parts.append(section("All strengths", text))
    if "regime_map" in drawn:
        parts.append(
            section(
                "Where plain training forgets",
                f"{settings['map_seeds']} seeds of their own, all four layers shared. Framed: the "
                "setting used above.\n\n![Accuracy that A lost, over learning rate and momentum of "
                "B](regime_map.png)",
            )
        )
    return "\n\n".join(parts) + "\n"


def section(heading: str, text: str) -> str:
    return f"## {heading}\n\n{text}"


def accuracies(conditions: Sequence[Mapping], model: str) -> str:
    methods = [m for m in METHODS if m in conditions[0]]
    rows = []
    for c in conditions:
        cells = {m: with_interval(c[m][f"final_{model}"]) for m in methods}
        cells |= {m: f"**{cells[m]}**" for m in c["best"][model]}
        before = [with_interval(c["before_a"])] if model == "a" else []
        rows.append([c["name"], *before, *cells.values()])
    before = ["before B"] if model == "a" else []
    return markdown(["condition", *before, *methods], rows)


def differences(conditions: Sequence[Mapping]) -> str:
    rows = [
        [c["name"], f"WPL − {rival}", *(difference(found[model]) for model in "ab")]
        for c in conditions
        for rival in RIVALS
        if (found := c["differences"].get(f"WPL − {rival}"))
    ]
    shares = [
        [
            c["name"],
            difference(c["plain_loses"]),
            *(
                "–" if c[m]["prevents"] is None else f"{100 * c[m]['prevents']:.1f} %"
                for m in STRENGTHS
                if m in c
            ),
        ]
        for c in conditions
    ]
    prevent = [f"{m} prevents" for m in STRENGTHS if m in conditions[0]]
    return f"""Every method of a seed starts from the same A and sees the same images, so that
differences are taken within a seed. In points of test accuracy, with their 95 % intervals; where an
interval includes 0, the two are *not distinguishable*. Of so many intervals, one in twenty misses.

{markdown(["condition", "difference", "A", "B"], rows, left=2)}

*Prevents* is the share of A's loss that does not happen, (d − d_method) / d of the mean losses; it
is given only where plain training's loss is distinguishable from 0. Over 100 %, A ends better than
it began.

{markdown(["condition", "A loses, plain", *prevent], shares)}"""


def chosen_strengths(conditions: Sequence[Mapping]) -> str:
    rows = [
        [c["name"], m, f"{as_power(c[m]['strength'])}{edge(c[m])}", alike(c[m])]
        for c in conditions
        for m in STRENGTHS
    ]
    note = (
        "\n\n†: at an end of the candidates. Where others are as good, the curve is flat there."
        if any("†" in row[2] for row in rows)
        else ""
    )
    return f"""By the highest sum of A's and B's mean validation accuracies, by the same rule and
among as many candidates for WPL and for the L2 anchor. Beside each choice are all strengths whose
sums are not distinguishable from it, seed by seed.

{markdown(["condition", "method", "chosen", "as good"], rows, left=2)}{note}"""


def edge(method: Mapping) -> str:
    strengths = [found["strength"] for found in method["at_each_strength"]]
    return " †" if method["strength"] in (min(strengths), max(strengths)) else ""


def alike(method: Mapping) -> str:
    """The strengths that are as good, neighbours on the grid as a range."""
    grid = [found["strength"] for found in method["at_each_strength"]]
    ranges: list[list[float]] = []
    for strength in method["as_good"]:
        if ranges and grid.index(strength) == grid.index(ranges[-1][-1]) + 1:
            ranges[-1].append(strength)
        else:
            ranges.append([strength])
    return ", ".join(
        as_power(r[0]) + (f" to {as_power(r[-1])}" if len(r) > 1 else "") for r in ranges
    )


def along_strengths(conditions: Sequence[Mapping]) -> str:
    """Test accuracies of A and B for every strength, all 4 layers shared."""
    rows = [
        [
            c["name"],
            method,
            as_power(found["strength"]),
            with_interval(found["final_a"]),
            with_interval(found["final_b"]),
        ]
        for c in conditions
        for method in STRENGTHS
        for found in c[method]["at_each_strength"]
        if c["shared_layers"] == 4
    ]
    return markdown(["condition", "method", "strength", "A", "B"], rows, left=2)


if __name__ == "__main__":
    sys.exit(main())
