"""Flax's models as they are: NNX modules and optimisers, Linen's layers, and what Equinox is told.

An `nnx.Module` stands where parameters are asked for, and an `nnx.Optimizer` where its state is.
Dropout and batch norm in train mode have no place in a function of one example: errors name them.
"""

import chex
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen, nnx
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import wpl_jax

N = 6
BATCH = {
    "x": jnp.asarray(np.random.default_rng(1).normal(size=(N, 3)), jnp.float32),
    "y": jnp.asarray(np.arange(N) % 2),
    "key": jax.random.split(jax.random.key(2), N),
}
WHOLE = jax.tree.map(lambda leaf: leaf[None], BATCH)


class Model(nnx.Module):
    def __init__(self, norm=False, dropout=False, seed=0):
        rngs = nnx.Rngs(params=seed, dropout=seed + 1)
        self.hidden = nnx.Linear(3, 4, rngs=rngs)
        self.norm = nnx.BatchNorm(4, rngs=rngs) if norm else None
        self.dropout = nnx.Dropout(0.5, rngs=rngs) if dropout else None
        self.out = nnx.Linear(4, 2, rngs=rngs)
        self.calls = nnx.Variable(jnp.array(0))  # integers that are no parameter

    def __call__(self, x):
        x = self.hidden(x)
        for layer in (self.norm, jnp.tanh, self.dropout):
            x = x if layer is None else layer(x)
        return self.out(x)


class Untreed(nnx.Module, pytree=False):
    def __init__(self):
        self.hidden = nnx.Linear(3, 2, rngs=nnx.Rngs(0))

    def __call__(self, x):
        return self.hidden(x)


def logits(model, example):
    return model(example["x"])


def loss(model, example):
    return cross_entropy(logits(model, example), example)


def cross_entropy(scores, example):
    return optax.softmax_cross_entropy_with_integer_labels(scores, example["y"]).mean()


def evaluated(**layers):
    model = Model(**layers)
    model.eval()
    return model


MODELS = {
    "plain": Model,
    "batch norm": lambda: evaluated(norm=True),
    "dropout": lambda: evaluated(dropout=True),
    "both": lambda: evaluated(norm=True, dropout=True),
    "no pytree": Untreed,
}
ESTIMATORS = {
    "empirical": wpl_jax.empirical_fisher(loss),
    "exact": wpl_jax.exact_fisher(logits),
    "squared": wpl_jax.squared_batch_gradient(loss),
}
gradient = nnx.jit(nnx.grad(loss))
models = pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)


def assert_close(actual, wanted, rtol=1e-5):
    actual, wanted = (
        nnx.to_pure_dict(t) if isinstance(t, nnx.State) else t for t in (actual, wanted)
    )
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=1e-7), actual, wanted
    )


def reference(model):
    """The empirical Fisher, by NNX's own gradient of one example after another."""
    examples = [jax.tree.map(lambda leaf, i=i: leaf[i], BATCH) for i in range(N)]
    grads = [nnx.to_pure_dict(gradient(model, example)) for example in examples]
    return jax.tree.map(lambda *gs: sum(np.square(g) for g in gs) / N, *grads)


def compiled_fisher(loss, model, batch):
    return jax.jit(wpl_jax.empirical_fisher(loss))(model, batch)


# --- A module where parameters are asked for ------------------------------------------------------


@models
def test_a_fisher_of_a_module(make):
    model = make()
    fisher = wpl_jax.empirical_fisher(loss)(model, BATCH)
    assert jax.tree.structure(fisher) == jax.tree.structure(nnx.state(model, nnx.Param))
    assert_close(fisher, reference(model))


@pytest.mark.parametrize("jit", [jax.jit, nnx.jit], ids=["jax.jit", "nnx.jit"])
@pytest.mark.parametrize("estimator", ESTIMATORS.values(), ids=ESTIMATORS)
def test_every_estimator_of_a_module(estimator, jit):
    model = MODELS["both"]()
    graph, params, rest = nnx.split(model, nnx.Param, ...)
    of_split = {
        "empirical": wpl_jax.empirical_fisher(lambda p, e: loss(nnx.merge(graph, p, rest), e)),
        "exact": wpl_jax.exact_fisher(lambda p, e: logits(nnx.merge(graph, p, rest), e)),
        "squared": wpl_jax.squared_batch_gradient(lambda p, e: loss(nnx.merge(graph, p, rest), e)),
    }
    (name,) = (name for name, known in ESTIMATORS.items() if known is estimator)
    wanted = jax.jit(of_split[name])(params, BATCH)
    assert_close(jit(lambda model, batch: estimator(model, batch))(model, BATCH), wanted)


