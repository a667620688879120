"""Conv attention near-linearly, with no row lost: the block transform, guarded, or a direct product (ours).

``N = Σ_i conv(g_i, m_i) V`` comes from `refattn.convbasis.blocks`; the denominators D are row sums of the same
matrix, of positive numbers, by plain additions. Only N has an FFT's error, so ``error(N_r)/D_r`` bounds the error of
row r. The error is estimated from norms; rows above the tolerance are computed from their logits
(`refattn.convbasis.direct`). A row is inside the tolerance or recomputed, never neither.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from refattn._memory import require_memory
from refattn._validation import FloatArray, require_finite
from refattn.convbasis.basis import ConvBasis
from refattn.convbasis.blocks import BlockProduct
from refattn.convbasis.cost import Plan, block_transform_bytes, choose_plan
from refattn.convbasis.direct import Segments, write_rows
from refattn.convbasis.toeplitz import near_one

_SAFE = {"float64": (1e-140, 1e140), "float32": (1e-24, 1e24)}
"""Sizes of values between which neither sums and squares of them overflow, nor what counts of those vanishes."""


def plan_head(v: FloatArray, lower: ConvBasis, upper: ConvBasis | None) -> Plan:
    """Choose the cheapest plan by the number of segments found."""
    k = max(int(basis.n_terms) for basis in (lower, upper) if basis is not None)
    return choose_plan(lower.n, k, v.shape[1], v.dtype)


class FastSoftmax:
    """The paper's f, row-stochastic, of one head, ready for products: `refattn.convbasis.paper.Softmax`, near-linearly.

    Parameters
    ----------
    lower : ConvBasis
        Basis of the logits on and below the diagonal.
    upper : ConvBasis or None
        Basis of the transposed logits, of which those above the diagonal are used; None for causal attention.
    plan : Plan
        The path, and the block length.
    width : int
        Columns of what it will be multiplied with, for the estimate of the memory.

    Attributes
    ----------
    lower, upper : Segments
        Starts, the first of which is 0, and kernels.
    below, above : BlockProduct or None
        The two parts of ``exp(logits)``; None on the direct path, as above the diagonal of causal attention.
    shift : float
        Largest logit.
    total : ndarray, shape (n,)
        Row sums D of ``exp(logits − shift)``, in float64 and without an FFT's error; empty on the direct path.

    Raises
    ------
    MemoryError
        The products would not fit into memory; the message has the estimate.
    """

    def __init__(self, lower: ConvBasis, upper: ConvBasis | None, plan: Plan, width: int) -> None:
        self.n, self.plan = lower.n, plan
        self.lower, self.upper = _covering(lower), None if upper is None else _covering(upper)
        self.below: BlockProduct | None = None
        self.above: BlockProduct | None = None
        self.shift, self.total = 0.0, np.zeros(0)
        if plan.path == "direct":
            return
        terms = len(self.lower[0]) + (0 if self.upper is None else len(self.upper[0]))
        dtype = lower.kernels.dtype
        require_memory("v: the block transform", block_transform_bytes(lower.n, terms, width, dtype, plan.block))
        self.below = BlockProduct(*self.lower, plan.block)
        self.shift = self.below.shift
        if self.upper is not None and self.n > 1:  # one row has nothing above its diagonal
            self.above = BlockProduct(*self.upper, plan.block, strict=True)
            self.shift = max(self.shift, self.above.shift)
        with np.errstate(under="ignore"):
            self.total = self.below.row_sums() * np.exp(self.below.shift - self.shift)
            if self.above is not None:
                self.total += self.above.column_sums() * np.exp(self.above.shift - self.shift)

    def write(self, v: FloatArray, tol: float, out: FloatArray) -> tuple[NDArray[np.int64], float]:
        """Write ``f v`` to `out`, every row within `tol`, relative to ``‖v‖_∞``, or computed directly.

        Parameters
        ----------
        v : ndarray, shape (n, d_v)
            Values, in the dtype of the kernels.
        tol : float
            Largest estimated error of a row that is kept.
        out : ndarray, shape (n, d_v)
            Where the output goes.

        Returns
        -------
        rows : ndarray of int
            Those computed directly: all of them on the direct path.
        largest_bound : float
            Largest estimated error of the others.
        """
        if self.below is None:
            rows = np.arange(self.n)
            write_rows(rows, v, self.lower, self.upper, out)
            return rows, 0.0
        bound, largest = self._write_block_transform(self.below, v, out)
        low, high = _SAFE[v.dtype.name]
        if not (low < largest < high or largest == 0) and np.isfinite(v).all():
            # sums of such values, or their squares, overflow or vanish: those of numbers near one do neither
            v, exponent = near_one(v)
            lost, largest_bound = self.write(v, tol, out)
            with np.errstate(over="ignore"):
                np.ldexp(out, exponent, out=out)
            require_finite("v: output", out)
            return lost, largest_bound
        kept = bound <= tol  # NaN is not kept
        lost = np.flatnonzero(~kept)
        if lost.size:
            write_rows(lost, v, self.lower, self.upper, out)
        return lost, float(bound[kept].max(initial=0.0))

    def _write_block_transform(
        self, below: BlockProduct, v: FloatArray, out: FloatArray
    ) -> tuple[NDArray[np.float64], float]:
        """Write every row; return the estimated error of each, relative to ``‖v‖_∞``, and ``‖v‖_∞``."""
        above, shift, total = self.above, self.shift, self.total
        with np.errstate(divide="ignore", invalid="ignore", over="ignore", under="ignore"):
            spectra = below.load(v, below.pairs)
            exponents, noise = below.multiply(spectra)
            factor = below.rows.spread(np.exp(exponents - shift)) / total
            below.store(spectra, below.rows, factor, out)
            spectra.release()
            largest = spectra.largest
            error = below.rows.spread(noise) * factor
            if above is not None:
                spectra = above.load(v, above.rows)
                exponents, noise = above.multiply(spectra, transposed=True)
                factor = above.pairs.spread(np.exp(exponents - shift)) / total
                above.store(spectra, above.pairs, factor, out, add=True)
                spectra.release()
                error = np.hypot(error, above.pairs.spread(noise) * factor)
            return np.asarray(error / largest), largest


def _covering(basis: ConvBasis) -> Segments:
    """Starts and kernels in use, with a first segment of zeros where columns come before the first start."""
    used = int(basis.n_terms)
    starts, kernels = basis.starts[:used], basis.kernels[:used]
    if starts[0] > 0:
        starts = np.concatenate([[0], starts])
        kernels = np.concatenate([np.zeros_like(kernels[:1]), kernels])
    return starts, kernels
