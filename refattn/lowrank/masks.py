"""Masks as structures: causal, row change by amortized constant, continuous rows (arXiv 2405.05219, section 6).

W is n×n, zero or one, and ``W_ij = 1`` says that row i sees column j. Only the structure is kept; n×n appears in
`to_dense` and `from_dense` alone. A mask that is not what it claims to be is refused, and the message names the first
row that breaks the definition. Distinct rows and columns are in `refattn.lowrank.distinct_masks`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from refattn._kept import restore
from refattn._validation import as_array, as_count, as_real

Index = NDArray[np.int64]
Boolean = NDArray[np.bool_]


class StructuredMask(ABC):
    """A mask kept as a structure.

    Attributes
    ----------
    n : int
        Number of rows and of columns.

    Examples
    --------
    >>> from refattn.lowrank import StructuredMask, prefix_lm, sliding_window
    >>> isinstance(prefix_lm(4, 0), StructuredMask), sliding_window(4, 2).row_counts().tolist()
    (True, [1, 2, 2, 2])
    """

    n: int

    __setstate__ = restore

    @abstractmethod
    def to_dense(self) -> Boolean:
        """Return W, shape (n, n); time and memory O(n²)."""

    @abstractmethod
    def row_counts(self) -> Index:
        """Return how many columns each row sees, shape (n,)."""


def as_dense_mask(dense: ArrayLike) -> Boolean:
    """Check a dense mask: square, not empty, booleans or numbers zero and one."""
    array = as_array("mask", dense)
    if array.ndim != 2 or array.shape[0] != array.shape[1] or not array.size:
        raise ValueError(f"mask: shape {array.shape} came, (n, n) with n ≥ 1 was wanted")
    if array.dtype.kind not in "biuf":
        raise TypeError(f"mask: dtype {array.dtype} came, booleans or numbers zero and one were wanted")
    other = (array != 0) & (array != 1)
    if other.any():
        i, j = (int(x) for x in np.argwhere(other)[0])
        raise ValueError(f"mask: row {i} holds {array[i, j]} at column {j}, zeros and ones were wanted")
    return array.astype(bool)


def as_indices(name: str, value: Any, size: int, what: str) -> Index:
    """Check a vector of `size` integers."""
    array = as_array(name, value)
    if array.dtype.kind not in "iu" and array.size:
        raise TypeError(f"{name}: dtype {array.dtype} came, integers were wanted")
    if array.shape != (size,):
        raise ValueError(f"{name}: shape {array.shape} came, ({size},), {what}, was wanted")
    return array.astype(np.int64)


def spans(rows: Boolean) -> tuple[Index, Index, Index]:
    """Return the first column that every row sees, how many it sees, and the one after its last; 0 where none."""
    counts = rows.sum(axis=1)
    start = np.where(counts > 0, rows.argmax(axis=1), 0)
    return start, counts, np.where(counts > 0, rows.shape[1] - rows[:, ::-1].argmax(axis=1), 0)


def keep(mask: StructuredMask, **arrays: NDArray[Any]) -> None:
    """Set the arrays of a mask, its own, so that nobody writes to what has been checked."""
    for name, array in arrays.items():
        array.flags.writeable = False
        object.__setattr__(mask, name, array)


@dataclass(frozen=True, eq=False)
class CausalStructure(StructuredMask):
    """Row i sees the columns ``j ≤ i`` (the causal mask of Algorithm 4): `refattn.Causal` of a known size."""

    n: int

    def __post_init__(self) -> None:
        object.__setattr__(self, "n", as_count("n", self.n, least=1))

    @classmethod
    def from_dense(cls, dense: ArrayLike) -> CausalStructure:
        """Read a dense mask, or raise ``ValueError`` naming the first row that is not causal."""
        W = as_dense_mask(dense)
        wrong = np.not_equal(W, np.tri(len(W), dtype=bool)).any(axis=1)
        if wrong.any():
            i = int(wrong.argmax())
            raise ValueError(f"mask: row {i} does not see the columns 0 … {i} and no others: it is not causal")
        return cls(len(W))

    def to_dense(self) -> Boolean:
        """Return W, shape (n, n); time and memory O(n²)."""
        return np.tri(self.n, dtype=bool)

    def row_counts(self) -> Index:
        """Return how many columns each row sees, shape (n,)."""
        return np.arange(1, self.n + 1)


@dataclass(frozen=True, eq=False)
class RowChangeMask(StructuredMask):
    """Each row given by its changes from the row before (the row before the first is empty).

    Parameters
    ----------
    first : array_like of int, shape (n + 1,)
        The changes of row i are the entries ``first[i] … first[i + 1] − 1`` of `columns` and `signs`.
    columns : array_like of int, shape (c,)
        Columns that change, increasing within a row.
    signs : array_like of int, shape (c,)
        1 where the column enters, −1 where it leaves.
    most : float, optional
        The amortized constant: with the paper's ``B_i`` changes in row i, ``Σ B_i ≤ most · n`` is demanded.

    Raises
    ------
    TypeError
        Not integers.
    ValueError
        The first row that enters a column which it has, or leaves one which it has not; whose columns do not increase
        or are out of range; or at which the sum of changes exceeds the amortized constant.

    Notes
    -----
    Memory O(n + Σ B_i); checked in O(Σ B_i log n). Source: arXiv 2405.05219, definition of the row change by amortized
    constant mask (6.1).

    Examples
    --------
    >>> RowChangeMask(first=[0, 1, 3, 3], columns=[0, 0, 2], signs=[1, -1, 1]).to_dense().astype(int)
    array([[1, 0, 0],
           [0, 0, 1],
           [0, 0, 1]])
    """

    first: Index
    columns: Index
    signs: NDArray[np.int8]
    most: float | None = None

    def __post_init__(self) -> None:
        size = as_array("first", self.first).size
        first = as_indices("first", self.first, max(size, 2), "n + 1 positions with n ≥ 1")
        total = int(first[-1])
        columns = as_indices("columns", self.columns, total, "one per change")
        signs = as_indices("signs", self.signs, total, "one per change")
        if self.most is not None:
            as_real("most", self.most, least=0.0)
        if first[0] != 0 or (np.diff(first) < 0).any():
            raise ValueError("first: positions that start at 0 and never fall were wanted")
        keep(self, first=first, columns=columns, signs=signs.astype(np.int8))
        self._require_rows(signs)

    def _require_rows(self, signs: Index) -> None:
        n, columns = self.n, self.columns
        row = np.repeat(np.arange(n), np.diff(self.first))
        faults = [(row[(columns < 0) | (columns >= n)], f"has a column outside 0 … {n - 1}")]
        falls = np.flatnonzero((row[1:] == row[:-1]) & (columns[1:] <= columns[:-1]))
        faults.append((row[falls], "has columns that do not increase"))
        # within a column, in the order of rows, changes are enter, leave, enter, …
        order = np.argsort(columns, kind="stable")
        new = np.concatenate([[True], np.diff(columns[order]) != 0])[: order.size]
        before = np.where(new, -1, np.roll(signs[order], 1))
        wrong = (np.abs(signs[order]) != 1) | (before == signs[order])
        faults.append((row[order[wrong]], "enters a column that it has, or leaves one that it has not"))
        if self.most is not None:
            spent = self.first[1:] > self.most * n
            faults.append((np.flatnonzero(spent), f"exceeds {self.most:g} changes a row, amortized over {n} rows"))
        found = [(int(rows.min()), what) for rows, what in faults if rows.size]
        if found:
            i, what = min(found)
            raise ValueError(f"mask: row {i} {what}")

    @classmethod
    def from_dense(cls, dense: ArrayLike, *, most: float | None = None) -> RowChangeMask:
        """Read a dense mask, or raise ``ValueError`` naming the row at which the changes exceed ``most · n``.

        Parameters
        ----------
        dense : array_like, shape (n, n)
            Booleans, or zeros and ones.
        most : float, optional
            The amortized constant that the changes must keep.
        """
        W = as_dense_mask(dense).astype(np.int8)
        changes = np.diff(W, axis=0, prepend=np.zeros((1, len(W)), np.int8))
        rows, columns = np.nonzero(changes)
        first = np.concatenate([[0], np.cumsum(np.bincount(rows, minlength=len(W)))])
        return cls(first, columns, changes[rows, columns], most)

    @property
    def n(self) -> int:  # type: ignore[override]
        """Number of rows and of columns."""
        return self.first.size - 1

    @property
    def changes(self) -> Index:
        """The paper's ``B_i``: changes of every row, shape (n,)."""
        return np.diff(self.first)

    def to_dense(self) -> Boolean:
        """Return W, shape (n, n); time and memory O(n²)."""
        W = np.zeros((self.n, self.n), np.int8)
        W[np.repeat(np.arange(self.n), self.changes), self.columns] = self.signs
        return np.cumsum(W, axis=0, dtype=np.int8).astype(bool)

    def row_counts(self) -> Index:
        """Return how many columns each row sees, shape (n,)."""
        running = np.concatenate([[0], np.cumsum(self.signs, dtype=np.int64)])
        return np.asarray(running[self.first[1:]])


