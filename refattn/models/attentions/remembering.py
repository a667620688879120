"""What attentions that keep pairs of earlier tokens have in common: a text comes in chunks, layer by layer (ours).

A text begins at position 0, and whatever was kept of another one is forgotten then. Every further chunk begins where
the one before it ended, in every layer: what a layer kept is of no use beside one that has taken in other tokens.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

from refattn._validation import FloatArray, as_count, as_float_arrays


class RememberingLayers(ABC):
    """An attention and observer that keeps, by layer, what later tokens of the text may still attend to."""

    def __init__(self) -> None:
        self._start = 0
        self._taken: dict[int, int] = {}  # tokens taken in, by layer; none while a layer takes some in
        self._kinds: dict[int, tuple[object, ...]] = {}  # of arrays: heads, widths, dtype
        self._kept: dict[int, Any] = {}

    @property
    def position(self) -> int:
        """Tokens of the text taken in so far, in every layer that has seen any."""
        return min(self._taken.values(), default=0)

    def begin(self, start: int) -> None:
        """Begin a text at 0, forgetting the one before, or make sure that its next chunk begins where the last ended.

        Parameters
        ----------
        start : int
            Position of the first new token: 0 or `position`.

        Raises
        ------
        ValueError
            It is another position, or an earlier chunk ended before all layers had taken it in (an error, or Ctrl-C).
        """
        start = as_count("start", start, least=0)
        taken = set(self._taken.values())
        if start and taken != {start}:
            came = ", ".join(str(count) for count in sorted(taken)) or "0"
            raise ValueError(f"start: {start} came, 0 or the tokens that all layers have taken in was wanted ({came})")
        if not start:
            for by_layer in (self._taken, self._kinds, self._kept):
                by_layer.clear()
        self._start = start

    def observe(self, layer: int, a: FloatArray) -> None:  # noqa: B027
        """Look at nothing: queries and keys alone decide. `refattn.models.generate` asks for an observer.

        Parameters
        ----------
        layer, a : int, ndarray of shape (n, width)
            Which layer, and its normalised input.
        """

    def __call__(self, layer: int, q: FloatArray, k: FloatArray, v: FloatArray) -> FloatArray:
        """Take in the layer's new pairs and return the attention of their queries: the signature of an attention."""
        q, k, v = as_float_arrays(check_finite=False, q=q, k=k, v=v)
        if (
            not q.ndim == k.ndim == v.ndim == 3
            or q.shape[1:] != k.shape[1:]
            or k.shape[:2] != v.shape[:2]
            or q.shape[0] % max(k.shape[0], 1)
        ):
            raise ValueError(
                f"q, k, v: shapes {q.shape}, {k.shape}, {v.shape} came, (n_heads, n, d), (n_kv_heads, n, d) and"
                " (n_kv_heads, n, d_v), n_heads a multiple of n_kv_heads, were wanted"
            )
        taken = self._taken.get(layer, 0)
        if taken != self._start:
            raise ValueError(
                f"layer {layer}: tokens from position {self._start} on came, from {taken} on were wanted; begin the"
                " text again"
            )
        kind = len(q), len(k), k.shape[2], v.shape[2], q.dtype
        if not taken:  # what a first chunk that was refused has left
            self._kept.pop(layer, None)
            self._kinds[layer] = kind
        if self._kinds[layer] != kind:
            raise ValueError(
                f"q, k, v: (n_heads, n_kv_heads, d, d_v, dtype) {kind} came, those of before, {self._kinds[layer]},"
                " were wanted"
            )
        self._taken.pop(layer, None)
        out = self._take(layer, q, k, v)
        self._taken[layer] = taken + q.shape[-2]
        return out

    @abstractmethod
    def _take(self, layer: int, q: FloatArray, k: FloatArray, v: FloatArray) -> FloatArray:
        """Attend to what is kept of the layer and to what is new; nothing is kept of it where a text begins."""
