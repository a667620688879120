"""Attentions for inference that learn nothing, against a few lines of dense weights each.

All pairs kept, heavy hitters, selection at the end of a prompt, and the largest logits.
"""

from __future__ import annotations

import numpy as np
import pytest

from refattn import dense_attention
from refattn.models import (
    ExactAttention,
    HeavyHitterAttention,
    KVCacheAttention,
    Llama,
    LlamaConfig,
    SnapKVAttention,
    TopKAttention,
    generate,
    sliding_window,
)

CONFIG = LlamaConfig(
    n_layers=3, width=16, ffn_width=24, vocab_size=50, n_heads=4, n_kv_heads=2, head_width=4, context_length=512,
    rope_base=1e4, norm_eps=1e-5,
)  # fmt: skip


@pytest.fixture(scope="module")
def model():
    rng = np.random.default_rng(0)
    weights = {name: 0.4 * rng.standard_normal(shape) for name, shape in CONFIG.tensor_shapes().items()}
    weights["output.weight"] = rng.standard_normal((50, 16))
    return Llama(CONFIG, weights, dtype=np.float64)


def drawn(n, *, seed=0, heads=4, kv_heads=2, d=4, dtype=np.float64):
    rng = np.random.default_rng(seed)
    q, k, v = (rng.standard_normal((h, n, d)).astype(dtype) for h in (heads, kv_heads, kv_heads))
    return 2 * q, k, v


def softmax(logits):
    weights = np.exp(logits - logits.max())
    return weights / weights.sum()


def heavy_hitters_defined(q, k, v, heavy, recent):
    """One key-value head after the other, one position after the other, with sets of positions."""
    group, out, kept_by_head = len(q) // len(k), np.zeros((*q.shape[:2], v.shape[2])), []
    for h in range(len(k)):
        kept, attention, history = [], {}, []
        for i in range(q.shape[1]):
            if len(kept) == heavy + recent:
                older = [j for j in kept if j <= i - recent]
                kept.remove(min(older, key=lambda j: (attention[j], -j)))
            kept.append(i)
            attention[i] = 0.0
            for one in range(group * h, group * (h + 1)):
                weights = softmax(k[h, kept] @ q[one, i] / np.sqrt(q.shape[2]))
                out[one, i] = weights @ v[h, kept]
                for j, weight in zip(kept, weights, strict=True):
                    attention[j] += weight
            history.append(list(kept))
        kept_by_head.append(history)
    return out, kept_by_head


COUNTS = [(0, 5), (3, 1), (4, 4), (1, 7), (40, 3)]


@pytest.mark.parametrize("dtype", [np.float64, np.float32], ids=["float64", "float32"])
@pytest.mark.parametrize("heads", [(1, 1), (4, 2), (3, 3), (6, 1)], ids=str)
@pytest.mark.parametrize("counts", COUNTS, ids=str)
def test_heavy_hitters_are_those_of_the_definition(counts, heads, dtype):
    arrays = drawn(40, seed=sum(counts), heads=heads[0], kv_heads=heads[1], dtype=dtype)
    found = HeavyHitterAttention(*counts)(0, *arrays)
    assert found.dtype == dtype
    wanted, _ = heavy_hitters_defined(*(array.astype(np.float64) for array in arrays), *counts)
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-12 if dtype == np.float64 else 2e-6)


@pytest.mark.parametrize("seed", range(4))
def test_of_equal_heavy_hitters_the_later_goes(seed):
    """All attention is on a few pairs, so that all others have had none, exactly."""
    rng = np.random.default_rng(seed)
    n = 30
    q, k = np.full((1, n, 1), 1e3), np.where(rng.random((1, n, 1)) < 0.2, 0.0, -1e3)
    k[:, 0] = 1.0
    v = np.broadcast_to(np.eye(n), (1, n, n))
    wanted, history = heavy_hitters_defined(q, k, v, 4, 2)
    np.testing.assert_array_equal(HeavyHitterAttention(4, 2)(0, q, k, v), wanted)
    assert history[0][-1] == [0, 1, 2, 3, n - 2, n - 1]
    k[:] = 0  # or on all alike
    np.testing.assert_allclose(
        HeavyHitterAttention(4, 2)(0, q, k, v), heavy_hitters_defined(q, k, v, 4, 2)[0], rtol=1e-14
    )


