"""Lists of positions, one a query: in order, −1 before them where there are fewer than the longest list has."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from refattn._memory import require_memory
from refattn._validation import as_array

Indices = NDArray[np.int64]


def as_lists(indices: Any, n_q: int, n_k: int) -> Indices:
    """Return lists ``(…, n_q, pairs)`` in order; raise where one is not of different positions below n_k, or −1."""
    array = as_array("indices", indices)
    if array.dtype.kind not in "iu":
        raise TypeError(f"indices: dtype {array.dtype} came, integers were wanted")
    if array.ndim < 2 or array.shape[-2] != n_q or 0 in array.shape[:-1]:
        raise ValueError(f"indices: shape {array.shape} came, (…, {n_q}, pairs) was wanted, a list for every query")
    if array.size and not (array.min() >= -1 and array.max() < n_k):
        bad = array[(array < -1) | (array >= n_k)][0]
        raise ValueError(f"indices: {bad} came, positions below the {n_k} keys, or -1 for none, were wanted")
    lists = np.ascontiguousarray(array, np.int64)
    steps = np.diff(lists)
    if (steps < 0).any():
        lists = np.sort(lists)
        steps = np.diff(lists)
    twice = (steps == 0) & (lists[..., 1:] >= 0)
    if twice.any():
        query = int(np.argwhere(twice)[0][-2])
        raise ValueError(
            f"indices: {lists[..., 1:][twice][0]} came twice for query {query}, different positions were wanted"
        )
    return lists


def require_room(names: str, lists: int, pairs: int) -> None:
    """Raise ``MemoryError``, naming arguments, where so many lists do not fit: sorting takes as much again, twice."""
    require_memory(f"{names}: {lists} lists of {pairs} positions", 24 * lists * pairs)


def packed(indices: Indices) -> Indices:
    """Sort lists, leave out what comes twice, and cut them to the length of the longest."""
    lists = np.sort(indices)
    lists[..., 1:][(np.diff(lists) == 0) & (lists[..., 1:] >= 0)] = -1
    lists.sort()
    longest = int((lists >= 0).sum(axis=-1).max())
    return np.ascontiguousarray(lists[..., lists.shape[-1] - longest :])
