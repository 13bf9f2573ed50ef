"""Whether a search space keeps what the search relies on: what is wrong, and in which method."""

import json
from collections.abc import Callable
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np

from wpl_jax.spaces import rows as own_rows
from wpl_jax.spaces.protocol import Space
from wpl_jax.trees import path_name

__all__ = ["check"]

_ARCHITECTURES = 4
_DRAWS = 3  # of parameters, in which a gradient that is always zero counts as one


class _Fault(Exception):
    """What is wrong with a method, which begins the message."""


def check(space: Space, split: chex.ArrayTree | None = None) -> None:
    """Check a search space of your own, on random architectures and parameters.

    A mask that is wrong protects the wrong weights, and nothing else fails. So this checks that

    - every method can be compiled once for all architectures: what it returns has shapes, types
      and a structure that do not depend on the architecture;
    - ``mask`` and ``rows`` fit the parameters of ``init``, and no weight of the mask is outside of
      the rows;
    - with ``split``: the loss depends on the weights of the mask and on no others; an architecture
      on its own rows has the loss, score and gradient that it has on all parameters; ``batch``
      goes around and around; the carry keeps its shapes;
    - a reward is finite, whatever the error;
    - where the space has ``to_json``, ``from_json``, ``graphs`` or ``num_parameters`` (see
      :class:`wpl_jax.spaces.StoredSpace`), they agree with the rest.

    Args:
      space: the space.
      split: some of its data, as its ``batch`` takes them. Without, the loss is not looked at.

    Raises:
      ValueError: a line for each fault, which begins with the name of the method.

    Example:
      >>> import jax
      >>> from wpl_jax.spaces import check
      >>> from wpl_jax.spaces.rnn import RNN
      >>> text = jax.random.randint(jax.random.key(0), (5, 2, 4), 0, 9)  # windows, batch, time + 1
      >>> check(RNN(vocabulary=9, nodes=3, units=4), text)
      >>> class Forgetful(RNN):
      ...     def mask(self, architecture):
      ...         mask = super().mask(architecture)
      ...         return mask | {"edges": jax.numpy.zeros_like(mask["edges"])}
      >>> check(Forgetful(vocabulary=9, nodes=3, units=4), text)
      Traceback (most recent call last):
      ...
      ValueError: mask: the loss depends on weights of params['edges'] that are not in the mask
    """
    faults: list[str] = []

    def passes(examine: Callable[..., Any], *arguments: Any) -> Any:
        try:
            return examine(space, *arguments)
        except _Fault as fault:
            faults.append(str(fault))
            return None

    actions = passes(_decisions)
    params = passes(_params)
    if actions is not None and params is not None:
        architectures = passes(_architectures, actions)
        if architectures is not None:
            fits = passes(_rows_of_mask, architectures, params)
            if split is not None and fits:
                passes(_learning, architectures, params, split)
            if fits:
                passes(_counted, architectures, params)
            passes(_stored, architectures)
            passes(_drawn, architectures)
    passes(_reward)
    if faults:
        raise ValueError("\n".join(faults))


def _decisions(space):
    """Random actions, int32 [architectures, decisions]."""
    decisions = _call(lambda: space.decisions, "decisions")
    numbers = np.asarray(decisions)
    if numbers.ndim != 1 or not numbers.size or numbers.dtype.kind != "i" or numbers.min() < 1:
        raise _Fault(f"decisions: must be a tuple of whole numbers of at least 1, got {decisions}")
    rng = np.random.default_rng(0)
    draws = [np.zeros_like(numbers), numbers - 1]
    draws += [rng.integers(0, numbers) for _ in range(_ARCHITECTURES - len(draws))]
    return jnp.array(draws, jnp.int32)


def _params(space):
    """The shared parameters, moved off what they start at, which may be zero."""
    params = _call(jax.jit(space.init), "init", jax.random.key(0))
    for path, leaf in _leaves(params):
        if not jnp.issubdtype(leaf.dtype, jnp.inexact):
            raise _Fault(f"init: params{path} must be of floating point, got {leaf.dtype}")
    return params


def _architectures(space, actions):
    """The architectures of these actions."""
    decode = jax.jit(space.decode)
    found = [_call(decode, "decode", one) for one in actions]
    for path, leaf in _leaves(found[0]):
        if not jnp.issubdtype(leaf.dtype, jnp.integer):
            raise _Fault(f"decode: an architecture is whole numbers, but {path} is {leaf.dtype}")
    return found


def _rows_of_mask(space, architectures, params):
    """Whether mask and rows fit the parameters, and each other."""
    mask_of, rows_of = _compiled(space.mask), _compiled(space.rows)
    for architecture in architectures:
        mask = _prefix("mask", _call(mask_of, "mask", architecture), params)
        rows = _prefix("rows", _call(rows_of, "rows", architecture), params)
        for (path, leaf), m, r in zip(
            _leaves(params), jax.tree.leaves(mask), jax.tree.leaves(rows), strict=True
        ):
            _fit_mask(path, leaf, m)
            if r is not ...:
                _fit_rows(path, leaf, m, r)
    return True


