"""What low-rank attention and masked products are fuzzed with."""

from __future__ import annotations

from typing import Any

import numpy as np
from fuzz_inputs import SCALES, Array, Given, calls, heads, option
from fuzz_property import Refused, Target, prepared
from fuzz_references import Softmax, require_gradients, require_output, require_within, softmax, unit, wide
from hypothesis import strategies as st

from refattn import Causal
from refattn.lowrank import (
    DistinctRowsMask,
    EluFeatures,
    PolynomialFeatures,
    RandomFeatures,
    as_row_change,
    logit_bound,
    lowrank_attention,
    lowrank_attention_backward,
    lowrank_attention_forward,
    lowrank_bound,
    masked_product,
    masked_product_backward,
    masked_product_forward,
    prefix_lm,
    sliding_window,
)

SMALL = ("small", "small", "small", "zeros", "tiny", "subnormal", "normal")


def structure(draw: Any, n: int) -> Any:
    """Draw a mask of every kind."""
    window = sliding_window(n, draw(st.sampled_from((1, 2, n))))
    patterns = np.random.default_rng(draw(st.integers(0, 99))).random((2, n)) < 0.5
    rows = DistinctRowsMask(patterns, np.arange(n) % 2)
    masks = (prefix_lm(n, 0), window, prefix_lm(n, n), as_row_change(window), rows, rows.transpose())
    return draw(st.sampled_from(masks))


def _features(draw: Any, width: int, error: float | None) -> dict[str, Any]:
    if error is not None:
        return {"error": option(error), "scale": SCALES}
    some = (
        PolynomialFeatures(width, 4, 0.5),
        PolynomialFeatures(width, 6, 2.0, kind="taylor"),
        RandomFeatures(width, 8, 0),
        EluFeatures(width),
    )
    return {"features": option(*some)}


def _attention(draw: Any) -> dict[str, Any]:
    shapes = heads(draw, widths=(1, 2, 3))
    fitting = {
        "q": Array(shapes.q, SMALL),
        "k": Array(shapes.k, SMALL),
        "v": Array(shapes.v),
        "mask": option("causal", "full", Causal(), structure(draw, shapes.q[-2])),
        "method": option("fast", "fast", "paper", "oracle"),
        "check_finite": option(True, True, False),
    }
    return fitting | _features(draw, shapes.q[-1], draw(st.sampled_from((None, 1e-3, 1e-6))))


def _exact(cache: Any) -> Softmax:
    n = cache.q.shape[-2]
    allowed = np.broadcast_to(cache.mask.to_dense(), (n, n))
    return softmax(cache.q, cache.k, cache.v, allowed=allowed, scale=cache.features.scale, unit=unit(cache.q))


def _expected(arguments: dict[str, Any], result: np.ndarray) -> None:
    again = prepared(lowrank_attention_forward, arguments)
    if not isinstance(again, Refused):
        _expected_forward(arguments, (result, again[1]))


def _expected_forward(arguments: dict[str, Any], result: Any) -> None:
    out, cache = result
    if cache.bound is not None:
        largest = float(np.abs(cache.v).max())
        allowed = cache.bound / largest if largest else 0.0
        require_output(out, _exact(cache), also=allowed + 1e-6)


def _backward(draw: Any) -> Any:
    made = prepared(lowrank_attention_forward, draw(calls(_attention)))
    return made if isinstance(made, Refused) else {"dout": Array(made[0].shape), "cache": Given(made[1])}


def _expected_backward(arguments: dict[str, Any], result: Any) -> None:
    cache = arguments["cache"]
    if cache.features.error is not None and cache.features.error < 1e-5 and np.abs(cache.v).max() < 1e30:
        # the polynomial's derivative, of degree g on [−B, B], is off by g²/B times the polynomial's error (Markov)
        also = 100 * cache.features.error * (1 + cache.features.degree) ** 2 / cache.features.bound + 1e-6
        also = min(also, 1.0)
        require_gradients(result, arguments["dout"], _exact(cache), also=also)


def _product(draw: Any) -> dict[str, Any]:
    *lead, n, rank = heads(draw).q
    d = draw(st.sampled_from((1, 3)))
    return {
        "u1": Array((*lead, n, rank)),
        "u2": Array((*lead, n, rank)),
        "v": Array((*lead, n, d)),
        "mask": Given(draw(st.sampled_from((Causal(), structure(draw, n))))),
        "method": option("fast", "fast", "paper", "oracle"),
    }


