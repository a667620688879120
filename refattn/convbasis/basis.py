"""The conv basis of a lower-triangular matrix (arXiv 2405.05219, section 3): decomposition, dense form, exp transform.

The paper writes ``H = Σ_i conv(b_i, m_i)`` with ``n ≥ m_1 > … > m_k ≥ 1``. This module keeps the same object in its
*cumulative* form, which is what every product needs and which cancels nothing:

    starts   c_i = n − m_i               first column of segment i (0-based)
    kernels  u_i = b_1 + … + b_i         for a column j in segment i, H[j + t, j] = u_i[t]

So a k-conv basis says: inside a segment, each column is the one before, shifted down by one. The paper's own b_i and
m_i are `ConvBasis.vectors` and `ConvBasis.sizes`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from refattn._kept import kept
from refattn._threads import one_blas_thread
from refattn._validation import (
    FloatArray,
    as_array,
    as_count,
    as_float_arrays,
    as_real,
    as_scale,
    cast,
    require_finite,
    require_rank,
)


@dataclass(frozen=True, eq=False)
class ConvBasis:
    """A k-conv basis, for one matrix or a stack of them.

    Parameters
    ----------
    starts : array_like of int, shape (…, k)
        First column of each segment, strictly increasing, from 0 to n − 1. A stack whose matrices have different
        numbers of segments marks unused places, at the end, by n.
    kernels : array_like, shape (…, k, n)
        Cumulative kernels: ``kernels[i, t]`` is the entry t below the diagonal in every column of segment i. Zero from
        ``n − starts[i]`` on, where nothing is left of the column.

    Raises
    ------
    TypeError
        `starts` are not integers, or `kernels` not real numbers.
    ValueError
        Starts are not increasing or out of range; kernels are of the wrong length, not finite, or not zero where
        they have to be.

    Notes
    -----
    Memory O(kn). The basis keeps read-only copies of both arrays. Source: arXiv 2405.05219, definition of the k-conv
    basis; the cumulative form is ours.

    Examples
    --------
    >>> basis = ConvBasis(starts=[0, 2], kernels=[[1.0, 2.0, 3.0], [7.0, 0.0, 0.0]])
    >>> basis.to_dense()
    array([[1., 0., 0.],
           [2., 1., 0.],
           [3., 2., 7.]])
    """

    starts: NDArray[np.int64]
    kernels: FloatArray

    def __post_init__(self) -> None:
        starts = as_array("starts", self.starts)
        if starts.dtype.kind not in "iu":
            raise TypeError(f"starts: dtype {starts.dtype} came, integers were wanted")
        (kernels,) = as_float_arrays(kernels=self.kernels)
        require_rank("kernels", kernels, 2, "(…, k, n)")
        n = kernels.shape[-1]
        if starts.shape != kernels.shape[:-1]:
            raise ValueError(f"starts: shape {starts.shape} came, {kernels.shape[:-1]} (one per kernel) was wanted")
        starts = np.array(starts, np.int64, order="C")
        used = starts < n
        if (starts < 0).any() or (starts > n).any() or not used[..., 0].all():
            raise ValueError(f"starts: {starts.tolist()} came, columns from 0 to {n - 1} were wanted")
        if ((np.diff(starts, axis=-1) <= 0) & used[..., 1:]).any():
            raise ValueError(f"starts: {starts.tolist()} came, strictly increasing ones were wanted")
        beyond = np.arange(n) >= n - starts[..., None]
        if (kernels[beyond] != 0).any():
            *where, t = (int(x) for x in np.argwhere(beyond & (kernels != 0))[0])
            raise ValueError(
                f"kernels: entry {t} of kernel {tuple(where)} is not zero; a segment that starts at column"
                f" {int(starts[tuple(where)])} has a kernel of length {n - int(starts[tuple(where)])}, then zeros"
            )
        self._hold(starts, kept(kernels))

    def _hold(self, starts: NDArray[np.int64], kernels: FloatArray) -> None:
        """Keep read-only views."""
        for name, array in (("starts", starts), ("kernels", kernels)):
            view = array.view()
            view.flags.writeable = False
            object.__setattr__(self, name, view)

    @classmethod
    def _trusted(cls, starts: NDArray[np.int64], kernels: FloatArray) -> ConvBasis:
        """Return a basis of arrays that are known to fit and that nobody will write to, without looking at them."""
        basis = cls.__new__(cls)
        basis._hold(starts, kernels)
        return basis

    def __reduce__(self) -> tuple[Any, ...]:
        """Copied or pickled, its arrays are read-only as well."""
        return ConvBasis._trusted, (self.starts, self.kernels)

    @property
    def n(self) -> int:
        """Number of rows and columns of the matrix."""
        return int(self.kernels.shape[-1])

    @property
    def n_terms(self) -> NDArray[np.int64]:
        """Number of segments k of every matrix, shape (…)."""
        return np.asarray((self.starts < self.n).sum(axis=-1))

    @property
    def sizes(self) -> NDArray[np.int64]:
        """The paper's m_i, shape (…, k); 0 in unused places."""
        return self.n - self.starts

    @property
    def vectors(self) -> FloatArray:
        """The paper's b_i, shape (…, k, n): ``b_i = u_i − u_{i−1}`` in the first m_i entries, then zero."""
        vectors = self.kernels.copy()
        vectors[..., 1:, :] -= self.kernels[..., :-1, :]
        vectors[self._beyond()] = 0
        return vectors

    @property
    def largest(self) -> float:
        """Largest entry of the causal part of the matrices: the natural shift of `exp_transform`."""
        inside = np.where(self._beyond(), -np.inf, self.kernels).max()
        return float(max(inside, 0.0) if (self.starts[..., 0] > 0).any() else inside)

    def _beyond(self) -> NDArray[np.bool_]:
        """Entries of the kernels that lie below the last row."""
        return np.asarray(np.arange(self.n) >= self.sizes[..., None])

    def __getitem__(self, index: Any) -> ConvBasis:
        """Return the basis of one matrix, or of some, of a stack."""
        return ConvBasis._trusted(self.starts[index], self.kernels[index])

    def segments(self) -> NDArray[np.int64]:
        """Segment number of every column, shape (…, n); −1 before the first start, where columns are zero."""
        columns = np.arange(self.n)
        return np.asarray((self.starts[..., :, None] <= columns).sum(axis=-2) - 1)

    def rows(self, index: ArrayLike) -> FloatArray:
        """Dense rows of the matrix.

        Parameters
        ----------
        index : array_like of int, shape (r,)
            Which rows.

        Returns
        -------
        ndarray, shape (…, r, n)
            ``rows[r, j] = u_seg(j)[index_r − j]`` for j ≤ index_r, else 0; time and memory O(rn).

        Examples
        --------
        >>> decompose([[1.0, 0.0], [2.0, 1.0]]).rows([1])
        array([[2., 1.]])
        """
        lag = self._places(index)[:, None] - np.arange(self.n)
        return self._gather(self.segments()[..., None, :], lag)

    def columns(self, index: ArrayLike) -> FloatArray:
        """Dense columns of the matrix, as rows of the result.

        Parameters
        ----------
        index : array_like of int, shape (r,)
            Which columns.

        Returns
        -------
        ndarray, shape (…, r, n)
            ``columns[r, i] = u_seg(index_r)[i − index_r]`` for i ≥ index_r, else 0; time and memory O(rn).
        """
        index = self._places(index)
        return self._gather(self.segments()[..., index, None], np.arange(self.n) - index[:, None])

    def to_dense(self) -> FloatArray:
        """Dense matrix, shape (…, n, n); time and memory O(n²)."""
        return self.rows(np.arange(self.n))

    def _places(self, index: ArrayLike) -> NDArray[np.int64]:
        """Return rows or columns that exist: beyond them, the kernel of the next segment would be read."""
        places = as_array("index", index)
        if places.dtype.kind not in "iu" or places.ndim != 1:
            raise TypeError(
                f"index: shape {places.shape} and dtype {places.dtype} came, a vector of integers was wanted"
            )
        if places.size and (places.min() < 0 or places.max() >= self.n):
            raise ValueError(f"index: {places.min()} … {places.max()} came, places from 0 to {self.n - 1} were wanted")
        return places.astype(np.int64, copy=False)

    def _gather(self, segment: NDArray[np.int64], lag: NDArray[np.int64]) -> FloatArray:
        """Entries ``u_segment[lag]``, 0 above the diagonal and before the first start."""
        present = (lag >= 0) & (segment >= 0)
        flat = self.kernels.reshape(*self.kernels.shape[:-2], -1)
        place = np.where(present, segment * self.n + lag, 0)
        taken = np.take_along_axis(flat, place.reshape(*place.shape[:-2], -1), axis=-1)
        return np.where(present, taken.reshape(place.shape), np.zeros((), flat.dtype))

    def exp_transform(self, shift: float = 0.0) -> ConvBasis:
        """Basis of ``M ∘ exp(H − shift)``, H the matrix of this basis and M the causal mask.

        Parameters
        ----------
        shift : float, optional
            Subtracted before the exponential; a constant shift cancels in attention.

        Returns
        -------
        ConvBasis
            The same starts with kernels ``exp(u_i − shift)``. Columns before the first start, which are zero in H,
            become ``exp(−shift)``: a first segment with u = 0 is put before the others where it is needed.

        Raises
        ------
        ValueError
            An exponential overflows: a shift near the largest kernel entry was wanted.

        Notes
        -----
        Time and memory O(kn). Source: arXiv 2405.05219, the exp-transform lemma (``b̃_1 = exp(b_1)``,
        ``b̃_i = exp(u_i) − exp(u_{i−1})``): in cumulative form the differences, and their cancellation, disappear.

        Examples
        --------
        >>> import numpy as np
        >>> h = np.tril(np.arange(9.0).reshape(3, 3))
        >>> bool(np.allclose(decompose(h).exp_transform().to_dense(), np.tril(np.exp(h))))
        True
        """
        shift = as_real("shift", shift)
        subtracted = cast("shift", np.asarray(shift), self.kernels.dtype)
        starts, kernels, beyond = self.starts, self.kernels, self._beyond()
        if (starts[..., 0] > 0).any():
            if starts.ndim > 1 and (starts[..., 0] == 0).any():
                raise ValueError("starts: some matrices of the stack start at column 0 and some later; transform each")
            first = np.zeros_like(kernels[..., :1, :])
            starts = np.concatenate([np.zeros_like(starts[..., :1]), starts], axis=-1)
            kernels = np.concatenate([first, kernels], axis=-2)
            beyond = np.concatenate([np.zeros_like(beyond[..., :1, :]), beyond], axis=-2)
        with np.errstate(over="ignore", under="ignore"):
            transformed = np.exp(kernels - subtracted)
        transformed[beyond] = 0
        if not np.isfinite(transformed).all():
            raise ValueError(
                f"shift: exp({kernels.max():.6g} − {shift:.6g}) overflows {kernels.dtype};"
                " a shift near the largest kernel entry was wanted"
            )
        return ConvBasis(starts, transformed)

    def nondegeneracy(self, probe: int) -> float:
        """Largest δ for which the basis is (T, δ)-non-degenerate, T being `probe`.

        Parameters
        ----------
        probe : int
            The paper's T: how many entries of a column are looked at; 1 ≤ T ≤ m_k (the smallest segment's size).

        Returns
        -------
        float
            ``min over j ≤ i of ‖Σ_{l=j..i} (b_l)[:T]‖₁``, which is the smallest ℓ1 distance between two of
            ``0, u_1, …, u_k`` in their first T entries.

        Raises
        ------
        ValueError
            `probe` exceeds m_k, so no δ serves; or the basis is a stack.

        Notes
        -----
        Time O(k² T). Source: arXiv 2405.05219, definition of non-degeneracy.

        Examples
        --------
        >>> ConvBasis([0, 1], [[3.0, 1.0, 0.0], [1.0, 1.0, 0.0]]).nondegeneracy(probe=2)
        2.0
        """
        if self.starts.ndim > 1:
            raise ValueError(
                f"basis: a stack of shape {self.starts.shape[:-1]} came, the basis of one matrix was wanted"
            )
        k = int(self.n_terms)
        probe = as_count("probe", probe, least=1, most=int(self.sizes[k - 1]), most_is="m_k")
        heads = np.concatenate([np.zeros((1, probe)), self.kernels[:k, :probe]])
        distances = [np.abs(heads[i + 1 :] - heads[i]).sum(axis=-1).min() for i in range(k)]
        return float(min(distances))


