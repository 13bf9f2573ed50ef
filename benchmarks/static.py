"""Architectures written out: what a search's step is measured against.

Each is a loss of a network's own parameters alone, in which Python knows what reads what and by
which operation, so that the compiler does too: nothing is gathered, selected or branched on. JAX
differentiates it. Normalisation, the decoder and operations are the search spaces' own.
"""

import jax
import jax.numpy as jnp

from wpl_jax.spaces.cross_entropy import linear_cross_entropy
from wpl_jax.spaces.images import cross_entropy
from wpl_jax.spaces.micro_cnn import OPERATIONS
from wpl_jax.spaces.micro_cnn.architecture import edge_index, loose_ends
from wpl_jax.spaces.micro_cnn.network import BRANCHES, halve
from wpl_jax.spaces.operations import (
    HEIGHT,
    WIDTH,
    batch_norm,
    classify,
    convolution_3x3,
    inward,
    pointwise,
)
from wpl_jax.spaces.rnn import ACTIVATIONS
from wpl_jax.spaces.rnn.recurrence import clip_norm

FUNCTIONS = {
    "tanh": jnp.tanh,
    "relu": jax.nn.relu,
    "identity": lambda x: x,
    "sigmoid": jax.nn.sigmoid,
}


def rnn_params(space, params, architecture):
    """The parameters of one cell, a kernel an edge."""
    own = [params["edges"][i] for i in space.rows(architecture)["edges"]]
    return {**params, "edges": own}


def rnn_loss(space, architecture):
    """``loss(params, words, hidden)`` of one cell: its value, and the next hidden state."""
    functions = [FUNCTIONS[ACTIVATIONS[a]] for a in architecture.activations]
    sources = [int(p) for p in architecture.predecessors]
    loose = [j for j in range(space.nodes) if j not in sources]

    def highway(product, state, function):
        gate, value = jnp.split(product, 2, axis=-1)
        return state + jax.nn.sigmoid(gate) * (function(value) - state)

    def loss(params, words, hidden):
        inputs, labels = words[:, :-1], words[:, 1:]
        projected = jnp.swapaxes(params["embedding"][inputs], 0, 1) @ params["input"]

        def step(hidden, projected):
            nodes = [highway(projected + hidden @ params["recurrent"], hidden, functions[0])]
            for kernel, i, function in zip(params["edges"], sources, functions[1:], strict=True):
                nodes.append(highway(nodes[i] @ kernel, nodes[i], function))
            hidden = sum(nodes[j] for j in loose) / len(loose)
            hidden = clip_norm(hidden, space.max_hidden_norm)
            return hidden, hidden

        hidden, states = jax.lax.scan(step, jax.lax.stop_gradient(hidden), projected)
        centred = states - states.mean(1, keepdims=True)
        states = centred * jax.lax.rsqrt(states.var(1, keepdims=True) + 1e-5)
        scale, bias = (params["norm"][name][None, None] for name in ("scale", "bias"))
        outputs = states * scale + bias
        total = linear_cross_entropy(
            jnp.swapaxes(outputs, 0, 1).reshape(-1, space.units),
            params["embedding"],
            params["decoder_bias"],
            labels.ravel(),
            jnp.ones(labels.size),
        )
        return total / labels.size, hidden

    return loss


def cnn_params(space, params, architecture):
    """The parameters of one network: of a layer, those of its edges and loose ends."""

    def of_layer(weights, cell):
        index = edge_index(cell)
        names = [OPERATIONS[o] for o in cell.operations.ravel()]
        return {
            "norm": weights["norm"],
            "edges": [
                {name: jax.tree.map(lambda w, i=i: w[i], weights[name])} if name in weights else {}
                for i, name in zip(index, names, strict=True)
            ],
            "project": {str(i): weights["project"][i] for i in jnp.flatnonzero(loose_ends(cell))},
        }

    stages = [
        [
            of_layer(jax.tree.map(lambda w, k=k: w[k], weights), cell)
            for k, cell in enumerate(cells(space, architecture, stage))
        ]
        for stage, weights in enumerate(params["stages"])
    ]
    return {**params, "stages": stages}


def cnn_loss(space, architecture):
    """``loss(params, batch)`` of one network, without drop-path and auxiliary head."""

    def layer(params, cell, states):
        nodes = list(states)
        edges = iter(params["edges"])
        for inputs, operations in zip(cell.inputs, cell.operations, strict=True):
            outputs = [
                BRANCHES[o](nodes[i], next(edges), None)[0]
                for i, o in zip(inputs, operations, strict=True)
            ]
            nodes.append(sum(outputs))
        total = sum(
            pointwise(jax.nn.relu(nodes[int(i)]), kernel) for i, kernel in params["project"].items()
        )
        return states[1], batch_norm(total, params["norm"])[0]

    def loss(params, batch):
        images, labels = batch
        x = convolution_3x3(inward(images), params["stem"]["kernel"], space.stem_stride)
        x, _ = batch_norm(x, params["stem"])
        states = x, x
        for stage, layers in enumerate(params["stages"]):
            if stage:
                halvings = params["inputs"][stage - 1].values()
                pairs = zip(halvings, states, strict=True)
                states = tuple(halve(h, halving, None)[0] for halving, h in pairs)
            for weights, cell in zip(layers, cells(space, architecture, stage), strict=True):
                states = layer(weights, cell, states)
        pooled = jax.nn.relu(states[1]).mean((HEIGHT, WIDTH))
        return cross_entropy(classify(pooled, params["classifier"]), labels)

    return loss


def cells(space, architecture, stage):
    """The cells of a stage in their order."""
    return (bool(stage) * [architecture.reduction]) + space.cells * [architecture.normal]
