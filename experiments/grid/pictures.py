"""The figures of a grid: maps, every seed and the intervals, and curves over epochs."""

import itertools
import math
import shlex

import numpy as np
from matplotlib.figure import Figure

from experiments import train_final
from experiments.grid.saved import Measure, Saved, words
from experiments.running import records
from experiments.running.measures import FORGETTING
from experiments.spaces import cells
from wpl_jax import figures
from wpl_jax.figures import style

FEW_ARMS = 16  # up to so many are drawn one below the other
FEW_LINES = 8  # up to so many are drawn in one panel
PAGE = 4.8  # inches: a cell of usual size, one below the other
MAPPED = (*FORGETTING, "err2_mean", "tau_within_epoch")


def drawn(saved: Saved) -> dict[str, Figure]:
    """By file name, the figures, in the order in which a report shows them."""
    found: dict[str, Figure] = {}
    ranked = [(order, saved.of_ranking(order, "kendall")) for order in saved.orders]
    if saved.axes:
        for name in MAPPED:
            measure = saved.measure("after_warmup", name)
            found[f"map_{name}"] = map_of(saved, measure, measure.heading)
        for order, measure in ranked:
            heading = f"{measure.heading} of all architectures, by {order}"
            found[f"map_kendall_{records.key(order)}"] = map_of(saved, measure, heading)
    if len(saved.arms) <= FEW_ARMS and len(saved.axes) < 2:
        for name in ("forgetting_mean", "err2_mean"):
            measure = saved.measure("after_warmup", name)
            found[f"seeds_{name}"] = seeds_of(saved, measure, measure.heading)
        for order, measure in ranked:
            heading = f"{measure.heading} of all architectures, by {order}"
            baselines = {k: of["kendall"] for k, of in saved.summary["baselines"].items()}
            found[f"seeds_kendall_{records.key(order)}"] = seeds_of(
                saved, measure, heading, baselines
            )
    if not saved.axes and len(saved.arms) > 2:
        found["err2_against_forgetting"] = err2_against_forgetting(saved)
    found["forgetting"] = over_epochs(saved)
    for values, order in zip(("error", "loss"), saved.orders, strict=False):
        if (figure := tau_of_probes(saved, values, order)) is not None:
            found[f"tau_{records.key(order)}"] = figure
    if saved.best:
        found["best_cells"] = best_cells(saved)
    return found


def err2_against_forgetting(saved: Saved) -> Figure:
    """What it costs not to forget; arms of a family are joined."""
    err2, *kinds = (
        saved.measure("after_warmup", name)
        for name in ("err2_mean", "forgetting_mean", "forgetting_best5")
    )

    def seeds(arm, measure):
        return measure.scale * np.array(arm["numbers"][measure.key]["seeds"], np.float64)

    panels = {
        forgetting.heading: {
            family: {
                number: (seeds(arm, forgetting), seeds(arm, err2)) for number, arm in arms.items()
            }
            for family, arms in saved.families.items()
        }
        for forgetting in kinds
    }
    palette = style.colors_of(list(saved.families))
    return figures.error_against_forgetting(panels, err2.heading, palette)


def best_cells(saved: Saved) -> Figure:
    """Each arm's cell with the lowest validation error, with its test error."""
    graphs, final = {}, train_final.parse(shlex.split(saved.summary["cells"]["flags"]))
    for name, best in saved.best.items():
        settings, cell = cells.restored(final, saved.architectures[best["file"]])
        parts = settings.search_space.graphs(cell)
        tested = f"test {saved.error} {saved.scale * best['test']:.4g}{saved.unit.strip(' ()')}"
        for part, graph in parts.items():
            title = f"{name}, seed {best['seed']}" + (f": {part}" if len(parts) > 1 else "")
            graphs[f"{title}\n{tested}"] = graph
    return figures.draw(graphs, page_width=PAGE)


def map_of(saved: Saved, measure: Measure, value_name: str) -> Figure:
    """A number over what is varied; a panel a method, and a value of each axis beyond two.

    Of one axis it is one panel, with a row a method.
    """
    (row_name, rows), *others = saved.axes.items()
    if not others:
        lines = [[number(saved, measure, m, {row_name: v}) for v in rows] for m in saved.methods]
        methods = saved.methods if len(saved.methods) > 1 else [""]
        return heat_maps(measure, {"": lines}, methods, rows, "", row_name, value_name)
    (column_name, columns), *beyond = others
    flags = [flag for flag, _ in beyond]
    panels = {}
    for values in itertools.product(*(values for _, values in beyond)):
        further = dict(zip(flags, values, strict=True))
        for method in saved.methods:
            title = ", ".join(filter(None, [method * (len(saved.methods) > 1), words(further)]))
            panels[title] = [
                [
                    number(saved, measure, method, {row_name: row, column_name: column} | further)
                    for column in columns
                ]
                for row in rows
            ]
    return heat_maps(measure, panels, rows, columns, row_name, column_name, value_name)


