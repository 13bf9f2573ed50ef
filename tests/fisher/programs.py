"""A grammar of small losses, drawn at random, for comparing estimators with `vmap(grad)`.

A drawn :class:`Program` is Python source, so that what fails can be read, and pasted. Values have
kinds, words of the letters in ``SIZES``: ``"TD"`` is an array [steps, width]. The grammar is tables
of expressions with holes (:meth:`Builder.fill` lists them), and a few forms, such as loops, with
bodies that are drawn themselves. Simple expressions come first: hypothesis shrinks towards them.
"""

import collections
import contextlib
import dataclasses
import re
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import strategies as st

FLOATS = ("float32", "bfloat16", "float16", "float64")

# Steps, width, rows of a table, layers, rank, taps of a kernel, groups, one.
SIZES = {
    "T": [2, 1, 3, 5],
    "D": [2, 4],
    "K": [5],
    "L": [2, 1, 3, 0],
    "R": [1, 2],
    "C": [2, 1],
    "O": [1],
}

# --- What programs may call -----------------------------------------------------------------------


@jax.custom_vjp
def clip_gradient(x):
    return x


clip_gradient.defvjp(lambda x: (x, None), lambda _, g: (jnp.clip(g, -0.1, 0.1),))


@jax.custom_vjp
def steep_gradient(x):
    return x


steep_gradient.defvjp(lambda x: (x, None), lambda _, g: (jnp.tanh(4 * g),))


@jax.custom_vjp
def unit_gradient(x):
    return x


unit_gradient.defvjp(
    lambda x: (x, None), lambda _, g: (g * jax.lax.rsqrt(0.01 + jnp.sum(g**2)).astype(g.dtype),)
)


@jax.custom_vjp
def doubled_gradient(x):
    return x


doubled_gradient.defvjp(lambda x: (x, None), lambda _, g: (2 * g,))


@jax.custom_vjp
def clipped_dense(x, w):
    return x @ w


clipped_dense.defvjp(
    lambda x, w: (x @ w, (x, w)),
    lambda saved, g: (
        (g @ saved[1].T).astype(saved[0].dtype),
        jnp.clip(jnp.outer(saved[0], g) if g.ndim == 1 else saved[0].T @ g, -0.1, 0.1).astype(
            saved[1].dtype
        ),
    ),
)


@jax.custom_jvp
def hard_tanh(x):
    return jnp.clip(x, -1, 1)


@hard_tanh.defjvp
def _(primals, tangents):
    (x,), (t,) = primals, tangents
    return hard_tanh(x), t * (1 - jnp.tanh(x) ** 2)


def conv(x, kernel, dims, **options):
    """One example, with the types of its two operands promoted."""
    x, kernel = (y.astype(jnp.result_type(x, kernel)) for y in (x, kernel))
    spatial = kernel.ndim - 2
    options = {"window_strides": (1,) * spatial, "padding": "SAME"} | options
    return jax.lax.conv_general_dilated(x[None], kernel, dimension_numbers=dims, **options)[0]


def conv1(x, kernel, **options):
    return conv(x, kernel, ("NWC", "WIO", "NWC"), **options)


def conv2(x, kernel, **options):
    return conv(x, kernel, ("NHWC", "HWIO", "NHWC"), **options)


def integers(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).integers(-2, 3, size=shape), jnp.int32)


def mask(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).integers(2, size=shape) > 0)


NAMES = {
    f.__name__: f
    for f in (
        clip_gradient,
        steep_gradient,
        unit_gradient,
        doubled_gradient,
        clipped_dense,
        hard_tanh,
        conv1,
        conv2,
        integers,
        mask,
    )
}
NAMES |= {"jax": jax, "jnp": jnp, "lax": jax.lax}

# --- Tables of expressions ------------------------------------------------------------------------

# Of parameters alone, {x}, keeping the kind; any kind.
OF_PARAMS = [
    "-{x}",
    "2 * {x}",
    "{x} * -0.5",
    "{x} / 3",
    "{x} / -{s}",
    "1 + {x}",
    "0.5 - {x}",
    "{x} * {c}",
    "{x} * jnp.exp(-{c})",
    "{x} * (2 * {c})",
    "({c} * -1) * {x} * {s}",
    "{x} / (1 + {c} ** 2)",
    "{x} + {c}",
    "{x} - {c}",
    "{c} - {x}",
    "jnp.where({m}, {x}, 0)",
    "jnp.where({m}, 0, {x})",
    "jnp.where({m}, {x}, -1.0)",
    "jnp.where({m}, {c}, -{x})",
    "jnp.where(-{c} < 0.1, {x}, 0)",
    "jnp.where(~{m}, {x}, {x2})",
    "{x} * {m}",
    "{x} * ~{m}",
    "{x} * {i}",
    "{x} * ({i} + 1)",
    "{x} * {m}.astype({x}.dtype)",
    "lax.stop_gradient({x})",
    "{x} + lax.stop_gradient(jnp.sign({x}) - {x})",
    "jnp.tanh({x})",
    "0.3 * jnp.exp({x})",
    "{x} * {x}",
    "{x} * {x2}",
    "{x} + {x2}",
    "{x} - 0.5 * {x2}",
    "jnp.maximum({x}, {x2})",
    "jnp.abs({x})",
    "{x} + {x}.astype(jnp.int32)",
    "(2 * {x}).astype(jnp.int32) * {x}",
    "clip_gradient({x})",
    "steep_gradient({x})",
    "unit_gradient({x})",
    "doubled_gradient({x})",
    "hard_tanh({x})",
    "jax.checkpoint(jnp.tanh)({x})",
    "jax.checkpoint(lambda w: 2 * w)({x})",
    "jax.jit(lambda w: -w)({x})",
    "jax.jit(jnp.where)({m}, {x}, 0.3)",
    "lax.cond({s} > 0, lambda w: w, lambda w: -w, {x})",
    "lax.cond(jnp.sum({x}) > 0, lambda w: 2 * w, jnp.tanh, {x})",
    "lax.optimization_barrier({x})",
    "{x}.reshape(-1).reshape({shape})",
    "{x} * {p:}",
    "{x} / jnp.sqrt(0.1 + jnp.sum({x} ** 2))",
    "{x} - jnp.mean({x})",
    "lax.fori_loop(0, 2, lambda _, w: 0.9 * w, {x})",
    "lax.reduce_precision({x}, 8, 23)",
]

