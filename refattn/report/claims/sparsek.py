"""Claims about SparseK: the operator, its prefixes and the attention (arXiv 2406.16747)."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import scipy.optimize
from numpy.typing import NDArray

from refattn import dense_attention
from refattn.report.ledger import Measurement, claim, fingerprint
from refattn.report.measuring import exponent, gradient_error, rows_that_see_the_future, times
from refattn.sparsek import (
    prefix_pullback,
    prefix_thresholds,
    selection_intervals,
    sparsek_attention,
    sparsek_attention_backward,
    sparsek_attention_forward,
    sparsek_by_bisection,
    sparsek_jacobian,
    sparsek_operator,
    sparsek_scores_forward,
    sparsek_threshold,
    support_intervals,
)
from refattn.testing import relative_error, row_errors, tolerance
from refattn.testing.real_heads import load_real_heads

PAPER = "arXiv 2406.16747"
GATES = ("kv", "k", "v", "none")


def _problems(quick: bool) -> Iterator[tuple[NDArray[np.float64], float]]:
    """Yield 5 problems at a time: scores of shape (5, m), ties and heavy tails among them, and a budget."""
    rng = np.random.default_rng(0)
    for scale in 10.0 ** np.arange(-12, 13, 6 if quick else 2):
        for m in (1, 2, 3, 7, 40):
            draws = (rng.standard_normal((5, m)), rng.choice([0.0, 0.3, 0.5], (5, m)), rng.standard_cauchy((5, m)))
            for z in (scale * draws[0], scale + draws[1], scale * draws[2]):
                for k in (0.0, 0.3, 1.0, 1.5, m / 3, m / 2, m - 0.5, float(m)):
                    yield z, k


def _worst_of_problems(quick: bool, error: Callable[[NDArray[np.float64], float], float]) -> Measurement:
    """The largest error of any problem, which is to be rounding."""
    worst, problems = 0.0, 0
    for z, k in _problems(quick):
        worst, problems = max(worst, error(z, k)), problems + len(z)
    inputs = f"{problems} problems, m to 40, scales 1e-12 … 1e12, ties, heavy tails, real k, seed 0"
    return Measurement(inputs, worst, at_most=1e-12)


@claim("sparsek.two-solvers", PAPER, "p = clip(z − τ, 0, 1) with the τ of the sorted scores solves SparseK.",
       check="largest difference between sorting and bisection, which share nothing",
       planted="results off by 1e-9",
       covers=("the SparseK operator, a projection with a budget", "closed form p = clip(z − τ, 0, 1)",
               "evaluation by sorting, O(m log m)"))  # fmt: skip
def _solvers(quick: bool) -> Measurement:
    return _worst_of_problems(
        quick, lambda z, k: float(np.abs(sparsek_operator(z, k) - sparsek_by_bisection(z, k)[0]).max())
    )


@claim("sparsek.optimality", PAPER, "The solution satisfies the conditions of optimality.",
       check="worst of feasibility and stationarity, relative to the scores",
       planted="results off by 1e-9",
       covers=("the SparseK operator, a projection with a budget",))  # fmt: skip
def _optimality(quick: bool) -> Measurement:
    def violation(z: NDArray[np.float64], k: float) -> float:
        p = sparsek_operator(z, k)
        residual, size = z - p, np.maximum(1, np.abs(z).max(axis=-1))
        above = np.where(p > 0, residual, np.inf).min(axis=-1)  # a multiplier is at most this
        below = np.where(p < 1, residual, -np.inf).max(axis=-1)  # and at least this
        budget = np.abs(p.sum(axis=-1) - min(k, z.shape[-1])) / max(k, 1.0)
        outside = max(0.0, -float(p.min()), float(p.max()) - 1)
        return max(float(((below - above) / size).max()), float(budget.max()), outside)

    return _worst_of_problems(quick, violation)


@claim("sparsek.convex-solver", PAPER, "SparseK is the projection onto the box cut by the budget.",
       check="largest difference from SciPy's SLSQP on the quadratic program",
       planted="results off by 0.1 %",
       covers=("the SparseK operator, a projection with a budget",))  # fmt: skip
def _convex_solver(quick: bool) -> Measurement:
    rng, worst, prints = np.random.default_rng(1), 0.0, []
    for k in (0.5, 1.0, 3.0, 6.25):
        budget: Any = {"type": "eq", "fun": lambda p, k=k: p.sum() - k, "jac": np.ones_like}
        for _ in range(2 if quick else 10):
            z = rng.standard_normal(9)
            prints.append(z)
            problem: dict[str, Any] = {
                "fun": lambda p, z=z: 0.5 * ((p - z) ** 2).sum(),
                "jac": lambda p, z=z: p - z,
                "bounds": [(0, 1)] * 9,
                "constraints": budget,
                "method": "SLSQP",
                "options": {"ftol": 1e-15, "maxiter": 500},
            }
            found = scipy.optimize.minimize(x0=np.full(9, k / 9), **problem)
            worst = max(worst, float(np.abs(sparsek_operator(z, k) - found.x).max()))
    return Measurement(f"normal, m = 9, four budgets, seed 1; {fingerprint(*prints)}", worst, at_most=1e-7)


@claim("sparsek.sparsemax", PAPER, "SparseK with k = 1 is sparsemax.",
       check="largest difference from sparsemax's own closed form",
       planted="results off by 0.1 %",
       covers=("k = 1 is sparsemax",))  # fmt: skip
def _sparsemax(quick: bool) -> Measurement:
    z = np.random.default_rng(2).standard_normal((100 if quick else 10_000, 12))
    ordered = -np.sort(-z, axis=-1)
    sums = np.cumsum(ordered, axis=-1)
    size = (1 + np.arange(1, 13) * ordered > sums).sum(axis=-1, keepdims=True)
    tau = (np.take_along_axis(sums, size - 1, axis=-1) - 1) / size
    error = float(np.abs(sparsek_operator(z, 1) - np.maximum(z - tau, 0)).max())
    return Measurement(f"normal, m = 12, seed 2; {fingerprint(z)}", error, at_most=1e-14)


@claim("sparsek.top-k-limit", PAPER, "SparseK(z/t, k) tends to the hard top-k as t → 0.",
       check="largest difference from the top-k indicator at t = 1e-9",
       planted="a budget of one too many",
       covers=("hard top-k is the limit",))  # fmt: skip
def _top_k_limit(quick: bool) -> Measurement:
    z = np.random.default_rng(3).standard_normal((100 if quick else 10_000, 10))
    top = np.argsort(np.argsort(-z, axis=-1), axis=-1) < 4
    distances = {
        f"distance at t = {t:g}": float(np.abs(sparsek_operator(z / t, 4) - top).max()) for t in (1, 1e-2, 1e-9)
    }
    return Measurement(
        f"normal, m = 10, k = 4, seed 3; {fingerprint(z)}", distances["distance at t = 1e-09"], 0.0, detail=distances
    )


@claim("sparsek.jacobian", PAPER, "The Jacobian is Diag(s) − s sᵀ/|s|, s marking the entries inside.",
       check="largest difference from central differences",
       planted="a Jacobian off by 0.1 %",
       covers=("Jacobian Diag(s) − s sᵀ/|s|",))  # fmt: skip
def _jacobian(quick: bool) -> Measurement:
    rng, worst, h, points = np.random.default_rng(4), 0.0, 1e-4, 0
    while points < (20 if quick else 200):
        z, k = 0.6 * rng.standard_normal(8), float(rng.choice([0.4, 1, 2.5, 3, 7]))
        above = z - sparsek_threshold(z, k)
        if min(np.abs(above).min(), np.abs(above - 1).min()) < 5e-3:
            continue  # too close to a kink for a difference
        columns = [(sparsek_operator(z + h * e, k) - sparsek_operator(z - h * e, k)) / (2 * h) for e in np.eye(8)]
        worst = max(worst, float(np.abs(sparsek_jacobian(sparsek_operator(z, k)) - np.array(columns).T).max()))
        points += 1
    return Measurement(f"normal, m = 8, {points} points away from kinks, five budgets, seed 4", worst, at_most=1e-8)


@claim("sparsek.monotone", PAPER, "The threshold never falls when a score is added.",
       check="steps at which it falls, to the last bit",
       planted="the last threshold too low",
       covers=("thresholds of prefixes never fall",))  # fmt: skip
def _monotone(quick: bool) -> Measurement:
    n = 10_000 if quick else 1_000_000
    falls = sum(
        int((np.diff(prefix_thresholds(z, k)[40:]) < 0).sum()) for z in _sequences(n).values() for k in (1, 7.5, 40)
    )
    return Measurement(f"six kinds of scores, n = {n}, k = 1, 7.5, 40, seed 5", float(falls), at_most=0.0)


def _sequences(n: int) -> dict[str, NDArray[np.float64]]:
    rng = np.random.default_rng(5)
    return {
        "random": rng.standard_normal(n),
        "rising": np.sort(rng.standard_normal(n)),
        "falling": -np.sort(rng.standard_normal(n)),
        "constant": np.full(n, 0.3),
        "heavy-tailed": rng.standard_cauchy(n),
        "drifting": rng.standard_normal(n) + 0.01 * np.arange(n),
    }


@claim("sparsek.two-heaps", PAPER, "Two heaps give the thresholds of all prefixes.",
       check="worst error against sorting every prefix, relative to max(1, |τ|)",
       planted="the compiled thresholds with another budget",
       covers=("incremental evaluation with two heaps, O(n log n)",))  # fmt: skip
def _two_heaps(quick: bool) -> Measurement:
    n, errors = 600 if quick else 5000, {}
    for kind, z in _sequences(n).items():
        naive, tau = prefix_thresholds(z, 16, method="oracle")[16:], prefix_thresholds(z, 16)[16:]
        errors[kind] = float((np.abs(tau - naive) / np.maximum(1, np.abs(naive))).max())
    return Measurement(
        f"six kinds of scores, n = {n}, k = 16, seed 5", max(errors.values()), at_most=1e-12, detail=errors
    )


@claim("sparsek.threshold-time", PAPER, "The thresholds of all prefixes take O(n log n).",
       check="exponent of the time in n; beside one sort of the same scores",
       planted="times that grow like n^1.2",
       covers=("incremental evaluation with two heaps, O(n log n)",), must_hold=False, timed=True)  # fmt: skip
def _threshold_time(quick: bool) -> Measurement:
    lengths = [10_000, 100_000, 1_000_000] if quick else [10_000, 31_623, 100_000, 316_228, 1_000_000, 10_000_000]

    def thresholds(n: int) -> Callable[[], object]:
        return partial(prefix_thresholds, np.random.default_rng(6).standard_normal(n), 128)

    def one_sort(n: int) -> Callable[[], object]:
        return partial(np.sort, np.random.default_rng(6).standard_normal(n))

    found = times(thresholds, lengths, runs=3, clock=time.perf_counter)
    ours, sort = (times(make, [65_536], runs=9, clock=time.perf_counter)[65_536] for make in (thresholds, one_sort))
    detail = {f"seconds at n = {n}": t for n, t in found.items()} | {"times one numpy.sort at n = 65536": ours / sort}
    inputs = f"normal, k = 128, n = {lengths[0]} … {lengths[-1]}, seed 6"
    return Measurement(inputs, exponent(found), at_most=1.15, detail=detail)


@claim("sparsek.constant-pairs", PAPER, "A query attends to at most k pairs outside its window.",
       check="most pairs at any query; without the condition, the size of the support",
       planted="one pair too many",
       covers=("a constant number of pairs for each query",))  # fmt: skip
def _constant_pairs(quick: bool) -> Measurement:
    n, k = 500 if quick else 5000, 16
    z = 0.01 * np.random.default_rng(7).standard_normal(n)

    def most(enter: NDArray[np.int64], leave: NDArray[np.int64]) -> float:
        changes = np.bincount(enter, minlength=n + 1) - np.bincount(leave, minlength=n + 1)
        return float(np.cumsum(changes[:n]).max())

    support = support_intervals(z, prefix_thresholds(z, k))
    return Measurement(
        f"close scores (deviation 0.01), n = {n}, k = {k}, seed 7; {fingerprint(z)}",
        most(*selection_intervals(z, k)),
        at_most=float(k),
        condition="the support is cut to the hard top-k",
        counterexample=most(support.enter, support.exit),
    )


@claim("sparsek.gate-floor", "ours", "The gate of a selected pair is at least 1/(m − k + 1), m the candidates.",
       check="least gate times (m − k + 1)",
       planted="one pair too many")  # fmt: skip
def _gate_floor(quick: bool) -> Measurement:
    n, k, least = 200 if quick else 1000, 8, np.inf
    for z in _sequences(n).values():
        tau = prefix_thresholds(z, k)
        enter, leave = selection_intervals(z, k)
        for i in range(k, n):
            chosen = (enter <= i) & (i < leave)
            least = min(least, float(np.clip(z[chosen] - tau[i], 0, 1).min() * (i + 1 - k + 1)))
    return Measurement(f"six kinds of scores, n = {n}, k = {k}, seed 5", least, at_least=1 - 1e-9)


@claim("sparsek.linear-backward", "ours", "Intervals and prefix sums give the gradient through all prefixes.",
       check="worst relative error against the dense Jacobian of every prefix",
       planted="the gradient off by 0.1 %",
       covers=("training in linear time",))  # fmt: skip
def _linear_backward(quick: bool) -> Measurement:
    n, worst = 60 if quick else 300, 0.0
    upstream = np.random.default_rng(8).standard_normal((n, n))
    for z in _sequences(n).values():
        for k in (1, 5, 20.5):
            tau = prefix_thresholds(z, k)
            gates = np.where(np.tri(n, dtype=bool), np.clip(z - tau[:, None], 0, 1), 0)
            inside = np.where((gates > 0) & (gates < 1), upstream, 0)
            found = prefix_pullback(inside.sum(axis=1), inside.sum(axis=0), support_intervals(z, tau))
            dense = np.sum([sparsek_jacobian(row) @ g for row, g in zip(gates, upstream, strict=True)], axis=0)
            worst = max(worst, relative_error(found, dense))
    return Measurement(f"six kinds of scores, n = {n}, k = 1, 5, 20.5, seeds 5 and 8", worst, at_most=1e-12)


def _inputs(seed: int, n: int, d: int = 4) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    q, k, v = rng.standard_normal((3, n, d))
    return {"q": q, "k": k, "v": v, "scores": 0.7 * rng.standard_normal(n)}


def _real_inputs(n: int, layers: int) -> dict[str, Any]:
    """Real heads of the first layers; the score is minus the key's norm, the query-free sign of an attended key."""
    real = load_real_heads(dtype=np.float64)
    q, k, v = (array[:layers, :, :n] for array in (real.q, real.k, real.v))
    return {"q": q, "k": k, "v": v, "scores": -np.linalg.norm(k, axis=-1)}


