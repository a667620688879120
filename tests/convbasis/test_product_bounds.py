"""The error that the Toeplitz products promise, on numbers spread over twenty decades with zeros among them."""

import numpy as np
import pytest

from refattn.convbasis import conv_product, correlation, subconv_product
from refattn.convbasis.toeplitz import TOLERANCE, fft_correlation, fft_product

CASES = 500
DTYPES = pytest.mark.parametrize("dtype", ["float64", "float32"])


def spread(rng, shape, dtype):
    """Numbers over twenty decades, a column a decade or so of its own, some of them, and at times whole ends, zero."""
    *_, columns = shape
    decades = rng.choice([0, 3, 20], size=columns)
    x = rng.choice([-1.0, 1.0], shape) * 10.0 ** (decades * rng.uniform(-0.5, 0.5, shape) + rng.uniform(-8, 8, columns))
    x[rng.random(shape) < rng.choice([0.0, 0.3, 0.95])] = 0
    cut = int(rng.integers(0, shape[0] + 1))
    match rng.integers(0, 4):
        case 0:
            x[:cut] = 0
        case 1:
            x[cut:] = 0
    return np.clip(x, -1e18, 1e18).astype(dtype)


def toeplitz(a):
    lag = np.arange(a.size)[:, None] - np.arange(a.size)
    return np.where(lag >= 0, a[np.maximum(lag, 0)], 0)


def length(rng):
    return int(rng.choice([1, 2, 3, 17, 64, 65, 130]))


def require_within(found, right, size, dtype):
    """Every column within the promised share of its largest size, whatever the others are."""
    tiny = float(np.finfo(dtype).tiny)  # what vanishes in the dtype is no error
    bound = TOLERANCE[dtype] * size.max(axis=0) + tiny * len(size)
    assert found.dtype == dtype
    assert (np.abs(found - right) <= bound).all()


def product_case(seed, dtype):
    rng = np.random.default_rng(seed)
    n = length(rng)
    return rng, spread(rng, (n, 1), dtype)[:, 0], spread(rng, (n, 3), dtype)


@DTYPES
def test_the_error_of_a_product_is_small_beside_the_largest_size_of_its_column(dtype):
    for seed in range(CASES):
        _, a, x = product_case(seed, dtype)
        matrix, wide = toeplitz(a.astype(np.longdouble)), x.astype(np.longdouble)
        require_within(conv_product(a, x), matrix @ wide, np.abs(matrix) @ np.abs(wide), dtype)


@DTYPES
def test_the_error_of_a_block_is_small_beside_the_largest_size_of_its_column(dtype):
    for seed in range(CASES):
        rng, a, x = product_case(seed, dtype)
        m = int(rng.integers(1, a.size + 1))
        matrix, wide = toeplitz(a[:m].astype(np.longdouble)), x[a.size - m :].astype(np.longdouble)
        found = subconv_product(a, m, x)
        assert not found[: a.size - m].any()
        require_within(found[a.size - m :], matrix @ wide, np.abs(matrix) @ np.abs(wide), dtype)


def correlated(a, b):
    m, s = len(a), len(b)
    padded = np.concatenate([a, np.zeros_like(b)]).astype(np.longdouble)
    return np.array([(padded[t : t + s] * b).sum() for t in range(m)])


@DTYPES
def test_the_error_of_a_correlation_is_small_beside_its_largest_size(dtype):
    for seed in range(CASES):
        rng = np.random.default_rng(seed)
        m = length(rng)
        a, b = spread(rng, (m, 3), dtype), spread(rng, (int(rng.integers(1, m + 1)), 3), dtype)
        require_within(correlation(a, b), correlated(a, b), correlated(np.abs(a), np.abs(b)), dtype)


@pytest.mark.slow
@DTYPES
def test_a_transform_alone_does_not_keep_the_promise(dtype):
    """The cases have power: without the guard some break the bound."""
    broken = {"product": 0, "correlation": 0}
    for seed in range(CASES):
        _, a, x = product_case(seed, dtype)
        matrix = toeplitz(np.abs(a.astype(np.longdouble)))
        error = np.abs(fft_product(a, x) - toeplitz(a.astype(np.longdouble)) @ x)
        broken["product"] += bool((error > TOLERANCE[dtype] * (matrix @ np.abs(x)).max(axis=0)).any())
        error = np.abs(fft_correlation(a[:, None], x[:, :1]) - correlated(a[:, None], x[:, :1]))
        largest = correlated(np.abs(a[:, None]), np.abs(x[:, :1])).max()
        broken["correlation"] += bool((error > TOLERANCE[dtype] * largest).any())
    assert min(broken.values()) > 0


def test_entries_that_are_cut_off_do_not_drown_those_that_are_kept():
    a, x = np.ones(64), np.zeros(64)
    a[-1], x[-2:] = 1e14, 1.0
    np.testing.assert_array_equal(conv_product(a, x)[-2:], [1.0, 2.0])
    np.testing.assert_array_equal(correlation(a[::-1, None], [[0.0], [1.0], [1.0]])[-3:], [2.0, 1.0, 0.0])


def test_columns_of_a_correlation_far_apart_in_size_are_each_transformed_near_one():
    a, b = np.array([[1e-30, 0.0], [1e-30, 1e30]], np.float32), np.array([[1e-8, 0.0]], np.float32)
    np.testing.assert_allclose(correlation(a, b), [1e-38, 1e-38], rtol=1e-5)


@DTYPES
def test_ordinary_numbers_are_transformed(dtype, monkeypatch):
    """The definition is for the others: it would take O(n²)."""
    monkeypatch.setattr("refattn.convbasis.toeplitz._conv_direct", None)
    monkeypatch.setattr("refattn.convbasis.toeplitz._correlation_direct", None)
    for n in (1, 2, 63, 4096, 100_000):
        rng = np.random.default_rng(n)
        a, x = rng.standard_normal(n).astype(dtype), rng.standard_normal((n, 2)).astype(dtype)
        conv_product(a, x)
        correlation(x, x[: max(1, n // 3)])
        conv_product(np.eye(1, n, n - 1, dtype=dtype)[0], np.eye(n, 1, dtype=dtype))
