"""Where an example's data meet parameters: the uses whose gradient is known.

A *use* is an operation that takes a selection of parameters (:mod:`wpl_jax.fisher.selections`) and
data of the example, in one of three forms: a matrix product, a convolution, a look-up of rows.
Given the other operand ``A`` and the gradient ``D`` of the result, each form says what the gradient
of the selection is.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from wpl_jax.fisher.program import Operation, size_in_bytes
from wpl_jax.fisher.selections import Known
from wpl_jax.numbers import wide_dtype


@dataclasses.dataclass(frozen=True, eq=False)
class Use:
    """One place where an example's data meet a selection of parameters.

    Per-example arrays of a use in loops have the loops' axes in front, the outermost first.
    """

    place: int  # of the operation
    within: tuple[int, ...]  # places of the loops around it, and of what is computed again
    value: Known
    consumer: str  # the primitive
    other: int  # which operand is the example's
    probe: jax.ShapeDtypeStruct  # one example's result
    operand: jax.ShapeDtypeStruct  # one example's other operand
    aval: Any  # of the result, in one turn of all loops
    layout: Any  # a Product or Rows

    @property
    def bytes(self) -> int:
        """What one example's operand and gradient hold."""
        return size_in_bytes(self.probe) + size_in_bytes(self.operand)


class Product(NamedTuple):
    """A contraction with the value, brought into the form ``A^T D``."""

    key: Any  # equal where gradients are assembled alike
    positions: int  # the axis that is summed over
    shape: tuple[int, int, int]  # of the gradient: [batches, in, out]
    patches: int  # bytes of the patches of a convolution's input; 0: it is none
    inputs: Callable[[jax.Array], jax.Array]
    """From an example's operand to ``A`` [batches, positions, in]."""
    deltas: Callable[[jax.Array], jax.Array]
    """From the gradient of its result to ``D`` [batches, positions, out]."""
    assemble: Callable[[jax.Array], jax.Array]
    """From [batches, in, out] to the shape of the value."""
    precision: Any  # of the products that the gradient is made of: that of the function's own

    def cotangent(self, operand: jax.Array, delta: jax.Array, dtype: Any) -> jax.Array:
        """One example's gradient of the value."""
        a, d = self.inputs(operand).astype(dtype), self.deltas(delta).astype(dtype)
        return self.assemble(products(a, d, self.precision))


class Rows(NamedTuple):
    """A look-up of rows of a table: whole but for axes at which there is an index each."""

    key: Any
    positions: int
    table: tuple[int, int]  # rows, entries of a row
    name: str  # "rows of a table", or what it is where a row is an array of its own
    rows: Callable[..., tuple[jax.Array, jax.Array]]
    """From an example's operand and its result's gradient to numbers of rows [positions], with the
    number of rows for what is out of bounds, and ``D`` [positions, entries of a row]."""
    assemble: Callable[[jax.Array], jax.Array]
    """From [rows, entries of a row] to the shape of the value."""

    def cotangent(self, operand: jax.Array, delta: jax.Array, dtype: Any) -> jax.Array:
        """One example's gradient of the table."""
        numbers, rows = self.rows(operand, delta)
        table = jnp.zeros(self.table, dtype)
        return self.assemble(table.at[numbers].add(rows.astype(dtype), mode="drop"))


class Loops(NamedTuple):
    """The loops around a use: those that give the value one entry a turn, and the others."""

    lengths: tuple[int, ...]
    mapped: tuple[int, ...]

    @property
    def summed(self) -> list[int]:
        """Loops over whose turns the gradient is summed."""
        return [loop for loop in range(len(self.lengths)) if loop not in self.mapped]

    def sizes(self, loops: Sequence[int]) -> list[int]:
        """How many turns they have."""
        return [self.lengths[loop] for loop in loops]

    def after(self, axes: Sequence[int]) -> list[int]:
        """Where axes are, with the loops' axes in front."""
        return [len(self.lengths) + axis for axis in axes]


# --- Forms of uses --------------------------------------------------------------------------------
# Each gives which operand is the example's, and the layout, or None where it is not recognised.