def heat_maps(measure, panels, *names) -> Figure:
    """With three digits of the largest number."""
    arrays = {title: np.array(lines, np.float64) for title, lines in panels.items()}
    largest = max(np.abs(values[np.isfinite(values)]).max(initial=0) for values in arrays.values())
    digits = 2 - math.floor(math.log10(largest)) if largest else 0
    return figures.heat_maps(
        arrays,
        *names,
        digits=max(0, min(digits, measure.digits)),
        diverging="err2" not in measure.key,
        high_is_good=not measure.low_is_good,
    )


def number(saved: Saved, measure: Measure, method: str, place: dict[str, str]) -> float:
    """The mean over seeds, as it is shown; NaN if there is none."""
    arm = next(a for a in saved.arms if a["method"] == method and a["place"] == place)
    mean = arm["numbers"][measure.key]["mean"]
    return math.nan if mean is None else measure.scale * mean


def seeds_of(
    saved: Saved, measure: Measure, heading: str, baselines: dict[str, float] | None = None
) -> Figure:
    """Every seed of all arms, with means and intervals."""
    values = {
        arm["name"]: measure.scale * np.array(arm["numbers"][measure.key]["seeds"], np.float64)
        for arm in saved.arms
    }
    return figures.rankings(values, baselines or {}, heading, colors(saved))


def colors(saved: Saved) -> dict[str, str]:
    """By arm: those of one method, or of one family, have its colour."""
    if len(saved.methods) == 1:
        return style.colors_of([arm["name"] for arm in saved.arms])
    if not saved.axes:
        of_families = style.colors_of(list(saved.families))
        families = saved.families.items()
        return {arm["name"]: of_families[f] for f, arms in families for arm in arms.values()}
    of_methods = style.colors_of(saved.methods)
    return {arm["name"]: of_methods[arm["method"]] for arm in saved.arms}


def over_epochs(saved: Saved) -> Figure:
    """What is forgotten over epochs: a panel a place, or all kinds of it and the reward."""
    warmups = {arm["warmup_epochs"] for arm in saved.arms}
    warmup = warmups.pop() if len(warmups) == 1 else 0
    unit = ", in points" if "%" in saved.unit else saved.unit
    rise = f"rise in {saved.error}{unit}"
    of_methods = style.colors_of(saved.methods)

    def curve(arm, name, scale):
        return scale * saved.curves[f"{arm['name']}/{name}"]

    if panels := too_many_for_one(saved):
        epochs = max((saved.curves[f"{arm['name']}/epoch"] for arm in finished(saved)), key=len)
        curves = {
            title.replace(", ", "\n"): {
                label: padded(curve(arm, "forgetting_mean", saved.scale), len(epochs))
                for label, arm in arms.items()
            }
            for title, arms in panels.items()
        }
        heading = saved.measure("after_warmup", "forgetting_mean").heading.replace(", ", ",\n")
        palette = style.colors_of(list(dict.fromkeys(itertools.chain(*curves.values()))))
        return figures.forgetting_curves(curves, epochs, palette, warmup, heading)
    scales = {name: saved.scale for name in FORGETTING} | {"reward": 1.0, "epoch": 1.0}
    runs = {
        arm["name"]: {name: curve(arm, name, scale) for name, scale in scales.items()}
        for arm in finished(saved)
    }
    return figures.search_curves(runs, of_methods, warmup, rise, saved.summary["task"]["reward"])


def too_many_for_one(saved: Saved) -> dict[str, dict[str, dict]]:
    """By the title of a panel, by label, arms of places or of families; none if one will do."""
    done = finished(saved)
    if saved.axes:
        places = saved.places.items()
        return {p: {arm["method"]: arm for arm in arms if arm in done} for p, arms in places}
    if len(done) <= FEW_LINES:
        return {}
    families = saved.families.items()
    return {f: {n or f: arm for n, arm in arms.items() if arm in done} for f, arms in families}


def tau_of_probes(saved: Saved, values: str, order: str) -> Figure | None:
    """Kendall's τ of the probes against the truth; none if it is not known, or of many arms."""
    arms = [arm["name"] for arm in saved.arms if f"{arm['name']}/tau_{values}" in saved.curves]
    if not 0 < len(arms) <= FEW_LINES:
        return None
    every = [saved.curves[f"{arm}/probe_epoch"] for arm in arms]
    epochs = np.unique(np.concatenate(every))
    runs = {}
    for arm, mine in zip(arms, every, strict=True):
        found = saved.curves[f"{arm}/tau_{values}"]
        runs[arm] = np.full((len(found), len(epochs)), np.nan)
        runs[arm][:, np.searchsorted(epochs, mine)] = found
    baselines = {k: of["kendall"] for k, of in saved.summary["baselines"].items()}
    palette = colors(saved) if len(saved.axes) == 0 else style.colors_of(arms)
    return figures.tau_curves(runs, epochs, palette, baselines, f"Kendall's τ by {order}")


def finished(saved: Saved) -> list[dict]:
    """Arms of which a search has."""
    return [arm for arm in saved.arms if arm["runs"]]


def padded(values: np.ndarray, length: int) -> np.ndarray:
    """With NaN for the epochs that others have more."""
    return np.pad(values, ((0, 0), (0, length - values.shape[1])), constant_values=np.nan)
