r"""The Fisher of more data than one batch: a weighted mean, updated batch by batch.

An estimator of :mod:`wpl_jax.fisher` gives the mean over one batch. The mean over a whole data set,
whose batches come one after another, is that of the batches' means, each weighted with how many
examples it is of: after batch :math:`b` of weight :math:`w_b` and Fisher :math:`F_b`

.. math::
    W \leftarrow W + w_b, \qquad F \leftarrow F + \frac{w_b}{W}\, (F_b - F)

so that batches of different sizes count as they should, nothing grows with the number of batches,
and memory holds one Fisher beside that of the batch. All batches are to be taken at the same
parameters: those that are to be protected.

In float32, :math:`W` is exact up to 2**24 examples of weight 1, and rounding grows as the square
root of the number of batches, to about 5e-6 of an entry after 10,000 of them.

:func:`running_fisher` is for a loop of one's own, in the form of an optax transformation, ``init``
and ``update``. :func:`fisher_of_batches` is that loop. :func:`merge_running_fishers` joins what
several processes have computed, each from its own part of the data.
"""

import functools
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp

from wpl_jax.fisher.averaging import checked_weights, num_examples
from wpl_jax.modules import parameters
from wpl_jax.numbers import wide_dtype
from wpl_jax.trees import align

__all__ = [
    "RunningFisher",
    "RunningFisherState",
    "fisher_of_batches",
    "merge_running_fishers",
    "running_fisher",
]


class RunningFisherState(NamedTuple):
    """A Fisher, and what it is the mean of; a pytree, to be donated and saved like any other."""

    fisher: chex.ArrayTree  # like params, float32 or the parameter's dtype where wider
    weight: jax.Array  # shape=(), JAX's default float: how many examples, or their summed weights
    batches: jax.Array  # shape=(), int32: how many batches, those of weight 0 included


class RunningFisher(NamedTuple):
    """What :func:`running_fisher` gives: a pair of pure functions."""

    init: Callable[[chex.ArrayTree], RunningFisherState]
    update: Callable[..., RunningFisherState]


def running_fisher(estimator: Callable[..., chex.ArrayTree]) -> RunningFisher:
    """A Fisher over many batches: the weighted mean of an estimator's results.

    After ``k`` batches it is ``sum_b w_b F_b / sum_b w_b``, where ``F_b`` is what the estimator
    gives for batch ``b``, and ``w_b`` the number of examples in it or the sum of their weights. For
    :func:`~wpl_jax.empirical_fisher`, :func:`~wpl_jax.sampled_fisher` and
    :func:`~wpl_jax.exact_fisher` that is the Fisher of all examples at once, however they are
    batched (with labels drawn anew, in the second); for :func:`~wpl_jax.squared_batch_gradient` it
    is the mean of the batches' squares, which depends on how they are.

    Jit ``update`` once and donate its first argument. It is compiled for each shape of a batch; a
    short last batch that is padded to the shape of the others, with ``weights`` of 0 there, and 1
    elsewhere and in the other batches, needs no second compilation.

    Args:
      estimator: ``fisher(params, batch)``, such as :func:`~wpl_jax.empirical_fisher` returns, or
        any function that gives a mean over the examples of a batch, in a tree like ``params``.

    Returns:
      A pair of pure functions:

      * ``init(params)`` gives the state of no batches: zeros.
      * ``update(state, params, batch, *, weights=None, key=None)`` gives the state with one more
        batch. ``weights``, of shape ``(n,)``, are the examples' and may be 0; a batch of weight 0
        adds nothing, not even a NaN. ``key``, for :func:`~wpl_jax.sampled_fisher`, is folded with
        the number of batches before: the same key serves for all of them. These and further
        keyword arguments are passed on to the estimator.

    Raises:
      ValueError: in ``update``, if ``params`` or the estimator's result differ from the parameters
        given to ``init``; names the first path that does. Also if the leaves of ``batch`` disagree
        about the number of examples.

    Example:
      >>> import jax, jax.numpy as jnp, wpl_jax
      >>> nll = lambda params, x: 0.5 * (params["w"] * x) ** 2
      >>> running = wpl_jax.running_fisher(wpl_jax.empirical_fisher(nll))
      >>> update = jax.jit(running.update, donate_argnums=0)
      >>> params = {"w": jnp.array(1.0)}
      >>> state = running.init(params)
      >>> for batch in [jnp.array([1.0, 1.0, 2.0]), jnp.array([2.0])]:  # x**4: 1, 1, 16; 16
      ...     state = update(state, params, batch)
      >>> print(state.fisher["w"], state.weight, state.batches)
      8.5 4.0 2
    """

    def init(params: chex.ArrayTree) -> RunningFisherState:
        def zeros(param):
            return jnp.zeros_like(param, dtype=wide_dtype(param))

        fisher = jax.tree.map(zeros, parameters(params))
        # A sum is where its terms are: else the second update on many devices is compiled anew.
        leaves = jax.tree.leaves(fisher)
        zero = jnp.sum(leaves[0], dtype=float) if leaves else jnp.zeros([], float)
        return RunningFisherState(fisher, weight=zero, batches=zero.astype(jnp.int32))

    def update(
        state: RunningFisherState,
        params: chex.ArrayTree,
        batch: chex.ArrayTree,
        *,
        weights: jax.typing.ArrayLike | None = None,
        key: jax.Array | None = None,
        **extra_args: Any,
    ) -> RunningFisherState:
        align("params", parameters(params), state.fisher)
        n = num_examples(batch)
        if weights is None:
            weight = jnp.array(n, float)
        else:
            weights = checked_weights(weights, n)
            weight = jnp.sum(weights, dtype=float)
            # A mean over no weight is NaN, which is not used, but which jax_debug_nans would find.
            extra_args["weights"] = jnp.where(weight > 0, weights, 1)
        if key is not None:
            extra_args["key"] = jax.random.fold_in(key, state.batches)
        fisher = estimator(params, batch, **extra_args)
        new = RunningFisherState(fisher, weight, jnp.int32(1))
        return _merge(state, new, "the parameters given to init have")

    return RunningFisher(init, update)


