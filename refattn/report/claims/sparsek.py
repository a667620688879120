"""Claims about SparseK: the operator, its prefixes and the attention (arXiv 2406.16747)."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import scipy.optimize
from numpy.typing import ArrayLike, NDArray

from refattn import dense_attention
from refattn.report.ledger import Claim, Measurement, fingerprint
from refattn.sparsek import (
    SparseKForwardCache,
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
from refattn.testing import check_gradients, relative_error, row_errors, tolerance
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


def _grid_text(quick: bool, problems: int) -> str:
    return f"{problems} problems, m to 40, scales 1e-12 … 1e12, ties, heavy tails, real k, seed 0"


def _solvers(quick: bool) -> Measurement:
    worst, problems = 0.0, 0
    for z, k in _problems(quick):
        worst = max(worst, float(np.abs(sparsek_operator(z, k) - sparsek_by_bisection(z, k)[0]).max()))
        problems += len(z)
    return Measurement(_grid_text(quick, problems), worst, at_most=1e-12)


def _optimality(quick: bool) -> Measurement:
    worst, problems = 0.0, 0
    for z, k in _problems(quick):
        p = sparsek_operator(z, k)
        residual, size = z - p, np.maximum(1, np.abs(z).max(axis=-1))
        above = np.where(p > 0, residual, np.inf).min(axis=-1)  # a multiplier is at most this
        below = np.where(p < 1, residual, -np.inf).max(axis=-1)  # and at least this
        budget = np.abs(p.sum(axis=-1) - min(k, z.shape[-1])) / max(k, 1.0)
        outside = max(0.0, -float(p.min()), float(p.max()) - 1)
        worst = max(worst, float(((below - above) / size).max()), float(budget.max()), outside)
        problems += len(z)
    return Measurement(_grid_text(quick, problems), worst, at_most=1e-12)


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


def _sparsemax(quick: bool) -> Measurement:
    z = np.random.default_rng(2).standard_normal((100 if quick else 10_000, 12))
    ordered = -np.sort(-z, axis=-1)
    sums = np.cumsum(ordered, axis=-1)
    size = (1 + np.arange(1, 13) * ordered > sums).sum(axis=-1, keepdims=True)
    tau = (np.take_along_axis(sums, size - 1, axis=-1) - 1) / size
    error = float(np.abs(sparsek_operator(z, 1) - np.maximum(z - tau, 0)).max())
    return Measurement(f"normal, m = 12, seed 2; {fingerprint(z)}", error, at_most=1e-14)


def _top_k_limit(quick: bool) -> Measurement:
    z = np.random.default_rng(3).standard_normal((100 if quick else 10_000, 10))
    top = np.argsort(np.argsort(-z, axis=-1), axis=-1) < 4
    distances = {
        f"distance at t = {t:g}": float(np.abs(sparsek_operator(z / t, 4) - top).max()) for t in (1, 1e-2, 1e-9)
    }
    return Measurement(
        f"normal, m = 10, k = 4, seed 3; {fingerprint(z)}", distances["distance at t = 1e-09"], 0.0, detail=distances
    )


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


def _two_heaps(quick: bool) -> Measurement:
    n, errors = 1000 if quick else 5000, {}
    for kind, z in _sequences(n).items():
        naive, tau = prefix_thresholds(z, 16, method="oracle")[16:], prefix_thresholds(z, 16)[16:]
        errors[kind] = float((np.abs(tau - naive) / np.maximum(1, np.abs(naive))).max())
    return Measurement(
        f"six kinds of scores, n = {n}, k = 16, seed 5", max(errors.values()), at_most=1e-12, detail=errors
    )


def _monotone(quick: bool) -> Measurement:
    n = 10_000 if quick else 1_000_000
    falls = sum(
        int((np.diff(prefix_thresholds(z, k)[40:]) < 0).sum()) for z in _sequences(n).values() for k in (1, 7.5, 40)
    )
    return Measurement(f"six kinds of scores, n = {n}, k = 1, 7.5, 40, seed 5", float(falls), at_most=0.0)


def _seconds(function: Callable[[], object], repeat: int) -> float:
    function()
    best = np.inf
    for _ in range(repeat):
        begun = time.perf_counter()
        function()
        best = min(best, time.perf_counter() - begun)
    return best


def _threshold_time(quick: bool) -> Measurement:
    lengths = [10_000, 100_000, 1_000_000] if quick else [10_000, 31_623, 100_000, 316_228, 1_000_000, 10_000_000]
    times = []
    for n in lengths:
        z = np.random.default_rng(6).standard_normal(n)
        times.append(_seconds(partial(prefix_thresholds, z, 128), 3))
    exponent = float(np.polyfit(np.log(lengths), np.log(times), 1)[0])
    z = np.random.default_rng(6).standard_normal(65_536)
    sorts = _seconds(partial(prefix_thresholds, z, 128), 9) / _seconds(partial(np.sort, z), 9)
    detail = {f"seconds at n = {n}": t for n, t in zip(lengths, times, strict=True)}
    return Measurement(
        f"normal, k = 128, n = {lengths[0]} … {lengths[-1]}, seed 6",
        exponent,
        at_most=1.15,
        detail=detail | {"times one numpy.sort at n = 65536": sorts},
    )


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


def _gate_floor(quick: bool) -> Measurement:
    n, k, least = 200 if quick else 1000, 8, np.inf
    for z in _sequences(n).values():
        tau = prefix_thresholds(z, k)
        enter, leave = selection_intervals(z, k)
        for i in range(k, n):
            chosen = (enter <= i) & (i < leave)
            least = min(least, float(np.clip(z[chosen] - tau[i], 0, 1).min() * (i + 1 - k + 1)))
    return Measurement(f"six kinds of scores, n = {n}, k = {k}, seed 5", least, at_least=1 - 1e-9)


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


def _real_inputs(n: int) -> dict[str, Any]:
    """Real heads; the score is minus the key's norm, the query-free sign of an attended key."""
    real = load_real_heads(dtype=np.float64)
    q, k, v = (array[..., :n, :] for array in (real.q, real.k, real.v))
    return {"q": q, "k": k, "v": v, "scores": -np.linalg.norm(k, axis=-1)}


