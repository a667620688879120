"""The derivative of conv attention, near-linearly (ours): `refattn.convbasis.gradients` by the block transform.

With ``z_i = G_i / D_i`` for the upstream G, and ``r_i = G_i · Ỹ_i``:

    forward   Ỹ = D⁻¹ Σ_i conv(g_i, m_i) V
    backward  dV = (Σ_i conv(g_i, m_i))ᵀ z                                  the transposed product
              du_i[t] = g_i[t] Σ_{j in segment i} (z_{j+t} · v_j − r_{j+t}/D_{j+t})        correlations
              dq_{c_i+t} += scale · du_i[t] k_{c_i},   dk_{c_i} += scale · Σ_t du_i[t] q_{c_i+t}

One transform of z serves dV and du. 1/D varies over many decades, so z is scaled in every block of rows by its largest
1/D. Rows that the forward computed directly are left out of the transforms and enter by their own weights.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from refattn._threads import one_blas_thread
from refattn._validation import FloatArray
from refattn.convbasis import _gradient_kernels
from refattn.convbasis.blocks import BlockProduct, Spectra
from refattn.convbasis.direct import row_weights
from refattn.convbasis.fast import FastSoftmax
from refattn.convbasis.gradients import ConvGradients
from refattn.convbasis.kernel_gradient import kernel_gradient

_TILE_ENTRIES = 1 << 21
"""Weights of recomputed rows formed at once."""
_ROWS = 1 << 14
"""Rows of q and k multiplied at once."""


def approximation_gradient(
    G: FloatArray,
    Y: FloatArray,
    Q: FloatArray,
    K: FloatArray,
    V: FloatArray,
    f: FastSoftmax,
    lost: NDArray[np.int64],
    scale: float,
) -> ConvGradients:
    """Derivative of conv attention with the starts held fixed, for one head.

    Parameters
    ----------
    G, Y : ndarray, shape (n, d_v)
        Upstream gradient and output.
    Q, K : ndarray, shape (n, d)
        Queries and keys.
    V : ndarray, shape (n, d_v)
        Values.
    f : FastSoftmax
        The forward's operator.
    lost : ndarray of int
        Rows that the forward computed directly, in increasing order.
    scale : float
        Factor of the logits.

    Returns
    -------
    ConvGradients
        Of q, k and v. Time O(knd + nd log n + r n d) with r lost rows.
    """
    r = (G * Y).sum(axis=1, keepdims=True)
    dV = np.zeros_like(V)
    dlower = np.zeros_like(f.lower[1])
    dupper = None if f.upper is None else np.zeros_like(f.upper[1])
    if f.below is not None and lost.size < len(G):
        dlower += _through_lower(f.below, G, r, V, f, lost, dV)
        if f.above is not None and dupper is not None:
            dupper += _through_upper(f.above, G, r, V, f, lost, dV)
    _add_rows(lost, G, r, V, f, dV, dlower, dupper)

    factor = np.asarray(scale, G.dtype)
    dQ, dK = np.zeros_like(Q), np.zeros_like(K)
    _through_kernels(f.lower[0], dlower, Q, K, dQ, dK)
    if f.upper is not None and dupper is not None:
        _through_kernels(f.upper[0], dupper, K, Q, dK, dQ)
    return ConvGradients(factor * dQ, factor * dK, dV)


class KeptRows:
    """f with the rows that the forward recomputed: products with it and its transpose, for the paper's gradient.

    Parameters
    ----------
    f : FastSoftmax
        The forward's operator.
    lost : ndarray of int
        Rows that the forward computed directly, in increasing order.
    tol : float
        Row tolerance of the products.
    """

    def __init__(self, f: FastSoftmax, lost: NDArray[np.int64], tol: float) -> None:
        self.f, self.lost, self.tol = f, lost, tol

    def apply(self, w: FloatArray) -> FloatArray:
        """``f w``, shape (n, d), every row guarded."""
        y = np.empty_like(w)
        self.f.write(w, self.tol, y)
        return y

    def apply_transposed(self, w: FloatArray) -> FloatArray:
        """``fᵀ w``, shape (n, d)."""
        f, y = self.f, np.zeros_like(w)
        if f.below is not None and self.lost.size < f.n:
            z, exponents = _scaled_rows(w, f, self.lost)
            _add_transposed(f.below, f.below.load(z, f.below.rows), exponents, f.shift, y)
            if f.above is not None:
                own = exponents[f.above.pairs.block]
                _add_upper_transposed(f.above, f.above.load(z, f.above.pairs), own, f.shift, y)
        for tile, seen, weights in _tiles(self.lost, f):
            y[:seen] += weights @ w[tile]
        return y


def _scaled_rows(
    w: FloatArray, f: FastSoftmax, lost: NDArray[np.int64], last: FloatArray | None = None
) -> tuple[FloatArray, NDArray[np.float64]]:
    """``w/D``, zero in the lost rows, each block of rows times ``exp(−exponents[block])``; `last` is a column more."""
    block = f.plan.block
    size = np.full(f.n, -np.inf)
    kept = np.ones(f.n, dtype=bool)
    kept[lost] = False
    size[kept] = -np.log(f.total[kept])
    exponents = np.maximum.reduceat(size, np.arange(0, f.n, block))
    exponents[exponents == -np.inf] = 0
    with np.errstate(under="ignore"):
        factor = np.exp(size - np.repeat(exponents, block)[: f.n]).astype(w.dtype)[:, None]
    z = _widened(w, last)
    z *= factor
    return z, exponents


def _widened(w: FloatArray, last: FloatArray | None) -> FloatArray:
    """A copy of w with one more column, if there is one, and one of zeros if their number is odd."""
    used = w.shape[1] + (last is not None)
    wide = np.zeros((w.shape[0], used + used % 2), w.dtype)
    wide[:, : w.shape[1]] = w
    if last is not None:
        wide[:, w.shape[1]] = last[:, 0]
    return wide


def _add_transposed(
    below: BlockProduct, rows: Spectra, exponents: NDArray[np.float64], shift: float, y: FloatArray
) -> None:
    """Add the product of the transposed lower part with rows that are loaded."""
    reached, _ = below.multiply(rows, transposed=True, exponents=exponents)
    below.store(rows, below.pairs, below.pairs.spread(np.exp(reached - shift)), y, add=True)
    rows.release()


def _add_upper_transposed(
    above: BlockProduct, rows: Spectra, exponents: NDArray[np.float64], shift: float, y: FloatArray
) -> None:
    """The same for the upper part, whose rows are the columns of the matrix of the transposed logits."""
    reached, _ = above.multiply(rows, exponents=exponents)
    above.store(rows, above.rows, above.rows.spread(np.exp(reached - shift)), y, add=True)
    rows.release()


def _through_lower(
    below: BlockProduct,
    G: FloatArray,
    r: FloatArray,
    V: FloatArray,
    f: FastSoftmax,
    lost: NDArray[np.int64],
    dV: FloatArray,
) -> FloatArray:
    """Add the lower part of ``fᵀ G`` to dV and return the gradient of the lower kernels."""
    z, exponents = _scaled_rows(G, f, lost, -r)
    rows = below.load(z, below.rows)
    del z
    columns = below.load(_widened(V, np.ones_like(r)), below.pairs)
    du = kernel_gradient(below, columns, rows, np.zeros(len(below.pairs)), exponents + (below.shift - f.shift))
    columns.release()
    _add_transposed(below, rows, exponents, f.shift, dV)
    return du


def _through_upper(
    above: BlockProduct,
    G: FloatArray,
    r: FloatArray,
    V: FloatArray,
    f: FastSoftmax,
    lost: NDArray[np.int64],
    dV: FloatArray,
) -> FloatArray:
    """The same above the diagonal, where rows of f are columns of the matrix of the transposed logits."""
    z, exponents = _scaled_rows(G, f, lost, -r)
    own = exponents[above.pairs.block]
    rows = above.load(z, above.pairs)
    del z
    columns = above.load(_widened(V, np.ones_like(r)), above.rows)
    du = kernel_gradient(above, rows, columns, own + (above.shift - f.shift), np.zeros(len(above.rows)))
    columns.release()
    _add_upper_transposed(above, rows, own, f.shift, dV)
    return du


def _add_rows(
    rows: NDArray[np.int64],
    G: FloatArray,
    r: FloatArray,
    V: FloatArray,
    f: FastSoftmax,
    dV: FloatArray,
    dlower: FloatArray,
    dupper: FloatArray | None,
) -> None:
    """Add what the given rows contribute, from their own weights: ``w_ij = f_ij (G_i · v_j − r_i)`` along diagonals."""
    for tile, seen, weights in _tiles(rows, f):
        dV[:seen] += weights @ G[tile]
        w = V[:seen] @ G[tile].T
        w -= r[tile, 0]
        w *= weights
        _gradient_kernels.add_lower_diagonals(f.lower[0], tile, w, dlower)
        if f.upper is not None and dupper is not None:
            _gradient_kernels.add_upper_diagonals(f.upper[0], tile, w, dupper)


def _tiles(rows: NDArray[np.int64], f: FastSoftmax) -> Iterator[tuple[NDArray[np.int64], int, FloatArray]]:
    """Yield rows, the number of keys they see, and their weights, shape (keys, rows); with one BLAS thread."""
    step = max(1, _TILE_ENTRIES // f.n)
    with one_blas_thread():  # sums in one order, whatever the number of threads
        for first in range(0, rows.size, step):
            tile = rows[first : first + step]
            seen = int(tile[-1]) + 1 if f.upper is None else f.n
            yield tile, seen, row_weights(tile, seen, f.lower, f.upper)


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
