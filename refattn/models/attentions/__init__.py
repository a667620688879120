"""Attentions for a decoder: forward and backward, and what some of them are in inference.

Exact, a sliding window with sinks, SparseK with its scorer, conv, low rank and linear; strided, fixed, random blocks,
hashing and routing, to be compared with. Each is one object for training and for inference,
`refattn.models.attentions.protocol`. In inference only: exact with all
keys and values kept; heavy hitters and selection at the end of a prompt, which drop pairs without having learned which;
and the pairs with a query's largest logits, the limit of all selections.
"""

from refattn.models.attentions.conv import ConvAttention
from refattn.models.attentions.exact import ExactAttention
from refattn.models.attentions.grouped import HashingAttention, RoutingAttention
from refattn.models.attentions.heavy_hitters import HeavyHitterAttention
from refattn.models.attentions.kv_cache import KVCacheAttention
from refattn.models.attentions.largest_logits import TopKAttention
from refattn.models.attentions.linear import LinearAttention
from refattn.models.attentions.listed import FixedAttention, RandomBlockAttention, StridedAttention
from refattn.models.attentions.lowrank import LowRankAttention
from refattn.models.attentions.prompt_selection import SnapKVAttention
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
    "HeavyHitterAttention",
    "KVCacheAttention",
    "LayerGradients",
    "LinearAttention",
    "LowRankAttention",
    "RandomBlockAttention",
    "RoutingAttention",
    "SelectiveAttention",
    "SnapKVAttention",
    "SparseKAttention",
    "StridedAttention",
    "TopKAttention",
    "WindowAttention",
    "sliding_window",
]
