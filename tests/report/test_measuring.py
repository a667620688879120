"""What checks measure: peak memory is what a call holds at once; times, gradients and bits are told apart."""

import tracemalloc

import numpy as np
import pytest

from refattn._threads import thread_count
from refattn.report.measuring import entries_that_change, peak_memory, rows_that_see_the_future, times


def test_the_peak_is_of_what_is_held_at_once():
    held = np.ones(1 << 20)

    def one_after_the_other():
        for _ in range(3):
            np.ones(1 << 18)

    def two_at_once():
        return np.ones(1 << 18), np.ones(1 << 18)

    assert peak_memory(one_after_the_other) == pytest.approx(8 << 18, rel=0.01)
    assert peak_memory(two_at_once) == pytest.approx(16 << 18, rel=0.01)
    assert peak_memory(lambda: None) == 0
    assert held.nbytes == 8 << 20


def test_small_differences_of_python_s_own_share_do_not_show():
    assert peak_memory(lambda: bytes(1 << 16)) == peak_memory(lambda: bytes((1 << 16) + 500)) == 1 << 16


def test_nothing_is_traced_after_a_call_that_fails():
    with pytest.raises(ZeroDivisionError):
        peak_memory(lambda: 1 / 0)
    assert not tracemalloc.is_tracing()


def test_the_least_time_of_each_size_is_given_and_the_first_run_is_not_counted():
    clock, made = [0.0], []

    def make(n):
        made.append(n)
        lengths = iter((100.0, 3.0 * n, 2.0 * n, 4.0 * n))
        return lambda: clock.__setitem__(0, clock[0] + next(lengths))

    assert times(make, (1, 5), runs=3, clock=lambda: clock[0]) == {1: 2.0, 5: 10.0}
    assert made == [1, 5]


def test_rows_before_the_change_are_counted_where_they_see_it():
    inputs = {"x": np.arange(12.0).reshape(6, 2)}
    assert rows_that_see_the_future(lambda x: np.cumsum(x, axis=0), inputs, range(6), seed=0) == 0
    assert rows_that_see_the_future(lambda x: x + x[-1], inputs, (2, 5), seed=0) == 2 + 5


def test_entries_are_compared_bit_for_bit_between_numbers_of_threads(monkeypatch):
    before = thread_count()
    assert entries_that_change(lambda: [np.zeros(3), np.ones(2)], (1, 2)) == 0
    assert entries_that_change(lambda: [np.full(3, 1 + 2.0**-52 * thread_count()), np.ones(2)], (1, 2, 1)) == 3
    assert thread_count() == before
    monkeypatch.setenv("REFATTN_NUM_THREADS", "7")  # it is asked again
    assert thread_count() == 7
