"""A pass takes every window once, a batch follows from its number, and targets come one place later."""

import numpy as np
import pytest

from refattn.training import Windows, windows_in_order


@pytest.mark.parametrize(("length", "n", "batch"), [(101, 10, 5), (97, 8, 3), (12, 11, 2), (300, 7, 1)])
def test_a_pass_takes_every_window_once(length, n, batch):
    windows = Windows(np.arange(length), n, batch, seed=5)
    passes = 6
    starts = np.concatenate([windows(step).tokens[:, 0] for step in range(-(-passes * windows.count // batch))])
    spare = length - 1 - windows.count * n
    offsets, orders = set(), set()
    for number in range(passes):
        one = starts[number * windows.count : (number + 1) * windows.count]
        offset = one.min()
        assert sorted(one) == [offset + n * place for place in range(windows.count)]
        assert 0 <= offset <= spare
        offsets.add(int(offset))
        orders.add(tuple(one - offset))
    assert len(orders) > 1 or windows.count == 1
    assert len(offsets) > 1 or spare < 2


def test_a_batch_follows_from_seed_and_number_alone():
    tokens = np.random.default_rng(0).integers(50, size=500)
    forth, back = (Windows(tokens, 9, 4, seed=1) for _ in range(2))
    first = [forth(step) for step in range(40)]
    for step in reversed(range(40)):
        np.testing.assert_array_equal(back(step).tokens, first[step].tokens)
    other = Windows(tokens, 9, 4, seed=2)
    assert any((other(step).tokens != first[step].tokens).any() for step in range(5))


def test_targets_come_one_place_later_and_are_arrays_of_their_own():
    windows = Windows(np.arange(50, dtype=np.uint16), 6, 2, seed=0)
    batch = windows(0)
    np.testing.assert_array_equal(batch.targets, batch.tokens + 1)
    assert batch.tokens.dtype == batch.targets.dtype == np.int64
    batch.tokens[:] = -1
    np.testing.assert_array_equal(windows(0).targets, batch.targets)


def test_windows_in_order_are_spread_over_the_sequence():
    starts = [batch.tokens[:, 0].tolist() for batch in windows_in_order(np.arange(101), 10, 4, most=5)]
    assert starts == [[0, 20, 40, 60], [90]]
    assert sum(len(batch.tokens) for batch in windows_in_order(np.arange(101), 10, 4)) == 10


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((np.arange(5), 5, 1, 0), ValueError, "tokens: 5 came, more than the 5"),
        ((np.arange(5.0), 2, 1, 0), TypeError, "tokens: .*float64"),
        ((np.arange(6).reshape(2, 3), 2, 1, 0), TypeError, r"tokens: shape \(2, 3\)"),
        ((np.arange(5), 0, 1, 0), ValueError, "n: 0 came"),
        ((np.arange(5), 2, 0, 0), ValueError, "batch: 0 came"),
        ((np.arange(5), 2, 1, -1), ValueError, "seed: -1 came"),
    ],
)
def test_what_cannot_be_windows_is_named(arguments, error, message):
    with pytest.raises(error, match=message):
        Windows(*arguments)
