"""SparseK attention in linear time: blocks of queries, two or five matrix products each (ours, after arXiv 2406.16747).

A selected pair is attended to by one range of queries (`refattn.sparsek.prefix`). So a block of B queries from b on
needs the at most k pairs that query b selects, and the positions ``b − w + 1 … b + B − 1``: these hold the window of
every query of the block, and every pair that is selected only later in it, for such a pair was in a window before. In
all k + w + B pairs, gathered, and

    S = K_block Q_blockᵀ    gates, mask, softmax by ranges (`refattn.sparsek._fast_loops`)    out = Aᵀ V_block

Backward, the same blocks with S and A computed anew: ``dV += A^v dout``, ``dA = V doutᵀ``, ``dK += dS^k Q``,
``dQ = dS^kᵀ K``, and the gates' gradient goes back to the scores by intervals.

Time O(n (k + w + B)(d + d_v)), memory O(n (d + d_v)). Blocks and the chunks of blocks that threads work on depend on
the shapes alone; every sum has one order. So the number of threads changes no bit, and neither does the future: the
pairs of a block before its own queries are fixed by the past, and what a query does not attend to adds exact zeros.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from refattn._overflow import overflow_judged
from refattn._threads import for_each, map_each, one_blas_thread
from refattn._validation import FloatArray
from refattn.sparsek._problem import SparseKProblem
from refattn.sparsek.prefix import prefix_thresholds, pull_back_prefixes, selection_intervals, support_intervals

if TYPE_CHECKING:
    from refattn.sparsek._fast_blocks import Choice, Chunk, Head, Part


def forward(problem: SparseKProblem) -> FloatArray:
    """Return the output, one entry per query head: shape (heads, n, d_v).

    Not judged: an entry is finite if v is. A logit that overflows is refused.
    """
    from refattn.sparsek._fast_blocks import forward_chunk

    heads = _heads(problem, with_gates=not problem.hard)
    out = np.empty((len(heads), *problem.v.shape[-2:]), problem.q.dtype)
    with one_blas_thread():
        for_each(lambda chunk: forward_chunk(problem, chunk, out[chunk.head.number]), _chunks(problem, heads))
    return out


def backward(dout: FloatArray, problem: SparseKProblem) -> tuple[FloatArray, FloatArray, FloatArray, FloatArray]:
    """Return the gradients of q, k, v (heads, n, ·) and of the scores (heads, n); not judged."""
    from refattn.sparsek._fast_blocks import backward_chunk, chunks_at_once

    heads = _heads(problem, with_gates=True)
    n, d = problem.q.shape[-2:]
    dq = np.empty((len(heads), n, d), problem.q.dtype)
    dk, dv = np.zeros_like(dq), np.zeros((len(heads), *problem.v.shape[-2:]), dq.dtype)
    by_query, by_entry = np.zeros((2, len(heads), n))  # sums of dm over the pairs whose gate is inside (0, 1)

    def work(chunk: Chunk) -> Part:
        number = chunk.head.number
        return backward_chunk(problem, chunk, dout[number], dq[number], by_query[number])

    chunks, wave = _chunks(problem, heads), chunks_at_once(problem)
    with one_blas_thread():
        for start in range(0, len(chunks), wave):
            at_once = chunks[start : start + wave]
            for chunk, part in zip(at_once, map_each(work, at_once), strict=True):
                number = chunk.head.number
                dk[number, part.touched] += part.k
                dv[number, part.touched] += part.v
                by_entry[number, part.touched] += part.by_entry
    # forward: gates = SparseK(scores[: i − w + 1], k) for every i
    dscores = np.zeros_like(by_entry)
    if problem.gate != "none":
        for_each(lambda head: _pull_back_scores(head, problem.window, by_query, by_entry, dscores), heads)
    return dq, dk, dv, dscores


def _pull_back_scores(
    head: Head, window: int, by_query: NDArray[np.float64], by_entry: NDArray[np.float64], out: NDArray[np.float64]
) -> None:
    scores, tau, _ = head.choice
    by_position = np.zeros_like(scores)
    by_position[: max(scores.size - window, 0)] = by_query[head.number, window:]
    support = support_intervals(scores, tau)
    with overflow_judged():
        out[head.number] = pull_back_prefixes(by_position, by_entry[head.number], support)


def _chunks(problem: SparseKProblem, heads: list[Head]) -> list[Chunk]:
    """Cut every head into chunks of queries, and say what the first query of each selects."""
    from refattn.sparsek._fast_blocks import Chunk, chunk_rows

    n, length = problem.q.shape[-2], chunk_rows(problem)
    chunks = []
    for head in heads:
        selected, since = np.empty(0, np.int64), 0
        for first in range(0, n, length):
            span = max(first - problem.window + 1, 0)
            came = np.concatenate([selected, np.arange(since, span)])
            selected, since = came[head.choice.exits[came] > first], span
            chunks.append(Chunk(head, first, min(first + length, n), selected))
    return chunks


def _heads(problem: SparseKProblem, *, with_gates: bool) -> list[Head]:
    """Return every query head; heads that share their scores share their choice."""
    from refattn._compiled import as_input
    from refattn.sparsek._fast_blocks import Choice, Head

    layout = problem.layout
    queries, keys, values = layout.expand(problem.q, problem.k, problem.v)
    _, _, scores = layout.expand(problem.q, problem.k, problem.scores[..., None])
    arrays = [tuple(array[index] for array in (queries, keys, values, scores)) for index in np.ndindex(*layout.inner)]
    places = [row.__array_interface__["data"][0] for *_, row in arrays]
    distinct = {place: row[:, 0].astype(np.float64) for place, (*_, row) in zip(places, arrays, strict=True)}
    tau = {place: np.empty(0) for place in distinct}
    exits: dict[int, NDArray[np.int64]] = {}

    def choose(task: tuple[int, bool]) -> None:
        place, gates = task
        if gates:
            tau[place] = prefix_thresholds(distinct[place], problem.n_select)
        else:
            exits[place] = selection_intervals(distinct[place], problem.n_select, problem.window).exit

    for_each(choose, [(place, gates) for place in distinct for gates in {False, with_gates and problem.gate != "none"}])
    choices: dict[int, Choice] = {place: Choice(z, tau[place], exits[place]) for place, z in distinct.items()}
    return [
        Head(number, as_input(q), as_input(k), as_input(v), choices[place])
        for number, (place, (q, k, v, _)) in enumerate(zip(places, arrays, strict=True))
    ]
