"""Exact softmax attention, forward and backward: the oracle that everything else is compared with.

For every head, with logits ``S = scale · Q Kᵀ`` (capped as ``softcap · tanh(S / softcap)`` if a cap is given, then
masked):

    P = softmax(S) over the allowed keys of each row        Y = P V

and, for an upstream gradient ``dY``,

    dV = Pᵀ dY     dP = dY Vᵀ     dS = P ∘ (dP − rowsum(P ∘ dP))     dQ = scale · dS K     dK = scale · dSᵀ Q

Rows are processed in blocks: memory is O(n·block), time O(n_q n_k d). The forward keeps each row's largest logit and
its sum of exponentials, from which the backward recomputes P. Rows with no allowed key give zeros, and zero gradients.

A result is finite or refused: overflow of a logit, of an output or of a gradient is an error, never an inf, a NaN or a
silent zero.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from refattn._heads import HeadLayout
from refattn._validation import FloatArray, as_count, as_float_arrays, as_real, as_scale, require_finite
from refattn.masks import RowMask

_BLOCK_ENTRIES = 1 << 21
"""Logits held at once when `block` is not given: 16 MB in float64."""


@dataclass(frozen=True)
class DenseCache:
    """What `dense_attention_backward` needs of the forward.

    Attributes
    ----------
    q, k, v : ndarray
        The inputs, in the dtype of the computation; not copies where they came in it, so leave them as they are.
    row_max, row_sum : ndarray, shape (…, n_q)
        Largest allowed logit of each row (0 where there is none) and ``Σ_j exp(S_ij − row_max_i)``.
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
            return np.asarray(self.row_max + np.log(self.row_sum))


class AttentionGradients(NamedTuple):
    """Gradients of attention, each of the shape of its input."""

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
    q : array_like, shape (…, n_q, d)
        Queries. Leading axes broadcast; fewer key-value heads than query heads (axis −3) are shared by groups.
    k : array_like, shape (…, n_k, d)
        Keys.
    v : array_like, shape (…, n_k, d_v)
        Values.
    mask : {"causal", "full"}, Causal, SlidingWindow, array_like or tuple of these, optional
        Which keys a query may see; see `refattn.masks`. A boolean array is True where a key may be seen, a
        floating array is added to the logits. The parts of a tuple all apply.
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
    Time O(n_q n_k (d + d_v)) a head, memory O(n_k · block) beyond inputs and output. The definition, in the
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
) -> tuple[FloatArray, DenseCache]:
    """Exact softmax attention, and what its backward needs.

    Parameters, errors and complexity are those of `dense_attention`.

    Returns
    -------
    out : ndarray, shape (…, n_q, d_v)
        The output.
    cache : DenseCache
        For `dense_attention_backward`; its ``log_sum_exp`` is what flash-attention kernels return.

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
    q, k, v = as_float_arrays(check_finite=check_finite, q=q, k=k, v=v)
    layout = HeadLayout.of(q, k, v)
    n_q, n_k = q.shape[-2], k.shape[-2]
    rule = RowMask(mask, n_q, n_k, layout)
    factor = as_scale(scale, q.shape[-1])
    limits = np.finfo(q.dtype)
    cap = softcap
    if cap is not None:
        cap = as_real("softcap", cap, least=float(limits.tiny), positive=True, most=float(limits.max))
    if block is None:
        step = max(1, _BLOCK_ENTRIES // (n_k * int(np.prod(layout.inner))))
    else:
        step = as_count("block", block, least=1)

    queries, keys, values = layout.expand(q, k, v)
    out = np.empty((*layout.inner, n_q, v.shape[-1]), q.dtype)
    row_max = np.empty((*layout.inner, n_q), q.dtype)
    row_sum = np.empty_like(row_max)
    with _overflow_judged():
        for rows in _row_blocks(n_q, step):
            logits, _ = _masked_logits(queries, keys, rows, rule, factor, cap)
            largest = logits.max(axis=-1, keepdims=True)
            np.copyto(largest, 0, where=largest == -np.inf)  # no key allowed: exp(−inf − 0) = 0
            weights = np.exp(np.subtract(logits, largest, out=logits), out=logits)
            total = weights.sum(axis=-1, keepdims=True)
            np.divide(weights, total, out=weights, where=total > 0)  # before the product, which then cannot overflow
            np.matmul(weights, values, out=out[..., rows, :])
            row_max[..., rows], row_sum[..., rows] = largest[..., 0], total[..., 0]

    out = layout.merge(out)
    require_finite("v: output", out)
    lead_rows = (*layout.lead, n_q)
    cache = DenseCache(q, k, v, row_max.reshape(lead_rows), row_sum.reshape(lead_rows), layout, rule, factor, cap, step)
    return out, cache


def dense_attention_backward(dout: ArrayLike, cache: DenseCache) -> AttentionGradients:
    """Gradients of exact attention with respect to q, k and v.

    Parameters
    ----------
    dout : array_like, shape (…, n_q, d_v)
        Gradient of the loss with respect to the output; of the output's shape.
    cache : DenseCache
        From `dense_attention_forward`.

    Returns
    -------
    AttentionGradients
        Fields ``q``, ``k``, ``v``, of the inputs' shapes; axes that were broadcast or shared are summed.

    Raises
    ------
    TypeError, ValueError
        `dout` is not numeric, not finite, or not of the output's shape, or a gradient overflows.

    Notes
    -----
    Time O(n_q n_k (d + d_v)) a head, memory O(n_k · block) beyond inputs and outputs. The formulas stand at the
    head of the module.

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
    (dout,) = as_float_arrays(dout=dout)
    layout, scale, cap = cache.layout, cache.scale, cache.softcap
    shape = (*cache.row_max.shape, cache.v.shape[-1])
    if dout.shape != shape:
        raise ValueError(f"dout: shape {dout.shape} came, the output's {shape} was wanted")
    q, k, v = layout.expand(cache.q, cache.k, cache.v)
    row_max, row_sum = (rows.reshape(*layout.inner, -1) for rows in (cache.row_max, cache.row_sum))

    dq = np.empty(q.shape, q.dtype)
    dk = np.zeros(k.shape, k.dtype)
    dv = np.zeros(v.shape, v.dtype)
    with _overflow_judged():
        upstream = layout.expand_queries(dout.astype(q.dtype, copy=False))
        for rows in _row_blocks(q.shape[-2], cache.block):
            g = upstream[..., rows, :]
            # forward: weights = exp(logits − largest) / total
            logits, slope = _masked_logits(q, k, rows, cache.mask, scale, cap)
            weights = np.exp(np.subtract(logits, row_max[..., rows, None], out=logits), out=logits)
            total = row_sum[..., rows, None]
            np.divide(weights, total, out=weights, where=total > 0)
            # forward: out = weights @ values
            dv += weights.swapaxes(-1, -2) @ g
            # forward: softmax of the logits
            dlogits = g @ v.swapaxes(-1, -2)
            dlogits -= (weights * dlogits).sum(axis=-1, keepdims=True)
            dlogits *= weights
            # forward: softcap · tanh(s / softcap)
            if slope is not None:
                dlogits *= slope
            # forward: scale · q kᵀ
            dlogits *= np.asarray(scale, dlogits.dtype)
            np.matmul(dlogits, k, out=dq[..., rows, :])
            dk += dlogits.swapaxes(-1, -2) @ q[..., rows, :]
        gradients = AttentionGradients(
            layout.reduce_queries(dq, cache.q.shape),
            layout.reduce_keys(dk, cache.k.shape),
            layout.reduce_keys(dv, cache.v.shape),
        )
    for name, gradient in gradients._asdict().items():
        require_finite(f"dout: gradient of {name}", gradient)
    return gradients


