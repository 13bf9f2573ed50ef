"""Many models in turn: an optimiser that also computes the Fisher and moves the anchor."""

import inspect
import sys
from collections.abc import Callable
from types import CodeType, FrameType
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax

from wpl_jax.fisher import empirical_fisher
from wpl_jax.plasticity.additive import add_plasticity
from wpl_jax.plasticity.consolidation import check_consolidation, consolidated
from wpl_jax.plasticity.proximal import proximal_plasticity
from wpl_jax.plasticity.state import PlasticityState
from wpl_jax.plasticity.term import ScalarOrSchedule
from wpl_jax.trees import (
    align_mask,
    is_hidden,
    leaves_by_path,
    nodes_of,
    prefixes,
    resolve_mask,
)
from wpl_jax.varying import varying_axes

__all__ = ["weight_plasticity"]


def weight_plasticity(
    inner: optax.GradientTransformation,
    *,
    strength: ScalarOrSchedule,
    nll: Callable[[chex.ArrayTree, chex.ArrayTree], jax.Array] | None = None,
    fisher_decay: jax.typing.ArrayLike | None = None,
    max_norm: jax.typing.ArrayLike | None = None,
    learning_rate: ScalarOrSchedule | None = None,
    microbatch_size: int | None = None,
    anchor: str = "latest",
    axis_name: Any = None,
    fisher_dtype: Any = None,
    anchor_dtype: Any = None,
) -> optax.GradientTransformationExtraArgs:
    """Wrap an optimiser so that one ``update`` trains, computes the Fisher and moves the anchor.

    It trains many models in turn on one tree of shared weights, with one compiled step. Beside the
    usual arguments ``update`` takes:

    * ``mask``: the weights of the model being trained, as in :func:`add_plasticity`. Outside it a
      step changes nothing: neither the weights, nor what the inner optimiser remembers of them, nor
      ``F``. Memory that the weights of a parameter share, such as adafactor's rows and columns or
      what GaLore has projected, changes as a whole if one of these weights is inside. ``inner``
      itself is not given the mask.
    * ``consolidate``: a boolean, traced or not. Make it true in the last step of each model: after
      that step the empirical Fisher of ``batch`` at the *new* weights enters ``F``, and the anchor
      moves to them, as :func:`consolidate` does. Otherwise no Fisher is computed. (This is a
      ``lax.cond``; under a ``vmap`` over ``consolidate`` both branches run.)
    * ``batch``: the examples to compute the Fisher from, with a leading axis of examples.

    How to compose it with other transformations:

    * No transformation that changes the updates may come after it, since it takes the new weights
      to be ``optax.apply_updates(params, updates)``.
    * No wrapper around it may hide weights from ``nll``, as ``optax.masked`` and
      ``optax.partition`` do.
    * Wrappers that leave out some steps, such as ``optax.MultiSteps``, go around ``inner``. Around
      this transformation they could drop the step that consolidates, so that is refused there. The
      proximal form then acts in each of ``k`` small steps: give it ``learning_rate / k``.
    * ``optax.inject_hyperparams`` needs ``static_args=("nll", "microbatch_size")``, and the names
      of the dtypes if they are given.

    Args:
      inner: the optimiser, for example ``optax.sgd(0.1)``.
      strength: eps of eq. 8, a number or scalar array >= 0, or a schedule of the update count.
      nll: ``nll(params, example)``, the negative log-likelihood of one example.
      fisher_decay: the ``decay`` of :func:`consolidate`; the paper's ``1 - eta`` is 0.1.
      max_norm: as in :func:`consolidate`.
      learning_rate: if given, the proximal form (:func:`proximal_plasticity`) is used with it, and
        otherwise the additive form (:func:`add_plasticity`).
      microbatch_size: as in :func:`wpl_jax.empirical_fisher`.
      anchor: as in :func:`consolidate`; ``"mean"`` needs ``fisher_decay``.
      axis_name: inside ``jax.shard_map`` or ``jax.pmap``, the axes over which ``batch`` is split
        into parts of one size. The Fisher is then the mean over the parts, so that the state is the
        same on all devices.
      fisher_dtype: as in :func:`add_plasticity`.
      anchor_dtype: as in :func:`add_plasticity`.

    Returns:
      A transformation with ``update(grads, state, params, *, batch=None, consolidate=False,
      mask=None)``. Further extra arguments are passed on to ``inner``.

    Raises:
      ValueError: as the functions named above, and if ``inner`` already holds a plasticity term. In
        ``update``, if ``consolidate`` is true without ``batch`` or ``nll``, inside a wrapper that
        may leave the step out, or with a batch that is split over devices and no ``axis_name``.

    Example:
      >>> import jax, jax.numpy as jnp, optax, wpl_jax
      >>> nll = lambda params, example: 0.5 * (params["w"] @ example["x"] - example["y"]) ** 2
      >>> tx = wpl_jax.weight_plasticity(optax.sgd(0.1), nll=nll, strength=5.0, fisher_decay=0.1)
      >>> @jax.jit
      ... def step(params, opt_state, batch, last, mask):
      ...     loss = lambda params: jax.vmap(nll, (None, 0))(params, batch).mean()
      ...     updates, opt_state = tx.update(
      ...         jax.grad(loss)(params),
      ...         opt_state,
      ...         params,
      ...         batch=batch,
      ...         consolidate=last,
      ...         mask=mask,
      ...     )
      ...     return optax.apply_updates(params, updates), opt_state
      >>> params = {"w": jnp.zeros(3)}
      >>> batch = {"x": jnp.eye(3), "y": jnp.ones(3)}
      >>> mask = {"w": jnp.array([True, True, False])}  # the model in training uses two weights
      >>> params, opt_state = step(params, tx.init(params), batch, True, mask)
      >>> print(params["w"].round(3))
      [0.033 0.033 0.   ]
    """
    check_consolidation(anchor, fisher_decay, max_norm, decay_name="fisher_decay")
    estimate_fisher: Any = None if nll is None else empirical_fisher(nll, microbatch_size)
    inner = with_extra_args("inner", inner)
    proximal = learning_rate is not None
    dtypes = {"fisher_dtype": fisher_dtype, "anchor_dtype": anchor_dtype}
    if proximal:
        term = proximal_plasticity(strength, learning_rate, **dtypes)
    else:
        term = add_plasticity(strength, **dtypes)

    def init_fn(params):
        inner_state = inner.init(params)
        if nodes_of(inner_state, PlasticityState):
            raise ValueError(
                "the optimiser that weight_plasticity wraps holds a plasticity term already: "
                "pass one without, such as optax.sgd(0.1)"
            )
        return (inner_state, term.init(params)) if proximal else (term.init(params), inner_state)

    def update_fn(
        updates, state, params=None, *, batch=None, consolidate=False, mask=None, **extra_args
    ):
        if jnp.ndim(consolidate):
            raise ValueError(
                f"consolidate must be one boolean, got an array of shape {jnp.shape(consolidate)}"
            )
        known = not isinstance(consolidate, jax.core.Tracer)
        if known and not isinstance(consolidate, bool | int | np.generic | np.ndarray | jax.Array):
            raise ValueError(f"consolidate must be a boolean, got {consolidate!r}")
        asked = bool(consolidate) if known else True
        if asked:
            _refuse_to_be_skipped()
            if batch is None or estimate_fisher is None:
                missing = "batch" if batch is None else "nll"
                raise ValueError(f"consolidate needs {missing}, to compute the Fisher from")
        if params is not None:
            mask = resolve_mask(mask, params)

        old_inner, old_term = state if proximal else reversed(state)
        if proximal:
            updates, new_inner = inner.update(updates, old_inner, params, **extra_args)
            updates, new_term = term.update(updates, old_term, params, mask=mask)
        else:
            updates, new_term = term.update(updates, old_term, params, mask=mask)
            updates, new_inner = inner.update(updates, old_inner, params, **extra_args)
        if mask is not None:
            insides = align_mask(mask, params)
            updates = _keep_still(updates, params, insides)
            new_inner = _keep_memory(inner, params, insides, new_inner, old_inner)

        def moved(plasticity):
            new_params = jax.tree.map(
                lambda p, u: p if u is None else optax.apply_updates(p, u),
                params,
                updates,
                is_leaf=lambda x: x is None,
            )
            fisher = estimate_fisher(new_params, batch)
            if axis_name is not None:
                fisher = jax.lax.pmean(fisher, axis_name)
            _refuse_to_differ(fisher, new_params, plasticity)
            return consolidated(
                plasticity, new_params, fisher, fisher_decay, mask, max_norm, anchor
            )

        if asked:
            new_term = jax.lax.cond(consolidate, moved, lambda s: s, new_term)
        return updates, (new_inner, new_term) if proximal else (new_term, new_inner)

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def with_extra_args(
    name: str, tx: optax.GradientTransformation | optax.MultiSteps
) -> optax.GradientTransformationExtraArgs:
    """One that may be given extra arguments, and ignores them if ``tx`` takes none.

    ``optax.with_extra_args_support`` goes by the type, which ``optax.MultiSteps`` does not have.

    Raises:
      TypeError: naming the argument, if it is no transformation.
    """
    if not (callable(getattr(tx, "init", None)) and callable(getattr(tx, "update", None))):
        raise TypeError(f"{name} must be an optax transformation, as optax.sgd(0.1), got {tx}")
    parameters = inspect.signature(tx.update).parameters.values()
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return optax.GradientTransformationExtraArgs(tx.init, tx.update)
    return optax.with_extra_args_support(tx)