def test_no_query_attends_to_more_heavy_hitters_and_newest_than_there_may_be_and_none_comes_back():
    n = 50
    q, k, _ = drawn(n)
    weights = HeavyHitterAttention(3, 4)(0, q, k, np.broadcast_to(np.eye(n), (2, n, n)))
    seen = weights > 0
    assert seen.sum(axis=-1).max() == HeavyHitterAttention(3, 4).pairs_per_query(n) == 7
    assert not np.triu(seen, 1).any()
    np.testing.assert_allclose(weights.sum(axis=-1), 1, rtol=1e-12)
    for i in range(n):
        assert seen[:, i, max(0, i - 3) : i + 1].all()
    appears = ~seen[:, :-1] & seen[:, 1:]
    assert not np.tril(appears).any()  # but for each query's own pair


def test_heavy_hitters_are_a_window_where_there_are_none_and_exact_where_all_fit():
    arrays = drawn(40)
    np.testing.assert_allclose(HeavyHitterAttention(0, 6)(0, *arrays), sliding_window(6)(0, *arrays), atol=1e-13)
    exact = dense_attention(*arrays, mask="causal")
    np.testing.assert_allclose(HeavyHitterAttention(30, 10)(0, *arrays), exact, atol=1e-13)
    np.testing.assert_allclose(HeavyHitterAttention(90, 10)(0, *arrays), exact, atol=1e-13)
    np.testing.assert_allclose(TopKAttention(40)(0, *arrays), exact, atol=1e-13)
    np.testing.assert_allclose(TopKAttention(90)(0, *arrays), exact, atol=1e-13)


@pytest.mark.parametrize("attention", [HeavyHitterAttention(3, 4), TopKAttention(5)], ids=["heavy hitters", "top-k"])
def test_a_later_token_changes_nothing_before(model, attention):
    tokens = np.random.default_rng(1).integers(0, 50, 60)
    whole = model.hidden(tokens, attention)
    tokens[45:] = (tokens[45:] + 1) % 50
    np.testing.assert_allclose(model.hidden(tokens, attention)[:45], whole[:45], rtol=0, atol=1e-12)


def test_heavy_hitters_of_chunks_are_those_of_the_whole_text_bit_by_bit():
    arrays = drawn(60)
    whole, chunked = HeavyHitterAttention(3, 4)(0, *arrays), HeavyHitterAttention(3, 4)
    parts = []
    for first, last in ((0, 5), (5, 6), (6, 33), (33, 60)):
        chunked.begin(first)
        parts.append(chunked(0, *(array[:, first:last] for array in arrays)))
        assert chunked.position == last
    np.testing.assert_array_equal(np.concatenate(parts, axis=1), whole)
    chunked.begin(0)  # another text
    np.testing.assert_array_equal(chunked(0, *arrays), whole)


def test_generation_with_heavy_hitters_is_that_of_the_full_forward(model):
    prompt = np.random.default_rng(2).integers(0, 50, 37)
    new = generate(model, prompt, 20, HeavyHitterAttention(4, 4))
    text = [*prompt, *new]
    logits = model(text, HeavyHitterAttention(4, 4))
    np.testing.assert_array_equal(logits[36:-1].argmax(axis=1), new)
    assert len(set(new)) > 2


def snap_defined(q, k, v, m, pairs, observed, pooled):
    """Attention of the queries from m on, with the pairs of the first m chosen by loops."""
    (heads, n, d), group = q.shape, len(q) // len(k)
    out, chosen = np.zeros((heads, n - m, v.shape[2])), []
    for h in range(len(k)):
        votes = np.zeros(m)
        for one in range(group * h, group * (h + 1)):
            for i in range(m - observed, m):
                votes[: i + 1] += softmax(k[h, : i + 1] @ q[one, i] / np.sqrt(d))
        older, reach = m - observed, pooled // 2
        scores = [max(votes[:older][max(0, j - reach) : j + reach + 1]) for j in range(older)]
        best = sorted(range(older), key=lambda j: (-scores[j], j))[: pairs - observed]
        kept = [*sorted(best), *range(older, m)]
        chosen.append(kept)
        for one in range(group * h, group * (h + 1)):
            for i in range(m, n):
                seen = [*kept, *range(m, i + 1)]
                out[one, i - m] = softmax(k[h, seen] @ q[one, i] / np.sqrt(d)) @ v[h, seen]
    return out, chosen


