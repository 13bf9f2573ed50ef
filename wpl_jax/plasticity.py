r"""The Weight Plasticity Loss as optax transformations.

When a model that shares weights with an earlier one is trained, the paper (eq. 8) minimises

.. math::
    L_2(\theta) + \frac{\alpha}{2} \lVert\theta\rVert^2
    + \frac{\varepsilon}{2} \sum_i F_i\, (\theta_i - \text{anchor}_i)^2

L₂ is the new model's own loss, ``anchor`` the weights at which the earlier model was left, ``F``
the diagonal of that model's Fisher information there (see :mod:`wpl_jax.fisher`), zero on weights
it does not use, and ε, ``eps``, the strength. The whole equation, term by term::

    tx = optax.chain(
        optax.add_decayed_weights(alpha),  # alpha/2 |theta|^2
        wpl_jax.add_plasticity(eps),  # eps/2 sum F (theta - anchor)^2
        optax.sgd(learning_rate),  # descends the gradient of the sum
    )

Three ways to use the last term, each built on the one before: :func:`add_plasticity` adds its
gradient; :func:`proximal_plasticity` applies it implicitly, after the step, and is stable for any
strength; :func:`weight_plasticity` also computes ``F`` and moves the anchor, in the same update.
:func:`consolidate` moves the anchor by hand, :func:`flush` forgets ``F``, and
:func:`plasticity_loss` is the term itself.

All hold one :class:`PlasticityState`, which the functions find wherever it sits in a composed
optimiser state.

Before the first ``consolidate``, after a ``flush``, where ``F`` is zero, outside the mask, and for
strength 0, the term is not added, not even as 0: operation by operation, a step is bit for bit the
one without plasticity. With a constant strength of 0 the compiled step is too. In the other cases
a jitted step may differ from it in the last bit on a CPU, where XLA contracts products and sums
into one rounding, and which ones depends on the rest of the program.
"""

from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax

from wpl_jax.fisher import empirical_fisher
from wpl_jax.trees import align, align_mask, is_hidden, path_name

__all__ = [
    "PlasticityState",
    "add_plasticity",
    "consolidate",
    "flush",
    "plasticity_loss",
    "proximal_plasticity",
    "weight_plasticity",
]

ScalarOrSchedule: TypeAlias = jax.typing.ArrayLike | optax.Schedule


class PlasticityState(NamedTuple):
    """What the plasticity term remembers of the models trained before."""

    count: jax.Array  # type: ignore[assignment]  # shape=(), int32: updates so far, for schedules
    anchor: chex.ArrayTree  # like params, in their dtypes
    fisher: chex.ArrayTree  # like params, float32 or the parameter's dtype where wider; >= 0
    rejected: jax.Array  # shape=(), int32: entries that consolidate refused, so far
    consolidations: jax.Array  # shape=(), int32: how often the anchor has been set
    last_strength: jax.Array  # shape=(): eps of the last update, and before it of the first


class _ProximalState(PlasticityState):
    """Says, by its type, that the term is applied implicitly."""

    __slots__ = ()


