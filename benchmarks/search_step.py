"""A training step of a recurrent search beside the same cell written out and compiled alone.

    python -m benchmarks.search_step

The search compiles one program for all architectures; the other, the limit, knows its one
architecture when it is compiled and holds no other's weights (``benchmarks/static.py``). Both train
with plain SGD and gradient clipping, the batches of one architecture in a call, on random words of
a fixed seed; a step's time includes its share of what is done once an architecture. With
plasticity, that is also the Fisher of a validation batch and the move of the anchor.

Then, steps of the controller by how many architectures each rewards, one after another and at once.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax

from benchmarks import static
from benchmarks.page import RESULTS
from benchmarks.report import chosen, report
from benchmarks.timing import Peer, Steps, compare
from wpl_jax.search import WPL, Data, Reinforced, Search, SearchConfig, Uniform, evaluation
from wpl_jax.spaces.rnn import RNN

VOCABULARY, UNITS, NODES, BATCH, TIME, BATCHES = 10_000, 100, 12, 64, 35, 7
ALONE, SEARCH, PLASTIC = "written out, compiled alone", "search", "search, with plasticity"
RATES = ("input_dropout", "output_dropout", "drop_connect", "embedding_dropout")
FIGURE, NODES_DRAWN = "search_step_nodes.png", (4, 8, 12, 16)


def main():
    by_nodes = side_by_side("nodes", {f"{n} nodes": (n, UNITS) for n in NODES_DRAWN})
    draw(by_nodes)
    report(
        "search_step",
        [
            rnn(),
            by_nodes,
            side_by_side("units", {f"{n} units": (NODES, n) for n in (50, 200)}),
            *(controller(samples) for samples in (1, 8)),
        ],
        figures=[{"file": FIGURE, "caption": "A training step by the nodes of the recurrent cell"}],
    )


@dataclasses.dataclass(frozen=True)
class One(Uniform):
    """A sampler of one architecture."""

    actions: tuple[int, ...] = ()

    def sample(self, space, state, key, n, trained):
        return jnp.tile(jnp.array(self.actions), (n, 1))


class Training(Search):
    """A search that measures no architecture."""

    def evaluate(self, params, actions, split, batches):
        return jnp.zeros([])


def searching(space, split, tx, batches, strength=0.0, rate=None):
    """A search's step, for one architecture."""
    method = WPL(strength, rate, warmup_epochs=0)
    search = Training(space, SearchConfig(batches=batches), tx, One(sampled(space)), method)
    state = jax.jit(search.init)(jax.random.key(0))
    return Steps(search._next, state, Data(split, split), steps=batches)


def written_out(loss, params, tx, batches, start, batch, split):
    """Steps of ``loss(params, batch(split, i), carry)``, from a carry to the next."""

    def run(state, split):
        def step(carry, i):
            params, opt_state, hidden = carry
            (_, hidden), grads = jax.value_and_grad(loss, has_aux=True)(
                params, batch(split, i), hidden
            )
            updates, opt_state = tx.update(grads, opt_state, params)
            return (optax.apply_updates(params, updates), opt_state, hidden), None

        (*state, _), _ = jax.lax.scan(step, (*state, start), jnp.arange(batches))
        return tuple(state)

    return Steps(run, (params, tx.init(params)), split, steps=batches)


def recurrent_forms(nodes, units):
    """The limit, the search and the plastic search."""
    space, words, architecture = recurrent(nodes, units)
    tx, params = optimizer(1.0, 0.25), space.init(jax.random.key(0))
    return {
        ALONE: functools.partial(
            written_out,
            static.rnn_loss(space, architecture),
            static.rnn_params(space, params, architecture),
            *(tx, BATCHES, jnp.zeros((BATCH, units)), space.batch, words),
        ),
        SEARCH: functools.partial(searching, space, words, tx, BATCHES),
        PLASTIC: functools.partial(searching, space, words, tx, BATCHES, 10.0, 1.0),
    }


