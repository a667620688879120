"""What a pair is worth: the first stage of learning a scorer, and the ridge regression it starts from (ours).

Leave out the pairs D of query i. With the softmax over the rest, head h's output moves by
``−Σ_{j∈D} A_ij (v_j − o_i) / (1 − Σ_{j∈D} A_ij)``. The squared length of that after the output projection O_h, without
the products of different pairs and without the denominator, is a sum over pairs, of

    importance_ij = Σ_h A_ij² ‖O_h (v_j − o_i)‖²           h over the query heads that share the key-value head.

It needs no selection, so it is computed once. Summed over the queries of a block b, and with the gates of the block's
first query, its loss as a function of the scores z is

    loss = Σ_b Σ_j importance_bj (1 − SparseK(z[: b B − w + 1], k)_j) / Σ_b Σ_j importance_bj     over candidates j

whose gradient goes through SparseK's Jacobian (arXiv 2406.16747, section on the operator), prefix by prefix:
``−importance_bj + mean of importance over the interior`` for j in the interior of block b, and 0 elsewhere. Unlike the
distance of outputs, this sees what a pair that is *not* selected would be worth.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from refattn._validation import FloatArray
from refattn.sparsek import prefix_thresholds

QUERIES = 128
"""Queries in a block."""


class LayerInputs(NamedTuple):
    """What one layer of the exact model sees and does on one window.

    x (n, width) is the normalised input; q (H, n, d), k and v (H_kv, n, d) have their positions applied; `out`
    (H, n, d) is exact attention; `projection` (width, H d) is the layer's output projection.
    """

    x: FloatArray
    q: FloatArray
    k: FloatArray
    v: FloatArray
    out: FloatArray
    projection: FloatArray

    def projected(self, out: FloatArray, first: int) -> FloatArray:
        """Return outputs (H, n, d) after the projection, rows from `first` on: ``out Oᵀ``."""
        rows = out[:, first:].swapaxes(0, 1)
        return np.asarray(rows.reshape(len(rows), -1) @ self.projection.T)

    def distance(self, out: FloatArray, first: int) -> float:
        """Return ``‖(Y − T) Oᵀ‖² / ‖T Oᵀ‖²`` of outputs Y over the rows from `first` on."""
        exact = self.projected(self.out, first)
        return squared(self.projected(out, first) - exact) / squared(exact)


def squared(x: FloatArray) -> float:
    """Return ``‖x‖²``, summed in float64."""
    return float(np.square(x).sum(dtype=np.float64))


def block_importance(layer: LayerInputs) -> tuple[FloatArray, FloatArray]:
    """Return importance and attention of every pair, each (H_kv, ⌈n/128⌉, n), in O(H n² d).

    They are sums over the queries of a block and the query heads of a group; zero for pairs after the block.

    >>> rng = np.random.default_rng(0)
    >>> q, k, v = rng.standard_normal((3, 1, 200, 4))
    >>> layer = LayerInputs(v[0], q, k, v, v, np.eye(4))
    >>> importance, attention = block_importance(layer)
    >>> importance.shape, attention.sum(axis=-1).round(6)  # every query's weights sum to one
    ((1, 2, 200), array([[128.,  72.]]))
    """
    n, d = layer.q.shape[-2:]
    group = len(layer.q) // len(layer.k)
    importance = np.zeros((len(layer.k), -(-n // QUERIES), n), layer.q.dtype)
    attention = np.zeros_like(importance)
    for head in range(len(layer.q)):
        key, value, out = layer.k[head // group], layer.v[head // group], layer.out[head]
        projection = layer.projection[:, head * d : (head + 1) * d]
        metric = projection.T @ projection  # ‖O u‖² = uᵀ metric u
        of_value = ((value @ metric) * value).sum(axis=1)
        of_out = ((out @ metric) * out).sum(axis=1)
        for block, first in enumerate(range(0, n, QUERIES)):
            rows = slice(first, min(first + QUERIES, n))
            weights = _attention(layer.q[head, rows], key[: rows.stop])
            attention[head // group, block, : rows.stop] += weights.sum(axis=0)
            distance = of_out[rows, None] + of_value[: rows.stop] - 2 * (out[rows] @ metric) @ value[: rows.stop].T
            np.maximum(distance, 0, out=distance)  # rounding can leave a square a little below zero
            importance[head // group, block, : rows.stop] += (np.square(weights) * distance).sum(axis=0)
    return importance, attention


def _attention(q: FloatArray, k: FloatArray) -> FloatArray:
    """Return the causal softmax of the last ``len(q)`` of ``len(k)`` queries."""
    logits = q @ k.T * q.dtype.type(q.shape[-1] ** -0.5)
    position = np.arange(len(k) - len(q), len(k))
    logits[np.arange(len(k)) > position[:, None]] = -np.inf
    np.exp(logits - logits.max(axis=1, keepdims=True), out=logits)
    return np.asarray(logits / logits.sum(axis=1, keepdims=True))


def importance_loss(
    scores: FloatArray, importance: FloatArray, *, n_select: int, window: int
) -> tuple[float, NDArray[np.float64]]:
    """Return the share of the importance outside the window that is not selected, 0 … 1, and its gradient.

    `scores` and gradient are (H_kv, n), `importance` is that of `block_importance`. Time O(H_kv (n log n + n²/128)).

    >>> importance = np.zeros((1, 2, 200)); importance[0, 1, :2] = 3.0, 1.0
    >>> scores = -np.arange(200.0)[None]
    >>> importance_loss(scores, importance, n_select=1, window=4)[0]  # the first pair is kept, the second is not
    0.25
    """
    gradient = np.zeros(scores.shape)
    lost, total = np.zeros(2)
    ends = np.arange(importance.shape[1]) * QUERIES - window + 1  # candidates of each block's first query
    blocks = np.flatnonzero(ends > 0)
    candidate = np.arange(scores.shape[1]) < ends[blocks, None]
    for head, z in enumerate(scores.astype(np.float64)):
        tau = prefix_thresholds(z, n_select)[ends[blocks] - 1]
        gates = np.where(candidate, np.clip(z - tau[:, None], 0, 1), 0)
        worth = np.where(candidate, importance[head, blocks], 0.0)
        lost, total = lost + (worth * (1 - gates)).sum(), total + worth.sum()
        inside = (gates > 0) & (gates < 1)
        mean = (worth * inside).sum(axis=1) / np.maximum(inside.sum(axis=1), 1)
        gradient[head] = np.where(inside, mean[:, None] - worth, 0).sum(axis=0)
    scale = max(float(total), float(np.finfo(np.float64).tiny))
    return float(lost) / scale, gradient / scale


def ridge_scorer(
    inputs: Sequence[FloatArray], attention: Sequence[FloatArray] | FloatArray, *, window: int, penalty: float = 100.0
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return weight (H_kv, width) and slope (H_kv,) fitted to the logarithm of a pair's mean future attention.

    Of every window, `inputs` has the normalised input (n, width) and `attention` that of `block_importance`. It counts
    from the first block on whose queries all have the pair outside their window: the last pairs have none. The penalty
    is on the weights in units of the inputs' deviation; position and constant are free, and the constant is left out of
    what is returned: it selects nothing. Time O(N width²) for N tokens.

    >>> rng = np.random.default_rng(0)
    >>> x = rng.standard_normal((512, 3))
    >>> attention = np.ones((1, 4, 1)) * np.exp(x[:, 0])
    >>> weight, slope = ridge_scorer([x], [attention], window=1, penalty=1e-6)
    >>> bool(np.allclose(weight, [[1, 0, 0]], atol=0.01))
    True
    """
    features, targets = [], []
    for x, by_block in zip(inputs, attention, strict=True):
        first = -(-(np.arange(len(x)) + window) // QUERIES)  # first block that lies outside all of a pair's windows
        count = by_block.shape[1] - first
        usable = count > 0
        after = np.arange(by_block.shape[1])[:, None] >= first
        mean = (by_block * after).sum(axis=1)[:, usable] / (QUERIES * count[usable])
        targets.append(np.log(mean + 1e-9).T)
        position = np.flatnonzero(usable)[:, None]
        features.append(np.concatenate([x[usable], position, np.ones_like(position)], axis=1))
    matrix, target = np.concatenate(features).astype(np.float64), np.concatenate(targets)
    deviation = matrix.std(axis=0)
    deviation[-1] = 1
    matrix /= np.where(deviation > 0, deviation, 1)
    weights = np.full(matrix.shape[1], penalty)
    weights[-2:] = 0
    found = np.linalg.solve(matrix.T @ matrix + np.diag(weights), matrix.T @ target)
    found /= np.where(deviation > 0, deviation, 1)[:, None]
    return found[:-2].T.astype(np.float32), found[-2].astype(np.float32)
