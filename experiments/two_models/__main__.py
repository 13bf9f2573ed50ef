"""Two models that share weights: what the first forgets while the second trains, and how it can be
kept from forgetting (figures 1 and 2 of the paper).

Writes summary.json, curves.npz, report.md and figures to --out. A run that was interrupted goes on
where it stopped when the same command is given again.
"""

import contextlib
import dataclasses
import functools
import os
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import numpy as np
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn

from experiments.running import command_line, processes, records
from experiments.running.folder import Held, check_parts, finished
from experiments.running.progress import Shown
from experiments.running.script import Failed, Script, of_error
from experiments.two_models import report, results
from experiments.two_models.results import (
    CHECKS,
    Condition,
    Regime,
    Result,
    Run,
    trained_until,
)
from experiments.two_models.settings import PRESETS, TwoModels
from experiments.two_models.training import NEVER, Accuracies, Method, Outcome, compared, run, stack
from wpl_jax.data import Splits, load_images
from wpl_jax.settings import Unfit

AWAY = {"out": None, "data_dir": None}  # settings that numbers do not depend on

script = Script("two_models", "the same command goes on from the last part")


class RegimeError(Failed):
    """The regime map has no setting in which B learns."""


@script
def main(argv: Sequence[str] | None = None) -> int:
    with contextlib.ExitStack() as stack:
        with script.preparing():
            config = parse(argv)
            demo = "_demo" if config.preset == "demo" else ""
            out = config.out or Path(f"results/two_models/{config.data}{demo}")
            stack.enter_context(Held(out))
            found = finished_run(config, out)
            if found is None:
                data = load_images(config.data, config.data_dir)
                with command_line.naming_flags(config):
                    check_sizes(config, data)
                check_parts(out / "partial", fingerprint_of(config, data))
        if found is None:
            found = experiment(config, jax.device_put(data), out / "partial")
            report.write(found, out)
            results.save(found, out)
        else:
            processes.say(f"two_models: {out} holds this run, finished; delete it to run it again")
        if (out / "partial").exists():
            shutil.rmtree(out / "partial")
        report.show(found, out)
        return 0


def finished_run(config: TwoModels, out: Path) -> Run | None:
    """The run in a folder, if it has finished.

    Raises:
      ValueError: if it is another one.
    """
    if finished(out, vars(config) | AWAY) is None:
        return None
    try:
        return results.load(out)
    except Exception as error:  # whatever has become of curves.npz
        processes.say(f"{out} is damaged ({of_error(error)}): it is run again")
        return None


def fingerprint_of(config: TwoModels, data: Splits) -> str:
    """What the parts of a run depend on."""
    return records.fingerprint(dataclasses.replace(config, **AWAY), data)


def parse(argv: Sequence[str] | None) -> TwoModels:
    return command_line.parse(
        PRESETS,
        argv,
        prog="python -m experiments.two_models",
        description=__doc__,
        flags={"--data": "mnist5k", "--preset": "full"},
    )


def check_sizes(config: TwoModels, data: Splits) -> None:
    for name, part in {
        "batch_size": "train",
        "fisher_images": "validation",
        "eval_images": "validation",
    }.items():
        there = len(getattr(data, part).labels)
        if getattr(config, name) > there:
            raise Unfit(config, name, f"at most {there:,}, all {part} images of {config.data}")


def conditions(config: TwoModels) -> list[Condition]:
    return [
        Condition(NEVER, shared=4),
        *(Condition(stop, shared=4) for stop in config.stop_at),
        *(Condition(NEVER, shared=n) for n in config.shared_layers),
    ]


