"""Positive random features (FAVOR+), for comparison with the polynomial ones (Choromanski et al., arXiv 2009.14794).

With ``x = √|s| q``, ``y = ±√|s| k`` and normal w, ``exp(x·y) = E exp(w·x − ‖x‖²/2) exp(w·y − ‖y‖²/2)``.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

from refattn._kept import restore
from refattn._memory import require_memory
from refattn._threads import one_blas_thread
from refattn._validation import FloatArray, as_count, as_flag, as_scale
from refattn.lowrank.features import FeatureMap


class RandomFeatures(FeatureMap):
    """Positive random features (FAVOR+): unbiased, positive, and with a variance that grows like an exponential.

    Parameters
    ----------
    width : int
        The width d of q and k.
    rank : int
        The number r of features.
    seed : int
        Seed of the projections.
    scale : float, optional
        Factor of the logits; ``1/√d`` by default.
    orthogonal : bool, optional
        Make the projections of each group of d orthogonal: still normal each, so still unbiased.

    Raises
    ------
    TypeError, ValueError
        An argument is out of range or of the wrong kind.

    Notes
    -----
    The relative variance of an entry, projections independent, is ``(exp(‖x + y‖²) − 1)/r`` with ``x = √|s| q``, ``y =
    ±√|s| k`` (`relative_variance`). Source: arXiv 2009.14794 (FAVOR+), its lemma on positive features. Factors take
    time O(nrd), memory O(nr).

    Examples
    --------
    >>> import numpy as np
    >>> q, k = np.random.default_rng(0).standard_normal((2, 3, 4)) / 2
    >>> u1, u2 = RandomFeatures(4, rank=20_000, seed=0).factors(q, k)
    >>> bool(np.abs(u1 @ u2.T / np.exp(q @ k.T / 2) - 1).max() < 0.1)
    True
    """

    error = None
    _row_by_row = True

    __setstate__ = restore

    def __init__(
        self, width: int, rank: int, seed: int, *, scale: float | None = None, orthogonal: bool = True
    ) -> None:
        self.width, self.rank = as_count("width", width, least=1), as_count("rank", rank, least=1)
        self.scale = as_scale(scale, self.width)
        copies = 4 if as_flag("orthogonal", orthogonal) else 1
        require_memory(
            f"rank, width: {self.rank} random features of width {self.width}", 8 * copies * self.rank * self.width
        )
        rng = np.random.default_rng(as_count("seed", seed, least=0))
        self.projections = rng.standard_normal((self.rank, self.width))
        if orthogonal:
            lengths = np.linalg.norm(self.projections, axis=-1, keepdims=True)
            groups, rest = divmod(self.rank, self.width)
            whole = _orthonormal(rng.standard_normal((groups, self.width, self.width)))
            last = _orthonormal(rng.standard_normal((self.width, rest)))  # the columns of as many as are wanted
            self.projections = np.concatenate([whole.reshape(-1, self.width), last.T]) * lengths
        self.projections.flags.writeable = False

    def relative_variance(self, q: ArrayLike, k: ArrayLike) -> FloatArray:
        """Variance of each entry over its squared mean, for independent projections; shape (…, n_q, n_k).

        Parameters
        ----------
        q, k : array_like, shapes (…, n_q, d), (…, n_k, d)
            Queries and keys.

        Notes
        -----
        Time and memory O(n²d): for small inputs. Source: arXiv 2009.14794; for orthogonal projections, a bound.

        Examples
        --------
        >>> RandomFeatures(1, rank=10, seed=0, scale=1.0).relative_variance([[0.5]], [[-0.5]]).tolist()
        [[0.0]]
        """
        queries, keys = self._checked(q, k)
        x, y = self._scaled(queries), math.copysign(1.0, self.scale) * self._scaled(keys)
        norms = np.square(x[..., :, None, :] + y[..., None, :, :]).sum(axis=-1)
        return np.asarray(np.expm1(norms) / self.rank)

    def _require_inside(self, q: FloatArray, k: FloatArray) -> None:
        """Nothing: unbiased everywhere."""

    def _scaled(self, x: FloatArray) -> FloatArray:
        return np.asarray(math.sqrt(abs(self.scale)) * x)

    def _queries(self, q: FloatArray, *, shifted: bool) -> FloatArray:
        return self._exponentials("q", self._scaled(q), -1 if shifted else None)

    def _keys(self, k: FloatArray, *, shifted: bool) -> FloatArray:
        scaled = math.copysign(1.0, self.scale) * self._scaled(k)
        return self._exponentials("k", scaled, (-2, -1) if shifted else None)

    def _exponentials(self, name: str, x: FloatArray, shift_over: int | tuple[int, int] | None) -> FloatArray:
        """``exp(w·x − ‖x‖²/2)/√r``, less the largest exponent over the given axes."""
        with np.errstate(over="ignore", invalid="ignore"), one_blas_thread():
            exponents = x @ self.projections.T - np.square(x).sum(axis=-1, keepdims=True) / 2
        if not np.isfinite(exponents.sum()):
            raise ValueError(f"{name}: the exponent of a random feature overflows, smaller entries were wanted")
        if shift_over is not None:
            exponents -= exponents.max(axis=shift_over, keepdims=True)
        with np.errstate(under="ignore"):
            features = np.exp(exponents, out=exponents)  # at most exp(‖w‖²/2)
        return np.asarray(features / math.sqrt(self.rank))

    def _pull_queries(self, q: FloatArray, u: FloatArray, du: FloatArray) -> FloatArray:
        return self._pull(self._scaled(q), u * du)

    def _pull_keys(self, k: FloatArray, u: FloatArray, du: FloatArray) -> FloatArray:
        sign = math.copysign(1.0, self.scale)
        return sign * self._pull(sign * self._scaled(k), u * du)

    def _pull(self, x: FloatArray, dexponents: FloatArray) -> FloatArray:
        """Forward: exponents = w·x − ‖x‖²/2 with x = √|s| times the input."""
        return self._scaled(dexponents @ self.projections - dexponents.sum(axis=-1, keepdims=True) * x)


def _orthonormal(normal: NDArray[np.float64]) -> NDArray[np.float64]:
    """Orthonormal columns, uniform over all rotations, of normal matrices ``(…, d, m)``, m ≤ d."""
    if normal.size == 0:  # of no matrix at all LAPACK still prepares the work of one
        return normal
    directions, triangle = np.linalg.qr(normal)
    return np.asarray(directions * np.sign(np.diagonal(triangle, axis1=-2, axis2=-1))[..., None, :])
