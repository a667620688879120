"""The methods that are compared, as sections of a training's configuration: equal pairs a query (ours).

At n = 256 every sparse one has `PAIRS` pairs, one more or less; the linear ones keep as much of the past as each other.
Exact attention is what all are measured by.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

N = 256
"""Length of the texts, and"""
PAIRS = 32
"""the pairs that a query has at it."""

METHODS: Mapping[str, Mapping[str, Any]] = {
    "exact": {"kind": "exact"},
    "window": {"kind": "window", "window": 32},
    "window with sinks": {"kind": "window", "window": 28, "sinks": 4},
    "strided": {"kind": "strided", "stride": 20},
    "fixed": {"kind": "fixed", "block": 16, "summaries": 1},
    "random blocks": {"kind": "random-blocks", "block": 4, "n_window": 4, "n_random": 3, "n_global": 1},
    "hashing": {"kind": "hashing", "n_buckets": 8, "chunk": 16},
    "routing": {"kind": "routing", "n_clusters": 8, "members": 32},
    "linear": {"kind": "linear", "features": "elu"},
    "random features": {"kind": "linear", "features": "random"},
    "sparsek": {"kind": "sparsek", "n_select": 32, "window": 0},
    "sparsek with a window": {"kind": "sparsek", "n_select": 16, "window": 16},
    "sparsek straight through": {"kind": "sparsek", "n_select": 16, "window": 16, "hard": True},
}
"""By name. Buckets and clusters: so many that a group has about as many members as a list may hold."""
