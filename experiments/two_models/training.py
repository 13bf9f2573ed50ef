"""Two networks that share layers, and the pure function that trains them (section 4.1).

A is a ReLU network of 4 hidden layers and a classifier, B one of 6 and a classifier. B starts from
the layers it shares with A and trains them further; the rest of A stays as it is.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn

import wpl_jax
from experiments.two_models.settings import TwoModels
from wpl_jax.data import Images, Splits
from wpl_jax.numbers import widen
from wpl_jax.spaces.precision import ComputeDtype

NEVER = 2.0  # an accuracy that is not reached: A trains to the end
FROZEN = 1e30  # a strength at which the proximal step leaves a weight exactly where it was

Params = dict


class Method(NamedTuple):
    """How B is trained: data, so that methods can be stacked and one program serves them all."""

    strength: float | jax.Array
    use_fisher: bool | jax.Array  # otherwise F = 1
    shared: int | jax.Array  # B shares A's first so many layers
    learning_rate: float | jax.Array
    momentum: float | jax.Array


def compared(config: TwoModels) -> list[tuple[str, float]]:
    """Names and strengths of the methods, in the order in which they are stacked."""
    return [
        ("plain", 0.0),
        ("frozen", FROZEN),
        *(("WPL", strength) for strength in config.wpl_strengths),
        *(("L2 anchor", strength) for strength in config.l2_strengths),
    ]


def stack(*methods: Method) -> Method:
    return jax.tree.map(lambda *values: jnp.stack([jnp.asarray(v) for v in values]), *methods)


class Accuracies(NamedTuple):
    """Of one model, on the two held-out sets. Choices read the validation set only."""

    validation: jax.Array
    test: jax.Array


class Outcome(NamedTuple):
    """Of training B, for one seed and one method.

    Curves have the shape ``(b_steps / eval_every + 1,)``, and are of ``eval_images`` validation
    images.
    """

    curve_a: jax.Array  # accuracies
    curve_b: jax.Array
    loss_b: jax.Array  # cross-entropies
    final_a: Accuracies
    final_b: Accuracies
    dead_b: jax.Array  # (hidden layers of B,): the share of units that are 0 on all those images


class MLP(nn.Module):
    """ReLU layers ``layer_0``, ``layer_1``, … and a classifier; weights uniform ±1/sqrt(fan_in)."""

    depth: int
    width: int
    classes: int = 10
    compute_dtype: ComputeDtype = "float32"

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        x = images.reshape(*images.shape[:-3], -1) / 255.0
        for i in range(self.depth):
            x = nn.relu(self._dense(self.width, f"layer_{i}")(x))
        return widen(self._dense(self.classes, "classifier")(x))

    def _dense(self, features, name):
        init = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
        dtype = jnp.dtype(self.compute_dtype)
        return nn.Dense(features, dtype=dtype, kernel_init=init, name=name)


def model_a(config: TwoModels) -> MLP:
    return MLP(depth=4, width=config.width, compute_dtype=config.compute_dtype)


def model_b(config: TwoModels) -> MLP:
    return MLP(depth=6, width=config.width, compute_dtype=config.compute_dtype)


def run(
    config: TwoModels,
    data: Splits,
    key: jax.Array,
    stop_at: jax.Array,
    methods: Method,
    *,
    additive: bool = False,
) -> tuple[Accuracies, Outcome]:
    """The experiment for one seed; pure, to be vmapped over keys and jitted.

    Trains A until its accuracy reaches ``stop_at`` or its steps are over, computes A's Fisher
    information, and trains B once with each of the stacked ``methods``, some of them at a time.
    The term is a proximal step, or, if ``additive``, a part of the gradient.

    Returns:
      The accuracies of A before B trains, and outcomes with a leading axis of methods.
    """
    key_a, key_fisher, key_b = jax.random.split(key, 3)
    params_a = train_a(config, data, key_a, stop_at)
    fisher_a = fisher_of_a(config, data, key_fisher, params_a)
    # The same key for every method: they start from the same weights and see the same batches.
    train = functools.partial(train_b, config, data, key_b, params_a, fisher_a, additive=additive)
    outcomes = jax.lax.map(train, methods, batch_size=config.methods_at_once)
    return held_out(model_a(config), params_a, data), outcomes


def train_a(config: TwoModels, data: Splits, key: jax.Array, stop_at: jax.Array) -> Params:
    """A's weights after ``a_steps`` of SGD, or when its validation accuracy reaches ``stop_at``."""
    return train_a_with(optax.sgd(config.a_learning_rate), config, data, key, stop_at)[0]


def train_a_with(
    tx: optax.GradientTransformation,
    config: TwoModels,
    data: Splits,
    key: jax.Array,
    stop_at: jax.Array,
) -> tuple[Params, optax.OptState]:
    """What :func:`train_a` gives by an optimiser of one's own, and that one's last state."""
    init_key, data_key = jax.random.split(key)
    model = model_a(config)
    params = init(model, init_key, data)

    def unfinished(carry):
        step, _, _, reached = carry
        return (step < config.a_steps) & ~reached

    def train(carry):
        step, params, opt_state, _ = carry
        batch = sample_batch(config, data.train, data_key, step)
        params, opt_state = sgd_step(model, tx, params, opt_state, batch)
        reached = jax.lax.cond(
            stop_at < NEVER,
            lambda: accuracy(model, params, monitored(config, data)) >= stop_at,
            lambda: jnp.array(False),
        )
        return step + 1, params, opt_state, reached

    start = (0, params, tx.init(params), jnp.array(False))
    _, params, opt_state, _ = jax.lax.while_loop(unfinished, train, start)
    return params, opt_state


