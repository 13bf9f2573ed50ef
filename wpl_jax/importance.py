r"""Importances other than the Fisher, for the same plasticity term.

The plasticity term asks for a tree of weights' importances and does not mind where it is from.
Beside the diagonal Fishers (:mod:`wpl_jax.fisher`) the field has two that need no likelihood:

* :func:`mas_importance`, Memory Aware Synapses: how much the *output* changes with each weight. It
  needs examples but no labels, and is computed when a task has been learned.
* :func:`synaptic_intelligence`, Synaptic Intelligence: how much each weight has contributed to the
  fall of the *loss* while it was learned. It needs no examples, but has to be there from the start:
  it is an optax transformation around the optimiser.

Both papers add up the importances of all tasks and pull towards the weights that the last one
ended at: ``wpl_jax.consolidate(opt_state, params, importance, decay=1.0)`` after each.

Both write their penalty as :math:`c \sum_i \Omega_i (\theta_i - \theta_i^*)^2`, the plasticity term
is :math:`\frac\varepsilon2 \sum_i F_i (\theta_i - \theta_i^*)^2`: a published :math:`c` is a
strength of :math:`\varepsilon = 2c`.
"""

from collections.abc import Callable
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax

from wpl_jax.fisher.averaging import Estimator, estimator, mean
from wpl_jax.fisher.microbatches import bound_of, check_sizes, sizes, weighted
from wpl_jax.fisher.noise import warn_of_shared_noise
from wpl_jax.fisher.program import flat, for_one, held_bytes
from wpl_jax.modules import parameters
from wpl_jax.numbers import capped, floating, rounded, wide_dtype, widen
from wpl_jax.plasticity import PlasticityState
from wpl_jax.plasticity.state import find_one, put
from wpl_jax.plasticity.term import zeros_in_place
from wpl_jax.plasticity.training import with_extra_args
from wpl_jax.trees import align, is_hidden, path_name

__all__ = [
    "PathIntegralState",
    "mas_importance",
    "path_importance",
    "synaptic_intelligence",
]


def mas_importance(
    output_fn: Callable[[chex.ArrayTree, chex.ArrayTree], chex.ArrayTree],
    microbatch_size: int | None = None,
    max_bytes: int | None = None,
) -> Estimator:
    """Memory Aware Synapses: how much the output of a network changes with each weight.

    ``1/n sum_i |d ||output_fn(params, example_i)||**2 / d params|``, the norm being Euclidean. It
    is squared, as in the paper (section 4.1), so that it can be differentiated where it is zero.
    No labels are needed: any examples will do that are like those on which the output matters.

    An absolute value is taken of each example's gradient, and no shorter way to it is known than to
    compute all of them: it costs what ``vmap(grad)`` does, and more than a Fisher of the same
    network. Memory stays within that of the gradient plus ``max_bytes``.

    Random numbers that are the same for all examples, as those of dropout by one key, are warned
    of, as in the Fishers.

    Args:
      output_fn: ``output_fn(params, example)``, an array or a tree of arrays, for *one* example.
        For a classifier these are usually the logits.
      microbatch_size: examples in one backward pass; by default as many as ``max_bytes`` allows.
      max_bytes: bound on the memory that examples add to a backward pass; by default 256 MiB on a
        CPU and 1 GiB elsewhere.

    Returns:
      ``importance(params, batch, weights=None)``, giving a tree like ``params``, in float32 or the
      parameter's dtype where that is wider. It is used like an estimator of a Fisher, with
      :func:`~wpl_jax.running_fisher` or :func:`~wpl_jax.fisher_of_batches` too.

    Raises:
      ValueError: if ``microbatch_size < 1`` or ``max_bytes < 1``, if the output is empty, if the
        leaves of ``batch`` disagree about the number of examples, or if ``weights`` are of another
        shape, negative or NaN (where they are known, outside of ``jit``).
      TypeError: if a parameter or the output is not floating-point.

    Example:
      >>> import jax.numpy as jnp, wpl_jax
      >>> importance = wpl_jax.mas_importance(lambda params, x: params["w"] * x)
      >>> batch = jnp.array([1.0, -1.0, 2.0])  # d (w x)**2 / d w = 2 w x**2: -4, -4, -16 at w = -2
      >>> importance({"w": jnp.array(-2.0)}, batch)
      {'w': Array(8., dtype=float32)}

    References:
      Aljundi et al., `Memory Aware Synapses: Learning what (not) to forget
      <https://arxiv.org/abs/1711.09601>`_, 2018
    """
    check_sizes(microbatch_size, max_bytes)

    def estimate(output_fn, params, batch, weights):
        def squared_norm(params, example):
            outputs = jax.tree.map(jnp.asarray, output_fn(params, example))
            _check_output(outputs)
            return sum(jnp.sum(jnp.square(jnp.abs(widen(y)))) for y in jax.tree.leaves(outputs))

        gradient = jax.jit(jax.grad(squared_norm))  # traced once, for its size and to be run
        jaxpr, _ = for_one(gradient, params, batch)
        warn_of_shared_noise("output_fn", flat(jaxpr), batch)
        of_example = len(jax.tree.leaves(batch))
        counted = [False] * (len(jaxpr.in_avals) - of_example) + [True] * of_example
        held = held_bytes(jaxpr, counted)

        def total(batch, weights):
            grads = jax.vmap(gradient, (None, 0))(params, batch)
            return jax.tree.map(lambda g: weighted(jnp.abs(widen(g)), weights).sum(0), grads)

        if microbatch_size is not None:
            return mean(total, batch, weights, microbatch_size, microbatch_size)
        # On a CPU the gradients of a few examples fit the caches.
        return mean(total, batch, weights, *sizes(bound_of(max_bytes), held, in_turn=True))

    return estimator("output_fn", output_fn, estimate)


