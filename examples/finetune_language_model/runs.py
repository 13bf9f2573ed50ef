"""Pretraining, the Fisher, and one run for each setting of each way: all resumable."""

import dataclasses
import functools
import json
import os
import time
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import wpl_jax
from examples.finetune_language_model import model, tuning
from examples.finetune_language_model.texts import Texts
from wpl_jax.checkpoint import Checkpoints
from wpl_jax.data.text import EOS, every_token, windows


@dataclasses.dataclass(frozen=True)
class Settings:
    """Of one folder of runs."""

    units: int = 192
    layers: int = 3
    heads: int = 4
    length: int = 64

    pretraining_steps: int = 1000
    pretraining_batch: int = 16
    pretraining_rate: float = 2e-3
    save_every: int = 100

    steps: int = 48  # of fine-tuning: 24,576 tokens, six tenths of the help topics
    batch: int = 8
    full_rate: float = 1e-3
    lora_rate: float = 3e-3
    rank: int = 8
    fisher_sequences: int = 256
    replayed: float = 0.05  # the share of the old text that is kept for replay
    replay_batch: int = 2
    part: str = "test"  # of both texts, to evaluate on
    held_out_tokens: int = 8_192  # at most, of each
    seeds: tuple[int, ...] = (0, 1, 2)
    turns: int = 15  # of the measurement of time

    # The knobs.
    strengths: tuple[float, ...] = (0.0, 1.0, 2.0, 3.0)  # powers of ten: see `Bench._knobs`
    rates: tuple[float, ...] = (0.3, 0.1, 0.03)  # times the plain one
    replays: tuple[float, ...] = (0.3, 1.0, 3.0, 10.0)  # weights of the old tokens
    stops: tuple[int, ...] = (3, 6, 12, 24)


SMOKE = Settings(
    units=16,
    layers=1,
    heads=2,
    length=16,
    pretraining_steps=6,
    pretraining_batch=4,
    save_every=3,
    steps=4,
    batch=2,
    rank=2,
    fisher_sequences=4,
    held_out_tokens=256,
    seeds=(0,),
    turns=2,
    strengths=(0.0, 2.0),
    rates=(0.1,),
    replays=(1.0,),
    stops=(2,),
)


def pretrain(settings: Settings, texts: Texts, folder: Path, log) -> tuple:
    """The base model: its graph, its parameters, and the seconds that it took; resumes."""
    size = model.Size(
        len(texts.old.vocabulary),
        settings.units,
        settings.layers,
        settings.heads,
        settings.length,
    )
    graph, params = model.make(size, seed=0)
    steps = settings.pretraining_steps
    schedule = optax.warmup_cosine_decay_schedule(
        0.0, settings.pretraining_rate, min(100, steps // 2), steps
    )
    tx = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(schedule, weight_decay=0.1))
    data = _sequences(texts.old.train, settings.length)

    @functools.partial(jax.jit, donate_argnums=0)
    def step(state, tokens):
        weights = jnp.full(tokens[:, 1:].shape, 1 / tokens[:, 1:].size)
        loss, grads = jax.value_and_grad(
            lambda params: model.total_nll(graph, params, tokens, weights)
        )(state["params"])
        updates, opt_state = tx.update(grads, state["opt_state"], state["params"])
        params = optax.apply_updates(state["params"], updates)
        return {"params": params, "opt_state": opt_state}, loss

    state = {"params": params, "opt_state": tx.init(params)}
    seconds, start = np.zeros(2), clock()
    fingerprint = {
        "text": texts.names["old"],
        "size": size._asdict(),
        "steps": steps,
        "batch": settings.pretraining_batch,
        "rate": settings.pretraining_rate,
    }
    with Checkpoints(folder, fingerprint) as checkpoints:
        done = checkpoints.latest() or 0
        if done:
            saved = checkpoints.restore({"model": state, "seconds": seconds})
            state, seconds = saved["model"], saved["seconds"]
        batches = _batches(data, settings.pretraining_batch, steps, seed=0)
        for i in range(done, steps):
            state, loss = step(state, data[batches[i]])
            if (i + 1) % settings.save_every == 0 or i + 1 == steps:
                loss = float(loss)
                seconds += clock() - start
                start = clock()
                checkpoints.save(i + 1, {"model": state, "seconds": seconds})
                log(f"pretraining, step {i + 1} of {steps}: perplexity {np.exp(loss):,.0f}")
    return graph, state["params"], seconds.tolist()


class Run(NamedTuple):
    """One setting of one way, with one seed."""

    method: str  # "full" or "lora"
    arm: str
    form: str  # which compiled step
    knob: float
    seed: int

    @property
    def name(self) -> str:
        return f"{self.method}-{self.arm}-{self.knob:g}-seed{self.seed}".replace(", ", "_").replace(
            " ", "_"
        )


NOTHING, LOWER_RATE, STOPPING = "nothing", "lower rate", "early stopping"
REPLAY, REPLAY_RATE = "replay", "replay at a lower rate"
L2, L2_PROXIMAL = "L2 anchor", "L2 anchor proximal"
WPL, WPL_PROXIMAL, WPL_ADAPTERS = "WPL", "WPL proximal", "WPL on adapters"