@claim("sparsek.attention", PAPER, "Selection matrices and gates give the defined attention, and its gradients.",
       check="worst error of output rows and gradients, paper against oracle",
       planted="the scores' gradient off by 0.1 %",
       covers=("SparseK attention: selection, gates, one softmax", "SparseK with a sliding window",
               "straight-through (hard) selection"))  # fmt: skip
def _paper_equals_oracle(quick: bool) -> Measurement:
    worst = 0.0
    n, real, layers = (17, 32, 1) if quick else (65, 128, 5)
    cases = [(_inputs(seed, n), window) for seed, window in enumerate((0, 1, 5, n))] + [(_real_inputs(real, layers), 8)]
    for inputs, window in cases:
        for gate in GATES:
            for hard in (False, True):
                runs = []
                for method in ("paper", "oracle"):
                    out, cache = sparsek_attention_forward(
                        **inputs, n_select=6, window=window, gate=gate, hard=hard, method=method
                    )
                    runs.append((out, sparsek_attention_backward(np.cos(out), cache)))
                (out, gradients), (right, expected) = runs
                errors = [relative_error(a, b) for a, b in zip(gradients, expected, strict=True)]
                worst = max(worst, float(row_errors(out, right).max()), *errors)
    return Measurement(
        f"normal n = {n}, windows 0, 1, 5, n, and heads of SmolLM2-135M n = {real}; every gate, hard and soft",
        worst,
        at_most=1e-11,
    )


