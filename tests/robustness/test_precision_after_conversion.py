"""Precision is decided by what came, before it is converted: biases as large as masks, units of rounding, supports."""

import mpmath
import numpy as np
import pytest

from refattn import Causal, SlidingWindow, dense_attention, dense_attention_backward, dense_attention_forward
from refattn.decomposition import measure_head, read_heads
from refattn.sparsek import sparsek_jacobian, sparsek_jvp, sparsek_operator, sparsek_vjp
from refattn.testing import rope_structured, row_errors, tolerance

N, INF = 6, np.inf
TYPES = [pytest.param(np.float32, id="float32"), pytest.param(np.float64, id="float64")]
LARGE = [-30.0, -1e4, -1e9, 1e9, "min", "max"]


def inputs(dtype, lead=()):
    return np.random.default_rng(0).standard_normal((3, *lead, N, 8)).astype(dtype)


def number(value, dtype):
    return float(getattr(np.finfo(dtype), value)) if isinstance(value, str) else value


def close(out, right, dtype):
    return row_errors(out, right).max() <= tolerance("reordered", dtype).rtol


# --- a bias as large as a mask ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("value", LARGE, ids=str)
def test_what_a_bias_adds_to_a_whole_row_changes_nothing(value, dtype):
    q, k, v = inputs(dtype)
    bias = np.zeros((N, N), dtype)
    bias[4:] = number(value, dtype)
    out, cache = dense_attention_forward(q, k, v, mask=bias)
    right, plain = dense_attention_forward(q, k, v, mask="full")
    assert close(out, right, dtype)
    for found, wanted in zip(dense_attention_backward(out, cache), dense_attention_backward(out, plain), strict=True):
        np.testing.assert_allclose(found, wanted, rtol=0, atol=100 * np.finfo(dtype).eps)
    np.testing.assert_allclose(
        cache.log_sum_exp, plain.log_sum_exp + bias[:, 0].astype(np.float64), rtol=2 * np.finfo(dtype).eps
    )


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("pattern", ["causal", Causal(0), SlidingWindow(3)], ids=["causal", "object", "window"])
@pytest.mark.parametrize("value", [-1e9, "min"], ids=str)
def test_padding_on_the_left_leaves_the_rows_that_see_only_padding_as_without_it(value, pattern, dtype):
    q, k, v = inputs(dtype)
    padding = np.where(np.arange(N) < 3, number(value, dtype), 0).astype(dtype)
    out = dense_attention(q, k, v, mask=(pattern, padding))
    assert close(out[:3], dense_attention(q, k, v, mask=pattern)[:3], dtype)
    assert close(out[3:], dense_attention(q, k, v, mask=(pattern, np.arange(N) >= 3))[3:], dtype)


@pytest.mark.parametrize("dtype", TYPES)
def test_two_masks_of_the_lowest_number_are_both_masks(dtype):
    q, k, v = inputs(dtype)
    lowest = np.finfo(dtype).min
    future, padding = np.where(np.tri(N), 0, lowest).astype(dtype), np.where(np.arange(N) > 3, lowest, 0).astype(dtype)
    right = dense_attention(q, k, v, mask=("causal", np.arange(N) <= 3))
    assert close(dense_attention(q, k, v, mask=("full", future, padding)), right, dtype)
    assert close(dense_attention(q, k, v, mask=(future, padding)), right, dtype)  # of two shapes: not one array


def test_a_mask_of_float64_beyond_float32_is_refused_with_the_remedy():
    q, k, v = inputs(np.float32)
    low = np.where(np.tri(N), 0, np.finfo(np.float64).min)
    with pytest.raises(ValueError, match=r"^mask: the logit of query 0 and key 1 is -inf in float32; .*\(-inf where a"):
        dense_attention(q, k, v, mask=low)


@pytest.mark.parametrize("lead", [(), (2,), (4,)], ids=str)
def test_a_large_bias_of_some_heads_leaves_the_others_alone(lead):
    q, k, v = inputs(np.float32, (4,))
    bias = np.zeros((4, N, N), np.float32)
    bias[1], bias[2, 3] = -1e9, 1e9
    k, v = (a[: lead[0]] if lead else a[0] for a in (k, v))
    assert close(dense_attention(q, k, v, mask=bias), dense_attention(q, k, v, mask="full"), np.float32)


def test_blocks_of_rows_agree_on_what_is_counted_from():
    q, k, v = inputs(np.float32)
    bias = np.where(np.arange(N)[:, None] % 2, -1e9, 0.25).astype(np.float32) * np.ones(N, np.float32)
    whole = dense_attention(q, k, v, mask=bias)
    for block in (1, 2, 5):
        assert close(dense_attention(q, k, v, mask=bias, block=block), whole, np.float32)


