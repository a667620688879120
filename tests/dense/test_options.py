"""Bias, sinks, dropout and the log-sum-exp as an output: the definition, differences, PyTorch, both methods."""

import numpy as np
import pytest
from dense_definition import INF, inputs, normal

from refattn import Causal, SlidingWindow, dense_attention, dense_attention_backward, dense_attention_forward
from refattn.masks import Alibi, KeyBlocks, KeyIndices, KeyPadding, Packed
from refattn.testing import row_errors, tolerance

N_Q, N_K = 5, 7
LAYOUTS = {"one head": ((), ()), "grouped": ((2, 4), (2, 2)), "batch broadcast": ((3, 1), (2,))}
BIASES = {
    "(n_q, n_k)": (N_Q, N_K),
    "(n_k,)": (N_K,),
    "(n_q, 1)": (N_Q, 1),
    "()": (),
    "per head": (4, 1, N_K),
    "per batch": (2, 1, N_Q, N_K),
    "whole": (2, 4, N_Q, N_K),
}
SINKS = {"()": (), "(H,)": (4,), "(B, 1)": (2, 1), "(B, H)": (2, 4)}


def definition(q, k, v, *, seen, bias=0.0, sinks=None, keep=True, dropout=0.0, softcap=None):
    """Output and log-sum-exp, from the sentences that define them, for heads that were repeated already."""
    logits = q @ k.swapaxes(-1, -2) / np.sqrt(q.shape[-1])
    if softcap:
        logits = softcap * np.tanh(logits / softcap)
    exponentials = np.where(seen, np.exp(logits + bias), 0)
    total = exponentials.sum(-1, keepdims=True)
    if sinks is not None:
        total = total + np.exp(sinks)[..., None, None]
    with np.errstate(divide="ignore", invalid="ignore"):
        weights = np.where(total > 0, exponentials / total, 0)
        return (weights * keep / (1 - dropout)) @ v, np.log(total)[..., 0]


def problem(layout, *, bias=None, sinks=None, dropout=None, seed=0, dtype=np.float64):
    """Inputs by name, and which keys are seen, with a row that sees none."""
    lead, kv_lead = LAYOUTS[layout]
    rng = np.random.default_rng(seed)
    shapes = {"q": (*lead, N_Q, 3), "k": (*kv_lead, N_K, 3), "v": (*kv_lead, N_K, 2)}
    given = {name: rng.standard_normal(shape) for name, shape in shapes.items()}
    if bias is not None:
        given["bias"] = rng.standard_normal(bias)
    if sinks is not None:
        given["sinks"] = rng.standard_normal(sinks)
    given = {name: array.astype(dtype) for name, array in given.items()}
    options = {}
    if dropout is not None:
        lead_out = lead if layout == "grouped" else np.broadcast_shapes(lead, kv_lead)
        options = {"keep": rng.random((*lead_out, N_Q, N_K)) > dropout, "dropout": dropout}
    seen = rng.random((N_Q, N_K)) < 0.7
    seen[2] = False
    return given, options, seen


def repeated(layout, given):
    group = 2 if layout == "grouped" else 1
    return {name: np.repeat(x, group, axis=-3) if name in "kv" and group > 1 else x for name, x in given.items()}


