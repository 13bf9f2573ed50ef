"""Operations of convolutional cells, in a layout that is fast on CPUs and can be sampled.

Images are ``[groups, height, channels, width, batch]`` (:func:`inward` makes them so). Depthwise
convolution and pooling are sums and maxima of shifted blocks, in which the batch is contiguous, and
a 1×1 convolution is a matrix product for each row, whose operands are the image as it is; one of
3×3 is such a product of three rows by three columns of the kernel, whose results are shifted and
added. On a CPU XLA's own depthwise convolution takes 12 to 16 times as long, its max pooling 7
times, forward and backward (``python -m benchmarks.micro_cnn``). Devices that share a batch hold a
group or more each. All compute in the dtype of the images, and round their weights to it
(:mod:`wpl_jax.spaces.precision`).

All but ``convolution_3x3`` are of stride 1; a stride is a slice of the result. A space writes the
operations of its edges as *branches*, functions ``branch(x, weights, given)`` that return an image
and statistics, all of the same shapes, and runs the sampled one alone by :func:`run_one`.

Example:
  >>> import jax, jax.numpy as jnp
  >>> from wpl_jax.spaces.operations import average_pool, convolution_3x3, inward, run_one
  >>> branches = (
  ...     lambda x, w, given: (jnp.zeros_like(x), None),
  ...     lambda x, w, given: (average_pool(x), None),
  ...     lambda x, w, given: (convolution_3x3(x, w), None),
  ... )
  >>> x, kernel = inward(jnp.ones((5, 8, 8, 4))), jnp.ones((3, 4, 3, 4))
  >>> for sampled in range(3):
  ...     y, _ = run_one(branches, jnp.int32(sampled), x, kernel, None)
  ...     print(y.shape, y.max())
  (1, 8, 4, 8, 5) 0.0
  (1, 8, 4, 8, 5) 1.0
  (1, 8, 4, 8, 5) 36.0
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from wpl_jax.numbers import wide_dtype, widen

__all__ = [
    "CHANNELS",
    "HEIGHT",
    "WIDTH",
    "average_pool",
    "batch_norm",
    "classify",
    "convolution_3x3",
    "depthwise",
    "inward",
    "max_pool",
    "pointwise",
    "run_one",
]

HEIGHT, CHANNELS, WIDTH = 1, 2, 3
"""Axes of an image."""


def inward(images: jax.Array, groups: int = 1) -> jax.Array:
    """Images in this layout, float [groups, height, channels, width, batch / groups].

    Args:
      images: float [batch, height, width, channels].
      groups: parts of the batch, computed side by side.

    Raises:
      ValueError: if the batch is not a multiple of ``groups``.
    """
    if len(images) % groups:
        raise ValueError(f"a batch must be a multiple of groups={groups}, got {len(images)} images")
    x = images.reshape(groups, -1, *images.shape[1:])
    return jnp.transpose(x, (0, 2, 4, 3, 1))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def run_one(
    branches: Sequence[Callable[..., tuple[Any, Any]]],
    index: jax.Array,
    x: jax.Array,
    weights: Any,
    given: Any,
) -> tuple[Any, Any]:
    """Branch ``index`` of ``x``, alone, forward and backward; its output and its statistics.

    The gradient runs the branch once more from ``x``; none passes through the statistics. Left to
    JAX, a switch would store the intermediate values of every branch, zeros for those not taken.
    Differentiable once.

    Args:
      branches: ``branch(x, weights, given)`` returns an output and statistics; a tuple.
      index: which, int32.
      x: the input.
      weights: of all branches; the gradient of those not taken is 0.
      given: what has no gradient.
    """
    return jax.lax.switch(index, branches, x, weights, given)


def _run_one_forward(branches, index, x, weights, given):
    return run_one(branches, index, x, weights, given), (index, x, weights, given)


def _run_one_backward(branches, saved, cotangents):
    index, x, weights, given = saved

    def gradient(branch):
        def run(x, weights, cotangent):
            return jax.vjp(lambda x, weights: branch(x, weights, given)[0], x, weights)[1](
                cotangent
            )

        return run

    grads = jax.lax.switch(index, [gradient(b) for b in branches], x, weights, cotangents[0])
    return None, *grads, None


run_one.defvjp(_run_one_forward, _run_one_backward)


def average_pool(x: jax.Array) -> jax.Array:
    """Mean over a 3×3 window, of the pixels in it that are in the image."""
    ones = jnp.ones((1, x.shape[HEIGHT], 1, x.shape[WIDTH], 1), x.dtype)
    return _window_sum(x) / _window_sum(ones)


def _window_sum(x):
    for axis in (HEIGHT, WIDTH):
        x = sum(_shifts(x, 3, axis, 0))
    return x


def max_pool(x: jax.Array) -> jax.Array:
    """Maximum over a 3×3 window."""
    for axis in (HEIGHT, WIDTH):
        x = functools.reduce(jnp.maximum, _shifts(x, 3, axis, -jnp.inf))
    return x


@jax.custom_vjp
def pointwise(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """A 1×1 convolution; kernel [channels after, channels before]. Differentiable once."""
    return _product(x, kernel)


def _product(x, kernel):
    product = jnp.einsum("ghdc,ghck->ghdk", _for_rows(kernel, x), _rows(x))
    return product.reshape(*product.shape[:3], *x.shape[3:])


def _product_gradient(x, cotangent):
    """The gradient of the kernel."""
    return _sums("ghdk,ghck->ghdc", _rows(cotangent), _rows(x)).sum((0, 1))


def _sums(subscripts, *operands):
    """Sums of products in at least float32, whatever is multiplied."""
    return jnp.einsum(subscripts, *operands, preferred_element_type=wide_dtype(*operands))


def _pointwise_forward(x, kernel):
    return pointwise(x, kernel), (x, kernel)


def _pointwise_backward(
    saved: tuple[jax.Array, jax.Array], cotangent: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """As JAX has it, but for the order of operands, which spares copies of the images."""
    x, kernel = saved
    return _of_dtypes((_product(cotangent, kernel.T), _product_gradient(x, cotangent)), saved)


pointwise.defvjp(_pointwise_forward, _pointwise_backward)


def _of_dtypes(grads, primals):
    """Gradients in the dtypes of what they belong to, images and weights."""
    return jax.tree.map(lambda g, p: g.astype(p.dtype), grads, primals)


def _for_rows(kernel, x):
    return jnp.broadcast_to(kernel.astype(x.dtype), (*x.shape[:2], *kernel.shape))


def _rows(x):
    """Each row of the image as one matrix, [groups, height, channels, width * batch].

    The barrier keeps XLA from fusing what made the image into a product: for some shapes, that
    aborts the compiler for NVIDIA's GPUs (openxla/xla, issue 47381).
    """
    return jax.lax.optimization_barrier(x.reshape(*x.shape[:3], -1))


def convolution_3x3(x: jax.Array, kernel: jax.Array, stride: int = 1) -> jax.Array:
    """A 3×3 convolution, zeros around the image. Differentiable once.

    Args:
      x: images.
      kernel: float [3 (columns), channels after, 3 (rows), channels before]: as a matrix, what one
        product of three rows of the image needs.
      stride: between the pixels of the result, of which the first is around the image's first.
    """
    if stride == 1:
        return _convolution_3x3(x, kernel)
    rows = _three_rows(x, stride)
    padded = _pad(rows, 3, (WIDTH,), 0)
    length = padded.shape[WIDTH] - 2
    columns = [jax.lax.slice_in_dim(padded, j, j + length, stride, axis=WIDTH) for j in range(3)]
    matrices = kernel.reshape(3, kernel.shape[1], -1)
    products = [pointwise(c, m) for c, m in zip(columns, matrices, strict=True)]
    return products[0] + products[1] + products[2]


@jax.custom_vjp
def _convolution_3x3(x, kernel):
    return _convolution_3x3_forward(x, kernel)[0]


def _convolution_3x3_forward(x, kernel):
    rows = _three_rows(x)
    left, middle, right = jnp.split(_product(rows, _matrix(kernel)), 3, axis=CHANNELS)
    return _moved(left, WIDTH, 1) + middle + _moved(right, WIDTH, -1), (rows, kernel)


def _convolution_3x3_backward(saved, cotangent):
    """As JAX has it, with fewer copies."""
    rows, kernel = saved
    moved = [_moved(cotangent, WIDTH, -1), cotangent, _moved(cotangent, WIDTH, 1)]
    columns = jnp.concatenate(moved, axis=CHANNELS)
    above, middle, below = jnp.split(_product(columns, _matrix(kernel).T), 3, axis=CHANNELS)
    grad = _moved(above, HEIGHT, -1) + middle + _moved(below, HEIGHT, 1)
    grads = grad, _product_gradient(rows, columns).reshape(kernel.shape)
    return _of_dtypes(grads, (rows, kernel))


_convolution_3x3.defvjp(_convolution_3x3_forward, _convolution_3x3_backward)


def _matrix(kernel):
    return kernel.reshape(3 * kernel.shape[1], -1)


def _three_rows(x, stride=1):
    """Of every ``stride``-th row, the one above, itself and the one below, as channels."""
    padded = _pad(x, 3, (HEIGHT,), 0)
    length = padded.shape[HEIGHT] - 2
    rows = [jax.lax.slice_in_dim(padded, i, i + length, stride, axis=HEIGHT) for i in range(3)]
    return jnp.concatenate(rows, axis=CHANNELS)


def _moved(x, axis, by):
    """The image moved by one pixel, forward or back, zeros coming in."""
    padding = [(0, 0, 0)] * x.ndim
    padding[axis] = (by, -by, 0)
    return jax.lax.pad(x, jnp.zeros([], x.dtype), padding)


@jax.custom_vjp
def depthwise(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Depthwise convolution, zeros around the image; kernel [channels, size, size].

    Differentiable once.
    """
    kernel = kernel.astype(x.dtype)
    return sum(
        _over_channels(kernel[:, i, j]) * block
        for i, row in enumerate(_shifted(x, kernel.shape[-1]))
        for j, block in enumerate(row)
    )


