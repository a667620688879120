"""Exact softmax attention, forward and backward: the oracle that everything else is compared with.

For every head, with logits ``S = scale · Q Kᵀ`` (capped as ``softcap · tanh(S / softcap)`` if a cap is given, then
masked):

    P = softmax(S) over the allowed keys of each row        Y = P V

and, for an upstream gradient ``dY``,

    dV = Pᵀ dY     dP = dY Vᵀ     dS = P ∘ (dP − rowsum(P ∘ dP))     dQ = scale · dS K     dK = scale · dSᵀ Q

Rows are processed in blocks: memory is O(n·block), time O(n_q n_k d). The forward keeps each row's largest logit and
its sum of exponentials, from which the backward recomputes P. Rows with no allowed key give zeros, and zero gradients.
Blocks depend on the shapes alone, run on the threads there are, each with a BLAS of one thread, and are added up in
their order: the number of threads changes no bit.

A result is finite or refused: overflow of a logit or of a gradient is an error, never an inf, a NaN or a silent zero.
What overflows only on the way (a product of which a small multiple is wanted, an average near the largest number) is
computed again as `refattn._overflow` says.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from refattn._heads import HeadLayout
from refattn._kept import kept
from refattn._moved import explains
from refattn._overflow import (
    all_finite,
    average,
    overflow_judged,
    replace_what_is_not_finite,
    require_scale_held,
    wider,
)
from refattn._threads import for_each, map_each, one_blas_thread
from refattn._validation import (
    FloatArray,
    as_count,
    as_float_arrays,
    as_real,
    as_scale,
    as_upstream,
    cast,
    finite_gradients,
    require_finite,
    require_kind,
)
from refattn.masks import RowMask

_BLOCK_ENTRIES = 1 << 21
"""Most logits of a block when `block` is not given: 16 MB in float64."""
_AT_ONCE = 4
"""Blocks whose parts of the gradients are kept at once, and into at least as many a long sequence is cut, of"""
_LEAST_ROWS = 256
"""as many rows or more."""


@dataclass(frozen=True)
class DenseForwardCache:
    """What `dense_attention_backward` needs of the forward; its arrays are read-only copies.

    Attributes
    ----------
    q, k, v : ndarray, shapes (…, n_q, d), (…, n_k, d), (…, n_k, d_v)
        The inputs, in the dtype of the computation: copies.
    row_max, row_sum : ndarray, shape (…, n_q)
        Largest allowed logit of each row (0 where there is none) and ``Σ_j exp(S_ij − row_max_i)``; without what the
        mask adds to the whole row, where that is large (see `refattn.masks`).
    layout : HeadLayout
        Leading axes, and which heads share keys and values.
    mask : RowMask
        The mask, read a block of rows at a time.
    scale : float
        Factor of the logits.
    softcap : float or None
        The cap of the logits.
    block : int
        Query rows processed at once.

    Examples
    --------
    >>> import numpy as np
    >>> from refattn import dense_attention_forward
    >>> zeros = np.zeros((3, 1))
    >>> out, cache = dense_attention_forward(zeros, zeros, zeros)
    >>> bool(np.allclose(cache.log_sum_exp, np.log([1, 2, 3])))  # row i sees i + 1 equal logits
    True
    """

    q: FloatArray
    k: FloatArray
    v: FloatArray
    row_max: FloatArray
    row_sum: FloatArray
    layout: HeadLayout
    mask: RowMask
    scale: float
    softcap: float | None
    block: int

    @property
    def log_sum_exp(self) -> FloatArray:
        """``log Σ_j exp(S_ij)`` over the allowed keys, shape (…, n_q); −inf where there is none."""
        with np.errstate(divide="ignore"):
            return self.mask.with_shift(np.asarray(self.row_max + np.log(self.row_sum)))


class AttentionGradients(NamedTuple):
    """Gradients of attention, each of the shape of its input; a tuple, ``dq, dk, dv = gradients``.

    Attributes
    ----------
    q, k, v : ndarray, shapes (…, n_q, d), (…, n_k, d), (…, n_k, d_v)
        With respect to the queries, the keys and the values, in the dtype of the computation.

    Examples
    --------
    >>> import numpy as np
    >>> from refattn import dense_attention_backward, dense_attention_forward
    >>> q = k = v = np.ones((3, 2))
    >>> out, cache = dense_attention_forward(q, k, v)
    >>> dense_attention_backward(out, cache).v.sum(axis=1)  # the first value is seen by three queries
    array([3.66666667, 1.66666667, 0.66666667])
    """

    q: FloatArray
    k: FloatArray
    v: FloatArray


def dense_attention(
    q: ArrayLike,
    k: ArrayLike,
    v: ArrayLike,
    *,
    mask: Any = "causal",
    scale: float | None = None,
    softcap: float | None = None,
    block: int | None = None,
    check_finite: bool = True,
) -> FloatArray:
    """Exact softmax attention.

    Parameters
    ----------
    q, k, v : array_like, shapes (…, n_q, d), (…, n_k, d), (…, n_k, d_v)
        Queries, keys and values. Leading axes broadcast; fewer key-value heads than query heads (axis −3) are shared by
        groups.
    mask : {"causal", "full"}, Causal, SlidingWindow, array_like or tuple of these, optional
        Which keys a query may see; see `refattn.masks`. An array is of a shape that broadcasts to (…, n_q, n_k):
        boolean, True where a key may be seen, or floating, added to the logits; what it adds to a whole row changes
        nothing, however large it is. The parts of a tuple all apply; a tuple of numbers is an array.
    scale : float, optional
        Factor of the logits; ``1/√d`` by default.
    softcap : float, optional
        Replace logits s by ``softcap · tanh(s / softcap)`` before masking; above 0.
    block : int, optional
        Query rows processed at once; by default as many as keep 2²¹ logits in memory.
    check_finite : bool, optional
        Refuse NaN and infinity in q, k, v. Without this, q and k may hold them where the mask hides them; they are
        refused where they reach an allowed logit or the output.

    Returns
    -------
    ndarray, shape (…, n_q, d_v)
        float32 if every input is float32 (or float16), else float64. Rows with no allowed key are zero.

    Raises
    ------
    TypeError
        An argument is not numeric, or of a dtype that is neither computed with nor promoted.
    ValueError
        Shapes do not fit, an entry is NaN or infinite, a logit or the output overflows, or an option is unknown.

    Warns
    -----
    PromotionWarning
        Integers (to float64) or float16 (to float32) came.

    Notes
    -----
    Time O(n_q n_k (d + d_v)) a head, memory O(n_k · block) beyond inputs and output. Source: the definition, in the
    form of arXiv 2405.05219, Definition 1.1 (attention): ``D⁻¹ A V``.

    Examples
    --------
    The first row of causal attention sees one key only, so it returns that key's value:

    >>> import numpy as np
    >>> from refattn import dense_attention
    >>> rng = np.random.default_rng(0)
    >>> q, k, v = rng.standard_normal((3, 5, 4))
    >>> out = dense_attention(q, k, v)
    >>> bool(np.array_equal(out[0], v[0]))
    True
    """
    return dense_attention_forward(
        q, k, v, mask=mask, scale=scale, softcap=softcap, block=block, check_finite=check_finite
    )[0]


def dense_attention_forward(
    q: ArrayLike,
    k: ArrayLike,
    v: ArrayLike,
    *,
    mask: Any = "causal",
    scale: float | None = None,
    softcap: float | None = None,
    block: int | None = None,
    check_finite: bool = True,
) -> tuple[FloatArray, DenseForwardCache]:
    """Exact softmax attention, and what its backward needs.

    Parameters
    ----------
    q, k, v, mask, scale, softcap, block, check_finite : array_like, and options
        As for `dense_attention`.

    Returns
    -------
    out : ndarray, shape (…, n_q, d_v)
        The output.
    cache : DenseForwardCache
        For `dense_attention_backward`; its ``log_sum_exp`` is what flash-attention kernels return.

    Raises
    ------
    TypeError, ValueError
        As `dense_attention`.

    Notes
    -----
    Time and memory as `dense_attention`, O(n_q n_k (d + d_v)) and O(n_k · block), in its dtype. Source: the definition.

    Examples
    --------
    >>> import numpy as np
    >>> from refattn import dense_attention_forward
    >>> q = k = np.zeros((3, 2)); v = np.arange(3.0)[:, None]
    >>> out, cache = dense_attention_forward(q, k, v)
    >>> out.ravel()
    array([0. , 0.5, 1. ])
    >>> bool(np.allclose(np.exp(cache.log_sum_exp), [1, 2, 3]))
    True
    """
    q, k, v = (kept(array) for array in as_float_arrays(check_finite=check_finite, q=q, k=k, v=v))
    layout = HeadLayout.of(q, k, v)
    n_q, n_k = q.shape[-2], k.shape[-2]
    rule = RowMask(mask, n_q, n_k, layout)
    factor = as_scale(scale, q.shape[-1], q.dtype)
    require_scale_held(factor, q.dtype)
    limits = np.finfo(q.dtype)
    cap = softcap
    if cap is not None:
        cap = as_real("softcap", cap, least=float(limits.tiny), positive=True, most=float(limits.max))
    if block is None:
        step = max(1, min(_BLOCK_ENTRIES // (n_k * int(np.prod(layout.inner))), max(_LEAST_ROWS, -(-n_q // _AT_ONCE))))
    else:
        step = as_count("block", block, least=1)

    queries, keys, values = layout.expand(q, k, v)
    out = np.empty((*layout.inner, n_q, v.shape[-1]), q.dtype)
    row_max = np.empty((*layout.inner, n_q), q.dtype)
    row_sum = np.empty_like(row_max)

    def attend(rows: slice) -> None:
        with overflow_judged():
            logits, _ = _masked_logits(queries, keys, rows, rule, factor, cap)
            largest = logits.max(axis=-1, keepdims=True)
            np.copyto(largest, 0, where=largest == -np.inf)  # no key allowed: exp(−inf − 0) = 0
            weights = np.exp(np.subtract(logits, largest, out=logits), out=logits)
            total = weights.sum(axis=-1, keepdims=True)
            np.divide(weights, total, out=weights, where=total > 0)  # before the product, which is an average then
            average(weights, values, out[..., rows, :])
            row_max[..., rows], row_sum[..., rows] = largest[..., 0], total[..., 0]

    with one_blas_thread():
        for_each(attend, _row_blocks(n_q, step))
    out = layout.merge(out)
    require_finite("v: output", out)
    row_max, row_sum = (kept(rows.reshape(*layout.lead, n_q)) for rows in (row_max, row_sum))
    return out, DenseForwardCache(q, k, v, row_max, row_sum, layout, rule, factor, cap, step)


def dense_attention_backward(dout: ArrayLike, cache: DenseForwardCache) -> AttentionGradients:
    """Gradients of exact attention with respect to q, k and v.

    Parameters
    ----------
    dout : array_like, shape (…, n_q, d_v)
        Gradient of the loss with respect to the output; of the output's shape.
    cache : DenseForwardCache
        From `dense_attention_forward`.

    Returns
    -------
    AttentionGradients
        Fields ``q``, ``k``, ``v``, of the inputs' shapes, in the dtype of the forward; axes that were broadcast or
        shared are summed.

    Raises
    ------
    TypeError, ValueError
        `dout` is not numeric, not finite, or not of the output's shape, or a gradient overflows.

    Notes
    -----
    Time O(n_q n_k (d + d_v)) a head, memory O(n_k · block) beyond inputs and outputs. Source: the derivative of
    the definition; the formulas stand at the head of the module.

    Examples
    --------
    >>> import numpy as np
    >>> from refattn import dense_attention_backward, dense_attention_forward
    >>> rng = np.random.default_rng(0)
    >>> q, k, v = rng.standard_normal((3, 5, 4))
    >>> out, cache = dense_attention_forward(q, k, v)
    >>> gradients = dense_attention_backward(np.ones_like(out), cache)
    >>> bool(np.allclose(gradients.v.sum(), 5 * 4))  # the weights of every row sum to one
    True
    """
    require_kind("cache", cache, DenseForwardCache, "dense_attention_forward")
    dout = as_upstream((*cache.row_max.shape, cache.v.shape[-1]), dout=dout)
    layout, scale, cap = cache.layout, cache.scale, cache.softcap
    q, k, v = layout.expand(cache.q, cache.k, cache.v)
    row_max, row_sum = (rows.reshape(*layout.inner, -1) for rows in (cache.row_max, cache.row_sum))

    dq = np.empty(q.shape, q.dtype)
    dk = np.zeros(k.shape, k.dtype)
    dv = np.zeros(v.shape, v.dtype)
    upstream = layout.expand_queries(cast("dout", dout, q.dtype))

    def pull_back(rows: slice) -> tuple[FloatArray, FloatArray]:
        with overflow_judged():
            # forward: weights = exp(logits − largest) / total
            logits, slope = _masked_logits(q, k, rows, cache.mask, scale, cap)
            weights = np.exp(np.subtract(logits, row_max[..., rows, None], out=logits), out=logits)
            total = row_sum[..., rows, None]
            np.divide(weights, total, out=weights, where=total > 0)
            dq_part = dq[..., rows, :]
            parts = through_softmax(rows, weights, slope, upstream, q, k, v, dq_part)
            if not all_finite(dq_part, *parts):
                arrays = wider(weights, np.ones_like(weights) if slope is None else slope, upstream, q, k, v, dq_part)
                again = through_softmax(rows, *arrays)
                for part, better in zip((dq_part, *parts), (arrays[-1], *again), strict=True):
                    replace_what_is_not_finite(part, better)
            return parts

    def through_softmax(
        rows: slice, weights: FloatArray, slope: FloatArray | None, *arrays: FloatArray
    ) -> tuple[FloatArray, FloatArray]:
        """Return what a block adds to dk and dv, and write its rows of dq, the last of the arrays."""
        upstream, q, k, v, dq_part = arrays
        g = upstream[..., rows, :]
        # forward: out = weights @ values
        dv_part = weights.swapaxes(-1, -2) @ g
        # forward: softmax of the logits
        dlogits = g @ v.swapaxes(-1, -2)
        dlogits -= (weights * dlogits).sum(axis=-1, keepdims=True)
        dlogits *= weights
        # forward: softcap · tanh(s / softcap)
        if slope is not None:
            dlogits *= slope
        # forward: scale · q kᵀ; a small scale, before the products, would take the digits of small gradients
        factor = np.asarray(scale, dlogits.dtype)
        np.matmul(dlogits, k, out=dq_part)
        np.multiply(dq_part, factor, out=dq_part)
        dk_part = dlogits.swapaxes(-1, -2) @ q[..., rows, :]
        dk_part *= factor
        return dk_part, dv_part

    blocks = list(_row_blocks(q.shape[-2], cache.block))
    with overflow_judged(), one_blas_thread():
        for first in range(0, len(blocks), _AT_ONCE):
            for dk_part, dv_part in map_each(pull_back, blocks[first : first + _AT_ONCE]):
                dk += dk_part
                dv += dv_part
    with overflow_judged():
        gradients = AttentionGradients(
            layout.reduce_queries(dq, cache.q.shape),
            layout.reduce_keys(dk, cache.k.shape),
            layout.reduce_keys(dv, cache.v.shape),
        )
    return finite_gradients(gradients)


def _row_blocks(n: int, step: int) -> Iterator[slice]:
    return (slice(start, min(start + step, n)) for start in range(0, n, step))


def _masked_logits(
    q: FloatArray, k: FloatArray, rows: slice, mask: RowMask, scale: float, softcap: float | None
) -> tuple[FloatArray, FloatArray | None]:
    """Return the logits of a block of rows, −inf where masked, and the derivative of the cap if there is one."""
    logits = q[..., rows, :] @ k.swapaxes(-1, -2)
    logits *= np.asarray(scale, logits.dtype)
    allowed = mask.allowed(rows)
    if not all_finite(logits):
        if (~np.isfinite(logits) & allowed).any():  # perhaps before the scale only
            wide_q, wide_k = wider(q[..., rows, :], k)
            replace_what_is_not_finite(logits, wide_q @ wide_k.swapaxes(-1, -2) * scale)
            _require_no_overflow("q, k", logits, allowed, rows)
        np.copyto(logits, 0, where=~np.isfinite(logits))  # hidden: nothing of them may reach the slope
    slope = None
    if softcap is not None:
        np.divide(logits, softcap, out=logits)
        slope = np.square(1 / np.cosh(logits))  # 1 − tanh² would cancel
        np.tanh(logits, out=logits)
        logits *= np.asarray(softcap, logits.dtype)
    for addend in mask.addends(rows, logits.dtype):
        logits += addend
        _require_no_overflow("mask", logits, allowed, rows)
    np.copyto(logits, -np.inf, where=~allowed)
    return logits, slope


def _require_no_overflow(name: str, logits: FloatArray, allowed: np.ndarray, rows: slice) -> None:
    if all_finite(logits):
        return
    bad = ~np.isfinite(logits) & allowed
    if bad.any():
        index = tuple(int(i) for i in np.argwhere(bad)[0])
        *_, row, key = index
        hides = " (-inf where a key may not be seen)" if name == "mask" else ""
        raise ValueError(
            f"{name}: the logit of query {rows.start + row} and key {key} is {logits[index]} in {logits.dtype};"
            f" smaller entries{hides}, a smaller scale or float64 was wanted"
        )


if not TYPE_CHECKING:
    __getattr__ = explains(__name__)
