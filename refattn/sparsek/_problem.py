"""A checked SparseK attention problem: what every method receives, with common leading axes.

Query i attends to two kinds of pairs, in one joint softmax:

- its *window*, the w positions ``i − w + 1 … i``, with gate one;
- the hard top-``n_select`` by score of the *candidates* ``j ≤ i − w``, ties to the earlier position, with gate
  ``m_ij = SparseK(score[: i − w + 1], n_select)_j``.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from refattn._heads import HeadLayout
from refattn._kept import kept
from refattn._overflow import require_scale_held, wider
from refattn._validation import FloatArray, as_count, as_flag, as_float_arrays, as_option, as_scale, require_finite

GATES = ("kv", "k", "v", "none")
LARGEST_SCORE = 1e9
"""With soft gates: up to here float64 leaves a gate an error of at most 2e-7."""
MOST_PAIRS = 1 << 40
"""More than any memory holds, and small enough for every index to fit in 64 bits."""


@dataclass(frozen=True)
class SparseKProblem:
    """Checked inputs of SparseK attention, in the dtype of the computation."""

    q: FloatArray
    k: FloatArray
    v: FloatArray
    scores: FloatArray
    layout: HeadLayout  # how their leading axes fit together
    n_select: int  # pairs selected by a query outside its window
    window: int  # its length
    gate: str  # what it multiplies
    hard: bool  # gate one in the forward, straight through in the backward
    scale: float  # of the logits

    @property
    def gates_keys(self) -> bool:
        """Whether the gate multiplies the keys."""
        return "k" in self.gate

    @property
    def gates_values(self) -> bool:
        """Whether the gate multiplies the values."""
        return "v" in self.gate

    def kept(self) -> SparseKProblem:
        """Return the same problem with read-only copies of the inputs."""
        return replace(self, q=kept(self.q), k=kept(self.k), v=kept(self.v), scores=kept(self.scores))

    def in_wider_format(self) -> SparseKProblem:
        """Return the same problem in the next wider format, where products of its entries do not overflow."""
        q, k, v = wider(self.q, self.k, self.v)
        return replace(self, q=q, k=k, v=v)

    def heads(self) -> tuple[FloatArray, FloatArray, FloatArray, NDArray[np.float64]]:
        """Return q, k, v ``(heads, n, ·)`` and the scores ``(heads, n)`` in float64, one entry per query head."""
        queries, keys, values = self.layout.expand(self.q, self.k, self.v)
        _, _, scores = self.layout.expand(self.q, self.k, self.scores[..., None])
        flat = (array.reshape(-1, *array.shape[-2:]) for array in (queries, keys, values, scores))
        q, k, v, z = flat
        return q, k, v, z[..., 0].astype(np.float64)


def as_problem(
    q: ArrayLike,
    k: ArrayLike,
    v: ArrayLike,
    scores: ArrayLike,
    *,
    n_select: int,
    window: int,
    gate: str,
    hard: bool,
    scale: float | None,
    check_finite: bool,
) -> SparseKProblem:
    """Check the arguments of SparseK attention, or raise naming the one that does not fit."""
    q, k, v, scores = as_float_arrays(check_finite=False, q=q, k=k, v=v, scores=scores)
    if as_flag("check_finite", check_finite):
        for name, array in (("q", q), ("k", k), ("v", v)):
            require_finite(name, array)
    require_finite("scores", scores)
    layout = HeadLayout.of(q, k, v)
    if q.shape[-2] != k.shape[-2]:
        raise ValueError(f"q: {q.shape[-2]} rows came, as many as k has ({k.shape[-2]}) were wanted (causal)")
    lead = np.broadcast_shapes(k.shape[:-2], v.shape[:-2])
    try:
        fits = scores.shape[-1:] == k.shape[-2:-1] and np.broadcast_shapes(scores.shape[:-1], lead) == lead
    except ValueError:
        fits = False
    if not fits:
        wanted = (*lead, k.shape[-2])
        raise ValueError(f"scores: shape {scores.shape} came, one score per key-value pair {wanted} was wanted")
    problem = SparseKProblem(
        q, k, v, scores, layout,
        n_select=as_count("n_select", n_select, least=0, most=MOST_PAIRS),
        window=as_count("window", window, least=0, most=MOST_PAIRS),
        gate=as_option("gate", gate, GATES),
        hard=as_flag("hard", hard),
        scale=as_scale(scale, q.shape[-1], q.dtype),
    )  # fmt: skip
    require_scale_held(problem.scale, q.dtype)
    if not problem.hard:
        require_gates("scores", problem)
    return problem


def require_gates(name: str, problem: SparseKProblem) -> None:
    """Raise where a gate, the difference of a score and a threshold in float64, would be left without digits."""
    scores = problem.scores
    if problem.n_select == 0 or problem.gate == "none":
        return
    index = np.unravel_index(int(np.abs(scores).argmax()), scores.shape)
    if abs(float(scores[index])) > LARGEST_SCORE:
        raise ValueError(
            f"{name}: {scores[index]:.6g} at index {tuple(int(i) for i in index)} came, at most {LARGEST_SCORE:g} in"
            " size was wanted for soft gates and for the gradient of hard ones, which are differences of scores; hard"
            " gates without gradient, or gate 'none', take any"
        )


def overflow(dtype: np.dtype[Any], head: int, query: int) -> ValueError:
    """Return the error of a logit that overflowed."""
    return ValueError(
        f"q, k: a logit of query {query} (head {head}) overflows {dtype};"
        " smaller entries, a smaller scale or float64 was wanted"
    )


def require_no_overflow(logits: NDArray[Any], head: int, query: int) -> None:
    """Raise ``ValueError`` if a logit of this query overflowed."""
    if not np.isfinite(logits).all():
        raise overflow(logits.dtype, head, query)
