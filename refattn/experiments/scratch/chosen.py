"""The rate of each method: searched for with one seed, the same rates for all, then kept for the others (ours)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from refattn.experiments.scratch.settings import RATES, SEEDS

CHOSEN: Mapping[str, Mapping[str, float]] = {
    "recall": {},
    "text": {},
    "lags": {
        "exact": 0.009,
        "spread": 0.009,
        "spread, paper's gradient": 0.009,
        "recovered": 0.003,
        "recovered, paper's gradient": 0.003,
    },
    "bytes": {"exact": 0.003, "spread": 0.003, "recovered": 0.003},
}
"""By task and method, what `best_rates` tells of the shipped records; where there is none, only the search is run."""


def best_rates(rows: Iterable[Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """Return by task and method the best rate of the search; methods of which a rate is missing are left out.

    By validation accuracy, then loss, then the lower rate; of text, by loss.
    """
    found: dict[str, dict[str, dict[float, tuple[float, float]]]] = {}
    for row in rows:
        if row["seed"] == SEEDS[0] and not row["quick"] and "validation_loss" in row:
            judged = 0.0 if row["task"] in ("text", "bytes") else -row["validation_accuracy"], row["validation_loss"]
            found.setdefault(row["task"], {}).setdefault(row["method"], {})[row["rate"]] = judged
    return {
        task: {
            method: min(sorted(judged), key=judged.__getitem__)
            for method, judged in methods.items()
            if set(judged) >= set(RATES)
        }
        for task, methods in found.items()
    }


def trainings(task: str, methods: Iterable[str]) -> list[dict[str, Any]]:
    """Return method, seed and rate of every training: the search, then the other seeds where a rate is chosen."""
    methods, chosen = list(methods), CHOSEN.get(task, {})
    search = [{"method": method, "seed": SEEDS[0], "rate": rate} for method in methods for rate in RATES]
    return search + [
        {"method": method, "seed": seed, "rate": chosen[method]}
        for seed in SEEDS[1:]
        for method in methods
        if method in chosen
    ]
