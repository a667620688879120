"""The fast path equals the oracle on the same basis, row by row, whatever the path, the block length and the layout."""

import numpy as np
import pytest

from refattn import PromotionWarning, conv_attention, conv_attention_forward, dense_attention
from refattn.convbasis import ConvBasis
from refattn.convbasis.fast import cost
from refattn.convbasis.fast.cost import Plan
from refattn.testing import attention_inputs, rope_structured

PLANS = [Plan("direct"), *(Plan("block transform", block) for block in (1, 5, 16, 64, 1024))]
DTYPES = [np.float64, np.float32]


def plan_id(plan):
    return "direct" if plan.path == "direct" else f"B={plan.block}"


def row_error(out, cache, **options):
    """Largest error of a row against the oracle on the same basis, in units of the row tolerance."""
    basis = cache.basis if cache.upper is None else (cache.basis, cache.upper)
    right = conv_attention(cache.q, cache.k, cache.v, basis=basis, method="oracle", **options)
    size = np.abs(cache.v).max(axis=(-1, -2), keepdims=True)
    error = np.abs(out - right).max(axis=-1, keepdims=True)
    return float((error / np.where(size > 0, size, 1)).max() / cache.tol)


@pytest.mark.parametrize("plan", PLANS, ids=plan_id)
@pytest.mark.parametrize("dtype", DTYPES, ids=["float64", "float32"])
@pytest.mark.parametrize("mask", ["causal", "full"])
@pytest.mark.parametrize("n", [1, 2, 3, 63, 64, 65, 131])
def test_every_row_is_within_the_tolerance(n, mask, dtype, plan):
    for k in sorted({1, min(2, n), max(n - 1, 1), n}):
        q, keys, v = attention_inputs(n, 3, seed=n + k, dtype=dtype)
        out, cache = conv_attention_forward(q, keys, v, n_basis=k, probe=1, delta=1e-9, mask=mask, plan=plan)
        assert cache.basis.n_terms == k
        assert out.dtype == dtype
        assert row_error(out, cache, mask=mask) <= 1


@pytest.mark.parametrize("plan", PLANS, ids=plan_id)
@pytest.mark.parametrize("d", [1, 3, 64, 128])
def test_any_width_of_the_values(d, plan):
    q, keys, v, _ = rope_structured(331, 8, starts=5, seed=d, d_v=d, dtype=np.float32)
    out, cache = conv_attention_forward(q, keys, v, n_basis=5, probe=4, delta=1e-2, plan=plan)
    assert row_error(out, cache) <= 1


@pytest.mark.parametrize("kind", ["normal", "constant", "one-hot"])
@pytest.mark.parametrize("mask", ["causal", "full"])
@pytest.mark.parametrize("dtype", DTYPES, ids=["float64", "float32"])
def test_kinds_of_input(kind, mask, dtype):
    q, keys, v = attention_inputs(200, 8, seed=3, kind=kind, deviation=2.0, dtype=dtype)
    for plan in PLANS:
        out, cache = conv_attention_forward(q, keys, v, n_basis=7, probe=3, delta=1e-6, mask=mask, plan=plan)
        assert row_error(out, cache, mask=mask) <= 1


@pytest.mark.parametrize("dtype", DTYPES, ids=["float64", "float32"])
@pytest.mark.parametrize(("n", "k"), [(1000, 16), (1021, 3), (4096, 8)])
def test_structured_input_equals_dense_attention(n, k, dtype):
    q, keys, v, starts = rope_structured(n, 64, starts=k, seed=n, dtype=dtype)
    out, cache = conv_attention_forward(q, keys, v, n_basis=k, probe=4, delta=1e-2)
    assert cache.basis.starts.tolist() == starts.tolist()
    exact = dense_attention(*(x.astype(np.float64) for x in (q, keys, v)))
    # q and k in float32 are k-conv up to their rounding
    np.testing.assert_allclose(out, exact, rtol=0, atol=2e-5 if dtype == np.float32 else 1e-12)


