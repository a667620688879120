"""Polynomials in place of exp on [−B, B], and the error they make (arXiv 2405.05219, section 6, after Alman and Song).

    p(x) = Σ_{m ≤ g} a_m x^m,        sup_{|x| ≤ B} |p(x) − e^x| / e^x ≤ polynomial_error(g, B)

The error is *relative*, because attention divides by sums of exponentials. The proofs are in
docs/explanation/low-rank.md; the two bounds in closed form are ours.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.polynomial import chebyshev
from numpy.typing import NDArray

from refattn._validation import as_count, as_option, as_real

KINDS = ("taylor", "chebyshev")
LARGEST_DEGREE = 60
"""Highest degree g: beyond it the monomials' own rounding outweighs what is gained."""

LARGEST_COUNT = 10_000
"""Where both the width and the degree are above, a rank has too many digits to be of use."""

LARGEST_BOUND = 50.0
"""Largest bound B: beyond it float64 leaves nothing of the relative error."""
_TERMS = 400


def polynomial_coefficients(degree: int, bound: float, *, kind: str = "chebyshev") -> NDArray[np.float64]:
    """Coefficients a_0 … a_g of a polynomial near exp on [−B, B].

    Parameters
    ----------
    degree : int
        The degree g, 0 ≤ g ≤ 60.
    bound : float
        The paper's bound B on ``|q·k|`` times the scale, 0 < B ≤ 50.
    kind : {"chebyshev", "taylor"}, optional
        The Chebyshev series of exp on [−B, B] cut at degree g, or the Taylor series at 0.

    Returns
    -------
    ndarray of float64, shape (g + 1,)
        Coefficients of the monomials, lowest first.

    Raises
    ------
    TypeError, ValueError
        An argument is out of range, or `kind` is unknown.

    Notes
    -----
    Time O(g²). ``e^{Bt} = I_0(B) + 2 Σ_m I_m(B) T_m(t)`` with modified Bessel functions I_m. Source: arXiv 2405.05219,
    section 6 (the polynomial method); the Chebyshev series is ours.

    Examples
    --------
    >>> polynomial_coefficients(3, 1.0, kind="taylor").round(4)
    array([1.    , 1.    , 0.5   , 0.1667])
    """
    degree, bound = _checked(degree, bound, kind)
    taylor = np.array([1 / math.factorial(m) for m in range(degree + 1)])
    if kind == "taylor":
        return taylor
    series = _chebyshev_series(degree, bound)
    padded = np.zeros(degree + 1)  # in the monomials of t = x / B; trailing zeros may be cut by NumPy
    in_t = chebyshev.cheb2poly(series)
    padded[: len(in_t)] = in_t
    powers = bound ** np.arange(degree + 1.0)
    # where B^m vanishes so does what the term contributes: there the series is Taylor's to every digit that counts
    return np.asarray(np.divide(padded, powers, out=taylor, where=powers > 1e-290))


def polynomial_error(degree: int, bound: float, *, kind: str = "chebyshev") -> float:
    """Bound on the relative error ``|p(x) − e^x| / e^x`` over [−B, B].

    Parameters
    ----------
    degree, bound, kind : int, float, str
        As for `polynomial_coefficients`.

    Returns
    -------
    float
        Taylor: ``B^{g+1}/g! ∫₀¹ s^g e^{sB} ds``, which the error reaches at −B. Chebyshev: ``2 e^B Σ_{m>g} I_m(B)``,
        above the error at −B by a factor of at most ``(1 + ρ)/(1 − ρ)``, where ``ρ = B/(2(g + 2))``.

    Raises
    ------
    TypeError, ValueError
        An argument is out of range, or `kind` is unknown.

    Notes
    -----
    Time O(1): a fixed number of terms, all positive. Infinite where it overflows. Source: ours; proved in
    docs/explanation/low-rank.md.

    Examples
    --------
    >>> round(polynomial_error(6, 1.0, kind="taylor"), 6), round(polynomial_error(6, 1.0), 6)
    (0.000479, 9e-06)
    """
    degree, bound = _checked(degree, bound, kind)
    m = np.arange(_TERMS, dtype=np.float64)
    if kind == "taylor":
        # ∫₀¹ s^g e^{sB} ds = Σ_m B^m / (m! (g + 1 + m))
        logs = m[1:] * math.log(bound) - np.cumsum(np.log(m[1:]))
        integral = 1 / (degree + 1) + float((np.exp(logs) / (degree + 1 + m[1:])).sum())
        return math.exp((degree + 1) * math.log(bound) - math.lgamma(degree + 1)) * integral
    return 2 * math.exp(2 * bound) * float(_scaled_bessel(degree + 1 + m, bound).sum())