def _expected_product(arguments: dict[str, Any], result: np.ndarray) -> None:
    u1, u2, v = (wide(arguments[name]) for name in ("u1", "u2", "v"))
    mask = arguments["mask"]
    W = np.tri(v.shape[-2], dtype=bool) if isinstance(mask, Causal) else mask.to_dense()
    right = np.where(W, u1 @ u2.swapaxes(-1, -2), 0) @ v
    # running sums pass through what a row does not see
    size = (np.abs(u1) @ np.abs(u2).swapaxes(-1, -2)) @ np.abs(v)
    n, tiny = v.shape[-2], float(np.finfo(np.float64).tiny)
    bound = 32 * (n + u1.shape[-1]) * np.finfo(np.float64).eps * size + unit(result) * np.abs(right)
    sizes = (1 + np.abs(u1).sum(axis=-1, keepdims=True)) * (1 + np.abs(v).max(axis=-2, keepdims=True))
    underflow = tiny * n * sizes + float(np.finfo(result.dtype).tiny)  # of either product that may come first
    require_within("product", result, right, bound + underflow)


def _product_backward(draw: Any) -> Any:
    made = prepared(masked_product_forward, draw(calls(_product)))
    return made if isinstance(made, Refused) else {"dout": Array(made[0].shape), "cache": Given(made[1])}


def _bounded(draw: Any) -> dict[str, Any]:
    shapes = heads(draw)
    return {"q": Array(shapes.q), "k": Array(shapes.k), "scale": SCALES}


def _expected_bound(arguments: dict[str, Any], result: float) -> None:
    q, k = wide(arguments["q"]), wide(arguments["k"])
    if q.ndim == k.ndim == 2:
        scale = 1 / np.sqrt(q.shape[-1]) if arguments["scale"] is None else arguments["scale"]
        largest = np.abs(q @ k.T * np.longdouble(scale)).max()
        assert result >= largest * (1 - 1e-12) - 1e-300, f"{result} is no bound on {largest}"


def _factors(features: Any, q: Any, k: Any) -> Any:
    u1, u2 = features.factors(q, k)
    return (u1, u2), features.attention_factors(q, k), features.pullback(q, k, u1, u2, u1, u2)


@st.composite
def _of_features(draw: Any) -> dict[str, Any]:
    shapes = heads(draw, widths=(1, 2, 3))
    features = draw(_features(draw, shapes.q[-1], None)["features"].strategy)
    return {"features": features} | draw(calls(lambda _: {"q": Array(shapes.q, SMALL), "k": Array(shapes.k, SMALL)}))


def _polynomial(width: Any, degree: Any, bound: Any, scale: Any, kind: Any) -> Any:
    made = PolynomialFeatures(width, degree, bound, scale=scale, kind=kind)
    q = np.zeros((2, made.width))
    return made.factors(q, q), made.error, made.least_entry


def _random(width: Any, rank: Any, seed: Any, scale: Any, orthogonal: Any) -> Any:
    made = RandomFeatures(width, rank, seed, scale=scale, orthogonal=orthogonal)
    if made.rank * made.width > 10**6:
        return None
    q = np.zeros((2, made.width))
    return made.relative_variance(q, q)


TARGETS = (
    Target("lowrank_attention", lowrank_attention, calls(_attention), _expected),
    Target("lowrank_attention_forward", lowrank_attention_forward, calls(_attention), _expected_forward),
    Target("lowrank_attention_backward", lowrank_attention_backward, calls(_backward), _expected_backward),
    Target("masked_product", masked_product, calls(_product), _expected_product),
    Target("masked_product_forward", masked_product_forward, calls(_product), lambda a, r: _expected_product(a, r[0])),
    Target("masked_product_backward", masked_product_backward, calls(_product_backward)),
    Target("FeatureMap", _factors, _of_features()),
    Target("logit_bound", logit_bound, calls(_bounded), _expected_bound, infinite=True),
    Target(
        "lowrank_bound",
        lowrank_bound,
        calls(lambda _: {"error": option(0.0, 0.5, 0.999), "v_max": option(0.0, 1.0, 1e300)}),
        infinite=True,
    ),
    Target(
        "PolynomialFeatures",
        _polynomial,
        calls(
            lambda _: {
                "width": option(1, 3, 8),
                "degree": option(0, 3, 6),
                "bound": option(0.5, 1e-9, 10.0),
                "scale": SCALES,
                "kind": option("chebyshev", "taylor"),
            }
        ),
        infinite=True,
    ),
    Target("EluFeatures", lambda width: EluFeatures(width).rank, calls(lambda _: {"width": option(1, 3)})),
    Target(
        "RandomFeatures",
        _random,
        calls(
            lambda _: {
                "width": option(1, 3),
                "rank": option(1, 5),
                "seed": option(0, 7),
                "scale": SCALES,
                "orthogonal": option(True, False),
            }
        ),
    ),
)
