"""A structure is the mask it was read from, and a mask that is not of its kind is refused at the first bad row."""

from __future__ import annotations

import numpy as np
import pytest

from refattn.lowrank import (
    ContinuousRowsMask,
    DistinctColumnsMask,
    DistinctRowsMask,
    RowChangeMask,
)
from refattn.lowrank.masks import CausalStructure


@pytest.mark.parametrize("n", [1, 2, 3, 64, 65])
def test_reading_and_writing_a_dense_mask_changes_nothing(kind, draw, n):
    rng = np.random.default_rng(n)
    for _ in range(20):
        dense = draw(kind, n, rng)
        mask = kind.from_dense(dense)
        assert mask.n == n
        np.testing.assert_array_equal(mask.to_dense(), dense)
        np.testing.assert_array_equal(mask.row_counts(), dense.sum(axis=1))
        np.testing.assert_array_equal(kind.from_dense(dense.astype(float)).to_dense(), dense)


def test_a_mask_that_is_not_causal_names_its_first_bad_row():
    dense = np.tri(6)
    dense[3, 5] = dense[4, 0] = 1 - dense[4, 0]
    with pytest.raises(ValueError, match="row 4 "):
        CausalStructure.from_dense(dense)
    dense[3, 5] = 1
    with pytest.raises(ValueError, match="row 3 "):
        CausalStructure.from_dense(dense)


def test_a_row_of_two_intervals_is_not_continuous():
    dense = np.tri(6)
    dense[4, 2] = dense[5, 1] = 0
    with pytest.raises(ValueError, match=r"row 4 sees 4 columns of 0 … 4: not one interval"):
        ContinuousRowsMask.from_dense(dense)


def test_an_interval_outside_the_columns_names_its_row():
    with pytest.raises(ValueError, match=r"row 1 has the interval 2 … 1"):
        ContinuousRowsMask([0, 2, 0], [1, 1, 9])
    with pytest.raises(ValueError, match=r"row 2 has the interval 0 … 9"):
        ContinuousRowsMask([0, 1, 0], [1, 1, 9])


def test_row_changes_beyond_the_amortized_constant_name_the_row():
    dense = np.zeros((6, 6), bool)
    dense[2, :4] = True  # 4 changes there, 4 more in the next row
    assert RowChangeMask.from_dense(dense, most=8 / 6).changes.tolist() == [0, 0, 4, 4, 0, 0]
    with pytest.raises(ValueError, match=r"row 3 exceeds 1\.3 changes a row"):
        RowChangeMask.from_dense(dense, most=1.3)
    with pytest.raises(ValueError, match=r"row 2 exceeds 0\.5 changes a row"):
        RowChangeMask.from_dense(dense, most=0.5)


@pytest.mark.parametrize(
    ("columns", "signs", "row"),
    [
        ([0, 0, 1], [1, 1, 1], 1),
        ([0, 2, 1], [1, -1, 1], 1),
        ([0, 0, 0], [1, -1, -1], 2),
        ([0, 3, 1], [1, 1, 1], 1),
        ([0, -1, 1], [1, 1, 1], 1),
        ([-1, 0, 0], [1, 1, 1], 0),
        ([0, 1, 2], [1, 2, 1], 1),
    ],
    ids=["enters-twice", "leaves-unseen", "leaves-twice", "column-n", "negative", "first-of-two", "sign-2"],
)
def test_impossible_changes_name_the_first_row(columns, signs, row):
    with pytest.raises(ValueError, match=f"mask: row {row} "):
        RowChangeMask([0, 1, 2, 3], columns, signs)


def test_columns_of_a_row_increase():
    with pytest.raises(ValueError, match="row 0 has columns that do not increase"):
        RowChangeMask([0, 2, 2], [1, 0], [1, 1])
    with pytest.raises(ValueError, match="first:"):
        RowChangeMask([1, 2, 2], [1, 0], [1, 1])
    with pytest.raises(ValueError, match=r"first: shape \(1,\) came"):
        RowChangeMask([0], [], [])


def test_more_distinct_rows_than_claimed_name_the_first_one_too_many():
    dense = np.array([[1, 0, 0], [1, 0, 0], [0, 1, 0]])
    assert DistinctRowsMask.from_dense(dense, most=2).patterns.shape == (2, 3)
    with pytest.raises(ValueError, match="row 2 differs from the 1 different ones"):
        DistinctRowsMask.from_dense(dense, most=1)
    with pytest.raises(ValueError, match="column 1 differs from the 1 different ones"):
        DistinctColumnsMask.from_dense(dense, most=1)
    with pytest.raises(ValueError, match="row 1 has group 2"):
        DistinctRowsMask(np.ones((2, 3), bool), [0, 2, 1])
    with pytest.raises(ValueError, match="column 0 has group -1"):
        DistinctColumnsMask(np.ones((2, 3), bool), [-1, 2, 1])


def test_the_transpose_of_distinct_rows_has_distinct_columns(draw):
    dense = draw(DistinctRowsMask, 17, np.random.default_rng(0))
    mask = DistinctRowsMask.from_dense(dense)
    np.testing.assert_array_equal(mask.transpose().to_dense(), dense.T)
    np.testing.assert_array_equal(mask.transpose().transpose().to_dense(), dense)


@pytest.mark.parametrize(
    ("dense", "error", "message"),
    [
        (np.ones((2, 3)), ValueError, r"mask: shape \(2, 3\) came"),
        (np.ones(4), ValueError, r"mask: shape \(4,\)"),
        (np.ones((0, 0)), ValueError, r"mask: shape \(0, 0\)"),
        (np.array([[1.0, 0.0], [0.5, 1.0]]), ValueError, "mask: row 1 holds 0.5 at column 0"),
        (np.array([[1.0, np.nan], [1.0, 1.0]]), ValueError, "mask: row 0 holds nan at column 1"),
        (np.array([["a"]]), TypeError, "mask: dtype"),
    ],
    ids=["not-square", "vector", "empty", "half", "nan", "text"],
)
def test_what_is_not_a_mask_is_refused(kind, dense, error, message):
    with pytest.raises(error, match=message):
        kind.from_dense(dense)


def test_wrong_types_are_refused():
    with pytest.raises(TypeError, match="start: dtype float64"):
        ContinuousRowsMask([0.5], [1])
    with pytest.raises(ValueError, match="stop: shape"):
        ContinuousRowsMask([0, 0], [1])
    with pytest.raises(TypeError, match="patterns: dtype int64"):
        DistinctRowsMask([[1, 0]], [0, 0])
    with pytest.raises(ValueError, match="patterns: shape"):
        DistinctRowsMask(np.ones(3, bool), [0, 0])
    with pytest.raises(TypeError, match="most: 'two' came"):
        RowChangeMask.from_dense(np.eye(3), most="two")
    with pytest.raises(ValueError, match="n: 0 came"):
        CausalStructure(0)
