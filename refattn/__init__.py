"""Verified reference implementations of near-linear attention: Conv-Basis and SparseK."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from refattn._compiled_cache import CompiledCacheWarning
from refattn._moved import explains
from refattn._validation import PromotionWarning
from refattn._version import __version__
from refattn.convbasis import (
    ConvBasis,
    ConvGradients,
    conv_attention,
    conv_attention_backward,
    conv_attention_forward,
    decompose,
    recover,
    recover_to_tolerance,
)
from refattn.dense import (
    AttentionGradients,
    dense_attention,
    dense_attention_backward,
    dense_attention_forward,
)
from refattn.lowrank import lowrank_attention, lowrank_attention_backward, lowrank_attention_forward
from refattn.masks import Causal, SlidingWindow
from refattn.sparsek import (
    SparseKAttentionGradients,
    SparseKCache,
    prefix_thresholds,
    sparsek_attention,
    sparsek_attention_backward,
    sparsek_attention_forward,
    sparsek_jvp,
    sparsek_operator,
    sparsek_threshold,
    sparsek_vjp,
)
from refattn.versions import show_versions

__all__ = [
    "AttentionGradients",
    "Causal",
    "CompiledCacheWarning",
    "ConvBasis",
    "ConvGradients",
    "PromotionWarning",
    "SlidingWindow",
    "SparseKAttentionGradients",
    "SparseKCache",
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
    "prefix_thresholds",
    "recover",
    "recover_to_tolerance",
    "show_versions",
    "sparsek_attention",
    "sparsek_attention_backward",
    "sparsek_attention_forward",
    "sparsek_jvp",
    "sparsek_operator",
    "sparsek_threshold",
    "sparsek_vjp",
]

if not TYPE_CHECKING:  # a type checker wants the import written out, and is right about misspelt names

    def __getattr__(name: str) -> Any:
        """Import a package when it is first asked for, so that ``refattn.testing`` works after ``import refattn``."""
        if name in ("decomposition", "experiments", "models", "patterns", "report", "testing", "training", "tuning"):
            return import_module(f"refattn.{name}")
        return explains(__name__)(name)
