"""Pages of keys and values, put side by side."""

import numpy as np
import pytest

from refattn import Causal, dense_attention
from refattn.dense import gather_pages
from refattn.masks import KeyPadding


def test_pages_in_any_order_are_the_keys_side_by_side():
    rng = np.random.default_rng(0)
    k, v = rng.standard_normal((2, 2, 3, 20, 4))  # two sequences, three heads, five pages of 4
    order = rng.permutation(10)
    pages = []
    for a in (k, v):
        there = np.full((12, 3, 4, 4), np.nan)  # unused ones hold anything
        there[order] = a.reshape(2, 3, 5, 4, 4).swapaxes(1, 2).reshape(10, 3, 4, 4)
        pages.append(there)
    table = order.reshape(2, 5)
    assert np.array_equal(gather_pages(pages[0], table), k)
    q = rng.standard_normal((2, 6, 2, 4))  # two new queries, grouped heads
    table[1, 3:] = -1
    keys, values = (gather_pages(a, table) for a in pages)
    out = dense_attention(q, keys, values, mask=("full", KeyPadding([20, 11])))
    for b, n in ((0, 20), (1, 11)):
        np.testing.assert_allclose(out[b], dense_attention(q[b], k[b, :, :n], v[b, :, :n], mask="full"), rtol=1e-13)
    whole = dense_attention(q, k, v, mask=Causal("bottom-right"))
    assert not np.allclose(whole[1], out[1])


@pytest.mark.parametrize(
    ("pages", "table", "word"),
    [
        (np.ones((2, 1, 2)), [[0]], "pages: "),
        (np.ones((1, 2, 1, 2, 1)), [[0]], "pages: 5 axes"),
        (np.ones((2, 1, 2, 1)), [[0.0]], "block_table: dtype float64"),
        (np.ones((2, 1, 2, 1)), [0], r"block_table: shape \(1,\)"),
        (np.ones((2, 1, 2, 1)), [[0, 2]], r"block_table: 2 at index \(0, 1\)"),
        (np.full((2, 1, 2, 1), np.nan), [[-1, 1]], "pages: page 1 is used"),
    ],
    ids=str,
)
def test_pages_that_do_not_fit_are_refused_by_name(pages, table, word):
    with pytest.raises((TypeError, ValueError), match="^" + word):
        gather_pages(pages, table)
