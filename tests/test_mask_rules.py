"""Masks that are rules, against the sentence that defines each, block by block."""

import numpy as np
import pytest

from refattn import SlidingWindow
from refattn._heads import HeadLayout
from refattn.masks import Alibi, Causal, KeyBlocks, KeyIndices, KeyPadding, Packed, RowMask, alibi_slopes

N_Q, N_K = 6, 7
INDICES = np.random.default_rng(0).integers(-1, N_K, (2, 1, N_Q, 3))
TABLE = np.random.default_rng(1).random((4, 3, 3)) < 0.5
SLOPES = alibi_slopes(4)


def layout(lead_q=(2, 4), lead_kv=(2, 2)):
    return HeadLayout.of(np.ones((*lead_q, N_Q, 2)), *[np.ones((*lead_kv, N_K, 2))] * 2)


SEEN = {
    "a length for every sequence": (KeyPadding([3, 7]), lambda b, h, i, j: j < (3, 7)[b]),
    "a length for all": (KeyPadding(5), lambda b, h, i, j: j < 5),
    "a length for every head": (KeyPadding([[3, 7, 0, 1]] * 2), lambda b, h, i, j: j < (3, 7, 0, 1)[h]),
    "packed, the last query without a sequence": (
        Packed([0, 2, 2, 5], [0, 3, 4, 7]),
        lambda b, h, i, j: (i < 2 and j < 3) or (2 <= i < 5 and 4 <= j < 7),
    ),
    "packed, causal from the beginning": (
        Packed([0, 2, 6], [0, 4, 7], causal="top-left"),
        lambda b, h, i, j: j <= i if i < 2 else 4 <= j <= 4 + i - 2,
    ),
    "packed, causal from the end": (
        Packed([0, 2, 6], [0, 4, 7], causal="bottom-right"),
        lambda b, h, i, j: j <= i + 2 if i < 2 else 4 <= j <= 4 + i - 2 - 1,
    ),
    "indices": (KeyIndices(INDICES), lambda b, h, i, j: j in INDICES[b, 0, i]),
    "the same indices for every query": (KeyIndices([[4, -1, 4]]), lambda b, h, i, j: j == 4),
    "no indices": (KeyIndices(np.zeros((N_Q, 0), int)), lambda b, h, i, j: False),
    "blocks": (KeyBlocks(TABLE, 2, 3), lambda b, h, i, j: TABLE[h, i // 2, j // 3]),
}


@pytest.mark.parametrize("rows", [slice(0, N_Q), slice(1, 4), slice(5, 6), slice(3, 3)], ids=str)
@pytest.mark.parametrize("name", SEEN)
def test_a_rule_shows_what_its_sentence_says(name, rows):
    rule, seen = SEEN[name]
    heads = layout()
    mask = RowMask(("full", rule), N_Q, N_K, heads)
    right = np.array([[[[seen(b, h, i, j) for j in range(N_K)] for i in range(N_Q)] for h in range(4)] for b in (0, 1)])
    shape = (*heads.inner, rows.stop - rows.start, N_K)
    assert np.array_equal(heads.merge(np.broadcast_to(mask.allowed(rows), shape)), right[..., rows, :])
    for index in np.ndindex(*heads.inner):
        (own,), _ = mask.of_head(index)
        place = (index[0], index[1] * 2 + index[2])
        for keys in (slice(0, N_K), slice(2, 5), slice(6, 7)):
            block = np.broadcast_to(own[rows, keys], (shape[-2], keys.stop - keys.start))
            assert np.array_equal(block, right[(*place, rows, keys)])


@pytest.mark.parametrize("alignment", ["top-left", "bottom-right", -2, 3], ids=str)
def test_alibi_adds_the_slope_times_the_distance(alignment):
    offset = {"top-left": 0, "bottom-right": N_K - N_Q}.get(alignment, alignment)
    heads = layout()
    mask = RowMask(Alibi(SLOPES, alignment), N_Q, N_K, heads)
    (added,) = mask.addends(slice(1, 5), np.dtype(np.float64))
    distance = np.abs(np.arange(1, 5)[:, None] + offset - np.arange(N_K))
    assert np.array_equal(heads.merge(np.broadcast_to(added, (2, 2, 2, 4, N_K)))[1], -SLOPES[:, None, None] * distance)
    assert mask.allowed(slice(0, N_Q)).all()


@pytest.mark.parametrize(
    ("heads", "right"),
    [(1, [2**-8]), (2, [2**-4, 2**-8]), (6, [0.25, 0.0625, 0.015625, 0.00390625, 0.5, 0.125])],
    ids=str,
)
def test_slopes_are_those_of_the_paper_and_its_code(heads, right):
    np.testing.assert_allclose(alibi_slopes(heads), right, rtol=1e-15)


@pytest.mark.parametrize("right", [0, 1, 3, 100], ids=str)
@pytest.mark.parametrize(("window", "sinks"), [(1, 0), (0, 0), (3, 2)], ids=str)
def test_a_window_reaches_to_the_right_too(window, sinks, right):
    seen = SlidingWindow(window, sinks, 1, right).allowed(slice(0, N_Q), N_Q, N_K)
    for i, j in np.ndindex(N_Q, N_K):
        p = i + 1
        assert seen[i, j] == (p - window + 1 <= j <= p + right or (j < sinks and j <= p + right))


@pytest.mark.parametrize(
    ("make", "word"),
    [
        (lambda: KeyPadding([2.0]), "lengths: dtype float64"),
        (lambda: RowMask(KeyPadding([3, 8]), N_Q, N_K, layout()), r"lengths: 8 at index \(1,\)"),
        (lambda: RowMask(KeyPadding([3, 2, 1]), N_Q, N_K, layout()), r"lengths: shape \(3,\)"),
        (lambda: Packed([0]), r"cu_seqlens: shape \(1,\)"),
        (lambda: Packed([0, 3, 2]), r"cu_seqlens: \[0, 3, 2\]"),
        (lambda: Packed([1, 3]), r"cu_seqlens: \[1, 3\]"),
        (lambda: Packed([0, 3], [0, 1, 2]), "cu_seqlens_k: 3 numbers"),
        (lambda: Packed([0, 3], causal="middle"), "causal: 'middle'"),
        (lambda: RowMask(Packed([0, 7]), N_Q, N_K, layout()), r"cu_seqlens: 7 at index \(1,\)"),
        (lambda: RowMask(Packed([0, 6], [0, 8]), N_Q, N_K, layout()), r"cu_seqlens_k: 8 at index \(1,\)"),
        (lambda: KeyIndices(3), "indices: one number"),
        (lambda: RowMask(KeyIndices([[7]]), N_Q, N_K, layout()), r"indices: 7 at index \(0, 0\)"),
        (lambda: RowMask(KeyIndices(np.zeros((5, 2), int)), N_Q, N_K, layout()), r"indices: shape \(5, 2\)"),
        (lambda: KeyBlocks([[1]], 2, 2), "table: dtype int64"),
        (lambda: KeyBlocks([True], 2, 2), r"table: shape \(1,\)"),
        (lambda: KeyBlocks(TABLE, 0, 2), "block_q: 0"),
        (lambda: RowMask(KeyBlocks(TABLE, 3, 3), N_Q, N_K, layout()), r"table: last axes \(3, 3\)"),
        (lambda: RowMask(KeyBlocks(TABLE[:3], 2, 3), N_Q, N_K, layout()), r"table: shape \(3, 3, 3\)"),
        (lambda: Alibi([np.inf]), "slopes: "),
        (lambda: RowMask(Alibi([1.0]), N_Q, N_K, layout()), "mask: ALiBi with 6 queries and 7 keys"),
        (lambda: RowMask(Alibi([1.0, 2.0], 0), N_Q, N_K, layout()), r"slopes: shape \(2,\)"),
        (lambda: RowMask(Alibi([1e308], 0), N_Q, N_K, layout()), r"slopes: 1e\+308"),
        (lambda: alibi_slopes(0), "n_heads: 0"),
    ],
)
def test_what_fits_nothing_is_refused_by_name(make, word):
    with pytest.raises((TypeError, ValueError), match="^" + word):
        make()


def test_a_rule_keeps_copies_and_survives_a_copy():
    import copy

    lengths = np.array([3, 7])
    rule = KeyPadding(lengths)
    lengths[:] = 0
    assert np.array_equal(rule.lengths, [3, 7])
    again = copy.deepcopy(rule)
    assert np.array_equal(again.lengths, [3, 7])
    assert not again.lengths.flags.writeable


def test_rules_and_patterns_all_apply():
    rule = RowMask((Causal(1), KeyPadding(3), Packed([0, 2, 6], [0, 2, 7])), N_Q, N_K, layout((), ()))
    right = [[j <= i + 1 and j < 3 and (j < 2 if i < 2 else j >= 2) for j in range(N_K)] for i in range(N_Q)]
    assert np.array_equal(rule.allowed(slice(0, N_Q)), right)
