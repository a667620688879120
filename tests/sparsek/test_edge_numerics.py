"""SparseK at the edge of the numbers: the methods agree, forward and backward are finite or refused."""

import numpy as np
import pytest

from refattn.sparsek import (
    SparseKCache,
    prefix_pullback,
    prefix_thresholds,
    sparsek,
    sparsek_attention_backward,
    sparsek_attention_forward,
    sparsek_by_bisection,
    sparsek_jvp,
    sparsek_scores,
    sparsek_scores_backward,
    sparsek_scores_forward,
    sparsek_vjp,
    support_intervals,
)

N = 40
HUGE = 1e300


def scores(kind):
    rng = np.random.default_rng(0)
    sign = rng.choice([-1.0, 1.0], N)
    return {
        "normal": rng.standard_normal(N),
        "1e4": sign * 1e4 + rng.standard_normal(N),
        "huge": sign * HUGE,
        "largest": sign * np.finfo(float).max,
        "all equal": np.full(N, 3.5),
        "all equal, huge": np.full(N, HUGE),
        "one-hot": HUGE * (np.arange(N) == 7),
        "subnormal": sign * 1e-310,
    }[kind]


SCORES = ("normal", "1e4", "huge", "largest", "all equal", "all equal, huge", "one-hot", "subnormal")
BEYOND_GATES = ("huge", "largest", "all equal, huge", "one-hot")
LOGITS = {"normal": 1.0, "1e4": 1e4, "huge": HUGE, "zero": 0.0, "subnormal": 1e-310}


@pytest.mark.parametrize("gate", ["kv", "none"])
@pytest.mark.parametrize("kind", SCORES)
@pytest.mark.parametrize("logits", LOGITS)
def test_the_methods_agree_and_are_finite(logits, kind, gate):
    rng = np.random.default_rng(1)
    q, k = np.full((N, 1), np.sqrt(LOGITS[logits])), rng.standard_normal((N, 1)) * np.sqrt(LOGITS[logits])
    v, dout = rng.standard_normal((2, N, 2))
    if kind in BEYOND_GATES and gate != "none":
        with pytest.raises(ValueError, match=r"^scores: .* was wanted for soft gates"):
            sparsek_attention_forward(q, k, v, scores(kind), n_select=3, window=2, gate=gate)
        return
    outputs = {}
    for method in ("fast", "paper", "oracle"):
        out, cache = sparsek_attention_forward(
            q, k, v, scores(kind), n_select=3, window=2, gate=gate, scale=1.0, method=method
        )
        found = sparsek_attention_backward(dout, cache)
        assert all(np.isfinite(one).all() for one in (out, *found))
        outputs[method] = out
    # scores of 1e4 leave a gate 12 digits, which a logit of 1e4 multiplies
    atol = 1e-12 if logits in ("normal", "zero", "subnormal") else 1e-7
    if logits != "huge":
        np.testing.assert_allclose(outputs["fast"], outputs["oracle"], rtol=0, atol=atol)
        np.testing.assert_allclose(outputs["paper"], outputs["oracle"], rtol=0, atol=atol)


@pytest.mark.parametrize("k", [0, 1e-3, 1, 2.5, N - 1])
@pytest.mark.parametrize("kind", SCORES)
def test_the_operator_and_bisection_agree(kind, k):
    """Beyond 1e18 neighbouring scores are far apart: a bracket in the scores' own units does not narrow enough."""
    p, tau = sparsek_by_bisection(scores(kind), k)
    np.testing.assert_allclose(sparsek(scores(kind), k), p, rtol=0, atol=1e-13)
    np.testing.assert_allclose(p.sum(), k, rtol=1e-13)
    assert np.isfinite(tau)


