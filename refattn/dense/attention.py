"""Exact softmax attention, forward and backward: the public face of its methods.

For every head, with logits ``S = scale · Q Kᵀ`` (capped as ``softcap · tanh(S / softcap)`` if a cap is given, then
masked):

    P = softmax(S) over the allowed keys of each row        Y = P V

and, for an upstream gradient ``dY``,

    dV = Pᵀ dY     dP = dY Vᵀ     dS = P ∘ (dP − rowsum(P ∘ dP))     dQ = scale · dS K     dK = scale · dSᵀ Q

Two methods: `refattn.dense.fast`, by tiles, and `refattn.dense.oracle`, the definition, which knows nothing of tiles
and with which they and everything else are compared. `_METHODS` is the one place that knows them. The backward
computes P anew. Rows with no allowed key give zeros, and zero gradients. The number of threads changes no bit. What a
bias, sinks, dropout and gradients of the log-sum-exps change, `refattn.dense.oracle` says.

A result is finite or refused: overflow of a logit or of a gradient is an error, never an inf, a NaN or a silent zero.
What overflows only on the way (a product of which a small multiple is wanted, an average near the largest number) is
computed again as `refattn._overflow` says.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import ModuleType
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import ArrayLike

from refattn._heads import sum_to
from refattn._kept import kept
from refattn._overflow import overflow_judged
from refattn._threads import one_blas_thread
from refattn._validation import (
    FloatArray,
    as_option,
    as_upstream,
    cast,
    finite_gradients,
    require_finite,
    require_kind,
)
from refattn.dense import fast, oracle
from refattn.dense._problem import DenseProblem, as_problem

_METHODS: dict[str, ModuleType] = {"fast": fast, "oracle": oracle}


@dataclass(frozen=True)
class DenseForwardCache(DenseProblem):
    """What `dense_attention_backward` needs of the forward; its arrays are read-only copies.

    Attributes
    ----------
    q, k, v : ndarray, shapes (…, n_q, d), (…, n_k, d), (…, n_k, d_v)
        The inputs, in the dtype of the computation: copies.
    row_max, row_sum : ndarray, shape (…, n_q)
        Largest allowed logit of each row (0 where there is none) and ``Σ_j exp(S_ij − row_max_i)``, the sinks' among
        them; without what the mask adds to the whole row, where that is large (see `refattn.masks`).
    layout : HeadLayout
        Leading axes, and which heads share keys and values.
    mask : RowMask
        The mask, and the bias, read a block of rows at a time.
    scale : float
        Factor of the logits.
    softcap : float or None
        The cap of the logits.
    block : int
        Query rows processed at once by the forward.
    bias : tuple of int or None
        The shape of the bias.
    sinks : ndarray, shape that broadcasts to (…, H), or None
        The sinks' logits, in the dtype of the computation: a copy.
    keep : ndarray of bool, shape that broadcasts to (…, n_q, n_k), or None
        Which weights dropout keeps: a copy.
    dropout : float
        The rate of dropout; 0 without.
    method : str
        The method that computed the output.

    Examples
    --------
    >>> import numpy as np
    >>> from refattn import dense_attention_forward
    >>> zeros = np.zeros((3, 1))
    >>> out, cache = dense_attention_forward(zeros, zeros, zeros)
    >>> bool(np.allclose(cache.log_sum_exp, np.log([1, 2, 3])))  # row i sees i + 1 equal logits
    True
    """

    row_max: FloatArray
    row_sum: FloatArray
    method: str

    @property
    def log_sum_exp(self) -> FloatArray:
        """``log Σ_j exp(S_ij)`` over the allowed keys and the sink, shape (…, n_q); −inf where there is none."""
        with np.errstate(divide="ignore"):
            return self.mask.with_shift(np.asarray(self.row_max + np.log(self.row_sum)))


class _Gradients(NamedTuple):
    q: FloatArray
    k: FloatArray
    v: FloatArray


class AttentionGradients(_Gradients):
    """Gradients of attention, each of the shape of its input; a tuple, ``dq, dk, dv = gradients``.

    Attributes
    ----------
    q, k, v : ndarray, shapes (…, n_q, d), (…, n_k, d), (…, n_k, d_v)
        With respect to the queries, the keys and the values, in the dtype of the computation.
    bias, sinks : ndarray, shapes of those, or None
        With respect to the bias and to the sinks' logits, beside the tuple; None for what was not given.

    Examples
    --------
    >>> import numpy as np
    >>> from refattn import dense_attention_backward, dense_attention_forward
    >>> q = k = v = np.ones((3, 2))
    >>> out, cache = dense_attention_forward(q, k, v)
    >>> dense_attention_backward(out, cache).v.sum(axis=1)  # the first value is seen by three queries
    array([3.66666667, 1.66666667, 0.66666667])
    """

    bias: FloatArray | None = None
    sinks: FloatArray | None = None

    def __new__(
        cls, q: FloatArray, k: FloatArray, v: FloatArray, *, bias: FloatArray | None = None,
        sinks: FloatArray | None = None,
    ) -> Self:  # fmt: skip
        """Add to the three gradients those of what else was given."""
        gradients = super().__new__(cls, q, k, v)
        if bias is not None or sinks is not None:
            gradients.bias, gradients.sinks = bias, sinks
        return gradients


def dense_attention(
    q: ArrayLike,
    k: ArrayLike,
    v: ArrayLike,
    *,
    mask: Any = "causal",
    scale: float | None = None,
    softcap: float | None = None,
    bias: ArrayLike | None = None,
    sinks: ArrayLike | None = None,
    keep: ArrayLike | None = None,
    dropout: float | None = None,
    block: int | None = None,
    method: str = "fast",
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
    bias : array_like, of a shape that broadcasts to (…, n_q, n_k), optional
        Floating, added to the logits as an additive mask is; unlike that one, it has a gradient.
    sinks : array_like, of a shape that broadcasts to the leading axes, (…, H), optional
        A learned sink: one logit more in the softmax of every row of a head, as it is given, with no value. With it
        the weights of the keys sum to less than one.
    keep : array_like of bool, of a shape that broadcasts to (…, n_q, n_k), optional
        With `dropout`: which weights are kept. The others become 0 after the softmax, and these are divided by
        ``1 − dropout``.
    dropout : float, optional
        The rate of dropout, at least 0 and below 1; with `keep`.
    block : int, optional
        Query rows processed at once; by default what the method finds fastest.
    method : {"fast", "oracle"}, optional
        Tiles of queries and keys; the definition, in blocks of whole rows.
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
        Shapes do not fit, an entry is NaN or infinite, a logit or the output overflows, an option is unknown, or one
        of `keep` and `dropout` came without the other.

    Warns
    -----
    PromotionWarning
        Integers (to float64) or float16 (to float32) came.

    Notes
    -----
    Time O(n_q n_k (d + d_v)) a head; "fast" leaves out what causality or a window hides. Memory beyond inputs and
    output: "fast" O(n_k (d + d_v) + block · 512), "oracle" O(n_k · block). Rows whose sizes do not exclude an overflow
    on the way, and heads of at most 2¹⁶ logits, are computed as by "oracle" in any case. Source: the definition, in the
    form of arXiv 2405.05219, Definition 1.1 (attention): ``D⁻¹ A V``; for `sinks`, arXiv 2508.10925 (gpt-oss).

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
    known = as_option("method", method, _METHODS)
    problem = as_problem(
        q, k, v, mask=mask, scale=scale, softcap=softcap, bias=bias, sinks=sinks, keep=keep, dropout=dropout,
        block=block, check_finite=check_finite, outlives=False,
    )  # fmt: skip
    return _attend(problem, known)[0]


def dense_attention_forward(
    q: ArrayLike,
    k: ArrayLike,
    v: ArrayLike,
    *,
    mask: Any = "causal",
    scale: float | None = None,
    softcap: float | None = None,
    bias: ArrayLike | None = None,
    sinks: ArrayLike | None = None,
    keep: ArrayLike | None = None,
    dropout: float | None = None,
    block: int | None = None,
    method: str = "fast",
    check_finite: bool = True,
) -> tuple[FloatArray, DenseForwardCache]:
    """Exact softmax attention, and what its backward needs.

    Parameters
    ----------
    q, k, v, mask, scale, softcap, bias, sinks, keep, dropout, block, method, check_finite : array_like, and options
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
    Time O(n_q n_k (d + d_v)), memory and dtype as `dense_attention`. Source: the definition.

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
    known = as_option("method", method, _METHODS)
    problem = as_problem(
        q, k, v, mask=mask, scale=scale, softcap=softcap, bias=bias, sinks=sinks, keep=keep, dropout=dropout,
        block=block, check_finite=check_finite, outlives=True,
    )  # fmt: skip
    out, row_max, row_sum = _attend(problem, known)
    row_max, row_sum = (kept(rows.reshape(*problem.layout.lead, -1)) for rows in (row_max, row_sum))
    fields = {**vars(problem), "block": _METHODS[known].rows_of_a_block(problem)}
    return out, DenseForwardCache(**fields, row_max=row_max, row_sum=row_sum, method=known)


