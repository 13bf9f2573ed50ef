r"""Merge models that were fine-tuned separately into one, weighted by their Fishers.

Let :math:`\theta_i` be the trained parameters of model i and :math:`F_i` its diagonal Fisher there.
Near :math:`\theta_i` the model's negative log-likelihood rises by about
:math:`\frac12 \sum F_i (\theta - \theta_i)^2` (see :mod:`wpl_jax.fisher`). The sum of this over all
models, with weights :math:`w_i`, is smallest at the weighted mean, entry by entry:

.. math::
    \theta = \frac{\sum_i w_i F_i \theta_i}{\sum_i w_i F_i}

If all Fishers are equal this is the plain mean. It is also the anchor that
``consolidate(..., decay=1.0, anchor="mean")`` has when it has been called for each model.
"""

import functools
from collections.abc import Iterable, Mapping, Sequence

import chex
import jax
import jax.numpy as jnp

from wpl_jax.modules import parameters
from wpl_jax.numbers import capped, floating, widen, widened
from wpl_jax.trees import align, align_scalars, is_hidden, leaves_by_path, path_name, to_device

__all__ = ["merge"]


def merge(
    params: Sequence[chex.ArrayTree],
    fishers: Sequence[chex.ArrayTree] | None = None,
    weights: Sequence[jax.typing.ArrayLike] | jax.Array | None = None,
) -> chex.ArrayTree:
    """Merge models into one: ``sum_i w_i F_i params_i / sum_i w_i F_i``, entry by entry.

    This is Fisher-weighted averaging: each parameter is mostly that of the model which depends on
    it most. The models must have been fine-tuned from the same parameters. In networks that were
    trained from different initial parameters, the same unit means different things.

    It is computed in float32, or wider if parameters or Fishers are. Where the Fishers of all
    models are 0 the result is ``sum_i w_i params_i / sum_i w_i``. If small Fishers should count
    more equally, raise them first: ``jax.tree.map(lambda f: jnp.maximum(f, 1e-6), fisher)``.

    Args:
      params: the parameters of each model, trees with the same paths and shapes.
      fishers: for each model a tree like its parameters, finite and not negative. (Under ``jit``
        values cannot be checked; there, entries that are negative or not finite count as 0.) As in
        :func:`~wpl_jax.consolidate`, what is absent or None counts as 0, and a scalar stands for
        all entries below its place. ``None`` in place of the list gives the plain mean.
      weights: for each model a number, finite and not negative; by default 1. If Fishers are means
        over examples, the numbers of examples are a natural choice.

    Returns:
      A tree like the first model's parameters, in their dtypes. For ``nnx.Module``s it is a state,
      to be used with ``nnx.update(model, merged)``.

    Raises:
      ValueError: if there are no models, or not as many Fishers or weights as models; if trees
        differ; or if Fishers or weights are negative or not finite. The message names the first
        path.
      TypeError: if a parameter is neither floating-point nor complex, or if the models, Fishers or
        weights are no sequence.

    Example:
      >>> import jax.numpy as jnp, wpl_jax
      >>> params = [{"w": jnp.array([0.0, 0.0])}, {"w": jnp.array([1.0, 1.0])}]
      >>> fishers = [{"w": jnp.array([1.0, 0.0])}, {"w": jnp.array([3.0, 0.0])}]
      >>> print(wpl_jax.merge(params, fishers)["w"])  # of the second, the plain mean
      [0.75 0.5 ]

    References:
      Matena and Raffel, `Merging Models with Fisher-Weighted Averaging
      <https://arxiv.org/abs/2111.09832>`_, 2022
    """
    for name, given in {"params": params, "fishers": fishers, "weights": weights}.items():
        if isinstance(given, Mapping | str) or not (given is None or isinstance(given, Iterable)):
            kind = type(given).__name__
            raise TypeError(f"{name} must be a sequence, with one for each model, got a {kind}")
    params = [parameters(tree) for tree in params]
    if not params:
        raise ValueError("params must be a sequence of at least one model's parameters, got none")
    fishers = [1.0] * len(params) if fishers is None else list(fishers)
    if len(fishers) != len(params):
        raise ValueError(
            f"fishers must be as many as the models, got {len(fishers)} for {len(params)}"
        )
    fishers = [jax.tree.map(floating, tree) for tree in fishers]
    weights = _checked_weights(weights, len(params))
    for i, (tree, fisher) in enumerate(zip(params, fishers, strict=True)):
        _check_params(f"params[{i}]", tree)
        _check_fisher(f"fishers[{i}]", fisher)
    first = {"reference": params[0], "reference_has": "params[0] has"}
    models = [align(f"params[{i}]", tree, **first) for i, tree in enumerate(params)]
    known = [align_scalars(f"fishers[{i}]", tree, **first) for i, tree in enumerate(fishers)]
    models, known = jax.tree.map(to_device, (models, known))
    merged = [
        _weighted_mean(of_models, of_fishers, weights)
        for of_models, of_fishers in zip(
            zip(*models, strict=True), zip(*known, strict=True), strict=True
        )
    ]
    return jax.tree.unflatten(jax.tree.structure(params[0]), merged)