@claim("sparsek.gradients", "ours", "The hand-derived gradients of q, k, v and the scores are the derivatives.",
       check="worst relative error against central differences of the oracle",
       planted="the scores' gradient off by 0.1 %",
       covers=("scoring network with timestep normalisation",))  # fmt: skip
def _gradients(quick: bool) -> Measurement:
    worst, inputs = 0.0, _inputs(3, 10)
    for window in (0, 3):
        for gate in GATES:
            options: dict[str, Any] = {"n_select": 3, "window": window, "gate": gate}
            _, cache = sparsek_attention_forward(**inputs, **options)
            function = partial(sparsek_attention, **options, method="oracle")
            worst = max(worst, gradient_error(function, sparsek_attention_backward, cache, inputs, step=1e-4))
    return Measurement(
        f"normal, n = 10, d = 4, k = 3, windows 0 and 3, every gate, seed 3; {fingerprint(*inputs.values())}",
        worst,
        at_most=tolerance("differences").rtol,
    )


@claim("sparsek.dense-limit", "ours", "With a window or a budget of n, SparseK attention is exact causal attention.",
       check="worst row error against exact attention",
       planted="the output off by 0.1 %",
       covers=("SparseK with a sliding window",))  # fmt: skip
def _whole_window(quick: bool) -> Measurement:
    inputs = _inputs(9, 50 if quick else 200)
    right = dense_attention(inputs["q"], inputs["k"], inputs["v"], method="oracle")
    window = sparsek_attention(**inputs, n_select=3, window=len(right))
    select = sparsek_attention(**inputs, n_select=len(right))
    worst = max(float(row_errors(out, right).max()) for out in (window, select))
    return Measurement(f"normal, n = {len(right)}, seed 9; {fingerprint(*inputs.values())}", worst, at_most=1e-13)


