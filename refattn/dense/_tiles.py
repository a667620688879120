"""Which keys a block of queries meets: ranges that all of its queries see, ranges that some do, and no others."""

from __future__ import annotations

from typing import NamedTuple

from refattn._mask_rules import offset_of
from refattn.masks import RowMask, SlidingWindow

Ranges = list[tuple[int, int]]


class Sight(NamedTuple):
    """What a pattern shows: query i, at ``position + i``, sees the last `window` keys up to there and `sinks` first."""

    position: int
    window: int
    sinks: int


class Tile(NamedTuple):
    """Keys; and those of them that a pattern may hide from some of the queries, counted from the first."""

    keys: slice
    some: slice


def tiles(sights: list[Sight], n_k: int, rows: slice, most_keys: int) -> list[Tile]:
    """Return the tiles of a block of queries, every one of at most so many keys."""
    ranges, by_all = _seen(sights, n_k, rows)
    found = []
    for first, last in ranges:
        for start in range(first, last, most_keys):
            stop = min(start + most_keys, last)
            parts = _without([(start, stop)], by_all)
            some = slice(parts[0][0] - start, parts[-1][1] - start) if parts else slice(0, 0)
            found.append(Tile(slice(start, stop), some))
    return found


def sights_of(mask: RowMask) -> list[Sight]:
    """Return what each pattern shows; a causal one has a window as long as there are positions."""
    found = []
    for pattern in mask.patterns:
        position = offset_of("mask", pattern.alignment, mask.n_q, mask.n_k)
        whole = abs(position) + mask.n_q + mask.n_k
        short = (whole, 0)
        if isinstance(pattern, SlidingWindow):
            right = min(pattern.right, whole)
            position, whole, short = position + right, whole + right, (pattern.window + right, pattern.sinks)
        found.append(Sight(position, min(short[0], whole), min(short[1], whole)))
    return found


def _seen(sights: list[Sight], n_k: int, rows: slice) -> tuple[Ranges, Ranges]:
    """Return which keys some query of the rows may see by the patterns, and which all of them do."""
    by_some = by_all = [(0, n_k)]
    for sight in sights:
        some, every = _seen_by(sight, rows)
        by_some, by_all = _both(by_some, some), _both(by_all, every)
    return by_some, by_all


def _seen_by(sight: Sight, rows: slice) -> tuple[Ranges, Ranges]:
    first, last = rows.start + sight.position, rows.stop - 1 + sight.position
    window, sinks = sight.window, sight.sinks
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
