"""conv(a) and conv(a, m): the dense builders against the definition, the products against the dense builders."""

import numpy as np
import pytest

from refattn.convbasis import conv_matrix, conv_product, subconv_matrix, subconv_product
from refattn.testing import tolerance

LENGTHS = [1, 2, 3, 63, 64, 65, 127, 500]


def defined_entry(a, i, j, m, n):
    """Entry (i, j) of conv(a, m) by the definition: zero outside the bottom-right block and above the diagonal."""
    return a[i - j] if i >= j >= n - m else 0.0


@pytest.mark.parametrize("m", [1, 4, 7], ids="m={}".format)
def test_dense_subconv_is_the_definition_entry_by_entry(m):
    a = np.random.default_rng(0).standard_normal(7)
    expected = [[defined_entry(a, i, j, m, 7) for j in range(7)] for i in range(7)]
    np.testing.assert_array_equal(subconv_matrix(a, m), expected)


def test_conv_is_subconv_of_full_size():
    a = np.random.default_rng(1).standard_normal(9)
    np.testing.assert_array_equal(conv_matrix(a), subconv_matrix(a, 9))


@pytest.mark.parametrize("dtype", [np.float64, np.float32], ids=["f64", "f32"])
@pytest.mark.parametrize("method", ["fft", "direct"])
@pytest.mark.parametrize("n", LENGTHS, ids="n={}".format)
def test_conv_product_equals_the_dense_product(n, method, dtype):
    rng = np.random.default_rng(n)
    a, x = rng.standard_normal(n).astype(dtype), rng.standard_normal((n, 3)).astype(dtype)
    expected = conv_matrix(a.astype(np.float64)) @ x.astype(np.float64)
    product = conv_product(a, x, method=method)
    assert product.dtype == dtype
    np.testing.assert_allclose(product, expected, rtol=0, atol=tolerance("reordered", dtype).rtol * n**0.5)


@pytest.mark.parametrize("method", ["fft", "direct"])
@pytest.mark.parametrize(("n", "m"), [(5, 1), (5, 5), (64, 33), (301, 300)], ids=str)
def test_subconv_product_equals_the_dense_product_and_is_zero_above(n, m, method):
    rng = np.random.default_rng(n)
    a, x = rng.standard_normal(n), rng.standard_normal(n)
    product = subconv_product(a, m, x, method=method)
    assert not product[: n - m].any()
    np.testing.assert_allclose(product, subconv_matrix(a, m) @ x, rtol=0, atol=1e-12)


@pytest.mark.parametrize("method", ["fft", "direct"])
def test_products_are_additive_in_the_kernel(method):
    rng = np.random.default_rng(2)
    a, b, x = rng.standard_normal((3, 100))
    total = subconv_product(a, 60, x, method=method) + subconv_product(b, 60, x, method=method)
    np.testing.assert_allclose(total, subconv_product(a + b, 60, x, method=method), rtol=0, atol=1e-12)


def test_direct_product_of_integers_is_exact():
    rng = np.random.default_rng(3)
    a, x = rng.integers(-9, 9, (2, 50)).astype(float)
    np.testing.assert_array_equal(conv_product(a, x, method="direct"), conv_matrix(a) @ x)


def test_fft_loses_small_rows_and_the_direct_product_does_not():
    """The reason for the row guard: the FFT's error is relative to the largest entry of the product."""
    a = np.exp(np.linspace(-60.0, 0.0, 4096))
    exact = np.cumsum(a)
    ones = np.ones(4096)
    assert np.abs(conv_product(a, ones, method="fft") / exact - 1).max() > 1
    np.testing.assert_allclose(conv_product(a, ones, method="direct"), exact, rtol=1e-12)


@pytest.mark.parametrize("backend", ["scipy", "pyfftw"])
def test_both_fft_backends_give_the_product(backend, monkeypatch):
    if backend == "pyfftw":
        pytest.importorskip("pyfftw", reason="needs pyFFTW")
    monkeypatch.setenv("REFATTN_FFT", backend)
    a, x = np.random.default_rng(4).standard_normal((2, 77))
    np.testing.assert_allclose(conv_product(a, x), conv_matrix(a) @ x, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: conv_product([1.0, 2.0], [1.0, 2.0, 3.0]), r"x: shape \(3,\) came, \(2,\) or \(2, d\)"),
        (lambda: conv_product([[1.0]], [1.0]), r"a: shape \(1, 1\) came, \(n,\)"),
        (lambda: conv_product([], []), r"a: shape \(0,\) came"),
        (lambda: conv_product([1.0], [1.0], method="fast"), "method: 'fast' came, one of 'fft', 'direct'"),
        (lambda: conv_product([1.0, np.nan], [1.0, 1.0]), r"a: nan at index \(1,\)"),
        (lambda: subconv_product([1.0, 2.0], 3, [1.0, 2.0]), r"m: 3 came, at least 1 and at most 2 \(n\)"),
        (lambda: subconv_matrix([1.0, 2.0], 0), "m: 0 came"),
    ],
    ids=["x-length", "a-rank", "empty", "method", "nan", "m-large", "m-zero"],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
