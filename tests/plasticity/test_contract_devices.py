"""The contract: every transformation on many devices, and the memory that it takes."""

import functools
import sys

import jax
import jax.numpy as jnp
import optax
import pytest
from contract import (
    ANCHOR,
    BATCH,
    FISHER,
    GRADS,
    LEARNING_RATE,
    PARAMS,
    ROWS,
    assert_close,
    assert_same_bits,
    every_row,
    held,
    member,
    over,
    plain_rows,
    plasticity,
    protected,
    replace_plasticity,
    step,
)
from jax import P

import wpl_jax

# --- Many devices ---------------------------------------------------------------------------------

AUTO, EXPLICIT = jax.sharding.AxisType.Auto, jax.sharding.AxisType.Explicit
MESHES = {  # the types of its axes, and how the weights are cut
    "auto_replicated": (AUTO, P()),
    "auto_fsdp": (AUTO, P("model")),
    "explicit_replicated": (EXPLICIT, P()),  # JAX's default
    "explicit_fsdp": (EXPLICIT, P("model")),
}


LAYOUTS = {name: (*mesh, jax.jit) for name, mesh in MESHES.items()} | {
    "eager": (*MESHES["explicit_fsdp"], lambda fn: fn)
}


@pytest.mark.devices(8)
@plain_rows
@over("layout", LAYOUTS)
def test_on_many_devices_all_is_as_on_one(row, layout):
    """Every function, with masks, norms and decay; the state stays where the weights lie.

    The batch is cut over one axis of the mesh, the weights over the other.
    """
    axis_type, spec, jit = layout
    tx = row.tx(fisher_decay=0.5, max_norm=1.0) if row.trains else row.tx()
    last = {"consolidate": True} if row.trains else {}

    def run(params, grads, anchor, fisher, batch, mask):
        initial = tx.init(params)
        old = wpl_jax.consolidate(initial, anchor, fisher, mask=True)
        new, stepped = step(tx, params, old, grads, batch=batch, mask=mask, **last)
        options = {"decay": 0.5, "max_norm": 1.0, "mask": mask}
        consolidated = wpl_jax.consolidate(stepped, params, fisher, **options)
        states = map(plasticity, [initial, old, stepped, consolidated, wpl_jax.flush(old)])
        weights = [new, *((state.anchor, state.fisher) for state in states)]
        loss = wpl_jax.plasticity_loss(consolidated, params, 1.0)
        return weights, (loss, wpl_jax.diagnose(consolidated, params, LEARNING_RATE, grads))

    trees = (PARAMS, GRADS, ANCHOR, FISHER)
    expected = run(*trees, BATCH, ROWS)
    mesh = jax.make_mesh((4, 2), ("data", "model"), axis_types=2 * (axis_type,))
    with jax.set_mesh(mesh):
        trees = jax.device_put(trees, jax.NamedSharding(mesh, spec))
        batch = jax.device_put(BATCH, jax.NamedSharding(mesh, P("data")))
        weights, numbers = jit(run)(*trees, batch, ROWS)
    assert_close(jax.device_get((weights, numbers)), jax.device_get(expected), rtol=1e-4)
    for path, leaf in jax.tree.leaves_with_path(weights):
        is_same = leaf.sharding.is_equivalent_to(trees[0]["head"].sharding, leaf.ndim)
        assert is_same, (jax.tree_util.keystr(path), leaf.sharding)


def by_shard_map(fn, check_vma):
    """``fn(params, opt_state, batch)`` on each device, which sees its part of the batch."""
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AUTO,))
    specs = {"in_specs": (P(), P(), P("data")), "out_specs": P("data")}

    def stacked(*args):
        return jax.tree.map(lambda x: x[None], fn(*args))

    return jax.jit(jax.shard_map(stacked, mesh=mesh, check_vma=check_vma, **specs))


def by_pmap(fn):
    def on_each_device(params, opt_state, batch):
        batch = jax.tree.map(lambda x: x[:, None], batch)
        return jax.pmap(fn, axis_name="data")(*eight((params, opt_state)), batch)

    return on_each_device