CASES = {
    "bias": ("one head", {"bias": (N_Q, N_K)}, {}),
    **{f"bias {name}": ("grouped", {"bias": shape}, {}) for name, shape in BIASES.items()},
    "sinks": ("one head", {"sinks": ()}, {}),
    **{f"sinks {name}": ("grouped", {"sinks": shape}, {}) for name, shape in SINKS.items()},
    "dropout": ("one head", {"dropout": 0.3}, {}),
    "dropout, grouped": ("grouped", {"dropout": 0.6}, {}),
    "all, broadcast": ("batch broadcast", {"bias": (3, 1, N_Q, 1), "sinks": (3, 1), "dropout": 0.3}, {}),
    "all, softcap, rows in blocks": (
        "grouped", {"bias": (4, N_Q, N_K), "sinks": (4,), "dropout": 0.2}, {"softcap": 1.5, "block": 2},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_output_log_sum_exp_and_every_gradient_follow_the_definition(name, either_way):
    layout, options, more = CASES[name]
    given, dropped, seen = problem(layout, **options)
    block = {"block": more["block"]} if "block" in more else {}
    cap = {"softcap": more["softcap"]} if "softcap" in more else {}
    out, cache = dense_attention_forward(**given, **dropped, **cap, **block, mask=seen)
    right, lse = definition(**repeated(layout, given), **dropped, **cap, seen=seen)
    assert row_errors(out, right).max() <= tolerance("reordered").rtol
    np.testing.assert_allclose(cache.log_sum_exp, lse, rtol=tolerance("reordered").rtol, atol=1e-14)
    dout, dlse = normal(out.shape, lse.shape, seed=5)
    if "sinks" not in given:
        dlse[np.isneginf(lse)] = 3.0  # of a constant
    gradients = dense_attention_backward(dout, cache, dlse=dlse)
    rng = np.random.default_rng(7)
    for key, array in given.items():
        gradient = getattr(gradients, key)
        assert gradient.shape == array.shape
        for _ in range(3):
            direction, step = rng.standard_normal(array.shape), 1e-6
            ends = []
            for sign in (1, -1):
                moved = {**given, key: array + sign * step * direction}
                y, z = definition(**repeated(layout, moved), **dropped, **cap, seen=seen)
                ends.append((dout * y).sum() + (dlse * np.where(np.isneginf(z), 0, z)).sum())
            np.testing.assert_allclose(
                (gradient * direction).sum(), (ends[0] - ends[1]) / (2 * step), rtol=1e-6, atol=1e-7
            )
    for key in ("bias", "sinks"):
        assert (getattr(gradients, key) is None) == (key not in given)


@pytest.mark.parametrize("layout", ["one head", "grouped"])
def test_the_gradient_of_a_bias_is_that_of_pytorch(layout, either_way):
    torch = pytest.importorskip("torch")
    shape = (N_Q, N_K) if layout == "one head" else (4, 1, N_K)
    given, _, seen = problem(layout, bias=shape)
    seen[2] = True
    out, cache = dense_attention_forward(**given, mask=seen)
    (dout,) = normal(out.shape, seed=6)
    leaves = {name: torch.tensor(a, requires_grad=True) for name, a in given.items()}
    added = leaves["bias"] + torch.tensor(np.where(seen, 0.0, -INF))
    q, k, v = (leaves[x] if leaves[x].ndim == 4 else leaves[x][None] for x in "qkv")
    peer = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=added, enable_gqa=True)
    peer.reshape(out.shape).backward(torch.tensor(dout))
    gradients = dense_attention_backward(dout, cache)
    for name, leaf in leaves.items():
        right = leaf.grad.numpy()
        np.testing.assert_allclose(getattr(gradients, name), right, rtol=0, atol=1e-14 * np.abs(right).max())


def test_sinks_dropout_and_log_sum_exps_have_the_gradients_of_pytorch(either_way):
    torch = pytest.importorskip("torch")
    given, dropped, seen = problem("grouped", bias=(4, N_Q, N_K), sinks=(4,), dropout=0.4)
    out, cache = dense_attention_forward(**given, **dropped, mask=seen)
    dout, dlse = normal(out.shape, out.shape[:-1], seed=6)
    leaves = {name: torch.tensor(a, requires_grad=True) for name, a in given.items()}
    k, v = (leaves[x].repeat_interleave(2, dim=1) for x in "kv")
    logits = leaves["q"] @ k.mT / np.sqrt(3) + leaves["bias"] + torch.tensor(np.where(seen, 0.0, -INF))
    logits = torch.cat([logits, leaves["sinks"][:, None, None].expand(2, 4, N_Q, 1)], dim=-1)
    weights = torch.softmax(logits, dim=-1)[..., :-1] * torch.tensor(dropped["keep"]) / (1 - 0.4)
    loss = (torch.tensor(dout) * (weights @ v)).sum() + (torch.tensor(dlse) * torch.logsumexp(logits, -1)).sum()
    loss.backward()
    gradients = dense_attention_backward(dout, cache, dlse=dlse)
    for name, leaf in leaves.items():
        right = leaf.grad.numpy()
        np.testing.assert_allclose(getattr(gradients, name), right, rtol=0, atol=1e-14 * np.abs(right).max())


RULES = {
    "padding": KeyPadding(700),
    "nothing but padding": KeyPadding(0),
    "packed": Packed([0, 100, 130, 800], [0, 300, 310, 900], causal="bottom-right"),
    "packed, causal pattern": (Causal(0), Packed([0, 300, 750])),
    "indices": KeyIndices(np.random.default_rng(3).integers(-1, 900, (800, 20))),
    "blocks": KeyBlocks(np.random.default_rng(4).random((7, 15)) < 0.4, 128, 64),
    "alibi": (Causal("bottom-right"), Alibi(0.02, "bottom-right")),
    "window to both sides, sinks": SlidingWindow(100, 5, "bottom-right", 60),
    "only to the right": SlidingWindow(0, 0, 0, 40),
}


@pytest.mark.parametrize("dtype", [np.float32, np.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("name", RULES)
def test_tiles_agree_with_the_definition_under_every_rule_with_all_options(name, dtype):
    shapes = ((2, 800, 8), (1, 900, 8), (1, 900, 4), (2, 800, 4), (2, 800))
    *arrays, dout, dlse = normal(*shapes, dtype=dtype, seed=2)
    keep = np.random.default_rng(1).random((2, 800, 900)) < 0.7
    found = []
    for method in ("fast", "oracle"):
        out, cache = dense_attention_forward(
            *arrays, mask=RULES[name], method=method, sinks=np.array([0.5, 9.0], dtype), keep=keep, dropout=0.3
        )
        gradients = dense_attention_backward(dout, cache, dlse=dlse)
        assert gradients.sinks.dtype == out.dtype == dtype
        found.append((out, cache.log_sum_exp[..., None], *gradients, gradients.sinks[:, None]))
    for one, other in zip(*found, strict=True):
        atol = 4 * tolerance("reordered", dtype).rtol * max(np.abs(other).max(), 1)
        np.testing.assert_allclose(one, other, rtol=0, atol=atol)


def test_rows_that_see_nothing_have_the_sinks_log_sum_exp_and_no_other_gradient(either_way):
    q, k, v = inputs("one head", 5, 5)
    nothing = np.zeros((5, 5), bool)
    keep = np.ones((5, 5), bool)
    out, cache = dense_attention_forward(q, k, v, mask=nothing, bias=np.ones((5, 5)), sinks=2.0, keep=keep, dropout=0.5)
    assert not out.any()
    assert (cache.log_sum_exp == 2).all()
    gradients = dense_attention_backward(np.ones_like(out), cache, dlse=np.ones(5))
    assert not any(g.any() for g in (*gradients, gradients.bias))
    assert gradients.sinks == 5
    _, cache = dense_attention_forward(q, k, v, mask=nothing, bias=np.ones((5, 5)))
    gradients = dense_attention_backward(np.ones_like(out), cache, dlse=np.ones(5))
    assert not any(g.any() for g in (*gradients, gradients.bias))


@pytest.mark.parametrize("sink", [-1e4, -50.0, 50.0, 1e4], ids=str)
@pytest.mark.parametrize("size", [1.0, 300.0], ids=str)
@pytest.mark.parametrize("dtype", [np.float32, np.float64], ids=["float32", "float64"])
def test_a_sink_far_from_the_logits_leaves_all_weight_or_none(dtype, size, sink, either_way):
    q, k, v = (a.astype(dtype) for a in inputs("one head", 6, 6))
    out, cache = dense_attention_forward(q * dtype(size), k, v, sinks=sink)
    plain, without = dense_attention_forward(q * dtype(size), k, v)
    share = np.exp(np.minimum(without.log_sum_exp.astype(float) - np.logaddexp(without.log_sum_exp, sink), 0))
    np.testing.assert_allclose(out, plain * share[:, None], rtol=3e3 * np.finfo(dtype).eps, atol=1e-30)
    np.testing.assert_allclose(cache.log_sum_exp, np.logaddexp(without.log_sum_exp, sink), rtol=8 * np.finfo(dtype).eps)


def test_a_sink_is_counted_from_where_a_large_bias_is(either_way):
    """What an additive array adds to a whole row does not cancel where there is a sink."""
    q, k, v = inputs("one head", 5, 5)
    for constant in (-30.0, 30.0, -1e9, 1e9):
        out, cache = dense_attention_forward(q, k, v, bias=np.full((5, 5), constant), sinks=0.0)
        plain, without = dense_attention_forward(q, k, v)
        lse = without.log_sum_exp + constant
        np.testing.assert_allclose(out, plain * np.exp(-np.logaddexp(0, -lse))[:, None], rtol=1e-12, atol=1e-300)
        np.testing.assert_allclose(cache.log_sum_exp, np.logaddexp(lse, 0), rtol=1e-14, atol=1e-15)


def test_a_sink_is_a_first_key_without_a_value():
    q, k, v = inputs("one head", 5, 5)
    with_key = np.concatenate([np.zeros((1, 3)), k]), np.concatenate([np.zeros((1, v.shape[-1])), v])
    shown = np.concatenate([np.ones((5, 1), bool), np.tri(5, dtype=bool)], axis=1)
    right = dense_attention(q, *with_key, mask=shown)
    assert row_errors(dense_attention(q, k, v, sinks=0.0), right).max() <= tolerance("reordered").rtol


def test_an_overflow_that_dropout_or_a_log_sum_exp_makes_is_refused(either_way):
    q = k = np.zeros((2, 1), np.float32)
    v, keep = np.full((2, 1), 3e38, np.float32), np.ones((2, 2), bool)
    with pytest.raises(ValueError, match=r"^v: output"):
        dense_attention(q, k, v, keep=keep, dropout=0.5)
    _, cache = dense_attention_forward(q, k + np.array([[0], [1]], np.float32), v / 10, mask="full", scale=9.0)
    with pytest.raises(ValueError, match=r"^dout: gradient of q"):
        dense_attention_backward(np.zeros((2, 1)), cache, dlse=np.full(2, 3e38, np.float32))


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"bias": np.ones((4, 4), int)}, "bias: ndarray of dtype int64"),
        ({"bias": np.ones((3, 5))}, r"bias: shape \(3, 5\)"),
        ({"bias": np.full((5, 5), np.nan)}, "bias: nan"),
        ({"sinks": [0.0, 1.0]}, r"sinks: shape \(2,\)"),
        ({"sinks": np.inf}, "sinks: "),
        ({"sinks": True}, "sinks: "),
        ({"keep": np.ones((5, 5), bool)}, "dropout: nothing came beside keep"),
        ({"dropout": 0.5}, "keep: nothing came beside dropout"),
        ({"keep": np.ones((5, 5)), "dropout": 0.5}, "keep: dtype float64"),
        ({"keep": np.ones((4, 5), bool), "dropout": 0.5}, r"keep: shape \(4, 5\)"),
        ({"keep": np.ones((5, 5), bool), "dropout": 1}, "dropout: 1 came"),
        ({"keep": np.ones((5, 5), bool), "dropout": -0.1}, "dropout: -0.1"),
    ],
    ids=str,
)
def test_options_that_do_not_fit_are_refused_by_name(options, word):
    q, k, v = inputs("one head", 5, 5)
    with pytest.raises((TypeError, ValueError), match="^" + word):
        dense_attention(q, k, v, **options)


def test_an_upstream_gradient_of_the_log_sum_exps_has_their_shape():
    out, cache = dense_attention_forward(*inputs("one head", 5, 5))
    with pytest.raises(ValueError, match=r"^dlse: shape \(4,\) came, the log-sum-exps' \(5,\)"):
        dense_attention_backward(out, cache, dlse=np.ones(4))
