"""SparseK attention in inference, with a scorer for every layer: which pairs it attends to is all that scores decide.

A query attends to the pairs SparseK selects and to a window (arXiv 2406.16747), all gates one (``hard=True`` in the
forward): at most ``n_select + window``, which may differ by layer.
"""

from __future__ import annotations

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
    It is the attention and the observer of a forward: ``model(tokens, attend, observe=attend.observe)``. The scores of
    a layer serve once: without `observe` the next forward is refused. Time O(n (n_select + window) d) a head; score t
    depends on tokens up to t only. Source: arXiv 2406.16747, SparseK attention with its scoring network.

    Examples
    --------
    >>> from refattn.models import Llama, load_scorer, smollm2_path
    >>> attend = SelectiveAttention(load_scorer("learned", 256))
    >>> Llama.from_gguf(smollm2_path()).perplexity(tokens, attend, observe=attend.observe)  # doctest: +SKIP
    """

    def __init__(self, scorer: Scorer) -> None:
        self.scorer = scorer
        self._seen: tuple[int, FloatArray] | None = None  # the layer observed last, and its scores, until they serve

    def begin(self, start: int) -> None:
        """Forget what is left of an earlier forward: the model calls it before the first layer.

        Parameters
        ----------
        start : int
            Position of the first token.
        """
        self._seen = None

    def observe(self, layer: int, a: FloatArray) -> None:
        """Score the pairs of a layer: the signature of an observer.

        Parameters
        ----------
        layer, a : int, ndarray of shape (n, width)
            Which layer, and its normalised input.
        """
        self._require_layer(layer)
        weight, slope = (array[layer].astype(a.dtype) for array in (self.scorer.weight, self.scorer.slope))
        self._seen = layer, sparsek_scores(a, weight, slope)

    def __call__(self, layer: int, q: FloatArray, k: FloatArray, v: FloatArray) -> FloatArray:
        """Attend to what the scores select: the signature of an attention."""
        scores = self._scores_of(layer, k)
        n_select, window = int(self.scorer.n_select[layer]), int(self.scorer.window[layer])
        return sparsek_attention(q, k, v, scores, n_select=n_select, window=window, gate="none", check_finite=False)

    def _scores_of(self, layer: int, k: FloatArray) -> FloatArray:
        """Return the scores of the layer's keys, observed since its attention was last asked for."""
        seen, self._seen = self._seen, None
        if seen is None or seen[0] != layer or seen[1].shape != k.shape[:-1]:
            came = "none" if seen is None else f"those of layer {seen[0]}, of shape {seen[1].shape},"
            raise ValueError(
                f"scores: {came} came, those of layer {layer}, of shape {k.shape[:-1]}, were wanted: is `observe` given"
                " to the model?"
            )
        return seen[1]

    def _require_layer(self, layer: int) -> None:
        if not 0 <= layer < len(self.scorer.weight):
            raise ValueError(f"layer: {layer} came, the scorer has {len(self.scorer.weight)} layers")


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

    >>> import numpy as np
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
        self._next: int | None = 0  # the layer that has to come next; None while one takes tokens in

    @property
    def position(self) -> int:
        """Tokens taken in so far, in every layer."""
        return min(cache.position for cache in self._caches)

    @property
    def nbytes(self) -> int:
        """Bytes the caches keep; the same at every position."""
        return sum(cache.nbytes for cache in self._caches)

    def begin(self, start: int) -> None:
        """Make sure that every layer has taken in the same tokens, all before `start`.

        Parameters
        ----------
        start : int
            Position of the first new token: `position`.

        Raises
        ------
        ValueError
            `start` is another position, or an earlier step ended before all layers had taken it in (an error, or
            Ctrl-C). What is kept is then of no use.
        """
        super().begin(start)
        self._require_next(0)
        if start != self.position:
            raise ValueError(f"start: {start} came, {self.position} was wanted: so many tokens were taken in")

    def observe(self, layer: int, a: FloatArray) -> None:
        """Score the new pairs of a layer: their positions go on from those in its cache.

        Parameters
        ----------
        layer, a : int, ndarray of shape (n, width)
            Which layer, and its normalised input.
        """
        super().observe(layer, a)
        assert self._seen is not None
        slope = self.scorer.slope[layer].astype(a.dtype)
        self._seen = layer, self._seen[1] + slope[:, None] * a.dtype.type(self._caches[layer].position)

    def __call__(self, layer: int, q: FloatArray, k: FloatArray, v: FloatArray) -> FloatArray:
        """Take in the new tokens and return their attention: the signature of an attention.

        Layers come in their order. A step that is refused in the first takes nothing in; one that ends later, whatever
        ended it, leaves layers at different tokens, and everything after it is refused.
        """
        self._require_next(layer)
        scores = self._scores_of(layer, k)
        self._next = None
        try:
            out = self._caches[layer].prefill(q, k, v, scores)
        except (TypeError, ValueError):  # its cache is as it was
            self._next = layer
            raise
        self._next = (layer + 1) % len(self._caches)
        return out

    def _require_next(self, layer: int) -> None:
        if layer != self._next:
            taken = ", ".join(str(cache.position) for cache in self._caches)
            wanted = "none" if self._next is None else f"layer {self._next}"
            raise ValueError(
                f"layer {layer} came, {wanted} was wanted: the layers have taken in {taken} tokens; a step ended among"
                " them, or the scorer is of a model with more layers: begin again with a new attention"
            )