@pytest.mark.parametrize("mask", ["causal", "full"])
def test_batches_and_grouped_heads_are_single_heads(mask):
    q, keys, v = attention_inputs(150, 4, seed=0, lead=(2, 4), kv_lead=(2, 2), dtype=np.float32)
    options = {"n_basis": 6, "probe": 2, "delta": 1e-3, "mask": mask, "plan": Plan("block transform", 32)}
    out, cache = conv_attention_forward(q, keys, v, **options)
    assert cache.rows_recomputed.shape == cache.largest_bound.shape == cache.plans.shape == (2, 4)
    for batch, head in np.ndindex(2, 4):
        one = conv_attention(q[batch, head], keys[batch, head // 2], v[batch, head // 2], **options)
        np.testing.assert_array_equal(out[batch, head], one)


def test_the_fast_path_is_the_default_and_equals_the_paper():
    q, keys, v, _ = rope_structured(700, 16, starts=6, seed=5)
    options = {"n_basis": 6, "probe": 4, "delta": 1e-3}
    out, cache = conv_attention_forward(q, keys, v, **options)
    assert cache.method == "fast"
    np.testing.assert_allclose(out, conv_attention(q, keys, v, method="paper", **options), rtol=0, atol=2e-12)


def test_a_basis_may_start_late_and_leave_places_unused():
    rng = np.random.default_rng(2)
    kernels = rng.standard_normal((2, 40))
    kernels[np.arange(40) >= 40 - np.array([3, 20])[:, None]] = 0
    late = ConvBasis([3, 20], kernels)
    padded = ConvBasis([3, 20, 40], np.concatenate([kernels, np.zeros((1, 40))]))
    q = v = rng.standard_normal((40, 2))
    for plan in PLANS:
        out = conv_attention(q, q, v, basis=late, plan=plan)
        np.testing.assert_allclose(out, conv_attention(q, q, v, basis=late, method="oracle"), rtol=0, atol=1e-13)
        np.testing.assert_array_equal(out, conv_attention(q, q, v, basis=padded, plan=plan))


def test_the_report_says_how_it_was_done():
    q, keys, v, _ = rope_structured(5000, 16, starts=[0, 700], seed=0, dtype=np.float32)
    options = {"n_basis": 4, "probe": 4, "delta": 1e-2}
    _, cache = conv_attention_forward(q, keys, v, plan=Plan("block transform", 256), **options)
    assert cache.plans[()] == Plan("block transform", 256)
    assert int(cache.basis.n_terms) == 2
    assert 0 < cache.largest_bound <= cache.tol
    _, cache = conv_attention_forward(q, keys, v, plan=Plan("direct"), **options)
    assert (cache.plans[()].path, cache.rows_recomputed, cache.largest_bound) == ("direct", 0, 0)
    _, cache = conv_attention_forward(q, keys, v, **options)
    assert cache.plans[()] == cost.choose_plan(5000, 2, 16, np.float32)


@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        ({"n_basis": 0}, ValueError, "n_basis: 0 came"),
        ({"n_basis": 41}, ValueError, "n_basis: 41 came"),
        ({"probe": 50}, ValueError, "probe"),
        ({"delta": -1.0}, ValueError, "delta"),
        ({"eps": -1.0}, ValueError, "eps"),
        ({"tol": -1.0}, ValueError, "tol"),
        ({"mask": "band"}, ValueError, "'causal', 'full'"),
        ({"method": "quick"}, ValueError, "'fast', 'paper', 'oracle'"),
        ({"plan": "direct"}, TypeError, "plan"),
        ({"plan": Plan("direct"), "method": "paper"}, TypeError, "plan"),
        ({"n_basis": None}, TypeError, "n_basis: nothing came"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else None,
)
def test_bad_options_are_refused(change, error, match):
    q, keys, v = attention_inputs(40, 4, seed=0)
    with pytest.raises(error, match=match):
        conv_attention(q, keys, v, **{**{"n_basis": 4, "probe": 2, "delta": 1e-3}, **change})


@pytest.mark.parametrize("method", ["fast", "paper"])
@pytest.mark.parametrize("plan", [None, Plan("direct"), Plan("block transform", 8)], ids=["auto", "direct", "blocks"])
def test_bad_arrays_are_refused_as_by_the_paper(method, plan):
    if method == "paper" and plan is not None:
        plan = None
    options = {"n_basis": 2, "probe": 1, "delta": 1e-3, "method": method, "plan": plan}
    q, keys, v = attention_inputs(20, 4, seed=0, dtype=np.float32)
    bad = keys.copy()
    bad[3, 1] = np.nan
    with pytest.raises(ValueError, match=r"k: nan at index \(3, 1\)"):
        conv_attention(q, bad, v, **options)
    with pytest.raises(ValueError, match="rows came"):
        conv_attention(q, keys[:-1], v[:-1], **options)
    with pytest.raises(TypeError, match="complex"):
        conv_attention(q * 1j, keys, v, **options)
    with pytest.raises(ValueError, match=r"q, k: .*logit"):
        conv_attention(q * 1e20, keys * 1e20, v, **options)
    with pytest.warns(PromotionWarning):
        assert conv_attention(q.astype(np.float16), keys, v, **options).dtype == np.float32


def test_inputs_are_not_written_to_and_may_be_read_only_or_strided():
    q, keys, v = attention_inputs(90, 6, seed=1)
    options = {"n_basis": 5, "probe": 1, "delta": 1e-9, "plan": Plan("block transform", 16)}
    expected = conv_attention(q, keys, v, **options)
    for x in (q, keys, v):
        x.flags.writeable = False
    np.testing.assert_array_equal(conv_attention(q, keys, v, **options), expected)
    strided = [np.asfortranarray(x) for x in (q, keys, v)]
    np.testing.assert_array_equal(conv_attention(*strided, **options), expected)


def test_the_future_changes_no_earlier_block():
    q, keys, v = attention_inputs(300, 4, seed=1)
    basis = conv_attention_forward(q, keys, v, n_basis=5, probe=1, delta=1e-9)[1].basis
    plan = Plan("block transform", 32)
    before = conv_attention(q, keys, v, basis=basis, plan=plan)
    later = v.copy()
    later[256:] += 1.0
    np.testing.assert_array_equal(conv_attention(q, keys, later, basis=basis, plan=plan)[:256], before[:256])


def test_values_of_any_size_scale_the_output():
    q, keys, v, _ = rope_structured(500, 8, starts=4, seed=3, dtype=np.float32)
    options = {"n_basis": 4, "probe": 4, "delta": 1e-2, "plan": Plan("block transform", 64)}
    out = conv_attention(q, keys, v, **options)
    for size in (2.0**-100, 2.0**100):
        scaled = conv_attention(q, keys, v * np.float32(size), **options) / np.float32(size)
        np.testing.assert_allclose(scaled, out, rtol=0, atol=1e-5)
    assert not conv_attention(q, keys, np.zeros_like(v), **options).any()


def test_memory_that_would_not_fit_is_refused_with_the_estimate(monkeypatch):
    from refattn import _memory

    q, keys, v, _ = rope_structured(60_000, 16, starts=16, seed=0, dtype=np.float32)
    options = {"n_basis": 16, "probe": 4, "delta": 1e-2}
    monkeypatch.setattr(_memory, "_UNCHECKED", 0)
    monkeypatch.setattr(_memory, "available_bytes", lambda: 3e6)
    with pytest.raises(MemoryError, match=r"n_basis: .*3\.66 MiB"):
        conv_attention(q, keys, v, **options)
    monkeypatch.setattr(_memory, "available_bytes", lambda: 6e6)
    with pytest.raises(MemoryError, match="v: the block transform: about"):
        conv_attention(q, keys, v, **options)
