"""Polynomials near exp, their monomial features and the bound on their error; positive random features."""

from __future__ import annotations

import itertools
import math

import mpmath
import numpy as np
import pytest

from refattn.lowrank import (
    EluFeatures,
    PolynomialFeatures,
    RandomFeatures,
    degree_for,
    logit_bound,
    monomial_rank,
    paper_rank,
    polynomial_coefficients,
    polynomial_error,
    polynomial_rounding,
)
from refattn.testing import check_gradients, check_jacobian

KINDS = ("taylor", "chebyshev")
CASES = [(0.5, 2), (1.0, 3), (1.0, 5), (2.0, 6), (2.0, 9), (4.0, 10), (4.0, 14)]


def bounded_pairs(count, width, bound, seed):
    """Rows q_i, k_i with ‖q_i‖ ‖k_i‖ ≤ bound: some random, some nearly parallel or opposite."""
    rng = np.random.default_rng(seed)
    q, k = rng.standard_normal((2, count, width))
    k[count // 4 :] = rng.choice([-1, 1], (count - count // 4, 1)) * q[count // 4 :] + 0.05 * k[count // 4 :]
    for x in (q, k):
        x *= math.sqrt(bound) / np.linalg.norm(x, axis=1, keepdims=True)
    return q * rng.random((count, 1)) ** 0.3, k


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("bound", "degree"), CASES)
def test_the_bound_holds_on_ten_thousand_bounded_inputs_and_is_tight(kind, bound, degree):
    features = PolynomialFeatures(3, degree, bound, scale=1.0, kind=kind)
    q, k = bounded_pairs(10_000, 3, bound, seed=degree)
    u1, u2 = features.factors(q, k)
    exact = np.exp((q * k).sum(axis=1))
    worst = np.abs((u1 * u2).sum(axis=1) / exact - 1).max()
    assert features.error / 10 <= worst <= features.error * (1 + 1e-9) + 1e-14 * math.exp(2 * bound)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_the_error_includes_rounding_where_logits_are_large(kind):
    for bound, degree in ((6.0, 36), (9.0, 48), (12.0, 60)):
        features = PolynomialFeatures(2, degree, bound, scale=1.0, kind=kind)
        q, k = bounded_pairs(10_000, 2, bound, seed=degree)
        u1, u2 = features.factors(q, k)
        worst = np.abs((u1 * u2).sum(axis=1) / np.exp((q * k).sum(axis=1)) - 1).max()
        assert 1e-12 < worst <= features.error
        assert polynomial_rounding(degree, bound, features.rank, kind=kind) > polynomial_error(degree, bound, kind=kind)


@pytest.mark.parametrize("kind", KINDS)
def test_the_bound_covers_the_polynomial_everywhere_in_fifty_digits(kind):
    with mpmath.workdps(50):
        for bound, degree in CASES:
            coefficients = [mpmath.mpf(float(a)) for a in polynomial_coefficients(degree, bound, kind=kind)]
            points = [mpmath.mpf(bound) * mpmath.cos(mpmath.pi * i / 400) for i in range(401)]
            values = [mpmath.fsum(a * x**power for power, a in enumerate(coefficients)) for x in points]
            errors = [abs(value / mpmath.exp(x) - 1) for value, x in zip(values, points, strict=True)]
            found = float(max(errors))
            stated = polynomial_error(degree, bound, kind=kind)
            assert found <= stated * (1 + 1e-6) + 1e-14
            assert found >= stated / 10
            if kind == "taylor":
                assert math.isclose(found, stated, rel_tol=1e-6)


def test_the_error_of_taylor_is_its_integral():
    for bound, degree in CASES:
        integral = mpmath.quad(lambda s, g=degree, b=bound: s**g * mpmath.exp(s * b), [0, 1])
        exact = mpmath.mpf(bound) ** (degree + 1) / mpmath.factorial(degree) * integral
        assert math.isclose(polynomial_error(degree, bound, kind="taylor"), float(exact), rel_tol=1e-12)


def test_the_coefficients_of_chebyshev_are_those_of_its_series():
    x = np.linspace(-2, 2, 9)
    series = mpmath.besseli(0, 2) + 2 * sum(mpmath.besseli(m, 2) * mpmath.chebyt(m, x[3] / 2) for m in range(1, 8))
    found = np.polynomial.polynomial.polyval(x[3], polynomial_coefficients(7, 2.0))
    assert math.isclose(found, float(series), rel_tol=1e-13)


@pytest.mark.parametrize("kind", KINDS)
def test_the_degree_is_the_smallest_that_serves(kind):
    for bound, error in itertools.product((0.1, 1.0, 5.0), (0.5, 1e-3, 1e-8)):
        degree = degree_for(error, bound, kind=kind)
        assert polynomial_error(degree, bound, kind=kind) <= error
        assert degree == 0 or polynomial_error(degree - 1, bound, kind=kind) > error


