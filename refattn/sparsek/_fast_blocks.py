"""One chunk of queries of one head, forward and backward: gathered pairs, matrix products, compiled ranges (ours).

Which pairs a block of queries needs, and why, stands in `refattn.sparsek.fast`. Imported where it is used, never at the
package's import: it compiles.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from refattn._overflow import average, overflow_judged, wider
from refattn._validation import FloatArray
from refattn.sparsek import _fast_loops as loops
from refattn.sparsek._problem import SparseKProblem, overflow

Positions = NDArray[np.int64]

_MOST_ROWS = 128
_TILE = 1 << 16
"""Most queries of a block, and most entries of a tile: a core keeps three tiles of float32 in its cache."""


class Choice(NamedTuple):
    """Of one key-value head: scores, thresholds of all prefixes, and the first query that no longer selects a pair."""

    scores: NDArray[np.float64]
    tau: NDArray[np.float64]
    exits: Positions


class Head(NamedTuple):
    """One query head: its number, its arrays, contiguous, and its choice of pairs."""

    number: int
    q: FloatArray
    k: FloatArray
    v: FloatArray
    choice: Choice


class Chunk(NamedTuple):
    """Consecutive queries ``first … last − 1`` of a head, and the pairs that query `first` selects."""

    head: Head
    first: int
    last: int
    selected: Positions


class Part(NamedTuple):
    """What a chunk adds to the gradients of the pairs it touches."""

    touched: Positions
    k: FloatArray
    v: FloatArray
    by_entry: NDArray[np.float64]


def _pairs_selected(problem: SparseKProblem) -> int:
    n: int = problem.q.shape[-2]
    return min(problem.n_select, n) + min(problem.window, n)


def block_rows(problem: SparseKProblem) -> int:
    """Queries of a block: fewer if it has many pairs."""
    rows = _MOST_ROWS
    while rows > 16 and rows * (_pairs_selected(problem) + rows) > _TILE:
        rows //= 2
    return rows


def chunk_rows(problem: SparseKProblem) -> int:
    """Queries of a chunk: what it keeps beside its own rows, one entry per selected pair, stays O(n) in all."""
    rows = block_rows(problem)
    return rows * max(8, -(-_pairs_selected(problem) // (8 * rows)))


def chunks_at_once(problem: SparseKProblem) -> int:
    """Chunks whose parts of the gradients are kept at once: at most 16, and no more rows than n if more than 2."""
    n: int = problem.q.shape[-2]
    return min(16, max(2, n // (_pairs_selected(problem) + chunk_rows(problem))))


def forward_chunk(problem: SparseKProblem, chunk: Chunk, out: FloatArray) -> None:
    """Write the output of the chunk's queries to their rows of `out`, shape (n, d_v)."""
    block = Block(problem, chunk, tiles=1)
    with overflow_judged():
        for rows in block:
            (weights,) = block.tiles
            block.attend(weights, weights, apply_to_values=True)
            average(weights.T, block.values, out[rows])


def backward_chunk(
    problem: SparseKProblem, chunk: Chunk, dout: FloatArray, dq: FloatArray, by_query: NDArray[np.float64]
) -> Part:
    """Write the chunk's rows of dq and, for every query, the sum of its gates' gradients; return the rest."""
    block, head = Block(problem, chunk, tiles=3), chunk.head
    span = np.arange(block.span(chunk.first), chunk.last)
    touched = np.concatenate([chunk.selected, span])
    part = Part(
        touched,
        np.zeros((touched.size, head.k.shape[1]), dq.dtype),
        np.zeros((touched.size, head.v.shape[1]), dq.dtype),
        np.zeros(touched.size),
    )
    options = problem.gates_keys, problem.gates_values, problem.hard
    with overflow_judged():
        for rows in block:
            logits, weights, dvalues = block.tiles
            g = np.ascontiguousarray(dout[rows])
            block.attend(logits, weights, apply_to_values=False)
            # forward: out = (A ∘ g^V)ᵀ V_block
            np.matmul(block.values, g.T, out=dvalues)
            # forward: A = softmax(S ∘ g^K), gates
            loops.pull_back(weights, dvalues, logits, block.ranges, options, block.totals[: len(g)], by_query[rows])
            # forward: gate of pair j for every query
            dgates = logits @ np.ones(len(g), dq.dtype)
            # forward: S = scale · K_block Q_blockᵀ; a small scale, before a product, would take its digits
            np.matmul(dvalues.T, block.keys, out=dq[rows])
            dq[rows] *= block.scale
            dkeys = dvalues @ block.queries
            dkeys *= block.scale
            # forward: K_block, V_block gathered
            loops.add_rows(block.pairs, dkeys, weights @ g, dgates, touched, part.k, part.v, part.by_entry)
    return part


