"""Lists of a query's group: the earlier positions that are in it, to a number that a rule of the past says (ours)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from refattn.patterns._lists import Indices


def earlier_of_group(groups: NDArray[np.int64], most: int, chunk: int | None = None) -> Indices:
    """List, for groups ``(m, n)`` of positions, up to `most` newest ones of the same group before each: (m, n, most).

    With `chunk`, a group's members are cut into chunks from its first one on, and only those of a member's own chunk
    and of the one before are listed.
    """
    n = groups.shape[1]
    order = np.argsort(groups, axis=1, kind="stable")
    ordered = np.take_along_axis(groups, order, axis=1)
    places = np.arange(n)
    begins = np.ones(groups.shape, bool)
    begins[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
    start = np.maximum.accumulate(np.where(begins, places, 0), axis=1)
    if chunk is not None:
        start = start + np.maximum((places - start) // chunk - 1, 0) * chunk
    before = places[:, None] - np.arange(1, most + 1)
    seen = before >= start[..., None]
    lists = np.where(seen, np.take_along_axis(order[:, None], np.maximum(before, 0)[None], axis=2), -1)
    found = np.empty_like(lists)
    np.put_along_axis(found, order[..., None], lists, axis=1)
    return found


def or_itself(lists: Indices) -> Indices:
    """Give a query with nothing else on its list its own position."""
    alone = (lists < 0).all(axis=-1)
    own = np.broadcast_to(np.arange(lists.shape[-2]), alone.shape)
    return np.concatenate([lists, np.where(alone, own, -1)[..., None]], axis=-1)