class PathIntegralState(NamedTuple):
    """What :func:`synaptic_intelligence` remembers of the task being learned."""

    inner_state: chex.ArrayTree  # of the optimiser
    start: chex.ArrayTree  # like params, in their dtypes: the weights at the beginning of the task
    path_integral: chex.ArrayTree  # like params, float32 or wider: -sum of gradient * movement


def synaptic_intelligence(
    inner: optax.GradientTransformation,
) -> optax.GradientTransformationExtraArgs:
    r"""Wrap an optimiser to learn which weights a task is learned with (Synaptic Intelligence).

    In each step, with :math:`g` the gradient of the task's loss that comes in and
    :math:`\Delta\theta` the movement that goes out, it adds up how much each weight has contributed
    to the fall of the loss:

    .. math::
        \omega_i \leftarrow \omega_i - g_i\, \Delta\theta_i

    To first order in the movement, :math:`\sum_i \omega_i` is that fall. With the gradients of
    batches it is more than that: their noise is in both factors (section 3 of the paper). The
    updates are those of ``inner``, unchanged. :func:`path_importance` makes an importance of ω when
    a task has been learned.

    **It must be outermost.** The gradient has to be that of the task alone, and the movement the
    final one, with the pull of the plasticity term in it. So this term goes *inside*::

        tx = wpl_jax.synaptic_intelligence(
            optax.chain(wpl_jax.add_plasticity(strength), optax.sgd(learning_rate))
        )

    and so does all else that changes gradients or steps: clipping, weight decay, schedules,
    :func:`~wpl_jax.proximal_plasticity`, :func:`~wpl_jax.weight_plasticity`. Around it may stand
    what passes whole steps on, such as ``optax.MultiSteps``, or chooses parameters, such as
    ``optax.masked``.

    The movement is the one that ``optax.apply_updates`` makes, after rounding to the parameters'
    dtype; a weight that is too coarse to move has none. Complex parameters count as pairs of real
    ones, gradients being those that descent needs, the conjugates of ``jax.grad``'s.

    Args:
      inner: the optimiser, with all that belongs to it.

    Returns:
      A transformation whose ``update(updates, state, params, **extra_args)`` requires ``params``
      and passes extra arguments on to ``inner``. Its state is a :class:`PathIntegralState`.

    Raises:
      ValueError: in ``update``, for missing ``params`` or trees whose structures or shapes differ.

    Example:
      >>> import jax, jax.numpy as jnp, optax, wpl_jax
      >>> tx = wpl_jax.synaptic_intelligence(
      ...     optax.chain(wpl_jax.add_plasticity(1.0), optax.sgd(0.01))
      ... )
      >>> loss = lambda params: 0.5 * (params["w"][0] - 1.0) ** 2  # depends on the first weight
      >>> params = {"w": jnp.zeros(2)}
      >>> opt_state = tx.init(params)
      >>> for _ in range(500):
      ...     updates, opt_state = tx.update(jax.grad(loss)(params), opt_state, params)
      ...     params = optax.apply_updates(params, updates)
      >>> print(opt_state.path_integral["w"].round(2))  # the loss fell from 0.5 to 0
      [0.5 0. ]
      >>> importance, opt_state = wpl_jax.path_importance(opt_state, params, damping=0.1)
      >>> print(importance["w"].round(1))  # 0.5 / (1**2 + 0.1)
      [0.5 0. ]
      >>> opt_state = wpl_jax.consolidate(opt_state, params, importance, decay=1.0)

    References:
      Zenke et al., `Continual Learning Through Synaptic Intelligence
      <https://arxiv.org/abs/1703.04200>`_, 2017
    """
    inner = with_extra_args("inner", inner)

    def init_fn(params):
        # A copy: a donated step may not be given the same buffer as params and as state.
        return PathIntegralState(
            inner.init(params), jax.tree.map(_copy, params), _zero_path(params)
        )

    def update_fn(updates, state, params=None, **extra_args):
        if params is None:
            raise ValueError(
                "synaptic_intelligence needs the parameters, whose movement it follows: call "
                "update(grads, opt_state, params)"
            )
        new_updates, inner_state = inner.update(updates, state.inner_state, params, **extra_args)
        path_integral = map(
            _add_step,
            jax.tree.leaves(state.path_integral),
            align("updates", updates, state.start, optional=True),
            align("new updates", new_updates, state.start, optional=True),
            align("params", params, state.start),
        )
        structure = jax.tree.structure(state.start)
        return new_updates, PathIntegralState(
            inner_state, state.start, jax.tree.unflatten(structure, path_integral)
        )

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def path_importance(
    opt_state: chex.ArrayTree, params: chex.ArrayTree, *, damping: jax.typing.ArrayLike = 1e-3
) -> tuple[chex.ArrayTree, chex.ArrayTree]:
    r"""Importances of the task that ends here, and a state in which the next one begins.

    .. math::
        \Omega_i = \frac{\max(\omega_i, 0)}{(\theta_i - \theta_{i,\text{start}})^2 + \xi}

    (eq. 5 of the paper): what a weight has contributed, by the square of how far it has gone. Were
    the loss quadratic in each weight, with its minimum at the end of the path, this would be half
    its curvature, where ξ does not matter.

    In the state that is returned the path begins anew, at ``params``: ω is 0. Take it, or the next
    task's path goes on from this one's. The optimiser's own memory is left as it is.

    Args:
      opt_state: any tree that holds one :class:`PathIntegralState`, as for
        :func:`~wpl_jax.consolidate`; an ``nnx.Optimizer`` is changed in place and returned.
      params: the weights at the end of the task; whole trees, as in :func:`~wpl_jax.consolidate`.
      damping: ξ > 0, in squared units of the parameters: bounds the importance of weights that have
        hardly moved.

    Returns:
      The importance, a tree like ``params`` of numbers >= 0, and the new ``opt_state``.

    Raises:
      ValueError: if ``opt_state`` holds no path or several, if a plasticity term of the same
        parameters lies outside of the wrapped optimiser, if ``params`` do not match, or for a
        ``damping`` that is not a finite number above 0.

    Example:
      >>> import jax.numpy as jnp, optax, wpl_jax
      >>> tx = wpl_jax.synaptic_intelligence(optax.sgd(0.5))
      >>> params = jnp.array([0.0, 0.0])
      >>> opt_state = tx.init(params)
      >>> updates, opt_state = tx.update(jnp.array([-2.0, 0.0]), opt_state, params)
      >>> params = optax.apply_updates(params, updates)
      >>> importance, opt_state = wpl_jax.path_importance(opt_state, params, damping=1.0)
      >>> print(importance)  # 2 * 1 / (1**2 + 1)
      [1. 0.]
      >>> print(opt_state.path_integral, opt_state.start)
      [0. 0.] [1. 0.]
    """
    _check_damping(damping)
    bound = capped(floating(damping))
    _, state = find_one(
        opt_state, PathIntegralState, "path", "an optimiser in synaptic_intelligence"
    )
    _check_outermost(opt_state, state)
    aligned = align("params", parameters(params, opt_state), state.start)

    def importance(param, start, path_integral):
        squared = jnp.square(jnp.abs(_movement(start, param)))
        # What has not moved has an importance of 0, also where the damping is too small for a
        # float32 to hold.
        least = float(jnp.finfo(squared.dtype).tiny)
        return jnp.maximum(path_integral, 0) / jnp.maximum(squared + bound, least)

    structure = jax.tree.structure(state.start)
    starts, integrals = jax.tree.leaves(state.start), jax.tree.leaves(state.path_integral)
    importances = jax.tree.unflatten(structure, map(importance, aligned, starts, integrals))
    begun = PathIntegralState(
        state.inner_state,
        jax.tree.unflatten(
            structure, [_copy(p).astype(s.dtype) for p, s in zip(aligned, starts, strict=True)]
        ),
        jax.tree.map(lambda x: zeros_in_place(x, x.dtype), state.path_integral),
    )
    return importances, put(opt_state, begun, PathIntegralState)


