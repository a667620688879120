from __future__ import annotations

import functools
import math

import numpy as np
import pytest
from lengths import long

from refattn import dense_attention, dense_attention_backward, dense_attention_forward
from refattn.masks import SlidingWindow
from refattn.sparsek import (
    sparsek_attention,
    sparsek_attention_backward,
    sparsek_attention_forward,
    sparsek_by_bisection,
)
from refattn.sparsek.attention import _METHODS
from refattn.testing import check_gradients, check_jacobian, relative_error, row_errors, tolerance
from refattn.testing.real_heads import load_real_heads

GATES = ("kv", "k", "v", "none")
HARD = [pytest.param(False, id="soft"), pytest.param(True, id="hard")]
METHODS = ("paper", "oracle")


def _inputs(seed: int, n: int, lead_q: tuple[int, ...] = (), lead_kv: tuple[int, ...] = (), d: int = 3, d_v: int = 2):
    rng = np.random.default_rng(seed)
    return {
        "q": rng.standard_normal((*lead_q, n, d)),
        "k": rng.standard_normal((*lead_kv, n, d)),
        "v": rng.standard_normal((*lead_kv, n, d_v)),
        "scores": 0.7 * rng.standard_normal((*lead_kv, n)),
    }


@functools.cache
def _soft_gates(scores: tuple[float, ...], n_select: int) -> np.ndarray:
    return sparsek_by_bisection(scores, n_select)[0] if scores else np.zeros(0)


def _by_loops(q, k, v, scores, *, n_select, window=0, gate="kv", hard=False, gate_of=None):
    """One head from the definition, in scalar loops; `gate_of` replaces the gate M_ij in the forward."""
    n, d = q.shape
    out = np.zeros((n, v.shape[1]))
    for i in range(n):
        candidates = list(range(i - window + 1))
        soft = _soft_gates(tuple(scores[: len(candidates)]), n_select)
        chosen = sorted(candidates, key=lambda j: (-scores[j], j))[:n_select]
        pairs = [(j, 1.0 if hard else soft[j]) for j in chosen if soft[j] > 0]
        if gate_of is not None:
            pairs = [(j, gate_of(i, j, soft[j])) for j, _ in pairs]
        pairs += [(j, 1.0) for j in range(max(i - window + 1, 0), i + 1)]
        logits = [
            sum(q[i, c] * k[j, c] for c in range(d)) * (m if gate in ("kv", "k") else 1.0) / math.sqrt(d)
            for j, m in pairs
        ]
        largest = max(logits, default=0.0)
        weights = [math.exp(x - largest) for x in logits]
        for (j, m), weight in zip(pairs, weights, strict=True):
            out[i] += weight / sum(weights) * (m if gate in ("kv", "v") else 1.0) * v[j]
    return out


@pytest.mark.parametrize("hard", HARD)
@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize("method", METHODS)
def test_both_methods_are_the_definition_in_scalar_loops(method, gate, hard):
    for window, n_select in ((0, 1), (0, 3), (1, 0), (0, 0), (1, 3), (4, 2), (13, 5), (20, 5)):
        inputs = _inputs(0, 13)
        options = {"n_select": n_select, "window": window, "gate": gate, "hard": hard}
        out = sparsek_attention(**inputs, **options, method=method)
        assert row_errors(out, _by_loops(**inputs, **options)).max() <= 1e-12


def _require_agreement(inputs: dict[str, np.ndarray], options: dict[str, object], rtol: float = 1e-12) -> None:
    """The checker: paper against oracle, output and every gradient."""
    (out, cache), (right, right_cache) = (
        sparsek_attention_forward(**inputs, **options, method=method) for method in METHODS
    )
    assert row_errors(out, right).max() <= rtol
    upstream = np.random.default_rng(1).standard_normal(out.shape)
    found, expected = (sparsek_attention_backward(upstream, each) for each in (cache, right_cache))
    for name, gradient, wanted in zip(found._fields, found, expected, strict=True):
        assert gradient.shape == inputs[name].shape
        assert relative_error(gradient, wanted) <= rtol, name


@pytest.mark.slow
@pytest.mark.parametrize("n", [1, 2, 3, 17, *long(63, 64, 65)], ids=lambda n: f"n={n}")
def test_paper_equals_oracle_with_every_option(n):
    for number, (gate, hard) in enumerate((gate, hard) for gate in GATES for hard in (False, True)):
        for window, n_select in ((0, 4), (1, 1), (5, 7), (n, 3), (0, n), (3, max(n - 1, 0))):
            options = {"n_select": n_select, "window": window, "gate": gate, "hard": hard}
            _require_agreement(_inputs(number, n), options)


