"""A training step of ENAS's shared RNN in PyTorch: what wpl_jax.spaces.rnn computes, undropped.

The cell is Python data, so that only its own edges are computed, and the input's projection is one
product for all time steps; what is left in the loop over time is the recurrence itself.
"""

import numpy as np
import torch
import torch.nn.functional as F

ACTIVATIONS = (torch.tanh, torch.relu, lambda x: x, torch.sigmoid)
MAX_HIDDEN_NORM, LEARNING_RATE, CLIP = 25.0, 1.0, 0.25


def init(nodes, units, vocabulary):
    rng = np.random.default_rng(0)

    def uniform(*shape):
        values = rng.uniform(-0.025, 0.025, shape).astype(np.float32)
        return torch.from_numpy(values).requires_grad_()

    return {
        "embedding": uniform(vocabulary, units),
        "input": uniform(units, 2 * units),
        "recurrent": uniform(units, 2 * units),
        "edges": [uniform(units, 2 * units) for _ in range(nodes * (nodes - 1) // 2)],
        "decoder_bias": torch.zeros(vocabulary, requires_grad=True),
        "scale": torch.ones(units, requires_grad=True),
        "bias": torch.zeros(units, requires_grad=True),
    }


def cell(activations, predecessors):
    """The cell's step: from the projected input, the hidden state and its weights to the next."""
    loose = sorted(set(range(len(activations))) - set(predecessors))

    def highway(gate_and_value, state, activation):
        gate, value = gate_and_value.chunk(2, -1)
        return torch.lerp(state, ACTIVATIONS[activation](value), torch.sigmoid(gate))

    def step(projected, hidden, recurrent, *edges):
        first = torch.addmm(projected, hidden, recurrent)
        states = [highway(first, hidden, activations[0])]
        for kernel, i, activation in zip(edges, predecessors, activations[1:], strict=True):
            states.append(highway(states[i] @ kernel, states[i], activation))
        mean = sum(states[i] for i in loose) / len(loose)
        square = mean.square().sum(-1, keepdim=True)
        return mean * (MAX_HIDDEN_NORM * square.clamp(min=MAX_HIDDEN_NORM**2).rsqrt())

    return step


def loss(params, step, predecessors, words, hidden):
    """Mean cross-entropy of a window of words, int [batch, time + 1], and the hidden state."""
    inputs, labels = words[:, :-1].T, words[:, 1:].T
    time, batch = inputs.shape
    # Edge i -> j lies at j(j-1)/2 + i.
    edges = [params["edges"][j * (j - 1) // 2 + i] for j, i in enumerate(predecessors, start=1)]
    states = []
    for projected in (F.embedding(inputs, params["embedding"]) @ params["input"]).unbind():
        hidden = step(projected, hidden, params["recurrent"], *edges)
        states.append(hidden)
    # Normalised over the batch in each time step: each is a set of channels of its own.
    scale, bias = params["scale"].repeat(time), params["bias"].repeat(time)
    outputs = F.batch_norm(torch.cat(states, -1), None, None, scale, bias, training=True)
    logits = F.linear(outputs.view(batch, time, -1), params["embedding"], params["decoder_bias"])
    return F.cross_entropy(logits.flatten(0, 1), labels.T.flatten()), hidden


def build(
    compiled=False,
    masked=False,
    nodes=12,
    units=100,
    vocabulary=10_000,
    batch=64,
    time=35,
    activations=None,
    predecessors=None,
):
    rng = np.random.default_rng(1)
    activations = activations or rng.integers(len(ACTIVATIONS), size=nodes).tolist()
    predecessors = predecessors or [int(rng.integers(j)) for j in range(1, nodes)]
    words = torch.from_numpy(rng.integers(vocabulary, size=(batch, time + 1)))
    params = init(nodes, units, vocabulary)
    leaves = [p for name, p in params.items() if name != "edges"] + params["edges"]
    if masked:  # every edge has a gradient, and most are zero
        for p in leaves:
            p.grad = torch.zeros_like(p)
    optimiser = torch.optim.SGD(leaves, LEARNING_RATE)
    step = cell(activations, predecessors)
    if compiled:
        step = torch.compile(step)
    hidden = torch.zeros(batch, units)

    def run():
        nonlocal hidden
        optimiser.zero_grad(set_to_none=not masked)
        value, after = loss(params, step, predecessors, words, hidden)
        value.backward()
        torch.nn.utils.clip_grad_norm_(leaves, CLIP)
        optimiser.step()
        hidden = after.detach()
        return value.item()

    return run


CASES = {
    "eager": build,
    "compiled": lambda **sizes: build(compiled=True, **sizes),
    "masked": lambda **sizes: build(masked=True, **sizes),
}
