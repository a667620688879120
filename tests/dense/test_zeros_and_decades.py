"""Dense attention on inputs that hide nothing: every row is right to its own size, or the call is refused.

What a row may be off by stands in `decades`. 250 cases a precision, 20,000 in a campaign.
"""

import lengths
import numpy as np
import pytest
from decades import (
    DTYPES,
    LEADS,
    LENGTHS,
    WIDTHS,
    Definition,
    generator,
    qkv_and_upstream,
    require_caught,
    require_gradients,
    require_reason,
    require_right_or_refused,
    require_rows,
)

import refattn
from refattn import Causal, SlidingWindow, dense_attention_backward, dense_attention_forward
from refattn.dense import oracle


def draw_mask(rng, n_q, n_k, dtype):
    """A mask as an argument, which keys it allows, and what it adds to the logits."""
    lag = np.arange(n_q)[:, None] - np.arange(n_k)
    allowed = rng.random((n_q, n_k)) < rng.choice([0.05, 0.5, 0.95])
    bias = np.where(allowed, rng.standard_normal((n_q, n_k)) * rng.choice([1.0, 100.0]), -np.inf).astype(dtype)
    window, sinks = int(rng.integers(0, 6)), int(rng.integers(0, 3))
    masks = {
        "full": ("full", np.ones((n_q, n_k), bool), 0.0),
        "causal": (Causal(0), lag >= 0, 0.0),
        "last queries": (Causal("bottom-right"), lag + n_k - n_q >= 0, 0.0),
        "window": (
            SlidingWindow(window, sinks=sinks, alignment=0),
            (lag >= 0) & ((lag < window) | (np.arange(n_k) < sinks)),
            0.0,
        ),
        "boolean": (allowed, allowed, 0.0),
        "additive": (bias, allowed, bias),
        "causal and additive": ((Causal(0), bias), allowed & (lag >= 0), bias),
    }
    return masks[rng.choice(list(masks))]


def draw(seed, dtype, n=None):
    """Inputs, upstream gradient, options and what they mean."""
    rng = generator("dense", seed, np.dtype(dtype).name, n)
    n_q = n_k = n or int(rng.choice(LENGTHS) if rng.random() < 0.4 else rng.integers(1, 100))
    if rng.random() < 0.3 and n is None:
        n_k = int(rng.integers(1, 100))
    lead, kv_lead = ((), ()) if n_q > 100 or rng.random() < 0.7 else LEADS[rng.integers(3)]
    inputs = qkv_and_upstream(rng, n_q, n_k, int(rng.choice(WIDTHS)), int(rng.choice(WIDTHS)), dtype, lead, kv_lead)
    *qkv, g = inputs
    mask, allowed, bias = draw_mask(rng, n_q, n_k, dtype)
    options = {
        "scale": None if rng.random() < 0.8 else float(rng.choice([1.0, -2.0, 1e-3, 0.0])),
        "softcap": None if rng.random() < 0.75 else float(rng.choice([1e-2, 1.0, 30.0])),
        "block": None if rng.random() < 0.5 else int(rng.choice([1, 7, 64, 1000])),
    }
    return qkv, g, mask, options, allowed, bias


@pytest.fixture(params=["fast", "oracle"])
def method(request):
    """The method that `check` asks for; by tiles also where there are few entries, which the cases have."""
    if request.param == "fast":
        request.getfixturevalue("all_by_tiles")
    return request.param


