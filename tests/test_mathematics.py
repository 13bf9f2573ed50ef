"""The paper's mathematics, on models small enough to do exactly, in float64.

Notation. f1 has weights (θ1, θs) and f2 has weights (θ2, θs); D is the data they share. A model is
linear and Gaussian here: D ~ N(Σ B_k θ_k, τ² I), with a prior θ_k ~ N(0, σ² I) on each of its
blocks of weights. Posteriors, evidences and integrals then have closed forms. H is the negative
Hessian of a log posterior, partitioned by (1, s), with its mode at (θ̂1, θ̂s). v = θs − θ̂s and
α = 1/σ².

What the tests establish, beside what the submission prints:

- Lemma 1 is an equality (the constant behind "∝" is one) in one joint distribution, in which
  p(D|θ1,θs) has θ2 integrated out and p(D|θ2,θs) has θ1 integrated out. Its numerator must hold the
  posterior p(θ1,θs|D), with which its proof ends. The prior p(θ1,θs), which equation 1 prints
  there, does not satisfy it.
- Lemma 2 is exact about the maximum of the posterior (the "maximum likelihood estimate" of its text
  will not do) and needs the prior's constant in l_p, which its proof drops.
- Equation 3 follows from the lemmas, and + ½ vᵀΩv is right in it. The sign of equation 6 is not
  right: by equation 5, log p(θ1,θs|D) falls as −½ Σ F v². With that sign the last two terms of
  equation 3 cancel if H is diagonal, and do not group into the penalty of equation 8.
- Equation 8 with ε = 1 is all the same the exact objective of a joint MAP, if H is diagonal: that
  in which the likelihood of each model counts once. Its penalty is −log ∫ p(D|θ1,θs) p(θ1) dθ1 of
  the first model. This belongs to p(D|θ2,θs) in Lemma 1, and is lost when that factor is replaced
  by the second model's own likelihood.
"""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.flatten_util import ravel_pytree
from jax.scipy.linalg import solve
from jax.scipy.stats import multivariate_normal, norm

import wpl_jax

NOISE = 0.7  # τ, known
SCALE = 1.3  # σ, of the prior
ALPHA = 1 / SCALE**2
ROWS = 12
PROBLEMS = 6
POINTS = 4


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


# --- Linear-Gaussian models -----------------------------------------------------------------------


class Model(NamedTuple):
    """D ~ N(Σ_k features[k] @ θ_k, τ² I), θ_k ~ N(0, σ² I)."""

    data: jax.Array  # (rows,)
    features: dict[str, jax.Array]  # (rows, p_k) for each block k of weights


def log_likelihood(model, weights):
    """log p(D | weights), integrated over the prior of each block left out."""
    mean = sum(model.features[b] @ w for b, w in weights.items()) + jnp.zeros_like(model.data)
    left_out = [f for block, f in model.features.items() if block not in weights]
    if not left_out:
        return norm.logpdf(model.data, mean, NOISE).sum()
    covariance = NOISE**2 * jnp.eye(model.data.size) + SCALE**2 * sum(f @ f.T for f in left_out)
    return multivariate_normal.logpdf(model.data, mean, covariance)


def log_prior(weights):
    return optax.tree.sum(jax.tree.map(lambda w: norm.logpdf(w, scale=SCALE).sum(), weights))


def log_joint(model, weights):
    return log_likelihood(model, weights) + log_prior(weights)


def log_posterior(model, weights):
    """log p(weights | D), normalised, by Bayes' theorem."""
    return log_joint(model, weights) - log_likelihood(model, {})


def two_models(rng, p1=2, p2=3, ps=4, orthogonal=False):
    """f1, f2, and the joint model of two copies of their targets, one explained by each.

    `orthogonal` gives the first model orthogonal features, hence a diagonal Hessian.
    """
    y = rng.normal(size=ROWS)
    features_1 = rng.normal(size=(ROWS, p1 + ps))
    if orthogonal:
        features_1 = np.linalg.qr(features_1)[0] * np.linspace(0.5, 3, p1 + ps)
    features_2 = rng.normal(size=(ROWS, p2 + ps))
    first = Model(y, {"1": features_1[:, :p1], "s": features_1[:, p1:]})
    second = Model(y, {"2": features_2[:, :p2], "s": features_2[:, p2:]})
    both = Model(
        np.concatenate([y, y]),
        {
            "1": np.concatenate([first.features["1"], np.zeros((ROWS, p1))]),
            "2": np.concatenate([np.zeros((ROWS, p2)), second.features["2"]]),
            "s": np.concatenate([first.features["s"], second.features["s"]]),
        },
    )
    return first, second, both


