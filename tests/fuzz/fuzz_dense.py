"""What dense attention and the masks are fuzzed with."""

from __future__ import annotations

from typing import Any

import numpy as np
from fuzz_inputs import SCALES, Array, Given, Heads, calls, heads, option
from fuzz_property import Refused, Target, prepared
from fuzz_references import require_gradients, require_output, softmax, unit
from hypothesis import strategies as st

from refattn import (
    Causal,
    SlidingWindow,
    dense_attention,
    dense_attention_backward,
    dense_attention_forward,
)

ALIGNMENTS = option(None, "top-left", "bottom-right", 0, 1)


def _mask(draw: Any, shapes: Heads) -> Any:
    n_q, n_k = shapes.q[-2], shapes.k[-2]
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    same = n_q == n_k
    bias = np.where(rng.random((n_q, n_k)) < 0.3, -np.inf, rng.standard_normal((n_q, n_k)))
    masks = [
        "causal" if same else "full",
        "full",
        Causal("bottom-right"),
        Causal("top-left"),
        SlidingWindow(draw(st.integers(1, 5)), draw(st.integers(0, 2)), "bottom-right"),
        rng.random((n_q, n_k)) < 0.5,
        bias,
        (Causal("top-left"), rng.random((n_q, n_k)) < 0.7),
    ]
    return draw(st.sampled_from(range(len(masks)))), masks


def _attention(draw: Any) -> dict[str, Any]:
    shapes = heads(draw, square=draw(st.booleans()))
    number, masks = _mask(draw, shapes)
    return {
        "q": Array(shapes.q),
        "k": Array(shapes.k),
        "v": Array(shapes.v),
        "mask": Given(masks[number]),
        "scale": SCALES,
        "softcap": option(None, None, 5.0, 1e-3, 1e4),
        "block": option(None, 1, 3, 100),
        "method": option("fast", "fast", "oracle"),
        "check_finite": option(True, True, False),
    }


def allowed_and_bias(mask: Any, n_q: int, n_k: int) -> tuple[np.ndarray, np.ndarray]:
    """Read a mask without the package: by its documented meaning."""
    i, j = np.arange(n_q)[:, None], np.arange(n_k)
    if isinstance(mask, tuple):
        parts = [allowed_and_bias(part, n_q, n_k) for part in mask]
        allowed, bias = np.ones((n_q, n_k), bool), np.zeros((n_q, n_k), np.longdouble)
        for one, other in parts:
            allowed, bias = allowed & one, bias + other
        return allowed, bias
    zero = np.zeros((n_q, n_k), np.longdouble)
    if isinstance(mask, str):
        return (j <= i) | (mask == "full"), zero
    if isinstance(mask, (Causal, SlidingWindow)):
        offset = {None: 0, "top-left": 0, "bottom-right": n_k - n_q}.get(mask.alignment, mask.alignment)
        past = j <= i + offset
        if isinstance(mask, Causal):
            return past, zero
        return past & ((j > i + offset - mask.window) | (j < mask.sinks)), zero
    array = np.asarray(mask)
    if array.dtype == bool:
        return array, zero
    return array > -np.inf, np.asarray(array, np.longdouble)


def _reference(arguments: dict[str, Any], result_unit: float) -> Any:
    q, k = np.asarray(arguments["q"]), np.asarray(arguments["k"])
    allowed, bias = allowed_and_bias(arguments.get("mask", "causal"), q.shape[-2], k.shape[-2])
    names = ("q", "k", "v", "scale", "softcap")
    return softmax(**{x: arguments.get(x) for x in names}, allowed=allowed, bias=bias, unit=result_unit)


def _expected(arguments: dict[str, Any], result: np.ndarray) -> None:
    require_output(result, _reference(arguments, unit(result)))


def _expected_forward(arguments: dict[str, Any], result: Any) -> None:
    _expected(arguments, result[0])


def _backward(draw: Any) -> Any:
    fitting = {**_attention(draw), "check_finite": option(True), "softcap": option(None)}
    made = prepared(dense_attention_forward, draw(calls(lambda _: fitting)))
    if isinstance(made, Refused):
        return made
    return {"dout": Array(made[0].shape), "cache": Given(made[1])}


def _expected_backward(arguments: dict[str, Any], result: Any) -> None:
    cache = arguments["cache"]
    n_q, n_k = cache.q.shape[-2], cache.k.shape[-2]
    allowed = np.broadcast_to(cache.mask.allowed(slice(0, n_q)), (*cache.layout.inner, n_q, n_k))
    bias = sum((np.broadcast_to(b, allowed.shape) for b in cache.mask.biases), np.zeros(allowed.shape))
    lead = (*cache.layout.lead, n_q, n_k)
    right = softmax(
        cache.q, cache.k, cache.v, allowed=allowed.reshape(lead), bias=bias.reshape(lead),
        scale=np.asarray(cache.scale, cache.q.dtype), unit=unit(cache.q),
    )  # fmt: skip
    require_gradients(result, arguments["dout"], right)


def _rows(pattern: Any, rows: slice, n_q: int, n_k: int) -> np.ndarray:
    return pattern.allowed(rows, n_q, n_k)


def _causal(alignment: Any) -> np.ndarray:
    return Causal(alignment).allowed(slice(0, 2), 2, 3)


def _window(window: Any, sinks: Any, alignment: Any) -> np.ndarray:
    return SlidingWindow(window, sinks, alignment).allowed(slice(0, 2), 2, 3)


TARGETS = (
    Target("dense_attention", dense_attention, calls(_attention), _expected),
    Target("dense_attention_forward", dense_attention_forward, calls(_attention), _expected_forward),
    Target("dense_attention_backward", dense_attention_backward, calls(_backward), _expected_backward),
    Target("Causal", _causal, calls(lambda _: {"alignment": ALIGNMENTS}), also=("mask",)),
    Target(
        "SlidingWindow",
        _window,
        calls(lambda _: {"window": option(1, 2, 5), "sinks": option(0, 1), "alignment": ALIGNMENTS}),
        also=("mask",),
    ),
)
