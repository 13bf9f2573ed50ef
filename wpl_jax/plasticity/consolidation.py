"""Between two models: set the anchor and the Fisher of the one that has been trained."""

import functools
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax

from wpl_jax.modules import parameters, trained_part
from wpl_jax.numbers import capped, differentiated_as, floating, rounded, widened
from wpl_jax.plasticity.state import PlasticityState, replace, scalar
from wpl_jax.plasticity.term import check_nonnegative, distance, importance, zeros_in_place
from wpl_jax.trees import (
    align,
    align_mask,
    align_scalars,
    place_like,
    resolve_mask,
    store_like,
    to_device,
)
from wpl_jax.varying import varying_axes

__all__ = ["consolidate", "flush"]


def consolidate(
    opt_state: chex.ArrayTree,
    params: chex.ArrayTree,
    fisher: chex.ArrayTree,
    *,
    decay: jax.typing.ArrayLike | None = None,
    mask: Any = None,
    max_norm: jax.typing.ArrayLike | None = None,
    anchor: str = "latest",
) -> chex.ArrayTree:
    """Protect ``params`` from now on: the anchor moves to them and their Fisher enters ``F``.

    Call it when a model has been trained, before the next one is. Negative entries and entries that
    are not finite are refused: such an entry of ``fisher`` counts as 0, and where a parameter is
    not finite its anchor and ``F`` stay as they were. Their number is added to ``rejected`` of the
    :class:`PlasticityState`, which ``optax.tree.get(opt_state, "rejected")`` reads.

    When several models are trained in turn, there are two ways to combine them. They agree only
    where a model's weights are at the anchor. For each entry, with ``f`` for ``fisher`` and ``d``
    for ``decay``:

    * ``anchor="latest"``: ``F <- d F + f``, ``anchor <- params``. Everything is pulled to the
      latest weights, as in the paper and in online EWC (Schwarz et al., 2018).
    * ``anchor="mean"``: ``anchor <- (d F anchor + f params) / (d F + f)``, ``F <- d F + f``. Up to
      a constant, the term is then the sum of each model's own penalty around its own weights, where
      a model's penalty is multiplied by ``d`` for every model after it. With ``d = 1`` this is EWC
      (Kirkpatrick et al., 2017). (Where ``F`` is exactly 0 an earlier anchor is not kept, so
      derivatives with respect to ``d`` or an earlier Fisher cannot account for it.)

    ``max_norm`` limits how large the entries can get. To make one strength mean the same for
    different models, divide each Fisher by its mean before you pass it.

    Args:
      opt_state: any tree that holds one :class:`PlasticityState`: an optax state, a Linen
        ``TrainState``, the ``opt_state`` of an ``nnx.Optimizer``, or an ``nnx.Optimizer`` itself.
        The last is changed in place, as its own ``update`` does, and returned.
      params: the weights to set the anchor to, or the ``nnx.Module`` that has them. They are
        copied. If the transformation sits inside ``optax.masked`` or ``optax.partition``, or in an
        ``nnx.Optimizer`` of some parameters alone (its ``wrt``), pass the whole trees; it takes its
        own part of them.
      fisher: the diagonal Fisher of the model at ``params``, or another importance, a tree like
        ``params``. What is absent or None counts as 0. A scalar stands for all entries below its
        place: ``1.0`` makes the term the squared distance to the anchor, known as L2-SP.
      decay: ``None`` replaces ``F`` by ``fisher``. A number makes it ``decay * F + fisher``, for
        many models in turn (section 3.2, where ``1 - eta`` is 0.1).
      mask: a tree of booleans like ``params``, a prefix of that tree, or a function that gives one
        for ``params``. Outside it the anchor and ``F`` stay as they were.
      max_norm: scales each tensor of ``fisher`` down to at most this Euclidean norm, inside the
        mask.
      anchor: ``"latest"`` or ``"mean"``, as above. ``"mean"`` needs a ``decay``.

    Returns:
      ``opt_state`` with a new plasticity state in it. Its structure and dtypes do not change.

    Raises:
      ValueError: if ``opt_state`` holds no plasticity state or several; if a tree does not match
        (the message names the first path that differs); for a negative ``decay`` or ``max_norm``;
        or for ``anchor="mean"`` without ``decay``.

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
    check_consolidation(anchor, decay=decay, max_norm=max_norm)
    fisher = trained_part(fisher, params, opt_state)
    mask = trained_part(mask, params, opt_state)
    params = parameters(params, opt_state)
    return replace(
        opt_state, lambda s: consolidated(s, params, fisher, decay, mask, max_norm, anchor)
    )


def flush(opt_state: chex.ArrayTree) -> chex.ArrayTree:
    """Set ``F`` to zero, so that nothing is protected until the next consolidation.

    The paper's searches do this every three epochs (section 3.2).

    Args:
      opt_state: as in :func:`consolidate`.

    Returns:
      ``opt_state`` with a Fisher of zeros in its plasticity state.

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

    def zero(fisher):
        return store_like(zeros_in_place(to_device(fisher), fisher.dtype), fisher)

    return replace(opt_state, lambda s: s._replace(fisher=jax.tree.map(zero, s.fisher)))