def stack(trees):
    return jax.tree.map(lambda *leaves: np.stack(leaves), *trees)


def on_random_problems(check, **options):
    """`check(first, second, both, weights)` at random weights (θ1, θ2, θs) of random models.

    Its results have two leading axes, of problems and of weights for each.
    """
    problems, points = [], []
    for seed in range(PROBLEMS):
        rng = np.random.default_rng(seed)
        problems.append(two_models(rng, **options))
        sizes = {block: f.shape[1] for block, f in problems[-1][-1].features.items()}
        draws = [{b: rng.normal(size=n) for b, n in sizes.items()} for _ in range(POINTS)]
        points.append(stack(draws))
    over_points = jax.vmap(check, in_axes=(None, None, None, 0))
    return jax.jit(jax.vmap(over_points))(*stack(problems), stack(points))


def spread_over_weights(values):
    """How far each problem's values are from being the same for all weights."""
    return np.ptp(np.asarray(values), axis=1)


def pick(weights, blocks):
    return {block: weights[block] for block in blocks}


def maximise(log_density, like):
    """Mode of a quadratic log density and its negative Hessian, in the order of `like`'s blocks."""
    flat, unravel = ravel_pytree(jax.tree.map(jnp.zeros_like, like))

    def objective(x):
        return log_density(unravel(x))

    negative_hessian = -jax.hessian(objective)(flat)
    step = solve(negative_hessian, jax.grad(objective)(flat), assume_a="pos")
    return unravel(step), negative_hessian


def schur_complement(hessian, p1):
    """Ω = Hss − Hs1 H11⁻¹ H1s."""
    h11, h1s, hs1, hss = hessian[:p1, :p1], hessian[:p1, p1:], hessian[p1:, :p1], hessian[p1:, p1:]
    return hss - hs1 @ solve(h11, h1s, assume_a="pos")


def assert_close(actual, expected, tolerance=1e-8):
    """Arrays, or pytrees of them."""
    chex.assert_trees_all_close(actual, expected, rtol=tolerance, atol=tolerance)


def quadratic(matrix, v):
    return 0.5 * v @ matrix @ v


def log_integral_by_quadrature(model, shared):
    """log ∫ p(D | θ1, θs) p(θ1, θs) dθ1 by the trapezoidal rule, for one or two private weights."""
    p1 = model.features["1"].shape[1]
    # For a Gaussian integrand the rule is exact to rounding once its step is below half the width.
    axis = jnp.linspace(-10 * SCALE, 10 * SCALE, 401)
    grid = jnp.stack(jnp.meshgrid(*[axis] * p1, indexing="ij"), axis=-1).reshape(-1, p1)
    values = jax.lax.map(lambda w: log_joint(model, {"1": w, "s": shared}), grid, batch_size=4096)
    return jax.nn.logsumexp(values) + p1 * jnp.log(axis[1] - axis[0])


# --- Lemma 1 --------------------------------------------------------------------------------------


def lemma_1_right_side(model, weights, log_integral):
    """log of p(D | θ2, θs) p(θ1, θs | D) p(θ2, θs) / ∫ p(D | θ1, θs) p(θ1, θs) dθ1."""
    return (
        log_likelihood(model, pick(weights, "2s"))
        + log_posterior(model, pick(weights, "1s"))
        + log_prior(pick(weights, "2s"))
        - log_integral
    )


def log_integral_in_closed_form(model, weights):
    """log ∫ p(D | θ1, θs) p(θ1, θs) dθ1 = log p(D, θs)."""
    return log_joint(model, pick(weights, "s"))


