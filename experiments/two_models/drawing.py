"""The figures of the two-model experiment."""

import numpy as np
from matplotlib.figure import Figure

from experiments.two_models.results import Result, Run, choose, trained_until
from experiments.two_models.settings import TwoModels
from experiments.two_models.training import NEVER, compared
from wpl_jax import figures
from wpl_jax.figures import style
from wpl_jax.figures.style import METHOD_COLORS, OKABE_ITO

LAYER_COLORS = dict(
    zip(
        ("1 layer", "2 layers", "3 layers", "4 layers"),
        (OKABE_ITO[name] for name in ("sky blue", "green", "purple", "vermilion")),
        strict=True,
    )
)


def draw(run: Run) -> dict[str, Figure]:
    """By file name, the figures for which there are results."""
    config, results = run.config, run.results
    stopping = {name: r for name, r in results.items() if r.condition.shared == 4}
    drawn = {"first_look": first_look(config, results[trained_until(NEVER)])}
    if len(results) > len(stopping):
        drawn["figure1"] = shared_layers(config, results)
    if config.l2_strengths:
        drawn |= {
            "figure2": while_b_trains(config, stopping),
            "strength_wpl": over_strengths(config, stopping, "WPL"),
            "strength_l2": over_strengths(config, stopping, "L2 anchor"),
            "trade_off": kept_against_reached(config, stopping),
        }
    if run.regime.forgetting:
        drawn["regime_map"] = regime_map(run)
    return drawn


def steps(config: TwoModels) -> np.ndarray:
    return np.arange(0, config.b_steps + 1, config.eval_every)


def first_look(config: TwoModels, result: Result) -> Figure:
    """A's accuracy while B trains, plainly and with WPL, in one panel."""
    chosen = choose(config, result.outcome)
    curves = {name: result.outcome.curve_a[:, chosen[name]] for name in ("WPL", "plain")}
    ends = {name: 100 * curve[:, -1].mean() for name, curve in curves.items()}
    said = {
        "WPL": f"with WPL\nA keeps\nits {ends['WPL']:.0f} %",
        "plain": f"plain training:\nA is left with\n{ends['plain']:.0f} %",
    }
    fig, (ax,) = style.panels(1, height=3.4, xlabel="training step of B")
    size = style.FONT_SIZE + 2
    for name, curve in curves.items():
        figures.band(ax, steps(config), 100 * curve, color=METHOD_COLORS[name], linewidth=2.5)
    ax.set(xlim=(0, config.b_steps), ylim=(0, 100), ylabel="validation accuracy of A (%)")
    ax.set_title("B trains layers that it shares with A", size=size)
    colors = {text: METHOD_COLORS[name] for name, text in said.items()}
    style.label_ends(ax, [(ends[name], text) for name, text in said.items()], colors, size)
    return fig


def shared_layers(config: TwoModels, results: dict[str, Result]) -> Figure:
    """Figure 1: plain training, by how many layers are shared."""
    sharing = sorted(
        (r for r in results.values() if r.condition.stop_at == NEVER),
        key=lambda r: r.condition.shared,
    )
    labels = list(LAYER_COLORS)
    return figures.training_curves(
        {
            f"model {model.upper()}": {
                labels[r.condition.shared - 1]: getattr(r.outcome, f"curve_{model}")[
                    :, choose(config, r.outcome)["plain"]
                ]
                for r in sharing
            }
            for model in "ab"
        },
        steps(config),
        LAYER_COLORS,
        {"model A": before(sharing[0])},
    )


def while_b_trains(config: TwoModels, stopping: dict[str, Result]) -> Figure:
    """Figure 2: A and B, by method."""
    panels, baselines = {}, {}
    for name, r in stopping.items():
        chosen = choose(config, r.outcome)
        for model in "ab":
            curves = getattr(r.outcome, f"curve_{model}")
            panels[title(name, model)] = {
                method: curves[:, chosen[method]] for method in ("plain", "L2 anchor", "WPL")
            }
        baselines[title(name, "a")] = before(r)
    return figures.training_curves(panels, steps(config), METHOD_COLORS, baselines)


def over_strengths(config: TwoModels, stopping: dict[str, Result], method: str) -> Figure:
    """Final accuracies of one method against its strength."""
    places, strengths = of_method(config, method)
    panels, references = {}, {}
    for name, r in stopping.items():
        chosen = choose(config, r.outcome)
        for model, final in (("a", r.outcome.final_a), ("b", r.outcome.final_b)):
            values = final.validation
            panels[title(name, model)] = {method: (strengths, values[:, places])}
            references[title(name, model)] = {
                other: values[:, chosen[other]] for other in ("plain", "frozen")
            }
    return figures.strength_curves(
        panels, references, METHOD_COLORS, xlabel=f"strength of {method}"
    )


def kept_against_reached(config: TwoModels, stopping: dict[str, Result]) -> Figure:
    curves, points = {}, {}
    for name, r in stopping.items():
        a, b = r.outcome.final_a.validation, r.outcome.final_b.validation
        curves[name], points[name] = {}, {}
        for method in ("L2 anchor", "WPL"):
            places, strengths = of_method(config, method)
            curves[name][method] = (strengths, a[:, places], b[:, places])
        for method in ("plain", "frozen"):
            places, _ = of_method(config, method)
            points[name][method] = (a[:, places], b[:, places])
    baselines = {name: r.before.validation for name, r in stopping.items()}
    return figures.trade_off(curves, points, baselines, METHOD_COLORS)


def regime_map(run: Run) -> Figure:
    regime, config = run.regime, run.config
    rates, momenta = config.map_learning_rates, config.map_momenta
    on_map = regime.learning_rate in rates and regime.momentum in momenta
    return figures.heat_maps(
        {trained_until(stop): 100 * values for stop, values in regime.forgetting.items()},
        rates,
        momenta,
        row_name="learning rate of B",
        column_name="momentum of B",
        value_name="points of accuracy that A lost",
        marked=(rates.index(regime.learning_rate), momenta.index(regime.momentum))
        if on_map
        else None,
    )


def title(condition: str, model: str) -> str:
    return f"{condition}: model {model.upper()}"


def before(result: Result) -> np.ndarray:
    """A's accuracy on the images behind the curves; the same for every method."""
    return result.outcome.curve_a[:, 0, 0]


def of_method(config: TwoModels, method: str) -> tuple[list[int], np.ndarray]:
    """The places and the strengths of a method."""
    places = [i for i, (name, _) in enumerate(compared(config)) if name == method]
    return places, np.array([compared(config)[i][1] for i in places])
