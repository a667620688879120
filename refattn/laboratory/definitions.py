"""The operations from their definitions, for one head, in mpmath's numbers or exact fractions (ours).

Lists of lists, scalar loops, no arrays: nothing is shared with the package that these check. Symbols as in
`refattn.dense`, `refattn.convbasis` and `refattn.sparsek.oracle`.
"""

from __future__ import annotations

from fractions import Fraction
from typing import Any, NamedTuple

import mpmath  # type: ignore[import-untyped]

Matrix = list[list[Any]]


class SoftmaxHead(NamedTuple):
    """Weights, output and log-sum-exp of one head; gradients of its logits, of gated values and of values."""

    out: Matrix
    log_sum_exp: list[Any]
    dlogits: Matrix
    dgated: Matrix
    dv: Matrix


def dot(a: list[Any], b: list[Any]) -> Any:
    """``Σ a b``."""
    return mpmath.fsum(x * y for x, y in zip(a, b, strict=True))


def columns(matrix: Matrix) -> Matrix:
    """The matrix transposed."""
    return [list(column) for column in zip(*matrix, strict=True)]


def softmax_head(logits: Matrix, allowed: Matrix, gates: Matrix, v: Matrix, dout: Matrix) -> SoftmaxHead:
    """``out = (softmax(logits) ∘ gates) v`` over the allowed pairs, and its gradients for the upstream ``dout``."""
    weights: Matrix = []
    log_sum_exp: list[Any] = []
    for row, seen in zip(logits, allowed, strict=True):
        powers = [mpmath.exp(s) if a else mpmath.mpf(0) for s, a in zip(row, seen, strict=True)]
        total = mpmath.fsum(powers)
        weights.append([x / total if total else x for x in powers])
        log_sum_exp.append(mpmath.log(total) if total else mpmath.mpf("-inf"))
    gated = [[p * g for p, g in zip(*rows, strict=True)] for rows in zip(weights, gates, strict=True)]
    out = [[dot(row, column) for column in columns(v)] for row in gated]
    dv = [[dot(column, g) for g in columns(dout)] for column in columns(gated)]
    dvalue = [[dot(g, value) for value in v] for g in dout]
    dlogits, dgated = [], []
    for p, g, d in zip(weights, gates, dvalue, strict=True):
        dweights = [x * y for x, y in zip(g, d, strict=True)]
        mean = dot(p, dweights)
        dlogits.append([x * (y - mean) for x, y in zip(p, dweights, strict=True)])
        dgated.append([x * y for x, y in zip(p, d, strict=True)])
    return SoftmaxHead(out, log_sum_exp, dlogits, dgated, dv)


def products(q: Matrix, k: Matrix, scale: Any) -> Matrix:
    """``scale · q kᵀ``."""
    return [[scale * dot(a, b) for b in k] for a in q]


def through_products(dlogits: Matrix, q: Matrix, k: Matrix, scale: Any) -> tuple[Matrix, Matrix]:
    """Gradients of q and k from those of ``scale · q kᵀ``."""
    dq = [[scale * dot(row, column) for column in columns(k)] for row in dlogits]
    dk = [[scale * dot(row, column) for column in columns(q)] for row in columns(dlogits)]
    return dq, dk


def dense(q: Matrix, k: Matrix, v: Matrix, dout: Matrix, allowed: Matrix, scale: Any) -> dict[str, Any]:
    """Exact attention, its log-sum-exp and its gradients."""
    ones = [[mpmath.mpf(1)] * len(k) for _ in q]
    head = softmax_head(products(q, k, scale), allowed, ones, v, dout)
    dq, dk = through_products(head.dlogits, q, k, scale)
    return {"out": head.out, "log_sum_exp": head.log_sum_exp, "dq": dq, "dk": dk, "dv": head.dv}


def conv(q: Matrix, k: Matrix, v: Matrix, dout: Matrix, starts: list[int], scale: Any) -> dict[str, Any]:
    """Conv attention with the kernels of the logits at the starts, and its derivative with the starts held fixed."""
    n = len(q)
    exact = products(q, k, scale)
    start = [max(c for c in starts if c <= j) for j in range(n)]
    logits = [[exact[start[j] + i - j][start[j]] if j <= i else 0 for j in range(n)] for i in range(n)]
    allowed = [[j <= i for j in range(n)] for i in range(n)]
    ones = [[mpmath.mpf(1)] * n for _ in range(n)]
    head = softmax_head(logits, allowed, ones, v, dout)
    dexact = [[mpmath.mpf(0)] * n for _ in range(n)]
    for i in range(n):
        for j in range(i + 1):
            dexact[start[j] + i - j][start[j]] += head.dlogits[i][j]
    dq, dk = through_products(dexact, q, k, scale)
    kernels = [[exact[c + t][c] if c + t < n else mpmath.mpf(0) for t in range(n)] for c in starts]
    return {"kernels": kernels, "out": head.out, "dq": dq, "dk": dk, "dv": head.dv}