def _keep_still(updates, params, insides):
    """Updates that change nothing outside the mask."""
    inside = jax.tree.unflatten(jax.tree.structure(params), insides)
    return jax.tree.map(
        # x + -0.0 is x for every x; x + 0.0 is not, for x = -0.0.
        lambda u, i: None if u is None else jnp.where(i, u, jnp.full_like(u, -0.0)),
        updates,
        inside,
        is_leaf=lambda x: x is None,
    )


def _keep_memory(inner, params, insides, new, old):
    """The inner optimiser's new state, where it belongs to weights inside the mask."""
    try:
        moves = optax.tree.map_params(
            inner,
            _moves,
            new,
            jax.tree.unflatten(jax.tree.structure(params), insides),
            transform_non_params=lambda _: jnp.ones([], bool),
            is_leaf=is_hidden,
        )
    except Exception:  # whatever an optimiser raises that looks at more than the tree
        moves = _moves_by_path(new, params, insides)

    def in_galore(move, node):
        return _moves_in_galore(node, params, insides) if _is_galore(node) else move

    moves = jax.tree.map(in_galore, moves, new, is_leaf=_is_galore)
    olds: Any = dict(jax.tree.leaves_with_path(old))
    # What has no earlier value, as the first measurements of optax.monitor, is as it came.
    return jax.tree.map_with_path(lambda path, m, n: jnp.where(m, n, olds.get(path, n)), moves, new)


