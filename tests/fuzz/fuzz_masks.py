"""What the structured masks and the polynomials of low-rank attention are fuzzed with."""

from __future__ import annotations

from typing import Any

import numpy as np
from fuzz_inputs import Given, calls, option
from fuzz_lowrank import structure
from fuzz_property import Target
from hypothesis import strategies as st

from refattn.lowrank import (
    ContinuousRowsMask,
    DistinctColumnsMask,
    DistinctRowsMask,
    RowChangeMask,
    StructuredMask,
    as_continuous_rows,
    as_distinct_rows,
    as_row_change,
    degree_for,
    document_blocks,
    monomial_rank,
    paper_rank,
    polynomial_coefficients,
    polynomial_error,
    polynomial_rounding,
    prefix_lm,
    shifted_groups,
    sliding_window,
)

LENGTH = option(1, 2, 5, 9)
DEGREE = option(0, 1, 5, 60)
BOUND = option(0.5, 1e-300, 1e-9, 10.0, 50.0)
KIND = option("chebyshev", "taylor")


def _read(mask: StructuredMask) -> tuple[np.ndarray, np.ndarray] | None:
    """Everything a mask says of itself, where it is small."""
    return (mask.to_dense(), mask.row_counts()) if mask.n <= 1000 else None


def _require_counts(_: dict[str, Any], result: Any) -> None:
    if result is not None:
        assert np.array_equal(result[0].sum(axis=1), result[1]), "row_counts are not those of to_dense"


def _made(kind: Any) -> Any:
    """A function that makes a mask and reads it, with the signature of what makes it."""

    def made(**arguments: Any) -> Any:
        return _read(kind(**arguments))

    return made


def _of_dense(kind: Any) -> Any:
    def made(dense: Any, most: Any) -> Any:
        return _read(kind.from_dense(dense) if most is None else kind.from_dense(dense, most=most))

    return made


def _dense(draw: Any) -> dict[str, Any]:
    mask = structure(draw, draw(st.sampled_from((1, 2, 5, 9))))
    return {"dense": Given(mask.to_dense()), "most": option(None)}


def _row_change(draw: Any) -> dict[str, Any]:
    mask = as_row_change(sliding_window(draw(st.sampled_from((1, 2, 5))), 2))
    parts = {"first": Given(mask.first), "columns": Given(mask.columns), "signs": Given(mask.signs)}
    return parts | {"most": option(None, 2.0)}


def _rows(draw: Any) -> dict[str, Any]:
    mask = sliding_window(draw(st.sampled_from((1, 2, 5))), 2)
    return {"start": Given(mask.start), "stop": Given(mask.stop)}


def _patterns(draw: Any) -> dict[str, Any]:
    n = draw(st.sampled_from((1, 2, 5)))
    patterns = np.random.default_rng(draw(st.integers(0, 99))).random((2, n)) < 0.5
    return {"patterns": Given(patterns), "groups": Given(np.arange(n) % 2)}


def _some_mask(draw: Any) -> dict[str, Any]:
    return {"mask": Given(structure(draw, draw(st.sampled_from((1, 2, 5, 9)))))}


def _change(mask: Any, most: Any) -> Any:
    return _read(as_row_change(mask, most=most))


def _distinct(mask: Any, most: Any) -> Any:
    return _read(as_distinct_rows(mask, most=most))


def _window(n: Any, window: Any) -> Any:
    return _read(sliding_window(n, window))


def _documents(lengths: Any, causal: Any) -> Any:
    return _read(document_blocks(lengths, causal=causal))


def _prefix(n: Any, prefix: Any) -> Any:
    return _read(prefix_lm(n, prefix))


def _groups(n: Any, group: Any, shift: Any, causal: Any) -> Any:
    return _read(shifted_groups(n, group, shift=shift, causal=causal))


def _mask_target(name: str, function: Any, build: Any, *also: str) -> Target:
    return Target(name, function, calls(build), _require_counts, also=("mask", *also))


NAMES = ("n", "first", "columns", "signs", "most", "start", "stop", "patterns", "groups")

TARGETS = (
    _mask_target("RowChangeMask", _made(RowChangeMask), _row_change, *NAMES),
    _mask_target("ContinuousRowsMask", _made(ContinuousRowsMask), _rows, *NAMES),
    _mask_target("DistinctRowsMask", _made(DistinctRowsMask), _patterns, *NAMES),
    _mask_target("DistinctColumnsMask", _made(DistinctColumnsMask), _patterns, *NAMES),
    _mask_target("RowChangeMask.from_dense", _of_dense(RowChangeMask), _dense),
    _mask_target(
        "ContinuousRowsMask.from_dense",
        lambda dense: _read(ContinuousRowsMask.from_dense(dense)),
        lambda draw: {"dense": _dense(draw)["dense"]},
    ),
    _mask_target("DistinctRowsMask.from_dense", _of_dense(DistinctRowsMask), _dense),
    _mask_target("DistinctColumnsMask.from_dense", _of_dense(DistinctColumnsMask), _dense),
    _mask_target("as_continuous_rows", lambda mask: _read(as_continuous_rows(mask)), _some_mask),
    _mask_target("as_row_change", _change, lambda draw: _some_mask(draw) | {"most": option(None, 3.0)}),
    _mask_target("as_distinct_rows", _distinct, lambda draw: _some_mask(draw) | {"most": option(9)}),
    _mask_target("sliding_window", _window, lambda _: {"n": LENGTH, "window": LENGTH}),
    _mask_target(
        "document_blocks",
        _documents,
        lambda _: {"lengths": Given(np.array([2, 1, 3])), "causal": option(True, False)},
    ),
    _mask_target("prefix_lm", _prefix, lambda _: {"n": LENGTH, "prefix": option(0, 1)}),
    _mask_target(
        "shifted_groups",
        _groups,
        lambda _: {"n": LENGTH, "group": option(1, 2), "shift": option(None, 0, 1), "causal": option(True, False)},
    ),
    Target(
        "polynomial_coefficients",
        polynomial_coefficients,
        calls(lambda _: {"degree": DEGREE, "bound": BOUND, "kind": KIND}),
    ),
    Target(
        "polynomial_error",
        polynomial_error,
        calls(lambda _: {"degree": DEGREE, "bound": BOUND, "kind": KIND}),
        infinite=True,
    ),
    Target(
        "polynomial_rounding",
        polynomial_rounding,
        calls(lambda _: {"degree": DEGREE, "bound": BOUND, "rank": option(1, 100), "kind": KIND}),
        infinite=True,
    ),
    Target("degree_for", degree_for, calls(lambda _: {"error": option(1e-3, 1e-9), "bound": BOUND, "kind": KIND})),
    Target("monomial_rank", monomial_rank, calls(lambda _: {"width": LENGTH, "degree": DEGREE})),
    Target("paper_rank", paper_rank, calls(lambda _: {"width": LENGTH, "degree": DEGREE})),
)
