"""The derivative of conv attention, near-linearly (ours): `refattn.convbasis.guarded.gradients` by the block transform.

With ``z_i = G_i / D_i`` for the upstream G, and ``r_i = G_i · Ỹ_i``:

    forward   Ỹ = D⁻¹ Σ_i conv(g_i, m_i) V
    backward  dV = (Σ_i conv(g_i, m_i))ᵀ z                                  the transposed product
              du_i[t] = g_i[t] Σ_{j in segment i} (z_{j+t} · v_j − r_{j+t}/D_{j+t})        correlations
              dq_{c_i+t} += scale · du_i[t] k_{c_i},   dk_{c_i} += scale · Σ_t du_i[t] q_{c_i+t}

Each product is guarded by the vectors that are multiplied in it. Rows of f that an FFT loses whatever it multiplies are
left out of the transforms and enter by their own weights; a lag whose estimated error exceeds the tolerance, relative
to its natural size, is summed up pair by pair.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from refattn._compiled import as_input
from refattn._threads import for_each, one_blas_thread
from refattn._validation import FloatArray
from refattn.convbasis.fast import gradients_loops
from refattn.convbasis.fast.blocks import BlockProduct
from refattn.convbasis.fast.correlations import kernel_gradient, lost_lags
from refattn.convbasis.fast.rows import Segments, row_tiles, write_lags
from refattn.convbasis.fast.softmax import UNEVEN, FastSoftmax, Transposed
from refattn.convbasis.guarded.gradients import ConvGradients, Recomputed
from refattn.convbasis.guarded.units import Units, common_units, in_units, scaled, spans_too_much

_ROWS = 1 << 14
"""Rows of q and k multiplied at once."""
_ROWS_OF_TERMS = 1 << 12
"""Rows of G, Y and V summed up at once."""
_FEW_ROWS = 256
"""Terms whose rounding, added up one after the other, does not count."""
_DIRECT_SHARE = 4
"""Where more than one in so many pairs of rows and columns would be visited for lost lags, all are, by rows."""


def approximation_gradient(
    G: FloatArray, Y: FloatArray, Q: FloatArray, K: FloatArray, V: FloatArray, f: FastSoftmax, scale: float
) -> ConvGradients:
    """Derivative of conv attention with the starts held fixed, for one head, by the forward's operator.

    Shapes are those of `refattn.convbasis.guarded.gradients`. Time O(knd + nd log n + r n d) with r rows, columns and
    lags computed directly.
    """
    own = Units(G, Y, V, exponent=0, uneven=False)
    terms = _terms(own)
    if G.dtype == np.float32 and spans_too_much(terms.row_sizes[:, 0], terms.column_sizes[:, 0]):
        G, Y, Q, K, V = (one.astype(np.float64) for one in (G, Y, Q, K, V))
        return approximation_gradient(G, Y, Q, K, V, f.in_float64(), scale)
    g_columns, v_columns = terms.g_columns, terms.v_columns
    units = in_units(G, Y, V, g_columns, v_columns, UNEVEN)
    if units.G is not G or units.V is not V:
        terms = _terms(units)
    sizes = [terms]
    if units.uneven:  # a row may be large in units in which it has nothing to meet
        sizes.append(_terms(in_units(G, Y, V, g_columns, v_columns, np.inf)))
    # where G needs no units of its own, one transform of it serves both
    shared = units.G is G and not np.any(common_units(terms.g_columns, UNEVEN))
    transposed: list[Transposed] | None = [] if shared else None
    dlower, dupper, lags = _kernel_gradients(terms, sizes, f, transposed)
    if transposed:
        (found,) = transposed
        dV, report = found.y, f.finish_transposed(G, found, terms.g_columns, terms.g_rows)
    else:
        dV, report = f.transposed_product(G)
    dQ, dK = np.zeros_like(Q), np.zeros_like(K)
    _through_kernels(f.lower[0], dlower, Q, K, dQ, dK)
    if f.upper is not None:
        _through_kernels(f.upper[0], dupper, K, Q, dK, dQ)
    for gradient in (dQ, dK):
        gradient *= np.asarray(scale, G.dtype)
    rows = Recomputed(f.lost.size, report.rows.size, lags)
    return ConvGradients(scaled(dQ, units.exponent), scaled(dK, units.exponent), dV, rows)


class _Terms(NamedTuple):
    """What the derivative with respect to a logit is made of.

    ``w_ij = f_ij (G_i · V_j − r_i)``; its natural size is ``f_ij (row_sizes_i · column_sizes_j)``. `unit`, a power of
    two, is of the size of V: with ``(V_j, unit)`` and ``(G_i, −r_i/unit)`` what shares a transform is of one size.
    """

    G: FloatArray
    V: FloatArray
    r: FloatArray
    row_sizes: FloatArray
    column_sizes: FloatArray
    g_rows: FloatArray
    g_columns: FloatArray
    v_columns: FloatArray
    unit: Any


def _terms(units: Units) -> _Terms:
    """Sums over the columns, and the largest entries of the rows of G and of the columns of G and V."""
    G, Y, V = as_input(units.G), as_input(units.Y), as_input(units.V)
    n, d = G.shape
    firsts = range(0, n, _ROWS_OF_TERMS)
    r, largest = np.empty((2, n), G.dtype)
    rows, columns = np.empty((2, n, 2), G.dtype)
    parts = np.zeros((len(firsts), 2, d), G.dtype)

    def one(part: int) -> None:
        low = firsts[part]
        high = min(low + _ROWS_OF_TERMS, n)
        gradients_loops.logit_terms(G, Y, V, low, high, r, rows, columns, largest, parts[part])

    for_each(one, range(len(firsts)))
    g_columns, v_columns = parts.max(axis=0)
    unit = np.exp2(np.frexp(v_columns.max())[1]).astype(G.dtype)
    rows[:, 1] /= unit
    columns[:, 1] = unit
    return _Terms(G, V, r, rows, columns, largest, g_columns, v_columns, unit)


def _kernel_gradients(
    terms: _Terms, sizes: list[_Terms], f: FastSoftmax, transposed: list[Transposed] | None
) -> tuple[FloatArray, FloatArray, int]:
    """Gradients of the kernels, lower and upper (empty for causal attention), and how many entries were summed up.

    Every entry is held to each of the natural sizes that are given. ``fᵀ G``, without the lost rows of f, is added to
    `transposed`, if that is wanted.
    """
    if f.below is None or f.lost.size == f.n:
        return _direct_kernel_gradients(terms, f)
    dlower, lost_lower = _through(f.below, terms, sizes, f, transposed)
    dupper = np.zeros((0, f.n) if f.upper is None else f.upper[1].shape, f.dtype)
    lost_upper = np.zeros(dupper.shape, dtype=bool)
    if f.above is not None:
        dupper, lost_upper = _through(f.above, terms, sizes, f, transposed)
    if (_pairs(f.lower, lost_lower) + _pairs(f.upper, lost_upper)) * _DIRECT_SHARE > f.n * f.n:
        return _direct_kernel_gradients(terms, f)
    if f.lost.size > _FEW_ROWS:  # many are summed up in float64
        own_lower, own_upper = np.zeros(dlower.shape), np.zeros(dupper.shape)
        _add_rows(f.lost, terms, f, own_lower, own_upper)
        dlower += own_lower.astype(f.dtype)
        dupper += own_upper.astype(f.dtype)
    else:
        _add_rows(f.lost, terms, f, dlower, dupper)
    for lost, basis, du in ((lost_lower, f.lower, dlower), (lost_upper, f.upper, dupper)):
        if basis is not None and lost.any():
            own = terms.G, terms.r, terms.V, f.log_sum_exp
            write_lags(lost, *own, basis, du, transposed=basis is f.upper)
    return dlower, dupper, int(np.count_nonzero(lost_lower) + np.count_nonzero(lost_upper))


def _direct_kernel_gradients(terms: _Terms, f: FastSoftmax) -> tuple[FloatArray, FloatArray, int]:
    """The same, every row by its own weights."""
    dlower, dupper = np.zeros(f.lower[1].shape), np.zeros((0, f.n) if f.upper is None else f.upper[1].shape)
    _add_rows(np.arange(f.n), terms, f, dlower, dupper)
    entries = int((f.n - f.lower[0]).sum()) + (0 if f.upper is None else int((f.n - f.upper[0]).sum()))
    return dlower.astype(f.dtype), dupper.astype(f.dtype), entries


def _through(
    product: BlockProduct, terms: _Terms, sizes: list[_Terms], f: FastSoftmax, transposed: list[Transposed] | None
) -> tuple[FloatArray, NDArray[np.bool_]]:
    """Gradient of the kernels of one part by correlations, without the lost rows of f, and which entries they lose."""
    given = [_beside(terms.G, -terms.r / terms.unit), _beside(terms.V, np.full_like(terms.r, terms.unit))]
    found, noise = _correlations(product, given, f, transposed, terms.G.shape[1])
    lost = np.zeros(found.shape, dtype=bool)
    for one in sizes:
        natural, natural_noise = _correlations(product, [one.row_sizes.copy(), one.column_sizes], f)
        lost |= lost_lags(product, noise, natural, natural_noise, f.tol)
    return found, lost


def _correlations(
    product: BlockProduct,
    given: list[FloatArray],
    f: FastSoftmax,
    transposed: list[Transposed] | None = None,
    width: int = 0,
) -> tuple[FloatArray, NDArray[np.float64]]:
    """`kernel_gradient` for ``f_ij (given[0]_i · given[1]_j)``; what is given is used up, and let go as soon as it can.

    ``fᵀ given[0]``, its first `width` columns, is added to `transposed`, if that is wanted. Above the diagonal rows are
    columns of the matrix.
    """
    exponents = f.scale_rows(given[0])
    shifted = exponents + (product.shift - f.shift)
    upper = product is f.above
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):  # what is not finite is not kept
        own = product.load(given.pop(0), product.pairs if upper else product.rows)
        others = product.load(given.pop(0), product.rows if upper else product.pairs)
        if upper:
            found = kernel_gradient(product, own, others, shifted[product.pairs.block], np.zeros(len(product.rows)))
        else:
            found = kernel_gradient(product, others, own, np.zeros(len(product.pairs)), shifted)
    others.release()
    if transposed is not None:
        if not transposed:  # not before it is needed
            transposed.append(f.empty_product(width))
        f.add_transposed(product, own, exponents, transposed[0])
    own.release()
    return found


def _beside(w: FloatArray, last: FloatArray) -> FloatArray:
    """The columns of w, with zeros up to an odd number of them, and one column more."""
    d = w.shape[1]
    wide = np.zeros((len(w), d + 2 - d % 2), w.dtype)
    wide[:, :d] = w
    wide[:, -1] = last
    return wide


def _pairs(basis: Segments | None, lost: NDArray[np.bool_]) -> int:
    """How many pairs of rows and columns are on the diagonals of the lost lags."""
    if basis is None:
        return 0
    starts, n = basis[0], lost.shape[1]
    segment, lag = np.nonzero(lost)
    return int((np.minimum(np.append(starts[1:], n)[segment], n - lag) - starts[segment]).sum())


def _add_rows(rows: NDArray[np.int64], terms: _Terms, f: FastSoftmax, dlower: FloatArray, dupper: FloatArray) -> None:
    """Add what the given rows contribute, from their own weights: ``w_ij = f_ij (G_i · v_j − r_i)`` along diagonals."""
    for tile, seen, weights in row_tiles(rows, f.lower, f.upper):
        w = terms.V[:seen] @ terms.G[tile].T
        w -= terms.r[tile]
        w *= weights
        gradients_loops.add_lower_diagonals(f.lower[0], tile, w, dlower)
        if f.upper is not None:
            gradients_loops.add_upper_diagonals(f.upper[0], tile, w, dupper)


def _through_kernels(
    starts: NDArray[np.int64],
    du: FloatArray,
    rows: FloatArray,
    columns: FloatArray,
    drows: FloatArray,
    dcolumns: FloatArray,
) -> None:
    """Reverse ``u_i[t] = rows[c_i + t] · columns[c_i]`` for all segments: two products of matrices."""
    by_row = np.zeros_like(du)
    for i, c in enumerate(starts):
        by_row[i, c:] = du[i, : du.shape[1] - c]
    with one_blas_thread():
        for first in range(0, du.shape[1], _ROWS):
            part = slice(first, first + _ROWS)
            drows[part] += by_row[:, part].T @ columns[starts]
            dcolumns[starts] += by_row[:, part] @ rows[part]
