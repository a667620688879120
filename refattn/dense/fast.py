"""Exact attention by tiles of queries and keys: products by BLAS, compiled loops, a running maximum (ours).

A block of queries goes through its tiles (`refattn.dense._tiles`): in one compiled call (`refattn.dense._blocks`) where
only patterns and sinks say what is seen, else one tile after another. A tile lies transposed, a row for every key.
With m the largest logit of a query so far, ``E_j = exp(S_j − m)``,

    t = Σ_j E_j     O = Σ_j E_j v_j     out = O / t,

and where a tile brings a larger one, t and O of the tiles before are multiplied by exp(m before − m).

Backward, for blocks of queries whose keys all lie side by side, with m and t found anew: weights from logits that were
rounded another way than those of which m and t are known would not sum to one.

    P = E / t     dV = Pᵀ dY     F = dY Vᵀ     dS = P ∘ (F − rowsum(P ∘ F))     dQ = scale · dS K     dK = scale · dSᵀ Q

The logit of a sink is that of a first key, without a value: m begins with it, and t with 1. What the gradients of the
log-sum-exps and of sinks are, and dropout, `refattn.dense.oracle` says; the gradient of a bias is left to it.

Rows of which sizes alone do not tell that nothing can overflow on the way are computed by the definition,
`refattn.dense.oracle`, which looks at what is not finite. Tiles, blocks and the order of sums depend on shapes alone,
and the way of a row on what it sees: neither the number of threads nor the future changes a bit of the output.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from refattn._overflow import overflow_judged
from refattn._threads import for_each
from refattn._validation import FloatArray
from refattn.dense import oracle
from refattn.dense._problem import DenseProblem
from refattn.dense._sizes import doubtful_backward, doubtful_forward
from refattn.dense._tiles import Sight, Tile, sights_of, tiles

_ROW_BYTES = 512
"""Of the queries of a block."""
_SMALL = 960 << 10
"""Products of two numbers that are small together (see `refattn.dense._products`): so many keys make a tile,"""
_LEAST_KEYS, _MOST_KEYS = 40, 512
"""unless these are fewer than the first, or more than the second; the second it is then, and products are large."""
_ROWS, _KEYS = 256, 512
"""Of a tile with options between the loops, which are not compiled."""
_ROW_ENTRIES = 1 << 20
"""Logits of a block of the backward, at most, where that are at least"""
_LEAST_ROWS = 16
"""rows."""
_TASKS = 4
"""Into at least as many a backward is cut."""
_FEW_ENTRIES = 1 << 16
"""A head with at most so many logits is not worth a tile of its own: the definition takes all heads at once."""


@dataclass(frozen=True)
class Block:
    """Some queries with their tiles; and these and the sights as compiled loops take them.

    `keys` is how many a product with keys takes at once, `values` how many one with values.
    """

    rows: slice
    tiles: list[Tile]
    ends: NDArray[np.int64]
    sights: NDArray[np.int64]
    keys: int
    values: int


@dataclass(frozen=True)
class Head:
    """One query head: its arrays, and its parts of the mask."""

    problem: DenseProblem
    index: tuple[int, ...]
    q: FloatArray
    k: FloatArray
    v: FloatArray
    booleans: list[NDArray[np.bool_]]
    biases: list[FloatArray]
    sights: list[Sight]
    sink: np.floating[Any] | None = None
    keep: NDArray[np.bool_] | None = None

    @property
    def scale(self) -> np.floating[Any]:
        """The factor of the logits, in the dtype of the computation."""
        return self.q.dtype.type(self.problem.scale)

    @property
    def start(self) -> tuple[float | np.floating[Any], float]:
        """The largest logit of a query, and the sum of the exponentials less it, before any key."""
        return (-np.inf, 0.0) if self.sink is None else (self.sink, 1.0)

    def not_hidden(self, block: Block) -> list[Tile]:
        """Return the tiles of a block but those that a boolean array hides."""
        return [tile for tile in block.tiles if all(part[block.rows, tile.keys].any() for part in self.booleans)]

    def kept(self, rows: slice, keys: slice) -> NDArray[np.bool_]:
        """Return which weights of a tile dropout keeps, a row for every key."""
        assert self.keep is not None
        return self.keep[rows, keys].T

    def queries(self, rows: slice) -> FloatArray:
        """Return ``scale · Qᵀ`` of some queries."""
        return np.multiply(self.q[rows].T, self.scale, order="C")

    def write_logits(self, block: Block, tile: Tile, queries: FloatArray, out: FloatArray) -> FloatArray | None:
        """Write the logits of a tile, −inf where hidden, a row for every key; return the derivative of the cap."""
        from refattn._compiled import as_input
        from refattn.dense._loops import hide, hide_out_of_sight
        from refattn.dense._products import multiply

        multiply(self.k[tile.keys], queries, block.keys, out)
        rows, slope, cap = block.rows, None, self.problem.softcap
        if cap is not None:
            out /= out.dtype.type(cap)
            slope = np.square(1 / np.cosh(out))  # 1 − tanh² would cancel
            np.tanh(out, out=out)
            out *= out.dtype.type(cap)
        for bias in self.biases:
            out += bias[rows, tile.keys].T
        for boolean in self.booleans:
            hide(as_input(boolean[rows, tile.keys]), out)
        first, some = tile.keys.start + tile.some.start, out[tile.some]
        for sight in self.sights if len(some) else ():
            hide_out_of_sight(some, first, sight.position + rows.start, sight.window, sight.sinks)
        return slope


class Shelf:
    """Workspaces of one call: a task takes one and gives it back, so that every thread fills its own again."""

    def __init__(self, dtype: np.dtype, entries: int) -> None:
        self._dtype, self._entries, self._idle = dtype, entries, list[FloatArray]()  # taking the last one is atomic

    @contextmanager
    def workspace(self) -> Iterator[FloatArray]:
        """Lend an array."""
        try:
            space = self._idle.pop()
        except IndexError:
            space = np.empty(self._entries, self._dtype)
        try:
            yield space
        finally:
            self._idle.append(space)


def rows_of_a_block(problem: DenseProblem) -> int:
    """Query rows processed at once by the forward."""
    if _is_plain(problem) and not _left_to_the_definition(problem):
        return problem.block or _ROW_BYTES // problem.q.itemsize
    return problem.block or _ROWS


def forward(problem: DenseProblem) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Return the output, and of every row the largest allowed logit and the sum of the exponentials less it."""
    if _left_to_the_definition(problem):
        return oracle.forward(problem)
    doubtful = doubtful_forward(problem)
    if doubtful.all():
        return oracle.forward(problem)
    heads = _heads(problem)
    inner, n_q, dtype = problem.layout.inner, problem.q.shape[-2], problem.q.dtype
    out = np.zeros((*inner, n_q, problem.v.shape[-1]), dtype)
    largest, total = np.empty((2, *inner, n_q), dtype)

    step, width = rows_of_a_block(problem), max(problem.q.shape[-1], out.shape[-1])
    attend, most = (_attend, _keys_at_once(step, width)) if _is_plain(problem) else (_attend_with_options, _KEYS)
    shelf = Shelf(dtype, min(step, n_q) * (min(most, problem.mask.n_k) + 2 * width + 3))

    def work(task: tuple[Block, Head]) -> None:
        block, head = task
        place: tuple[Any, ...] = (*head.index, block.rows)
        with overflow_judged(), shelf.workspace() as space:
            attend(head, block, space, out[place], largest[place], total[place])

    for_each(work, [(block, head) for block in _blocks(problem, step, most) for head in heads])
    np.copyto(largest, 0, where=largest == -np.inf)  # no key allowed
    found = out, largest, total
    if doubtful.any():
        for ours, right in zip(found, oracle.forward(problem), strict=True):
            np.copyto(ours, right, where=doubtful[..., None] if ours is out else doubtful)
    return found


