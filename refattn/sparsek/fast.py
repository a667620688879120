"""SparseK attention in linear time: blocks of queries, two or five matrix products each (ours, after arXiv 2406.16747).

A selected pair is attended to by one range of queries (`refattn.sparsek.prefix`). So a block of B queries from b on
needs the at most k pairs that query b selects, and the positions ``b − w + 1 … b + B − 1``: these hold the window of
every query of the block, and every pair that is selected only later in it, for such a pair was in a window before. In
all k + w + B pairs, gathered, and

    S = K_block Q_blockᵀ    gates, mask, softmax by ranges (`refattn.sparsek._fast_loops`)    out = Aᵀ V_block

Backward, the same blocks with S and A computed anew: ``dV += A^v dout``, ``dA = V doutᵀ``, ``dK += dS^k Q``,
``dQ = dS^kᵀ K``, and the gates' gradient goes back to the scores by intervals.

Heads that are one block have the same pairs, whatever their scores: many of these are worked on together, the head one
more axis of every array.

Time O(n (k + w + B)(d + d_v)), memory O(n (d + d_v)). Blocks, and the chunks of blocks and heads that threads work on,
depend on the shapes alone; every sum has one order. So the number of threads changes no bit, and neither does the
future: the pairs of a block before its own queries are fixed by the past, and what a query does not attend to adds
exact zeros.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from refattn._overflow import overflow_judged
from refattn._threads import for_each, map_each, one_blas_thread
from refattn._validation import FloatArray
from refattn.sparsek._problem import SparseKProblem
from refattn.sparsek.prefix import pull_back_prefixes, selection_of_rows, support_of_rows, thresholds_of_rows

if TYPE_CHECKING:
    from refattn.sparsek._fast_blocks import Chunk, Heads, Part


def forward(problem: SparseKProblem) -> FloatArray:
    """Return the output, one entry per query head: shape (heads, n, d_v).

    Not judged: an entry is finite if v is. A logit that overflows is refused.
    """
    from refattn.sparsek._fast_blocks import forward_chunk

    heads = _heads(problem, with_gates=not problem.hard)
    out = np.empty((heads[-1].numbers.stop, *problem.v.shape[-2:]), problem.q.dtype)
    with one_blas_thread():
        for_each(lambda chunk: forward_chunk(problem, chunk, out[chunk.heads.numbers]), _chunks(problem, heads))
    return out


def backward(dout: FloatArray, problem: SparseKProblem) -> tuple[FloatArray, FloatArray, FloatArray, FloatArray]:
    """Return the gradients of q, k, v (heads, n, ·) and of the scores (heads, n); not judged."""
    from refattn.sparsek._fast_blocks import backward_chunk, chunks_at_once

    heads = _heads(problem, with_gates=True)
    count, (n, d) = heads[-1].numbers.stop, problem.q.shape[-2:]
    dq = np.empty((count, n, d), problem.q.dtype)
    dk, dv = np.zeros_like(dq), np.zeros((count, *problem.v.shape[-2:]), dq.dtype)
    by_query, by_entry = np.zeros((2, count, n))  # sums of dm over the pairs whose gate is inside (0, 1)

    def work(chunk: Chunk) -> Part:
        numbers = chunk.heads.numbers
        return backward_chunk(problem, chunk, dout[numbers], dq[numbers], by_query[numbers])

    chunks, wave = _chunks(problem, heads), chunks_at_once(problem)
    with one_blas_thread():
        for start in range(0, len(chunks), wave):
            at_once = chunks[start : start + wave]
            for chunk, part in zip(at_once, map_each(work, at_once), strict=True):
                numbers = chunk.heads.numbers
                dk[numbers, part.touched] += part.k
                dv[numbers, part.touched] += part.v
                by_entry[numbers, part.touched] += part.by_entry
    # forward: gates = SparseK(scores[: i − w + 1], k) for every i
    dscores = np.zeros_like(by_entry)
    if problem.gate != "none":
        for_each(lambda some: _pull_back_scores(some, problem.window, by_query, by_entry, dscores), heads)
    return dq, dk, dv, dscores


def _pull_back_scores(
    heads: Heads, window: int, by_query: NDArray[np.float64], by_entry: NDArray[np.float64], out: NDArray[np.float64]
) -> None:
    scores, tau, _ = heads.choice
    by_position = np.zeros_like(scores)
    by_position[:, : max(scores.shape[1] - window, 0)] = by_query[heads.numbers, window:]
    support = support_of_rows(scores, tau)
    with overflow_judged():
        out[heads.numbers] = pull_back_prefixes(by_position, by_entry[heads.numbers], support)


def _chunks(problem: SparseKProblem, heads: list[Heads]) -> list[Chunk]:
    """Cut all heads into chunks of queries, and say what the first query of each selects."""
    from refattn.sparsek._fast_blocks import Chunk, chunk_rows

    n, length = problem.q.shape[-2], chunk_rows(problem)
    chunks = []
    for some in heads:
        selected, since, exits = np.empty(0, np.int64), 0, some.choice.exits[0]
        for first in range(0, n, length):
            span = max(first - problem.window + 1, 0)
            came = np.concatenate([selected, np.arange(since, span)])
            selected, since = came[exits[came] > first], span
            chunks.append(Chunk(some, first, min(first + length, n), selected))
    return chunks


def _heads(problem: SparseKProblem, *, with_gates: bool) -> list[Heads]:
    """Return the query heads, those together that are worked on together; who shares scores shares their choice."""
    from refattn._compiled import as_input
    from refattn.sparsek._fast_blocks import Choice, Heads, heads_together

    q, k, v = (array.reshape(-1, *array.shape[-2:]) for array in (problem.q, problem.k, problem.v))
    z = problem.scores.reshape(-1, problem.scores.shape[-1]).astype(np.float64)
    with_gates = with_gates and problem.gate != "none"
    exits, tau = np.empty(z.shape, np.int64), np.empty(z.shape if with_gates else (len(z), 0))

    def choose(rows: slice) -> None:
        exits[rows] = selection_of_rows(z[rows], problem.n_select, problem.window).exit
        if with_gates:
            tau[rows] = thresholds_of_rows(z[rows], float(problem.n_select))

    together = heads_together(problem)
    for_each(choose, _cut(len(z), together))
    of_q, of_k, of_v, of_scores = _rows_of_heads(problem)

    def taken(numbers: slice) -> Heads:
        queries, keys, values = (
            as_input(_taken(array, rows[numbers])) for array, rows in ((q, of_q), (k, of_k), (v, of_v))
        )
        choice = Choice(*(as_input(_taken(array, of_scores[numbers])) for array in (z, tau, exits)))
        return Heads(numbers, queries, keys, values, choice)

    return [taken(numbers) for numbers in _cut(len(of_q), together)]


def _cut(count: int, together: int) -> list[slice]:
    return [slice(first, min(first + together, count)) for first in range(0, count, together)]


def _rows_of_heads(problem: SparseKProblem) -> list[NDArray[np.int64]]:
    """Return which of all the matrices in q, k, v, and of all rows of scores, each query head has."""
    layout = problem.layout
    q, k, v, scores = (
        np.arange(math.prod(lead), dtype=np.int64).reshape(*lead, 1, 1)
        for lead in (*(x.shape[:-2] for x in (problem.q, problem.k, problem.v)), problem.scores.shape[:-1])
    )
    return [np.asarray(rows.ravel(), np.int64) for rows in (*layout.expand(q, k, v), layout.expand(q, k, scores)[2])]


def _taken(array: NDArray[Any], rows: NDArray[np.int64]) -> NDArray[Any]:
    """Return the rows, which are a view where they follow each other."""
    if (np.diff(rows) == 1).all():
        return array[rows[0] : rows[-1] + 1]
    return array[rows]
