"""Compiled loops of the generation cache: which candidate takes which slot (arXiv 2406.16747).

The slots of one head form a heap by ``(score, −position)``, the worst of them first: the same order, and the same ties,
as `refattn.sparsek._prefix_loops.exits_from_the_best`.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from refattn._compiled import compiled
from refattn._validation import FloatArray
from refattn.sparsek._fast_loops import copy_row
from refattn.sparsek._prefix_loops import continue_thresholds

Positions = NDArray[np.int64]


@compiled
def _worse(a: int, b: int, scores: NDArray[np.float64], positions: Positions) -> bool:
    """Whether slot a is evicted before slot b."""
    return bool(scores[a] < scores[b] or (scores[a] == scores[b] and positions[a] > positions[b]))


@compiled
def admit(
    score: float, position: int, size: int, heap: Positions, scores: NDArray[np.float64], positions: Positions
) -> int:
    """Offer a candidate to the slots of a head, `size` of them in use; return the slot it takes, or −1.

    Candidates come in the order of their positions. A free slot is taken in turn; else the worst slot's pair is
    evicted, if the candidate's score is larger.
    """
    if size < heap.size:
        slot, hole = size, size
        scores[slot], positions[slot] = score, position
        while hole > 0:
            parent = (hole - 1) >> 1
            if not _worse(slot, heap[parent], scores, positions):
                break
            heap[hole] = heap[parent]
            hole = parent
        heap[hole] = slot
        return slot
    if size == 0 or score <= scores[heap[0]]:
        return -1
    slot, hole = int(heap[0]), 0
    scores[slot], positions[slot] = score, position
    while True:
        child = 2 * hole + 1
        if child >= size:
            break
        if child + 1 < size and _worse(heap[child + 1], heap[child], scores, positions):
            child += 1
        if not _worse(heap[child], slot, scores, positions):
            break
        heap[hole] = heap[child]
        hole = child
    heap[hole] = slot
    return slot


@compiled
def admit_all(
    candidates: NDArray[np.float64], heap: Positions, scores: NDArray[np.float64], positions: Positions
) -> int:
    """Offer candidates 0, 1, … to the empty slots of a head; return how many slots are in use then."""
    size = 0
    for position in range(candidates.size):
        slot = admit(candidates[position], position, size, heap, scores, positions)
        size += slot == size
    return size


@compiled
def move_window(
    position: int,
    token: tuple[FloatArray, FloatArray, NDArray[np.float64]],
    window: int,
    keys: FloatArray,
    values: FloatArray,
    window_scores: NDArray[np.float64],
    slots: tuple[Positions, Positions, NDArray[np.float64], Positions],
    thresholds: tuple[NDArray[np.float64], NDArray[np.float64], Positions, NDArray[np.float64]],
    tau: NDArray[np.float64],
) -> None:
    """Take in the token at `position`, for every head: k, v and score.

    The token that leaves the window (the new one itself if there is none) is offered to the slots, and its score raises
    the threshold where one is kept. A head's rows of `keys` and `values` are its slots, then its window: position p in
    row ``p mod w``.
    """
    k, v, score = token
    used, heap, scores, positions = slots
    ones, interior, sizes, sums = thresholds
    n_select = heap.shape[1]
    row = n_select + position % window if window > 0 else 0
    for h in range(k.shape[0]):
        if position >= window:
            candidate = window_scores[h, position % window] if window > 0 else score[h]
            slot = admit(candidate, position - window, used[h], heap[h], scores[h], positions[h])
            used[h] += slot == used[h]
            if slot >= 0:
                copy_row(keys[h, row] if window > 0 else k[h], keys[h, slot])
                copy_row(values[h, row] if window > 0 else v[h], values[h, slot])
            if interior.shape[1] > 0:
                tau[0] = candidate
                continue_thresholds(tau[:1], n_select, ones[h], interior[h], sizes[h], sums[h], tau[1:])
        if window > 0:
            copy_row(k[h], keys[h, row])
            copy_row(v[h], values[h, row])
            window_scores[h, position % window] = score[h]