def test_a_sampled_fisher_of_a_module():
    model = MODELS["both"]()
    graph, params, rest = nnx.split(model, nnx.Param, ...)
    split = wpl_jax.sampled_fisher(lambda p, e: logits(nnx.merge(graph, p, rest), e))
    key = jax.random.key(5)
    fisher = jax.jit(wpl_jax.sampled_fisher(logits))(model, BATCH, key)
    assert_close(fisher, jax.jit(split)(params, BATCH, key))


def test_several_modules():
    pair = (Model(), MODELS["both"]())

    def sum_of_losses(pair, example):
        return loss(pair[0], example) + loss(pair[1], example)

    fisher = compiled_fisher(sum_of_losses, pair, BATCH)
    for own, model in zip((fisher[0], fisher[1]), pair, strict=True):
        assert_close(nnx.to_pure_dict(own), reference(model))


def test_a_module_is_left_as_it_was():
    model = Model(dropout=True)
    before = jax.tree.map(jnp.copy, nnx.state(model, nnx.Param))
    wpl_jax.empirical_fisher(reseeded)(model, BATCH)
    assert int(model.dropout.rngs.count[...]) == 0
    assert_close(nnx.state(model, nnx.Param), before, rtol=0)


def test_over_a_loader_and_explained():
    model = MODELS["both"]()
    estimator = wpl_jax.empirical_fisher(loss)
    parts = [jax.tree.map(lambda leaf, s=s: leaf[s], BATCH) for s in (slice(0, 4), slice(4, N))]
    state = wpl_jax.fisher_of_batches(estimator, model, parts)
    assert_close(state.fisher, reference(model))
    assert wpl_jax.check_fisher(loss, model, BATCH).passed
    assert "squared operands" in str(wpl_jax.explain(loss, model, BATCH))


@pytest.mark.devices(8)
@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit])
def test_on_a_mesh(axis_type):
    """What is not a parameter is closed over, and lies on the mesh as well."""
    mesh = jax.make_mesh((2,), ("data",), axis_types=(axis_type,))
    model = MODELS["both"]()
    wanted = reference(model)
    nnx.update(model, jax.device_put(nnx.state(model), NamedSharding(mesh, PartitionSpec())))
    batch = jax.device_put(BATCH, NamedSharding(mesh, PartitionSpec("data")))
    assert_close(jax.jit(wpl_jax.empirical_fisher(loss))(model, batch), wanted)


# --- An optimiser where its state is asked for ----------------------------------------------------


def optimizer_of(model, wrt=nnx.Param):
    tx = optax.chain(wpl_jax.add_plasticity(2.0), optax.sgd(0.1))
    return nnx.Optimizer(model, tx, wrt=wrt)


def shifted(model):
    nnx.update(model, jax.tree.map(lambda leaf: leaf + 1, nnx.state(model, nnx.Param)))


@models
@pytest.mark.parametrize("jit", [lambda f: f, nnx.jit], ids=["eager", "nnx.jit"])
def test_consolidates_an_optimizer_and_a_module(make, jit):
    model, other = make(), make()
    optimizer, by_hand = optimizer_of(model), optimizer_of(other)

    @jit
    def protect(model, optimizer, batch):
        wpl_jax.consolidate(optimizer, model, wpl_jax.empirical_fisher(loss)(model, batch))

    protect(model, optimizer, BATCH)
    fisher = nnx.jit(ESTIMATORS["empirical"])(other, BATCH)
    params = nnx.state(other, nnx.Param)
    by_hand.opt_state = wpl_jax.consolidate(by_hand.opt_state, params, fisher)
    for each in (model, other):
        shifted(each)
    wanted = wpl_jax.plasticity_loss(by_hand.opt_state, nnx.state(other, nnx.Param), 2.0)
    assert wanted > 0
    for opt_state in (optimizer, optimizer.opt_state):
        np.testing.assert_allclose(
            wpl_jax.plasticity_loss(opt_state, model, 2.0), wanted, rtol=1e-5
        )
    found = wpl_jax.diagnose(optimizer, model, 0.1, grads=gradient(model, BATCH))
    assert found.consolidations == 1 and found.warnings() == []
    np.testing.assert_allclose(found.loss, wanted, rtol=1e-5)
    nothing = jax.tree.map(jnp.zeros_like, params)
    optimizer.update(model, nothing)
    by_hand.update(other, nothing)
    assert_close(nnx.state(model, nnx.Param), nnx.state(other, nnx.Param))


