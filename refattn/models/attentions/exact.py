"""Causal softmax attention."""

from __future__ import annotations

from collections.abc import Mapping

from refattn._validation import FloatArray
from refattn.dense import DenseForwardCache, dense_attention_backward, dense_attention_forward
from refattn.models.attentions.protocol import DifferentiableAttention, LayerGradients


class ExactAttention(DifferentiableAttention):
    """Causal softmax attention, the same in every layer; it has no parameters."""

    def forward(
        self,
        layer: int,
        q: FloatArray,
        k: FloatArray,
        v: FloatArray,
        a: FloatArray | None = None,
        parameters: Mapping[str, FloatArray] | None = None,
    ) -> tuple[FloatArray, DenseForwardCache]:
        """Attend to every earlier pair."""
        return dense_attention_forward(q, k, v, mask="causal", check_finite=False)

    def backward(self, dout: FloatArray, cache: DenseForwardCache) -> LayerGradients:
        """Pull the gradient of the output back to q, k and v."""
        return LayerGradients(*dense_attention_backward(dout, cache))