def _overflow_judged() -> np.errstate:
    """Silence NumPy where overflow is looked for, and refused, by this module; underflow to zero is meant."""
    return np.errstate(over="ignore", under="ignore", invalid="ignore")


def _row_blocks(n: int, step: int) -> Iterator[slice]:
    return (slice(start, min(start + step, n)) for start in range(0, n, step))


def _masked_logits(
    q: FloatArray, k: FloatArray, rows: slice, mask: RowMask, scale: float, softcap: float | None
) -> tuple[FloatArray, FloatArray | None]:
    """Return the logits of a block of rows, −inf where masked, and the derivative of the cap if there is one."""
    logits = q[..., rows, :] @ k.swapaxes(-1, -2)
    logits *= np.asarray(scale, logits.dtype)
    allowed = mask.allowed(rows)
    _require_no_overflow("q, k", logits, allowed, rows)
    slope = None
    if softcap is not None:
        np.divide(logits, softcap, out=logits)
        slope = np.square(1 / np.cosh(logits))  # 1 − tanh² would cancel
        np.tanh(logits, out=logits)
        logits *= np.asarray(softcap, logits.dtype)
    for bias in mask.biases:
        logits += bias[..., rows, :].astype(logits.dtype)
        _require_no_overflow("mask", logits, allowed, rows)
    np.copyto(logits, -np.inf, where=~allowed)
    return logits, slope


def _require_no_overflow(name: str, logits: FloatArray, allowed: np.ndarray, rows: slice) -> None:
    if np.isfinite(logits.sum()):
        return
    bad = ~np.isfinite(logits) & allowed
    if bad.any():
        index = tuple(int(i) for i in np.argwhere(bad)[0])
        *_, row, key = index
        raise ValueError(
            f"{name}: the logit of query {rows.start + row} and key {key} is {logits[index]} in {logits.dtype};"
            " smaller entries, a smaller scale or float64 was wanted"
        )