def _depthwise_forward(x, kernel):
    return depthwise(x, kernel), (x, kernel)


def _depthwise_backward(saved, cotangent):
    """The kernel's gradient by a matrix product for each row, of which some diagonals count.

    To sum products of shifted blocks instead makes 5×5 kernels half as fast on a CPU.
    """
    x, kernel = saved
    size, width = kernel.shape[-1], x.shape[WIDTH]
    rows = [
        _sums("ghcvn,ghcwn->ghcvw", block, cotangent).sum((0, 1))
        for block in _blocks(_pad(x, size, (HEIGHT, WIDTH), 0), size, HEIGHT)
    ]
    places = jnp.stack([jnp.eye(width + size - 1, width, -j) for j in range(size)])
    grad = jnp.einsum("icvw,jvw->cij", jnp.stack(rows), places.astype(rows[0].dtype))
    return _of_dtypes((depthwise(cotangent, kernel[:, ::-1, ::-1]), grad), saved)


depthwise.defvjp(_depthwise_forward, _depthwise_backward)


def _shifted(x, size):
    """The image seen from each place of a size×size window: rows of blocks."""
    padded = _pad(x, size, (HEIGHT, WIDTH), 0)
    return [_blocks(row, size, WIDTH) for row in _blocks(padded, size, HEIGHT)]


