"""The fewest starts that keep attention within a tolerance, or the answer that there are none (ours).

The error of a row is ``e_i = ‖a_i − ã_i‖₁``, the ℓ1 distance between its exact attention weights and those of the
basis: for any values, ``‖Y_i − Ỹ_i‖_∞ ≤ e_i ‖V‖_∞``, and some values attain it. Sampled rows are computed exactly.

Starts come from `refattn.convbasis.starts.sampled`, for every number of terms. The number is searched for: doubling
until the sampled rows are within the tolerance, then bisecting. What is found is then held against rows that had no
part in choosing it; where one of these fails, they join the sample and the search goes on with more terms. Rows drawn
anew are what the confidence rests on: if more than a fraction f of all rows were beyond the tolerance, r fresh rows
would all be within it with probability at most ``(1 − f)^r``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from refattn._threads import one_blas_thread
from refattn._validation import as_count, as_option, as_real, as_scale
from refattn.convbasis.basis import ConvBasis, as_head, basis_from_starts
from refattn.convbasis.bounds import posterior_bound, sharp_bound
from refattn.convbasis.starts.least_squares import least_squares_basis
from refattn.convbasis.starts.sampled import sampled_starts
from refattn.convbasis.starts.term_search import RowErrors, TermSearch, row_differences

_LARGEST_LOGIT = 1e150
"""Squares of larger ones overflow, and starts are chosen by squares."""
KERNELS = {"column": basis_from_starts, "least-squares": least_squares_basis}


class CurvePoint(NamedTuple):
    """Number of terms, and the largest error of a sampled row with that many.

    Attributes
    ----------
    k : int
        Number of terms that was tried.
    error : float
        Largest ``‖a_i − ã_i‖₁`` of a sampled row, from 0 to 2.

    Examples
    --------
    >>> from refattn.convbasis import CurvePoint
    >>> CurvePoint(k=4, error=0.5).error
    0.5
    """

    k: int
    error: float


@dataclass(frozen=True, eq=False)
class ToleranceRecovery:
    """What `recover_to_tolerance` found; as text, it says it in words and prints the curve.

    Attributes
    ----------
    basis : ConvBasis or None
        The basis whose sampled rows are within the tolerance; None where none was found.
    tolerance : float
        What was asked for.
    error : float
        Largest ``‖a_i − ã_i‖₁`` of a sampled row: of the basis, or with the most terms that were tried.
    residual : float
        Largest ``r = |H_ij − H'_ij|`` of the same rows.
    rows : int
        How many rows the last check drew; n where it looked at all of them.
    confidence : float
        Probability, over the draws, with which `exceeding` is right, whatever the input.
    exceeding : float
        Largest fraction of all rows that may be beyond the tolerance, with that confidence; 1 where nothing was found.
    curve : tuple of CurvePoint
        Largest error of a sampled row against k, for every k that was tried, ascending.

    Examples
    --------
    >>> from refattn import recover_to_tolerance
    >>> from refattn.testing import rope_structured
    >>> q, k, v, starts = rope_structured(90, 8, starts=[0, 40], seed=0)
    >>> result = recover_to_tolerance(q, k, 1e-9)
    >>> result.found, result.exceeding, result.sharp_bound < 1e-9  # no more rows than are sampled: all were looked at
    (True, 0.0, True)
    """

    basis: ConvBasis | None
    tolerance: float
    error: float
    residual: float
    rows: int
    confidence: float
    exceeding: float
    curve: tuple[CurvePoint, ...]

    @property
    def found(self) -> bool:
        """Whether there is a basis."""
        return self.basis is not None

    @property
    def posterior_bound(self) -> float:
        """The theorem's a-posteriori bound on the output of the sampled rows, ``2 (eʳ − 1)`` in units of ``‖V‖_∞``."""
        return posterior_bound(self.residual, 1.0)

    @property
    def sharp_bound(self) -> float:
        """The sharp a-posteriori bound on the output of the sampled rows, ``2 tanh(r/2)`` in units of ``‖V‖_∞``."""
        return sharp_bound(self.residual, 1.0)

    def __str__(self) -> str:
        if self.basis is not None:
            answer = (
                f"Conv-like with {self.basis.starts.size} terms (of {self.basis.n} at most):"
                f" no sampled row is off by more than {self.error:.3g}, {self.tolerance:.3g} was allowed.\n"
                f"With confidence {self.confidence:g} at most"
                f" {100 * self.exceeding:.2g} % of all rows are beyond that."
            )
        else:
            answer = (
                f"Not conv-like: with {self.curve[-1].k} terms a sampled row is off by {self.error:.3g},"
                f" {self.tolerance:.3g} was allowed."
            )
        return "\n".join([answer, "k      error", *(f"{point.k:<6} {point.error:.3g}" for point in self.curve)])


