"""Where a function's parameters meet an example's data: its uses of them, read from its jaxpr.

:func:`find` follows what depends on the parameters alone, through transposes, casts, concatenations
and any other operation, to where it first meets what depends on the example. :func:`run` then
evaluates the jaxpr of one example with a zero, the probe, added to the result of each use, and also
returns the use's other operand. Under ``vmap``, the gradients of the probes and these operands are
all that per-example gradients of the parameters are made of.

Inside ``lax.scan`` probes are one more scanned input, so that a recurrent weight is one use with as
many positions as steps. Where an operation is not recognised, the probe is added to the value of
parameters itself, and its gradient is what ``vmap(grad)`` computes.

Why jaxprs: they are what every framework and every loss comes down to, so no model changes, and
they show each use of a weight, where interception of a framework's layers sees its own layers only
and misses a weight that is also used outside of them. Of JAX, only the public ``jax.extend.core``
is needed. It is the forward pass that is rewritten, and JAX that differentiates it: custom
derivative rules hold, and there are fewer forms to recognise than in a backward pass.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core

# --- What depends on parameters alone -------------------------------------------------------------


@dataclasses.dataclass(frozen=True, eq=False)
class Value:
    """A value that depends on parameters alone, or on nothing.

    Inside a loop whose scanned inputs it comes from, it stands for its values in all turns, stacked
    along one leading axis for each such loop (``mapped``, outermost first).
    """

    evaluate: Callable[..., Any]  # evaluate(values of inputs, all parameters, squared)
    inputs: tuple["Value", ...] = ()
    leaves: frozenset[int] = frozenset()  # the parameters it depends on
    exact: bool = True  # each entry is one of a parameter's, perhaps scaled, and none occurs twice
    key: Any = None  # equal for equal exact values
    mapped: tuple[int, ...] = ()  # loops, by depth
    entries: frozenset[tuple[Any, int]] = frozenset()  # (loop, operand) by which it came in


def _constant(value):
    return Value(lambda *_: value, key=object())


def leaf(index: int) -> Value:
    """A parameter."""
    return Value(
        lambda _, leaves, __: leaves[index], leaves=frozenset([index]), key=("leaf", index)
    )


def value_of(value: Value, leaves: Mapping[int, jax.Array], squared: bool = False) -> jax.Array:
    """The array that a value stands for, given the parameters.

    With ``squared``, what entries are scaled by is squared, and casts are left out. Transposed, the
    map from an exact value's parameters to it then takes squares of its gradient to squares of
    theirs.
    """
    known: dict[int, Any] = {}

    def get(value):
        if id(value) not in known:
            known[id(value)] = value.evaluate([get(v) for v in value.inputs], leaves, squared)
        return known[id(value)]

    return get(value)


# Operations whose result has each entry of their operands once, or not at all.
_REARRANGEMENTS = {
    "concatenate",
    "convert_element_type",
    "copy",
    "neg",
    "reshape",
    "rev",
    "slice",
    "split",
    "squeeze",
    "transpose",
}


def _is_exact(eqn, inputs):
    """Whether each entry of an equation's results is one of a parameter's, perhaps scaled."""
    name = eqn.primitive.name
    of_params = [i for i, v in enumerate(inputs) if v.leaves]
    same_size = eqn.invars[of_params[0]].aval.size == eqn.outvars[0].aval.size
    if name in ("mul", "div", "select_n"):  # by what is known: a mask, say
        takes = {"mul": [0, 1], "div": [0], "select_n": [1, 2]}[name]
        kind_holds = len(of_params) == 1 and of_params[0] in takes and same_size
    else:
        rearranges = name in _REARRANGEMENTS or (name == "broadcast_in_dim" and same_size)
        kind_holds = rearranges and len(of_params) == len(inputs)
    inputs = [inputs[i] for i in of_params]
    leaves = frozenset().union(*(v.leaves for v in inputs))
    return (
        kind_holds
        and all(v.exact and v.mapped == inputs[0].mapped for v in inputs)
        and len(leaves) == sum(len(v.leaves) for v in inputs)
    )


def _derived(eqn, inputs):
    """The results of an equation all of whose operands depend on parameters alone."""
    name = eqn.primitive.name
    mapped = tuple(sorted({loop for v in inputs for loop in v.mapped}))
    leaves: frozenset[int] = frozenset().union(*(v.leaves for v in inputs))
    exact = bool(leaves) and _is_exact(eqn, inputs)

    def evaluate(values, _, squared):
        function = functools.partial(_evaluate, eqn)
        if squared:
            function = functools.partial(_evaluate_squared, eqn, [bool(v.leaves) for v in inputs])
        for loop in reversed(mapped):  # the innermost vmap takes the innermost loop's axis
            axes = tuple(0 if loop in v.mapped else None for v in inputs)
            function = jax.vmap(function, in_axes=axes)
        return function(*values)

    results = Value(evaluate, tuple(inputs))

    def result(index):
        return Value(
            lambda values, *_: values[0][index],
            (results,),
            leaves,
            exact,
            (name, str(eqn.params), index, *(v.key for v in inputs)) if exact else object(),
            mapped,
            frozenset().union(*(v.entries for v in inputs)),
        )

    return [result(index) for index in range(len(eqn.outvars))]


def _evaluate_squared(eqn, of_params, *values):
    """Apply an equation to exact values, with what it scales them by squared and without casts."""
    name = eqn.primitive.name
    if name in ("convert_element_type", "neg"):
        return values
    if name in ("mul", "div"):
        dtype = values[of_params.index(True)].dtype
        left, right = (
            x if of_param else jnp.square(jnp.asarray(x, dtype))
            for x, of_param in zip(values, of_params, strict=True)
        )
        return [left * right if name == "mul" else left / right]
    return _evaluate(eqn, *values)


def _evaluate(eqn, *values):
    """Apply one equation."""
    operands = zip(eqn.invars, values, strict=True)
    given = {v: value for v, value in operands if not isinstance(v, core.Literal)}
    info = core.DebugInfo("a single equation", eqn.primitive.name, None, None)
    jaxpr = core.Jaxpr((), tuple(given), eqn.outvars, [eqn], eqn.effects, info)
    return core.jaxpr_as_fun(core.ClosedJaxpr(jaxpr, ()))(*given.values())


# --- Uses: where a value of parameters meets an example -------------------------------------------


@dataclasses.dataclass(frozen=True, eq=False)
class Use:
    """One place where an example's data meet a value of parameters.

    Per-example arrays of a use in loops have the loops' axes in front, the outermost first.
    """

    value: Value
    consumer: str  # the primitive
    shape: tuple[int, ...]  # of the probe
    dtype: Any
    place: int = 0  # which operand of the primitive is captured, where one is
    operand: jax.ShapeDtypeStruct | None = None
    layout: Any = None  # a Product or Rows; None: the probe is on the value itself

    @property
    def bytes(self) -> int:
        """What one example's probe and operand hold."""
        held = math.prod(self.shape) * self.dtype.itemsize
        if self.operand is not None:
            held += self.operand.size * self.operand.dtype.itemsize
        return held

    def cotangent(self, operand: jax.Array | None, delta: jax.Array) -> jax.Array:
        """One example's gradient of the value."""
        return delta if self.layout is None else self.layout.cotangent(operand, delta)


