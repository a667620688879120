"""SparseK attention on inputs that hide nothing: every row is right to its own size, or the call is refused.

What a row may be off by stands in `decades`; the scores' gradient in `bound_of_scores`. 250 cases a
precision, 20,000 in a campaign.
"""

from types import SimpleNamespace

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
    limits,
    qkv_and_upstream,
    require_caught,
    require_gradients,
    require_reason,
    require_right_or_refused,
    require_rows,
)

from refattn.sparsek import (
    SparseKCache,
    _fast_blocks,
    attention,
    fast,
    prefix,
    sparsek_attention_backward,
    sparsek_attention_forward,
    sparsek_operator,
    sparsek_threshold,
)

LONG = {1025: (24, 20), 1100: (600, 500), 2100: (130, 0)}
"""More than one chunk of queries: lengths, with n_select and window; in blocks of 128, of 32, and with no window."""


def draw_scores(rng, n, dtype, hard):
    hot, huge = rng.integers(n), limits(dtype)[1]
    scores = {
        "normal": lambda: rng.standard_normal(n) * rng.choice([0.2, 1.0, 5.0]),
        "equal": lambda: np.full(n, 0.75),
        "zero": lambda: np.zeros(n),
        "one-hot": lambda: rng.choice([1.0, 3.0, 0.25]) * (np.arange(n) == hot),
        "ties": lambda: rng.integers(-2, 3, n) / 4,
        "drifting": lambda: 0.1 * np.arange(n) + rng.standard_normal(n),
        "falling": lambda: -0.05 * np.arange(n) + rng.standard_normal(n),
        "tiny": lambda: limits(dtype)[0] * rng.standard_normal(n),
        "decades": lambda: rng.standard_normal(n) * 10.0 ** rng.uniform(-10, 6, n),
        "huge": lambda: huge * rng.standard_normal(n) if hard else rng.standard_normal(n) * 1e7,
    }
    return scores[rng.choice(list(scores))]().astype(dtype)


def draw(seed, dtype, n=None, n_select=None, window=None):
    """Inputs, upstream gradient, options and method of one case."""
    rng = generator("sparsek", seed, np.dtype(dtype).name, n)
    long = n is not None
    n = n or int(rng.choice(LENGTHS) if rng.random() < 0.6 else rng.integers(1, 150))
    lead, kv_lead = ((), ()) if long or rng.random() < 0.7 else LEADS[rng.integers(3)]
    if n > 130:
        lead = kv_lead = ()
    q, k, v, g = qkv_and_upstream(rng, n, n, int(rng.choice(WIDTHS)), int(rng.choice(WIDTHS)), dtype, lead, kv_lead)
    hard = bool(rng.random() < 0.25)
    gate = str(rng.choice(["kv", "kv", "k", "v", "none"]))
    scores = np.array([draw_scores(rng, n, dtype, hard) for _ in range(int(np.prod(kv_lead)))]).reshape(*kv_lead, n)
    options = {
        "n_select": int(rng.choice([0, 1, 2, 3, 8, 40, max(n - 1, 0), n, n + 3])) if n_select is None else n_select,
        "window": int(rng.choice([0, 1, 2, 5, 64, n, n + 2])) if window is None else window,
        "gate": gate,
        "hard": hard,
        "scale": None if rng.random() < 0.8 else float(rng.choice([1.0, -2.0, 1e-3, 0.0])),
    }
    methods = ("fast", "fast", "paper", "oracle") if n <= 65 else ("fast",)
    return (q, k, v, scores), g, options, str(rng.choice(methods))


def chosen_and_gates(scores, options):
    """From the definition: which pairs each query chooses, the gates M and thresholds of every query's candidates."""
    n = scores.size
    lag = np.arange(n)[:, None] - np.arange(n)
    candidate = lag >= options["window"]
    of_row = np.where(candidate, scores.astype(np.float64), -np.inf)
    order = np.argsort(-of_row, axis=1, kind="stable")
    rank = np.empty_like(order)
    np.put_along_axis(rank, order, np.arange(n)[None, :], axis=1)
    chosen = candidate & (rank < options["n_select"])
    near = (lag >= 0) & ~candidate
    gates = sparsek_operator(of_row, options["n_select"])
    tau = sparsek_threshold(of_row, options["n_select"])[:, None]
    with np.errstate(all="ignore"):
        above = np.where(candidate & np.isfinite(tau), of_row - tau, 0.5)
    return chosen, near, gates, above


