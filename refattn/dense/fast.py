"""Exact attention by tiles of queries and keys: products by BLAS, exponentials by NumPy, a running shift (ours).

A block of queries goes through its tiles (`refattn.dense._tiles`) with ``O = Σ_j E_j v_j`` and ``t = Σ_j E_j``, where
``E_j = exp(S_j − m)``. The shift m of a row is subtracted by the product itself, as one more column of Q that meets a
column of ones beside K. It need not be the largest logit, only near it: a row of a tile with a moderate sum is taken as
it is, without a search for the largest. The first shift is the largest of a row's first few logits. Where the sum is
not moderate, and where few keys are seen, m becomes the largest so far and O and t are rescaled. In the end
``out = O / t``.

Backward, with m and t as the forward left them and ``P = E / t``, blocks of whole rows, whose tiles lie side by side:

    dV = Pᵀ dY     F = dY Vᵀ     dS = P ∘ (F − rowsum(P ∘ F))     dQ = scale · dS K     dK = dSᵀ (scale · Q)

Rows whose logits might overflow, as norms say, go the careful way: logits are looked at, and what is not finite is
computed again in a wider format. Tiles, blocks and the order of sums depend on shapes alone, and the way that a row
goes on what it sees: neither the number of threads nor the future changes a bit of the output.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import accumulate, pairwise
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from refattn._overflow import all_finite, overflow_judged, replace_what_is_not_finite, wider
from refattn._threads import for_each, map_each
from refattn._validation import FloatArray
from refattn.dense._problem import DenseProblem, overflow
from refattn.dense._tiles import STRIP, Tile, tiles
from refattn.masks import offset_of

_TILE_BYTES = 1 << 20
"""Of a tile of the forward: it stays in a core's cache with its keys and values."""
_KEYS = 512
"""Most keys of a tile."""
_SAMPLE = 32
"""Keys of which the largest logit is a row's first shift."""
_MODERATE = 0.5, 2.0**16
"""Least sum of exponentials so far, and most of a tile, with which the shift of a row is near enough to its largest."""
_ROW_ENTRIES = 1 << 18
"""Most logits of a block of the backward, unless that are fewer than"""
_LEAST_ROWS = 16
"""rows."""
_TASKS = 4
"""Into at least as many a backward is cut."""


TilesByRow = dict[int, list[Tile]]
"""The tiles of blocks of queries, by the first of these: one for all heads, filled as they are met."""


class Pairs(NamedTuple):
    """One key-value head: K beside a column of ones, V; norms; the largest norm of the keys up to each; ones."""

    keys: FloatArray
    values: FloatArray
    size: tuple[float, float]
    largest: FloatArray
    ones: FloatArray