class Product(NamedTuple):
    """A contraction with the value, brought into the form ``A^T D``."""

    key: Any  # equal where gradients are assembled alike
    positions: int  # the axis that is summed over
    description: str
    matrices: Callable[..., tuple[jax.Array, jax.Array]]
    """From an example's operand and its result's gradient to ``A`` [batches, positions, in] and
    ``D`` [batches, positions, out]."""
    assemble: Callable[[jax.Array], jax.Array]
    """From [batches, in, out] to the shape of the value."""

    def cotangent(self, operand: jax.Array, delta: jax.Array) -> jax.Array:
        """One example's gradient of the value."""
        return self.assemble(products(*self.matrices(operand, delta)))


class Rows(NamedTuple):
    """A look-up of rows of a table, by vectors of ``depth`` indices."""

    key: Any
    shape: tuple[int, ...]  # the table's
    depth: int
    rows: Callable[..., tuple[jax.Array, jax.Array]]
    """From an example's operand and its result's gradient to indices [positions, depth] and ``D``
    [positions, entries of a row]."""

    def cotangent(self, operand: jax.Array, delta: jax.Array) -> jax.Array:
        """One example's gradient of the table."""
        return self.scatter(*self.rows(operand, delta))

    def scatter(self, indices: jax.Array, rows: jax.Array) -> jax.Array:
        """Add rows up where they belong; what is out of bounds is dropped."""
        table = jnp.zeros((*self.shape[: self.depth], rows.shape[-1]), rows.dtype)
        return table.at[tuple(indices.T)].add(rows, mode="drop").reshape(self.shape)