def test_lemma_1():
    """p(θ1,θ2,θs|D) ∝ p(D|θ2,θs) p(θ1,θs|D) p(θ2,θs) / ∫ p(D|θ1,θs) p(θ1,θs) dθ1.

    Condition: θ1 ⟂ θ2 | θs, D. Proof: p(θ|D) = p(θ1|θ2,θs,D) p(θ2,θs|D), which by the condition is
    p(θ1|θs,D) p(D|θ2,θs) p(θ2,θs) / p(D). In it, p(θ1|θs,D) = p(θ1,θs|D) / p(θs|D), and p(θs|D) is
    the integral divided by p(D). The two p(D) cancel, so the two sides are equal.

    Every symbol belongs to *one* joint distribution. Here its D is two copies of the targets, one
    for each model, which makes θ1 and θ2 independent given θs and D. Then p(D|θ2,θs) covers both
    copies, with θ1 integrated out: it is not the second model's own likelihood, for which see
    `test_lemma_1_with_each_models_own_likelihood`.
    """

    def check(first, second, both, weights):
        integral = log_integral_in_closed_form(both, weights)
        return log_posterior(both, weights), lemma_1_right_side(both, weights, integral)

    assert_close(*on_random_problems(check))


def test_lemma_1_by_quadrature():
    """As above, with the integral done numerically, over one private weight."""

    def check(first, second, both, weights):
        integral = log_integral_by_quadrature(both, weights["s"])
        return log_posterior(both, weights), lemma_1_right_side(both, weights, integral)

    assert_close(*on_random_problems(check, p1=1))


def test_lemma_1_needs_the_posterior_in_its_numerator():
    """Equation 1 prints p(θ1, θs) there, and does not hold; its proof ends with p(θ1, θs | D)."""

    def check(first, second, both, weights):
        right = lemma_1_right_side(both, weights, log_integral_in_closed_form(both, weights))
        first_weights = pick(weights, "1s")
        as_printed = right - log_posterior(both, first_weights) + log_prior(first_weights)
        return as_printed - log_posterior(both, weights)

    assert spread_over_weights(on_random_problems(check)).min() > 1.0


def test_lemma_1_needs_conditional_independence():
    """One likelihood for both, D ~ N(f1 + f2, τ² I), makes θ1 and θ2 dependent given θs and D."""

    def check(first, second, both, weights):
        joined = Model(first.data, first.features | {"2": second.features["2"]})
        integral = log_integral_in_closed_form(joined, weights)
        return lemma_1_right_side(joined, weights, integral) - log_posterior(joined, weights)

    assert spread_over_weights(on_random_problems(check)).min() > 1.0


def equation_3(first, second, weights):
    """log p(D|θ2,θs) + log p(θ2,θs) + log p(θ1,θs|D) + ½ vᵀΩv, with each model's own likelihood."""
    mode, hessian = maximise(lambda w: log_joint(first, w), pick(weights, "1s"))
    omega = schur_complement(hessian, p1=weights["1"].size)
    return (
        log_joint(second, pick(weights, "2s"))
        + log_posterior(first, pick(weights, "1s"))
        + quadratic(omega, weights["s"] - mode["s"])
    )


def test_lemma_1_with_each_models_own_likelihood():
    """Read so, as equation 3 reads it, the right side carries nothing from f1 to θs.

    Let p1 and p2 be the two models alone, and m1(θs) = ∫ p1(D|θ1,θs) p(θ1) dθ1. The integral of the
    lemma is p(θs) m1(θs), so the right side is p2(D|θ2,θs) p(θ2,θs) p1(θ1|θs,D): the second model's
    posterior times the first's conditional. It is the posterior of the joint model of
    `test_lemma_1` divided by m1(θs), and m1(θs) is all that the first model knows of the shared
    weights. Equation 3 is the logarithm of this right side, up to a constant, as the paper says.
    """

    def check(first, second, both, weights):
        shared, weights_1, weights_2 = (pick(weights, blocks) for blocks in ("s", "1s", "2s"))
        right = (
            log_likelihood(second, weights_2)
            + log_posterior(first, weights_1)
            + log_prior(weights_2)
            - log_integral_in_closed_form(first, weights)
        )
        log_conditional = log_posterior(first, weights_1) - log_posterior(first, shared)
        log_m1 = log_likelihood(first, shared)
        return (
            right - log_posterior(second, weights_2) - log_conditional,
            right - log_posterior(both, weights) + log_m1,
            right - equation_3(first, second, weights),
        )

    for gap in on_random_problems(check):
        assert_close(spread_over_weights(gap), np.zeros(PROBLEMS))


