"""One chunk of queries, forward and backward: gathered pairs, matrix products, compiled ranges (ours).

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

_TOGETHER = 1 << 14
"""Entries in a tile of heads that are worked on together: enough for NumPy; more would leave threads idle."""


class Choice(NamedTuple):
    """Of some heads, one a row: scores, thresholds of all prefixes, the first query that no longer selects a pair."""

    scores: NDArray[np.float64]
    tau: NDArray[np.float64]
    exits: Positions


class Heads(NamedTuple):
    """Query heads that are worked on together: their numbers, their arrays, contiguous, and their choice of pairs."""

    numbers: slice
    q: FloatArray
    k: FloatArray
    v: FloatArray
    choice: Choice


class Chunk(NamedTuple):
    """Consecutive queries ``first … last − 1`` of some heads, and the pairs that query `first` selects."""

    heads: Heads
    first: int
    last: int
    selected: Positions


class Part(NamedTuple):
    """What a chunk adds to the gradients of the pairs it touches, in every head."""

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


def heads_together(problem: SparseKProblem) -> int:
    """Heads of a chunk: more than one only where a head is one block, so that all have the same pairs."""
    n: int = problem.q.shape[-2]
    return max(1, _TOGETHER // n**2) if n <= block_rows(problem) else 1


def chunk_rows(problem: SparseKProblem) -> int:
    """Queries of a chunk: what it keeps beside its own rows, one entry per selected pair, stays O(n) in all."""
    rows = block_rows(problem)
    return rows * max(8, -(-_pairs_selected(problem) // (8 * rows)))


def chunks_at_once(problem: SparseKProblem) -> int:
    """Chunks whose parts of the gradients are kept at once: at most 16, and no more rows than n if more than 2."""
    n: int = problem.q.shape[-2]
    return min(16, max(2, n // (_pairs_selected(problem) + chunk_rows(problem))))


def forward_chunk(problem: SparseKProblem, chunk: Chunk, out: FloatArray) -> None:
    """Write the output of the chunk's queries to their rows of `out`, shape (heads, n, d_v)."""
    block = Block(problem, chunk, tiles=1)
    with overflow_judged():
        for rows in block:
            (weights,) = block.tiles
            block.attend(weights, weights, apply_to_values=True)
            average(weights.swapaxes(1, 2), block.values, out[:, rows])


def backward_chunk(
    problem: SparseKProblem, chunk: Chunk, dout: FloatArray, dq: FloatArray, by_query: NDArray[np.float64]
) -> Part:
    """Write the chunk's rows of dq and, for every query, the sum of its gates' gradients; return the rest."""
    block, heads = Block(problem, chunk, tiles=3), chunk.heads
    span = np.arange(block.span(chunk.first), chunk.last)
    touched = np.concatenate([chunk.selected, span])
    part = Part(
        touched,
        np.zeros((len(dq), touched.size, heads.k.shape[2]), dq.dtype),
        np.zeros((len(dq), touched.size, heads.v.shape[2]), dq.dtype),
        np.zeros((len(dq), touched.size)),
    )
    options = problem.gates_keys, problem.gates_values, problem.hard
    with overflow_judged():
        for rows in block:
            logits, weights, dvalues = block.tiles
            g = np.ascontiguousarray(dout[:, rows])
            block.attend(logits, weights, apply_to_values=False)
            # forward: out = (A ∘ g^V)ᵀ V_block
            np.matmul(block.values, g.swapaxes(1, 2), out=dvalues)
            # forward: A = softmax(S ∘ g^K), gates
            loops.pull_back(weights, dvalues, logits, block.ranges, options, block.total, by_query[:, rows])
            # forward: gate of pair j for every query
            dgates = logits @ np.ones(g.shape[1], dq.dtype)
            # forward: S = scale · K_block Q_blockᵀ; a small scale, before a product, would take its digits
            np.matmul(dvalues.swapaxes(1, 2), block.keys, out=dq[:, rows])
            dq[:, rows] *= block.scale
            dkeys = dvalues @ block.queries
            dkeys *= block.scale
            # forward: K_block, V_block gathered
            loops.add_rows(block.pairs, dkeys, weights @ g, dgates, touched, part.k, part.v, part.by_entry)
    return part


