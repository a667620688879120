"""Causal softmax attention in every layer."""

from __future__ import annotations

from collections.abc import Mapping

from refattn._validation import FloatArray
from refattn.dense import DenseForwardCache, dense_attention_backward, dense_attention_forward
from refattn.models.attentions.protocol import DifferentiableAttention, LayerGradients


class ExactAttention(DifferentiableAttention):
    """Causal softmax attention, the same in every layer; it has no parameters.

    Notes
    -----
    Time O(n² d) a head, memory O(n d): `refattn.dense_attention`. Source: the definition.

    Examples
    --------
    >>> import numpy as np
    >>> from refattn.models import ExactAttention
    >>> q = k = np.zeros((1, 3, 1)); v = np.arange(3.0)[None, :, None]
    >>> ExactAttention()(0, q, k, v).ravel()
    array([0. , 0.5, 1. ])
    """

    def forward(
        self,
        layer: int,
        q: FloatArray,
        k: FloatArray,
        v: FloatArray,
        a: FloatArray | None = None,
        parameters: Mapping[str, FloatArray] | None = None,
    ) -> tuple[FloatArray, DenseForwardCache]:
        """Attend to every pair up to the query's own.

        Parameters
        ----------
        layer, q, k, v, a, parameters : int, ndarray of the model's dtype, mapping
            As for `refattn.models.DifferentiableAttention.forward`; the last two are not looked at.
        """
        return dense_attention_forward(q, k, v, mask="causal", check_finite=False)

    def backward(self, dout: FloatArray, cache: DenseForwardCache) -> LayerGradients:
        """Pull the gradient of the output back to q, k and v.

        Parameters
        ----------
        dout, cache : ndarray, DenseForwardCache
            As for `refattn.models.DifferentiableAttention.backward`.
        """
        return LayerGradients(*dense_attention_backward(dout, cache))

    def pairs_per_query(self, n: int) -> int:
        """Return the pairs of the last query: all of them.

        Parameters
        ----------
        n : int
            As for `refattn.models.DifferentiableAttention.pairs_per_query`.
        """
        return n


def exact_attention(layer: int, q: FloatArray, k: FloatArray, v: FloatArray) -> FloatArray:
    """Causal softmax attention, the same in every layer: what a `Llama` computes unless told otherwise.

    Parameters
    ----------
    layer : int
        Which layer; it makes no difference.
    q, k, v : ndarray, shapes (n_heads, n, d), (n_kv_heads, n, d), (n_kv_heads, n, d)
        Queries, keys and values, in the model's dtype.

    Returns
    -------
    ndarray, shape (n_heads, n, d)
        The output.

    Raises
    ------
    ValueError
        Shapes do not fit, or a logit overflows.

    Notes
    -----
    Time O(n² d) a head; `refattn.dense_attention`. Source: the definition.

    Examples
    --------
    >>> import numpy as np
    >>> from refattn.models import exact_attention
    >>> ones = np.ones((2, 3, 4))
    >>> exact_attention(0, ones, ones, ones).shape
    (2, 3, 4)
    """
    return ExactAttention()(layer, q, k, v)
