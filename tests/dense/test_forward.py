"""Output and log-sum-exp of exact attention: 50 digits, plain float32, and identities."""

import mpmath
import numpy as np
import pytest
from dense_definition import INF, check_large_logits, definition, hidden_unless, inputs, normal

import refattn.dense
from refattn import dense_attention, dense_attention_backward, dense_attention_forward
from refattn.testing import row_errors, tolerance

pytestmark = pytest.mark.usefixtures("either_way")


@pytest.mark.parametrize("largest", [50, 700, 1e4, 1e8, 1e300], ids=str)
def test_exact_logits_of_any_size_give_50_digit_results_to_rounding(largest):
    check_large_logits(refattn.dense, largest)


@pytest.mark.parametrize("deviation", [1, 4, 16], ids=str)
def test_wide_dynamic_range_agrees_with_50_digits(deviation):
    q, k, v = inputs("one head", 5, 5, d=8)
    q, v = q * deviation, v * np.logspace(-12, 12, v.size).reshape(v.shape)
    with mpmath.workdps(50):
        expected, lse = definition(q, k, v, hidden_unless(lambda i, j: j <= i), field=mpmath.mp)
    out, cache = dense_attention_forward(q, k, v)
    assert row_errors(out, expected).max() <= tolerance("reordered").rtol
    np.testing.assert_allclose(cache.log_sum_exp, lse.astype(float), rtol=1e-13, atol=1e-13)  # d roundings of a logit


@pytest.mark.parametrize("mask", ["causal", "full"])
def test_float32_error_is_at_most_twice_that_of_plain_float32(mask):
    q, k, v, dout = normal(*[(4, 65, 32)] * 4, dtype=np.float32)
    oracle, oracle_cache = dense_attention_forward(*(a.astype(np.float64) for a in (q, k, v)), mask=mask)
    oracle_gradients = dense_attention_backward(dout.astype(np.float64), oracle_cache)
    out, cache = dense_attention_forward(q, k, v, mask=mask)
    # plain float32, the textbook lines
    logits = q @ k.swapaxes(-1, -2) / np.sqrt(np.float32(32))
    if mask == "causal":
        logits[..., np.triu(np.ones((65, 65), bool), 1)] = -INF
    p = np.exp(logits - logits.max(-1, keepdims=True))
    p /= p.sum(-1, keepdims=True)
    dp = dout @ v.swapaxes(-1, -2)
    ds = p * (dp - (p * dp).sum(-1, keepdims=True)) / np.sqrt(np.float32(32))
    plain = (p @ v, ds @ k, ds.swapaxes(-1, -2) @ q, p.swapaxes(-1, -2) @ dout)
    ours = (out, *dense_attention_backward(dout, cache))
    for mine, textbook, right in zip(ours, plain, (oracle, *oracle_gradients), strict=True):
        assert mine.dtype == np.float32
        mine, textbook = row_errors(mine, right), row_errors(textbook, right)
        assert mine.max() <= 2 * textbook.max()
        assert np.median(mine) <= 2 * np.median(textbook)


def test_permuting_keys_with_their_values_changes_nothing():
    q, k, v = inputs("batch", 6, 6)
    order = np.random.default_rng(1).permutation(6)
    moved = dense_attention(q, k[..., order, :], v[..., order, :], mask="full")
    assert row_errors(moved, dense_attention(q, k, v, mask="full")).max() <= tolerance("reordered").rtol


def test_a_shift_common_to_all_keys_cancels():
    q, k, v = inputs("one head", 6, 6)
    shifted = dense_attention(q, k + np.array([3.0, -2.0, 5.0]), v)
    assert row_errors(shifted, dense_attention(q, k, v)).max() <= tolerance("reordered").rtol


@pytest.mark.parametrize("shift", [1e3, -1e3], ids=str)
def test_a_constant_added_to_a_row_of_logits_cancels(shift):
    q, k, v = inputs("one head", 6, 6)
    shifted, cache = dense_attention_forward(q, k, v, mask=("causal", np.full((6, 6), shift)))
    expected, plain = dense_attention_forward(q, k, v)
    assert row_errors(shifted, expected).max() <= tolerance("reordered").rtol
    np.testing.assert_allclose(cache.log_sum_exp, plain.log_sum_exp + shift, rtol=tolerance("rounding").rtol)


@pytest.mark.parametrize("dtype", [np.float32, np.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("block", [1, 7, None], ids=str)
@pytest.mark.parametrize("t", [1, 32, 64], ids=str)
def test_changing_the_future_changes_no_past_row_in_any_bit(t, block, dtype):
    q, k, v = normal((2, 65, 64), (2, 65, 64), (2, 65, 16), dtype=dtype)
    out = dense_attention(q, k, v, block=block)
    for future in (0.0, -1e3, np.finfo(dtype).max / 2):
        q2, k2, v2 = q.copy(), k.copy(), v.copy()
        k2[:, t:], v2[:, t:] = future, future
        q2[:, t:] = 0.0
        assert dense_attention(q2, k2, v2, block=block)[:, :t].tobytes() == out[:, :t].tobytes()


def test_output_is_linear_in_the_values():
    q, k, v = inputs("one head", 6, 6)
    assert np.array_equal(dense_attention(q, k, 4 * v), 4 * dense_attention(q, k, v))