@pytest.mark.parametrize("dtype", [np.float64, np.float32], ids=["float64", "float32"])
@pytest.mark.parametrize("heads", [(1, 1), (4, 2), (6, 1)], ids=str)
@pytest.mark.parametrize("choice", [(9, 3, 1), (9, 3, 5), (6, 6, 3), (12, 1, 7)], ids=str)
def test_what_a_prompt_keeps_is_what_the_definition_keeps(choice, heads, dtype):
    m, n = 30, 36
    arrays = drawn(n, seed=choice[0], heads=heads[0], kv_heads=heads[1], dtype=dtype)
    attend = SnapKVAttention(*choice)
    first = attend(0, *(array[:, :m] for array in arrays))
    np.testing.assert_array_equal(first, dense_attention(*(array[:, :m] for array in arrays), mask="causal"))
    parts = []
    for begin, end in ((m, m + 1), (m + 1, m + 4), (m + 4, n)):
        attend.begin(begin)
        parts.append(attend(0, *(array[:, begin:end] for array in arrays)))
    wanted, _ = snap_defined(*(array.astype(np.float64) for array in arrays), m, *choice)
    found = np.concatenate(parts, axis=1)
    assert found.dtype == dtype
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-12 if dtype == np.float64 else 2e-6)


def test_of_equal_votes_in_a_prompt_the_earlier_pairs_stay_and_neighbours_of_a_large_one_with_it():
    n = 20
    q, k, v = np.ones((1, n, 1)), np.zeros((1, n, 1)), np.eye(n)[None]
    for where, kept in ((None, [0, 1, 2, 3]), (9, [8, 9, 10, 0])):
        if where is not None:
            k[0, where] = 5.0
        attend = SnapKVAttention(6, observed=2, pooled=3)
        attend(0, q, k, v)
        attend.begin(n)
        weights = attend(0, q[:, :1], k[:, :1], np.zeros((1, 1, n)))
        assert set(np.nonzero(weights[0, 0])[0]) == {*kept, n - 2, n - 1}


def test_a_prompt_that_fits_is_kept_whole(model):
    prompt = np.random.default_rng(2).integers(0, 50, 30)
    new = generate(model, prompt, 10, SnapKVAttention(30))
    np.testing.assert_array_equal(model([*prompt, *new])[29:-1].argmax(axis=1), new)
    assert new != generate(model, prompt, 10, SnapKVAttention(4, observed=2, pooled=1))


@pytest.mark.parametrize("dtype", [np.float64, np.float32], ids=["float64", "float32"])
@pytest.mark.parametrize("heads", [(1, 1), (4, 2), (6, 1)], ids=str)
def test_the_largest_logits_are_those_of_a_sorted_row(heads, dtype):
    n, pairs = 150, 6  # more than one block of queries
    q, k, v = drawn(n, heads=heads[0], kv_heads=heads[1], dtype=dtype)
    q[:, ::7] = 0  # equal logits: the first pairs
    found = TopKAttention(pairs)(0, q, k, v)
    assert found.dtype == dtype
    for h in range(heads[0]):
        own = h * heads[1] // heads[0]
        for i in range(n):
            logits = k[own, : i + 1].astype(np.float64) @ q[h, i].astype(np.float64) / 2
            best = np.argsort(-logits, kind="stable")[:pairs]
            wanted = softmax(logits[best]) @ v[own, best]
            np.testing.assert_allclose(found[h, i], wanted, rtol=0, atol=1e-12 if dtype == np.float64 else 2e-6)


@pytest.mark.parametrize("dtype", [np.float64, np.float32], ids=["float64", "float32"])
@pytest.mark.parametrize("heads", [(1, 1), (4, 2), (6, 1)], ids=str)
@pytest.mark.parametrize("ends", [(1, 2, 3, 300), (299, 300), (130, 131, 190, 191, 300)], ids=str)
def test_chunks_with_all_pairs_kept_are_exact_attention(ends, heads, dtype):
    q, k, v = drawn(300, heads=heads[0], kv_heads=heads[1], dtype=dtype)
    attend, parts, begin = KVCacheAttention(), [], 0
    for end in ends:
        attend.begin(begin)
        chunk = [np.array(array[:, begin:end]) for array in (q, k, v)]
        parts.append(attend(0, *chunk))
        for array in chunk:  # what was given may be used for something else afterwards
            array[...] = np.nan
        begin = end
    found, wanted = np.concatenate(parts, axis=1), ExactAttention()(0, *(a.astype(np.float64) for a in (q, k, v)))
    assert found.dtype == dtype
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-13 if dtype == np.float64 else 2e-6)


