"""How far rounding may move a row of attention: the standard deviation of its error, from the row's own terms (ours).

Every rounding is taken as an independent error, of mean zero, of a number x by at most ``unit · |x|``: its variance is
at most ``(unit · x)² / 3``, as for a uniform error. Sums of m terms in any order add rounded partial sums. The squares
of these add up to at most ``m Σ terms² / 2 + m · total² / 3`` (terms of random signs, and of one sign). To first order,
with S the logits, P the weights, L = log Σ exp S, and one head written out:

    S = scale · q kᵀ        q rounded after the scale, S − max S, S log₂e; S where it is stored
    P = exp(S − L)          the errors of S, relatively; P rounded to the type; exp, rescaling, division
    out = P v               Σ_j P_ij (v_j − out_i) δS_ij + Σ_j δP_ij v_j, and the order of the sum
    dP = dout vᵀ            where it is stored
    δ = Σ_j P_ij dP_ij      from the rounded output, Σ_d dout_id out_id; the same error for the whole row
    dS = P (dP − δ)         all of these; L off by its own rounding; dS rounded to the type
    dq = scale · dS k,  dk = scale · dSᵀ q,  dv = Pᵀ dout

What is stored, or held in sums, is so in float32, or in the type with ``accumulate="dtype"``; with ``"tiles"`` the sums
of dq, dk and dv are rounded to the type after every 64 terms. Inputs that come in a
finer precision than the one judged by are rounded first. A result is rounded once at the end, by at most
``unit · |x|``. Nothing here looks at what a function returned.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from refattn._validation import FloatArray
from refattn.testing.conformance.precision import PRECISIONS, TILE, Precision

FLOOR = 8.0
"""Units of rounding of a result's natural size, where its errors are not followed through its terms."""


TINY, LOST = 2.0**-500, 2.0**-20
"""Entries below the first have variances that no float64 holds; they may be off by the second, relatively."""


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
    raw: FloatArray | None = None  # scale · q kᵀ, where the logits are more: capped, or with something added
    added: Any = 0.0  # to the logits
    bend: Any = 0.0  # how gate_k, the slope of a cap, moves with the logits
    dlse: Any = 0.0  # upstream gradient of L
    sink: FloatArray | None = None  # weight of the sink of every row
    products: Callable[[FloatArray], FloatArray] = each_its_own
    """From what belongs to pairs to what belongs to the products q kᵀ, where several pairs share one: their sums."""

    @property
    def lse(self) -> FloatArray:
        """Log-sum-exp of every row, (…, n_q, 1); 0 where nothing is seen."""
        at = np.argmax(self.weights, axis=-1)[..., None]
        weight, logit = (np.take_along_axis(a, at, axis=-1) for a in (self.weights, self.logits))
        return np.where(weight > 0, logit - np.log(np.where(weight > 0, weight, 1)), 0)


def normalised(logits: FloatArray, allowed: NDArray[np.bool_]) -> FloatArray:
    """Return the weights of every row over its allowed keys; zero for a row with none."""
    hidden = np.where(allowed, logits, -np.inf)
    largest = hidden.max(axis=-1, keepdims=True, initial=-np.inf)
    weights = np.exp(hidden - np.where(np.isneginf(largest), 0, largest))
    total = weights.sum(axis=-1, keepdims=True)
    return np.asarray(np.divide(weights, total, out=weights, where=total > 0))


@dataclass(frozen=True)
class Rows:
    """What is a row's own, (…, n_q, 1): the keys' mean, δ, and the variances of L, relatively, and of δ."""

    mean_key: FloatArray
    delta: Any = 0.0
    var_l: Any = 0.0
    var_delta: Any = 0.0


