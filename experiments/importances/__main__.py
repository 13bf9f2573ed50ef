"""Which importance holds on to an earlier task best, and which of them none does.

Two models that share weights, and five pairs of digits learned one after another, with a classifier
for each pair or one for all. Nothing, an L2 anchor, the empirical Fisher, MAS and SI, each at its
own best strength. Writes summary.json and report.md to --out. A run that was interrupted goes on
where it stopped when the same command is given again.
"""

import contextlib
import dataclasses
import functools
import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import wpl_jax
from experiments.importances import report as importances_report
from experiments.importances.report import ARMS, CONTINUAL, REPLAY, SCENARIOS, Result
from experiments.running import command_line, processes, records
from experiments.running.folder import Held, check_parts, finished
from experiments.running.script import Script
from experiments.two_models.__main__ import over_seeds
from experiments.two_models.settings import FULL, Width
from experiments.two_models.training import (
    MLP,
    NEVER,
    Accuracies,
    Params,
    held_out,
    init,
    loss,
    model_a,
    model_b,
    sample_batch,
    sgd_step,
    train_a_with,
)
from wpl_jax.data import Images, Splits, load_images
from wpl_jax.settings import Nonnegative, Positive, Range, Seed, Several, Size, check

script = Script("importances", "the same command goes on from the last part")

TASKS = 5  # pairs of digits: 0 and 1, 2 and 3, ...

Strengths = Annotated[tuple[Nonnegative, ...], Several(1)]


@dataclasses.dataclass(frozen=True)
class Importances:
    """Settings. The two models are those of experiments.two_models --data mnist5k."""

    out: Path | None = None
    """Folder of the results; results/importances if not given."""
    seeds: Annotated[int, Range(2, 10_000)] = 10
    """Independent repetitions that are reported. At least 2."""
    choice_seeds: Annotated[int, Range(1, 10_000)] = 6
    """Others, by which strengths are chosen."""
    seed: Seed = 0
    """Where all random numbers come from."""
    seeds_per_call: Size = 2
    """Seeds trained in one call, dealt out to all devices; what is kept if interrupted."""

    l2_strengths: Strengths = (1e-4, 1e-3, 1e-2, 1e-1, 1e0, 1e1, 1e2, 1e3, 1e4)
    """Strengths to choose from for the L2 anchor."""
    fisher_strengths: Strengths = (1e0, 1e1, 1e2, 1e3, 1e4, 1e5, 1e6, 1e7, 1e8)
    """Strengths to choose from for the empirical Fisher."""
    mas_strengths: Strengths = (1e-4, 1e-3, 1e-2, 1e-1, 1e0, 1e1, 1e2, 1e3, 1e4)
    """Strengths to choose from for MAS."""
    si_strengths: Strengths = (1e-4, 1e-3, 1e-2, 1e-1, 1e0, 1e1, 1e2, 1e3, 1e4)
    """Strengths to choose from for SI."""
    images: Size = 200
    """Images that the Fisher and MAS are computed from, after each task."""
    damping: Positive = 1e-3
    """The damping xi of SI."""

    a_steps: Size = 2_000
    """Training steps of A, if it is not stopped early."""
    b_steps: Size = 500
    """Training steps of B."""
    task_steps: Size = 300
    """Training steps on each pair of digits."""
    task_learning_rate: Positive = 0.1
    """Of plain SGD on pairs of digits."""
    width: Width = 100
    """Units in each hidden layer."""
    memory: Size = 20
    """Images of each earlier pair of digits that replay sees again."""

    def __post_init__(self):
        check(self)

    @property
    def two_models(self):
        """The settings of the experiment whose models these are."""
        return dataclasses.replace(
            FULL["mnist5k"],
            a_steps=self.a_steps,
            b_steps=self.b_steps,
            eval_every=self.b_steps,
            width=self.width,
        )


class Method(NamedTuple):
    """Data, so that methods can be stacked and one program serves them all."""

    arm: int | jax.Array  # a place in ARMS
    strength: float | jax.Array


class Outcome(NamedTuple):
    """Of one seed; a leading axis of methods, then one of tasks."""

    learned: Accuracies  # right after a task was learned
    final: Accuracies  # when all have been