# --- Lemma 2 and the Laplace approximation --------------------------------------------------------


def lemma_2(log_density, weights):
    """log of exp(l_p(θ̂1,θ̂s) − ½ vᵀΩv) (2π)^{p1/2} |det H11⁻¹|^{1/2}."""
    p1 = weights["1"].size
    mode, hessian = maximise(log_density, weights)
    return (
        log_density(mode)
        - quadratic(schur_complement(hessian, p1), weights["s"] - mode["s"])
        + p1 / 2 * jnp.log(2 * jnp.pi)
        - 0.5 * jnp.linalg.slogdet(hessian[:p1, :p1])[1]
    )


def test_lemma_2():
    """∫ p(D|θ1,θs) p(θ1,θs) dθ1 = exp(l_p(θ̂1,θ̂s) − ½ vᵀΩv) (2π)^{p1/2} |det H11⁻¹|^{1/2}.

    Exact for a linear-Gaussian model when l_p = log p(D|θ1,θs) + log p(θ1,θs) in full, and
    (θ̂1, θ̂s) maximises it. The independent value is the marginal p(D|θs) p(θs), whose covariance
    τ²I + σ² B1 B1ᵀ knows nothing of Ω.

    The proof's l_p is log p(D|θ1,θs) − ‖(θ1,θs)‖²/2σ². The integral of its exponential is larger by
    the constant (2πσ²)^{p/2}, p = p1 + ps, which the proof's first line hides in a "∝".
    """

    def check(first, second, both, weights):
        weights = pick(weights, "1s")
        p = weights["1"].size + weights["s"].size

        def log_p_of_the_proof(w):
            return log_likelihood(first, w) - ALPHA / 2 * optax.tree.norm(w, squared=True)

        return (
            log_integral_in_closed_form(first, weights),
            lemma_2(lambda w: log_joint(first, w), weights),
            lemma_2(log_p_of_the_proof, weights) - p / 2 * jnp.log(2 * jnp.pi * SCALE**2),
        )

    integral, lemma, lemma_of_the_proof = on_random_problems(check)
    assert_close(lemma, integral)
    assert_close(lemma_of_the_proof, integral)


@pytest.mark.parametrize("p1", (1, 2))
def test_lemma_2_by_quadrature(p1):
    def check(first, second, both, weights):
        integral = log_integral_by_quadrature(first, weights["s"])
        return integral, lemma_2(lambda w: log_joint(first, w), pick(weights, "1s"))

    assert_close(*on_random_problems(check, p1=p1))


def test_lemma_2_needs_the_mode_of_the_posterior():
    """About the maximum of the likelihood there is a linear term, which the proof sets to zero."""

    def check(first, second, both, weights):
        like = pick(weights, "1s")
        _, hessian = maximise(lambda w: log_joint(first, w), like)
        estimate, _ = maximise(lambda w: log_likelihood(first, w), like)
        expansion = -quadratic(schur_complement(hessian, p1=2), weights["s"] - estimate["s"])
        return expansion - log_integral_in_closed_form(first, weights)

    assert spread_over_weights(on_random_problems(check)).min() > 1e-3


def test_equation_4_is_exact():
    """log p(θ1,θs|D) = log p(θ̂1,θ̂s|D) − ½ dᵀHd with d = (θ1,θs) − (θ̂1,θ̂s), p(θ̂|D) = |H/2π|^½."""

    def check(first, second, both, weights):
        weights = pick(weights, "1s")
        mode, hessian = maximise(lambda w: log_joint(first, w), weights)
        offset, _ = ravel_pytree(jax.tree.map(jnp.subtract, weights, mode))
        at_mode = 0.5 * jnp.linalg.slogdet(hessian / (2 * jnp.pi))[1]
        return (
            (log_posterior(first, mode), log_posterior(first, weights)),
            (at_mode, at_mode - quadratic(hessian, offset)),
        )

    assert_close(*on_random_problems(check))