def sparsek(z: list[Any], k: Any) -> tuple[list[Any], Any]:
    """The operator and its smallest threshold, exactly, of fractions or None for −∞; the threshold None for −∞."""
    finite = [x for x in z if x is not None]
    if k >= len(finite):
        return [Fraction(x is not None) for x in z], None

    def spent(t: Fraction) -> Fraction:
        return sum((min(max(x - t, Fraction(0)), Fraction(1)) for x in finite), Fraction(0))

    breaks = sorted({b for x in finite for b in (x, x - 1)})
    upper = next(b for b in breaks if spent(b) <= k)
    below = [b for b in breaks if b < upper]
    tau = upper
    if below:  # linear between two breakpoints
        lower = below[-1]
        drop = spent(lower) - spent(upper)
        tau = upper - (k - spent(upper)) * (upper - lower) / drop
    return [Fraction(0) if x is None else min(max(x - tau, Fraction(0)), Fraction(1)) for x in z], tau


def sparsek_pullback(p: list[Any], dp: list[Any]) -> tuple[list[Any], Any]:
    """``Jᵀ dp`` and ``∂p/∂k · dp``: the gradient less its mean over the interior, and that mean."""
    inside = [0 < x < 1 for x in p]
    count = sum(inside)
    mean = sum((g for g, s in zip(dp, inside, strict=True) if s), start=0 * dp[0]) / count if count else 0 * dp[0]
    return [g - mean if s else 0 * g for g, s in zip(dp, inside, strict=True)], mean


def sparsek_attention(
    q: Matrix, k: Matrix, v: Matrix, dout: Matrix, scores: list[Any], options: dict[str, Any]
) -> dict[str, Any]:
    """SparseK attention with a window, its gates and its gradients."""
    n, window, budget = len(q), options["window"], options["n_select"]
    soft = [[Fraction(0)] * n for _ in range(n)]
    chosen = [[False] * n for _ in range(n)]
    for i in range(window, n):
        prefix = scores[: i - window + 1]
        soft[i][: len(prefix)], _ = sparsek(prefix, budget)
        for j in sorted(range(len(prefix)), key=lambda j: (-prefix[j], j))[:budget]:
            chosen[i][j] = True
    allowed = [[chosen[i][j] or i - window < j <= i for j in range(n)] for i in range(n)]
    one = mpmath.mpf(1)
    gate = [[_mpf(soft[i][j]) if chosen[i][j] and not options["hard"] else one for j in range(n)] for i in range(n)]
    ones = [[one] * n for _ in range(n)]
    gate_k, gate_v = (gate if x in options["gate"] else ones for x in "kv")
    exact = products(q, k, options["scale"])
    logits = [[s * g for s, g in zip(*rows, strict=True)] for rows in zip(exact, gate_k, strict=True)]
    head = softmax_head(logits, allowed, gate_v, v, dout)
    dexact = [[s * g for s, g in zip(*rows, strict=True)] for rows in zip(head.dlogits, gate_k, strict=True)]
    dq, dk = through_products(dexact, q, k, options["scale"])
    dscores = [mpmath.mpf(0)] * n
    for i in range(n):
        dgate = [
            (head.dlogits[i][j] * exact[i][j] if "k" in options["gate"] else 0)
            + (head.dgated[i][j] if "v" in options["gate"] else 0)
            if chosen[i][j]
            else mpmath.mpf(0)
            for j in range(n)
        ]
        dz, _ = sparsek_pullback(soft[i], dgate)
        dscores = [a + b for a, b in zip(dscores, dz, strict=True)]
    gates = [[_mpf(soft[i][j]) if chosen[i][j] else mpmath.mpf(0) for j in range(n)] for i in range(n)]
    return {"gates": gates, "out": head.out, "dq": dq, "dk": dk, "dv": head.dv, "dscores": dscores}


def _mpf(x: Fraction) -> Any:
    return mpmath.mpf(x.numerator) / x.denominator
