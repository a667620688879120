"""Exact attention from its formula, which shares nothing with the package, and the tables and checks of these tests."""

import itertools
import math

import mpmath
import numpy as np
import pytest

from refattn import Causal, SlidingWindow, dense_attention_backward, dense_attention_forward
from refattn.testing import check_gradients, row_errors, tolerance

INF = math.inf


def definition(q, k, v, mask, *, scale=None, softcap=None, field=math):
    """Attention of one head, entry by entry: rows of the output, and the log-sum-exp of each row.

    ``mask(i, j)`` is what is added to the logit, −inf where key j is hidden from query i. ``field`` is ``math``, or
    ``mpmath.mp`` for its working precision.
    """
    number = float if field is math else field.mpf
    q, k, v = ([[number(x) for x in row] for row in array] for array in (q, k, v))
    scale = 1 / field.sqrt(number(len(q[0]))) if scale is None else number(scale)
    out, lse = [], []
    for i, query in enumerate(q):
        logits = {}
        for j, key in enumerate(k):
            if mask(i, j) == -INF:
                continue
            logit = scale * field.fsum(a * b for a, b in zip(query, key, strict=True))
            if softcap is not None:
                logit = softcap * field.tanh(logit / softcap)
            logits[j] = logit + number(mask(i, j))
        top = max(logits.values(), default=0)
        weights = {j: field.exp(logit - top) for j, logit in logits.items()}
        total = field.fsum(weights.values())
        out.append([field.fsum(w / total * v[j][c] for j, w in weights.items()) for c in range(len(v[0]))])
        lse.append(top + field.log(total) if weights else -INF)
    return np.array(out), np.array(lse)  # of mpmath's numbers where they are the field


def hidden_unless(seen):
    return lambda i, j: 0.0 if seen(i, j) else -INF


_rng = np.random.default_rng(2024)
BOOLEAN = _rng.random((5, 7)) < 0.6
BOOLEAN[2] = False
BIAS = np.where(_rng.random((5, 7)) < 0.7, _rng.standard_normal((5, 7)), -INF)
BIAS[4] = -INF
SLOPE = -0.5 * np.arange(7.0)

# name: mask as the package takes it, n_q, n_k, and the same mask from its definition
MASKS = {
    "full": ("full", 5, 7, lambda i, j: 0.0),
    "no condition at all": ((), 5, 7, lambda i, j: 0.0),
    "causal": ("causal", 6, 6, hidden_unless(lambda i, j: j <= i)),
    "causal, top-left": (Causal("top-left"), 5, 7, hidden_unless(lambda i, j: j <= i)),
    "causal, bottom-right": (Causal("bottom-right"), 5, 7, hidden_unless(lambda i, j: j <= i + 2)),
    "causal, bottom-right, more queries": (Causal("bottom-right"), 7, 5, hidden_unless(lambda i, j: j <= i - 2)),
    "causal, offset 1": (Causal(1), 5, 7, hidden_unless(lambda i, j: j <= i + 1)),
    "causal, offset -3": (Causal(-3), 6, 6, hidden_unless(lambda i, j: j <= i - 3)),
    "window 2": (SlidingWindow(2), 6, 6, hidden_unless(lambda i, j: i - 2 < j <= i)),
    "window 2, 1 sink": (SlidingWindow(2, sinks=1), 6, 6, hidden_unless(lambda i, j: i - 2 < j <= i or j == 0)),
    "window 0, 2 sinks": (SlidingWindow(0, sinks=2), 6, 6, hidden_unless(lambda i, j: j < 2 and j <= i)),
    "window 3, bottom-right": (
        SlidingWindow(3, alignment="bottom-right"),
        5,
        7,
        hidden_unless(lambda i, j: i - 1 < j <= i + 2),
    ),
    "window 1, 3 sinks, offset 1": (
        SlidingWindow(1, sinks=3, alignment=1),
        5,
        7,
        hidden_unless(lambda i, j: j == i + 1 or (j < 3 and j <= i + 1)),
    ),
    "boolean": (BOOLEAN, 5, 7, hidden_unless(lambda i, j: BOOLEAN[i, j])),
    "boolean over keys": (BOOLEAN[0], 5, 7, hidden_unless(lambda i, j: BOOLEAN[0, j])),
    "additive": (BIAS, 5, 7, lambda i, j: BIAS[i, j]),
    "additive over keys": (SLOPE, 5, 7, lambda i, j: SLOPE[j]),
    "all of causal, boolean and two additive": (
        (Causal("bottom-right"), BOOLEAN, BIAS, SLOPE),
        5,
        7,
        lambda i, j: BIAS[i, j] + SLOPE[j] if j <= i + 2 and BOOLEAN[i, j] else -INF,
    ),
}

# leading axes of q, k and v
LAYOUTS = {
    "one head": ((), (), ()),
    "batch": ((2,), (2,), (2,)),
    "batch and heads": ((2, 3), (2, 3), (2, 3)),
    "queries broadcast": ((3, 1, 2), (2, 1), (1, 2)),
    "one query head": ((1,), (3,), (3,)),
    "one key-value head": ((2, 4), (2, 1), (2, 1)),
    "grouped": ((2, 4), (2, 2), (2, 2)),
    "grouped in threes": ((6,), (2,), (2,)),
    "grouped, values shared": ((4,), (2,), (1,)),
    "grouped, keys without heads": ((4,), (), (2,)),
    "grouped, batch in keys only": ((4,), (3, 2), (2,)),
    "grouped, batch in values only": ((1, 4), (2,), (3, 2)),
    "grouped, crossing batches": ((2, 1, 4), (1, 3, 2), (2, 1, 1)),
}
OPTIONS = {
    "plain": {},
    "scale": {"scale": 0.3},
    "negative scale": {"scale": -1.1},
    "softcap": {"softcap": 0.7},
    "softcap and scale": {"softcap": 1.5, "scale": 2.0},
}


