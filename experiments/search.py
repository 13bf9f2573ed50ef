"""Architecture search with shared weights, with and without plasticity (figures 3 to 5).

Writes metrics.jsonl, TensorBoard's scalars, checkpoints and, at the end, best.json, ranking.json,
probes.json if --probes, summary.json and figures to --out. A run that was interrupted goes on with
--resume. Each batch is shared by all devices, with --distributed by those of several processes.
"""

import dataclasses
import io
import json
import math
import sys
import time
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from experiments.running import command_line, processes, records
from experiments.running.progress import Display, Diverged, MetricsLog, interruptible
from experiments.spaces import cells
from experiments.spaces.search_settings import PRESETS, SearchRun
from experiments.spaces.tasks import TASKS
from wpl_jax import figures
from wpl_jax.checkpoint import Checkpoints
from wpl_jax.forgetting import forgetting
from wpl_jax.search import Data, Epoch, Search, SearchState
from wpl_jax.search.parallel import everywhere, split_batches


def main(argv: Sequence[str] | None = None) -> int:
    try:
        config = parse(argv)
        if config.sharing.distributed:
            processes.join(config.sharing)
        with processes.all_or_none():
            task = TASKS[config.space]
            corpus = task.read(config)
            config = config.with_space(**task.sizes(corpus))
            data = split_batches(cut(config, corpus), devices_of(config))
            out = folder_of(config)
            if processes.is_first():
                records.writable_folder(out)
            checkpoints = open_checkpoints(config, out)
        check_agreement(config, checkpoints)
    except (ValueError, OSError, ImportError) as error:
        print(f"search: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("search: interrupted before it began", file=sys.stderr)
        return 130
    try:
        with checkpoints:
            return run(config, checkpoints, data, task.facts(corpus), out)
    except Diverged as error:
        print(f"search: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("search: interrupted; --resume goes on from the last checkpoint", file=sys.stderr)
        return 130


def parse(argv: Sequence[str] | None) -> SearchRun:
    return command_line.parse(
        PRESETS,
        argv,
        prog="python -m experiments.search",
        description=__doc__,
        flags={"--space": "rnn", "--preset": "paper"},
    )


def cut(config: SearchRun, corpus: Any) -> Data:
    """The data as batches; refuses a search that asks for more of them than there are."""
    data = TASKS[config.space].cut(config, corpus)
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


def folder_of(config: SearchRun) -> Path:
    name = f"{config.preset}_{config.plasticity}_{config.search.strategy}_{config.seed}"
    return config.out or Path("results/search", config.space, name)


def open_checkpoints(config: SearchRun, out: Path) -> Checkpoints:
    if not config.resume and any((out / "checkpoints").glob("*")):
        raise ValueError(f"{out} holds a run: go on with it with --resume, or choose another --out")
    checkpoints = Checkpoints(out / "checkpoints", settings(config))
    checkpoints.latest()  # damage shows here
    return checkpoints


def check_agreement(config: SearchRun, checkpoints: Checkpoints) -> None:
    """Refuse what several processes would not finish together."""
    own = dict.fromkeys(("sharing", "out", "data_dir", "text_dir"))
    same = repr(dataclasses.replace(config, **{k: v for k, v in own.items() if hasattr(config, k)}))
    if not processes.agree(zlib.crc32(same.encode())):
        raise ValueError("the processes have different settings or data; give all the same flags")
    if not processes.agree(checkpoints.latest() or 0):
        raise ValueError("the processes find different checkpoints in --out; it must be shared")


def settings(config: SearchRun) -> dict[str, object]:
    """What a run's numbers depend on."""
    plain = dataclasses.asdict(config)
    return {
        name: str(value) if isinstance(value, Path) else value
        for name, value in sorted(plain.items())
        if name not in config.inessential
    }


def search_of(config: SearchRun) -> Search:
    """The search that the settings describe."""
    return Search(
        space=config.space_over(len(devices_of(config))),
        config=config.search,
        optimizer=config.optimizer(),
        strength=config.strength_at if config.plasticity == "wpl" else 0.0,
        learning_rate=config.learning_rate_at if config.implicit else None,
    )


def run(
    config: SearchRun,
    checkpoints: Checkpoints,
    data: Data,
    facts: Mapping[str, object],
    out: Path,
) -> int:
    """Search until --epochs are over, then derive the best architecture."""
    search, size = search_of(config), config.search.architectures
    whole = everywhere(devices_of(config))
    state = jax.jit(search.init, out_shardings=whole)(jax.random.key(config.seed))
    if checkpoints.latest() is not None:
        state = checkpoints.restore(state)
    start = time.monotonic()
    step = jax.jit(search.step, donate_argnums=0, out_shardings=whole)
    compiled = step.lower(state, data).compile()
    memory = memory_per_device(compiled)
    processes.say(
        f"compiled in {time.monotonic() - start:.0f} s; at most {memory / 2**20:,.0f} MiB a device"
    )
    done = int(state.trained) // size
    with (
        interruptible() as stop,
        MetricsLog(out, done) as log,
        Display(config.epochs, size, "architectures", done) as display,
    ):
        start = time.monotonic()
        while not (
            int(state.trained) >= config.epochs * size
            or int(state.streak) >= config.max_skipped
            or stop.agreed()
        ):
            state, progress = compiled(state, data)
            progress = jax.device_get(progress)
            trained = int(state.trained)
            display.show(
                (trained - 1) % size + 1,
                loss=float(progress.loss.mean()),
                err1=float(progress.err1.mean()),
            )
            if progress.finished:
                record = summarise(config, trained // size, progress.epoch, state)
                record["seconds"] = round(time.monotonic() - start, 3)
                log.append(record)
                display.end_epoch(
                    err1=record["err1_mean"],
                    err2=record["err2_mean"],
                    forgetting=record["forgetting_mean"],
                    best5=record["forgetting_best5"],
                    reward=record["reward"],
                )
                start = time.monotonic()
                checkpoints.save(trained, state)
        if int(state.trained) % size:  # stopped within an epoch
            checkpoints.save(int(state.trained), state)
    if int(state.streak) >= config.max_skipped:
        raise Diverged(diverged(config, state))
    if stop.agreed():
        processes.say("search: interrupted and saved; --resume goes on from here")
        return stop.exit_code
    write_results(config, search, state, data, facts | {"memory_per_device": memory}, out)
    return 0


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
        "that they left as it was is saved; try a lower --learning-rate or --implicit, in another "
        "--out"
    )


def summarise(
    config: SearchRun, epoch: int, result: Epoch, state: SearchState
) -> dict[str, float | int]:
    """The record of an epoch, counted from 1."""
    search = search_of(config)
    lost = forgetting(result.err1, result.err2)
    step = (epoch - 1) * config.search.architectures * config.search.batches
    strength = search.strength(step) if callable(search.strength) else search.strength
    finite = np.isfinite(result.err1) & np.isfinite(result.err2)

    def mean(values):
        return float(np.mean(values)) if len(values) else math.nan

    return {
        "epoch": epoch,
        "train_loss": mean(result.loss),
        "err1_mean": mean(result.err1[finite]),
        "err2_mean": mean(result.err2[finite]),
        "err2_best": float(np.min(result.err2, initial=np.inf, where=np.isfinite(result.err2))),
        "forgetting_mean": lost.mean,
        "forgetting_best5": lost.best,
        "forgetting_max": lost.max,
        "forgetting_share": lost.share,
        "kendall_tau": lost.rank_correlation,
        "diverged": lost.diverged,
        "reward": mean(config.search_space.reward(result.err2)),
        "controller_reward": mean(result.reward),
        "entropy": mean(result.entropy),
        "baseline": float(state.baseline),
        "skipped": int(state.skipped),
        "strength": float(strength),
    }


def write_results(
    config: SearchRun,
    search: Search,
    state: SearchState,
    data: Data,
    facts: Mapping[str, object],
    out: Path,
) -> None:
    """Derive the best architecture and write every output, the summary last."""
    space, error_name = config.search_space, TASKS[config.space].ERROR
    error_key = records.key(error_name)
    key = jax.random.fold_in(jax.random.key(config.seed), 1)
    whole = everywhere(devices_of(config))
    rank = jax.jit(search.rank, static_argnums=(3, 4), out_shardings=whole)
    actions, errors = jax.device_get(
        rank(state, data.validation, key, config.derive_samples, config.derive_batches)
    )
    if not np.isfinite(errors[0]):
        raise Diverged(
            f"none of the {config.derive_samples} architectures sampled at the end has a finite "
            f"{error_name}; try a lower --learning-rate, in another --out"
        )
    measured = probe(config, search, state, data)
    if not processes.is_first():
        return
    ranking = [
        {error_key: finite(error)} | space.to_json(space.decode(a))
        for a, error in zip(actions, errors, strict=True)
    ]
    best = space.decode(actions[0])
    metrics = records.read_json_lines(out / "metrics.jsonl")
    columns = {
        name: np.array([math.nan if r[name] is None else r[name] for r in metrics])
        for name in metrics[0]
    }
    graphs = space.graphs(best)
    write_json(out / "ranking.json", ranking)
    write_json(out / "best.json", ranking[0])
    if config.probes:
        probes = [{"seed": k, error_key: finite(error)} for k, error in enumerate(measured)]
        write_json(out / "probes.json", probes)
    for name, graph in graphs.items():
        records.write_atomically(out / f"{records.key(name)}.dot", figures.dot(graph, name))
    for name, figure in {
        "cell": figures.draw(graphs),
        "curves": figures.run_curves(columns, error_name),
    }.items():
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=150)
        records.write_atomically(out / f"{name}.png", buffer.getvalue())
    after = columns["epoch"] > config.search.warmup_epochs
    summary = {
        f"best_{error_key}": ranking[0][error_key],
        "after_warmup": {
            name: float(np.nanmean(values[after]))
            for name, values in columns.items()
            if after.any() and np.isfinite(values[after]).any() and name not in ("epoch", "seconds")
        },
        "parameters": space.num_parameters(best),
        **facts,
        "seconds": round(float(columns["seconds"].sum())),
        "epochs": len(metrics),
        "configuration": settings(config)
        | {n: getattr(config, n) for n in ("derive_samples", "derive_batches", "probes")},
    } | records.provenance()
    write_json(out / "summary.json", summary)
    print(
        f"Best of {config.derive_samples}: {error_name} {ranking[0][error_key]:.4g} on "
        f"{config.derive_batches} validation batches. Written to {out}"
    )


def probe(config: SearchRun, search: Search, state: SearchState, data: Data) -> list[float]:
    """Errors of the random architectures of the seeds 0, 1, …, on the shared weights."""
    whole = everywhere(devices_of(config))
    evaluate = jax.jit(search.evaluate, static_argnums=3, out_shardings=whole)
    return [
        float(
            evaluate(
                state.params,
                cells.random_actions(config.search_space, seed),
                data.validation,
                config.derive_batches,
            )
        )
        for seed in range(config.probes)
    ]


def finite(error: float) -> float | None:
    """JSON knows no infinity and no NaN."""
    return float(error) if np.isfinite(error) else None


def write_json(path: Path, content: object) -> None:
    records.write_atomically(path, json.dumps(content, indent=1, allow_nan=False) + "\n")


if __name__ == "__main__":
    sys.exit(main())
