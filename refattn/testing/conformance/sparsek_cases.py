"""The grid of cases for SparseK attention (ours)."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from refattn._validation import FloatArray
from refattn.testing.conformance.dense_cases import real_arrays
from refattn.testing.conformance.operation import Case, Problem
from refattn.testing.conformance.operator import MARGIN, threshold
from refattn.testing.inputs import attention_inputs

Build = Callable[[int, int], Problem]


def attention(
    n_select: int = 5,
    window: int = 3,
    *,
    d: int = 8,
    heads: tuple[int, int, int] = (1, 2, 2),
    gate: str = "kv",
    hard: bool = False,
    scale: float | None = None,
    ties: bool = False,
    width: float = 1.0,
    **options: Any,
) -> Build:
    """Return a builder; `heads` is (B, H, H_kv), `width` the size of the scores."""
    batch, n_heads, n_kv = heads

    def build(n: int, seed: int) -> Problem:
        q, k, v = attention_inputs(n, d, seed=seed, lead=(batch, n_heads), kv_lead=(batch, n_kv), **options)
        scores: FloatArray
        if ties:
            scores = np.round(2 * np.random.default_rng([seed, 7]).standard_normal((batch, n_kv, n))) / 4
        else:
            scores = away_from_kinks((batch, n_kv, n), n_select, seed, width)
        given = {
            "n_select": n_select,
            "window": window,
            "gate": gate,
            "hard": hard,
            "scale": 1 / math.sqrt(d) if scale is None else scale,
        }
        return Problem({"q": q, "k": k, "v": v, "scores": scores}, given, smooth=not ties, seed=seed)

    return build


def away_from_kinks(shape: tuple[int, ...], budget: int, seed: int, width: float = 1.0) -> FloatArray:
    """Scores, the same numbers in every precision, no gate of any prefix near 0 or 1, where derivatives jump.

    Every head is drawn anew until it serves, position by position, so that long sequences are found too.
    """
    rng = np.random.default_rng([seed, 8])
    scores = np.zeros(shape)
    for head in np.ndindex(shape[:-1]):
        z = scores[head]
        for i in range(z.size):
            for _ in range(100):
                z[i] = np.float64(np.float16(width * rng.standard_normal()))
                if _clear(z[: i + 1], budget):
                    break
    return scores


def _clear(z: FloatArray, budget: int) -> bool:
    """Whether the last prefix has no entry near a kink, and no two equal scores."""
    tau = threshold(z, budget)
    gap = np.minimum(np.abs(z - tau), np.abs(z - tau - 1))
    return not (gap < MARGIN).any() and not (z[:-1] == z[-1]).any()


def real_layer(layer: int) -> Build:
    """Real heads; the scores are drawn."""

    def build(n: int, seed: int) -> Problem:
        arrays = real_arrays(layer, n, seed)
        scores = away_from_kinks((1, 1, n), 8, seed)
        given = {"n_select": 8, "window": 8, "gate": "kv", "hard": False, "scale": 1 / 8}
        return Problem({**arrays, "scores": scores}, given, seed=seed)

    return build


CASES = (
    *(Case(f"n = {n}", "ordinary", n, attention()) for n in (4, 9, 16, 33, 64)),
    Case("no window", "ordinary", 30, attention(window=0)),
    Case("window of one", "ordinary", 30, attention(window=1)),
    Case("n_select = 1", "ordinary", 30, attention(n_select=1)),
    Case("n_select = 12", "ordinary", 40, attention(n_select=12, window=2)),
    Case("d = 32, d_v ≠ d", "ordinary", 30, attention(d=32, d_v=12)),
    Case("grouped heads, 4 on 2", "ordinary", 30, attention(heads=(2, 4, 2))),
    Case("one key-value head for 3", "ordinary", 30, attention(heads=(1, 3, 1))),
    Case("scale given", "ordinary", 30, attention(scale=0.11)),
    Case("gate on keys", "ordinary", 30, attention(gate="k")),
    Case("gate on values", "ordinary", 30, attention(gate="v")),
    Case("gate on nothing", "ordinary", 30, attention(gate="none")),
    Case("hard", "ordinary", 30, attention(hard=True)),
    Case("narrow scores", "ordinary", 30, attention(width=0.25)),
    Case("wide scores", "ordinary", 30, attention(width=4.0)),
    Case("ties", "adversarial", 40, attention(ties=True)),
    Case("logits of deviation 8", "adversarial", 40, attention(deviation=8.0)),
    Case("logits of 10⁴", "adversarial", 30, attention(deviation=1e4)),
    Case("all logits equal to 200", "adversarial", 30, attention(d=4, kind="constant", deviation=200.0)),
    Case("only the window", "degenerate", 20, attention(n_select=0)),
    Case("nothing to attend to", "degenerate", 6, attention(n_select=0, window=0)),
    Case("window beyond n", "degenerate", 12, attention(window=40)),
    Case("room for everything", "degenerate", 12, attention(n_select=20)),
    Case("n = 1", "degenerate", 1, attention()),
    Case("d = 1", "degenerate", 20, attention(d=1)),
    *(Case(f"real heads, group {layer}", "real", 64, real_layer(layer)) for layer in (0, 2, 4)),
)
