"""Masks with few distinct rows or columns (arXiv 2405.05219, section 6).

The different rows (or columns) are kept once each, as patterns, with the group of every row (column): O(pn) for p
patterns. What is not what it claims to be is refused, naming the first row (column) that breaks the definition.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from refattn._validation import as_array, as_count
from refattn.lowrank.masks import Boolean, Index, StructuredMask, as_dense_mask, as_indices, keep


@dataclass(frozen=True, eq=False)
class _GroupedMask(StructuredMask):
    """Patterns, and which of them each row or column is."""

    patterns: Boolean
    groups: Index
    grouped: ClassVar[str]
    """What has the patterns: rows or columns."""

    def __post_init__(self) -> None:
        patterns, groups = _as_groups(self.patterns, self.groups, self.grouped)
        keep(self, patterns=patterns, groups=groups)

    @classmethod
    def from_dense(cls, dense: ArrayLike, *, most: int | None = None) -> Self:
        """Read a dense mask, or raise ``ValueError`` naming the first row, or column, beyond `most` different ones.

        Parameters
        ----------
        dense : array_like, shape (n, n)
            Booleans, or zeros and ones.
        most : int, optional
            Most different ones.
        """
        W = as_dense_mask(dense)
        return cls(*_patterns(W if cls.grouped == "row" else W.T, most, cls.grouped))

    @property
    def n(self) -> int:  # type: ignore[override]
        """Number of rows and of columns."""
        return self.groups.size


@dataclass(frozen=True, eq=False)
class DistinctRowsMask(_GroupedMask):
    """At most p different rows: row i is ``patterns[groups[i]]``.

    Parameters
    ----------
    patterns : array_like of bool, shape (p, n)
        The different rows.
    groups : array_like of int, shape (n,)
        Which of them each row is.

    Raises
    ------
    TypeError
        Not booleans and integers.
    ValueError
        Shapes do not fit; or the first row whose group is not one of the patterns.

    Notes
    -----
    Memory O(pn). Source: arXiv 2405.05219, definition of the mask with distinct rows (6.4).

    Examples
    --------
    >>> DistinctRowsMask([[True, True, False], [False, False, True]], [0, 0, 1]).to_dense().astype(int)
    array([[1, 1, 0],
           [1, 1, 0],
           [0, 0, 1]])
    """

    grouped = "row"

    def transpose(self) -> DistinctColumnsMask:
        """Return Wᵀ, which has as many distinct columns."""
        return DistinctColumnsMask(self.patterns, self.groups)

    def to_dense(self) -> Boolean:
        """Return W, shape (n, n); time and memory O(n²)."""
        return np.asarray(self.patterns[self.groups])

    def row_counts(self) -> Index:
        """Return how many columns each row sees, shape (n,)."""
        return np.asarray(self.patterns.sum(axis=1)[self.groups])


@dataclass(frozen=True, eq=False)
class DistinctColumnsMask(_GroupedMask):
    """At most p different columns: column j is ``patterns[groups[j]]``.

    Parameters
    ----------
    patterns : array_like of bool, shape (p, n)
        The different columns, each as a row of this array.
    groups : array_like of int, shape (n,)
        Which of them each column is.

    Raises
    ------
    TypeError, ValueError
        As `DistinctRowsMask`, of columns.

    Notes
    -----
    Memory O(pn). Source: arXiv 2405.05219, definition of the mask with distinct columns (6.3).

    Examples
    --------
    >>> DistinctColumnsMask([[True, True, False], [False, True, True]], [0, 1, 0]).to_dense().astype(int)
    array([[1, 0, 1],
           [1, 1, 1],
           [0, 1, 0]])
    """

    grouped = "column"

    def transpose(self) -> DistinctRowsMask:
        """Return Wᵀ, which has as many distinct rows."""
        return DistinctRowsMask(self.patterns, self.groups)

    def to_dense(self) -> Boolean:
        """Return W, shape (n, n); time and memory O(n²)."""
        return np.asarray(self.patterns[self.groups].T)

    def row_counts(self) -> Index:
        """Return how many columns each row sees, shape (n,)."""
        sizes = np.bincount(self.groups, minlength=len(self.patterns))
        return np.asarray(sizes @ self.patterns.astype(np.int64))


def _as_groups(patterns: Any, groups: Any, what: str) -> tuple[Boolean, Index]:
    patterns = as_array("patterns", patterns)
    if patterns.dtype != bool:
        raise TypeError(f"patterns: dtype {patterns.dtype} came, booleans were wanted")
    if patterns.ndim != 2 or not patterns.size:
        raise ValueError(f"patterns: shape {patterns.shape} came, (p, n) with p, n ≥ 1 was wanted")
    groups = as_indices("groups", groups, patterns.shape[1], f"one per {what}")
    wrong = (groups < 0) | (groups >= len(patterns))
    if wrong.any():
        i = int(wrong.argmax())
        raise ValueError(f"mask: {what} {i} has group {groups[i]}, one of 0 … {len(patterns) - 1} was wanted")
    return patterns.copy(), groups


def _patterns(rows: Boolean, most: int | None, what: str) -> tuple[Boolean, Index]:
    """Return the different rows, in the order of their first appearance, and which of them each row is."""
    first, groups = grouped(np.packbits(rows, axis=1), most, what)
    return rows[first], groups


def grouped(rows: NDArray[Any], most: int | None, what: str) -> tuple[Index, Index]:
    """Group equal rows: where each different one first appears, in that order, and which of them each row is."""
    _, appears, inverse = np.unique(rows, axis=0, return_index=True, return_inverse=True)
    order = np.argsort(appears)
    if most is not None and order.size > as_count("most", most, least=1):
        i = int(appears[order[most]])
        raise ValueError(f"mask: {what} {i} differs from the {most} different ones before it")
    return appears[order], np.argsort(order)[inverse.reshape(-1)]
