"""Selection at the end of the prompt: keep what its last queries attend to (SnapKV, arXiv 2404.14469).

The prompt is attended to exactly. With W the attention of its last queries, the observation window, a pair before them
has the votes ``Σ W`` over these queries; its score is the largest vote among its neighbours, so that what stands
together is kept together. The pairs with the largest scores are kept, and the window's own, and all that come later.

Ours: query heads that share keys vote together; the scores are of float64; of equal ones the earlier pair stays. The
prompt is the first chunk of a text. The last token of the prompt is attended to exactly, so the first token of the
answer does not depend on what is kept: who judges the selection gives that token to the second chunk.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import maximum_filter1d

from refattn._validation import FloatArray, as_count
from refattn.dense import dense_attention
from refattn.masks import Causal
from refattn.models.attentions._pairs import Pairs
from refattn.models.attentions.remembering import RememberingLayers


class SnapKVAttention(RememberingLayers):
    """Exact attention in the prompt; then to those of its pairs that its last queries attended to, and to all new ones.

    Parameters
    ----------
    pairs : int
        Pairs of the prompt that are kept in every layer and key-value head; at least 1.
    observed : int, optional
        Last queries of the prompt, whose attention votes; their own pairs are kept. At least 1, at most `pairs`.
    pooled : int, optional
        Neighbours that share the largest of their votes; an odd number.

    Raises
    ------
    TypeError, ValueError
        A number is of the wrong kind or out of range.

    Notes
    -----
    The first chunk of a text is its prompt: time O(n² d) a head, memory O(n · observed). A later token takes O(m d),
    with m the pairs kept and come since. Nothing is saved in the prompt. Source: arXiv 2404.14469
    (SnapKV), its selection with max pooling; what is ours, the module says.

    Examples
    --------
    Of four pairs one besides the last is kept, the one that the last query looks at:

    >>> import numpy as np
    >>> from refattn.models import SnapKVAttention
    >>> attend = SnapKVAttention(2, observed=1, pooled=1)
    >>> k = np.array([0.0, 9.0, 0.0, 0.0])[None, :, None]; v = np.arange(4.0)[None, :, None]
    >>> attend(0, np.ones((1, 4, 1)), k, v).shape
    (1, 4, 1)
    >>> attend.begin(4)
    >>> attend(0, *np.zeros((2, 1, 1, 1)), np.full((1, 1, 1), 8.0)).ravel()  # the mean of 1, 3 and 8
    array([4.])
    """

    def __init__(self, pairs: int, observed: int = 16, pooled: int = 7) -> None:
        super().__init__()
        self.pairs = as_count("pairs", pairs, least=1)
        self.observed = as_count("observed", observed, least=1, most=self.pairs, most_is="the pairs kept")
        self.pooled = as_count("pooled", pooled, least=1)
        if pooled % 2 == 0:
            raise ValueError(f"pooled: {pooled} came, an odd number was wanted")

    def _take(self, layer: int, q: FloatArray, k: FloatArray, v: FloatArray) -> FloatArray:
        if layer not in self._kept:
            out = dense_attention(q, k, v, mask="causal", check_finite=False)
            chosen = self._chosen(q, k)[..., None]
            self._kept[layer] = Pairs(np.take_along_axis(k, chosen, axis=1), np.take_along_axis(v, chosen, axis=1))
            return out
        pairs: Pairs = self._kept[layer]
        pairs.append(k, v)
        return dense_attention(q, *pairs.arrays(), mask=Causal("bottom-right"), check_finite=False)

    def _chosen(self, q: FloatArray, k: FloatArray) -> NDArray[np.int64]:
        """Return the positions that are kept, ascending, shape (n_kv_heads, at most `pairs`)."""
        kv_heads, n, d = k.shape
        older = n - self.observed
        if n <= self.pairs:
            return np.broadcast_to(np.arange(n), (kv_heads, n))
        observing = q[:, older:].reshape(kv_heads, -1, d)  # every head of the group, and its queries
        logits = (observing @ k.swapaxes(1, 2) / np.sqrt(d)).reshape(kv_heads, -1, self.observed, n)
        logits[..., np.arange(n) > np.arange(older, n)[:, None]] = -np.inf
        weights = np.exp(logits - logits.max(axis=-1, keepdims=True), dtype=np.float64)
        weights /= weights.sum(axis=-1, keepdims=True)
        votes = weights.sum(axis=(1, 2))[:, :older]
        scores = maximum_filter1d(votes, self.pooled, axis=-1, mode="constant", cval=0.0)
        best = np.argsort(-scores, axis=-1, kind="stable")[:, : self.pairs - self.observed]
        own = np.broadcast_to(np.arange(older, n), (kv_heads, self.observed))
        return np.concatenate([np.sort(best, axis=-1), own], axis=-1)