def recover_to_tolerance(
    q: ArrayLike,
    k: ArrayLike,
    tolerance: float,
    *,
    kernels: str = "column",
    n_basis: int = 128,
    samples: int = 256,
    confidence: float = 0.99,
    seed: int = 0,
    scale: float | None = None,
) -> ToleranceRecovery:
    """Find the fewest starts whose sampled error is within a tolerance, or say that the input is not conv-like.

    Parameters
    ----------
    q, k : array_like, shape (n, d)
        Queries and keys of one head, float32 or float64.
    tolerance : float
        Largest error of a row of causal attention in units of ``‖V‖_∞``, for any values: of ``‖a_i − ã_i‖₁``, which is
        at most 2. Above 0; below the rounding of `q` and `k` nothing but k = n meets it.
    kernels : {"column", "least-squares"}, optional
        The paper's kernels, which are the columns at the starts, or the means of the diagonals, as
        `least_squares_basis` has them: better where logits are noisy.
    n_basis : int, optional
        Most terms that are tried, at least 1; more than n are not.
    samples : int, optional
        Rows that every check draws, at least 1; all rows where there are no more.
    confidence : float, optional
        Of the statement about the rows that were not looked at; above 0 and below 1.
    seed : int, optional
        Of the rows and of the diagonals that are sampled, at least 0.
    scale : float, optional
        As for `recover`.

    Returns
    -------
    ToleranceRecovery
        With the basis, in the dtype of `q` and `k`; or with ``found`` False, ``basis`` None and the curve of errors
        that shows why.

    Raises
    ------
    TypeError, ValueError
        Shapes do not fit, an option is unknown or out of range, or an entry or a logit is not finite.
    MemoryError
        The tables do not fit.

    Notes
    -----
    *Fewest* means: with one term less, of the starts this search has for that number, a sampled row was beyond the
    tolerance. On exactly k-conv logits whose segments differ at the sampled lags these are the k true starts. On other
    input fewer may exist; `best_starts` has the best in the least-squares sense, in O(n³) time. ``found=False`` says
    that none of the bases tried serves, not that none exists.

    The bounds of the result are for the sampled rows; `logit_residual` gives the residual of all rows, in O(n² d).

    Time, with up to s terms tried, r samples and τ ≤ 65 diagonals: O(τ n (d + s)) at worst for the starts, and where
    cuts halve O(τ n (d + log s)); then O((s + r) n d), and for least squares O(n d log n), for each of the O(log s)
    numbers of terms that a round tries. Every check that fails costs one more round. Memory O((s + τ + d) n). Source:
    ours.

    Examples
    --------
    >>> from refattn.testing import attention_inputs, rope_structured
    >>> q, k, v, starts = rope_structured(500, 16, starts=[0, 120, 333], seed=0)
    >>> result = recover_to_tolerance(q, k, 1e-9)
    >>> result.found, result.basis.starts.tolist()
    (True, [0, 120, 333])
    >>> q, k, v = attention_inputs(500, 16, seed=0)
    >>> print(recover_to_tolerance(q, k, 0.1, n_basis=4))
    Not conv-like: with 4 terms a sampled row is off by 1..., 0.1 was allowed.
    k      error
    1      1...
    2      1...
    4      1...
    """
    q, k = as_head(q, k)
    n = q.shape[0]
    tolerance = as_real("tolerance", tolerance, positive=True)
    build = KERNELS[as_option("kernels", kernels, KERNELS)]
    n_basis = min(as_count("n_basis", n_basis, least=1), n)
    samples = min(as_count("samples", samples, least=1), n)
    confidence = as_real("confidence", confidence, positive=True)
    if confidence >= 1:
        raise ValueError(f"confidence: {confidence} came, a number below 1 was wanted")
    rng = np.random.default_rng(as_count("seed", seed, least=0))
    factor = as_scale(scale, q.shape[1], q.dtype)
    wide_q, wide_k = q.astype(np.float64, copy=False), k.astype(np.float64, copy=False)
    largest = float(np.abs(wide_q).max()) * float(np.abs(wide_k).max()) * q.shape[1] * abs(factor)
    if not largest < _LARGEST_LOGIT:
        raise ValueError(
            f"q, k: logits may be as large as {largest:.3g}, below {_LARGEST_LOGIT:g} was wanted: squares are summed up"
        )

    def basis(count: int) -> ConvBasis:
        return build(q, k, starts[count - 1], scale=factor)

    def measure(count: int, rows: NDArray[np.int64]) -> RowErrors:
        return row_differences(wide_q, wide_k, factor, basis(count), rows)

    def drawn() -> NDArray[np.int64]:
        return np.sort(rng.choice(n, samples, replace=False))

    with np.errstate(over="ignore", invalid="ignore"), one_blas_thread():  # overflow is named where logits are used
        starts = sampled_starts(wide_q, wide_k, factor, n_basis, rng).starts
        search = TermSearch(measure, len(starts), tolerance, drawn())
        risk = 1 - confidence
        while (count := search.fewest()) is not None:
            risk /= 2  # the risks of all checks add up to less than 1 − confidence
            if search.confirmed(count, drawn()):
                break
    curve = tuple(CurvePoint(tried, search.tried[tried].error) for tried in sorted(search.tried))
    if count is None:
        worst = search.tried[curve[-1].k]
        return ToleranceRecovery(None, tolerance, *worst, samples, confidence, 1.0, curve)
    exceeding = 0.0 if samples == n else float(-np.expm1(np.log(risk) / samples))
    return ToleranceRecovery(basis(count), tolerance, *search.tried[count], samples, confidence, exceeding, curve)
