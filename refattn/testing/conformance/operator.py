"""The SparseK operator and the thresholds of all prefixes as operations to check (arXiv 2406.16747)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from refattn._validation import FloatArray
from refattn.sparsek.bisection import sparsek_by_bisection
from refattn.sparsek.operator import sparsek_operator, sparsek_threshold, sparsek_vjp
from refattn.testing.conformance.operation import Arrays, Case, Operation, Problem, Shape
from refattn.testing.conformance.precision import Precision
from refattn.testing.conformance.rounding import Spread, of_size

MARGIN = 1e-3
"""Problems whose gradients are judged keep every entry this far from 0 and 1, where the derivative jumps."""

OPERATOR_FAULTS = {
    "budget off by one (k + 1)": "the entries sum to k + 1",
    "budget off by one (k − 1)": "the entries sum to k − 1",
    "entries above one": "the entries are not cut off at one: the threshold and p are those of sparsemax scaled to k",
    "entries cut off at one afterwards": "the threshold is found without the upper bound, which is applied at the end",
    "hard top-k": "the k largest entries are one and all others zero",
    "gradient without its mean": "the mean of the gradient over the interior is not subtracted",
    "mean over the support": "the mean is over all entries above zero, saturated ones too",
    "saturated entries pass gradient": "entries at one pass their gradient as if they were inside",
    "gradient passed through": "the gradient is returned unchanged",
}

THRESHOLD_FAULTS = {
    "threshold stale": "the threshold of the prefix before is returned",
    "threshold of the whole sequence": "every prefix gets the last one's threshold: a future leak",
    "budget off by one (k + 1)": "thresholds are those of budget k + 1",
    "budget off by one (k − 1)": "thresholds are those of budget k − 1",
    "entries above one": "entries are not cut off at one: thresholds are those of sparsemax scaled to k",
    "largest score left out": "the k-th largest score is returned: thresholds are those of hard top-k",
}


def threshold(z: FloatArray, k: float, upper: float = 1.0) -> FloatArray:
    """Smallest t with ``Σ_j clip(z_j − t, 0, upper) ≤ k`` along the last axis; −∞ scores are not there. O(m²)."""
    finite = np.isfinite(z)
    count = finite.sum(axis=-1)
    breaks = np.concatenate([z, z - z.dtype.type(upper)], axis=-1) if np.isfinite(upper) else z
    over = np.isfinite(breaks)
    low = np.where(over, breaks, np.inf)
    spent = np.clip(z[..., None, :] - low[..., :, None], 0, upper).sum(axis=-1)
    fits = over & (spent <= k)
    edge = np.where(fits, breaks, np.inf).min(axis=-1, keepdims=True)
    at_one = finite & (z - z.dtype.type(upper) >= edge) if np.isfinite(upper) else np.zeros_like(finite)
    inside = finite & (z >= edge) & ~at_one
    total = np.where(inside, z, 0).sum(axis=-1) + (at_one.sum(axis=-1) - k)
    solved = np.minimum(total / np.maximum(inside.sum(axis=-1), 1), edge[..., 0])
    return np.asarray(np.where(count <= k, -np.inf, solved), z.dtype)


def prefixes(z: FloatArray) -> FloatArray:
    """Every prefix of the last axis as a row, −∞ where it has not come yet: (…, n, n)."""
    n = z.shape[-1]
    return np.where(np.tri(n, dtype=bool), z[..., None, :], z.dtype.type(-np.inf))


def plain(problem: Problem, upstream: FloatArray | None, to: Precision, fault: str | None = None) -> Arrays:
    """``p = clip(z − τ, 0, 1)`` and its Jacobian's product; and, on request, with one mistake."""
    z, k = to.round(problem.arrays["z"]), float(problem.options["k"])
    k += {"budget off by one (k + 1)": 1, "budget off by one (k − 1)": -1}.get(fault or "", 0)
    unbounded = fault in ("entries above one", "entries cut off at one afterwards")
    with np.errstate(invalid="ignore", over="ignore"):
        tau = to.round(threshold(z, max(k, 0.0), np.inf if unbounded else 1.0))[..., None]
        p = to.round(np.clip(z - tau, 0, np.inf if fault == "entries above one" else 1))
        p = np.where(np.isneginf(tau), np.isfinite(z).astype(z.dtype), p)
        if fault == "hard top-k":
            rank = np.argsort(np.argsort(-z, axis=-1, kind="stable"), axis=-1, kind="stable")
            p = (rank < k).astype(z.dtype)
    if upstream is None or fault == "gradient passed through":
        return {"out": p} if upstream is None else {"out": p, "dz": upstream}
    # forward: p = clip(z − τ(z), 0, 1)
    inside = (p > 0) & (p < 1)
    averaged = p > 0 if fault in ("mean over the support", "saturated entries pass gradient") else inside
    mean = np.where(averaged, upstream, 0).sum(axis=-1, keepdims=True) / np.maximum(
        averaged.sum(axis=-1, keepdims=True), 1
    )
    if fault == "gradient without its mean":
        mean = np.zeros_like(mean)
    passes = p > 0 if fault == "saturated entries pass gradient" else inside
    return {"out": p, "dz": to.round(np.where(passes, upstream - mean, 0))}


