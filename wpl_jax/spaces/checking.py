"""Whether a search space keeps what the search relies on: what is wrong, and in which method."""

import functools
import json
import operator
from collections.abc import Callable
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt

from wpl_jax.spaces import rows as own_rows
from wpl_jax.spaces.parameters import num_parameters
from wpl_jax.spaces.protocol import Space
from wpl_jax.trees import path_name

__all__ = ["check"]

_ARCHITECTURES = 4
_DRAWS = 3  # of parameters, at least, in which no other weight than the mask's may have a gradient
_MORE_DRAWS = 30  # at most, in one of which each weight of the mask must have one
_METHODS = [name for name in vars(Space) if not name.startswith("_")]


class _Fault(Exception):
    """What is wrong with a method, which begins the message."""


def check(
    space: Space,
    split: chex.ArrayTree | None = None,
    actions: npt.ArrayLike | None = None,
) -> None:
    """Check a search space of your own, on random architectures and parameters.

    A mask that is wrong protects the wrong weights, and nothing else fails. So this checks that

    - every method can be compiled once for all architectures: what it returns has shapes, types
      and a structure that do not depend on the architecture;
    - ``mask`` and ``rows`` fit the parameters of ``init``, and no weight of the mask is outside of
      the rows;
    - with ``split``: the loss depends on the weights of the mask and on no others; an architecture
      on its own rows has the loss, score and gradient that it has on all parameters; ``batch``
      goes around in ``num_batches`` steps; the carry keeps its shapes, in training too;
    - rewards are finite, whatever the errors;
    - where the space has ``to_json``, ``from_json``, ``graphs`` or ``num_parameters`` (see
      :class:`wpl_jax.spaces.StoredSpace`), or ``parametric``, ``distinct`` or ``log_probs``, which
      some samplers and methods read, they agree with the rest.

    Args:
      space: the space.
      split: some of its data, as its ``batch`` takes them. Without, the loss is not looked at.
        All of its first batch should matter: no loss depends on the weights of a pixel that is
        always zero.
      actions: of the architectures to look at, int [n, decisions]; some at random if not given.
        Name some in a space where a part of an architecture may lead nowhere: the loss does not
        depend on the weights of such a part, though they are in the mask.

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
    if missing := [name for name in _METHODS if not hasattr(type(space), name)]:
        raise ValueError("\n".join(f"{name}: is not defined" for name in missing))
    faults: list[str] = []

    def passes(examine: Callable[..., Any], *arguments: Any) -> Any:
        try:
            return examine(space, *arguments)
        except _Fault as fault:
            faults.append(str(fault))
            return None

    decisions = passes(_decisions)
    params = passes(_params)
    if decisions is not None and params is not None:
        chosen = _random_actions(decisions) if actions is None else jnp.asarray(actions, jnp.int32)
        architectures = passes(_architectures, chosen)
        if architectures is not None:
            masks = passes(_masks, architectures, params)
            if split is not None and masks is not None:
                passes(_learning, architectures, masks, params, split)
                passes(_predicted, architectures, params, split)
            if masks is not None:
                passes(_counted, architectures)
            passes(_stored, architectures)
            passes(_drawn, architectures)
        passes(_offered)
    passes(_reward)
    if faults:
        raise ValueError("\n".join(faults))


def _decisions(space):
    """How many choices there are in each, int [decisions]."""
    decisions = _call(lambda: space.decisions, "decisions")
    numbers = np.asarray(decisions)
    if numbers.ndim != 1 or not numbers.size or numbers.dtype.kind != "i" or numbers.min() < 1:
        raise _Fault(f"decisions: must be a tuple of whole numbers of at least 1, got {decisions}")
    return numbers


def _random_actions(decisions):
    """The first, the last, and random architectures, int32 [architectures, decisions]."""
    rng = np.random.default_rng(0)
    draws = [np.zeros_like(decisions), decisions - 1]
    draws += [rng.integers(0, decisions) for _ in range(_ARCHITECTURES - len(draws))]
    return jnp.array(draws, jnp.int32)


def _params(space):
    """The shared parameters."""
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


def _masks(space, architectures, params):
    """The masks of the architectures, which fit the parameters and the rows, as these do."""
    mask_of, rows_of = _compiled(space.mask), _compiled(space.rows)
    masks = []
    for architecture in architectures:
        mask = _prefix("mask", _call(mask_of, "mask", architecture), params)
        rows = _prefix("rows", _call(rows_of, "rows", architecture), params)
        for (path, leaf), m, r in zip(
            _leaves(params), jax.tree.leaves(mask), jax.tree.leaves(rows), strict=True
        ):
            _fit_mask(path, leaf, m)
            if r is not ...:
                _fit_rows(path, leaf, np.asarray(m), np.asarray(r))
        masks.append(mask)
    return masks


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
    flat = rows.reshape(-1, rows.shape[-1])
    if flat.size and not (flat.min() >= 0 and flat.max() < leaf.shape[axis]):
        raise _Fault(
            f"rows: of params{path} must be from 0 to {leaf.shape[axis] - 1}, got "
            f"{flat.min()} to {flat.max()}"
        )
    if any(len(set(line)) < len(line) for line in flat.tolist()):
        raise _Fault(f"rows: of params{path} have a position twice")
    if mask.shape[: rows.ndim] != leaf.shape[: rows.ndim]:
        shape = f"of shape {mask.shape}" if mask.ndim else f"{mask}"
        raise _Fault(
            f"mask: of params{path} must have the parameter's lengths {leaf.shape[: rows.ndim]} "
            f"along the axes that rows picks from, but is {shape}"
        )
    outside = np.ones(leaf.shape[: rows.ndim], bool)
    np.put_along_axis(outside, rows, False, axis)
    if mask[outside].any():
        raise _Fault(f"rows: the mask of params{path} has weights outside of the rows")


def _learning(space, architectures, masks, params, split):
    """Whether the loss and the score use what mask and rows say, and batches are what they are."""
    batch = _batches(space, split)
    key = jax.random.key(0)
    training_batch = _call(jax.eval_shape, "batch", space.batch, split, jnp.int32(0), key)
    start = _call(jax.jit(space.start), "start", batch)

    def loss(params, architecture, batch=batch, key=None):
        return space.loss(params, architecture, batch, start, key)

    for data in ((), (training_batch, key)):
        value, carry = _call(jax.eval_shape, "loss", loss, params, architectures[0], *data)
        if value.shape != ():
            raise _Fault(f"loss: must be one number, got shape {value.shape}")
        _same_forms("loss", "the carry", start, carry)

    gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))
    score = jax.jit(lambda params, a: space.score(params, a, batch, start))
    error = jax.jit(space.error)
    draw = functools.cache(jax.jit(functools.partial(_drawn_params, space)))

    @jax.jit
    def take(tree, architecture):
        return own_rows.take(tree, jax.tree.broadcast(space.rows(architecture), tree))

    for architecture, mask in zip(architectures, masks, strict=True):
        (value, _), grads = _call(gradient, "loss", draw(0), architecture)
        if not np.isfinite(value):
            raise _Fault(f"loss: is {value} for parameters near those of init")
        if not all(np.isfinite(g).all() for g in jax.tree.leaves(grads)):
            raise _Fault("loss: its gradient is not finite for parameters near those of init")
        gradients = (_call(gradient, "loss", draw(n), architecture)[1] for n in range(_MORE_DRAWS))
        _support(mask, gradients)

        measured = _call(score, "score", draw(0), architecture)
        (total, count), carry = measured
        if np.shape(total) != () or np.shape(count) != ():
            raise _Fault(
                "score: must be a sum and a count, one number each, got shapes "
                f"{np.shape(total)} and {np.shape(count)}"
            )
        _same_forms("score", "the carry", start, carry)
        _call(error, "error", total / count)

        own = take(draw(0), architecture)
        expected = value, take(grads, architecture)
        (own_value, _), own_grads = _call(gradient, "loss", own, architecture)
        if not _close((own_value, own_grads), expected):
            raise _Fault("loss: is not the same on an architecture's own rows as on all parameters")
        if not _close(_call(score, "score", own, architecture)[0], (total, count)):
            raise _Fault(
                "score: is not the same on an architecture's own rows as on all parameters"
            )


def _batches(space, split):
    """The first batch of a split, once batches are known to go around."""
    counted: list[int] = []
    jax.eval_shape(lambda split: counted.append(_number_of_batches(space, split)), split)
    (count,) = counted
    batch_of = jax.jit(lambda split, step: space.batch(split, step, None))

    def batch(step):
        return _call(batch_of, "batch", split, step)

    first = batch(0)
    if not _close(first, batch(count)):
        raise _Fault(f"batch: number {count} is not number 0 again, though there are {count}")
    if count > 1 and not _close(first, batch(1)):  # otherwise all may be alike
        for fewer in range(2, count):
            if (
                count % fewer == 0
                and _close(first, batch(fewer))
                and _close(batch(1), batch(fewer + 1))
            ):
                raise _Fault(f"num_batches: is {count}, but batches come again after {fewer}")
        if count > 2 and _close(batch(count - 2), batch(count - 1)):
            raise _Fault(f"num_batches: is {count}, but the last batch is the one before it")

    return first


def _number_of_batches(space, split):
    """Of a split that is traced: its shapes decide."""
    count = _call(lambda: operator.index(space.num_batches(split)), "num_batches")
    if count < 1:
        raise _Fault(f"num_batches: must be at least 1, got {count}")
    return count


def _support(masks, gradients):
    """Whether the loss depends on what is in the mask, and on nothing else."""
    depends: Any = False
    for n, gradient in enumerate(gradients, start=1):
        depends = jax.tree.map(
            lambda g, d: d | (np.isfinite(g) & (g != 0)),
            jax.device_get(gradient),
            jax.tree.broadcast(depends, gradient),
        )
        idle = None
        for (path, used), mask in zip(_leaves(depends), jax.tree.leaves(masks), strict=True):
            mask = np.asarray(mask).reshape((1,) * (used.ndim - np.ndim(mask)) + np.shape(mask))
            if (used & ~mask).any():
                raise _Fault(
                    f"mask: the loss depends on weights of params{path} that are not in the mask"
                )
            shared = tuple(i for i in range(used.ndim) if mask.shape[i] == 1)
            if (mask & ~used.any(shared, keepdims=True)).any():
                idle = path
        if idle is None and n >= _DRAWS:
            return
    raise _Fault(f"mask: params{idle} has weights in the mask that the loss does not depend on")


def _stored(space, architectures):
    """Whether what is stored is read as it was."""
    if not hasattr(space, "to_json"):
        return
    for architecture in architectures:
        stored = _call(space.to_json, "to_json", architecture)
        text = _call(json.dumps, "to_json", stored)
        if not isinstance(stored, dict):
            raise _Fault(f"to_json: must give a dict, got {text}")
        given = json.loads(text) | {"beside": 0.5}
        read = _call(lambda given: space.from_json(given), "from_json", given)
        if _forms(read) != _forms(architecture) or not _close(read, architecture):
            raise _Fault(f"from_json: does not give the architecture that to_json stored as {text}")


def _drawn(space, architectures):
    """Whether the graphs can be drawn."""
    if not hasattr(space, "graphs"):
        return
    graphs = _call(space.graphs, "graphs", architectures[-1])
    for name, graph in _call(lambda: list(graphs.items()), "graphs"):
        for node, attributes in graph.nodes(data=True):
            if missing := {"label", "kind"} - set(attributes):
                raise _Fault(f"graphs: node {node!r} of {name!r} has no {' and no '.join(missing)}")


def _counted(space, architectures):
    """Whether the number of parameters is that of the mask."""
    if not hasattr(space, "num_parameters"):
        return
    for architecture in architectures:
        found = _call(space.num_parameters, "num_parameters", architecture)
        used = num_parameters(space, architecture)
        if found != used:
            raise _Fault(f"num_parameters: is {found}, but the mask has {used} weights")


def _offered(space):
    """Whether what samplers read of decisions fits them."""
    decisions = tuple(map(int, space.decisions))
    if hasattr(space, "parametric"):
        choices = _call(lambda: [list(map(bool, c)) for c in space.parametric], "parametric")
        if (found := tuple(map(len, choices))) != decisions:
            raise _Fault(f"parametric: has choices {found}, but decisions are {decisions}")
    if hasattr(space, "distinct"):
        listed = np.asarray(_call(space.distinct, "distinct"))
        if listed.ndim != 2 or listed.shape[1] != len(decisions) or listed.dtype.kind != "i":
            raise _Fault(
                f"distinct: must be whole numbers of shape (n, {len(decisions)}), got "
                f"{listed.dtype} of shape {listed.shape}"
            )
        if not len(listed) or not ((listed >= 0) & (listed < np.array([decisions]))).all():
            raise _Fault("distinct: must list one or more architectures of the space")
        if len(np.unique(listed, axis=0)) < len(listed):
            raise _Fault("distinct: lists an architecture twice")


def _predicted(space, architectures, params, split):
    """Whether the log-probabilities are some."""
    if not hasattr(space, "log_probs"):
        return
    batch = space.batch(split, 0, None)
    start = space.start(batch)
    predict = jax.jit(lambda a: space.log_probs(params, a, batch, start, None))
    for architecture in architectures:
        log_probs, carry = _call(predict, "log_probs", architecture)
        _same_forms("log_probs", "the carry", start, carry)
        if np.ndim(log_probs) != 2:
            raise _Fault(f"log_probs: must be [examples, classes], got {np.shape(log_probs)}")
        padding = np.all(np.asarray(log_probs) == 0, axis=1)
        sums = np.exp(np.asarray(log_probs, np.float64)).sum(1)
        if not np.allclose(sums[~padding], 1, atol=1e-3):
            raise _Fault("log_probs: probabilities of an example do not add up to 1")


def _reward(space):
    errors = np.array([np.inf, np.nan, 1e30, 1.0], np.float32)
    with jax.debug_nans(False):
        rewards = _call(jax.jit(space.reward), "reward", errors)
    if np.shape(rewards) != errors.shape:
        raise _Fault(
            f"reward: must be a number for each error, of shape {errors.shape}, got "
            f"{np.shape(rewards)}"
        )
    for error, reward in zip(errors, rewards, strict=True):
        if not np.isfinite(reward):
            raise _Fault(f"reward: must be finite, whatever the error; for {error} it is {reward}")


def _call(method, name, *arguments):
    """What a method gives; what it raises is its fault."""
    try:
        return jax.block_until_ready(method(*arguments))
    except jax.errors.JAXTypeError as error:
        line = str(error).splitlines()[0]
        raise _Fault(
            f"{name}: cannot be compiled, it must not read, or keep, the value of an array while "
            f"it is traced: {line}"
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


def _drawn_params(space, n):
    """Parameters as ``init`` draws them, with noise, so that what starts at zero is not zero."""
    init_key, key = jax.random.split(jax.random.key(n))
    leaves, structure = jax.tree.flatten(space.init(init_key))
    keys, size = jax.random.split(key, len(leaves)), 0.05 * 2.0 ** (n % 7)
    noisy = [
        (x + size * jax.random.normal(k, x.shape)).astype(x.dtype)
        for x, k in zip(leaves, keys, strict=True)
    ]
    return jax.tree.unflatten(structure, noisy)


def _same_forms(name, what, expected, found):
    if _forms(expected) != _forms(found):
        raise _Fault(f"{name}: {what} must have the form {_forms(expected)}, got {_forms(found)}")


def _forms(tree):
    """Names, shapes and types of the leaves."""
    return [
        (path, np.shape(leaf), jax.dtypes.canonicalize_dtype(jnp.result_type(leaf)).name)
        for path, leaf in _leaves(tree)
    ]


def _close(a, b):
    """Whether two trees agree, numbers with a point up to rounding."""
    pairs = [
        tuple(map(np.asarray, pair)) for pair in zip(*map(jax.tree.leaves, (a, b)), strict=True)
    ]
    exact = [pair for pair in pairs if not jnp.issubdtype(pair[0].dtype, jnp.inexact)]
    rounded = [pair for pair in pairs if jnp.issubdtype(pair[0].dtype, jnp.inexact)]
    coarsest = max((float(jnp.finfo(x.dtype).eps) for x, _ in rounded), default=0)
    largest = max((float(np.abs(y).max(initial=0)) for _, y in rounded), default=0)
    tolerance = 3 * coarsest**0.5  # 1e-3 in float32
    return all(np.array_equal(x, y) for x, y in exact) and all(
        np.allclose(x.astype(float), y.astype(float), tolerance, tolerance * largest / 100)
        for x, y in rounded
    )


def _leaves(tree):
    """Names and leaves."""
    return [(path_name(path), leaf) for path, leaf in jax.tree.leaves_with_path(tree)]
