"""The plasticity state: in other optimisers and models, in narrow dtypes, on the host."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import wpl_jax
from wpl_jax.numbers import rounded

PARAMS = {"trunk": {"kernel": jnp.ones((2, 3)), "bias": jnp.zeros(3)}, "head": jnp.ones((3, 4))}
FISHER = jax.tree.map(lambda p: 2.0 + jnp.arange(p.size, dtype=float).reshape(p.shape), PARAMS)


def additive(inner):
    return optax.chain(wpl_jax.add_plasticity(1.0), inner)


def proximal(inner):
    return optax.chain(inner, wpl_jax.proximal_plasticity(1.0, 0.1))


def protected(tx, params=PARAMS, fisher=FISHER):
    return wpl_jax.consolidate(tx.init(params), params, fisher)


# --- get and put ----------------------------------------------------------------------------------


def test_a_changed_optimiser_goes_on_protecting():
    """From Adam to SGD, additive to proximal: anchor and Fisher go along, schedules start anew."""
    old = optax.chain(wpl_jax.add_plasticity(lambda n: 5.0 + n), optax.adam(0.1))
    opt_state = protected(old)
    _, opt_state = old.update(PARAMS, opt_state, PARAMS)
    new = proximal(optax.sgd(0.1))
    carried = wpl_jax.put_plasticity(new.init(PARAMS), opt_state)
    assert jax.tree.structure(carried) == jax.tree.structure(new.init(PARAMS))
    plasticity = wpl_jax.get_plasticity(carried)
    jax.tree.map(np.testing.assert_array_equal, plasticity.anchor, PARAMS)
    jax.tree.map(np.testing.assert_array_equal, plasticity.fisher, FISHER)
    assert plasticity.consolidations == 1
    assert plasticity.count == 0 and plasticity.last_strength == 1.0
    assert wpl_jax.diagnose(carried, PARAMS, 0.1).proximal


def test_a_changed_model_keeps_what_it_has_and_says_what_is_gone():
    opt_state = protected(additive(optax.sgd(0.1)))
    changed = {**PARAMS, "head": jnp.zeros((3, 7)), "adapter": jnp.zeros(2)}
    fresh = additive(optax.sgd(0.1)).init(changed)
    with pytest.warns(UserWarning, match=r"no longer protected.*: \['head'\] of shape \(3, 4\)$"):
        carried = wpl_jax.put_plasticity(fresh, wpl_jax.get_plasticity(opt_state))
    plasticity = wpl_jax.get_plasticity(carried)
    jax.tree.map(np.testing.assert_array_equal, plasticity.fisher["trunk"], FISHER["trunk"])
    assert not plasticity.fisher["head"].any() and not plasticity.fisher["adapter"].any()
    np.testing.assert_array_equal(plasticity.anchor["head"], changed["head"])


def test_it_can_be_put_where_parts_are_hidden():
    """A partition covers the trunk only, of which nothing is lost."""
    opt_state = protected(additive(optax.sgd(0.1)))
    covered = optax.partition(
        {"held": additive(optax.sgd(0.1)), "free": optax.sgd(0.1)},
        {"trunk": "held", "head": "free"},
    )
    with pytest.warns(UserWarning, match=r"\['head'\]"):
        carried = wpl_jax.put_plasticity(covered.init(PARAMS), opt_state)
    fisher = wpl_jax.get_plasticity(carried).fisher
    jax.tree.map(np.testing.assert_array_equal, fisher["trunk"], FISHER["trunk"])
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # and nothing is gone on the way back
        wpl_jax.put_plasticity(opt_state, carried)


def test_both_states_may_be_donated():
    tx = additive(optax.sgd(0.1))
    old = protected(tx)
    carried = wpl_jax.put_plasticity(tx.init(PARAMS), old)
    pointers = [
        {leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves(state)}
        for state in (old, carried)
    ]
    assert not pointers[0] & pointers[1]


def placed(place):
    """PARAMS on one device or several, committed to them or not."""
    devices = jax.devices()
    if place == "anywhere":
        return PARAMS
    if place == "one":
        return jax.device_put(PARAMS, devices[3])
    mesh = jax.sharding.Mesh(devices[:2] if place == "two" else devices, ("d",))
    return jax.device_put(PARAMS, jax.NamedSharding(mesh, jax.P()))


@pytest.mark.devices(8)
@pytest.mark.parametrize("source", ["anywhere", "one", "two", "all"])
@pytest.mark.parametrize("target", ["anywhere", "one", "two", "all"])
def test_it_goes_to_where_the_target_is(source, target):
    """Committed to the target's devices if that is, and else free to follow the parameters."""
    tx, params = additive(optax.sgd(0.1)), placed(target)
    reference = protected(tx, params)
    carried = wpl_jax.put_plasticity(tx.init(params), protected(tx, placed(source)))
    for found, wanted in zip(
        jax.tree.leaves(wpl_jax.get_plasticity(carried)),
        jax.tree.leaves(wpl_jax.get_plasticity(reference)),
        strict=True,
    ):
        np.testing.assert_array_equal(found, wanted)
        assert found.committed == wanted.committed and found.sharding == wanted.sharding
    everywhere = jax.NamedSharding(jax.make_mesh((8,), ("d",)), jax.P())
    batch = jax.device_put(jnp.ones(3), everywhere if target == "anywhere" else None)
    grads = {**PARAMS, "head": PARAMS["head"] * batch[:, None]}
    assert jax.jit(tx.update)(grads, carried, params)


