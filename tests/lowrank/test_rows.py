"""Every row of every masked product, of attention and of every gradient is right by its own size, or refused.

250 cases of each precision, 20,000 in a campaign.
"""

from __future__ import annotations

import lengths
import numpy as np
import pytest

from refattn import dense_attention
from refattn.lowrank import (
    ContinuousRowsMask,
    DistinctRowsMask,
    PolynomialFeatures,
    RandomFeatures,
    as_row_change,
    fast,
    guard,
    logit_bound,
    lowrank_attention,
    lowrank_attention_backward,
    lowrank_attention_forward,
    masked_product_backward,
    masked_product_forward,
    paper,
    shifted_groups,
    sliding_window,
)
from refattn.lowrank.masks import CausalStructure
from refattn.testing import tolerance

DTYPES = [np.float64, np.float32]
METHODS = ("fast", "fast", "paper", "oracle")  # the compiled one twice as often


def rtol(dtype, method):
    """Algorithm 5 is judged at 1e-10, and a gradient of attention takes several such numbers."""
    return 1e-9 if method == "paper" and dtype == np.float64 else tolerance("row", dtype).rtol


def first_fault(of_case, dtype, draw, seeds, methods=METHODS):
    """What is wrong with the first case that is; None if nothing is and few are refused."""
    refused = 0
    for seed in seeds:
        method = methods[seed % len(methods)]
        found = of_case(seed, dtype, draw, method, rtol(dtype, method), long=seed % 100 == 99)
        refused += found == "refused"
        if found not in (None, "refused"):
            return f"seed {seed}, {method}: {found}"
    return None if refused <= 0.2 * len(seeds) else f"{refused} of {len(seeds)} cases were refused"


@pytest.mark.slow
@lengths.cases(99, 250, campaign=10_000)  # every hundredth is long
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: dtype.__name__)
@pytest.mark.parametrize("of_what", ["product", "attention"])
def test_every_row_is_within_its_tolerance_or_refused(of_what, dtype, draw, drawn_rows, cases):
    of_case = getattr(drawn_rows, f"{of_what}_fault")
    assert first_fault(of_case, dtype, draw, cases) is None


# --- what the property catches ---


def _unjudged(monkeypatch):
    monkeypatch.setattr(guard, "untrusted", lambda bound, Y: np.zeros(len(Y), bool))


def _judged_by_the_array(monkeypatch):
    right = guard.untrusted
    monkeypatch.setattr(guard, "untrusted", lambda bound, Y: right(bound, np.full(Y.shape, np.abs(Y).max())))


def _bounds_of_other_vectors(monkeypatch):
    """The bound is made of the factors and of values one, as for denominators, whatever is multiplied."""
    right = guard.rounding_bound
    monkeypatch.setattr(
        guard, "rounding_bound", lambda mask, A, B, X, **way: right(mask, A, B, np.ones(X.shape), **way)
    )


def _forward_bounds_for_transposed(monkeypatch):
    right = guard.rounding_bound
    monkeypatch.setattr(guard, "rounding_bound", lambda *args, transposed: right(*args, transposed=False))


def _differences_of_prefixes(monkeypatch):
    """What is summed before the stop less what is summed before the start."""
    right = fast._over_intervals

    def wrong(start, stop, item, n, A, B, v, transposed):
        if transposed:
            return right(start, stop, item, n, A, B, v, transposed)
        prefixes = np.concatenate(
            [np.zeros((1, B.shape[1], v.shape[1])), np.cumsum(B[:, :, None] * v[:, None], axis=0)]
        )
        out = np.zeros((n, v.shape[1]))
        np.add.at(out, item, np.einsum("er,erd->ed", A[item], prefixes[stop] - prefixes[start]))
        return out

    monkeypatch.setattr(fast, "_over_intervals", wrong)


def _range_unguarded(monkeypatch):
    monkeypatch.setattr(guard, "_resolved", lambda A, X: 0.0)


