"""What the best starts of a basis, and the recovery to a tolerance, are fuzzed with."""

from __future__ import annotations

from typing import Any

import numpy as np
from fuzz_inputs import SCALES, Array, Given, calls, heads, option
from fuzz_property import Target
from hypothesis import strategies as st

from refattn.convbasis import (
    best_starts,
    best_starts_of_matrix,
    least_squares_basis,
    recover_to_tolerance,
    segment_means,
)


def _head(draw: Any) -> dict[str, Any]:
    n, d = heads(draw).q[-2:]
    return {"q": Array((n, d)), "k": Array((n, d)), "scale": SCALES}


def _triangle(draw: Any) -> tuple[int, Given]:
    n = heads(draw).q[-2]
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    return n, Given(np.tril(rng.standard_normal((n, n)) * draw(st.sampled_from((0.0, 1.0, 1e4, 1e300, 1e-310)))))


def _starts(draw: Any, n: int) -> Given:
    return Given(np.unique([0, *draw(st.lists(st.integers(0, n - 1), max_size=3))]))


def _best(draw: Any) -> dict[str, Any]:
    return _head(draw) | {"n_basis": option(1, 1, 2, 5), "grid": option(1, 1, 2)}


def _best_of_matrix(draw: Any) -> dict[str, Any]:
    return {"h": _triangle(draw)[1], "n_basis": option(1, 1, 2, 5), "grid": option(1, 1, 2)}


def _least_squares(draw: Any) -> dict[str, Any]:
    head = _head(draw)
    return head | {"starts": _starts(draw, head["q"].shape[0])}


def _means(draw: Any) -> dict[str, Any]:
    n, h = _triangle(draw)
    return {"h": h, "starts": _starts(draw, n)}


def _to_tolerance(draw: Any) -> dict[str, Any]:
    return _head(draw) | {
        "tolerance": option(0.5, 1e-3, 1e-9),
        "kernels": option("column", "least squares"),
        "n_basis": option(128, 1, 4),
        "samples": option(256, 1, 8),
        "confidence": option(0.99, 0.5),
        "seed": option(0, 3),
    }


TARGETS = (
    Target("best_starts", best_starts, calls(_best)),
    Target("best_starts_of_matrix", best_starts_of_matrix, calls(_best_of_matrix)),
    Target("least_squares_basis", least_squares_basis, calls(_least_squares)),
    Target("segment_means", segment_means, calls(_means)),
    Target("recover_to_tolerance", recover_to_tolerance, calls(_to_tolerance), infinite=True),
)
