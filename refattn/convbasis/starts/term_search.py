"""The search for a number of terms: errors on sampled rows, doubling and bisecting (ours); see `fewest`."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from refattn._threads import for_each
from refattn._validation import FloatArray
from refattn.convbasis.basis import ConvBasis

Integers = NDArray[np.int64]

_ROWS = 8
"""Rows that are compared at once."""


class RowErrors(NamedTuple):
    """Largest ``‖a_i − ã_i‖₁``, and largest ``|H_ij − H'_ij|`` in a causal entry, of some rows of attention."""

    error: float
    residual: float


def row_differences(q: FloatArray, k: FloatArray, scale: float, basis: ConvBasis, rows: Integers) -> RowErrors:
    """Compare some rows of a head, ascending, with those of a basis from column 0, exactly, in float64.

    Time O(r n d), memory O(n · block) for every thread. Raises where a logit is not finite.
    """
    from refattn.convbasis.starts import term_search_loops

    kernels: NDArray[np.float64] = np.ascontiguousarray(basis.kernels, np.float64)
    errors, residuals = np.zeros(rows.size), np.zeros(rows.size)
    bad: list[int] = []

    def compare(first: int) -> None:
        some = slice(first, first + _ROWS)
        logits = (q[rows[some]] @ k[: rows[some][-1] + 1].T) * scale
        row = term_search_loops.compare_rows(logits, rows[some], basis.starts, kernels, errors[some], residuals[some])
        if row >= 0:
            bad.append(row)

    for_each(compare, range(0, rows.size, _ROWS))
    if bad:
        raise ValueError(f"q, k: a logit of row {min(bad)} is not finite, finite numbers were wanted")
    return RowErrors(float(errors.max()), float(residuals.max()))


class TermSearch:
    """Looks for the fewest terms, up to `most`, whose error on a growing sample of rows is within a tolerance.

    ``measure(count, rows)`` gives the errors of the basis with `count` terms on some rows.
    """

    def __init__(
        self, measure: Callable[[int, Integers], RowErrors], most: int, tolerance: float, rows: Integers
    ) -> None:
        self._measure, self._most, self._tolerance = measure, most, tolerance
        self.rows = rows
        self.failed = 0
        self.tried: dict[int, RowErrors] = {}

    def fewest(self) -> int | None:
        """Return a number of terms within the tolerance, where one less is not; None where the most are not.

        Doubles the distance from the last number that is known to fail, then bisects.
        """
        origin, step = self.failed, 1
        if origin == self._most:
            return None
        while not self._passes(count := min(origin + step, self._most)):
            if count == self._most:
                return None
            step *= 2
        while count - self.failed > 1:
            middle = (self.failed + count) // 2
            if self._passes(middle):
                count = middle
        return count

    def confirmed(self, count: int, fresh: Integers) -> bool:
        """Whether rows that were not chosen by are within the tolerance too; they join the sample."""
        seen = self._measure(count, fresh)
        known = self.tried[count]
        self.tried[count] = RowErrors(max(seen.error, known.error), max(seen.residual, known.residual))
        self.rows = np.union1d(self.rows, fresh)
        if seen.error > self._tolerance:
            self.failed = count
        return seen.error <= self._tolerance

    def _passes(self, count: int) -> bool:
        found = self.tried[count] = self._measure(count, self.rows)
        if found.error > self._tolerance:
            self.failed = max(self.failed, count)
        return found.error <= self._tolerance
