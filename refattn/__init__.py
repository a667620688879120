"""Verified reference implementations of near-linear attention: Conv-Basis and SparseK."""

from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING

from refattn._compiled_cache import CompiledCacheWarning
from refattn._validation import PromotionWarning
from refattn._version import __version__
from refattn.convbasis import (
    ConvBasis,
    ConvCache,
    ConvGradients,
    ToleranceRecovery,
    conv_attention,
    conv_attention_backward,
    conv_attention_forward,
    decompose,
    recover,
    recover_to_tolerance,
)
from refattn.dense import (
    AttentionGradients,
    DenseForwardCache,
    dense_attention,
    dense_attention_backward,
    dense_attention_forward,
)
from refattn.lowrank import (
    ContinuousRowsMask,
    DistinctColumnsMask,
    DistinctRowsMask,
    PolynomialFeatures,
    RandomFeatures,
    RowChangeMask,
    lowrank_attention,
    lowrank_attention_backward,
    lowrank_attention_forward,
    masked_product,
    masked_product_backward,
    masked_product_forward,
)
from refattn.masks import Causal, SlidingWindow
from refattn.sparsek import (
    SparseKAttentionGradients,
    SparseKDecodingCache,
    SparseKForwardCache,
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
    "CompiledCacheWarning",
    "ContinuousRowsMask",
    "ConvBasis",
    "ConvCache",
    "ConvGradients",
    "DenseForwardCache",
    "DistinctColumnsMask",
    "DistinctRowsMask",
    "PolynomialFeatures",
    "PromotionWarning",
    "RandomFeatures",
    "RowChangeMask",
    "SlidingWindow",
    "SparseKAttentionGradients",
    "SparseKDecodingCache",
    "SparseKForwardCache",
    "ToleranceRecovery",
    "__version__",
    "conv_attention",
    "conv_attention_backward",
    "conv_attention_forward",
    "decompose",
    "dense_attention",
    "dense_attention_backward",
    "dense_attention_forward",
    "lowrank_attention",
    "lowrank_attention_backward",
    "lowrank_attention_forward",
    "masked_product",
    "masked_product_backward",
    "masked_product_forward",
    "prefix_thresholds",
    "recover",
    "recover_to_tolerance",
    "show_versions",
    "sparsek_attention",
    "sparsek_attention_backward",
    "sparsek_attention_forward",
    "sparsek_jvp",
    "sparsek_threshold",
    "sparsek_vjp",
]

if not TYPE_CHECKING:  # a type checker wants the import written out, and is right about misspelt names

    def __getattr__(name: str) -> ModuleType:
        """Import a package when it is first asked for, so that ``refattn.testing`` works after ``import refattn``."""
        if name in ("experiments", "models", "report", "testing"):
            return import_module(f"refattn.{name}")
        raise AttributeError(f"module 'refattn' has no attribute {name!r}")
