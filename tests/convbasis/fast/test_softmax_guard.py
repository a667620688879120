"""No row is lost: every row of the fast path is inside the tolerance or recomputed, and the guard is what does it."""

import numpy as np
import pytest

from refattn import conv_attention, conv_attention_forward
from refattn.convbasis import ConvBasis, basis_from_starts
from refattn.convbasis.fast.cost import Plan
from refattn.experiments.conv.numerical_domain import numerical_domain
from refattn.testing import rope_structured
from refattn.testing.real_heads import load_real_heads

DTYPES = [np.float64, np.float32]
NO_GUARD = 1e300


def random_basis(n, starts, deviation, seed, dtype):
    kernels = np.random.default_rng(seed).standard_normal((len(starts), n)) * deviation
    kernels[np.arange(n) >= n - np.array(starts)[:, None]] = 0
    return ConvBasis(starts, kernels.astype(dtype))


def basis_with_rows_far_below(n, dtype):
    """The first 300 rows are 1e-30 times smaller than the others, and in the same block."""
    kernels = np.random.default_rng(0).standard_normal((2, n))
    kernels[0, :300] += np.log(1e-30)
    kernels[1, : n - 150] += np.log(1e-30)
    kernels[1, n - 150 :] = 0
    return ConvBasis([0, 150], kernels.astype(dtype))


def worst_row(basis, block, tol=None, upper=None):
    """Worst row error over the default tolerance, and the cache."""
    v = np.random.default_rng(1).standard_normal((basis.n, 4)).astype(basis.kernels.dtype)
    pair, mask = (basis, "causal") if upper is None else ((basis, upper), "full")
    right = conv_attention(v, v, v, basis=pair, mask=mask, method="oracle")
    plan = Plan("block transform", block)
    out, cache = conv_attention_forward(v, v, v, basis=pair, mask=mask, plan=plan, tol=tol)
    default = 1e-13 if v.dtype == np.float64 else 1e-5
    return float(np.abs(out - right).max() / np.abs(v).max() / default), cache


@pytest.mark.parametrize("dtype", DTYPES, ids=["float64", "float32"])
@pytest.mark.parametrize("deviation", [1.0, 4.0, 8.0, 16.0])
@pytest.mark.parametrize("block", [64, 512])
def test_wide_logits_lose_no_row(deviation, block, dtype):
    basis = random_basis(900, [0, 130, 600], deviation, 3, dtype)
    error, cache = worst_row(basis, block)
    assert error <= 1
    assert cache.largest_bound <= cache.tol
    error, cache = worst_row(basis, block, upper=random_basis(900, [0, 500], deviation, 4, dtype))
    assert error <= 1


@pytest.mark.parametrize("dtype", DTYPES, ids=["float64", "float32"])
def test_structured_heads_of_any_deviation_lose_no_row(dtype):
    for deviation in (1.0, 4.0, 8.0, 16.0):
        q, k, v, starts = rope_structured(700, 16, starts=6, seed=2, deviation=deviation, dtype=dtype)
        basis = basis_from_starts(q, k, starts)
        right = conv_attention(q, k, v, basis=basis, method="oracle")
        out, cache = conv_attention_forward(q, k, v, basis=basis, plan=Plan("block transform", 128))
        assert np.abs(out - right).max() <= cache.tol * np.abs(v).max()


@pytest.mark.parametrize("dtype", DTYPES, ids=["float64", "float32"])
def test_rows_far_below_the_largest_are_kept_exact(dtype):
    basis = basis_with_rows_far_below(1100, dtype)
    error, cache = worst_row(basis, 512)
    assert error <= 1
    assert 300 <= cache.rows_recomputed < 1100


@pytest.mark.parametrize("dtype", DTYPES, ids=["float64", "float32"])
def test_without_the_guard_rows_are_lost(dtype):
    error, cache = worst_row(basis_with_rows_far_below(1100, dtype), 512, tol=NO_GUARD)
    assert cache.rows_recomputed == 0
    assert error > 1e3
    assert worst_row(random_basis(900, [0], 8.0, 3, dtype), 512, tol=NO_GUARD)[0] > 10


@pytest.mark.parametrize("dtype", DTYPES, ids=["float64", "float32"])
def test_the_estimate_bounds_the_error_of_rows_that_are_kept(dtype):
    for block, n in ((32, 400), (256, 1000)):
        for deviation in (0.0, 0.5, 2.0):
            error, cache = worst_row(random_basis(n, [0, 7, 210], deviation, 5, dtype), block, tol=NO_GUARD)
            default = 1e-13 if dtype == np.float64 else 1e-5
            # what the exponentials and the sums of a row round, a plain computation rounds as well
            assert error * default <= cache.largest_bound + 20 * np.finfo(dtype).eps


@pytest.mark.parametrize("dtype", DTYPES, ids=["float64", "float32"])
def test_a_tolerance_of_zero_recomputes_every_row(dtype):
    error, cache = worst_row(random_basis(300, [0, 7], 1.0, 5, dtype), 32, tol=0.0)
    assert error <= 1
    assert cache.rows_recomputed == 300


@pytest.mark.parametrize("dtype", DTYPES, ids=["float64", "float32"])
def test_real_heads_lose_no_row(dtype):
    heads = load_real_heads(dtype=dtype)
    n = 1024
    for layer in range(0, len(heads.q), 2):
        q, k, v = heads.q[layer, 0, :n], heads.k[layer, 0, :n], heads.v[layer, 0, :n]
        basis = basis_from_starts(q, k, np.arange(8) * (n // 8))
        right = conv_attention(q, k, v, basis=basis, method="oracle")
        out, cache = conv_attention_forward(q, k, v, basis=basis, plan=Plan("block transform", 256))
        assert np.abs(out - right).max() <= cache.tol * np.abs(v).max()


def test_the_table_of_the_numerical_domain():
    records = numerical_domain(n=1024, deviations=(1.0, 8.0))
    plain = {(r.dtype, r.deviation): r.plain_error for r in records}
    assert plain["float64", 1.0] < 1e-10
    assert plain["float64", 8.0] > 1e-7
    assert plain["float32", 8.0] > 1
    for record in records:
        assert record.guarded_error <= record.tolerance
        assert record.rows_lost <= record.rows_recomputed < 512
