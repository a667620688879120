"""Exact softmax attention, forward and backward: in blocks, and from its definition."""

from typing import TYPE_CHECKING

from refattn._moved import explains
from refattn.dense.attention import (
    AttentionGradients,
    DenseForwardCache,
    dense_attention,
    dense_attention_backward,
    dense_attention_forward,
)
from refattn.dense.pages import gather_pages

__all__ = [
    "AttentionGradients",
    "DenseForwardCache",
    "dense_attention",
    "dense_attention_backward",
    "dense_attention_forward",
    "gather_pages",
]

if not TYPE_CHECKING:
    __getattr__ = explains(__name__)

if not TYPE_CHECKING:
    __getattr__ = explains(__name__)