def plan(settings: Settings) -> list[Run]:
    """All runs, one seed after another, so that what is there after a while is comparable."""
    strong, rates, replays = settings.strengths, settings.rates, settings.replays
    arms = [
        ("full", NOTHING, "plain", (1.0,)),
        ("full", WPL_PROXIMAL, "proximal", strong),
        ("full", L2_PROXIMAL, "proximal", strong),
        ("full", LOWER_RATE, "plain", rates),
        ("full", REPLAY, "replay", replays),
        ("full", WPL, "additive", strong),
        ("full", L2, "additive", strong),
        ("lora", NOTHING, "plain", (1.0,)),
        ("lora", WPL, "merged", strong),
        ("lora", L2, "merged", strong),
        ("lora", LOWER_RATE, "plain", rates),
        ("lora", REPLAY, "replay", replays),
        ("lora", WPL_ADAPTERS, "adapters", strong),
        ("full", REPLAY_RATE, "replay", rates),
        ("lora", REPLAY_RATE, "replay", rates),
    ]
    return [
        Run(method, arm, form, knob, seed)
        for seed in settings.seeds
        for method, arm, form, knobs in arms
        for knob in knobs
    ]


class Bench:
    """The pretrained model, both texts, and every step that was compiled so far."""

    def __init__(self, settings: Settings, texts: Texts, graph, base):
        self.settings, self.graph, self.base = settings, graph, base
        self._old = _sequences(texts.old.train, settings.length)
        self._new = _sequences(texts.new.train, settings.length)
        eos = texts.old.vocabulary.index(EOS)
        self._held_out = {
            side: every_token(
                getattr(text, settings.part)[: settings.held_out_tokens], 16, settings.length, eos
            )
            for side, text in (("old", texts.old), ("new", texts.new))
        }
        self._nll = jax.jit(functools.partial(model.total_nll, graph))
        self._steps: dict[tuple[str, str], tuple] = {}
        self._fishers: dict[tuple[str, int], tuple] = {}
        self._estimate = {
            form: jax.jit(functools.partial(self._normalised_fisher, form))
            for form in ("additive", "merged", "adapters")
        }

    def perplexities(self, params) -> dict[str, float]:
        """Of both held-out texts; a token's context is at most the window that it is in."""
        result = {}
        for side, (tokens, weights) in self._held_out.items():
            total = sum(
                float(self._nll(params, *window)) for window in zip(tokens, weights, strict=True)
            )
            result[side] = float(np.exp(total / weights.sum()))
        return result

    def run(self, run: Run) -> list[dict[str, float]]:
        """Fine-tune; gives the perplexities at the end and, where nothing is held, on the way.

        Those on the way are early stopping: there, the knob is the number of steps.
        """
        settings = self.settings
        way, step = self._step(run.method, run.form)
        fisher, unit = self._importance(run.arm, run.form, run.seed)
        key = jax.random.key(run.seed)
        trained, opt_state = way.init(self.base, key, fisher)
        knobs = self._knobs(run, unit)
        stops = settings.stops if run.arm == NOTHING else ()
        points = []
        batches = zip(*self._data(run.form, run.seed), strict=True)
        for done, (old, new) in enumerate(batches, 1):
            trained, opt_state = step(trained, opt_state, self.base, old, new, knobs)
            if done in stops or done == settings.steps:
                perplexities = self.perplexities(way.whole(self.base, trained))
                points.append({"knob": done if stops else run.knob, **perplexities})
        return points

    def _knobs(self, run, unit):
        """Strengths are powers of ten of a unit, with Fishers that are divided by their mean.

        In the loss, 1 unit is EWC as it was derived: every token that either text has to train on
        counts once (in the quadratic approximation). The proximal step comes after Adam, whose
        steps are in units of the learning rate: there, 1 unit draws a weight of average F back by
        a factor of e in the whole run.
        """
        settings = self.settings
        rate = settings.full_rate if run.method == "full" else settings.lora_rate
        if run.arm in (LOWER_RATE, REPLAY_RATE):
            rate *= run.knob
        if run.form == "plain":
            return _arrays(tuning.Knobs(rate))
        if run.form == "replay":
            return _arrays(tuning.Knobs(rate, replay=run.knob if run.arm == REPLAY else 1.0))
        if run.form == "proximal":
            unit = 1 / (rate * settings.steps)
        return _arrays(tuning.Knobs(rate, strength=unit * 10**run.knob))

    def _normalised_fisher(self, form, base, sample, key):
        """Of what the term is on, divided by its mean, and the unit of strength in the loss."""
        adapters = model.init_adapters(base, self.settings.rank, key)

        def adapters_nll(adapters, tokens):
            whole = model.put(base, model.merged(base, adapters))
            return model.sequence_nll(self.graph, whole, tokens)

        if form == "adapters":
            fisher = wpl_jax.empirical_fisher(adapters_nll)(adapters, sample)
        else:
            nll = functools.partial(model.sequence_nll, self.graph)
            fisher = wpl_jax.empirical_fisher(nll)(base, sample)
            if form == "merged":
                fisher = model.adapted(fisher, adapters)
        mean = optax.tree.sum(fisher) / optax.tree.size(fisher)
        unit = mean / self.settings.length * (len(self._old) / len(self._new))
        return jax.tree.map(lambda f: f / mean, fisher), unit

    def _importance(self, arm, form, seed):
        if form in ("plain", "replay"):
            return None, 0.0
        form = "additive" if form == "proximal" else form  # the same, of all parameters
        if (form, seed) not in self._fishers:
            rng = np.random.default_rng([seed, 1])
            rows = rng.choice(len(self._old), self.settings.fisher_sequences, replace=False)
            self._fishers[form, seed] = self._estimate[form](
                self.base, self._old[rows], jax.random.key(seed)
            )
        fisher, unit = self._fishers[form, seed]
        return 1.0 if arm in (L2, L2_PROXIMAL) else fisher, unit

    def _data(self, form, seed):
        """Sequences for each step: old ones, or None where there is no replay, and new ones."""
        settings = self.settings
        new = self._new[_batches(self._new, settings.batch, settings.steps, [seed, 2])]
        if form != "replay":
            return [None] * settings.steps, new
        rng = np.random.default_rng([seed, 3])
        kept = rng.permutation(len(self._old))[: max(1, int(settings.replayed * len(self._old)))]
        rows = _batches(kept, settings.replay_batch, settings.steps, [seed, 4])
        return self._old[kept[rows]], new

    def _step(self, method, form):
        """A way to fine-tune, and its step, compiled when it is first asked for."""
        if (method, form) not in self._steps:
            way = (
                tuning.full(self.graph, form)
                if method == "full"
                else tuning.lora(self.graph, form, self.settings.rank)
            )
            way = way._replace(init=jax.jit(way.init), whole=jax.jit(way.whole))
            arguments = self._arguments(way, Run(method, "", form, 0.0, 0))
            jitted = jax.jit(way.step, donate_argnums=(0, 1))
            self._steps[method, form] = way, jitted.lower(*arguments).compile()
        return self._steps[method, form]

    def _arguments(self, way, run):
        fisher, unit = self._importance(run.arm, run.form, run.seed)
        trained, opt_state = way.init(self.base, jax.random.key(run.seed), fisher)
        old, new = (x[0] for x in self._data(run.form, run.seed))
        return trained, opt_state, self.base, old, new, self._knobs(run, unit)

    def costs(self, turns: int) -> dict:
        """Of each compiled step: time as a ratio to plain in the same turn, and memory."""
        forms = {(run.method, run.form): run for run in plan(self.settings)}
        states, rows = {}, []
        for (method, form), run in forms.items():
            way, step = self._step(method, form)
            trained, opt_state, *rest = self._arguments(way, run)
            states[method, form] = [step, trained, opt_state, rest]
            rows.append(
                {
                    "method": method,
                    "form": form,
                    "trained_bytes": _bytes(trained),
                    "state_bytes": _bytes(opt_state),
                    "temporary_bytes": step.memory_analysis().temp_size_in_bytes,
                }
            )
        seconds = {name: [] for name in states}
        for _ in range(turns):
            for name, state in states.items():
                step, trained, opt_state, rest = state
                start = time.perf_counter()
                state[1:3] = jax.block_until_ready(step(trained, opt_state, *rest))
                seconds[name].append(time.perf_counter() - start)
        plain = np.array(seconds["full", "plain"])
        for row, taken in zip(rows, seconds.values(), strict=True):
            quartiles = np.quantile(np.array(taken) / plain, [0.25, 0.5, 0.75])
            row["ratio"] = quartiles.round(3).tolist()
        return {"steps": rows, "turns": turns}