# --- From equation 3 to equation 8 ----------------------------------------------------------------


def log_joint_of_each(first, second, weights):
    """log p1(D|θ1,θs) p(θ1,θs) + log p2(D|θ2,θs) p(θ2,θs): each model with a prior of its own."""
    return log_joint(first, pick(weights, "1s")) + log_joint(second, pick(weights, "2s"))


def test_maximising_equation_3_forgets_the_first_model():
    """max over θ1 of log p(θ1,θs|D) is −½ vᵀΩv + const, which + ½ vᵀΩv cancels: f2 stands alone."""

    def check(first, second, both, weights):
        mode, hessian = maximise(lambda w: log_joint(first, w), pick(weights, "1s"))
        omega = schur_complement(hessian, p1=2)

        def equation_3_but_for_a_constant(w):
            interaction = quadratic(omega, w["s"] - mode["s"])
            return log_joint_of_each(first, second, w) + interaction

        together, _ = maximise(equation_3_but_for_a_constant, weights)
        alone, _ = maximise(lambda w: log_joint(second, w), pick(weights, "2s"))
        return pick(together, "2s"), alone

    assert_close(*on_random_problems(check))


def test_with_a_diagonal_hessian_the_last_two_terms_of_equation_3_cancel():
    """Equation 6 prints log p(θ1,θs|D) ∝ + ε/2 Σ F v², to be grouped with ½ vᵀΩv = ½ Σ F v².

    By equation 5 the former is −½ Σ F v² with θ1 held at θ̂1, so their sum is 0 and not the penalty
    of equation 8. To have the posterior of the first model count ε' times makes the sum
    −½ (ε' − 1) Σ F v², which is equation 8 with ε = ε' − 1.
    """

    def check(first, second, both, weights):
        mode, hessian = maximise(lambda w: log_joint(first, w), pick(weights, "1s"))
        v = weights["s"] - mode["s"]
        held = mode | {"s": weights["s"]}
        equation_6 = log_posterior(first, held) - log_posterior(first, mode)
        equation_7 = quadratic(schur_complement(hessian, p1=2), v)
        penalty = jnp.sum(jnp.diag(hessian)[2:] * v**2) / 2
        return equation_6, equation_7, penalty

    equation_6, equation_7, penalty = on_random_problems(check, orthogonal=True)
    assert_close(equation_6, -penalty)
    assert_close(equation_7, penalty)


def test_with_a_diagonal_hessian_the_penalty_is_what_the_first_model_knows():
    """−log ∫ p(D|θ1,θs) p(θ1) dθ1 = ½ Σ F (θs − θ̂s)² + const, with the maximum likelihood θ̂s.

    F is the diagonal of the Hessian of −log p(D|θ1,θs). This is the factor by which the two
    readings of Lemma 1 differ, and the penalty of equation 8 at ε = 1.
    """

    def check(first, second, both, weights):
        estimate, hessian = maximise(lambda w: log_likelihood(first, w), pick(weights, "1s"))
        penalty = jnp.sum(jnp.diag(hessian)[2:] * (weights["s"] - estimate["s"]) ** 2) / 2
        return log_likelihood(first, pick(weights, "s")) + penalty

    spread = spread_over_weights(on_random_problems(check, orthogonal=True))
    assert_close(spread, np.zeros(PROBLEMS))


def descend(tx, opt_state, params, grad, steps):
    """`params` after so many updates by `tx`, in one scan."""

    def step(carry, _):
        params, opt_state = carry
        updates, opt_state = tx.update(grad(params), opt_state, params)
        return (optax.apply_updates(params, updates), opt_state), None

    (params, _), _ = jax.lax.scan(step, (params, opt_state), length=steps)
    return params


