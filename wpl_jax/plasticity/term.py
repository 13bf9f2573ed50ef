"""What all forms of the term share: its strength, Fishers and distances, and how it is applied."""

import functools
import weakref
from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
import optax

from wpl_jax.numbers import capped, floating, widen, widened
from wpl_jax.plasticity.state import PlasticityState, ProximalState
from wpl_jax.trees import (
    align,
    align_mask,
    is_hidden,
    leaves_by_path,
    resolve_mask,
    to_device,
)

__all__: list[str] = []

ScalarOrSchedule: TypeAlias = jax.typing.ArrayLike | optax.Schedule


class Term(NamedTuple):
    """What the term is made of, for all tensors with an update: lists of equal length."""

    strength: jax.typing.ArrayLike
    fishers: list[jax.Array]
    distances: list[jax.Array]  # params - anchor, in float32 or wider


def transformation(
    state_type: type[PlasticityState],
    strength: ScalarOrSchedule,
    apply: Callable[[list[jax.Array], Term, jax.Array], list[jax.Array]],
    fisher_dtype: Any,
    anchor_dtype: Any,
) -> optax.GradientTransformationExtraArgs:
    """Build a transformation from ``apply(updates, term, count)``, which gives the new updates."""
    _check_dtypes(fisher_dtype, anchor_dtype)

    def init_fn(params):
        count = jnp.zeros([], jnp.int32)
        return state_type(
            count=count,
            anchor=jax.tree.map(lambda p: _anchor(p, anchor_dtype), params),
            fisher=jax.tree.map(lambda p: _no_fisher(p, fisher_dtype), params),
            rejected=jnp.zeros([], jnp.int32),
            consolidations=jnp.zeros([], jnp.int32),
            # A copy, as the anchor is.
            last_strength=jnp.array(capped(value_at(strength, count)), float),
        )

    def update_fn(updates, state, params=None, *, mask=None, **extra_args):
        del extra_args
        if params is None:
            raise ValueError(
                "plasticity needs the parameters: call update(grads, opt_state, params)"
            )
        mask = resolve_mask(mask, params)
        eps = value_at(strength, state.count)
        new_updates = align("updates", updates, state.anchor, optional=True)
        given = leaves_by_path(updates)
        here = [i for i, update in enumerate(new_updates) if update is not None]
        _refuse_pulled(new_updates)

        def at_updates(leaves):
            return [leaves[i] for i in here]

        params = at_updates(align("params", params, state.anchor))
        insides = at_updates(align_mask(mask, state.anchor))
        olds = at_updates(new_updates)
        anchors = at_updates(jax.tree.leaves(state.anchor))
        term = Term(
            strength=eps,
            fishers=list(map(importance, at_updates(jax.tree.leaves(state.fisher)))),
            distances=list(map(distance, params, anchors)),
        )
        for i, old, new, inside in zip(
            here, olds, apply(olds, term, state.count), insides, strict=True
        ):
            new_updates[i] = new if inside is None else jnp.where(inside, new, old)
        if state_type is ProximalState:
            _remember_pulled(new_updates)
        new_state = state._replace(
            count=optax.safe_increment(state.count), last_strength=_kept_like(state, eps)
        )
        in_order = iter(new_updates)
        new_leaves = [
            given.get(path, leaf) if is_hidden(leaf) else next(in_order)
            for path, leaf in leaves_by_path(state.anchor).items()
        ]
        structure = jax.tree.structure(state.anchor, is_leaf=is_hidden)
        return jax.tree.unflatten(structure, new_leaves), new_state

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def distance(param: jax.Array, anchor: jax.Array) -> jax.Array:
    """``param - anchor``, taken before anything is rounded to a narrower dtype."""
    param, anchor = widened(to_device(param), to_device(anchor))
    return param - anchor


def importance(fisher: jax.Array) -> jax.Array:
    """``F``, in float32 or wider, to be computed with."""
    return widen(to_device(fisher))


