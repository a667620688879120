from __future__ import annotations

import numpy as np
import pytest

from refattn.sparsek import sparsek_scores, sparsek_scores_backward, sparsek_scores_forward
from refattn.testing import check_gradients, check_jacobian, relative_error, tolerance

NORMALISE = [pytest.param(False, id="linear"), pytest.param(True, id="normalised")]


def _inputs(seed: int, lead: tuple[int, ...] = (2,), n: int = 9, heads: int = 3) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {
        "x": rng.standard_normal((*lead, n, 4)),
        "weight": rng.standard_normal((heads, 4)),
        "slope": rng.standard_normal(heads),
    }


@pytest.mark.parametrize("normalise", NORMALISE)
def test_scores_are_the_definition_position_by_position(normalise):
    inputs = _inputs(0)
    scores = sparsek_scores(**inputs, normalise=normalise, eps=1e-3)
    assert scores.shape == (2, 3, 9)
    for batch, head, t in np.ndindex(scores.shape):
        linear = [float(inputs["x"][batch, s] @ inputs["weight"][head]) for s in range(t + 1)]
        content = linear[t]
        if normalise:
            content = (linear[t] - np.mean(linear)) / np.sqrt(np.var(linear) + 1e-3)
        assert abs(scores[batch, head, t] - content - inputs["slope"][head] * t) <= 1e-13


def _gradients(
    inputs: dict[str, np.ndarray], normalise: bool, backward=sparsek_scores_backward, forward=sparsek_scores_forward
):
    cache = forward(**inputs, normalise=normalise)[1]
    return lambda upstream: backward(upstream, cache)._asdict()


@pytest.mark.parametrize("normalise", NORMALISE)
def test_gradients_equal_central_differences(normalise):
    def scores(**inputs):
        return sparsek_scores(**inputs, normalise=normalise)

    inputs = _inputs(1)
    check_gradients(scores, _gradients(inputs, normalise), inputs, rtol=tolerance("differences").rtol)
    # Entry by entry without the first score, whose derivative eps alone keeps finite: its curvature is 1/√eps.
    small = _inputs(2, lead=(), n=5, heads=2)
    check_jacobian(scores, _gradients(small, normalise), small, rtol=tolerance("differences").rtol, step=1e-5)


def test_a_large_offset_changes_neither_scores_nor_gradients():
    inputs = _inputs(3, n=400)
    upstream = np.random.default_rng(4).standard_normal((2, 3, 400))
    shifted = {**inputs, "x": np.concatenate([inputs["x"], np.full((2, 400, 1), 1e6)], axis=-1)}
    shifted["weight"] = np.concatenate([inputs["weight"], np.ones((3, 1))], axis=-1)
    (scores, cache), (far_scores, far_cache) = (
        sparsek_scores_forward(**case, normalise=True) for case in (inputs, shifted)
    )
    assert relative_error(far_scores, scores) <= 1e-9  # 1e6 units of rounding of x · w
    near, far = sparsek_scores_backward(upstream, cache), sparsek_scores_backward(upstream, far_cache)
    assert relative_error(far.x[..., :-1], near.x) <= 1e-8


def test_running_moments_stay_accurate_over_a_million_steps():
    n = 1_000_000
    rng = np.random.default_rng(5)
    x = (1e3 + 1e-4 * np.arange(n) + rng.standard_normal(n))[:, None]
    scores, cache = sparsek_scores_forward(x, [[1.0]], [0.0], normalise=True)
    for t in (1, 10, 999, 123_456, n - 1):
        u = x[: t + 1, 0].astype(np.longdouble)
        mean = u.mean()
        squares = ((u - mean) ** 2).sum()
        right = (u[t] - mean) / np.sqrt(squares / (t + 1) + np.longdouble(1e-5))
        assert abs(cache.moments.mean[0, t] - mean) <= 1e-13 * mean
        assert abs(cache.moments.squares[0, t] - squares) <= 1e-10 * squares
        assert abs(scores[0, t] - right) <= 1e-10


@pytest.mark.parametrize("normalise", NORMALISE)
def test_a_later_input_changes_no_earlier_score_bit_for_bit(normalise):
    inputs = _inputs(6)
    changed = {**inputs, "x": inputs["x"].copy()}
    changed["x"][:, 5] += 3.0
    before, after = (sparsek_scores(**case, normalise=normalise) for case in (inputs, changed))
    np.testing.assert_array_equal(after[..., :5], before[..., :5])
    assert (after[..., 5] != before[..., 5]).all()


def test_single_precision_stays_single():
    inputs = {name: array.astype(np.float32) for name, array in _inputs(7).items()}
    scores, cache = sparsek_scores_forward(**inputs, normalise=True)
    gradients = sparsek_scores_backward(np.ones_like(scores), cache)
    assert {scores.dtype, *(g.dtype for g in gradients)} == {np.dtype(np.float32)}
    wide = {name: array.astype(np.float64) for name, array in inputs.items()}
    assert relative_error(scores, sparsek_scores(**wide, normalise=True)) <= 2e-6


MUTANTS = [
    pytest.param("upstream * rate - sum_a -", "upstream * rate -", id="the mean's gradient dropped"),
    pytest.param("* sum_b[..., 1:]", "* sum_b[..., :-1]", id="a suffix sum off by one"),
    pytest.param("upstream * rate - sum_a", "1.001 * upstream * rate - sum_a", id="a gradient off by a thousandth"),
]


@pytest.mark.parametrize(("right", "wrong"), MUTANTS)
def test_an_error_planted_in_the_backward_is_caught(plant, right, wrong):
    mutant = plant("refattn.sparsek.scoring", right, wrong)
    inputs = _inputs(1)

    def check(*pair):
        check_gradients(
            lambda **inputs: sparsek_scores(**inputs, normalise=True),
            _gradients(inputs, True, *pair),
            inputs,
            rtol=tolerance("differences").rtol,
        )

    check()
    with pytest.raises(AssertionError):
        check(mutant.sparsek_scores_backward, mutant.sparsek_scores_forward)


BAD = [
    pytest.param(
        {"weight": np.ones((3, 5))}, r"weight: shape \(3, 5\) came, \(H_kv, 4\) was wanted", id="weight's width"
    ),
    pytest.param({"weight": np.ones(4)}, r"weight: shape \(4,\) came", id="weight's rank"),
    pytest.param({"slope": np.ones(2)}, r"slope: shape \(2,\) came, one number per head", id="slopes"),
    pytest.param({"x": np.full((9, 4), np.nan)}, r"x: nan at index \(0, 0\)", id="a NaN input"),
    pytest.param({"x": np.ones(4)}, r"x: shape \(4,\) came", id="x's rank"),
    pytest.param({"eps": 0.0}, r"eps: 0\.0 came, a number above 0", id="eps zero"),
]


@pytest.mark.parametrize(("change", "message"), BAD)
def test_bad_input_is_refused_by_name(change, message):
    with pytest.raises(ValueError, match=message):
        sparsek_scores(**{**_inputs(8), **change})


def test_an_upstream_of_another_shape_is_refused():
    cache = sparsek_scores_forward(**_inputs(9))[1]
    with pytest.raises(ValueError, match=r"dscores: shape \(3, 9\) came, that of the scores \(2, 3, 9\) was wanted"):
        sparsek_scores_backward(np.ones((3, 9)), cache)
