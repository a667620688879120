"""Masks against the inequality that defines them, row block by row block."""

import itertools

import numpy as np
import pytest

from refattn import Causal, SlidingWindow
from refattn._heads import HeadLayout
from refattn.masks import RowMask

LENGTHS = [(1, 1), (5, 5), (3, 6), (6, 3), (1, 7)]
ALIGNMENTS = ["top-left", "bottom-right", -1, 0, 1]


def offset(alignment, n_q, n_k):
    return {"top-left": 0, "bottom-right": n_k - n_q}.get(alignment, alignment)


def table(n_q, n_k, seen):
    return np.array([[seen(i, j) for j in range(n_k)] for i in range(n_q)])


def layout(lead_q=(), lead_kv=(), n_q=4, n_k=4):
    return HeadLayout.of(np.ones((*lead_q, n_q, 2)), *[np.ones((*lead_kv, n_k, 2))] * 2)


@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
@pytest.mark.parametrize("alignment", ALIGNMENTS, ids=str)
def test_causal_shows_the_keys_up_to_the_querys_position(alignment, lengths):
    n_q, n_k = lengths
    o = offset(alignment, n_q, n_k)
    seen = Causal(alignment).allowed(slice(0, n_q), n_q, n_k)
    assert np.array_equal(seen, table(n_q, n_k, lambda i, j: j <= i + o))


@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
@pytest.mark.parametrize("alignment", ["top-left", "bottom-right"])
@pytest.mark.parametrize(("window", "sinks"), list(itertools.product([0, 1, 3, 100], [0, 1, 4])), ids=str)
def test_a_window_shows_the_last_keys_and_the_sinks_but_no_future(window, sinks, alignment, lengths):
    n_q, n_k = lengths
    o = offset(alignment, n_q, n_k)

    def seen(i, j):
        position = i + o
        return position - window + 1 <= j <= position or (j < sinks and j <= position)

    mask = SlidingWindow(window, sinks=sinks, alignment=alignment)
    assert np.array_equal(mask.allowed(slice(0, n_q), n_q, n_k), table(n_q, n_k, seen))


@pytest.mark.parametrize("mask", [Causal(1), SlidingWindow(2, sinks=1, alignment=1)], ids=["causal", "window"])
@pytest.mark.parametrize("rows", [slice(0, 2), slice(2, 5), slice(4, 5), slice(3, 3)], ids=str)
def test_a_block_of_rows_is_that_part_of_the_whole(mask, rows):
    assert np.array_equal(mask.allowed(rows, 5, 7), mask.allowed(slice(0, 5), 5, 7)[rows])


@pytest.mark.parametrize("mask", [Causal(), SlidingWindow(2, sinks=1)], ids=["causal", "window"])
def test_equal_lengths_need_no_alignment_and_both_are_the_same(mask):
    plain = mask.allowed(slice(0, 5), 5, 5)
    for alignment in ("top-left", "bottom-right", 0):
        aligned = type(mask)(**{**vars(mask), "alignment": alignment})
        assert np.array_equal(aligned.allowed(slice(0, 5), 5, 5), plain)


@pytest.mark.parametrize("window", [5, 6, 10**12], ids=str)
def test_a_window_of_at_least_n_is_causal(window):
    whole = slice(0, 5)
    assert np.array_equal(SlidingWindow(window).allowed(whole, 5, 5), Causal().allowed(whole, 5, 5))


def test_decoding_one_query_with_all_keys_sees_everything():
    assert Causal("bottom-right").allowed(slice(0, 1), 1, 9).all()


def test_masks_are_values_that_compare_and_hash():
    assert Causal() == Causal(None)
    assert len({SlidingWindow(3), SlidingWindow(3), SlidingWindow(3, sinks=1), Causal(), Causal(0)}) == 4


@pytest.mark.parametrize("rows", [slice(0, 4), slice(1, 3)], ids=str)
def test_the_parts_of_a_tuple_all_apply(rows):
    rng = np.random.default_rng(0)
    first, second = rng.random((2, 4, 4)) < 0.7
    bias = np.where(rng.random((4, 4)) < 0.7, 0.5, -np.inf)
    rule = RowMask(("causal", first, SlidingWindow(3), second, bias, "full"), 4, 4, layout())
    expected = np.tri(4, dtype=bool) & ~np.tri(4, k=-3, dtype=bool) & first & second & (bias > -np.inf)
    assert np.array_equal(rule.allowed(rows), expected[rows])


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64], ids=["float16", "float32", "float64"])
def test_only_minus_infinity_hides_however_low_the_number(dtype):
    bias = np.array([0.0, np.finfo(dtype).min, -np.inf, np.finfo(dtype).max], dtype)
    assert np.array_equal(
        np.broadcast_to(RowMask(bias, 4, 4, layout()).allowed(slice(0, 1)), (1, 4))[0], bias > -np.inf
    )


@pytest.mark.parametrize(
    "shape",
    [(), (1,), (4,), (1, 4), (4, 1), (4, 4), (6, 4, 4), (6, 1, 1), (1, 4, 4), (2, 6, 4, 4), (2, 1, 1, 4), (1, 6, 4, 1)],
    ids=str,
)
@pytest.mark.parametrize("heads_kv", [6, 3, 1], ids=str)
def test_array_masks_broadcast_with_the_logits_of_the_query_heads(shape, heads_kv):
    mask = np.random.default_rng(1).random(shape) < 0.5
    heads = layout((2, 6), (2, heads_kv))
    whole = np.broadcast_to(mask, (2, 6, 4, 4))
    for rows in (slice(0, 4), slice(1, 3)):
        seen = np.broadcast_to(RowMask(mask, 4, 4, heads).allowed(rows), (*heads.inner, rows.stop - rows.start, 4))
        assert np.array_equal(heads.merge(seen), whole[..., rows, :])


def test_nested_lists_are_array_masks():
    rule = RowMask([[True, False], [True, True]], 2, 2, layout(n_q=2, n_k=2))
    assert np.array_equal(rule.allowed(slice(0, 2)), [[True, False], [True, True]])