def add_plasticity(strength: ScalarOrSchedule) -> optax.GradientTransformationExtraArgs:
    """Add the gradient of the plasticity term, ``strength * F * (params - anchor)`` (eq. 8).

    Place it before the transformations that turn a gradient into a step, as one would
    ``optax.add_decayed_weights``. Plain gradient descent on it diverges once
    ``learning_rate * strength * max(F) > 2``: :func:`proximal_plasticity` does not.

    Args:
      strength: eps of eq. 8, a number or scalar array >= 0, or a schedule of the update count.

    Returns:
      A transformation whose ``update(updates, state, params, mask=None)`` requires ``params``.
      ``mask`` limits the term: a tree of booleans like ``params`` or a prefix of it, each leaf
      broadcasting to its parameter; it may be traced. The dtype of the updates is kept.

    Raises:
      ValueError: for a strength that is negative, not finite or not a scalar; in ``update``, for
        missing ``params`` or trees whose structures or shapes differ.

    Example:
      >>> import jax, jax.numpy as jnp, optax, wpl_jax
      >>> tx = optax.chain(wpl_jax.add_plasticity(strength=8.0), optax.sgd(0.125))
      >>> params = {"w": jnp.array([1.0, 1.0])}
      >>> opt_state = tx.init(params)
      >>> fisher = {"w": jnp.array([0.5, 0.0])}  # the first model needs w[0] only
      >>> opt_state = wpl_jax.consolidate(opt_state, params, fisher)
      >>> loss = lambda params: -params["w"].sum()  # the second model pushes both up
      >>> for _ in range(16):
      ...     grads = jax.grad(loss)(params)
      ...     updates, opt_state = tx.update(grads, opt_state, params)
      ...     params = optax.apply_updates(params, updates)
      >>> print([f"{w:.2f}" for w in params["w"]])  # w[0] stops at anchor + 1 / (strength * F)
      ['1.25', '3.00']

    References:
      Benyahia et al., `Overcoming Multi-Model Forgetting <https://arxiv.org/abs/1902.08232>`_, 2019
    """
    _check_nonnegative("strength", strength)

    def step(eps, count):
        def add(update, param, anchor, fisher):
            distance = param.astype(fisher.dtype) - anchor.astype(fisher.dtype)
            pulled = update + eps * (fisher * distance)
            # Where a factor is 0 so is the term, even if another of them overflows.
            active = (eps != 0) & (fisher > 0) & (distance != 0)
            return jnp.where(active, pulled.astype(update.dtype), update)

        return add

    return _transformation(PlasticityState, strength, step)


def proximal_plasticity(
    strength: ScalarOrSchedule, learning_rate: ScalarOrSchedule
) -> optax.GradientTransformationExtraArgs:
    r"""Apply the plasticity term implicitly: a proximal step, stable for every strength.

    Place it last in the chain, where the updates are the step about to be taken. With θ' the
    weights after that step and η the learning rate, the new weights minimise the plasticity term
    plus the squared distance to θ':

    .. math::
        \frac{\varepsilon}{2} \sum_i F_i\, (\theta_i - \text{anchor}_i)^2
        + \frac{1}{2 \eta} \lVert\theta - \theta'\rVert^2

    Setting the gradient to zero, one equation for each weight, gives

    .. math::
        \theta_i = \frac{\theta'_i + c_i\, \text{anchor}_i}{1 + c_i},
        \qquad c_i = \eta\, \varepsilon\, F_i

    a weighted mean of θ' and the anchor. It never overshoots, whereas the explicit form
    (:func:`add_plasticity`) multiplies the distance to the anchor by ``1 - c`` in each step and
    diverges where ``c > 2``. Without momentum both have the same fixed points, the stationary
    points of eq. 8.

    Args:
      strength: eps of eq. 8, a number or scalar array >= 0, or a schedule of the update count.
      learning_rate: that of the optimiser before it in the chain, in the same forms. Heavy-ball
        momentum ``m`` multiplies a steady gradient by ``1 / (1 - m)``, and the term is applied
        after it: for the fixed points of eq. 8 pass ``learning_rate / (1 - m)``; passing
        ``learning_rate`` means a strength ``1 - m`` times as large. After a preconditioner such as
        Adam the term is decoupled from the preconditioning, like the weight decay of AdamW.

    Returns:
      A transformation whose ``update(updates, state, params, mask=None)`` requires ``params``;
      ``mask`` as in :func:`add_plasticity`.

    Raises:
      ValueError: as :func:`add_plasticity`, for either argument.

    Example:
      >>> import jax.numpy as jnp, optax, wpl_jax
      >>> tx = optax.chain(optax.sgd(0.1), wpl_jax.proximal_plasticity(1e6, learning_rate=0.1))
      >>> params = jnp.array([1.0, 1.0])
      >>> opt_state = wpl_jax.consolidate(tx.init(params), params, fisher=jnp.array([1.0, 0.0]))
      >>> updates, opt_state = tx.update(jnp.array([5.0, 5.0]), opt_state, params)
      >>> print(optax.apply_updates(params, updates).round(4))  # held, and free
      [1.  0.5]
    """
    _check_nonnegative("strength", strength)
    _check_nonnegative("learning_rate", learning_rate)

    def step(eps, count):
        rate = _value(learning_rate, count) * eps

        def pull(update, param, anchor, fisher):
            # Capped short of overflow, where c / (1 + c) has long been 1.
            c = jnp.minimum(rate * fisher, jnp.finfo(fisher.dtype).max / 4)
            c = jnp.where(fisher > 0, c, 0)
            distance = anchor.astype(c.dtype) - param.astype(c.dtype)
            pulled = update / (1 + c) + c / (1 + c) * distance
            # The compiler knows the first of these where the rate is constant.
            active = (rate != 0) & (c != 0)
            return jnp.where(active, pulled.astype(update.dtype), update)

        return pull

    return _transformation(_ProximalState, strength, step)