@pytest.mark.parametrize("prior_on_shared", ("once", "twice"))
def test_with_a_diagonal_hessian_wpl_finds_the_joint_map(prior_on_shared):
    """At ε = 1, α = 1/σ² the minimum of equation 8 is the joint MAP of both models.

    Count each likelihood once, as in the joint model of `test_lemma_1`: −log p(θ|D) is
    L2(θ2,θs) − log p1(D|θ1,θs) + α/2 (‖θ1‖² + ‖θ2‖² + ‖θs‖²) + const. Let the Hessian of −log p1 be
    diagonal, F on the shared block. Then −log p1 = ½ Σ F (θs − θ̂s)² + (a function of θ1), about the
    *maximum likelihood* estimate θ̂s; θ1 separates, and the rest is equation 8. The prior on θs
    counts "once", and F is the Fisher information of the likelihood, as the paper computes it.

    Equation 3 names a prior for each model, p(θ1,θs) and p(θ2,θs), and so counts that on θs
    "twice". Then the same holds with θ̂s the *MAP* of the first model and F the diagonal of Hss of
    its log posterior, which is the Fisher information + α. Either way ½ vᵀΩv adds no second
    penalty: ε = 2 would count the first model twice.
    """

    def check(first, second, both, weights):
        weights_1, weights_2 = pick(weights, "1s"), pick(weights, "2s")
        if prior_on_shared == "once":
            anchor, hessian = maximise(lambda w: log_likelihood(first, w), weights_1)
            joint_map, _ = maximise(lambda w: log_joint(both, w), weights)
        else:
            anchor, hessian = maximise(lambda w: log_joint(first, w), weights_1)
            joint_map, _ = maximise(lambda w: log_joint_of_each(first, second, w), weights)

        def loss_2(params):
            return -log_likelihood(second, params)

        fisher = {"2": jnp.zeros_like(weights["2"]), "s": jnp.diag(hessian)[2:]}
        _, curvature = maximise(lambda w: -loss_2(w), weights_2)
        steepest = jnp.linalg.eigvalsh(curvature).max() + ALPHA + fisher["s"].max()
        tx = optax.chain(
            optax.add_decayed_weights(ALPHA), wpl_jax.add_plasticity(1.0), optax.sgd(1 / steepest)
        )
        opt_state = tx.init(weights_2)
        opt_state = wpl_jax.consolidate(opt_state, weights_2 | {"s": anchor["s"]}, fisher)
        end = descend(tx, opt_state, weights_2, jax.grad(loss_2), steps=4000)
        return end, pick(joint_map, "2s")

    assert_close(*on_random_problems(check, orthogonal=True))


def test_with_any_hessian_the_exact_penalty_is_omega():
    """½ vᵀΩv in place of ½ Σ F v² makes equation 8 find the joint MAP for features of any kind.

    If θ1 is frozen at θ̂1 while the second model trains, the matrix to use is Hss. The diagonal is
    an approximation to either.
    """

    def check(first, second, both, weights):
        anchor, hessian = maximise(lambda w: log_joint(first, w), pick(weights, "1s"))
        hss = hessian[2:, 2:]

        def second_with_penalty(matrix):
            def objective(w):
                return log_joint(second, w) - quadratic(matrix, w["s"] - anchor["s"])

            return maximise(objective, pick(weights, "2s"))[0]["s"]

        def both_with_first_frozen(w):
            return log_joint_of_each(first, second, w | {"1": anchor["1"]})

        joint_map = maximise(lambda w: log_joint_of_each(first, second, w), weights)[0]["s"]
        frozen_map = maximise(both_with_first_frozen, pick(weights, "2s"))[0]["s"]
        with_omega = second_with_penalty(schur_complement(hessian, p1=2))
        with_diagonal = second_with_penalty(jnp.diag(jnp.diag(hss)))
        return (joint_map, frozen_map), (with_omega, second_with_penalty(hss)), with_diagonal

    exact, with_matrix, with_diagonal = on_random_problems(check)
    assert_close(with_matrix, exact)
    for exact_map in exact:
        assert jnp.abs(with_diagonal - exact_map).max(axis=-1).min() > 1e-3


# --- Equation 8 and the library's two forms of it -------------------------------------------------


def wpl_loss(loss_2, params, anchor, fisher, alpha, strength):
    """L_WPL = L2 + α/2 ‖θ‖² + ε/2 Σ F (θ − θ̂)², where F is zero on the private weights."""
    penalty = jax.tree.map(lambda f, p, a: jnp.sum(f * (p - a) ** 2), fisher, params, anchor)
    return (
        loss_2(params)
        + alpha / 2 * optax.tree.norm(params, squared=True)
        + strength / 2 * optax.tree.sum(penalty)
    )