def plain_thresholds(problem: Problem, upstream: FloatArray | None, to: Precision, fault: str | None = None) -> Arrays:
    """The threshold of every prefix by itself; and, on request, with one mistake."""
    z, k = to.round(problem.arrays["z"]), float(problem.options["k"])
    k += {"budget off by one (k + 1)": 1, "budget off by one (k − 1)": -1}.get(fault or "", 0)
    rows = prefixes(z)
    with np.errstate(invalid="ignore", over="ignore"):
        tau = to.round(threshold(rows, max(k, 0.0), np.inf if fault == "entries above one" else 1.0))
    if fault == "threshold stale":
        tau = np.concatenate([np.full_like(tau[..., :1], -np.inf), tau[..., :-1]], axis=-1)
    if fault == "threshold of the whole sequence":
        tau = np.broadcast_to(tau[..., -1:], tau.shape)
    if fault == "largest score left out":
        place = min(max(round(k) - 1, 0), z.shape[-1] - 1)
        tau = np.where(np.isneginf(tau), tau, -np.sort(-rows, axis=-1)[..., place])
    return {"out": tau}


def truth(problem: Problem, upstream: FloatArray | None) -> Arrays:
    """SparseK in float64 by sorting, the value by bisection too; its Jacobian's product."""
    z, k = problem.arrays["z"].astype(np.float64), problem.options["k"]
    p, _ = sparsek_by_bisection(z, k)
    if upstream is None:
        return {"out": p}
    return {"out": p, "dz": sparsek_vjp(sparsek_operator(z, k), upstream.astype(np.float64)).z}


def truth_thresholds(problem: Problem, upstream: FloatArray | None) -> Arrays:
    """Every prefix by itself, by sorting, in float64."""
    return {"out": sparsek_threshold(prefixes(problem.arrays["z"].astype(np.float64)), problem.options["k"])}


def spread(problem: Problem, upstream: FloatArray | None, to: Precision) -> dict[str, Spread]:
    """Of an entry, 1 or the rounding of the scores it is the difference of; of the gradient, the upstream one."""
    z = problem.arrays["z"]
    size = float(np.abs(z[np.isfinite(z)]).max(initial=1.0))
    found = {"out": of_size(max(size, 1.0), to.unit)}
    return found if upstream is None else {**found, "dz": of_size(float(np.abs(upstream).max()), to.unit)}