class Pairs:
    """Variances of what belongs to pairs of a query and a key, some or all of them."""

    def __init__(self, x: Attention, rows: Rows, to: Precision) -> None:
        self.x, self.rows, self.to = x, rows, to
        self.once, self.stored = rounding(to), rounding(to, to.inner)
        q, k, p, scale = x.q, x.k, x.weights, x.scale
        # S = scale · q kᵀ ∘ gate
        factor = (scale * x.gate_k) ** 2
        logits = np.where(p > 0, x.logits, 0)
        raw = logits if x.raw is None else np.where(p > 0, x.raw, 0)
        of_q, self.of_k = self.once(q) + self.given(q), self.given_keys(k)
        self.of_q, q2, k2 = of_q, q * q, k * k
        self.squares = q2 @ _t(k2) * scale**2
        by_key = q2 @ _t(self.of_k) if self.of_k.any() else 0.0
        by_query = of_q @ _t(k2)
        self.var_products = scale**2 * (by_query + by_key)
        var_s = factor * by_key + self.stored(logits) + 3 * self.inner * logits**2
        var_s += self.summed(self.squares, raw, q.shape[-1]) * np.square(x.gate_k)
        if x.raw is not None:
            var_s += (self.stored(raw) + 3 * self.inner * raw**2) * np.square(x.gate_k)
            var_s += self.given(x.added) + 3 * self.inner * np.square(x.added)
        if x.products is each_its_own:  # an error of q_i that moves all logits of row i alike moves no weight
            mean = rows.mean_key
            by_query = factor * by_query - 2 * scale**2 * x.gate_k * ((of_q * mean) @ _t(k))
            by_query += scale**2 * (of_q * mean * mean).sum(axis=-1, keepdims=True)
            var_s += np.maximum(by_query, 0)
        else:
            var_s += factor * by_query
        self.products: Any = scale * (q @ _t(k)) if np.ndim(x.gate_k) else 0.0
        var_s += self.products**2 * x.var_gate_k
        self.bent = x.bend * x.bend * var_s  # of the slope of a cap
        # P = exp(S − L)
        self.moved = p * p * var_s
        self.var_p = np.where(p > 0, self.once(p), 0) + 4 * self.inner * p * p
        self.var_w = self.var_p * np.square(x.gate_v) + p * p * x.var_gate_v  # of a value's factor, beside `moved`

    @property
    def inner(self) -> float:
        """Variance of rounding one, where sums are held."""
        return self.to.inner**2 / 3

    def summed(self, squares: FloatArray, total: FloatArray, terms: int) -> FloatArray:
        """Variance of a sum in floating point, of so many terms with such a sum of squares."""
        return self.inner * terms * (squares / 2 + total * total / 3)

    def collected(self, squares: FloatArray, total: FloatArray, terms: int) -> FloatArray:
        """As for `summed`, of a gradient, which may be rounded after every tile of its terms."""
        variance = self.summed(squares, total, terms)
        if self.to.accumulate != "tiles" or terms <= TILE:
            return variance
        return variance + self.to.unit**2 / 3 * (terms / TILE) * (squares / 2 + total * total / 3)

    def given(self, a: FloatArray) -> FloatArray:
        """Variance of rounding an input that comes in a finer precision."""
        return self.once(a) if (self.to.round(a) != a).any() else np.zeros_like(a)

    def given_keys(self, a: FloatArray) -> FloatArray:
        """As for `given`, of keys."""
        if self.to.name != "int8-keys":
            return self.given(a)
        return np.broadcast_to(np.abs(a).max(axis=-1, keepdims=True, initial=0) / 254, a.shape) ** 2 / 3

    def backward(self, dout: FloatArray) -> None:
        """Follow the errors on to dS."""
        x, rows, p = self.x, self.rows, self.x.weights
        # dP = dout vᵀ ∘ gate
        self.plain = dout @ _t(x.v)
        dp, dout2, of_v = self.plain * x.gate_v, dout * dout, self.given(x.v)
        self.var_plain = self.summed(dout2 @ _t(x.v * x.v), self.plain, x.v.shape[-1])
        self.var_plain += dout2 @ _t(of_v) if of_v.any() else 0.0
        var_dp = self.stored(dp) + np.square(x.gate_v) * (self.stored(self.plain) + self.var_plain)
        var_dp += self.plain**2 * x.var_gate_v
        # dS = P (dP − δ)
        self.ds = p * (dp - rows.delta)  # δ less the upstream gradient of L
        self.var_ds = (self.moved + self.var_p) * (dp - rows.delta) ** 2 + p * p * var_dp
        self.var_ds += np.where(p > 0, self.once(self.ds), 0) + 2 * self.inner * self.ds**2
        # the errors of L and δ too: a row's own, which down a column are independent
        self.own = self.var_ds + self.ds**2 * rows.var_l + p * p * rows.var_delta
        self.turned = x.products(self.ds * x.gate_k)

    def by_key(self, dout: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray, FloatArray, FloatArray, FloatArray]:
        """Return, for dk and for dv, the variance, the value and the sum of the squares of its terms."""
        x, dout2 = self.x, dout * dout
        # dk = scale · (dS ∘ gate)ᵀ q
        s2, turned2 = x.scale**2, self.turned**2
        dk = x.scale * (_t(self.turned) @ x.q)
        own = self.own * np.square(x.gate_k) + self.ds**2 * self.bent
        var_dk = s2 * (_t(x.products(own)) @ (x.q * x.q) + _t(turned2) @ self.of_q)
        # dv = (P ∘ gate)ᵀ dout
        gated = x.weights * x.gate_v
        var_dv = _t((self.moved + x.weights**2 * self.rows.var_l) * np.square(x.gate_v) + self.var_w) @ dout2
        squares = s2 * (_t(turned2) @ (x.q * x.q)), _t(gated * gated) @ dout2
        return var_dk, dk, squares[0], var_dv, _t(gated) @ dout, squares[1]

    def gates(self) -> Spread:
        """The gradient of the gates, per pair: ``dS ∘ scale q kᵀ`` and ``P ∘ dout vᵀ``; `last` is its size."""
        x, p, variance, value = self.x, self.x.weights, np.zeros_like(self.x.weights), np.zeros_like(self.x.weights)
        if np.ndim(x.gate_k):
            value += self.ds * self.products
            rounded = self.var_products + self.stored(self.products)
            rounded += self.summed(self.squares, self.products, x.q.shape[-1])
            variance += self.own * self.products**2 + self.ds**2 * rounded
        if np.ndim(x.gate_v):
            value += p * self.plain
            variance += (self.moved + self.var_p + p * p * self.rows.var_l) * self.plain**2
            variance += p * p * (self.stored(self.plain) + self.var_plain)
        return Spread(np.sqrt(variance), np.abs(value))