def eight(tree):
    """Replicated, as pmap wants it."""
    return jax.tree.map(lambda x: jnp.stack(8 * [x]), tree)


MAPS = {
    "shard_map": functools.partial(by_shard_map, check_vma=True),
    "shard_map_unchecked": functools.partial(by_shard_map, check_vma=False),
    "pmap": by_pmap,
}


@pytest.mark.devices(8)
@plain_rows
@over("mapped", MAPS)
def test_mapped_over_devices_replicated_states_stay_equal(row, mapped):
    """And are those of one device that sees the whole batch."""

    options = {"fisher_decay": 0.5, "max_norm": 0.5} if row.trains else {}

    def one_step(tx):
        return lambda *args: step(tx, *args[:2], batch=args[2], consolidate=row.trains)

    tx, alone = (
        row.tx(**options, **({"axis_name": "data"} if row.trains else {})),
        row.tx(**options),
    )
    results = jax.device_get(mapped(one_step(tx))(PARAMS, protected(tx), BATCH))
    for i in range(1, 8):
        assert_same_bits(member(results, i), member(results, 0))
    expected = one_step(alone)(PARAMS, protected(alone), BATCH)
    assert_close(member(results, 0), jax.device_get(expected))


@pytest.mark.devices(8)
@plain_rows
def test_an_ensemble_is_its_members(row):
    """A state that is stacked, or replicated for pmap: each model has its own norm and counts."""
    tx = row.tx()
    trees = [
        jax.tree.map(lambda x: jnp.stack([(i + 1) * x for i in range(8)]), tree)
        for tree in (PARAMS, GRADS, ANCHOR, FISHER)
    ]
    trees[-1]["head"] = trees[-1]["head"].at[1].set(jnp.nan)  # of one of them only

    def run_with(of_each):
        @jax.jit
        def run(opt_state, params, grads, anchor, fisher):
            """What is between two models sees the whole stack; only the optimiser is mapped."""
            opt_state = wpl_jax.consolidate(opt_state, anchor, fisher, decay=0.5, max_norm=1.0)
            new = of_each(functools.partial(step, tx))(params, opt_state, grads)
            return new, wpl_jax.diagnose(new[1], params, LEARNING_RATE), wpl_jax.flush(new[1])

        return lambda params, *rest: run(of_each(tx.init)(params), params, *rest)

    of_stack, of_one = run_with(jax.vmap), run_with(lambda fn: fn)
    results = [of_stack(*trees)]
    mesh = jax.make_mesh((8,), ("member",), axis_types=(EXPLICIT,))
    with jax.set_mesh(mesh):  # cut over the members
        results.append(of_stack(*jax.device_put(trees, jax.NamedSharding(mesh, P("member")))))
        for _, diagnosis, _ in results:
            assert isinstance(diagnosis.warnings(), list) and str(diagnosis)
    for i in range(3):
        expected = jax.device_get(of_one(*member(trees, i)))
        for result in results:
            assert_close(member(jax.device_get(result), i), expected)


@pytest.mark.devices(8)
@plain_rows
def test_a_model_on_each_device_trains_in_a_scan(row):
    """Inside shard_map with checks, where what differs between devices has a type of its own."""
    tx = row.tx()
    params = jax.tree.map(lambda x: jnp.stack([(i + 1) * x for i in range(8)]), PARAMS)

    def train(stacked):
        def body(carry, _):
            return step(tx, *carry), None

        carry, _ = jax.lax.scan(body, member(stacked, 0), length=2)
        return jax.tree.map(lambda x: x[None], carry)

    mesh = jax.make_mesh((8,), ("data",), axis_types=(AUTO,))
    on_each = jax.shard_map(train, mesh=mesh, in_specs=P("data"), out_specs=P("data"))
    stacked = (params, wpl_jax.consolidate(jax.vmap(tx.init)(params), params, 1.0))
    new = jax.jit(on_each)(stacked)
    expected = jax.jit(train)(jax.tree.map(lambda x: x[2:3], stacked))
    assert_close(jax.device_get(member(new, 2)), jax.device_get(member(expected, 0)))


# --- Memory ---------------------------------------------------------------------------------------


def consolidated(tx, params, fisher):
    return wpl_jax.consolidate(tx.init(params), params, fisher)