@dataclass(frozen=True)
class Scores:
    """Scores and a budget of ``k + of_n · n``; where gradients are judged, away from every kink."""

    kind: str = "normal"
    k: float = 4.0
    of_n: float = 0.0
    size: float = 1.0
    smooth: bool = True

    def __call__(self, shape: Shape, seed: int) -> Problem:
        """Build one: the first draw that serves."""
        n = shape.n
        budget = max(self.k + self.of_n * n, 0.0)
        for draw in range(200):
            z = _draw(self.kind, n, shape.batch, np.random.default_rng([seed, 6, draw])) * self.size
            z = np.where(np.isfinite(z), z.astype(np.float16 if self.smooth else np.float32), z).astype(np.float64)
            _, tau = sparsek_by_bisection(z, budget)
            gap = np.minimum(np.abs(z - tau[..., None]), np.abs(z - tau[..., None] - 1))
            if not self.smooth or not (gap[np.isfinite(gap)] < MARGIN).any():
                break
        return Problem({"z": z}, {"k": budget}, self.smooth and self.size <= 10, seed)


def _draw(kind: str, n: int, rows: int, rng: np.random.Generator) -> FloatArray:
    z = rng.standard_normal((rows, n))
    if kind == "ties":
        z = np.round(z * 2) / 2
    elif kind == "constant":
        z = np.full_like(z, 0.75)
    elif kind == "rising":
        z = np.sort(z, axis=-1)
    elif kind == "holes":
        z = np.where(rng.random(z.shape) < 0.3, -np.inf, z)
        z[:, 0] = 0.5
    return z


def _case(name: str, kind: str, n: int, content: Scores = Scores(), profile: str = "quick") -> Case:
    return Case(name, kind, Shape(n, batch=3), content, profile=profile)


CASES = (
    *(_case(f"n = {n}, k = 4", "ordinary", n) for n in (5, 16, 63, 64, 65)),
    _case("n = 96, k = 12", "ordinary", 96, Scores(k=12.0, smooth=False)),
    _case("narrow scores", "ordinary", 40, Scores(size=0.125)),
    _case("wide scores", "ordinary", 40, Scores(size=4.0)),
    _case("k = 1", "ordinary", 30, Scores(k=1.0)),
    _case("k = 2.5", "ordinary", 30, Scores(k=2.5)),
    _case("k = n − 1", "ordinary", 20, Scores(k=-1.0, of_n=1.0)),
    _case("rising scores", "ordinary", 40, Scores("rising", k=6.0)),
    _case("ties", "adversarial", 40, Scores("ties", smooth=False)),
    _case("all scores equal", "adversarial", 33, Scores("constant", smooth=False)),
    _case("scores of 100", "adversarial", 40, Scores(size=100.0, smooth=False)),
    _case("scores of 10⁴", "adversarial", 40, Scores(size=1e4, smooth=False)),
    _case("tiny scores", "adversarial", 40, Scores(size=1e-4, smooth=False)),
    _case("scores of −∞", "degenerate", 40, Scores("holes", smooth=False)),
    _case("k = 0", "degenerate", 12, Scores(k=0.0, smooth=False)),
    _case("k = n", "degenerate", 12, Scores(k=0.0, of_n=1.0, smooth=False)),
    _case("n = 1", "degenerate", 1, Scores(k=0.5, smooth=False)),
    *(_case(f"n = {n}, k = 4", "ordinary", n, profile="standard") for n in (127, 128, 129)),
)

OPERATOR = Operation(
    name="sparsek-operator",
    signature="fn(z, *, k) -> p",
    backward_signature="backward(dp, z, *, k) -> dz",
    axes={"z": "BN", "out": "BN"},
    differentiable=("z",),
    defaults=lambda problem: {},
    cases=CASES,
    truth=truth,
    plain=plain,
    spread=spread,
    faults=OPERATOR_FAULTS,
    perturbed=("z",),
)

THRESHOLDS = Operation(
    name="sparsek-thresholds",
    signature="fn(z, *, k) -> tau",
    backward_signature="",
    axes={"z": "BN", "out": "BN"},
    differentiable=(),
    defaults=lambda problem: {},
    cases=CASES,
    truth=truth_thresholds,
    plain=plain_thresholds,
    spread=spread,
    faults=THRESHOLD_FAULTS,
    perturbed=("z",),
)
