"""``(W ∘ U1 U2ᵀ) V`` for structured masks W: the public face of its methods (arXiv 2405.05219, section 6).

Gradients are products of the same kind. With dY upstream,

    dV = (Wᵀ ∘ U2 U1ᵀ) dY        dU1 = (W ∘ dY Vᵀ) U2        dU2 = (Wᵀ ∘ V dYᵀ) U1,

so the whole backward is three masked low-rank products: O(nrd) where the forward is (ours).

Each of the four is guarded by itself: every entry is within a tolerance of its natural size, recomputed, or refused
(see `refattn.lowrank.guard`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from refattn._mask_rules import offset_of
from refattn._memory import require_memory
from refattn._threads import one_blas_thread
from refattn._validation import (
    FloatArray,
    as_float_arrays,
    as_option,
    as_upstream,
    finite_gradients,
    require_finite,
    require_kind,
    require_rank,
)
from refattn.lowrank import guard, oracle, paper
from refattn.lowrank.masks import CausalStructure, ContinuousRowsMask, StructuredMask
from refattn.masks import Causal

METHODS = ("fast", "paper", "oracle")


@dataclass(frozen=True)
class MaskedProductForwardCache:
    """What `masked_product_backward` needs of the forward.

    Attributes
    ----------
    u1, u2, v : ndarray, shapes (…, n, r), (…, n, r), (…, n, d)
        Copies of the inputs, in the dtype of the computation; they cannot be written to.
    mask : StructuredMask
        The mask.
    method : str
        How the product was computed.
    recomputed : int
        Rows, of all heads, that the method left in doubt and that were summed again from their own columns.

    Examples
    --------
    >>> import numpy as np
    >>> from refattn import Causal
    >>> from refattn.lowrank import masked_product_forward
    >>> ones = np.ones((3, 1))
    >>> out, cache = masked_product_forward(ones, ones, ones, mask=Causal())
    >>> cache.method, cache.mask.n, cache.recomputed
    ('fast', 3, 0)
    """

    u1: FloatArray
    u2: FloatArray
    v: FloatArray
    mask: StructuredMask
    method: str
    recomputed: int


class MaskedProductGradients(NamedTuple):
    """Gradients of a masked low-rank product, each of the shape of its input; a tuple, ``du1, du2, dv = gradients``.

    Attributes
    ----------
    u1, u2, v : ndarray, shapes (…, n, r), (…, n, r), (…, n, d)
        With respect to the two factors and to what their matrix was multiplied with, in the dtype of the forward.

    Examples
    --------
    >>> import numpy as np
    >>> from refattn import Causal
    >>> from refattn.lowrank import masked_product_backward, masked_product_forward
    >>> ones = np.ones((3, 1))
    >>> out, cache = masked_product_forward(ones, ones, ones, mask=Causal())
    >>> du1, du2, dv = masked_product_backward(ones, cache)
    >>> du1.ravel()  # row i sees i + 1 columns
    array([1., 2., 3.])
    """

    u1: FloatArray
    u2: FloatArray
    v: FloatArray


def masked_product(
    u1: ArrayLike, u2: ArrayLike, v: ArrayLike, *, mask: Causal | StructuredMask, method: str = "fast"
) -> FloatArray:
    """Product ``(W ∘ U1 U2ᵀ) V`` with a structured mask W, without n×n.

    Parameters
    ----------
    u1, u2 : array_like, shape (…, n, r)
        The factors; leading axes are the same for u1, u2 and v.
    v : array_like, shape (…, n, d)
        What the matrix is multiplied with.
    mask : Causal or StructuredMask
        `refattn.Causal`, or one of `RowChangeMask`, `ContinuousRowsMask`, `DistinctColumnsMask`, `DistinctRowsMask`.
    method : {"fast", "paper", "oracle"}, optional
        Compiled; the paper's running sums, segment tree and groups in NumPy; dense.

    Returns
    -------
    ndarray, shape (…, n, d)
        The product, computed in float64, in the dtype of the inputs. Rows that see nothing are zero.

    Raises
    ------
    TypeError
        `mask` is not a structure, or an input is not numeric.
    ValueError
        Shapes do not fit, an entry is not finite, the product overflows, or `method` is unknown.
    MemoryError
        The dense method does not fit; the message has the estimate.

    Warns
    -----
    PromotionWarning
        Integers (to float64) or float16 (to float32) came.

    Notes
    -----
    Every entry is within a tolerance of its natural size ``S_ic = Σ_j W_ij (|u1_i|·|u2_j|) |v_jc|``, what it would be
    with all signs equal, however large what its row does not see: within ``(n + r) 2⁻⁵³ S_ic`` by "fast" and "oracle",
    10⁻¹⁰ ``S_ic`` by "paper", where rows that may have lost more are recomputed; and one rounding to the dtype.

    For one head, "fast" takes time O(nrd), O((n + Σ B_i) rd) for row changes and O(pnrd) for p distinct rows or
    columns; memory O(n (r + d)). Intervals that share no points, as random ones, take a factor log n more; so do
    continuous rows by "paper". "oracle": O(n² (r + d)), memory O(n²). The result does not depend on the number of
    threads. Source: arXiv 2405.05219, section 6, Algorithms 4 to 6 and the lemmas on distinct rows and columns.

    Examples
    --------
    >>> import numpy as np
    >>> from refattn import Causal
    >>> from refattn.lowrank import masked_product
    >>> u1, u2, v = np.random.default_rng(0).standard_normal((3, 5, 2))
    >>> out = masked_product(u1, u2, v, mask=Causal())
    >>> bool(np.allclose(out, np.tril(u1 @ u2.T) @ v))
    True
    """
    return _forward(*_checked(u1, u2, v, mask, method), method)[0]


def masked_product_forward(
    u1: ArrayLike, u2: ArrayLike, v: ArrayLike, *, mask: Causal | StructuredMask, method: str = "fast"
) -> tuple[FloatArray, MaskedProductForwardCache]:
    """Masked low-rank product, and what its backward needs.

    Parameters
    ----------
    u1, u2, v, mask, method : array_like, Causal or StructuredMask, str
        As for `masked_product`.

    Returns
    -------
    out : ndarray, shape (…, n, d)
        The product.
    cache : MaskedProductForwardCache
        For `masked_product_backward`.

    Raises
    ------
    TypeError, ValueError, MemoryError
        As `masked_product`.

    Notes
    -----
    Time, memory and dtypes as `masked_product`: O(nrd) by "fast" for a causal mask. Source: arXiv 2405.05219, section
    6.

    Examples
    --------
    >>> import numpy as np
    >>> from refattn.lowrank import masked_product_forward, sliding_window
    >>> ones = np.ones((4, 1))
    >>> masked_product_forward(ones, ones, ones, mask=sliding_window(4, 2))[0].ravel()
    array([1., 2., 2., 2.])
    """
    u1, u2, v, structure = _checked(u1, u2, v, mask, method)
    out, recomputed = _forward(u1, u2, v, structure, method)
    return out, MaskedProductForwardCache(kept(u1), kept(u2), kept(v), structure, method, recomputed)


def _checked(
    u1: ArrayLike, u2: ArrayLike, v: ArrayLike, mask: Causal | StructuredMask, method: str
) -> tuple[FloatArray, FloatArray, FloatArray, StructuredMask]:
    u1, u2, v = as_float_arrays(u1=u1, u2=u2, v=v)
    as_option("method", method, METHODS)
    structure = as_structure(mask, u1.shape[-2] if u1.ndim > 1 else 1)
    for name, array in (("u1", u1), ("u2", u2), ("v", v)):
        require_rank(name, array, 2, f"(…, n, {'d' if name == 'v' else 'r'})")
        if array.shape[-2] != structure.n:
            raise ValueError(
                f"{name}: {array.shape[-2]} rows came, as many as the mask has ({structure.n}) were wanted"
            )
    if u1.shape != u2.shape:
        raise ValueError(f"u2: shape {u2.shape} came, that of u1 {u1.shape} was wanted")
    if v.shape[:-2] != u1.shape[:-2]:
        raise ValueError(f"v: leading axes {v.shape[:-2]} came, those of u1 {u1.shape[:-2]} were wanted")
    require_method(method, structure)
    return u1, u2, v, structure


@one_blas_thread()
def _forward(
    u1: FloatArray, u2: FloatArray, v: FloatArray, mask: StructuredMask, method: str
) -> tuple[FloatArray, int]:
    """Return the product and how many rows were recomputed."""
    found = [guard.product(module_of(method), mask, *head) for head in _heads(u1, u2, v)]
    out = _stacked([rows.whole() for rows in found], v)
    require_finite("u1, u2, v: product", out)
    return out, sum(rows.recomputed for rows in found)


@one_blas_thread()
def masked_product_backward(dout: ArrayLike, cache: MaskedProductForwardCache) -> MaskedProductGradients:
    """Gradients of a masked low-rank product with respect to its factors and values.

    Parameters
    ----------
    dout : array_like, shape (…, n, d)
        Gradient of the loss with respect to the product.
    cache : MaskedProductForwardCache
        From `masked_product_forward`; the same method computes the gradients.

    Returns
    -------
    MaskedProductGradients
        Fields `u1`, `u2`, `v`, of the inputs' shapes and dtype.

    Raises
    ------
    TypeError, ValueError
        `dout` is not numeric, not finite, or not of the product's shape; or a gradient overflows.

    Notes
    -----
    Three products of the forward's kind: O(nrd) by "fast" for a causal mask. Every entry of every gradient keeps the
    tolerance of `masked_product`, with the natural size of its own product. Source: ours; the formulas stand at the
    head of the module.

    Examples
    --------
    >>> import numpy as np
    >>> from refattn import Causal
    >>> from refattn.lowrank import masked_product_backward, masked_product_forward
    >>> ones = np.ones((3, 1))
    >>> out, cache = masked_product_forward(ones, ones, ones, mask=Causal())
    >>> masked_product_backward(ones, cache).v.ravel()  # value j is seen by the rows from j on
    array([3., 2., 1.])
    """
    require_kind("cache", cache, MaskedProductForwardCache, "masked_product_forward")
    u1, u2, v, mask = cache.u1, cache.u2, cache.v, cache.mask
    dout = as_upstream(v.shape, "the product's", dout=dout)
    found = [pullback(mask, A, B, X, G, cache.method) for A, B, X, G in _heads(u1, u2, v, dout)]
    parts = zip(zip(*found, strict=True), (u1, u2, v), strict=True)
    return finite_gradients(MaskedProductGradients(*(_stacked(part, like) for part, like in parts)))


def pullback(
    mask: StructuredMask, A: FloatArray, B: FloatArray, X: FloatArray, G: FloatArray, method: str
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Gradients of one head's product with respect to its factors and values; what overflows is infinite."""
    module = module_of(method)
    # forward: (W ∘ U1 U2ᵀ) V
    dA = guard.product(module, mask, G, X, B)
    dB = guard.product(module, mask, X, G, A, transposed=True)
    dX = guard.product(module, mask, B, A, G, transposed=True)
    return dA.whole(), dB.whole(), dX.whole()


