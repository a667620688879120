"""Least-squares kernels are the means of the diagonals within segments, and nothing does better."""

import numpy as np
import pytest

from refattn.convbasis import basis_from_starts, best_starts, least_squares_basis, segment_means
from refattn.testing import attention_inputs, rope_structured


def logits(q, k, scale=None):
    scale = 1 / np.sqrt(q.shape[-1]) if scale is None else scale
    return np.tril(q.astype(np.float64) @ k.astype(np.float64).T * scale)


def means_by_definition(h, starts):
    n = len(h)
    kernels = np.zeros((len(starts), n))
    for i, (a, b) in enumerate(zip(starts, [*starts[1:], n], strict=True)):
        for t in range(n - a):
            kernels[i, t] = np.mean([h[j + t, j] for j in range(a, b) if j + t < n])
    return kernels


CASES = [
    (1, [0]),
    (2, [0, 1]),
    (2, [1]),
    (7, [0, 3]),
    (31, [5]),
    (64, [0, 32]),
    (65, [0, 1, 2, 60, 64]),
    (100, [3, 31, 32, 33, 64, 96]),
    (150, list(range(150))),
    (257, [0, 100]),
]


@pytest.mark.parametrize(("n", "starts"), CASES, ids=lambda x: str(x) if isinstance(x, int) else f"k={len(x)}")
@pytest.mark.parametrize("dtype", [np.float32, np.float64], ids=["f32", "f64"])
def test_kernels_are_the_means_of_the_diagonals(n, starts, dtype):
    q, k, _ = attention_inputs(n, 5, seed=n, deviation=3.0, dtype=dtype)
    basis = least_squares_basis(q, k, starts)
    assert basis.kernels.dtype == dtype
    np.testing.assert_array_equal(basis.starts, starts)
    expected = means_by_definition(logits(q, k), starts)
    tolerance = {"rtol": 0, "atol": 1e-12} if dtype == np.float64 else {"rtol": 2e-7, "atol": 1e-12}
    np.testing.assert_allclose(basis.kernels, expected, **tolerance)


@pytest.mark.parametrize(("n", "starts"), CASES, ids=lambda x: str(x) if isinstance(x, int) else f"k={len(x)}")
def test_means_of_a_matrix_are_those_of_the_definition(n, starts):
    h = np.tril(np.random.default_rng(n).standard_normal((n, n)))
    np.testing.assert_allclose(segment_means(h, starts).kernels, means_by_definition(h, starts), rtol=0, atol=1e-13)


def test_many_segments_and_blocks_at_a_real_size():
    """n = 3,000, k = 200: several groups of pieces, segments of one column up to hundreds."""
    n = 3000
    rng = np.random.default_rng(0)
    starts = np.concatenate([[0], 1 + np.sort(rng.choice(n - 1, 199, replace=False))])
    q, k, _ = attention_inputs(n, 16, seed=1, deviation=4.0)
    np.testing.assert_allclose(
        least_squares_basis(q, k, starts).kernels, segment_means(logits(q, k), starts).kernels, rtol=0, atol=1e-11
    )


def test_a_column_a_million_times_larger_leaves_the_other_segments_alone():
    q, k, _ = attention_inputs(500, 8, seed=2)
    k[0] *= 1e6
    starts = [0, 1, 200, 499]
    found, right = least_squares_basis(q, k, starts).kernels, segment_means(logits(q, k), starts).kernels
    np.testing.assert_allclose(found[1:], right[1:], rtol=0, atol=1e-13)
    np.testing.assert_allclose(found[0], right[0], rtol=0, atol=1e-13 * 1e6)


def test_no_other_kernels_have_a_smaller_squared_error():
    q, k, _ = attention_inputs(90, 6, seed=3)
    h, basis = logits(q, k), least_squares_basis(q, k, [0, 17, 50])
    least = np.sum((h - basis.to_dense()) ** 2)
    assert least < np.sum((h - basis_from_starts(q, k, [0, 17, 50]).to_dense()) ** 2)
    rng = np.random.default_rng(4)
    for _ in range(20):
        moved = rng.standard_normal(basis.kernels.shape) * (basis.kernels != 0) * 1e-3
        other = type(basis)(basis.starts, basis.kernels + moved)
        assert np.sum((h - other.to_dense()) ** 2) > least


def test_the_squared_error_is_the_one_the_dynamic_programme_says():
    q, k, _ = attention_inputs(120, 8, seed=5)
    best = best_starts(q, k, 20)
    for count in (1, 4, 20):
        basis = least_squares_basis(q, k, best.starts[count - 1])
        error = np.sum((logits(q, k) - basis.to_dense()) ** 2)
        assert error == pytest.approx(best.squared_error[count - 1], rel=1e-11)


def test_exact_structure_gives_back_the_columns():
    q, k, _, starts = rope_structured(700, 16, starts=6, seed=6, deviation=4.0)
    np.testing.assert_allclose(
        least_squares_basis(q, k, starts).kernels, basis_from_starts(q, k, starts).kernels, rtol=0, atol=1e-12
    )


def test_scale_is_a_factor_of_the_kernels():
    q, k, _ = attention_inputs(40, 4, seed=7)
    one, two = (least_squares_basis(q, k, [0, 9], scale=scale).kernels for scale in (1.0, 2.0))
    np.testing.assert_allclose(two, 2 * one, rtol=0, atol=1e-13)


@pytest.mark.parametrize(
    ("starts", "error", "message"),
    [
        ([], TypeError, "starts"),
        ([0.5], TypeError, "starts"),
        ([0, 6], ValueError, "columns from 0 to 5"),
        ([-1], ValueError, "columns from 0 to 5"),
        ([0, 3, 3], ValueError, "strictly increasing"),
        ([3, 0], ValueError, "strictly increasing"),
    ],
    ids=str,
)
def test_bad_starts_are_refused(starts, error, message):
    with pytest.raises(error, match=message):
        least_squares_basis(np.ones((6, 2)), np.ones((6, 2)), starts)
    with pytest.raises(error, match=message):
        segment_means(np.eye(6), starts)


@pytest.mark.parametrize(
    ("q", "message"),
    [
        (np.full((6, 2), np.inf), "q: inf at index"),
        (np.full((6, 2), 1e300), "q, k: logits"),
        (np.ones((2, 6, 2)), "q, k: shapes"),
    ],
    ids=["infinite", "overflow", "stack"],
)
def test_bad_queries_are_refused(q, message):
    with pytest.raises(ValueError, match=message):
        least_squares_basis(q, np.full((6, 2), 1e300), [0])


def test_float32_logits_that_overflow_are_refused():
    q = np.full((6, 2), 1e25, np.float32)
    with pytest.raises(ValueError, match="q, k: logits"):
        least_squares_basis(q, q, [0])