def define(q, k, v, scores, g, options):
    """One head: the definition with its bounds, and those of the scores' gradient (None near a kink)."""
    chosen, near, gates, above = chosen_and_gates(scores, options)
    on_keys, on_values = "k" in options["gate"], "v" in options["gate"]
    soft = not options["hard"] and options["gate"] != "none"
    size = float(np.abs(scores.astype(np.float64)).max())
    error = np.where(chosen & soft, 8 * 2.0**-53 * size, 0.0)
    applied = np.where(chosen & soft, gates, 1.0)
    scale = 1 / np.sqrt(q.shape[-1]) if options["scale"] is None else options["scale"]
    head = Definition(
        q, k, v, g, chosen | near, scale,
        gate_k=applied if on_keys else 1.0, gate_v=applied if on_values else 1.0,
        error_k=error if on_keys else 0.0, error_v=error if on_values else 0.0,
    )  # fmt: skip
    clearance = 1e-9 + 1e-12 * size
    near_kink = ((np.abs(above) < clearance) & (above != 0)) | ((np.abs(above - 1) < clearance) & (above != 1))
    if near_kink.any() and options["gate"] != "none":
        return head
    inside = (gates > 0) & (gates < 1)
    with np.errstate(all="ignore"):
        taken = np.where(chosen & inside, on_keys * head.dgate_k + on_values * head.dgate_v, 0)
        off = np.where(chosen & inside, on_keys * head.dgate_k_error + on_values * head.dgate_v_error, 0)
        of_taken = np.where(chosen & inside, on_keys * head.of_dgate_k + on_values * head.of_dgate_v, 0)
        count = np.maximum(inside.sum(axis=1, keepdims=True), 1)
        mean, mean_off, of_mean = (x.sum(axis=1, keepdims=True) / count for x in (taken, off, of_taken))
        # prefix sums in float64, whose difference may lose 12 bits, over √n roundings
        prefix = 2.0**-53 * 4096 * (4 + np.sqrt(len(q)))
        right = np.where(inside, taken - mean, 0).sum(axis=0)
        of_right = np.where(inside, of_taken + of_mean, 0).sum(axis=0)
        bound = np.where(inside, off + mean_off, 0).sum(axis=0) + (head.cu + prefix) * of_right
    head._take("scores", right, bound, of_right)
    head.refusable_backward |= bool((of_right > head.most).any() or (of_taken > head.most).any())
    return head