def _heads(*arrays: FloatArray) -> Iterator[tuple[FloatArray, ...]]:
    """Yield the matrices of every head in float64 and in C order, without a copy where they are."""
    for head in np.ndindex(*arrays[0].shape[:-2]):
        yield tuple(array[head].astype(np.float64, order="C", copy=False) for array in arrays)


def _stacked(heads: Sequence[FloatArray], like: FloatArray) -> FloatArray:
    """Put the results of all heads together, without a copy if there is one, in the shape and dtype of an input."""
    whole = heads[0] if len(heads) == 1 else np.stack(heads)
    with np.errstate(over="ignore", under="ignore"):  # judged by whoever calls
        return whole.reshape(like.shape).astype(like.dtype, copy=False)


def kept(array: FloatArray) -> FloatArray:
    """Return a copy for a cache: in C order, and nobody writes to it."""
    copy = np.array(array, order="C")
    copy.flags.writeable = False
    return copy


def as_structure(mask: object, n: int) -> StructuredMask:
    """Return a mask as one of the structures; `Causal` has as many rows as the arrays, n."""
    if isinstance(mask, StructuredMask):
        return mask
    if not isinstance(mask, Causal):
        raise TypeError(
            f"mask: {type(mask).__name__} came, Causal, RowChangeMask, ContinuousRowsMask, DistinctColumnsMask or"
            " DistinctRowsMask was wanted (the four structures have from_dense for a dense mask)"
        )
    offset = offset_of("causal", mask.alignment, n, n)
    if offset == 0:
        return CausalStructure(n)
    return ContinuousRowsMask(np.zeros(n, np.int64), np.clip(np.arange(1, n + 1) + offset, 0, n))


def require_method(method: str, mask: StructuredMask) -> None:
    """Raise unless the dense method fits, if it is that."""
    if method == "oracle":
        require_memory(f"method: 'oracle' with n = {mask.n}", 17 * mask.n**2)


def module_of(method: str) -> ModuleType:
    """Return the module that computes; Numba is imported when it is first needed."""
    if method != "fast":
        return paper if method == "paper" else oracle
    from refattn.lowrank import fast

    return fast