def _moves(leaf, *insides):
    """Which entries of memory change, by the first of some masks that has its shape."""
    if is_hidden(leaf):
        return leaf
    for inside in insides:
        if inside.ndim and leaf.shape[-inside.ndim :] == inside.shape:
            return jnp.broadcast_to(inside, leaf.shape)  # L-BFGS has several of each
    return jnp.any(insides[0])  # what weights share (adafactor's factors) moves with any of them


def _is_galore(node):
    return isinstance(node, optax.contrib.GaLoreState)


def _moves_in_galore(state, params, insides):
    """As :func:`_moves_by_path`: what GaLore has projected, weights share, whatever its shape."""
    projectors: Any = leaves_by_path(state.projector)
    shared = [
        jnp.full_like(inside, jnp.any(inside)) if np.size(projectors.get(path)) else inside
        for path, inside in zip(_paths(params), insides, strict=True)
    ]
    return _moves_by_path(state, params, shared)


def _moves_by_path(state, params, insides):
    """For optimisers that look at more than the tree: sm3, flatten, line searches, monitor.

    What lies at a parameter's path, or in a list there, is that parameter's memory. A vector as
    long as all parameters together has them one after another. Other arrays are shared by all.
    """
    inside_at = dict(zip(_paths(params), insides, strict=True))
    flat = jnp.concatenate([jnp.ravel(inside) for inside in insides])
    leaves = leaves_by_path(state)

    def owner(path):
        """The path of the parameter whose memory lies at a path; None if it is no parameter's."""
        in_a_list = bool(path) and isinstance(path[-1], jax.tree_util.SequenceKey)
        stops = (None, -1) if in_a_list else (None,)
        ends = (path[start:stop] for start in range(len(path)) for stop in stops)
        return next((end for end in ends if end and end in inside_at), None)

    owners = {path: owner(path) for path in leaves}
    holders = prefixes(path for path, own in owners.items() if own is not None)

    def moves(path, leaf):
        if is_hidden(leaf):
            return leaf
        if owners[path] is not None:
            return _moves(leaf, inside_at[owners[path]])
        if leaf.ndim == 0:  # a counter
            return jnp.ones([], bool)
        if path[:-1] in holders:
            return jnp.any(flat)
        return _moves(leaf, inside_at.get((), flat), flat)

    moved = [moves(path, leaf) for path, leaf in leaves.items()]
    return jax.tree.unflatten(jax.tree.structure(state, is_leaf=is_hidden), moved)


