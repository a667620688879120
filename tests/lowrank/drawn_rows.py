"""Masked low-rank products and attention on rows that hide nothing, beside definitions in extended precision.

The definitions are dense, take nothing from `refattn.lowrank` but a mask's own `to_dense` and what a feature map is
made of, and carry with every entry its natural size: what it would be if every term had one sign.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from refattn.lowrank import (
    ContinuousRowsMask,
    DistinctColumnsMask,
    DistinctRowsMask,
    PolynomialFeatures,
    RandomFeatures,
    RowChangeMask,
    as_row_change,
    document_blocks,
    logit_bound,
    lowrank_attention_backward,
    lowrank_attention_forward,
    masked_product_backward,
    masked_product_forward,
    polynomial_coefficients,
    prefix_lm,
    shifted_groups,
    sliding_window,
)
from refattn.lowrank.masks import CausalStructure

WIDE = np.longdouble
LENGTHS = (1, 2, 3, 4, 5, 8, 17, 39, 40, 41, 63, 64, 65, 100, 127, 128, 129, 150)
LONG = (511, 512, 513, 1025, 2500)
WIDTHS = (1, 1, 1, 2, 2, 3, 3, 4, 5, 7, 8, 15, 16, 17, 40, 41, 81)


# --- rows ---


def _spread(n, w, rng):
    return rng.standard_normal((n, w)) * 10.0 ** rng.uniform(-10, 10, (n, 1))


def _spread_entries(n, w, rng):
    return rng.standard_normal((n, w)) * 10.0 ** rng.uniform(-10, 10, (n, w))


def _one_large(n, w, rng):
    """One row, the first more often than others, far larger than the rest."""
    x = rng.standard_normal((n, w))
    x[0 if rng.random() < 0.5 else rng.integers(n)] *= 10.0 ** rng.uniform(6, 18)
    return x


def _one_hot(n, w, rng):
    return np.eye(w)[rng.integers(0, w, n)]


def _equal(n, w, rng):
    return np.tile(rng.standard_normal(w), (n, 1))


def _tiny(n, w, rng):
    return rng.standard_normal((n, w)) * rng.choice([1e-30, 1e-100])


def _huge(n, w, rng):
    return rng.standard_normal((n, w)) * rng.choice([1e30, 1e100])


def _extreme(n, w, rng):
    """Near the ends of float64, all of it or row by row."""
    size = rng.choice([1e-300, 1e-160, 1.0, 1e140], (n, 1) if rng.random() < 0.5 else 1)
    return rng.standard_normal((n, w)) * size


def _zero(n, w, rng):
    return np.zeros((n, w))


def _normal(n, w, rng):
    return rng.standard_normal((n, w))


def _positive(n, w, rng):
    return rng.random((n, w))


ROWS = (_normal, _positive, _spread, _spread_entries, _one_large, _one_hot, _equal, _tiny, _huge, _extreme, _zero)
CHANCES = np.array([6, 2, 4, 2, 5, 1, 1, 1, 1, 1, 0.3])


def _with_zeros(x, rng):
    """Padding at either end, or zeros in the middle, of half of the draws."""
    n = len(x)
    low, high = np.sort(rng.integers(0, n + 1, 2))
    case = rng.integers(6)
    if case == 0:
        x[:low] = 0
    elif case == 1:
        x[high:] = 0
    elif case == 2:
        x[low:high] = 0
    return x


def rows(n, w, rng, dtype, kinds=ROWS, chances=CHANCES):
    kind = kinds[rng.choice(len(kinds), p=chances / chances.sum())]
    x = _with_zeros(kind(n, w, rng), rng)
    limit = 1e15 if dtype == np.float32 else 1e300
    return np.clip(x, -limit, limit).astype(dtype)


def mask_of(n, rng, draw):
    """Draw one of the five structures, or a layout that users have."""
    window = int(rng.integers(1, n + 1))
    return {
        0: lambda: CausalStructure(n),
        1: lambda: RowChangeMask.from_dense(draw(RowChangeMask, n, rng)),
        2: lambda: ContinuousRowsMask.from_dense(draw(ContinuousRowsMask, n, rng)),
        3: lambda: DistinctColumnsMask.from_dense(draw(DistinctColumnsMask, n, rng)),
        4: lambda: DistinctRowsMask.from_dense(draw(DistinctRowsMask, n, rng)),
        5: lambda: sliding_window(n, window),
        6: lambda: as_row_change(sliding_window(n, window)),
        7: lambda: shifted_groups(n, window, causal=bool(rng.random() < 0.5)),
        8: lambda: document_blocks(np.diff(np.unique([0, n, *rng.integers(0, n + 1, 3)])), causal=rng.random() < 0.5),
        9: lambda: prefix_lm(n, window),
    }[int(rng.integers(10))]()


# --- definitions: each value with its natural size ---


class Right(NamedTuple):
    """What is right, and its natural size."""

    value: np.ndarray
    size: np.ndarray


def _product(weights, size, x, x_size):
    return Right(weights @ x, size @ x_size)


def product_by_definition(W, u1, u2, v, dout):
    """The product and its gradients, in the order of the call: out, du1, du2, dv."""
    u1, u2, v, dout = (x.astype(WIDE) for x in (u1, u2, v, dout))
    a1, a2, av, ad = (np.abs(x) for x in (u1, u2, v, dout))
    S, size = W * (u1 @ u2.T), W * (a1 @ a2.T)
    dS, dsize = W * (dout @ v.T), W * (ad @ av.T)
    return [
        _product(S, size, v, av),
        _product(dS, dsize, u2, a2),
        _product(dS.T, dsize.T, u1, a1),
        _product(S.T, size.T, dout, ad),
    ]


def _polynomial(features, q, k):
    """The polynomial's weights, and s p′(s q·k), each with its size."""
    a = polynomial_coefficients(features.degree, features.bound, kind=features.kind).astype(WIDE)
    s = WIDE(features.scale)
    x, size = s * (q @ k.T), abs(s) * (np.abs(q) @ np.abs(k).T)
    power = np.arange(1, len(a)).astype(WIDE)

    def at(coefficients, x):
        total = np.zeros(x.shape, WIDE)
        for c in coefficients[::-1]:
            total = total * x + c
        return total

    slope = a[1:] * power
    return at(a, x), at(np.abs(a), size), s * at(slope, x), abs(s) * at(np.abs(slope), size)


