"""Error bounds of conv attention: the theorem's, the a-posteriori one, a sharp one, and the rounding of an FFT.

H are the exact logits, H' those of the basis, ``r = ‖H − H'‖_∞`` their largest difference in a causal entry, Y and Ỹ
the outputs of attention with either. ``‖·‖_∞`` is the largest absolute entry. The derivations are in
docs/explanation/conv-basis.md.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from refattn._heads import HeadLayout
from refattn._threads import one_blas_thread
from refattn._validation import (
    FloatArray,
    as_count,
    as_float_arrays,
    as_float_dtype,
    as_real,
    as_real_array,
    as_scale,
    require_finite,
    require_kind,
)
from refattn.convbasis.basis import ConvBasis

_BLOCK_ENTRIES = 1 << 21


def inference_bound(eps: float, v_max: float) -> float:
    """The inference theorem's bound on ``‖Y − Ỹ‖_∞``, for ε-close logits.

    Parameters
    ----------
    eps : float
        The theorem's ε ≥ 0.
    v_max : float
        As for `posterior_bound`.

    Returns
    -------
    float
        ``2 (e^{2ε} − 1) ‖V‖_∞``; infinite where it overflows.

    Raises
    ------
    TypeError, ValueError
        An argument is not a number or negative.

    Notes
    -----
    Holds for logits that are ε-close (T, δ)-non-degenerate k-conv, with ``ε ≤ δ/(5T)``. Source: arXiv 2405.05219,
    theorem on inference (4.4). Time O(1).

    Examples
    --------
    >>> round(inference_bound(0.01, 3.0), 6)
    0.121208
    """
    return posterior_bound(2 * as_real("eps", eps, least=0.0), v_max)


def posterior_bound(residual: float, v_max: float) -> float:
    """A-posteriori bound on ``‖Y − Ỹ‖_∞`` for any input and any starts: ``2 (e^r − 1) ‖V‖_∞``.

    Parameters
    ----------
    residual : float
        ``r = ‖H − H'‖_∞`` ≥ 0, as `logit_residual` measures it.
    v_max : float
        ``‖V‖_∞`` ≥ 0.

    Returns
    -------
    float
        The bound; infinite where it overflows.

    Raises
    ------
    TypeError, ValueError
        An argument is not a number or negative.

    Notes
    -----
    Source: the argument of arXiv 2405.05219, theorem 4.4, with the measured r in the place of 2ε. Time O(1).

    Examples
    --------
    >>> posterior_bound(0.0, 3.0)
    0.0
    """
    residual, v_max = as_real("residual", residual, least=0.0), as_real("v_max", v_max, least=0.0)
    return 2 * math.expm1(residual) * v_max if residual < 700 else math.inf


def sharp_bound(residual: float, v_max: float) -> float:
    """Smallest bound on ``‖Y − Ỹ‖_∞`` that depends on r and ``‖V‖_∞`` alone: ``2 tanh(r/2) ‖V‖_∞``.

    Parameters
    ----------
    residual, v_max : float
        As for `posterior_bound`.

    Returns
    -------
    float
        The bound; never more than ``2 ‖V‖_∞``, and half of `posterior_bound` for small r.

    Raises
    ------
    TypeError, ValueError
        An argument is not a number or negative.

    Notes
    -----
    Source: ours; two softmax rows whose logits differ by at most r are within ``tanh(r/2)`` in total variation, and two
    keys attain it. Time O(1).

    Examples
    --------
    >>> sharp_bound(0.02, 3.0) < posterior_bound(0.02, 3.0)
    True
    """
    residual, v_max = as_real("residual", residual, least=0.0), as_real("v_max", v_max, least=0.0)
    return 2 * math.tanh(residual / 2) * v_max


@one_blas_thread()
def logit_residual(
    q: ArrayLike, k: ArrayLike, basis: ConvBasis, *, scale: float | None = None, check_finite: bool = True
) -> FloatArray:
    """Largest difference between the causal logits and those of a basis, for every row.

    Parameters
    ----------
    q, k : array_like, shape (…, n, d)
        As for `recover`.
    basis : ConvBasis
        For every query head.
    scale, check_finite : optional
        As for `recover`.

    Returns
    -------
    ndarray, shape (…, n), in the dtype of q and k
        ``r_i = max_{j ≤ i} |H_ij − H'_ij|``; its maximum is the r of `posterior_bound`, and r_i bounds row i alone.

    Raises
    ------
    TypeError, ValueError
        Shapes do not fit, an entry is not a finite number, or a logit overflows.

    Notes
    -----
    Exact, therefore O(n² d) time; memory O(n·block). The measured ε of ε-closeness is ``logit_residual(…).max()`` with
    the noise-free basis. Source: ours; its maximum is the ε of arXiv 2405.05219, definition of ε-close matrices.

    Examples
    --------
    >>> import numpy as np
    >>> from refattn import recover
    >>> q, k = np.random.default_rng(0).standard_normal((2, 8, 4))
    >>> basis = recover(q, k, n_basis=8, probe=1, delta=1e-9)  # k = n: the basis is exact
    >>> bool(logit_residual(q, k, basis).max() < 1e-14)
    True
    """
    q, k = as_float_arrays(check_finite=check_finite, q=q, k=k)
    layout = HeadLayout.of(q, k, k)
    require_kind("basis", basis, ConvBasis, "recover")
    n = basis.n
    if q.shape[-2] != n or k.shape[-2] != n or basis.starts.shape[:-1] != layout.lead:
        raise ValueError(
            f"basis: heads {basis.starts.shape[:-1]} and n = {n} came, {layout.lead} and n = {q.shape[-2]} were wanted"
        )
    factor = as_scale(scale, q.shape[-1], q.dtype)
    queries, keys, _ = layout.expand(q, k, k)
    residual = np.empty((int(np.prod(layout.lead)), n), q.dtype)
    step = max(1, _BLOCK_ENTRIES // n)
    for place, (head, target) in enumerate(zip(np.ndindex(*layout.inner), np.ndindex(*layout.lead), strict=True)):
        one = basis[target]
        for start in range(0, n, step):
            rows = np.arange(start, min(start + step, n))
            with np.errstate(over="ignore", invalid="ignore"):  # judged below
                logits = (queries[head][rows] @ keys[head].T) * np.asarray(factor, q.dtype)
                difference = np.abs(logits - one.rows(rows))
                difference[np.arange(n) > rows[:, None]] = 0
                residual[place, rows] = difference.max(axis=-1)
    require_finite("q, k: residual", residual)
    return residual.reshape(*layout.lead, n)


class Closeness(NamedTuple):
    """Measured T, δ and ε of a head, and whether the inference theorem applies to them.

    Attributes
    ----------
    probe : int
        The paper's T.
    delta : float
        Largest δ for which the basis is (T, δ)-non-degenerate.
    eps : float
        Largest difference of a causal logit from the basis.
    holds : bool
        ``eps ≤ delta / (5 probe)``.

    Examples
    --------
    >>> import numpy as np
    >>> from refattn.convbasis import basis_from_starts, closeness
    >>> q, k = np.eye(6), np.diag([1, 1, 1, 2, 2, 2.125])  # two segments, but for the last logit
    >>> basis = basis_from_starts(q, k, [0, 3], scale=1)
    >>> closeness(q, k, basis, probe=2, scale=1)  # 1/8 is more than 1/(5 · 2)
    Closeness(probe=2, delta=1.0, eps=0.125, holds=False)
    """

    probe: int
    delta: float
    eps: float
    holds: bool


def closeness(
    q: ArrayLike, k: ArrayLike, basis: ConvBasis, *, probe: int, scale: float | None = None, check_finite: bool = True
) -> Closeness:
    """Check whether the logits of a head are ε-close to the (T, δ)-non-degenerate matrix of a basis.

    Parameters
    ----------
    q, k : array_like, shape (n, d)
        Queries and keys of one head, float32 or float64.
    basis : ConvBasis
        The k-conv matrix H° that the logits are compared with.
    probe : int
        The paper's T, 1 ≤ T ≤ m_k.
    scale, check_finite : optional
        As for `recover`.

    Returns
    -------
    Closeness
        The measured T, δ, ε, and whether ``ε ≤ δ/(5T)``.

    Raises
    ------
    TypeError, ValueError
        Shapes do not fit, `probe` exceeds m_k, or an entry is not a finite number.

    Notes
    -----
    Time O(n² d + k² T). Source: arXiv 2405.05219, definition of ε-close (T, δ)-non-degenerate k-conv matrices.

    Examples
    --------
    >>> from refattn.convbasis import basis_from_starts
    >>> from refattn.testing import rope_structured
    >>> q, k, v, starts = rope_structured(60, 8, starts=[0, 20, 40], seed=0)
    >>> closeness(q, k, basis_from_starts(q, k, starts), probe=4).holds
    True
    """
    require_kind("basis", basis, ConvBasis, "recover")
    delta = basis.nondegeneracy(probe)
    eps = float(logit_residual(q, k, basis, scale=scale, check_finite=check_finite).max())
    return Closeness(int(probe), delta, eps, eps <= delta / (5 * probe))


_ROUNDING_SAFETY = 8.0
"""Factor between the typical rounding error of an entry and the estimate that is acted on."""

ROW_TOLERANCE = {"float64": 1e-13, "float32": 1e-5}
"""Default of the row tolerance: error of a row relative to its natural size above which it is recomputed directly."""


def convolution_error(length: int, dtype: Any, factors: Any, product: Any) -> Any:
    """Rounding error of an entry of a convolution by FFT, apart from a few units of rounding of the entry itself.

    Parameters
    ----------
    length : int
        Length N of the transforms, at least 1.
    dtype : dtype_like
        float32 or float64.
    factors : array_like, any shape
        ``‖a‖₂ ‖x‖₂``.
    product : array_like, shape of `factors`
        ``‖y‖₂`` of all N entries of the circular product, or a bound on it: ``min(‖a‖₁ ‖x‖₂, ‖a‖₂ ‖x‖₁)``.

    Returns
    -------
    float or ndarray
        ``8 u √(2 log₂ N / N) (‖a‖₂ ‖x‖₂ + ‖y‖₂)`` with the unit roundoff u, of the shape of the norms.

    Raises
    ------
    TypeError, ValueError
        `length` is not an integer of at least 1, `dtype` neither of the two, or the norms are not numbers of one shape.

    Notes
    -----
    A transform of N points has an error of about ``u √(log₂ N)`` relative to its 2-norm. Rounding errors taken as
    independent, those of the two forward transforms reach an entry of the result as ``u √(log₂ N / N) ‖a‖₂ ‖x‖₂`` where
    the spectra are spread out, and as ``u √(log₂ N / N) ‖y‖₂`` where they are concentrated (smooth kernels); the
    product and the inverse transform add the second kind. This is an estimate with a margin of 8, not a worst case,
    which is √N times larger; the claims ledger measures how much of the margin is used. Source: ours; the norm-wise
    statement is classical (Higham, Accuracy and Stability of Numerical Algorithms, section 24.1). Time O(1) an entry.

    Examples
    --------
    >>> bool(convolution_error(4096, "float64", factors=1.0, product=1.0) < 2e-16)
    True
    """
    length = as_count("length", length, least=1)
    unit = float(np.finfo(as_float_dtype("dtype", dtype)).eps) / 2
    both = as_real_array("factors", factors), as_real_array("product", product)
    if both[0].shape != both[1].shape:
        raise ValueError(f"product: shape {both[1].shape} came, that of factors {both[0].shape} was wanted")
    factor = _ROUNDING_SAFETY * unit * math.sqrt(2 * max(math.log2(length), 1.0) / length)
    with np.errstate(over="ignore"):  # an estimate of infinity is kept by nobody
        return factor * (both[0] + both[1])
