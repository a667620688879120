"""Masked low-rank attention: softmax attention whose exponentials have rank r (arXiv 2405.05219, section 6).

With ``exp(s · q kᵀ) ≈ U1 U2ᵀ`` from a feature map and a structured mask W,

    N = (W ∘ U1 U2ᵀ) V        D = (W ∘ U1 U2ᵀ) 1        Y = D⁻¹ N.

N and D are one product, V with a column of ones beside it. For an upstream gradient dY,

    dN = D⁻¹ dY        dD_i = −(dY_i · Y_i) / D_i,

and the rest is the backward of that product and of the feature map (ours).

A row is returned only if its denominator is one that the features' error allows and its rounding is estimated to be
small; otherwise the call is refused. Numerators and gradients are products of the same kind, each guarded by itself
(`refattn.lowrank.guard`). Rows that see nothing are zero, and so are their gradients.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from refattn._heads import HeadLayout
from refattn._threads import one_blas_thread
from refattn._validation import (
    FloatArray,
    as_float_arrays,
    as_option,
    as_real,
    as_upstream,
    finite_gradients,
    require_finite,
    require_kind,
)
from refattn.dense import AttentionGradients
from refattn.lowrank import guard
from refattn.lowrank.denominators import judged
from refattn.lowrank.features import FeatureMap, PolynomialFeatures, logit_bound
from refattn.lowrank.layouts import prefix_lm
from refattn.lowrank.masks import CausalStructure, StructuredMask
from refattn.lowrank.polynomials import LARGEST_BOUND
from refattn.lowrank.products import (
    METHODS,
    as_structure,
    kept,
    module_of,
    pullback,
    require_method,
)
from refattn.masks import Causal

_TOGETHER = 1 << 14
"""Entries in a factor, or in the values, of heads that are worked on together: they stay in the cache."""

Heads = tuple[Any, ...]
"""Index of one head, or of some, an array for every axis."""


@dataclass(frozen=True)
class LowRankForwardCache:
    """What a low-rank attention forward leaves behind.

    Attributes
    ----------
    q, k, v : ndarray, shapes (…, n, d), (…, n, d), (…, n, d_v)
        Copies of the inputs, in the dtype of the computation. No array here can be written to.
    out : ndarray, shape (…, n, d_v)
        The output, in float64 whatever the dtype: gradients multiply it with numbers of any size.
    features : FeatureMap
        The map that was used.
    mask : StructuredMask
        The mask.
    method : str
        The method of the products.
    denominators : ndarray of float64, shape (…, n)
        Row sums of ``W ∘ U1 U2ᵀ`` (for random features, up to what cancels); 0 for rows that see nothing.
    rounding : ndarray of float64, shape (…, n)
        Estimated rounding error of every denominator, relative to it.
    recomputed : int
        Rows, of all heads, that the method left in doubt and that were summed again from their own columns.
    bound : float or None
        Bound on ``‖Y − Ỹ‖_∞`` that the features' error implies (`lowrank_bound`); None if it implies none.
    layout : HeadLayout
        Leading axes, and which heads share keys and values.

    Examples
    --------
    >>> import numpy as np
    >>> from refattn.lowrank import lowrank_attention_forward
    >>> zeros = np.zeros((3, 1))
    >>> out, cache = lowrank_attention_forward(zeros, zeros, zeros, error=1e-3)
    >>> bool(np.allclose(cache.denominators, [1, 2, 3], rtol=1e-3))
    True
    """

    q: FloatArray
    k: FloatArray
    v: FloatArray
    out: FloatArray
    features: FeatureMap
    mask: StructuredMask
    method: str
    denominators: FloatArray
    rounding: FloatArray
    recomputed: int
    bound: float | None
    layout: HeadLayout


def lowrank_bound(error: float, v_max: float) -> float:
    """Bound on the output's error, ``2δ/(1 + √(1 − δ²)) ‖V‖_∞``, where every exponential has relative error ≤ δ.

    Parameters
    ----------
    error : float
        The relative error δ of the features, 0 ≤ δ < 1.
    v_max : float
        ``‖V‖_∞`` ≥ 0.

    Returns
    -------
    float
        At most ``2δ ‖V‖_∞``, about ``δ ‖V‖_∞`` for small δ, and reached by two values ±‖V‖_∞.

    Raises
    ------
    TypeError, ValueError
        An argument is not a number or out of range.

    Notes
    -----
    Source: ours; the proof is in docs/explanation/low-rank.md. Time O(1).

    Examples
    --------
    >>> round(lowrank_bound(0.6, 1.0), 6)
    0.666667
    """
    delta, v_max = as_real("error", error, least=0.0), as_real("v_max", v_max, least=0.0)
    if delta >= 1:
        raise ValueError(f"error: {delta:.6g} came, a relative error below 1 was wanted")
    return 2 * delta / (1 + math.sqrt(1 - delta * delta)) * v_max


def lowrank_attention(
    q: ArrayLike,
    k: ArrayLike,
    v: ArrayLike,
    *,
    features: FeatureMap | None = None,
    error: float | None = None,
    mask: str | Causal | StructuredMask = "causal",
    scale: float | None = None,
    method: str = "fast",
    check_finite: bool = True,
) -> FloatArray:
    """Softmax attention with exponentials of low rank and a structured mask.

    Parameters
    ----------
    q, k, v : array_like, shapes (…, n, d), (…, n, d), (…, n, d_v)
        As for `refattn.dense_attention`.
    features : FeatureMap, optional
        `PolynomialFeatures` or `RandomFeatures`, which have their own scale.
    error : float, optional
        Instead of `features`: the relative error that every exponential may have, above 0 and below 1. The bound on the
        logits is then measured from norms, and the Chebyshev polynomial of smallest degree taken.
    mask : {"causal", "full"}, Causal or StructuredMask, optional
        Which columns each row sees; see `masked_product`.
    scale : float, optional
        Factor of the logits where `error` is given; ``1/√d`` by default.
    method : {"fast", "paper", "oracle"}, optional
        How the masked products are computed; see `masked_product`.
    check_finite : bool, optional
        Refuse NaN and infinity in q, k, v before anything else; they and what overflows are refused in any case.

    Returns
    -------
    ndarray, shape (…, n, d_v)
        The output, computed in float64, in the dtype of the inputs. Rows that see nothing are zero.

    Raises
    ------
    TypeError
        An argument is of the wrong kind.
    ValueError
        Shapes do not fit, an entry is not finite, logits are outside the features' bound, a denominator is not one that
        the features' error allows or would be lost in rounding, or an option is unknown.
    MemoryError
        The rank is absurd, or the factors do not fit; the message has the estimate.

    Warns
    -----
    PromotionWarning
        Integers (to float64) or float16 (to float32) came.

    Notes
    -----
    For one head, time O(nr d_v) by "fast" (times the mask's own constant, see `masked_product`), memory O(nr). If every
    exponential is within a factor 1 ± δ, the output is within ``2δ/(1 + √(1 − δ²)) ‖V‖_∞`` of exact attention, where
    ``‖V‖_∞`` may be that of the column and of the values that the row sees. Rounding moves an entry of the output or of
    a gradient by at most a tolerance times its natural size, what it would be with all signs equal: 10⁻¹² in float64
    (10⁻⁹ by "paper" with row changes) and 5·10⁻⁷ in float32, see docs/explanation/low-rank.md. Source: arXiv
    2405.05219, section 6; the bounds are ours.

    Examples
    --------
    >>> import numpy as np
    >>> from refattn import dense_attention
    >>> from refattn.lowrank import lowrank_attention
    >>> q, k, v = np.random.default_rng(0).uniform(-0.5, 0.5, (3, 64, 4))
    >>> out = lowrank_attention(q, k, v, error=1e-4)
    >>> bool(np.abs(out - dense_attention(q, k, v)).max() < 1e-4 * np.abs(v).max())
    True
    """
    return lowrank_attention_forward(
        q, k, v, features=features, error=error, mask=mask, scale=scale, method=method, check_finite=check_finite
    )[0]


@one_blas_thread()
def lowrank_attention_forward(
    q: ArrayLike,
    k: ArrayLike,
    v: ArrayLike,
    *,
    features: FeatureMap | None = None,
    error: float | None = None,
    mask: str | Causal | StructuredMask = "causal",
    scale: float | None = None,
    method: str = "fast",
    check_finite: bool = True,
) -> tuple[FloatArray, LowRankForwardCache]:
    """Low-rank attention, with its denominators and its error bound.

    Parameters
    ----------
    q, k, v : array_like
        As for `refattn.dense_attention`.
    features, error, mask, scale, method, check_finite : optional
        As for `lowrank_attention`.

    Returns
    -------
    out : ndarray, shape (…, n, d_v)
        The output.
    cache : LowRankForwardCache
        For `lowrank_attention_backward`.

    Raises
    ------
    TypeError, ValueError, MemoryError
        As `lowrank_attention`.

    Notes
    -----
    Time O(nr d_v) by "fast", memory O(nr), dtypes as `lowrank_attention`. Source: arXiv 2405.05219, section 6.

    Examples
    --------
    >>> import numpy as np
    >>> from refattn.lowrank import lowrank_attention_forward
    >>> q, k, v = np.random.default_rng(0).uniform(-0.5, 0.5, (3, 64, 4))
    >>> out, cache = lowrank_attention_forward(q, k, v, error=1e-4)
    >>> cache.features.degree, cache.features.rank, cache.bound < 1e-4
    (4, 70, True)
    """
    q, k, v = (np.ascontiguousarray(x) for x in as_float_arrays(check_finite=check_finite, q=q, k=k, v=v))
    layout = HeadLayout.of(q, k, v)
    n = q.shape[-2]
    if k.shape[-2] != n:
        raise ValueError(f"k: {k.shape[-2]} rows came, as many as q has ({n}) were wanted")
    as_option("method", method, METHODS)
    structure = _structure(mask, n)
    chosen = _as_features(features, error, scale, q, k)

    require_finite("v", v)  # the features have looked at q and k
    require_method(method, structure)

    queries, keys, values = layout.expand(q, k, v)
    out = np.empty((*layout.inner, n, v.shape[-1]))
    denominators, rounding = np.empty((2, *layout.inner, n))
    seen = structure.row_counts() > 0

    def attend(heads: Heads) -> int:
        u1, u2 = chosen.attention_factors(queries[heads], keys[heads])
        sums = guard.product(module_of(method), structure, u1, u2, _with_ones(values[heads]))
        whole = sums.whole()[..., -1]
        rounding[heads] = judged(whole, u1, u2, structure, chosen, method)
        denominators[heads], out[heads] = whole, _quotients(sums, seen)
        return sums.recomputed

    recomputed = _over_heads(attend, layout.inner, _together(structure, chosen, method, v.shape[-1]))
    bound = None
    if chosen.error is not None and chosen.error < 1:
        bound = lowrank_bound(chosen.error, float(np.abs(v).max()))
    wide = layout.merge(out)
    with np.errstate(over="ignore", under="ignore"):  # judged below
        out = wide.astype(q.dtype, copy=False)
    require_finite("q, k, v: output", out)
    lead_rows = (*layout.lead, n)
    cache = LowRankForwardCache(
        kept(q), kept(k), kept(v), kept(wide), chosen, structure, method,
        kept(denominators.reshape(lead_rows)), kept(rounding.reshape(lead_rows)), recomputed, bound, layout,
    )  # fmt: skip
    return out, cache


@one_blas_thread()
def lowrank_attention_backward(dout: ArrayLike, cache: LowRankForwardCache) -> AttentionGradients:
    """Gradients of low-rank attention with respect to q, k and v: derivatives of what the forward computed.

    Parameters
    ----------
    dout : array_like, shape (…, n, d_v)
        Gradient of the loss with respect to the output.
    cache : LowRankForwardCache
        From `lowrank_attention_forward`. Its features are held fixed.

    Returns
    -------
    AttentionGradients
        Fields `q`, `k`, `v`, of the inputs' shapes and dtype; axes that were broadcast or shared are summed.

    Raises
    ------
    TypeError, ValueError
        `dout` is not numeric, not finite, or not of the output's shape; or a gradient overflows.

    Notes
    -----
    Time O(nr d_v) for one head, memory O(nr): the factors are computed again. Every gradient is within the tolerance of
    `lowrank_attention`, entry by entry, or refused. Source: ours.

    Examples
    --------
    >>> import numpy as np
    >>> from refattn.lowrank import lowrank_attention_backward, lowrank_attention_forward
    >>> q, k, v = np.random.default_rng(0).uniform(-0.5, 0.5, (3, 8, 4))
    >>> out, cache = lowrank_attention_forward(q, k, v, error=1e-4)
    >>> bool(np.isclose(lowrank_attention_backward(np.ones_like(out), cache).v.sum(), 8 * 4))  # weights sum to one
    True
    """
    require_kind("cache", cache, LowRankForwardCache, "lowrank_attention_forward")
    dout = as_upstream(cache.out.shape, dout=dout)
    layout, chosen = cache.layout, cache.features
    queries, keys, values = layout.expand(cache.q, cache.k, cache.v)
    upstream, outputs = (layout.expand_queries(x).astype(np.float64, order="C") for x in (dout, cache.out))
    denominators = cache.denominators.reshape(*layout.inner, -1, 1)
    # gradients are linear in dout: what is tiny is brought near 1, and back at the end
    exponent = min(math.frexp(float(np.abs(upstream).max()))[1], 0)
    upstream = np.ldexp(upstream, -exponent)
    dq, dk, dv = (np.empty(x.shape) for x in (queries, keys, values))
    seen = cache.mask.row_counts() > 0

    def pull_back(heads: Heads) -> int:
        u1, u2 = chosen.attention_factors(queries[heads], keys[heads])
        with np.errstate(all="ignore"):  # judged below
            # forward: out = N / D
            x = upstream[heads]
            dsums = np.zeros((*x.shape[:-1], x.shape[-1] + 1))
            dsums[..., seen, :-1] = x[..., seen, :] / denominators[heads][..., seen, :]
            dsums[..., -1] = -(dsums[..., :-1] * outputs[heads]).sum(axis=-1)
        require_finite("dout: gradient of the sums", dsums)
        # forward: [N, D] = (W ∘ U1 U2ᵀ) [V, 1]
        du1, du2, dones = pullback(cache.mask, u1, u2, _with_ones(values[heads]), dsums, cache.method)
        for name, gradient in (("query", du1), ("key", du2)):
            require_finite(f"dout: gradient of the {name} features", gradient)
        dv[heads] = dones[..., :-1]
        # forward: U1, U2 = features(q, k)
        dq[heads], dk[heads] = chosen.pullback(queries[heads], keys[heads], u1, u2, du1, du2)
        return 0

    _over_heads(pull_back, layout.inner, _together(cache.mask, chosen, cache.method, dout.shape[-1]))
    dtype = cache.q.dtype
    with np.errstate(all="ignore"):  # judged below
        sums = (
            layout.reduce_queries(dq, cache.q.shape),
            layout.reduce_keys(dk, cache.k.shape),
            layout.reduce_keys(dv, cache.v.shape),
        )
        gradients = AttentionGradients(*(np.ldexp(x, exponent).astype(dtype, copy=False) for x in sums))
    return finite_gradients(gradients)


def _together(mask: StructuredMask, features: FeatureMap, method: str, width: int) -> int:
    """How many heads are worked on together: more than one where they are short, and mask and features let them."""
    if method != "fast" or not isinstance(mask, CausalStructure) or not features._row_by_row:
        return 1
    return max(1, _TOGETHER // (mask.n * max(features.rank, width + 1)))


def _over_heads(work: Callable[[Heads], int], inner: tuple[int, ...], together: int) -> int:
    """Give all heads to `work`, one as its index, some as arrays of indices, and return the sum of what it returns.

    Where some are refused, every one of them is worked on by itself: the first that is at fault is named.
    """
    heads, total = list(np.ndindex(*inner)), 0
    for first in range(0, len(heads), together):
        some = heads[first : first + together]
        if len(some) > 1:
            try:
                total += work(tuple(np.array(some).T))
                continue
            except ValueError:
                pass
        total += sum(work(head) for head in some)
    return total


def _structure(mask: Any, n: int) -> StructuredMask:
    if isinstance(mask, str):
        mask = Causal() if as_option("mask", mask, ("causal", "full")) == "causal" else prefix_lm(n, n)
    structure = as_structure(mask, n)
    if structure.n != n:
        raise ValueError(f"mask: {structure.n} rows came, as many as q has ({n}) were wanted")
    return structure


def _as_features(features: Any, error: Any, scale: Any, q: FloatArray, k: FloatArray) -> FeatureMap:
    if (features is None) == (error is None):
        raise TypeError("features, error: exactly one was wanted")
    if features is None:
        wanted = as_real("error", error, positive=True)
        if wanted >= 1:
            raise ValueError(f"error: {wanted:.6g} came, a relative error below 1 was wanted")
        bound = max(logit_bound(q, k, scale=scale), 1e-6)
        if bound > LARGEST_BOUND:
            raise ValueError(
                f"q, k: norms allow logits up to {bound:.6g}, at most {LARGEST_BOUND:g} was wanted; smaller entries or"
                " a smaller scale"
            )
        try:
            return PolynomialFeatures.for_error(q.shape[-1], wanted, bound, scale=scale)
        except MemoryError as absurd:
            raise MemoryError(f"error: {wanted:.3g} came with logits up to {bound:.3g} ({absurd})") from None
    if not isinstance(features, FeatureMap):
        raise TypeError(f"features: {type(features).__name__} came, PolynomialFeatures or RandomFeatures was wanted")
    if scale is not None:
        raise TypeError(f"scale: {scale!r} came beside features, which have their own ({features.scale:.6g})")
    return features


def _with_ones(v: FloatArray) -> FloatArray:
    ones = np.ones((*v.shape[:-1], v.shape[-1] + 1))
    ones[..., :-1] = v
    return ones


def _quotients(sums: guard.Rows, seen: NDArray[np.bool_]) -> FloatArray:
    """Return N / D for the rows that see something, 0 for others: the quotient may be finite where N is not."""
    out = np.zeros((*sums.values.shape[:-1], sums.values.shape[-1] - 1))
    with np.errstate(all="ignore"):  # judged by the caller
        out[..., seen, :] = sums.values[..., seen, :-1] / sums.values[..., seen, -1:]
        if sums.exponents is not None:
            out = np.ldexp(out, sums.exponents[..., :-1] - sums.exponents[..., -1:])
    return out