class Block:
    """Workspace for the blocks of one chunk, one after the other; its arrays hold the block at hand."""

    def __init__(self, problem: SparseKProblem, chunk: Chunk, tiles: int) -> None:
        self.problem, self.chunk = problem, chunk
        head, rows = chunk.head, block_rows(problem)
        dtype, most = head.q.dtype, min(_pairs_selected(problem) + rows, chunk.last)
        self._rows = rows
        self._pairs = np.empty(most, np.int64)
        self._keys, self._values = (np.empty((most, array.shape[1]), dtype) for array in (head.k, head.v))
        self._tiles = np.empty((tiles, most * rows), dtype)
        self._by_query = np.empty((3, rows), dtype)
        self.totals = np.empty(rows)
        self.scale = dtype.type(problem.scale)

    def span(self, first: int) -> int:
        """Return the first position of the window of query `first`."""
        return max(first - self.problem.window + 1, 0)

    def __iter__(self) -> Iterator[slice]:
        """Move to every block of the chunk: its queries, its pairs with their keys and values, tiles of its shape."""
        head, selected, since = self.chunk.head, self.chunk.selected, self.span(self.chunk.first)
        scores, tau, exits = head.choice
        for first in range(self.chunk.first, self.chunk.last, self._rows):
            last = min(first + self._rows, self.chunk.last)
            span, size = self.span(first), last - first
            n_selected, count = loops.gather(
                selected, since, span, first, last, exits, head.k, head.v,
                self._pairs, self._keys, self._values,
            )  # fmt: skip
            selected, since = self._pairs[:n_selected].copy(), span
            self.pairs, self.keys, self.values = self._pairs[:count], self._keys[:count], self._values[:count]
            self.ranges = (self.pairs, exits, scores, tau, first, self.problem.window)
            self.tiles = [tile[: count * size].reshape(count, size) for tile in self._tiles]
            self.queries = head.q[first:last]
            yield slice(first, last)

    def attend(self, logits: FloatArray, weights: FloatArray, apply_to_values: bool) -> None:
        """Write the logits before gates, and the weights, times the gates of values if asked; one array may be both."""
        problem, soft = self.problem, not self.problem.hard
        size = logits.shape[1]
        largest, smallest, inverse = self._by_query[:, :size]
        total = self.totals[:size]
        np.matmul(self.keys, self.queries.T, out=logits)
        logits *= self.scale
        loops.exponents(logits, self.ranges, problem.gates_keys and soft, weights, largest, smallest)
        np.exp(weights, out=weights)
        loops.normalise(weights, self.ranges, apply_to_values and problem.gates_values and soft, total, inverse)
        bad = (smallest == -np.inf) | ~np.isfinite(total)
        if bad.any():
            self._attend_again(np.flatnonzero(bad), logits, weights, apply_to_values)

    def _attend_again(self, columns: Positions, logits: FloatArray, weights: FloatArray, apply_to_values: bool) -> None:
        """Attend with the logits of some columns in a wider format; refuse what overflows after gate and scale too."""
        problem, (pairs, exits, scores, tau, first, window) = self.problem, self.ranges
        head, queries, pairs = self.chunk.head, first + columns, pairs[:, None]
        selected = (pairs + window <= queries) & (queries < exits[pairs])
        attended = selected | ((pairs <= queries) & (queries < pairs + window))
        gates = np.ones(attended.shape)
        if problem.gate != "none" and not problem.hard:
            candidates = np.clip(scores[pairs] - tau[np.maximum(queries - window, 0)], 0, 1)
            np.copyto(gates, candidates, where=selected)
        keys, by_query = wider(self.keys, head.q[queries])
        ungated = keys @ by_query.T * problem.scale
        gated = np.where(attended, ungated * gates if problem.gates_keys else ungated, -np.inf).astype(head.q.dtype)
        bad = (attended & ~np.isfinite(gated)).any(axis=0)
        if bad.any():
            raise overflow(gated.dtype, head.number, int(queries[bad.argmax()]))
        exponentials = np.exp(gated - gated.max(axis=0))
        exponentials /= exponentials.sum(axis=0)
        logits[:, columns] = ungated
        weights[:, columns] = exponentials * gates if apply_to_values and problem.gates_values else exponentials
