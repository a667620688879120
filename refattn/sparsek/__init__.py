"""SparseK attention (arXiv 2406.16747): operator, prefixes, scoring network, causal attention, generation."""

from refattn.sparsek.attention import (
    SparseKAttentionGradients,
    SparseKForwardCache,
    sparsek_attention,
    sparsek_attention_backward,
    sparsek_attention_forward,
)
from refattn.sparsek.bisection import sparsek_by_bisection
from refattn.sparsek.cache import SparseKDecodingCache
from refattn.sparsek.operator import (
    SparseKGradients,
    sparsek_jacobian,
    sparsek_jvp,
    sparsek_operator,
    sparsek_threshold,
    sparsek_vjp,
)
from refattn.sparsek.prefix import (
    SelectionIntervals,
    SupportIntervals,
    prefix_pullback,
    prefix_thresholds,
    selection_intervals,
    support_intervals,
)
from refattn.sparsek.scoring import (
    ScoringForwardCache,
    ScoringGradients,
    sparsek_scores,
    sparsek_scores_backward,
    sparsek_scores_forward,
)

__all__ = [
    "ScoringForwardCache",
    "ScoringGradients",
    "SelectionIntervals",
    "SparseKAttentionGradients",
    "SparseKDecodingCache",
    "SparseKForwardCache",
    "SparseKGradients",
    "SupportIntervals",
    "prefix_pullback",
    "prefix_thresholds",
    "selection_intervals",
    "sparsek_attention",
    "sparsek_attention_backward",
    "sparsek_attention_forward",
    "sparsek_by_bisection",
    "sparsek_jacobian",
    "sparsek_jvp",
    "sparsek_operator",
    "sparsek_scores",
    "sparsek_scores_backward",
    "sparsek_scores_forward",
    "sparsek_threshold",
    "sparsek_vjp",
    "support_intervals",
]
