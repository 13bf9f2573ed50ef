"""What the estimators make of a function, and whether it is right, for whoever wrote it."""

import dataclasses
import functools
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np

from wpl_jax.fisher.averaging import PerExample, check_output, checked_inputs
from wpl_jax.fisher.estimators import empirical_fisher
from wpl_jax.fisher.microbatches import bound_of, check_sizes
from wpl_jax.fisher.plan import Plan
from wpl_jax.modules import of_parameters
from wpl_jax.numbers import widen
from wpl_jax.trees import path_name

__all__ = ["Check", "Explanation", "check_fisher", "explain"]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Explanation:
    """How the squares of each parameter's gradients are computed; ``print`` it for a table.

    It is a pytree like the parameters, and what can be done with an index or a key of theirs can be
    done with it.
    """

    routes: chex.ArrayTree
    """A tree like the parameters. Each leaf is a text, the route's name, with two attributes:
    ``bytes``, what one example adds to memory for this parameter, and ``reason``, why it is not a
    cheaper route (empty where there is none)."""

    def __getitem__(self, key: Any) -> Any:
        """The route of a parameter, or a tree of routes."""
        return self.routes[key]

    def __str__(self) -> str:
        """One line a parameter."""
        rows = [
            (path_name(path), str(route), f"{route.bytes:,}", route.reason)
            for path, route in jax.tree.leaves_with_path(self.routes)
        ]
        rows.insert(0, ("parameter", "route", "bytes per example", "why not a cheaper route"))
        widths = [max(len(row[column]) for row in rows) for column in range(3)]
        lines = [
            f"{path:<{widths[0]}}  {route:<{widths[1]}}  {size:>{widths[2]}}  {reason}".rstrip()
            for path, route, size, reason in rows
        ]
        return "\n".join(lines)


def explain(
    fn: PerExample, params: chex.ArrayTree, batch: chex.ArrayTree, max_bytes: int | None = None
) -> Explanation:
    """How the estimators compute the squares of each parameter's gradients.

    Args:
      fn: the ``nll`` or the ``logits`` that an estimator is given.
      params: the parameters, arrays or their shapes.
      batch: a batch, arrays or their shapes.
      max_bytes: as the estimator is given.

    Returns:
      An :class:`Explanation`: for each parameter the route, one of those that
      :mod:`wpl_jax.fisher.plan` describes, with the number of positions at which an example uses
      the parameter, or "no gradient"; the memory that it takes; and for per-example gradients which
      operations use the parameter, so that it is not a cheaper one.

    Raises:
      ValueError, TypeError: as :func:`empirical_fisher`.

    Example:
      >>> import jax.numpy as jnp, wpl_jax
      >>> nll = lambda params, x: jnp.sum(params["scale"] * jnp.tanh(x @ params["w"]))
      >>> params = {"w": jnp.ones((3, 2)), "scale": jnp.ones(())}
      >>> print(wpl_jax.explain(nll, params, jnp.ones((8, 3))))
      parameter  route                  bytes per example  why not a cheaper route
      ['scale']  per-example gradients                  4  used by mul
      ['w']      squared operands                      20
      >>> wpl_jax.explain(nll, params, jnp.ones((8, 35, 3)))["w"]  # 8 sequences
      'per-example products of 35 positions'
    """
    of_parts, rest, params = of_parameters("fn", fn, params)
    params, batch = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), checked_inputs(params, batch)
    )
    check = functools.partial(check_output, "fn", None)
    fn = functools.partial(of_parts, rest)
    check_sizes(None, max_bytes)
    bound = bound_of(max_bytes).half()
    return Explanation(Plan.of(fn, params, batch, bound.on_cpu, check).routes())