def attention_by_definition(W, features, q, k, v, dout):
    """Attention with approximate weights, and its gradients: out, dq, dk, dv."""
    q, k, v, dout = (x.astype(WIDE) for x in (q, k, v, dout))
    aq, ak, av, ad = (np.abs(x) for x in (q, k, v, dout))
    if isinstance(features, PolynomialFeatures):
        w, size, slope, slope_size = _polynomial(features, q, k)
    else:
        root, sign, P = np.sqrt(WIDE(abs(features.scale))), np.sign(features.scale), features.projections.astype(WIDE)
        x, y = root * q, sign * root * k
        f, g = (np.exp(z @ P.T - (z * z).sum(axis=1, keepdims=True) / 2) for z in (x, y))
        g /= features.rank
        w = size = f @ g.T
    w, size = W * w, W * size
    D = w.sum(axis=1, keepdims=True)
    with np.errstate(divide="ignore", invalid="ignore"):
        inverse = np.where(W.any(axis=1, keepdims=True), 1 / D, 0)
        loss = size.sum(axis=1, keepdims=True) * inverse  # 1 where all weights are positive
    out = Right(w @ v * inverse, loss * (size @ av) * inverse)
    dN, dN_size = dout * inverse, loss * ad * inverse
    dD, dD_size = -(dN * out.value).sum(axis=1, keepdims=True), (dN_size * out.size).sum(axis=1, keepdims=True)
    dw, dw_size = W * (dN @ v.T + dD), W * (dN_size @ av.T + dD_size)
    dv = Right(w.T @ dN, size.T @ dN_size)
    if isinstance(features, PolynomialFeatures):
        H, H_size = dw * slope, dw_size * slope_size
        return [out, Right(H @ k, H_size @ ak), Right(H.T @ q, H_size.T @ aq), dv]
    dq, dq_size, dk, dk_size = (np.zeros(z.shape, WIDE) for z in (q, q, k, k))
    for a in range(features.rank):  # forward: f = exp(w·x − ‖x‖²/2)
        part, part_size = dw * np.outer(f[:, a], g[:, a]), dw_size * np.outer(f[:, a], g[:, a])
        dq += root * part.sum(axis=1)[:, None] * (P[a] - x)
        dq_size += root * part_size.sum(axis=1)[:, None] * (np.abs(P[a]) + np.abs(x))
        dk += sign * root * part.sum(axis=0)[:, None] * (P[a] - y)
        dk_size += root * part_size.sum(axis=0)[:, None] * (np.abs(P[a]) + np.abs(y))
    return [out, Right(dq, dq_size), Right(dk, dk_size), dv]