class Block:
    """Workspace for the blocks of one chunk, one after the other; its arrays hold the block at hand."""

    def __init__(self, problem: SparseKProblem, chunk: Chunk, tiles: int) -> None:
        self.problem, self.chunk = problem, chunk
        heads, self._rows = chunk.heads, min(block_rows(problem), chunk.last - chunk.first)
        count, dtype = len(heads.q), heads.q.dtype
        most = min(_pairs_selected(problem) + self._rows, chunk.last)
        self._pairs = np.empty(most, np.int64)
        self._keys, self._values = (np.empty((count * most, x.shape[2]), dtype) for x in (heads.k, heads.v))
        self._tiles = np.empty((tiles, count * most * self._rows), dtype)
        self._by_query = np.empty((3, count * self._rows), dtype)
        self._total = np.empty(count * self._rows)
        self.scale = dtype.type(problem.scale)

    def span(self, first: int) -> int:
        """Return the first position of the window of query `first`."""
        return max(first - self.problem.window + 1, 0)

    def __iter__(self) -> Iterator[slice]:
        """Move to every block of the chunk: its queries, its pairs with their keys and values, tiles of its shape."""
        heads, selected, since = self.chunk.heads, self.chunk.selected, self.span(self.chunk.first)
        scores, tau, exits = heads.choice
        h = len(heads.q)
        for first in range(self.chunk.first, self.chunk.last, self._rows):
            last = min(first + self._rows, self.chunk.last)
            span, size = self.span(first), last - first
            n_selected, count = loops.gather(
                selected, since, span, first, last, exits, heads.k, heads.v,
                self._pairs, self._keys, self._values,
            )  # fmt: skip
            selected, since = self._pairs[:n_selected].copy(), span
            self.pairs = self._pairs[:count]
            self.keys, self.values = (x[: h * count].reshape(h, count, x.shape[1]) for x in (self._keys, self._values))
            self.ranges = (self.pairs, exits, scores, tau, first, self.problem.window)
            self.tiles = [tile[: h * count * size].reshape(h, count, size) for tile in self._tiles]
            self.by_query = [x[: h * size].reshape(h, size) for x in self._by_query]
            self.total = self._total[: h * size].reshape(h, size)
            self.queries = heads.q[:, first:last]
            yield slice(first, last)

    def attend(self, logits: FloatArray, weights: FloatArray, apply_to_values: bool) -> None:
        """Write the logits before gates, and the weights, times the gates of values if asked; one array may be both."""
        problem, soft = self.problem, not self.problem.hard
        largest, smallest, inverse = self.by_query
        np.matmul(self.keys, self.queries.swapaxes(1, 2), out=logits)
        logits *= self.scale
        loops.exponents(logits, self.ranges, problem.gates_keys and soft, weights, largest, smallest)
        np.exp(weights, out=weights)
        loops.normalise(weights, self.ranges, apply_to_values and problem.gates_values and soft, self.total, inverse)
        bad = (smallest == -np.inf) | ~np.isfinite(self.total)
        for h in np.flatnonzero(bad.any(axis=1)).tolist():
            self._attend_again(h, np.flatnonzero(bad[h]), logits[h], weights[h], apply_to_values)

    def _attend_again(
        self, h: int, columns: Positions, logits: FloatArray, weights: FloatArray, apply_to_values: bool
    ) -> None:
        """Attend with some logits of a head in a wider format; refuse what overflows after gate and scale too."""
        problem, (pairs, exits, scores, tau, first, window) = self.problem, self.ranges
        heads, queries, pairs = self.chunk.heads, first + columns, pairs[:, None]
        selected = (pairs + window <= queries) & (queries < exits[h, pairs])
        attended = selected | ((pairs <= queries) & (queries < pairs + window))
        gates = np.ones(attended.shape)
        if problem.gate != "none" and not problem.hard:
            candidates = np.clip(scores[h, pairs] - tau[h, np.maximum(queries - window, 0)], 0, 1)
            np.copyto(gates, candidates, where=selected)
        keys, by_query = wider(self.keys[h], heads.q[h, queries])
        ungated = keys @ by_query.T * problem.scale
        gated = np.where(attended, ungated * gates if problem.gates_keys else ungated, -np.inf).astype(heads.q.dtype)
        bad = (attended & ~np.isfinite(gated)).any(axis=0)
        if bad.any():
            raise overflow(gated.dtype, heads.numbers.start + int(h), int(queries[bad.argmax()]))
        exponentials = np.exp(gated - gated.max(axis=0))
        exponentials /= exponentials.sum(axis=0)
        logits[:, columns] = ungated
        weights[:, columns] = exponentials * gates if apply_to_values and problem.gates_values else exponentials
