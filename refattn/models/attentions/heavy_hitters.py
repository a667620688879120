"""Heavy hitters: keep the pairs that had most attention so far, and the newest (H2O, arXiv 2306.14048).

The paper's Algorithm 1, with local statistics: what is kept is full, a pair comes, and of the older ones the pair with
the least accumulated attention is given up. The attention that is accumulated is that of what was kept, and a pair that
was given up does not come back. The newest pairs are kept too; in the paper's experiments they are half of all.

Ours: a pair is given up before the query attends, so no query attends to more pairs than are kept; every token of a
text is taken in so, those of a prompt too, where the paper's code computes a prompt exactly and then chooses; query
heads that share keys choose together, by the sum of their attention; sums are in float64; of equal ones the earlier
pair stays. Keys keep the positions that they were turned by.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from refattn._overflow import all_finite, overflow_judged
from refattn._threads import map_each
from refattn._validation import FloatArray, as_count
from refattn.models.attentions.remembering import RememberingLayers


class _Kept(NamedTuple):
    """What a layer keeps, by key-value head and slot; a slot at position −1 is empty."""

    columns: FloatArray  # keys, (h, d, m)
    values: FloatArray  # (h, m, d_v)
    sums: NDArray[np.float64]  # attention so far, (h, m)
    positions: NDArray[np.int64]  # (h, m)


class HeavyHitterAttention(RememberingLayers):
    """Attention to the pairs that had most attention so far and to the newest, in every layer and key-value head.

    Parameters
    ----------
    heavy : int
        Older pairs that are kept, those with the largest accumulated attention; at least 0.
    recent : int
        Newest pairs, the query's own included; at least 1.

    Raises
    ------
    TypeError, ValueError
        A number is of the wrong kind or out of range.

    Notes
    -----
    One object takes in one text at a time, at once or in chunks, with the same bits; `refattn.models.generate` goes on
    with it. Time O(n (heavy + recent) d) a head, memory O((heavy + recent) d) a layer and key-value head beside the
    output. Source: arXiv 2306.14048 (H2O), Algorithm 1; what is ours, the module says.

    Examples
    --------
    The first pair had more attention than any other older one, so it stays:

    >>> import numpy as np
    >>> from refattn.models import HeavyHitterAttention
    >>> q = k = np.zeros((1, 5, 1)); v = np.arange(5.0)[None, :, None]
    >>> HeavyHitterAttention(1, 2)(0, q, k, v).ravel().round(2)
    array([0.  , 0.5 , 1.  , 1.67, 2.33])
    """

    def __init__(self, heavy: int, recent: int) -> None:
        super().__init__()
        self.heavy = as_count("heavy", heavy, least=0)
        self.recent = as_count("recent", recent, least=1)

    def pairs_per_query(self, n: int) -> int:
        """Return the most pairs that a query attends to.

        Parameters
        ----------
        n : int
            As for `refattn.models.DifferentiableAttention.pairs_per_query`.
        """
        return min(n, self.heavy + self.recent)

    def _take(self, layer: int, q: FloatArray, k: FloatArray, v: FloatArray) -> FloatArray:
        from refattn._compiled import as_input
        from refattn.models.attentions._heavy_hitter_loops import take

        (heads, n, d), (kv_heads, _, d_v) = q.shape, v.shape
        start, loop, scale = self._start, take[q.dtype], q.dtype.type(1 / np.sqrt(d))
        kept = self._of(layer, kv_heads, d, d_v, q.dtype)
        slots = as_input(np.arange(kept.sums.shape[-1]))
        queries = q.reshape(kv_heads, heads // kv_heads, n, d)
        out = np.empty((kv_heads, heads // kv_heads, n, d_v), q.dtype)

        def work(h: int) -> bool:
            return loop(
                as_input(queries[h]), as_input(k[h]), as_input(v[h]), scale, start, self.recent,
                *(array[h] for array in kept), slots, np.empty(slots.size, q.dtype), out[h],
            )  # fmt: skip

        fine = map_each(work, range(kv_heads))
        with overflow_judged():
            if not (all(fine) and all_finite(out)):
                raise ValueError(
                    f"q, k, v: a logit or an output of layer {layer} is not finite in {q.dtype}; smaller entries, none"
                    " of them infinite or NaN, or float64 was wanted"
                )
        return out.reshape(heads, n, d_v)

    def _of(self, layer: int, heads: int, d: int, d_v: int, dtype: np.dtype[np.floating]) -> _Kept:
        """Return what the layer keeps: nothing yet where a text begins."""
        if layer not in self._kept:
            m = self.heavy + self.recent
            self._kept[layer] = _Kept(
                np.zeros((heads, d, m), dtype), np.zeros((heads, m, d_v), dtype), np.zeros((heads, m)),
                np.full((heads, m), -1),
            )  # fmt: skip
        kept: _Kept = self._kept[layer]
        return kept
