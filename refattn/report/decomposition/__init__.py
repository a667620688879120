"""Somebody's own queries and keys, or logits: what conv structure they have (ours)."""

from refattn.report.decomposition.measure import SCHEMA, HeadReport, measure_head
from refattn.report.decomposition.reading import Head, read_heads

__all__ = ["SCHEMA", "Head", "HeadReport", "measure_head", "read_heads"]