class Pairs(NamedTuple):
    """The images, and where in the training part those of each task are."""

    splits: Splits
    positions: np.ndarray  # (TASKS, largest), filled up with the task's first ones
    sizes: np.ndarray  # (TASKS,)


@script
def main(argv: Sequence[str] | None = None) -> int:
    with contextlib.ExitStack() as stack:
        with script.preparing():
            config = command_line.read(
                Importances(), argv, prog="python -m experiments.importances", description=__doc__
            )
            out = config.out or Path("results/importances")
            stack.enter_context(Held(out))
            settings = dataclasses.asdict(config) | {"out": None}
            summary = finished(out, settings)
            data = load_images("mnist5k")
            check_sizes(config, data)
            check_parts(out / "partial", fingerprint_of(config, data))
        if summary:
            processes.say(f"importances: {out} holds this run, finished; delete it to run it again")
        else:
            results, seconds = experiment(config, data, out / "partial")
            summary = importances_report.summarise(results) | {"configuration": settings}
            summary |= records.provenance() | {"seconds": round(seconds)}
            importances_report.write(summary, out)
        if (out / "partial").exists():
            shutil.rmtree(out / "partial")
        print((out / "report.md").read_text())
        print(f"Written to {out}")
        return 0


def fingerprint_of(config: Importances, data: Splits) -> str:
    """What the parts of a run depend on, beside what is trained in them."""
    return records.fingerprint(dataclasses.replace(config, out=None), data)


def check_sizes(config: Importances, data: Splits) -> None:
    """Refuse more images than there are."""
    fewest = int(pairs(data).sizes.min())
    for flag, there in (("images", len(data.validation.labels)), ("memory", fewest)):
        if getattr(config, flag) > there:
            raise ValueError(
                f"--{flag} must be at most {there}, all that there are, got {getattr(config, flag)}"
            )


def experiment(config: Importances, data: Splits, folder: Path) -> tuple[dict[str, Result], float]:
    """All scenarios, each of which first chooses its strengths, and the seconds they took."""
    records.writable_folder(folder)
    fingerprint = fingerprint_of(config, data)
    keys = jax.random.split(jax.random.key(config.seed), config.choice_seeds + config.seeds)
    choice_keys, final_keys = keys[: config.choice_seeds], keys[config.choice_seeds :]
    programs = {
        False: (over_seeds(functools.partial(two_models, config)), data),
        True: (over_seeds(functools.partial(split_digits, config)), pairs(data)),
    }
    total: list[float] = []

    def trained(scenario, stage, keys, methods):
        program, data = programs[scenario in CONTINUAL]
        stacked = jax.tree.map(lambda *values: jnp.array(values), *methods)
        parts = []
        for start in range(0, len(keys), config.seeds_per_call):
            some = keys[start : start + config.seeds_per_call]
            part, seconds = records.kept(
                folder / f"{scenario}-{stage}-{start}.npz".replace(" ", "-"),
                f"{fingerprint} {methods}",
                functools.partial(program, data, some, SETTINGS[scenario], stacked),
            )
            parts.append(part)
            total.append(seconds)
            print(f"{scenario}: {stage}, {start + len(some)} of {len(keys)} seeds", file=sys.stderr)
        return jax.tree.map(lambda *leaves: np.concatenate(leaves), *parts)

    results = {}
    for scenario in SCENARIOS:
        grids = grid(config, scenario)
        candidates = [Method(ARMS.index(arm), s) for arm, some in grids.items() for s in some]
        choice = trained(scenario, "choosing", choice_keys, candidates)
        scores = choice.final.validation.mean((0, 2))  # over seeds and tasks
        validation = {arm: [] for arm in grids}
        for method, score in zip(candidates, scores, strict=True):
            validation[ARMS[method.arm]].append((method.strength, float(score)))
        best = {arm: max(found, key=lambda pair: pair[1])[0] for arm, found in validation.items()}
        chosen = [Method(ARMS.index(arm), strength) for arm, strength in best.items()]
        final = trained(scenario, "reported", final_keys, chosen)
        results[scenario] = Result(validation, best, final.learned.test, final.final.test)
    return results, sum(total)