def _fit_mask(path, leaf, mask):
    if mask is True or mask is False:
        return
    if mask.dtype != bool:
        raise _Fault(f"mask: of params{path} must be True, or boolean, got {mask.dtype}")
    try:
        fits = jnp.broadcast_shapes(mask.shape, leaf.shape) == leaf.shape
    except ValueError:
        fits = False
    if not fits:
        raise _Fault(
            f"mask: of params{path} must broadcast to its shape {leaf.shape}, got {mask.shape}"
        )


def _fit_rows(path, leaf, mask, rows):
    if not jnp.issubdtype(rows.dtype, jnp.integer):
        raise _Fault(f"rows: of params{path} must be ... or whole numbers, got {rows.dtype}")
    before, axis = rows.shape[:-1], rows.ndim - 1
    if rows.ndim > leaf.ndim or before != leaf.shape[: rows.ndim - 1]:
        raise _Fault(
            f"rows: of params{path} have shape {rows.shape}; but for their last axis it must be "
            f"that of the first axes of the parameter, {leaf.shape}"
        )
    flat = np.asarray(rows).reshape(-1, rows.shape[-1])
    if flat.size and not (flat.min() >= 0 and flat.max() < leaf.shape[axis]):
        raise _Fault(
            f"rows: of params{path} must be from 0 to {leaf.shape[axis] - 1}, got "
            f"{flat.min()} to {flat.max()}"
        )
    if any(len(set(line)) < len(line) for line in flat.tolist()):
        raise _Fault(f"rows: of params{path} have a position twice")
    if np.shape(mask)[: rows.ndim] != leaf.shape[: rows.ndim]:
        shape = f"of shape {np.shape(mask)}" if np.ndim(mask) else f"{mask}"
        raise _Fault(
            f"mask: of params{path} must have the parameter's lengths {leaf.shape[: rows.ndim]} "
            f"along the axes that rows picks from, but is {shape}"
        )
    kept = own_rows.put(jnp.zeros_like(mask), rows, own_rows.take(mask, rows))
    if bool((mask & ~kept).any()):
        raise _Fault(f"rows: the mask of params{path} has weights outside of the rows")


def _learning(space, architectures, params, split):
    """Whether the loss and the score use what mask and rows say, and batches are what they are."""
    batch = _batches(space, split)
    start = _call(space.start, "start", batch)

    def loss(params, architecture):
        return space.loss(params, architecture, batch, start, None)

    shape = _call(lambda: jax.eval_shape(loss, params, architectures[0])[0].shape, "loss")
    if shape != ():
        raise _Fault(f"loss: must be one number, got shape {shape}")
    gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))
    score = jax.jit(lambda params, a: space.score(params, a, batch, start))
    for architecture in architectures:
        draws = [_moved(params, jax.random.key(n)) for n in range(_DRAWS)]
        found = [_call(gradient, "loss", draw, architecture) for draw in draws]
        (value, carry), grads = found[0]
        if not np.isfinite(value):
            raise _Fault(f"loss: is {value} for parameters near those of init")
        _same_forms("loss", "the carry", start, carry)
        _support(space, architecture, params, [g for _, g in found])

        measured = _call(score, "score", draws[0], architecture)
        (total, count), carry = measured
        if np.shape(total) != () or np.shape(count) != ():
            raise _Fault(
                "score: must be a sum and a count, one number each, got shapes "
                f"{np.shape(total)} and {np.shape(count)}"
            )
        _same_forms("score", "the carry", start, carry)
        _call(space.error, "error", total / count)

        rows = jax.tree.broadcast(space.rows(architecture), params)
        own = own_rows.take(draws[0], rows)
        expected = (value, own_rows.take(grads, rows))
        (own_value, _), own_grads = _call(gradient, "loss", own, architecture)
        if not _close((own_value, own_grads), expected):
            raise _Fault("loss: is not the same on an architecture's own rows as on all parameters")
        if not _close(_call(score, "score", own, architecture)[0], (total, count)):
            raise _Fault(
                "score: is not the same on an architecture's own rows as on all parameters"
            )


def _batches(space, split):
    """The first batch of a split, once batches are known to go around."""
    count = _call(lambda: int(space.num_batches(split)), "num_batches")
    if count < 1:
        raise _Fault(f"num_batches: must be at least 1, got {count}")
    batch = jax.jit(lambda step: space.batch(split, step, None))
    first, again = (_call(batch, "batch", step) for step in (0, count))
    if not _close(first, again):
        raise _Fault(f"batch: number {count} is not number 0 again, though there are {count}")
    key = jax.random.key(0)
    training = _call(lambda: jax.eval_shape(lambda k: space.batch(split, 0, k), key), "batch")
    _same_forms("batch", "a batch to train on", first, training)
    return first


