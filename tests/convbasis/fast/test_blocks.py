"""The block transform as a matrix: products, transposed products, row and column sums."""

import numpy as np
import pytest

from refattn.convbasis import ConvBasis
from refattn.convbasis.fast.blocks import BlockProduct

DTYPES = [np.float64, np.float32]
BLOCKS = [1, 2, 7, 8, 33, 64, 300]


def problem(n, starts, seed=0, dtype=np.float64):
    rng = np.random.default_rng(seed)
    kernels = rng.standard_normal((len(starts), n))
    kernels[np.arange(n) >= n - np.array(starts)[:, None]] = 0
    basis = ConvBasis(starts, kernels.astype(dtype))
    x, y = rng.standard_normal((2, n, 5)).astype(dtype)
    return basis, np.tril(np.exp(basis.to_dense().astype(np.float64))), x, y


@pytest.mark.parametrize("dtype", DTYPES, ids=["float64", "float32"])
@pytest.mark.parametrize("strict", [False, True], ids=["", "strict"])
@pytest.mark.parametrize("block", BLOCKS)
def test_products_equal_the_dense_matrix(block, strict, dtype):
    basis, dense, x, y = problem(257, [0, 3, 64, 200, 256], dtype=dtype)
    if strict:
        dense = np.tril(dense, -1)
    product = BlockProduct(basis.starts, basis.kernels, block, strict=strict)
    dense = dense * np.exp(-product.shift)
    tolerance = {"rtol": 0, "atol": 300 * np.finfo(dtype).eps * dense.sum(axis=1).max()}
    np.testing.assert_allclose(product.product(x), dense @ x, **tolerance)
    np.testing.assert_allclose(product.product(y, transposed=True), dense.T @ y, **tolerance)
    sums = {"rtol": 40 * np.finfo(dtype).eps}
    np.testing.assert_allclose(product.row_sums(), dense.sum(axis=1), **sums)
    np.testing.assert_allclose(product.column_sums(), dense.sum(axis=0), **sums)


@pytest.mark.parametrize("n", [1, 2, 63, 64, 65, 1000, 1021])
def test_the_adjoint_is_the_adjoint(n):
    starts = sorted({0, n // 3, n // 2, n - 1})
    basis, _, x, y = problem(n, starts, seed=n)
    product = BlockProduct(basis.starts, basis.kernels, 64)
    left = np.vdot(product.product(x), y)
    right = np.vdot(x, product.product(y, transposed=True))
    size = np.linalg.norm(product.product(np.abs(x))) * np.linalg.norm(y)
    assert abs(left - right) <= 1e-13 * size


def test_row_sums_are_accurate_however_small():
    kernels = np.linspace(-600.0, 0.0, 500)[None]  # row sums over 260 decades
    product = BlockProduct(np.array([0]), kernels, 64)
    np.testing.assert_allclose(product.row_sums(), np.cumsum(np.exp(kernels[0])), rtol=1e-13)


def test_every_window_of_every_width():
    n = 37
    for width in range(1, n + 1):
        starts = np.arange(0, n, width)
        basis, dense, _, _ = problem(n, starts.tolist(), seed=width)
        product = BlockProduct(basis.starts, basis.kernels, 8)
        np.testing.assert_allclose(product.row_sums(), dense.sum(axis=1) * np.exp(-product.shift), rtol=1e-14)


def test_pairs_partition_the_columns():
    product = BlockProduct(np.array([0, 5, 16, 17]), np.zeros((4, 40)), 8)
    assert product.pairs.low.tolist() == [0, 5, 8, 16, 17, 24, 32]
    assert product.pairs.high.tolist() == [5, 8, 16, 17, 24, 32, 40]
    assert product.segment.tolist() == [0, 1, 1, 2, 3, 3, 3]
    assert product.pairs.block.tolist() == [0, 0, 1, 2, 2, 3, 4]


def test_what_underflows_in_a_product_is_a_number_s_least_for_every_pair_of_places_of_a_transform():
    for dtype, least in ((np.float64, 2.0**-1022), (np.float32, 2.0**-126)):
        assert BlockProduct(np.array([0]), np.zeros((1, 40), dtype), 8)._underflow == least * 16**2
