"""Peak memory of a call."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable

_PAGE = 1 << 14


def peak_memory(run: Callable[[], object]) -> int:
    """Return the most bytes that Python and NumPy hold at once while `run` runs, beyond what they held before.

    Rounded to 16 kB, since Python's own share differs by some hundred bytes. FFTW's buffers are not counted. Where
    several threads work, the peak depends on which pieces overlap in time: a claim about it is ``timed``.
    """
    tracemalloc.start()
    try:
        run()
        return round(tracemalloc.get_traced_memory()[1] / _PAGE) * _PAGE
    finally:
        tracemalloc.stop()
