"""Memory: refusals with an estimate, and the one workspace that is kept."""

import numpy as np
import pytest

from refattn import _memory


@pytest.fixture(autouse=True)
def empty_shelf():
    _memory._idle.clear()
    yield
    _memory._idle.clear()


def test_a_workspace_is_used_again_but_never_by_two():
    one = _memory.take_workspace((3, 5), np.float32)
    other = _memory.take_workspace((3, 5), np.float32)
    assert not np.shares_memory(one, other)
    _memory.give_back(one)
    smaller = _memory.take_workspace((2, 5), np.float32)
    assert np.shares_memory(one, smaller)
    assert smaller.shape == (2, 5)


def test_a_larger_one_is_made_anew_and_a_huge_one_is_not_kept(monkeypatch):
    _memory.give_back(_memory.take_workspace((10,), np.float32))
    assert _memory.take_workspace((11,), np.float32).shape == (11,)
    monkeypatch.setattr(_memory, "KEPT_BYTES", 100)
    _memory.give_back(_memory.take_workspace((26,), np.float32))
    assert not _memory._idle


def test_what_does_not_fit_is_refused_with_the_estimate(monkeypatch):
    monkeypatch.setattr(_memory, "available_bytes", lambda: 2.0**30)
    _memory.require_memory("v: the product", 2**30)
    with pytest.raises(MemoryError, match=r"v: the product: about 3 GiB .*, 1 GiB are available"):
        _memory.require_memory("v: the product", 3 << 30)


def test_the_system_says_how_much_there_is():
    assert _memory.available_bytes() > 0