def decompose(h: ArrayLike, *, atol: float = 0.0) -> ConvBasis:
    """Conv basis of a lower-triangular matrix with the fewest terms; it is unique.

    Parameters
    ----------
    h : array_like, shape (n, n)
        Lower-triangular and not zero; float32 and float64 are kept, the rest becomes float64.
    atol : float, optional
        A column continues a segment if every entry differs by at most `atol` from the segment's kernel. With 0 the
        decomposition is exact and minimal; with more, `to_dense` is within `atol` of `h`, entry by entry.

    Returns
    -------
    ConvBasis
        With k ≤ n terms.

    Raises
    ------
    TypeError, ValueError
        `h` is not a square, finite, lower-triangular, non-zero matrix of numbers.

    Notes
    -----
    Time O(n²), memory O(kn). Source: arXiv 2405.05219, the lemma that every non-zero lower-triangular matrix has
    exactly one minimal conv basis, by its construction: walk the columns left to right; where the residual
    ``r = H[c:, c] − u[:m]`` is not zero, a new term ``(r, m)`` begins.

    Examples
    --------
    >>> basis = decompose([[1.0, 0.0, 0.0], [2.0, 1.0, 0.0], [3.0, 2.0, 7.0]])
    >>> basis.starts.tolist(), basis.vectors[:, 0].tolist()
    ([0, 2], [1.0, 6.0])
    """
    (h,) = as_float_arrays(h=h)
    require_lower_triangular(h)
    atol = as_real("atol", atol, least=0.0)
    n = h.shape[0]
    starts: list[int] = []
    kernels: list[FloatArray] = []
    u = np.zeros(n, h.dtype)
    for c in range(n):
        column = h[c:, c]
        if (np.abs(column - u[: n - c]) > atol).any():
            u = np.zeros(n, h.dtype)
            u[: n - c] = column
            starts.append(c)
            kernels.append(u)
    if not starts:
        raise ValueError("h: a zero matrix came, a non-zero one was wanted (it has no conv basis)")
    return ConvBasis(np.array(starts), np.stack(kernels))


