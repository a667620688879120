"""Attentions for a decoder: exact, a sliding window, SparseK with its scorer; forward and backward."""

from refattn.models.attentions.exact import ExactAttention
from refattn.models.attentions.protocol import DifferentiableAttention, LayerGradients
from refattn.models.attentions.selective import GeneratingAttention, SelectiveAttention, sliding_window

__all__ = [
    "DifferentiableAttention",
    "ExactAttention",
    "GeneratingAttention",
    "LayerGradients",
    "SelectiveAttention",
    "sliding_window",
]
