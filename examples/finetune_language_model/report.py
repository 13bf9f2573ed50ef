"""Tables and figure, from the results alone."""

import io
import itertools
from pathlib import Path

import numpy as np
from scipy import stats

from examples.finetune_language_model.runs import (
    L2,
    L2_PROXIMAL,
    LOWER_RATE,
    NOTHING,
    REPLAY,
    REPLAY_RATE,
    STOPPING,
    WPL,
    WPL_ADAPTERS,
    WPL_PROXIMAL,
)

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "finetuning.md"
FIGURE = Path(__file__).parent / "frontiers.png"
BEGIN, END = "<!-- written by --report: begin -->", "<!-- written by --report: end -->"

BUDGETS = (1.05, 1.25, 1.5)
"""What the old text's perplexity may grow by, to compare ways where they keep it equally well."""

ARMS = {
    "full": (LOWER_RATE, STOPPING, REPLAY, REPLAY_RATE, L2, L2_PROXIMAL, WPL, WPL_PROXIMAL),
    "lora": (LOWER_RATE, STOPPING, REPLAY, REPLAY_RATE, L2, WPL, WPL_ADAPTERS),
}
METHODS = {"full": "All parameters", "lora": "LoRA"}
FORMS = {
    "plain": "nothing, a lower rate, early stopping",
    "replay": "replay",
    "additive": "L2 anchor, WPL",
    "proximal": "L2 anchor proximal, WPL proximal",
    "merged": "L2 anchor, WPL (on merged weights)",
    "adapters": "WPL on adapters",
}
# Colour by what is known of the old text; broken lines for the forms that are explained apart.
STYLES = {
    STOPPING: ("tab:gray", "-"),
    LOWER_RATE: ("tab:blue", "-"),
    REPLAY: ("tab:purple", "--"),
    REPLAY_RATE: ("tab:purple", "-"),
    L2: ("tab:green", "--"),
    L2_PROXIMAL: ("tab:green", "-"),
    WPL: ("tab:orange", "--"),
    WPL_PROXIMAL: ("tab:orange", "-"),
    WPL_ADAPTERS: ("tab:red", ":"),
}


def curve(results: dict, method: str, arm: str, seed: int) -> np.ndarray:
    """(old, new) along the knob, from what is held most to plain fine-tuning, [points, 2]."""

    def points(arm, knob=None):
        rows = [
            (run["knob"], run["old"], run["new"])
            for run in results["runs"]
            if (run["method"], run["arm"], run["seed"]) == (method, arm, seed)
            and knob in (None, run["knob"])
        ]
        return np.array(sorted(rows))[:, 1:]

    plain = points(NOTHING)
    before = np.array([[results["pretrained"]["old"], results["pretrained"]["new"]]])
    if arm == STOPPING:
        return np.concatenate([before, plain])
    if arm == LOWER_RATE:
        return np.concatenate([before, points(arm), plain[-1:]])
    if arm == REPLAY_RATE:  # which all weigh old words like new ones
        return np.concatenate([before, points(arm), points(REPLAY, knob=1.0)])
    held = points(arm)[::-1]
    # Whatever is held ever more tightly stays where it was; but replay goes on to learn.
    start = before[:0] if arm == REPLAY else before
    return np.concatenate([start, held, plain[-1:]])


def new_at(results: dict, method: str, arm: str, seed: int, budget: float) -> float:
    """The least perplexity of the new text where the old one's is within the budget.

    Between two settings of the knob, on the straight line between their logarithms. Not to
    fine-tune at all is always within it.
    """
    limit = np.log(budget * results["pretrained"]["old"])
    logs = np.log(curve(results, method, arm, seed))
    found = [np.log(results["pretrained"]["new"]), *logs[logs[:, 0] <= limit, 1]]
    for (old, new), (next_old, next_new) in itertools.pairwise(logs):
        if min(old, next_old) <= limit < max(old, next_old):
            found.append(new + (next_new - new) * (limit - old) / (next_old - old))
    return float(np.exp(min(found)))


def interval(values) -> tuple[float, float]:
    """Mean, and half the width of its 95 % interval (Student's t); NaN for a single value."""
    values = np.asarray(values)
    if len(values) < 2:
        return float(values.mean()), float("nan")
    half = stats.t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / len(values) ** 0.5
    return float(values.mean()), float(half)


def tables(results: dict) -> str:
    """What the page says in figures, as Markdown."""
    seeds = results["settings"]["seeds"]
    before, texts = results["pretrained"], results["texts"]
    parts = [
        f"Before fine-tuning: {before['old']:.1f} on the old text ({texts['old']['name']}), "
        f"{before['new']:.1f} on the new one ({texts['new']['name']}). "
        f"{len(seeds)} seeds; ± is half of a 95 % interval."
    ]
    for method, title in METHODS.items():
        old, new = (
            interval([curve(results, method, NOTHING, s)[-1][i] for s in seeds]) for i in (0, 1)
        )
        lines = [
            f"**{title}.** Plain fine-tuning ends at {_mean(old)} on the old text, {_mean(new)} on "
            "the new one.",
            "",
            _row("New text's perplexity", *(f"old +{100 * (b - 1):.0f} %" for b in BUDGETS)),
            _row("---", *["---:"] * len(BUDGETS)),
        ]
        for arm in ARMS[method]:
            lines.append(_row(arm, *(_compared(results, method, arm, b) for b in BUDGETS)))
        parts.append("\n".join(lines))
    parts.append(_costs(results))
    return "\n\n".join(parts)


