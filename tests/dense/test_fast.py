"""Exact attention by tiles against the oracle, over several tiles of queries and keys; and which tiles there are."""

import sys

import numpy as np
import pytest
from dense_definition import normal
from threadpoolctl import threadpool_info

from refattn import Causal, SlidingWindow, _threads, dense_attention, dense_attention_backward, dense_attention_forward
from refattn._heads import HeadLayout
from refattn.dense import fast
from refattn.dense._loops import exponentials, hide_out_of_sight
from refattn.dense._tiles import sights_of, tiles
from refattn.masks import RowMask
from refattn.testing import check_attention, row_errors, tolerance

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


def test_the_blas_of_compiled_loops_is_held_at_one_thread():
    with _threads.one_blas_thread():
        assert "scipy.linalg.cython_blas" in sys.modules
        assert {blas["num_threads"] for blas in threadpool_info() if blas["user_api"] == "blas"} == {1}


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
        for tile in tiles(sights_of(mask), n_k, block, 512):
            part = np.ones((tile.keys.stop - tile.keys.start, block.stop - block.start), int)
            assert 0 < len(part) <= 512
            first = tile.keys.start + tile.some.start
            logits = part[tile.some].astype(float)
            for sight in sights_of(mask):
                hide_out_of_sight(logits, first, sight.position + block.start, sight.window, sight.sinks)
            part[tile.some] = np.isfinite(logits)
            seen[block, tile.keys] += part.T
        expected = np.zeros_like(seen)
        expected[block] = mask.allowed(block)
        assert np.array_equal(seen, expected)


def test_tiles_that_a_boolean_array_hides_cost_nothing(monkeypatch):
    taken, right = [], fast.Head.write_logits

    def noted(self, block, tile, *given):
        taken.append(tile)
        return right(self, block, tile, *given)

    monkeypatch.setattr(fast.Head, "write_logits", noted)
    q, k, v = normal((512, 4), (2048, 4), (2048, 4))
    documents = np.zeros((512, 2048), bool)
    documents[:, :512] = True
    dense_attention(q, k, v, mask=documents)
    assert {tile.keys.start for tile in taken} == {0}


@pytest.mark.parametrize("dtype", [np.float32, np.float64], ids=["float32", "float64"])
def test_exponentials_are_right_to_one_unit_in_the_last_place(dtype):
    """Of every size down to the smallest number, and what is below it."""
    rng = np.random.default_rng(0)
    least = -104.0 if dtype == np.float32 else -746.0
    x = np.concatenate([[0.0, 1.2 * least, -INF], least * rng.random(20_000), -(10.0 ** rng.uniform(-20, 0, 20_000))])
    logits = np.zeros((2, len(x)), dtype)  # the largest logit is 0
    logits[1] = x
    exact = np.exp(logits[1].astype(np.longdouble))
    largest, (total, kept) = np.full(len(x), -INF, dtype), np.zeros((2, len(x)), dtype)
    exponentials[np.dtype(dtype)](logits, largest, total, kept, np.zeros((2, len(x)), dtype))
    smallest = np.longdouble(np.finfo(dtype).smallest_subnormal)
    unit = np.maximum(np.spacing(exact.astype(dtype)).astype(np.longdouble), smallest)
    assert (np.abs(logits[1] - exact) / unit).max() <= 1
    assert (logits[0] == 1).all()
    np.testing.assert_allclose(total, 1 + exact.astype(float), rtol=2 * np.finfo(dtype).eps)
    assert (kept == 0).all()
    assert (largest == 0).all()


@pytest.mark.parametrize("dtype", [np.float32, np.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("which", ["q", "k", "v", "dout"])
def test_rows_that_may_overflow_on_the_way_are_those_of_the_definition_and_change_no_other(which, dtype):
    n, most = 700, float(np.finfo(dtype).max)
    arrays = dict(zip(("q", "k", "v", "dout"), normal(*[(n, 6)] * 4, dtype=dtype), strict=True))
    plain, _, *_ = results(arrays, "fast")
    late = slice(650, None)
    if which == "q":
        arrays["k"][late] *= dtype(1e-3)
    arrays[which][late] *= dtype({"q": 0.2, "k": 0.02, "v": 0.1, "dout": 0.02}[which] * most)
    if which in ("q", "k"):
        arrays["q"][late] *= dtype(0.0 if which == "k" else 1e-3)
    one, other = (results(arrays, method) for method in ("fast", "oracle"))
    assert np.isfinite(one[0]).all()
    assert np.array_equal(one[0][:512], plain[:512])
    for ours, right in zip(one, other, strict=True):
        size = np.maximum(np.abs(right).max(axis=-1, keepdims=True), 1e-3 if dtype == np.float32 else 1e-9)
        assert (np.abs(ours / size - right / size)).max() <= 300 * tolerance("reordered", dtype).rtol


def results(arrays, method):
    """Output, log-sum-exp and gradients of a mapping of arrays."""
    q, k, v, dout = arrays.values()
    out, cache = dense_attention_forward(q, k, v, method=method)
    with np.errstate(all="ignore"):
        return out, cache.log_sum_exp[..., None], *dense_attention_backward(dout, cache)


def test_few_entries_are_left_to_the_definition_bit_for_bit():
    *arrays, dout = normal((2, 90, 5), (2, 90, 5), (2, 90, 3), (2, 90, 3))
    for one, other in zip(*both(arrays, dout), strict=True):
        assert one.tobytes() == other.tobytes()


def test_the_conformance_grid_holds_by_tiles(all_by_tiles):
    def by_tiles(q, k, v, *, causal, scale, mask):
        rule = ("causal" if causal else "full",) if mask is None else ("causal" if causal else "full", mask)
        return dense_attention_forward(q, k, v, mask=rule, scale=scale)

    def backward(dout, *arrays, **options):
        return tuple(dense_attention_backward(dout, by_tiles(*arrays, **options)[1]))

    report = check_attention(
        lambda *arrays, **options: by_tiles(*arrays, **options)[0], "dense", backward=backward, profile="quick"
    )
    assert report.passed, report