class _Loops(NamedTuple):
    """The loops around a use: those that give the value one entry a turn, and the others."""

    lengths: tuple[int, ...]
    mapped: tuple[int, ...]

    @property
    def summed(self):
        return [loop for loop in range(len(self.lengths)) if loop not in self.mapped]

    def sizes(self, loops):
        return [self.lengths[loop] for loop in loops]

    def after(self, axes):
        """Where axes are, with the loops' axes in front."""
        return [len(self.lengths) + axis for axis in axes]


def _use(eqn, inputs, lengths):
    """The use that an equation is, if it has one of the forms that are recognised."""
    of_params = [i for i, value in enumerate(inputs) if value is not None and value.leaves]
    form = _FORMS.get(eqn.primitive.name)
    if form is None or len(of_params) > 1:
        return None
    if not jnp.issubdtype(eqn.outvars[0].aval.dtype, jnp.floating):
        return None  # the square of a real part is not the real part of a square
    (i,) = of_params
    place = 1 - i if i < 2 else 0
    layout = inputs[place] is None and form(eqn, i, _Loops(lengths, inputs[i].mapped))
    if not layout:
        return None
    out, other = eqn.outvars[0].aval, eqn.invars[place].aval
    operand = jax.ShapeDtypeStruct((*lengths, *other.shape), other.dtype)
    name, shape = eqn.primitive.name, (*lengths, *out.shape)
    return Use(inputs[i], name, shape, out.dtype, place, operand, layout)


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

    def matrices(operand, delta):
        lead = [*loops.mapped, *loops.after(batch[1 - i])], [*loops.summed, *loops.after(x_free)]
        a = grouped(operand, *lead, loops.after(contracted[1 - i]))
        lead = (
            [*loops.mapped, *loops.after(range(shared))],
            [*loops.summed, *loops.after(x_out)],
        )
        return a, grouped(delta, *lead, loops.after(w_out))

    order = [*batch[i], *contracted[i], *w_free]

    def assemble(gradient):
        m = len(loops.mapped)
        gradient = gradient.reshape(*loops.sizes(loops.mapped), *(w.shape[d] for d in order))
        return gradient.transpose([*range(m), *(m + order.index(d) for d in range(w.ndim))])

    positions = math.prod([*loops.sizes(loops.summed), *(x.shape[d] for d in x_free)])
    key = "dot", i, contracted, batch
    return Product(key, positions, "", matrices, assemble)