def _dot(eqn, i, loops):
    """The value is the left (0) or the right (1) operand of a general matrix product."""
    contracted, batch = eqn.params["dimension_numbers"]
    x, w, out = eqn.invars[1 - i].aval, eqn.invars[i].aval, eqn.outvars[0].aval
    x_free = [d for d in range(x.ndim) if d not in (*contracted[1 - i], *batch[1 - i])]
    w_free = [d for d in range(w.ndim) if d not in (*contracted[i], *batch[i])]
    # The result has batch axes first, then the left operand's free axes, then the right one's.
    shared = len(batch[0])
    middle = shared + (len(x_free) if i else len(w_free))
    x_out, w_out = range(shared, middle), range(middle, out.ndim)
    if not i:
        x_out, w_out = w_out, x_out

    def inputs(operand):
        batches = [*loops.mapped, *loops.after(batch[1 - i])]
        positions = [*loops.summed, *loops.after(x_free)]
        return grouped(operand, batches, positions, loops.after(contracted[1 - i]))

    def deltas(delta):
        batches = [*loops.mapped, *loops.after(range(shared))]
        positions = [*loops.summed, *loops.after(x_out)]
        return grouped(delta, batches, positions, loops.after(w_out))

    order = [*batch[i], *contracted[i], *w_free]
    mapped = loops.sizes(loops.mapped)

    def assemble(gradient):
        m = len(mapped)
        gradient = gradient.reshape(*mapped, *(w.shape[d] for d in order))
        return gradient.transpose([*range(m), *(m + order.index(d) for d in range(w.ndim))])

    positions = math.prod([*loops.sizes(loops.summed), *(x.shape[d] for d in x_free)])
    shape = (
        math.prod([*mapped, *(w.shape[d] for d in batch[i])]),
        math.prod(w.shape[d] for d in contracted[i]),
        math.prod(w.shape[d] for d in w_free),
    )
    precision = _precision(eqn)
    key = ("dot", i, contracted, batch, precision)
    return 1 - i, Product(key, positions, shape, 0, inputs, deltas, assemble, precision)


def _convolution(eqn, i, loops):
    """The value is the kernel: a product with patches of the input, at positions of the output."""
    params = eqn.params
    if i != 1 or params["batch_group_count"] != 1:
        return 0, None
    x_spec, w_spec, out_spec = params["dimension_numbers"]
    w, out = eqn.invars[1].aval, eqn.outvars[0].aval
    kernel, sizes = [w.shape[d] for d in w_spec[2:]], [out.shape[d] for d in out_spec[2:]]
    groups, k, m = params["feature_group_count"], len(kernel), len(loops.mapped)
    features_in, features_out = w.shape[w_spec[1]], w.shape[w_spec[0]] // groups
    mapped, summed = loops.sizes(loops.mapped), loops.sizes(loops.summed)
    positions = math.prod([*summed, out.shape[out_spec[0]], *sizes])

    def flat_images(x, spec):
        """[mapped x summed x batch, spatial axes, features]."""
        lead = [*loops.mapped, *loops.summed, *loops.after(spec[:1])]
        return grouped(x, lead, *([d] for d in loops.after(spec[2:])), loops.after(spec[1:2]))

    def in_groups(x, rest, per_group):
        """From [.., groups x per_group] to [mapped x groups, positions, rest x per_group]."""
        x = x.reshape(math.prod(mapped), positions, rest, groups, per_group)
        return grouped(x, [0, 3], [1], [2, 4])

    def inputs(operand):
        x = flat_images(operand, x_spec)
        edges = [
            (*pad, step - 1)
            for pad, step in zip(params["padding"], params["lhs_dilation"], strict=True)
        ]
        x = jax.lax.pad(x, jnp.zeros([], x.dtype), [(0, 0, 0), *edges, (0, 0, 0)])
        patches = _patches(x, sizes, kernel, params["window_strides"], params["rhs_dilation"])
        return in_groups(patches, math.prod(kernel), features_in)

    def deltas(delta):
        return in_groups(flat_images(delta, out_spec), 1, features_out)

    def assemble(gradient):
        gradient = gradient.reshape(*mapped, groups, *kernel, features_in, features_out)
        gradient = jnp.moveaxis(gradient, m, -2).reshape(
            *mapped, *kernel, features_in, groups * features_out
        )
        axes = {w_spec[1]: m + k, w_spec[0]: m + k + 1}
        axes |= {d: m + j for j, d in enumerate(w_spec[2:])}
        return gradient.transpose([*range(m), *(axes[d] for d in range(w.ndim))])

    shape = math.prod(mapped) * groups, math.prod(kernel) * features_in, features_out
    precision = _precision(eqn)
    key = ("convolution", w_spec, groups, precision)
    held = 4 * positions * math.prod(shape[:2])
    return 0, Product(key, positions, shape, held, inputs, deltas, assemble, precision)


