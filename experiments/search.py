"""Architecture search with shared weights, by any sampler and method (figures 3 to 5).

Writes metrics.jsonl, TensorBoard's scalars, checkpoints, probes.npz if --probe-every and, at the
end, best.json, ranking.json, probes.json if --probes, summary.json and figures to --out. A run that
was interrupted goes on with --resume. Each batch is shared by all devices, with --distributed by
those of several processes.
"""

import contextlib
import dataclasses
import math
import sys
import time
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from experiments import spaces
from experiments.ranking.probes import Probes
from experiments.running import command_line, folder, processes, records
from experiments.running.folder import Held
from experiments.running.intervals import finite
from experiments.running.progress import (
    Display,
    Diverged,
    MetricsLog,
    interruptible,
)
from experiments.running.progress import columns as columns_of
from experiments.running.script import Script
from experiments.spaces import Task
from experiments.spaces.settings import PLACES, SearchRun
from wpl_jax.checkpoint import Checkpoints
from wpl_jax.forgetting import forgetting
from wpl_jax.search import (
    WPL,
    Balanced,
    Data,
    Distinct,
    Fair,
    L2Anchor,
    Method,
    Sampler,
    Search,
    SearchState,
    Uniform,
    everywhere,
    split_batches,
)

script = Script("search", "--resume goes on from the last checkpoint")


class Job(NamedTuple):
    """All that a run works with, made once from its settings."""

    config: SearchRun
    task: Task
    search: Search
    data: Data  # on the devices
    whole: jax.sharding.NamedSharding  # where the state is: on each of them
    facts: dict[str, object]  # what there is to say of the data
    fingerprint: dict[str, object]  # what changes whenever they do
    out: Path

    @property
    def error_key(self) -> str:
        """The name of an error in files."""
        return records.key(self.task.error)

    @property
    def identity(self) -> dict[str, object]:
        """All that its states depend on."""
        return self.config.essential() | self.fingerprint


@script
def main(argv: Sequence[str] | None = None) -> int:
    with contextlib.ExitStack() as stack:
        with script.preparing():
            config = parse(argv)
            if config.sharing.distributed:
                processes.join(config.sharing)
            with processes.all_or_none():
                job = prepare(config)
                if processes.is_first():
                    stack.enter_context(Held(job.out))
                checkpoints = stack.enter_context(open_checkpoints(job))
            check_agreement(job, checkpoints)
            size = config.search.architectures
            folder.check_epochs(job.out, checkpoints, config.epochs, size)
        return run(job, checkpoints)


def parse(argv: Sequence[str] | None) -> SearchRun:
    return spaces.settings(
        "searches", argv, prog="python -m experiments.search", description=__doc__
    )


def prepare(config: SearchRun) -> Job:
    """Read the data; refuses settings that do not fit them, or the devices."""
    task, corpus, config = spaces.read(config)
    devices = devices_of(config)
    data = split_batches(cut(config, task, corpus), devices)
    search = search_of(config, len(devices))
    return Job(
        config,
        task,
        search,
        data,
        whole=everywhere(devices),
        facts=task.facts(corpus),
        fingerprint=task.fingerprint(corpus),
        out=folder_of(config, task),
    )


def cut(config: SearchRun, task: Task, corpus: Any) -> Data:
    """The data as batches; refuses a search that asks for more of them than there are."""
    with command_line.naming_flags(config):
        data = task.cut(config, corpus)
    for flag, wanted, part in (
        ("search.batches", config.search.batches, "train"),
        ("search.eval-batches", config.search.eval_batches, "validation"),
        ("derive-batches", config.derive_batches, "validation"),
    ):
        there = config.search_space.num_batches(getattr(data, part))
        if wanted > there:
            raise ValueError(
                f"--{flag} must be at most {there}, all the batches of the {part} part at "
                f"--batch-size {config.batch_size}, got {wanted}"
            )
    return data


