"""A value has one meaning: a tuple of numbers is an array as a list is, and what could be two things is refused."""

import numpy as np
import pytest

from refattn import Causal, dense_attention

N = 3
Q, K, V = np.random.default_rng(0).standard_normal((3, N, 2))
SQUARE = [[True, False, False], [True, True, False], [True, True, True]]
INF = float("inf")


@pytest.mark.parametrize(
    "mask",
    [
        (True, False, True),
        tuple(map(tuple, SQUARE)),
        tuple(SQUARE),
        list(map(tuple, SQUARE)),
        (0.0, -INF, 0.5),
        ((0.0, -INF, -INF), (0.0, 1.0, -INF), (0.0, 0.5, 2.0)),
        tuple(np.array([True, False, True])),
        (np.float32(0), np.float32(-1), np.float32(2)),
        (tuple(map(tuple, SQUARE)),),
        (np.array(SQUARE),),
    ],
    ids=["keys", "square", "lists", "list of tuples", "bias", "square bias", "scalars", "float32", "stacked", "one"],
)
def test_a_tuple_of_numbers_is_the_array_that_it_says(mask):
    right = dense_attention(Q, K, V, mask=np.array(mask).reshape(-1, N))
    assert np.array_equal(dense_attention(Q[None], K[None], V[None], mask=mask)[0], right)


def test_a_tuple_with_a_name_or_a_pattern_in_it_is_several_masks_and_its_tuples_are_arrays():
    keys, square = (True, False, True), np.array(SQUARE)
    for first in ("full", "causal", Causal(2)):
        right = dense_attention(Q, K, V, mask=(first, np.array(keys), square))
        assert np.array_equal(dense_attention(Q, K, V, mask=(first, keys, tuple(map(tuple, SQUARE)))), right)
    assert np.array_equal(dense_attention(Q, K, V, mask=()), dense_attention(Q, K, V, mask="full"))


BOTH = np.array(SQUARE), ~np.eye(N, dtype=bool)


@pytest.mark.parametrize(
    ("heads", "mask"),
    [
        (1, tuple(np.array(SQUARE))),
        (1, (np.array(SQUARE[0]), SQUARE[1], SQUARE[2])),
        (1, (np.zeros(N), (0.0, 1.0, 2.0), [0.0, 0.0, 0.0])),
        (2, BOTH),
    ],
    ids=["rows", "rows and lists", "rows, lists, tuples", "heads"],
)
def test_arrays_that_may_be_rows_or_masks_are_refused_with_both_remedies(heads, mask):
    q, k, v = (np.stack(heads * [array]) for array in (Q, K, V))
    with pytest.raises(ValueError, match=r"^mask: a tuple of \d arrays of one shape came, .*np.array\(mask\) .*\*mask"):
        dense_attention(q, k, v, mask=mask)


@pytest.mark.parametrize(
    ("heads", "mask"),
    [(1, BOTH), (3, BOTH), (2, (BOTH[0], np.eye(N))), (1, (BOTH[0][0], BOTH[1][0]))],
    ids=["no head", "other heads", "boolean and additive", "fewer than rows"],
)
def test_arrays_that_can_only_be_several_masks_all_apply(heads, mask):
    q, k, v = (np.stack(heads * [array]) for array in (Q, K, V))
    right = dense_attention(q, k, v, mask=("full", *mask))
    assert np.array_equal(dense_attention(q, k, v, mask=mask), right)


def test_both_remedies_are_taken():
    rows = tuple(np.array(SQUARE))
    assert np.array_equal(dense_attention(Q, K, V, mask=np.array(rows)), dense_attention(Q, K, V, mask=SQUARE))
    assert np.array_equal(dense_attention(Q, K, V, mask=("full", *rows)), dense_attention(Q, K, V, mask=SQUARE[0]))
