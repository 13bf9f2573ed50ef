"""Architecture search with shared weights, with and without plasticity (figures 3 and 5).

Writes metrics.jsonl, TensorBoard's scalars, checkpoints and, at the end, best.json, ranking.json,
summary.json and figures to --out. A run that was interrupted goes on with --resume.
"""

import dataclasses
import io
import json
import math
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments import command_line, records
from experiments.configs.search import PRESETS, SearchRun
from experiments.running import Display, MetricsLog, interruptible
from wpl_jax import drawing, plotting
from wpl_jax.checkpoint import Checkpoints
from wpl_jax.forgetting import forgetting
from wpl_jax.search import Data, Epoch, Search, SearchState
from wpl_jax.text import Text, load_text, read_text_dir, unknown_share, windows


class Diverged(Exception):
    """What was trained is not finite."""


def main(argv: Sequence[str] | None = None) -> int:
    try:
        config = parse(argv)
        check(config)
        text = read(config)
        config = dataclasses.replace(
            config, rnn=dataclasses.replace(config.rnn, vocabulary=len(text.vocabulary))
        )
        data = cut(config, text)
        out = records.writable_folder(folder_of(config))
        checkpoints = open_checkpoints(config, out)
    except (ValueError, OSError, ImportError) as error:
        print(f"search: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("search: interrupted before it began", file=sys.stderr)
        return 130
    try:
        with checkpoints:
            return run(config, checkpoints, text, jax.device_put(data), out)
    except Diverged as error:
        print(f"search: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("search: interrupted; --resume goes on from the last checkpoint", file=sys.stderr)
        return 130


def parse(argv: Sequence[str] | None) -> SearchRun:
    return command_line.parse(
        PRESETS, argv, prog="python -m experiments.search", description=__doc__
    )


def check(config: SearchRun) -> None:
    """Refuse, before anything is loaded, what cannot work."""
    for flag in (
        "epochs",
        "batch_size",
        "length",
        "max_skipped",
        "derive_samples",
        "derive_batches",
    ):
        if getattr(config, flag) < 1:
            raise ValueError(
                f"--{flag.replace('_', '-')} must be at least 1, got {getattr(config, flag)}"
            )
    for flag in ("learning_rate", "learning_rate_decay", "clip", "strength"):
        if not 0 < getattr(config, flag) < math.inf:
            raise ValueError(
                f"--{flag.replace('_', '-')} must be finite and above 0, got "
                f"{getattr(config, flag)}"
            )
    for flag in ("strength_decay", "weight_decay", "decay_from", "seed"):
        if not 0 <= getattr(config, flag) < math.inf:
            raise ValueError(
                f"--{flag.replace('_', '-')} must be finite and not negative, got "
                f"{getattr(config, flag)}"
            )
    if config.seed >= 2**32:  # a key has the same numbers as that of the remainder
        raise ValueError(f"--seed must be below 2**32, got {config.seed}")


def read(config: SearchRun) -> Text:
    if config.text_dir is not None:
        return read_text_dir(config.text_dir, config.rnn.vocabulary)
    return load_text(config.data, config.data_dir, config.rnn.vocabulary)


def cut(config: SearchRun, text: Text) -> Data:
    """The text as batches; refuses a search that asks for more of them than there are."""
    data = Data(
        windows(text.train, config.batch_size, config.length),
        windows(text.validation, config.batch_size, config.length),
    )
    for flag, wanted, part in (
        ("search.batches", config.search.batches, "train"),
        ("search.eval-batches", config.search.eval_batches, "validation"),
        ("derive-batches", config.derive_batches, "validation"),
    ):
        there = len(getattr(data, part))
        if wanted > there:
            raise ValueError(
                f"--{flag} must be at most {there}, all the batches of the {part} part at "
                f"--batch-size {config.batch_size} and --length {config.length}, got {wanted}"
            )
    return data


def folder_of(config: SearchRun) -> Path:
    name = f"{config.preset}_{config.plasticity}_{config.search.strategy}_{config.seed}"
    return config.out or Path("results/search", config.space, name)


def open_checkpoints(config: SearchRun, out: Path) -> Checkpoints:
    if not config.resume and any((out / "checkpoints").glob("*")):
        raise ValueError(f"{out} holds a run: go on with it with --resume, or choose another --out")
    checkpoints = Checkpoints(out / "checkpoints", settings(config))
    checkpoints.latest()  # damage shows here
    return checkpoints


def settings(config: SearchRun) -> dict[str, object]:
    """What a run's numbers depend on; --epochs may be raised to train a finished run further."""
    inessential = ("out", "resume", "data_dir", "max_skipped", "derive_samples", "derive_batches")
    names = {field.name for field in dataclasses.fields(config)}.difference(inessential, ["epochs"])
    plain = dataclasses.asdict(config) | {"text_dir": config.text_dir and str(config.text_dir)}
    return {name: plain[name] for name in sorted(names)}


def search_of(config: SearchRun) -> Search:
    """The search that the settings describe."""
    per_epoch = config.search.architectures * config.search.batches

    def learning_rate(step):
        decaying = jnp.maximum(step // per_epoch - config.decay_from, 0)
        return config.learning_rate * config.learning_rate_decay**decaying

    def strength(step):
        epoch = step // per_epoch
        decayed = config.strength - config.strength_decay * jnp.maximum(
            epoch - config.decay_from, 0
        )
        return jnp.where(epoch < config.search.warmup_epochs, 0.0, jnp.maximum(decayed, 0.0))

    return Search(
        space=config.rnn,
        config=config.search,
        optimizer=optax.chain(
            optax.clip_by_global_norm(config.clip),
            optax.add_decayed_weights(config.weight_decay),
            optax.sgd(learning_rate),
        ),
        strength=strength if config.plasticity == "wpl" else 0.0,
        learning_rate=learning_rate if config.implicit else None,
    )


def run(config: SearchRun, checkpoints: Checkpoints, text: Text, data: Data, out: Path) -> int:
    """Search until --epochs are over, then derive the best architecture."""
    search, size = search_of(config), config.search.architectures
    state = jax.jit(search.init)(jax.random.key(config.seed))
    if checkpoints.latest() is not None:
        state = checkpoints.restore(state)
    start = time.monotonic()
    compiled = jax.jit(search.step, donate_argnums=0).lower(state, data).compile()
    memory = memory_per_device(compiled)
    print(
        f"compiled in {time.monotonic() - start:.0f} s; at most {memory / 2**20:,.0f} MiB a device",
        file=sys.stderr,
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
            or stop
        ):
            state, progress = compiled(state, data)
            trained = int(state.trained)
            display.show(
                (trained - 1) % size + 1,
                loss=float(progress.loss.mean()),
                err1=float(progress.err1.mean()),
            )
            if progress.finished:
                record = summarise(config, trained // size, jax.device_get(progress.epoch), state)
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
    if stop:
        print("search: interrupted and saved; --resume goes on from here", file=sys.stderr)
        return stop.exit_code
    write_results(config, search, state, text, data, memory, out)
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
        "that they left as it was is saved; try a lower --learning-rate, --implicit or "
        "--rnn.batch-norm, in another --out"
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
        "reward": mean(config.rnn.reward(result.err2)),
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
    text: Text,
    data: Data,
    memory: int,
    out: Path,
) -> None:
    """Derive the best architecture and write every output, the summary last."""
    key = jax.random.fold_in(jax.random.key(config.seed), 1)
    rank = jax.jit(search.rank, static_argnums=(3, 4))
    actions, errors = jax.device_get(
        rank(state, data.validation, key, config.derive_samples, config.derive_batches)
    )
    if not np.isfinite(errors[0]):
        raise Diverged(
            f"none of the {config.derive_samples} architectures sampled at the end has a finite "
            "perplexity; try a lower --learning-rate, in another --out"
        )
    space = config.rnn
    ranking = [
        {
            "perplexity": float(error) if np.isfinite(error) else None,
            **space.to_json(space.decode(a)),
        }
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
    for name, graph in graphs.items():
        records.write_atomically(out / f"{name}.dot", drawing.dot(graph, name))
    for name, figure in {
        "cell": drawing.draw(graphs),
        "curves": plotting.run_curves(columns, error_name="perplexity"),
    }.items():
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=150)
        records.write_atomically(out / f"{name}.png", buffer.getvalue())
    after = columns["epoch"] > config.search.warmup_epochs
    summary = {
        "best_perplexity": ranking[0]["perplexity"],
        "after_warmup": {
            name: float(np.nanmean(values[after]))
            for name, values in columns.items()
            if after.any() and np.isfinite(values[after]).any() and name not in ("epoch", "seconds")
        },
        "parameters": space.num_parameters(best),
        "unknown_share": unknown_share(text),
        "memory_per_device": memory,
        "seconds": round(float(columns["seconds"].sum())),
        "epochs": len(metrics),
        "configuration": settings(config)
        | {name: getattr(config, name) for name in ("derive_samples", "derive_batches")},
    } | records.provenance()
    write_json(out / "summary.json", summary)
    print(
        f"Best of {config.derive_samples}: perplexity {ranking[0]['perplexity']:.2f} on "
        f"{config.derive_batches} validation batches. Written to {out}"
    )


def write_json(path: Path, content: object) -> None:
    records.write_atomically(path, json.dumps(content, indent=1, allow_nan=False) + "\n")


if __name__ == "__main__":
    sys.exit(main())