def _check_output(outputs):
    leaves = jax.tree.leaves_with_path(outputs)
    if not leaves:
        raise ValueError(
            f"output_fn(params, example) must return an array or a tree of them, got {outputs}"
        )
    for path, output in leaves:
        if not jnp.issubdtype(output.dtype, jnp.inexact):
            raise TypeError(
                f"output_fn(params, example) must be floating-point to have gradients, got "
                f"{output.dtype} at {path_name(path)}: return logits and not classes"
            )


def _zero_path(params):
    def zeros(param):
        real = jnp.real(param)
        return zeros_in_place(real, wide_dtype(real))

    return jax.tree.map(zeros, params)


def _add_step(path_integral, gradient, update, param):
    if gradient is None or update is None:
        return path_integral
    movement = _movement(param, optax.apply_updates(param, update))
    # What does not move has contributed nothing, whatever its gradient is.
    gradient = jnp.where((movement != 0) | jnp.isfinite(gradient), gradient, 0)
    contribution = jnp.real(jnp.conj(widen(gradient)) * movement)
    return path_integral - contribution.astype(path_integral.dtype)


def _movement(start, end):
    """From start to end, both as they are stored, and the difference in float32 or wider."""

    def stored(x):
        x = jnp.asarray(x)
        wide = widen(x)
        return rounded(wide, x.dtype) if jnp.issubdtype(x.dtype, jnp.floating) else wide

    return stored(end) - stored(start)


