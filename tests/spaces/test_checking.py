"""What a check of a search space finds, and that it names the method at fault."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from examples.layers_space import Architecture, Layers
from wpl_jax.data import Images
from wpl_jax.spaces import check

SPACE = Layers(layers=2, kernels=3, width=4)
RNG = np.random.default_rng(0)
SPLIT = Images(
    jnp.asarray(RNG.integers(0, 255, (3, 8, 28, 28, 1)), jnp.uint8),
    jnp.asarray(RNG.integers(0, 10, (3, 8)), jnp.int32),
)


def faults(split=SPLIT, **methods):
    """What is said of the space with some of its methods replaced."""
    broken = type("Broken", (Layers,), methods)(layers=2, kernels=3, width=4)
    with pytest.raises(ValueError) as error:
        check(broken, split)
    return str(error.value).splitlines()


def test_a_space_that_is_right_passes():
    check(SPACE, SPLIT)
    check(SPACE)
    check(SPACE, jax.tree.map(np.asarray, SPLIT))  # as wpl_jax.data gives them


class Single(Layers):
    """Each weight has a place of its own in the mask; a ReLU that is off keeps it from the loss."""

    def init(self, key):
        return Layers.init(self, key) | {"last": jnp.zeros((self.width, 10))}

    def mask(self, architecture):
        shapes = jax.eval_shape(self.init, jax.random.key(0))
        mask = Layers.mask(self, architecture)
        return jax.tree.map(lambda m, p: jnp.broadcast_to(m, p.shape), mask, shapes)

    def rows(self, architecture):
        return ...


class Noisy(Layers):
    """In training, images are of another type, some are left out, and the loss is large."""

    def batch(self, split, step, key):
        batch = Layers.batch(self, split, step, None)
        return batch if key is None else batch._replace(images=batch.images.astype(jnp.float32))

    def loss(self, params, architecture, batch, carry, key):
        if key is not None:
            kept = jax.random.bernoulli(key, shape=batch.images.shape)
            batch = batch._replace(images=batch.images * kept)
        loss, carry = Layers.loss(self, params, architecture, batch, carry, None)
        return 1e4 * loss, carry


@pytest.mark.parametrize("space", [Single, Noisy])
def test_no_false_alarm(space):
    check(space(layers=2, kernels=3, width=4), SPLIT)


def test_methods_that_are_missing_are_named():
    methods = {k: v for k, v in vars(Layers).items() if k not in ("rows", "score", "__dict__")}
    with pytest.raises(ValueError, match=r"^rows: is not defined\nscore: is not defined$"):
        check(type("Less", (), methods)())


def changed(name, change):
    """A method that changes what the right one returns for an architecture."""
    return lambda self, architecture: change(getattr(Layers, name)(self, architecture))


def fail():
    raise ValueError("in training")


BROKEN = {
    "decisions: must be a tuple of whole numbers": {"decisions": (3, 0, 3, 3)},
    "decode: cannot be compiled": {
        "decode": lambda self, a: Architecture(a[:2] if a[0] > 0 else a[2:], a[2:])
    },
    "decode: an architecture is whole numbers": {
        "decode": lambda self, a: Architecture(a[0::2] * 1.0, a[1::2])
    },
    "init: params['first'] must be of floating point": {
        "init": lambda self, key: Layers.init(self, key) | {"first": jnp.zeros((784, 4), int)}
    },
    "init: ZeroDivisionError: division by zero": {"init": lambda self, key: 1 / 0},
    "mask: is no prefix of the tree of parameters": {
        "mask": changed("mask", lambda m: {"kernels": m["kernels"]})
    },
    "mask: of params['kernels'] must be True, or boolean, got int32": {
        "mask": changed("mask", lambda m: m | {"kernels": m["kernels"].astype(int)})
    },
    "mask: of params['first'] must broadcast to its shape (784, 4), got (5,)": {
        "mask": changed("mask", lambda m: m | {"first": jnp.ones(5, bool)})
    },
    "mask: of params['kernels'] must have the parameter's lengths": {
        "mask": changed("mask", lambda m: m | {"kernels": True})
    },
    "mask: the loss depends on weights of params['first'] that are not in the mask": {
        "mask": changed("mask", lambda m: m | {"first": False})
    },
    "rows: the mask of params['kernels'] has weights outside of the rows": {
        "rows": changed("rows", lambda r: r | {"kernels": (r["kernels"] + 1) % 3})
    },
    "rows: of params['kernels'] must be from 0 to 2, got": {
        "rows": changed("rows", lambda r: r | {"kernels": r["kernels"] + 3})
    },
    "rows: of params['kernels'] have a position twice": {
        "rows": changed("rows", lambda r: r | {"kernels": jnp.repeat(r["kernels"], 2, 1)})
    },
    "loss: must be one number, got shape (8,)": {
        "loss": lambda self, p, a, batch, carry, key: (jnp.zeros(8) + p["first"].sum(), carry)
    },
    "loss: the carry must have the form": {
        "loss": lambda self, *args: (Layers.loss(self, *args)[0], jnp.zeros(3))
    },
    "score: must be a sum and a count": {
        "score": lambda self, p, a, batch, carry: ((jnp.zeros(8), jnp.float32(8)), carry)
    },
    "batch: number 3 is not number 0 again": {
        "batch": lambda self, split, step, key: jax.tree.map(
            lambda x: x[jnp.minimum(step, 2)], split
        )
    },
    "num_batches: must be at least 1": {"num_batches": lambda self, split: 0},
    "num_batches: TypeError: 'float'": {"num_batches": lambda self, split: 3.0},
    "num_batches: cannot be compiled": {"num_batches": lambda self, s: int(s.labels[0, 0] >= 0)},
    "num_batches: is 6, but batches come again after 3": {"num_batches": lambda self, split: 6},
    "num_batches: is 4, but the last batch is the one before it": {
        "num_batches": lambda self, split: 4,
        "batch": lambda self, split, step, key: jax.tree.map(lambda x: x[step % 4], split),
    },
    "start: cannot be compiled": {"start": lambda self, batch: np.asarray(batch.labels)},
    "loss: its gradient is not finite": {
        "loss": lambda self, p, a, batch, carry, key: (
            jnp.where(p["last"] == 9, jnp.sqrt(p["last"] * 0), p["last"]).sum(),
            carry,
        )
    },
    "loss: the carry must have the form [], got": {
        "loss": lambda self, *args: (
            Layers.loss(self, *args)[0],
            () if args[-1] is None else jnp.zeros(3),
        )
    },
    "loss: ValueError: in training": {
        "loss": lambda self, *args: Layers.loss(self, *args) if args[-1] is None else fail()
    },
    "error: cannot be compiled": {"error": lambda self, mean: float(mean)},
    "reward: must be finite": {"reward": lambda self, error: 1 - error},
    "reward: ValueError: The truth value": {
        "reward": lambda self, error: 1 - error if error < 1 else 0.0
    },
    "reward: must be a number for each error": {"reward": lambda self, error: 0.5},
    "to_json: must give a dict, got []": {"to_json": lambda self, a: []},
    "graphs: AttributeError: 'list'": {"graphs": lambda self, a: []},
    "to_json: TypeError": {"to_json": lambda self, a: {"kernels": a.kernels}},
    "from_json: does not give the architecture": {
        "from_json": lambda self, stored: Architecture(*jnp.zeros((2, 2), jnp.int32))
    },
    "num_parameters: is 3, but the mask has": {"num_parameters": lambda self, a: 3},
    "parametric: has choices (3, 3, 3), but decisions are (3, 3, 3, 3)": {
        "parametric": ((True,) * 3,) * 3
    },
    "distinct: must be whole numbers of shape (n, 4), got float64": {
        "distinct": lambda self: np.zeros((2, 4))
    },
    "distinct: must list one or more architectures of the space": {
        "distinct": lambda self: np.array([[0, 0, 0, 3]])
    },
    "distinct: lists an architecture twice": {"distinct": lambda self: np.zeros((2, 4), int)},
    "log_probs: the carry must have the form": {
        "log_probs": lambda self, p, a, batch, carry, key: (jnp.zeros((8, 2)), jnp.zeros(1))
    },
    "log_probs: must be [examples, classes], got (8,)": {
        "log_probs": lambda self, p, a, batch, carry, key: (jnp.zeros(8), carry)
    },
    "log_probs: probabilities of an example do not add up to 1": {
        "log_probs": lambda self, p, a, batch, carry, key: (jnp.ones((8, 10)), carry)
    },
}


NEED_NO_DATA = {
    *("decisions", "decode", "init", "rows", "reward", "parametric", "distinct"),
    *("to_json", "from_json", "graphs", "num_parameters"),
}


@pytest.mark.parametrize("message", BROKEN)
def test_the_method_at_fault_is_named(message):
    needs_none = message.partition(":")[0] in NEED_NO_DATA
    found = faults(split=None if needs_none else SPLIT, **BROKEN[message])
    assert any(line.startswith(message) for line in found), found


def test_weights_in_the_mask_that_nothing_reads_are_a_fault():
    def mask(self, architecture):
        right = Layers.mask(self, architecture)
        return right | {"kernels": jnp.ones_like(right["kernels"])}

    (fault,) = faults(mask=mask, rows=lambda self, a: {"first": ..., "kernels": ..., "last": ...})
    assert (
        fault == "mask: params['kernels'] has weights in the mask that the loss does not depend on"
    )


def test_a_loss_that_reads_the_wrong_rows_is_a_fault():
    def logits(self, params, architecture, images):
        kernels = params["kernels"].shape[1]  # one, in training
        return Layers.logits(self, params, architecture, images) * kernels

    found = faults(logits=logits)
    assert found == ["loss: is not the same on an architecture's own rows as on all parameters"]


def test_without_data_what_needs_none_is_checked():
    found = faults(split=None, reward=lambda self, error: 1 - error, num_parameters=lambda *_: 3)
    assert [line.split(":")[0] for line in found] == ["num_parameters", "reward"]