def check_consolidation(anchor: str, decay: Any, max_norm: Any, decay_name: str = "decay") -> None:
    """Refuse options that are known to be wrong."""
    given = {decay_name: decay, "max_norm": max_norm}
    check_nonnegative(**{name: value for name, value in given.items() if value is not None})
    if anchor not in ("latest", "mean"):
        raise ValueError(f'anchor must be "latest" or "mean", got {anchor!r}')
    if anchor == "mean" and decay is None:
        raise ValueError(
            f'anchor="mean" weighs the models by their Fishers, but {decay_name}=None forgets the '
            f"earlier ones: pass {decay_name}=1.0 to keep the penalties of all models"
        )


def consolidated(
    state: PlasticityState,
    params: chex.ArrayTree,
    fisher: chex.ArrayTree,
    decay: jax.typing.ArrayLike | None = None,
    mask: Any = None,
    max_norm: jax.typing.ArrayLike | None = None,
    anchor: str = "latest",
) -> PlasticityState:
    """The work of :func:`consolidate`, on the plasticity state itself."""
    mask = resolve_mask(mask, params)
    anchors, olds = jax.tree.leaves(state.anchor), jax.tree.leaves(state.fisher)
    new_anchors, new_fishers, rejected = _consolidated(
        list(map(to_device, align("params", params, state.anchor))),
        list(map(to_device, align_scalars("fisher", jax.tree.map(floating, fisher), state.anchor))),
        list(map(to_device, anchors)),
        list(map(to_device, olds)),
        align_mask(mask, state.anchor),
        scalar(state.consolidations),
        scalar(state.rejected),
        *(capped(floating(number)) for number in (decay, max_norm)),
        anchor,
    )

    def unflatten(leaves, references):
        leaves = map(store_like, leaves, references)
        return jax.tree.unflatten(jax.tree.structure(state.anchor), leaves)

    return state._replace(
        anchor=unflatten(new_anchors, anchors),
        fisher=unflatten(new_fishers, olds),
        rejected=jax.tree.map(lambda r: jnp.maximum(r, r + rejected), state.rejected),
        consolidations=jax.tree.map(optax.safe_increment, state.consolidations),
    )


# Compiled, or else each operation on each shape is a program of its own.
@functools.partial(jax.jit, static_argnames="anchor")
def _consolidated(
    params, fishers, anchors, olds, insides, consolidations, counted, decay, max_norm, anchor
):
    """The new anchors and Fishers of all tensors, and how many entries are refused."""
    counted_on = varying_axes(counted)

    def of_one_model(params, fishers, anchors, olds, insides, consolidations):
        rejected = jnp.zeros([], jnp.int32)
        new_anchors, new_fishers = [], []
        for i, (param, new, old_anchor, old, inside) in enumerate(
            zip(params, fishers, anchors, olds, insides, strict=True)
        ):
            inside = jnp.ones([], bool) if inside is None else inside
            new, param, inside, refused = _accept(new, param, old_anchor, old, inside)
            # In a shard_map, where it is known that a tensor is cut over devices and counters are
            # not, what is said of the tensor is said of all its pieces.
            axes = tuple(varying_axes(old_anchor) - counted_on)
            rejected += jax.lax.psum(refused, axes) if axes else refused
            if max_norm is not None:
                new = _clip_norm(new, max_norm, axes)
            kept = jnp.zeros([], new.dtype)
            if decay is not None:
                # One that is traced cannot be refused, and must not make F negative.
                share = jnp.asarray(decay, new.dtype)
                kept = importance(old) * jnp.where((share >= 0) & (share < jnp.inf), share, 0)
            new_anchor = param
            if anchor == "mean":
                new_anchor = _weighted_mean(old_anchor, kept, param, new)
            total = jnp.minimum(kept + new, _largest(old))
            total = _round(total, old.dtype, consolidations, 2 * i)
            if anchor == "mean":
                new_anchor = _round(new_anchor, old_anchor.dtype, consolidations, 2 * i + 1)
            new_anchor = new_anchor.astype(old_anchor.dtype)
            new_anchors.append(jnp.where(inside, new_anchor, old_anchor))
            new_fishers.append(jnp.where(inside, total, old))
        return new_anchors, new_fishers, rejected

    for _ in range(consolidations.ndim):  # of stacked or replicated states, each on its own
        of_one_model = jax.vmap(of_one_model)
    return of_one_model(params, fishers, anchors, olds, insides, consolidations)