def _paper_equals_oracle(quick: bool) -> Measurement:
    worst = 0.0
    n, real = (33, 48) if quick else (65, 128)
    cases = [(_inputs(seed, n), window) for seed, window in enumerate((0, 1, 5, n))] + [(_real_inputs(real), 8)]
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


def _pulled(cache: SparseKForwardCache, upstream: ArrayLike) -> dict[str, Any]:
    return sparsek_attention_backward(upstream, cache)._asdict()


def _gradients(quick: bool) -> Measurement:
    worst, inputs = 0.0, _inputs(3, 10)
    for window in (0, 3):
        for gate in GATES:
            options: dict[str, Any] = {"n_select": 3, "window": window, "gate": gate}
            _, cache = sparsek_attention_forward(**inputs, **options)
            function = partial(sparsek_attention, **options, method="oracle")
            errors = check_gradients(function, partial(_pulled, cache), inputs, rtol=np.inf, step=1e-4)
            worst = max(worst, *errors.values())
    return Measurement(
        f"normal, n = 10, d = 4, k = 3, windows 0 and 3, every gate, seed 3; {fingerprint(*inputs.values())}",
        worst,
        at_most=tolerance("differences").rtol,
    )


def _whole_window(quick: bool) -> Measurement:
    inputs = _inputs(9, 50 if quick else 200)
    right = dense_attention(inputs["q"], inputs["k"], inputs["v"])
    window = sparsek_attention(**inputs, n_select=3, window=len(right))
    select = sparsek_attention(**inputs, n_select=len(right))
    worst = max(float(row_errors(out, right).max()) for out in (window, select))
    return Measurement(f"normal, n = {len(right)}, seed 9; {fingerprint(*inputs.values())}", worst, at_most=1e-13)


def _causality(quick: bool) -> Measurement:
    inputs, rng, changed = _inputs(10, 40), np.random.default_rng(10), 0
    for method in ("paper", "oracle"):
        before = sparsek_attention(**inputs, n_select=5, window=3, method=method)
        for t in range(0, 40, 7 if quick else 1):
            later = {name: array.copy() for name, array in inputs.items()}
            for array in later.values():
                array[t:] = 5 * rng.standard_normal(array[t:].shape)
            after = sparsek_attention(**later, n_select=5, window=3, method=method)
            changed += int((after[:t] != before[:t]).any(axis=-1).sum())
    return Measurement(f"normal, n = 40, seed 10; {fingerprint(*inputs.values())}", float(changed), at_most=0.0)


