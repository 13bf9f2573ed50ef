"""A cell over time, written so that its gradient costs what a cell written out for itself does."""

import functools

import jax
import jax.numpy as jnp

from wpl_jax.numbers import wide_dtype, widen
from wpl_jax.spaces.rnn.architecture import ACTIVATIONS, Architecture

_RELU, _IDENTITY, _SIGMOID = map(ACTIVATIONS.index, ("relu", "identity", "sigmoid"))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def run(
    max_norm: float,
    architecture: Architecture,
    recurrent: jax.Array,
    edges: jax.Array,
    projected: jax.Array,
    hidden: jax.Array,
) -> jax.Array:
    """Hidden states of a cell, float [time, batch, units]. Differentiable once.

    They are of the dtype of ``hidden``, to which the kernels are rounded.

    In the gradient, that of each kernel is one product over all time steps, and activations are
    differentiated from their values: left to JAX, every time step would add to every kernel's.
    Which node another reads is a select among those before it, which XLA fuses; to index an array
    of nodes would copy it for each.

    Args:
      max_norm: what the norm of a hidden state is clipped at.
      architecture: the cell.
      recurrent: node 0's kernel, float [units, 2 * units].
      edges: those of the other nodes, float [nodes - 1, units, 2 * units].
      projected: what node 0 reads of the words, float [time, batch, 2 * units].
      hidden: the hidden state before, float [batch, units].
    """
    return _forward(max_norm, architecture, recurrent, edges, projected, hidden)[0]


def _forward(max_norm, architecture, recurrent, edges, projected, hidden):
    """The hidden states, and what the gradient is computed from."""
    kernels = [kernel.astype(hidden.dtype) for kernel in (recurrent, *edges)]
    kinds, weights = _kinds(architecture, len(recurrent)), _mean_weights(architecture, hidden.dtype)

    def step(hidden, projected):
        nodes: list[jax.Array] = []
        reads, values = [], []
        for j, kernel in enumerate(kernels):
            read = nodes[0] if j else hidden
            for i in range(1, j):
                read = jnp.where(architecture.predecessors[j - 1] == i, nodes[i], read)
            product = read @ kernel
            value = _activate(product if j else product + projected, kinds[j])
            gate, new = jnp.split(value, 2, axis=-1)
            nodes.append(read + gate * (new - read))
            reads.append(read)
            values.append(value)
        mean = sum(weight * node for weight, node in zip(weights, nodes, strict=True))
        hidden = clip_norm(mean, max_norm)
        return hidden, (hidden, (mean, reads, values))

    _, (states, saved) = jax.lax.scan(step, hidden, projected)
    return states, (architecture, recurrent, edges, *saved)


def _backward(max_norm, saved, cotangents):
    architecture, recurrent, edges, means, reads, values = saved
    kinds, weights = _kinds(architecture, len(recurrent)), _mean_weights(architecture, means.dtype)
    transposed = [kernel.T.astype(means.dtype) for kernel in (recurrent, *edges)]

    def step(cotangent, inputs):
        of_state, mean, reads, values = inputs
        (of_mean,) = jax.vjp(lambda x: clip_norm(x, max_norm), mean)[1](of_state + cotangent)
        of_reads: dict[int, jax.Array] = {}
        of_products: dict[int, jax.Array] = {}
        for j in reversed(range(len(transposed))):
            of_node = weights[j] * of_mean
            for k in range(j + 1, len(transposed)):
                of_node += jnp.where(architecture.predecessors[k - 1] == j, of_reads[k], 0)
            gate, new = jnp.split(values[j], 2, axis=-1)
            of_value = jnp.concatenate([of_node * (new - reads[j]), of_node * gate], axis=-1)
            of_products[j] = of_value * _slope(values[j], kinds[j])
            of_reads[j] = of_node * (1 - gate) + of_products[j] @ transposed[j]
        return of_reads[0], of_products

    of_hidden, of_products = jax.lax.scan(
        step, jnp.zeros_like(means[0]), (cotangents, means, reads, values), reverse=True
    )
    # Over time and batch without a reshape, which no batch split over devices would survive.
    dtype = wide_dtype(means)
    of_kernels = jnp.stack(
        [
            jnp.tensordot(read, of_products[j], ((0, 1), (0, 1)), preferred_element_type=dtype)
            for j, read in enumerate(reads)
        ]
    )
    of_recurrent, of_edges = of_kernels[0], of_kernels[1:]
    of_weights = of_recurrent.astype(recurrent.dtype), of_edges.astype(edges.dtype)
    return None, *of_weights, of_products[0], of_hidden


run.defvjp(_forward, _backward)


def _mean_weights(architecture, dtype):
    """Of the nodes in the next hidden state: the mean of the loose ends."""
    loose = jnp.ones(len(architecture.activations)).at[architecture.predecessors].set(0)
    return (loose / loose.sum()).astype(dtype)


def _kinds(architecture, units):
    """Activations of the columns of each node's product, gates first: [nodes, 1, 2 * units]."""
    kinds = jnp.stack([jnp.full_like(architecture.activations, _SIGMOID), architecture.activations])
    return jnp.repeat(kinds.T[:, None], units, axis=2)


def _activate(x, kinds):
    """ACTIVATIONS by their numbers, which may be traced. A select is cheaper than a branch."""
    scale = jnp.where(kinds == _SIGMOID, 0.5, 1).astype(x.dtype)
    smooth = scale * jnp.tanh(scale * x) + (1 - scale)  # sigmoid(x) = (1 + tanh(x / 2)) / 2
    linear = jnp.where(kinds == _RELU, jax.nn.relu(x), x)
    return jnp.where((kinds == _RELU) | (kinds == _IDENTITY), linear, smooth)


def _slope(y, kinds):
    """The derivative of an activation where its value is ``y``."""
    smooth = jnp.where(kinds == _SIGMOID, y - y * y, 1 - y * y)
    linear = jnp.where((kinds == _RELU) & (y <= 0), 0, 1).astype(y.dtype)
    return jnp.where((kinds == _RELU) | (kinds == _IDENTITY), linear, smooth)


def clip_norm(x: jax.Array, max_norm: float) -> jax.Array:
    """Scale down what has a norm over the last axis above ``max_norm``."""
    square = jnp.sum(widen(x) ** 2, axis=-1, keepdims=True)
    over = square > max_norm**2
    factor = jnp.where(over, max_norm * jax.lax.rsqrt(jnp.where(over, square, 1)), 1)
    return x * factor.astype(x.dtype)
