"""Claims about best starts, least-squares kernels and recovery to a tolerance (ours)."""

from __future__ import annotations

from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from refattn import recover_to_tolerance
from refattn.convbasis import ConvBasis, best_starts, least_squares_basis
from refattn.decomposition.measure import softmax
from refattn.report.ledger import Measurement, claim, fingerprint
from refattn.testing import attention_inputs, rope_structured
from refattn.testing.real_heads import load_real_heads


def _logits(q: NDArray[Any], k: NDArray[Any]) -> NDArray[np.float64]:
    h: NDArray[np.float64] = np.tril(q.astype(np.float64) @ k.astype(np.float64).T / np.sqrt(q.shape[-1]))
    return h


@claim("starts.least-squares", "ours",
       "Means of the diagonals within segments, by correlation, minimise the squared error of the logits.",
       check="largest derivative of the squared error by an entry of a kernel, over the largest logit",
       planted="kernels off by a factor 1 + 1e-9")  # fmt: skip
def _least_squares(quick: bool) -> Measurement:
    """Largest inner product of the residual with a direction in which a kernel can move, relative: 0 at the minimum."""
    worst, prints = 0.0, []
    for n, count in ((150, 4), (200, 40)) if quick else ((150, 1), (150, 4), (200, 40), (700, 17), (1000, 300)):
        for deviation in (1.0, 16.0):
            rng = np.random.default_rng(n + count)
            starts = np.concatenate([[0], 1 + np.sort(rng.choice(n - 1, count - 1, replace=False))])
            q, k, _ = attention_inputs(n, 16, seed=n, deviation=deviation)
            prints += [q, k]
            h = _logits(q, k)
            residual = h - least_squares_basis(q, k, starts).to_dense()
            for a, b in zip(starts, [*starts[1:], n], strict=True):
                slope = np.zeros(n)
                for j in range(a, b):
                    slope[: n - j] += residual[j:, j]
                worst = max(worst, float(np.abs(slope).max() / np.abs(h).max()))
    return Measurement(
        f"normal, n = 150 … {200 if quick else 1000}, 4 … {40 if quick else 300} random starts, deviations 1, 16;"
        f" {fingerprint(*prints)}",
        worst,
        at_most=1e-11,
    )


def _squared_error(h: NDArray[np.float64], starts: tuple[int, ...]) -> float:
    """Squared error of the best kernels for some starts, by the definition; columns before the first are zero."""
    n = len(h)
    total = float(np.sum(h[:, : starts[0]] ** 2))
    for a, b in zip(starts, [*starts[1:], n], strict=True):
        for t in range(n - a):
            entries = h.diagonal(-t)[a : min(b, n - t)]
            total += float(np.sum((entries - entries.mean()) ** 2))
    return total


@claim("starts.best", "ours", "The dynamic programme finds the starts of the nearest k-conv matrix, for every k.",
       check="largest difference from the least squared error over all choices of starts, relative",
       planted="one start moved by a column; squared errors off by 1e-9")  # fmt: skip
def _best_starts(quick: bool) -> Measurement:
    worst, n = 0.0, 7 if quick else 10
    seeds = range(2 if quick else 10)
    for seed in seeds:
        q, k, _ = attention_inputs(n, 4, seed=seed)
        h, best = _logits(q, k), best_starts(q, k, n)
        for count in range(1, n + 1):
            least = min(_squared_error(h, chosen) for chosen in combinations(range(n), count))
            worst = max(worst, abs(best.squared_error[count - 1] - least) / best.energy)
            worst = max(worst, abs(_squared_error(h, tuple(best.starts[count - 1])) - least) / best.energy)
    return Measurement(
        f"normal, n = {n}, d = 4, every k, {len(seeds)} seeds, all 2ⁿ − 1 choices of starts", worst, at_most=1e-12
    )


def largest_row_error(q: NDArray[Any], k: NDArray[Any], basis: ConvBasis) -> float:
    """Largest ``‖a_i − ã_i‖₁`` of all rows, densely."""
    difference = softmax(_logits(q, k)) - softmax(basis.to_dense().astype(np.float64))
    return float(np.abs(difference).sum(axis=1).max())


@claim("starts.to-tolerance", "ours",
       "On k-conv logits recover_to_tolerance finds the k starts, and every row is within the tolerance.",
       check="largest ‖a − ã‖₁ of any row, measured densely, over the tolerance; infinite where other starts come back",
       planted="a kernel of the basis off by 1e-6; the last start moved by a column")  # fmt: skip
def _to_tolerance(quick: bool) -> Measurement:
    """Largest error of any row over the tolerance, infinite where nothing or other starts were found."""
    worst, prints = 0.0, []
    n, counts = (300, (1, 5)) if quick else (1500, (1, 2, 5, 17, 60))
    for count in counts:
        for dtype, tolerance in ((np.float64, 1e-10), (np.float32, 1e-5)):
            for kernels in ("column", "least-squares"):
                q, k, _, starts = rope_structured(n, 16, starts=count, seed=count, deviation=2.0, dtype=dtype)
                prints += [q, k]
                result = recover_to_tolerance(q, k, tolerance, kernels=kernels, n_basis=64, samples=128)
                if result.basis is None or not np.array_equal(result.basis.starts, starts):
                    worst = np.inf
                else:
                    worst = max(worst, largest_row_error(q, k, result.basis) / tolerance)
    return Measurement(
        f"rotary inputs, n = {n}, k = {', '.join(map(str, counts))}, float64 to 1e-10, float32 to 1e-5, both kernels;"
        f" {fingerprint(*prints)}",
        worst,
        at_most=1.0,
    )


@claim("starts.not-conv-like", "ours",
       "recover_to_tolerance says that most heads of a language model are not conv-like, up to k = n/16.",
       check="share of heads for which a basis was found with every sampled row's ‖a − ã‖₁ within 0.1",
       planted="heads that are conv-like: the claim then fails")  # fmt: skip
def _no_on_real_heads(quick: bool) -> Measurement:
    """Share of heads for which a basis is found."""
    real = load_real_heads()
    n = 512 if quick else real.q.shape[-2]
    group = 1 if quick else real.q.shape[1]
    most = n // 16
    found, curve = {}, {}
    for place, layer in enumerate(real.layers):
        for head in range(group):
            q, k = real.q[place, head, :n], real.k[place, 0, :n]
            result = recover_to_tolerance(q, k, 0.1, kernels="least-squares", n_basis=most, samples=64)
            name = f"layer {layer}, head {head}"
            if result.basis is not None:
                found[name] = f"{result.basis.starts.size} terms"
            curve[name] = {f"k = {point.k}": point.error for point in result.curve}
    return Measurement(
        f"{len(curve)} heads of SmolLM2-135M on Hamlet, n = {n}, k up to {most}, tolerance 0.1;"
        f" sha256 {real.sha256[:12]}",
        len(found) / len(curve),
        at_most=0.1,
        detail={"found for": found, "largest error of a sampled row": curve},
    )