def _check_outermost(opt_state, path):
    """Refuse a pull that the path does not see, or takes for a gradient of the task."""

    def entries(tree):
        leaves = jax.tree.leaves_with_path(tree, is_leaf=is_hidden)
        return {place for place, leaf in leaves if not is_hidden(leaf)}

    def stops(node):
        return isinstance(node, (PathIntegralState, PlasticityState))

    for node in jax.tree.leaves(opt_state, is_leaf=stops):
        if isinstance(node, PlasticityState) and entries(node.anchor) & entries(path.start):
            raise ValueError(
                "the plasticity term lies outside of synaptic_intelligence, which then takes its "
                "pull for a gradient of the task or does not see the movement it makes: wrap all "
                "of it, synaptic_intelligence(optax.chain(add_plasticity(...), optimiser))"
            )


def _check_damping(damping):
    if isinstance(damping, jax.core.Tracer):
        return
    number = floating(damping)
    is_one = isinstance(number, float) or (isinstance(number, jax.Array) and not number.ndim)
    if not (is_one and 0 < float(number) < float("inf")):
        raise ValueError(
            f"damping must be a finite number above 0, got {damping}: without it the importance of "
            "a weight that has not moved is 0/0"
        )


def _copy(x):
    return jnp.array(x, copy=True)
