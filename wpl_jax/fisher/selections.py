"""What a program knows without an example: parameters, entries of them, and constants.

A *base* is a parameter, or a value that is computed from parameters alone in some way that is not
looked into (a norm, a product of two of them, a custom derivative rule). A *selection* holds
entries of bases, each at most once and perhaps scaled or shifted by what has no gradient:
``L(x)_j = s_j x_{i(j)} + c_j``. :data:`ENTRYWISE` is the whole list of operations that make one
selection of another. Whatever is not on it makes a new base, or in the body of a loop ends the
search, so that a base is what it is without any assumption about the operations behind it.

The linear part of a selection is read from JAX: its derivative ``s`` in the direction of ones, and
the transpose of that derivative. Squares of the gradient of a selection go back to squares of the
base's by ``q -> L'^T (s * q)``: as ``(L'^T q)_i = sum_{j: i(j) = i} s_j q_j``, an entry gets
``s_j**2 q_j``.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core

from wpl_jax.fisher.program import Operation, evaluate

# For each axis of a base, where the entries begin and end that a selection may hold.
Box = tuple[tuple[int, int], ...]


@dataclasses.dataclass(frozen=True, eq=False)
class Known:
    """A value that no example enters.

    In the body of a loop whose scanned inputs it comes from, it stands for its values in all turns,
    stacked along one leading axis for each such loop (``mapped``, the depths of the loops,
    outermost first).
    """

    compute: Callable[..., Any]  # compute(values of inputs, outside, dtype)
    inputs: tuple["Known", ...]
    key: Any  # equal for equal values
    boxes: Mapping[int, Box] = dataclasses.field(default_factory=dict)  # by base; none: no gradient
    names: dict[Any, Any] | None = None  # of selections of one program: their keys, numbered
    sliced: bool = False  # by slices and splits alone, so that its axes are those of its base
    rounded: bool = False  # to a narrower dtype
    scaled: bool = False  # by factors that may be other than 1, 0 and -1
    mapped: tuple[int, ...] = ()


def constant(value: Any) -> Known:
    """The constant of a body."""
    return Known(lambda *_: value, (), ("constant", id(value)))


def _literal(literal):
    value = np.asarray(literal.val, literal.aval.dtype)
    return Known(lambda *_: value, (), ("literal", value.dtype, value.tobytes()))


def outside(number: int) -> Known:
    """A value without a gradient that is computed before any example is."""
    return Known(lambda _, values, __: values[number], (), ("outside", number))


def base(number: int, shape: Sequence[int], names: dict[Any, Any]) -> Known:
    """A parameter, or what is computed of parameters."""

    def compute(_, values, dtype):
        return values[number].astype(dtype)

    box = tuple((0, size) for size in shape)
    return Known(compute, (), ("base", number), {number: box}, names, sliced=True)


def turns(value: Known, loop: Any, depth: int) -> Known:
    """The value as the body of a loop sees it that is scanned over it."""
    return Known(
        lambda values, *_: values[0],
        (value,),
        (value.key, loop),
        value.boxes,
        value.names,
        rounded=value.rounded,
        scaled=value.scaled,
        mapped=(*value.mapped, depth),
    )


def value_of(value: Known, values: Mapping[int, Any], dtype: Any) -> jax.Array:
    """The array that it stands for, with ``dtype`` for all that has a gradient.

    Args:
      value: what is known.
      values: of bases and of what is computed outside, by number.
      dtype: float32 or wider, whatever the program computes in.
    """
    found: dict[int, Any] = {}
    waiting = [value]
    while waiting:  # a chain of operations may be longer than Python's stack
        last = waiting[-1]
        if missing := [v for v in last.inputs if id(v) not in found]:
            waiting.extend(missing)
        else:
            operands = [found[id(v)] for v in last.inputs]
            found[id(last)] = last.compute(operands, values, dtype)
            waiting.pop()
    return found[id(value)]


# --- Selections -----------------------------------------------------------------------------------

# Operations whose result has each entry of the operands named here once, or not at all, perhaps
# scaled or shifted by the other operands. They may have more than one such operand at a time only
# if they put them side by side.
ENTRYWISE: Mapping[str, slice] = {
    **dict.fromkeys(("add", "mul", "sub"), slice(0, 2)),
    "concatenate": slice(None),
    "select_n": slice(1, None),
    **dict.fromkeys(
        (
            "broadcast_in_dim",  # to the same number of entries
            "convert_element_type",  # between floating-point types
            "copy",
            "copy_p",
            "div",
            "dynamic_slice",
            "neg",
            "pad",
            "reshape",
            "rev",
            "scatter",
            "sharding_constraint",
            "slice",
            "split",
            "squeeze",
            "transpose",
        ),
        slice(0, 1),
    ),
}

# Of these the result has more or fewer entries than the operand, and each at most once.
_OF_OTHER_SIZE = {"concatenate", "dynamic_slice", "pad", "slice", "split"}


def selections(operation: Operation, inputs: Sequence[Known]) -> list[Known] | None:
    """What an operation makes of selections, or None if it is not known to make selections."""
    eqn = operation.eqn
    chosen = [i for i, value in enumerate(inputs) if value.boxes]
    sources = [inputs[i] for i in chosen]
    avals = [v.aval for v in (*(eqn.invars[i] for i in chosen), *eqn.outvars)]
    if operation.name not in ENTRYWISE or not chosen:
        return None
    if not set(chosen) <= set(range(len(inputs))[ENTRYWISE[operation.name]]):
        return None
    if len(chosen) > 1 and operation.name != "concatenate":
        return None
    if not all(jnp.issubdtype(aval.dtype, jnp.floating) for aval in avals):
        return None
    if operation.name not in _OF_OTHER_SIZE and avals[0].size != avals[-1].size:
        return None  # an entry that is broadcast occurs more than once
    if any(source.mapped != sources[0].mapped for source in sources):
        return None
    if not all(set(value.mapped) <= set(sources[0].mapped) for value in inputs):
        return None  # so does one that is scaled otherwise in every turn of a loop
    if not disjoint([source.boxes for source in sources]):
        return None
    rounded = any(source.rounded for source in sources)
    scaled = operation.name in ("mul", "div") or any(source.scaled for source in sources)
    if operation.name == "convert_element_type":
        before, after = (jnp.finfo(aval.dtype).nmant for aval in avals)
        if rounded and after > before:
            return None  # on its way back a gradient is rounded, which only JAX imitates
        rounded |= after < before
    results = derived(operation, inputs)
    boxes = _cut(operation, sources[0].boxes) if sources[0].sliced else [None] * len(results)
    return [
        dataclasses.replace(
            result, boxes=box or result.boxes, sliced=bool(box), rounded=rounded, scaled=scaled
        )
        for result, box in zip(results, boxes, strict=True)
    ]


def derived(operation: Operation, inputs: Sequence[Known]) -> list[Known]:
    """The results of an operation on what is known, where none of them is a base."""
    eqn = operation.eqn
    mapped = tuple(sorted({loop for value in inputs for loop in value.mapped}))
    boxes: dict[int, Box] = {}
    for value in inputs:
        for number, box in value.boxes.items():
            boxes[number] = _around(box, boxes.get(number, box))
    names = next((value.names for value in inputs if value.boxes), None)

    def compute(operands, _, dtype):
        def apply(*operands):
            if not boxes:
                return evaluate(operation, operands)
            if operation.name == "convert_element_type":
                return list(operands)
            return _bind(eqn, [_cast(x, dtype) for x in operands])

        # Some generators' random numbers are not the same under vmap as in a loop.
        over = _in_a_loop if operation.name.startswith(("random_", "rng_")) else jax.vmap
        for loop in reversed(mapped):  # the innermost vmap takes the innermost loop's axis
            axes = tuple(0 if loop in value.mapped else None for value in inputs)
            apply = over(apply, in_axes=axes)
        return apply(*operands)

    together = Known(compute, tuple(inputs), _key(operation, inputs, names))

    def result(index):
        return Known(
            lambda values, *_: values[0][index],
            (together,),
            (together.key, index),
            boxes,
            names,
            mapped=mapped,
        )

    return [result(index) for index in range(len(eqn.outvars))]


def _in_a_loop(apply, in_axes):
    """As ``jax.vmap``, one turn after another."""

    def of_all(*operands):
        stacked = [x for x, axis in zip(operands, in_axes, strict=True) if axis == 0]

        def of_one(turn):
            turn = iter(turn)
            pairs = zip(operands, in_axes, strict=True)
            return apply(*(next(turn) if axis == 0 else x for x, axis in pairs))

        return jax.lax.map(of_one, stacked)

    return of_all


def _key(operation, inputs, names):
    """A number, the same for what is the same selection."""
    key = operation.name, tuple(operation.eqn.params.items()), tuple(v.key for v in inputs)
    try:
        return object() if names is None else names.setdefault(key, len(names))
    except TypeError:  # a parameter that cannot be compared
        return object()


def _around(one, other):
    """The smallest box that holds two."""
    return tuple((min(a[0], b[0]), max(a[1], b[1])) for a, b in zip(one, other, strict=True))


def _bind(eqn, operands):
    results = eqn.primitive.bind(*operands, **eqn.params)
    return results if eqn.primitive.multiple_results else [results]


def _cast(x, dtype):
    return x.astype(dtype) if jnp.issubdtype(jnp.result_type(x), jnp.floating) else x


def operand_of(atom: Any, kinds: Mapping[int, Any]) -> Any:
    """What is known of an operand, literals included."""
    return _literal(atom) if isinstance(atom, core.Literal) else kinds[atom]


def _cut(operation, boxes):
    """Boxes of the results of a slice or a split, or None for each if it is something else."""
    eqn = operation.eqn
    ((number, box),) = boxes.items()
    if operation.name == "slice":
        if any(stride != 1 for stride in eqn.params["strides"] or ()):
            return [None]  # what is cut out of it lies elsewhere in the base
        bounds = zip(box, eqn.params["start_indices"], eqn.params["limit_indices"], strict=True)
        return [{number: tuple((lo + start, lo + stop) for (lo, _), start, stop in bounds)}]
    if operation.name == "split":
        axis, found, lo = eqn.params["axis"], [], box[eqn.params["axis"]][0]
        for size in map(int, eqn.params["sizes"]):
            found.append({number: (*box[:axis], (lo, lo + size), *box[axis + 1 :])})
            lo += size
        return found
    in_place = operation.name in ("add", "convert_element_type", "copy", "div", "mul", "neg", "sub")
    return [boxes if in_place else None] * len(eqn.outvars)


def disjoint(all_boxes: Sequence[Mapping[int, Box]]) -> bool:
    """Whether no entry of a base is in two of the boxes."""
    for i, first in enumerate(all_boxes):
        for second in all_boxes[:i]:
            for number in first.keys() & second.keys():
                pairs = list(zip(first[number], second[number], strict=True))
                if not any(a[1] <= b[0] or b[1] <= a[0] for a, b in pairs):
                    return False
    return True


def size_of_scales(
    value: Known, numbers: Sequence[int], values: Mapping[int, Any], dtype: Any
) -> jax.Array:
    """A power of 2 of the size of the largest factor that a selection's bases are scaled by.

    The gradient of the selection times that is of the size of those of the bases: its squares
    overflow, or vanish, where theirs do.
    """
    scales = jnp.abs(_scales(*_selecting(value, numbers, values, dtype)))
    largest = jnp.max(scales, initial=0, where=jnp.isfinite(scales))
    _, exponent = jnp.frexp(largest)
    return jnp.where(largest > 0, jnp.ldexp(jnp.ones_like(largest), exponent - 1), 1)


def squares_of_bases(
    value: Known,
    numbers: Sequence[int],
    values: Mapping[int, Any],
    squares: jax.Array,
    size: jax.Array | None,
) -> list[jax.Array]:
    """Squares of the gradients of bases, from those of a selection of them.

    Args:
      value: the selection.
      numbers: its bases.
      values: of bases and of what is computed outside, by number.
      squares: like the value, of its gradient times ``size``.
      size: :func:`size_of_scales` of a selection that is scaled.
    """
    select, bases = _selecting(value, numbers, values, squares.dtype)
    scales = _scales(select, bases)
    if size is None:
        return jax.vjp(select, bases)[1](scales * squares)[0]
    # The pullback multiplies by scales once more; neither product is far from the squares.
    cotangent = scales / size * squares / jnp.minimum(size, 1)
    return [x / jnp.maximum(size, 1) for x in jax.vjp(select, bases)[1](cotangent)[0]]


def _scales(select, bases):
    return jax.jvp(select, (bases,), ([jnp.ones_like(x) for x in bases],))[1]


def gradients_of_bases(
    value: Known, numbers: Sequence[int], values: Mapping[int, Any], dtype: Any
) -> Callable[[jax.Array], list[jax.Array]]:
    """What takes the gradient of a selection to those of its bases."""
    pullback = jax.vjp(*_selecting(value, numbers, values, dtype))[1]
    return lambda cotangent: pullback(cotangent)[0]


def _selecting(value, numbers, values, dtype):
    """A selection as a function of its bases, and these."""

    def select(bases):
        return value_of(value, {**values, **dict(zip(numbers, bases, strict=True))}, dtype)

    return select, [values[number].astype(dtype) for number in numbers]