@dataclasses.dataclass(frozen=True)
class Check:
    """What :func:`check_fisher` found; ``print`` it for the parameters that differ, if any do."""

    errors: dict[str, float]
    """By the path of a parameter: the largest difference between entries, relative to the largest
    entry, or to 1e-6 of the largest of all parameters where that is more."""
    tolerance: float
    """What counts as equal."""

    @property
    def passed(self) -> bool:
        """Whether all parameters agree."""
        return not self._worse()

    def _worse(self):
        return {path: e for path, e in self.errors.items() if not e <= self.tolerance}

    def __str__(self) -> str:
        """Which parameters differ, and by how much."""
        worse = self._worse()
        if not worse:
            worst = max(self.errors.values(), default=0.0)
            return (
                f"all {len(self.errors)} parameters agree with vmap(grad), to {worst:.1e} of the "
                "largest entry"
            )
        lines = [
            f"{path} differs by {error:.1e} of its largest entry" for path, error in worse.items()
        ]
        return "\n".join(lines)


def check_fisher(
    nll: PerExample,
    params: chex.ArrayTree,
    batch: chex.ArrayTree,
    *,
    examples: int = 4,
    tolerance: float | None = None,
    **options: Any,
) -> Check:
    """Compare :func:`empirical_fisher` with ``vmap(grad)`` on a few examples of your own loss.

    ``F`` is computed once by the library, and once as ``mean(vmap(grad(nll))**2)``, which is slow,
    takes the memory of ``examples`` gradients and needs no trust. They differ by rounding.

    Args:
      nll: as for :func:`empirical_fisher`.
      params: the parameters.
      batch: arrays with a leading axis of examples, of which the first few are taken.
      examples: how many.
      tolerance: what counts as equal, relative to the largest entry of a parameter; by default 1e-4
        where parameters and data are in float32 or wider, and 0.05 where either is narrower.
      **options: what the estimator is given, ``microbatch_size`` or ``max_bytes``.

    Returns:
      A :class:`Check`: whether they agree (``passed``), and each parameter's difference.

    Raises:
      ValueError, TypeError: as :func:`empirical_fisher`, and if ``examples < 1``.

    Example:
      >>> import jax.numpy as jnp, wpl_jax
      >>> nll = lambda params, x: jnp.sum(jnp.tanh(x @ params["w"]))
      >>> check = wpl_jax.check_fisher(nll, {"w": jnp.ones((3, 2))}, jnp.ones((8, 3)))
      >>> check.passed
      True
    """
    if examples < 1:
        raise ValueError(f"examples must be at least 1, got {examples}")
    of_parts, rest, params = of_parameters("nll", nll, params)
    nll = functools.partial(of_parts, rest)
    params, batch = checked_inputs(params, batch)
    few = jax.tree.map(lambda x: x[:examples], batch)

    def wanted(params, batch):
        grads = jax.vmap(jax.grad(nll), (None, 0))(params, batch)
        return jax.tree.map(lambda g: jnp.square(widen(g)).mean(0), grads)

    found = jax.jit(empirical_fisher(nll, **options))(params, few)
    reference = jax.jit(wanted)(params, few)
    if tolerance is None:
        dtypes = [leaf.dtype for leaf in jax.tree.leaves((params, few))]
        narrow = any(jnp.issubdtype(d, jnp.floating) and jnp.finfo(d).bits < 32 for d in dtypes)
        tolerance = 0.05 if narrow else 1e-4
    # What is 0 but for rounding, such as the bias of an attention's keys, is so on another scale.
    floor = 1e-6 * max((_largest(leaf) for leaf in jax.tree.leaves(reference)), default=0.0)
    pairs = zip(jax.tree.leaves_with_path(found), jax.tree.leaves(reference), strict=True)
    errors = {path_name(path): _error(a, b, floor) for (path, a), b in pairs}
    return Check(errors, tolerance)


def _error(found, reference, floor):
    found, reference = np.asarray(found, np.float64), np.asarray(reference, np.float64)
    unlike = np.isnan(found) != np.isnan(reference)
    infinite = np.isinf(found) | np.isinf(reference)
    if unlike.any() or (infinite & (found != reference)).any():
        return float("inf")
    finite = np.isfinite(found) & np.isfinite(reference)
    difference = np.abs(found[finite] - reference[finite])
    scale = max(_largest(reference[finite]), floor)
    return float(difference.max() / scale) if difference.size and scale else 0.0


def _largest(x):
    x = np.asarray(x, np.float64)
    return float(x[np.isfinite(x)].max(initial=0.0))