def test_generation_with_all_pairs_kept_is_that_of_the_full_forward(model):
    prompt = np.random.default_rng(3).integers(0, 50, 37)
    attend = KVCacheAttention()
    new = generate(model, prompt, 40, attend)
    np.testing.assert_array_equal(model([*prompt, *new])[36:-1].argmax(axis=1), new)
    pairs, heads, d = 37 + 39, CONFIG.n_kv_heads, CONFIG.head_width
    kept = CONFIG.n_layers * heads * pairs * 2 * d * 8
    assert attend.position == pairs
    assert kept <= attend.nbytes <= 1.5 * kept


@pytest.mark.parametrize(
    "make", [lambda: HeavyHitterAttention(2, 3), lambda: SnapKVAttention(4, 2, 1), KVCacheAttention]
)
def test_a_layer_that_took_in_other_tokens_is_refused_until_a_text_begins(model, make):
    attend, (q, k, v) = make(), drawn(8)
    with pytest.raises(ValueError, match="start: 3 came"):
        attend.begin(3)
    attend(0, q, k, v)
    with pytest.raises(ValueError, match="layer 0: tokens from position 0 on came, from 8 on were wanted"):
        attend(0, q, k, v)
    attend.begin(8)
    attend(0, q, k, v)
    with pytest.raises(ValueError, match="layer 1: tokens from position 8 on came, from 0 on"):
        attend(1, q, k, v)
    attend.begin(16)
    with pytest.raises(ValueError, match=r"finite|overflow"):
        attend(0, q, k, np.full_like(v, np.nan))
    with pytest.raises(ValueError, match="start: 16 came"):
        attend.begin(16)
    attend.begin(0)
    assert attend(0, q, k, v).shape == q.shape
    stopped = make()

    def stops(layer, q, k, v):
        if layer == 2:
            raise KeyboardInterrupt
        return stopped(layer, q, k, v)

    model.hidden([1, 2, 3], stopped)
    stopped.begin(3)
    with pytest.raises(KeyboardInterrupt):
        model.hidden([4], stops, start=3)
    with pytest.raises(ValueError, match=r"start: 3 came, .* \(3, 4\)"):
        model.hidden([4], stopped, start=3)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: HeavyHitterAttention(-1, 2), "heavy: -1 came"),
        (lambda: HeavyHitterAttention(2, 0), "recent: 0 came"),
        (lambda: HeavyHitterAttention(2, 1.5), "recent: 1.5 came"),
        (lambda: SnapKVAttention(0), "pairs: 0 came"),
        (lambda: SnapKVAttention(4, observed=5), "observed: 5 came"),
        (lambda: SnapKVAttention(4, observed=2, pooled=2), "pooled: 2 came, an odd number was wanted"),
        (lambda: TopKAttention(0), "pairs: 0 came"),
    ],
)
def test_numbers_out_of_range_are_refused(make, message):
    with pytest.raises((TypeError, ValueError), match=message):
        make()


@pytest.mark.parametrize(
    "make", [lambda: HeavyHitterAttention(2, 3), lambda: SnapKVAttention(4, 2, 1), KVCacheAttention]
)
def test_a_chunk_of_another_kind_is_refused_and_nothing_is_lost(make):
    attend, (q, k, v) = make(), drawn(8)
    attend(0, q, k, v)
    attend.begin(8)
    for other in ((q[:2], k, v), (q[..., :2], k[..., :2], v), (q, k, v[..., :1]), [a.astype("f4") for a in (q, k, v)]):
        with pytest.raises(ValueError, match="those of before"):
            attend(0, *other)
    right = make()
    with pytest.raises(ValueError, match=r"finite|overflow|logit"):
        right(0, q[:2], k * np.inf, v)
    right(0, q, k, v)  # as if that had not been
    right.begin(8)
    np.testing.assert_array_equal(attend(0, q, k, v), right(0, q, k, v))


@pytest.mark.parametrize(
    "attention", [HeavyHitterAttention(2, 2), SnapKVAttention(3, 1), TopKAttention(3), KVCacheAttention()]
)
def test_arrays_that_do_not_fit_or_overflow_are_refused(attention):
    q, k, v = drawn(6)
    with pytest.raises(ValueError, match="k"):
        attention(0, q, k[:, :5], v[:, :5])
    with pytest.raises(ValueError, match=r"multiple of (the 2 heads|n_kv_heads)"):
        attention(0, q[:3], k, v)
    with pytest.raises(ValueError, match=r"finite|overflow|logit"):
        attention(0, q * 1e200, k * 1e200, v)
