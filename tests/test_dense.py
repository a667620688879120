"""Exact attention against its definition: scalar loops, 50 digits, central differences, PyTorch, and planted errors.

Everything is compared with `definition`, which is written from the formula and shares nothing with the package.
"""

import inspect
import itertools
import math
from types import SimpleNamespace

import mpmath
import numpy as np
import pytest

import refattn.dense
from refattn import Causal, SlidingWindow, dense_attention, dense_attention_backward, dense_attention_forward
from refattn._heads import HeadLayout
from refattn.testing import GradientMismatchError, check_gradients, check_jacobian, row_errors, tolerance

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


def check_derivatives(implementation, layout, mask, n_q, n_k, **options):
    arrays = inputs(layout, n_q, n_k, seed=3)
    check_gradients(
        *gradients_of(implementation, arrays, mask=mask, **options), rtol=tolerance("differences").rtol, directions=2
    )


# --- forward ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float32, np.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("options", ids(OPTIONS))
@pytest.mark.parametrize("mask", ids(MASKS))
def test_output_and_log_sum_exp_follow_the_definition_under_every_mask(mask, options, dtype):
    check_masks(refattn.dense, mask, OPTIONS[options], dtype)


@pytest.mark.parametrize("layout", ids(LAYOUTS))
def test_heads_are_shared_and_axes_broadcast_as_the_definition_says(layout):
    check_layouts(refattn.dense, layout)


@pytest.mark.parametrize("largest", [50, 700, 1e4, 1e8, 1e300], ids=str)
def test_exact_logits_of_any_size_give_50_digit_results_to_rounding(largest):
    check_large_logits(refattn.dense, largest)


@pytest.mark.parametrize("deviation", [1, 4, 16], ids=str)
def test_wide_dynamic_range_agrees_with_50_digits(deviation):
    q, k, v = inputs("one head", 5, 5, d=8)
    q, v = q * deviation, v * np.logspace(-12, 12, v.size).reshape(v.shape)
    with mpmath.workdps(50):
        expected, lse = definition(q, k, v, hidden_unless(lambda i, j: j <= i), field=mpmath.mp)
    out, cache = dense_attention_forward(q, k, v)
    assert row_errors(out, expected).max() <= tolerance("reordered").rtol
    np.testing.assert_allclose(cache.log_sum_exp, lse.astype(float), rtol=1e-13, atol=1e-13)  # d roundings of a logit