def test_chebyshev_needs_no_higher_degree_than_taylor():
    for bound, error in itertools.product((0.1, 1.0, 5.0), (0.1, 1e-3, 1e-8)):
        assert degree_for(error, bound) <= degree_for(error, bound, kind="taylor")


@pytest.mark.parametrize(("width", "degree"), [(1, 0), (1, 5), (2, 3), (5, 4)])
def test_the_features_are_all_monomials_and_the_rank_is_their_number(width, degree):
    features = PolynomialFeatures(width, degree, 1.0, scale=1.0, kind="taylor")
    exponents = [e for e in itertools.product(range(degree + 1), repeat=width) if sum(e) <= degree]
    assert features.rank == len(exponents) == monomial_rank(width, degree) <= paper_rank(width, degree)
    x = np.random.default_rng(0).uniform(0.1, 0.4, (1, width))
    u1, _ = features.factors(x, x)
    # (1/m!) m!/α! x^{2α} = x^{2α}/α!
    right = sorted(
        math.prod(float(x[0, a]) ** e / math.sqrt(math.factorial(e)) for a, e in enumerate(es)) for es in exponents
    )
    np.testing.assert_allclose(np.sort(u1[0]), right, rtol=1e-13)


def test_the_papers_rank_counts_the_monomials_of_both():
    for width, degree in ((1, 1), (1, 2), (2, 2)):
        both = [e for e in itertools.product(range(2 * degree + 1), repeat=2 * width) if sum(e) <= 2 * degree]
        assert paper_rank(width, degree) == len(both)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("scale", [None, 0.3, -0.3])
def test_the_factors_multiply_to_the_polynomial(kind, scale):
    rng = np.random.default_rng(1)
    q, k = rng.uniform(-0.4, 0.4, (2, 2, 9, 5))
    features = PolynomialFeatures(5, 6, 1.0, scale=scale, kind=kind)
    u1, u2 = features.factors(q, k)
    x = features.scale * q @ k.swapaxes(-1, -2)
    right = np.polynomial.polynomial.polyval(x, polynomial_coefficients(6, 1.0, kind=kind))
    np.testing.assert_allclose(u1 @ u2.swapaxes(-1, -2), right, rtol=1e-13)


@pytest.mark.parametrize(
    "features",
    [
        PolynomialFeatures(3, 4, 20.0),
        PolynomialFeatures(3, 4, 20.0, scale=-0.7, kind="taylor"),
        EluFeatures(3),
        RandomFeatures(3, 7, seed=0),
        RandomFeatures(3, 7, seed=0, scale=-0.7, orthogonal=False),
    ],
    ids=["chebyshev", "taylor", "elu", "random", "random-negative"],
)
def test_the_pullback_is_the_derivative(features):
    rng = np.random.default_rng(2)
    inputs = dict(zip("qk", rng.standard_normal((2, 4, 3)), strict=True))

    def function(q, k):
        return np.stack(features.factors(q, k))

    def gradients(upstream):
        found = features.pullback(inputs["q"], inputs["k"], *function(**inputs), *upstream)
        return dict(zip("qk", found, strict=True))

    check_gradients(function, gradients, inputs, rtol=1e-7)
    check_jacobian(function, gradients, inputs, rtol=1e-7)


def test_the_norms_bound_every_logit():
    rng = np.random.default_rng(3)
    for _ in range(200):
        q, k = rng.standard_cauchy((2, 6, 4))
        bound = logit_bound(q, k)
        assert np.abs(q @ k.T / 2).max() <= bound * (1 + 1e-12)
        assert bound <= np.abs(q).max() * np.abs(k).max() * 2 * (1 + 1e-12)  # the paper's, d ‖Q‖_∞ ‖K‖_∞ / √d
    assert logit_bound([[2.0]], [[3.0]], scale=-1.0) == 6.0


def test_logits_outside_the_bound_are_refused_with_the_rows_that_allow_them():
    q, k = np.full((4, 2), 0.1), np.full((5, 2), 0.1)
    q[2], k[3] = 1.0, 1.0
    with pytest.raises(ValueError, match=r"logits up to 1.41421 \(largest norms at query 2 and key 3\), .* bound 1 "):
        PolynomialFeatures(2, 3, 1.0).factors(q, k)


