"""Actions that stand for no architecture are refused, and those that stand for one are not."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from wpl_jax.spaces.micro_cnn import MicroCNN
from wpl_jax.spaces.nas_bench_201 import NASBench201
from wpl_jax.spaces.rnn import RNN

SPACES = {
    "rnn": RNN(vocabulary=5, nodes=3, units=2),
    "micro_cnn": MicroCNN(nodes=2, channels=2, cells=1),
    "nas_bench_201": NASBench201(channels=2, cells=1),
}


@pytest.fixture(params=SPACES)
def space(request):
    return SPACES[request.param]


@pytest.mark.parametrize("of", [list, np.array, np.uint8, jnp.array, jax.jit(lambda a: a)])
def test_decodes_the_first_and_the_last_architecture(space, of):
    for actions in ([0] * len(space.decisions), [n - 1 for n in space.decisions]):
        compiled = jax.jit(space.decode)(jnp.array(actions))
        jax.tree.map(np.testing.assert_array_equal, space.decode(of(actions)), compiled)


def test_refuses_a_choice_that_there_is_not(space):
    number = len(space.decisions) - 1
    for wrong in (-1, space.decisions[number]):
        actions = np.zeros(len(space.decisions), int)
        actions[number] = wrong
        with pytest.raises(ValueError, match=rf"action {number} must be from 0 to .* got {wrong}"):
            space.decode(jnp.array(actions))


@pytest.mark.parametrize("wrap", [lambda f: f, jax.jit])
def test_refuses_other_shapes_and_dtypes(space, wrap):
    decode, decisions = wrap(space.decode), len(space.decisions)
    for shape in ((), (decisions - 1,), (decisions + 1,), (1, decisions), (decisions, 1)):
        with pytest.raises(ValueError, match=rf"each of the {decisions} decisions.*jax.vmap"):
            decode(jnp.zeros(shape, jnp.int32))
    with pytest.raises(TypeError, match="must be integers, got float32"):
        decode(jnp.zeros(decisions))