@claim("sparsek.causality", PAPER, "Changing the future changes no past row, bit for bit.",
       check="rows changed before the first changed token",
       planted="every row sees the last value",
       covers=("SparseK attention: selection, gates, one softmax",))  # fmt: skip
def _causality(quick: bool) -> Measurement:
    inputs, changed = _inputs(10, 40), 0.0
    for method in ("paper", "oracle"):
        attend = partial(sparsek_attention, n_select=5, window=3, method=method)
        changed += rows_that_see_the_future(attend, inputs, range(0, 40, 7 if quick else 1), seed=10)
    return Measurement(f"normal, n = 40, seed 10; {fingerprint(*inputs.values())}", changed, at_most=0.0)


@claim("sparsek.running-moments", "ours", "The scores' running normalisation stays accurate over 10⁶ steps.",
       check="largest error of a score against extended precision",
       planted="scores off by 0.1 %",
       covers=("scoring network with timestep normalisation",))  # fmt: skip
def _running_moments(quick: bool) -> Measurement:
    n, worst = 10_000 if quick else 1_000_000, 0.0
    x = 1e3 + 1e-4 * np.arange(n) + np.random.default_rng(11).standard_normal(n)
    scores, _ = sparsek_scores_forward(x[:, None], [[1.0]], [0.0], normalise=True)
    for t in (1, 10, 999, n - 1):
        u = x[: t + 1].astype(np.longdouble)
        right = (u[t] - u.mean()) / np.sqrt(((u - u.mean()) ** 2).mean() + np.longdouble(1e-5))
        worst = max(worst, float(abs(scores[0, t] - right)))
    return Measurement(f"offset 1,000 and a drift, n = {n}, seed 11; {fingerprint(x)}", worst, at_most=1e-10)