@pytest.mark.parametrize("dtype", TYPES)
def test_sums_of_biases_of_all_sizes_give_what_their_exact_sum_gives(dtype):
    rng = np.random.default_rng(1)
    q, k, v = inputs(dtype)
    logits = q.astype(np.float64) @ k.T.astype(np.float64) / np.sqrt(8)
    sizes = np.array([0, -1.5, 17, -1e4, -1e9, 1e9, np.finfo(dtype).min, np.finfo(dtype).min / 2, -INF])
    for _ in range(25):
        biases = [
            rng.choice(rng.choice(sizes, 3), (N, N) if rng.random() < 0.5 else (N, 1)).astype(dtype) for _ in "ab"
        ]
        out = dense_attention(q, k, v, mask=("causal", *biases))
        assert close(out, attend(logits, biases, v), dtype)


def attend(logits, biases, v):
    """Causal attention with biases, whose sums are formed exactly."""
    out = np.zeros(v.shape)
    with mpmath.workdps(700):
        for i in range(N):
            seen = [j for j in range(i + 1) if all(np.broadcast_to(b, (N, N))[i, j] > -INF for b in biases)]
            total = [
                mpmath.mpf(logits[i, j]) + sum(mpmath.mpf(float(np.broadcast_to(b, (N, N))[i, j])) for b in biases)
                for j in seen
            ]
            weights = [mpmath.exp(x - max(total)) for x in total]
            for j, weight in zip(seen, weights, strict=True):
                out[i] += float(weight / sum(weights)) * v[j].astype(np.float64)
    return out


def test_an_ordinary_bias_changes_no_bit():
    """Where no row is counted from anything, a bias is added as it came: sixteen is still ordinary."""
    q, k, v = inputs(np.float32)
    bias = np.full((N, N), 16, np.float32)
    bias[2, 3:] = -1e9
    (addend,) = dense_attention_forward(q, k, v, mask=bias)[1].mask.addends(slice(0, N), np.dtype(np.float32))
    assert np.array_equal(addend, bias)


# --- the unit of rounding of data as it was stored -------------------------------------------------------------------


def rounded(array, stored):
    if stored != "bfloat16":
        return array.astype(stored)
    bits = array.astype(np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000).astype(np.uint32).view(np.float32)


@pytest.mark.parametrize(
    ("stored", "saved"),
    [
        *((stored, saved) for stored in ("float16", "bfloat16", "float32") for saved in ("own", "float32", "float64")),
        *(("float64", saved) for saved in ("own", "float64")),
    ],
)
def test_columns_count_as_equal_within_the_rounding_of_what_was_stored(stored, saved, tmp_path):
    q, k, v, _ = rope_structured(64, 16, starts=[0, 20, 45], seed=3)
    coarse = {name: rounded(a, stored) for name, a in zip("qkv", (q, k, v), strict=True)}
    if saved != "own":
        coarse = {name: a.astype(saved) for name, a in coarse.items()}
    np.savez(tmp_path / "heads.npz", **coarse)
    own = saved == "own" and stored != "bfloat16"
    (head,) = read_heads(tmp_path / "heads.npz", stored=None if own else stored)[1]
    assert measure_head(head).document["exact_terms"] == 3


def test_a_unit_finer_than_the_files_numbers_is_refused(tmp_path):
    np.save(tmp_path / "h.npy", np.tri(8, dtype=np.float16))
    with pytest.raises(ValueError, match=r"^stored: float32 came, the file's numbers are coarser"):
        read_heads(tmp_path / "h.npy", stored="float32")


# --- supports --------------------------------------------------------------------------------------------------------

NEAR_KINKS = [[1, 1e-9], [1e-9, 1], [1, 1e-12], [1, 1e-20], [0, -1 + 1e-7], [-1e-9, -1], [5, 1, 1e-8], [1e-30, 1, -3]]


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("z", NEAR_KINKS, ids=str)
def test_derivatives_ask_z_and_the_threshold_which_entries_are_inside(z, dtype):
    """Two entries are inside, however near to an end, so ±1 is its own tangent and its own gradient."""
    z = np.array(z, dtype)
    budget = 2.0 if z[0] > 2 else 1.0
    inside = np.argsort(z)[::-1][int(budget) - 1 : int(budget) + 1]
    assert abs(float(z[inside[0]]) - float(z[inside[1]])) <= 1
    p = sparsek_operator(z, budget)
    upstream = np.zeros(z.size, dtype)
    upstream[inside] = 1, -1
    expected = upstream.copy()
    assert np.array_equal(sparsek_vjp(p, upstream).z, expected)
    assert np.array_equal(sparsek_jvp(p, upstream), expected)
    assert np.array_equal(sparsek_jacobian(p) @ upstream, expected)
    assert abs(float(p.sum(dtype=np.float64)) - budget) <= 2 * np.finfo(dtype).eps


@pytest.mark.parametrize("dtype", TYPES)
def test_entries_at_the_ends_are_exactly_there(dtype):
    p = sparsek_operator(np.array([[3, 1.25, 1, -2], [9, 1, 1, -np.inf], [2, 1, -np.inf, 0]], dtype), 2)
    assert p[0].tolist() == [1, 0.625, 0.375, 0]
    assert p[1].tolist() == [1, 0.5, 0.5, 0]
    assert p[2].tolist() == [1, 1, 0, 0]
