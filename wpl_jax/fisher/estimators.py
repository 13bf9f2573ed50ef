r"""Diagonal Fisher estimators, each named for which Fisher information it estimates.

With θ for ``params``, write for the gradient of one example's negative log-likelihood

.. math:: g_i(y) = -\nabla_\theta \log p(y \mid x_i, \theta)

All estimators return a pytree like ``params`` whose leaves are means over the ``n`` examples of a
batch:

==============================  ======================================================  ==========
Estimator                       Diagonal                                                Cost
==============================  ======================================================  ==========
:func:`empirical_fisher`        :math:`\frac1n \sum_i g_i(y_i)^2`                       1 to 2
:func:`sampled_fisher`          :math:`\frac1n \sum_i g_i(y)^2`                         1 to 2
:func:`exact_fisher`            :math:`\frac1n \sum_i \sum_y p(y \mid x_i)\, g_i(y)^2`  1 to 2 a
                                                                                        class
:func:`squared_batch_gradient`  :math:`\left(\frac1n \sum_i g_i(y_i)\right)^2`          1
==============================  ======================================================  ==========

The label :math:`y_i` is that of the data; the second estimator draws
:math:`y \sim p(\cdot \mid x_i, \theta)` from the model. The cost is in backward passes over the
batch.

The second is an unbiased estimate of the third. The first agrees with them, in expectation, for a
model that has learned the label distribution. The last is the cheap form the paper uses in search
(section 3.2). It is something else: per-example gradients cancel in it, near a minimum it is
smaller by orders of magnitude, and a plasticity strength tuned for one does not carry over to the
other.

The first three give the numbers of ``vmap(grad)``, squared and averaged, without the per-example
gradients of most parameters ever being built (:mod:`wpl_jax.fisher.plan`): they read from the
jaxpr of the function how each parameter is used, whatever framework it is written in.
:func:`explain` tells what they found. A parameter used in ways that are not recognised is given
its per-example gradients, so that only time and memory depend on it.

Units: with the negative log-likelihood in nats, a Fisher entry is in nats per squared unit of the
parameter. Squares and sums are in float32, or in the parameter's dtype where that is wider; but
what the last one squares is summed by JAX within a microbatch, in the parameter's dtype.

None of these functions is jitted; jit the step that calls them. Batches are pytrees of arrays that
share a leading example axis. ``weights``, of shape ``(n,)``, turns the mean into a weighted mean;
examples of weight 0 are padding, and nothing in them, not even a NaN, reaches the result.

Memory: ``max_bytes`` limits the memory that grows with the number of examples: half of it is for
the forward and backward pass of a microbatch of them, half for gradients of single examples. One
example is always allowed, however large; parameters and the result come on top. ``microbatch_size``
names the size of microbatches instead. The result depends on neither (beyond rounding).

Parameters may be an ``nnx.Module``, with a function of it and of one example: as with
``nnx.grad``, the result is then a state of its ``nnx.Param``. Dropout, and batch norm in train
mode, are errors where they can be seen; random numbers that are the same for all examples are
warned of.

Arrays may lie anywhere: on a mesh with automatic or explicit axes, or in a ``shard_map``, where the
result is the Fisher of a device's own examples, to be averaged with ``jax.lax.pmean``.
"""

import functools

import chex
import jax
import jax.numpy as jnp

from wpl_jax.fisher.averaging import (
    Estimator,
    PerExample,
    check_output,
    estimator,
    mean,
    num_examples,
)
from wpl_jax.fisher.microbatches import bound_of, check_sizes, sizes
from wpl_jax.fisher.noise import warn_of_shared_noise
from wpl_jax.fisher.plan import Plan
from wpl_jax.fisher.program import flat, for_one
from wpl_jax.numbers import widen
from wpl_jax.varying import zeros

THREEFRY = "threefry2x32"

__all__ = [
    "empirical_fisher",
    "exact_fisher",
    "sampled_fisher",
    "squared_batch_gradient",
]


