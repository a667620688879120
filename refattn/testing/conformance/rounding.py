"""How far rounding may move a row of attention: the standard deviation of its error, from the row's own terms (ours).

Every rounding is taken as an independent error, of mean zero, of a number x by at most ``unit · |x|``: its variance is at
most ``(unit · x)² / 3``, as for a uniform error. Sums of m terms in any order add rounded partial sums, whose squares
add up to at most ``m Σ terms² / 2 + m · total² / 3`` (terms of random signs, and of one sign). To first order, with S
the logits, P the weights, L = log Σ exp S, and one head written out:

    S = scale · q kᵀ        q rounded after the scale, S − max S, S log₂e; S where it is stored
    P = exp(S − L)          the errors of S, relatively; P rounded to the type; exp, rescaling, division
    out = P v               Σ_j P_ij (v_j − out_i) δS_ij + Σ_j δP_ij v_j, and the order of the sum
    dP = dout vᵀ            where it is stored
    δ = Σ_j P_ij dP_ij      from the rounded output, Σ_d dout_id out_id; the same error for the whole row
    dS = P (dP − δ)         all of these; L off by its own rounding; dS rounded to the type
    dq = scale · dS k,  dk = scale · dSᵀ q,  dv = Pᵀ dout

What is stored, or held in sums, is so in float32, or in the type with ``accumulate="dtype"``. Inputs that come in a finer
precision than the one judged by are rounded first. A result is rounded once at the end, by at most ``unit · |x|``. Nothing here looks at what a function returned.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from refattn._validation import FloatArray
from refattn.testing.conformance.precision import PRECISIONS, Precision


FLOOR = 8.0
"""Units of rounding of a result's natural size, where its errors are not followed through its terms."""


@dataclass(frozen=True)
class Spread:
    """What rounding does to a result, entry by entry."""

    deviation: FloatArray  # standard deviation of what leads to it
    last: FloatArray  # bound of the last rounding

    def allows(self, luck: float, by_row: bool) -> FloatArray:
        """Return what rounding may move every row, or entry, by: `luck` deviations and the last rounding."""
        allowed = luck * self.deviation + self.last
        return np.asarray(allowed.max(axis=-1, initial=0.0) if by_row and allowed.ndim else allowed)

    def and_of(self, size: float, unit: float) -> Spread:
        """Return the spread with some units of rounding of a size for all entries added."""
        return Spread(self.deviation, self.last + FLOOR * unit * size)


def of_size(size: float, unit: float) -> Spread:
    """Return the spread of a result whose entries are off by some units of rounding of their natural size."""
    return Spread(np.zeros(()), np.asarray(FLOOR * unit * size))


def each_its_own(pairs: FloatArray) -> FloatArray:
    """Every pair has a product of its own."""
    return pairs


@dataclass(frozen=True)
class Attention:
    """A softmax attention in float64, heads expanded: what `attention_spread` follows the errors through."""

    q: FloatArray
    k: FloatArray
    v: FloatArray
    scale: float
    logits: FloatArray
    weights: FloatArray  # zero where a key is not seen
    dout: FloatArray | None
    n_kv: int  # key-value heads, over whose query heads dk and dv are added up
    gate_k: Any = 1.0  # factors of the logits and of the weights, per pair
    gate_v: Any = 1.0
    var_gate_k: Any = 0.0  # variances of their own errors
    var_gate_v: Any = 0.0
    products: Callable[[FloatArray], FloatArray] = each_its_own
    """From what belongs to pairs to what belongs to the products q kᵀ, where several pairs share one: their sums."""


def normalised(logits: FloatArray, allowed: NDArray[np.bool_]) -> FloatArray:
    """Return the weights of every row over its allowed keys; zero for a row with none."""
    hidden = np.where(allowed, logits, -np.inf)
    largest = hidden.max(axis=-1, keepdims=True, initial=-np.inf)
    weights = np.exp(hidden - np.where(np.isneginf(largest), 0, largest))
    total = weights.sum(axis=-1, keepdims=True)
    return np.asarray(np.divide(weights, total, out=weights, where=total > 0))