def merge_running_fishers(
    first: RunningFisherState, *others: RunningFisherState
) -> RunningFisherState:
    """The state of all batches of several states, which have none in common.

    ``F = sum_s W_s F_s / sum_s W_s``, where state ``s`` has the Fisher ``F_s`` and the weight
    ``W_s``. States of no examples add nothing.

    Args:
      first: a state of :func:`running_fisher`.
      *others: those of the same parameters and other batches, such as each process has computed
        from its own part of the data.

    Returns:
      One state; its Fisher has the dtypes of the first.

    Raises:
      TypeError: if one is no such state, as a list of them.
      ValueError: if the trees differ; names the first path that does.

    Example:
      >>> import jax.numpy as jnp, wpl_jax
      >>> three = wpl_jax.RunningFisherState({"w": jnp.array(6.0)}, jnp.array(3.0), jnp.array(1))
      >>> one = wpl_jax.RunningFisherState({"w": jnp.array(16.0)}, jnp.array(1.0), jnp.array(1))
      >>> print(wpl_jax.merge_running_fishers(three, one).fisher["w"])  # (3 * 6 + 1 * 16) / 4
      8.5
    """
    for state in (first, *others):
        if not isinstance(state, RunningFisherState):
            raise TypeError(
                "merge_running_fishers takes states of running_fisher, each as an argument of its "
                f"own, merge_running_fishers(*states), got a {type(state).__name__}"
            )
    return functools.reduce(_merge, others, first)


def fisher_of_batches(
    estimator: Callable[..., chex.ArrayTree],
    params: chex.ArrayTree,
    batches: Iterable[chex.ArrayTree],
    *,
    weights_of: Callable[[chex.ArrayTree], jax.typing.ArrayLike] | None = None,
    key: jax.Array | None = None,
    state: RunningFisherState | None = None,
) -> RunningFisherState:
    """The Fisher over a data loader: the loop of :func:`running_fisher`, compiled and donated.

    Compiled once for each shape of a batch; a later call with the same ``estimator`` and
    ``weights_of``, the functions themselves and not others like them, compiles nothing. Computation
    runs behind the loop, as JAX's does. For a bar of progress, wrap ``batches`` in one.

    Args:
      estimator: as in :func:`running_fisher`.
      params: the parameters, the same for all batches.
      batches: trees of JAX or NumPy arrays that share a leading axis of examples. An iterator gives
        its batches only once.
      weights_of: ``weights_of(batch)``, the examples' weights of shape ``(n,)``; 1 each if None.
      key: for :func:`~wpl_jax.sampled_fisher`; one serves for all batches.
      state: what an earlier call gave, to be gone on from; it is copied and stays valid. Its
        ``batches`` says how many to leave out.

    Returns:
      The state after the last batch, of which ``state.fisher`` is the Fisher.

    Raises:
      ValueError: if there are no batches, in ``state`` neither; as :func:`running_fisher`.

    Example:
      >>> import jax.numpy as jnp, wpl_jax
      >>> estimator = wpl_jax.empirical_fisher(lambda params, x: 0.5 * (params["w"] * x) ** 2)
      >>> params, loader = {"w": jnp.array(1.0)}, [jnp.array([1.0, 1.0, 2.0]), jnp.array([2.0])]
      >>> state = wpl_jax.fisher_of_batches(estimator, params, loader)
      >>> print(state.fisher["w"], state.weight)
      8.5 4.0
    """
    if state is None:
        state = running_fisher(estimator).init(params)
    else:  # the caller's is not to be donated
        state = jax.tree.map(lambda x: jnp.array(x, copy=True), state)
    for batch in batches:
        state = _update(estimator, weights_of, state, params, batch, key)
    if not int(state.batches):
        raise ValueError(
            "batches is empty, and a Fisher is a mean over one batch or more; an iterator gives "
            "its batches only once: make it anew"
        )
    return state


@functools.partial(jax.jit, static_argnums=(0, 1), donate_argnums=2)
def _update(estimator, weights_of, state, params, batch, key):
    weights = None if weights_of is None else weights_of(batch)
    return running_fisher(estimator).update(state, params, batch, weights=weights, key=key)


def _merge(state, new, reference_has="the first state's has"):
    weight = state.weight + new.weight.astype(state.weight.dtype)
    share = new.weight / jnp.where(weight > 0, weight, 1)

    def mean(old, fisher):
        fisher = jnp.asarray(fisher, old.dtype)
        updated = old + share.astype(old.dtype) * (fisher - old)
        return jnp.where(share > 0, updated, old)  # a Fisher of no weight may be NaN too

    new_fisher = align("fisher", new.fisher, state.fisher, reference_has=reference_has)
    fishers = map(mean, jax.tree.leaves(state.fisher), new_fisher)
    return RunningFisherState(
        jax.tree.unflatten(jax.tree.structure(state.fisher), fishers),
        weight,
        state.batches + new.batches,
    )