def _precision(eqn):
    """That which an operation asks for, and the higher one if it does for each operand."""
    asked = eqn.params["precision"]
    if asked is None:
        return None
    pair = asked if isinstance(asked, tuple) else (asked,)
    if not all(isinstance(one, jax.lax.Precision) for one in pair):
        return jax.lax.Precision.HIGHEST  # an algorithm, of which there are many
    return max(pair, key=lambda one: one.value)


# So many slices of an image are put side by side; more of them are slow to compile.
_FEW_SLICES = 25


def _patches(x, sizes, kernel, strides, dilations):
    """Of images [images, spatial axes, features]: [images, sizes, kernel, features]."""
    k = len(sizes)
    if math.prod(kernel) <= _FEW_SLICES:
        reach = [(size - 1) * step + 1 for size, step in zip(sizes, strides, strict=True)]

        def shifted(offset):
            start = [o * dilation for o, dilation in zip(offset, dilations, strict=True)]
            stop = [first + r for first, r in zip(start, reach, strict=True)]
            return jax.lax.slice(x, (0, *start, 0), (len(x), *stop, x.shape[-1]), (1, *strides, 1))

        patches = jnp.stack([shifted(offset) for offset in np.ndindex(*kernel)], -2)
        return patches.reshape(len(x), *sizes, *kernel, x.shape[-1])
    for axis in range(k):  # [images, size, taps, size, taps, .., features]
        x = _windows(x, 1 + 2 * axis, sizes[axis], strides[axis], kernel[axis], dilations[axis])
    return x.transpose(0, *range(1, 1 + 2 * k, 2), *range(2, 2 + 2 * k, 2), 1 + 2 * k)


def _windows(x, axis, size, step, taps, dilation):
    """Put windows in the place of an axis: [.., size, taps, ..]."""
    if step == taps and dilation == 1:  # they lie side by side
        x = jax.lax.slice_in_dim(x, 0, step * size, axis=axis)
        return x.reshape(*x.shape[:axis], size, taps, *x.shape[axis + 1 :])
    places = np.arange(size)[:, None] * step + np.arange(taps) * dilation
    return jnp.take(x, places.astype(np.int32), axis=axis, mode="clip")


def _gather(eqn, i, loops):
    """The value is a table, of which rows are taken, as ``table[ids]`` does."""
    table, index, numbers = eqn.invars[0].aval, eqn.invars[1].aval, eqn.params["dimension_numbers"]
    modes = jax.lax.GatherScatterMode
    if i or numbers.operand_batching_dims or eqn.params["mode"] == modes.ONE_HOT:
        return 1, None
    clips = eqn.params["mode"] == modes.CLIP  # PROMISE_IN_BOUNDS drops what is not
    kept = [d for d in range(table.ndim) if d not in numbers.collapsed_slice_dims]
    offsets = dict(zip(kept, numbers.offset_dims, strict=True))
    sizes, indexed = eqn.params["slice_sizes"], numbers.start_index_map
    return 1, _rows(table.shape, sizes, indexed, clips, offsets, index.shape, loops)


def _dynamic_slice(eqn, i, loops):
    """The value is a table, of which one row is taken, as ``table[i]`` does."""
    shape, sizes = eqn.invars[0].aval.shape, eqn.params["slice_sizes"]
    indexed = [d for d in range(len(shape)) if sizes[d] < shape[d]]
    if i or len(indexed) != 1:
        return 1, None
    offsets = {d: d for d in range(len(shape))}
    return 1 + indexed[0], _rows(shape, sizes, indexed, True, offsets, (1,), loops)