def fisher_of_a(config: TwoModels, data: Splits, key: jax.Array, params: Params) -> Params:
    """A's empirical Fisher information from a random choice of validation images."""
    held = data.validation
    index = jax.random.choice(key, len(held.labels), (config.fisher_images,), replace=False)
    images = jax.tree.map(lambda x: x[index], held)
    return wpl_jax.empirical_fisher(lambda params, image: loss(model_a(config), params, image))(
        params, images
    )


def train_b(
    config: TwoModels,
    data: Splits,
    key: jax.Array,
    params_a: Params,
    fisher_a: Params,
    method: Method,
    *,
    additive: bool = False,
) -> Outcome:
    """Train B on the layers it shares with A, and watch both."""
    init_key, data_key = jax.random.split(key)
    a, b = model_a(config), model_b(config)
    is_shared = {f"layer_{i}": i < method.shared for i in range(a.depth)}

    def with_shared(params, source):
        """``params`` with the shared layers of ``source`` in the place of its own."""
        return params | {
            name: optax.tree.where(shared, source[name], params[name])
            for name, shared in is_shared.items()
        }

    params = with_shared(init(b, init_key, data), params_a)
    importance = jax.tree.map(jnp.ones_like, params)
    for name in is_shared:
        importance[name] = optax.tree.where(method.use_fisher, fisher_a[name], importance[name])

    # Eq. 8. Momentum multiplies a steady gradient by 1 / (1 - momentum): the proximal step needs
    # that much more learning rate for the strength to be that of eq. 8.
    decay = optax.add_decayed_weights(config.weight_decay)
    sgd = optax.sgd(method.learning_rate, method.momentum)
    rate = method.learning_rate / (1 - method.momentum)
    if additive:
        tx = optax.chain(wpl_jax.add_plasticity(method.strength), decay, sgd)
    else:
        tx = optax.chain(decay, sgd, wpl_jax.proximal_plasticity(method.strength, rate))
    opt_state = wpl_jax.consolidate(
        tx.init(params), params, importance, mask={n: is_shared.get(n, False) for n in params}
    )

    images = monitored(config, data)

    def watch(params):
        as_a = with_shared(params_a, params)
        return accuracy(a, as_a, images), accuracy(b, params, images), loss(b, params, images)

    def train(carry, step):
        batch = sample_batch(config, data.train, data_key, step)
        return sgd_step(b, tx, *carry, batch), None

    def train_and_watch(carry, steps):
        carry, _ = jax.lax.scan(train, carry, steps)
        return carry, watch(carry[0])

    start = watch(params)
    steps = jnp.arange(config.b_steps).reshape(-1, config.eval_every)
    (params, _), points = jax.lax.scan(train_and_watch, (params, opt_state), steps)
    return Outcome(
        *(jnp.append(first, rest) for first, rest in zip(start, points, strict=True)),
        held_out(a, with_shared(params_a, params), data),
        held_out(b, params, data),
        dead_units(b, params, images),
    )


def init(model: MLP, key: jax.Array, data: Splits) -> Params:
    return model.init(key, data.train.images[:1])["params"]


def loss(model: MLP, params: Params, batch: Images) -> jax.Array:
    logits = model.apply({"params": params}, batch.images)
    return optax.softmax_cross_entropy_with_integer_labels(logits, batch.labels).mean()


def dead_units(model: MLP, params: Params, images: Images) -> jax.Array:
    """Of each hidden layer the share of units that are 0 on all images, or not finite."""
    _, state = model.apply(
        {"params": params}, images.images, capture_intermediates=True, mutable=["intermediates"]
    )
    before_relu = state["intermediates"]
    layers = [before_relu[f"layer_{i}"]["__call__"][0] for i in range(model.depth)]
    return jnp.stack([1 - jnp.mean(jnp.any(layer > 0, axis=0)) for layer in layers])


def sgd_step(model, tx, params, opt_state, batch):
    grads = jax.grad(lambda p: loss(model, p, batch))(params)
    updates, opt_state = tx.update(grads, opt_state, params)
    return optax.apply_updates(params, updates), opt_state


def sample_batch(config: TwoModels, images: Images, key: jax.Array, step: jax.Array) -> Images:
    index = jax.random.randint(
        jax.random.fold_in(key, step), (config.batch_size,), 0, len(images.labels)
    )
    return jax.tree.map(lambda x: x[index], images)


def monitored(config: TwoModels, data: Splits) -> Images:
    return jax.tree.map(lambda x: x[: config.eval_images], data.validation)


def held_out(model: MLP, params: Params, data: Splits) -> Accuracies:
    return Accuracies(accuracy(model, params, data.validation), accuracy(model, params, data.test))


@functools.partial(jax.jit, static_argnums=0)  # traced once, however often it is asked for
def accuracy(model: MLP, params: Params, images: Images) -> jax.Array:
    def is_correct(example):
        return model.apply({"params": params}, example.images).argmax(-1) == example.labels

    return jax.lax.map(is_correct, images, batch_size=1_000).mean()
