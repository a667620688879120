"""Inputs are what their names say: of the shapes, sizes and structure asked for, and the same for the same seed."""

import math

import numpy as np
import pytest

from refattn.testing import attention_inputs, rope_structured


def logits(q, k):
    return q @ np.swapaxes(k, -1, -2) / math.sqrt(q.shape[-1])


@pytest.mark.parametrize("dtype", [np.float32, np.float64], ids=["f32", "f64"])
def test_shapes_and_dtype_are_those_asked_for(dtype):
    q, k, v = attention_inputs(7, 5, seed=0, lead=(2, 6), kv_lead=(2, 3), d_v=4, dtype=dtype)
    assert (q.shape, k.shape, v.shape) == ((2, 6, 7, 5), (2, 3, 7, 5), (2, 3, 7, 4))
    q, k, v, _ = rope_structured(7, 5, starts=2, seed=0, lead=(2, 3), d_v=4, dtype=dtype)
    assert (q.shape, k.shape, v.shape) == ((2, 3, 7, 5), (2, 3, 7, 5), (2, 3, 7, 4))
    assert q.dtype == k.dtype == v.dtype == dtype
    assert [x.shape for x in attention_inputs(3, 2, seed=0, lead=(4,))] == [(4, 3, 2)] * 3
    assert [x.shape for x in attention_inputs(3, 2, seed=0)] == [(3, 2)] * 3


@pytest.mark.parametrize("deviation", [0.0, 1.0, 6.0])
def test_normal_logits_have_the_deviation_asked_for(deviation):
    q, k, v = attention_inputs(1500, 64, seed=1, deviation=deviation)
    assert logits(q, k).std() == pytest.approx(deviation, rel=0.03)
    assert (v.mean(), v.std()) == (pytest.approx(0, abs=0.01), pytest.approx(1, rel=0.01))


def test_constant_logits_are_all_of_the_size_asked_for():
    q, k, _ = attention_inputs(6, 9, seed=0, kind="constant", deviation=200.0, lead=(2,))
    np.testing.assert_allclose(logits(q, k), 200.0, rtol=1e-14)


def test_one_hot_logits_are_zero_or_of_the_size_asked_for():
    q, k, _ = attention_inputs(400, 4, seed=0, kind="one-hot", deviation=30.0)
    assert ((q != 0).sum(axis=-1) == 1).all()
    assert ((k == 1).sum(axis=-1) == 1).all()
    h = logits(q, k)
    assert set(np.unique(np.round(h, 12))) == {0.0, 30.0}
    assert (h > 0).mean() == pytest.approx(1 / 4, abs=0.02)


@pytest.mark.parametrize("d", [1, 2, 5, 16])
def test_rotary_logits_depend_on_the_lag_and_the_segment_alone(d):
    q, k, _, starts = rope_structured(40, d, starts=[0, 7, 8, 30], seed=d, lead=(2,), deviation=3.0)
    for h in logits(q, k):
        for first, end in zip(starts, [*starts[1:], 40], strict=True):
            for t in range(40 - first):
                diagonal = h[np.arange(first, min(end, 40 - t)) + t, np.arange(first, min(end, 40 - t))]
                np.testing.assert_allclose(diagonal, diagonal[0], rtol=0, atol=1e-12)


def test_segments_and_heads_have_contents_of_their_own():
    q, k, v, _ = rope_structured(30, 8, starts=[0, 10, 20], seed=0, lead=(2,))
    h = logits(q, k)
    assert np.abs(h[0] - h[1]).max() > 0.1
    assert len(np.unique(np.round([h[0, 10, 10], h[0, 9, 9], h[0, 20, 20]], 9))) == 3
    assert v.std() == pytest.approx(1, rel=0.1)


