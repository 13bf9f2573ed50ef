import jax
import jax.numpy as jnp
import numpy as np
import pytest

import wpl_jax


@pytest.mark.parametrize(
    ("baseline", "plain", "protected", "expected"),
    [
        (0.9, 0.5, 0.9, 1.0),  # nothing was forgotten
        (0.9, 0.5, 0.5, 0.0),  # protection did nothing
        (0.9, 0.5, 0.8, 0.75),
        (0.9, 0.5, 0.3, -0.5),  # protection made it worse
        (0.9, 0.5, 1.0, 1.25),  # the first model gained
    ],
)
def test_relative_reduction(baseline, plain, protected, expected):
    assert wpl_jax.relative_reduction(baseline, plain, protected) == pytest.approx(expected)


def test_relative_reduction_of_arrays():
    baseline, plain, protected = jnp.array([[0.9, 0.8], [0.5, 0.1], [0.9, 0.7]])
    reduction = jax.jit(wpl_jax.relative_reduction)(baseline, plain, protected)
    np.testing.assert_allclose(reduction, [1.0, 6 / 7], rtol=1e-6)
