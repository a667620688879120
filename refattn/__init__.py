"""Verified reference implementations of near-linear attention: Conv-Basis and SparseK."""

from refattn._validation import PromotionWarning
from refattn._version import __version__
from refattn.dense import (
    AttentionGradients,
    DenseCache,
    dense_attention,
    dense_attention_backward,
    dense_attention_forward,
)
from refattn.masks import Causal, SlidingWindow

__all__ = [
    "AttentionGradients",
    "Causal",
    "DenseCache",
    "PromotionWarning",
    "SlidingWindow",
    "__version__",
    "dense_attention",
    "dense_attention_backward",
    "dense_attention_forward",
]