def weight_plasticity(
    inner: optax.GradientTransformation,
    *,
    strength: ScalarOrSchedule,
    nll: Callable[[chex.ArrayTree, chex.ArrayTree], jax.Array] | None = None,
    fisher_decay: jax.typing.ArrayLike | None = None,
    max_norm: jax.typing.ArrayLike | None = None,
    learning_rate: ScalarOrSchedule | None = None,
    microbatch_size: int | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Wrap an optimiser so that one ``update`` trains, computes the Fisher and moves the anchor.

    For training many models in turn on one tree of shared weights, in one compiled step. ``update``
    takes, beside the usual arguments:

    * ``mask``: the weights of the model being trained, as in :func:`add_plasticity`. Outside it the
      step changes nothing: not the weights, not the inner optimiser's memory of them, not ``F``.
    * ``consolidate``: a boolean, traced or not; true in the last step of a model. After that step
      the empirical Fisher of ``batch`` at the *new* weights enters ``F`` and the anchor moves to
      them, as :func:`consolidate` does. Where it is false no Fisher is computed (``lax.cond``;
      under ``vmap`` over ``consolidate`` both branches run).
    * ``batch``: what the Fisher is computed from, with a leading example axis.

    The new weights are ``optax.apply_updates(params, updates)``: let no transformation that changes
    the updates come after this one, and none that hides weights from ``nll`` (``optax.masked``,
    ``optax.partition``) around it. ``optax.inject_hyperparams`` needs
    ``static_args=("nll", "microbatch_size")``.

    Args:
      inner: the optimiser, e.g. ``optax.sgd(0.1)``.
      strength: eps of eq. 8, a number or scalar array >= 0, or a schedule of the update count.
      nll: ``nll(params, example)``, the negative log-likelihood of one example.
      fisher_decay: ``decay`` of :func:`consolidate`; the paper's ``1 - eta`` is 0.1.
      max_norm: that of :func:`consolidate`.
      learning_rate: where given, the implicit form (:func:`proximal_plasticity`) is used.
      microbatch_size: that of :func:`wpl_jax.empirical_fisher`.

    Returns:
      A transformation with ``update(grads, state, params, *, batch=None, consolidate=False,
      mask=None)``. Further extra arguments reach ``inner``.

    Raises:
      ValueError: as the functions named above; in ``update``, when ``consolidate`` is asked for
        without ``batch`` or ``nll``.

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
    _check_optional(fisher_decay=fisher_decay, max_norm=max_norm)
    estimate_fisher = None if nll is None else empirical_fisher(nll, microbatch_size)
    if learning_rate is None:
        chained = optax.chain(add_plasticity(strength), inner)
    else:
        chained = optax.chain(inner, proximal_plasticity(strength, learning_rate))

    def update_fn(
        updates, state, params=None, *, batch=None, consolidate=False, mask=None, **extra_args
    ):
        updates, new_state = chained.update(updates, state, params, mask=mask, **extra_args)
        if mask is not None:
            updates, new_state = _freeze_outside(mask, params, chained, updates, new_state, state)
        if consolidate is False:
            return updates, new_state
        if batch is None or estimate_fisher is None:
            missing = "batch" if batch is None else "nll"
            raise ValueError(f"consolidate needs {missing}, to compute the Fisher from")

        def move_anchor(opt_state):
            new_params = optax.apply_updates(params, updates)
            fisher = estimate_fisher(new_params, batch)
            return _replace_state(
                opt_state,
                lambda s: _consolidate(s, new_params, fisher, fisher_decay, mask, max_norm),
            )

        return updates, jax.lax.cond(consolidate, move_anchor, lambda s: s, new_state)

    return optax.GradientTransformationExtraArgs(chained.init, update_fn)


def consolidate(
    opt_state: chex.ArrayTree,
    params: chex.ArrayTree,
    fisher: chex.ArrayTree,
    *,
    decay: jax.typing.ArrayLike | None = None,
    mask: chex.ArrayTree | None = None,
    max_norm: jax.typing.ArrayLike | None = None,
) -> chex.ArrayTree:
    """Protect ``params`` from now on: the anchor moves to them and their Fisher enters ``F``.

    Call it when a model has been trained, before the next one is. Entries of ``fisher`` that are
    not finite or negative never enter the state: they count as 0, and the number of them is added
    to ``rejected`` of the :class:`PlasticityState` (``optax.tree.get(opt_state, "rejected")``).

    How large the entries may get is the caller's choice. ``max_norm`` clips each tensor's norm; a
    Fisher divided by its mean beforehand makes strengths comparable between models.

    Args:
      opt_state: any tree that holds one :class:`PlasticityState`: an optax state, a Linen
        ``TrainState``, the ``opt_state`` of an ``nnx.Optimizer``.
      params: the weights to anchor at. They are copied. Where the transformation sits inside
        ``optax.masked`` or ``optax.partition``, pass the whole trees: it takes its own part.
      fisher: their diagonal Fisher, a tree like ``params``.
      decay: ``None`` replaces ``F`` by ``fisher``; a number makes it ``decay * F + fisher``, for
        many models in turn (section 3.2, where it is ``1 - eta = 0.1``).
      mask: booleans like ``params`` or a prefix of them; outside it, anchor and ``F`` stay.
      max_norm: rescales each tensor of ``fisher``, inside the mask, to at most this Euclidean norm.

    Returns:
      ``opt_state`` with a new plasticity state in it. Its structure and dtypes do not change.

    Raises:
      ValueError: if ``opt_state`` holds no plasticity state or several, if a tree does not match
        (the message names the first path that differs), or for a negative ``decay`` or
        ``max_norm``.

    Example:
      >>> import jax.numpy as jnp, optax, wpl_jax
      >>> tx = optax.chain(wpl_jax.add_plasticity(1.0), optax.adam(1e-3))
      >>> params = {"w": jnp.ones(2)}
      >>> opt_state = tx.init(params)
      >>> for fisher in [jnp.array([1.0, 2.0]), jnp.array([0.0, jnp.nan])]:
      ...     opt_state = wpl_jax.consolidate(opt_state, params, {"w": fisher}, decay=0.1)
      >>> print(optax.tree.get(opt_state, "fisher")["w"], optax.tree.get(opt_state, "rejected"))
      [0.1 0.2] 1
    """
    _check_optional(decay=decay, max_norm=max_norm)
    return _replace_state(
        opt_state, lambda s: _consolidate(s, params, fisher, decay, mask, max_norm)
    )


def flush(opt_state: chex.ArrayTree) -> chex.ArrayTree:
    """Set ``F`` to zero (section 3.2: every three epochs), so that nothing is protected.

    Args:
      opt_state: as in :func:`consolidate`.

    Returns:
      ``opt_state`` with the Fisher in its plasticity state zero.

    Raises:
      ValueError: if ``opt_state`` holds no plasticity state or several.

    Example:
      >>> import jax.numpy as jnp, optax, wpl_jax
      >>> tx = wpl_jax.add_plasticity(1.0)
      >>> params = jnp.ones(2)
      >>> opt_state = wpl_jax.consolidate(tx.init(params), params, jnp.ones(2))
      >>> wpl_jax.flush(opt_state).fisher
      Array([0., 0.], dtype=float32)
    """
    return _replace_state(opt_state, lambda s: s._replace(fisher=optax.tree.zeros_like(s.fisher)))


def plasticity_loss(
    opt_state: chex.ArrayTree, params: chex.ArrayTree, strength: ScalarOrSchedule
) -> jax.Array:
    """The plasticity term of eq. 8: ``strength/2 * sum F (params - anchor)**2``.

    For logging, or for training on it directly: its gradient with respect to ``params`` is what
    :func:`add_plasticity` adds.

    Args:
      opt_state: as in :func:`consolidate`.
      params: the weights, whole, as in :func:`consolidate`.
      strength: eps; a schedule is read at the state's count.

    Returns:
      A scalar, in the units of the loss (nats, if the Fisher is that of a log-likelihood).

    Raises:
      ValueError: as :func:`consolidate`, and for a strength as in :func:`add_plasticity`.

    Example:
      >>> import jax.numpy as jnp, optax, wpl_jax
      >>> params = jnp.array([1.0, 2.0])
      >>> opt_state = wpl_jax.add_plasticity(10.0).init(params)
      >>> opt_state = wpl_jax.consolidate(opt_state, params, fisher=jnp.array([0.5, 0.0]))
      >>> wpl_jax.plasticity_loss(opt_state, params + 1.0, strength=10.0)
      Array(2.5, dtype=float32)
    """
    _check_nonnegative("strength", strength)
    state = _find_state(opt_state)
    total = jnp.zeros([])
    for param, anchor, fisher in zip(
        align("params", params, state.anchor),
        jax.tree.leaves(state.anchor),
        jax.tree.leaves(state.fisher),
        strict=True,
    ):
        distance = param.astype(fisher.dtype) - anchor.astype(fisher.dtype)
        total += jnp.sum(fisher * distance**2)
    return _value(strength, state.count) / 2 * total


def _transformation(state_type, strength, step):
    """Build one from ``step(eps, count)(update, param, anchor, fisher)``, a tensor's new update."""

    def init_fn(params):
        return state_type(
            count=jnp.zeros([], jnp.int32),
            # Copies: a donated step may not be given the same buffer as params and as state.
            anchor=jax.tree.map(_copy, params),
            fisher=jax.tree.map(
                lambda p: jnp.zeros_like(p, dtype=jnp.promote_types(p.dtype, jnp.float32)), params
            ),
            rejected=jnp.zeros([], jnp.int32),
            consolidations=jnp.zeros([], jnp.int32),
            last_strength=jnp.array(_value(strength, 0), float),  # a copy, for the same reason
        )

    def update_fn(updates, state, params=None, *, mask=None, **extra_args):
        del extra_args
        if params is None:
            raise ValueError(
                "plasticity needs the parameters: call update(grads, opt_state, params)"
            )
        eps = _value(strength, state.count)
        apply = step(eps, state.count)

        def apply_inside(update, param, anchor, fisher, inside):
            if update is None:
                return None
            new = apply(update, param, anchor, fisher)
            return new if inside is None else jnp.where(inside, new, update)

        new_updates = map(
            apply_inside,
            align("updates", updates, state.anchor),
            align("params", params, state.anchor),
            jax.tree.leaves(state.anchor),
            jax.tree.leaves(state.fisher),
            align_mask(mask, state.anchor),
        )
        new_state = state._replace(
            count=optax.safe_increment(state.count), last_strength=jnp.array(eps, float)
        )
        return jax.tree.unflatten(jax.tree.structure(state.anchor), new_updates), new_state

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def _consolidate(state, params, fisher, decay, mask, max_norm):
    """The work of :func:`consolidate`, on the plasticity state itself."""
    anchors, fishers = [], []
    rejected = jnp.zeros([], jnp.int32)
    for param, new, anchor, old, inside in zip(
        align("params", params, state.anchor),
        align("fisher", fisher, state.anchor),
        jax.tree.leaves(state.anchor),
        jax.tree.leaves(state.fisher),
        align_mask(mask, state.anchor),
        strict=True,
    ):
        inside = jnp.ones([], bool) if inside is None else inside
        new = jnp.asarray(new).astype(old.dtype)  # first: what overflows there is not finite
        valid = (new >= 0) & (new < jnp.inf)
        rejected += jnp.sum(inside & ~valid, dtype=jnp.int32)
        new = jnp.where(inside & valid, new, 0)
        if max_norm is not None:
            new = _clip_norm(new, max_norm)
        if decay is not None:
            new = jnp.minimum(new + decay * old, jnp.finfo(old.dtype).max)
        anchors.append(jnp.where(inside, param, anchor).astype(anchor.dtype))
        fishers.append(jnp.where(inside, new, old).astype(old.dtype))

    def unflatten(leaves):
        return jax.tree.unflatten(jax.tree.structure(state.anchor), leaves)

    return state._replace(
        anchor=unflatten(anchors),
        fisher=unflatten(fishers),
        rejected=jax.tree.map(lambda r: jnp.maximum(r, r + rejected), state.rejected),
        consolidations=jax.tree.map(optax.safe_increment, state.consolidations),
    )


def _clip_norm(x, max_norm):
    _, exponent = jnp.frexp(jnp.max(x, initial=0))
    scaled = jnp.ldexp(x, -exponent)  # in [0, 1): the squares can neither overflow nor vanish
    norm = jnp.linalg.norm(jnp.ravel(scaled))
    return jnp.where(jnp.ldexp(norm, exponent) > max_norm, scaled * (max_norm / norm), x)


def _freeze_outside(mask, params, tx, updates, new_state, old_state):
    """Undo an update outside the mask: in the updates and in every weight's optimiser state."""
    inside = jax.tree.unflatten(jax.tree.structure(params), align_mask(mask, params))
    updates = jax.tree.map(
        # x + -0.0 is x for every x; x + 0.0 is not, for x = -0.0.
        lambda u, i: None if u is None else jnp.where(i, u, jnp.full_like(u, -0.0)),
        updates,
        inside,
        is_leaf=lambda x: x is None,
    )

    def mask_of(leaf, i):
        if is_hidden(leaf):
            return leaf
        # Memory that weights share (adafactor's factors) moves with any of them.
        return i if leaf.shape == i.shape else jnp.any(i)

    state_mask = optax.tree.map_params(
        tx,
        mask_of,
        new_state,
        inside,
        transform_non_params=lambda _: jnp.ones([], bool),
        is_leaf=is_hidden,
    )
    return updates, jax.tree.map(jnp.where, state_mask, new_state, old_state)


def _find_state(opt_state):
    leaves = jax.tree.leaves_with_path(opt_state, is_leaf=_is_state)
    found = [(path, leaf) for path, leaf in leaves if _is_state(leaf)]
    if not found:
        raise ValueError(
            "opt_state holds no plasticity state: was it made by an optimiser that contains "
            f"add_plasticity, proximal_plasticity or weight_plasticity? Got a {type(opt_state)}"
        )
    if len(found) > 1:
        places = ", ".join(path_name(path) for path, _ in found)
        raise ValueError(
            f"opt_state holds {len(found)} plasticity states, at {places}: pass the part of it "
            "that holds the one you mean, and put the result back in its place"
        )
    return found[0][1]


def _replace_state(opt_state, fn):
    """``opt_state`` with ``fn`` of its one plasticity state in the place of it."""
    new_state = fn(_find_state(opt_state))
    return jax.tree.map(lambda s: new_state if _is_state(s) else s, opt_state, is_leaf=_is_state)


def _is_state(x):
    return isinstance(x, PlasticityState)


def _copy(x):
    return jnp.array(x, copy=True)


def _value(scalar_or_schedule, count):
    return scalar_or_schedule(count) if callable(scalar_or_schedule) else scalar_or_schedule


def _check_optional(**named):
    for name, value in named.items():
        if value is not None:
            _check_nonnegative(name, value)


def _check_nonnegative(name, value):
    """Refuse what is known to be wrong; schedules and traced values cannot be read here."""
    if callable(value) or isinstance(value, jax.core.Tracer):
        return
    if np.ndim(value) != 0:
        raise ValueError(f"{name} must be a scalar, got an array of shape {np.shape(value)}")
    if not 0 <= float(value) < float("inf"):
        raise ValueError(f"{name} must be finite and not negative, got {value}")