def _shifts(x, size, axis, fill):
    return _blocks(_pad(x, size, (axis,), fill), size, axis)


def _blocks(padded, size, axis):
    length = padded.shape[axis] - size + 1
    return [jax.lax.slice_in_dim(padded, i, i + length, axis=axis) for i in range(size)]


def _pad(x, size, axes, fill):
    before = (size - 1) // 2
    widths = [(before, size - 1 - before) if axis in axes else (0, 0) for axis in range(x.ndim)]
    return jnp.pad(x, widths, constant_values=fill)


def batch_norm(
    x: jax.Array, params: Mapping[str, jax.Array] | None, given: jax.Array | None = None
) -> tuple[jax.Array, jax.Array]:
    """Batch norm by the batch's statistics or those given; and the batch's, [2, channels].

    Statistics are of at least float32. No gradient passes through those that are returned.

    Args:
      x: images.
      params: ``scale`` and ``bias``, float [channels] each; None for 1 and 0.
      given: means and variances, float [2, channels]; by default those of the batch.
    """
    normal, new = _normalised(x)
    if given is not None:
        mean, variance = given
        centred = widen(x) - _over_channels(mean)
        normal = (centred * _over_channels(_inverse_deviation(variance))).astype(x.dtype)
    if params is not None:
        scaled = widen(normal) * _over_channels(params["scale"])
        normal = (scaled + _over_channels(params["bias"])).astype(x.dtype)
    return normal, new


@jax.custom_vjp
def _normalised(x):
    return _normalised_forward(x)[0]


def _normalised_forward(x):
    mean = _mean(widen(x))
    centred = widen(x) - _over_channels(mean)
    variance = _mean(jnp.square(centred))
    scale = _inverse_deviation(variance)
    normal = (centred * _over_channels(scale)).astype(x.dtype)
    return (normal, jnp.stack([mean, variance])), (normal, scale)


def _normalised_backward(saved, cotangents):
    """As JAX has it, with fewer passes over the images."""
    (normal, scale), (cotangent, _) = saved, cotangents
    dtype = normal.dtype
    normal, cotangent = widen(normal), widen(cotangent)
    straight = cotangent - _over_channels(_mean(cotangent))
    grad = straight - normal * _over_channels(_mean(cotangent * normal))
    return ((grad * _over_channels(scale)).astype(dtype),)


_normalised.defvjp(_normalised_forward, _normalised_backward)


def _mean(x):
    return x.mean([axis for axis in range(x.ndim) if axis != CHANNELS])


def _inverse_deviation(variance):
    return jax.lax.rsqrt(variance + 1e-5)


def _over_channels(x):
    return x[None, None, :, None, None]


def classify(features: jax.Array, params: Mapping[str, jax.Array]) -> jax.Array:
    """Logits, [batch, classes], of features, [groups, channels, batch / groups]; at least float32.

    Args:
      features: of each image, such as means over height and width.
      params: ``kernel``, float [classes, channels], and ``bias``, float [classes].
    """
    logits = (
        jnp.einsum("gcn,dc->gnd", widen(features), params["kernel"]) + params["bias"][None, None]
    )
    return logits.reshape(-1, logits.shape[-1])
