"""Exact attention by tiles against the oracle, over several tiles of queries and keys; and which tiles there are."""

import numpy as np
import pytest
from dense_definition import normal

from refattn import Causal, SlidingWindow, _threads, dense_attention, dense_attention_backward, dense_attention_forward
from refattn._heads import HeadLayout
from refattn.dense import fast
from refattn.dense._tiles import tiles
from refattn.masks import RowMask
from refattn.testing import row_errors, tolerance

INF = np.inf
LENGTHS = [(1300, 1300), (300, 1100), (1100, 300)]
PATTERNS = {
    "full": "full",
    "causal": Causal("top-left"),
    "last queries": Causal("bottom-right"),
    "later": Causal(-200),
    "window": SlidingWindow(200, alignment=0),
    "short window, sinks": SlidingWindow(30, sinks=7, alignment=0),
    "long window, sinks, last queries": SlidingWindow(700, sinks=3, alignment="bottom-right"),
    "sinks only": SlidingWindow(0, sinks=7, alignment=0),
    "nothing": SlidingWindow(0, alignment=0),
    "causal and two windows": (Causal(0), SlidingWindow(300, sinks=9, alignment=5), SlidingWindow(500, alignment=0)),
}


def arrays_of(n_q, n_k):
    rng = np.random.default_rng(n_q)
    seen = rng.random((n_q, n_k)) < 0.5
    seen[5], seen[:, : n_k // 2] = False, False
    return {
        "boolean": seen,
        "additive": np.where(seen, rng.standard_normal((n_q, n_k)), -INF),
        "boolean and patterns": (Causal(0), seen, SlidingWindow(300, alignment=0)),
        "additive and sinks": (SlidingWindow(100, sinks=9, alignment=0), np.where(seen, 0.0, -INF)),
    }


OPTIONS = {
    "plain": {},
    "large logits": {"scale": 30.0},
    "softcap": {"softcap": 2.0},
    "short blocks": {"block": 100},
    "one row": {"block": 3},
}


def both(arrays, dout, **options):
    """Output, log-sum-exp and gradients by both methods."""
    for method in ("fast", "oracle"):
        out, cache = dense_attention_forward(*arrays, method=method, **options)
        yield out, cache.log_sum_exp[..., None], *dense_attention_backward(dout, cache)


@pytest.mark.parametrize("dtype", [np.float32, np.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
@pytest.mark.parametrize("mask", [*PATTERNS, *arrays_of(8, 8)])
def test_both_methods_agree_under_every_mask(mask, lengths, dtype):
    require_agreement(lengths, dtype, mask={**PATTERNS, **arrays_of(*lengths)}[mask])


@pytest.mark.parametrize("dtype", [np.float32, np.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("mask", ["full", "causal", "window"])
@pytest.mark.parametrize("options", OPTIONS)
def test_both_methods_agree_with_every_option(options, mask, dtype):
    require_agreement((700, 700), dtype, mask=PATTERNS[mask], **OPTIONS[options])


def require_agreement(lengths, dtype, **options):
    n_q, n_k = lengths
    *arrays, dout = normal((n_q, 16), (n_k, 16), (n_k, 8), (n_q, 8), dtype=dtype)
    rtol = tolerance("reordered", dtype).rtol * max(1, abs(options.get("scale", 1)))
    for one, other in zip(*both(arrays, dout, **options), strict=True):
        hidden = np.isneginf(other)
        assert np.array_equal(np.isneginf(one), hidden)
        one, other = np.where(hidden, 0, one), np.where(hidden, 0, other)
        np.testing.assert_allclose(one, other, rtol=0, atol=rtol * max(np.abs(other).max(), 1))


@pytest.mark.parametrize("kv_heads", [(4,), (2,), (1,), ()], ids=str)
def test_heads_that_share_keys_agree_too(kv_heads):
    *arrays, dout = normal((3, 4, 700, 8), (*kv_heads, 700, 8), (*kv_heads, 700, 5), (3, 4, 700, 5))
    for one, other in zip(*both(arrays, dout), strict=True):
        assert row_errors(one, other).max() <= tolerance("reordered").rtol * np.abs(other).max()


def test_the_number_of_threads_changes_no_bit_and_the_output_alone_is_the_same():
    *arrays, dout = normal((2, 1300, 8), (1300, 8), (1300, 4), (2, 1300, 4), dtype=np.float32)
    found = set()
    try:
        for threads in (1, 2, 3, 8):
            _threads.set_thread_count(threads)
            out, cache = dense_attention_forward(*arrays)
            gradients = dense_attention_backward(dout, cache)
            assert dense_attention(*arrays).tobytes() == out.tobytes()
            found.add((out.tobytes(), cache.row_sum.tobytes(), *(gradient.tobytes() for gradient in gradients)))
    finally:
        _threads.set_thread_count(None)
    assert len(found) == 1


@pytest.mark.parametrize("t", [130, 600, 1024], ids=str)
def test_the_future_changes_no_bit_of_a_tile_before(t):
    q, k, v = normal((1300, 8), (1300, 8), (1300, 4))
    out = dense_attention(q, k, v)
    for future in (0.0, -1e3, 1e3, 1e300):
        k2, v2 = k.copy(), v.copy()
        k2[t:], v2[t:] = future, future
        assert dense_attention(q, k2, v2)[:t].tobytes() == out[:t].tobytes()


@pytest.mark.parametrize("size", [1e10, 1e-10], ids=str)
def test_largest_logits_that_come_late_or_early_rescale_what_was_summed(size):
    q, k, v = normal((600, 1), (1300, 1), (1300, 3))
    k *= np.geomspace(1, size, 1300)[:, None]
    (out, *_), (right, *_) = both((q, k, v), np.ones((600, 3)), mask="full", scale=100.0)
    np.testing.assert_allclose(out, right, rtol=0, atol=1e-12)


@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
@pytest.mark.parametrize("rows", [1, 128, 256, 512], ids=str)
@pytest.mark.parametrize("pattern", PATTERNS)
def test_tiles_cover_what_is_seen_once_and_say_what_is_hidden(pattern, rows, lengths):
    n_q, n_k = lengths
    layout = HeadLayout.of(np.ones((n_q, 1)), np.ones((n_k, 1)), np.ones((n_k, 1)))
    mask = RowMask(PATTERNS[pattern], n_q, n_k, layout)
    for start in (0, 128, (n_q - 1) // rows * rows):
        block = slice(start, min(start + rows, n_q))
        seen = np.zeros((n_q, n_k), int)
        for tile in tiles(mask, block, 512):
            part = np.ones((tile.rows.stop - tile.rows.start, tile.keys.stop - tile.keys.start), int)
            assert part.shape[1] <= 512
            if tile.hidden is not None:
                part[:, tile.columns][tile.hidden] = 0
            seen[tile.rows, tile.keys] += part
        expected = np.zeros_like(seen)
        expected[block] = mask.allowed(block)
        assert np.array_equal(seen, expected)


def test_tiles_that_a_boolean_array_hides_cost_nothing(monkeypatch):
    taken, right = [], fast.Head.lowered_products
    monkeypatch.setattr(
        fast.Head, "lowered_products", lambda self, *given: (taken.append(given[0]), right(self, *given))
    )
    q, k, v = normal((512, 4), (2048, 4), (2048, 4))
    documents = np.zeros((512, 2048), bool)
    documents[:, :512] = True
    dense_attention(q, k, v, mask=documents)
    assert {tile.keys.start for tile in taken} == {0}