# The same, with one axis or more.
OF_ARRAYS = [
    "{x}[::-1]",
    "jnp.flip({x}, -1)",
    "jnp.roll({x}, 1, axis=0)",
    "jnp.concatenate([{x}, {x2}])[1 : {n} + 1]",
    "jnp.concatenate([{x}[1:], {x}[:1]])",
    "jnp.concatenate([{c}, {x}])[-{n} :]",
    "jnp.concatenate(jnp.split({x}, [1], axis=-1)[::-1], axis=-1)",
    "jnp.pad({x}, 1)[{slices}]",
    "jnp.pad({x}[..., 1:], {front})",
    "lax.pad({x}, jnp.zeros([], {x}.dtype), [(0, 0, 1)] * {x}.ndim)[{steps}]",
    "{x}.at[0].set(0.3)",
    "{x}.at[0].add({c}[0].astype({x}.dtype))",
    "{x}.at[..., 0].multiply(2)",
    "{c}.astype({x}.dtype).at[..., 1].set({x}[..., 0])",
    "{c}.astype({x}.dtype).at[jnp.array([0, 0])].add({x}[:1])",
    "lax.dynamic_update_slice({x}, {c}[:1].astype({x}.dtype), (0,) * {x}.ndim)",
    "{x} / jnp.linalg.norm({x}, axis=-1, keepdims=True)",
    "{x} / (1 + jnp.linalg.norm({x}))",
    "jax.nn.softmax({x}, axis=-1)",
    "{x} - {x}.mean(0, keepdims=True)",
    "jnp.sort({x}, axis=0)",
    "{x}[jnp.argsort({x}.reshape({n}, -1)[:, 0])]",
    "jnp.take({x}, jnp.arange({n})[::-1], axis=0)",
    "{x}[jnp.zeros({n}, int)]",
    "jnp.repeat({x}, 2, axis=0)[:{n}]",
    "jnp.tile({x}, 2)[..., 1 : {x}.shape[-1] + 1]",
    "jnp.cumsum({x}, axis=0)",
    "lax.map(jnp.tanh, {x})",
    "jax.vmap(lambda row: row * row.sum())({x})",
    "lax.scan(lambda total, row: (total + row, total), {x}[0], {x})[1]",
    "lax.scan(lambda _, row: (None, -row), None, {x}, reverse=True)[1]",
    "jnp.moveaxis(jnp.moveaxis({x}, 0, -1), -1, 0)",
    "jnp.broadcast_to({x}[:1], {shape})",
    "jnp.tril({x}.reshape({n}, -1)).reshape({shape})",
    "jnp.squeeze({x}[None, :, ..., None], (0, -1))",
    "jnp.stack([{x}, {x2}], -1).sum(-1)",
    "jnp.stack([{x}, {x2}], 1)[:, 0]",
    "{x} * {p:}",
]