def test_between_nnx_and_plain_trees():
    model = nnx.Linear(2, 3, rngs=nnx.Rngs(0))
    params = nnx.state(model, nnx.Param)
    optimizer = nnx.Optimizer(model, additive(optax.sgd(0.1)), wrt=nnx.Param)
    optimizer.opt_state = wpl_jax.consolidate(optimizer.opt_state, params, 3.0)
    plain = nnx.to_pure_dict(params)
    carried = wpl_jax.put_plasticity(proximal(optax.sgd(0.1)).init(plain), optimizer.opt_state)
    fisher = wpl_jax.get_plasticity(carried).fisher
    assert fisher["kernel"].shape == (2, 3) and (fisher["kernel"] == 3).all()
    optimizer.opt_state = wpl_jax.put_plasticity(wpl_jax.flush(optimizer.opt_state), carried)
    assert wpl_jax.plasticity_loss(optimizer.opt_state, jax.tree.map(lambda p: p + 1, params), 1.0)


def test_a_stacked_state_takes_each_members():
    tx = wpl_jax.add_plasticity(1.0)
    stacked = jax.tree.map(lambda p: jnp.stack([p, 2 * p]), PARAMS)
    states = jax.vmap(lambda p: wpl_jax.consolidate(tx.init(p), p, p))(stacked)
    carried = wpl_jax.put_plasticity(jax.vmap(tx.init)(stacked), states)
    jax.tree.map(np.testing.assert_array_equal, carried.fisher, states.fisher)
    np.testing.assert_array_equal(carried.consolidations, [1, 1])


def test_a_scalar_protects_all_below_it():
    """L2-SP for one part of the tree, nothing for another, and what is absent counts as 0."""
    tx = wpl_jax.add_plasticity(1.0)
    for fisher in ({"trunk": 3.0, "head": 0.0}, {"trunk": 3.0}, {"trunk": 3, "head": None}):
        found = protected(tx, fisher=fisher).fisher
        assert all((leaf == 3).all() for leaf in jax.tree.leaves(found["trunk"]))
        assert not found["head"].any()
    assert all((leaf == 1).all() for leaf in jax.tree.leaves(protected(tx, fisher=1.0).fisher))


def test_a_scalar_above_what_is_hidden_protects_what_is_not():
    covers = {"trunk": {"kernel": True, "bias": True}, "head": False}
    tx = optax.masked(wpl_jax.add_plasticity(1.0), covers)
    opt_state = wpl_jax.consolidate(tx.init(PARAMS), PARAMS, {"trunk": 3.0, "head": 5.0})
    fisher = wpl_jax.get_plasticity(opt_state).fisher
    assert all((leaf == 3).all() for leaf in jax.tree.leaves(fisher))


def test_other_numbers_of_members_are_refused():
    tx = wpl_jax.add_plasticity(1.0)
    one, three = tx.init(jnp.ones(2)), jax.vmap(tx.init)(jnp.ones((3, 2)))
    with pytest.raises(ValueError, match=r"stacked in shape \(3,\), and opt_state in shape \(\)"):
        wpl_jax.put_plasticity(one, three)
    with pytest.raises(
        ValueError, match=r"in shape \(\), and opt_state in shape \(3,\).*jnp.stack"
    ):
        wpl_jax.put_plasticity(three, one)


@pytest.mark.parametrize(
    ("fisher", "message"),
    [
        ({"trnk": 1.0}, r"fisher has a leaf at \['trnk'\]"),
        ({"trunk": jnp.ones(3)}, r"array of shape \(3,\) at \['trunk'\].* only a scalar"),
        ({"head": jnp.ones((4, 3))}, r"shape \(4, 3\) at \['head'\].*have \(3, 4\)"),
        ({"head": "all"}, r"must hold arrays, got 'all' at \['head'\]"),
        ({"head": 1j * PARAMS["head"]}, r"fisher must be real, got complex64"),
    ],
    ids=["misspelt", "array for a tree", "shape", "text", "complex"],
)
def test_fishers_that_do_not_fit(fisher, message):
    with pytest.raises(ValueError, match=message):
        protected(wpl_jax.add_plasticity(1.0), fisher=fisher)