def _attend(problem: DenseProblem, method: str) -> tuple[FloatArray, FloatArray, FloatArray]:
    with one_blas_thread():
        out, row_max, row_sum = _METHODS[method].forward(problem)
    out = problem.layout.merge(out)
    require_finite("v: output", out)
    return out, row_max, row_sum


def dense_attention_backward(
    dout: ArrayLike, cache: DenseForwardCache, *, dlse: ArrayLike | None = None
) -> AttentionGradients:
    """Gradients of exact attention with respect to q, k and v, and to the bias and sinks where they were given.

    Parameters
    ----------
    dout : array_like, shape (…, n_q, d_v)
        Gradient of the loss with respect to the output; of the output's shape.
    cache : DenseForwardCache
        From `dense_attention_forward`.
    dlse : array_like, shape (…, n_q), optional
        Gradient of the loss with respect to ``cache.log_sum_exp``; 0 by default.

    Returns
    -------
    AttentionGradients
        Fields ``q``, ``k``, ``v``, and attributes ``bias`` and ``sinks``, of the inputs' shapes, in the dtype of the
        forward; axes that were broadcast or shared are summed.

    Raises
    ------
    TypeError, ValueError
        `dout` or `dlse` is not numeric, not finite, or not of its output's shape, or a gradient overflows.

    Notes
    -----
    Time O(n_q n_k (d + d_v)) a head. Memory beyond inputs and outputs: O(n_k (d + d_v)) for each of at least four parts
    of all heads, and "fast" two blocks of at most 2²⁰ logits, or 16 rows, a thread. With a bias, gradients are those
    of "oracle". Source: the derivative of the definition; the formulas stand at the head of the module.

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
    layout = cache.layout
    upstream, more = layout.expand_queries(cast("dout", dout, cache.q.dtype)), None
    if dlse is not None:
        dlse = as_upstream(cache.row_max.shape, "the log-sum-exps'", dlse=dlse)
        more = layout.expand_queries(cast("dlse", dlse, cache.q.dtype)[..., None])
    with overflow_judged(), one_blas_thread():
        dq, dk, dv, dsinks, dbias = _METHODS[cache.method].backward(upstream, more, cache)
        gradients = AttentionGradients(
            layout.reduce_queries(dq, cache.q.shape),
            layout.reduce_keys(dk, cache.k.shape),
            layout.reduce_keys(dv, cache.v.shape),
            sinks=None if cache.sinks is None else sum_to(layout.merge(dsinks)[..., 0, 0], cache.sinks.shape),
            bias=None if cache.bias is None else dbias.reshape(cache.bias),
        )
    for name in ("bias", "sinks"):
        if getattr(gradients, name) is not None:
            require_finite(f"dout: gradient of {name}", getattr(gradients, name))
    return finite_gradients(gradients)
