"""Somebody's own queries and keys, or logits: what conv structure they have (ours)."""

from refattn.decomposition.measure import SCHEMA, HeadReport, measure_head
from refattn.decomposition.reading import Head, read_heads

__all__ = ["SCHEMA", "Head", "HeadReport", "measure_head", "read_heads"]