def test_an_optimizer_is_changed_in_place_and_returned():
    model = Model()
    optimizer = optimizer_of(model)
    assert wpl_jax.consolidate(optimizer, model, 3.0) is optimizer
    assert wpl_jax.diagnose(optimizer, model, 0.1).max_fisher == 3
    adam = nnx.Optimizer(
        model, optax.chain(wpl_jax.add_plasticity(2.0), optax.adam(0.1)), wrt=nnx.Param
    )
    assert wpl_jax.put_plasticity(adam, optimizer) is adam
    assert wpl_jax.diagnose(adam, model, 0.1).max_fisher == 3
    assert wpl_jax.flush(optimizer) is optimizer
    assert wpl_jax.diagnose(optimizer, model, 0.1).max_fisher == 0


def test_an_optimizer_that_goes_through_jit():
    model = Model()
    new = jax.jit(lambda o, m: wpl_jax.consolidate(o, m, 3.0))(optimizer_of(model), model)
    assert isinstance(new, nnx.Optimizer)
    assert wpl_jax.diagnose(new, model, 0.1).max_fisher == 3


def test_an_optimizer_of_some_parameters():
    model = Model()
    optimizer = optimizer_of(model, wrt=nnx.All(nnx.Param, nnx.PathContains("out")))
    wpl_jax.consolidate(optimizer, model, 3.0)
    shifted(model)
    # Ten parameters, each moved by 1.
    np.testing.assert_allclose(wpl_jax.plasticity_loss(optimizer, model, 2.0), 30, rtol=1e-6)
    # What the whole model has, the optimiser takes its own part of.
    fisher = compiled_fisher(loss, model, BATCH)
    whole = nnx.to_pure_dict(fisher)
    for mask in (None, jax.tree.map(lambda f: jnp.ones(f.shape, bool), whole), {"out": True}):
        for given in (fisher, whole, nnx.State({"out": fisher["out"]})):
            wpl_jax.consolidate(optimizer, model, given, mask=mask)
            held = nnx.to_pure_dict(wpl_jax.get_plasticity(optimizer).fisher)
            chex.assert_trees_all_equal(held, {"out": whole["out"]})
    grads = gradient(model, BATCH)
    ratio = wpl_jax.diagnose(optimizer, model, 0.1, grads).gradient_ratio
    own = nnx.State({"out": grads["out"]})
    assert ratio == wpl_jax.diagnose(optimizer, model, 0.1, own).gradient_ratio
    with pytest.raises(ValueError, match=r"fisher has a leaf at \['other'\]"):
        wpl_jax.consolidate(optimizer, model, whole | {"other": jnp.ones(2)})


def test_the_term_of_a_module_is_differentiable():
    model = Model()
    optimizer = optimizer_of(model)
    wpl_jax.consolidate(optimizer, model, 3.0)
    hold = wpl_jax.get_plasticity(optimizer)
    shifted(model)
    grads = nnx.grad(lambda model: wpl_jax.plasticity_loss(hold, model, 2.0))(model)
    jax.tree.map(lambda g: np.testing.assert_allclose(g, 6.0, rtol=1e-5), nnx.to_pure_dict(grads))


# --- Dropout and batch norm -----------------------------------------------------------------------

BATCH_NORM = r"nll is of one example.*batch norm in train mode \(BatchStat at norm\.(mean|var)\)"
DROPOUT = r"nll is of one example.*dropout.*\(RngCount at dropout\.rngs\.count\)"
REFUSED = {
    "batch norm": ({"norm": True}, BATCH_NORM),
    "dropout": ({"dropout": True}, DROPOUT),
    "both": ({"norm": True, "dropout": True}, "batch norm|dropout"),
}