# --- Narrow dtypes --------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_sums_of_small_fishers_are_unbiased(dtype):
    """2,000 Fishers of 1/1000 onto 1: rounded to the nearest, the sum would never leave 1."""
    tx = wpl_jax.add_plasticity(1.0, fisher_dtype=dtype)
    params = jnp.zeros(256)
    state = wpl_jax.consolidate(tx.init(params), params, 1.0)
    assert state.fisher.dtype == dtype

    @jax.jit
    def add(state, _):
        return wpl_jax.consolidate(state, params, 1e-3, decay=1.0), None

    state, _ = jax.lax.scan(add, state, length=2000)
    fisher = np.asarray(state.fisher, np.float64)
    assert 2.9 < fisher.mean() < 3.1 and fisher.std() > 0


def test_a_narrow_mean_anchor_moves_by_less_than_its_precision():
    """Each new model's share is 1 part in 1,000: the mean still goes to where they are."""
    params = jnp.zeros(256, jnp.bfloat16)
    state = wpl_jax.add_plasticity(1.0).init(params + 1)
    state = wpl_jax.consolidate(state, params + 1, 1.0)

    @jax.jit
    def add(state, _):
        return wpl_jax.consolidate(state, params + 2, 1e-3, decay=1.0, anchor="mean"), None

    state, _ = jax.lax.scan(add, state, length=1000)
    assert state.anchor.dtype == jnp.bfloat16
    assert 1.45 < np.asarray(state.anchor, np.float64).mean() < 1.55  # half of the weight is new


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_rounding_is_that_of_a_cast(dtype):
    """Below the normal numbers, between them, at the ends, and with the derivative of a number."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=3000) * 2.0 ** rng.integers(-40, 40, size=3000)
    x = np.float32([*x, 0, -0.0, 6e-8, 3e-8, 2.9e-8, 65519, 65520, np.inf, -np.inf, np.nan])
    with np.errstate(over="ignore"):
        expected = x.astype(dtype).astype(np.float32)
    np.testing.assert_array_equal(jax.jit(lambda x: rounded(x, dtype))(x), expected)
    grads = jax.grad(lambda x: 1e-6 * rounded(x, dtype).sum())(x[:3000])
    np.testing.assert_array_equal(grads, np.full(3000, np.float32(1e-6)))


def test_a_small_fisher_in_float16_keeps_its_size():
    params = jnp.ones(1000)
    state = wpl_jax.add_plasticity(1.0, fisher_dtype=jnp.float16).init(params)
    state = wpl_jax.consolidate(state, params, jnp.full(1000, 1e-5))
    assert 0.99e-5 < np.asarray(state.fisher, np.float64).mean() < 1.01e-5


def test_what_a_narrow_dtype_holds_is_not_rounded():
    tx = wpl_jax.add_plasticity(1.0, fisher_dtype=jnp.bfloat16)
    fisher = jnp.array([0.0, 0.5, 3.0, 2.0**-100])
    state = wpl_jax.consolidate(tx.init(jnp.zeros(4)), jnp.zeros(4), fisher)
    np.testing.assert_array_equal(state.fisher.astype(float), fisher)


def test_derivatives_pass_a_narrow_state():
    """That of a rounded number is that of the number, whether or not it is consolidated."""

    def after(params, last, **dtypes):
        tx = wpl_jax.weight_plasticity(
            optax.sgd(0.1), strength=1.0, nll=lambda p, x: (p @ x) ** 2, **dtypes
        )
        state = tx.init(jnp.ones(2))
        _, state = tx.update(params, state, params, batch=jnp.eye(2), consolidate=last)
        return tx.update(params, state, 2 * params)[0].sum()

    for last in (False, True):
        wide, narrow = (
            jax.grad(after)(jnp.ones(2), last, **dtypes)
            for dtypes in ({}, {"fisher_dtype": jnp.bfloat16})
        )
        np.testing.assert_allclose(wide, narrow, rtol=1e-2)


def test_integers_have_a_mean_too():
    params = {"w": jnp.ones(2), "steps": jnp.array(3)}
    state = wpl_jax.add_plasticity(1.0).init(params)
    state = wpl_jax.consolidate(state, params, 1.0)
    later = {"w": jnp.ones(2), "steps": jnp.array(8)}
    state = wpl_jax.consolidate(state, later, 3.0, decay=1.0, anchor="mean")
    assert state.anchor["steps"] == 7 and state.anchor["steps"].dtype == jnp.int32


def test_the_bytes_of_a_state():
    """With bfloat16 parameters: a Fisher and an anchor of 2 bytes a weight each, not of 4 and 2."""
    params = jnp.zeros(1000, jnp.bfloat16)

    def bytes_of(**dtypes):
        state = wpl_jax.add_plasticity(1.0, **dtypes).init(params)
        return sum(leaf.nbytes for leaf in (state.anchor, state.fisher))

    assert bytes_of() == 3 * params.nbytes
    assert bytes_of(fisher_dtype=jnp.bfloat16) == 2 * params.nbytes


# --- Other memories -------------------------------------------------------------------------------


def to_host(state):
    """Anchor and Fisher in the memory of the host, as the guide shows it."""

    def move(leaf):
        return jax.device_put(leaf, leaf.sharding.with_memory_kind("pinned_host"))

    plasticity = wpl_jax.get_plasticity(state)
    moved = jax.tree.map(move, (plasticity.anchor, plasticity.fisher))
    return jax.tree.map(
        lambda s: s._replace(anchor=moved[0], fisher=moved[1]),
        state,
        is_leaf=lambda s: isinstance(s, wpl_jax.PlasticityState),
    )


@pytest.mark.parametrize("jit", [lambda f: f, jax.jit], ids=["eager", "jit"])
def test_parameters_on_the_host_and_states_to_and_from_it(jit):
    tx, params = wpl_jax.add_plasticity(1.0), jnp.ones(2)
    there = jax.device_put(params, params.sharding.with_memory_kind("pinned_host"))
    state = jit(wpl_jax.consolidate)(tx.init(params), there, there)
    np.testing.assert_array_equal(state.fisher, params)
    assert kinds(jit(wpl_jax.put_plasticity)(to_host(tx.init(params)), state)) == {"pinned_host"}
    assert kinds(jit(wpl_jax.put_plasticity)(tx.init(params), to_host(state))) == {"device"}
    np.testing.assert_array_equal(jit(wpl_jax.merge)([there, 3 * params]), [2.0, 2.0])


def kinds(opt_state):
    plasticity = wpl_jax.get_plasticity(opt_state)
    leaves = jax.tree.leaves((plasticity.anchor, plasticity.fisher))
    return {leaf.sharding.memory_kind for leaf in leaves}


@pytest.mark.devices(8)
@pytest.mark.parametrize("jit", [lambda f: f, jax.jit], ids=["eager", "jit"])
@pytest.mark.parametrize("split", [False, True], ids=["", "split over devices"])
@pytest.mark.parametrize("learning_rate", [None, 0.1])
def test_a_state_on_the_host_gives_the_same_and_stays_there(jit, split, learning_rate):
    def nll(params, example):
        return 0.5 * jnp.square(jnp.sum(params["w"] @ example))

    params, batch = {"w": jnp.ones((8, 3))}, jnp.eye(3)
    if split:
        mesh = jax.make_mesh((8,), ("d",), axis_types=(jax.sharding.AxisType.Auto,))
        params = jax.device_put(params, jax.NamedSharding(mesh, jax.P("d")))
        batch = jax.device_put(batch, jax.NamedSharding(mesh, jax.P()))
    tx = wpl_jax.weight_plasticity(
        optax.sgd(0.1),
        strength=2.0,
        nll=nll,
        fisher_decay=0.5,
        max_norm=2.0,
        anchor="mean",
        learning_rate=learning_rate,
    )

    @jit
    def step(params, state, last):
        grads = jax.grad(lambda p: jax.vmap(nll, (None, 0))(p, batch).mean())(params)
        updates, state = tx.update(
            grads, state, params, batch=batch, consolidate=last, mask={"w": True}
        )
        return optax.apply_updates(params, updates), state

    here, there = tx.init(params), to_host(tx.init(params))
    others = params
    for last in (False, True, False, True):
        params, here = step(params, here, last)
        others, there = step(others, there, last)
        assert kinds(there) == {"pinned_host"} and kinds(here) == {"device"}
    np.testing.assert_allclose(params["w"], others["w"], rtol=1e-6)
    kept = wpl_jax.consolidate(there, params, 1.0, decay=0.5)
    assert kinds(kept) == kinds(jit(wpl_jax.flush)(there)) == {"pinned_host"}
    assert not jit(wpl_jax.plasticity_loss)(wpl_jax.flush(there), params, 1.0)
    found = jit(wpl_jax.diagnose)(there, params, 0.1)
    assert found.max_fisher == wpl_jax.diagnose(here, params, 0.1).max_fisher > 0
    with_new_memory = wpl_jax.put_plasticity(there, here)
    assert kinds(with_new_memory) == {"pinned_host"}
