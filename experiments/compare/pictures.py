"""The figures of a comparison: forgetting over epochs, and the cells that were found."""

from matplotlib.figure import Figure

from experiments.compare.plan import ARMS, SAMPLERS, Arm
from experiments.compare.saved import Saved
from experiments.compare.wording import label
from experiments.running.measures import FORGETTING, scale
from wpl_jax import figures
from wpl_jax.figures.style import METHOD_COLORS

CHOSEN = {"controller": "chosen by a controller", "uniform": "chosen at random"}
WIDTH = 4.8  # inches: a cell of usual size, one below the other


def drawn(saved: Saved) -> dict[str, Figure]:
    """By file name, the figures of the comparison."""
    return {saved.figure: over_epochs(saved), saved.figure_of_cells: of_cells(saved)}


def over_epochs(saved: Saved) -> Figure:
    """What each kind of search forgets, and its reward."""
    runs = {
        CHOSEN[sampler]: {arm.title: curves(saved, arm) for arm in ARMS if arm.sampler == sampler}
        for sampler in SAMPLERS
    }
    unit = ", in points" if saved.unit == "%" else saved.task.unit
    return figures.search_curves(
        runs,
        saved.curves["epochs"],
        METHOD_COLORS,
        saved.warmup,
        f"rise in {saved.task.error}{unit}",
        saved.task.reward(saved.search.search_space),
    )


def curves(saved: Saved, arm: Arm) -> dict:
    names = (*FORGETTING, "reward")
    return {name: scale(saved.task, name) * saved.curve(arm, name) for name in names}


def of_cells(saved: Saved) -> Figure:
    """Each kind's best cell, with its test error."""
    space, graphs, task = saved.search.search_space, {}, saved.task
    for name, best in saved.best.items():
        cells = space.graphs(space.from_json(saved.cells[f"{name}_{best['seed']}"]))
        error = best[saved.key("test")]
        tested = "not trained" if error is None else f"{task.scale * error:.4g}"
        tested += f" {saved.unit}" if error is not None and saved.unit else ""
        for part, graph in cells.items():
            title = f"{label(name)}, seed {best['seed']}"
            title += "" if len(cells) == 1 else f": {part}"
            graphs[f"{title}\ntest {task.error} {tested}"] = graph
    return figures.draw(graphs, page_width=WIDTH)