def ids(table):
    return [pytest.param(name, id=name.replace(" ", "_")) for name in table]


def normal(*shapes, seed=0, dtype=np.float64):
    rng = np.random.default_rng(seed)
    return tuple(rng.standard_normal(shape).astype(dtype) for shape in shapes)


def inputs(layout, n_q, n_k, *, d=3, d_v=2, seed=0, dtype=np.float64):
    lead_q, lead_k, lead_v = LAYOUTS[layout]
    return normal((*lead_q, n_q, d), (*lead_k, n_k, d), (*lead_v, n_k, d_v), seed=seed, dtype=dtype)


def head(array, index, lead):
    """The matrix that the output's head `index` uses: query head h meets key-value head ``h // (H / H_kv)``."""
    own = array.shape[:-2]
    skipped = len(lead) - len(own)
    return array[tuple(i * m // n for i, m, n in zip(index[skipped:], own, lead[skipped:], strict=True))]


def definition_of_heads(q, k, v, mask, **options):
    """`definition`, head by head."""
    lead = tuple(max(sizes) for sizes in itertools.zip_longest(*(a.shape[-3::-1] for a in (q, k, v)), fillvalue=1))[
        ::-1
    ]
    out, lse = np.empty((*lead, q.shape[-2], v.shape[-1])), np.empty((*lead, q.shape[-2]))
    for index in np.ndindex(lead):
        out[index], lse[index] = definition(*(head(a, index, lead) for a in (q, k, v)), mask, **options)
    return out, lse


def gradients_of(implementation, arrays, **options):
    """What the gradient checks take: the function, and its gradients at `arrays`."""
    _, cache = implementation.dense_attention_forward(*arrays, **options)
    return (
        lambda q, k, v: implementation.dense_attention(q, k, v, **options),
        lambda upstream: implementation.dense_attention_backward(upstream, cache)._asdict(),
        dict(zip("qkv", arrays, strict=True)),
    )


# --- the checks, which the planted errors have to fail ---------------------------------------------------------------


def check_masks(implementation, name, options=None, dtype=np.float64):
    mask, n_q, n_k, meaning = MASKS[name]
    options = options or {}
    q, k, v = inputs("one head", n_q, n_k, dtype=dtype)
    out, cache = implementation.dense_attention_forward(q, k, v, mask=mask, **options)
    expected, lse = definition(q, k, v, meaning, **options)
    rtol = tolerance("reordered", dtype).rtol
    assert out.dtype == cache.log_sum_exp.dtype == dtype
    assert row_errors(out, expected).max() <= rtol
    np.testing.assert_allclose(cache.log_sum_exp, lse, rtol=rtol, atol=rtol)


def check_layouts(implementation, layout):
    q, k, v = inputs(layout, 3, 3)
    out, cache = implementation.dense_attention_forward(q, k, v)
    expected, lse = definition_of_heads(q, k, v, hidden_unless(lambda i, j: j <= i))
    rtol = tolerance("reordered").rtol
    assert row_errors(out, expected).max() <= rtol
    np.testing.assert_allclose(cache.log_sum_exp, lse, rtol=rtol, atol=rtol)


def check_large_logits(implementation, largest):
    """Integers times a power of two: the logits are exact, so nothing but the softmax can lose digits."""
    rng = np.random.default_rng(5)
    q, k = rng.integers(-40, 41, (2, 5, 4)).astype(float)
    v = rng.standard_normal((5, 3))
    scale = 2.0 ** math.floor(math.log2(largest / np.abs(q @ k.T).max()))
    out, cache = implementation.dense_attention_forward(q, k, v, mask="full", scale=scale)
    with mpmath.workdps(50):
        expected, lse = definition(q, k, v, lambda i, j: 0.0, scale=scale, field=mpmath.mp)
    assert row_errors(out, expected).max() <= 1e-14  # a few roundings of weights that add up to one
    np.testing.assert_allclose(cache.log_sum_exp, lse.astype(float), rtol=tolerance("rounding").rtol)


def check_long(implementation, mask, scale):
    """Several tiles of queries and keys, against the oracle."""
    q, k, v, dout = normal(*[(1100, 4)] * 4, seed=7)
    expected, right = dense_attention_forward(q, k, v, mask=mask, scale=scale, method="oracle")
    out, cache = implementation.dense_attention_forward(q, k, v, mask=mask, scale=scale)
    rtol = max(scale, 1) * tolerance("reordered").rtol
    assert row_errors(out, expected).max() <= rtol
    np.testing.assert_allclose(cache.log_sum_exp, right.log_sum_exp, rtol=rtol, atol=rtol)
    for one, other in zip(
        implementation.dense_attention_backward(dout, cache), dense_attention_backward(dout, right), strict=True
    ):
        np.testing.assert_allclose(one, other, rtol=0, atol=rtol * np.abs(other).max())


def check_derivatives(implementation, layout, mask, n_q, n_k, **options):
    arrays = inputs(layout, n_q, n_k, seed=3)
    check_gradients(
        *gradients_of(implementation, arrays, mask=mask, **options), rtol=tolerance("differences").rtol, directions=2
    )
