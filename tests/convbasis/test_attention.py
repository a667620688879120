"""Conv attention by the paper's method and by the oracle, and against exact attention."""

import numpy as np
import pytest

from refattn import ConvBasis, conv_attention, conv_attention_forward, dense_attention
from refattn.convbasis import basis_from_starts, inference_bound
from refattn.convbasis.paper import algorithm_1
from refattn.testing import attention_inputs, rope_structured, row_errors, tolerance

SIZES = [1, 2, 3, 63, 64, 65, 1000, 1009]


def exact_starts(n, k):
    return np.linspace(0, n, k, endpoint=False).astype(int)


@pytest.mark.parametrize("deviation", [1.0, 4.0, 8.0], ids="deviation={}".format)
@pytest.mark.parametrize("k", [1, 4, 17], ids="k={}".format)
@pytest.mark.parametrize("n", [65, 1009, 2000], ids="n={}".format)
def test_exact_basis_gives_exact_attention(n, k, deviation):
    starts = exact_starts(n, k)
    q, keys, v, _ = rope_structured(n, 64, starts=starts, seed=n + k, deviation=deviation)
    out, cache = conv_attention_forward(q, keys, v, n_basis=k, probe=3, delta=1e-6, method="paper")
    np.testing.assert_array_equal(cache.basis.starts, starts)
    assert row_errors(out, dense_attention(q, keys, v)).max() <= 1e-12


@pytest.mark.slow
@pytest.mark.parametrize("mask", ["causal", "full"])
@pytest.mark.parametrize("deviation", [1.0, 4.0, 8.0, 16.0], ids="deviation={}".format)
@pytest.mark.parametrize("n", [1, 2, 3, 63, 64, 65, 301], ids="n={}".format)
def test_as_many_terms_as_columns_give_exact_attention_on_any_input(n, deviation, mask):
    q, k, v = attention_inputs(n, 16, seed=n, deviation=deviation)
    out = conv_attention(q, k, v, n_basis=n, probe=1, delta=0, mask=mask, method="paper")
    assert row_errors(out, dense_attention(q, k, v, mask=mask)).max() <= 1e-12


@pytest.mark.parametrize("kind", ["constant", "one-hot", "normal"])
@pytest.mark.parametrize("mask", ["causal", "full"])
@pytest.mark.parametrize("d", [1, 3, 64, 128], ids="d={}".format)
@pytest.mark.parametrize(("n", "k"), [(1, 1), (2, 1), (3, 2), (65, 1), (65, 2), (65, 64), (65, 65), (1000, 3)], ids=str)
def test_paper_equals_oracle_on_the_same_basis(n, k, d, mask, kind):
    q, keys, v = attention_inputs(n, d, seed=d, kind=kind, deviation=3.0)
    basis = basis_from_starts(q, keys, exact_starts(n, k))
    if mask == "full":
        basis = (basis, basis_from_starts(keys, q, exact_starts(n, max(1, k - 1))))
    paper, oracle = (conv_attention(q, keys, v, basis=basis, mask=mask, method=m) for m in ("paper", "oracle"))
    assert np.abs(paper - oracle).max() <= tolerance("reordered").rtol * np.abs(v).max()


def test_oracle_is_a_sum_over_scalars():
    """Three lines of the definition, entry by entry, with the paper's b_i and m_i."""
    n = 9
    q, k, v = attention_inputs(n, 3, seed=0)
    basis = basis_from_starts(q, k, [0, 2, 7])
    expected = np.zeros_like(v)
    for i in range(n):
        weights = []
        for j in range(i + 1):
            logit = sum(b[i - j] for b, m in zip(basis.vectors, basis.sizes, strict=True) if j >= n - m)
            weights.append(np.exp(logit))
        expected[i] = sum(w * v[j] for j, w in enumerate(weights)) / sum(weights)
    np.testing.assert_allclose(conv_attention(q, k, v, basis=basis, method="oracle"), expected, rtol=1e-13)