@dataclass(frozen=True, eq=False)
class ContinuousRowsMask(StructuredMask):
    """Row i sees one interval of columns, ``start[i] ≤ j < stop[i]``.

    Parameters
    ----------
    start, stop : array_like of int, shape (n,)
        ``0 ≤ start ≤ stop ≤ n``; a row with start = stop sees nothing.

    Raises
    ------
    TypeError
        Not integers.
    ValueError
        The first row whose interval is not within the columns.

    Notes
    -----
    The paper's ``[s_i, t_i]`` is closed and 1-based: ``start = s − 1``, ``stop = t``. Source: arXiv 2405.05219,
    definition of the continuous row mask (6.2). Memory O(n).

    Examples
    --------
    >>> ContinuousRowsMask([0, 1, 0], [1, 1, 2]).to_dense().astype(int)
    array([[1, 0, 0],
           [0, 0, 0],
           [1, 1, 0]])
    """

    start: Index
    stop: Index

    def __post_init__(self) -> None:
        size = max(as_array("start", self.start).size, 1)
        start = as_indices("start", self.start, size, "one per row")
        stop = as_indices("stop", self.stop, size, "one per row")
        wrong = (start < 0) | (start > stop) | (stop > size)
        if wrong.any():
            i = int(wrong.argmax())
            raise ValueError(f"mask: row {i} has the interval {start[i]} … {stop[i]}, one within 0 … {size} was wanted")
        keep(self, start=start, stop=stop)

    @classmethod
    def from_dense(cls, dense: ArrayLike) -> ContinuousRowsMask:
        """Read a dense mask, or raise ``ValueError`` naming the first row that is not one interval.

        Parameters
        ----------
        dense : array_like, shape (n, n)
            Booleans, or zeros and ones.
        """
        start, counts, last = spans(as_dense_mask(dense))
        broken = last - start != counts
        if broken.any():
            i = int(broken.argmax())
            raise ValueError(f"mask: row {i} sees {counts[i]} columns of {start[i]} … {last[i] - 1}: not one interval")
        return cls(start, start + counts)

    @property
    def n(self) -> int:  # type: ignore[override]
        """Number of rows and of columns."""
        return self.start.size

    def to_dense(self) -> Boolean:
        """Return W, shape (n, n); time and memory O(n²)."""
        j = np.arange(self.n)
        return np.asarray((self.start[:, None] <= j) & (j < self.stop[:, None]))

    def row_counts(self) -> Index:
        """Return how many columns each row sees, shape (n,)."""
        return self.stop - self.start
