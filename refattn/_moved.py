"""Names that were public once, and where what they named is now: whoever asks for one is told (ours)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

OLD: dict[str, str] = {
    "refattn.CausalMask": "refattn.Causal",
    "refattn.ContinuousRowsMask": "refattn.lowrank.ContinuousRowsMask",
    "refattn.ConvCache": "refattn.convbasis.ConvForwardCache",
    "refattn.DenseCache": "refattn.dense.DenseForwardCache",
    "refattn.DistinctColumnsMask": "refattn.lowrank.DistinctColumnsMask",
    "refattn.DistinctRowsMask": "refattn.lowrank.DistinctRowsMask",
    "refattn.PolynomialFeatures": "refattn.lowrank.PolynomialFeatures",
    "refattn.RandomFeatures": "refattn.lowrank.RandomFeatures",
    "refattn.RowChangeMask": "refattn.lowrank.RowChangeMask",
    "refattn.SparseKAttentionCache": "refattn.sparsek.SparseKForwardCache",
    "refattn.ToleranceRecovery": "refattn.convbasis.ToleranceRecovery",
    "refattn.masked_product": "refattn.lowrank.masked_product",
    "refattn.masked_product_backward": "refattn.lowrank.masked_product_backward",
    "refattn.masked_product_forward": "refattn.lowrank.masked_product_forward",
    "refattn.convbasis.ConvCache": "refattn.convbasis.ConvForwardCache",
    "refattn.dense.DenseCache": "refattn.dense.DenseForwardCache",
    "refattn.lowrank.CausalMask": "refattn.Causal",
    "refattn.lowrank.LowRankCache": "refattn.lowrank.LowRankForwardCache",
    "refattn.lowrank.MaskedProductCache": "refattn.lowrank.MaskedProductForwardCache",
    "refattn.sparsek.ScoringCache": "refattn.sparsek.ScoringForwardCache",
    "refattn.sparsek.SparseKAttentionCache": "refattn.sparsek.SparseKForwardCache",
    "refattn.sparsek.sparsek": "refattn.sparsek.sparsek_operator",
}
"""By the old name, the name to use."""


def explains(module: str) -> Callable[[str], Any]:
    """Return a module's ``__getattr__``, which says of an old name what to use.

    An old name is an ``ImportError``: ``from … import`` replaces an ``AttributeError`` by one that does not say more.
    """

    def missing(name: str) -> Any:
        old = f"{module}.{name}"
        if old in OLD:
            raise ImportError(f"{old} has another name: use {OLD[old]}", name=name)
        raise AttributeError(f"module {module!r} has no attribute {name!r}")

    return missing
