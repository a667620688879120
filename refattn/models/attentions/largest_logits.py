"""Every query attends to the pairs with its own largest logits: the limit of a selection that does not know the query.

Which pairs a query needs it says itself, so all logits are computed: nothing is saved, and no cache could do it, since
no pair may be given up. It tells how much of a sparse attention's error is in the number of pairs, and how much in
choosing them before the query comes (arXiv 2106.06899 has it to save memory in training; its use here is ours).
"""

from __future__ import annotations

import numpy as np

from refattn._heads import HeadLayout
from refattn._overflow import all_finite, average, overflow_judged
from refattn._validation import FloatArray, as_count, as_float_arrays

_ROWS = 128
"""Queries whose logits are held at once: 38 MB of float32 for 9 heads of 8,192 keys."""


class TopKAttention:
    """Attention of every query to the pairs that have the largest logits with it, in every layer and query head.

    Parameters
    ----------
    pairs : int
        Pairs a query attends to; at least 1. Of equal logits the earlier pairs are taken.

    Raises
    ------
    TypeError, ValueError
        `pairs` is not such a count.

    Notes
    -----
    Time O(n² d) a head, memory O(n) a head for each of some rows. It is no attention for a cache: it is what other
    selections of so many pairs are compared with. Source: arXiv 2106.06899 (top-k attention).

    Examples
    --------
    >>> import numpy as np
    >>> from refattn.models import TopKAttention
    >>> q = np.ones((1, 4, 1)); k = np.array([0.0, 3.0, 1.0, 3.0])[None, :, None]; v = np.arange(4.0)[None, :, None]
    >>> TopKAttention(1)(0, q, k, v).ravel()
    array([0., 1., 1., 1.])
    """

    def __init__(self, pairs: int) -> None:
        self.pairs = as_count("pairs", pairs, least=1)

    def pairs_per_query(self, n: int) -> int:
        """Return the most pairs that a query attends to.

        Parameters
        ----------
        n : int
            As for `refattn.models.DifferentiableAttention.pairs_per_query`.
        """
        return min(n, self.pairs)

    def __call__(self, layer: int, q: FloatArray, k: FloatArray, v: FloatArray) -> FloatArray:
        """Attend: the signature of an attention."""
        q, k, v = as_float_arrays(check_finite=False, q=q, k=k, v=v)
        layout = HeadLayout.of(q, k, v)
        n = q.shape[-2]
        if k.shape[-2] != n:
            raise ValueError(f"k: {k.shape[-2]} rows came, as many as q has ({n}) were wanted")
        queries, keys, values = layout.expand(q, k, v)
        scale = q.dtype.type(1 / np.sqrt(q.shape[-1]))
        out = np.empty((*layout.inner, n, v.shape[-1]), q.dtype)
        for first in range(0, n, _ROWS):
            last = min(first + _ROWS, n)
            with overflow_judged():
                logits = queries[..., first:last, :] @ keys[..., :last, :].swapaxes(-1, -2)
                logits *= scale
                if not all_finite(logits):
                    raise ValueError(
                        f"q, k: a logit of queries {first} … {last - 1} of layer {layer} is not finite in {q.dtype};"
                        " smaller entries, none of them infinite or NaN, or float64 was wanted"
                    )
                logits[..., np.arange(last) > np.arange(first, last)[:, None]] = -np.inf
                _hide_all_but_largest(logits, self.pairs)
                weights = np.exp(logits - logits.max(axis=-1, keepdims=True))
                weights /= weights.sum(axis=-1, keepdims=True)
                out[..., first:last, :] = average(weights, values[..., :last, :])
        if not all_finite(out):
            raise ValueError(f"v: an output of layer {layer} is not finite, finite entries were wanted")
        return layout.merge(out)


def _hide_all_but_largest(logits: FloatArray, pairs: int) -> None:
    """Write −inf everywhere but at the largest `pairs` of every row, of equal ones the first."""
    n = logits.shape[-1]
    if n <= pairs:
        return
    least = np.partition(logits, n - pairs, axis=-1)[..., n - pairs, None]
    np.copyto(logits, -np.inf, where=logits < least)
    tied = np.nonzero(((logits >= least).sum(axis=-1) > pairs) & (least[..., 0] > -np.inf))
    rows, equal = logits[tied], logits[tied] == least[tied]
    room = pairs - (rows > least[tied]).sum(axis=-1, keepdims=True)
    rows[equal & (np.cumsum(equal, axis=-1) > room)] = -np.inf
    logits[tied] = rows