def polynomial_rounding(degree: int, bound: float, rank: int, *, kind: str = "chebyshev") -> float:
    """Bound on what float64 adds to the relative error, where a polynomial is computed as a sum of `rank` monomials.

    Parameters
    ----------
    degree, bound : int, float
        As for `polynomial_coefficients`.
    rank : int
        Number of monomials, at least 1.
    kind : str, optional
        As for `polynomial_coefficients`.

    Returns
    -------
    float
        ``u e^B ((r + 2g + 4) Σ_m |a_m| B^m + g Σ_m |s_m| (1 + √2)^m)``, u = 2⁻⁵³; the second sum, absent for Taylor, is
        that of the Chebyshev coefficients s_m, which are turned into a_m. It grows like ``e^{2B}``: beyond B of about
        12 little is left.

    Raises
    ------
    TypeError, ValueError
        An argument is out of range, or `kind` is unknown.

    Notes
    -----
    To first order in u. Source: ours; see docs/explanation/low-rank.md. Time O(g²).

    Examples
    --------
    >>> polynomial_rounding(9, 1.0, 220) < 1e-12 < polynomial_rounding(9, 4.0, 220)
    True
    """
    degree, bound = _checked(degree, bound, kind)
    coefficients = polynomial_coefficients(degree, bound, kind=kind)
    size = (as_count("rank", rank, least=1) + 2 * degree + 4) * (
        np.abs(coefficients) * bound ** np.arange(degree + 1.0)
    ).sum()
    if kind == "chebyshev":
        # the monomials of T_m have absolute values that sum to at most (1 + √2)^m
        size += degree * (_chebyshev_series(degree, bound) * (1 + math.sqrt(2)) ** np.arange(degree + 1.0)).sum()
    return float(2.0**-53 * math.exp(bound) * size)


def _chebyshev_series(degree: int, bound: float) -> NDArray[np.float64]:
    """Coefficients of ``e^{Bt}`` in T_0 … T_g."""
    series: NDArray[np.float64] = 2 * math.exp(bound) * _scaled_bessel(np.arange(degree + 1.0), bound)
    series[0] /= 2
    return series


def _scaled_bessel(order: NDArray[np.float64], bound: float) -> NDArray[np.float64]:
    """``e^{−B} I_m(B)``; SciPy's special functions are imported when they are first needed."""
    from scipy.special import ive

    return np.asarray(ive(order, bound), np.float64)


def degree_for(error: float, bound: float, *, kind: str = "chebyshev") -> int:
    """Smallest degree whose relative error on [−B, B] is at most `error`.

    Parameters
    ----------
    error : float
        Relative error asked for, above 0.
    bound, kind : float, str
        As for `polynomial_coefficients`.

    Returns
    -------
    int
        The degree g.

    Raises
    ------
    TypeError
        An argument is not a number.
    ValueError
        No degree up to 60 reaches the error, an argument is out of range, or `kind` is unknown.

    Notes
    -----
    Time O(g). Source: ours.

    Examples
    --------
    >>> degree_for(1e-3, 1.0, kind="taylor"), degree_for(1e-3, 1.0)
    (6, 5)
    """
    error = as_real("error", error, positive=True)
    for degree in range(LARGEST_DEGREE + 1):
        reached = polynomial_error(degree, bound, kind=kind)
        if reached <= error:
            return degree
    raise ValueError(
        f"error: {error:.3g} came, but degree {LARGEST_DEGREE} on [−{bound:.3g}, {bound:.3g}] reaches only"
        f" {reached:.3g}; a larger error or smaller logits were wanted"
    )


def monomial_rank(width: int, degree: int) -> int:
    """Number of monomials of degree at most g in d variables, ``C(d + g, g)``: the rank of `PolynomialFeatures`.

    Parameters
    ----------
    width, degree : int
        The width d, at least 1, and the degree g, at least 0.

    Returns
    -------
    int
        Exact, however large.

    Raises
    ------
    TypeError, ValueError
        Not integers, too small, or both above 10,000.

    Notes
    -----
    ``(q·k)^m = Σ_{|α|=m} (m!/α!) q^α k^α`` pairs every monomial of q with the same one of k. Source: ours; see
    `paper_rank`. Time O(g) products of integers.

    Examples
    --------
    >>> monomial_rank(8, 4), paper_rank(8, 4)
    (495, 735471)
    """
    width, degree = _counts(width, degree)
    return math.comb(width + degree, degree)


def paper_rank(width: int, degree: int) -> int:
    """Return the paper's rank ``C(2(g + d), 2g)``: all monomials of degree at most 2g in the 2d entries of q and k.

    It is at least `monomial_rank`, which counts those of the form ``q^α k^α`` only.

    Parameters
    ----------
    width, degree : int
        As for `monomial_rank`.

    Returns
    -------
    int
        Exact, however large.

    Raises
    ------
    TypeError, ValueError
        As `monomial_rank`.

    Notes
    -----
    Time O(g) products of integers. Source: arXiv 2405.05219, section 6, after Alman and Song (2023).

    Examples
    --------
    >>> paper_rank(8, 4)
    735471
    """
    width, degree = _counts(width, degree)
    return math.comb(2 * (degree + width), 2 * degree)


def _counts(width: int, degree: int) -> tuple[int, int]:
    width, degree = as_count("width", width, least=1), as_count("degree", degree, least=0)
    if min(width, degree) > LARGEST_COUNT:
        raise ValueError(f"width, degree: {width} and {degree} came, one of them at most {LARGEST_COUNT} was wanted")
    return width, degree


def _checked(degree: int, bound: float, kind: str) -> tuple[int, float]:
    as_option("kind", kind, KINDS)
    degree = as_count("degree", degree, least=0, most=LARGEST_DEGREE)
    return degree, as_real("bound", bound, positive=True, most=LARGEST_BOUND)