def test_queries_and_keys_are_turned_by_their_position():
    """As complex numbers, pair i of row p is ``exp(i p base^(−2i/d))`` times that of row 0; an odd entry stays."""
    base = 100.0
    q, k, _, _ = rope_structured(20, 7, starts=1, seed=3, base=base)
    turn = np.exp(1j * np.arange(20)[:, None] * base ** (-2 * np.arange(3) / 7))
    for x in (q, k):
        pairs = x[:, 0:6:2] + 1j * x[:, 1:6:2]
        np.testing.assert_allclose(pairs, turn * pairs[0], rtol=0, atol=1e-12)
        np.testing.assert_array_equal(x[:, 6], x[0, 6])


@pytest.mark.slow
def test_rotary_logits_have_the_deviation_asked_for_over_the_draws():
    diagonals = [logits(*rope_structured(1, 16, starts=1, seed=s, deviation=5.0)[:2])[0, 0] for s in range(2000)]
    assert np.std(diagonals) == pytest.approx(5.0, rel=0.05)


def test_starts_are_drawn_from_all_columns_and_are_all_where_as_many_are_wanted():
    seen = set()
    for seed in range(200):
        starts = rope_structured(9, 2, starts=3, seed=seed).starts
        assert starts[0] == 0
        assert (np.diff(starts) > 0).all()
        assert starts.size == 3
        seen |= set(starts.tolist())
    assert seen == set(range(9))
    assert rope_structured(9, 2, starts=9, seed=0).starts.tolist() == list(range(9))
    assert rope_structured(9, 2, starts=1, seed=0).starts.tolist() == [0]


@pytest.mark.parametrize(
    "draw",
    [
        lambda seed: attention_inputs(6, 3, seed=seed),
        lambda seed: attention_inputs(6, 3, seed=seed, kind="one-hot"),
        lambda seed: rope_structured(6, 3, starts=3, seed=seed),
    ],
    ids=["normal", "one-hot", "rotary"],
)
def test_a_seed_gives_the_same_numbers_and_another_others(draw):
    for one, same, other in zip(draw(5), draw(5), draw(6), strict=True):
        np.testing.assert_array_equal(one, same)
        assert one.dtype.kind == "i" or not np.array_equal(one, other)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: attention_inputs(0, 2, seed=0), "^n: "),
        (lambda: attention_inputs(2, 0, seed=0), "^d: "),
        (lambda: attention_inputs(2, 2, seed=-1), "^seed: "),
        (lambda: attention_inputs(2, 2, seed=0, d_v=0), "^d_v: "),
        (lambda: attention_inputs(2, 2, seed=0, deviation=-1.0), "^deviation: "),
        (lambda: attention_inputs(2, 2, seed=0, kind="uniform"), "^kind: "),
        (lambda: attention_inputs(2, 2, seed=0, deviation=1e300, dtype=np.float32), "^deviation, dtype: "),
        (lambda: rope_structured(0, 2, starts=1, seed=0), "^n: "),
        (lambda: rope_structured(2, 0, starts=1, seed=0), "^d: "),
        (lambda: rope_structured(2, 2, starts=1, seed=0, d_v=0), "^d_v: "),
        (lambda: rope_structured(2, 2, starts=1, seed=0, base=0.0), "^base: "),
        (lambda: rope_structured(2, 2, starts=1, seed=0, deviation=-1.0), "^deviation: "),
        (lambda: rope_structured(2, 2, starts=3, seed=0), "^starts: "),
        (lambda: rope_structured(2, 2, starts=0, seed=0), "^starts: "),
        (lambda: rope_structured(4, 2, starts=[1, 2], seed=0), "^starts: "),
        (lambda: rope_structured(4, 2, starts=[0, 2, 2], seed=0), "^starts: "),
        (lambda: rope_structured(4, 2, starts=[0, 4], seed=0), "^starts: "),
        (lambda: rope_structured(4, 2, starts=[0.0, 2.0], seed=0), "^starts: "),
        (lambda: rope_structured(4, 2, starts=[[0, 2]], seed=0), "^starts: "),
    ],
)
def test_what_is_out_of_range_is_refused_by_name(call, message):
    with pytest.raises((TypeError, ValueError), match=message):
        call()
