"""Peak memory is what a call holds at once, beyond what was held before."""

import tracemalloc

import numpy as np
import pytest

from refattn.report.peak import peak_memory


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