def _running_moments(quick: bool) -> Measurement:
    n, worst = 10_000 if quick else 1_000_000, 0.0
    x = 1e3 + 1e-4 * np.arange(n) + np.random.default_rng(11).standard_normal(n)
    scores, _ = sparsek_scores_forward(x[:, None], [[1.0]], [0.0], normalise=True)
    for t in (1, 10, 999, n - 1):
        u = x[: t + 1].astype(np.longdouble)
        right = (u[t] - u.mean()) / np.sqrt(((u - u.mean()) ** 2).mean() + np.longdouble(1e-5))
        worst = max(worst, float(abs(scores[0, t] - right)))
    return Measurement(f"offset 1,000 and a drift, n = {n}, seed 11; {fingerprint(x)}", worst, at_most=1e-10)


CLAIMS = (
    Claim("sparsek.two-solvers", PAPER, "p = clip(z − τ, 0, 1) with the τ of the sorted scores solves SparseK.",
          "largest difference between sorting and bisection, which share nothing", _solvers),
    Claim("sparsek.optimality", PAPER, "The solution satisfies the conditions of optimality.",
          "worst of feasibility and stationarity, relative to the scores", _optimality),
    Claim("sparsek.convex-solver", PAPER, "SparseK is the projection onto the box cut by the budget.",
          "largest difference from SciPy's SLSQP on the quadratic program", _convex_solver),
    Claim("sparsek.sparsemax", PAPER, "SparseK with k = 1 is sparsemax.",
          "largest difference from sparsemax's own closed form", _sparsemax),
    Claim("sparsek.top-k-limit", PAPER, "SparseK(z/t, k) tends to the hard top-k as t → 0.",
          "largest difference from the top-k indicator at t = 1e-9", _top_k_limit),
    Claim("sparsek.jacobian", PAPER, "The Jacobian is Diag(s) − s sᵀ/|s|, s marking the entries inside.",
          "largest difference from central differences", _jacobian),
    Claim("sparsek.monotone", PAPER, "The threshold never falls when a score is added.",
          "steps at which it falls, to the last bit", _monotone),
    Claim("sparsek.two-heaps", PAPER, "Two heaps give the thresholds of all prefixes.",
          "worst error against sorting every prefix, relative to max(1, |τ|)", _two_heaps),
    Claim("sparsek.threshold-time", PAPER, "The thresholds of all prefixes take O(n log n).",
          "exponent of the time in n; beside one sort of the same scores", _threshold_time, must_hold=False,
          timed=True),
    Claim("sparsek.constant-pairs", PAPER, "A query attends to at most k pairs outside its window.",
          "most pairs at any query; without the condition, the size of the support", _constant_pairs),
    Claim("sparsek.gate-floor", "ours", "The gate of a selected pair is at least 1/(m − k + 1), m the candidates.",
          "least gate times (m − k + 1)", _gate_floor),
    Claim("sparsek.linear-backward", "ours", "Intervals and prefix sums give the gradient through all prefixes.",
          "worst relative error against the dense Jacobian of every prefix", _linear_backward),
    Claim("sparsek.attention", PAPER, "Selection matrices and gates give the defined attention, and its gradients.",
          "worst error of output rows and gradients, paper against oracle", _paper_equals_oracle),
    Claim("sparsek.gradients", "ours", "The hand-derived gradients of q, k, v and the scores are the derivatives.",
          "worst relative error against central differences of the oracle", _gradients),
    Claim("sparsek.dense-limit", "ours", "With a window or a budget of n, SparseK attention is exact causal attention.",
          "worst row error against exact attention", _whole_window),
    Claim("sparsek.causality", PAPER, "Changing the future changes no past row, bit for bit.",
          "rows changed before the first changed token", _causality),
    Claim("sparsek.running-moments", "ours", "The scores' running normalisation stays accurate over 10⁶ steps.",
          "largest error of a score against extended precision", _running_moments),
)  # fmt: skip