def reseeded(model, example):
    nnx.reseed(model, dropout=example["key"])
    return loss(model, example)


@pytest.mark.parametrize("jit", [lambda f: f, jax.jit, nnx.jit], ids=["eager", "jit", "nnx.jit"])
@pytest.mark.parametrize(("layers", "message"), REFUSED.values(), ids=REFUSED)
def test_layers_in_train_mode_are_named(layers, message, jit):
    model = Model(**layers)
    fisher = jit(lambda model, batch: wpl_jax.empirical_fisher(loss)(model, batch))
    with pytest.raises(ValueError, match=message) as caught:
        fisher(model, BATCH)
    assert "model.eval()" in str(caught.value)
    model.eval()
    assert_close(fisher(model, BATCH), reference(model))


@pytest.mark.parametrize(("layers", "message"), REFUSED.values(), ids=REFUSED)
def test_layers_of_a_model_that_was_split_are_named(layers, message):
    graph, params, rest = nnx.split(Model(**layers), nnx.Param, ...)
    fisher = wpl_jax.empirical_fisher(lambda p, e: loss(nnx.merge(graph, p, rest), e))
    with pytest.raises(ValueError, match=message.split(r" \(")[0].split(r".*\(")[0]) as caught:
        fisher(params, BATCH)
    assert "model.eval()" in str(caught.value)
    assert type(caught.value.__cause__).__name__ == "TraceContextError"


@pytest.mark.parametrize("name", ["exact", "sampled", "squared", "explain", "check"])
def test_others_name_them_too(name):
    def sampled(model, batch):
        return wpl_jax.sampled_fisher(logits)(model, batch, jax.random.key(0))

    def explain(model, batch):
        return wpl_jax.explain(loss, model, batch)

    def check(model, batch):
        return wpl_jax.check_fisher(loss, model, batch)

    estimator = ESTIMATORS | {"sampled": sampled, "explain": explain, "check": check}
    with pytest.raises(ValueError, match="batch norm in train mode"):
        estimator[name](Model(norm=True), BATCH)


def test_a_batch_as_its_one_example_may_be_normalised():
    model = Model(norm=True, dropout=True)
    fisher = jax.jit(wpl_jax.squared_batch_gradient(loss))(model, WHOLE)
    grads = nnx.to_pure_dict(gradient(model, BATCH))
    assert_close(fisher, jax.tree.map(np.square, grads))


def of_split(loss, model, batch):
    """The Fisher of a loss that changes what is no parameter of its model."""
    graph, params, rest = nnx.split(model, nnx.Param, ...)

    def nll(params, example):
        return loss(nnx.merge(graph, params, rest, copy=True), example)

    grads = jax.jit(jax.vmap(jax.grad(nll), (None, 0)))(params, batch)
    return jax.tree.map(lambda g: np.square(g).mean(0), grads)


def test_an_example_may_have_noise_of_its_own():
    model = Model(dropout=True)
    fisher = compiled_fisher(reseeded, model, BATCH)
    assert_close(fisher, of_split(reseeded, model, BATCH))


def test_a_stream_that_draws_nothing_random_is_no_noise():
    """The first carry of a recurrent layer: zeros, for which a key is drawn."""
    model = nnx.RNN(nnx.GRUCell(3, 4, rngs=nnx.Rngs(0)))
    x = np.random.default_rng(0).normal(size=(5, 6, 3)).astype(np.float32)

    def loss(model, x):
        return jnp.tanh(model(x[None])).sum()

    fisher = compiled_fisher(loss, model, x)
    assert_close(fisher, of_split(loss, model, x))


def test_a_key_of_a_stream_that_does_not_exist_is_no_noise_of_its_own():
    def wrong(model, example):
        nnx.reseed(model, noise=example["key"])
        return loss(model, example)

    with pytest.raises(ValueError, match=DROPOUT):
        wpl_jax.empirical_fisher(wrong)(Model(dropout=True), BATCH)


