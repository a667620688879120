"""SparseK at the edge of the numbers: the methods agree, forward and backward are finite or refused."""

import numpy as np
import pytest

from refattn.sparsek import (
    SparseKCache,
    prefix_pullback,
    prefix_thresholds,
    sparsek_attention,
    sparsek_attention_backward,
    sparsek_attention_forward,
    sparsek_by_bisection,
    sparsek_jvp,
    sparsek_operator,
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
    np.testing.assert_allclose(sparsek_operator(scores(kind), k), p, rtol=0, atol=1e-13)
    np.testing.assert_allclose(p.sum(), k, rtol=1e-13)
    assert np.isfinite(tau)


def test_a_gate_keeps_its_digits_up_to_the_largest_score():
    q, v = np.zeros((N, 1)), np.eye(N)
    base = np.random.default_rng(4).standard_normal(N)
    for size in (0.0, 1e6, 9e8):
        out, _ = sparsek_attention_forward(q, q, v, base + size, n_select=5)
        gates = np.array([np.pad(sparsek_operator(base[: i + 1], 5), (0, N - i - 1)) for i in range(N)])
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
    p = sparsek_operator([0.1, 0.2, 0.3, 0.4], 1.5)
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


@pytest.mark.parametrize("method", ["fast", "paper", "oracle"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64], ids=["float32", "float64"])
def test_an_average_of_the_largest_numbers_is_finite_in_the_attention_and_in_every_step(dtype, method):
    largest = np.finfo(dtype).max
    q, k, z = (np.random.default_rng(5).standard_normal(shape).astype(dtype) for shape in ((N, 3), (N, 3), N))
    v = np.full((N, 2), largest) * [1, -1]
    v = v.astype(dtype)
    options = {"n_select": 2, "window": 5}
    cache, prefilled = SparseKCache(**options), SparseKCache(**options)
    with np.errstate(all="raise"):
        rows = [
            sparsek_attention(q, k, v, z, **options, method=method),
            np.array([cache.step(q[t], k[t], v[t], z[t]) for t in range(N)]),
            prefilled.prefill(q, k, v, z),
        ]
    for out in rows:
        np.testing.assert_allclose(out[:6] / largest, v[:6] / largest, rtol=20 * np.finfo(dtype).eps)
        assert np.isfinite(out).all()


def test_a_logit_that_only_its_scale_makes_small_is_judged_alike_everywhere():
    q, k = np.full((2, N, 2), 1.05e154)  # q · k is beyond the largest number, 1/√d times it is not
    k = k * np.random.default_rng(6).uniform(0.9, 1, (N, 1))
    v, z = np.random.default_rng(7).standard_normal((N, 2)), scores("normal")
    options = {"n_select": 3, "window": 2}
    outs = [sparsek_attention(q, k, v, z, **options, method=method) for method in ("fast", "paper", "oracle")]
    cache = SparseKCache(**options)
    outs.append(np.array([cache.step(q[t], k[t], v[t], z[t]) for t in range(N)]))
    assert all(np.isfinite(out).all() for out in outs)
    for out in outs:
        np.testing.assert_array_equal(out[:2], outs[0][:2])
        with pytest.raises(ValueError, match=r"^q, k: a logit of query 0 \(head 0\) overflows"):
            sparsek_attention(1.5 * q, k, v, z, **options)
    with pytest.raises(ValueError, match=r"^q, k: a logit of query 0 \(head 0\) overflows"):
        SparseKCache(**options).step(1.5 * q[0], 1.2 * k[0], v[0], z[0])


@pytest.mark.parametrize("method", ["fast", "paper", "oracle"])
def test_a_scale_of_zero_averages_what_is_selected_and_one_without_digits_is_refused(method):
    q, k, v = np.random.default_rng(5).standard_normal((3, N, 2)).astype(np.float32)
    z, least = np.float32(scores("normal")), float(np.finfo(np.float32).tiny)
    options = {"n_select": 4, "window": 3, "hard": True, "method": method}
    averaged = sparsek_attention(q, np.zeros_like(k), v, z, **options)
    for scale in (0.0, least, -least):
        out = sparsek_attention(q, k, v, z, **options, scale=scale)
        np.testing.assert_allclose(out, averaged, rtol=0, atol=20 * np.finfo(np.float32).eps)
    with pytest.raises(ValueError, match=r"^scale: .* came, 0 or at least"):
        sparsek_attention(q, k, v, z, **options, scale=least / 2)


@pytest.mark.parametrize("head", range(6))
def test_a_logit_that_overflows_is_named_by_its_head_everywhere(head):
    rng = np.random.default_rng(9)
    q, k, v = rng.uniform(0.5, 1, (3, 2, 3, 4, 2))
    z, options = rng.standard_normal((2, 3, 4)), {"n_select": 3, "window": 2}
    q[np.unravel_index(head, (2, 3))] *= 1e200
    k *= 1e150
    named = rf"^q, k: a logit of query 0 \(head {head}\) overflows"
    for method in ("fast", "paper", "oracle"):
        with pytest.raises(ValueError, match=named):
            sparsek_attention(q, k, v, z, **options, method=method)
    with pytest.raises(ValueError, match=named):
        SparseKCache(**options).step(q[..., 0, :], k[..., 0, :], v[..., 0, :], z[..., 0])


@pytest.mark.parametrize("taken", [0, 9])
def test_a_refused_step_or_prompt_leaves_the_cache_as_it_was(taken):
    q, k, v = np.random.default_rng(8).standard_normal((3, N, 2))
    z = scores("normal")
    untouched, cache = SparseKCache(4, 3), SparseKCache(4, 3)
    for one in (untouched, cache):
        for t in range(taken):
            one.step(q[t], k[t], v[t], z[t])
    huge = k.copy()
    huge[taken + 5] = 1e300
    for _ in range(2):
        with pytest.raises(ValueError, match="overflows float64"):
            cache.step(1e300 * q[taken], huge[taken + 5], v[taken], z[taken])
        with pytest.raises(ValueError, match="overflows float64"):
            cache.prefill(1e300 * q[taken:], huge[taken:], v[taken:], z[taken:])
    assert cache.position == taken
    for t in range(taken, N):
        token = q[t], k[t], v[t], z[t]
        np.testing.assert_array_equal(cache.step(*token), untouched.step(*token))


@pytest.mark.parametrize("method", ["fast", "paper", "oracle"])
def test_a_product_of_upstream_and_value_that_overflows_where_nobody_attends_changes_no_gradient(method):
    rng = np.random.default_rng(9)
    q, k, v, dout = rng.standard_normal((4, N, 2))
    v[20:], dout[:20], dout[20:] = 1e300, 1e200, 0.0
    options = {"n_select": 3, "window": 2, "method": method}
    _, cache = sparsek_attention_forward(q, k, v, scores("normal"), **options)
    _, ordinary = sparsek_attention_forward(q, k, np.where(v == 1e300, 1.0, v), scores("normal"), **options)
    for one, other in zip(
        sparsek_attention_backward(dout, cache), sparsek_attention_backward(dout, ordinary), strict=True
    ):
        np.testing.assert_allclose(one, other, rtol=1e-12, atol=1e186)


def test_a_scale_that_float32_cannot_hold_is_refused():
    x = np.ones((N, 1), np.float32)
    with pytest.raises(ValueError, match=r"^scale: 1e-46 came, 0 or at least 1.18e-38 in size was wanted in float32"):
        sparsek_attention(x, x, x, x[:, 0], n_select=2, scale=1e-46)
    with pytest.raises(ValueError, match=r"^scale: 1e-46 came"):
        SparseKCache(2, scale=1e-46).step([np.float32(1)], [np.float32(1)], [np.float32(1)], np.float32(1))


def test_the_gradient_of_hard_gates_of_huge_scores_is_refused_and_their_output_is_not():
    x = np.random.default_rng(10).standard_normal((N, 2))
    out, cache = sparsek_attention_forward(x, x, x, scores("huge"), n_select=2, hard=True)
    assert np.isfinite(out).all()
    with pytest.raises(ValueError, match=r"^cache: scores: .* was wanted for soft gates and for the gradient of hard"):
        sparsek_attention_backward(out, cache)


def test_means_of_finite_tangents_are_finite():
    p, largest = sparsek_operator([0.1, 0.2, 0.3, 0.4], 1.5), np.finfo(float).max
    assert not sparsek_jvp(p, np.full(4, largest)).any()
    assert not sparsek_vjp(p, np.full(4, largest)).z.any()


def test_small_ranges_keep_their_digits_after_large_ones():
    z = np.array([0.0, 0.1, 5.0, 6.0, 5.1, 5.2])
    intervals = support_intervals(z, prefix_thresholds(z, 2))
    small, large = np.array([0, 0, 0, 0, 1.0, 3.0]), np.array([0, 0, 1e20, 0, 1.0, 3.0])
    late = intervals.soften > 2
    found = [prefix_pullback(rows, np.zeros(6), intervals) for rows in (small, large)]
    np.testing.assert_allclose(found[1][late], found[0][late], rtol=1e-15)
    assert found[0][late].any()