@pytest.mark.parametrize("shape", [(9, 9), (4, 6), (9, 1, 6), (1, 9, 4, 6)], ids=str)
@pytest.mark.parametrize("kind", ["boolean", "additive"])
def test_array_masks_belong_to_the_query_heads_under_grouping(shape, kind):
    q, k, v = normal((2, 9, shape[-2], 3), (2, 3, shape[-1], 3), (2, 3, shape[-1], 2))
    rng = np.random.default_rng(1)
    mask = rng.random(shape) < 0.7 if kind == "boolean" else rng.standard_normal(shape)
    added = np.broadcast_to(np.where(mask, 0.0, -INF) if kind == "boolean" else mask, (2, 9, q.shape[-2], k.shape[-2]))
    out = dense_attention(q, k, v, mask=mask)
    for b, h in np.ndindex(2, 9):
        expected, _ = definition(q[b, h], k[b, h // 3], v[b, h // 3], lambda i, j, at=(b, h): added[(*at, i, j)])
        assert row_errors(out[b, h], expected).max() <= tolerance("reordered").rtol


@pytest.mark.parametrize("block", [1, 3, 4, 6, 7, 100, None], ids=str)
@pytest.mark.parametrize("mask", ids(MASKS))
def test_result_and_gradients_do_not_depend_on_the_block(mask, block):
    condition, n_q, n_k, _ = MASKS[mask]
    q, k, v = inputs("grouped", n_q, n_k)
    whole, whole_cache = dense_attention_forward(q, k, v, mask=condition, softcap=3.0, block=n_q)
    out, cache = dense_attention_forward(q, k, v, mask=condition, softcap=3.0, block=block)
    (dout,) = normal(out.shape, seed=9)
    rtol = tolerance("reordered").rtol
    assert row_errors(out, whole).max() <= rtol
    np.testing.assert_allclose(cache.log_sum_exp, whole_cache.log_sum_exp, rtol=rtol)
    for one, other in zip(
        dense_attention_backward(dout, cache), dense_attention_backward(dout, whole_cache), strict=True
    ):
        np.testing.assert_allclose(one, other, rtol=0, atol=rtol * np.abs(other).max())


def test_default_block_splits_long_inputs_and_repeats_bit_for_bit():
    q, k, v = normal((1500, 4), (1500, 4), (1500, 4))
    out, cache = dense_attention_forward(q, k, v)
    assert cache.block < 1500
    again, cache_again = dense_attention_forward(q, k, v)
    assert out.tobytes() == again.tobytes()
    for one, other in zip(
        dense_attention_backward(out, cache), dense_attention_backward(out, cache_again), strict=True
    ):
        assert one.tobytes() == other.tobytes()


@pytest.mark.parametrize("mask", ["causal", "full"])
def test_float32_error_is_at_most_twice_that_of_plain_float32(mask):
    q, k, v, dout = normal(*[(4, 65, 32)] * 4, dtype=np.float32)
    oracle, oracle_cache = dense_attention_forward(*(a.astype(np.float64) for a in (q, k, v)), mask=mask)
    oracle_gradients = dense_attention_backward(dout.astype(np.float64), oracle_cache)
    out, cache = dense_attention_forward(q, k, v, mask=mask)
    # plain float32, the textbook lines
    logits = q @ k.swapaxes(-1, -2) / np.sqrt(np.float32(32))
    if mask == "causal":
        logits[..., np.triu(np.ones((65, 65), bool), 1)] = -INF
    p = np.exp(logits - logits.max(-1, keepdims=True))
    p /= p.sum(-1, keepdims=True)
    dp = dout @ v.swapaxes(-1, -2)
    ds = p * (dp - (p * dp).sum(-1, keepdims=True)) / np.sqrt(np.float32(32))
    plain = (p @ v, ds @ k, ds.swapaxes(-1, -2) @ q, p.swapaxes(-1, -2) @ dout)
    ours = (out, *dense_attention_backward(dout, cache))
    for mine, textbook, right in zip(ours, plain, (oracle, *oracle_gradients), strict=True):
        assert mine.dtype == np.float32
        mine, textbook = row_errors(mine, right), row_errors(textbook, right)
        assert mine.max() <= 2 * textbook.max()
        assert np.median(mine) <= 2 * np.median(textbook)


# --- backward --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [OPTIONS["plain"], OPTIONS["softcap and scale"]], ids=["plain", "softcap"])
@pytest.mark.parametrize("mask", ids(MASKS))
def test_gradients_are_the_derivatives_under_every_mask(mask, options):
    condition, n_q, n_k, _ = MASKS[mask]
    check_derivatives(refattn.dense, "one head", condition, n_q, n_k, **options)


@pytest.mark.parametrize("block", [1, 2, None], ids=str)
@pytest.mark.parametrize("layout", ids(LAYOUTS))
def test_gradients_are_summed_over_shared_heads_and_broadcast_axes(layout, block):
    check_derivatives(refattn.dense, layout, "causal", 3, 3, block=block)


@pytest.mark.parametrize("options", [OPTIONS["plain"], OPTIONS["softcap"]], ids=["plain", "softcap"])
@pytest.mark.parametrize("mask", ["causal", "window 2, 1 sink", "additive", "causal, bottom-right, more queries"])
def test_every_entry_of_the_jacobian_is_right(mask, options):
    condition, n_q, n_k, _ = MASKS[mask]
    arrays = inputs("one head", n_q, n_k, seed=4)
    checks = gradients_of(refattn.dense, arrays, mask=condition, **options)
    check_jacobian(*checks, rtol=tolerance("differences").rtol)


@pytest.mark.parametrize("softcap", [None, 0.05], ids=["plain", "saturated_softcap"])
def test_gradients_agree_with_50_digit_differences(softcap):
    arrays = dict(zip("qkv", inputs("one head", 3, 3, d=2), strict=True))
    causal = hidden_unless(lambda i, j: j <= i)
    (dout,) = normal((3, 2), seed=8)
    _, cache = dense_attention_forward(**arrays, softcap=softcap)
    gradients = dense_attention_backward(dout, cache)._asdict()
    with mpmath.workdps(50):
        h = mpmath.mpf("1e-20")

        def loss(name, entry, shift):
            moved = {n: [[mpmath.mpf(x) for x in row] for row in a] for n, a in arrays.items()}
            moved[name][entry[0]][entry[1]] += shift
            out, _ = definition(**moved, mask=causal, softcap=softcap, field=mpmath.mp)
            return mpmath.fdot(dout.ravel(), out.ravel())

        for name, array in arrays.items():
            exact = np.empty_like(array)
            for entry in np.ndindex(array.shape):
                exact[entry] = (loss(name, entry, h) - loss(name, entry, -h)) / (2 * h)
            np.testing.assert_allclose(gradients[name], exact, rtol=0, atol=1e-14 * np.abs(exact).max())


@pytest.mark.parametrize("layout", ["batch and heads", "grouped", "grouped in threes"])
@pytest.mark.parametrize("mask", ["full", "causal", "window 2, 1 sink", "boolean over keys", "additive over keys"])
def test_output_and_gradients_agree_with_pytorch(mask, layout):
    torch = pytest.importorskip("torch")
    condition, n_q, n_k, meaning = MASKS[mask]
    arrays = inputs(layout, n_q, n_k, d=4, d_v=4)
    out, cache = dense_attention_forward(*arrays, mask=condition)
    (dout,) = normal(out.shape, seed=6)
    leaves = [torch.tensor(a, requires_grad=True) for a in arrays]
    added = torch.tensor([[meaning(i, j) for j in range(n_k)] for i in range(n_q)], dtype=torch.float64)
    batched = [a if a.ndim == 4 else a[None] for a in leaves]
    peer = torch.nn.functional.scaled_dot_product_attention(*batched, attn_mask=added, enable_gqa=True)
    peer.reshape(out.shape).backward(torch.tensor(dout))
    rtol = tolerance("reordered").rtol
    assert row_errors(out, peer.detach().numpy().reshape(out.shape)).max() <= rtol
    for gradient, leaf in zip(dense_attention_backward(dout, cache), leaves, strict=True):
        right = leaf.grad.numpy()
        np.testing.assert_allclose(gradient, right, rtol=0, atol=rtol * np.abs(right).max())


@pytest.mark.parametrize("dtype", [np.float32, np.float64], ids=["float32", "float64"])
@pytest.mark.parametrize(
    "mask",
    [np.zeros((5, 5), bool), np.full((5, 5), -INF), (np.eye(5, dtype=bool), ~np.eye(5, dtype=bool)), Causal(-5)],
    ids=["boolean", "additive", "disjoint_pair", "causal_offset"],
)
def test_fully_masked_rows_give_zeros_and_zero_gradients(mask, dtype):
    q, k, v = inputs("grouped", 5, 5, dtype=dtype)
    out, cache = dense_attention_forward(q, k, v, mask=mask)
    assert not out.any()
    assert (cache.log_sum_exp == -INF).all()
    assert not any(g.any() for g in dense_attention_backward(np.ones_like(out), cache))


def test_one_fully_masked_row_leaves_the_others_alone():
    q, k, v = inputs("one head", 5, 5)
    seen = np.tri(5, dtype=bool)
    seen[3] = False
    out, cache = dense_attention_forward(q, k, v, mask=seen)
    rest = np.arange(5) != 3
    np.testing.assert_allclose(out[rest], dense_attention(q, k, v)[rest], rtol=tolerance("rounding").rtol)
    only_masked_row = np.where(rest[:, None], 0.0, 1.0) * np.ones_like(out)
    assert not any(g.any() for g in dense_attention_backward(only_masked_row, cache))


# --- identities ------------------------------------------------------------------------------------------------------


def test_permuting_keys_with_their_values_changes_nothing():
    q, k, v = inputs("batch", 6, 6)
    order = np.random.default_rng(1).permutation(6)
    moved = dense_attention(q, k[..., order, :], v[..., order, :], mask="full")
    assert row_errors(moved, dense_attention(q, k, v, mask="full")).max() <= tolerance("reordered").rtol


def test_a_shift_common_to_all_keys_cancels():
    q, k, v = inputs("one head", 6, 6)
    shifted = dense_attention(q, k + np.array([3.0, -2.0, 5.0]), v)
    assert row_errors(shifted, dense_attention(q, k, v)).max() <= tolerance("reordered").rtol


@pytest.mark.parametrize("shift", [1e3, -1e3], ids=str)
def test_a_constant_added_to_a_row_of_logits_cancels(shift):
    q, k, v = inputs("one head", 6, 6)
    shifted, cache = dense_attention_forward(q, k, v, mask=("causal", np.full((6, 6), shift)))
    expected, plain = dense_attention_forward(q, k, v)
    assert row_errors(shifted, expected).max() <= tolerance("reordered").rtol
    np.testing.assert_allclose(cache.log_sum_exp, plain.log_sum_exp + shift, rtol=tolerance("rounding").rtol)


@pytest.mark.parametrize("dtype", [np.float32, np.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("block", [1, 7, None], ids=str)
@pytest.mark.parametrize("t", [1, 32, 64], ids=str)
def test_changing_the_future_changes_no_past_row_in_any_bit(t, block, dtype):
    q, k, v = normal((2, 65, 64), (2, 65, 64), (2, 65, 16), dtype=dtype)
    out = dense_attention(q, k, v, block=block)
    for future in (0.0, -1e3, np.finfo(dtype).max / 2):
        q2, k2, v2 = q.copy(), k.copy(), v.copy()
        k2[:, t:], v2[:, t:] = future, future
        q2[:, t:] = 0.0
        assert dense_attention(q2, k2, v2, block=block)[:, :t].tobytes() == out[:, :t].tobytes()


@pytest.mark.parametrize("t", [1, 32, 64], ids=str)
def test_the_loss_of_past_rows_sends_no_gradient_to_the_future(t):
    q, k, v = normal((65, 8), (65, 8), (65, 8))
    out, cache = dense_attention_forward(q, k, v)
    dout = np.where(np.arange(65)[:, None] < t, 1.0, 0.0) * np.ones_like(out)
    assert not any(g[t:].any() for g in dense_attention_backward(dout, cache))


@pytest.mark.parametrize("window", [6, 7, 10**9], ids=str)
def test_a_window_of_at_least_n_is_causal(window):
    q, k, v = inputs("batch", 6, 6)
    assert np.array_equal(dense_attention(q, k, v, mask=SlidingWindow(window)), dense_attention(q, k, v))


@pytest.mark.parametrize("mask", ids(MASKS))
def test_weights_of_every_row_that_sees_a_key_sum_to_one(mask):
    condition, n_q, n_k, meaning = MASKS[mask]
    q, k, _ = inputs("one head", n_q, n_k)
    sees = [any(meaning(i, j) > -INF for j in range(n_k)) for i in range(n_q)]
    out = dense_attention(q * 20, k, np.ones((n_k, 1)), mask=condition)
    np.testing.assert_allclose(out[:, 0], np.array(sees, float), rtol=tolerance("rounding").rtol)


def test_output_is_linear_in_the_values():
    q, k, v = inputs("one head", 6, 6)
    assert np.array_equal(dense_attention(q, k, 4 * v), 4 * dense_attention(q, k, v))


def test_a_boolean_mask_is_an_additive_one_of_zeros_and_minus_infinity():
    q, k, v = inputs("grouped", 5, 7)
    additive = dense_attention(q, k, v, mask=np.where(BOOLEAN, 0.0, -INF))
    assert np.array_equal(additive, dense_attention(q, k, v, mask=BOOLEAN))


def test_hiding_keys_equals_leaving_them_out():
    q, k, v = inputs("batch", 6, 6)
    seen = np.array([True, False, True, True, False, True])
    left_out = dense_attention(q, k[:, seen], v[:, seen], mask="full")
    assert row_errors(dense_attention(q, k, v, mask=seen), left_out).max() <= tolerance("reordered").rtol


# --- memory: what goes in and what comes out -------------------------------------------------------------------------

VIEWS = {
    "fortran": np.asfortranarray,
    "strided": lambda a: np.repeat(np.repeat(a, 2, axis=-1), 3, axis=-2)[..., ::3, ::2],
    "reversed": lambda a: a[..., ::-1, ::-1].copy()[..., ::-1, ::-1],
    "transposed": lambda a: a.swapaxes(-1, -2).copy().swapaxes(-1, -2),
    "heads behind rows": lambda a: a.swapaxes(0, -2).copy().swapaxes(0, -2),
    "unaligned": lambda a: np.frombuffer(b"\0" + a.tobytes(), dtype=a.dtype, offset=1).reshape(a.shape),
    "big-endian": lambda a: a.astype(a.dtype.newbyteorder(">")),
    "list": lambda a: a.tolist(),
}


@pytest.mark.parametrize("view", ids(VIEWS))
def test_strides_order_and_byte_order_of_the_inputs_do_not_matter(view):
    arrays = inputs("grouped", 6, 6)
    viewed = [VIEWS[view](a) for a in arrays]
    out, cache = dense_attention_forward(*arrays)
    same, same_cache = dense_attention_forward(*viewed)
    rtol = tolerance("reordered").rtol
    assert same.dtype == np.float64
    assert same.dtype.isnative
    assert row_errors(same, out).max() <= rtol
    (dout,) = normal(out.shape, seed=1)
    expected = dense_attention_backward(dout, cache)
    for one, other in zip(dense_attention_backward(VIEWS[view](dout), same_cache), expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=rtol * np.abs(other).max())


def test_zero_stride_inputs_are_read_as_what_they_show():
    q, k, v = (np.broadcast_to(a, (4, 6, 3)) for a in normal((6, 3), (4, 1, 3), (4, 6, 1)))
    out, cache = dense_attention_forward(q, k, v)
    copied, copied_cache = dense_attention_forward(q.copy(), k.copy(), v.copy())
    np.testing.assert_allclose(out, copied, rtol=0, atol=tolerance("rounding").rtol * np.abs(v).max())
    size = 3 * np.abs(out).max() * np.abs(v).max() * max(np.abs(q).max(), np.abs(k).max(), 1)  # of what is summed up
    for one, other in zip(
        dense_attention_backward(out, cache), dense_attention_backward(out, copied_cache), strict=True
    ):
        assert one.flags.writeable
        np.testing.assert_allclose(one, other, rtol=0, atol=tolerance("rounding").rtol * size)


@pytest.mark.parametrize("mask", ["causal", BOOLEAN[:, :5], BIAS[:, :5]], ids=["causal", "boolean", "additive"])
@pytest.mark.parametrize("layout", ids(LAYOUTS))
def test_inputs_are_never_written_to(layout, mask):
    q, k, v = inputs(layout, 5, 5)
    dout = np.ones_like(dense_attention(q, k, v))
    mask = mask if isinstance(mask, str) else mask.copy()
    arrays = [a for a in (q, k, v, dout, mask) if isinstance(a, np.ndarray)]
    before = [a.tobytes() for a in arrays]
    for array in arrays:
        array.flags.writeable = False
    _, cache = dense_attention_forward(q, k, v, mask=mask, softcap=2.0)
    dense_attention_backward(dout, cache)
    assert [a.tobytes() for a in arrays] == before


@pytest.mark.parametrize("layout", ids(LAYOUTS))
def test_results_are_fresh_writeable_and_contiguous(layout):
    arrays = inputs(layout, 4, 4)
    out, cache = dense_attention_forward(*arrays)
    gradients = dense_attention_backward(out, cache)
    for result in (out, *gradients, cache.log_sum_exp):
        assert result.flags.writeable
        assert result.flags.c_contiguous
        assert not any(np.shares_memory(result, a) for a in (*arrays, cache.row_max, cache.row_sum))
    assert [g.shape for g in gradients] == [a.shape for a in arrays]


def test_writing_to_the_output_does_not_change_the_gradients():
    out, cache = dense_attention_forward(*inputs("grouped", 5, 5))
    (dout,) = normal(out.shape, seed=1)
    expected = dense_attention_backward(dout, cache)
    out += 1.0
    assert all(np.array_equal(a, b) for a, b in zip(dense_attention_backward(dout, cache), expected, strict=True))


# --- the edges of the number format ----------------------------------------------------------------------------------


@pytest.mark.parametrize("softcap", [None, 1e-3, 1e3], ids=str)
@pytest.mark.parametrize("size", [0.0, 5e-324, 1e-300, 1.0, 1e2, 1e75], ids=str)
def test_finite_inputs_give_finite_results_without_a_floating_point_signal(size, softcap):
    q, k, v, dout = (size * a for a in normal(*[(6, 4)] * 4))
    with np.errstate(all="raise"):
        out, cache = dense_attention_forward(q, k, v, softcap=softcap)
        gradients = dense_attention_backward(dout, cache)
    assert all(np.isfinite(a).all() for a in (out, *gradients))


@pytest.mark.parametrize("size", [1e308, -1e308], ids=str)
def test_values_near_the_largest_number_do_not_overflow_in_their_average(size):
    q, k, _ = inputs("one head", 6, 6)
    out = dense_attention(q, k, np.full((6, 2), size))
    np.testing.assert_allclose(out, size, rtol=tolerance("rounding").rtol)


def test_logits_further_apart_than_the_largest_number_give_one_hot_weights():
    q, k = np.array([[1e308], [-1e308]]), np.array([[1.0], [-1.0]])
    v = np.array([[1.0], [2.0]])
    assert np.array_equal(dense_attention(q, k, v, mask="full"), [[1.0], [2.0]])


def test_a_finite_mask_as_low_as_float32_allows_hides_and_stays_finite():
    q, k, v = inputs("one head", 6, 6, dtype=np.float32)
    low = np.where(np.tri(6, dtype=bool), 0, np.finfo(np.float32).min)
    for dtype in (np.float32, np.float64):
        assert np.array_equal(dense_attention(q, k, v, mask=low.astype(dtype)), dense_attention(q, k, v))


@pytest.mark.parametrize("cap", [1.0, 10.0], ids=str)
def test_a_saturated_softcap_keeps_the_relative_accuracy_of_its_small_gradients(cap):
    q, k, v = np.full((1, 1), 12.0 * cap), np.array([[1.0], [1.25]]), np.array([[0.0], [1.0]])
    _, cache = dense_attention_forward(q, k, v, mask="full", softcap=cap, scale=1.0)
    gradient = dense_attention_backward(np.ones((1, 1)), cache).q.item()
    with mpmath.workdps(50):

        def weight(x):
            first, second = (mpmath.exp(cap * mpmath.tanh(x * key / cap)) for key in (1, mpmath.mpf("1.25")))
            return second / (first + second)

        assert gradient == pytest.approx(float(mpmath.diff(weight, 12 * cap)), rel=1e-13)


# --- planted errors --------------------------------------------------------------------------------------------------


def mutant(*replacements):
    """The package's own source with lines replaced, as a module."""
    source = inspect.getsource(refattn.dense)
    for right, wrong in replacements:
        assert source.count(right) >= 1, f"no longer in dense.py: {right}"
        source = source.replace(right, wrong)
    namespace = {"__name__": "refattn.dense"}
    exec(compile(source, "mutant of dense.py", "exec"), namespace)
    return SimpleNamespace(**namespace)


def all_checks(implementation):
    """The checks of this module at one point of each table; raises at the first that fails."""
    check_masks(implementation, "all of causal, boolean and two additive", {"softcap": 0.7})
    check_masks(implementation, "causal")
    check_masks(implementation, "window 2, 1 sink")
    check_masks(implementation, "causal, bottom-right, more queries")
    check_layouts(implementation, "grouped")
    check_large_logits(implementation, 1e4)
    check_derivatives(implementation, "grouped", "causal", 3, 3, softcap=1.5, block=2)


FORWARD_MUTANTS = {
    "scale missing": [("as_scale(scale, q.shape[-1], q.dtype)", "1.0")],
    "scale 0.1 % off": [("as_scale(scale, q.shape[-1], q.dtype)", "1.001 * as_scale(scale, q.shape[-1], q.dtype)")],
    "row not divided by its sum": [("np.divide(weights, total, out=weights, where=total > 0)", "pass")],
    "unstable softmax": [("np.copyto(largest, 0, where=largest == -np.inf)", "largest[...] = 0")],
    "masked rows keep a weight": [
        ("np.copyto(logits, -np.inf, where=~allowed)", "np.copyto(logits, -9.0, where=~allowed)")
    ],
    "softcap missing": [("if softcap is not None:", "if False:")],
    "softcap before division": [("np.divide(logits, softcap, out=logits)", "pass")],
    "only one additive mask applied": [("for bias in mask.biases:", "for bias in mask.biases[:1]:")],
    "last row left out": [
        ("slice(start, min(start + step, n))", "slice(start, min(start + step, n - 1))"),
        ("np.empty", "np.zeros"),  # or the row may hold what an earlier, right result left in memory
    ],
    "log-sum-exp without the largest logit": [("self.row_max + np.log", "np.log")],
}
BACKWARD_MUTANTS = {
    "gradient of q 0.1 % off": [("np.matmul(dlogits, k, out", "np.matmul(1.001 * dlogits, k, out")],
    "gradient of k 0.1 % off": [("dk += dk_part", "dk += 1.001 * dk_part")],
    "gradient of v 0.1 % off": [("dv += dv_part", "dv += 1.001 * dv_part")],
    "gradient of k transposed": [
        (
            "return dlogits.swapaxes(-1, -2) @ q[..., rows, :], dv_part",
            "part = np.zeros_like(dk); part[..., rows, :] = dlogits @ q; return part, dv_part",
        )
    ],
    "softmax correction dropped": [("dlogits -= (weights * dlogits).sum(axis=-1, keepdims=True)", "pass")],
    "softmax correction halved": [("dlogits -= (weights", "dlogits -= 0.5 * (weights")],
    "scale missing from the gradient": [("dlogits *= np.asarray(scale, dlogits.dtype)", "pass")],
    "slope of the softcap dropped": [("dlogits *= slope", "pass")],
    "gradient of the last block only": [("dk += ", "dk[...] = ")],
    "shared heads averaged": [("layout.reduce_keys(dv, cache.v.shape)", "layout.reduce_keys(dv, cache.v.shape) / 2")],
}


def test_the_unchanged_source_passes_every_check():
    all_checks(mutant())


@pytest.mark.parametrize("planted", ids(FORWARD_MUTANTS))
def test_a_planted_error_in_the_forward_is_caught(planted):
    wrong = mutant(*FORWARD_MUTANTS[planted])
    with pytest.raises((AssertionError, ValueError)):  # a wrong result, or one that is refused as not finite
        all_checks(wrong)


@pytest.mark.parametrize("planted", ids(BACKWARD_MUTANTS))
def test_a_planted_error_in_the_backward_is_caught_by_central_differences(planted):
    wrong = mutant(*BACKWARD_MUTANTS[planted])
    with pytest.raises(GradientMismatchError, match="direction"):
        all_checks(wrong)


@pytest.mark.parametrize("shift", [-1, 1], ids=str)
@pytest.mark.parametrize("pattern", [Causal, SlidingWindow], ids=["causal", "window"])
def test_a_mask_off_by_one_is_caught(monkeypatch, pattern, shift):
    right = pattern.allowed
    monkeypatch.setattr(
        pattern,
        "allowed",
        lambda self, rows, n_q, n_k: right(self, slice(rows.start + shift, rows.stop + shift), n_q, n_k),
    )
    with pytest.raises(AssertionError):
        all_checks(refattn.dense)


def test_heads_grouped_by_remainder_are_caught(monkeypatch):
    split, merge = HeadLayout.split_heads, HeadLayout.merge

    def remainder(lead, group):  # query head h meets key-value head h % H_kv
        heads_kv = lead[-1] // group
        return [h + heads_kv * g for h in range(heads_kv) for g in range(group)]

    def wrong_split(self, array):
        if self.group > 1 and array.ndim > 2 and array.shape[-3] == self.lead[-1]:
            array = array[..., remainder(self.lead, self.group), :, :]
        return split(self, array)

    def wrong_merge(self, array):
        merged = merge(self, array)
        return merged[..., np.argsort(remainder(self.lead, self.group)), :, :] if self.group > 1 else merged

    monkeypatch.setattr(HeadLayout, "split_heads", wrong_split)
    monkeypatch.setattr(HeadLayout, "merge", wrong_merge)
    check_derivatives(refattn.dense, "grouped", "causal", 3, 3)  # consistent with itself, so only the definition tells
    with pytest.raises(AssertionError):
        check_layouts(refattn.dense, "grouped")
