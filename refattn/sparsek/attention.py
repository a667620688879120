"""SparseK attention with a sliding window, forward and backward: the public face of its methods (arXiv 2406.16747).

What is computed stands in `refattn.sparsek._problem`; how, in `refattn.sparsek.paper` and `refattn.sparsek.oracle`.
`_METHODS` is the one place that knows them.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import ModuleType
from typing import NamedTuple

from numpy.typing import ArrayLike

from refattn._overflow import all_finite, overflow_judged, replace_what_is_not_finite, wider
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
from refattn.sparsek import fast, oracle, paper
from refattn.sparsek._problem import SparseKProblem, as_problem, require_gates

_METHODS: dict[str, ModuleType] = {"fast": fast, "paper": paper, "oracle": oracle}
_IN_WIDER_FORMAT = {"fast": "paper", "paper": "paper", "oracle": "oracle"}
"""The method that computes again what is not finite of a gradient: compiled loops know no wider format."""


@dataclass(frozen=True)
class SparseKForwardCache:
    """What `sparsek_attention_backward` needs of the forward.

    Attributes
    ----------
    problem : SparseKProblem
        The checked inputs and options; its arrays are read-only copies.
    method : str
        The method that computed the output.
    shape : tuple of int
        Of the output.

    Examples
    --------
    >>> import numpy as np
    >>> from refattn.sparsek import sparsek_attention_forward
    >>> q = k = v = np.ones((5, 2))
    >>> out, cache = sparsek_attention_forward(q, k, v, np.arange(5.0), n_select=2, window=1)
    >>> cache.method, cache.shape
    ('fast', (5, 2))
    """

    problem: SparseKProblem
    method: str
    shape: tuple[int, ...]


class SparseKAttentionGradients(NamedTuple):
    """Gradients of SparseK attention, each of the shape of its input; a tuple, ``dq, dk, dv, dscores = gradients``.

    Attributes
    ----------
    q, k, v, scores : ndarray, shapes (…, n, d), (…, n, d), (…, n, d_v), (…, n)
        With respect to the queries, keys, values and scores, in the dtype of the forward.

    Examples
    --------
    >>> import numpy as np
    >>> from refattn.sparsek import sparsek_attention_backward, sparsek_attention_forward
    >>> q = k = v = np.ones((5, 2))
    >>> out, cache = sparsek_attention_forward(q, k, v, np.arange(5.0), n_select=2, window=1)
    >>> dq, dk, dv, dscores = sparsek_attention_backward(np.ones_like(out), cache)
    >>> dq.shape, dscores.shape
    ((5, 2), (5,))
    """

    q: FloatArray
    k: FloatArray
    v: FloatArray
    scores: FloatArray


def sparsek_attention(
    q: ArrayLike,
    k: ArrayLike,
    v: ArrayLike,
    scores: ArrayLike,
    *,
    n_select: int,
    window: int = 0,
    gate: str = "kv",
    hard: bool = False,
    scale: float | None = None,
    method: str = "fast",
    check_finite: bool = True,
) -> FloatArray:
    """Causal attention to the best-scored pairs and a sliding window.

    Query i attends to the positions ``i − window + 1 … i`` with gate one and, among the *candidates*
    ``j ≤ i − window``, to the `n_select` with the largest scores (ties: the earlier), with gate
    ``SparseK(scores[: i − window + 1], n_select)_j``; one softmax over both. A selected pair's gate is never zero: it
    is at least ``1/(candidates − n_select + 1)``.

    Parameters
    ----------
    q, k, v : array_like, shapes (…, n, d), (…, n, d), (…, n, d_v)
        Queries, keys and values. Leading axes broadcast; fewer key-value heads than query heads (axis −3) are shared by
        groups.
    scores : array_like, shape (…, n)
        One score per key-value pair; leading axes are those of k and v (the last of them H_kv) or broadcast to them.
        With soft gates, and for the gradient of hard ones, at most 1e9 in size: a gate, a difference of scores, is off
        by up to 1e-16 times that.
    n_select : int
        Pairs selected outside the window, the budget of SparseK; at least 0. With fewer candidates all are selected.
    window : int, optional
        Pairs in the window, the query's own included; at least 0. With 0 the query's own pair is a candidate.
    gate : {"kv", "k", "v", "none"}, optional
        What the gate of a selected pair multiplies: key and value, one of them, or nothing (then the scores only
        choose, and their gradient is zero).
    hard : bool, optional
        Straight-through gates: one in the forward; in the backward the gradient with respect to the gate, taken at gate
        one, goes through SparseK's Jacobian.
    scale : float, optional
        Factor of the logits; ``1/√d`` by default.
    method : {"fast", "paper", "oracle"}, optional
        Blocks of queries in linear time; the paper's selection matrices, one query at a time; dense, from the
        definition.
    check_finite : bool, optional
        Refuse NaN and infinity in q, k, v (the scores are always checked).

    Returns
    -------
    ndarray, shape (…, n, d_v)
        float32 if every input is float32 (or float16), else float64. A query with nothing to attend to gives zeros.

    Raises
    ------
    TypeError
        An argument is not numeric, or of a dtype that is neither computed with nor promoted.
    ValueError
        Shapes do not fit, an entry is NaN or infinite, the logits overflow, a count is negative or an option unknown.

    Warns
    -----
    PromotionWarning
        Integers (to float64) or float16 (to float32) came.

    Notes
    -----
    "fast": time O(n (n_select + window) d + n log n), memory O(n d), the same bits with any number of threads. "paper":
    time O(n (n_select + window) d + n²), memory O(n d). "oracle": time O(n² d + n³), memory O(n²). Thresholds and gates
    are computed in float64. Changing a token changes no earlier row, bit for bit. Source: arXiv 2406.16747, SparseK
    attention with sliding window; the options' defaults are ours.

    Examples
    --------
    With room for everything, every gate is one and SparseK attention is exact causal attention:

    >>> import numpy as np
    >>> from refattn import dense_attention
    >>> from refattn.sparsek import sparsek_attention
    >>> rng = np.random.default_rng(0)
    >>> q, k, v = rng.standard_normal((3, 6, 4))
    >>> scores = rng.standard_normal(6)
    >>> out = sparsek_attention(q, k, v, scores, n_select=4, window=2)
    >>> bool(np.allclose(out, dense_attention(q, k, v)))
    True
    """
    return sparsek_attention_forward(
        q, k, v, scores, n_select=n_select, window=window, gate=gate, hard=hard, scale=scale, method=method,
        check_finite=check_finite,
    )[0]  # fmt: skip


@one_blas_thread()
def sparsek_attention_forward(
    q: ArrayLike,
    k: ArrayLike,
    v: ArrayLike,
    scores: ArrayLike,
    *,
    n_select: int,
    window: int = 0,
    gate: str = "kv",
    hard: bool = False,
    scale: float | None = None,
    method: str = "fast",
    check_finite: bool = True,
) -> tuple[FloatArray, SparseKForwardCache]:
    """SparseK attention, and what its backward needs.

    Parameters
    ----------
    q, k, v, scores, n_select, window, gate, hard, scale, method, check_finite : array_like, and options
        As for `sparsek_attention`.

    Returns
    -------
    out : ndarray, shape (…, n, d_v)
        The output.
    cache : SparseKForwardCache
        For `sparsek_attention_backward`.

    Raises
    ------
    TypeError, ValueError
        As `sparsek_attention`.

    Notes
    -----
    Time, memory and dtypes as `sparsek_attention`: O(n (n_select + window) d + n log n) and O(nd) by "fast". Source:
    arXiv 2406.16747, SparseK attention with sliding window.

    Examples
    --------
    The third query sees its own pair in the window and the better of the two before, whose gate is 0.75:

    >>> import numpy as np
    >>> from refattn.sparsek import sparsek_attention_forward
    >>> q = k = np.zeros((3, 1)); v = np.array([[4.0], [8.0], [0.0]])
    >>> out, _ = sparsek_attention_forward(q, k, v, [1.0, 0.5, 9.0], n_select=1, window=1)
    >>> out.ravel()
    array([4. , 6. , 1.5])
    """
    known = as_option("method", method, _METHODS)
    problem = as_problem(
        q, k, v, scores, n_select=n_select, window=window, gate=gate, hard=hard, scale=scale, check_finite=check_finite
    ).kept()
    layout = problem.layout
    with overflow_judged():
        heads = _METHODS[known].forward(problem)
    out = layout.merge(heads.reshape(*layout.inner, *heads.shape[-2:]))
    require_finite("v: output", out)
    return out, SparseKForwardCache(problem, known, out.shape)


@one_blas_thread()
def sparsek_attention_backward(dout: ArrayLike, cache: SparseKForwardCache) -> SparseKAttentionGradients:
    """Gradients of SparseK attention with respect to q, k, v and the scores.

    Parameters
    ----------
    dout : array_like, shape (…, n, d_v)
        Gradient of the loss with respect to the output; of the output's shape.
    cache : SparseKForwardCache
        From `sparsek_attention_forward`; the same method computes the gradient.

    Returns
    -------
    SparseKAttentionGradients
        Fields `q`, `k`, `v`, `scores`, of the inputs' shapes and the forward's dtype; axes that were broadcast or
        shared are summed.

    Raises
    ------
    TypeError, ValueError
        `dout` is not numeric, not finite, or not of the output's shape, a gradient overflows, or the scores are larger
        than a gate's gradient allows.

    Notes
    -----
    Time O(n (n_select + window) d + n log n) by "fast", as the forward. Which pairs are selected is piecewise constant
    and has no gradient; at a kink of SparseK its documented one-sided choice is taken. Source: ours.

    Examples
    --------
    >>> import numpy as np
    >>> from refattn.sparsek import sparsek_attention_backward, sparsek_attention_forward
    >>> q = k = np.zeros((3, 1)); v = np.array([[4.0], [8.0], [0.0]])
    >>> out, cache = sparsek_attention_forward(q, k, v, [1.0, 0.5, 9.0], n_select=1, window=1)
    >>> sparsek_attention_backward(np.ones_like(out), cache).scores  # the third query's gate on the value 4, halved
    array([ 1., -1.,  0.])
    """
    require_kind("cache", cache, SparseKForwardCache, "sparsek_attention_forward")
    upstream = as_upstream(cache.shape, dout=dout)
    problem, layout = cache.problem, cache.problem.layout
    require_gates("cache: scores", problem)
    upstream = cast("dout", upstream, problem.q.dtype)
    heads = layout.expand_queries(upstream).reshape(-1, *upstream.shape[-2:])
    with overflow_judged():
        gradients = _METHODS[cache.method].backward(heads, problem)
        if not all_finite(*gradients):
            again = _METHODS[_IN_WIDER_FORMAT[cache.method]].backward(*wider(heads), problem.in_wider_format())
            for gradient, better in zip(gradients, again, strict=True):
                replace_what_is_not_finite(gradient, better)
        dq, dk, dv, dscores = (
            gradient.reshape(*layout.inner, *gradient.shape[1:]).astype(problem.q.dtype, copy=False)
            for gradient in gradients
        )
        found = SparseKAttentionGradients(
            layout.reduce_queries(dq, problem.q.shape),
            layout.reduce_keys(dk, problem.k.shape),
            layout.reduce_keys(dv, problem.v.shape),
            layout.reduce_keys(dscores[..., None], (*problem.scores.shape, 1))[..., 0],
        )
    return finite_gradients(found)
