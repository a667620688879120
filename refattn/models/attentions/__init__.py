"""Attentions for a decoder: forward and backward, and what some of them are in inference.

Exact, a sliding window with sinks, SparseK with its scorer, conv and low rank. Each is one object for training and for
inference, `refattn.models.attentions.protocol`.
"""

from refattn.models.attentions.conv import ConvAttention
from refattn.models.attentions.exact import ExactAttention
from refattn.models.attentions.lowrank import LowRankAttention
from refattn.models.attentions.protocol import DifferentiableAttention, LayerGradients
from refattn.models.attentions.selective import GeneratingAttention, SelectiveAttention
from refattn.models.attentions.sparsek import SparseKAttention
from refattn.models.attentions.window import WindowAttention, sliding_window

__all__ = [
    "ConvAttention",
    "DifferentiableAttention",
    "ExactAttention",
    "GeneratingAttention",
    "LayerGradients",
    "LowRankAttention",
    "SelectiveAttention",
    "SparseKAttention",
    "WindowAttention",
    "sliding_window",
]