def _costs(results):
    lines = [
        _row("One step", "time", "quartiles", "trained", "state", "temporary"),
        _row("---", *["---:"] * 5),
    ]
    for row in results["costs"]["steps"]:
        low, median, high = row["ratio"]
        sizes = (row[f"{part}_bytes"] / 2**20 for part in ("trained", "state", "temporary"))
        name = f"{METHODS[row['method']]}: {FORMS[row['form']]}"
        lines.append(
            _row(
                name, f"{median:.2f}", f"{low:.2f}–{high:.2f}", *(f"{size:,.1f}" for size in sizes)
            )
        )
    return "\n".join(lines)


def _compared(results, method, arm, budget):
    """The new text's perplexity, and how far it is from a lower rate's, seed by seed."""
    seeds = results["settings"]["seeds"]
    own, rate = (
        np.array([new_at(results, method, each, seed, budget) for seed in seeds])
        for each in (arm, LOWER_RATE)
    )
    if np.allclose(own, results["pretrained"]["new"]):
        return "not fine-tuned"
    mean = _mean(interval(own))
    return mean if arm == LOWER_RATE else f"{mean} ({_percent(interval(100 * (own / rate - 1)))})"


def _mean(value):
    mean, half = value
    return f"{mean:.0f}" if np.isnan(half) else f"{mean:.0f} ± {half:.0f}"


def _percent(value):
    mean, half = value
    sign = f"{mean:+.0f}".replace("-", "−")
    return f"{sign} %" if np.isnan(half) else f"{sign} ± {half:.0f} %"


def _row(*cells):
    return f"| {' | '.join(cells)} |"


def draw(results: dict, path: Path) -> None:
    """The frontiers: a line for each way, a panel for each method. Legible 400 pixels wide."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt
    from matplotlib.ticker import FixedLocator, NullFormatter, NullLocator
    from PIL import Image

    figure, panels = plt.subplots(2, figsize=(4, 8.2), layout="constrained")
    before = results["pretrained"]
    for panel, (method, title) in zip(panels, METHODS.items(), strict=True):
        for arm in ARMS[method]:
            logs = np.log(
                [curve(results, method, arm, seed) for seed in results["settings"]["seeds"]]
            )
            old, new = np.exp(logs.mean(0)).T
            color, line = STYLES[arm]
            panel.plot(new, old, line, color=color, marker="o", markersize=3, label=arm)
            for old, new in np.exp(logs).transpose(0, 2, 1):
                panel.plot(new, old, ".", color=color, markersize=3, alpha=0.4)
        panel.plot(before["new"], before["old"], "k*", markersize=11, zorder=5)
        where = {"xytext": (6, -15), "textcoords": "offset points", "ha": "right"}
        panel.annotate("pretrained", (before["new"], before["old"]), **where)
        panel.set(title=title, xlabel="new text, perplexity", ylabel="old text, perplexity")
        panel.set(xscale="log", yscale="log")
        panel.margins(y=0.12)
        for axis in (panel.xaxis, panel.yaxis):
            low, high = axis.get_view_interval()
            ticks = [t for t in (100, 150, 200, 300, 400, 600, 800, 1200) if low < t < high]
            axis.set_major_locator(FixedLocator(ticks))
            axis.set_major_formatter("{x:.0f}")
            axis.set_minor_locator(NullLocator())
            axis.set_minor_formatter(NullFormatter())
        panel.grid(alpha=0.3)
        panel.legend(fontsize=9)
    drawn = io.BytesIO()
    figure.savefig(drawn, dpi=150)
    plt.close(figure)
    # A few dozen colours are enough, at a third of the size.
    Image.open(drawn).convert("RGB").quantize(64).save(path, optimize=True)


def write(results: dict) -> None:
    """Draw the figure and write the tables into the page, in place of what is between the marks."""
    draw(results, FIGURE)
    PAGE.write_text(page(PAGE.read_text(), results))


def page(text: str, results: dict) -> str:
    """The page's text with the tables of these results."""
    head, rest = text.split(BEGIN)
    _, tail = rest.split(END)
    machine = ", ".join(f"{key} {value}" for key, value in results["machine"].items())
    seconds = results["seconds"]
    footer = (
        f"Machine: {machine}. All of it took {seconds['processor'] / 60:.0f} minutes of processor "
        f"time, on a machine that was shared, where {seconds['wall'] / 60:.0f} minutes passed."
    )
    return f"{head}{BEGIN}\n\n{tables(results)}\n\n{footer}\n\n{END}{tail}"
