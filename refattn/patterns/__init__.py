"""Attention to given pairs: every query has a list of positions, from a pattern of an earlier paper or from anywhere.

`indexed_attention` attends to what the lists say, in time that grows with their length; the functions beside it make
the lists of sparse attentions before SparseK: strided and fixed, random blocks, hashing, routing.
"""

from refattn.patterns.attention import (
    IndexedForwardCache,
    indexed_attention,
    indexed_attention_backward,
    indexed_attention_forward,
)
from refattn.patterns.hashing import hashed_indices
from refattn.patterns.random_blocks import random_block_indices
from refattn.patterns.routing import routed_indices
from refattn.patterns.strided import fixed_indices, strided_indices

__all__ = [
    "IndexedForwardCache",
    "fixed_indices",
    "hashed_indices",
    "indexed_attention",
    "indexed_attention_backward",
    "indexed_attention_forward",
    "random_block_indices",
    "routed_indices",
    "strided_indices",
]