def attention_spread(x: Attention, to: Precision) -> tuple[dict[str, Spread], Pairs]:
    """Return the spread of the output and, where an upstream gradient is given, of the gradients; O(n² d)."""
    p, v, n_k = x.weights, x.v, x.k.shape[-2]
    f = Pairs(x, Rows((p * x.gate_k) @ x.k), to)
    inner, v2 = f.inner, v * v
    var_l = inner * ((p * np.where(p > 0, x.logits, 0)).sum(axis=-1, keepdims=True) ** 2 + n_k / 3 + 1)
    # out = (P ∘ gate) v
    gated, moved = p * x.gate_v, f.moved
    out, of_v = gated @ v, f.given(v)
    var_out = (moved * np.square(x.gate_v)) @ v2 - 2 * out * ((moved * x.gate_v) @ v)
    var_out = np.maximum(var_out + out * out * moved.sum(axis=-1, keepdims=True), 0) + f.var_w @ v2
    var_out += (gated * gated) @ of_v if of_v.any() else 0.0
    var_out += f.summed((gated * gated) @ v2, out, n_k) + inner * n_k / 3 * out * out
    # L = log Σ exp S
    by_query = x.scale**2 * (f.of_q * np.square(f.rows.mean_key)).sum(axis=-1, keepdims=True)
    lse = x.lse
    var_lse = moved.sum(axis=-1, keepdims=True) + by_query + var_l + inner * (lse * lse + 1)
    spreads = {
        "out": _spread(var_out, out, to),
        "lse": Spread(np.sqrt(var_lse)[..., 0], to.inner * np.abs(lse[..., 0])),
    }
    if x.dout is None:
        return spreads, f
    # δ = Σ_d dout out
    dout2 = x.dout * x.dout
    delta = (x.dout * out).sum(axis=-1, keepdims=True)
    var_delta = (dout2 * (rounding(PRECISIONS[to.results])(out) + var_out)).sum(axis=-1, keepdims=True)
    var_delta += f.summed((dout2 * out * out).sum(axis=-1, keepdims=True), delta, v.shape[-1])
    delta = delta - x.dlse
    var_delta += inner * (delta * delta + np.square(x.dlse))
    f.rows = Rows(f.rows.mean_key, delta, var_l, var_delta)
    f.backward(x.dout)
    # dq = scale · (dS ∘ gate) k
    k2, turned2 = x.k * x.k, f.turned**2
    dq = x.scale * (f.turned @ x.k)
    if x.products is each_its_own:
        turning = f.var_ds * np.square(x.gate_k) + f.ds**2 * f.bent
        var_dq = turning @ k2 + var_delta * np.square(f.rows.mean_key)
    else:  # several rows' errors meet in a product
        var_dq = x.products(f.own * np.square(x.gate_k)) @ k2
    var_dq = x.scale**2 * (var_dq + (turned2 @ f.of_k if f.of_k.any() else 0.0)) + dq * dq * (var_l + inner)
    spreads["dq"] = _spread(var_dq + f.collected(x.scale**2 * (turned2 @ k2), dq, n_k), dq, to)
    if x.sink is not None:  # dsink = −Σ_i P_i,sink δ_i
        terms = x.sink * delta
        exponent = np.log(np.where(x.sink > 0, x.sink, 1))
        var = x.sink**2 * var_delta + terms * terms * (var_lse + f.given(np.ones(())) + inner * (exponent**2 + 4))
        summed = f.summed((terms * terms).sum(axis=(0, 2, 3)), terms.sum(axis=(0, 2, 3)), x.sink[:, 0].size)
        spreads["dsinks"] = _spread(var.sum(axis=(0, 2, 3)) + summed, terms.sum(axis=(0, 2, 3)), to)
    return spreads | key_spread(f, [f.by_key(x.dout)], x.q.shape[-2]), f


