"""Which keys a block of queries meets: ranges that all of its queries see, ranges that some do, and no others."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from refattn.masks import Causal, RowMask, SlidingWindow, offset_of

Ranges = list[tuple[int, int]]


class Tile(NamedTuple):
    """Keys; of which of these a pattern hides something, counted from the first; and for which queries, a row a key."""

    keys: slice
    some: slice
    hidden: NDArray[np.bool_] | None


def tiles(mask: RowMask, rows: slice, most_keys: int) -> list[Tile]:
    """Return the tiles of a block of queries, every one of at most so many keys."""
    ranges, by_all = _seen(mask, rows)
    found = []
    for first, last in ranges:
        for start in range(first, last, most_keys):
            stop = min(start + most_keys, last)
            parts, hidden = _without([(start, stop)], by_all), None
            keys = slice(parts[0][0], parts[-1][1]) if parts else slice(start, start)
            for pattern in mask.patterns if parts else ():
                one = ~pattern.allowed(rows, mask.n_q, mask.n_k, keys).T
                hidden = one if hidden is None else hidden | one
            some = slice(keys.start - start, keys.stop - start)
            found.append(Tile(slice(start, stop), some, None if hidden is None else np.ascontiguousarray(hidden)))
    return found


def _seen(mask: RowMask, rows: slice) -> tuple[Ranges, Ranges]:
    """Return which keys some query of the rows may see by the patterns, and which all of them do."""
    by_some = by_all = [(0, mask.n_k)]
    for pattern in mask.patterns:
        some, every = _seen_by(pattern, rows, mask)
        by_some, by_all = _both(by_some, some), _both(by_all, every)
    return by_some, by_all


def _seen_by(pattern: Causal | SlidingWindow, rows: slice, mask: RowMask) -> tuple[Ranges, Ranges]:
    offset = offset_of("mask", pattern.alignment, mask.n_q, mask.n_k)
    first, last = rows.start + offset, rows.stop - 1 + offset
    if isinstance(pattern, Causal):
        return [(0, last + 1)], [(0, first + 1)]
    window, sinks = pattern.window, pattern.sinks
    return (
        _either((0, min(sinks, last + 1)), (first - window + 1, last + 1 if window else first)),
        _either((0, min(sinks, first + 1)), (last - window + 1, first + 1)),
    )


def _either(one: tuple[int, int], other: tuple[int, int]) -> Ranges:
    """Return the keys of two ranges, of which the first starts at 0."""
    if one[1] >= other[0] and one[1] > 0 and other[1] > other[0]:
        return [(0, max(one[1], other[1]))]
    return [(first, last) for first, last in (one, other) if last > first]


def _both(some: Ranges, others: Ranges) -> Ranges:
    met = [(max(a, c), min(b, d)) for a, b in some for c, d in others]
    return [(first, last) for first, last in met if last > first]


def _without(ranges: Ranges, taken: Ranges) -> Ranges:
    for a, b in taken:
        parts = [part for first, last in ranges for part in ((first, min(last, a)), (max(first, b), last))]
        ranges = [(first, last) for first, last in parts if last > first]
    return ranges