def define(qkv, g, options, allowed, bias):
    """The definition of every head."""
    q, k, v = qkv
    heads, kv_heads = (int(np.prod(a.shape[:-2])) for a in (q, k))
    scale = 1 / np.sqrt(q.shape[-1]) if options["scale"] is None else options["scale"]
    queries, upstream, keys, values = (a.reshape(-1, *a.shape[-2:]) for a in (q, g, k, v))
    return [
        Definition(
            queries[h], keys[h * kv_heads // heads], values[h * kv_heads // heads], upstream[h], allowed, scale,
            softcap=options["softcap"], bias=bias,
        )
        for h in range(heads)
    ]  # fmt: skip


def check(qkv, g, mask, options, allowed, bias, method="fast", right=None):
    """Raise unless forward and backward are right in every row, or refuse with good reason."""
    q, k, v = qkv
    right = define(qkv, g, options, allowed, bias) if right is None else right
    heads, kv_heads = len(right), int(np.prod(k.shape[:-2]))
    with np.errstate(all="raise"):
        try:
            out, cache = dense_attention_forward(q, k, v, mask=mask, method=method, **options)
        except ValueError as error:
            require_reason(error, "q, k: the logit of query", any(head.refusable for head in right))
            return "refused forward"
        for head, rows in zip(right, out.reshape(heads, *out.shape[-2:]), strict=True):
            require_rows("out", rows, head.right["out"], head.bound["out"])
        try:
            found = dense_attention_backward(g, cache)
        except ValueError as error:
            require_reason(error, "dout: gradient of", any(head.refusable_backward for head in right))
            return "refused backward"
    require_gradients(found, right, kv_heads)
    return "right"


def check_both(qkv, g, mask, options, allowed, bias):
    """Check both methods against one definition; "right" if both are."""
    right = define(qkv, g, options, allowed, bias)
    found = []
    for method in ("fast", "oracle"):
        try:
            found.append(check(qkv, g, mask, options, allowed, bias, method, right))
        except Exception as error:
            error.add_note(method)
            raise
    return found[0] if found[0] == found[1] else f"{found[0]}, by the oracle {found[1]}"


@lengths.cases(100, 250, campaign=20_000)
@pytest.mark.parametrize("name", DTYPES)
def test_every_row_is_right_to_its_own_size_or_the_call_is_refused(name, cases, all_by_tiles):
    require_right_or_refused(lambda seed: check_both(*draw(seed, DTYPES[name])), name, cases)


WEIGHTS_OF_ANOTHER_ROUNDING = (1736, 2540, 4070, 4929, 5875, 8287, 8612, 10194, 11955)


@pytest.mark.parametrize("seed", WEIGHTS_OF_ANOTHER_ROUNDING)
def test_weights_sum_to_one_whatever_the_last_digits_of_logits_beyond_a_billion(seed, method):
    """A backward with the forward's sums, and with logits that are off by hundreds, was wrong here."""
    assert check(*draw(seed, np.float32), method) == "right"


def test_logits_that_float32_cannot_hold_give_the_gradient_of_the_weights_they_give():
    """Logits of 10¹⁰, whose last place is 1,024, and biases of some hundreds: a row attends to keys of equal logits."""
    (q, k, v), g, mask, options, allowed, bias = draw(17381, np.float32)
    assert check((q, k, v), g, mask, options, allowed, bias) == "right"
    weights, _ = dense_attention_forward(q, k, np.eye(len(k), dtype=q.dtype), mask=mask, **options)
    found = dense_attention_backward(g, dense_attention_forward(q, k, v, mask=mask, **options)[1])
    p, q, k, v, g = (array.astype(np.float64) for array in (weights, q, k, v, g))
    dp, of_dp = g @ v.T, np.abs(g) @ np.abs(v).T
    of_dlogits = p * (of_dp + (p * of_dp).sum(axis=1, keepdims=True)) / np.sqrt(q.shape[1])
    dlogits = p * (dp - (p * dp).sum(axis=1, keepdims=True)) / np.sqrt(q.shape[1])
    for name, right, size in (
        ("q", dlogits @ k, of_dlogits @ np.abs(k).max(axis=1)),
        ("k", dlogits.T @ q, of_dlogits.T @ np.abs(q).max(axis=1)),
        ("v", p.T @ g, p.T @ np.abs(g).max(axis=1)),
    ):
        require_rows(f"d{name}", getattr(found, name), right, 1e-5 * size + 1e-30)


def test_a_small_scale_does_not_take_the_digits_of_small_gradients(method):
    """scale · dS cannot be held, its products with q can."""
    q, k, v, g = np.random.default_rng(6).standard_normal((4, 20, 3)) * np.array([1e30, 1, 1, 1e-25])[:, None, None]
    inputs, g = [array.astype(np.float32) for array in (q, k, v)], g.astype(np.float32)
    options = {"scale": 1e-30, "softcap": None, "block": None}
    assert check(inputs, g, "full", options, np.ones((20, 20), bool), 0.0, method) == "right"


@pytest.mark.slow
@pytest.mark.parametrize("n", [513, *lengths.long(1100)])
@pytest.mark.parametrize("name", DTYPES)
def test_so_it_is_over_several_blocks(name, n, all_by_tiles):
    """Of 256 queries, 512 keys, and sums over 1,024 keys."""
    outcomes = [check_both(*draw(seed, DTYPES[name], n)) for seed in range(3)]
    assert "right" in outcomes, outcomes


def rounded_in_the_norm(gradient):
    step = 8 * np.finfo(gradient.dtype).eps * np.abs(gradient).max()
    return np.round(gradient / step) * step if step > 0 else gradient


def without_small_rows(gradient):
    rows = np.abs(gradient).max(axis=-1, keepdims=True)
    return np.where(rows < 1e-9 * rows.max(), 0, gradient)


def one_row_off(gradient):
    factor = np.ones((gradient.shape[-2], 1))
    factor[len(factor) // 2] = 1.001
    return gradient * factor


GRADIENTS = ("q", "k", "v")
FEW = [draw(seed, np.float64) for seed in range(100)]
CHANGES = {"right in the norm": rounded_in_the_norm, "small rows dropped": without_small_rows, "a row off": one_row_off}


@pytest.mark.parametrize("name", GRADIENTS)
@pytest.mark.parametrize("change", CHANGES)
def test_a_gradient_planted_wrong_is_caught_by_name(change, name, monkeypatch):
    def planted(dout, cache):
        found = refattn.dense_attention_backward(dout, cache)
        with np.errstate(all="ignore"):
            return found._replace(**{name: CHANGES[change](getattr(found, name))})

    monkeypatch.setitem(globals(), "dense_attention_backward", planted)
    require_caught(check, FEW, f"d{name}: row")


@pytest.mark.parametrize(
    ("attribute", "wrong", "message"),
    [
        pytest.param(
            "average",
            lambda a, b, out: np.matmul(a, b, out=out),
            "refused without reason: v: output",
            id="averages that overflow",
        ),
        pytest.param(
            "replace_what_is_not_finite",
            lambda array, better: None,
            "refused without reason: dout: gradient of",
            id="no wider format",
        ),
    ],
)
def test_an_overflow_on_the_way_is_caught_by_name(attribute, wrong, message, monkeypatch):
    monkeypatch.setattr(oracle, attribute, wrong)
    require_caught(check, FEW, message)