def _convolution(eqn, i, loops):
    """The value is the kernel: a product with patches of the input, at positions of the output."""
    params = eqn.params
    if i != 1 or params["batch_group_count"] != 1:
        return None
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

    def in_groups(x, per_group):
        """From [.., groups x per_group] to [mapped x groups, positions, rest x per_group]."""
        x = x.reshape(math.prod(mapped), positions, -1, groups, per_group)
        return grouped(x, [0, 3], [1], [2, 4])

    def matrices(operand, delta):
        x = flat_images(operand, x_spec)
        edges = [
            (*pad, step - 1)
            for pad, step in zip(params["padding"], params["lhs_dilation"], strict=True)
        ]
        x = jax.lax.pad(x, jnp.zeros([], x.dtype), [(0, 0, 0), *edges, (0, 0, 0)])
        strides = params["window_strides"]
        reach = [(size - 1) * step + 1 for size, step in zip(sizes, strides, strict=True)]

        def shifted(offset):
            start = [o * step for o, step in zip(offset, params["rhs_dilation"], strict=True)]
            stop = [first + r for first, r in zip(start, reach, strict=True)]
            corners = (0, *start, 0), (len(x), *stop, x.shape[-1])
            return jax.lax.slice(x, *corners, (1, *strides, 1))

        patches = jnp.stack([shifted(offset) for offset in np.ndindex(*kernel)], -2)
        d = in_groups(flat_images(delta, out_spec), features_out)
        return in_groups(patches, features_in), d

    def assemble(gradient):
        gradient = gradient.reshape(*mapped, groups, *kernel, features_in, features_out)
        gradient = jnp.moveaxis(gradient, m, -2).reshape(*mapped, *kernel, features_in, -1)
        axes = {w_spec[1]: m + k, w_spec[0]: m + k + 1}
        axes |= {d: m + j for j, d in enumerate(w_spec[2:])}
        return gradient.transpose([*range(m), *(axes[d] for d in range(w.ndim))])

    return Product(("convolution", w_spec, groups), positions, " of patches", matrices, assemble)


def _gather(eqn, i, loops):
    """The value is a table, of which whole rows are taken, as ``table[ids]`` does."""
    table, depth = eqn.invars[0].aval, eqn.invars[1].aval.shape[-1]
    numbers, in_front = eqn.params["dimension_numbers"], tuple(range(depth))
    takes_rows = (
        tuple(eqn.params["slice_sizes"]) == (1,) * depth + table.shape[depth:]
        and in_front == numbers.start_index_map == numbers.collapsed_slice_dims
        and not numbers.operand_batching_dims
    )
    if i or loops.mapped or not takes_rows:
        return None
    clips = eqn.params["mode"] == jax.lax.GatherScatterMode.CLIP
    offsets = loops.after(numbers.offset_dims)
    return _rows(table, depth, clips, offsets)


def _dynamic_slice(eqn, i, loops):
    """The value is a table, of which one whole row is taken, as ``table[i]`` does."""
    table = eqn.invars[0].aval
    takes_row = tuple(eqn.params["slice_sizes"]) == (1, *table.shape[1:])
    if i or loops.mapped or not takes_row:
        return None
    return _rows(table, 1, True, loops.after(range(table.ndim)))


def _rows(table, depth, clips, offsets):
    """The layout of look-ups whose result has the rows' axes at ``offsets``."""
    bounds = np.array(table.shape[:depth], np.int32)[None]

    def rows(operand, delta):
        index = operand.reshape(-1, depth).astype(jnp.int32)
        if clips:
            index = jnp.clip(index, 0, bounds - 1)
        else:  # what is below 0 is out of bounds as well, and not counted from the end
            index = jnp.where((index >= 0) & (index < bounds), index, bounds)
        positions = [axis for axis in range(delta.ndim) if axis not in offsets]
        return index, grouped(delta, positions, offsets)

    return Rows(("rows", depth), table.shape, depth, rows)


_FORMS = {
    "dot_general": _dot,
    "conv_general_dilated": _convolution,
    "gather": _gather,
    "dynamic_slice": _dynamic_slice,
}


def grouped(x: jax.Array, *groups: Sequence[int]) -> jax.Array:
    """Transpose, and merge each group of axes into one."""
    sizes = [math.prod([x.shape[axis] for axis in axes]) for axes in groups]
    return x.transpose([axis for axes in groups for axis in axes]).reshape(sizes)


def products(a: jax.Array, d: jax.Array) -> jax.Array:
    """``a[b]^T d[b]`` for each ``b``, one after another: CPUs are slow at stacks of products."""
    if len(a) == 1:
        return (a[0].T @ d[0])[None]
    return jax.lax.map(lambda ad: ad[0].T @ ad[1], (a, d))


# --- Planning: the uses of a jaxpr ----------------------------------------------------------------