# Parameters of one kind made from those of others.
CONVERSIONS = {
    "": ["{p:D}[0]", "{p:DD}[0, 1]", "jnp.sum({p:D})", "jnp.linalg.norm({p:DD})", "{p:DD}.trace()"],
    "D": [
        "{p:} * {c:D}",
        "{c:D} + {p:}",
        "{p:DD}[0]",
        "{p:DD}[:, -1]",
        "{p:KD}[2]",
        "{p:DD}.sum(0)",
        "jnp.diag({p:DD})",
        "jnp.broadcast_to({p:}, ({D},))",
        "{p:KD}[jnp.argmax({p2:KD}[:, 0])]",
        "{p:DD} @ {p2:D}",
        "lax.fori_loop(0, 2, lambda _, u: jnp.tanh({p:DD} @ u.astype({p:DD}.dtype)), "
        "jnp.ones({D}, {p:DD}.dtype))",
    ],
    "DD": [
        "{p:DD}.T",
        "{p:D}[:, None] * {c:DD}",
        "{p:D}[None] / (1 + {c:DD} ** 2)",
        "{c:DD} - {p:D}[:, None]",
        "{p:} * {c:DD}",
        "jnp.diag({p:D})",
        "jnp.tile({p:D}, ({D}, 1))",
        "jnp.outer({p:D}, {p2:D})",
        "{p:KD}[:{D}]",
        "{p:KD}[1 : 1 + {D}].T",
        "{p:DR} @ {p:RD}",
        "{p:DD} + {p:DR} @ {p:RD}",
        "{p:DD} @ {p2:DD}",
        "{p:D}[:, None] * {p:DD}",
        "{p:DD} / {p2:DD}.sum()",
        "{p:D} * {p:DD} / jnp.linalg.norm({p:DD}, axis=0)",
        "jnp.einsum('ij->ji', {p:DD})",
        "jnp.concatenate([{p:DR}, {p2:DD}], axis=1)[:, :{D}]",
        "{p:DD}[jnp.argsort({p:D})]",
        "{p:DD}.reshape(-1, 1).T.reshape({D}, {D})",
        "{p:LDD}.sum(0)",
        "{p:COD}.sum((0, 1)) * {c:DD}",
    ],
    "KD": ["jnp.tile({p:D}, ({K}, 1))", "{p:KR} @ {p:RD}", "{p:KD} @ {p:DD}", "{p:DK}.T"],
    "LDD": ["jnp.stack([{p:DD}] * {L}) if {L} else {p:LDD}", "{p:LD}[:, None] * {p:LDD}"],
    "LD": ["{p:LDD}[:, 0]", "jnp.broadcast_to({p:D}, ({L}, {D}))", "{p:LDD}.sum(1)"],
}

# With data {x}, [.., width], keeping its kind. {j} is an integer of the example, {ids} are its [T].
USES = [
    "{x} @ {p:DD}",
    "{x} + {p:D}",
    "{x} * {p:D}",
    "{x} @ {p:DD}.T",
    "{x} @ {p:DD} + {p:D}",
    "({p:DD} @ {x}.T).T",
    "jnp.einsum('...d,de->...e', {x}, {p:DD})",
    "jnp.einsum('de,...e->...d', {p:DD}, {x})",
    "jnp.einsum('...d,de,...e->...e', {x}, {p:DD}, {a})",
    "jnp.einsum('ijk,...k->...j', {p:LDD}, {x})",
    "jnp.einsum('...kd,kde->...ke', jnp.stack([{x}] * {L}, -2), {p:LDD}).sum(-2) if {L} else {x}",
    "jnp.einsum('...d,kde->k...e', {x}, {p:LDD}).sum(0)",
    "jax.vmap(lambda w: {x} @ w)({p:LDD}).sum(0)",
    "jax.vmap(jnp.dot, (0, None))({x}.reshape(-1, {D}), {p:DD}).reshape({x}.shape)",
    "jnp.tensordot({x}, {p:DD}, [[-1], [1]])",
    "({x} @ {p:DR}) @ {p:RD}",
    "{x} @ {p:DD} @ {p:DD}",
    "jnp.tanh({x} @ {p:DD}) @ {p:DD}.T",
    "{x} - {p:D}",
    "{p:D} - {x}",
    "{x} / (1 + {p:D} ** 2)",
    "{p:} * {x}",
    "{x} + {p:}",
    "({x} + {p:D}) * {p2:D}",
    "jnp.where({x} > 0, {x}, {p:D} * {x})",
    "jnp.where({x} > 0, {p:D}, {p2:D})",
    "jnp.where({x} > {p:}, {x}, 0)",
    "jnp.maximum({x}, {p:D})",
    "jnp.where({m:D}, {x}, {p:D})",
    "{x} * lax.stop_gradient({p:D})",
    "lax.stop_gradient({x}) @ {p:DD}",
    "({x} - {x}.mean(-1, keepdims=True)) * lax.rsqrt({x}.var(-1, keepdims=True) + 0.1) * {p:D}"
    " + {p2:D}",
    "{x} @ ({p:DD} * (1 + 0.1 * {x}.sum()))",
    "{x} @ jnp.where({x}.sum() > 0, {p:DD}, {p2:DD})",
    "{x} @ ({p:DD} + {x}.reshape(-1, {D})[0])",
    "({x} + {a}) @ jnp.concatenate([{p:DD}, {c:DD}], axis=1)[:, 1 : {D} + 1]",
    "jnp.concatenate([{x}, {a}], -1) @ jnp.concatenate([{p:DD}, {p2:DD}])",
    "jnp.concatenate([{x}[..., :1], {p:D}[1:] * {x}[..., 1:]], -1)",
    "clip_gradient({x} @ {p:DD})",
    "unit_gradient({x}) @ {p:DD}",
    "clipped_dense({x}, {p:DD})",
    "hard_tanh({x} @ {p:DD})",
    "jax.checkpoint(lambda w, x: jnp.tanh(x @ w) @ w)({p:DD}, {x})",
    "jax.jit(lambda w, x: jnp.tanh(x @ w) + x)({p:DD}, {x})",
    "jax.grad(lambda x: jnp.sum(jnp.tanh(x @ {p:DD})))({x})",
    "jax.jvp(lambda x: jnp.tanh(x @ {p:DD}), ({x},), ({x},))[1]",
    "{x} + {p:KD}[{j}]",
    "{x} + {p:KD}[{ids}].mean(0)",
    "{x} * {p:KD}[{ids}[None]].sum((0, 1))",
    "{x} + {p:KD}[{j} - 3]",
    "{x} + jnp.take({p:KD}, 2 * {j} - 3, axis=0, mode='clip')",
    "{x} + jnp.take({p:KD}, 2 * {j} - 3, axis=0, mode='wrap')",
    "{x} + {p:KD}.at[2 * {ids} - 2].get(mode='fill', fill_value=0).sum(0)",
    "{x} + jnp.nan_to_num(jnp.take({p:KD}, 2 * {ids} - 7, axis=0, mode='fill')).sum(0)",
    "{x} + {p:KD}.at[{ids}].get(mode='promise_in_bounds').sum(0)",
    "{x} + lax.dynamic_slice({p:KD}, ({j}, 0 * {j}), (2, {D})).sum(0)",
    "{x} + lax.dynamic_index_in_dim({p:KD}, {j}, keepdims=False)",
    "{x} + lax.dynamic_index_in_dim({p:DD}, {j} % {D}, 1, keepdims=False)",
    "{x} + jax.nn.one_hot({ids}, {K}, dtype={x}.dtype).mean(0) @ {p:KD}",
    "{x} + {p:DK}[:, {ids}].sum(1)",
    "{x} + jnp.take({p:DK}, {j}, axis=1)",
    "{x} * {p:DD}[{ids} % {D}, ({ids} + 1) % {D}].sum()",
    "{x} * {p:D}[{j} % {D}]",
    "{x} + {p:KD}[jnp.argmax({x}.reshape(-1, {D})[0])]",
    "{x} + {p:KD}[jnp.argmax({p2:KD}[:, 0])]",
    "{x} * {p:KD}[{j}] @ {p:KD}[:{D}]",
    "jax.nn.softmax({x} @ {p:KD}.T) @ {p:KD}",
    "{x} + {p:KD}.at[{j}].set(0.5).sum(0)",
    "{x} + {p:KD}.at[{ids}].add(1).prod(0)",
    "jax.nn.softmax({x} @ {p:DD}) * {a}",
    "{x} @ jnp.linalg.matrix_power({p:DD}, 2)",
    "{x} + lax.stop_gradient(lax.while_loop(lambda s: s < 1, lambda s: s + 1, {p:} + {x}.sum()))",
]

