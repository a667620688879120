"""Attention to given pairs in time O(n · pairs · d): compiled loops over each query's list, no n × n array (ours).

For query i with list J, ``S_j = scale · q_i·k_j``, ``P = softmax(S)`` over J, ``out_i = Σ_j P_j v_j``; backward

    dv_j += P_j dout_i     dS_j = P_j (F_j − Σ_j P_j F_j), F_j = dout_i·v_j     dq_i = scale Σ_j dS_j k_j
    dk_j += scale dS_j q_i

The scale comes last: a small one would take the digits of small gradients. Where a number on the way is not finite,
the definition computes all again, which tells what overflows in the result from what does on the way only. How queries
are cut into tasks follows from shapes alone, and sums of tasks are added in their order: the number of threads changes
no bit.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np

from refattn._overflow import all_finite, overflow_judged
from refattn._threads import for_each, map_each
from refattn._validation import FloatArray
from refattn.dense import AttentionGradients
from refattn.patterns import oracle
from refattn.patterns._problem import IndexedProblem

_WORK = 1 << 19
"""Products of a task of the forward, about."""
_TASKS = 4
"""Into at least as many a backward is cut."""

Head = tuple[int, ...]


def forward(problem: IndexedProblem) -> FloatArray:
    """Return the output."""
    from refattn._compiled import as_input
    from refattn.patterns._loops import attend

    queries, keys, values = problem.layout.expand(problem.q, problem.k, problem.v)
    lists, scale = problem.lists(), problem.q.dtype.type(problem.scale)
    (n, pairs), width = lists.shape[-2:], queries.shape[-1] + values.shape[-1]
    out = np.empty((*problem.layout.inner, n, values.shape[-1]), problem.q.dtype)
    loop = attend[problem.q.dtype]

    def work(task: tuple[Head, slice]) -> bool:
        head, rows = task
        place: tuple[Any, ...] = (*head, rows)
        return loop(
            as_input(queries[place]), as_input(keys[head]), as_input(values[head]), as_input(lists[place]), scale,
            np.empty(pairs, out.dtype), out[place],
        )  # fmt: skip

    step = max(1, _WORK // (width * max(pairs, 1)))
    blocks = [slice(first, min(first + step, n)) for first in range(0, n, step)]
    fine = map_each(work, [(head, rows) for head in np.ndindex(*problem.layout.inner) for rows in blocks])
    with overflow_judged():
        if not (all(fine) and all_finite(out)):
            return oracle.forward(problem)
    return problem.layout.merge(out)


def backward(dout: FloatArray, problem: IndexedProblem) -> AttentionGradients:
    """Return the gradients of q, k and v."""
    from refattn._compiled import as_input
    from refattn.patterns._loops import pull_back

    layout, dtype = problem.layout, problem.q.dtype
    queries, keys, values = layout.expand(problem.q, problem.k, problem.v)
    lists, scale, upstream = problem.lists(), dtype.type(problem.scale), layout.expand_queries(dout)
    n, pairs = lists.shape[-2:]
    dq = np.empty((*layout.inner, n, queries.shape[-1]), dtype)
    dk, dv = np.zeros((*layout.inner, *keys.shape[-2:]), dtype), np.zeros((*layout.inner, *values.shape[-2:]), dtype)
    loop, heads = pull_back[dtype], list(np.ndindex(*layout.inner))
    parts = -(-_TASKS // len(heads))
    cuts = [n * part // parts for part in range(parts + 1)]
    blocks = [slice(first, last) for first, last in pairwise(cuts) if last > first]
    # the first block of a head adds to its gradients in place, the others to arrays of their own
    fine = [True] * len(heads)

    def work(number: int) -> None:
        head = heads[number]
        arrays = as_input(keys[head]), as_input(values[head])
        sums = [(dk[head], dv[head]), *((np.zeros_like(dk[head]), np.zeros_like(dv[head])) for _ in blocks[1:])]

        def block(task: tuple[slice, tuple[FloatArray, FloatArray]]) -> bool:
            rows, (dk_part, dv_part) = task
            place: tuple[Any, ...] = (*head, rows)
            return loop(
                as_input(queries[place]), *arrays, as_input(lists[place]), scale, as_input(upstream[place]),
                np.empty((2, pairs), dtype), dq[place], dk_part, dv_part,
            )  # fmt: skip

        tasks = list(zip(blocks, sums, strict=True))
        fine[number] = all(map_each(block, tasks) if parts > 1 else map(block, tasks))
        for dk_part, dv_part in sums[1:]:
            dk[head] += dk_part
            dv[head] += dv_part

    if parts > 1:  # few heads: threads share each
        for number in range(len(heads)):
            work(number)
    else:
        for_each(work, range(len(heads)))
    with overflow_judged():
        dq *= scale
        dk *= scale
        if not (all(fine) and all_finite(dq, dk, dv)):
            return oracle.backward(dout, problem)
        return AttentionGradients(
            layout.reduce_queries(dq, problem.q.shape),
            layout.reduce_keys(dk, problem.k.shape),
            layout.reduce_keys(dv, problem.v.shape),
        )