STRENGTHS = (0.0, 0.5, 15.0)


def for_each_strength(check, *problems):
    """`check(strength, *problem)` for every strength and problem, compiled once."""
    over_problems = jax.vmap(check, in_axes=(None, *[0] * len(problems)))
    over_strengths = jax.vmap(over_problems, in_axes=(0, *[None] * len(problems)))
    return jax.jit(over_strengths)(jnp.array(STRENGTHS), *problems)


def tanh_network(rng):
    """A small classification problem and weights for it: a shared layer and a private one."""
    inputs, labels = rng.normal(size=(7, 3)), rng.integers(0, 4, size=7)
    return (inputs, labels), {
        "shared": {"w": rng.normal(size=(3, 5)), "b": rng.normal(size=5)},
        "private": {"w": rng.normal(size=(5, 4)), "b": rng.normal(size=4)},
    }


def cross_entropy(data, params):
    inputs, labels = data
    layer, head = params["shared"], params["private"]
    hidden = jnp.tanh(inputs @ layer["w"] + layer["b"][None, :])
    log_p = jax.nn.log_softmax(hidden @ head["w"] + head["b"][None, :])
    return -jnp.mean(jnp.take_along_axis(log_p, labels[:, None], axis=1))


def test_the_additive_form_is_the_gradient_of_equation_8():
    """And `plasticity_loss` is the last term of it, as a value and through `jax.grad`."""
    alpha = 0.1

    def problem(rng):
        (data, params), (_, anchor), (_, fisher) = (tanh_network(rng) for _ in range(3))
        fisher = {
            "shared": jax.tree.map(np.square, fisher["shared"]),
            "private": jax.tree.map(np.zeros_like, fisher["private"]),
        }
        return data, params, anchor, fisher

    def check(strength, data, params, anchor, fisher):
        tx = optax.chain(optax.add_decayed_weights(alpha), wpl_jax.add_plasticity(strength))
        opt_state = wpl_jax.consolidate(tx.init(params), anchor, fisher)

        def loss_2(params):
            return cross_entropy(data, params)

        def loss(params):
            return wpl_loss(loss_2, params, anchor, fisher, alpha, strength)

        def loss_from_the_library(params):
            decay = alpha / 2 * optax.tree.norm(params, squared=True)
            return loss_2(params) + decay + wpl_jax.plasticity_loss(opt_state, params, strength)

        updates, _ = tx.update(jax.grad(loss_2)(params), opt_state, params)
        explicit = jax.value_and_grad(loss)(params)
        return explicit, jax.value_and_grad(loss_from_the_library)(params), updates

    problems = stack([problem(np.random.default_rng(seed)) for seed in range(PROBLEMS)])
    explicit, from_the_library, updates = for_each_strength(check, *problems)
    assert_close(from_the_library, explicit, tolerance=1e-10)
    assert_close(updates, explicit[1], tolerance=1e-10)


class Quadratic(NamedTuple):
    """L2 = ½ (θ − minimum)ᵀ curvature (θ − minimum), and what the first model left behind."""

    curvature: jax.Array  # (weights, weights)
    minimum: jax.Array  # (weights,)
    anchor: jax.Array  # (weights,)
    fisher: jax.Array  # (weights,), zero on the private ones

    def loss_2(self, params):
        return quadratic(self.curvature, params - self.minimum)


def strongly_convex(rng):
    """Eigenvalues between 0.5 and 2, 0 ≤ F ≤ 1."""
    rotation = np.linalg.qr(rng.normal(size=(6, 6)))[0]
    return Quadratic(
        curvature=rotation * np.linspace(0.5, 2, 6) @ rotation.T,
        minimum=rng.normal(size=6),
        anchor=rng.normal(size=6),
        fisher=np.concatenate([[1.0], rng.uniform(size=3), [0.0, 0.0]]),
    )