def test_a_gate_keeps_its_digits_up_to_the_largest_score():
    q, v = np.zeros((N, 1)), np.eye(N)
    base = np.random.default_rng(4).standard_normal(N)
    for size in (0.0, 1e6, 9e8):
        out, _ = sparsek_attention_forward(q, q, v, base + size, n_select=5)
        gates = np.array([np.pad(sparsek(base[: i + 1], 5), (0, N - i - 1)) for i in range(N)])
        weights = np.where(gates > 0, gates, 0) / np.minimum(np.arange(1, N + 1), 5)[:, None]
        chosen = out > 0
        np.testing.assert_allclose(out[chosen], weights[chosen], rtol=0, atol=1e-15 + 4e-16 * size)


def test_bisection_of_equal_huge_scores_shares_the_budget():
    p, _ = sparsek_by_bisection(np.full(3, 1.1219524e84), 1e-3)
    np.testing.assert_allclose(p, 1e-3 / 3, rtol=1e-13)


@pytest.mark.parametrize("method", ["fast", "paper", "oracle"])
@pytest.mark.parametrize("size", [1e155, HUGE])
def test_a_logit_that_overflows_is_refused(size, method):
    q = np.full((N, 2), size)
    with pytest.raises(ValueError, match=r"^q, k: a logit of query 0"):
        sparsek_attention_forward(q, q, q, scores("normal"), n_select=3, method=method)


@pytest.mark.parametrize("method", ["fast", "paper", "oracle"])
def test_a_gradient_that_overflows_is_refused(method):
    q, k, v = np.random.default_rng(2).standard_normal((3, N, 2))
    out, cache = sparsek_attention_forward(q, k, v, scores("normal"), n_select=3, window=1, method=method)
    with pytest.raises(ValueError, match=r"^dout: gradient of "):
        sparsek_attention_backward(np.full_like(out, 1e308), cache)


def test_derivatives_of_the_operator_that_overflow_are_refused():
    p = sparsek([0.1, 0.2, 0.3, 0.4], 1.5)
    largest = np.finfo(float).max * np.array([1, -1, -1, -1])
    with pytest.raises(ValueError, match=r"^dz, dk: tangent: "):
        sparsek_jvp(p, largest)
    with pytest.raises(ValueError, match=r"^dp: gradient of z: "):
        sparsek_vjp(p, largest)
    with pytest.raises(ValueError, match=r"^dk: shape \(3,\) came"):
        sparsek_jvp(p, np.zeros(4), np.zeros(3))


def test_a_pullback_that_overflows_is_refused_and_so_are_other_intervals():
    z = np.linspace(0, 1, N)
    intervals = support_intervals(z, prefix_thresholds(z, 2))
    with pytest.raises(ValueError, match=r"^by_position, by_entry: gradient: "):
        prefix_pullback(np.full(N, 1e308), np.full(N, -1e308), intervals)
    with pytest.raises(TypeError, match=r"^intervals: NoneType came"):
        prefix_pullback(z, z, None)


def test_scores_that_overflow_are_refused_and_none_is_made_zero():
    x = np.full((N, 1), HUGE)
    with pytest.raises(ValueError, match=r"^x, weight, slope: scores: "):
        sparsek_scores(x, [[HUGE]], [0.0])
    with pytest.raises(ValueError, match=r"^x, weight: running variance: "):
        sparsek_scores(x * np.arange(N)[:, None] / N, [[1.0]], [0.0], normalise=True)
    with pytest.raises(TypeError, match=r"^normalise: "):
        sparsek_scores([[1.0]], [[1.0]], [0.0], normalise=np.zeros(2))
    _, cache = sparsek_scores_forward(x, [[1.0]], [0.0])
    with pytest.raises(ValueError, match=r"^dscores: gradient of "):
        sparsek_scores_backward(np.full((1, N), HUGE), cache)


def test_a_cache_that_would_not_fit_is_refused_at_the_first_token():
    with pytest.raises(MemoryError, match=r"^n_select, window: what the cache keeps: about "):
        SparseKCache(2**31, 2**40).step([1.0], [1.0], [1.0], 1.0)
    with pytest.raises(ValueError, match=r"^n_select: "):
        SparseKCache(10**30)