@pytest.mark.parametrize("method", ["paper", "oracle"])
def test_batches_and_grouped_heads_are_those_of_each_head_alone(method):
    q, k, v = attention_inputs(33, 8, seed=1, lead=(2, 6), kv_lead=(2, 3), d_v=5)
    options = {"n_basis": 4, "probe": 2, "delta": 0.2, "method": method}
    out, cache = conv_attention_forward(q, k, v, **options)
    assert out.shape == (2, 6, 33, 5)
    assert cache.rows_recomputed.shape == cache.basis.starts.shape[:-1] == (2, 6)
    for b, h in np.ndindex(2, 6):
        alone = conv_attention(q[b, h], k[b, h // 2], v[b, h // 2], **options)
        np.testing.assert_array_equal(out[b, h], alone)


@pytest.mark.parametrize("fraction", [0.2, 0.99], ids="eps={}·limit".format)
@pytest.mark.parametrize("seed", range(4), ids="seed={}".format)
def test_the_inference_theorem_holds(seed, fraction):
    n, probe = 120, 6
    starts = [0, 20, 50, 90]
    q, k, v, _ = rope_structured(n, 8, starts=starts, seed=seed, deviation=2.0)
    delta = basis_from_starts(q, k, starts).nondegeneracy(probe)
    eps = fraction * delta / (5 * probe)
    noise = np.random.default_rng(seed).uniform(-eps, eps, (n, n)) * np.sqrt(8)
    q, k = np.concatenate([q, noise], axis=1), np.concatenate([k, np.eye(n)], axis=1)
    out = conv_attention(q, k, v, n_basis=4, probe=probe, delta=delta, eps=eps, scale=1 / np.sqrt(8))
    error = np.abs(out - dense_attention(q, k, v, scale=1 / np.sqrt(8))).max()
    assert 0 < error <= inference_bound(eps, np.abs(v).max())


def wide_kernel():
    """A white kernel of deviation 8, first entries low, whose exp spans 25 decades; and what the oracle makes of it."""
    rng = np.random.default_rng(0)
    n = 2048
    kernel = rng.standard_normal((1, n)) * 8
    kernel[0, :8] = -15.0
    basis = ConvBasis([0], kernel)
    v, dummy = rng.standard_normal((n, 4)), np.zeros((n, 1))
    return basis, v, dummy, conv_attention(dummy, dummy, v, basis=basis, method="oracle")


def test_algorithm_1_as_written_loses_rows_and_the_guard_recovers_them():
    """Exponentials span 25 decades, an FFT keeps 16."""
    basis, v, dummy, exact = wide_kernel()
    assert row_errors(algorithm_1(v, basis), exact).max() > 0.1
    out, cache = conv_attention_forward(dummy, dummy, v, basis=basis, method="paper")
    assert cache.rows_recomputed > 0
    assert cache.largest_bound <= cache.tol
    assert row_errors(out, exact).max() <= 1e-12


def test_the_guard_is_what_keeps_the_rows():
    """With a tolerance that keeps every row, the same input fails: the check above can fail."""
    basis, v, dummy, exact = wide_kernel()
    out = conv_attention(dummy, dummy, v, basis=basis, method="paper", tol=1e300)
    assert row_errors(out, exact).max() > 1e-12


@pytest.mark.parametrize("method", ["paper", "oracle"])
def test_rows_far_below_the_largest_are_kept(method):
    """A kernel whose later entries are 1e30 times the first: early rows underflow unless scaled by themselves."""
    n = 200
    kernel = np.where(np.arange(n) < 100, -800.0, 0.0)[None]
    v, dummy = np.random.default_rng(1).standard_normal((n, 3)), np.zeros((n, 1))
    out = conv_attention(dummy, dummy, v, basis=ConvBasis([0], kernel), method=method)
    np.testing.assert_allclose(out[:100], np.cumsum(v, axis=0)[:100] / np.arange(1, 101)[:, None], rtol=0, atol=1e-13)


@pytest.mark.parametrize("method", ["paper", "fast"])
@pytest.mark.parametrize("depth", [300.0, 500.0, 700.0, 1e4], ids="exp(-{})".format)
def test_a_segment_far_below_another_keeps_its_rows(depth, method):
    """The first column holds the largest logit, the others one so small that its square, or itself, underflows."""
    n = 60
    kernels = np.zeros((2, n))
    kernels[0, 1:] = -2e4
    kernels[1, : n - 1] = -depth + 3 * np.random.default_rng(2).standard_normal(n - 1)
    basis = ConvBasis([0, 1], kernels)
    v, dummy = np.random.default_rng(3).standard_normal((n, 3)), np.zeros((n, 1))
    out, oracle = (conv_attention(dummy, dummy, v, basis=basis, method=m) for m in (method, "oracle"))
    np.testing.assert_allclose(out, oracle, rtol=0, atol=1e-11)  # the oracle rounds sums of 2e4: 4e-12


@pytest.mark.parametrize("n", SIZES, ids="n={}".format)
def test_float32_is_as_good_as_plain_float32_attention(n):
    k = min(4, n)
    starts = exact_starts(n, k)
    q, keys, v, _ = rope_structured(n, 64, starts=starts, seed=n, deviation=2.0, dtype=np.float32)
    out = conv_attention(q, keys, v, basis=basis_from_starts(q, keys, starts), method="paper")
    assert out.dtype == np.float32
    exact = conv_attention(
        *(x.astype(np.float64) for x in (q, keys, v)), basis=basis_from_starts(q, keys, starts), method="oracle"
    )
    assert row_errors(out, exact).max() <= tolerance("reordered", np.float32).rtol


def test_changing_the_future_changes_no_past_row_of_the_causal_oracle():
    q, k, v = attention_inputs(40, 4, seed=3)
    basis = basis_from_starts(q, k, [0, 10])
    later = v.copy()
    later[30:] += 1e6
    before, after = (conv_attention(q, k, x, basis=basis, method="oracle") for x in (v, later))
    np.testing.assert_array_equal(before[:30], after[:30])
