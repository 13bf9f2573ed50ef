"""Data parallelism: the batch is split over the devices, and each has the whole plasticity state.

The only lines about devices are those that put arrays on them. JAX does the rest, also for the
Fisher.

    python -m examples.data_parallel
"""

import os

import jax
import optax

import wpl_jax
from examples import digits

if "JAX_NUM_CPU_DEVICES" not in os.environ:  # so that there is something to see on a CPU
    jax.config.update("jax_num_cpu_devices", 4)

task, turned = digits.load(), digits.load(turned=True)
mesh = jax.make_mesh((len(jax.devices()),), ("data",), (jax.sharding.AxisType.Auto,))
replicated = jax.NamedSharding(mesh, jax.P())
sharded = jax.NamedSharding(mesh, jax.P("data"))
one_device = jax.sharding.SingleDeviceSharding(jax.devices()[0])

learning_rate = 0.05
tx = optax.chain(
    optax.sgd(learning_rate, momentum=0.9),
    wpl_jax.proximal_plasticity(1000.0, learning_rate),
)


def nll(params, example):
    """Of one example; of a batch, one each."""
    x = jax.nn.relu(example.images @ params["hidden"])
    return optax.softmax_cross_entropy_with_integer_labels(x @ params["out"], example.labels)


@jax.jit
def step(params, opt_state, batch):
    loss, grads = jax.value_and_grad(lambda params: nll(params, batch).mean())(params)
    updates, opt_state = tx.update(grads, opt_state, params)
    return optax.apply_updates(params, updates), opt_state, loss


@jax.jit
def protect(params, opt_state, data):
    return wpl_jax.consolidate(opt_state, params, wpl_jax.empirical_fisher(nll)(params, data))


def train(params, opt_state, data, where):
    for batch in digits.batches(data, steps=100):
        # One program at a time: devices that are threads of a CPU may wait for each other for ever.
        params, opt_state, loss = jax.block_until_ready(
            step(params, opt_state, jax.device_put(batch, where))
        )
    return params, opt_state, loss


def run(params, data_where, params_where):
    params = jax.device_put(params, params_where)
    params, opt_state, _ = train(params, tx.init(params), task.train, data_where)
    of_fisher = jax.tree.map(lambda x: x[:2048], task.train)
    of_fisher = jax.device_put(of_fisher, data_where)
    opt_state = jax.block_until_ready(protect(params, opt_state, of_fisher))
    return train(params, opt_state, turned.train, data_where)


def describe(array):
    """The part of it that each device holds."""
    return f"{array.shape} as {array.sharding.shard_shape(array.shape)}, {array.sharding.spec}"


he = jax.nn.initializers.he_normal()
key_hidden, key_out = jax.random.split(jax.random.key(0))
start = {"hidden": he(key_hidden, (784, 128)), "out": he(key_out, (128, 10))}

params, opt_state, loss = run(start, sharded, replicated)
batch = jax.device_put(next(digits.batches(task.train, steps=1)), sharded)
print(f"{len(jax.devices())} devices: {jax.devices()}")
print(f"images of a batch   {describe(batch.images)}")
print(f"weights             {describe(params['hidden'])}")
for name in ("anchor", "fisher"):
    print(f"{name:20}{describe(optax.tree.get(opt_state, name)['hidden'])}")


def difference(tree, reference):
    """The norm of the difference over that of the reference."""
    tree, reference = jax.device_get((tree, reference))
    return optax.tree.norm(optax.tree.sub(tree, reference)) / optax.tree.norm(reference)


alone, alone_state, alone_loss = run(start, one_device, one_device)
print(f"loss at the end     {loss:.6f}; on one device {alone_loss:.6f}")
weights = difference(params, alone)
fishers = difference(*(optax.tree.get(s, "fisher") for s in (opt_state, alone_state)))
print(f"relative difference {weights:.1e} of the weights, {fishers:.1e} of the Fishers")
print(f"equal, but for rounding: {max(weights, fishers) < 1e-4}")