def devices_of(config: SearchRun) -> list[jax.Device]:
    """The devices that share each batch."""
    there = jax.devices()
    wanted = config.sharing.devices
    if wanted is not None and wanted > len(there):
        raise ValueError(f"--devices must be at most {len(there)}, got {wanted}")
    devices = there[:wanted]
    if config.batch_size % len(devices):
        raise ValueError(
            f"--batch-size must be a multiple of the {len(devices)} devices that share a batch, "
            f"got {config.batch_size}; choose another, or fewer --devices"
        )
    return devices


def search_of(config: SearchRun, devices: int = 1) -> Search:
    """The search that the settings describe, over so many devices."""
    return Search(
        space=config.space_over(devices),
        config=config.search,
        optimizer=config.optimizer(),
        sampler=sampler_of(config),
        method=method_of(config),
    )


def sampler_of(config: SearchRun) -> Sampler:
    samplers: dict[str, Sampler] = {
        "controller": config.controller,
        "uniform": Uniform(),
        "fair": Fair(),
        "balanced": Balanced(),
        "distinct": Distinct(),
    }
    return samplers[config.sampler]


def method_of(config: SearchRun) -> Method:
    held: dict[str, Any] = {
        "strength": config.strength_at,
        "learning_rate": config.learning_rate_at if config.proximal else None,
        "warmup_epochs": config.warmup_epochs,
        "protect": config.protect,
    }
    methods: dict[str, Method] = {
        # Plain(), by the program that WPL is compared with: others are rounded differently.
        "none": WPL(**held | {"strength": 0.0}),
        "wpl": WPL(**held, **dataclasses.asdict(config.wpl)),
        "l2": L2Anchor(**held),
        "replay": config.replay,
        "momentum": config.momentum_groups,
        "distillation": config.distillation,
    }
    return methods[config.method]


def folder_of(config: SearchRun, task: Task) -> Path:
    name = f"{config.preset}_{config.method}_{config.sampler}_{config.seed}"
    return config.out or Path("results/search", task.name, name)


def open_checkpoints(job: Job) -> Checkpoints:
    return folder.open_checkpoints(job.out, job.identity, job.config.resume)


def check_agreement(job: Job, checkpoints: Checkpoints) -> None:
    """Refuse what several processes would not finish together."""
    plain = dataclasses.asdict(job.config).items()
    same = {k: v for k, v in plain if k not in (*PLACES, "sharing")} | job.fingerprint
    if not processes.agree(zlib.crc32(repr(same).encode())):
        raise ValueError("the processes have different settings or data; give all the same flags")
    if not processes.agree(checkpoints.latest() or 0):
        raise ValueError("the processes find different checkpoints in --out; it must be shared")


def described(config: SearchRun) -> dict[str, object]:
    """Settings besides, that a summary tells: where data of one's own are, and the end."""
    names = ("text_dir", "image_dir", "derive_samples", "derive_batches", "probes", "probe_every")
    plain = records.plain(dataclasses.asdict(config))
    return {name: plain[name] for name in names if name in plain}


