"""Verified reference implementations of near-linear attention: Conv-Basis and SparseK."""

from refattn._validation import PromotionWarning
from refattn._version import __version__
from refattn.convbasis import (
    ConvBasis,
    ConvCache,
    ConvGradients,
    conv_attention,
    conv_attention_backward,
    conv_attention_forward,
    decompose,
    recover,
)
from refattn.dense import (
    AttentionGradients,
    DenseCache,
    dense_attention,
    dense_attention_backward,
    dense_attention_forward,
)
from refattn.masks import Causal, SlidingWindow
from refattn.sparsek import (
    SparseKAttentionCache,
    SparseKAttentionGradients,
    prefix_thresholds,
    sparsek_attention,
    sparsek_attention_backward,
    sparsek_attention_forward,
    sparsek_jvp,
    sparsek_threshold,
    sparsek_vjp,
)
from refattn.versions import show_versions

__all__ = [
    "AttentionGradients",
    "Causal",
    "ConvBasis",
    "ConvCache",
    "ConvGradients",
    "DenseCache",
    "PromotionWarning",
    "SlidingWindow",
    "SparseKAttentionCache",
    "SparseKAttentionGradients",
    "__version__",
    "conv_attention",
    "conv_attention_backward",
    "conv_attention_forward",
    "decompose",
    "dense_attention",
    "dense_attention_backward",
    "dense_attention_forward",
    "prefix_thresholds",
    "recover",
    "show_versions",
    "sparsek_attention",
    "sparsek_attention_backward",
    "sparsek_attention_forward",
    "sparsek_jvp",
    "sparsek_threshold",
    "sparsek_vjp",
]
