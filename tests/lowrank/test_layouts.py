"""Natural descriptions give the masks they describe; one structure as a case of another is the same mask."""

from __future__ import annotations

import numpy as np
import pytest

from refattn import SlidingWindow
from refattn.lowrank import (
    ContinuousRowsMask,
    DistinctColumnsMask,
    DistinctRowsMask,
    RowChangeMask,
    as_continuous_rows,
    as_distinct_rows,
    as_row_change,
    document_blocks,
    prefix_lm,
    shifted_groups,
    sliding_window,
)
from refattn.lowrank.masks import CausalStructure


@pytest.mark.parametrize(("n", "window"), [(1, 1), (7, 1), (7, 3), (7, 7), (7, 20)])
def test_a_sliding_window_is_the_one_of_exact_attention(n, window):
    dense = SlidingWindow(window).allowed(slice(0, n), n, n)
    np.testing.assert_array_equal(sliding_window(n, window).to_dense(), dense)


@pytest.mark.parametrize("causal", [True, False], ids=["causal", "whole"])
def test_documents_see_themselves_only(causal):
    lengths = [3, 1, 4]
    document = np.repeat(np.arange(3), lengths)
    dense = (document[:, None] == document) & (np.tri(8, dtype=bool) if causal else True)
    np.testing.assert_array_equal(document_blocks(lengths, causal=causal).to_dense(), dense)


@pytest.mark.parametrize("prefix", [0, 1, 4, 6])
def test_a_prefix_is_seen_by_all(prefix):
    dense = np.tri(6, dtype=bool)
    dense[:, :prefix] = True
    np.testing.assert_array_equal(prefix_lm(6, prefix).to_dense(), dense)


@pytest.mark.parametrize("causal", [True, False], ids=["causal", "whole"])
@pytest.mark.parametrize(
    ("n", "group", "shift"), [(12, 4, 2), (12, 4, 0), (12, 4, 4), (13, 4, 1), (5, 5, 2), (1, 1, 0)]
)
def test_shifted_groups_are_blocks_of_the_rolled_positions(n, group, shift, causal):
    block = np.arange(n) // group
    rolled = block[:, None] == block
    dense = np.roll(rolled, shift, axis=(0, 1)) & (np.tri(n, dtype=bool) if causal else True)
    mask = shifted_groups(n, group, shift=shift, causal=causal)
    np.testing.assert_array_equal(mask.to_dense(), dense)


def test_shifted_groups_change_a_constant_number_of_places_a_row():
    for n in (1024, 4096):
        for causal in (True, False):
            assert shifted_groups(n, 64, causal=causal).changes.sum() <= 2.1 * n
    assert shifted_groups(8, 4).changes.tolist() == shifted_groups(8, 4, shift=2).changes.tolist()


def test_conversions_keep_the_mask(draw):
    rng = np.random.default_rng(1)
    for n in (1, 2, 30):
        intervals = ContinuousRowsMask.from_dense(draw(ContinuousRowsMask, n, rng))
        patterns = DistinctRowsMask.from_dense(draw(DistinctRowsMask, n, rng))
        changes = RowChangeMask.from_dense(draw(RowChangeMask, n, rng))
        for mask in (CausalStructure(n), intervals, patterns, changes):
            np.testing.assert_array_equal(as_row_change(mask).to_dense(), mask.to_dense())
        for mask in (CausalStructure(n), intervals):
            np.testing.assert_array_equal(as_continuous_rows(mask).to_dense(), mask.to_dense())
            grouped = as_distinct_rows(mask, most=n)
            np.testing.assert_array_equal(grouped.to_dense(), mask.to_dense())
            np.testing.assert_array_equal(as_continuous_rows(grouped).to_dense(), mask.to_dense())
            assert len(grouped.patterns) == len(np.unique(mask.to_dense(), axis=0))


def test_the_changes_of_a_window_are_two_a_row():
    assert as_row_change(sliding_window(100, 7)).changes.max() == 2
    assert as_row_change(CausalStructure(100)).changes.tolist() == [1] * 100
    assert len(as_distinct_rows(document_blocks([3, 2, 4], causal=False), most=3).patterns) == 3


def test_a_conversion_that_does_not_exist_is_refused():
    with pytest.raises(TypeError, match="mask: RowChangeMask came"):
        as_continuous_rows(shifted_groups(4, 2))
    with pytest.raises(TypeError, match="mask: DistinctColumnsMask came"):
        as_row_change(DistinctColumnsMask.from_dense(np.eye(3)))
    with pytest.raises(ValueError, match="row 1 sees more than one interval"):
        as_continuous_rows(DistinctRowsMask.from_dense([[1, 1, 0], [1, 0, 1], [1, 0, 1]]))
    with pytest.raises(ValueError, match="row 2 differs from the 2 different ones"):
        as_distinct_rows(CausalStructure(4), most=2)
    with pytest.raises(ValueError, match="row 3 exceeds"):
        as_row_change(CausalStructure(4), most=0.9)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: sliding_window(4, 0), ValueError, "window: 0 came"),
        (lambda: sliding_window(4.5, 1), TypeError, "n: 4.5 came"),
        (lambda: document_blocks([2, 0]), ValueError, "lengths: 0 came for document 1"),
        (lambda: document_blocks([]), ValueError, "lengths: shape"),
        (lambda: prefix_lm(4, 5), ValueError, "prefix: 5 came"),
        (lambda: shifted_groups(4, 5), ValueError, "group: 5 came"),
        (lambda: shifted_groups(4, 2, shift=3), ValueError, "shift: 3 came"),
    ],
    ids=["window", "n", "length", "none", "prefix", "group", "shift"],
)
def test_bad_descriptions_are_refused(call, error, message):
    with pytest.raises(error, match=message):
        call()
