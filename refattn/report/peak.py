"""Peak memory of a call, the same number from run to run."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable

from refattn._threads import set_thread_count

_PAGE = 1 << 14


def peak_memory(run: Callable[[], object]) -> int:
    """Return the most bytes that Python and NumPy hold at once while `run` runs, beyond what they held before.

    It runs with one thread: with more, the peak depends on which pieces of work happen to overlap. Rounded to 16 kB,
    since Python's own share differs by some hundred bytes. FFTW's buffers are not counted.
    """
    set_thread_count(1)
    tracemalloc.start()
    try:
        run()
        return round(tracemalloc.get_traced_memory()[1] / _PAGE) * _PAGE
    finally:
        tracemalloc.stop()
        set_thread_count(None)