def ends_and_gradients(form, strength_of_the_loss=lambda strength: strength):
    """Where `form(strength)` comes to rest on convex problems, and the gradient of equation 8."""

    def check(strength, problem):
        tx = form(strength)
        start = jnp.zeros_like(problem.minimum)
        opt_state = wpl_jax.consolidate(tx.init(start), problem.anchor, problem.fisher)
        end = descend(tx, opt_state, start, jax.grad(problem.loss_2), steps=2000)

        def loss(params):
            eps = strength_of_the_loss(strength)
            return wpl_loss(problem.loss_2, params, problem.anchor, problem.fisher, 0.0, eps)

        return end, jax.grad(loss)(end)

    problems = [strongly_convex(np.random.default_rng(seed)) for seed in range(PROBLEMS)]
    return for_each_strength(check, stack(problems))


@pytest.mark.parametrize("momentum", (0.0, 0.8))
def test_additive_and_proximal_forms_share_their_fixed_point(momentum):
    """Both come to rest at the minimum of equation 8, given the right learning rate.

    After the inner optimiser's update u, the proximal form is θ ← (θ + u + c F θ̂) / (1 + c F) with
    c = ε × its learning rate. It rests where u = c F (θ − θ̂). Plain SGD has u = −lr g, hence
    g + ε F (θ − θ̂) = 0 for c = ε lr. Heavy-ball momentum μ adds up the gradients of the past, which
    makes u = −lr/(1−μ) g at rest, and needs c = ε lr/(1−μ).
    """
    sgd = optax.sgd(0.1, momentum=momentum)
    rate = 0.1 / (1 - momentum)

    def additive(strength):
        return optax.chain(wpl_jax.add_plasticity(strength), sgd)

    def proximal(strength):
        return optax.chain(sgd, wpl_jax.proximal_plasticity(strength, learning_rate=rate))

    end_additive, gradient_additive = ends_and_gradients(additive)
    end_proximal, gradient_proximal = ends_and_gradients(proximal)
    assert_close(gradient_additive, jnp.zeros_like(gradient_additive))
    assert_close(gradient_proximal, jnp.zeros_like(gradient_proximal))
    assert_close(end_proximal, end_additive)


def test_the_proximal_form_with_momentum_and_the_bare_learning_rate():
    """Given lr in place of lr/(1−μ), it rests at the minimum of equation 8 for (1 − μ) ε."""
    sgd = optax.sgd(0.1, momentum=0.8)

    def proximal(strength):
        return optax.chain(sgd, wpl_jax.proximal_plasticity(strength, learning_rate=0.1))

    _, gradient = ends_and_gradients(proximal, lambda strength: (1 - 0.8) * strength)
    assert_close(gradient, jnp.zeros_like(gradient))


def distances(form, learning_rate, products):
    """How far from the anchor ε = product / lr ends, after 300 steps on ‖θ − θ̂‖² / 2 from one away.

    max F is one, so that `products` are the values of lr · ε · max F.
    """
    anchor, fisher = jnp.zeros(3), jnp.array([0.0, 0.5, 1.0])

    def distance(strength):
        tx = form(strength)
        opt_state = wpl_jax.consolidate(tx.init(anchor), anchor, fisher)
        end = descend(tx, opt_state, jnp.ones(3), lambda params: params, steps=300)
        return jnp.abs(end).max()

    return jax.jit(jax.vmap(distance))(jnp.array(products) / learning_rate)


def test_the_additive_form_diverges_beyond_two():
    """A step on ε/2 F (θ − θ̂)² scales the distance by 1 − lr ε F: stable for lr · ε · max F < 2."""

    def additive(strength):
        return optax.chain(wpl_jax.add_plasticity(strength), optax.sgd(0.1))

    below, above = (0.5, 1.0, 1.8), (2.01, 2.1, 10.0)
    assert distances(additive, 0.1, below).max() < 1e-8
    assert distances(additive, 0.1, above).min() > 1e8


def test_the_proximal_form_is_stable_for_every_strength():
    """It divides the distance by 1 + lr ε F."""

    def proximal(strength):
        return optax.chain(optax.sgd(0.1), wpl_jax.proximal_plasticity(strength, 0.1))

    assert distances(proximal, 0.1, (0.5, 1.8, 2.1, 10.0, 1e8)).max() < 1e-8
