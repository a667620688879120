"""The methods that are compared, as sections of a training's configuration: equal pairs a query (ours).

At the trained length every sparse one has so many `PAIRS`, one more or less; the linear ones keep as much of the past
as each other. Exact attention is what all are measured by.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

LENGTHS = {"recall": 256, "text": 1024}
"""Of the texts of each task, and"""
PAIRS = {"recall": 32, "text": 64}
"""the pairs that a query has at that length."""

EARLIER = ("window", "window with sinks", "strided", "fixed", "random blocks", "hashing", "routing")
"""Sparse attention before SparseK."""

METHODS: Mapping[str, Mapping[str, Mapping[str, Any]]] = {
    "recall": {
        "exact": {"kind": "exact"},
        "window": {"kind": "window", "window": 32},
        "window with sinks": {"kind": "window", "window": 28, "sinks": 4},
        "strided": {"kind": "strided", "stride": 20},
        "fixed": {"kind": "fixed", "block": 16, "summaries": 1},
        "random blocks": {"kind": "random-blocks", "block": 4, "n_window": 4, "n_random": 3, "n_global": 1},
        "hashing": {"kind": "hashing", "chunk": 16},
        "routing": {"kind": "routing", "members": 32},
        "linear": {"kind": "linear", "features": "elu"},
        "random features": {"kind": "linear", "features": "random"},
        "sparsek": {"kind": "sparsek", "n_select": 32, "window": 0},
        "sparsek with a window": {"kind": "sparsek", "n_select": 16, "window": 16},
        "sparsek straight through": {"kind": "sparsek", "n_select": 16, "window": 16, "hard": True},
    },
    "text": {
        "exact": {"kind": "exact"},
        "window": {"kind": "window", "window": 64},
        "window with sinks": {"kind": "window", "window": 60, "sinks": 4},
        "strided": {"kind": "strided", "stride": 32},
        "fixed": {"kind": "fixed", "block": 32, "summaries": 1},
        "random blocks": {"kind": "random-blocks", "block": 8, "n_window": 4, "n_random": 3, "n_global": 1},
        "hashing": {"kind": "hashing", "chunk": 32},
        "routing": {"kind": "routing", "members": 64},
        "linear": {"kind": "linear", "features": "elu"},
        "random features": {"kind": "linear", "features": "random"},
        "sparsek": {"kind": "sparsek", "n_select": 64, "window": 0},
        "sparsek with a window": {"kind": "sparsek", "n_select": 32, "window": 32},
        "sparsek straight through": {"kind": "sparsek", "n_select": 32, "window": 32, "hard": True},
    },
}
"""By task and name. Buckets and clusters follow from the length of a text: a group has about as many members as a list
may hold. So every method attends to all of a text that is no longer than its list, with which a training may begin."""