def _support(space, architecture, params, gradients):
    """Whether the loss depends on what is in the mask, and on nothing else."""
    masks = jax.tree.leaves(jax.tree.broadcast(space.mask(architecture), params))
    depends = jax.tree.map(lambda *gs: np.any([np.asarray(g) != 0 for g in gs], 0), *gradients)
    for (path, used), mask in zip(_leaves(depends), masks, strict=True):
        mask = np.asarray(mask).reshape((1,) * (used.ndim - np.ndim(mask)) + np.shape(mask))
        if (used & ~mask).any():
            raise _Fault(
                f"mask: the loss depends on weights of params{path} that are not in the mask"
            )
        shared = tuple(i for i in range(used.ndim) if mask.shape[i] == 1)
        if (mask & ~used.any(shared, keepdims=True)).any():
            raise _Fault(
                f"mask: params{path} has weights in the mask that the loss does not depend on"
            )


def _stored(space, architectures):
    """Whether what is stored is read as it was."""
    if not hasattr(space, "to_json"):
        return
    for architecture in architectures:
        stored = _call(space.to_json, "to_json", architecture)
        text = _call(json.dumps, "to_json", stored)
        read = _call(space.from_json, "from_json", json.loads(text) | {"beside": 0.5})
        if _forms(read) != _forms(architecture) or not _close(read, architecture):
            raise _Fault(f"from_json: does not give the architecture that to_json stored as {text}")


def _drawn(space, architectures):
    """Whether the graphs can be drawn."""
    if not hasattr(space, "graphs"):
        return
    for name, graph in _call(space.graphs, "graphs", architectures[-1]).items():
        for node, attributes in graph.nodes(data=True):
            if missing := {"label", "kind"} - set(attributes):
                raise _Fault(f"graphs: node {node!r} of {name!r} has no {' and no '.join(missing)}")


def _counted(space, architectures, params):
    """Whether the number of parameters is that of the mask."""
    if not hasattr(space, "num_parameters"):
        return
    for architecture in architectures:
        masks = jax.tree.leaves(jax.tree.broadcast(space.mask(architecture), params))
        sizes = [
            int(np.broadcast_to(mask, leaf.shape).sum())
            for mask, leaf in zip(masks, jax.tree.leaves(params), strict=True)
        ]
        found = _call(space.num_parameters, "num_parameters", architecture)
        if found != sum(sizes):
            raise _Fault(f"num_parameters: is {found}, but the mask has {sum(sizes)} weights")


def _reward(space):
    for error in (jnp.inf, jnp.nan, 1e30, 1.0):
        reward = _call(space.reward, "reward", jnp.float32(error))
        if not np.isfinite(reward):
            raise _Fault(f"reward: must be finite, whatever the error; for {error} it is {reward}")


def _call(method, name, *arguments):
    """What a method gives; what it raises is its fault."""
    try:
        return jax.block_until_ready(method(*arguments))
    except jax.errors.JAXTypeError as error:
        line = str(error).splitlines()[0]
        raise _Fault(
            f"{name}: cannot be compiled for all architectures at once, it reads a value while it "
            f"is traced: {line}"
        ) from error
    except Exception as error:
        line = (str(error).splitlines() or [""])[0]
        raise _Fault(f"{name}: {type(error).__name__}: {line}") from error


def _compiled(method):
    """The method, traced once for all architectures; True and ... are what they are."""
    constants: list[tuple[Any, list[Any]]] = []

    @jax.jit
    def arrays(architecture):
        leaves, structure = jax.tree.flatten(method(architecture))
        constants.append((structure, [None if _is_array(leaf) else leaf for leaf in leaves]))
        return [leaf for leaf in leaves if _is_array(leaf)]

    def call(architecture):
        found = iter(arrays(architecture))
        structure, leaves = constants[-1]
        return jax.tree.unflatten(structure, [next(found) if x is None else x for x in leaves])

    return call


def _is_array(leaf):
    return isinstance(leaf, jax.Array | np.ndarray)


def _prefix(name, tree, params):
    """A leaf of a prefix for each parameter."""
    try:
        return jax.tree.broadcast(tree, params)
    except ValueError as error:
        line = str(error).splitlines()[0]
        raise _Fault(f"{name}: is no prefix of the tree of parameters: {line}") from error


def _moved(params, key):
    """The parameters and a little noise, so that what starts at zero is not zero."""
    leaves, structure = jax.tree.flatten(params)
    keys = jax.random.split(key, len(leaves))
    noisy = [
        x + 0.05 * jax.random.normal(k, x.shape, x.dtype) for x, k in zip(leaves, keys, strict=True)
    ]
    return jax.tree.unflatten(structure, noisy)


def _same_forms(name, what, expected, found):
    if _forms(expected) != _forms(found):
        raise _Fault(f"{name}: {what} must have the form {_forms(expected)}, got {_forms(found)}")


def _forms(tree):
    """Names, shapes and types of the leaves."""
    named = [(path, x if hasattr(x, "dtype") else jnp.asarray(x)) for path, x in _leaves(tree)]
    return [(path, leaf.shape, leaf.dtype.name) for path, leaf in named]


def _close(a, b):
    """Whether two trees agree up to rounding."""
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return all(np.allclose(x, y, rtol=1e-3, atol=1e-5) for x, y in pairs)


def _leaves(tree):
    """Names and leaves."""
    return [(path_name(path), leaf) for path, leaf in jax.tree.leaves_with_path(tree)]