class Head:
    """One query head: its arrays, its parts of the mask, and how its logits are to be computed."""

    def __init__(
        self, problem: DenseProblem, index: tuple[int, ...], q: FloatArray, pairs: Pairs, found: TilesByRow
    ) -> None:
        self.problem, self.index, self.q, self.pairs, self._tiles = problem, index, q[index], pairs, found
        mask, shape = problem.mask, (*problem.layout.inner, problem.mask.n_q, problem.mask.n_k)
        self.booleans = [np.broadcast_to(part, shape)[index] for part in mask.booleans]
        self.biases = [np.broadcast_to(part, shape)[index] for part in mask.biases]
        self.plain = not self.biases and problem.softcap is None
        factor, lengths = abs(problem.scale), _norms(self.q)
        last = np.full(mask.n_q, mask.n_k - 1)
        for pattern in mask.patterns:
            position = np.arange(mask.n_q) + offset_of("mask", pattern.alignment, mask.n_q, mask.n_k)
            np.minimum(last, position, out=last)
        seen = np.where(last >= 0, pairs.largest[np.maximum(last, 0)], 0)
        self.risky = ~(lengths * np.maximum(seen, 1) * factor <= np.finfo(q.dtype).max / 8)
        self.any_risky = bool(self.risky.any())
        k_size, v_size = pairs.size
        self.reach = 64 * sum(shape[-2:]) * v_size * max(1.0, _norm(lengths) * factor, k_size * max(1.0, factor))

    def tiles(self, rows: slice) -> list[Tile]:
        """Return the tiles of some queries; those that a boolean array hides are left out."""
        found = self._tiles.get(rows.start)
        if found is None:
            found = self._tiles[rows.start] = tiles(self.problem.mask, rows, _KEYS)
        return [tile for tile in found if all(part[tile.rows, tile.keys].any() for part in self.booleans)]

    def queries(self, rows: slice) -> FloatArray:
        """Return ``scale · Q`` with one more column, of zeros, which takes the shifts."""
        queries = np.zeros((rows.stop - rows.start, self.q.shape[1] + 1), self.q.dtype)
        np.multiply(self.q[rows], self.q.dtype.type(self.problem.scale), out=queries[:, :-1])
        return queries

    def lowered_products(self, tile: Tile, queries: FloatArray, shift: FloatArray | int, out: FloatArray) -> None:
        """Write ``scale · Q Kᵀ − m`` of a tile, −inf where hidden."""
        np.negative(shift, out=queries[:, -1])
        np.matmul(queries, self.pairs.keys[tile.keys].T, out=out)
        for columns, hidden in self._hidden(tile):
            np.copyto(out[:, columns], -np.inf, where=hidden)

    def shifted_logits(
        self, tile: Tile, queries: FloatArray, shift: FloatArray | None, out: FloatArray
    ) -> FloatArray | None:
        """Write the masked logits of a tile, less the shifts of its rows, and return the derivative of the cap."""
        if self.plain and not (self.any_risky and self.risky[tile.rows].any()):
            self.lowered_products(tile, queries, 0 if shift is None else shift, out)
            return None
        queries[:, -1] = 0
        np.matmul(queries, self.pairs.keys[tile.keys].T, out=out)
        slope = self._careful(tile, out)
        if shift is not None:
            out -= shift[:, None]
        return slope

    def _hidden(self, tile: Tile) -> Iterator[tuple[slice, NDArray[np.bool_]]]:
        """Yield what is hidden: which columns of the tile, and which entries of these."""
        if tile.hidden is not None:
            yield tile.columns, tile.hidden
        yield from ((slice(None), ~part[tile.rows, tile.keys]) for part in self.booleans)

    def _careful(self, tile: Tile, logits: FloatArray) -> FloatArray | None:
        """Turn products into logits that are looked at: cap, bias, mask; return the derivative of the cap."""
        problem, rows, keys = self.problem, tile.rows, tile.keys
        biases = [part[rows, keys] for part in self.biases]
        hidden = np.zeros(logits.shape, bool)
        for columns, part in (*self._hidden(tile), *((slice(None), bias == -np.inf) for bias in biases)):
            hidden[:, columns] |= part
        if not all_finite(logits):
            if not (np.isfinite(logits) | hidden).all():  # perhaps before the scale only
                wide_q, wide_k = wider(self.q[rows], self.pairs.keys[keys, :-1])
                replace_what_is_not_finite(logits, wide_q @ wide_k.T * problem.scale)
                self._require_no_overflow("q, k", logits, hidden, tile)
            np.copyto(logits, 0, where=~np.isfinite(logits))  # hidden: nothing of them may reach the slope
        slope = None
        if problem.softcap is not None:
            cap = logits.dtype.type(problem.softcap)
            logits /= cap
            slope = np.square(1 / np.cosh(logits))  # 1 − tanh² would cancel
            np.tanh(logits, out=logits)
            logits *= cap
        for bias in biases:
            logits += bias.astype(logits.dtype)
            self._require_no_overflow("mask", logits, hidden, tile)
        np.copyto(logits, -np.inf, where=hidden)
        return slope

    def _require_no_overflow(self, name: str, logits: FloatArray, hidden: NDArray[np.bool_], tile: Tile) -> None:
        bad = np.argwhere(~(np.isfinite(logits) | hidden))
        if bad.size:
            row, key = (int(i) for i in bad[0])
            raise overflow(name, tile.rows.start + row, tile.keys.start + key, logits[row, key])


class Shelf:
    """Workspaces of one call: a task takes one and gives it back, so that every thread fills its own again."""

    def __init__(self, dtype: np.dtype) -> None:
        self._dtype, self._idle = dtype, list[FloatArray]()  # taking the last one is atomic

    @contextmanager
    def workspace(self, entries: int) -> Iterator[FloatArray]:
        """Lend an array of at least so many entries."""
        try:
            space = self._idle.pop()
        except IndexError:
            space = np.empty(entries, self._dtype)
        if space.size < entries:
            space = np.empty(entries, self._dtype)
        try:
            yield space
        finally:
            self._idle.append(space)


