"""Correlations by the block transform against their definition."""

import numpy as np
import pytest

from refattn.convbasis.fast.blocks import BlockProduct
from refattn.convbasis.fast.correlations import kernel_gradient


@pytest.mark.slow
@pytest.mark.parametrize(
    ("n", "starts", "block"),
    [(1, [0], 4), (37, [0], 16), (50, [0, 13, 31], 8), (64, [0, 1, 2, 40], 32), (20, [0, 7], 64), (200, [0, 99], 16)],
    ids=str,
)
def test_kernel_gradient_is_the_sum_along_diagonals_of_each_segment(n, starts, block):
    rng = np.random.default_rng(n)
    starts = np.array(starts)
    u = 2 * rng.standard_normal((starts.size, n))
    u[np.arange(n) >= n - starts[:, None]] = 0
    x, z = rng.standard_normal((2, n, 5))
    product = BlockProduct(starts, u, block)
    rows, pairs = rng.uniform(-40, 40, len(product.rows)), rng.uniform(-40, 40, len(product.pairs))
    found, _ = kernel_gradient(product, product.load(x, product.pairs), product.load(z, product.rows), pairs, rows)

    x = x * np.exp(product.pairs.spread(pairs))[:, None]
    z = z * np.exp(product.rows.spread(rows))[:, None]
    ends = [*starts[1:], n]
    for i, (c, end) in enumerate(zip(starts, ends, strict=True)):
        for t in range(n):
            j = np.arange(c, max(c, min(end, n - t)))
            terms = np.exp(u[i, t] - product.shift) * (z[j + t] * x[j]).sum(axis=1)
            size = np.exp(u[i, t] - product.shift) * (np.abs(z[j + t]).sum(axis=1) * np.abs(x[j]).sum(axis=1))
            # relative to the largest term that reaches the same chunks: exponents differ from block to block
            assert abs(found[i, t] - terms.sum()) <= 1e-12 * max(
                size.sum(), np.exp(80.0) * np.exp(u[i, t] - product.shift)
            )