def test_an_absurd_rank_is_refused_with_the_estimate():
    with pytest.raises(
        MemoryError, match=r"degree: 8 came with width 64: rank 1.2e\+10 .* 9.13e\+04 MiB for every row"
    ):
        PolynomialFeatures(64, 8, 2.0)
    features = PolynomialFeatures(8, 8, 1.0)
    with pytest.raises(MemoryError, match=r"features: 2000000 rows of rank 12870: about .* GiB of memory"):
        features.factors(*np.broadcast_to(np.zeros(8), (2, 1_000_000, 8)))
    with pytest.raises(MemoryError, match="rank, width: 1000000000000 random features of width 4"):
        RandomFeatures(4, 10**12, seed=0)


def test_an_error_that_no_degree_reaches_is_refused():
    with pytest.raises(ValueError, match=r"error: 1e-06 came, but degree 60 on \[−50, 50\] reaches only"):
        degree_for(1e-6, 50.0)


def test_an_error_that_rounding_leaves_no_room_for_is_refused():
    with pytest.raises(ValueError, match=r"error: 1e-08 came, but on \[−12, 12\] with rank \d+ float64 reaches only"):
        PolynomialFeatures.for_error(2, 1e-8, 12.0)
    assert PolynomialFeatures.for_error(2, 1e-8, 2.0).error <= 1e-8


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: polynomial_error(-1, 1.0), ValueError, "degree: -1"),
        (lambda: polynomial_error(61, 1.0), ValueError, "degree: 61"),
        (lambda: polynomial_error(3, 0.0), ValueError, "bound: 0.0"),
        (lambda: polynomial_error(3, 51.0), ValueError, "bound: 51.0"),
        (lambda: polynomial_error(3, 1.0, kind="pade"), ValueError, "'taylor', 'chebyshev'"),
        (lambda: degree_for(0.0, 1.0), ValueError, "error: 0.0"),
        (lambda: PolynomialFeatures(0, 3, 1.0), ValueError, "width: 0"),
        (lambda: PolynomialFeatures(2, 3, 1.0).factors(np.ones((3, 3)), np.ones((3, 2))), ValueError, "q: shape"),
        (lambda: PolynomialFeatures(2, 3, 1.0).factors(np.ones((3, 2)), np.full((3, 2), np.inf)), ValueError, "k: inf"),
        (lambda: RandomFeatures(2, 0, seed=0), ValueError, "rank: 0"),
        (lambda: RandomFeatures(2, 4, seed=-1), ValueError, "seed: -1"),
        (lambda: RandomFeatures(1, 8, seed=0, scale=1.0).factors([[40.0]], [[1e200]]), ValueError, "overflow"),
        (lambda: logit_bound(np.ones((2, 3)), np.ones((2, 2))), ValueError, "k: shape"),
        (lambda: monomial_rank(0, 2), ValueError, "width: 0"),
    ],
)
def test_bad_input_is_refused(call, error, message):
    with pytest.raises(error, match=message):
        call()


@pytest.mark.parametrize("orthogonal", [True, False], ids=["orthogonal", "independent"])
def test_random_features_are_unbiased(orthogonal):
    rng = np.random.default_rng(4)
    q, k = 0.6 * rng.standard_normal((2, 5, 4))
    estimates = []
    for seed in range(2000):
        u1, u2 = RandomFeatures(4, 8, seed=seed, orthogonal=orthogonal).factors(q, k)
        estimates.append(u1 @ u2.T)
    exact, spread = np.exp(q @ k.T / 2), np.std(estimates, axis=0) / math.sqrt(2000)
    assert (np.abs(np.mean(estimates, axis=0) - exact) <= 4.5 * spread).all()


@pytest.mark.slow
def test_the_variance_of_independent_random_features_is_the_stated_one_and_orthogonal_ones_have_less():
    rng = np.random.default_rng(5)
    q, k = 0.3 * rng.standard_normal((2, 4, 6))
    exact = np.exp(q @ k.T / math.sqrt(6))
    variance = {}
    for orthogonal in (True, False):
        draws = [RandomFeatures(6, 6, seed=s, orthogonal=orthogonal).factors(q, k) for s in range(4000)]
        variance[orthogonal] = np.var([u1 @ u2.T for u1, u2 in draws], axis=0) / exact**2
    stated = RandomFeatures(6, 6, seed=0).relative_variance(q, k)
    np.testing.assert_allclose(variance[False], stated, rtol=0.2)
    assert variance[True].mean() < variance[False].mean()


def test_attention_factors_of_random_features_differ_by_what_cancels():
    rng = np.random.default_rng(6)
    q, k = rng.standard_normal((2, 5, 3))
    features = RandomFeatures(3, 6, seed=1)
    plain, shifted = features.factors(q, k), features.attention_factors(q, k)
    for ratio in (shifted[0] / plain[0], (shifted[1] / plain[1]).reshape(1, -1)):
        np.testing.assert_allclose(ratio, np.broadcast_to(ratio[:, :1], ratio.shape), rtol=1e-12)
