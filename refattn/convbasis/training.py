"""The attention loss and its gradient (arXiv 2405.05219, section 5), from the definition and by products with f.

Symbols of the paper, except that the value weights are W here (the paper's Y is the output elsewhere):

    L(X) = ½ ‖ D(X)⁻¹ (M ∘ exp(A1 X A2ᵀ)) A3 W − E ‖_F²

    f = D⁻¹ (M ∘ exp(A1 X A2ᵀ))      n×n, the softmax
    h = A3 W                          n×d, the values
    c = f h − E                       n×d, the residual, so L = ½ ‖c‖²
    q = c hᵀ                          n×n, dL/df
    p = f ∘ q − diag((f ∘ q) 1) f     n×n, the derivative with respect to the logits

    dL/dX = A1ᵀ p A2

`loss_gradient_oracle` forms them. `loss_gradient_paper` forms no n×n matrix: q has rank d, so

    p w = Σ_l diag(c_l) f (h_l ∘ w) − diag(r) f w,      r = (f ∘ q) 1 = Σ_l c_l ∘ (f h_l):

each column of ``p A2`` takes d + 1 products with f, and f is a k-conv product. The derivation, step by step, is in
docs/explanation/training.md.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from refattn._threads import one_blas_thread
from refattn._validation import FloatArray, as_float_arrays, as_real
from refattn.convbasis.bounds import ROW_TOLERANCE
from refattn.convbasis.guarded.softmax import Softmax
from refattn.convbasis.recovery import recover_heads, search_options


class LossGradients(NamedTuple):
    """The loss and its gradients, each of the shape of its argument."""

    loss: float
    X: FloatArray
    W: FloatArray
    A1: FloatArray
    A2: FloatArray
    A3: FloatArray


@one_blas_thread()
def loss_gradient_oracle(
    A1: ArrayLike, A2: ArrayLike, A3: ArrayLike, X: ArrayLike, W: ArrayLike, E: ArrayLike
) -> LossGradients:
    """The loss and its gradients from the definition, dense.

    Parameters
    ----------
    A1, A2, A3 : array_like, shape (n, d)
        Inputs of the queries, keys and values.
    X : array_like, shape (d, d)
        Product of the query and the transposed key weights, ``X = W_Q W_Kᵀ``.
    W : array_like, shape (d, d_v)
        Value weights.
    E : array_like, shape (n, d_v)
        Target.

    Returns
    -------
    LossGradients
        Fields ``loss``, ``X``, ``W``, ``A1``, ``A2``, ``A3``. Through X: ``dW_Q = dX W_K``, ``dW_K = dXᵀ W_Q``.

    Raises
    ------
    TypeError, ValueError
        Arguments are not finite numbers, or shapes do not fit.

    Notes
    -----
    Time O(n² d), memory O(n²). Source: arXiv 2405.05219, definition of the attention optimisation problem.

    Examples
    --------
    >>> import numpy as np
    >>> rng = np.random.default_rng(0)
    >>> A1, A2, A3, E = rng.standard_normal((4, 6, 3))
    >>> X, W = rng.standard_normal((2, 3, 3))
    >>> step = loss_gradient_oracle(A1, A2, A3, X, W, E)
    >>> loss_gradient_oracle(A1, A2, A3, X - 0.01 * step.X, W, E).loss < step.loss
    True
    """
    A1, A2, A3, X, W, E = _checked(A1, A2, A3, X, W, E)
    S = np.where(np.tri(len(A1), dtype=bool), A1 @ X @ A2.T, -np.inf)
    f = np.exp(S - S.max(axis=1, keepdims=True))
    f /= f.sum(axis=1, keepdims=True)
    h = A3 @ W
    c = f @ h - E
    q = c @ h.T
    p = f * q - (f * q).sum(axis=1, keepdims=True) * f
    dh = f.T @ c
    return LossGradients(float(0.5 * np.sum(c * c)), A1.T @ p @ A2, A3.T @ dh, p @ A2 @ X.T, p.T @ A1 @ X, dh @ W.T)


@one_blas_thread()
def loss_gradient_paper(
    A1: ArrayLike,
    A2: ArrayLike,
    A3: ArrayLike,
    X: ArrayLike,
    W: ArrayLike,
    E: ArrayLike,
    *,
    n_basis: int,
    probe: int,
    delta: float,
    eps: float = 0.0,
    tol: float | None = None,
) -> LossGradients:
    """The loss and its gradients with a k-conv basis of the logits, as the paper computes them.

    Parameters
    ----------
    A1, A2, A3, X, W, E : array_like
        As for `loss_gradient_oracle`.
    n_basis, probe, delta, eps : int and float
        As for `recover`.
    tol : float, optional
        Row tolerance, as for `refattn.conv_attention`.

    Returns
    -------
    LossGradients
        Equal to the oracle's where the basis is exact; else the gradient of the exact loss with f replaced by its
        conv approximation, in all its occurrences.

    Raises
    ------
    TypeError, ValueError
        As for `loss_gradient_oracle` and `refattn.recover`.

    Notes
    -----
    Time O(k d² n log n), memory O(kn + nd). Source: arXiv 2405.05219, theorem on training (5.6).

    Examples
    --------
    >>> import numpy as np
    >>> rng = np.random.default_rng(0)
    >>> A1, A2, A3, E = rng.standard_normal((4, 6, 3))
    >>> X, W = rng.standard_normal((2, 3, 3))
    >>> found = loss_gradient_paper(A1, A2, A3, X, W, E, n_basis=6, probe=1, delta=0)  # k = n: exact
    >>> bool(np.allclose(found.X, loss_gradient_oracle(A1, A2, A3, X, W, E).X, rtol=1e-10))
    True
    """
    A1, A2, A3, X, W, E = _checked(A1, A2, A3, X, W, E)
    n = len(A1)
    Q = A1 @ X
    row_tol = ROW_TOLERANCE[A1.dtype.name] if tol is None else as_real("tol", tol, least=0.0)
    f = Softmax(recover_heads(Q, A2, *search_options(n, n_basis, probe, delta, eps), 1.0), None, row_tol)
    h = A3 @ W
    fh = f.apply(h)
    c = fh - E
    r = (c * fh).sum(axis=1, keepdims=True)  # (f ∘ q) 1, row by row Σ_l c_l ∘ (f h_l)

    pA2 = -r * f.apply(A2)
    ptA1 = -f.apply_transposed(r * A1)
    for c_l, h_l in zip(c.T[:, :, None], h.T[:, :, None], strict=True):
        pA2 += c_l * f.apply(h_l * A2)
        ptA1 += h_l * f.apply_transposed(c_l * A1)
    dh = f.apply_transposed(c)
    return LossGradients(float(0.5 * np.sum(c * c)), A1.T @ pA2, A3.T @ dh, pA2 @ X.T, ptA1 @ X, dh @ W.T)


def _checked(*arrays: ArrayLike) -> tuple[FloatArray, ...]:
    named: dict[str, Any] = dict(zip(("A1", "A2", "A3", "X", "W", "E"), arrays, strict=True))
    A1, A2, A3, X, W, E = as_float_arrays(**named)
    if A1.ndim != 2 or 0 in A1.shape:
        raise ValueError(f"A1: shape {A1.shape} came, (n, d) was wanted")
    n, d = A1.shape
    d_v = W.shape[-1] if W.ndim == 2 else d
    wanted = {"A2": (A2, (n, d)), "A3": (A3, (n, d)), "X": (X, (d, d)), "W": (W, (d, d_v)), "E": (E, (n, d_v))}
    for name, (array, shape) in wanted.items():
        if array.shape != shape:
            raise ValueError(f"{name}: shape {array.shape} came, {shape} was wanted")
    return A1, A2, A3, X, W, E
