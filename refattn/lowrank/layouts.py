"""Masks from their natural descriptions, and one structure as a case of another (ours).

| description | structure |
|---|---|
| sliding window, document blocks, prefix-LM | continuous rows |
| LongLoRA's shifted groups (arXiv 2309.12307) | row change by amortized constant |

A causal mask is ``prefix_lm(n, 0)``. Continuous and distinct rows are row changes; intervals of few kinds are distinct
rows.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from refattn._memory import require_memory
from refattn._validation import as_array, as_count, as_flag
from refattn.lowrank.distinct_masks import DistinctRowsMask, grouped
from refattn.lowrank.masks import (
    CausalStructure,
    ContinuousRowsMask,
    Index,
    RowChangeMask,
    StructuredMask,
    as_indices,
    spans,
)

_BYTES = 64
"""Of a row, while a mask is made of whole arrays."""
_BYTES_OF_CHANGES = 448
"""Of a row, while its changes are two small arrays of their own."""


def _as_rows(n: int, name: str = "n", each: int = _BYTES) -> int:
    """Check the number of rows, and that they fit."""
    n = as_count(name, n, least=1, most=2**62)
    require_memory(f"{name}: a mask of {n} rows", each * n)
    return n


def sliding_window(n: int, window: int) -> ContinuousRowsMask:
    """Row i sees the `window` columns up to its own, ``i − window + 1 … i``.

    Parameters
    ----------
    n : int
        Number of rows.
    window : int
        Columns in the window, the row's own included; at least 1.

    Returns
    -------
    ContinuousRowsMask
        The mask.

    Raises
    ------
    TypeError, ValueError
        Not counts.

    Notes
    -----
    Time and memory O(n). Source: ours, as a case of arXiv 2405.05219, definition 6.2.

    Examples
    --------
    >>> sliding_window(3, 2).to_dense().astype(int)
    array([[1, 0, 0],
           [1, 1, 0],
           [0, 1, 1]])
    """
    n, window = _as_rows(n), as_count("window", window, least=1)
    window = min(window, n)
    i = np.arange(n)
    return ContinuousRowsMask(np.maximum(i - window + 1, 0), i + 1)


def document_blocks(lengths: ArrayLike, *, causal: bool = True) -> ContinuousRowsMask:
    """Rows see the columns of their own document: up to their own if `causal`, else all of them.

    Parameters
    ----------
    lengths : array_like of int, shape (documents,)
        Length of every document, at least 1; n is their sum.
    causal : bool, optional
        Whether a row sees what comes after it.

    Returns
    -------
    ContinuousRowsMask
        The mask.

    Raises
    ------
    TypeError, ValueError
        Not counts.

    Notes
    -----
    Time and memory O(n). Source: ours, as a case of arXiv 2405.05219, definition 6.2.

    Examples
    --------
    >>> document_blocks([2, 1], causal=False).to_dense().astype(int)
    array([[1, 1, 0],
           [1, 1, 0],
           [0, 0, 1]])
    """
    sizes = as_indices("lengths", lengths, max(as_array("lengths", lengths).size, 1), "one per document")
    if (sizes < 1).any():
        document = int((sizes < 1).argmax())
        raise ValueError(f"lengths: {sizes[document]} came for document {document}, at least 1 was wanted")
    causal = as_flag("causal", causal)
    _as_rows(sum(sizes.tolist()), "lengths")
    ends = np.repeat(np.cumsum(sizes), sizes)
    start = ends - np.repeat(sizes, sizes)
    return ContinuousRowsMask(start, np.arange(1, ends.size + 1) if causal else ends)


def prefix_lm(n: int, prefix: int) -> ContinuousRowsMask:
    """Every row sees the first `prefix` columns, and those up to its own.

    Parameters
    ----------
    n : int
        As for `sliding_window`.
    prefix : int
        Columns of the prefix, 0 … n.

    Returns
    -------
    ContinuousRowsMask
        The mask.

    Raises
    ------
    TypeError, ValueError
        Not counts, or the prefix is longer than n.

    Notes
    -----
    Time and memory O(n). Source: ours, as a case of arXiv 2405.05219, definition 6.2.

    Examples
    --------
    >>> prefix_lm(3, 2).to_dense().astype(int)
    array([[1, 1, 0],
           [1, 1, 0],
           [1, 1, 1]])
    """
    n = _as_rows(n)
    prefix = as_count("prefix", prefix, least=0, most=n, most_is="n")
    return ContinuousRowsMask(np.zeros(n, np.int64), np.maximum(np.arange(1, n + 1), prefix))


def shifted_groups(n: int, group: int, *, shift: int | None = None, causal: bool = True) -> RowChangeMask:
    """LongLoRA's shifted sparse attention: positions, rolled back by `shift`, are cut into groups.

    Parameters
    ----------
    n : int
        Number of rows.
    group : int
        Positions in a group, 1 … n. The last group is shorter where n is not a multiple.
    shift : int, optional
        0 … group; half a group by default. The last group then also holds the first positions, which wrap around.
    causal : bool, optional
        Whether a row sees columns of its group after it. By position: wrapped rows see nothing of the end.

    Returns
    -------
    RowChangeMask
        With about two changes a row: every column enters once and leaves once, but for those that wrap.

    Raises
    ------
    TypeError, ValueError
        Not counts, or out of range.

    Notes
    -----
    Time and memory O(n + Σ B_i). Source: arXiv 2309.12307 (shifted sparse attention); arXiv 2405.05219 names it as a
    case of row change by amortized constant. LongLoRA's own code applies the causal mask to the rolled order, by which
    the wrapped positions see the end of the text; here they do not.

    Examples
    --------
    >>> shifted_groups(4, 2, shift=1, causal=False).to_dense().astype(int)
    array([[1, 0, 0, 1],
           [0, 1, 1, 0],
           [0, 1, 1, 0],
           [1, 0, 0, 1]])
    """
    n, causal = _as_rows(n, each=_BYTES_OF_CHANGES), as_flag("causal", causal)
    group = as_count("group", group, least=1, most=n, most_is="n")
    shift = group // 2 if shift is None else as_count("shift", shift, least=0, most=group, most_is="group")
    number = (np.arange(n) - shift) % n // group
    members = np.split(np.argsort(number, kind="stable"), np.cumsum(np.bincount(number))[:-1])
    nothing = np.empty(0, np.int64)

    def seen(i: int) -> Index:
        whole = members[number[i]]
        return np.asarray(whole[whole <= i] if causal else whole)

    columns, signs, counts = [], [], np.zeros(n, np.int64)
    for i in range(n):
        if i and number[i] == number[i - 1]:
            enter, leave = np.array([i] if causal else [], np.int64), nothing
        else:
            now, before = seen(i), seen(i - 1) if i else nothing
            enter, leave = np.setdiff1d(now, before, True), np.setdiff1d(before, now, True)
        changed = np.concatenate([enter, leave])
        order = np.argsort(changed)
        columns.append(changed[order])
        signs.append(np.repeat(np.array([1, -1], np.int8), [enter.size, leave.size])[order])
        counts[i] = changed.size
    return RowChangeMask(np.concatenate([[0], np.cumsum(counts)]), np.concatenate(columns), np.concatenate(signs))


def as_continuous_rows(mask: StructuredMask) -> ContinuousRowsMask:
    """Read a mask of distinct rows that are intervals as continuous rows.

    Parameters
    ----------
    mask : ContinuousRowsMask or DistinctRowsMask
        The mask to read.

    Returns
    -------
    ContinuousRowsMask
        The same mask.

    Raises
    ------
    TypeError
        A structure that is not a case of continuous rows.
    ValueError
        The first row that is not one interval.

    Notes
    -----
    Time O(n), and O(pn) for p patterns. Source: arXiv 2405.05219, section 6.

    Examples
    --------
    >>> as_continuous_rows(DistinctRowsMask([[True, False], [True, True]], [0, 1])).stop
    array([1, 2])
    """
    if isinstance(mask, ContinuousRowsMask):
        return mask
    if isinstance(mask, CausalStructure):
        return sliding_window(mask.n, mask.n)
    if isinstance(mask, DistinctRowsMask):
        start, counts, last = spans(mask.patterns)
        broken = (last - start != counts)[mask.groups]
        if broken.any():
            raise ValueError(f"mask: row {int(broken.argmax())} sees more than one interval")
        return ContinuousRowsMask(start[mask.groups], (start + counts)[mask.groups])
    raise TypeError(f"mask: {type(mask).__name__} came, causal, continuous or distinct rows were wanted")


def as_row_change(mask: StructuredMask, *, most: float | None = None) -> RowChangeMask:
    """Read a mask as row changes.

    Parameters
    ----------
    mask : ContinuousRowsMask, DistinctRowsMask or RowChangeMask
        The mask to read.
    most : float, optional
        The amortized constant that the changes must keep; see `RowChangeMask`.

    Returns
    -------
    RowChangeMask
        The same mask.

    Raises
    ------
    TypeError
        A structure that is not read as row changes.
    ValueError
        The row at which the changes exceed ``most · n``.

    Notes
    -----
    Time and memory O(n + Σ B_i), and O(pn) for p patterns. Source: arXiv 2405.05219, section 6.

    Examples
    --------
    >>> as_row_change(sliding_window(5, 2), most=2).changes
    array([1, 1, 2, 2, 2])
    """
    if isinstance(mask, RowChangeMask):
        return RowChangeMask(mask.first, mask.columns, mask.signs, most)
    if isinstance(mask, DistinctRowsMask):
        return _changes_of_patterns(mask, most)
    rows = as_continuous_rows(mask)
    start, stop = rows.start, rows.stop
    start_before, stop_before = (np.concatenate([[0], ends[:-1]]) for ends in (start, stop))
    # what enters: left and right of the interval before; what leaves: left and right of the interval now
    pieces = (
        (start, np.minimum(stop, start_before), 1),
        (np.maximum(start, stop_before), stop, 1),
        (start_before, np.minimum(stop_before, start), -1),
        (np.maximum(start_before, stop), stop_before, -1),
    )
    row, column, sign = [], [], []
    for low, high, way in pieces:
        sizes = np.maximum(high - low, 0)
        row.append(np.repeat(np.arange(rows.n), sizes))
        column.append(np.arange(sizes.sum()) - np.repeat(np.cumsum(sizes) - sizes - low, sizes))
        sign.append(np.full(int(sizes.sum()), way))
    return _sorted_changes(rows.n, np.concatenate(row), np.concatenate(column), np.concatenate(sign), most)


def _changes_of_patterns(mask: DistinctRowsMask, most: float | None) -> RowChangeMask:
    row, column, sign = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
    before = np.zeros(mask.n, bool)
    for i in np.flatnonzero(np.diff(mask.groups, prepend=-1)):
        now = mask.patterns[mask.groups[i]]
        changed = np.flatnonzero(now != before)
        row.append(np.full(changed.size, i))
        column.append(changed)
        sign.append(np.where(now[changed], 1, -1))
        before = now
    return _sorted_changes(mask.n, np.concatenate(row), np.concatenate(column), np.concatenate(sign), most)


def _sorted_changes(n: int, row: Index, column: Index, sign: Index, most: float | None) -> RowChangeMask:
    order = np.lexsort((column, row))
    first = np.concatenate([[0], np.cumsum(np.bincount(row, minlength=n))])
    return RowChangeMask(first, column[order], sign[order].astype(np.int8), most)


def as_distinct_rows(mask: StructuredMask, *, most: int) -> DistinctRowsMask:
    """Read continuous rows as distinct rows, grouping equal intervals.

    Parameters
    ----------
    mask : ContinuousRowsMask
        The mask to read.
    most : int
        Most different rows; each takes n bytes.

    Returns
    -------
    DistinctRowsMask
        The same mask; its `transpose` has distinct columns.

    Raises
    ------
    TypeError
        Another structure.
    ValueError
        The first row beyond `most` different ones.

    Notes
    -----
    Time O(n log n + pn) for p patterns. Source: arXiv 2405.05219, section 6.

    Examples
    --------
    >>> as_distinct_rows(document_blocks([2, 1], causal=False), most=2).groups
    array([0, 0, 1])
    """
    most = as_count("most", most, least=1)
    rows = as_continuous_rows(mask)
    empty = rows.start == rows.stop
    ends = np.stack([np.where(empty, 0, rows.start), np.where(empty, 0, rows.stop)], axis=1)
    first, groups = grouped(ends, most, "row")
    chosen, j = ends[first], np.arange(rows.n)
    return DistinctRowsMask((chosen[:, :1] <= j) & (j < chosen[:, 1:]), groups)
