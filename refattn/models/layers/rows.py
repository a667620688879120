"""Work on rows that do not depend on each other: in blocks that stay in the cache, on the threads there are."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from refattn._overflow import overflow_judged
from refattn._threads import map_each
from refattn._validation import FloatArray

Result = TypeVar("Result")

_ENTRIES = 1 << 17
"""Entries of one array in a block: 512 KB of float32."""


def as_rows(x: FloatArray) -> FloatArray:
    """Return (…, width) as (rows, width)."""
    return x.reshape(-1, x.shape[-1])


def by_rows(work: Callable[[slice], Result], shape: tuple[int, int]) -> list[Result]:
    """Return ``work(rows)`` for blocks of rows of an array of this shape, in their order; blocks depend on it alone."""
    n, width = shape
    step = max(1, _ENTRIES // width)

    def judged(rows: slice) -> Result:
        with overflow_judged():
            return work(rows)

    return map_each(judged, [slice(start, start + step) for start in range(0, n, step)])
