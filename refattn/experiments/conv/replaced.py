"""What is varied where every head of a model is replaced: how starts are chosen, and k as a share of n."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from refattn.experiments.experiment import Item

SHARES: Mapping[str, tuple[float, ...]] = {"uniform": (0.03125, 0.125, 0.25, 0.5, 0.75, 1.0), "first": (0.125, 0.5)}
"""k over n, by how starts are chosen."""


def segments(share: float, n: int) -> int:
    """Return k as a share of n, at least 1."""
    return max(1, round(share * n))


def exact_and(shares: Mapping[str, Iterable[float]]) -> list[Item]:
    """Return exact attention, and every choice of starts and k, as parts of items."""
    return [{"starts": "exact", "share": None}] + [
        {"starts": starts, "share": share} for starts, some in shares.items() for share in some
    ]