def grid(config: Importances, scenario: str) -> dict[str, tuple[float, ...]]:
    """The strengths to choose from, by arm."""
    nothing, l2, fisher, mas, si, replay = ARMS
    return {
        nothing: (0.0,),
        l2: config.l2_strengths,
        fisher: config.fisher_strengths,
        mas: config.mas_strengths,
        si: config.si_strengths,
    } | ({replay: (0.0,)} if scenario in CONTINUAL else {})


# --- Two models that share weights ----------------------------------------------------------------


def two_models(
    config: Importances, data: Splits, key: jax.Array, stop_at: jax.Array, methods: Method
) -> Outcome:
    """Train A once, and B on its layers with each of the methods; pure, for one seed."""
    settings = config.two_models
    key_a, key_images, key_b = jax.random.split(key, 3)
    params_a, path = train_a(config, data, key_a, stop_at)
    held = data.validation
    index = jax.random.choice(key_images, len(held.labels), (config.images,), replace=False)
    images = jax.tree.map(lambda x: x[index], held)
    model = model_a(settings)
    importances = [
        optax.tree.zeros_like(params_a),
        optax.tree.ones_like(params_a),
        wpl_jax.empirical_fisher(lambda p, image: loss(model, p, image))(params_a, images),
        wpl_jax.mas_importance(lambda p, x: model.apply({"params": p}, x))(params_a, images.images),
        path,
        optax.tree.zeros_like(params_a),
    ]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *importances)
    before = held_out(model, params_a, data)

    def with_method(method):
        importance = jax.tree.map(lambda x: x[method.arm], stacked)
        a, b = train_b(config, data, key_b, params_a, importance, method.strength)
        both = jax.tree.map(lambda *values: jnp.stack(values), before, b)
        return Outcome(learned=both, final=jax.tree.map(lambda *v: jnp.stack(v), a, b))

    return jax.lax.map(with_method, methods)


def train_a(
    config: Importances, data: Splits, key: jax.Array, stop_at: jax.Array
) -> tuple[Params, Params]:
    """A's weights when its steps are over or it is good enough, and the importances of its path."""
    settings = config.two_models
    tx = wpl_jax.synaptic_intelligence(optax.sgd(settings.a_learning_rate))
    params, opt_state = train_a_with(tx, settings, data, key, stop_at)
    return params, wpl_jax.path_importance(opt_state, params, damping=config.damping)[0]


def train_b(
    config: Importances,
    data: Splits,
    key: jax.Array,
    params_a: Params,
    importance: Params,
    strength: jax.Array,
) -> tuple[Accuracies, Accuracies]:
    """Train B on A's layers, and return what A and B can do then."""
    settings = config.two_models
    init_key, data_key = jax.random.split(key)
    a, b = model_a(settings), model_b(settings)
    shared = [name for name in params_a if name.startswith("layer")]
    params = init(b, init_key, data) | {name: params_a[name] for name in shared}
    importance = jax.tree.map(jnp.zeros_like, params) | {name: importance[name] for name in shared}
    # Momentum multiplies a steady gradient by 1 / (1 - momentum): see proximal_plasticity.
    effective = settings.b_learning_rate / (1 - settings.b_momentum)
    tx = optax.chain(
        optax.sgd(settings.b_learning_rate, settings.b_momentum),
        wpl_jax.proximal_plasticity(strength, effective),
    )
    opt_state = wpl_jax.consolidate(tx.init(params), params, importance)

    def train(carry, step):
        batch = sample_batch(settings, data.train, data_key, step)
        return sgd_step(b, tx, *carry, batch), None

    steps = jnp.arange(settings.b_steps)
    (params, _), _ = jax.lax.scan(train, (params, opt_state), steps)
    with_shared = params_a | {name: params[name] for name in shared}
    return held_out(a, with_shared, data), held_out(b, params, data)


# --- Pairs of digits, one after another -----------------------------------------------------------