def _weighted_mean(params, fishers, weights):
    fishers = widened(*fishers)
    # Models of weight 0 do not count, whatever they know.
    fishers = [
        jnp.where((f >= 0) & (f < jnp.inf) & (w > 0), f, 0)
        for f, w in zip(fishers, weights, strict=True)
    ]
    # Relative to the largest, no product overflows.
    largest = functools.reduce(jnp.maximum, fishers)
    known = largest > 0
    shares = [
        w * jnp.where(known, f / jnp.where(known, largest, 1), 1)
        for f, w in zip(fishers, weights, strict=True)
    ]
    total = functools.reduce(jnp.add, shares)

    def part(share, param):
        # What is not asked for may be anything, infinite for example.
        share, param = widened(share / total, param)
        return jnp.where(share > 0, share * param, 0)

    mean = functools.reduce(jnp.add, map(part, shares, params))
    return jnp.where(total > 0, mean, jnp.nan).astype(params[0].dtype)


def _checked_weights(weights, n):
    """Relative to the largest; 0 if that is too small to be computed with."""
    weights = [1.0] * n if weights is None else list(map(floating, weights))
    if len(weights) != n or any(map(jnp.ndim, weights)):
        shapes = [jnp.shape(w) for w in weights]
        raise ValueError(f"weights must be {n} numbers, one a model, got shapes {shapes}")
    if not any(isinstance(w, jax.core.Tracer) for w in weights):
        weights = [float(w) for w in weights]
        if not (all(0 <= w < float("inf") for w in weights) and any(weights)):
            raise ValueError(
                f"weights must be finite and not negative, and not all 0, got {weights}"
            )
        weights = [w / max(weights) for w in weights]
    weights = [jnp.asarray(capped(w)) for w in weights]
    weights = [jnp.where((w > 0) & (w < jnp.inf), w, 0) for w in weights]
    largest = functools.reduce(jnp.maximum, weights)
    least = float(jnp.finfo(jnp.float32).tiny)
    return [jnp.where(w / largest >= least, w / largest, 0) for w in weights]


def _check_params(name, tree):
    for path, leaf in leaves_by_path(tree).items():
        if not is_hidden(leaf) and not jnp.issubdtype(jnp.result_type(leaf), jnp.inexact):
            raise TypeError(
                f"{name} must be floating-point to have a mean, got {jnp.result_type(leaf)} at "
                f"{path_name(path)}"
            )


def _check_fisher(name, tree):
    for path, leaf in leaves_by_path(tree).items():
        if is_hidden(leaf):
            continue
        if jnp.iscomplexobj(leaf):
            raise ValueError(
                f"{name} must be real, got {jnp.result_type(leaf)} at {path_name(path)}"
            )
        if isinstance(leaf, jax.core.Tracer):
            continue
        with jax.ensure_compile_time_eval():  # within jit too, what is known can be read
            leaf = widen(jnp.asarray(leaf))
            wrong = ~((leaf >= 0) & (leaf < jnp.inf))
            if jnp.any(wrong):
                raise ValueError(
                    f"{name} must be finite and not negative, got {leaf[wrong][0]} at "
                    f"{path_name(path)}: look for overflow in the loss that it was computed from"
                )
