"""Exact attention that remembers: all keys and values so far, so that a new token costs one row of attention (ours)."""

from __future__ import annotations

from refattn._validation import FloatArray
from refattn.dense import dense_attention
from refattn.masks import Causal
from refattn.models.attentions._pairs import Pairs
from refattn.models.attentions.remembering import RememberingLayers


class KVCacheAttention(RememberingLayers):
    """Causal softmax attention to every pair of the text so far, chunk by chunk.

    Notes
    -----
    A new token takes O(n d) a head, n the tokens so far; memory O(n d) a layer and key-value head. Source: the
    definition, one block of rows after another.

    Examples
    --------
    The rows of two chunks are those of the whole:

    >>> import numpy as np
    >>> from refattn.models import ExactAttention, KVCacheAttention
    >>> q, k, v = np.random.default_rng(0).standard_normal((3, 2, 6, 4))
    >>> attend = KVCacheAttention()
    >>> first = attend(0, q[:, :5], k[:, :5], v[:, :5])
    >>> attend.begin(5)
    >>> rows = np.concatenate([first, attend(0, q[:, 5:], k[:, 5:], v[:, 5:])], axis=1)
    >>> bool(np.allclose(rows, ExactAttention()(0, q, k, v), rtol=0, atol=1e-15))
    True
    """

    @property
    def nbytes(self) -> int:
        """Bytes of the keys and values kept, with the room for more."""
        return sum(pairs.nbytes for pairs in self._kept.values())

    def _take(self, layer: int, q: FloatArray, k: FloatArray, v: FloatArray) -> FloatArray:
        if layer not in self._kept:
            out = dense_attention(q, k, v, mask="causal", check_finite=False)
            self._kept[layer] = Pairs(k, v)
            return out
        pairs: Pairs = self._kept[layer]
        pairs.append(k, v)
        return dense_attention(q, *pairs.arrays(), mask=Causal("bottom-right"), check_finite=False)