SEQUENCES = {
    "constant": lambda rng, n: np.full(n, 0.3),
    "tied": lambda rng, n: rng.choice([0.0, 0.37, 1.21], n),  # no entry exactly at a kink
    "rising": lambda rng, n: np.linspace(-3, 3, n),
    "falling": lambda rng, n: np.linspace(3, -3, n),
    "heavy-tailed": lambda rng, n: rng.standard_cauchy(n),
    "close together": lambda rng, n: 1e-3 * rng.standard_normal(n),
    "far apart": lambda rng, n: 1e6 * rng.standard_normal(n),
}


@pytest.mark.parametrize("kind", SEQUENCES)
def test_paper_equals_oracle_on_scores_of_every_kind(kind):
    rng = np.random.default_rng(2)
    inputs = _inputs(3, 48) | {"scores": SEQUENCES[kind](rng, 48)}
    inputs["q"] = 8 * inputs["q"]  # logits of deviation 8
    _require_agreement(inputs, {"n_select": 6, "window": 4}, rtol=1e-10 if kind == "far apart" else 1e-12)


def test_paper_equals_oracle_on_heads_of_a_language_model():
    real = load_real_heads(dtype=np.float64)
    inputs = {name: getattr(real, name)[:2, ..., :64, :] for name in ("q", "k", "v")}
    inputs["scores"] = -np.linalg.norm(inputs["k"], axis=-1)
    _require_agreement(inputs, {"n_select": 8, "window": 8})