def experiment(config: TwoModels, data: Splits, folder: Path) -> Run:
    """All that trains: the regime map, every condition, and the checks.

    Each part is kept in ``folder`` when it is done, and taken from there by a later run.
    """
    records.writable_folder(folder)
    fingerprint = fingerprint_of(config, data)
    program = over_seeds(functools.partial(run, config))
    additive_program = over_seeds(functools.partial(run, config, additive=True))
    map_key, seeds_key = jax.random.split(jax.random.key(config.seed))
    seeds = jax.random.split(seeds_key, config.seeds)
    chunk = config.seeds_per_call
    chunks = [seeds[i : i + chunk] for i in range(0, config.seeds, chunk)]
    stops = (NEVER, *config.stop_at)
    checks = CHECKS if config.check_strengths else {}
    maps = len(stops) if config.map_learning_rates else 0
    number = maps + len(chunks) * (len(stops) + len(checks))
    total: list[float] = []

    columns = (TextColumn("{task.description}"), BarColumn(None), MofNCompleteColumn())
    with Shown(*columns) as progress:
        task = progress.add_task("", total=number)

        def part(name, keys, stop, methods, program=program):
            heading = f"{name}, {trained_until(stop)}"
            progress.update(task, description=heading)
            result, seconds = records.kept(
                folder / f"{heading}.npz".replace(" ", "-").replace("%", "percent"),
                fingerprint,
                functools.partial(program, data, keys, stop, stack(*methods)),
            )
            progress.advance(task)
            total.append(seconds)
            progress.say(f"{len(total)}/{number}  {heading}")
            return result

        def parts(name, *rest):
            """Of all seeds, chunk by chunk."""
            found = [
                part(f"{name}seeds from {chunk * i + 1}", keys, *rest)
                for i, keys in enumerate(chunks)
            ]
            return jax.tree.map(lambda *leaves: np.concatenate(leaves), *found)

        map_seeds = jax.random.split(map_key, config.map_seeds)
        on_map = map_methods(config)
        regime = choose_regime(
            config, {s: part("regime map", map_seeds, s, on_map) for s in stops if on_map}
        )
        found = {}
        for stop in stops:
            here = [c for c in conditions(config) if c.stop_at == stop]
            methods = [
                Method(strength, name == "WPL", c.shared, regime.learning_rate, regime.momentum)
                for c in here
                for name, strength in compared(config)
            ]
            before, outcome = parts("", stop, methods)
            for i, condition in enumerate(here):
                own = slice(i * len(compared(config)), (i + 1) * len(compared(config)))
                mine = jax.tree.map(lambda leaf, own=own: leaf[:, own], outcome)
                found[condition.name] = Result(condition, before, mine)
        checked = {}
        for name, how in checks.items():
            rate = how.rate * regime.learning_rate
            momentum = regime.momentum if how.with_momentum else 0.0
            methods = [
                Method(strength, how.method == "WPL", 4, rate, momentum)
                for strength in how.strengths(config)
            ]
            of_form = additive_program if how.additive else program
            checked[name] = parts(f"{how.method}, {name}, ", NEVER, methods, of_form)[1]
    by_name = {c.name: found[c.name] for c in conditions(config)}
    origin = records.provenance() | {"seconds": round(sum(total))}
    return Run(config, regime, by_name, checked, origin)


def over_seeds(run: Callable) -> Callable:
    """The one compiled program: ``run`` vmapped over seeds, which are dealt out to all devices."""
    batched = jax.vmap(run, in_axes=(None, 0, None, None))

    @jax.jit
    def program(data, keys, stop_at, methods):
        share = next(n for n in range(jax.device_count(), 0, -1) if len(keys) % n == 0)
        mesh = jax.sharding.Mesh(np.array(jax.devices()[:share]), ("seeds",))
        each, all_of_it = jax.P("seeds"), jax.P()
        return jax.shard_map(
            batched,
            mesh=mesh,
            in_specs=(all_of_it, each, all_of_it, all_of_it),
            out_specs=each,
            check_vma=False,  # the seeds' loops differ in length
        )(data, keys, stop_at, methods)

    return program


def map_methods(config: TwoModels) -> list[Method]:
    return [
        Method(0.0, True, 4, learning_rate, momentum)
        for learning_rate in config.map_learning_rates
        for momentum in config.map_momenta
    ]


def choose_regime(config: TwoModels, parts: dict[float, tuple[Accuracies, Outcome]]) -> Regime:
    """Where plain training makes A forget most, mean over the conditions, of where B learns.

    B learns where it reaches ``map_min_accuracy`` in every condition and seed. Read off validation
    data and seeds that nothing else uses, and off plain training alone.
    """
    if not parts and config.b_learning_rate is not None and config.b_momentum is not None:
        return Regime({}, np.empty((0, 0)), config.b_learning_rate, config.b_momentum)
    shape = len(config.map_learning_rates), len(config.map_momenta)
    forgetting = {
        stop: (baseline.validation[:, None] - outcome.final_a.validation).mean(0).reshape(shape)
        for stop, (baseline, outcome) in parts.items()
    }
    worst_b = np.min([o.final_b.validation.min(0) for _, o in parts.values()], 0).reshape(shape)
    if config.b_learning_rate is not None and config.b_momentum is not None:
        return Regime(forgetting, worst_b, config.b_learning_rate, config.b_momentum)
    if worst_b.max() < config.map_min_accuracy:
        raise RegimeError(
            f"B reaches {worst_b.max():.3f} at best on the regime map: lower --map-min-accuracy, "
            "raise --b-steps, or give --b-learning-rate and --b-momentum"
        )
    mean = np.mean(list(forgetting.values()), axis=0)
    row, column = np.unravel_index(
        np.argmax(np.where(worst_b >= config.map_min_accuracy, mean, -np.inf)), shape
    )
    return Regime(forgetting, worst_b, config.map_learning_rates[row], config.map_momenta[column])


if __name__ == "__main__":
    # XLA trains networks this small on one core a device. A GPU or TPU does not mind.
    jax.config.update("jax_num_cpu_devices", os.cpu_count())
    sys.exit(main())
