"""Compiled loops over one block of queries of SparseK attention, of some heads with the same pairs (arXiv 2406.16747).

A *tile* has a row for every pair the block may attend to and a column for every query: what is summed over pairs runs
down the tile, so that 8 or 16 queries are worked on at once without reordering a sum. Which queries attend to pair j
is a range, in three parts: those before position j do not; its window does, with gate one; those from ``j + w`` to its
exit do, with gate ``clip(score_j − τ_{i−w}, 0, 1)``; later ones do not.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from refattn._compiled import compiled
from refattn._validation import FloatArray

Positions = NDArray[np.int64]
Ranges = tuple[Positions, Positions, NDArray[np.float64], NDArray[np.float64], int, int]
"""Pairs of a block, where every pair is evicted, scores, thresholds, the block's first query, and the window.

Where a block's heads come together, the second to the fourth have a row for every head.
"""


@compiled
def copy_row(row: FloatArray, out: FloatArray) -> None:
    """Copy a row; ``out[:] = row`` takes seconds to compile, for the messages of what does not fit."""
    for x in range(out.size):
        out[x] = row[x]


@compiled
def gather(
    earlier: Positions,
    since: int,
    span: int,
    first: int,
    last: int,
    leaves: Positions,
    k: FloatArray,
    v: FloatArray,
    pairs: Positions,
    keys: FloatArray,
    values: FloatArray,
) -> tuple[int, int]:
    """Write the pairs of the block ``[first, last)``, ascending, with their keys and values.

    First come the pairs selected by query `first`: of those selected `earlier`, and of the positions ``since … span −
    1`` that became candidates after that, the ones that have not left. Then the positions ``span … last − 1``. Return
    how many come first, and how many there are. All heads have the pairs of the first; their keys and values are
    written one head below the other.
    """
    count, exits = 0, leaves[0]
    for c in range(earlier.size):
        if exits[earlier[c]] > first:
            pairs[count] = earlier[c]
            count += 1
    for j in range(since, span):
        if exits[j] > first:
            pairs[count] = j
            count += 1
    selected = count
    for j in range(span, last):
        pairs[count] = j
        count += 1
    for h in range(k.shape[0]):
        for c in range(count):
            copy_row(k[h, pairs[c]], keys[h * count + c])
            copy_row(v[h, pairs[c]], values[h * count + c])
    return selected, count


@compiled
def add_rows(
    pairs: Positions,
    dkeys: FloatArray,
    dvalues: FloatArray,
    dgates: FloatArray,
    touched: Positions,
    dk: FloatArray,
    dv: FloatArray,
    by_entry: NDArray[np.float64],
) -> None:
    """Add the gradients of a block's pairs to the rows of the pairs `touched`; both lists ascend."""
    for h in range(dk.shape[0]):
        place = 0
        for c in range(pairs.size):
            while touched[place] != pairs[c]:
                place += 1
            by_entry[h, place] += dgates[h, c]
            to, part = dk[h, place], dkeys[h, c]
            for x in range(to.size):
                to[x] += part[x]
            to, part = dv[h, place], dvalues[h, c]
            for x in range(to.size):
                to[x] += part[x]


@compiled
def _range(j: int, leaves: int, first: int, window: int, rows: int) -> tuple[int, int, int]:
    """Return where a pair's window begins, where its selection begins, and where it ends, within a block."""
    begin = max(j - first, 0)
    enter = min(max(j + window - first, begin), rows)
    return begin, enter, max(enter, min(leaves - first, rows))


@compiled
def _of_head(ranges: Ranges, h: int) -> Ranges:
    """Return the ranges of one head."""
    pairs, exits, scores, tau, first, window = ranges
    return pairs, exits[h], scores[h], tau[h], first, window


@compiled
def _exponents_of_head(
    logits: FloatArray, ranges: Ranges, gated: bool, out: FloatArray, largest: FloatArray, smallest: FloatArray
) -> None:
    """Write the gated logits less every query's largest, −∞ where it does not attend; `out` may be `logits`.

    Where a query attends to nothing, `largest` is 0.
    """
    pairs, exits, scores, tau, first, window = ranges
    largest[:] = -np.inf
    smallest[:] = np.inf
    rows = logits.shape[1]
    for c in range(pairs.size):
        j = pairs[c]
        begin, enter, end = _range(j, exits[j], first, window, rows)
        out[c, :begin] = -np.inf
        came, went = logits[c, begin:enter], out[c, begin:enter]
        high, low = largest[begin:enter], smallest[begin:enter]
        for i in range(went.size):
            x = came[i]
            went[i] = x
            high[i] = max(high[i], x)
            low[i] = min(low[i], x)
        came, went = logits[c, enter:end], out[c, enter:end]
        high, low = largest[enter:end], smallest[enter:end]
        if gated:
            score, threshold = scores[j], tau[first + enter - window : first + end - window]
            for i in range(went.size):
                went[i] = came[i] * min(max(score - threshold[i], 0.0), 1.0)
        else:
            for i in range(went.size):
                went[i] = came[i]
        for i in range(went.size):
            high[i] = max(high[i], went[i])
            low[i] = min(low[i], went[i])
        out[c, end:] = -np.inf
    for i in range(rows):
        if largest[i] == -np.inf:
            largest[i] = 0
    for c in range(pairs.size):
        went = out[c]
        for i in range(rows):
            went[i] -= largest[i]


