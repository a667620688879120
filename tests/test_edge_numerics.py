"""Dense attention at the edge of the numbers: right against extended precision, or refused, forward and backward."""

import numpy as np
import pytest

from refattn import dense_attention, dense_attention_backward, dense_attention_forward

N = 24


def queries_and_keys(kind, dtype):
    """Widths of one, so that a logit is one product: q_i k_j with scale 1."""
    rng = np.random.default_rng(0)
    huge = 1e300 if dtype is np.float64 else 1e38
    signs = rng.choice([-1.0, 1.0], (2, N, 1))
    root = np.sqrt(huge)
    q, k = {
        "1e4": (100 * signs[0], 100 * signs[1]),
        "huge": (root * signs[0], root * signs[1]),
        "all equal": (np.ones((N, 1)), np.full((N, 1), -7.25)),
        "one-hot": (np.ones((N, 1)), 1e4 * (np.arange(N) == 3)[:, None]),
        "one-hot, huge": (np.ones((N, 1)), huge * (np.arange(N) == 3)[:, None]),
        "subnormal": (signs[0] * 1e-20, signs[1] * 1e-20),
    }[kind]
    return q.astype(dtype), k.astype(dtype)


def right(q, k, v, allowed):
    logits = np.where(allowed, q.astype(np.longdouble) @ k.astype(np.longdouble).T, -np.inf)
    largest = logits.max(axis=1, keepdims=True)
    weights = np.exp(logits - np.where(np.isneginf(largest), 0, largest))
    total = weights.sum(axis=1, keepdims=True)
    return weights / np.where(total > 0, total, 1) @ v.astype(np.longdouble)


def allowed_by(name):
    rng = np.random.default_rng(1)
    return {
        "causal": np.tri(N, dtype=bool),
        "full": np.ones((N, N), bool),
        "one allowed in a row": np.eye(N, dtype=bool)[rng.permutation(N)],
        "every other row sees nothing": rng.random((N, N)) < 0.5 * (np.arange(N) % 2)[:, None],
        "nothing": np.zeros((N, N), bool),
    }[name]


MASKS = ("causal", "full", "one allowed in a row", "every other row sees nothing", "nothing")


@pytest.mark.parametrize("form", ["boolean", "additive"])
@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("kind", ["1e4", "huge", "all equal", "one-hot", "one-hot, huge", "subnormal"])
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_right_forward_and_finite_backward(kind, mask, form, dtype):
    q, k = queries_and_keys(kind, dtype)
    v = np.random.default_rng(2).standard_normal((N, 3)).astype(dtype)
    allowed = allowed_by(mask)
    given = allowed if form == "boolean" else np.where(allowed, 0, -np.inf).astype(dtype)
    out, cache = dense_attention_forward(q, k, v, mask=given, scale=1.0)
    np.testing.assert_allclose(out, right(q, k, v, allowed), rtol=0, atol=64 * np.finfo(dtype).eps)
    found = dense_attention_backward(np.ones_like(out), cache)
    assert all(np.isfinite(gradient).all() for gradient in found)
    blind = ~allowed.any(axis=1)
    assert not out[blind].any()
    assert not found.q[blind].any()


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_a_logit_that_overflows_is_refused_and_a_hidden_one_is_not(dtype):
    q = np.full((N, 1), np.finfo(dtype).max / 2, dtype)
    with pytest.raises(ValueError, match=r"^q, k: the logit of query 0 and key 0 is inf"):
        dense_attention(q, q, q, scale=1.0)
    k = np.where(np.arange(N) == 0, 0, q.T).T.astype(dtype)
    out = dense_attention(q, k, k, scale=1.0, mask=np.arange(N) == np.zeros((N, 1)))
    assert not out.any()


def test_a_gradient_that_overflows_is_refused():
    q, k, v = np.random.default_rng(3).standard_normal((3, N, 2))
    out, cache = dense_attention_forward(q, k, v)
    with pytest.raises(ValueError, match=r"^dout: gradient of "):
        dense_attention_backward(np.full_like(out, 1e308), cache)


@pytest.mark.parametrize("cache", [None, 1.0, "cache", ()], ids=repr)
def test_a_cache_of_another_kind_is_refused(cache):
    with pytest.raises(
        TypeError, match=r"^cache: .* came, a DenseForwardCache from dense_attention_forward was wanted"
    ):
        dense_attention_backward(np.ones((2, 2)), cache)


@pytest.mark.parametrize("flag", [np.ones(2), "yes", None, 1], ids=repr)
def test_a_flag_is_true_or_false(flag):
    with pytest.raises(TypeError, match=r"^check_finite: "):
        dense_attention(np.ones((2, 2)), np.ones((2, 2)), np.ones((2, 2)), check_finite=flag)


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_a_scale_of_zero_averages_and_one_too_small_for_its_digits_is_refused(dtype, sign):
    q, k, v = np.random.default_rng(3).standard_normal((3, 6, 4)).astype(dtype)
    least = float(np.finfo(dtype).tiny)
    means = np.cumsum(v, axis=0) / np.arange(1, 7)[:, None]
    for scale in (0.0, least):
        out, cache = dense_attention_forward(q, k, v, scale=sign * scale)
        np.testing.assert_allclose(out, means, rtol=0, atol=20 * np.finfo(dtype).eps)
        gradients = dense_attention_backward(v, cache)
        assert np.abs(gradients.q).max() <= 100 * scale
        assert np.abs(gradients.k).max() <= 100 * scale
    with pytest.raises(ValueError, match=f"^scale: .* came, 0 or at least .* in {np.dtype(dtype)}, or float64"):
        dense_attention_forward(q, k, v, scale=sign * least / 2)