@functools.partial(jax.jit, static_argnames="dtype")
def zeros_in_place(leaf: jax.Array, dtype: Any) -> jax.Array:
    """Zeros that lie on the devices that ``leaf`` does, as they are computed of it."""
    return jnp.where(leaf == leaf, jnp.zeros([], dtype), jnp.zeros([], dtype))


def value_at(scalar_or_schedule: ScalarOrSchedule, count: Any) -> jax.typing.ArrayLike:
    """The number, or what the schedule gives at ``count``, floating-point."""
    if not callable(scalar_or_schedule):
        return floating(scalar_or_schedule)
    value = floating(scalar_or_schedule(count))
    if not isinstance(value, float) and not hasattr(value, "dtype"):
        raise ValueError(f"a schedule must give a number, got {value!r}")
    if jnp.ndim(value):
        raise ValueError(f"a schedule must give a scalar, got one of shape {jnp.shape(value)}")
    return value


def check_nonnegative(**named: Any) -> None:
    """Refuse what is known to be wrong; schedules and traced values cannot be read here."""
    for name, value in named.items():
        if callable(value) or isinstance(value, jax.core.Tracer):
            continue
        if not isinstance(value, (bool, int, float, np.ndarray, np.generic, jax.Array)):
            raise ValueError(f"{name} must be a number or an array of one, got {value!r}")
        if np.ndim(value) != 0:
            raise ValueError(f"{name} must be a scalar, got an array of shape {np.shape(value)}")
        if not 0 <= float(value) < float("inf"):
            raise ValueError(f"{name} must be finite and not negative, got {value}")


def _check_dtypes(fisher_dtype, anchor_dtype):
    for name, dtype in (("fisher_dtype", fisher_dtype), ("anchor_dtype", anchor_dtype)):
        wanted = jnp.floating if name == "fisher_dtype" else jnp.inexact
        # One format of 8 bits has neither a sign nor 0.
        if dtype is not None and not (
            jnp.issubdtype(dtype, wanted) and float(jnp.finfo(dtype).min) < 0
        ):
            raise ValueError(
                f"{name} must be a floating-point dtype with 0 and a sign, such as jnp.bfloat16, "
                f"got {dtype}"
            )


def _kept_like(state, eps):
    """The strength as an array; ``where`` gives it the sharding and mesh axes of the state's."""
    last = state.last_strength
    eps = jnp.asarray(capped(eps), last.dtype)
    return jnp.where(last == last, eps, eps)


# What came out of proximal terms and is still in use, by identity: a term after one is a mistake
# that cannot be seen in the numbers.
_pulled: weakref.WeakValueDictionary[int, jax.Array] = weakref.WeakValueDictionary()


def _remember_pulled(updates):
    _pulled.update((id(u), u) for u in updates if u is not None)


def _refuse_pulled(updates):
    if any(u is not None and _pulled.get(id(u)) is u for u in updates):
        raise ValueError(
            "the updates come out of proximal_plasticity, which has to be last: a second proximal "
            "term would undo the first, and an additive term would push away from its anchor. To "
            'protect several models use one term and consolidate(..., decay=1.0, anchor="mean"). '
            "add_plasticity goes before the optimiser"
        )


def _is_key(param):
    """Whether it is one of JAX's typed keys, which nothing pulls: the state leaves it out."""
    return jnp.issubdtype(jnp.result_type(param), jax.dtypes.prng_key)


def _anchor(param, dtype):
    """A copy: a donated step may not be given the same buffer as params and as state."""
    if _is_key(param):
        return optax.MaskedNode()
    dtype = jnp.result_type(param) if dtype is None else dtype
    if jnp.iscomplexobj(param):
        dtype = jnp.promote_types(dtype, jnp.complex64)
    return jax.lax.convert_element_type(jnp.array(param, copy=True), dtype)


def _no_fisher(param, dtype):
    if _is_key(param):
        return optax.MaskedNode()
    if dtype is None:
        dtype = jnp.real(widen(jnp.zeros([], jnp.result_type(param)))).dtype
    return zeros_in_place(to_device(jnp.asarray(param)), dtype)
