"""A Python number decides no dtype, and a message names what is at fault."""

import warnings

import numpy as np
import pytest

from refattn import PromotionWarning, dense_attention
from refattn._validation import as_float_arrays
from refattn.sparsek import SparseKCache, sparsek_attention

Q, K, V = np.random.default_rng(0).standard_normal((3, 6, 4)).astype(np.float32)


def token(t, score, **other):
    return {"q": Q[t], "k": K[t], "v": V[t], "score": score, **other}


@pytest.mark.slow
@pytest.mark.parametrize("number", [float, int, np.float32], ids=["float", "int", "float32"])
def test_a_number_of_pythons_own_leaves_a_cache_its_dtype(number):
    cache = SparseKCache(n_select=2, window=1)
    with warnings.catch_warnings():
        warnings.simplefilter("error", PromotionWarning)
        out = [cache.step(**token(t, number(t % 3))) for t in range(5)]
        out.append(cache.step(**token(5, np.float32(1))))
    assert {row.dtype for row in out} == {np.dtype(np.float32)}
    scores = np.array([0, 1, 2, 0, 1, 1], np.float32)
    right = sparsek_attention(Q, K, V, scores, n_select=2, window=1)
    np.testing.assert_allclose(out, right, rtol=0, atol=1e-6)


def test_a_cache_in_float64_takes_pythons_numbers_too():
    cache = SparseKCache(n_select=2)
    assert cache.step(*(a[0].astype(np.float64) for a in (Q, K, V)), 0.5).dtype == np.float64
    assert cache.step(*(a[1].astype(np.float64) for a in (Q, K, V)), 1).dtype == np.float64


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"score": np.float64(1)}, "scores: float64"),
        ({"score": np.ones((), np.int64)}, "scores: int64"),
        ({"k": K[1].astype(np.float64)}, "k: float64"),
        ({"v": V[1].astype(np.float64)}, "v: float64"),
        ({"q": Q[1].astype(np.float64), "score": np.float64(0)}, "q, scores: float64"),
    ],
    ids=["score", "integer", "k", "v", "q and score"],
)
@pytest.mark.filterwarnings("ignore::refattn.PromotionWarning")
def test_the_argument_of_another_dtype_is_the_one_that_is_named(change, named):
    cache = SparseKCache(n_select=2)
    cache.step(**token(0, 0.5))
    with pytest.raises(ValueError, match=f"^{named} came, float32 was wanted: the dtype that the first token decided"):
        cache.step(**token(1, 0.5) | change)
    assert cache.position == 1


def test_a_score_that_float32_cannot_hold_is_named():
    with pytest.raises(ValueError, match=r"^score: 1e\+300 .* came in float64"):
        SparseKCache(n_select=2).step(**token(0, 1e300))


@pytest.mark.parametrize("number", [2, 2.5], ids=["int", "float"])
def test_a_python_number_beside_arrays_decides_nothing(number):
    with warnings.catch_warnings():
        warnings.simplefilter("error", PromotionWarning)
        arrays = as_float_arrays(x=Q, slope=number)
    assert [array.dtype for array in arrays] == [np.float32, np.float32]
    with pytest.warns(PromotionWarning):
        assert dense_attention([[1]], [[1]], [[2]]).dtype == np.float64  # lists are arrays, and integers
