"""Right answers in extended precision, and how far a result may be from them: for small inputs of any size of number.

Extended precision has a wider exponent than float64, so what overflows or underflows on the way in a function under
test does not do so here. Bounds are a-priori ones: a logit of d terms, scaled, is off by ``u (d + 2) |s| Σ |q k|``
or so with the unit roundoff u, a weight by as much relative to itself, an output by as much relative to ``‖V‖_∞``, and
never by more than ``2 ‖V‖_∞``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

Wide = np.ndarray
ROUNDINGS = 16
"""Factor of the a-priori bounds: the order of sums, the exponential, the quotient."""


def wide(array: Any) -> Wide:
    """Return an argument as extended precision."""
    return np.asarray(np.asarray(array), np.longdouble)


def unit(result: np.ndarray) -> float:
    """Unit roundoff of the precision computed in."""
    return float(np.finfo(result.dtype).eps) / 2


def require_within(name: str, result: np.ndarray, right: Wide, bound: Wide) -> None:
    """Raise ``AssertionError`` where a result is further from the right answer than the bound."""
    assert result.shape == right.shape, f"{name}: shape {result.shape}, {right.shape} was expected"
    with np.errstate(all="ignore"):
        # a right answer beyond the dtype may come out as its largest number only if the bound allows it
        excess = np.abs(wide(result) - right) - np.broadcast_to(bound, right.shape)
    bad = ~(excess <= 0)
    if bad.any():
        at = tuple(int(i) for i in np.argwhere(bad)[0])
        raise AssertionError(
            f"{name}{list(at)}: {result[at]} came, {right[at]} is right, within"
            f" {np.broadcast_to(bound, right.shape)[at]} ({int(bad.sum())} of {bad.size} are wrong)"
        )


@dataclass(frozen=True)
class Softmax:
    """Weights of every row, what their relative error may be, and the inputs with common leading axes."""

    q: Wide
    k: Wide
    v: Wide
    weights: Wide
    error: Wide
    scale: np.longdouble


def _by_query_head(q: Wide, k: Wide) -> Wide:
    """Repeat key-value heads that are shared by groups."""
    heads, heads_kv = (x.shape[-3] if x.ndim > 2 else 1 for x in (q, k))
    return np.repeat(k, heads // heads_kv, axis=-3) if 1 < heads_kv < heads else k


def softmax(
    q: Any, k: Any, v: Any, *, allowed: Any, scale: Any, unit: float, softcap: Any = None, bias: Any = 0.0
) -> Softmax:
    """Softmax attention from the definition."""
    q, k, v = wide(q), wide(k), wide(v)
    k, v = _by_query_head(q, k), _by_query_head(q, v)
    factor = 1 / np.sqrt(np.longdouble(q.shape[-1])) if scale is None else np.longdouble(scale)
    with np.errstate(all="ignore"):
        logits = q @ k.swapaxes(-1, -2) * factor
        size = np.abs(q) @ np.abs(k).swapaxes(-1, -2) * abs(factor)
        if softcap is not None:
            logits = np.longdouble(softcap) * np.tanh(logits / np.longdouble(softcap))
        logits = np.where(allowed, logits + bias, -np.inf)
        size = np.where(allowed, size + np.abs(np.where(allowed, bias, 0)), 0).max(axis=-1, keepdims=True)
        largest = logits.max(axis=-1, keepdims=True)
        weights = np.exp(logits - np.where(np.isneginf(largest), 0, largest))
        total = weights.sum(axis=-1, keepdims=True)
        weights = weights / np.where(total > 0, total, 1)
    error = ROUNDINGS * unit * (q.shape[-1] + k.shape[-2] + size)
    return Softmax(q, k, v, weights, np.minimum(error, 1), factor)


def require_output(result: np.ndarray, right: Softmax, *, also: float = 0.0) -> None:
    """Hold an output to the definition; `also` is a further error relative to the largest value."""
    with np.errstate(all="ignore"):
        largest = np.abs(right.v).max(axis=(-1, -2), keepdims=True)
        tiny = float(np.finfo(result.dtype).tiny) * right.v.shape[-2]
        require_within("out", result, right.weights @ right.v, 2 * (right.error + also) * largest + tiny)


def require_gradients(found: Any, dout: Any, right: Softmax, *, also: float = 0.0, slope: Wide | float = 1.0) -> None:
    """Hold gradients with respect to q, k and v to the definition."""
    g = wide(dout)
    tiny = np.longdouble(np.finfo(found.v.dtype).tiny) * right.v.shape[-2] * max(g.shape[-1], right.q.shape[-1])
    with np.errstate(all="ignore"):
        s = abs(right.scale)
        dweights = g @ right.v.swapaxes(-1, -2)
        dlogits = right.weights * (dweights - (right.weights * dweights).sum(axis=-1, keepdims=True))
        dlogits = dlogits * slope * right.scale
        # the size of what is added up, and what each of it is off by: relative to the row, or by an underflow
        size = (np.abs(g) @ np.abs(right.v).swapaxes(-1, -2)).max(axis=-1, keepdims=True)
        off = 4 * (right.error + also) * size * (right.weights + right.error + also) + tiny
        off = np.where(right.weights.sum(axis=-1, keepdims=True) > 0, off * max(s, 1), 0)
        dq, dk, dv = (
            dlogits @ right.k,
            dlogits.swapaxes(-1, -2) @ right.q,
            right.weights.swapaxes(-1, -2) @ g,
        )
        bounds = (
            off @ np.abs(right.k) + tiny,
            off.swapaxes(-1, -2) @ np.abs(right.q) + tiny,
            2 * (right.weights * (right.error + also) + (right.error + also)).swapaxes(-1, -2) @ np.abs(g) + tiny,
        )
    for name, one, bound in zip("qkv", (dq, dk, dv), bounds, strict=True):
        result = getattr(found, name)
        require_within(f"d{name}", result, _sum_to(one, result.shape), _sum_to(bound, result.shape))


def _sum_to(gradient: Wide, shape: tuple[int, ...]) -> Wide:
    """Sum over axes that were broadcast, and over query heads that share a key-value head."""
    if len(shape) > 2 and gradient.shape[-3] != shape[-3] and shape[-3] > 1:
        group = gradient.shape[-3] // shape[-3]
        gradient = gradient.reshape(*gradient.shape[:-3], shape[-3], group, *gradient.shape[-2:]).sum(axis=-3)
    extra = gradient.ndim - len(shape)
    gradient = gradient.sum(axis=tuple(range(extra)))
    axes = tuple(i for i, n in enumerate(shape) if n == 1 and gradient.shape[i] > 1)
    return gradient.sum(axis=axes, keepdims=True) if axes else gradient