def pairs(data: Splits) -> Pairs:
    places = [np.flatnonzero(data.train.labels // 2 == task) for task in range(TASKS)]
    sizes = np.array([len(p) for p in places])
    return Pairs(data, np.array([np.resize(p, sizes.max()) for p in places]), sizes)


def split_digits(
    config: Importances, data: Pairs, key: jax.Array, one_head: jax.Array, methods: Method
) -> Outcome:
    """Learn the pairs of digits one after another with each of the methods; for one seed."""
    model = MLP(depth=2, width=config.width)
    init_key, data_key = jax.random.split(key)
    start = init(model, init_key, data.splits)

    def logits(params, images, task):
        """Of one head, or of a head for each task, those of the others being 0."""
        own = jnp.repeat(jax.nn.one_hot(task, TASKS, dtype=bool), 2, axis=-1)
        scores = model.apply({"params": params}, images)
        return jnp.where((one_head > 0) | own, scores, 0), (one_head > 0) | own

    def scores(params, images, task):
        found, present = logits(params, images, task)
        return jnp.where(present, found, -jnp.inf)

    def nll(params, image):
        return optax.softmax_cross_entropy_with_integer_labels(
            scores(params, image.images, image.labels // 2), image.labels
        )

    def by_task(params, images):
        """Accuracies, (TASKS,)."""
        found = scores(params, images.images, images.labels // 2).argmax(-1) == images.labels
        is_of = jax.nn.one_hot(images.labels // 2, TASKS)
        return found @ is_of / is_of.sum(0)

    def accuracies(params):
        return Accuracies(
            by_task(params, data.splits.validation), by_task(params, data.splits.test)
        )

    def with_method(method):
        rate = config.task_learning_rate
        tx = wpl_jax.synaptic_intelligence(
            optax.chain(optax.sgd(rate), wpl_jax.proximal_plasticity(method.strength, rate))
        )

        def learn(carry, task):
            def step(carry, number):
                params, opt_state = carry
                batch = batch_of(
                    config, data, data_key, task, number, method.arm == ARMS.index(REPLAY)
                )
                grads = jax.grad(lambda p: nll(p, batch).mean())(params)
                updates, opt_state = tx.update(grads, opt_state, params)
                return (optax.apply_updates(params, updates), opt_state), None

            (params, opt_state), _ = jax.lax.scan(step, carry, jnp.arange(config.task_steps))
            path, opt_state = wpl_jax.path_importance(opt_state, params, damping=config.damping)
            images = jax.tree.map(
                lambda x: x[data.positions[task, : config.images]], data.splits.train
            )
            importance = jax.lax.switch(
                method.arm,
                [
                    lambda: optax.tree.zeros_like(params),
                    lambda: optax.tree.ones_like(params),
                    lambda: wpl_jax.empirical_fisher(nll)(params, images),
                    lambda: wpl_jax.mas_importance(lambda p, x: logits(p, x, task)[0])(
                        params, images.images
                    ),
                    lambda: path,
                    lambda: optax.tree.zeros_like(params),
                ],
            )
            opt_state = wpl_jax.consolidate(opt_state, params, importance, decay=1.0)
            return (params, opt_state), accuracies(params)

        _, after = jax.lax.scan(learn, (start, tx.init(start)), jnp.arange(TASKS))
        return Outcome(
            learned=jax.tree.map(jnp.diagonal, after), final=jax.tree.map(lambda x: x[-1], after)
        )

    return jax.lax.map(with_method, methods)


def batch_of(
    config: Importances,
    data: Pairs,
    key: jax.Array,
    task: jax.Array,
    step: jax.Array,
    replay: jax.Array,
) -> Images:
    """Images of a task; with replay, half of them from a few of each task before."""
    size = config.two_models.batch_size
    key = jax.random.fold_in(jax.random.fold_in(key, task), step)
    new_key, task_key, old_key = jax.random.split(key, 3)
    new = data.positions[task, jax.random.randint(new_key, (size,), 0, data.sizes[task])]
    before = jax.random.randint(task_key, (size,), 0, jnp.maximum(task, 1))
    old = data.positions[before, jax.random.randint(old_key, (size,), 0, config.memory)]
    index = jnp.where(replay & (task > 0) & (jnp.arange(size) < size // 2), old, new)
    return jax.tree.map(lambda x: x[index], data.splits.train)


SETTINGS: dict[str, float] = dict(zip(SCENARIOS, (NEVER, 0.55, 0.0, 1.0), strict=True))


if __name__ == "__main__":
    # XLA trains networks this small on one core a device. A GPU or TPU does not mind.
    jax.config.update("jax_num_cpu_devices", os.cpu_count())
    sys.exit(main())