def attention_spread(x: Attention, to: Precision) -> dict[str, Spread]:
    """Return the spread of the output and, where an upstream gradient is given, of the gradients; O(n² d).

    That of the gradient of the gates, named ``gates``, is per pair; it is not rounded, and `last` is its size.
    """
    once, stored = _rounding(to), _rounding(to, to.inner)
    inner = to.inner**2 / 3

    def given(a: FloatArray) -> FloatArray:
        """Variance of rounding an input that comes in a finer precision."""
        return once(a) if (to.round(a) != a).any() else np.zeros_like(a)

    def given_keys(a: FloatArray) -> FloatArray:
        if to.name != "int8-keys":
            return given(a)
        return np.broadcast_to(np.abs(a).max(axis=-1, keepdims=True, initial=0) / 254, a.shape) ** 2 / 3

    q, k, v, p = x.q, x.k, x.v, x.weights
    q2, k2, v2, p2 = q * q, k * k, v * v, p * p
    n_q, n_k, d = q.shape[-2], k.shape[-2], q.shape[-1]

    def summed(squares: FloatArray, total: FloatArray, terms: int) -> FloatArray:
        """Variance of a sum in floating point, of so many terms with such a sum of squares."""
        return inner * terms * (squares / 2 + total * total / 3)

    # S = scale · q kᵀ ∘ gate
    factor = (x.scale * x.gate_k) ** 2
    logits = np.where(p > 0, x.logits, 0)
    squares = factor * (q2 @ _t(k2))
    of_q, of_k = once(q) + given(q), given_keys(k)
    var_products = x.scale**2 * (of_q @ _t(k2) + q2 @ _t(of_k))
    var_s = factor * (q2 @ _t(of_k)) + stored(logits) + summed(squares, logits, d) + 3 * inner * logits**2
    if x.products is each_its_own:  # an error of q_i that moves all logits of row i alike moves no weight
        mean = (p * x.gate_k) @ k
        var_s += factor * (of_q @ _t(k2)) - 2 * x.scale**2 * x.gate_k * ((of_q * mean) @ _t(k))
        var_s = np.maximum(var_s + x.scale**2 * (of_q * mean * mean).sum(axis=-1, keepdims=True), 0)
    else:
        var_s += factor * (of_q @ _t(k2))
    products = x.scale * (q @ _t(k))
    var_s += products**2 * x.var_gate_k
    # P = exp(S − L)
    var_l = inner * ((p * logits).sum(axis=-1, keepdims=True) ** 2 + n_k / 3 + 1)
    moved = p2 * var_s
    var_p = np.where(p > 0, once(p), 0) + 4 * inner * p2
    var_w = var_p * np.square(x.gate_v) + p2 * x.var_gate_v  # of what multiplies the values, beside `moved`
    # out = (P ∘ gate) v
    g2 = np.square(x.gate_v)
    gated = p * x.gate_v
    out = gated @ v
    var_out = (moved * g2) @ v2 - 2 * out * ((moved * x.gate_v) @ v) + out * out * moved.sum(axis=-1, keepdims=True)
    var_out = np.maximum(var_out, 0) + var_w @ v2 + (gated * gated) @ given(v)
    var_out += summed((gated * gated) @ v2, out, n_k) + inner * n_k / 3 * out * out
    spreads = {"out": _spread(var_out, out, to)}
    if x.dout is None:
        return spreads
    dout, dout2 = x.dout, x.dout * x.dout
    # dP = dout vᵀ ∘ gate, δ = Σ P dP
    plain = dout @ _t(v)
    dp = plain * x.gate_v
    var_plain = dout2 @ _t(given(v)) + summed(dout2 @ _t(v2), plain, v.shape[-1])
    var_dp = stored(dp) + g2 * (stored(plain) + var_plain) + plain**2 * x.var_gate_v
    delta = (p * dp).sum(axis=-1, keepdims=True)
    var_delta = (dout2 * (_rounding(PRECISIONS[to.results])(out) + var_out)).sum(axis=-1, keepdims=True)
    var_delta += summed((dout2 * out * out).sum(axis=-1, keepdims=True), delta, v.shape[-1])
    # dS = P (dP − δ)
    ds = p * (dp - delta)
    var_ds = (moved + var_p) * (dp - delta) ** 2 + p2 * var_dp + once(ds) + 2 * inner * ds * ds
    own = var_ds + ds * ds * var_l + p2 * var_delta  # as independent errors, which they are down a column
    # dq = scale · (dS ∘ gate) k
    s2 = x.scale**2
    turned, g2 = x.products(ds * x.gate_k), np.square(x.gate_k)
    turned2 = turned * turned
    dq = x.scale * (turned @ k)
    if x.products is each_its_own:
        var_dq = (var_ds * g2) @ k2 + var_delta * np.square((p * x.gate_k) @ k)
    else:  # several rows' errors meet in a product
        var_dq = x.products(own * g2) @ k2
    var_dq = s2 * (var_dq + turned2 @ of_k)
    var_dq += dq * dq * var_l + summed(s2 * (turned2 @ k2), dq, n_k) + inner * dq * dq
    # dk = scale · (dS ∘ gate)ᵀ q
    dk = x.scale * (_t(turned) @ q)
    var_dk = s2 * (_t(x.products(own * g2)) @ q2 + _t(turned2) @ of_q)
    var_dk += summed(s2 * (_t(turned2) @ q2), dk, n_q) + inner * dk * dk
    # dv = (P ∘ gate)ᵀ dout
    dv = _t(gated) @ dout
    var_dv = _t((moved + p2 * var_l) * np.square(x.gate_v) + var_w) @ dout2
    var_dv += summed(_t(gated * gated) @ dout2, dv, n_q)
    spreads["dq"] = _spread(var_dq, dq, to)
    # d gate = dS ∘ scale q kᵀ, and P ∘ dout vᵀ
    var_gates, dgates = np.zeros_like(p), np.zeros_like(p)
    if np.ndim(x.gate_k):
        var_products += stored(products)
        dgates += ds * products
        var_gates += own * products**2 + ds * ds * (var_products + summed(squares, products, d))
    if np.ndim(x.gate_v):
        dgates += p * plain
        var_gates += (moved + var_p + p2 * var_l) * plain**2 + p2 * (stored(plain) + var_plain)
    spreads["gates"] = Spread(np.sqrt(var_gates), np.abs(dgates))
    return spreads | {"dk": _added(var_dk, dk, x.n_kv, to), "dv": _added(var_dv, dv, x.n_kv, to)}


def _added(variance: FloatArray, values: FloatArray, n_kv: int, to: Precision) -> Spread:
    """The spread of a gradient added up over the query heads of each key-value head; each share is rounded once."""
    if values.shape[1] > n_kv:
        variance = variance + _rounding(PRECISIONS[to.results])(values)
    group = (values.shape[0], n_kv, values.shape[1] // n_kv, *values.shape[2:])
    return _spread(variance.reshape(group).sum(axis=2), values.reshape(group).sum(axis=2), to)


def _t(a: FloatArray) -> FloatArray:
    return a.swapaxes(-1, -2)


def _rounding(to: Precision, unit: float | None = None) -> Callable[[FloatArray], FloatArray]:
    """Return the function that gives the variance of rounding each entry once, by `unit` where one is given."""
    square, least = (to.unit if unit is None else unit) ** 2 / 3, (to.least if unit is None else 0.0) ** 2 / 3
    return lambda x: square * (x * x) + least


def _spread(variance: FloatArray, value: FloatArray, to: Precision) -> Spread:
    results = PRECISIONS[to.results]
    return Spread(np.sqrt(np.maximum(variance, 0)), results.unit * np.abs(value) + results.least)