def empirical_fisher(
    nll: PerExample, microbatch_size: int | None = None, max_bytes: int | None = None
) -> Estimator:
    """Empirical Fisher: mean of the squared gradients at the labels of the data.

    ``F = 1/n sum_i (d nll(params, example_i) / d params)**2``, the diagonal that the paper weights
    its penalty with (section 3.1) and that EWC calls Fisher.

    Args:
      nll: ``nll(params, example)``, the negative log-likelihood, a scalar, of *one* example.
      microbatch_size: examples in one backward pass; by default as many as ``max_bytes`` allows.
      max_bytes: bound on the memory that examples add to a backward pass; by default 256 MiB on a
        CPU and 1 GiB elsewhere.

    Returns:
      ``fisher(params, batch, weights=None)``, giving a tree like ``params``.

    Raises:
      ValueError: if ``microbatch_size < 1`` or ``max_bytes < 1``, if ``nll`` is not scalar, if the
        leaves of ``batch`` disagree about the number of examples, or if ``weights`` are of another
        shape, negative or NaN (where they are known, outside of ``jit``); for dropout or batch norm
        in train mode in a model of Flax, where they can be seen.
      TypeError: if a parameter, or what ``nll`` returns, is not floating-point, if ``nll`` is no
        function or returns more than one array, or if ``weights`` are no real numbers.

    Example:
      >>> import jax.numpy as jnp, wpl_jax
      >>> nll = lambda params, example: 0.5 * (params["w"] * example["x"] - example["y"]) ** 2
      >>> batch = {"x": jnp.array([1.0, 2.0]), "y": jnp.array([0.0, 0.0])}
      >>> wpl_jax.empirical_fisher(nll)({"w": jnp.array(1.0)}, batch)  # mean of 1**2 and 4**2
      {'w': Array(8.5, dtype=float32)}
    """
    check_sizes(microbatch_size, max_bytes)

    def estimate(nll, params, batch, weights):
        return _mean_of_squares("nll", nll, params, batch, weights, microbatch_size, max_bytes)

    return estimator("nll", nll, estimate)


def sampled_fisher(
    logits: PerExample, microbatch_size: int | None = None, max_bytes: int | None = None
) -> Estimator:
    """Sampled Fisher: squared gradients at labels drawn from the model itself.

    ``F = 1/n sum_i g_i(y)**2`` with one ``y ~ softmax(logits(params, example_i))`` an example: an
    unbiased estimate of :func:`exact_fisher` at the cost of :func:`empirical_fisher`.

    Args:
      logits: ``logits(params, example)``, shape ``(classes,)``, for *one* example.
      microbatch_size: examples in one backward pass; by default as many as ``max_bytes`` allows.
      max_bytes: bound on the memory that examples add to a backward pass; by default 256 MiB on a
        CPU and 1 GiB elsewhere.

    Returns:
      ``fisher(params, batch, key, weights=None)``, giving a tree like ``params``. An example's
      label depends on ``key`` and its index in the batch only, not on ``microbatch_size``.

    Raises:
      ValueError: as :func:`empirical_fisher`, and if ``logits`` is not one-dimensional.
      TypeError: as :func:`empirical_fisher`, and if ``key`` is not one key.

    Example:
      >>> import jax, jax.numpy as jnp, wpl_jax
      >>> fisher = wpl_jax.sampled_fisher(lambda params, x: params["w"] * x)
      >>> params = {"w": jnp.zeros(2)}  # both classes have probability 1/2
      >>> fisher(params, jnp.ones((4, 2)), jax.random.key(0))
      {'w': Array([0.25, 0.25], dtype=float32)}
    """
    check_sizes(microbatch_size, max_bytes)

    def estimate(logits, params, batch, weights, key):
        _check_key(key)
        if str(jax.random.key_impl(key)) != THREEFRY:  # under vmap others depend on the batch
            bits = jax.random.bits(key, (2,), "uint32")
            key = jax.random.wrap_key_data(bits, impl=THREEFRY)

        def nll(params, example_and_position):
            example, position = example_and_position
            scores = logits(params, example)
            check_output("logits", 1, scores)
            scores = widen(scores)  # noise of few bits has ties, which the first class would win
            label = jax.random.categorical(jax.random.fold_in(key, position), scores)
            return -jax.nn.log_softmax(scores)[label]

        numbered = batch, jnp.arange(num_examples(batch))
        limits = microbatch_size, max_bytes
        return _mean_of_squares("logits", nll, params, numbered, weights, *limits)

    estimate_with_key = estimator("logits", logits, estimate)

    def fisher(
        params: chex.ArrayTree,
        batch: chex.ArrayTree,
        key: jax.Array,
        weights: jax.Array | None = None,
    ) -> chex.ArrayTree:
        return estimate_with_key(params, batch, weights, key)

    return fisher