def _paths(params):
    """Of the parameters, in the order of the leaves of a mask."""
    return [path for path, leaf in leaves_by_path(params).items() if not is_hidden(leaf)]


def _refuse_to_differ(fisher, params, plasticity):
    """What varies between devices, where JAX knows, must not enter a state that does not."""
    known = varying_axes((plasticity.anchor, plasticity.fisher))
    if differing := varying_axes(params) - known:
        raise ValueError(
            f"the new weights differ between the devices of {sorted(differing)}, but the "
            "plasticity state must be the same on all of them: average the gradients, for example "
            "with jax.lax.pmean"
        )
    if differing := varying_axes(fisher) - known:
        raise ValueError(
            f"batch is split over the devices of {sorted(differing)}, but the plasticity state "
            "must be the same on all of them: pass axis_name to weight_plasticity, so that it "
            "averages the Fishers"
        )


def _code_of(function):
    """The code of a function and of those defined in it."""

    def within(code):
        return {code}.union(*(within(c) for c in code.co_consts if isinstance(c, CodeType)))

    return within(function.__code__)


# Wrappers that call an update and may then throw away the state that it returns.
_SKIPPING = {
    code: name
    for name, function in {
        "MultiSteps": optax.MultiSteps.update,
        "apply_if_finite": optax.apply_if_finite,
        "conditionally_mask": optax.conditionally_mask,
        "conditionally_transform": optax.conditionally_transform,
    }.items()
    for code in _code_of(function)
}


def _refuse_to_be_skipped():
    """The numbers do not show a wrapper that will drop the new state; the callers do."""
    frame: FrameType | None = sys._getframe()
    while frame is not None:
        if name := _SKIPPING.get(frame.f_code):
            raise ValueError(
                f"consolidate inside optax.{name} would be lost in a step that it leaves out: put "
                f"the wrapper inside, weight_plasticity(optax.{name}(optimizer, ...), ...), or do "
                "not pass consolidate and call wpl_jax.consolidate between two steps"
            )
        frame = frame.f_back