# With a sequence {x}, [T, D].
USES_OF_SEQUENCES = [
    "{x} + {p:KD}[{ids}]",
    "{x} * jnp.take({p:KD}, {ids}, axis=0, mode='clip')",
    "{x} + jax.vmap(lambda i: {p:KD}[i])({ids})",
    "{x} + {p:KD}[jnp.stack([{ids}, {ids}[::-1]])].sum(0)",
    "{x} + jnp.take_along_axis({p:KD}, jnp.tile({ids}[:, None], (1, {D})), axis=0)",
    "{x} + {p:KD}[{ids}[:, None], jnp.arange({D})]",
    "{x} + jax.nn.one_hot({ids}, {K}, dtype={x}.dtype) @ {p:KD}",
    "{x} + {p:DK}[:, {ids}].T",
    "{x} * {p:DD}[{ids} % {D}, 0][:, None]",
    "{x} + {p:TD}",
    "{x} * {p:TD}",
    "{p:TT} @ {x}",
    "{x} @ {p:DD} * {p:T}[:, None]",
    "jnp.einsum('td,tde->te', {x}, {p:TDD})",
    "jax.vmap(jnp.dot)({x}, {p:TDD})",
    "jax.vmap(lambda x, i: x @ {p:KDD}[i])({x}, {ids})",
    "jnp.einsum('sd,ds,te->te', {x}, {p:DT}, {x})",
    "jax.nn.softmax({x} @ {p:DD} @ {x}.T) @ {x}",
    "jax.nn.softmax(({x} @ {p:DD}) @ ({a} @ {p2:DD}).T) @ ({x} @ {p3:DD})",
    "conv1({x}, {p:CDD})",
    "conv1({x}, {p:COD}, feature_group_count={D})",
    "conv1({x}, {p:CDD}, rhs_dilation=(2,))",
    "jnp.repeat(conv1({x}, {p:CDD}, window_strides=(2,)), 2, axis=0)[:{T}]",
    "conv1({x}, {p:CDD}, lhs_dilation=(2,), padding=[(1, 1)])[:{T}]",
    "conv1({x}, {p:CDD}, padding=[({C}, {C})])[:{T}]",
    "conv2({x}[..., None], {p:CCOR}).sum(-1)",
    "conv2({x}[None], {p:OCDD})[0]",
    "conv2(jnp.stack([{x}, {a}], -1), jnp.tile({p:CCOR}, (1, 1, 1, 2)), feature_group_count=2)"
    ".mean(-1)",
    "conv2({x}[..., None], {p:CCOR}, window_strides=(2, 1)).sum((0, 2)) + {x}",
    "conv2({x}[..., None], {p:CCOR}, batch_group_count=1, rhs_dilation=(1, 2)).prod(-1)",
    "{x} + jnp.outer({x}.sum(1), {p:D})",
    "{x}.at[0].set({p:D}.astype({x}.dtype))",
    "{x}.at[-1].add(({x} @ {p:DD})[0].astype({x}.dtype))",
    "jnp.concatenate([jnp.tanh({p:D})[None], {x}])[:{T}]",
    "jnp.pad({x} @ {p:DD}, ((1, 0), (0, 0)))[:{T}]",
    "jnp.where(jnp.tril(jnp.ones(({T}, {T}), bool)), {p:TT}, 0) @ {x}",
]

