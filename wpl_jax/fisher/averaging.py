"""Means over the examples of a batch: what every statistic of single examples shares.

Whoever averages one (a square of gradients, or their absolute value) writes ``estimate(fn, params,
batch, weights)`` for parameters and examples that are arrays in one place, and calls :func:`mean`
with what it adds up. :func:`estimator` makes of it the function that users call.
"""

import functools
import sys
from collections.abc import Callable
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np

from wpl_jax.fisher.microbatches import on_platform, summed
from wpl_jax.modules import of_parameters
from wpl_jax.numbers import floating
from wpl_jax.trees import nodes_of, path_name
from wpl_jax.varying import varying_as

PerExample = Callable[[chex.ArrayTree, chex.ArrayTree], jax.Array]
Estimator = Callable[..., chex.ArrayTree]


def estimator(
    name: str, fn: Callable, estimate: Callable[..., Any], batch_as_example: bool = False
) -> Estimator:
    """``fisher(params, batch, weights=None, *others)``, wherever the arrays lie.

    Args:
      name: what to call ``fn`` in an error.
      fn: a function of parameters, or of an NNX model, and of one example.
      estimate: makes of a function of parameters, these, a batch, weights and others the result.
      batch_as_example: whether one example alone may be a whole batch.

    Raises:
      TypeError: if ``fn`` is no function.
    """
    if not callable(fn):
        raise TypeError(f"{name} must be a function of parameters and one example, got {fn!r}")

    def fisher(params, batch, weights=None, *others):
        whole = batch_as_example and num_examples(batch) == 1
        of_parts, rest, params = of_parameters(name, fn, params, whole)
        params, batch = checked_inputs(params, batch)
        if weights is not None:
            weights = checked_weights(weights, num_examples(batch))
        # In a shard_map the Fisher is that of each device's own examples.
        params = jax.tree.map(lambda x: varying_as(x, batch), params)

        def of_rest(rest, *args):
            return estimate(functools.partial(of_parts, rest), *args)

        meshes = [_sharding(x).mesh for x in jax.tree.leaves((params, batch))]
        explicit = [mesh for mesh in meshes if mesh.explicit_axes]
        if not explicit:
            return of_rest(rest, params, batch, weights, *others)
        # Examples are cut into microbatches and summed over: where these lie is left to XLA.
        everywhere = jax.sharding.NamedSharding(explicit[0], jax.sharding.PartitionSpec())
        shardings = jax.tree.map(
            lambda x: everywhere if _sharding(x).mesh.empty else _sharding(x), params
        )
        automatic = jax.sharding.auto_axes(
            of_rest, axes=explicit[0].explicit_axes, out_sharding=shardings
        )
        return automatic(rest, params, batch, weights, *others)

    return fisher


def _sharding(x):
    return jax.typeof(x).sharding


def mean(
    total: Callable[[Any, jax.Array | None], Any],
    batch: Any,
    weights: jax.Array | None,
    on_cpu: int,
    elsewhere: int,
) -> Any:
    """Divide ``total(batch, weights)``, computed in microbatches, by the sum of the weights.

    Args:
      total: the sum over some examples; those of weight 0 must not count.
      batch: all examples.
      weights: of shape ``(n,)``, or ``None`` for ones.
      on_cpu: examples in a microbatch on a CPU.
      elsewhere: and on other devices.
    """
    n = num_examples(batch)
    if weights is not None:
        total = _without_padding(total, batch, weights)

    def in_microbatches(size, batch, weights):
        return summed(total, batch, weights, size)

    result = on_platform(in_microbatches, on_cpu, elsewhere, batch, weights)
    count = jnp.float32(n) if weights is None else jnp.sum(weights, dtype=float)
    return jax.tree.map(lambda r: r / count.astype(r.dtype), result)


def checked_weights(weights: Any, n: int) -> jax.Array:
    """Weights of ``n`` examples as an array, refused where they cannot be."""
    if np.shape(weights) != (n,):
        raise ValueError(
            f"weights must have shape ({n},), one weight an example, got {np.shape(weights)}"
        )
    weights = weights if isinstance(weights, jax.Array) else np.asarray(weights)
    if not any(jnp.issubdtype(weights.dtype, k) for k in (jnp.floating, jnp.integer, jnp.bool_)):
        raise TypeError(f"weights must be real numbers, got an array of {weights.dtype}")
    weights = floating(weights)
    if not isinstance(weights, jax.core.Tracer):
        known = np.asarray(weights)
        wrong = known[~(known >= 0)]
        if wrong.size:
            raise ValueError(
                f"weights must not be negative or NaN, got {float(wrong[0])}: they say how often "
                "an example counts, and 0 is for padding"
            )
    return jnp.asarray(weights)