# --- judgement ---


def fault(names, found, right, rtol):
    """Return what is wrong with the first result that is: its name and worst row; None if nothing is."""
    for name, got, one in zip(names, found, right, strict=True):
        least = WIDE(np.finfo(got.dtype).tiny)
        with np.errstate(invalid="ignore"):
            share = np.abs(got.astype(WIDE) - one.value) / (rtol * one.size + least)
        share = np.where(np.isnan(share), np.inf, share)
        if share.max() > 1:
            row = int(share.max(axis=1).argmax())
            return f"{name}: row {row} is off by {float(share.max()):.3g} tolerances"
    return None


def may_overflow(right, dtype):
    """Whether the natural size of a result exceeds what the dtype holds: then a refusal is right."""
    return any(one.size.max() > WIDE(np.finfo(dtype).max) / 16 for one in right)


def product_fault(seed, dtype, draw, method, rtol, long=False):
    """Draw a product; return what is wrong with it, "refused" where it may be, or None."""
    rng = np.random.default_rng(seed)
    n = int(rng.choice(LONG if long else LENGTHS))
    r, d = (int(rng.choice(WIDTHS[: 8 if long else None])) for _ in range(2))
    mask = mask_of(n, rng, draw)
    kinds = (ROWS, CHANCES) if rng.random() < 0.8 else ((_extreme,), np.ones(1))  # all four near the ends, or any
    u1, u2, v, dout = (rows(n, w, rng, dtype, *kinds) for w in (r, r, d, d))
    right = product_by_definition(mask.to_dense(), u1, u2, v, dout)
    try:
        out, cache = masked_product_forward(u1, u2, v, mask=mask, method=method)
        found = [out, *masked_product_backward(dout, cache)]
    except ValueError as refusal:
        return "refused" if may_overflow(right, dtype) else f"refused without need: {refusal}"
    return fault(("out", "du1", "du2", "dv"), found, right, rtol)


CALM = (_normal, _positive, _one_hot, _equal, _spread, _tiny, _zero)


def attention_fault(seed, dtype, draw, method, rtol, long=False):
    """Draw an attention; return what is wrong with it, "refused" where it may be, or None."""
    rng = np.random.default_rng(seed)
    n = int(rng.choice(LONG if long else LENGTHS))
    d, width = int(rng.integers(1, 5)), int(rng.choice(WIDTHS))
    mask = mask_of(n, rng, draw)
    q, k = (rows(n, d, rng, np.float64, CALM, np.ones(len(CALM))) for _ in range(2))
    q, k = ((x / (np.abs(x).max() or 1) * rng.choice([1e-6, 0.3, 1.0])).astype(dtype) for x in (q, k))
    v, dout = (rows(n, width, rng, dtype) for _ in range(2))
    if rng.random() < 0.7:
        bound = max(logit_bound(q, k), 1e-6) * (1 + 1e-6)
        features = PolynomialFeatures(d, int(rng.integers(2, 7)), bound)
        if features.error > 0.9:
            features = PolynomialFeatures(d, 6, bound)
    else:
        features = RandomFeatures(d, int(rng.integers(1, 20)), seed=seed)
    right = attention_by_definition(mask.to_dense(), features, q, k, v, dout)
    try:
        out, cache = lowrank_attention_forward(q, k, v, features=features, mask=mask, method=method)
        found = [out, *lowrank_attention_backward(dout, cache)]
    except ValueError as refusal:
        return "refused" if may_overflow(right, dtype) else f"refused without need: {refusal}"
    return fault(("out", "dq", "dk", "dv"), found, right, rtol)
