"""Units for columns: powers of two that bring them near one, and back, changing no other bit (ours).

Products are linear in what is multiplied. In units near one nothing overflows that need not, and columns that share a
transform are of one size.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from refattn._validation import FloatArray

_NEAR = 20
"""Exponents of sizes that are near enough to one: products of a few of them neither overflow nor vanish."""
_FLOAT32_DECADES = 18
"""Decades that products of rows of float32 may span, so that q or k, as small again, still finds a number."""
_NO_SIZE = 1 << 14
"""Two to minus this is zero in every dtype."""


class Units(NamedTuple):
    """G, Y and V in units near one: what ``G_i · v_j`` and ``G_i · Y_i`` are, is theirs times ``2^exponent``."""

    G: FloatArray
    Y: FloatArray
    V: FloatArray
    exponent: int
    uneven: bool


def in_units(
    G: FloatArray, Y: FloatArray, V: FloatArray, g_sizes: FloatArray, v_sizes: FloatArray, ratio: float
) -> Units:
    """Bring the columns of V, of the given sizes, to `common_units`, and G and Y to those that go with them."""
    v = common_units(v_sizes, ratio)
    used = (g_sizes > 0) & (v_sizes > 0)
    if not used.any():
        return Units(np.zeros_like(G), np.zeros_like(Y), scaled(V, -v), 0, False)
    products = np.frexp(g_sizes)[1] + v
    exponent = int(products[used].max())
    if np.ndim(v) == 0 and abs(exponent - v) <= _NEAR:  # G is near one
        exponent = v
    own = np.where(used, v - exponent, -_NO_SIZE) if np.ndim(v) else v - exponent
    return Units(scaled(G, own), scaled(Y, -v), scaled(V, -v), exponent, np.ndim(v) > 0)


def common_units(sizes: FloatArray, ratio: float) -> Any:
    """Exponents of the units of columns of these sizes: one for all, if none is `ratio` times another, else one each.

    Sizes that are near one already stay as they are. A column of zeros has no size, and the smallest unit there is.
    """
    exponents = np.frexp(sizes)[1]
    used = sizes > 0
    if not used.any():
        return 0
    if sizes[used].max() <= ratio * sizes[used].min():
        exponent = int(exponents[used].max())
        return exponent if abs(exponent) > _NEAR else 0
    return np.where(used, exponents, exponents[used].min())


def in_units_of(units: Units, sizes: FloatArray, theirs: Units) -> FloatArray:
    """Sizes made of `theirs`, to be compared with what is made of `units`: never larger than they are."""
    return scaled(sizes, min(theirs.exponent - units.exponent, 0))


def scaled(x: FloatArray, exponents: Any) -> FloatArray:
    """``x · 2^exponents``, one exponent for all columns or one each; what overflows is infinite."""
    if not np.any(exponents):
        return x
    limit = -np.finfo(x.dtype).minexp - 1
    with np.errstate(over="ignore", under="ignore"):
        if np.abs(exponents).max() < limit:  # a product with a power of two is exact, and faster
            return np.asarray(x * np.exp2(exponents).astype(x.dtype))
        return np.asarray(np.ldexp(x, exponents))


def spans_too_much(g: FloatArray, v: FloatArray) -> bool:
    """Whether products of rows of these sizes span so many decades that float32 has too few left for q and k."""
    return _decades(g) + _decades(v) > _FLOAT32_DECADES


def _decades(sizes: FloatArray) -> float:
    """Decades between the largest size and the smallest that is not zero."""
    used = sizes[sizes > 0].astype(np.float64)
    return float(np.log10(used.max()) - np.log10(used.min())) if used.size else 0.0