# Of data alone, {x} of any kind with the width last.
OF_DATA = [
    "jnp.tanh({x})",
    "{x} + {a}",
    "{x} * {a}",
    "{x}[..., ::-1]",
    "-{x} / 2",
    "jax.nn.softmax({x})",
    "jax.nn.relu({x})",
    "jnp.where({x} > {c}, {x}, 0.1 * {x})",
    "lax.stop_gradient({x}) * {a}",
    "clip_gradient({x})",
    "steep_gradient({x})",
    "unit_gradient({x})",
    "jnp.sort({x})",
    "jnp.roll({x}, 1, -1)",
    "{x} * {m}",
    "{x} + (4 * {x}).astype(jnp.int32) / 8",
    "{x} / (1 + jnp.sum({x} ** 2))",
    "jnp.flip({x}, 0)",
    "{x} - {x}.mean(0)",
    "jax.checkpoint(jnp.sin)({x})",
]

LOSSES = [
    "jnp.sum(jnp.tanh({x}))",
    "jnp.sum({x} ** 2)",
    "(jnp.sum({x}) - y) ** 2",
    "-jax.nn.log_softmax({x}.mean(0))[{j} % {D}]",
    "-jax.nn.log_softmax({x} @ {p:KD}.T)[jnp.arange({T}), {ids}].sum()",
    "jax.nn.logsumexp({x}) - {x}[0, {j} % {D}]",
    "jnp.sum({x} * {c})",
    "jnp.mean(jnp.tanh({x})) + 0.1 * jnp.sum({p:DD} ** 2)",
    "jnp.sum(jnp.tanh({x})) + {p:}",
    "{p:} * jnp.mean({x}) + jnp.sum({p:D} * {x}[0])",
    "jnp.sum(jax.nn.softplus(-{x} * y))",
]

LOW_OF_PARAMS = [
    "{x}.astype(bfloat16)",
    "{x}.astype(bfloat16).astype(float32)",
    "{x}.astype(float16)",
    "{x}.astype(float32)",
]
LOW_USES = [
    "{x}.astype(bfloat16) @ {p:DD}.astype(bfloat16)",
    "jnp.matmul({x}, {p:DD}, preferred_element_type=float32)",
    "jnp.einsum('...d,de->...e', {x}, {p:DD}, preferred_element_type=float32)",
    "jnp.dot({x}.astype(bfloat16), {p:DD}.astype(bfloat16), preferred_element_type=float32)",
    "({x} * {p:D}.astype(float16)).astype(float32)",
    "{x} @ {p:DD}.astype({x}.dtype)",
]
LOW_OF_DATA = ["{x}.astype(bfloat16)", "{x}.astype(float32)", "{x}.astype(float16)"]

SINGULAR_OF_PARAMS = ["jnp.sqrt(jnp.abs({x}))", "jnp.log(jnp.abs({x}))", "1 / {x}"]
SINGULAR_USES = [
    "jnp.sqrt(jnp.abs({p:KD}[{j}])) + {x}",
    "{x} + jnp.take({p:KD}, 3 * {j}, axis=0, mode='fill')",
    "jnp.sqrt(jnp.abs({x} @ {p:DD}))",
    "jnp.linalg.norm({x} - {x}, axis=-1, keepdims=True) * {p:D}",
]
SINGULAR_OF_DATA = ["jnp.sqrt(jnp.maximum({x}, 0))", "{x} / {x}[..., :1]", "jnp.log(jnp.abs({x}))"]

# --- Programs -------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, repr=False)
class Program:
    """A loss of one example, with parameters and a batch."""

    profile: str
    params: dict[str, tuple[tuple[int, ...], str]]  # shapes and dtypes
    data: tuple[tuple[int, ...], str]  # of x, with the axis of examples
    rows: int  # ids are below
    lines: tuple[str, ...]
    weights: str  # "none", "random" or "padding"
    microbatch_size: int | None
    max_bytes: int
    used: tuple[str, ...]  # expressions of the grammar

    def __repr__(self):
        """Show the pseudo-code: all it needs is in this file."""
        params = ", ".join(f"{k}: {t}{list(s)}" for k, (s, t) in self.params.items())
        shape, dtype = self.data
        return "\n".join(
            [
                "",
                f"# {self.profile}; x: {dtype}{list(shape)}, ids: below {self.rows}, "
                f"weights: {self.weights}",
                f"# microbatch_size={self.microbatch_size}, max_bytes={self.max_bytes}",
                f"# {params}",
                self.source,
            ]
        )

    def _repr_pretty_(self, printer, cycle):
        printer.text(repr(self))  # hypothesis shows the fields of dataclasses otherwise

    @property
    def needs_x64(self):
        return self.profile in ("float64", "mixed")

    @property
    def source(self):
        return "\n".join(
            [
                "def loss(p, e):",
                *(f"    {name} = p[{name!r}]" for name in self.params),
                "    x, ids, y = e['x'], e['ids'], e['y']",
                *(f"    {line}" for line in self.lines),
            ]
        )

    def loss(self, wide=False):
        """The function; wide: with float64 for all other floating-point types."""
        dtype = "float64" if wide else self.data[1]

        def normal(seed, *shape):
            values = np.random.default_rng(seed).normal(0, 0.5, shape).astype(np.float32)
            return jnp.asarray(values, dtype)

        types = {name: jnp.dtype("float64" if wide else name) for name in FLOATS}
        names = {**NAMES, **types, "normal": normal}
        exec(compile(self.source, "<program>", "exec"), names)
        return names["loss"]

    def arguments(self, wide=False):
        """Parameters, batch and weights, as NumPy arrays."""
        rng = np.random.default_rng(len(self.params))

        def normal(shape, dtype):
            values = rng.normal(0, 0.5, shape).astype(jnp.dtype(dtype))
            if self.profile == "singular" and len(shape) > 1 and shape[0] > 0:
                values[0] = 0
            return values.astype(np.float64) if wide else values

        params = {name: normal(*kind) for name, kind in self.params.items()}
        shape, dtype = self.data
        batch = {
            "x": normal(shape, dtype),
            "ids": rng.integers(self.rows, size=shape[:2]).astype(np.int32),
            "y": normal(shape[:1], dtype),
        }
        n = shape[0]
        if self.weights == "none":
            return params, batch, None
        weights = rng.uniform(0.3, 2, n).astype(self.data[1] if self.needs_x64 else np.float32)
        if self.weights == "padding":
            weights[1::2] = 0
        return params, batch, weights


