"""Attention to given pairs, forward and backward: the public face of its methods.

For query i with a list J_i of positions,

    P_i = softmax(scale · q_i·k_j, j in J_i)        out_i = Σ_{j in J_i} P_ij v_j

Two methods: `refattn.patterns.fast`, compiled loops over the lists, and `refattn.patterns.oracle`, exact attention with
the mask that the lists say. The lists count as constant: the gradient is that of what was computed. A query whose list
is empty gets zeros, and zero gradients. A result is finite or refused.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import ModuleType

from numpy.typing import ArrayLike

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
from refattn.dense import AttentionGradients
from refattn.patterns import fast, oracle
from refattn.patterns._problem import IndexedProblem, as_problem

_METHODS: dict[str, ModuleType] = {"fast": fast, "oracle": oracle}


@dataclass(frozen=True)
class IndexedForwardCache(IndexedProblem):
    """What `indexed_attention_backward` needs of the forward; its arrays are read-only copies.

    Attributes
    ----------
    q, k, v : ndarray, shapes (…, n_q, d), (…, n_k, d), (…, n_k, d_v)
        The inputs, in the dtype of the computation: copies.
    indices : ndarray of int64, shape (…, n_q, pairs)
        The lists, each ascending, with −1 first where it is shorter than the longest.
    layout : HeadLayout
        Leading axes, and which heads share keys and values.
    scale : float
        Factor of the logits.
    method : str
        The method that computed the output.

    Examples
    --------
    >>> import numpy as np
    >>> from refattn.patterns import indexed_attention_forward
    >>> zeros = np.zeros((2, 1))
    >>> indexed_attention_forward(zeros, zeros, zeros, [[0, -1], [1, 0]])[1].indices
    array([[-1,  0],
           [ 0,  1]])
    """

    method: str


def indexed_attention(
    q: ArrayLike,
    k: ArrayLike,
    v: ArrayLike,
    indices: ArrayLike,
    *,
    scale: float | None = None,
    method: str = "fast",
    check_finite: bool = True,
) -> FloatArray:
    """Softmax attention of every query to the positions on its list.

    Parameters
    ----------
    q, k, v : array_like, shapes (…, n_q, d), (…, n_k, d), (…, n_k, d_v)
        As for `refattn.dense_attention`.
    indices : array_like of int, shape (…, n_q, pairs)
        For every query the positions of the keys it attends to, different ones in any order, and −1 for none. Leading
        axes broadcast to those of the output. Whether it is causal, the lists decide: nothing else is hidden.
    scale : float, optional
        Factor of the logits; ``1/√d`` by default.
    method : {"fast", "oracle"}, optional
        Loops over the lists; exact attention with the mask that they say.
    check_finite : bool, optional
        As for `refattn.dense_attention`.

    Returns
    -------
    ndarray, shape (…, n_q, d_v)
        float32 if every input is float32 (or float16), else float64. Queries with no position are zero.

    Raises
    ------
    TypeError
        An argument is not numeric, or `indices` are not integers.
    ValueError
        Shapes do not fit, a position is out of range or comes twice, an entry is NaN or infinite, a logit or the output
        overflows, or an option is unknown.

    Warns
    -----
    PromotionWarning
        Integers (to float64) or float16 (to float32) came.

    Notes
    -----
    Time O(n_q pairs (d + d_v)) a head and memory O(n (d + d_v + pairs)) by "fast"; with the oracle O(n_q n_k (d + d_v))
    and O(n_q n_k), also where something overflows. The order of a list changes no bit. Source: the definition.

    Examples
    --------
    >>> import numpy as np
    >>> from refattn import dense_attention
    >>> from refattn.patterns import indexed_attention
    >>> q, k, v = np.random.default_rng(0).standard_normal((3, 4, 2))
    >>> every = [[0, -1, -1, -1], [1, 0, -1, -1], [0, 1, 2, -1], [3, 2, 1, 0]]
    >>> bool(np.allclose(indexed_attention(q, k, v, every), dense_attention(q, k, v)))
    True
    """
    known = as_option("method", method, _METHODS)
    problem = as_problem(q, k, v, indices, scale=scale, check_finite=check_finite, keep=False)
    return _attend(problem, known)


def indexed_attention_forward(
    q: ArrayLike,
    k: ArrayLike,
    v: ArrayLike,
    indices: ArrayLike,
    *,
    scale: float | None = None,
    method: str = "fast",
    check_finite: bool = True,
) -> tuple[FloatArray, IndexedForwardCache]:
    """Attention to given pairs, and what its backward needs.

    Parameters
    ----------
    q, k, v : array_like
        As for `refattn.dense_attention`.
    indices, scale, method : array_like, and options
        As for `indexed_attention`.
    check_finite : bool, optional
        As for `refattn.dense_attention`.

    Returns
    -------
    out : ndarray, shape (…, n_q, d_v)
        The output.
    cache : IndexedForwardCache
        For `indexed_attention_backward`.

    Raises
    ------
    TypeError, ValueError
        As `indexed_attention`.

    Notes
    -----
    Time O(n_q pairs (d + d_v)), memory and dtype as `indexed_attention`. Source: the definition.

    Examples
    --------
    >>> import numpy as np
    >>> from refattn.patterns import indexed_attention_forward
    >>> q = k = np.zeros((3, 1)); v = np.arange(3.0)[:, None]
    >>> out, cache = indexed_attention_forward(q, k, v, [[0, -1], [0, 1], [0, 2]])
    >>> out.ravel()
    array([0. , 0.5, 1. ])
    """
    known = as_option("method", method, _METHODS)
    problem = as_problem(q, k, v, indices, scale=scale, check_finite=check_finite, keep=True)
    return _attend(problem, known), IndexedForwardCache(**vars(problem), method=known)


def indexed_attention_backward(dout: ArrayLike, cache: IndexedForwardCache) -> AttentionGradients:
    """Gradients of attention to given pairs with respect to q, k and v, the lists held fixed.

    Parameters
    ----------
    dout : array_like, shape (…, n_q, d_v)
        Gradient of the loss with respect to the output; of the output's shape.
    cache : IndexedForwardCache
        From `indexed_attention_forward`.

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
    Time O(n_q pairs (d + d_v)) a head, memory O(n (d + d_v)). Source: the derivative of the definition; the formulas
    stand at the head of ``refattn.patterns.fast``.

    Examples
    --------
    >>> import numpy as np
    >>> from refattn.patterns import indexed_attention_backward, indexed_attention_forward
    >>> q = k = np.zeros((3, 1)); v = np.arange(3.0)[:, None]
    >>> out, cache = indexed_attention_forward(q, k, v, [[0, -1], [0, 1], [0, 2]])
    >>> indexed_attention_backward(np.ones_like(out), cache).v.ravel()
    array([2. , 0.5, 0.5])
    """
    require_kind("cache", cache, IndexedForwardCache, "indexed_attention_forward")
    layout = cache.layout
    dout = as_upstream((*layout.lead, cache.q.shape[-2], cache.v.shape[-1]), dout=dout)
    with overflow_judged(), one_blas_thread():
        gradients: AttentionGradients = _METHODS[cache.method].backward(cast("dout", dout, cache.q.dtype), cache)
    return finite_gradients(gradients)


def _attend(problem: IndexedProblem, method: str) -> FloatArray:
    with one_blas_thread():
        out: FloatArray = _METHODS[method].forward(problem)
    require_finite("v: output", out)
    return out