SOURCES = {
    "init": lambda tx, params, fisher: tx.init(params),
    "consolidate": consolidated,
    "consolidate_in_jit": jax.jit(consolidated, static_argnums=0),
    "flush": lambda tx, params, fisher: wpl_jax.flush(consolidated(tx, params, fisher)),
    "put": lambda tx, params, fisher: wpl_jax.put_plasticity(
        tx.init(params), wpl_jax.get_plasticity(consolidated(tx, params, fisher))
    ),
}


@plain_rows
@over("source", SOURCES)
def test_the_state_shares_no_buffer(row, source):
    """With the parameters, or what consolidate was given: all can be donated together."""
    tx = row.tx()
    params, fisher = jax.tree.map(jnp.copy, (PARAMS, FISHER))
    opt_state = source(tx, params, fisher)
    donated = jax.jit(lambda tree: jax.tree.map(lambda x: x + x, tree), donate_argnums=0)
    donated((params, fisher, opt_state))
    assert all(x.is_deleted() for x in jax.tree.leaves((params, fisher, opt_state)))


@every_row
def test_an_update_donates_its_state_and_parameters(row):
    tx = row.tx()
    params = jax.tree.map(jnp.copy, PARAMS)
    opt_state = protected(tx, params)
    new, _ = jax.jit(functools.partial(step, tx), donate_argnums=(0, 1))(params, opt_state)
    assert all(x.is_deleted() for x in jax.tree.leaves((params, plasticity(opt_state).fisher)))
    assert_close(new, held(row))


@plain_rows
def test_consolidate_in_jit_holds_at_most_one_copy_of_its_state(row):
    params = {"w": jnp.zeros((256, 256)), "v": jnp.zeros((256, 256))}
    opt_state = row.tx().init(params)
    consolidate = jax.jit(functools.partial(wpl_jax.consolidate, decay=0.5, max_norm=1.0))
    memory = consolidate.lower(opt_state, params, params).compile().memory_analysis()
    size = sum(x.nbytes for x in jax.tree.leaves(opt_state))
    assert memory.output_size_in_bytes + memory.temp_size_in_bytes < 2.1 * size


@plain_rows
def test_a_state_in_the_memory_of_the_host_stays_there(row):
    tx = row.tx()
    on_host = jax.NamedSharding(jax.make_mesh((1,), ("data",)), P(), memory_kind="pinned_host")
    opt_state = protected(tx)
    opt_state = replace_plasticity(
        opt_state,
        anchor=jax.device_put(plasticity(opt_state).anchor, on_host),
        fisher=jax.device_put(plasticity(opt_state).fisher, on_host),
    )
    new, after = jax.jit(functools.partial(step, tx))(PARAMS, opt_state)
    assert_close(new, held(row))
    for state in (
        after,
        jax.jit(wpl_jax.consolidate)(opt_state, PARAMS, FISHER),
        wpl_jax.consolidate(opt_state, PARAMS, FISHER),
        jax.jit(wpl_jax.flush)(opt_state),
    ):
        for leaf in jax.tree.leaves((plasticity(state).anchor, plasticity(state).fisher)):
            assert leaf.sharding.memory_kind == "pinned_host"


def lines_of_the_package(fn):
    """How many lines of wpl_jax run in a call: its work in Python, without asking a clock."""
    count = 0

    def trace(frame, event, argument):
        nonlocal count
        if not frame.f_globals.get("__name__", "").startswith("wpl_jax"):
            return None
        count += event == "line"
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        fn()
    finally:
        sys.settrace(before)
    return count


@plain_rows
def test_the_work_of_tracing_is_linear_in_hidden_leaves(row):
    def work(leaves):
        params = {str(i): jax.ShapeDtypeStruct((2,), jnp.float32) for i in range(leaves)}
        tx = optax.masked(row.tx(), {str(i): i % 10 == 0 for i in range(leaves)})
        opt_state = jax.eval_shape(tx.init, params)
        update = functools.partial(jax.eval_shape, tx.update, params, opt_state, params)
        return lines_of_the_package(update)

    assert work(200) < 2.2 * work(100)
