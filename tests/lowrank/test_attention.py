"""Masked low-rank attention: within its bound of exact attention, with its own derivatives, or refused."""

from __future__ import annotations

import numpy as np
import pytest

from refattn import Causal, dense_attention
from refattn.lowrank import (
    ContinuousRowsMask,
    FeatureMap,
    PolynomialFeatures,
    RandomFeatures,
    lowrank_attention,
    lowrank_attention_backward,
    lowrank_attention_forward,
    lowrank_bound,
    shifted_groups,
    sliding_window,
)
from refattn.testing import check_gradients, check_jacobian, tolerance

METHODS = ("fast", "paper", "oracle")


def bounded(n, d, seed, size=0.6, lead=()):
    rng = np.random.default_rng(seed)
    q, k = rng.uniform(-size, size, (2, *lead, n, d))
    return q, k, rng.standard_normal((*lead, n, d))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("error", [0.3, 1e-3, 1e-8])
def test_the_output_is_within_the_bound_of_exact_attention(kind, draw, method, error):
    q, k, v = bounded(50, 3, seed=0)
    mask = kind.from_dense(draw(kind, 50, np.random.default_rng(1)))
    out, cache = lowrank_attention_forward(q, k, v, error=error, mask=mask, method=method)
    exact = dense_attention(q, k, v, mask=mask.to_dense())
    assert cache.features.error <= error
    assert np.abs(out - exact).max() <= cache.bound <= 2 * error * np.abs(v).max()
    assert (cache.rounding < 1e-12).all()


def test_the_bound_on_the_output_is_reached():
    for delta in (0.01, 0.3, 0.9):
        ratio = (1 + delta) / (1 - delta)
        p = 1 / (1 + np.sqrt(ratio))  # the share of the value that is overweighted
        changed = p * (1 + delta) / (p * (1 + delta) + (1 - p) * (1 - delta))
        assert np.isclose(2 * (changed - p), lowrank_bound(delta, 1.0), rtol=1e-12)
        shares = np.linspace(0, 1, 1001)
        others = shares * (1 + delta) / (shares * (1 + delta) + (1 - shares) * (1 - delta))
        assert (2 * np.abs(others - shares) <= lowrank_bound(delta, 1.0) * (1 + 1e-12)).all()


@pytest.mark.slow
@pytest.mark.parametrize("mask", ["causal", "full"])
def test_causal_and_full_are_those_of_exact_attention(mask):
    q, k, v = bounded(64, 4, seed=2)
    out = lowrank_attention(q, k, v, error=1e-10, mask=mask)
    if mask == "causal":
        np.testing.assert_array_equal(lowrank_attention(q, k, v, error=1e-10, mask=Causal()), out)
    np.testing.assert_allclose(out, dense_attention(q, k, v, mask=mask), rtol=0, atol=1e-9)


def test_grouped_heads_and_scale():
    rng = np.random.default_rng(3)
    q, k, v = (rng.uniform(-0.5, 0.5, (2, heads, 20, 3)) for heads in (4, 2, 2))
    out = lowrank_attention(q, k, v, error=1e-9, scale=0.8)
    np.testing.assert_allclose(out, dense_attention(q, k, v, scale=0.8), rtol=0, atol=1e-8)
    gradients = lowrank_attention_backward(out, lowrank_attention_forward(q, k, v, error=1e-9, scale=0.8)[1])
    assert [g.shape for g in gradients] == [q.shape, k.shape, v.shape]


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    "features",
    [PolynomialFeatures(3, 5, 3.0), RandomFeatures(3, 9, seed=0)],
    ids=["polynomial", "random"],
)
@pytest.mark.parametrize(
    "mask",
    [
        "causal",
        "full",
        sliding_window(10, 3),
        shifted_groups(10, 4),
        ContinuousRowsMask([0, 3, 3] * 3 + [0], [1, 3, 9] * 3 + [9]),
    ],
    ids=["causal", "full", "window", "groups", "empty-rows"],
)
def test_gradients_are_derivatives(features, mask, method):
    inputs = dict(zip("qkv", bounded(10, 3, seed=4), strict=True))
    options = {"features": features, "mask": mask}
    _, cache = lowrank_attention_forward(**inputs, **options, method=method)

    def function(**values):
        return lowrank_attention(**values, **options, method="oracle")

    def gradients(upstream):
        return lowrank_attention_backward(upstream, cache)._asdict()

    check_gradients(function, gradients, inputs, rtol=tolerance("differences").rtol)
    if method == "fast" and mask == "causal":
        check_jacobian(function, gradients, inputs, rtol=tolerance("differences").rtol)