class Value(NamedTuple):
    name: str
    kind: str
    of_params: bool = False  # of parameters alone


class Builder:
    """Writes a program, line by line."""

    def __init__(self, draw, profile):
        self.draw = draw
        self.profile = profile
        self.sizes = {letter: self.choose(sizes) for letter, sizes in SIZES.items()}
        self.params = {}
        self.values = [Value("x", "TD")]  # in scope
        self.integers = ["ids[0]"]
        self.lines, self.indent = [], ""
        self.numbers = collections.Counter()
        self.left = 12  # functions of parameters, which are drawn inside others
        self.used = []
        low, singular = profile == "low", profile == "singular"
        self.of_params = OF_PARAMS + low * LOW_OF_PARAMS * 4 + singular * SINGULAR_OF_PARAMS * 8
        self.uses = USES + low * LOW_USES * 3 + singular * SINGULAR_USES * 16
        self.of_data = OF_DATA + low * LOW_OF_DATA * 2 + singular * SINGULAR_OF_DATA * 4
        # Whether NaN times the zeros of padding is NaN is up to the compiler.
        padded = "conv", "jnp.pad", "lax.pad"
        self.of_sequences = [
            use for use in USES_OF_SEQUENCES if not (singular and use.startswith(padded))
        ]

    # Drawing

    def choose(self, options):
        return self.draw(st.sampled_from(options))

    def some(self, k, n):
        """Whether to go on: true in k of n cases."""
        return self.draw(st.integers(0, n - 1)) >= n - k

    def shape(self, kind):
        return tuple(self.sizes[letter] for letter in kind)

    # Writing

    def write(self, line):
        self.lines.append(self.indent + line)

    def name(self, prefix):
        self.numbers[prefix] += 1
        return f"{prefix}{self.numbers[prefix] - 1}"

    def let(self, text, kind, of_params=False):
        value = Value(self.name("w" if of_params else "v"), kind, of_params)
        self.write(f"{value.name} = {text}")
        self.values.append(value)
        return value

    @contextlib.contextmanager
    def scope(self, heading, values=(), integers=()):
        saved = len(self.values), len(self.integers), self.indent
        self.write(heading)
        self.indent += "    "
        self.values += values
        self.integers += integers
        yield
        del self.values[saved[0] :], self.integers[saved[1] :]
        self.indent = saved[2]

    def fill(self, template, x):
        """Fill the holes of an expression; equal holes with the same.

        {x}: the value given; {a}: data of its kind; {x2}: parameters of its kind; {c}, {m}, {i}:
        constants of its kind, floating-point, Boolean and integer; {s}: a scalar one; {c:KIND};
        {p:KIND}: a value of parameters; {j}, {ids}: integers of the example; {shape}, {n}: of x;
        {D}: a size.
        """
        self.used.append(template)
        known = {}

        def hole(match):
            if match[0] not in known:
                known[match[0]] = self.hole(match[1], match[2], x)
            return known[match[0]]

        return re.sub(r"\{([a-z]+\d?|[A-Z])(:[A-Z]*)?\}", hole, template)

    def hole(self, what, kind, x):
        kind = x.kind if kind is None else kind[1:]
        numbers = "".join(f", {size}" for size in self.shape(kind))
        if what == "x":
            return x.name
        if what == "a":
            return self.data(kind).name
        if what[0] == "p" or what == "x2":
            return self.parameter(kind).name
        if what in "cmi":
            function = {"c": "normal", "m": "mask", "i": "integers"}[what]
            return f"{function}({self.draw(st.integers(0, 3))}{numbers})"
        fixed = {
            "s": "normal(4)",
            "ids": "ids",
            "shape": str(self.shape(kind)),
            "n": str(self.shape(kind)[0] if kind else 1),
            "slices": ", ".join(["1:-1"] * len(kind)),
            "steps": ", ".join(["::2"] * len(kind)),
            "front": f"[(0, 0)] * {len(kind) - 1} + [(1, 0)]",
        }
        if what == "j":
            return self.choose(self.integers[::-1])
        return fixed[what] if what in fixed else str(self.sizes[what])

    # Values

    def data(self, kind):
        found = [v for v in self.values if v.kind == kind and not v.of_params]
        return self.choose(found[::-1])

    def new_parameter(self, kind):
        dtypes = {"low": ["bfloat16", "float16", "float32"], "mixed": ["float32", "float64"]}
        dtype = self.choose(dtypes.get(self.profile, [self.profile]))
        dtype = "float32" if dtype == "singular" else dtype
        name = f"p{len(self.params)}"
        self.params[name] = self.shape(kind), dtype
        value = Value(name, kind, True)
        self.values.insert(0, value)  # in every scope
        return value

    def parameter(self, kind):
        """A parameter, or a function of some."""
        found = [v for v in self.values if v.kind == kind and v.of_params]
        others = CONVERSIONS.get(kind)
        if others and self.left and self.some(1, 5):
            self.left -= 1
            value = self.let(self.fill(self.choose(others), Value("", kind)), kind, True)
        else:
            fresh = not found or (len(self.params) < 5 and self.some(1, 3))
            value = self.new_parameter(kind) if fresh else self.choose(found[::-1])
        while self.left and self.some(1, 3):
            self.left -= 1
            arrays = kind and 0 not in self.shape(kind) and self.draw(st.booleans())
            template = self.choose(OF_ARRAYS if arrays else self.of_params)
            value = self.let(self.fill(template, value), kind, True)
        return value

    # Statements

    def body(self, x, depth, at_most=2):
        """Statements that begin with x: the value they end with, of its kind."""
        x = self.statement(x, depth)
        for _ in range(at_most - 1):
            if not self.some(1, 2):
                break
            x = self.statement(x, depth)
        return x

    def statement(self, x, depth):
        kinds = ["use", "use", "use", "data", "form", "form"][: 6 if depth else 4]
        what = self.choose(kinds)
        if what == "form":
            return getattr(self, self.choose(FORMS))(x, depth - 1)
        if what == "data":
            return self.let(self.fill(self.choose(self.of_data), x), x.kind)
        uses = self.uses
        if x.kind == "TD" and self.draw(st.booleans()):
            uses = self.of_sequences
        text = self.fill(self.choose(uses), x)
        return self.let(f"jnp.tanh({text})" if self.some(1, 2) else text, x.kind)

    def same(self, value, like):
        """An expression of the value in the dtype of another: loops and branches need it."""
        mixes = self.profile in ("low", "mixed")
        return f"{value.name}.astype({like.name}.dtype)" if mixes else value.name

    def recurrence(self, x, depth):
        f, h, row = self.name("f"), Value(self.name("h"), "D"), Value(self.name("r"), "D")
        starts = ["jnp.zeros({D}, {x}.dtype)", "{p:D}", "{c:D}", "{x}.reshape(-1, {D})[0]"]
        start = self.fill(self.choose(starts), x)
        sequence = x.name if x.kind == "TD" else "x"
        over = self.choose(["{}", "{}[::-1]", "{}[:1]", "{}[:0]"]).format(sequence)
        i = self.name("i")
        reverse = self.choose(["", ", reverse=True", ", unroll=2"])
        with self.scope(f"def {f}({h.name}, inputs):", [row, h], [i]):
            self.write(f"{row.name}, {i} = inputs")
            end = self.body(h, depth)
            if self.some(2, 3):
                end = self.let(f"jnp.tanh({end.name} + {row.name})", "D")
            self.write(f"return {self.same(end, h)}, {self.data('D').name}")
        count = f"ids[:len({over})]"
        result = f"lax.scan({f}, {start}, ({over}, {count}){reverse})"
        ends = ["[0]", "[1].sum(0)", *["[1]"] * (x.kind == "TD" and over == sequence)]
        return self.let(f"{x.name} + {result}{self.choose(ends)}", x.kind)

    def layers(self, x, depth):
        """A loop over stacked layers, which are scanned, or looked up."""
        f, h = self.name("f"), Value(self.name("h"), x.kind)
        stacks = [self.parameter("LDD"), *([self.parameter("LD")] if self.some(1, 2) else [])]
        rows = [Value(self.name("w"), stack.kind[1:], True) for stack in stacks]
        names = ", ".join(row.name for row in rows) + ","
        indexed = self.sizes["L"] and self.some(1, 3)
        heading = f"def {f}(i, {h.name}):" if indexed else f"def {f}({h.name}, layer):"
        with self.scope(heading, [*rows, h]):
            layer = "".join(f"{stack.name}[i], " for stack in stacks) if indexed else "layer"
            self.write(f"{names} = {layer}")
            end = self.body(h, depth)
            if self.some(2, 3):
                end = self.let(f"jnp.tanh({end.name} @ {rows[0].name})", x.kind)
            result = self.same(end, h)
            self.write(f"return {result}" if indexed else f"return {result}, {rows[0].name}.sum()")
        if indexed:
            return self.let(f"lax.fori_loop(0, {self.sizes['L']}, {f}, {x.name})", x.kind)
        over = "".join(f"{stack.name}, " for stack in stacks)
        reverse = self.choose(["", ", reverse=True"])
        pair = self.name("pair")
        self.write(f"{pair} = lax.scan({f}, {x.name}, ({over}){reverse})")
        added = self.choose(["", f" + {pair}[1].sum()"])
        return self.let(f"{pair}[0]{added}", x.kind)

    def carried(self, x, depth):
        """A loop that carries parameters, and may change them."""
        f, h = self.name("f"), Value(self.name("h"), x.kind)
        kinds = [self.choose(["DD", "D", "KD"]) for _ in range(1 + self.some(1, 3))]
        given = [self.parameter(kind) for kind in kinds]
        carried = [Value(self.name("w"), kind, True) for kind in kinds]
        names = "".join(f"{v.name}, " for v in carried)
        with self.scope(f"def {f}(carry, _):", [*carried, h]):
            self.write(f"{h.name}, {names} = carry")
            end = self.body(h, depth)
            if self.some(2, 3):
                text = {"DD": " @ {}", "D": " + {}", "KD": " * {}[1]"}[kinds[0]]
                text = text.format(carried[0].name)
                end = self.let(f"jnp.tanh({end.name}{text})", x.kind)
            becomes = self.choose(["{}", "-{}", "{} * 0.9", "{}[::-1]", "{} * jnp.sum({h})"])
            after = [
                Value(becomes.format(v.name, h=h.name), v.kind) if i == 0 else v
                for i, v in enumerate(carried)
            ]
            if len(set(kinds)) < len(kinds) and self.some(1, 2):
                after = after[::-1]
            after = [
                f"({v.name}).astype({w.name}.dtype)" for v, w in zip(after, carried, strict=True)
            ]
            self.write(f"return ({self.same(end, h)}, {', '.join(after)}), None")
        start = "".join(f"{v.name}, " for v in given)
        length = self.choose([2, 1, 3, 0])
        loop = f"lax.scan({f}, ({x.name}, {start}), length={length})[0][0]"
        return self.let(loop, x.kind)

    def unrolled(self, x, depth):
        h, i = Value(self.name("h"), x.kind), self.name("i")
        self.write(f"{h.name} = {x.name}")
        over = self.choose(["ids[:2]", "ids"])
        with self.scope(f"for {i} in {over}:", [h], [i]):
            end = self.body(h, depth)
            self.write(f"{h.name} = {end.name}")
        self.values.append(h)
        return h

    def function(self, argument, depth):
        f = self.name("f")
        with self.scope(f"def {f}({argument.name}):", [argument]):
            end = self.body(argument, depth)
            self.write(f"return {self.same(end, argument)}")
        return f

    def branches(self, x, depth):
        h = Value(self.name("h"), x.kind)
        f, g = (self.function(h, depth) for _ in range(2))
        data, number = f"{x.name}.sum() > 0", self.fill("{j}", x)
        form = self.choose(["data", "constant", "params", "switch"])
        if form == "switch":
            text = f"lax.switch({number} % 3, [{f}, {g}, jnp.tanh], {x.name})"
        else:
            test = {"data": data, "constant": "True", "params": "{p:D}[0] > 0"}[form]
            text = f"lax.cond({self.fill(test, x)}, {f}, {g}, {x.name})"
        return self.let(text, x.kind)

    def mapped(self, x, depth):
        if x.kind == "D":
            return self.wrapped(x, depth)
        f = self.function(Value(self.name("h"), "D"), depth)
        form = self.choose(["jax.vmap({})({})", "lax.map({}, {})", "jnp.stack([*map({}, {})])"])
        return self.let(form.format(f, x.name), x.kind)

    def wrapped(self, x, depth):
        f = self.function(Value(self.name("h"), x.kind), depth)
        wrapper = self.choose(["jax.jit", "jax.checkpoint"])
        return self.let(f"{wrapper}({f})({x.name})", x.kind)


