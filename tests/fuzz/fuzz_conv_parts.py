"""What the parts of conv-basis attention that stand alone are fuzzed with: Toeplitz products, bounds, plans."""

from __future__ import annotations

from typing import Any

import numpy as np
from fuzz_inputs import Array, calls, heads, option
from fuzz_property import Target
from fuzz_references import require_within, unit, wide

from refattn.convbasis import (
    Plan,
    choose_plan,
    conv_matrix,
    conv_product,
    convolution_error,
    correlation,
    inference_bound,
    posterior_bound,
    sharp_bound,
    subconv_matrix,
    subconv_product,
)

NUMBER = option(0.0, 0.5, 1e-300, 3.0, 800.0, 1e300)
COUNT = option(1, 2, 7, 64, 1000)


def _vector(draw: Any) -> dict[str, Any]:
    return {"a": Array((heads(draw).q[-2],))}


def _block(draw: Any) -> dict[str, Any]:
    n = heads(draw).q[-2]
    return {"a": Array((n,)), "m": option(1, n, max(1, n // 2))}


def _product(draw: Any) -> dict[str, Any]:
    shapes = heads(draw)
    n, d = shapes.q[-2:]
    return {"a": Array((n,)), "x": Array((n, d) if len(shapes.q) == 2 else (n,)), "method": option("fft", "direct")}


def _block_product(draw: Any) -> dict[str, Any]:
    fitting = _product(draw)
    return fitting | {"m": option(1, fitting["a"].shape[0])}


def _two_sets(draw: Any) -> dict[str, Any]:
    m, d = heads(draw).q[-2:]
    return {"a": Array((m, d)), "b": Array((max(1, m // 2), d))}


def _toeplitz(a: Any) -> np.ndarray:
    a = wide(a)
    lag = np.arange(a.size)[:, None] - np.arange(a.size)
    return np.where(lag >= 0, a[np.maximum(lag, 0)], 0)


def _expected_matrix(arguments: dict[str, Any], result: np.ndarray) -> None:
    n = result.shape[0]
    m = int(arguments.get("m", n))
    right = np.zeros((n, n), np.longdouble)
    right[n - m :, n - m :] = _toeplitz(np.asarray(arguments["a"])[:m])
    require_within("matrix", result, right, wide(0.0))


def _expected_product(arguments: dict[str, Any], result: np.ndarray) -> None:
    n = result.shape[0]
    m = int(arguments.get("m", n))
    a, x = np.asarray(arguments["a"])[:m], wide(arguments["x"])
    columns = x.reshape(n, -1)
    right, size = np.zeros(columns.shape, np.longdouble), np.zeros(columns.shape, np.longdouble)
    right[n - m :] = _toeplitz(a) @ columns[n - m :]
    size[n - m :] = _toeplitz(np.abs(a)) @ np.abs(columns[n - m :])
    if arguments["method"] == "fft":  # relative to the largest entry that could be
        size[:] = np.abs(wide(a)).sum() * np.abs(columns).max(axis=0)
    u, tiny = unit(result), float(np.finfo(result.dtype).tiny)
    require_within("product", result, right.reshape(x.shape), (32 * u * n * size + n * tiny).reshape(x.shape))


def _expected_correlation(arguments: dict[str, Any], result: np.ndarray) -> None:
    a, b = wide(arguments["a"]), wide(arguments["b"])
    m, s = a.shape[0], b.shape[0]
    right = np.array([(a[t : t + s] * b[: m - t]).sum() for t in range(m)])
    size = (np.abs(a).sum(axis=0) * np.abs(b).max(axis=0)).sum()
    tiny = float(np.finfo(result.dtype).tiny)
    require_within("correlation", result, right, 32 * unit(result) * m * size + m * a.shape[1] * tiny)


TARGETS = (
    Target("conv_matrix", conv_matrix, calls(_vector), _expected_matrix),
    Target("subconv_matrix", subconv_matrix, calls(_block), _expected_matrix),
    Target("conv_product", conv_product, calls(_product), _expected_product),
    Target("subconv_product", subconv_product, calls(_block_product), _expected_product),
    Target("correlation", correlation, calls(_two_sets), _expected_correlation),
    Target("inference_bound", inference_bound, calls(lambda _: {"eps": NUMBER, "v_max": NUMBER}), infinite=True),
    Target("posterior_bound", posterior_bound, calls(lambda _: {"residual": NUMBER, "v_max": NUMBER}), infinite=True),
    Target("sharp_bound", sharp_bound, calls(lambda _: {"residual": NUMBER, "v_max": NUMBER}), infinite=True),
    Target(
        "convolution_error",
        convolution_error,
        calls(
            lambda _: {
                "length": COUNT,
                "dtype": option("float32", "float64", np.float32),
                "factors": Array((3,)),
                "product": Array((3,)),
            }
        ),
        infinite=True,
    ),
    Target("Plan", Plan, calls(lambda _: {"path": option("direct", "block transform"), "block": option(0, 1, 64)})),
    Target(
        "choose_plan",
        choose_plan,
        calls(lambda _: {"n": COUNT, "k": COUNT, "d": COUNT, "dtype": option("float32", np.float64)}),
    ),
)
