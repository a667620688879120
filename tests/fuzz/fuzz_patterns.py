"""What attention to given pairs, and the lists of the patterns, are fuzzed with."""

from __future__ import annotations

from typing import Any

import numpy as np
from fuzz_inputs import SCALES, Array, Given, calls, heads, option
from fuzz_property import Refused, Target, prepared
from fuzz_references import Softmax, require_gradients, require_output, softmax, unit
from hypothesis import strategies as st

from refattn.patterns import (
    fixed_indices,
    hashed_indices,
    indexed_attention,
    indexed_attention_backward,
    indexed_attention_forward,
    random_block_indices,
    routed_indices,
    strided_indices,
)


def _lists(draw: Any, n_q: int, n_k: int) -> np.ndarray:
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    return np.where(rng.random((n_q, n_k)) < 0.6, np.arange(n_k), -1)[:, rng.permutation(n_k)]


def _attention(draw: Any) -> dict[str, Any]:
    shapes = heads(draw)
    return {
        "q": Array(shapes.q),
        "k": Array(shapes.k),
        "v": Array(shapes.v),
        "indices": Given(_lists(draw, shapes.q[-2], shapes.k[-2])),
        "scale": SCALES,
        "method": option("fast", "fast", "oracle"),
        "check_finite": option(True, True, False),
    }


def _exact(arguments: dict[str, Any], u: float) -> Softmax:
    q, k, v = (arguments[x] for x in "qkv")
    lists = np.asarray(arguments["indices"])
    allowed = (lists[..., None] == np.arange(np.shape(k)[-2])).any(axis=-2)
    return softmax(q, k, v, allowed=allowed, scale=arguments["scale"], unit=u)


def _expected(arguments: dict[str, Any], result: np.ndarray) -> None:
    require_output(result, _exact(arguments, unit(result)))


def _backward(draw: Any) -> Any:
    arguments = draw(calls(lambda draw: _attention(draw) | {"check_finite": option(True)}))
    made = prepared(indexed_attention_forward, arguments)
    return made if isinstance(made, Refused) else {"dout": Array(made[0].shape), "cache": Given(made[1])}


def _expected_backward(arguments: dict[str, Any], result: Any) -> None:
    fields = {name: getattr(arguments["cache"], name) for name in ("q", "k", "v", "indices", "scale")}
    require_gradients(result, arguments["dout"], _exact(fields, unit(fields["q"])))


def _vectors(draw: Any) -> dict[str, Any]:
    return {"x": Array(heads(draw).q), "seed": option(0, 7)}


TARGETS = (
    Target("indexed_attention", indexed_attention, calls(_attention), _expected),
    Target("indexed_attention_forward", indexed_attention_forward, calls(_attention), lambda a, r: _expected(a, r[0])),
    Target("indexed_attention_backward", indexed_attention_backward, calls(_backward), _expected_backward),
    Target("strided_indices", strided_indices, calls(lambda _: {"n": option(1, 7, 60), "stride": option(1, 5, 100)})),
    Target(
        "fixed_indices",
        fixed_indices,
        calls(lambda _: {"n": option(1, 7, 60), "block": option(3, 5, 100), "summaries": option(1, 3)}),
    ),
    Target(
        "random_block_indices",
        random_block_indices,
        calls(
            lambda _: {
                "n": option(1, 7, 60),
                "block": option(1, 4, 100),
                "n_window": option(1, 3),
                "n_random": option(0, 2),
                "n_global": option(0, 2),
                "heads": option(1, 2),
                "seed": option(0, 7),
            }
        ),
    ),
    Target(
        "hashed_indices",
        hashed_indices,
        calls(lambda draw: _vectors(draw) | {"n_buckets": option(2, 8), "chunk": option(1, 4), "rounds": option(1, 2)}),
    ),
    Target(
        "routed_indices",
        routed_indices,
        calls(
            lambda draw: (
                _vectors(draw) | {"n_clusters": option(1, 4), "members": option(1, 5), "decay": option(0.5, 1.0)}
            )
        ),
    ),
)