def exact_fisher(
    logits: PerExample, microbatch_size: int | None = None, max_bytes: int | None = None
) -> Estimator:
    """Exact Fisher of a classifier: the expectation over the model's own label distribution.

    ``F = 1/n sum_i sum_y p(y | x_i) g_i(y)**2``. For a softmax classifier this is also the diagonal
    of the generalised Gauss-Newton matrix. One backward pass a class, one class at a time, so that
    memory does not grow with the number of classes.

    Args:
      logits: ``logits(params, example)``, shape ``(classes,)``, for *one* example.
      microbatch_size: examples in one backward pass; by default as many as ``max_bytes`` allows.
      max_bytes: bound on the memory that examples add to a backward pass; by default 256 MiB on a
        CPU and 1 GiB elsewhere.

    Returns:
      ``fisher(params, batch, weights=None)``, giving a tree like ``params``.

    Raises:
      ValueError: as :func:`sampled_fisher`.
      TypeError: as :func:`empirical_fisher`.

    Example:
      >>> import jax.numpy as jnp, wpl_jax
      >>> fisher = wpl_jax.exact_fisher(lambda params, x: params["w"] * x)
      >>> fisher({"w": jnp.zeros(2)}, jnp.ones((4, 2)))  # p (1 - p) at p = 1/2
      {'w': Array([0.25, 0.25], dtype=float32)}
    """
    check_sizes(microbatch_size, max_bytes)

    def estimate(logits, params, batch, weights):
        def log_probs(params, example):
            scores = logits(params, example)
            check_output("logits", 1, scores)
            return jax.nn.log_softmax(widen(scores))

        bound = bound_of(max_bytes).half()
        plan = Plan.of(log_probs, params, batch, bound.on_cpu)
        warn_of_shared_noise("logits", plan.program, batch)
        evaluation = plan.evaluation(params, bound)

        def total(batch, weights):
            outputs, sums, finish = evaluation(batch)

            def of_label(label):
                probs = jnp.exp(outputs[:, label])
                cotangents = jnp.zeros_like(outputs).at[:, label].set(1)
                return sums(cotangents, probs if weights is None else weights * probs)

            def add(total, label):
                return jax.tree.map(jnp.add, total, of_label(label)), None

            labels = jnp.arange(outputs.shape[1])
            start = jax.tree.map(zeros, jax.eval_shape(of_label, labels[0]))
            return finish(jax.lax.scan(add, start, labels)[0])

        return mean(total, batch, weights, *_sizes(plan, microbatch_size, bound))

    return estimator("logits", logits, estimate)


def squared_batch_gradient(loss: PerExample, microbatch_size: int | None = None) -> Estimator:
    """Square of the mean gradient: the paper's cheap form in search (section 3.2), not a Fisher.

    ``F = (1/n sum_i d loss(params, example_i) / d params)**2``, which is ``(sum g)**2 / n**2`` and
    not ``sum g**2 / n``. Its cost is one batch gradient. A loss that cannot be written for one
    example (batch norm, a recurrent carry across the batch) takes the whole batch as its single
    example: pass ``jax.tree.map(lambda x: x[None], batch)``.

    Args:
      loss: ``loss(params, example)``, a scalar, of *one* example.
      microbatch_size: examples in one backward pass; all of them by default.

    Returns:
      ``fisher(params, batch, weights=None)``, giving a tree like ``params``.

    Raises:
      ValueError, TypeError: as :func:`empirical_fisher`.

    Example:
      >>> import jax.numpy as jnp, wpl_jax
      >>> nll = lambda params, example: 0.5 * (params["w"] * example["x"] - example["y"]) ** 2
      >>> batch = {"x": jnp.array([1.0, 2.0]), "y": jnp.array([0.0, 0.0])}
      >>> wpl_jax.squared_batch_gradient(nll)({"w": jnp.array(1.0)}, batch)  # square of (1 + 4) / 2
      {'w': Array(6.25, dtype=float32)}
    """
    check_sizes(microbatch_size)

    def estimate(loss, params, batch, weights):
        jaxpr, out = for_one(loss, params, batch)
        check_output("loss", 0, out)
        warn_of_shared_noise("loss", flat(jaxpr), batch)

        def gradient_sum(batch, weights):
            def weighted_loss(params):
                losses = jax.vmap(loss, in_axes=(None, 0))(params, batch)
                return jnp.sum(losses if weights is None else weights * losses)

            return jax.tree.map(widen, jax.grad(weighted_loss)(params))

        size = microbatch_size or num_examples(batch)
        return jax.tree.map(jnp.square, mean(gradient_sum, batch, weights, size, size))

    return estimator("loss", loss, estimate, batch_as_example=True)


def _mean_of_squares(name, nll, params, batch, weights, microbatch_size, max_bytes):
    """The empirical Fisher of a batch that has been checked; ``name`` is of what a user passed."""
    check = functools.partial(check_output, "nll", 0)
    bound = bound_of(max_bytes).half()
    plan = Plan.of(nll, params, batch, bound.on_cpu, check)
    warn_of_shared_noise(name, plan.program, batch)
    evaluation = plan.evaluation(params, bound)

    def total(batch, weights):
        nlls, sums, finish = evaluation(batch)
        return finish(sums(jnp.ones_like(nlls), weights))

    return mean(total, batch, weights, *_sizes(plan, microbatch_size, bound))


def _sizes(plan, microbatch_size, bound):
    """Of microbatches, on a CPU and elsewhere."""
    if microbatch_size is not None:
        return microbatch_size, microbatch_size
    # Where most of what an example holds is a gradient that JAX takes, or copies of parameters,
    # the cores are waiting for memory.
    in_turn = 2 * plan.backward.gradient > plan.backward.held or plan.reading.copies
    return sizes(bound, plan.backward.held, in_turn)


def _check_key(key):
    """Refuse what is not one key, typed or of the older kind."""
    dtype = getattr(key, "dtype", None)
    typed = dtype is not None and jnp.issubdtype(dtype, jax.dtypes.prng_key)
    if dtype is None or key.ndim != (not typed):
        raise TypeError(f"key must be one key, such as jax.random.key(0), got {key!r:.80}")