@dataclasses.dataclass(eq=False)
class Block:
    """A jaxpr and where the probes go in it. Inner blocks have a stretch of ``uses``."""

    jaxpr: core.Jaxpr
    consts: Sequence[Any]
    uses: list[Use] = dataclasses.field(default_factory=list)
    results: dict[int, int] = dataclasses.field(default_factory=dict)  # equation -> use
    operands: dict[tuple[int, int], int] = dataclasses.field(default_factory=dict)
    inner: dict[int, tuple["Block", slice]] = dataclasses.field(default_factory=dict)


class _EnterWhole(Exception):
    """Inside a loop, a value is used in no form that is known: probe it where it enters."""


# Calls of a function, which are looked into, and their parameter with its jaxpr.
_CALLS = {
    "jit": "jaxpr",
    "pjit": "jaxpr",
    "remat2": "jaxpr",
    "checkpoint": "jaxpr",
    "closed_call": "call_jaxpr",
    "core_call": "call_jaxpr",
}


def find(
    jaxpr: core.Jaxpr,
    consts: Sequence[Any],
    inputs: Sequence[Value | None],
    loops: tuple[int, ...] = (),
    probe_results: bool = False,
) -> tuple[Block, list[Value | None]]:
    """Find the uses in a jaxpr.

    Args:
      jaxpr: of one example.
      consts: the values of its constants.
      inputs: for each argument what it is: a ``Value``, or None if it depends on the example.
      loops: the lengths of the loops around it.
      probe_results: whether a result that depends on parameters alone counts as a use of them.

    Returns:
      The block, and for each result what it is.
    """
    block = Block(jaxpr, consts)
    kinds = dict(zip(jaxpr.constvars, map(_constant, consts), strict=True))
    kinds |= dict(zip(jaxpr.invars, inputs, strict=True))
    probed: dict[Any, int] = {}  # variable -> use
    results: Sequence[Value | None]
    variable: Any

    def kind(variable):
        if isinstance(variable, core.Literal):
            return _constant(variable.val)
        return kinds[variable]

    def add(uses):
        start = len(block.uses)
        block.uses.extend(uses)
        return slice(start, len(block.uses))

    def probe_operand(place, variable, consumer):
        value = kind(variable)
        if value is None or not value.leaves:
            return
        if loops:
            raise _EnterWhole(value.entries)
        if variable not in probed:
            use = Use(value, consumer, variable.aval.shape, variable.aval.dtype)
            probed[variable] = add([use]).start
        block.operands[place] = probed[variable]

    for i, eqn in enumerate(jaxpr.eqns):
        operands = [kind(v) for v in eqn.invars]
        name = eqn.primitive.name
        if not any(value is not None and value.leaves for value in operands):
            known = all(value is not None for value in operands)
            results = _derived(eqn, operands) if known else [None] * len(eqn.outvars)
        elif name in _CALLS:
            called, constants = _opened(eqn.params[_CALLS[name]])
            inner, results = find(called, constants, operands, loops)
            block.inner[i] = inner, add(inner.uses)
        elif all(value is not None for value in operands):
            results = _derived(eqn, operands)
        elif use := _use(eqn, operands, loops):
            block.results[i] = add([use]).start
            results = [None]
        else:
            whole = range(len(operands))
            if name == "scan":
                inner, whole = _plan_scan(eqn, operands, loops)
                if inner.uses:
                    block.inner[i] = inner, add(inner.uses)
            for place in whole:
                probe_operand((i, place), eqn.invars[place], name)
            results = [None] * len(eqn.outvars)
        for variable, result in zip(eqn.outvars, results, strict=True):
            # An integer has no gradient: what comes of parameters by way of it is data.
            of_params = result is not None and result.leaves
            has_gradient = jnp.issubdtype(variable.aval.dtype, jnp.inexact)
            kinds[variable] = None if of_params and not has_gradient else result
    if probe_results:
        for place, variable in enumerate(jaxpr.outvars):
            probe_operand((len(jaxpr.eqns), place), variable, "the result")
    return block, [kind(v) for v in jaxpr.outvars]


