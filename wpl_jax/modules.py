"""Flax's modules where a tree of parameters is expected, and errors that name their layers.

An ``nnx.Module`` is a pytree of more than parameters, and a loss changes it as it runs: batch norm
its statistics, dropout the count that its next key is made from. A function of parameters and of
one example can do neither. Flax is not imported here: where it has not been, no tree is its.
"""

import contextlib
import functools
import sys
from collections.abc import Callable, Iterator
from typing import Any

import jax

from wpl_jax.trees import is_hidden, leaves_by_path, nodes_of, prefixes

__all__ = ["arrays", "is_optimizer", "of_parameters", "parameters", "trained_part"]

_BATCH_NORM = (
    "use batch norm in train mode{at}: one example would be normalised by itself. Fix its "
    "statistics: call model.eval() first (Linen: use_running_average=True), and model.train() "
    "afterwards; squared_batch_gradient can take a whole batch as its one example"
)
_DROPOUT = (
    "use dropout, or other noise of the model's own{at}: it would be the same for all examples. "
    "Call model.eval() first (Linen: deterministic=True), and model.train() afterwards; or give "
    "each example a key: put jax.random.split(key, n) into the batch, pass the model itself for "
    "the parameters, and in the loss call nnx.reseed(model, dropout=example['key'])"
)
_CHANGED = (
    "change a variable that was made outside of it, nor give it to a transformation of NNX: pass "
    "the model itself for the parameters, or split it before, graph, params, rest = "
    "nnx.split(model, nnx.Param, ...), and put a copy of it together inside, "
    "nnx.merge(graph, params, rest, copy=True)"
)


def parameters(tree: Any, opt_state: Any = None) -> Any:
    """The parameters of an NNX model, as ``nnx.state`` gives them; any other tree as it is.

    Args:
      tree: an ``nnx.Module``, a tree with some in it, or any other tree.
      opt_state: where this is an ``nnx.Optimizer``, what it trains counts, else ``nnx.Param``.
    """
    if not _holds_module(tree):
        return tree
    nnx = sys.modules["flax.nnx"]
    return nnx.state(tree, opt_state.wrt if is_optimizer(opt_state) else nnx.Param)


def trained_part(tree: Any, model: Any, optimizer: Any) -> Any:
    """Of a tree like a model's parameters, or a prefix, what an ``nnx.Optimizer`` trains.

    The rest is None. Any other tree stays as it is, and any tree where there is no such model.
    """
    if not (is_optimizer(optimizer) and _holds_module(model)):
        return tree
    trained = prefixes(leaves_by_path(parameters(model, optimizer)))
    others = prefixes(leaves_by_path(parameters(model))) - trained
    nodes, structure = jax.tree.flatten_with_path(tree, is_leaf=is_hidden)
    leaves = zip(leaves_by_path(tree), nodes, strict=True)
    kept = [None if path in others else leaf for path, (_, leaf) in leaves]
    return jax.tree.unflatten(structure, kept)


def arrays(tree: Any) -> Any:
    """The tree with the variables of NNX replaced by the arrays in them."""
    nnx = sys.modules.get("flax.nnx")
    if nnx is None:
        return tree

    def is_variable(node: Any) -> bool:
        return isinstance(node, nnx.Variable)

    return jax.tree.map(
        lambda node: node.get_value() if is_variable(node) else node, tree, is_leaf=is_variable
    )


def is_optimizer(tree: Any) -> bool:
    """Whether this is an ``nnx.Optimizer``, whose ``opt_state`` and ``wrt`` can be read."""
    nnx = sys.modules.get("flax.nnx")
    return nnx is not None and isinstance(tree, nnx.Optimizer)


