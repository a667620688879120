"""SparseK attention (arXiv 2406.16747): operator, prefixes, scoring network, causal attention, generation."""

import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

from refattn._moved import explains
from refattn.sparsek.attention import (
    SparseKAttentionGradients,
    SparseKForwardCache,
    sparsek_attention,
    sparsek_attention_backward,
    sparsek_attention_forward,
)
from refattn.sparsek.bisection import sparsek_by_bisection
from refattn.sparsek.cache import SparseKCache
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
    "SparseKCache",
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

if not TYPE_CHECKING:
    __getattr__ = explains(__name__)


class _Package(ModuleType):
    """The package, which has the name of the paper's operator: called as if it were one, it says where that is."""

    def __call__(self, *_: Any, **__: Any) -> Any:
        raise TypeError("refattn.sparsek is a package; the operator is refattn.sparsek_operator(z, k)")


sys.modules[__name__].__class__ = _Package
