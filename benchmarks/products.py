"""Sums of squared per-example products, ``sum_i (A_i^T D_i)**2``, in the forms one could choose.

    python -m benchmarks.products

What the choices in wpl_jax/fisher/routes.py rest on, on this machine. The first row is the
gradient of the weight, ``sum_i A_i^T D_i``; the last tables are of convolutions' kernels.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.report import chosen, report
from benchmarks.timing import Jitted, compare
from wpl_jax.fisher.routes import outer_products


def main():
    weights = {
        "LSTM, 64 × 35 positions, 200 × 800": (64, 35, 200, 800),
        **{f"256 × {p} positions, 512 × 512": (256, p, 512, 512) for p in (2, 4, 8)},
    }
    kernels = {
        "kernel 5 × 5 × 3 × 64, 128 images of 32 × 32": (128, 32, 5, 3, 64),
        "kernel 3 × 3 × 64 × 96, 128 images of 14 × 14": (128, 14, 3, 64, 96),
    }
    tables = [of_weight(title, *sizes) for title, sizes in weights.items()]
    report("products", tables + [of_kernel(title, *sizes) for title, sizes in kernels.items()])


def of_weight(title, n, positions, rows, columns):
    a = jax.random.normal(jax.random.key(0), (n, positions, rows))
    d = jax.random.normal(jax.random.key(1), (n, positions, columns))
    forms = {
        "gradient": lambda a, d: jnp.einsum("npi,npo->io", a, d),
        "one example after another": in_turn(lambda a, d: a.T @ d),
        "stacks of 4": lambda a, d: in_turn(stacked)(
            *(x.reshape(-1, 4, *x.shape[1:]) for x in (a, d))
        ),
    }
    if positions <= 8:
        forms["pairs of positions"] = pairs
        forms["outer products of some examples"] = outer
    return timed(title, forms, a, d)


def of_kernel(title, n, size, kernel, channels, features):
    images = jax.random.normal(jax.random.key(0), (n, size, size, channels))
    out = size - kernel + 1
    d = jax.random.normal(jax.random.key(1), (n, out, out, features))

    def gradient(images, d):
        def convolve(kernel):
            form = ("NHWC", "HWIO", "NHWC")
            return jax.lax.conv_general_dilated(
                images, kernel, (1, 1), "VALID", dimension_numbers=form
            )

        return jax.vjp(convolve, jnp.zeros((kernel, kernel, channels, features)))[1](d)[0]

    def by_patches(image, d):
        shifts = np.ndindex(kernel, kernel)
        patches = jnp.stack([image[i : i + out, j : j + out] for i, j in shifts], 2)
        return patches.reshape(out * out, -1).T @ d.reshape(out * out, -1)

    forms = {
        "gradient": gradient,
        "one example after another, patches": in_turn(by_patches),
        "one example after another, XLA's gradient": in_turn(
            lambda x, d: gradient(x[None], d[None])
        ),
    }
    return timed(title, forms, images, d)


def in_turn(product):
    """Squares of one product after another, added up."""

    def run(a, d):
        start = jnp.zeros(jax.eval_shape(product, a[0], d[0]).shape)
        add = lambda total, ad: (total + product(*ad) ** 2, None)  # noqa: E731
        return jax.lax.scan(add, start, (a, d))[0]

    return run


def stacked(a, d):
    """The root of the sum of a stack's squares: what is added up is its square."""
    return jnp.sqrt(jnp.sum(jnp.einsum("npi,npo->nio", a, d) ** 2, 0))


def pairs(a, d):
    p, q = np.tril_indices(a.shape[1])
    weights = jnp.where(p == q, 1.0, 2.0)[None, :, None]
    return jnp.einsum("npi,npo->io", a[:, p] * a[:, q] * weights, d[:, p] * d[:, q])


def outer(a, d):
    return outer_products(a[:, None], d[:, None], None)[0]


def timed(title, forms, *arguments):
    built = {name: functools.partial(Jitted, form, *arguments) for name, form in forms.items()}
    return compare(title, built, repeats=7)


if __name__ == "__main__":
    chosen(__doc__)
    main()