def require_lower_triangular(h: FloatArray) -> None:
    """Raise unless `h` is a square matrix with nothing above the diagonal."""
    require_rank("h", h, 2, "(n, n)")
    if h.ndim != 2 or h.shape[0] != h.shape[1]:
        raise ValueError(f"h: shape {h.shape} came, (n, n) was wanted")
    upper = np.triu(h, 1)
    if upper.any():
        i, j = (int(x) for x in np.argwhere(upper)[0])
        raise ValueError(f"h: entry ({i}, {j}) above the diagonal is {h[i, j]}, a lower-triangular matrix was wanted")


def as_starts(starts: ArrayLike, n: int) -> NDArray[np.int64]:
    """Return `starts` as a vector of strictly increasing columns of an n × n matrix, or raise."""
    columns = as_array("starts", starts)
    if columns.dtype.kind not in "iu" or columns.ndim != 1 or not columns.size:
        raise TypeError(f"starts: {starts!r} came, a vector of integers was wanted")
    if columns.min() < 0 or columns.max() >= n:
        raise ValueError(f"starts: {columns.tolist()} came, columns from 0 to {n - 1} were wanted")
    columns = np.array(columns, np.int64)
    if (np.diff(columns) <= 0).any():
        raise ValueError(f"starts: {columns.tolist()} came, strictly increasing ones were wanted")
    return columns