def _opened(jaxpr):
    """A jaxpr and its constants; open and closed ones are of one class from JAX 0.11 on."""
    return getattr(jaxpr, "jaxpr", jaxpr), getattr(jaxpr, "consts", ())


def _scanned(eqn):
    """How many operands of a loop are constant, and how many are carried."""
    if "ft_in" in eqn.params:  # from JAX 0.11 on
        constant, carried, _ = eqn.params["ft_in"].unpack()
        return len(constant), len(carried)
    return eqn.params["num_consts"], eqn.params["num_carry"]


def _plan_scan(eqn, operands, loops):
    """Find the uses in a loop's body.

    Returns:
      The body's block, and the operands to probe where they enter: those that are carried, and
      those that the body uses in a form that is not known.
    """
    consts, carry = _scanned(eqn)
    (body, body_consts), loop = _opened(eqn.params["jaxpr"]), object()
    whole = {
        i
        for i, v in enumerate(operands)
        if consts <= i < consts + carry and v is not None and v.leaves
    }

    def enter(i, value):
        if value is None or i in whole or (i >= consts and not value.leaves):
            return None
        if not value.leaves:
            return value
        scanned = i >= consts
        return dataclasses.replace(
            value,
            evaluate=lambda values, *_: values[0],
            inputs=(value,),
            key=(value.key, loop) if scanned else value.key,
            mapped=(*value.mapped, len(loops)) if scanned else value.mapped,
            entries=value.entries | {(loop, i)},
        )

    while True:
        inputs = [enter(i, value) for i, value in enumerate(operands)]
        try:
            lengths = (*loops, eqn.params["length"])
            block, _ = find(body, body_consts, inputs, lengths, probe_results=True)
            return block, sorted(whole)
        except _EnterWhole as used:
            (entries,) = used.args
            whole |= {i for of_loop, i in entries if of_loop is loop}


# --- Running an example with probes ---------------------------------------------------------------


def run(
    block: Block, arguments: Sequence[Any], probes: Sequence[jax.Array]
) -> tuple[list[Any], list[Any]]:
    """Evaluate a block, adding its probes.

    Returns:
      The results, and for each use its operand, None where the probe is on the value itself.
    """
    values = dict(zip(block.jaxpr.constvars, block.consts, strict=True))
    values |= dict(zip(block.jaxpr.invars, arguments, strict=True))
    captured: list[Any] = [None] * len(block.uses)

    def read(place, variable):
        value = variable.val if isinstance(variable, core.Literal) else values[variable]
        return value + probes[block.operands[place]] if place in block.operands else value

    for i, eqn in enumerate(block.jaxpr.eqns):
        operands = [read((i, j), v) for j, v in enumerate(eqn.invars)]
        if i in block.inner:
            inner, stretch = block.inner[i]
            if eqn.primitive.name == "scan":
                results, of_inner = _run_scan(eqn, inner, operands, probes[stretch])
            else:
                results, of_inner = run(inner, operands, probes[stretch])
            captured[stretch] = of_inner
        else:
            results = _evaluate(eqn, *operands)
        if i in block.results:
            use = block.results[i]
            results = [results[0] + probes[use]]
            captured[use] = operands[block.uses[use].place]
        values |= dict(zip(eqn.outvars, results, strict=True))
    end = len(block.jaxpr.eqns)
    return [read((end, j), v) for j, v in enumerate(block.jaxpr.outvars)], captured


def _run_scan(eqn, inner, operands, probes):
    """Scan a body over its probes too; operands of its uses are stacked as results are."""
    consts, carried = _scanned(eqn)
    fixed, start = operands[:consts], operands[consts : consts + carried]

    def body(carry, scanned):
        inputs, probes = scanned
        results, captured = run(inner, [*fixed, *carry, *inputs], probes)
        return results[:carried], (results[carried:], captured)

    carry, (results, captured) = jax.lax.scan(
        body,
        start,
        (operands[consts + carried :], probes),
        length=eqn.params["length"],
        reverse=eqn.params["reverse"],
        unroll=eqn.params["unroll"],
    )
    return [*carry, *results], captured
