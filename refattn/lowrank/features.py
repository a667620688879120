"""Feature maps ``exp(s · q·k) ≈ φ(q)·ψ(k)``, by which exponentials have rank r (arXiv 2405.05219, section 6).

`PolynomialFeatures` expands a polynomial of degree g in ``x = s · q·k`` into monomials,

    p(x) = Σ_m a_m s^m (q·k)^m = Σ_{|α| ≤ g} c_α q^α k^α,      c_α = a_m s^m m!/α!,  m = |α|,

one feature per exponent α: ``φ_α(q) = √|c_α| q^α`` and ``ψ_α(k) = sign(c_α) √|c_α| k^α``, rank ``C(d + g, g)``. The
paper, after Alman and Song, counts all monomials of degree up to 2g in the 2d entries, ``C(2(g + d), 2g)``; of those
only the ``q^α k^α`` have a coefficient that is not zero.

A second map, for comparison, is `refattn.lowrank.random_features.RandomFeatures`.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from refattn._memory import require_memory
from refattn._validation import FloatArray, as_count, as_float_arrays, as_option, as_scale, require_finite, require_rank
from refattn.lowrank.polynomials import (
    KINDS,
    LARGEST_DEGREE,
    degree_for,
    monomial_rank,
    paper_rank,
    polynomial_coefficients,
    polynomial_error,
    polynomial_rounding,
)

LARGEST_RANK = 1_000_000
"""Features beyond which a map is refused: one row of each factor would take 8 MB."""


class FeatureMap(ABC):
    """Two maps φ, ψ with ``exp(s · q·k) ≈ φ(q)·ψ(k)``, in O(nr) for monomials, O(nrd) for random features.

    Attributes
    ----------
    width, rank : int
        The width d of q and k, and the number r of features.
    scale : float
        The scale s.
    error : float or None
        Bound on the relative error of every entry; None if there is none.

    Examples
    --------
    >>> from refattn.lowrank import FeatureMap, PolynomialFeatures, RandomFeatures
    >>> issubclass(PolynomialFeatures, FeatureMap), issubclass(RandomFeatures, FeatureMap)
    (True, True)
    """

    width: int
    rank: int
    scale: float
    error: float | None
    _row_by_row = False  # whether heads may come together: no limit on q and k is looked at, and no row on another head

    @property
    def least_entry(self) -> float:
        """What every entry of ``U1 U2ᵀ`` is known to be at least; 0 if only that it is not negative, or nothing."""
        return 0.0

    def factors(self, q: ArrayLike, k: ArrayLike) -> tuple[FloatArray, FloatArray]:
        """Return the factors ``U1 = φ(q)`` and ``U2 = ψ(k)``.

        Parameters
        ----------
        q, k : array_like, shape (…, n, d)
            Queries and keys.

        Returns
        -------
        tuple of ndarray, float64, shape (…, n, r)
            Features of the queries and of the keys: ``U1 U2ᵀ`` approximates ``exp(s · q kᵀ)`` entry by entry.

        Raises
        ------
        TypeError, ValueError
            Not finite numbers of width d, or logits are outside what the map is for, or a feature overflows.
        MemoryError
            The factors do not fit; the message has the estimate.
        """
        queries, keys = self._checked(q, k)
        return self._queries(queries, shifted=False), self._keys(keys, shifted=False)

    def attention_factors(self, q: ArrayLike, k: ArrayLike) -> tuple[FloatArray, FloatArray]:
        """Return factors that serve attention: rows of U1, and all of U2, may be scaled by what cancels in it.

        Returns and errors are those of `factors`.

        Parameters
        ----------
        q, k : array_like, shape (…, n, d)
            Queries and keys.
        """
        queries, keys = self._checked(q, k)
        return self._queries(queries, shifted=True), self._keys(keys, shifted=True)

    def pullback(
        self, q: ArrayLike, k: ArrayLike, u1: FloatArray, u2: FloatArray, du1: FloatArray, du2: FloatArray
    ) -> tuple[FloatArray, FloatArray]:
        """Gradients with respect to q and k, from those with respect to the factors.

        Parameters
        ----------
        q, k : array_like, shape (…, n, d)
            The point.
        u1, u2 : ndarray, shape (…, n, r)
            The factors there, from `factors` or `attention_factors`.
        du1, du2 : ndarray, shape (…, n, r)
            Gradients of the loss with respect to them.

        Returns
        -------
        tuple of ndarray, float64, shape (…, n, d)
            With respect to the queries and the keys. What `attention_factors` shifts by counts as constant: the loss
            must not depend on it.
        """
        queries, keys = self._checked(q, k)
        u1, u2, du1, du2 = (
            array.astype(np.float64, order="C", copy=False) for array in as_float_arrays(u1=u1, u2=u2, du1=du1, du2=du2)
        )
        for name, array, rows in (("u1", u1, queries), ("u2", u2, keys), ("du1", du1, queries), ("du2", du2, keys)):
            wanted = (*rows.shape[:-1], self.rank)
            if array.shape != wanted:
                raise ValueError(f"{name}: shape {array.shape} came, {wanted} was wanted")
        with np.errstate(all="ignore"):  # judged below
            dq, dk = self._pull_queries(queries, u1, du1), self._pull_keys(keys, u2, du2)
        for name, gradient in (("q", dq), ("k", dk)):
            require_finite(f"dout, du1, du2: gradient of {name}", gradient)
        return dq, dk

    def _checked(self, q: ArrayLike, k: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        arrays = as_float_arrays(q=q, k=k)
        for name, array in zip("qk", arrays, strict=True):
            require_rank(name, array, 2, f"(…, n, {self.width})")
            if array.shape[-1] != self.width:
                raise ValueError(f"{name}: shape {array.shape} came, (…, n, {self.width}) was wanted")
        queries, keys = (array.astype(np.float64, order="C", copy=False) for array in arrays)
        rows = queries.size // self.width + keys.size // self.width
        require_memory(f"features: {rows} rows of rank {self.rank}", 8 * rows * self.rank)
        self._require_inside(queries, keys)
        return queries, keys

    @abstractmethod
    def _require_inside(self, q: FloatArray, k: FloatArray) -> None: ...

    @abstractmethod
    def _queries(self, q: FloatArray, *, shifted: bool) -> FloatArray: ...

    @abstractmethod
    def _keys(self, k: FloatArray, *, shifted: bool) -> FloatArray: ...

    @abstractmethod
    def _pull_queries(self, q: FloatArray, u: FloatArray, du: FloatArray) -> FloatArray: ...

    @abstractmethod
    def _pull_keys(self, k: FloatArray, u: FloatArray, du: FloatArray) -> FloatArray: ...


def logit_bound(q: ArrayLike, k: ArrayLike, *, scale: float | None = None) -> float:
    """Bound on every ``|scale · q_i·k_j|`` from norms alone, without n² inner products.

    Parameters
    ----------
    q, k : array_like, shape (…, n, d)
        Queries and keys; computed in float64.
    scale : float, optional
        Factor of the logits; ``1/√d`` by default.

    Returns
    -------
    float
        The smallest of ``max‖q‖₂ max‖k‖₂``, ``max‖q‖₁ max‖k‖_∞`` and ``max‖q‖_∞ max‖k‖₁``, times the scale; infinite
        where it overflows.

    Raises
    ------
    TypeError, ValueError
        Not finite numbers, or not of one width.

    Notes
    -----
    Time O(nd). The paper bounds the entries instead: ``|q·k|/d ≤ ‖Q‖_∞ ‖K‖_∞``, which is never less. Source: ours.

    Examples
    --------
    >>> logit_bound([[3.0, 4.0]], [[0.0, 1.0], [-2.0, 0.0]], scale=0.5)
    4.0
    """
    queries, keys = as_float_arrays(q=q, k=k)
    for name, array in (("q", queries), ("k", keys)):
        require_rank(name, array, 2, "(…, n, d)")
    if queries.shape[-1] != keys.shape[-1]:
        raise ValueError(f"k: shape {keys.shape} came, (…, n, d) with the d of q {queries.shape} was wanted")
    factor = abs(as_scale(scale, queries.shape[-1], queries.dtype))
    q2, q1, q8 = _largest_norms(queries)
    k2, k1, k8 = _largest_norms(keys)
    least = min(q2 * k2, q1 * k8, q8 * k1)
    parts = [math.frexp(x) for x in (least, factor, *(float(np.abs(x).max()) for x in (queries, keys)))]
    try:  # the exponents apart: nothing overflows or vanishes before the end
        return math.ldexp(math.prod(mantissa for mantissa, _ in parts), sum(exponent for _, exponent in parts))
    except OverflowError:
        return math.inf


def _largest_norms(x: FloatArray) -> tuple[float, float, float]:
    """Largest 2-norm, 1-norm and ∞-norm of a row, over the largest entry."""
    unit = x.astype(np.float64, order="C") / (float(np.abs(x).max()) or 1.0)
    two, one, most = (float(np.linalg.norm(unit, ord=order, axis=-1).max()) for order in (2, 1, np.inf))
    return two, one, most


class PolynomialFeatures(FeatureMap):
    """Monomial features of a polynomial near exp on [−B, B].

    Parameters
    ----------
    width : int
        The width d of q and k.
    degree : int
        The degree g; `degree_for` finds the one that an error needs.
    bound : float
        The bound B on ``|scale · q·k|``. Inputs whose norms do not keep it are refused.
    scale : float, optional
        Factor of the logits; ``1/√d`` by default.
    kind : {"chebyshev", "taylor"}, optional
        Which polynomial.

    Raises
    ------
    TypeError, ValueError
        An argument is out of range or of the wrong kind.
    MemoryError
        The rank is absurd (above 1,000,000): the message has it, with the memory a row takes.

    Notes
    -----
    Rank ``C(d + g, g)``; indices take 16 bytes a feature. Source: arXiv 2405.05219, section 6, after Alman and Song
    (2023); the weights that halve the number of variables, and the Chebyshev series, are ours. Factors take time and
    memory O(nr).

    Examples
    --------
    >>> import numpy as np
    >>> q, k = np.random.default_rng(0).uniform(-0.5, 0.5, (2, 6, 4))
    >>> features = PolynomialFeatures(4, degree=4, bound=0.5)
    >>> u1, u2 = features.factors(q, k)
    >>> exact = np.exp(q @ k.T / 2)
    >>> features.rank, bool(np.abs(u1 @ u2.T / exact - 1).max() < features.error < 1e-3)
    (70, True)
    """

    error: float

    def __init__(
        self, width: int, degree: int, bound: float, *, scale: float | None = None, kind: str = "chebyshev"
    ) -> None:
        self.width = as_count("width", width, least=1)
        self.scale = as_scale(scale, self.width)
        self.kind = as_option("kind", kind, KINDS)
        coefficients = polynomial_coefficients(degree, bound, kind=kind)
        self.degree, self.bound = len(coefficients) - 1, float(bound)
        self.rank = monomial_rank(self.width, self.degree)
        if self.rank > LARGEST_RANK:
            raise MemoryError(
                f"degree: {self.degree} came with width {self.width}: rank {_readable(self.rank)} (the paper's count"
                f" {_readable(paper_rank(self.width, self.degree))}), {_readable(self.rank >> 17)} MiB for every row of"
                f" each factor; a rank of at most {LARGEST_RANK} was wanted"
            )
        self.error = polynomial_error(self.degree, bound, kind=kind)
        self.error += polynomial_rounding(self.degree, bound, self.rank, kind=kind)
        require_memory(f"width: {self.width} monomials a degree", 64 * max(self.rank, self.width))
        self._parents, self._variables, powers, multinomials = _monomials(self.width, self.degree)
        with np.errstate(over="ignore", invalid="ignore"):  # judged below
            weights = coefficients[powers] * self.scale**powers * multinomials
        if not np.isfinite(weights).all():
            raise ValueError(f"scale: {self.scale:.6g} came, its power {self.degree} overflows; a smaller was wanted")
        self._query_weights = np.sqrt(np.abs(weights))
        self._key_weights = np.sign(weights) * self._query_weights

    @classmethod
    def for_error(
        cls, width: int, error: float, bound: float, *, scale: float | None = None, kind: str = "chebyshev"
    ) -> PolynomialFeatures:
        """Return the map of the smallest degree whose relative error on [−B, B] is at most `error`.

        Parameters
        ----------
        width : int
            The width d of q and k.
        error : float
            Relative error asked for, above 0.
        bound, scale, kind : optional
            As for `PolynomialFeatures`.

        Raises
        ------
        TypeError, ValueError, MemoryError
            As `PolynomialFeatures` and `degree_for`; or rounding leaves no room for the error.

        Examples
        --------
        >>> PolynomialFeatures.for_error(4, 1e-3, 0.5).degree
        3
        """
        degree = degree_for(error, bound, kind=as_option("kind", kind, KINDS))
        for wanted in (
            degree,
            min(degree + 1, LARGEST_DEGREE),
        ):  # where rounding takes the last bit of room, one degree more gives it back
            features = cls(width, wanted, bound, scale=scale, kind=kind)
            if features.error <= error:
                return features
        raise ValueError(
            f"error: {error:.3g} came, but on [−{bound:.3g}, {bound:.3g}] with rank {features.rank} float64 reaches"
            f" only {features.error:.3g}; a larger error or smaller logits were wanted"
        )

    @property
    def least_entry(self) -> float:
        """``(1 − error) e^{−B}``, or 0 where the error does not keep the polynomial above 0."""
        return max(0.0, (1 - self.error) * math.exp(-self.bound))

    def _require_inside(self, q: FloatArray, k: FloatArray) -> None:
        largest = logit_bound(q, k, scale=self.scale)
        if largest > self.bound * (1 + 1e-12):
            i, j = (int(np.linalg.norm(x / np.abs(x).max(), axis=-1).argmax()) for x in (q, k))
            raise ValueError(
                f"q, k: norms allow logits up to {largest:.6g} (largest norms at query {i} and key {j}), at most the"
                f" features' bound {self.bound:.6g} was wanted: outside it the polynomial says nothing of exp"
            )

    def _queries(self, q: FloatArray, *, shifted: bool) -> FloatArray:
        return self._expand("q", q, self._query_weights)

    def _keys(self, k: FloatArray, *, shifted: bool) -> FloatArray:
        return self._expand("k", k, self._key_weights)

    def _expand(self, name: str, x: FloatArray, weights: FloatArray) -> FloatArray:
        from refattn.lowrank import _features_loops as loops

        out = np.empty((*x.shape[:-1], self.rank))
        rows, workspace = np.ascontiguousarray(x).reshape(-1, self.width), np.empty(self.rank)
        loops.monomials(rows, self._parents, self._variables, weights, workspace, out.reshape(-1, self.rank))
        require_finite(f"{name}: features", out)
        return out

    def _pull_queries(self, q: FloatArray, u: FloatArray, du: FloatArray) -> FloatArray:
        return self._pull(q, self._query_weights, du)

    def _pull_keys(self, k: FloatArray, u: FloatArray, du: FloatArray) -> FloatArray:
        return self._pull(k, self._key_weights, du)

    def _pull(self, x: FloatArray, weights: FloatArray, du: FloatArray) -> FloatArray:
        from refattn.lowrank import _features_loops as loops

        dx, (phi, dphi) = np.zeros(x.shape), np.empty((2, self.rank))
        rows = np.ascontiguousarray(x).reshape(-1, self.width)
        upstream = np.ascontiguousarray(du, np.float64).reshape(-1, self.rank)
        loops.monomials_pullback(
            upstream, rows, self._parents, self._variables, weights, phi, dphi, dx.reshape(-1, self.width)
        )
        return dx


def _readable(count: int) -> str:
    """Return a count in three digits, or its number of digits where a float does not hold it."""
    return f"{count:.3g}" if count < 1e300 else f"10^{int(count.bit_length() * math.log10(2))}"


def _monomials(width: int, degree: int) -> tuple[NDArray[np.int64], ...]:
    """All exponents α with ``|α| ≤ g``, each as its parent times one variable not before the parent's last.

    Returns parents and variables, ``x^α = x^parent · x_variable``, the powers |α|, and ``m!/α!``, from the parent's.
    """
    parents, variables, powers, multinomials = [np.zeros(1, np.int64)], [np.zeros(1, np.int64)], [0], [np.ones(1)]
    first, runs = 0, np.zeros(1, np.int64)
    for m in range(1, degree + 1):
        last = variables[-1]
        children = width - last
        parent = np.repeat(np.arange(last.size), children)
        variable = np.arange(parent.size) - np.repeat(np.cumsum(children) - children, children) + last[parent]
        runs = np.where(variable == last[parent], runs[parent], 0) + 1
        multinomials.append(multinomials[-1][parent] * m / runs)
        parents.append(first + parent)
        variables.append(variable)
        powers.append(m)
        first += last.size
    counts = [level.size for level in variables]
    whole: Any = (np.concatenate(parents), np.concatenate(variables), np.repeat(powers, counts))
    return (*whole, np.concatenate(multinomials))