def _accept(new, param, anchor, old, inside):
    """The new Fisher and weights where valid and else 0, where to use both, what is refused.

    Comparisons alone, so that ``jax_debug_nans`` finds nothing of its own.
    """
    if jnp.iscomplexobj(new):
        raise ValueError(
            f"fisher must be real, got {new.dtype}: of a complex parameter, the mean squared "
            "absolute value of the gradient"
        )
    if jnp.iscomplexobj(param) and not jnp.iscomplexobj(anchor):
        raise ValueError(
            f"params are {param.dtype} where those given to init were {anchor.dtype}: initialise "
            "the optimiser with the parameters that it is used for"
        )
    # What overflows in the dtype of the state is not finite there.
    new, _ = widened(new, old)
    valid = (new >= 0) & (new <= _largest(old))
    here = jnp.isfinite(param)
    if jnp.issubdtype(param.dtype, jnp.floating):
        wide, _ = widened(param, anchor)
        here = (wide >= -_largest(anchor)) & (wide <= _largest(anchor))
    refused = jnp.sum(inside & ~(valid & here), dtype=jnp.int32)
    new = jnp.where(inside & valid & here, new, 0).astype(importance(old).dtype)
    return new, jnp.where(here, param, 0), inside & here, refused


def _largest(array):
    return float(jnp.finfo(array.dtype).max)


def _mean(anchor, kept, param, new):
    """``(kept anchor + new param) / (kept + new)``."""
    total = kept + new
    share = jnp.where(total > 0, new / jnp.where(total > 0, total, 1), 1)
    away = distance(param, anchor)
    return anchor.astype(away.dtype) + share * away


@differentiated_as(_mean)
def _weighted_mean(anchor, kept, param, new):
    """The mean for numbers of any size; where nothing was kept, ``param`` itself, bit for bit."""
    # Of the sum, which may overflow, the share of the new one.
    share = jnp.where(new > 0, 1 / (1 + kept / jnp.where(new > 0, new, 1)), 0)
    away = distance(param, anchor)
    return jnp.where(kept > 0, anchor.astype(away.dtype) + share * away, param.astype(away.dtype))


def _clip_norm(x, max_norm, axes):
    largest = jax.lax.stop_gradient(jnp.max(x, initial=0))  # any size does, so it has no derivative
    largest = jax.lax.pmax(largest, axes) if axes else largest
    largest = jnp.where(largest > 0, largest, 1)
    scaled = x / largest  # in [0, 1]: the squares can neither overflow nor vanish
    squares = jnp.sum(scaled**2)
    squares = jax.lax.psum(squares, axes) if axes else squares
    share = jnp.maximum(max_norm, 0) / jnp.sqrt(jnp.where(squares > 0, squares, 1))
    return jnp.where(share < largest, scaled * share, x)


def _round(x, dtype, seed, number):
    """Round to a narrower dtype up or down at random, so that the mean is ``x``.

    Rounded to the nearest, a sum would stop to grow, or a mean to move, once what is added to it is
    less than half of the distance to the next number. The derivative is that of ``x``.
    """
    if not jnp.issubdtype(dtype, jnp.inexact):
        return jnp.round(x).astype(dtype)
    if jnp.iscomplexobj(x) or jnp.finfo(dtype).nmant >= jnp.finfo(x.dtype).nmant:
        return x.astype(dtype)
    nearest = rounded(x, dtype)
    fixed = jax.lax.stop_gradient(nearest)
    error = jax.lax.stop_gradient(x) - fixed
    largest = float(jnp.finfo(dtype).max)  # not all formats of 8 bits have infinities
    toward = jnp.where(error > 0, largest, -largest).astype(dtype)
    other = jnp.nextafter(fixed.astype(dtype), toward)
    gap = jnp.abs(other.astype(x.dtype) - fixed)
    share = jnp.abs(error) / jnp.where(gap > 0, gap, 1)
    key = jax.random.fold_in(jax.random.key(seed), number)
    step = jnp.where(_uniform(key, share) < share, other - fixed.astype(dtype), 0)
    return nearest.astype(dtype) + step.astype(dtype)


def _uniform(key, like):
    """Numbers in [0, 1), each a hash (MurmurHash3's finaliser) of the key and its entry's index.

    Those of ``jax.random`` would be as good, and take more memory than the state that they round.
    """
    bits = jnp.broadcast_to(jax.random.bits(key), like.shape)
    stride = 0x9E3779B9
    for axis in reversed(range(like.ndim)):
        index = jax.lax.broadcasted_iota(jnp.uint32, like.shape, axis)
        bits += index * np.uint32(stride % 2**32)
        stride *= like.shape[axis]
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        bits = (bits ^ (bits >> shift)) * np.uint32(factor)
    bits = place_like(bits ^ (bits >> 16), like)
    return (bits >> 8).astype(like.dtype) * 2.0**-24