def rnn():
    space, _, architecture = recurrent(NODES, UNITS)
    sizes = {
        **{"nodes": NODES, "units": UNITS, "vocabulary": VOCABULARY},
        **{"batch": BATCH, "time": TIME},
        **{name: leaf.tolist() for name, leaf in architecture._asdict().items()},
    }
    peers = pytorch("torch_enas", ("eager", "masked", "compiled"), sizes)
    return compare(f"Search over {named(space)}", recurrent_forms(NODES, UNITS) | peers)


def side_by_side(what, cases):
    """Recurrent searches of several sizes in one table, each beside its own limit."""
    forms, limits = {}, {}
    for case, sizes in cases.items():
        for name, form in recurrent_forms(*sizes).items():
            forms[f"{case}, {name}"] = form
            limits[f"{case}, {name}"] = f"{case}, {ALONE}"
    title = f"By {what}, of {NODES} nodes and {UNITS} units otherwise"
    return compare(f"{title}; ratios to the same size written out", forms, 7, limits)


def pytorch(module, cases, sizes):
    """Cases of a module of benchmarks/peers."""
    return {f"PyTorch, {case}": functools.partial(Peer, module, case, **sizes) for case in cases}


def controller(samples):
    """Steps of REINFORCE."""
    space, words, _ = recurrent(NODES, UNITS)
    steps = 2

    def form(at_once):
        sampler = Reinforced(steps=steps, samples=samples)
        search = Search(space, SearchConfig(at_once=at_once), optimizer(1.0, 0.25), sampler)
        state = jax.jit(search.init)(jax.random.key(0))

        def run(state, words):
            def rewards(actions, key):
                step = evaluation.random_step(space, words, key)[None]
                errors = evaluation.errors(space, state.params, words, step, actions, at_once)
                return space.reward(errors)

            learned, _, _ = sampler.learn(space, state.sampler, state.key, rewards)
            return state._replace(sampler=learned)

        return functools.partial(Steps, run, state, words, steps=steps)

    forms = {"one after another": form(1)} | {
        f"{n} at once": form(n) for n in (4, 8) if n <= samples
    }
    plural = "s" * (samples > 1)
    title = f"A step of the controller, {samples} architecture{plural} rewarded"
    return compare(f"{title}, {named(space)}", forms, 7)


def recurrent(nodes, units):
    """A recurrent space, random words and an architecture."""
    space = RNN(VOCABULARY, nodes=nodes, units=units, **dict.fromkeys(RATES, 0.0))
    words = np.random.default_rng(0).integers(VOCABULARY, size=(32, BATCH, TIME + 1))
    architecture = jax.tree.map(np.asarray, space.decode(jnp.array(sampled(space))))
    return space, jnp.asarray(words, jnp.int32), architecture


def named(space):
    cell = f"cells of {space.nodes} nodes of {space.units} units"
    return f"{cell}, {space.vocabulary:,} words, {BATCH} × {TIME}"


def sampled(space):
    """Actions of one architecture."""
    rng = np.random.default_rng(0)
    return tuple(int(rng.integers(n)) for n in space.decisions)


def optimizer(rate, clip):
    return optax.chain(optax.clip_by_global_norm(clip), optax.sgd(rate))


def draw(table):
    """Milliseconds of a step by nodes, medians and quartiles."""
    figure, ax = plt.subplots(figsize=(5.5, 3.5), layout="constrained")
    rows = {row["name"]: row["milliseconds"] for row in table["rows"]}
    for name, style in ((ALONE, "k--"), (SEARCH, "C0-"), (PLASTIC, "C1-")):
        spread = [rows[f"{n} nodes, {name}"] for n in NODES_DRAWN]
        medians = [s["median"] for s in spread]
        (line,) = ax.plot(NODES_DRAWN, medians, style, marker=".", label=name)
        low, high = zip(*(s["quartiles"] for s in spread), strict=True)
        ax.fill_between(NODES_DRAWN, low, high, color=line.get_color(), alpha=0.15, lw=0)
    ax.set_xticks(NODES_DRAWN)
    ax.set(xlabel="nodes of the cell", ylabel="milliseconds a training step", ylim=(0, None))
    ax.legend(frameon=False)
    RESULTS.mkdir(parents=True, exist_ok=True)
    figure.savefig(RESULTS / FIGURE, dpi=150)


if __name__ == "__main__":
    chosen(__doc__)
    main()
