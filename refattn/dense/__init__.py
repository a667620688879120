"""Exact softmax attention, forward and backward: in blocks, and from its definition."""

from refattn.dense.attention import (
    AttentionGradients,
    DenseForwardCache,
    dense_attention,
    dense_attention_backward,
    dense_attention_forward,
)

__all__ = [
    "AttentionGradients",
    "DenseForwardCache",
    "dense_attention",
    "dense_attention_backward",
    "dense_attention_forward",
]
