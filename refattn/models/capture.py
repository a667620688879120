"""What a model's attention is given, recorded layer by layer (ours)."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field

from refattn._validation import FloatArray
from refattn.models._blocks import Attention, begin
from refattn.models.attentions.exact import exact_attention


@dataclass
class Capture:
    """An attention that records what it is given and hands it on.

    Parameters
    ----------
    attention : callable, optional
        Computes the output; `exact_attention` by default.
    layers : collection of int, optional
        Layers to record; all by default.

    Attributes
    ----------
    q, k, v : dict from int to ndarray, shapes (n_heads, n, d) and twice (n_kv_heads, n, d)
        By layer: queries, keys and values, in the model's dtype.
    inputs : dict from int to ndarray, shape (n, width)
        By layer: the normalised inputs, recorded if `observe` is given to the model as its observer.

    Notes
    -----
    Memory O(layers · n width): what is recorded are copies, of the last forward alone. Source: ours.

    Examples
    --------
    >>> import numpy as np
    >>> capture = Capture(lambda layer, q, k, v: q, layers=[7])
    >>> out = capture(7, np.ones((2, 3, 4)), np.zeros((1, 3, 4)), np.zeros((1, 3, 4)))
    >>> capture.q[7].shape, capture.k[7].shape
    ((2, 3, 4), (1, 3, 4))
    """

    attention: Attention = exact_attention
    layers: Collection[int] | None = None
    q: dict[int, FloatArray] = field(default_factory=dict, init=False)
    k: dict[int, FloatArray] = field(default_factory=dict, init=False)
    v: dict[int, FloatArray] = field(default_factory=dict, init=False)
    inputs: dict[int, FloatArray] = field(default_factory=dict, init=False)

    def begin(self, start: int) -> None:
        """Forget what was recorded of an earlier forward: the model calls it before the first layer.

        Parameters
        ----------
        start : int
            Position of the first token.
        """
        for recorded in (self.q, self.k, self.v, self.inputs):
            recorded.clear()
        begin(self.attention, start)

    def __call__(self, layer: int, q: FloatArray, k: FloatArray, v: FloatArray) -> FloatArray:
        """Record and compute: the signature of an attention."""
        if self.layers is None or layer in self.layers:
            self.q[layer], self.k[layer], self.v[layer] = q.copy(), k.copy(), v.copy()
        return self.attention(layer, q, k, v)

    def observe(self, layer: int, a: FloatArray) -> None:
        """Record a layer's normalised input: the signature of an observer.

        Parameters
        ----------
        layer, a : int, ndarray of shape (n, width)
            Which layer, and its normalised input.
        """
        if self.layers is None or layer in self.layers:
            self.inputs[layer] = a.copy()
