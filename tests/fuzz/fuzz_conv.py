"""What conv-basis attention and its parts are fuzzed with."""

from __future__ import annotations

from typing import Any

import numpy as np
from fuzz_inputs import SCALES, Array, Given, Heads, calls, heads, numbers, option
from fuzz_property import Refused, Target, prepared
from fuzz_references import (
    ROUNDINGS,
    Softmax,
    require_gradients,
    require_output,
    require_within,
    softmax,
    unit,
    wide,
)
from hypothesis import strategies as st

from refattn.convbasis import (
    ConvBasis,
    Plan,
    basis_from_starts,
    closeness,
    conv_attention,
    conv_attention_backward,
    conv_attention_forward,
    decompose,
    logit_residual,
    recover,
)

TAME = ("normal", "small", "integers", "equal", "zeros", "one-hot", "1e4", "tiny", "subnormal")
"""Numbers of which a basis can be made."""


def _search(n: int) -> dict[str, Any]:
    return {
        "n_basis": option(n, n, 1, max(1, n // 2)),
        "probe": option(1, 1, max(1, n // 4)),
        "delta": option(0.0, 1e-9, 0.5, 100.0),
        "eps": option(0.0, 0.0, 1e-3),
    }


def _recover(draw: Any) -> dict[str, Any]:
    shapes = heads(draw)
    both = {"q": Array(shapes.q), "k": Array(shapes.k), "scale": SCALES, "check_finite": option(True, True, False)}
    return both | _search(shapes.q[-2])


def _attention(draw: Any) -> dict[str, Any]:
    shapes = heads(draw)
    method = draw(st.sampled_from(("fast", "fast", "fast", "paper", "oracle")))
    plans = (None, None, Plan("direct"), Plan("block transform", 1), Plan("block transform", 16))
    fitting = {
        "q": Array(shapes.q),
        "k": Array(shapes.k),
        "v": Array(shapes.v),
        "mask": option("causal", "causal", "full"),
        "scale": SCALES,
        "method": option(method),
        "plan": option(*(plans if method == "fast" else (None,))),
        "tol": option(None, None, 0.0, 1e-3),
        "check_finite": option(True, True, False),
    }
    if draw(st.sampled_from((True, True, False))):
        return fitting | _search(shapes.q[-2])
    mask = draw(st.sampled_from(("causal", "full")))
    bases = tuple(_basis(draw, shapes.out[:-2] if draw(st.booleans()) else (), shapes.q[-2]) for _ in range(2))
    return fitting | {"mask": option(mask), "basis": Given(bases if mask == "full" else bases[0])}


def _basis(draw: Any, lead: tuple[int, ...], n: int) -> ConvBasis:
    """Draw a basis: any starts from a column of its own on, any kernels."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    terms = int(rng.integers(1, min(n, 4) + 1))
    starts = np.sort(rng.choice(n, terms, replace=False))
    if draw(st.booleans()):
        starts = starts - starts[0]
    kernels = numbers(rng, (*lead, terms, n), draw(st.sampled_from(TAME)), np.float64)
    kernels[np.broadcast_to(np.arange(n) >= n - starts[:, None], kernels.shape)] = 0
    return ConvBasis(np.broadcast_to(starts, (*lead, terms)).copy(), kernels)


def _expected(arguments: dict[str, Any], result: np.ndarray) -> None:
    again = prepared(conv_attention_forward, arguments)
    if not isinstance(again, Refused):  # an iterator is read once
        _expected_forward(arguments, (result, again[1]))


def _logits(cache: Any) -> np.ndarray:
    """Logits of the basis that was used, −inf where masked: entry by entry, from what starts and kernels mean."""
    lower = _dense(cache.basis)
    n = lower.shape[-1]
    above = np.arange(n) > np.arange(n)[:, None]
    upper = -np.inf if cache.upper is None else _dense(cache.upper).swapaxes(-1, -2)
    return np.where(above, upper, lower)


def _dense(basis: ConvBasis) -> np.ndarray:
    *lead, terms, n = basis.kernels.shape
    dense = np.zeros((*lead, n, n), np.longdouble)
    for head in np.ndindex(*lead):
        for term in range(terms):
            for column in range(int(basis.starts[head][term]), n):
                dense[(*head, slice(column, None), column)] = basis.kernels[head][term, : n - column]
    return dense


def _expected_forward(arguments: dict[str, Any], result: Any) -> None:
    out, cache = result
    logits = _logits(cache)
    n, u = logits.shape[-1], unit(out)
    values = np.broadcast_to(_grouped(cache), (*cache.layout.lead, n, out.shape[-1]))
    with np.errstate(all="ignore"):
        weights = np.exp(logits - logits.max(axis=-1, keepdims=True))
        weights = weights / weights.sum(axis=-1, keepdims=True)
        size = np.abs(np.where(np.isneginf(logits), 0, logits)).max(axis=-1, keepdims=True)
    # a row is within tol, or computed directly: then it has the error of differences of its logits
    error = np.minimum(ROUNDINGS * u * (n + size), 1)
    require_output(out, Softmax(values, values, values, weights, error, wide(1.0)), also=min(cache.tol, 1.0))
    if cache.recovered and n == int(cache.basis.n_terms.min()) and cache.upper is None:
        exact_logits = softmax(
            cache.q, cache.k, cache.v, allowed=np.tri(n, dtype=bool), scale=cache.scale, unit=u
        )  # k = n: the basis is exact
        require_output(out, exact_logits, also=min(cache.tol, 1.0))


def _grouped(cache: Any) -> np.ndarray:
    v, group = wide(cache.v), cache.layout.group
    return np.repeat(v, group, axis=-3) if group > 1 else v


def _backward(draw: Any) -> Any:
    arguments = draw(calls(lambda draw: _attention(draw) | {"check_finite": option(True)}))
    made = prepared(conv_attention_forward, arguments)
    if isinstance(made, Refused):
        return made
    return {
        "dout": Array(made[0].shape),
        "cache": Given(made[1]),
        "gradient": option("approximation" if made[1].recovered else "attention", "attention"),
    }


def _expected_backward(arguments: dict[str, Any], result: Any) -> None:
    cache = arguments["cache"]
    n = cache.q.shape[-2]
    if cache.upper is not None or not cache.recovered or int(cache.basis.n_terms.min()) < n:
        return
    # k = n: both gradients are exact attention's, within the FFT's error, which is relative to the largest entry
    right = softmax(cache.q, cache.k, cache.v, allowed=np.tri(n, dtype=bool), scale=cache.scale, unit=unit(cache.q))
    if cache.method == "fast" and all(plan.path == "direct" for plan in cache.plans.ravel()):
        require_gradients(result, arguments["dout"], right)


def _from_starts(draw: Any) -> dict[str, Any]:
    shapes = heads(draw)
    n, d = shapes.q[-2:]
    starts = np.unique(draw(st.lists(st.integers(0, n - 1), min_size=1, max_size=4)))
    both = {"q": Array((n, d)), "k": Array((n, d))}
    return both | {"starts": Given(starts), "scale": SCALES, "check_finite": option(True, True, False)}


def _with_basis(draw: Any) -> dict[str, Any]:
    shapes: Heads = heads(draw)
    basis = _basis(draw, shapes.out[:-2], shapes.q[-2])
    both = {"q": Array(shapes.q), "k": Array(shapes.k), "basis": Given(basis)}
    return both | {"scale": SCALES, "check_finite": option(True, True, False)}


def _closeness(draw: Any) -> dict[str, Any]:
    n, d = heads(draw).q[-2:]
    both = {"q": Array((n, d)), "k": Array((n, d)), "basis": Given(_basis(draw, (), n))}
    return both | {"probe": option(1, 1, 2), "scale": SCALES, "check_finite": option(True, True, False)}


def _triangle(draw: Any) -> dict[str, Any]:
    n = heads(draw).q[-2]
    basis = _basis(draw, (), n)
    return {"h": Given(basis.to_dense()), "atol": option(0.0, 0.0, 1e-3)}


def _expected_decompose(arguments: dict[str, Any], result: ConvBasis) -> None:
    require_within("to_dense", result.to_dense(), wide(arguments["h"]), wide(arguments["atol"]))


def _made(draw: Any) -> dict[str, Any]:
    basis = _basis(draw, draw(st.sampled_from(((), (), (2,)))), heads(draw).q[-2])
    return {"starts": Given(basis.starts), "kernels": Given(basis.kernels)}


def _places(rows: Any, columns: Any, shift: Any, probe: Any) -> Any:
    basis = ConvBasis([0, 3], [[1.0, 2.0, 3.0, 4.0, 5.0], [7.0, 8.0, 0.0, 0.0, 0.0]])
    return (basis.rows(rows), basis.columns(columns)), basis.exp_transform(shift), basis.nondegeneracy(probe)


def _expected_places(arguments: dict[str, Any], result: Any) -> None:
    dense = np.array(
        [[1, 0, 0, 0, 0], [2, 1, 0, 0, 0], [3, 2, 1, 0, 0], [4, 3, 2, 7, 0], [5, 4, 3, 8, 7]], np.longdouble
    )
    require_within("rows", result[0][0], dense[np.asarray(arguments["rows"])], wide(0.0))
    require_within("columns", result[0][1], dense.T[np.asarray(arguments["columns"])], wide(0.0))


def _read(starts: Any, kernels: Any) -> Any:
    basis = ConvBasis(starts, kernels)
    parts = (basis.n, basis.n_terms, basis.sizes, basis.largest, basis.segments())
    return basis.vectors, basis.to_dense(), parts, basis[..., :, :] if basis.starts.ndim > 1 else basis


def _expected_read(arguments: dict[str, Any], result: Any) -> None:
    made = ConvBasis(np.asarray(arguments["starts"]), np.asarray(arguments["kernels"], float))
    require_within("to_dense", result[1], _dense(made), wide(0.0))


TARGETS = (
    Target("conv_attention", conv_attention, calls(_attention), _expected),
    Target("conv_attention_forward", conv_attention_forward, calls(_attention), _expected_forward),
    Target("conv_attention_backward", conv_attention_backward, calls(_backward), _expected_backward),
    Target("recover", recover, calls(_recover)),
    Target("basis_from_starts", basis_from_starts, calls(_from_starts)),
    Target("logit_residual", logit_residual, calls(_with_basis)),
    Target("closeness", closeness, calls(_closeness)),
    Target("decompose", decompose, calls(_triangle), _expected_decompose),
    Target("ConvBasis", _read, calls(_made), _expected_read),
    Target(
        "ConvBasis.rows",
        _places,
        calls(
            lambda _: {
                "rows": Given(np.array([0, 4])),
                "columns": Given(np.array([3])),
                "shift": option(0.0, 9.0),
                "probe": option(1, 2),
            }
        ),
        _expected_places,
        also=("index",),
    ),
)