def _without_padding(total, batch, weights):
    """``total``, with a real example in the place of every one of weight 0, whatever it held."""
    real = jnp.argmax(weights != 0)
    example = jax.tree.map(lambda x: x[real], batch)

    def of_real(batch, weights):
        def filled(x, one):
            return jnp.where(jnp.reshape(weights != 0, (-1, *[1] * one.ndim)), x, one)

        return total(jax.tree.map(filled, batch, example), weights)

    return of_real


def num_examples(batch: chex.ArrayTree) -> int:
    """How many examples a batch has, which every leaf must agree on."""
    shapes = [np.shape(leaf) for leaf in jax.tree.leaves(batch)]
    sizes = {shape[0] if shape else 0 for shape in shapes}
    if len(sizes) != 1 or 0 in sizes:
        raise ValueError(
            "every leaf of batch must have the same leading axis of one or more examples, "
            f"got leaves of shapes {shapes}"
        )
    return sizes.pop()


def checked_inputs(params: chex.ArrayTree, batch: chex.ArrayTree) -> tuple[Any, Any]:
    """Parameters, which must be floating-point, and a batch, as arrays."""
    _refuse_sparse(batch)
    batch = jax.tree.map_with_path(_of_batch, batch)
    for path, leaf in jax.tree.leaves_with_path(params):
        if callable(leaf):
            raise TypeError(
                f"params must be arrays, got a {type(leaf).__name__} at {path_name(path)}: close "
                "over what is not trained (Equinox: params, static = eqx.partition(model, "
                "eqx.is_inexact_array), and eqx.combine(params, static) inside)"
            )
    params = jax.tree.map(_as_array, params)
    for path, array in jax.tree.leaves_with_path(params):
        if not jnp.issubdtype(array.dtype, jnp.floating):
            raise TypeError(
                f"params must be floating-point to have gradients, got {array.dtype} at "
                f"{path_name(path)}: close over such arrays instead"
            )
    num_examples(batch)
    return params, batch


def _of_batch(path, leaf):
    try:
        return _as_array(leaf)
    except TypeError as error:
        raise TypeError(
            f"batch must be of arrays of numbers, got {leaf!r:.80} at {path_name(path)}"
        ) from error


def _refuse_sparse(batch):
    sparse = sys.modules.get("jax.experimental.sparse")
    if sparse is None:
        return

    for path, node in nodes_of(batch, sparse.JAXSparse):
        raise TypeError(
            f"batch holds a {type(node).__name__} at {path_name(path)}, which has no leading "
            "axis of examples to be cut along: put its data and indices into the batch, and "
            "build the matrix of one example in the function"
        )


def check_output(name: str, ndim: int | None, out: Any) -> None:
    """Raise an error if this is not the shape of what a function should make of one example."""
    if not hasattr(out, "ndim"):
        raise TypeError(
            f"{name}(params, example) must return one array, got a {type(out).__name__}; leave "
            f"auxiliary results out: lambda params, example: {name}(params, example)[0]"
        )
    if not jnp.issubdtype(out.dtype, jnp.floating):
        what = "its real part" if jnp.iscomplexobj(out) else "a loss or logits, not classes"
        raise TypeError(
            f"{name}(params, example) must be real and floating-point to have gradients, got "
            f"{out.dtype}: return {what}"
        )
    if ndim is not None and out.ndim != ndim:
        kind = "a scalar" if ndim == 0 else "one-dimensional, (classes,),"
        raise ValueError(
            f"{name}(params, example) must be {kind} for one example, got shape {out.shape}; "
            "it is called without the batch axis"
        )
    if ndim and not out.size:
        raise ValueError(f"{name}(params, example) must be of one class or more, got {out.shape}")


def _as_array(x):
    of_jax = hasattr(x, "dtype") and hasattr(x, "shape") and not isinstance(x, np.ndarray)
    return x if of_jax else jnp.asarray(x)
