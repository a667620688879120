"""Work on rows that do not depend on each other: in blocks that stay in the cache, on the threads there are."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import numpy as np
from numpy.typing import ArrayLike, DTypeLike

from refattn._overflow import overflow_judged
from refattn._threads import map_each
from refattn._validation import FloatArray

Result = TypeVar("Result")

_ENTRIES = 1 << 17
"""Entries of one array in a block: 512 KB of float32."""


def as_rows(x: FloatArray) -> FloatArray:
    """Return (…, width) as (rows, width)."""
    return x.reshape(-1, x.shape[-1])


def loop_rows(name: str, array: ArrayLike, dtype: DTypeLike, shape: tuple[int, ...]) -> FloatArray:
    """Return (…, width) as (rows, width) for a compiled loop, which looks at no bounds: of this shape, or refused."""
    from refattn._compiled import as_input

    given = np.asarray(array)
    if dtype not in (np.float32, np.float64):
        raise TypeError(f"{name}: {dtype} came, float32 or float64 was wanted")
    if given.shape != shape:
        raise ValueError(f"{name}: shape {given.shape} came, {shape} was wanted")
    return as_rows(as_input(given.astype(dtype, copy=False)))


def by_rows(work: Callable[[slice], Result], shape: tuple[int, int]) -> list[Result]:
    """Return ``work(rows)`` for blocks of rows of an array of this shape, in their order; blocks depend on it alone."""
    n, width = shape
    step = max(1, _ENTRIES // width)

    def judged(rows: slice) -> Result:
        with overflow_judged():
            return work(rows)

    return map_each(judged, [slice(start, start + step) for start in range(0, n, step)])