FORMS = ["wrapped", "mapped", "unrolled", "recurrence", "layers", "carried", "branches"]


PROFILES = ("float32", "low", "float64", "mixed", "singular")


@st.composite
def programs(draw, profiles=("float32",) * 6 + ("low", "low", "float64", "mixed", "singular")):
    """Draw a program; float64 and mixed ones need x64."""
    profile = draw(st.sampled_from(profiles))
    b = Builder(draw, profile)
    data = {"low": ["float32", "bfloat16"], "float64": ["float64"]}
    data["mixed"] = ["float64", "float32"]
    dtype = b.choose(data.get(profile, ["float32"]))
    x = b.values[0]
    while True:
        x = b.statement(x, depth=2)
        if len(b.lines) > 12 or not b.some(2, 3):
            break
    result = b.fill(b.choose(LOSSES), x)
    b.write(f"return {result}")
    if b.some(1, 6):
        b.new_parameter(b.choose(["", "D", "DD"]))  # unused
    if b.some(1, 8):
        b.sizes["Z"] = 0
        b.new_parameter("Z")
    n = b.choose([3, 2, 5, 1])
    return Program(
        profile,
        dict(b.params),
        ((n, *b.shape("TD")), dtype),
        b.sizes["K"],
        tuple(b.lines),
        b.choose(["none", "random", "padding"]),
        b.choose([None, 1, 2, 3, n, n + 2]),
        b.choose([2**28, 1, 1000]),
        tuple(b.used),
    )
