"""What the public test tools that take arrays or sizes are fuzzed with."""

from __future__ import annotations

from typing import Any

import numpy as np
from fuzz_inputs import Array, calls, heads, option
from fuzz_property import Target

from refattn.testing import (
    GradientMismatchError,
    attention_inputs,
    check_gradients,
    check_jacobian,
    relative_error,
    rope_structured,
    row_errors,
    tolerance,
)

SEED = option(0, 5)


def _pair(draw: Any) -> dict[str, Any]:
    shape = heads(draw).q
    return {"result": Array(shape), "reference": Array(shape)}


def _check(check: Any) -> Any:
    """A check of the cube's gradient at one point: that it disagrees at the edge of the numbers is an answer."""

    def checked(x: Any, rtol: Any, step: Any, method: Any) -> Any:
        def cube(x: np.ndarray) -> np.ndarray:
            with np.errstate(all="ignore"):
                return x**3

        def gradient(upstream: np.ndarray) -> dict[str, np.ndarray]:
            with np.errstate(all="ignore"):
                return {"x": 3 * np.square(np.asarray(x, float)) * upstream}

        try:
            return check(cube, gradient, {"x": x}, rtol=rtol, step=step, method=method)
        except GradientMismatchError as mismatch:
            return str(mismatch)

    return checked


def _point(draw: Any) -> dict[str, Any]:
    shape = (heads(draw).q[-1],)
    return {
        "x": Array(shape),
        "rtol": option(1e-6, 0.0),
        "step": option(1e-3, 1e-2),
        "method": option("central", "complex-step"),
    }


SIZES = {"n": option(1, 2, 9), "d": option(1, 2, 3), "seed": SEED, "deviation": option(0.0, 1.0, 1e300)}
SHAPES = {"lead": option((), (2,)), "d_v": option(None, 1, 4), "dtype": option("float32", np.float64)}

TARGETS = (
    Target("row_errors", row_errors, calls(_pair), infinite=True),
    Target("relative_error", relative_error, calls(_pair), infinite=True),
    Target("check_gradients", _check(check_gradients), calls(_point), also=("inputs",), infinite=True),
    Target("check_jacobian", _check(check_jacobian), calls(_point), also=("inputs",), infinite=True),
    Target(
        "attention_inputs",
        attention_inputs,
        calls(lambda _: SIZES | SHAPES | {"kind": option("normal", "constant", "one-hot"), "kv_lead": option(None)}),
    ),
    Target(
        "rope_structured",
        rope_structured,
        calls(lambda _: SIZES | SHAPES | {"starts": option(1, [0], (0,)), "base": option(10_000.0, 2.0)}),
    ),
    Target(
        "tolerance",
        tolerance,
        calls(lambda _: {"name": option("reordered", "rounding", "stored"), "dtype": option("float32", np.float64)}),
    ),
)
