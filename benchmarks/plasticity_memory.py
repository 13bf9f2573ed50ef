"""What the plasticity state takes on a model of GPT-2's size, by its dtypes.

    python -m benchmarks.plasticity_memory

A step is the gradient of one sequence of 64 random words and an update by AdamW, after a
``consolidate``, with its state donated. Each row ran beside the step without plasticity on the same
parameters, in turn; ratios are taken within a turn. The bytes are those of the arrays themselves.
"""

import jax
import jax.numpy as jnp
import optax

import wpl_jax
from benchmarks import large_networks
from benchmarks.models import GPT2
from benchmarks.report import chosen, report
from benchmarks.timing import Steps, cells, compare

STRENGTH = 10.0
COLUMNS = ("", "MiB of the state", "times the parameters", "ms a step", "ratio", "quartiles")
TEXT = (
    "Each row with plasticity ran in turn with a run without of its own, to which its ratio is "
    "taken; the first row is that of the second."
)
ROWS = {
    "": {},
    "Fisher in bfloat16": {"fisher_dtype": jnp.bfloat16},
    "Fisher and anchor in bfloat16": {"fisher_dtype": jnp.bfloat16, "anchor_dtype": jnp.bfloat16},
}


def main():
    """Measure, and write the results and the page."""
    report("plasticity_memory", [table(jnp.float32), table(jnp.bfloat16)])


def table(dtype, sizes=GPT2, repeats=11):
    """Of parameters, gradients and AdamW's memory in one dtype."""
    nll, params, words = large_networks.gpt(batch=1, steps=64, layers="scan", **sizes)
    params = jax.tree.map(lambda p: p.astype(dtype), params)
    size = sum(p.size for p in jax.tree.leaves(params))
    bytes_of_params = sum(p.nbytes for p in jax.tree.leaves(params))

    def form(tx, state):
        def step(state, words):
            params, opt_state = state
            grads = jax.grad(lambda p: jax.vmap(nll, (None, 0))(p, words).mean())(params)
            updates, opt_state = tx.update(grads, opt_state, params)
            return optax.apply_updates(params, updates), opt_state

        return Steps(step, state, words, steps=1)

    def without():
        tx = optax.adamw(1e-4)
        return form(tx, (params, tx.init(params)))

    def plastic(options):
        tx = optax.chain(wpl_jax.add_plasticity(STRENGTH, **options), optax.adamw(1e-4))
        return form(tx, (params, wpl_jax.consolidate(tx.init(params), params, 1e-4)))

    rows = []
    for name, options in ROWS.items():
        if dtype == jnp.bfloat16 and "anchor_dtype" in options:
            continue  # the anchor is in the parameters' dtype as it is
        state = jax.eval_shape(wpl_jax.add_plasticity(STRENGTH, **options).init, params)
        held = sum(
            leaf.size * leaf.dtype.itemsize
            for leaf in jax.tree.leaves((state.anchor, state.fisher))
        )
        name = f"add_plasticity{name and ', '}{name}"
        forms = {"without plasticity": without, name: lambda options=options: plastic(options)}
        baseline, row = compare(f"{dtype.__name__}: {name}", forms, repeats)["rows"]
        for measured, memory in ((baseline, 0), (row, held)):
            _, milliseconds, _, ratio, quartiles, _ = cells(measured)
            text = [f"{memory / 2**20:,.0f}", f"{memory / bytes_of_params:.1f}"]
            measured["cells"] = [measured["name"], *text, milliseconds, ratio, quartiles]
        rows += [row] if rows else [baseline, row]
    title = f"{size / 1e6:,.0f} million parameters in {dtype.__name__}"
    return {"title": title, "text": TEXT, "turns": repeats, "columns": COLUMNS, "rows": rows}


if __name__ == "__main__":
    chosen(__doc__)
    main()