def test_grouped_gradients_are_derivatives():
    rng = np.random.default_rng(5)
    inputs = {name: rng.uniform(-0.5, 0.5, (heads, 7, 3)) for name, heads in (("q", 4), ("k", 2), ("v", 2))}
    features = PolynomialFeatures(3, 3, 2.0)
    _, cache = lowrank_attention_forward(**inputs, features=features)
    check_gradients(
        lambda **x: lowrank_attention(**x, features=features),
        lambda upstream: lowrank_attention_backward(upstream, cache)._asdict(),
        inputs,
        rtol=1e-7,
    )


def test_random_features_come_closer_with_their_number():
    q, k, v = bounded(200, 8, seed=6, size=1.0)
    exact = dense_attention(q, k, v)
    errors = [
        np.mean(
            [np.abs(lowrank_attention(q, k, v, features=RandomFeatures(8, r, seed=s)) - exact).mean() for s in range(5)]
        )
        for r in (16, 256, 4096)
    ]
    assert errors[0] > 2 * errors[1] > 4 * errors[2]


def test_rows_that_see_nothing_are_zero_and_their_gradients_too():
    q, k, v = bounded(4, 2, seed=7)
    mask = ContinuousRowsMask([0, 2, 0, 0], [1, 2, 0, 4])
    out, cache = lowrank_attention_forward(q, k, v, error=1e-3, mask=mask)
    assert not out[1:3].any()
    assert not lowrank_attention_backward(np.ones((4, 2)), cache).q[1:3].any()


def test_float32_stays_float32_and_is_rounded_once():
    q, k, v = (x.astype(np.float32) for x in bounded(300, 4, seed=8))
    wide = lowrank_attention(*(x.astype(float) for x in (q, k, v)), error=1e-6)
    out = lowrank_attention(q, k, v, error=1e-6)
    assert out.dtype == np.float32
    assert np.abs(out - wide).max() <= 1e-6 * np.abs(wide).max()


def test_logits_outside_the_bound_are_refused_not_returned():
    q, k, v = bounded(30, 3, seed=9, size=3.0)
    with pytest.raises(ValueError, match=r"q, k: norms allow logits up to .* at most the features' bound 1 was wanted"):
        lowrank_attention(q, k, v, features=PolynomialFeatures(3, 4, 1.0))


class WithoutItsCheck(PolynomialFeatures):
    """The features outside their bound: what the denominators' own check is for."""

    def _require_inside(self, q, k):
        pass


def test_a_denominator_that_the_error_does_not_allow_is_refused():
    q, k = np.array([[1.0], [1.0], [1.0]]), np.array([[0.1], [-6.0], [0.1]])
    features = WithoutItsCheck(1, 3, 1.0, scale=1.0)
    with pytest.raises(ValueError, match=r"the denominator of row 1 is -\d"):
        lowrank_attention(q, k, k, features=features)


class Peaked(FeatureMap):
    """Two features, the second of them present at one key only and 10¹² times as large."""

    width, rank, scale, error = 1, 2, 1.0, None

    def _require_inside(self, q, k):
        pass

    def _queries(self, q, *, shifted):
        return np.ones((len(q), 2))

    def _keys(self, k, *, shifted):
        return np.stack([np.ones(len(k)), 1e12 * (np.arange(len(k)) == 3)], axis=1)

    def _pull_queries(self, q, u, du):
        return q

    def _pull_keys(self, k, u, du):
        return k


