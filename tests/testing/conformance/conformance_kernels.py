"""Kernels under check: our own paths behind the signatures of `check_attention`, whole or from altered source."""

import inspect
from types import SimpleNamespace

import numpy as np

import refattn
from refattn.convbasis import basis
from refattn.convbasis.bounds import ROW_TOLERANCE
from refattn.convbasis.fast import gradients as fast_gradients
from refattn.convbasis.fast import softmax as fast
from refattn.convbasis.guarded import gradients
from refattn.convbasis.guarded import softmax as guarded
from refattn.sparsek import _problem, operator, prefix


def altered(module, *replacements):
    """A module's own source with lines replaced, as a module."""
    source = inspect.getsource(module)
    for right, wrong in replacements:
        assert right in source, f"no longer in {module.__name__}: {right}"
        source = source.replace(right, wrong)
    namespace = {"__name__": module.__name__, "__file__": module.__file__}
    exec(compile(source, f"altered {module.__name__}", "exec"), namespace)
    return SimpleNamespace(**namespace)


def rule(causal, mask):
    return ("causal" if causal else "full",) + (() if mask is None else (mask,))


def attention(q, k, v, *, causal, scale, mask):
    """What a NumPy user writes, with its sums in float32 at least; a mask may have the axes (B, H, n_q, n_k)."""
    given = q.dtype
    work = np.promote_types(given, np.float32) if given.kind == "f" else np.dtype(np.float32)
    q, k, v = (x.astype(work) for x in (q, k, v))
    k, v = (np.repeat(x, q.shape[1] // k.shape[1], axis=1) for x in (k, v))
    allowed = np.tri(q.shape[-2], k.shape[-2], dtype=bool) if causal else np.ones((q.shape[-2], k.shape[-2]), bool)
    if mask is not None:
        allowed = allowed & mask
    logits = np.where(allowed, q @ k.swapaxes(-1, -2) * work.type(scale), -np.inf)
    weights = np.exp(logits - np.maximum(logits.max(axis=-1, keepdims=True), np.finfo(work).min))
    total = weights.sum(axis=-1, keepdims=True)
    return (weights / np.where(total > 0, total, 1) @ v).astype(given)


def dense(module=refattn):
    """Exact attention and its backward, from a module like `refattn.dense`."""

    def forward(q, k, v, *, causal, scale, mask):
        return module.dense_attention_forward(q, k, v, mask=rule(causal, mask), scale=scale)[0]

    def backward(dout, q, k, v, *, causal, scale, mask):
        _, cache = module.dense_attention_forward(q, k, v, mask=rule(causal, mask), scale=scale)
        return tuple(module.dense_attention_backward(dout, cache))

    return forward, backward


def conv_heads(one_head):
    """Run a computation of one head, which returns arrays of q's, k's or v's kind, on all of them."""

    def run(arrays, shapes, **options):
        totals = [np.zeros(shape, arrays[-1].dtype) for shape in shapes]
        q, k = arrays[-3], arrays[-2]
        for b, h in np.ndindex(q.shape[:2]):
            group = q.shape[1] // k.shape[1]
            own = [a[b, h if a.shape[1] == q.shape[1] else h // group] for a in arrays]
            for total, result in zip(totals, one_head(*own, **options), strict=True):
                total[b, h if total.shape[1] == q.shape[1] else h // group] += result
        return totals

    return run


def conv(guarded=guarded, gradients=gradients, basis=basis, gradient="approximation_gradient"):
    """Algorithm 1 and the derivative of conv attention, from modules like the paper's path."""

    def tolerance(v):
        return ROW_TOLERANCE[v.dtype.name]

    def forward_head(q, k, v, *, starts, scale):
        found = basis.basis_from_starts(q, k, starts, scale=scale)
        return (guarded.Softmax(found, None, tolerance(v)).apply(v),)

    def backward_head(dout, q, k, v, *, starts, scale):
        found = basis.basis_from_starts(q, k, starts, scale=scale)
        softmax = guarded.Softmax(found, None, tolerance(v))
        return getattr(gradients, gradient)(dout, softmax.apply(v), q, k, v, softmax, scale)

    def forward(q, k, v, **options):
        return conv_heads(forward_head)([q, k, v], [(*q.shape[:-1], v.shape[-1])], **options)[0]

    def backward(dout, q, k, v, **options):
        return conv_heads(backward_head)([dout, q, k, v], [q.shape, k.shape, v.shape], **options)

    return forward, backward


def conv_fast(module, plan):
    """Conv attention by the fast path, from a module like `refattn.convbasis.fast.softmax`; forward only."""

    def forward_head(q, k, v, *, starts, scale):
        out = np.empty_like(v)
        found = basis.basis_from_starts(q, k, starts, scale=scale)
        module.FastSoftmax(found, None, plan, v.shape[1], ROW_TOLERANCE[v.dtype.name]).write(v, out)
        return (out,)

    return lambda q, k, v, **x: conv_heads(forward_head)([q, k, v], [(*q.shape[:-1], v.shape[-1])], **x)[0]


def conv_fast_backward(plan):
    """The derivative of conv attention by the fast path."""

    def backward_head(dout, q, k, v, *, starts, scale):
        found = basis.basis_from_starts(q, k, starts, scale=scale)
        softmax = fast.FastSoftmax(found, None, plan, v.shape[1], ROW_TOLERANCE[v.dtype.name])
        return fast_gradients.approximation_gradient(dout, softmax.product(v)[0], q, k, v, softmax, scale)

    def backward(dout, q, k, v, **options):
        return conv_heads(backward_head)([dout, q, k, v], [q.shape, k.shape, v.shape], **options)

    return backward


def conv_public(method):
    """`refattn.conv_attention` by a method; forward only."""

    def forward(q, k, v, *, starts, scale):
        group = q.shape[1] // k.shape[1]
        heads = [
            [basis.basis_from_starts(q[b, h], k[b, h // group], starts, scale=scale) for h in range(q.shape[1])]
            for b in range(q.shape[0])
        ]
        stack = refattn.ConvBasis(
            np.stack([[one.starts for one in row] for row in heads]),
            np.stack([[one.kernels for one in row] for row in heads]),
        )
        return refattn.conv_attention(q, k, v, basis=stack, method=method)

    return forward


def sparsek_public(method):
    """`refattn.sparsek_attention` and its backward by a method."""

    def forward(q, k, v, scores, **options):
        return refattn.sparsek_attention(q, k, v, scores, method=method, **options)

    def backward(dout, q, k, v, scores, **options):
        _, cache = refattn.sparsek_attention_forward(q, k, v, scores, method=method, **options)
        return tuple(refattn.sparsek_attention_backward(dout, cache))

    return forward, backward


def sparsek(module, **changed):
    """SparseK attention from a module like `refattn.sparsek.paper`, with options changed on the way."""

    def problem(q, k, v, scores, options):
        moved = {x: change(options[x]) for x, change in changed.items()}
        return _problem.as_problem(q, k, v, scores, **{**options, **moved}, check_finite=True)

    def forward(q, k, v, scores, **options):
        checked = problem(q, k, v, scores, options)
        return module.forward(checked).reshape(*checked.layout.inner, -1, v.shape[-1]).reshape(*q.shape[:-1], -1)

    def backward(dout, q, k, v, scores, **options):
        checked = problem(q, k, v, scores, options)
        layout, dtype = checked.layout, q.dtype
        heads = layout.expand_queries(dout).reshape(-1, *dout.shape[-2:])
        dq, dk, dv, dz = (g.reshape(*layout.inner, *g.shape[1:]).astype(dtype) for g in module.backward(heads, checked))
        return (
            layout.reduce_queries(dq, q.shape),
            layout.reduce_keys(dk, k.shape),
            layout.reduce_keys(dv, v.shape),
            layout.reduce_keys(dz[..., None], (*scores.shape, 1))[..., 0],
        )

    return forward, backward


def sparsek_operator(module=operator):
    """The operator and its pullback."""

    def backward(dp, z, *, k):
        return module.sparsek_vjp(module.sparsek_operator(z, k), dp).z

    return lambda z, *, k: module.sparsek_operator(z, k), backward


def thresholds(module=prefix, method="paper"):
    """Thresholds of all prefixes."""
    return (lambda z, *, k: module.prefix_thresholds(z, k, method=method)), None