def bias_spread(f: Pairs, shape: tuple[int, ...]) -> Spread:
    """Return the spread of the gradient of a bias of a shape: dS, added up over the axes along which it is shared."""
    over = tuple(i for i, size in enumerate(shape) if size == 1 and f.ds.shape[i] > 1)
    variance, value, squares = ((a.sum(axis=over, keepdims=True)) for a in (f.own, f.ds, f.ds**2))
    return _spread(variance + f.summed(squares, value, f.ds.size // max(1, value.size)), value, f.to)


def key_spread(f: Pairs, parts: Sequence[tuple[FloatArray, ...]], n_q: int) -> dict[str, Spread]:
    """Return the spread of dk and dv from what `Pairs.by_key` gives for all the queries, some at a time."""
    var_dk, dk, terms_k, var_dv, dv, terms_v = (np.sum(part, axis=0) for part in zip(*parts, strict=True))
    var_dk = var_dk + f.collected(terms_k, dk, n_q) + f.inner * dk * dk
    var_dv = var_dv + f.collected(terms_v, dv, n_q)
    return {"dk": _added(var_dk, dk, f.x.n_kv, f.to), "dv": _added(var_dv, dv, f.x.n_kv, f.to)}


def _added(variance: FloatArray, values: FloatArray, n_kv: int, to: Precision) -> Spread:
    """The spread of a gradient added up over the query heads of each key-value head; each share is rounded once."""
    if values.shape[1] > n_kv:
        variance = variance + rounding(PRECISIONS[to.results])(values)
    group = (values.shape[0], n_kv, values.shape[1] // n_kv, *values.shape[2:])
    return _spread(variance.reshape(group).sum(axis=2), values.reshape(group).sum(axis=2), to)


def _t(a: FloatArray) -> FloatArray:
    return a.swapaxes(-1, -2)


def rounding(to: Precision, unit: float | None = None) -> Callable[[FloatArray], FloatArray]:
    """Return the function that gives the variance of rounding each entry once, by `unit` where one is given."""
    square, least = (to.unit if unit is None else unit) ** 2 / 3, (to.least if unit is None else 0.0) ** 2 / 3
    return lambda x: square * (x * x) + least


def _spread(variance: FloatArray, value: FloatArray, to: Precision) -> Spread:
    results, size = PRECISIONS[to.results], np.abs(value)
    deviation = np.sqrt(np.maximum(variance, 0))
    deviation = np.where(size < TINY, np.maximum(deviation, LOST * size), deviation)
    return Spread(deviation, results.unit * size + results.least)