def rows_of_a_block(problem: DenseProblem) -> int:
    """Query rows processed at once by the forward."""
    return problem.block or _TILE_BYTES // (_KEYS * problem.q.dtype.itemsize)


def forward(problem: DenseProblem) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Return the output, and of every row the shift of its logits and the sum of the exponentials less it."""
    inner, n_q, dtype = problem.layout.inner, problem.q.shape[-2], problem.q.dtype
    out = np.zeros((*inner, n_q, problem.v.shape[-1]), dtype)
    shift, total = np.zeros((2, *inner, n_q), dtype)
    shelf, step = Shelf(dtype), rows_of_a_block(problem)
    entries = min(step, n_q) * (min(_KEYS, problem.mask.n_k) + out.shape[-1])

    def attend(task: tuple[Head, slice]) -> None:
        head, rows = task
        place: tuple[Any, ...] = (*head.index, rows)
        with overflow_judged(), shelf.workspace(entries) as space:
            _attend(head, rows, space, out[place], shift[place], total[place])

    blocks = list(_blocks(n_q, step))[::-1]  # the longest ones first, of a causal mask
    for_each(attend, [(head, rows) for head in _heads(problem) for rows in blocks])
    return out, shift, total


def _attend(head: Head, rows: slice, space: FloatArray, out: FloatArray, shift: FloatArray, total: FloatArray) -> None:
    """Write a block's rows of the output, of the shifts and of the sums; they come as zeros."""
    queries, found = head.queries(rows), head.tiles(rows)
    for tile in found:
        part = slice(tile.rows.start - rows.start, tile.rows.stop - rows.start)
        shape = part.stop - part.start, tile.keys.stop - tile.keys.start
        weights = space[: shape[0] * shape[1]].reshape(shape)
        product = space[-shape[0] * out.shape[1] :].reshape(shape[0], -1)
        state = product, out[part], shift[part], total[part]
        left = _take_as_it_is(head, tile, queries[part], weights, *state)
        if left is None or left.any():
            _rescale(head, tile, queries[part], left, weights, *state)
    out /= np.where(total > 0, total, 1)[:, None]
    if not all_finite(out) and np.isfinite(head.pairs.values).all():
        _average_at_half_size(head, found, rows, queries, out, shift, total)


def _take_as_it_is(
    head: Head, tile: Tile, queries: FloatArray, weights: FloatArray, product: FloatArray, out: FloatArray,
    shift: FloatArray, total: FloatArray,
) -> NDArray[np.bool_] | None:  # fmt: skip
    """Add the rows of a tile whose shifts are near their largest logits; return those left, None if all are."""
    least, most = _MODERATE
    if not head.plain:
        return None
    if total.min() < least:
        if tile.hidden is not None or head.booleans or weights.shape[1] < _KEYS or total.any():
            return None
        queries[:, -1] = 0
        first = head.pairs.keys[tile.keys.start : tile.keys.start + _SAMPLE]
        np.max(first @ queries.T, axis=0, out=shift)
    head.lowered_products(tile, queries, shift, weights)
    np.exp(weights, out=weights)
    sums = weights @ head.pairs.ones[: weights.shape[1]]
    left = np.zeros(sums.shape, bool)
    if head.any_risky or not sums.max() <= most:
        left = ~(sums <= most) | head.risky[tile.rows]
        weights[left], sums[left] = 0, 0
    total += sums
    out += np.matmul(weights, head.pairs.values[tile.keys], out=product)
    return left


def _rescale(
    head: Head, tile: Tile, queries: FloatArray, rows: NDArray[np.bool_] | None, weights: FloatArray,
    product: FloatArray, out: FloatArray, shift: FloatArray, total: FloatArray,
) -> None:  # fmt: skip
    """Add some rows of a tile, or all of them, after their largest logits have become the shifts."""
    head.shifted_logits(tile, queries, None, weights)
    if rows is not None:
        weights[~rows] = -np.inf
    largest = weights.max(axis=1)
    np.copyto(largest, np.maximum(largest, shift), where=total > 0)
    np.copyto(largest, 0, where=largest == -np.inf)  # no key allowed: exp(−inf − 0) = 0
    kept = np.exp(shift - largest, where=total > 0, out=np.zeros_like(total))
    shift[...] = largest if rows is None else np.where(rows, largest, shift)
    np.exp(np.subtract(weights, largest[:, None], out=weights), out=weights)
    total *= kept
    total += weights @ head.pairs.ones[: weights.shape[1]]
    out *= kept[:, None]
    out += np.matmul(weights, head.pairs.values[tile.keys], out=product)