def record(folder: Path, name: str, compute, log) -> dict:
    """What a file of the folder holds or, where there is none, what is computed and put there."""
    path = folder / f"{name}.json"
    if path.exists():
        return json.loads(path.read_text())
    start = clock()
    result = compute()
    seconds = (clock() - start).round(2).tolist()
    result |= {"seconds": seconds}
    # Whole or not at all: the file is written beside its place, and then moved there.
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(result) + "\n")
    os.replace(partial, path)
    log(f"{name}: {seconds[0]:.1f} s")
    return result


def clock() -> np.ndarray:
    """Seconds that have passed, and that processors have worked."""
    return np.array([time.perf_counter(), time.process_time()])


def _bytes(tree):
    return sum(x.nbytes for x in jax.tree.leaves(tree))


def _arrays(knobs):
    return jax.tree.map(jnp.float32, knobs)


def _sequences(tokens, length):
    return windows(tokens, 1, length)[:, 0]


def _batches(data, batch, steps, seed):
    """Rows of the data for each step: epochs in ever new order, [steps, batch]."""
    rng = np.random.default_rng(seed)
    epochs = -(-steps * batch // len(data))
    order = np.concatenate([rng.permutation(len(data)) for _ in range(epochs)])
    return order[: steps * batch].reshape(steps, batch)