def _attend(
    head: Head, block: Block, space: FloatArray, out: FloatArray, largest: FloatArray, total: FloatArray
) -> None:
    """Write a block's rows of the output, which come as 0, of the largest logits and of the sums."""
    from refattn.dense._blocks import attend

    largest[...], total[...] = head.start
    rows, ends, sights = block.rows, block.ends, block.sights
    attend[out.dtype](head.q[rows], head.k, head.v, head.scale, rows.start, ends, sights, space, out, largest, total)


def _attend_with_options(
    head: Head, block: Block, space: FloatArray, out: FloatArray, largest: FloatArray, total: FloatArray
) -> None:
    """Do as `_attend`, with what is not compiled between its loops."""
    from refattn.dense._loops import divide_rows, exponentials, scale_rows
    from refattn.dense._products import add_sum

    rows = block.rows
    soften, queries, product = exponentials[out.dtype], head.queries(rows), space[-out.size :]
    kept, work = np.empty_like(total), np.empty((2, len(total)), out.dtype)
    largest[...], total[...] = head.start
    for tile in head.not_hidden(block):
        n_k = tile.keys.stop - tile.keys.start
        weights = space[: n_k * len(out)].reshape(n_k, -1)
        head.write_logits(block, tile, queries, weights)
        soften(weights, largest, total, kept, work)
        if head.keep is not None:
            weights *= head.kept(rows, tile.keys)
        scale_rows(out, kept)
        add_sum(weights, head.v[tile.keys], block.values, product, out)
    divide_rows(out, total)
    if head.keep is not None:
        out /= out.dtype.type(1 - head.problem.dropout)


