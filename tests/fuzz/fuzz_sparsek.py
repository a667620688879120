"""What SparseK attention, its operator, its prefixes, its scores and its cache are fuzzed with."""

from __future__ import annotations

from typing import Any

import numpy as np
from fuzz_inputs import SCALES, Array, Given, calls, heads, numbers, option
from fuzz_property import Refused, Target, prepared
from fuzz_references import Softmax, require_gradients, require_output, require_within, softmax, unit, wide
from hypothesis import strategies as st

from refattn.sparsek import (
    SparseKCache,
    prefix_pullback,
    prefix_thresholds,
    selection_intervals,
    sparsek_attention,
    sparsek_attention_backward,
    sparsek_attention_forward,
    sparsek_by_bisection,
    sparsek_jacobian,
    sparsek_jvp,
    sparsek_operator,
    sparsek_scores,
    sparsek_scores_backward,
    sparsek_scores_forward,
    sparsek_threshold,
    sparsek_vjp,
    support_intervals,
)

BUDGET = option(0, 1, 2, 2.5, 1e-3, 100)


def _attention(draw: Any) -> dict[str, Any]:
    shapes = heads(draw)
    return {
        "q": Array(shapes.q),
        "k": Array(shapes.k),
        "v": Array(shapes.v),
        "scores": Array(shapes.k[:-1]),
        "n_select": option(0, 1, 2, 4, 100),
        "window": option(0, 1, 2, 5, 100),
        "gate": option("kv", "k", "v", "none"),
        "hard": option(False, False, True),
        "scale": SCALES,
        "method": option("fast", "fast", "fast", "paper", "oracle"),
        "check_finite": option(True, True, False),
    }


def _room(arguments: dict[str, Any]) -> bool:
    """Whether every pair is attended to, so that SparseK attention is exact causal attention."""
    return int(arguments["n_select"]) + int(arguments["window"]) >= np.shape(arguments["k"])[-2]


def _exact(arguments: dict[str, Any], u: float) -> Softmax:
    n = np.shape(arguments["q"])[-2]
    q, k, v = (arguments[x] for x in "qkv")
    return softmax(q, k, v, allowed=np.tri(n, dtype=bool), scale=arguments["scale"], unit=u)


def _expected(arguments: dict[str, Any], result: np.ndarray) -> None:
    if _room(arguments):
        require_output(result, _exact(arguments, unit(result)))
    v = wide(arguments["v"])  # weights sum to one and gates are at most one
    largest = np.abs(v).max() * (1 + 1e-5) + float(np.finfo(result.dtype).tiny)
    require_within("out", result, np.zeros(result.shape, np.longdouble), largest)


def _backward(draw: Any) -> Any:
    arguments = draw(calls(lambda draw: _attention(draw) | {"check_finite": option(True)}))
    made = prepared(sparsek_attention_forward, arguments)
    return made if isinstance(made, Refused) else {"dout": Array(made[0].shape), "cache": Given(made[1])}


def _expected_backward(arguments: dict[str, Any], result: Any) -> None:
    problem = arguments["cache"].problem
    if problem.n_select + problem.window >= problem.k.shape[-2]:
        fields = {name: getattr(problem, name) for name in ("q", "k", "v", "scale")}
        require_gradients(result, arguments["dout"], _exact(fields, unit(problem.q)))


def _scores(draw: Any) -> Array:
    return Array(heads(draw).k[:-1])


def _operator(draw: Any) -> dict[str, Any]:
    return {"z": _scores(draw), "k": BUDGET, "axis": option(-1, -1, 0)}


def _expected_operator(arguments: dict[str, Any], result: np.ndarray) -> None:
    z = np.asarray(arguments["z"], np.float64)
    right, _ = sparsek_by_bisection(np.moveaxis(z, int(arguments["axis"]), -1), arguments["k"])
    right = np.moveaxis(right, -1, int(arguments["axis"]))
    require_within("p", result, wide(right), 8 * unit(result) * z.size + 1e-15)


def _value(draw: Any, *others: str) -> dict[str, Any]:
    z = numbers(np.random.default_rng(draw(st.integers(0, 99))), _scores(draw).shape, "normal", np.float64)
    p = sparsek_operator(z, draw(st.sampled_from((0, 1, 2.5))))
    return {"p": Given(p), **{name: Array(p.shape) for name in others}}


def _intervals(draw: Any) -> dict[str, Any]:
    z = numbers(np.random.default_rng(draw(st.integers(0, 99))), _scores(draw).shape, "normal", np.float64)
    found = support_intervals(z, prefix_thresholds(z, draw(st.sampled_from((0, 1, 2.5)))))
    return {"by_position": Array(z.shape), "by_entry": Array(z.shape), "intervals": Given(found)}


def _support(draw: Any) -> dict[str, Any]:
    z = numbers(np.random.default_rng(draw(st.integers(0, 99))), _scores(draw).shape, "normal", np.float64)
    return {"z": Given(z), "tau": Given(prefix_thresholds(z, draw(st.sampled_from((0, 1, 2.5)))))}


