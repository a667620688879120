"""Gradients of conv attention, the public operation (arXiv 2405.05219, section 5; ours).

There are two, and they are different things: see docs/explanation/training.md.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from refattn._threads import one_blas_thread
from refattn._validation import FloatArray, as_float_arrays, as_option, cast, require_finite, require_kind
from refattn.convbasis import gradients, oracle
from refattn.convbasis.attention import ConvCache
from refattn.convbasis.basis import ConvBasis
from refattn.convbasis.gradients import ConvGradients, Recomputed
from refattn.convbasis.paper import Softmax
from refattn.convbasis.toeplitz import near_one
from refattn.convbasis.units import scaled, spans_too_much

GRADIENTS = ("approximation", "attention")


@one_blas_thread()
def conv_attention_backward(dout: ArrayLike, cache: ConvCache, *, gradient: str = "approximation") -> ConvGradients:
    """Gradients of conv attention with respect to q, k and v.

    Parameters
    ----------
    dout : array_like, shape (…, n, d_v)
        Gradient of the loss with respect to the output; of the output's shape.
    cache : ConvCache
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
    require_kind("cache", cache, ConvCache, "conv_attention_forward")
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


def _gradients(gradient: str, cache: ConvCache, dout: FloatArray, exponents: tuple[int, int]) -> ConvGradients:
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
    gradient: str, cache: ConvCache, head: tuple[int, ...], arrays: tuple[FloatArray, ...]
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
        from refattn.convbasis import fast_gradients

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
            paper = gradients.approximation_gradient if gradient == "approximation" else gradients.attention_gradient
            found = paper(G, Y, Q, K, V, Softmax(lower, upper, cache.tol), cache.scale)
    return tuple(one.astype(cache.q.dtype, copy=False) for one in found), found.recomputed


def _in_float64(basis: ConvBasis) -> ConvBasis:
    return ConvBasis.trusted(basis.starts, basis.kernels.astype(np.float64))
