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
from refattn._validation import FloatArray
from refattn.convbasis.basis import ConvBasis
from refattn.convbasis.blocks import BlockProduct
from refattn.convbasis.cost import Plan, block_transform_bytes, choose_plan
from refattn.convbasis.direct import Segments, write_rows
from refattn.convbasis.paper import RowReport


def plan_head(v: FloatArray, lower: ConvBasis, upper: ConvBasis | None) -> Plan:
    """Choose the cheapest plan by the number of segments found."""
    k = max(int(basis.n_terms) for basis in (lower, upper) if basis is not None)
    return choose_plan(lower.n, k, v.shape[1], v.dtype)


def conv_attention_head(
    v: FloatArray, lower: ConvBasis, upper: ConvBasis | None, tol: float, plan: Plan, out: FloatArray
) -> RowReport:
    """Attention of one head with the logits of a basis.

    Parameters
    ----------
    v : ndarray, shape (n, d_v)
        Values.
    lower : ConvBasis
        Basis of the logits on and below the diagonal.
    upper : ConvBasis or None
        Basis of the transposed logits, of which those above the diagonal are used; None for causal attention.
    tol : float
        Largest estimated error of a row, relative to ``‖V‖_∞``, that is kept.
    plan : Plan
        The path, and the block length.
    out : ndarray, shape (n, d_v)
        Where the output goes.

    Returns
    -------
    RowReport
        How many rows were recomputed: none on the direct path.
    """
    below, above = _covering(lower), None if upper is None else _covering(upper)
    if plan.path == "direct":
        write_rows(np.arange(lower.n), v, below, above, out)
        return RowReport(0, 0.0)
    terms = sum(len(segments[0]) for segments in (below, above) if segments is not None)
    require_memory("v: the block transform", block_transform_bytes(lower.n, terms, v.shape[1], v.dtype, plan.block))
    bound = _write_block_transform(v, below, above, plan.block, out)
    kept = bound <= tol  # NaN is not kept
    lost = np.flatnonzero(~kept)
    if lost.size:
        write_rows(lost, v, below, above, out)
    return RowReport(int(lost.size), float(bound[kept].max(initial=0.0)))


def _covering(basis: ConvBasis) -> Segments:
    """Starts and kernels in use, with a first segment of zeros where columns come before the first start."""
    used = int(basis.n_terms)
    starts, kernels = basis.starts[:used], basis.kernels[:used]
    if starts[0] > 0:
        starts = np.concatenate([[0], starts])
        kernels = np.concatenate([np.zeros_like(kernels[:1]), kernels])
    return starts, kernels


def _write_block_transform(
    v: FloatArray, lower: Segments, upper: Segments | None, block: int, out: FloatArray
) -> NDArray[np.float64]:
    """Write every row; return the estimated error of each, relative to ``‖V‖_∞``."""
    below = BlockProduct(*lower, block)
    above = None if upper is None else BlockProduct(*upper, block, strict=True)
    shift = below.shift if above is None else max(below.shift, above.shift)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        total = below.row_sums() * np.exp(below.shift - shift)
        if above is not None:
            total += above.column_sums() * np.exp(above.shift - shift)

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
        return np.asarray(error / largest)
