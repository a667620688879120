"""A sliding window, with the first pairs of the text kept if wanted (Xiao et al. 2023, arXiv 2309.17453).

As SparseK attention (`refattn.sparsek`) it is the score ``−position``, whose best are always the first, and gates of
one: so it takes linear time, and no n × n array is made.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from refattn._validation import FloatArray, as_count
from refattn.models.attentions.protocol import DifferentiableAttention, LayerGradients
from refattn.sparsek import SparseKForwardCache, sparsek_attention_backward, sparsek_attention_forward


class WindowAttention(DifferentiableAttention):
    """Attention to the newest `window` pairs and the first `sinks` of the text, the same in every layer.

    Parameters
    ----------
    window : int
        Pairs in the window, the query's own included; at least 1.
    sinks : int, optional
        First pairs, kept for ever; at least 0.

    Raises
    ------
    TypeError, ValueError
        `window` or `sinks` is not such a count.

    Notes
    -----
    Time O(n (window + sinks) d) a head, memory O(n d). Source: arXiv 2309.17453 (attention sinks).

    Examples
    --------
    >>> import numpy as np
    >>> from refattn.models import WindowAttention
    >>> q = k = np.zeros((1, 5, 1)); v = np.arange(5.0)[None, :, None]
    >>> WindowAttention(2)(0, q, k, v).ravel()
    array([0. , 0.5, 1.5, 2.5, 3.5])
    >>> WindowAttention(2, sinks=1)(0, q, k, v).ravel().round(2)
    array([0.  , 0.5 , 1.  , 1.67, 2.33])
    """

    def __init__(self, window: int, sinks: int = 0) -> None:
        self.window = as_count("window", window, least=1)
        self.sinks = as_count("sinks", sinks, least=0)

    def forward(
        self,
        layer: int,
        q: FloatArray,
        k: FloatArray,
        v: FloatArray,
        a: FloatArray | None = None,
        parameters: Mapping[str, FloatArray] | None = None,
    ) -> tuple[FloatArray, SparseKForwardCache]:
        """Attend to the window and the sinks.

        Parameters
        ----------
        layer, q, k, v, a, parameters : int, ndarray of the model's dtype, mapping
            As for `refattn.models.DifferentiableAttention.forward`; the last two are not looked at.
        """
        scores = -np.arange(q.shape[-2], dtype=q.dtype)
        return sparsek_attention_forward(
            q, k, v, scores, n_select=self.sinks, window=self.window, gate="none", check_finite=False
        )

    def backward(self, dout: FloatArray, cache: SparseKForwardCache) -> LayerGradients:
        """Pull the gradient of the output back to q, k and v.

        Parameters
        ----------
        dout, cache : ndarray, SparseKForwardCache
            As for `refattn.models.DifferentiableAttention.backward`.
        """
        dq, dk, dv, _ = sparsek_attention_backward(dout, cache)
        return LayerGradients(dq, dk, dv)

    def pairs_per_query(self, n: int) -> int:
        """Return the window's pairs and the sinks.

        Parameters
        ----------
        n : int
            As for `refattn.models.DifferentiableAttention.pairs_per_query`.
        """
        return min(n, self.window + self.sinks)


def sliding_window(window: int, sinks: int = 0) -> WindowAttention:
    """Return an attention to the newest `window` pairs and the first `sinks` of the text.

    Parameters
    ----------
    window, sinks : int
        As for `WindowAttention`.

    Returns
    -------
    WindowAttention
        Callable as ``attention(layer, q, k, v) -> out``.

    Raises
    ------
    TypeError, ValueError
        As `WindowAttention`.

    Notes
    -----
    Time O(n (window + sinks) d) a head. Source: arXiv 2309.17453 (attention sinks).

    Examples
    --------
    >>> q = k = np.zeros((1, 5, 1)); v = np.arange(5.0)[None, :, None]
    >>> sliding_window(2)(0, q, k, v).ravel()
    array([0. , 0.5, 1.5, 2.5, 3.5])
    """
    return WindowAttention(window, sinks)
