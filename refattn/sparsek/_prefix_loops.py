"""Compiled loops over the prefixes of a score sequence: two heaps, and a heap of the best (arXiv 2406.16747).

Results and workspace are out-arguments and nothing is allocated inside. Imported where it is used, never at the
package's import (`refattn._compiled`).

A heap is the front part of an array, smallest first: the children of entry e are 2e + 1 and 2e + 2.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from refattn._compiled import compiled
from refattn._validation import FloatArray


@compiled
def _push(heap: NDArray[np.float64], size: int, value: float) -> None:
    """Add `value` to a heap of `size` entries."""
    hole = size
    while hole > 0:
        parent = (hole - 1) >> 1
        if heap[parent] <= value:
            break
        heap[hole] = heap[parent]
        hole = parent
    heap[hole] = value


@compiled
def _pop(heap: NDArray[np.float64], size: int) -> None:
    """Remove the smallest of `size` entries: the hole sinks to a leaf, the last entry rises from there."""
    last = size - 1
    hole = 0
    child = 1
    while child < last:
        if child + 1 < last:
            child += heap[child + 1] < heap[child]
        heap[hole] = heap[child]
        hole = child
        child = 2 * hole + 1
    _push(heap, hole, heap[last])


@compiled
def continue_thresholds(
    z: FloatArray,
    k: float,
    ones: NDArray[np.float64],
    interior: NDArray[np.float64],
    sizes: NDArray[np.int64],
    sums: NDArray[np.float64],
    tau: NDArray[np.float64],
) -> None:
    """Write into ``tau[i]`` the threshold after ``z[i]``, and leave the heaps as they are after the last.

    `sizes` are the two heaps' numbers of entries, `sums` the threshold and the interior's sum in two parts. Either heap
    has room for its entries and for z. The step is that of `refattn.sparsek.prefix._two_heaps`, where it stands next to
    the paper.
    """
    n_ones, n_interior = sizes[0], sizes[1]
    current, total, lost = sums[0], sums[1], sums[2]
    for i in range(z.size):
        new = float(z[i])
        if new > current:
            if new - current >= 1.0:
                _push(ones, n_ones, new)
                n_ones += 1
                change = 0.0
            else:
                _push(interior, n_interior, new)
                n_interior += 1
                change = new
            while True:
                raised = total + change
                shadow = raised - total
                lost += (total - (raised - shadow)) + (change - shadow)
                total = raised
                change = 0.0

                solved = np.inf
                if n_interior > 0:
                    solved = (total + lost + (n_ones - k)) / n_interior
                elif n_ones <= k:
                    break
                to_zero = interior[0] if n_interior > 0 else np.inf
                from_one = ones[0] - 1.0 if n_ones > 0 else np.inf
                if solved < to_zero and solved <= from_one:
                    current = max(current, solved)
                    break
                if to_zero <= from_one:
                    change = -to_zero
                    current = max(current, to_zero)
                    _pop(interior, n_interior)
                    n_interior -= 1
                else:
                    change = ones[0]
                    current = max(current, from_one)
                    _pop(ones, n_ones)
                    n_ones -= 1
                    _push(interior, n_interior, change)
                    n_interior += 1
        tau[i] = current
    sizes[0], sizes[1] = n_ones, n_interior
    sums[0], sums[1], sums[2] = current, total, lost


@compiled
def thresholds_of_prefixes(
    z: FloatArray,
    k: float,
    ones: NDArray[np.float64],
    interior: NDArray[np.float64],
    tau: NDArray[np.float64],
) -> None:
    """Write into ``tau[r, i]`` the threshold of ``SparseK(z[r, :i+1], k)``; workspace of a row's size for each heap."""
    sizes, sums = np.zeros(2, np.int64), np.zeros(3)
    for r in range(z.shape[0]):
        sizes[:] = 0
        sums[0], sums[1], sums[2] = -np.inf, 0.0, 0.0
        continue_thresholds(z[r], k, ones, interior, sizes, sums, tau[r])


@compiled
def _exits(z: FloatArray, n_select: int, heap: NDArray[np.int64], exits: NDArray[np.int64]) -> None:
    """Write into ``exits[j]`` the first prefix ``z[:i+1]`` with i ≥ j whose `n_select` best do not include entry j.

    Ties go to the earlier entry, −∞ is never among the best, and an entry that stays gets ``z.size``. `heap` is
    workspace for `n_select` positions, the worst of the best first.
    """
    size = 0
    for i in range(z.size):
        exits[i] = z.size
        if n_select == 0 or z[i] == -np.inf:
            exits[i] = i
        elif size < n_select:
            hole = size
            size += 1
            while hole > 0:
                parent = (hole - 1) >> 1
                if z[heap[parent]] < z[i]:
                    break
                heap[hole] = heap[parent]
                hole = parent
            heap[hole] = i
        elif z[i] <= z[heap[0]]:
            exits[i] = i
        else:
            exits[heap[0]] = i
            hole = 0
            while True:
                child = 2 * hole + 1
                if child >= size:
                    break
                if child + 1 < size:
                    left, right = heap[child], heap[child + 1]
                    if z[right] < z[left] or (z[right] == z[left] and right > left):
                        child += 1
                if z[heap[child]] >= z[i]:
                    break
                heap[hole] = heap[child]
                hole = child
            heap[hole] = i


@compiled
def exits_from_the_best(z: FloatArray, n_select: int, heap: NDArray[np.int64], exits: NDArray[np.int64]) -> None:
    """Write into ``exits[r, j]`` what `_exits` says of row r; `heap` is workspace for `n_select` positions."""
    for r in range(z.shape[0]):
        _exits(z[r], n_select, heap, exits[r])