def test_grouped_heads_share_the_score_of_their_key_value_head():
    inputs = _inputs(4, 21, lead_q=(2, 6), lead_kv=(2, 3))
    options = {"n_select": 4, "window": 3}
    _require_agreement(inputs, options)
    out = sparsek_attention(**inputs, **options)
    assert out.shape == (2, 6, 21, 2)
    for batch, head in np.ndindex(2, 6):
        shared = {name: inputs[name][batch, head // 2] for name in ("k", "v", "scores")}
        alone = sparsek_attention(q=inputs["q"][batch, head], **shared, **options)
        np.testing.assert_array_equal(out[batch, head], alone)


def test_scores_broadcast_like_keys():
    inputs = _inputs(5, 12, lead_q=(2, 4), lead_kv=(2, 4))
    inputs["scores"] = inputs["scores"][:1, :1]
    _require_agreement(inputs, {"n_select": 3, "window": 2})


@pytest.mark.parametrize("gate", GATES)
def test_a_window_of_the_whole_sequence_is_dense_causal_attention(gate):
    inputs = _inputs(6, 30)
    right, right_cache = dense_attention_forward(inputs["q"], inputs["k"], inputs["v"])
    upstream = np.random.default_rng(7).standard_normal(right.shape)
    expected = dense_attention_backward(upstream, right_cache)
    for window in (30, 31, 1000):
        out, cache = sparsek_attention_forward(**inputs, n_select=3, window=window, gate=gate)
        assert row_errors(out, right).max() <= 1e-13
        found = sparsek_attention_backward(upstream, cache)
        for name in ("q", "k", "v"):
            assert relative_error(getattr(found, name), getattr(expected, name)) <= 1e-12
        np.testing.assert_array_equal(found.scores, 0)


@pytest.mark.parametrize("method", METHODS)
def test_selecting_every_candidate_is_dense_and_selecting_none_is_the_window_alone(method):
    inputs = _inputs(8, 30)
    arrays = inputs["q"], inputs["k"], inputs["v"]
    everything = sparsek_attention(**inputs, n_select=30, window=4, method=method)
    assert row_errors(everything, dense_attention(*arrays)).max() <= 1e-13
    nothing = sparsek_attention(**inputs, n_select=0, window=4, method=method)
    assert row_errors(nothing, dense_attention(*arrays, mask=SlidingWindow(4))).max() <= 1e-13


@pytest.mark.parametrize("method", METHODS)
def test_a_query_with_nothing_to_attend_to_gives_zeros_and_zero_gradients(method):
    out, cache = sparsek_attention_forward(**_inputs(9, 7), n_select=0, window=0, method=method)
    np.testing.assert_array_equal(out, 0)
    for gradient in sparsek_attention_backward(np.ones_like(out), cache):
        np.testing.assert_array_equal(gradient, 0)


@pytest.mark.parametrize("hard", HARD)
@pytest.mark.parametrize("method", METHODS)
def test_changing_a_token_changes_no_earlier_output_bit_for_bit(method, hard):
    inputs = _inputs(10, 40)
    rng = np.random.default_rng(11)
    for window, n_select in ((0, 5), (3, 5), (7, 2)):
        options = {"n_select": n_select, "window": window, "hard": hard, "method": method}
        before = sparsek_attention(**inputs, **options)
        for t in (0, 1, 17, 39):
            changed = {name: array.copy() for name, array in inputs.items()}
            for array in changed.values():
                array[t] = 5 * rng.standard_normal(array.shape[1:])
            after = sparsek_attention(**changed, **options)
            np.testing.assert_array_equal(after[:t], before[:t])
            assert (after[t] != before[t]).any()


def _require_gradients(inputs: dict[str, np.ndarray], options: dict[str, object], check=check_gradients) -> None:
    """The checker: central differences of the definition in loops; straight through, of its linear surrogate.

    With `hard` the surrogate's gate is ``1 + M_ij(scores) − M_ij(scores at the point)``: one in value, M in slope.
    """
    n = inputs["q"].shape[0]
    window, n_select = options["window"], options["n_select"]
    at_point = [sparsek_by_bisection(inputs["scores"][: max(i - window + 1, 1)], n_select)[0] for i in range(n)]
    straight = {"gate_of": lambda i, j, soft: 1 + soft - at_point[i][j]} if options["hard"] else {}
    out, cache = sparsek_attention_forward(**inputs, **options, method="paper")
    assert row_errors(out, _by_loops(**inputs, **options)).max() <= 1e-12
    check(
        lambda **point: _by_loops(**point, **options, **straight),
        lambda upstream: sparsek_attention_backward(upstream, cache)._asdict(),
        inputs,
        rtol=tolerance("differences").rtol,
        step=1e-4,
    )


@pytest.mark.slow
@pytest.mark.parametrize("hard", HARD)
@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize("window", [0, 1, 3, 10], ids=lambda w: f"w={w}")
def test_gradients_equal_directional_differences_and_the_full_jacobian(away_from_kinks, window, gate, hard):
    options = {"n_select": 3, "window": window, "gate": gate, "hard": hard}
    inputs = _inputs(12, 10, d=2, d_v=1) | {"scores": away_from_kinks(window, 10, 3)}
    _require_gradients(inputs, options)
    _require_gradients(inputs, options, check_jacobian)


ATTENTION_MUTANTS = [
    pytest.param(
        "not problem.gates_values else gates, chosen, v", "True else gates, chosen, v", id="gate dropped on v"
    ),
    pytest.param("not problem.gates_keys else gates, chosen, k", "True else gates, chosen, k", id="gate dropped on k"),
    pytest.param(
        "dgates += query.weights[: chosen.size] * (v[head, chosen] @ dout[head, i])",
        "pass",
        id="gate's gradient dropped on v",
    ),
    pytest.param("state.tau[prefix]", "state.tau[max(prefix - 1, 0)]", id="the threshold not updated"),
    pytest.param("(i < state.selected.exit)", "(i <= state.selected.exit)", id="the interval end off by one"),
    pytest.param("(keys @ q[i]) * np.asarray(problem.scale, q.dtype)", "(keys @ q[i])", id="a missing 1/√d"),
    pytest.param("by_position[i - problem.window] =", "by_position[i] =", id="the window forgotten in the gradient"),
    pytest.param("dq[head, i] = scale", "dq[head, i] = 1.001 * scale", id="a gradient off by a thousandth"),
]


@pytest.mark.parametrize(("right", "wrong"), ATTENTION_MUTANTS)
def test_an_error_planted_in_the_attention_is_caught(plant, monkeypatch, away_from_kinks, right, wrong):
    inputs = _inputs(13, 10) | {"scores": away_from_kinks(2, 10, 3)}
    options = {"n_select": 3, "window": 2, "gate": "kv", "hard": False}
    _require_gradients(inputs, options)
    monkeypatch.setitem(_METHODS, "paper", plant("refattn.sparsek.paper", right, wrong))
    with pytest.raises(AssertionError):
        _require_gradients(inputs, options)
    with pytest.raises(AssertionError):
        _require_agreement(inputs, options)


@pytest.mark.parametrize(("side", "array"), [("keys", "k"), ("values", "v")], ids=["keys", "values"])
def test_a_straight_through_gate_that_leaks_into_the_forward_is_caught(
    plant, monkeypatch, away_from_kinks, side, array
):
    inputs = _inputs(14, 10) | {"scores": away_from_kinks(3, 10, 3)}
    options = {"n_select": 3, "window": 2, "gate": "kv", "hard": True}
    _require_gradients(inputs, options)
    right = f"ones if problem.hard or not problem.gates_{side} else gates, chosen, {array}"
    mutant = plant("refattn.sparsek.paper", right, f"ones if not problem.gates_{side} else gates, chosen, {array}")
    monkeypatch.setitem(_METHODS, "paper", mutant)
    with pytest.raises(AssertionError):
        _require_gradients(inputs, options)


@pytest.mark.parametrize("method", METHODS)
def test_single_precision_is_as_accurate_as_plain_dense_attention(method):
    wide = _inputs(15, 64, d=16, d_v=16)
    narrow = {name: array.astype(np.float32) for name, array in wide.items()}
    exact = {name: array.astype(np.float64) for name, array in narrow.items()}
    out, cache = sparsek_attention_forward(**narrow, n_select=8, window=8, method=method)
    assert out.dtype == np.float32
    assert all(g.dtype == np.float32 for g in sparsek_attention_backward(np.ones_like(out), cache))
    ours = row_errors(out, sparsek_attention(**exact, n_select=8, window=8, method="oracle"))
    plain = row_errors(
        dense_attention(*(narrow[name] for name in "qkv")), dense_attention(*(exact[name] for name in "qkv"))
    )
    assert ours.max() <= 2 * plain.max()


def test_inputs_are_not_written_to():
    inputs = _inputs(16, 12)
    before = {name: array.copy() for name, array in inputs.items()}
    for array in inputs.values():
        array.flags.writeable = False
    out, cache = sparsek_attention_forward(**inputs, n_select=3, window=2)
    sparsek_attention_backward(out, cache)
    for name, array in inputs.items():
        np.testing.assert_array_equal(array, before[name])


BAD = [
    pytest.param({"scores": np.full(5, np.nan)}, r"scores: nan at index \(0,\)", id="NaN scores"),
    pytest.param({"scores": np.full(5, -np.inf)}, r"scores: -inf at index \(0,\), finite", id="infinite scores"),
    pytest.param(
        {"scores": np.ones(4)}, r"scores: shape \(4,\) came, one score per key-value pair \(5,\)", id="n scores"
    ),
    pytest.param({"scores": np.ones((2, 5))}, r"scores: shape \(2, 5\) came", id="scores for heads that do not exist"),
    pytest.param({"scores": 1.0}, r"scores: shape \(\) came", id="one score"),
    pytest.param({"q": np.ones((4, 3))}, r"q: 4 rows came, as many as k has \(5\)", id="another number of queries"),
    pytest.param({"k": np.ones((5, 2))}, "k: last axis 2 came", id="another width"),
    pytest.param({"v": np.full((5, 2), np.inf)}, r"v: inf at index \(0, 0\)", id="infinite values"),
    pytest.param({"n_select": -1}, "n_select: -1 came, at least 0", id="n_select negative"),
    pytest.param({"window": -1}, "window: -1 came, at least 0", id="window negative"),
    pytest.param({"gate": "vk"}, "gate: 'vk' came, one of 'kv', 'k', 'v', 'none'", id="unknown gate"),
    pytest.param({"method": "quick"}, "method: 'quick' came, one of 'fast', 'paper', 'oracle'", id="unknown method"),
    pytest.param({"scale": np.inf}, "scale: inf came, a finite number", id="scale infinite"),
    pytest.param({"q": np.full((5, 3), 1e200), "k": np.full((5, 3), 1e200)}, "q, k: a logit of query", id="overflow"),
]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("change", "message"), BAD)
def test_bad_input_is_refused_by_name(change, message, method):
    with pytest.raises(ValueError, match=message):
        sparsek_attention(**{**_inputs(17, 5), "n_select": 2, "window": 1, "method": method, **change})


def test_wrong_kinds_of_options_and_upstreams_are_refused():
    inputs = _inputs(18, 5)
    with pytest.raises(TypeError, match=r"n_select: 2\.5 came, an integer was wanted"):
        sparsek_attention(**inputs, n_select=2.5)
    with pytest.raises(TypeError, match="hard: 'yes' came, True or False was wanted"):
        sparsek_attention(**inputs, n_select=2, hard="yes")
    cache = sparsek_attention_forward(**inputs, n_select=2)[1]
    with pytest.raises(ValueError, match=r"dout: shape \(5, 3\) came, the output's \(5, 2\) was wanted"):
        sparsek_attention_backward(np.ones((5, 3)), cache)