def as_head(q: ArrayLike, k: ArrayLike, *, check_finite: bool = True) -> tuple[FloatArray, FloatArray]:
    """Return the queries and keys of one head, or raise."""
    q, k = as_float_arrays(check_finite=check_finite, q=q, k=k)
    if q.ndim != 2 or q.shape != k.shape or 0 in q.shape:
        raise ValueError(f"q, k: shapes {q.shape} and {k.shape} came, (n, d) twice was wanted")
    return q, k


@one_blas_thread()
def basis_from_starts(
    q: ArrayLike, k: ArrayLike, starts: ArrayLike, *, scale: float | None = None, check_finite: bool = True
) -> ConvBasis:
    """Basis with given starts, whose kernels are the columns of the logits at the starts.

    Parameters
    ----------
    q, k : array_like, shape (n, d)
        Queries and keys of one head.
    starts : array_like of int, shape (s,)
        First columns of the segments, strictly increasing.
    scale, check_finite : optional
        As for `recover`.

    Returns
    -------
    ConvBasis
        ``kernels[i, t] = scale · q[c_i + t] · k[c_i]``: exact if the logits are k-conv with these starts.

    Raises
    ------
    TypeError, ValueError
        Shapes do not fit, the starts are not increasing columns, or a logit is not finite.

    Notes
    -----
    Time O(s n d), memory O(s n). Source: arXiv 2405.05219, the kernels of Algorithm 2 with the starts known.

    Examples
    --------
    >>> import numpy as np
    >>> q, k = np.random.default_rng(0).standard_normal((2, 6, 4))
    >>> bool(np.allclose(basis_from_starts(q, k, [0, 3]).to_dense()[3:, 3], q[3:] @ k[3] / 2))
    True
    """
    q, k = as_head(q, k, check_finite=check_finite)
    n = q.shape[0]
    columns = as_starts(starts, n)
    factor = np.asarray(as_scale(scale, q.shape[1], q.dtype), q.dtype)
    kernels = np.zeros((columns.size, n), q.dtype)
    with np.errstate(over="ignore", invalid="ignore"):
        for kernel, c in zip(kernels, columns, strict=True):
            kernel[: n - c] = (q[c:] @ k[c]) * factor
    require_finite("q, k: logits", kernels)
    return ConvBasis(columns, kernels)
