"""The grid of cases for SparseK attention (ours)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from refattn._validation import FloatArray
from refattn.testing.conformance.dense_cases import REAL, case, real_arrays, too_long
from refattn.testing.conformance.operation import Case, Problem, Shape
from refattn.testing.conformance.operator import MARGIN, threshold
from refattn.testing.inputs import attention_inputs


@dataclass(frozen=True)
class Selective:
    """Problems of SparseK attention; `width` is the size of the scores."""

    n_select: int = 5
    window: int = 3
    gate: str = "kv"
    hard: bool = False
    scale: float | None = None
    ties: bool = False
    width: float = 1.0
    kind: str = "normal"
    deviation: float = 1.0

    def __call__(self, shape: Shape, seed: int) -> Problem:
        """Build one."""
        lead, kv_lead = (shape.batch, shape.heads), (shape.batch, shape.kv_heads)
        q, k, v = attention_inputs(
            shape.n, shape.d, seed=seed, lead=lead, kv_lead=kv_lead, d_v=shape.d_v, kind=self.kind,
            deviation=self.deviation,
        )  # fmt: skip
        scores: FloatArray
        if self.ties:
            scores = np.round(2 * np.random.default_rng([seed, 7]).standard_normal((*kv_lead, shape.n))) / 4
        else:
            scores = away_from_kinks((*kv_lead, shape.n), self.n_select, seed, self.width)
        given = {
            "n_select": self.n_select,
            "window": self.window,
            "gate": self.gate,
            "hard": self.hard,
            "scale": 1 / math.sqrt(shape.d) if self.scale is None else self.scale,
        }
        return Problem({"q": q, "k": k, "v": v, "scores": scores}, given, smooth=not self.ties, seed=seed)

    @property
    def tags(self) -> frozenset[str]:
        """Which options it sets."""
        said = {"scale": self.scale is not None, "hard": self.hard, "gate": self.gate != "kv"}
        return frozenset(name for name, there in said.items() if there)


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


@dataclass(frozen=True)
class Real:
    """Real heads; the scores are drawn."""

    layer: int
    fixed: Shape = REAL  # all of it but n

    def __call__(self, shape: Shape, seed: int) -> Problem:
        """Build one."""
        arrays = real_arrays(self.layer, shape.n, seed)
        scores = away_from_kinks((1, 1, shape.n), 8, seed)
        given = {"n_select": 8, "window": 8, "gate": "kv", "hard": False, "scale": 1 / 8}
        return Problem({**arrays, "scores": scores}, given, seed=seed)

    def refuses(self, shape: Shape) -> str:
        """Why there is none of a shape."""
        return too_long(shape)


def _case(name: str, kind: str, n: int, content: Selective = Selective(), **options: Any) -> Case:
    return case(name, kind, n, content, **{"d": 8, **options})


CASES = (
    *(_case(f"n = {n}", "ordinary", n) for n in (4, 9, 16, 33, 64)),
    _case("no window", "ordinary", 30, Selective(window=0)),
    _case("window of one", "ordinary", 30, Selective(window=1)),
    _case("n_select = 1", "ordinary", 30, Selective(n_select=1)),
    _case("n_select = 12", "ordinary", 40, Selective(n_select=12, window=2)),
    _case("d = 32, d_v ≠ d", "ordinary", 30, d=32, d_v=12),
    _case("grouped heads, 4 on 2", "ordinary", 30, heads=(2, 4, 2)),
    _case("one key-value head for 3", "ordinary", 30, heads=(1, 3, 1)),
    _case("scale given", "ordinary", 30, Selective(scale=0.11)),
    _case("gate on keys", "ordinary", 30, Selective(gate="k")),
    _case("gate on values", "ordinary", 30, Selective(gate="v")),
    _case("gate on nothing", "ordinary", 30, Selective(gate="none")),
    _case("hard", "ordinary", 30, Selective(hard=True)),
    _case("narrow scores", "ordinary", 30, Selective(width=0.25)),
    _case("wide scores", "ordinary", 30, Selective(width=4.0)),
    _case("ties", "adversarial", 40, Selective(ties=True)),
    _case("logits of deviation 8", "adversarial", 40, Selective(deviation=8.0)),
    _case("logits of 10⁴", "adversarial", 30, Selective(deviation=1e4)),
    _case("all logits equal to 200", "adversarial", 30, Selective(kind="constant", deviation=200.0), d=4),
    _case("only the window", "degenerate", 20, Selective(n_select=0)),
    _case("nothing to attend to", "degenerate", 6, Selective(n_select=0, window=0)),
    _case("window beyond n", "degenerate", 12, Selective(window=40)),
    _case("room for everything", "degenerate", 12, Selective(n_select=20)),
    _case("n = 1", "degenerate", 1),
    _case("d = 1", "degenerate", 20, d=1),
    *(case(f"real heads, group {g}", "real", 64, Real(g), heads=(1, 3, 1), d=64) for g in (0, 2, 4)),
    *(_case(f"n = {n}", "ordinary", n, profile="standard") for n in (127, 128, 129)),
)