def test_noise_that_all_examples_share_is_warned_of():
    def nll(model, example):
        nnx.reseed(model, dropout=3)
        return loss(model, example)

    model = Model(dropout=True)
    with pytest.warns(UserWarning, match=r"nll draws random numbers .*split\(key, n\)"):
        jax.eval_shape(wpl_jax.empirical_fisher(nll), model, BATCH)
    one = jax.tree.map(lambda leaf: leaf[:1], BATCH)
    jax.eval_shape(wpl_jax.empirical_fisher(nll), model, one)  # no other to share it


def test_a_variable_that_the_loss_closes_over():
    model = Model()

    def nll(params, example):
        nnx.update(model, params)
        return loss(model, example)

    with pytest.raises(ValueError, match=r"made outside of it, .*: pass the model itself"):
        wpl_jax.empirical_fisher(nll)(nnx.state(model, nnx.Param), BATCH)


class Repeated(nnx.Module):
    """Of two layers in one, with a key each, that a transformation of NNX goes through."""

    def __init__(self):
        @nnx.split_rngs(splits=2)
        @nnx.vmap(in_axes=(0,), out_axes=0)
        def layers(rngs):
            return Layer(rngs)

        self.layers = layers(nnx.Rngs(params=0, dropout=1))

    def __call__(self, x):
        return nnx.scan(lambda x, layer: layer(x), in_axes=(nnx.Carry, 0), out_axes=nnx.Carry)(
            x, self.layers
        )


class Layer(nnx.Module):
    def __init__(self, rngs):
        self.linear = nnx.Linear(3, 3, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, x):
        return self.dropout(jnp.tanh(self.linear(x)))


def test_transformations_of_nnx_inside_of_a_model():
    model = Repeated()
    with pytest.raises(ValueError, match=r"dropout.*RngCount at layers\.dropout\.rngs\.count"):
        wpl_jax.empirical_fisher(loss)(model, BATCH)
    model.eval()
    assert_close(compiled_fisher(loss, model, BATCH), reference(model))
    graph, params, rest = nnx.split(model, nnx.Param, ...)
    with pytest.raises(ValueError, match="to a transformation of NNX: pass the model itself"):
        wpl_jax.empirical_fisher(lambda p, e: loss(nnx.merge(graph, p, rest), e))(params, BATCH)


def test_statistics_are_no_parameters():
    graph, state = nnx.split(nnx.BatchNorm(3, rngs=nnx.Rngs(0)))
    with pytest.raises(ValueError, match=r"a BatchStat at \['mean'\].*nnx\.state\(model"):
        wpl_jax.empirical_fisher(lambda s, e: nnx.merge(graph, s)(e["x"]).sum())(state, BATCH)


def test_other_errors_are_left_alone():
    def nll(model, example):
        raise RuntimeError("of the model's own")

    with pytest.raises(RuntimeError, match="of the model's own"):
        wpl_jax.empirical_fisher(nll)(Model(), BATCH)


# --- Noise, in any framework ----------------------------------------------------------------------

KEY = jax.random.key(7)
NOISE = jax.random.normal(KEY, (3,))
W = jnp.ones(3)


def noisy(key, x):
    return jnp.sum(x * jax.random.normal(key, x.shape))


def in_a_scan(keys):
    def of(w, example):
        def body(total, key):
            return total + noisy(key, w * example["x"]), None

        return jax.lax.scan(body, 0.0, keys(example))[0]

    return of


def carried(w, example):
    """Of a constant key at first, and of the example's from the second turn on: not seen."""

    def body(key, _):
        return example["key"], noisy(key, w * example["x"])

    return jax.lax.scan(body, KEY, length=2)[1].sum()


SHARED = {
    "a constant key": lambda w, e: noisy(KEY, w * e["x"]),
    "an old key": lambda w, e: noisy(jax.random.PRNGKey(0), w * e["x"]),
    "in a scan": in_a_scan(lambda e: jax.random.split(KEY, 2)),
    "in jit": jax.jit(lambda w, e: noisy(KEY, w * e["x"])),
    "recomputed": jax.checkpoint(lambda w, e: noisy(KEY, w * e["x"])),
    "gamma": lambda w, e: jnp.sum(w * e["x"] * jax.random.gamma(KEY, 2.0, (3,))),
}
OWN = {
    "its key": lambda w, e: noisy(e["key"], w * e["x"]),
    "folded": lambda w, e: noisy(jax.random.fold_in(KEY, e["y"]), w * e["x"]),
    "in a scan": in_a_scan(lambda e: jax.random.split(e["key"], 2)),
    "recomputed": jax.checkpoint(lambda w, e: noisy(e["key"], w * e["x"])),
    "drawn before": lambda w, e: jnp.sum(w * e["x"] * NOISE),
    "a key carried": lambda w, e: carried(w, e),
}


