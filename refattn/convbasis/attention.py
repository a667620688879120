"""Conv attention, the public operation: recover a basis, apply it by one of the methods (arXiv 2405.05219, section 4).

What is computed stands in `refattn.convbasis._problem`; how, in `refattn.convbasis.oracle`, `refattn.convbasis.guarded`
and `refattn.convbasis.fast`. Of its gradients there are two, and they are different things: see
docs/explanation/training.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from refattn._heads import HeadLayout
from refattn._threads import one_blas_thread
from refattn._validation import FloatArray, as_float_arrays, as_option, cast, require_finite, require_kind
from refattn.convbasis import oracle
from refattn.convbasis._problem import ConvProblem, as_problem
from refattn.convbasis.basis import ConvBasis
from refattn.convbasis.fast.cost import Plan
from refattn.convbasis.guarded import gradients
from refattn.convbasis.guarded.gradients import ConvGradients, Recomputed
from refattn.convbasis.guarded.softmax import Softmax
from refattn.convbasis.guarded.units import scaled, spans_too_much
from refattn.convbasis.toeplitz import near_one

GRADIENTS = ("approximation", "attention")


@dataclass(frozen=True)
class ConvForwardCache:
    """What a conv-attention forward leaves behind: O(kn + nd) numbers a head, read-only and copied.

    Attributes
    ----------
    q, k, v : ndarray, shapes (…, n, d), (…, n, d), (…, n, d_v)
        The inputs, in the dtype of the computation: copies.
    out : ndarray, shape (…, n, d_v)
        The output: a copy.
    basis : ConvBasis
        Basis of the logits on and below the diagonal, one for every query head, of ``basis.n_terms`` segments.
    upper : ConvBasis or None
        Basis of the transposed logits, used above the diagonal; None for causal attention.
    method : str
        The method asked for.
    plans : ndarray of Plan or None, shape (…)
        How every head was computed, by ``"fast"``: the path and the block length; None by the other methods.
    tol : float
        Tolerance of a row, of the output and of every gradient, relative to its natural size.
    rows_recomputed : ndarray of int, shape (…)
        Rows of the output of every head that were computed directly because an FFT would have lost them. The backward
        judges anew and reports its own, ``ConvGradients.recomputed``.
    largest_bound : ndarray, shape (…)
        Largest estimated rounding error of the rows that were kept, relative to their natural sizes,
        ``Σ_j f_ij ‖v_j‖_∞``; 0 where there are none, as on the direct path.
    scale : float
        Factor of the logits.
    recovered : bool
        Whether the basis was recovered from q and k; False if the caller gave it.
    layout : HeadLayout
        Leading axes.
    operators : dict
        For the fast method, by head as they are computed: the softmax as an operator, with its transformed kernels,
        for the backward's products. Which of their rows are lost is judged by what they multiply.

    Examples
    --------
    >>> from refattn import conv_attention_forward
    >>> from refattn.testing import rope_structured
    >>> q, k, v, starts = rope_structured(300, 8, starts=[0, 100], seed=0)
    >>> out, cache = conv_attention_forward(q, k, v, n_basis=2, probe=4, delta=1e-6)
    >>> cache.basis.starts.tolist(), cache.plans[()].path, int(cache.rows_recomputed)
    ([0, 100], 'direct', 0)
    """

    q: FloatArray
    k: FloatArray
    v: FloatArray
    out: FloatArray
    basis: ConvBasis
    upper: ConvBasis | None
    method: str
    plans: np.ndarray
    tol: float
    rows_recomputed: np.ndarray
    largest_bound: np.ndarray
    scale: float
    recovered: bool
    layout: HeadLayout
    operators: dict[tuple[int, ...], Any]


def conv_attention(
    q: ArrayLike,
    k: ArrayLike,
    v: ArrayLike,
    *,
    n_basis: int | None = None,
    probe: int | None = None,
    delta: float | None = None,
    eps: float = 0.0,
    basis: ConvBasis | tuple[ConvBasis, ConvBasis] | None = None,
    mask: str = "causal",
    scale: float | None = None,
    method: str = "fast",
    plan: Plan | None = None,
    tol: float | None = None,
    check_finite: bool = True,
) -> FloatArray:
    """Softmax attention whose logits are replaced by a k-conv basis of them.

    Parameters
    ----------
    q, k, v : array_like, shapes (…, n, d), (…, n, d), (…, n, d_v)
        As for `dense_attention`.
    n_basis : int, optional
        The paper's k: the most segments to look for, 1 ≤ n_basis ≤ n. Needed unless `basis` is given, as are
        `probe` and `delta`.
    probe, delta, eps : optional
        The paper's T, δ and ε; as for `recover`.
    basis : ConvBasis or pair of ConvBasis, optional
        Use this basis of the logits instead of recovering one: q and k then serve for their shapes only. For full
        attention, the pair (lower, upper), the upper one of the transposed logits. Leading axes are those of the
        output, or none for one basis that serves every head.
    mask : {"causal", "full"}, optional
        Causal attention, or attention over all keys.
    scale : float, optional
        Factor of the logits; ``1/√d`` by default.
    method : {"fast", "paper", "oracle"}, optional
        ``"fast"``: the block transform, or a direct product where that is cheaper. ``"paper"``: Algorithm 1, products
        by FFT. Both recompute lost rows. ``"oracle"``: the same basis applied densely.
    plan : Plan, optional
        How ``"fast"`` computes every head; by default what `refattn.convbasis.choose_plan` finds cheapest for it.
    tol : float, optional
        Largest estimated rounding error of a row that is kept, relative to its natural size: what it would be if
        nothing cancelled, ``Σ_j f_ij ‖v_j‖_∞`` for the weights f. Rows above it are computed directly. 1e-13 in float64
        and 1e-5 in float32 by default; 0 recomputes every row. The backward holds its gradients to the same. Columns
        of V that differ by more than 64 in size are held to it in units of their own.
    check_finite : bool, optional
        Refuse NaN and infinity.

    Returns
    -------
    ndarray, shape (…, n, d_v)
        The output ``Ỹ``.

    Raises
    ------
    TypeError
        An argument is of the wrong kind.
    ValueError
        Shapes do not fit, a value is out of range, an entry is not finite, a logit overflows, or an option is unknown.
    MemoryError
        What would be needed is more than there is; the message has the estimate.

    Warns
    -----
    PromotionWarning
        Integers (to float64) or float16 (to float32) came.

    Notes
    -----
    Time O(knd + nd log n + r n d) with r recomputed rows, memory O(kn + nd), for one head (``"paper"``:
    O(k n d log n + r n d)). If the logits are ε-close to a (T, δ)-non-degenerate k-conv matrix, the output is within
    ``2 (e^{2ε} − 1) ‖V‖_∞`` of exact attention; on other input nothing is promised, and
    `refattn.convbasis.posterior_bound` says what is. The result does not depend on the number of threads. Source: arXiv
    2405.05219, Algorithm 1; the block transform is ours.

    Examples
    --------
    With as many segments as columns the basis is exact, and so is the output:

    >>> import numpy as np
    >>> from refattn import conv_attention, dense_attention
    >>> q, k, v = np.random.default_rng(0).standard_normal((3, 16, 4))
    >>> out = conv_attention(q, k, v, n_basis=16, probe=1, delta=1e-9)
    >>> bool(np.allclose(out, dense_attention(q, k, v), rtol=1e-12))
    True
    """
    problem = as_problem(
        q, k, v, n_basis=n_basis, probe=probe, delta=delta, eps=eps, basis=basis, mask=mask, scale=scale, method=method,
        plan=plan, tol=tol, check_finite=check_finite,
    )  # fmt: skip
    return _attend(problem, None).out


def conv_attention_forward(
    q: ArrayLike,
    k: ArrayLike,
    v: ArrayLike,
    *,
    n_basis: int | None = None,
    probe: int | None = None,
    delta: float | None = None,
    eps: float = 0.0,
    basis: ConvBasis | tuple[ConvBasis, ConvBasis] | None = None,
    mask: str = "causal",
    scale: float | None = None,
    method: str = "fast",
    plan: Plan | None = None,
    tol: float | None = None,
    check_finite: bool = True,
) -> tuple[FloatArray, ConvForwardCache]:
    """Conv attention, with the basis used and what became of the rows.

    Parameters
    ----------
    q, k, v : array_like, shapes (…, n, d), (…, n, d), (…, n, d_v)
        As for `dense_attention`.
    n_basis : optional
        As for `conv_attention`.
    probe, delta, eps : optional
        As for `recover`.
    basis, mask, scale, method, plan, tol, check_finite : optional
        As for `conv_attention`.

    Returns
    -------
    out : ndarray, shape (…, n, d_v)
        The output.
    cache : ConvForwardCache
        Inputs, output, bases, and how many rows were recomputed.

    Raises
    ------
    TypeError, ValueError, MemoryError
        As `conv_attention`.

    Notes
    -----
    Time O(knd + nd log n + r n d) with r recomputed rows, memory O(kn + nd), dtypes as `conv_attention`. Source: arXiv
    2405.05219, Algorithm 1; the block transform is ours.

    Examples
    --------
    >>> import numpy as np
    >>> from refattn import conv_attention_forward
    >>> q, k, v = np.random.default_rng(0).standard_normal((3, 16, 4))
    >>> out, cache = conv_attention_forward(q, k, v, n_basis=4, probe=1, delta=1e-9)
    >>> cache.basis.starts.tolist()  # T = 1 and a tiny δ: the first columns, as every column differs from the last
    [0, 1, 2, 3]
    """
    problem = as_problem(
        q, k, v, n_basis=n_basis, probe=probe, delta=delta, eps=eps, basis=basis, mask=mask, scale=scale, method=method,
        plan=plan, tol=tol, check_finite=check_finite,
    )  # fmt: skip
    cache = _attend(problem.kept(), {})
    for array in (cache.out, cache.plans, cache.rows_recomputed, cache.largest_bound):
        array.flags.writeable = False
    return cache.out.copy(), cache  # the caller may write to its own


@one_blas_thread()
def _attend(problem: ConvProblem, operators: dict[tuple[int, ...], Any] | None) -> ConvForwardCache:
    """The forward; the operators of the fast method are put into `operators`, where a backward may follow."""
    layout, method = problem.layout, problem.method
    lower, upper = problem.bases()
    _, _, values = layout.expand(problem.q, problem.k, problem.v)
    out = np.empty((*layout.inner, *problem.v.shape[-2:]), problem.q.dtype)
    recomputed = np.zeros(layout.inner, dtype=np.int64)
    largest = np.zeros(layout.inner)
    plans = np.full(layout.inner, None, dtype=object)
    for head in np.ndindex(*layout.inner):
        above = None if upper is None else upper[head]
        if method == "oracle":
            with np.errstate(over="ignore", invalid="ignore"):  # judged below
                out[head] = oracle.conv_attention_head(values[head], lower[head], above)
        elif method == "paper":
            with np.errstate(over="ignore", invalid="ignore"):  # judged below
                out[head], report = Softmax(lower[head], above, problem.tol).product(values[head])
            recomputed[head], largest[head] = report.rows.size, report.largest_bound
        else:
            from refattn.convbasis.fast.softmax import FastSoftmax, plan_head

            plan = problem.plan or plan_head(values[head], lower[head], above)
            f = FastSoftmax(lower[head], above, plan, out.shape[-1], problem.tol)
            report, plans[head] = f.write(values[head], out[head]), plan
            recomputed[head] = report.rows.size if f.below is not None else 0
            largest[head] = report.largest_bound
            if operators is not None:
                operators[head] = f
    known = problem.check_finite or all(np.isfinite(one).all() for one in (problem.q, problem.k, problem.v))
    if method != "fast" and known:
        require_finite("v: output", out)  # the fast one judges the rows that may overflow
    return ConvForwardCache(
        problem.q, problem.k, problem.v, layout.merge(out), problem.merged(lower),
        None if upper is None else problem.merged(upper), method, plans.reshape(layout.lead), problem.tol,
        recomputed.reshape(layout.lead), largest.reshape(layout.lead), problem.scale, problem.given is None, layout,
        {} if operators is None else operators,
    )  # fmt: skip


@one_blas_thread()
def conv_attention_backward(
    dout: ArrayLike, cache: ConvForwardCache, *, gradient: str = "approximation"
) -> ConvGradients:
    """Gradients of conv attention with respect to q, k and v.

    Parameters
    ----------
    dout : array_like, shape (…, n, d_v)
        Gradient of the loss with respect to the output; of the output's shape.
    cache : ConvForwardCache
        From `refattn.conv_attention_forward`; its method is the backward's.
    gradient : {"approximation", "attention"}, optional
        ``"approximation"``: the derivative of the output that the forward returned, the starts of the segments held
        fixed. ``"attention"``: the paper's, the gradient of exact attention with its softmax replaced by the conv
        basis; equal to exact attention's where the basis is exact, and not the derivative of the output elsewhere.

    Returns
    -------
    ConvGradients
        Fields ``q``, ``k``, ``v``, of the inputs' shapes and the forward's dtype; axes that were broadcast or shared
        are summed. Field ``recomputed``, not part of the tuple: how many rows and lags of every head were computed
        directly, as an FFT would have lost them; zeros for ``"oracle"``.

    Raises
    ------
    TypeError, ValueError
        `dout` is not numeric, not finite, or not of the output's shape; `gradient` is unknown; a gradient overflows; or
        ``"approximation"`` is asked for where the caller gave the basis, whose kernels do not depend on q and k.

    Notes
    -----
    Every row of dV, every lag of a kernel's gradient (of which the rows of dQ and dK are sums), and for ``"attention"``
    every row of each product, has an estimated rounding error of at most the forward's `tol` (1e-13 in float64 and
    1e-5 in float32 by default) times its natural size, what it would be if nothing cancelled: ``Σ_i f_ij ‖G_i‖_∞`` for
    row j of dV. Or it is computed directly. Weights below the smallest normal number count as nothing. The estimate
    has a margin of 8 and is no proof. In float32, products whose rows span more than 18 decades are computed in
    float64. See docs/explanation/guards.md.

    ``"approximation"`` takes O(knd + nd log n + r n d) time with r recomputed rows, memory O(kn + nd). ``"attention"``
    takes 2 d_v + 3 times the product of a matrix of d columns with the basis, one after the other: O(k n d² log n) by
    the paper's method, O(k n d² + n d² log n) by the fast one, memory O(kn + nd). Source: arXiv 2405.05219, theorem on
    training (5.6), for ``"attention"``; ours for ``"approximation"``.

    Examples
    --------
    With as many segments as columns both are the gradient of exact attention:

    >>> import numpy as np
    >>> from refattn import conv_attention_backward, conv_attention_forward
    >>> from refattn import dense_attention_backward, dense_attention_forward
    >>> q, k, v = np.random.default_rng(0).standard_normal((3, 16, 4))
    >>> out, cache = conv_attention_forward(q, k, v, n_basis=16, probe=1, delta=0)
    >>> exact = dense_attention_backward(np.ones_like(out), dense_attention_forward(q, k, v)[1])
    >>> for gradient in ("approximation", "attention"):
    ...     found = conv_attention_backward(np.ones_like(out), cache, gradient=gradient)
    ...     print(all(np.allclose(a, b, rtol=1e-10, atol=1e-13) for a, b in zip(found, exact)))
    True
    True
    """
    require_kind("cache", cache, ConvForwardCache, "conv_attention_forward")
    as_option("gradient", gradient, GRADIENTS)
    if gradient == "approximation" and not cache.recovered:
        raise ValueError(
            "gradient: 'approximation' came with a basis that the caller gave, whose kernels do not depend on q and k;"
            " 'attention', or a forward that recovers the basis, was wanted"
        )
    (dout,) = as_float_arrays(dout=dout)
    if dout.shape != cache.out.shape:
        raise ValueError(f"dout: shape {dout.shape} came, the output's {cache.out.shape} was wanted")
    found = _gradients(gradient, cache, cast("dout", dout, cache.q.dtype), (0, 0))
    if not _finite(found):  # linear in k and in q: what overflowed on the way need not, with both near one
        found = _gradients(
            gradient, cache, cast("dout", dout, cache.q.dtype), (near_one(cache.q)[1], near_one(cache.k)[1])
        )
        for name, one in found._asdict().items():
            require_finite(f"dout: gradient of {name}", one)
    return found


def _gradients(gradient: str, cache: ConvForwardCache, dout: FloatArray, exponents: tuple[int, int]) -> ConvGradients:
    """The gradients of all heads, computed with q and k times two to minus these exponents."""
    layout, (q_exponent, k_exponent) = cache.layout, exponents
    q, k, v = layout.expand(scaled(cache.q, -q_exponent), scaled(cache.k, -k_exponent), cache.v)
    upstream, out = layout.expand_queries(dout), layout.expand_queries(cache.out)
    dq, dk, dv = np.empty(q.shape, q.dtype), np.empty(k.shape, q.dtype), np.empty(v.shape, q.dtype)
    counts = np.zeros((3, *layout.inner), dtype=np.int64)
    with np.errstate(over="ignore", invalid="ignore"):  # judged by the caller
        for head in np.ndindex(*layout.inner):
            arrays = (upstream[head], out[head], q[head], k[head], v[head])
            (dq[head], dk[head], dv[head]), rows = _head_gradient(gradient, cache, head, arrays)
            counts[(slice(None), *head)] = rows
        return ConvGradients(
            scaled(layout.reduce_queries(dq, cache.q.shape), k_exponent),
            scaled(layout.reduce_keys(dk, cache.k.shape), q_exponent),
            layout.reduce_keys(dv, cache.v.shape),
            Recomputed(*counts.reshape(3, *layout.lead)),
        )


def _finite(found: ConvGradients) -> bool:
    with np.errstate(over="ignore", invalid="ignore"):
        return all(np.isfinite(one.sum()) for one in found)


def _head_gradient(
    gradient: str, cache: ConvForwardCache, head: tuple[int, ...], arrays: tuple[FloatArray, ...]
) -> tuple[tuple[FloatArray, ...], Recomputed]:
    """The gradients of one head, by the cache's method: the fast operator of the forward, the paper's, or dense."""
    G, Y, Q, K, V = arrays
    place = tuple(np.unravel_index(np.ravel_multi_index(head, cache.layout.inner), cache.layout.lead)) if head else ()
    lower, upper = cache.basis[place], None if cache.upper is None else cache.upper[place]
    if cache.method == "oracle":
        dense = oracle.approximation_gradient if gradient == "approximation" else oracle.attention_gradient
        exact, _ = dense(G, Q, K, V, lower, upper, cache.scale)
        return tuple(one.astype(Q.dtype) for one in exact[:3]), Recomputed(0, 0, 0)
    if gradient == "approximation" and cache.method == "fast":
        from refattn.convbasis.fast import gradients as fast_gradients

        found = fast_gradients.approximation_gradient(G, Y, Q, K, V, cache.operators[head], cache.scale)
    else:
        wide = Q.dtype == np.float32 and spans_too_much(*(np.abs(one).max(axis=1) for one in (G, V)))
        if wide:
            G, Y, Q, K, V = (one.astype(np.float64) for one in arrays)
            lower, upper = _in_float64(lower), None if upper is None else _in_float64(upper)
        if cache.method == "fast":
            operator = cache.operators[head].in_float64() if wide else cache.operators[head]
            found = gradients.attention_gradient(G, Y, Q, K, V, operator, cache.scale)
        else:
            guarded = gradients.approximation_gradient if gradient == "approximation" else gradients.attention_gradient
            found = guarded(G, Y, Q, K, V, Softmax(lower, upper, cache.tol), cache.scale)
    return tuple(one.astype(cache.q.dtype, copy=False) for one in found), found.recomputed


def _in_float64(basis: ConvBasis) -> ConvBasis:
    return ConvBasis._trusted(basis.starts, basis.kernels.astype(np.float64))
