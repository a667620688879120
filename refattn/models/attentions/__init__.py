"""Attentions for a decoder: forward and backward, and what some of them are in inference.

Exact, a sliding window with sinks, SparseK with its scorer, conv, low rank and linear; strided, fixed, random blocks,
hashing and routing, to be compared with. Each is one object for training and for inference,
`refattn.models.attentions.protocol`.
"""

from refattn.models.attentions.conv import ConvAttention
from refattn.models.attentions.exact import ExactAttention
from refattn.models.attentions.grouped import HashingAttention, RoutingAttention
from refattn.models.attentions.linear import LinearAttention
from refattn.models.attentions.listed import FixedAttention, RandomBlockAttention, StridedAttention
from refattn.models.attentions.lowrank import LowRankAttention
from refattn.models.attentions.protocol import DifferentiableAttention, LayerGradients
from refattn.models.attentions.selective import GeneratingAttention, SelectiveAttention
from refattn.models.attentions.sparsek import SparseKAttention
from refattn.models.attentions.window import WindowAttention, sliding_window

__all__ = [
    "ConvAttention",
    "DifferentiableAttention",
    "ExactAttention",
    "FixedAttention",
    "GeneratingAttention",
    "HashingAttention",
    "LayerGradients",
    "LinearAttention",
    "LowRankAttention",
    "RandomBlockAttention",
    "RoutingAttention",
    "SelectiveAttention",
    "SparseKAttention",
    "StridedAttention",
    "WindowAttention",
    "sliding_window",
]