def run(job: Job, checkpoints: Checkpoints) -> int:
    """Search until --epochs are over, then derive the best architecture."""
    config, size = job.config, job.config.search.architectures
    processes.say("compiling the search")
    state = jax.jit(job.search.init, out_shardings=job.whole)(jax.random.key(config.seed))
    if checkpoints.latest() is not None:
        state = checkpoints.restore(state)
    start = time.monotonic()
    step = jax.jit(job.search.step, donate_argnums=0, out_shardings=job.whole)
    compiled = step.lower(state, job.data).compile()
    memory = memory_per_device(compiled)
    processes.say(
        f"compiled in {time.monotonic() - start:.0f} s; at most {memory / 2**20:,.0f} MiB a device"
    )
    done = int(state.trained) // size
    probes = probes_of(job)
    if probes and processes.is_first():
        probes.write(job.out, checkpoints.notes)
    with (
        interruptible() as stop,
        MetricsLog(job.out, done, checkpoints.notes) as log,
        Display(config.epochs, size, "architectures", done, ranking_units(config)) as display,
    ):
        start = time.monotonic()
        while not (
            int(state.trained) >= config.epochs * size
            or int(state.streak) >= config.max_skipped
            or stop.agreed()
        ):
            state, progress = compiled(state, job.data)
            progress = jax.device_get(progress)
            trained = int(state.trained)
            display.show(
                (trained - 1) % size + 1,
                loss=float(progress.loss.mean()),
                err1=float(progress.err1.mean()),
            )
            if progress.finished:
                record = summarise(job.search, trained // size, progress.epoch, state)
                record["seconds"] = round(time.monotonic() - start, 3)
                log.append(record)
                if config.probe_every and record["epoch"] % config.probe_every == 0:
                    measured = probes.measure(state.params, job.data.validation)
                    if processes.is_first():
                        probes.keep(job.out, record["epoch"], measured, checkpoints.notes)
                display.end_epoch(
                    err1=record["err1_mean"],
                    err2=record["err2_mean"],
                    forgetting=record["forgetting_mean"],
                    best5=record["forgetting_best5"],
                    reward=record["reward"],
                )
                start = time.monotonic()
                if checkpoints.is_due():
                    checkpoints.save(trained, state)
        if checkpoints.step != int(state.trained):
            checkpoints.save(int(state.trained), state)
    if int(state.streak) >= config.max_skipped:
        raise Diverged(diverged(config, state))
    if stop.agreed():
        processes.say("search: interrupted and saved; --resume goes on from here")
        return stop.exit_code
    display.say(f"ranking {config.derive_samples} architectures")
    ranking = best_first(job, *rank(job, state))
    probed = probes.measure(state.params, job.data.validation).error if probes else ()
    if processes.is_first():
        write_results(job, log.records, ranking, memory, probed)
    return 0


def probes_of(job: Job) -> Probes | None:
    """The random architectures that are measured as well, if there are any."""
    config = job.config
    if not config.probes:
        return None
    return Probes(
        job.search.space, config.probes, config.derive_batches, config.search.at_once, job.whole
    )


def memory_per_device(compiled: jax.stages.Compiled) -> int:
    """Bytes that the compiled step needs at most."""
    analysis = compiled.memory_analysis()
    return (
        analysis.argument_size_in_bytes
        + analysis.output_size_in_bytes
        - analysis.alias_size_in_bytes
        + analysis.temp_size_in_bytes
    )


def diverged(config: SearchRun, state: SearchState) -> str:
    epoch, place = divmod(int(state.trained) - 1, config.search.architectures)
    return (
        f"stopped in epoch {epoch + 1} at architecture {place + 1}: the last {int(state.streak)} "
        "training steps were skipped because their loss or gradient was not finite, and the state "
        "that they left as it was is saved; try a lower --learning-rate or --proximal, in another "
        "--out"
    )


def summarise(
    search: Search, epoch: int, result: Any, state: SearchState
) -> dict[str, float | int]:
    """The record of an epoch, counted from 1."""
    lost = forgetting(result.err1, result.err2)
    step = (epoch - 1) * search.config.architectures * search.config.batches
    strength = getattr(search.method, "strength", 0.0)
    measured = np.isfinite(result.err1) & np.isfinite(result.err2)

    def mean(values):
        return float(np.mean(values)) if len(values) else math.nan

    def median(values):
        return float(np.median(values)) if len(values) else math.nan

    return {
        "epoch": epoch,
        "train_loss": mean(result.loss),
        "err1_mean": mean(result.err1[measured]),
        "err2_mean": mean(result.err2[measured]),
        "err2_median": median(result.err2[measured]),
        "err2_best": float(np.min(result.err2, initial=np.inf, where=np.isfinite(result.err2))),
        "forgetting_mean": lost.mean,
        "forgetting_best5": lost.best,
        "forgetting_max": lost.max,
        "forgetting_share": lost.share,
        "tau_within_epoch": lost.rank_correlation,
        "diverged": lost.diverged,
        "reward": mean(search.space.reward(result.err2)),
        "controller_reward": mean(result.reward),
        "entropy": mean(result.entropy),
        "baseline": float(getattr(state.sampler, "baseline", math.nan)),
        "skipped": int(state.skipped),
        "strength": float(strength(step) if callable(strength) else strength),
    }


def write_results(
    job: Job,
    log: Sequence[Mapping],
    ranking: Sequence[Mapping],
    memory: int,
    probed: Sequence[float],
) -> None:
    """Write every output, the summary last.

    Args:
      job: the search.
      log: the records of its epochs.
      ranking: of sampled architectures, the best first.
      memory: bytes that a device needs.
      probed: the errors of the probes, if there are any, in the order of their seeds.
    """
    from wpl_jax import figures  # matplotlib takes long to import: not before the first word

    config, space, out = job.config, job.search.space, job.out
    best = space.from_json(ranking[0])
    columns = columns_of(log)
    graphs = space.graphs(best)
    records.write_json(out / "ranking.json", ranking)
    records.write_json(out / "best.json", ranking[0])
    if len(probed):
        found = [{"seed": seed, job.error_key: finite(e)} for seed, e in enumerate(probed)]
        records.write_json(out / "probes.json", found)
    for name, graph in graphs.items():
        records.write_atomically(out / f"{records.key(name)}.dot", figures.dot(graph, name))
    for name, figure in {
        "cell": figures.draw(graphs),
        "curves": figures.run_curves(columns, job.task.error),
    }.items():
        records.write_png(out / f"{name}.png", figure, dpi=150)
    after = columns["epoch"] > config.warmup_epochs
    summary = {
        f"best_{job.error_key}": ranking[0][job.error_key],
        "after_warmup": {
            name: float(np.nanmean(values[after]))
            for name, values in columns.items()
            if after.any() and np.isfinite(values[after]).any() and name not in ("epoch", "seconds")
        },
        "parameters": space.num_parameters(best),
        **job.facts,
        "data": job.fingerprint,
        "memory_per_device": memory,
        "seconds": round(float(columns["seconds"].sum())),
        "epochs": len(columns["epoch"]),
        "configuration": config.essential() | described(config),
    } | records.provenance()
    records.write_json(out / records.SUMMARY, summary)
    if columns["forgetting_mean"][0] < 0:
        processes.say(
            "A forgetting below 0 is a gain: in the first epochs, whatever is trained next still "
            "helps all architectures."
        )
    print(
        f"Best of {config.derive_samples}: {job.task.error} {ranking[0][job.error_key]:.4g} on "
        f"{config.derive_batches} validation batches. Written to {out}"
    )
    if hint := spaces.next_preset("searches", config):
        processes.say(hint)


def rank(job: Job, state: SearchState) -> tuple[Any, Any]:
    """Architectures sampled at the end and their errors, as :meth:`Search.rank` has them."""
    config = job.config
    of_states = jax.jit(job.search.rank, static_argnums=(3, 4), out_shardings=job.whole)
    return jax.device_get(
        of_states(
            *(state, job.data.validation, ranking_key(config)),
            *(config.derive_samples, config.derive_batches),
        )
    )


def ranking_units(config: SearchRun) -> float:
    """How many architectures train in about the time that the ranking and the probes take.

    A training step takes as long as the evaluation of three batches.
    """
    each = 3 * config.search.batches + 2 * config.search.eval_batches
    return (config.derive_samples + config.probes) * config.derive_batches / each


def ranking_key(config: SearchRun) -> jax.Array:
    """What the architectures are sampled by at the end."""
    return jax.random.fold_in(jax.random.key(config.seed), 1)


def best_first(job: Job, actions: Any, errors: Any) -> list[dict]:
    """What :func:`rank` gives, in words."""
    space = job.search.space
    if not np.isfinite(errors[0]):
        raise Diverged(
            f"none of the {len(errors)} architectures sampled at the end has a finite "
            f"{job.task.error}; try a lower --learning-rate, in another --out"
        )
    return [
        {job.error_key: finite(error)} | space.to_json(space.decode(a))
        for a, error in zip(actions, errors, strict=True)
    ]


if __name__ == "__main__":
    sys.exit(main())