class Cancelling(Peaked):
    """Two features whose products are 10¹² each, and 1 together."""

    def _keys(self, k, *, shifted):
        return np.stack([np.full(len(k), 1e12), np.full(len(k), 1 - 1e12)], axis=1)


@pytest.mark.parametrize("method", METHODS)
def test_a_row_beside_far_larger_ones_is_not_lost(method):
    x = np.arange(400.0)[:, None]
    out, cache = lowrank_attention_forward(x, x, x, features=Peaked(), mask=sliding_window(400, 1), method=method)
    np.testing.assert_array_equal(out, x)
    assert (cache.rounding < 1e-9).all()


@pytest.mark.parametrize("method", METHODS)
def test_a_row_lost_in_rounding_is_refused(method):
    x = np.zeros((400, 1))
    with pytest.raises(ValueError, match=r"row \d+ is so small beside the terms .* rounding is estimated at"):
        lowrank_attention(x, x, x, features=Cancelling(), mask=sliding_window(400, 1), method=method)


def test_the_rounding_estimate_covers_the_error_of_the_denominators():
    rng = np.random.default_rng(10)
    for size in (0.5, 2.0, 4.0):
        q, k = size * rng.standard_normal((2, 2000, 4))
        for window in (30, 300):
            features, mask = RandomFeatures(4, 16, seed=0), sliding_window(2000, window)
            _, cache = lowrank_attention_forward(q, k, k, features=features, mask=mask)
            _, right = lowrank_attention_forward(q, k, k, features=features, mask=mask, method="oracle")
            error = np.abs(cache.denominators / right.denominators - 1)
            assert (error <= cache.rounding + 1e-14).all()


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"error": None}, TypeError, "exactly one"),
        ({"features": PolynomialFeatures(2, 3, 1.0)}, TypeError, "exactly one"),
        ({"error": 1.5}, ValueError, "error: 1.5 came"),
        ({"error": -1.0}, ValueError, "error: -1.0 came"),
        ({"error": None, "features": "polynomial"}, TypeError, "features: str came"),
        ({"error": None, "features": PolynomialFeatures(2, 3, 1.0), "scale": 1.0}, TypeError, "scale: 1.0 came"),
        ({"error": None, "features": PolynomialFeatures(4, 3, 1.0)}, ValueError, "q: shape"),
        ({"mask": "window"}, ValueError, "'causal', 'full'"),
        ({"mask": sliding_window(4, 2)}, ValueError, "mask: 4 rows came"),
        ({"mask": np.tri(3)}, TypeError, "mask: ndarray came"),
        ({"k": np.ones((4, 2)), "v": np.ones((4, 2))}, ValueError, "k: 4 rows came"),
        ({"method": "quick"}, ValueError, "'fast', 'paper', 'oracle'"),
        ({"q": np.full((3, 2), np.nan)}, ValueError, "q: nan at index"),
        ({"error": 1e-3, "q": np.full((3, 2), 100.0)}, ValueError, "q, k: norms allow logits up to 141.42"),
    ],
)
def test_bad_input_is_refused(change, error, message):
    good = {"q": np.ones((3, 2)), "k": np.ones((3, 2)), "v": np.ones((3, 2)), "error": 0.1}
    with pytest.raises(error, match=message):
        lowrank_attention(**{**good, **change})


def test_bad_numbers_for_the_bound_are_refused():
    for delta in (1.0, -0.1):
        with pytest.raises(ValueError, match="error:"):
            lowrank_bound(delta, 1.0)
    _, cache = lowrank_attention_forward(*np.zeros((3, 3, 2)), error=0.1)
    with pytest.raises(ValueError, match="dout: shape"):
        lowrank_attention_backward(np.ones((3, 3)), cache)