def of_parameters(
    name: str, fn: Callable[..., Any], params: Any, whole: bool = False
) -> tuple[Callable[..., Any], Any, Any]:
    """A function of a model and an example as one of the model's parameters.

    It is traced for one example in the place of all. Dropout, and batch norm in train mode, raise
    an error that names them.

    Args:
      name: what to call the function in an error.
      fn: of a model, or of any tree of parameters, and one example.
      params: the model, or these parameters.
      whole: whether the one example is the whole batch, so that noise and statistics are its own.

    Returns:
      A function of the rest of the model, its parameters and an example; the rest; the parameters.
    """
    if not _holds_module(params):
        _check_kinds(params)
        return _watched(name, lambda rest, params, example: fn(params, example), whole), (), params
    nnx = sys.modules["flax.nnx"]
    graph, params, rest = nnx.split(params, nnx.Param, ...)

    def of_parts(rest, params, example):
        model = nnx.merge(graph, params, rest, copy=True)  # so that what changes can be seen
        out = fn(model, example)
        if not whole:

            def again(rest):
                return fn(nnx.merge(graph, params, rest, copy=True), example)

            _check_unchanged(name, again, rest, nnx.state(model))
        return out

    return _watched(name, of_parts, whole), rest, params


def _holds_module(tree):
    nnx = sys.modules.get("flax.nnx")
    return nnx is not None and bool(nodes_of(tree, nnx.Module))


def _check_kinds(params):
    nnx = sys.modules.get("flax.nnx")
    if nnx is None:
        return

    for path, node in nodes_of(params, (nnx.BatchStat, nnx.RngState)):
        raise ValueError(
            f"params hold a {type(node).__name__} at {jax.tree_util.keystr(path)}, which is "
            "not trained: pass the model itself, or nnx.state(model, nnx.Param), and put the "
            "rest back inside"
        )


def _check_unchanged(name, fn, state, after):
    """Refuse a function of the rest of a model that changes statistics, or needs random numbers."""
    nnx = sys.modules["flax.nnx"]
    after = dict(nnx.to_flat_state(after))

    def changed(path):
        return path in after and after[path].get_raw_value() is not before[path].get_raw_value()

    before = dict(nnx.to_flat_state(state))
    for path, variable in before.items():
        at = f" ({type(variable).__name__} at {'.'.join(map(str, path))})"
        if isinstance(variable, nnx.BatchStat) and changed(path):
            raise ValueError(_refusal(name, _BATCH_NORM.format(at=at)))
        # A stream that has been given another key may count what was drawn from it.
        key = (*path[:-1], "key")
        counted = isinstance(variable, nnx.RngCount) and changed(path) and not changed(key)
        if counted and _needs(fn, state, before[key].get_raw_value()):
            raise ValueError(_refusal(name, _DROPOUT.format(at=at)))


def _needs(fn, state, key):
    """Whether the result of a function of a state depends on a key in it."""
    from wpl_jax.fisher.program import depends

    leaves, structure = jax.tree.flatten(state)
    jaxpr = jax.make_jaxpr(lambda leaves: fn(jax.tree.unflatten(structure, leaves)))(leaves)
    return any(depends(jaxpr, [leaf is key for leaf in leaves]))


def _watched(name, fn, whole):
    """The function, which raises errors that say what was done, where Flax's do not."""

    @functools.wraps(fn)
    def watched(*args):
        with contextlib.nullcontext() if whole else _without_batch_norm(name):
            try:
                return fn(*args)
            except Exception as error:
                if "different trace level" not in str(error):
                    raise
                # Flax names the type of the variable that was changed, and not its place.
                if "mutate BatchStat" in str(error):
                    what = _BATCH_NORM.format(at="")
                elif "mutate Rng" in str(error):
                    what = _DROPOUT.format(at="")
                else:
                    what = _CHANGED
                raise ValueError(_refusal(name, what)) from error

    return watched


@contextlib.contextmanager
def _without_batch_norm(name: str) -> Iterator[None]:
    """Within it, batch norm of Linen in train mode raises an error."""
    linen = sys.modules.get("flax.linen")
    if linen is None:
        yield
        return

    def intercept(call, args, kwargs, context):
        if isinstance(context.module, linen.BatchNorm) and context.method_name == "__call__":
            given = args[1] if len(args) > 1 else kwargs.get("use_running_average")
            fixed = context.module.use_running_average if given is None else given
            if fixed is False and not context.module.is_initializing():
                at = f" ({'.'.join(context.module.path)})" if context.module.path else ""
                raise ValueError(_refusal(name, _BATCH_NORM.format(at=at)))
        return call(*args, **kwargs)

    with linen.intercept_methods(intercept):
        yield


def _refusal(name, what):
    return f"{name} is of one example, and may not {what}"