def _network(draw: Any) -> dict[str, Any]:
    *lead, n, width = heads(draw).q
    return {
        "x": Array((*lead, n, width)),
        "weight": Array((2, width)),
        "slope": Array((2,)),
        "normalise": option(False, True),
        "eps": option(1e-5, 1.0, 1e-300),
    }


def _network_backward(draw: Any) -> Any:
    made = prepared(sparsek_scores_forward, draw(calls(_network)))
    return made if isinstance(made, Refused) else {"dscores": Array(made[0].shape), "cache": Given(made[1])}


def _expected_scores(arguments: dict[str, Any], result: np.ndarray) -> None:
    if arguments["normalise"]:
        return
    x, w, slope = (wide(arguments[name]) for name in ("x", "weight", "slope"))
    position = np.arange(x.shape[-2]) * slope[:, None]
    right = w @ x.swapaxes(-1, -2) + position
    size = np.abs(w) @ np.abs(x).swapaxes(-1, -2) + np.abs(position)
    tiny = float(np.finfo(result.dtype).tiny) * x.shape[-1]
    require_within("scores", result, right, 4 * unit(result) * (x.shape[-1] + 2) * size + tiny)


def _cache_options() -> dict[str, Any]:
    return {
        "n_select": option(0, 1, 2, 5),
        "window": option(0, 1, 3),
        "gate": option("kv", "k", "v", "none"),
        "hard": option(False, True),
        "scale": SCALES,
    }


def _tokens(draw: Any) -> dict[str, Any]:
    shapes = heads(draw)
    arrays = {"q": Array(shapes.q), "k": Array(shapes.k), "v": Array(shapes.v), "scores": Array(shapes.k[:-1])}
    return arrays | _cache_options()


def _prefill(q: Any, k: Any, v: Any, scores: Any, **options: Any) -> np.ndarray:
    return SparseKCache(**options).prefill(q, k, v, scores)


def _steps(q: Any, k: Any, v: Any, score: Any, n_select: Any, window: Any, gate: Any, hard: Any, scale: Any) -> Any:
    cache = SparseKCache(n_select, window, gate=gate, hard=hard, scale=scale)
    return [cache.step(q, k, v, score) for _ in range(5)], cache.nbytes


def _token(draw: Any) -> dict[str, Any]:
    shapes = heads(draw)
    lead, kv_lead = shapes.q[:-2], shapes.k[:-2]
    arrays = {
        "q": Array((*lead, shapes.q[-1])),
        "k": Array((*kv_lead, shapes.k[-1])),
        "v": Array((*kv_lead, shapes.v[-1])),
        "score": Array(kv_lead),
    }
    return arrays | _cache_options()


OPTIONS = ("n_select", "window", "gate", "hard", "scale")
THRESHOLDS = {"z": None, "k": BUDGET, "method": option("fast", "paper", "oracle")}

TARGETS = (
    Target("sparsek_attention", sparsek_attention, calls(_attention), _expected),
    Target("sparsek_attention_forward", sparsek_attention_forward, calls(_attention), lambda a, r: _expected(a, r[0])),
    Target("sparsek_attention_backward", sparsek_attention_backward, calls(_backward), _expected_backward),
    Target("sparsek_operator", sparsek_operator, calls(_operator), _expected_operator),
    Target("sparsek_threshold", sparsek_threshold, calls(_operator), infinite=True),
    Target(
        "sparsek_by_bisection",
        sparsek_by_bisection,
        calls(lambda draw: {"z": _scores(draw), "k": BUDGET}),
        infinite=True,
    ),
    Target(
        "sparsek_jvp",
        sparsek_jvp,
        calls(lambda draw: _value(draw, "dz") | {"dk": option(0.0, 1.0), "axis": option(-1, -1, 0)}),
    ),
    Target("sparsek_vjp", sparsek_vjp, calls(lambda draw: _value(draw, "dp") | {"axis": option(-1, -1, 0)})),
    Target("sparsek_jacobian", sparsek_jacobian, calls(_value)),
    Target(
        "prefix_thresholds",
        prefix_thresholds,
        calls(lambda draw: THRESHOLDS | {"z": _scores(draw)}),
        infinite=True,
    ),
    Target(
        "selection_intervals",
        selection_intervals,
        calls(
            lambda draw: {
                "z": _scores(draw),
                "n_select": option(0, 1, 3, 100),
                "window": option(0, 1, 100),
                "method": option("fast", "paper"),
            }
        ),
    ),
    Target("support_intervals", support_intervals, calls(_support)),
    Target("prefix_pullback", prefix_pullback, calls(_intervals)),
    Target("sparsek_scores", sparsek_scores, calls(_network), _expected_scores),
    Target("sparsek_scores_forward", sparsek_scores_forward, calls(_network), lambda a, r: _expected_scores(a, r[0])),
    Target("sparsek_scores_backward", sparsek_scores_backward, calls(_network_backward)),
    Target("SparseKCache.prefill", _prefill, calls(_tokens), also=OPTIONS),
    # the check that a step shares with `sparsek_attention` calls its score by the name it has there
    Target("SparseKCache.step", _steps, calls(_token), also=("scores",)),
)