def check(inputs, g, options, method):
    """Raise unless forward, backward and cache are right in every row, or refuse with good reason."""
    q, k, v, scores = inputs
    n, lead = q.shape[-2], q.shape[:-2]
    heads, kv_heads = (int(np.prod(a.shape[:-2])) for a in (q, k))
    by_head = [
        tuple(a.reshape(-1, *a.shape[len(a.shape) - rest :])[h if a.shape[:-rest] == lead else h * kv_heads // heads]
              for a, rest in ((q, 2), (k, 2), (v, 2), (scores, 1), (g, 2)))
        for h in range(heads)
    ]  # fmt: skip
    right = [define(*arrays, options) for arrays in by_head]
    with np.errstate(all="raise"):
        try:
            out, cache = sparsek_attention_forward(*inputs, **options, method=method)
        except ValueError as error:
            require_reason(error, "q, k: a logit of query", any(head.refusable for head in right))
            return "refused forward"
        for head, rows in zip(right, out.reshape(heads, n, -1), strict=True):
            require_rows("out", rows, head.right["out"], head.bound["out"])
        if n <= 40:
            require_replay(inputs, options, lead, right)
        try:
            found = sparsek_attention_backward(g, cache)
        except ValueError as error:
            if str(error).startswith("cache: scores: "):
                require_reason(error, "cache: scores: ", options["hard"] and np.abs(scores).max() > 1e9)
                return "refused gates"
            require_reason(error, "dout: gradient of", any(head.refusable_backward for head in right))
            return "refused backward"
    require_gradients(found, right, kv_heads, ("k", "v", "scores"))
    return "right"


def require_replay(inputs, options, lead, right):
    """The cache gives the rows of the forward: by steps, and by a prefill and steps."""
    q, k, v, scores = inputs
    n, heads = q.shape[-2], len(right)
    settings = {name: value for name, value in options.items() if name not in ("n_select", "window")}
    for prompt in (0, n // 2):
        cache = SparseKCache(options["n_select"], options["window"], **settings)
        rows = []
        if prompt:
            part = (..., slice(0, prompt), slice(None))
            rows += list(np.moveaxis(cache.prefill(q[part], k[part], v[part], scores[..., :prompt]), -2, 0))
        for t in range(prompt, n):
            rows.append(cache.step(q[..., t, :], k[..., t, :], v[..., t, :], scores[..., t]))
        for number, head in enumerate(right):
            replayed = np.array([row.reshape(heads, -1)[number] for row in rows])
            require_rows(f"cache after a prompt of {prompt}", replayed, head.right["out"], head.bound["out"])


@pytest.mark.slow
@lengths.cases(100, 250, campaign=20_000)
@pytest.mark.parametrize("name", DTYPES)
def test_every_row_is_right_to_its_own_size_or_the_call_is_refused(name, cases):
    require_right_or_refused(lambda seed: check(*draw(seed, DTYPES[name])), name, cases)


METHODS = ("fast", "paper", "oracle")


@pytest.mark.parametrize(("seed", "name"), [(19728, "float64"), (8401, "float32")])
@pytest.mark.parametrize("method", METHODS)
def test_a_score_that_is_exactly_at_the_threshold_gets_no_gradient(method, seed, name):
    """Halving leaves a gate of 5e-17 in the place of zero."""
    inputs, g, options, _ = draw(seed, DTYPES[name])
    assert check(inputs, g, options, method) == "right"


@pytest.mark.parametrize("method", METHODS)
def test_a_gates_gradient_is_not_made_of_products_that_lost_their_digits(method):
    """Values near the largest number and an upstream gradient near the smallest, times a weight: less than that."""
    inputs, g, options, _ = draw(9202, np.float32)
    assert check(inputs, g, options, method) == "right"


@pytest.mark.parametrize(("q_size", "g_size"), [(1e-30, 1e37), (1e30, 1e-25)])
@pytest.mark.parametrize("method", METHODS)
def test_a_small_scale_does_not_take_the_digits_of_small_queries_and_gradients(method, q_size, g_size):
    """Neither scale · q nor scale · dS can be held where their products with the other can."""
    rng = np.random.default_rng(6)
    q, k, v, g = rng.standard_normal((4, 20, 3)) * np.array([q_size, 1, 1, g_size])[:, None, None]
    inputs = *(array.astype(np.float32) for array in (q, k, v)), rng.standard_normal(20).astype(np.float32)
    options = {"n_select": 3, "window": 2, "gate": "kv", "hard": False, "scale": 1e-14 if q_size < 1 else 1e-30}
    assert check(inputs, g.astype(np.float32), options, method) == "right"


@pytest.mark.slow
@pytest.mark.parametrize("n", [1025, *lengths.long(1100)])
@pytest.mark.parametrize("name", DTYPES)
def test_so_it_is_over_more_than_one_chunk(name, n):
    require_one_right(name, n)


@pytest.mark.long
@pytest.mark.parametrize("name", ["float32", *lengths.campaign("float64")])
def test_so_it_is_over_three_chunks_without_a_window(name):
    require_one_right(name, 2100)


def require_one_right(name, n):
    outcomes = []
    for seed in range(4):  # each right or refused with reason; one that is computed is enough
        outcomes.append(check(*draw(seed, DTYPES[name], n, *LONG[n])))
        if outcomes[-1] == "right":
            return
    raise AssertionError(outcomes)


def dropped_in_one_block(forward):
    """Rows 64 to 127, and those alone, without gates."""

    def wrong(problem):
        out = forward(problem)
        out[:, 64:128] = forward(type(problem)(**{**vars(problem), "gate": "none"}))[:, 64:128]
        return out

    return {"forward": wrong}


def dropped_where_small(backward, place):
    """A gradient's rows below a billionth of the largest are zeros."""

    def wrong(dout, problem):
        found = backward(dout, problem)
        rows = np.abs(found[place]).reshape(*found[place].shape[:2], -1).max(axis=-1)
        found[place][rows < 1e-9 * rows.max()] = 0
        return found

    return {"backward": wrong}


def right_in_the_norm(backward, place):
    """A gradient is rounded to a relative accuracy of its largest entry."""

    def wrong(dout, problem):
        found = list(backward(dout, problem))
        step = 8 * np.finfo(found[place].dtype).eps * np.abs(found[place]).max()
        found[place] = np.round(found[place] / step) * step if step > 0 else found[place]
        return tuple(found)

    return {"backward": wrong}


def off_by_a_thousandth(backward, place):
    def wrong(dout, problem):
        found = backward(dout, problem)
        found[place][:, found[place].shape[1] // 2] *= 1.001
        return found

    return {"backward": wrong}


def method(change):
    return lambda patch: patch.setitem(attention._METHODS, "fast", SimpleNamespace(**{**vars(fast), **change}))


PLANTED = {
    "the gates of one block dropped": (method(dropped_in_one_block(fast.forward)), "out: row"),
    **{
        f"small rows of {name} dropped": (method(dropped_where_small(fast.backward, place)), f"{name}: row")
        for place, name in enumerate(("dq", "dk", "dv", "dscores"))
    },
    **{
        f"{name} right in the norm": (method(right_in_the_norm(fast.backward, place)), f"{name}: row")
        for place, name in enumerate(("dq", "dk", "dv", "dscores"))
    },
    **{
        f"one row of {name} off by a thousandth": (method(off_by_a_thousandth(fast.backward, place)), f"{name}: row")
        for place, name in enumerate(("dq", "dk", "dv", "dscores"))
    },
    "averages that overflow": (
        lambda patch: patch.setattr(_fast_blocks, "average", lambda a, b, out: np.matmul(a, b, out=out)),
        "refused without reason: v: output",
    ),
    "no wider format": (
        lambda patch: patch.setattr(attention, "all_finite", lambda *arrays: True),
        "refused without reason: dout: gradient of",
    ),
    "prefix sums whatever they lose": (lambda patch: patch.setattr(prefix, "_MOST_LOST", np.inf), "dscores: row"),
}


@pytest.mark.slow
@pytest.mark.parametrize("planted", PLANTED)
def test_a_planted_error_is_caught_by_name(planted, monkeypatch):
    plant, message = PLANTED[planted]
    plant(monkeypatch)
    cases = (draw(seed, np.float64, *((130, 8, 5) if seed % 2 else ())) for seed in range(150))
    require_caught(check, (case for case in cases if case[3] == "fast"), message)
