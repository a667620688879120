"""Low-rank attention at the edge of the numbers: right or refused, forward and backward; so are its parts."""

from fractions import Fraction

import numpy as np
import pytest

from refattn import Causal, dense_attention
from refattn.lowrank import (
    PolynomialFeatures,
    RandomFeatures,
    attention,
    guard,
    logit_bound,
    lowrank_attention_backward,
    lowrank_attention_forward,
    masked_product,
    masked_product_backward,
    masked_product_forward,
    monomial_rank,
    polynomial_coefficients,
    shifted_groups,
    sliding_window,
)

N = 20


@pytest.mark.slow
@pytest.mark.parametrize("method", ["fast", "paper", "oracle"])
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("kind", ["small", "all equal", "one-hot", "zero", "subnormal"])
def test_within_the_error_and_finite(kind, dtype, method):
    rng = np.random.default_rng(0)
    q, k = {
        "small": lambda: 0.3 * rng.standard_normal((2, N, 2)),
        "all equal": lambda: np.full((2, N, 2), 0.7),
        "one-hot": lambda: np.eye(N, 2) * np.ones((2, 1, 1)),
        "zero": lambda: np.zeros((2, N, 2)),
        "subnormal": lambda: 1e-310 * rng.standard_normal((2, N, 2)),
    }[kind]().astype(dtype)
    v = rng.standard_normal((N, 3)).astype(dtype)
    out, cache = lowrank_attention_forward(q, k, v, error=1e-4, method=method)
    np.testing.assert_allclose(out, dense_attention(q, k, v), rtol=0, atol=1e-4 * np.abs(v).max())
    assert all(np.isfinite(one).all() for one in lowrank_attention_backward(np.ones_like(out), cache))


@pytest.mark.parametrize("method", ["fast", "paper", "oracle"])
@pytest.mark.parametrize("size", [1e2, 1e150, 1e300])
def test_logits_that_the_features_do_not_serve_are_refused(size, method):
    """±1e4 and ±1e300: far outside what a polynomial serves."""
    q = np.full((N, 1), size)
    for kind in ({"error": 1e-3}, {"features": PolynomialFeatures(1, 4, 1.0)}):
        with pytest.raises(ValueError, match=r"^q, k: norms allow logits up to "):
            lowrank_attention_forward(q, -q, q, method=method, **kind)


def test_random_features_are_finite_or_refused():
    features = RandomFeatures(1, 16, 0)
    q = np.full((N, 1), 1e160)
    with pytest.raises(ValueError, match=r"^q: the exponent of a random feature overflows"):
        features.factors(q, q)
    assert all(np.isfinite(one).all() for one in features.factors(q * 1e-158, q * 1e-158))


@pytest.mark.parametrize("method", ["fast", "paper", "oracle"])
def test_a_product_or_gradient_that_overflows_is_refused(method):
    u = np.full((N, 2), 1e200)
    with pytest.raises(ValueError, match=r"^u1, u2, v: product: "):
        masked_product(u, u, u, mask=Causal(), method=method)
    _, cache = masked_product_forward(u, 1 / u, u, mask=Causal(), method=method)
    with pytest.raises(ValueError, match=r"^dout: gradient of "):
        masked_product_backward(u, cache)


def test_a_bound_on_logits_neither_overflows_nor_vanishes_early():
    q = np.array([[3e-300, 4e-300]])
    assert logit_bound(q, [[0.0, 1e10]], scale=1.0) >= 4e-290
    assert logit_bound([[3e300, 4e300]], [[0.0, 1e-300]], scale=1.0) == pytest.approx(4.0)
    assert logit_bound([[1e300]], [[1e300]]) == np.inf


def test_a_series_on_a_tiny_interval_is_taylors():
    """B⁶⁰ vanishes for B below 1e-6: zero divided by zero."""
    coefficients = polynomial_coefficients(60, 1e-9)
    np.testing.assert_allclose(coefficients[:5], polynomial_coefficients(4, 1e-9, kind="taylor"), rtol=1e-6)
    assert np.isfinite(coefficients).all()


def test_orthogonal_features_are_made_at_once():
    """Half a million groups, one after the other, took minutes."""
    made = RandomFeatures(2, 100_001, 0).projections
    assert made.shape == (100_001, 2)
    assert np.abs((made[:-1:2] * made[1::2]).sum(axis=1)).max() < 1e-12


def test_few_orthogonal_features_of_great_width_take_no_square_of_it():
    made = RandomFeatures(100_000, 3, 0).projections  # a square would take 80 GB
    products = made @ made.T
    assert np.abs(products - np.diag(np.diag(products))).max() < 1e-9 * products.max()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        pytest.param(lambda: monomial_rank(10**30, 10**30), "^width, degree: ", id="rank of astronomic size"),
        pytest.param(lambda: sliding_window(2**40, 3), "^n: a mask of ", id="window too long for memory"),
        pytest.param(lambda: sliding_window(10**30, 3), "^n: ", id="window too long for an index"),
        pytest.param(lambda: shifted_groups(2**40, 3), "^n: a mask of ", id="groups too long for memory"),
        pytest.param(lambda: RandomFeatures(2**40, 2, 0), "^rank, width: ", id="features too wide"),
        pytest.param(lambda: PolynomialFeatures(2**40, 0, 1.0), "^width: ", id="polynomial too wide"),
        pytest.param(lambda: PolynomialFeatures(1, 6, 1.0, scale=1e300), "^scale: ", id="scale too large"),
    ],
)
def test_what_would_not_fit_is_refused_by_name(call, message):
    with pytest.raises((ValueError, MemoryError), match=message):
        call()


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("exponents", [0, -5000, 5000])
def test_sums_of_products_have_exponents_of_their_own_where_no_number_holds_them(axis, exponents):
    x, y = np.random.default_rng(0).uniform(-1, 1, (2, 5, 3))
    decades = np.array([-300, 0, 300])
    x, y = x * 10.0**decades, y * 10.0**decades
    y[:, 1], y[2] = 0, 0
    came, of_came = guard._sum_of_products(x, y, axis=axis, exponents=exponents)
    one, other = ([[Fraction(float(entry)) for entry in row] for row in array] for array in (x, y))
    terms = np.array([[a * b for a, b in zip(*rows, strict=True)] for rows in zip(one, other, strict=True)])
    right = terms.sum(axis=axis) * Fraction(2) ** exponents
    assert came.shape == of_came.shape == right.shape
    for value, exponent, wanted, size in zip(came, of_came, right, np.abs(terms).sum(axis=axis), strict=True):
        error = Fraction(float(value)) * Fraction(2) ** int(exponent) - wanted
        assert abs(error) <= size * Fraction(2) ** (exponents - 48)


def test_a_quotient_of_rows_with_exponents_is_that_of_the_numbers_they_stand_for():
    values, exponents = np.array([[3.0, 5.0, 2.0], [1.0, -4.0, 8.0]]), np.array([[2000, -3, 1998], [0, 7, -1]])
    found = attention._quotients(guard.Rows(values, exponents, 0), np.array([True, True]))
    np.testing.assert_array_equal(found, [[6.0, 0.0], [0.25, -128.0]])
    found = attention._quotients(guard.Rows(values, None, 0), np.array([True, False]))
    np.testing.assert_array_equal(found, [[1.5, 2.5], [0.0, 0.0]])
