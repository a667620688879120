"""SparseK attention in inference, with a scorer for every layer: which pairs it attends to is all that scores decide.

A query attends to the pairs SparseK selects and to a window (arXiv 2406.16747), all gates one (``hard=True`` in the
forward): at most ``n_select + window``, which may differ by layer.
"""

from __future__ import annotations

import numpy as np

from refattn._validation import FloatArray
from refattn.models.scorer import Scorer
from refattn.sparsek import SparseKCache, sparsek_attention, sparsek_scores


class SelectiveAttention:
    """SparseK selection and a window in every layer, scored from the layer's normalised input.

    Parameters
    ----------
    scorer : Scorer
        Of the model's layers and key-value heads.

    Notes
    -----
    It is the attention and the observer of one forward: ``model(tokens, attend, observe=attend.observe)``. Time O(n
    (n_select + window) d) a head; score t depends on tokens up to t only. Source: arXiv 2406.16747, SparseK attention
    with its scoring network.

    Examples
    --------
    >>> from refattn.models import Llama, load_scorer, smollm2_path
    >>> attend = SelectiveAttention(load_scorer("learned", 256))
    >>> Llama.from_gguf(smollm2_path()).perplexity(tokens, attend, observe=attend.observe)  # doctest: +SKIP
    """

    def __init__(self, scorer: Scorer) -> None:
        self.scorer = scorer
        self._scores: FloatArray = np.empty(0)

    def observe(self, layer: int, a: FloatArray) -> None:
        """Score the pairs of a layer: the signature of an observer.

        Parameters
        ----------
        layer, a : int, ndarray of shape (n, width)
            Which layer, and its normalised input.
        """
        weight, slope = (array[layer].astype(a.dtype) for array in (self.scorer.weight, self.scorer.slope))
        self._scores = sparsek_scores(a, weight, slope)

    def __call__(self, layer: int, q: FloatArray, k: FloatArray, v: FloatArray) -> FloatArray:
        """Attend to what the scores select: the signature of an attention."""
        if self._scores.shape != k.shape[:-1]:
            raise ValueError(
                f"scores: shape {self._scores.shape} came, {k.shape[:-1]} was wanted: is `observe` given to the model?"
            )
        n_select, window = int(self.scorer.n_select[layer]), int(self.scorer.window[layer])
        return sparsek_attention(
            q, k, v, self._scores, n_select=n_select, window=window, gate="none", check_finite=False
        )


class GeneratingAttention(SelectiveAttention):
    """The same one chunk of tokens at a time, from a cache of n_select + window pairs a layer and head.

    Parameters
    ----------
    scorer : Scorer
        Of the model's layers and key-value heads.

    Notes
    -----
    A step takes O((n_select + window) d) a head, whatever the position. Source: arXiv 2406.16747, its generation.

    Examples
    --------
    `refattn.models.generate` uses it:

    >>> from refattn.models import Llama, LlamaConfig, generate
    >>> config = LlamaConfig(n_layers=1, width=4, ffn_width=8, vocab_size=9, n_heads=2, n_kv_heads=1, head_width=2,
    ...                      context_length=64, rope_base=1e4, norm_eps=1e-5)
    >>> rng = np.random.default_rng(0)
    >>> model = Llama(config, {name: rng.standard_normal(shape) for name, shape in config.tensor_shapes().items()})
    >>> four = np.full(1, 4)
    >>> scorer = Scorer(np.ones((1, 1, 4), np.float32), np.zeros((1, 1), np.float32), four, four)
    >>> attend = GeneratingAttention(scorer)
    >>> len(generate(model, [1, 2, 3], 20, attend)), attend.position
    (20, 22)
    """

    def __init__(self, scorer: Scorer) -> None:
        super().__init__(scorer)
        self._caches = [
            SparseKCache(int(n_select), int(window), gate="none")
            for n_select, window in zip(scorer.n_select, scorer.window, strict=True)
        ]

    @property
    def position(self) -> int:
        """Tokens taken in so far, in every layer."""
        return min(cache.position for cache in self._caches)

    @property
    def nbytes(self) -> int:
        """Bytes the caches keep; the same at every position."""
        return sum(cache.nbytes for cache in self._caches)

    def observe(self, layer: int, a: FloatArray) -> None:
        """Score the new pairs of a layer: their positions go on from those in its cache.

        Parameters
        ----------
        layer, a : int, ndarray of shape (n, width)
            Which layer, and its normalised input.
        """
        super().observe(layer, a)
        slope = self.scorer.slope[layer].astype(a.dtype)
        self._scores = self._scores + slope[:, None] * a.dtype.type(self._caches[layer].position)

    def __call__(self, layer: int, q: FloatArray, k: FloatArray, v: FloatArray) -> FloatArray:
        """Take in the new tokens and return their attention: the signature of an attention."""
        return self._caches[layer].prefill(q, k, v, self._scores)