def _row_left_out(monkeypatch):
    """The last row that an interval holds is not in its sum."""
    right = fast._over_intervals
    monkeypatch.setattr(
        fast, "_over_intervals", lambda start, stop, *rest: right(start, np.maximum(stop - 1, start), *rest)
    )


PLANTED = {
    "rows are not judged": (_unjudged, "paper"),
    "rows are judged by the largest of the array": (_judged_by_the_array, "paper"),
    "the bound is that of the denominators": (_bounds_of_other_vectors, "paper"),
    "the forward's bound serves the transposed": (_forward_bounds_for_transposed, "paper"),
    "prefixes are subtracted": (_differences_of_prefixes, "fast"),
    "what vanishes is not noticed": (_range_unguarded, "fast"),
    "an interval ends a row early": (_row_left_out, "fast"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", PLANTED)
def test_the_property_catches(name, monkeypatch, draw, drawn_rows):
    plant, method = PLANTED[name]
    plant(monkeypatch)
    with np.errstate(all="ignore"):
        assert first_fault(drawn_rows.product_fault, np.float64, draw, range(98), (method,)) is not None


def test_the_property_catches_a_gradient_of_attention_off_by_a_billionth(monkeypatch, draw, drawn_rows):
    right = PolynomialFeatures._pull_keys
    monkeypatch.setattr(PolynomialFeatures, "_pull_keys", lambda *args: right(*args) * (1 + 1e-9))
    found = first_fault(drawn_rows.attention_fault, np.float64, draw, range(98), ("fast",))
    assert found is not None
    assert "dk: row" in found


# --- single cases ---


@pytest.mark.parametrize("method", ["fast", "paper", "oracle"])
@pytest.mark.parametrize(
    "mask", [sliding_window(256, 16), as_row_change(sliding_window(256, 16))], ids=["rows", "changes"]
)
@pytest.mark.parametrize("first", [1e6, 1e12, 1e18, 1e300])
def test_a_value_that_has_left_the_window_leaves_no_trace(first, mask, method):
    q, k, v = np.random.default_rng(0).uniform(-0.5, 0.5, (3, 256, 4))
    features = PolynomialFeatures.for_error(4, 1e-6, logit_bound(q, k))
    found = []
    for value in (0.0, first):
        v[0] = value
        out, cache = lowrank_attention_forward(q, k, v, features=features, mask=mask, method=method)
        found.append((out[16:], lowrank_attention_backward(np.sign(out) * (np.arange(256) > 31)[:, None], cache)))
    (without, gradients), (with_it, others) = found
    np.testing.assert_allclose(with_it, without, rtol=0, atol=1e-12)
    for one, other in zip(others, gradients, strict=True):
        np.testing.assert_allclose(one[32:], other[32:], rtol=0, atol=1e-12)


def test_rows_that_algorithm_5_would_lose_are_recomputed_and_counted():
    u = np.ones((400, 2))
    v = np.full((400, 1), 1 / 3)
    v[0] = 1e15
    for mask, lost in ((as_row_change(sliding_window(400, 10)), 390), (CausalStructure(400), 0)):
        out, cache = masked_product_forward(u, u, v, mask=mask, method="paper")
        assert cache.recomputed == lost
        if lost:
            np.testing.assert_allclose(out[10:], 20 / 3, rtol=1e-14)
            assert np.abs(paper.algorithm_5(mask, u, u, v)[10:] - 20 / 3).max() > 0.1


@pytest.mark.parametrize("method", ["fast", "paper", "oracle"])
def test_terms_that_no_scale_serves_have_exponents_of_their_own(method, monkeypatch):
    u, v = np.array([[1.0], [0.7e-160]]), np.full((2, 1), 1e140)
    right = [1e140, 0.7e-160 * 1e140 * 0.7e-160]
    out, cache = masked_product_forward(u, u, v, mask=sliding_window(2, 1), method=method)
    np.testing.assert_allclose(out.ravel(), right, rtol=1e-15)
    assert cache.recomputed == 1
    monkeypatch.setattr(guard, "_with_exponents", lambda a, B, X: ((a @ B.T) @ X, 0))
    out, _ = masked_product_forward(u, u, v, mask=sliding_window(2, 1), method=method)
    assert abs(out[1, 0] / right[1] - 1) > 1e-6  # u·u is not a normal number


def test_a_mean_is_finite_where_its_numerator_is_not():
    v = np.full((50, 2), 1.7e308)
    zeros = np.zeros((50, 2))
    for method in ("fast", "paper", "oracle"):
        out = lowrank_attention(zeros, zeros, v, error=1e-9, method=method)
        np.testing.assert_allclose(out / 1e308, 1.7, rtol=1e-12)


def test_what_is_not_finite_is_refused_with_the_check_of_the_inputs_off():
    q, v = np.zeros((4, 2)), np.ones((4, 2))
    v[2, 1] = np.inf
    with pytest.raises(ValueError, match=r"^v: inf at index \(2, 1\)"):
        lowrank_attention(q, q, v, error=1e-3, check_finite=False)
    v = np.full((4, 2), 3e38, np.float32)
    q = np.array([[2.0], [2.0], [2.0], [2.0]], np.float32)
    features = RandomFeatures(1, 2, seed=0)
    _, cache = lowrank_attention_forward(q, q, v, features=features)
    with pytest.raises(ValueError, match=r"^dout: gradient of "):
        lowrank_attention_backward(np.full((4, 2), 3e38, np.float32), cache)


# --- memory ---


def _layouts(x):
    """The same numbers in other orders, strides and bytes; written to never."""
    padded = np.zeros((2 * len(x), 3 * x.shape[1]), x.dtype)
    padded[::2, ::3] = x
    frozen = x.copy()
    frozen.flags.writeable = False
    return {
        "Fortran": np.asfortranarray(x),
        "reversed": x[::-1, ::-1].copy()[::-1, ::-1],
        "strided": padded[::2, ::3],
        "swapped bytes": x.astype(x.dtype.newbyteorder()),
        "read-only": frozen,
    }


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: dtype.__name__)
@pytest.mark.parametrize("method", ["fast", "paper", "oracle"])
def test_no_layout_of_the_inputs_changes_a_bit(kind, draw, method, dtype):
    rng = np.random.default_rng(20)
    mask = kind.from_dense(draw(kind, 70, rng))
    q, k, v, dout = (rng.uniform(-0.5, 0.5, (70, w)).astype(dtype) for w in (3, 3, 21, 21))
    features = PolynomialFeatures(3, 4, 0.5)

    def everything(q, k, v, dout):
        out, cache = lowrank_attention_forward(q, k, v, features=features, mask=mask, method=method)
        product, kept = masked_product_forward(q, k, v, mask=mask, method=method)
        u1, u2 = features.factors(q, k)
        random = RandomFeatures(3, 5, seed=0)
        f1, f2 = random.attention_factors(q, k)
        pulled = random.pullback(q, k, f1, f2, *(np.asarray(x[:, :1] * np.ones(5)) for x in (v, dout)))
        results = (
            out, *lowrank_attention_backward(dout, cache), product, *masked_product_backward(dout, kept),
            u1, u2, *pulled, random.relative_variance(q, k), np.float64(logit_bound(q, k)),
        )  # fmt: skip
        return [x.tobytes() for x in results]

    right = everything(q, k, v, dout)
    others = [_layouts(x) for x in (q, k, v, dout)]
    for name in others[0]:
        assert everything(*(each[name] for each in others)) == right, name


@pytest.mark.parametrize("method", ["fast", "paper", "oracle"])
def test_a_broadcast_input_is_its_copy(method):
    row = np.random.default_rng(21).uniform(-0.5, 0.5, (1, 3))
    x = np.broadcast_to(row, (40, 3))
    for one in (lambda x: lowrank_attention_forward(x, x, x, error=1e-4, method=method),
                lambda x: masked_product_forward(x, x, x, mask=sliding_window(40, 7), method=method)):  # fmt: skip
        (out, cache), (right, kept) = one(x), one(x.copy())
        assert out.tobytes() == right.tobytes()
        backward = lowrank_attention_backward if hasattr(cache, "rounding") else masked_product_backward
        for a, b in zip(backward(x, cache), backward(x.copy(), kept), strict=True):
            assert a.tobytes() == b.tobytes()


@pytest.mark.parametrize("method", ["fast", "paper", "oracle"])
def test_writing_to_inputs_outputs_and_gradients_changes_nothing_that_comes_later(kind, draw, method):
    rng = np.random.default_rng(22)
    mask = kind.from_dense(draw(kind, 30, rng))
    for forward, backward, options in (
        (lowrank_attention_forward, lowrank_attention_backward, {"error": 1e-3}),
        (masked_product_forward, masked_product_backward, {}),
    ):
        inputs, dout = list(rng.uniform(-0.5, 0.5, (3, 30, 4))), rng.standard_normal((30, 4))
        out, cache = forward(*inputs, mask=mask, method=method, **options)
        right = [x.copy() for x in backward(dout, cache)]
        for array in (*inputs, out, *backward(dout, cache)):
            array[:] = np.nan
        for one, other in zip(backward(dout, cache), right, strict=True):
            np.testing.assert_array_equal(one, other)
        for array in vars(cache).values():
            assert not isinstance(array, np.ndarray) or not array.flags.writeable


def test_writing_to_what_a_mask_was_made_of_or_gives_changes_no_mask():
    patterns, groups = np.array([[True, False], [True, True]]), np.array([0, 1])
    start, stop = np.array([0, 0]), np.array([1, 2])
    first, columns, signs = np.array([0, 1, 2]), np.array([0, 1]), np.array([1, 1], np.int8)
    masks = [
        DistinctRowsMask(patterns, groups),
        DistinctRowsMask(patterns, groups).transpose().transpose(),
        ContinuousRowsMask(start, stop),
        type(shifted_groups(2, 1))(first, columns, signs),
    ]
    for array in (patterns, groups, start, stop, first, columns, signs):
        array[:] = 0
    for mask in masks:
        for given in (mask.to_dense(), mask.row_counts()):
            given[:] = 0
        np.testing.assert_array_equal(mask.to_dense(), np.tri(2))
        for array in vars(mask).values():
            assert not isinstance(array, np.ndarray) or not array.flags.writeable


def test_writing_to_factors_and_their_gradients_changes_no_features():
    q = np.random.default_rng(23).uniform(-0.5, 0.5, (9, 2))
    for features in (PolynomialFeatures(2, 3, 1.0), RandomFeatures(2, 5, seed=0)):
        right = [x.copy() for x in features.factors(q, q)]
        for array in (*features.factors(q, q), *features.pullback(q, q, *right, *right)):
            array[:] = np.nan
        for one, other in zip(features.factors(q, q), right, strict=True):
            np.testing.assert_array_equal(one, other)


def test_a_window_of_attention_is_exact_attention_row_by_row():
    """Values over 20 decades: every row within the features' bound times the largest value that it sees."""
    rng = np.random.default_rng(24)
    q, k = rng.uniform(-0.5, 0.5, (2, 300, 4))
    v = rng.standard_normal((300, 3)) * 10.0 ** rng.uniform(-10, 10, (300, 1))
    for mask in (sliding_window(300, 20), shifted_groups(300, 25)):
        for method in ("fast", "paper"):
            out = lowrank_attention(q, k, v, error=1e-6, mask=mask, method=method)
            W = mask.to_dense()
            seen = np.where(W[:, :, None], np.abs(v), 0).max(axis=1)
            error = np.abs(out - dense_attention(q, k, v, mask=W))
            assert (error <= 1.1e-6 * seen).all()
