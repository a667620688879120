"""The distance between a layer's sparse and exact attention, as a function of the scores, and its gradient (ours).

Queries, keys, values and the target T (exact attention) are those of the exact model. With a ones column beside the
values, attention whose gates multiply values only (``gate="v"``) returns ``N = Σ_j A_ij m_ij v_j`` and, in the last
column, ``Z = Σ_j A_ij m_ij``: then ``Y = N / Z`` is the softmax with every selected pair's weight times its gate,
normalised again. It goes continuously to leaving a pair out as its gate goes to 0, and to plain attention on what is
selected as all gates go to 1. With O the layer's output projection and E = (Y − T) Oᵀ, over the rows that do not see
everything,

    loss = ‖E‖² / ‖T Oᵀ‖²                G = 2 E O / ‖T Oᵀ‖²

    forward  Y = N / Z                   backward  dN = G / Z,   dZ = −Σ_columns G ∘ Y / Z

and from dN and dZ `sparsek_attention_backward` has the gradient of the scores, through SparseK's Jacobian
(arXiv 2406.16747), and `sparsek_scores_backward` that of weight and slope.
"""

from __future__ import annotations

import numpy as np

from refattn._validation import FloatArray
from refattn.laboratory.scorers.importance import LayerInputs, squared
from refattn.sparsek import sparsek_attention_backward, sparsek_attention_forward


def distillation_loss(
    scores: FloatArray, layer: LayerInputs, *, n_select: int, window: int, hard: bool = False
) -> tuple[float, FloatArray]:
    """Return the relative squared distance of the layer's outputs, and its gradient.

    `scores` and gradient are (H_kv, n), n larger than ``n_select + window``: the rows from there on count, earlier ones
    see every pair. With `hard`, gates are one in the forward, as the model will have them, and the gradient is the
    straight-through one. Time O(H n (n_select + window) d), memory O(H n d).

    >>> rng = np.random.default_rng(0)
    >>> q, k, v = rng.standard_normal((3, 1, 9, 2))
    >>> from refattn import dense_attention
    >>> layer = LayerInputs(v[0], q, k, v, dense_attention(q, k, v), np.eye(2))
    >>> loss, gradient = distillation_loss(rng.standard_normal((1, 9)), layer, n_select=3, window=2)
    >>> 0 < loss < 1, gradient.shape
    (True, (1, 9))
    """
    heads, _, d = layer.q.shape
    values = np.concatenate([layer.v, np.ones_like(layer.v[..., :1])], axis=-1)
    out, cache = sparsek_attention_forward(
        layer.q, layer.k, values, scores, n_select=n_select, window=window, gate="v", hard=hard
    )
    numerator, weight = out[..., :-1], out[..., -1:]
    sparse = numerator / weight
    first = n_select + window
    size = squared(layer.projected(layer.out, first))
    distance = layer.projected(sparse - layer.out, first)
    # forward: distance = (sparse − out) projectionᵀ
    dsparse = np.zeros_like(sparse)
    dsparse[:, first:] = (2 / size * distance @ layer.projection).reshape(-1, heads, d).swapaxes(0, 1)
    # forward: sparse = numerator / weight
    dnumerator = dsparse / weight
    dweight = -(dsparse * sparse).sum(axis=-1, keepdims=True) / weight
    upstream = np.concatenate([dnumerator, dweight], axis=-1)
    # forward: out = attention to (values, ones) with gates from the scores
    return squared(distance) / size, sparsek_attention_backward(upstream, cache).scores