def _rows(shape, sizes, indexed, clips, offsets, index_shape, loops):
    """Look-ups of what is whole but for axes at which there is an index each.

    Args:
      shape: of the table.
      sizes: of what is looked up, along each of the table's axes.
      indexed: the axes to which the entries of an index belong, in their order.
      clips: whether an index out of bounds is moved into them, or finds nothing.
      offsets: for axes of the table, those of the result.
      index_shape: of the indices, the last axis being that of an index's entries.
      loops: around the look-up.
    """
    single = [d for d in indexed if sizes[d] == 1 < shape[d]]
    whole = [d for d in range(len(shape)) if d not in single]
    if loops.mapped or any(sizes[d] != shape[d] for d in whole):
        return None
    rows, entries = (math.prod(shape[d] for d in axes) for axes in (single, whole))
    positions = math.prod([*loops.lengths, *index_shape[:-1]])
    if positions >= rows and sum(shape[d] > 1 for d in whole) > 1:
        return None  # copies of matrices: all of them together hold more than their gradient
    of_row = loops.after([offsets[d] for d in (*single, *whole) if d in offsets])

    def find(operand, delta):
        index = operand.reshape(-1, len(indexed))
        number, inside = jnp.zeros(len(index), jnp.int32), jnp.ones(len(index), bool)
        for column, d in enumerate(indexed):
            most = min(shape[d] - sizes[d], np.iinfo(index.dtype).max)
            at = jnp.clip(index[:, column], 0, most)
            inside &= at == index[:, column]
            if d in single:
                number = number * shape[d] + at.astype(jnp.int32)
        if not clips:  # what is below 0 is out of bounds as well, and not counted from the end
            number = jnp.where(inside, number, rows)
        positions = [axis for axis in range(delta.ndim) if axis not in of_row]
        return number, grouped(delta, positions, of_row)

    def assemble(table):
        order = [*single, *whole]
        table = table.reshape([shape[d] for d in order])
        return table.transpose([order.index(d) for d in range(len(shape))])

    flat = sum(shape[d] > 1 for d in whole) <= 1
    name = "rows of a table" if flat else f"slices of a stack of {rows}"
    return Rows(("rows", tuple(single)), positions, (rows, entries), name, find, assemble)


_FORMS = {
    "dot_general": _dot,
    "conv_general_dilated": _convolution,
    "gather": _gather,
    "dynamic_slice": _dynamic_slice,
}


def find_use(
    operation: Operation,
    inputs: Sequence[Known | None],
    within: tuple[int, ...],
    lengths: tuple[int, ...],
    max_bytes: int,
) -> Use | None:
    """The use that an operation is, if it has one of the forms.

    Args:
      operation: of one example.
      inputs: its operands, ``None`` for what depends on the example.
      within: places of the loops around it.
      lengths: of these loops.
      max_bytes: how much the patches may hold that a convolution makes of one example.
    """
    eqn = operation.eqn
    of_params = [(i, value) for i, value in enumerate(inputs) if value is not None and value.boxes]
    form, out = _FORMS.get(operation.name), eqn.outvars[0].aval
    if form is None or len(of_params) > 1:
        return None
    if not jnp.issubdtype(out.dtype, jnp.floating):
        return None  # complex: the square of a real part is not the real part of a square
    ((i, value),) = of_params
    other, layout = form(eqn, i, Loops(lengths, value.mapped))
    if layout is None or (isinstance(layout, Product) and layout.patches > max_bytes):
        return None
    operand = eqn.invars[other].aval
    return Use(
        operation.place,
        within,
        value,
        operation.name,
        other,
        jax.ShapeDtypeStruct((*lengths, *out.shape), out.dtype),
        jax.ShapeDtypeStruct((*lengths, *operand.shape), operand.dtype),
        out,
        layout,
    )


def dtype_of(uses: Sequence[Use], bases: Sequence[jax.Array]) -> Any:
    """That of sums for a gradient: no narrower than what it is computed of, or its bases."""
    data = [x for use in uses for x in (use.operand, use.probe)]
    return wide_dtype(*bases, *(x for x in data if jnp.issubdtype(x.dtype, jnp.floating)))


def grouped(x: jax.Array, *groups: Sequence[int]) -> jax.Array:
    """Transpose, and merge each group of axes into one."""
    sizes = [math.prod([x.shape[axis] for axis in axes]) for axes in groups]
    return x.transpose([axis for axes in groups for axis in axes]).reshape(sizes)


def products(a: jax.Array, d: jax.Array, precision: Any) -> jax.Array:
    """``a[b]^T d[b]`` for each ``b``, one after another: CPUs are slow at stacks of products."""

    def product(ad):
        return jnp.matmul(ad[0].T, ad[1], precision=precision)

    return product((a[0], d[0]))[None] if len(a) == 1 else jax.lax.map(product, (a, d))