def backward(dout: FloatArray, dlse: FloatArray | None, problem: DenseProblem) -> oracle.Gradients:
    """Return the gradients for upstream ones of the output and of the log-sum-exps (..., n_q, 1); not judged."""
    if _left_to_the_definition(problem) or problem.bias is not None:
        return oracle.backward(dout, dlse, problem)
    doubtful = doubtful_backward(dout, dlse, problem)
    if doubtful.all():
        return oracle.backward(dout, dlse, problem)
    heads = _heads(problem)
    inner, (n_q, d), (n_k, d_v) = problem.layout.inner, problem.q.shape[-2:], problem.v.shape[-2:]
    dtype, parts = problem.q.dtype, -(-_TASKS // len(heads))
    dq = np.empty((*inner, n_q, d), dtype)
    dk, dv = np.zeros((parts, *inner, n_k, d), dtype), np.zeros((parts, *inner, n_k, d_v), dtype)
    dsinks = np.zeros((parts, *inner, 1, 1), dtype)
    step = min(max(_ROW_ENTRIES // n_k, _LEAST_ROWS), rows_of_a_block(problem), _ROW_BYTES // dtype.itemsize)
    blocks = _blocks(problem, step, n_k)
    step = min(step, n_q)
    shelf = Shelf(dtype, 2 * step * n_k + max(min(_MOST_KEYS, n_k), step) * max(d, d_v))

    def pull_back(task: tuple[Head, int]) -> None:
        head, number = task
        place: tuple[Any, ...] = (number, *head.index)
        with overflow_judged(), shelf.workspace() as space:
            for block in blocks[number::parts]:
                own: tuple[Any, ...] = (*head.index, block.rows)
                more = None if dlse is None else dlse[own][:, 0]
                own_parts = dq[own], dk[place], dv[place], dsinks[place]
                _pull_back(head, block, doubtful[own], space, dout[own], more, *own_parts)

    for_each(pull_back, [(head, number) for head in heads for number in range(parts)])
    dk, dv, dsinks = (part.sum(axis=0) if parts > 1 else part[0] for part in (dk, dv, dsinks))
    np.multiply(dk, dtype.type(problem.scale), out=dk)
    found = oracle.Gradients(dq, dk, dv, None if problem.sinks is None else dsinks, None)
    if doubtful.any():
        those = doubtful[..., None]
        more = None if dlse is None else np.where(those, dlse, 0)
        right = oracle.backward(np.where(those, dout, 0), more, problem)
        np.copyto(dq, right.q, where=those)
        for ours, other in zip(found[1:], right[1:], strict=True):
            if ours is not None and other is not None:
                ours += other
    return found


def _pull_back(
    head: Head, block: Block, doubtful: NDArray[np.bool_], space: FloatArray, g: FloatArray, dlse: FloatArray | None,
    dq: FloatArray, dk: FloatArray, dv: FloatArray, dsink: FloatArray,
) -> None:  # fmt: skip
    """Write a block's rows of dq, and add what it gives to dk, dv and dsink; doubtful rows count as zeros."""
    from refattn.dense._loops import exponentials, through_softmax
    from refattn.dense._products import add_product, add_sum, multiply

    rows = block.rows
    scaled, queries, g = head.queries(rows), head.q[rows], _in_rows(g)
    if doubtful.any():
        scaled = np.where(doubtful, 0, scaled)
        queries, g = (_in_rows(np.where(doubtful[:, None], 0, part)) for part in (queries, g))
        dlse = None if dlse is None else np.where(doubtful, 0, dlse)
    n_q, found = len(g), head.not_hidden(block)
    ends = np.cumsum([0, *(tile.keys.stop - tile.keys.start for tile in found)])
    spans = [(tile.keys, slice(*pair)) for tile, pair in zip(found, pairwise(ends), strict=True)]
    size = n_q * ends[-1]
    weights, flow, space = space[:size].reshape(-1, n_q), space[size : 2 * size].reshape(-1, n_q), space[2 * size :]
    largest, total, kept = np.empty((3, n_q), g.dtype)
    largest[...], total[...] = head.start
    work = np.empty((2, n_q), g.dtype)
    # forward: P = E / t, E = exp(S − m)
    slopes = [head.write_logits(block, tile, scaled, weights[at]) for tile, (_, at) in zip(found, spans, strict=True)]
    exponentials[g.dtype](weights, largest, total, kept, work)
    turned = np.ascontiguousarray(g.T)
    # forward: out = P V
    for keys, at in spans:
        multiply(head.v[keys], turned, block.values, flow[at])
    if head.keep is not None:  # forward: P ∘ keep / (1 − p)
        rate = g.dtype.type(1 - head.problem.dropout)
        for keys, at in spans:
            np.copyto(flow[at], 0, where=~head.kept(rows, keys))
            flow[at] /= rate
    # forward: softmax of the logits
    through_softmax(weights, total, flow, work)
    if dlse is not None:  # forward: log-sum-exp of the logits
        for _, at in spans:
            flow[at] += weights[at] * dlse
    if head.sink is not None:  # forward: the sink's logit among them; 1 / t and Σ P F are what was left
        row = np.exp(head.sink - largest) * total * ((0 if dlse is None else dlse) - work[0])
        dsink += row.sum()
    if head.keep is not None:
        for keys, at in spans:
            weights[at] *= head.kept(rows, keys)
            weights[at] /= rate
    # forward: softcap · tanh(S / softcap)
    for (_, at), slope in zip(spans, slopes, strict=True):
        if slope is not None:
            flow[at] *= slope
    # forward: scale · Q Kᵀ; the scale of dk is applied to its sum
    dq[...] = 0
    for keys, at in spans:
        add_product(weights[at], g, block.values, space, dv[keys])
        add_product(flow[at], queries, block.keys, space, dk[keys])
        add_sum(flow[at], head.k[keys], block.keys, space, dq)
    dq *= dq.dtype.type(head.problem.scale)


def _left_to_the_definition(problem: DenseProblem) -> bool:
    """Whether heads are small, or additive masks have to be counted from each row's largest addend."""
    mask = problem.mask
    return mask.n_q * mask.n_k <= _FEW_ENTRIES or not mask.adds_what_came


def _is_plain(problem: DenseProblem) -> bool:
    """Whether patterns and sinks are all that there is beside queries, keys and values."""
    mask = problem.mask
    return not mask.booleans and not mask.biases and problem.softcap is None and problem.keep is None


def _blocks(problem: DenseProblem, step: int, most_keys: int) -> list[Block]:
    """Return the blocks of so many queries, the last ones first: of a causal mask the longest."""
    sights, (n_q, n_k) = sights_of(problem.mask), (problem.mask.n_q, problem.mask.n_k)
    positions = np.array(sights, np.int64).reshape(-1, 3)
    at_once = [_keys_at_once(step, array.shape[-1]) for array in (problem.k, problem.v)]
    blocks = []
    for rows in (slice(start, min(start + step, n_q)) for start in range(0, n_q, step)):
        found = tiles(sights, n_k, rows, most_keys)
        ends = [(tile.keys.start, tile.keys.stop, tile.some.start, tile.some.stop) for tile in found]
        blocks.append(Block(rows, found, np.array(ends, np.int64).reshape(-1, 4), positions, *at_once))
    return blocks[::-1]


def _keys_at_once(rows: int, width: int) -> int:
    """Return how many keys, or values, of some width a product with so many queries takes at once."""
    keys = _SMALL // max(rows * width, 1) // 8 * 8
    return min(keys, _MOST_KEYS) if keys >= _LEAST_KEYS else _MOST_KEYS


def _heads(problem: DenseProblem) -> list[Head]:
    """Return every query head; those that share keys and values share what is made of them."""
    q, k, v = problem.layout.expand(problem.q, problem.k, problem.v)
    mask = problem.mask
    sinks, keep = problem.sinks_of_heads, problem.keep_of_heads
    rows: dict[tuple[Any, ...], FloatArray] = {}
    sights = sights_of(mask)

    def kept(array: FloatArray) -> FloatArray:
        place = array.__array_interface__["data"][0], array.shape, array.strides
        if place not in rows:
            rows[place] = _in_rows(array)
        return rows[place]

    return [
        Head(
            problem, index, _in_rows(q[index]), kept(k[index]), kept(v[index]),
            *mask.of_head(index), sights,
            None if sinks is None else sinks[index][0, 0], None if keep is None else keep[index],
        )
        for index in np.ndindex(*problem.layout.inner)
    ]  # fmt: skip


def _in_rows(array: FloatArray) -> FloatArray:
    """Lay the rows one after another, as BLAS and the loops want them."""
    from refattn._compiled import as_input

    return as_input(np.require(array, requirements=["C", "A"]))
