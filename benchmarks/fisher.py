"""The empirical Fisher of four networks, beside other libraries' and a batch gradient.

    python -m benchmarks.fisher

Data are random: times do not depend on them. Rows are ratios to a batch gradient of the same
library's network, jitted; what PyTorch's rows do is said in benchmarks/peers/torch_fisher.py.
"""

import jax
import jax.numpy as jnp
import optax

import wpl_jax
from benchmarks.networks import NETWORKS
from benchmarks.timing import Jitted, compare, report


def main():
    report("fisher", [of_network(name) for name in NETWORKS])


def of_network(name, **sizes):
    nll, params, batch = NETWORKS[name](**sizes)
    n = len(jax.tree.leaves(batch)[0])

    def gradient(params, batch):
        return jax.grad(lambda p: jax.vmap(nll, (None, 0))(p, batch).mean())(params)

    def squares(params, batch):
        grads = jax.vmap(jax.grad(nll), (None, 0))(params, batch)
        return jax.tree.map(lambda g: jnp.square(g).sum(0), grads)

    def microbatched(size):
        sums = optax.microbatching.microbatch(squares, argnums=1, microbatch_size=size)
        return Jitted(lambda p, b: jax.tree.map(lambda s: s / n, sums(p, b)), params, batch)

    forms = {
        "batch gradient": lambda: Jitted(gradient, params, batch),
        "wpl_jax.empirical_fisher": lambda: Jitted(wpl_jax.empirical_fisher(nll), params, batch),
        "vmap(grad) by optax.microbatching, 16 at a time": lambda: microbatched(16),
    }
    return compare(name, forms)


if __name__ == "__main__":
    main()