def _average_at_half_size(
    head: Head, found: list[Tile], rows: slice, queries: FloatArray, out: FloatArray, shift: FloatArray,
    total: FloatArray,
) -> None:  # fmt: skip
    """Write again what is not finite of averages of finite values: it overflowed on the way, or by a rounding."""
    halves = np.zeros_like(out)
    for tile in found:
        part = slice(tile.rows.start - rows.start, tile.rows.stop - rows.start)
        weights = np.empty((part.stop - part.start, tile.keys.stop - tile.keys.start), out.dtype)
        head.shifted_logits(tile, queries[part], shift[part], weights)
        np.exp(weights, out=weights)
        np.divide(weights, total[part, None], out=weights, where=total[part, None] > 0)
        halves[part] += weights @ (head.pairs.values[tile.keys] / 2)
    most = np.finfo(out.dtype).max / 2
    replace_what_is_not_finite(out, 2 * np.clip(halves, -most, most))


def backward(
    dout: FloatArray, problem: DenseProblem, shift: FloatArray, total: FloatArray
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Return the gradients of q, k and v, one entry per query head; not judged."""
    inner, (n_q, d), (n_k, d_v) = problem.layout.inner, problem.q.shape[-2:], problem.v.shape[-2:]
    dtype, heads = problem.q.dtype, _heads(problem)
    parts = -(-_TASKS // len(heads))
    dq = np.empty((*inner, n_q, d), dtype)
    dk, dv = np.zeros((parts, *inner, n_k, d), dtype), np.zeros((parts, *inner, n_k, d_v), dtype)
    step = min(max(_ROW_ENTRIES // n_k, _LEAST_ROWS), STRIP, problem.block or STRIP)
    blocks, shelf = list(_blocks(n_q, step)), Shelf(dtype)
    entries = 2 * min(step, n_q) * n_k + max(step, min(_KEYS, n_k)) * max(d, d_v)

    def pull_back(task: tuple[Head, int]) -> None:
        head, number = task
        place: tuple[Any, ...] = (number, *head.index)
        with overflow_judged(), shelf.workspace(entries) as space:
            for rows in blocks[number::parts]:
                own: tuple[Any, ...] = (*head.index, rows)
                _pull_back(head, rows, space, dout[own], shift[own], total[own], dq[own], dk[place], dv[place])

    for_each(pull_back, [(head, number) for head in heads for number in range(parts)])
    return dq, dk.sum(axis=0) if parts > 1 else dk[0], dv.sum(axis=0) if parts > 1 else dv[0]


def _pull_back(
    head: Head, rows: slice, space: FloatArray, g: FloatArray, shift: FloatArray, total: FloatArray,
    dq: FloatArray, dk: FloatArray, dv: FloatArray,
) -> None:  # fmt: skip
    """Write a block's rows of dq, and add what it gives to dk and dv."""
    found, queries = head.tiles(rows), head.queries(rows)
    ends = list(accumulate((tile.keys.stop - tile.keys.start for tile in found), initial=0))
    columns = [slice(first, last) for first, last in pairwise(ends)]
    size = len(g) * ends[-1]
    product = space[2 * size :]
    weights, flow = (part.reshape(len(g), -1) for part in (space[:size], space[size : 2 * size]))
    # forward: E = exp(S − m)
    slopes = [
        head.shifted_logits(tile, queries, shift, weights[:, at]) for tile, at in zip(found, columns, strict=True)
    ]
    np.exp(weights, out=weights)
    capped = [slope for slope in slopes if slope is not None]
    slope = np.concatenate(capped, axis=1) if capped else None
    pairs, scale, wanted = head.pairs, head.problem.scale, (dq, dk, dv)
    arrays = (weights, total, g, queries[:, :-1], pairs.keys[:, :-1], pairs.values)
    if head.plain and not head.any_risky and _norm(g) * head.reach <= float(np.finfo(g.dtype).max):
        _through_softmax(found, columns, scale, slope, flow, product, *arrays, *wanted)
        return
    exponentials, parts = weights.copy(), (dq, np.zeros_like(dk), np.zeros_like(dv))
    _through_softmax(found, columns, scale, slope, flow, product, *arrays, *parts)
    if not all_finite(*parts):
        wide = wider(exponentials, total, g, head.q[rows], pairs.keys[:, :-1], pairs.values)
        wide[3][...] *= scale
        again = [np.zeros(part.shape, wide[0].dtype) for part in parts]
        spaces = (np.empty(part.shape, wide[0].dtype) for part in (flow, product))
        _through_softmax(found, columns, scale, slope, *spaces, *wide, *again)
        for part, better in zip(parts, again, strict=True):
            replace_what_is_not_finite(part, better)
    dk += parts[1]
    dv += parts[2]


def _through_softmax(
    found: list[Tile], columns: list[slice], scale: float, slope: FloatArray | None, flow: FloatArray,
    product: FloatArray, weights: FloatArray, total: FloatArray, g: FloatArray, queries: FloatArray, keys: FloatArray,
    values: FloatArray, dq: FloatArray, dk: FloatArray, dv: FloatArray,
) -> None:  # fmt: skip
    """Write dq, and add to dk and dv, in the format of the arrays; `flow` is workspace."""
    # forward: out = Σ E v / t
    weights *= np.divide(1, total, out=np.zeros_like(total), where=total > 0)[:, None]  # g / t might be too small
    for tile, at in zip(found, columns, strict=True):
        _add_product(weights[:, at].T, g, product, dv[tile.keys])
        np.matmul(g, values[tile.keys].T, out=flow[:, at])
    # forward: softmax of the logits, P = E / t
    flow -= np.matmul(weights[:, None], flow[:, :, None])[:, 0]
    flow *= weights
    # forward: softcap · tanh(s / softcap)
    if slope is not None:
        flow *= slope
    # forward: S = (scale · Q) Kᵀ
    dq[...] = 0
    for tile, at in zip(found, columns, strict=True):
        _add_product(flow[:, at], keys[tile.keys], product, dq)
        _add_product(flow[:, at].T, queries, product, dk[tile.keys])
    dq *= dq.dtype.type(scale)


def _add_product(a: FloatArray, b: FloatArray, space: FloatArray, out: FloatArray) -> None:
    out += np.matmul(a, b, out=space[: out.size].reshape(out.shape))


def _blocks(n: int, step: int) -> Iterator[slice]:
    return (slice(start, min(start + step, n)) for start in range(0, n, step))


def _norm(array: FloatArray) -> float:
    """Return the root of the sum of squares: no entry is larger, and it is not finite if one is not."""
    flat = array.ravel()
    return float(np.sqrt(np.dot(flat, flat)))


def _norms(array: FloatArray) -> FloatArray:
    return np.asarray(np.sqrt(np.einsum("ij,ij->i", array, array)))


def _heads(problem: DenseProblem) -> list[Head]:
    """Return every query head; those that share keys and values share what is made of them."""
    q, k, v = problem.layout.expand(problem.q, problem.k, problem.v)
    indices = list(np.ndindex(*problem.layout.inner))
    places = [tuple(array[index].__array_interface__["data"][0] for array in (k, v)) for index in indices]
    distinct = dict(zip(places, indices, strict=True))

    def prepare(index: tuple[int, ...]) -> Pairs:
        with overflow_judged():
            return _pairs(k[index], np.ascontiguousarray(v[index]))

    pairs = dict(zip(distinct, map_each(prepare, distinct.values()), strict=True))
    found: TilesByRow = {}
    with overflow_judged():
        return [Head(problem, index, q, pairs[place], found) for index, place in zip(indices, places, strict=True)]


def _pairs(k: FloatArray, v: FloatArray) -> Pairs:
    keys = np.ones((len(k), k.shape[1] + 1), k.dtype)
    keys[:, :-1] = k
    lengths = _norms(k)
    return Pairs(
        keys, v, (_norm(lengths), _norm(v)), np.maximum.accumulate(lengths), np.ones(min(_KEYS, len(k)), k.dtype)
    )