@compiled
def exponents(
    logits: FloatArray, ranges: Ranges, gated: bool, out: FloatArray, largest: FloatArray, smallest: FloatArray
) -> None:
    """Write the exponents of every head, as `_exponents_of_head` says."""
    for h in range(logits.shape[0]):
        _exponents_of_head(logits[h], _of_head(ranges, h), gated, out[h], largest[h], smallest[h])


@compiled
def _normalise_of_head(
    weights: FloatArray, ranges: Ranges, gated: bool, total: NDArray[np.float64], inverse: FloatArray
) -> None:
    """Divide every query's exponentials by their sum, `total`, and multiply by the gates where `gated`."""
    pairs, exits, scores, tau, first, window = ranges
    total[:] = 0.0
    rows = weights.shape[1]
    for c in range(pairs.size):
        row = weights[c]
        for i in range(rows):
            total[i] += row[i]
    for i in range(rows):
        inverse[i] = 1.0 / total[i] if total[i] > 0.0 else 0.0
    for c in range(pairs.size):
        row = weights[c]
        for i in range(rows):
            row[i] *= inverse[i]
        if gated:
            j = pairs[c]
            _, enter, end = _range(j, exits[j], first, window, rows)
            row = row[enter:end]
            score, threshold = scores[j], tau[first + enter - window : first + end - window]
            for i in range(row.size):
                row[i] *= min(max(score - threshold[i], 0.0), 1.0)


@compiled
def normalise(
    weights: FloatArray, ranges: Ranges, gated: bool, total: NDArray[np.float64], inverse: FloatArray
) -> None:
    """Normalise the weights of every head, as `_normalise_of_head` says."""
    for h in range(weights.shape[0]):
        _normalise_of_head(weights[h], _of_head(ranges, h), gated, total[h], inverse[h])


@compiled
def _pull_back_of_head(
    weights: FloatArray,
    dvalues: FloatArray,
    logits: FloatArray,
    ranges: Ranges,
    options: tuple[bool, bool, bool],
    dots: NDArray[np.float64],
    by_position: NDArray[np.float64],
) -> None:
    """Pull the gradient back through the softmax and the gates, for all pairs of a block.

    In place, with A the weights, ``dvalues_ij = dout_i · v_j`` and the logits before the gate:

        weights ← A ∘ g^V     dvalues ← dS ∘ g^K, dS = A ∘ (dA − dots), dA = g^V ∘ dvalues, dots_i = Σ_j A_ij dA_ij
        logits  ← dm = [gate on k] dS ∘ logits + [gate on v] A ∘ dvalues, where the gate is inside (0, 1), else 0

    and ``Σ_j dm_ij`` is written to `by_position`, at i. The options: gate on k, gate on v, hard.
    """
    pairs, exits, scores, tau, first, window = ranges
    on_keys, on_values, hard = options
    rows = weights.shape[1]
    dots[:] = 0.0
    by_position[:] = 0.0
    for c in range(pairs.size):
        j = pairs[c]
        begin, enter, end = _range(j, exits[j], first, window, rows)
        a, g, dot = weights[c, begin:enter], dvalues[c, begin:enter], dots[begin:enter]
        for i in range(a.size):
            dot[i] += a[i] * g[i]
        a, g, dot = weights[c, enter:end], dvalues[c, enter:end], dots[enter:end]
        if on_values and not hard:
            score, threshold = scores[j], tau[first + enter - window : first + end - window]
            for i in range(a.size):
                dot[i] += a[i] * g[i] * min(max(score - threshold[i], 0.0), 1.0)
        else:
            for i in range(a.size):
                dot[i] += a[i] * g[i]
    for c in range(pairs.size):
        j = pairs[c]
        begin, enter, end = _range(j, exits[j], first, window, rows)
        dvalues[c, :begin] = 0.0
        dvalues[c, end:] = 0.0
        logits[c, :enter] = 0.0
        logits[c, end:] = 0.0
        a, g, dot = weights[c, begin:enter], dvalues[c, begin:enter], dots[begin:enter]
        for i in range(a.size):
            g[i] = a[i] * (g[i] - dot[i])
        a, g, s, dot = weights[c, enter:end], dvalues[c, enter:end], logits[c, enter:end], dots[enter:end]
        if not (on_keys or on_values):
            for i in range(a.size):
                g[i] = a[i] * (g[i] - dot[i])
                s[i] = 0.0
            continue
        score, threshold = scores[j], tau[first + enter - window : first + end - window]
        sums = by_position[enter:end]
        for i in range(a.size):
            m = min(max(score - threshold[i], 0.0), 1.0)
            gate_k = m if on_keys and not hard else 1.0
            gate_v = m if on_values and not hard else 1.0
            dlogit = a[i] * (g[i] * gate_v - dot[i])
            dm = (dlogit * s[i] if on_keys else 0.0) + (a[i] * g[i] if on_values else 0.0)
            dm = dm if m > 0.0 and m < 1.0 else 0.0
            sums[i] += dm
            s[i] = dm
            a[i] = a[i] * gate_v
            g[i] = dlogit * gate_k


@compiled
def pull_back(
    weights: FloatArray,
    dvalues: FloatArray,
    logits: FloatArray,
    ranges: Ranges,
    options: tuple[bool, bool, bool],
    dots: NDArray[np.float64],
    by_position: NDArray[np.float64],
) -> None:
    """Pull the gradient back for every head, as `_pull_back_of_head` says."""
    for h in range(weights.shape[0]):
        _pull_back_of_head(weights[h], dvalues[h], logits[h], _of_head(ranges, h), options, dots[h], by_position[h])
