"""The empirical Fisher of four networks, beside a batch gradient and other libraries' Fishers.

    python -m benchmarks.fisher

Data are random: times do not depend on them. What each library's row computes is said in
benchmarks/peers/torch_fisher.py and jax_fisher.py. At the end, a figure of how the time of a
multilayer perceptron grows with its batch, width and depth.
"""

import functools

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import optax

import wpl_jax
from benchmarks.networks import NETWORKS
from benchmarks.page import RESULTS
from benchmarks.report import chosen, report
from benchmarks.timing import Jitted, Peer, compare

GRADIENT, OURS = "batch gradient", "wpl_jax.empirical_fisher"
PLAIN = "vmap(grad), 16 at a time by optax.microbatching"
IN_JAX = ("kfac-jax", "laplax")
IN_PYTORCH = {
    "gradient": "batch gradient",
    "backpack": "BackPACK",
    "torch.func": "vmap(grad), 8 at a time",
    "nngeometry": "NNGeometry",
    "asdl": "ASDL",
    "avalanche": "avalanche: the square of the batch gradient",
}
# Checked on small networks against single examples' gradients: squares are summed before they are
# added up, over pixels of small images, and over positions of a text.
INEXACT = {("cnn", "asdl"), ("transformer", "asdl")}
FIGURE = "fisher_scaling.png"
SIZES = {
    "batch": (64, 128, 256, 512, 1024),
    "width": (128, 256, 512, 1024),
    "depth": (1, 2, 4, 8),
}


def main():
    tables = [of_network(name) for name in NETWORKS]
    scaling = {
        size: {value: of_mlp(**{size: value}) for value in values} for size, values in SIZES.items()
    }
    draw(scaling)
    tables += [table for of_size in scaling.values() for table in of_size.values()]
    caption = "The Fisher of a multilayer perceptron by batch, width and depth"
    report("fisher", tables, figures=[{"file": FIGURE, "caption": caption}])


def of_network(network):
    """Ours and every library's."""
    forms = in_jax(*NETWORKS[network]())
    for library in IN_JAX:
        forms[f"JAX, {library}"] = functools.partial(Peer, "jax_fisher", f"{network}/{library}")
    for library, name in IN_PYTORCH.items():
        name += ": not exact here" if (network, library) in INEXACT else ""
        case = f"{network}/{library}"
        forms[f"PyTorch, {name}"] = functools.partial(Peer, "torch_fisher", case)
    return compare(network, forms)


def of_mlp(batch=256, width=256, depth=4):
    problem = NETWORKS["mlp"](batch=batch, width=width, depth=depth)
    return compare(f"mlp, batch {batch}, width {width}, depth {depth}", in_jax(*problem), repeats=7)


def in_jax(nll, params, batch):
    n = len(jax.tree.leaves(batch)[0])

    def gradient(params, batch):
        return jax.grad(lambda p: jax.vmap(nll, (None, 0))(p, batch).mean())(params)

    def squares(params, batch):
        grads = jax.vmap(jax.grad(nll), (None, 0))(params, batch)
        return jax.tree.map(lambda g: jnp.square(g).sum(0) / n, grads)

    plain = optax.microbatching.microbatch(squares, argnums=1, microbatch_size=16)
    forms = {GRADIENT: gradient, OURS: wpl_jax.empirical_fisher(nll), PLAIN: plain}
    return {name: functools.partial(Jitted, form, params, batch) for name, form in forms.items()}


def draw(scaling):
    figure, axes = plt.subplots(1, 3, figsize=(10, 3.4), sharey=True, layout="constrained")
    for axis, (size, of_size) in zip(axes, scaling.items(), strict=True):
        for place, name in enumerate((PLAIN, OURS, GRADIENT)):
            rows = [table["rows"] for table in of_size.values()]
            found = [next(row for row in of_table if row["name"] == name) for of_table in rows]
            milliseconds = [row["milliseconds"]["median"] for row in found]
            axis.plot(of_size.keys(), milliseconds, "o-", color=f"C{place}", label=name)
        axis.set(xscale="log", yscale="log", xlabel=size, xticks=list(of_size))
        axis.set_xticks(list(of_size), list(map(str, of_size)))
        axis.minorticks_off()
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("time, ms")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    figure.savefig(RESULTS / FIGURE, dpi=150)


if __name__ == "__main__":
    chosen(__doc__)
    main()