@pytest.mark.parametrize("nll", SHARED.values(), ids=SHARED)
def test_shared_noise_is_seen(nll):
    with pytest.warns(UserWarning, match="random numbers that do not depend on the example"):
        jax.eval_shape(wpl_jax.empirical_fisher(nll), W, BATCH)


@pytest.mark.parametrize("nll", OWN.values(), ids=OWN)
def test_other_noise_is_not_warned_of(nll):
    jax.eval_shape(wpl_jax.empirical_fisher(nll), W, BATCH)
    jax.eval_shape(wpl_jax.squared_batch_gradient(nll), W, BATCH)


# --- Linen ----------------------------------------------------------------------------------------


class Linen(linen.Module):
    train: bool
    by_call: bool = False

    @linen.compact
    def __call__(self, x):
        own, given = (None, not self.train) if self.by_call else (not self.train, None)
        x = linen.BatchNorm(own, name="norm")(linen.Dense(4)(x), use_running_average=given)
        return linen.Dense(2)(x)


VARIABLES = jax.jit(Linen(train=False).init)(jax.random.key(0), BATCH["x"])


def linen_nll(mutable, **options):
    def nll(params, example):
        variables = {**VARIABLES, "params": params}
        out = Linen(**options).apply(variables, example["x"], mutable=mutable)
        return cross_entropy(out[0] if mutable else out, example)

    return nll


@pytest.mark.parametrize("mutable", [False, ["batch_stats"]])
@pytest.mark.parametrize("by_call", [False, True])
def test_batch_norm_of_linen_is_named(mutable, by_call):
    nll = linen_nll(mutable, train=True, by_call=by_call)
    message = r"nll is of one example.*batch norm in train mode \(norm\).*use_running_average=True"
    with pytest.raises(ValueError, match=message):
        wpl_jax.empirical_fisher(nll)(VARIABLES["params"], BATCH)
    evaluated = linen_nll(mutable, train=False, by_call=by_call)
    assert wpl_jax.check_fisher(evaluated, VARIABLES["params"], BATCH).passed


def test_a_batch_as_its_one_example_may_be_normalised_by_linen():
    nll = linen_nll(["batch_stats"], train=True)
    fisher = jax.jit(wpl_jax.squared_batch_gradient(nll))(VARIABLES["params"], WHOLE)
    grads = jax.jit(jax.grad(nll))(VARIABLES["params"], BATCH)
    assert_close(fisher, jax.tree.map(np.square, grads))


def test_dropout_of_linen():
    model = linen.Sequential([linen.Dense(4), linen.Dropout(0.5, deterministic=False)])
    params = jax.eval_shape(model.init, {"params": KEY, "dropout": KEY}, BATCH["x"])["params"]

    def nll(key_of):
        def of_example(params, example):
            scores = model.apply(
                {"params": params}, example["x"], rngs={"dropout": key_of(example)}
            )
            return cross_entropy(scores, example)

        return of_example

    with pytest.warns(UserWarning, match="dropout and other noise, put a key for each example"):
        jax.eval_shape(wpl_jax.empirical_fisher(nll(lambda example: KEY)), params, BATCH)
    jax.eval_shape(wpl_jax.empirical_fisher(nll(lambda example: example["key"])), params, BATCH)


# --- Equinox --------------------------------------------------------------------------------------


def test_a_whole_model_of_equinox_is_told_how_to_split_it():
    model = eqx.nn.MLP(3, 2, width_size=4, depth=1, key=KEY)
    with pytest.raises(TypeError, match=r"at \.activation: .*eqx\.partition\(model,"):
        wpl_jax.empirical_fisher(loss)(model, BATCH)
    arrays, static = eqx.partition(model, eqx.is_inexact_array)
    nll = lambda arrays, example: loss(eqx.combine(arrays, static), example)  # noqa: E731
    assert wpl_jax.check_fisher(nll, arrays, BATCH).passed
