"""What conv structure the logits of a head have: terms, errors against k, residuals of segments, bounds (ours).

Everything is measured densely from the logits, in float64. Errors of attention are those of the weights,
``‖a_i − ã_i‖₁`` row by row, which bound the output for any values, and of the output for the values that were given.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from refattn.convbasis import (
    ConvBasis,
    ToleranceRecovery,
    best_starts_of_matrix,
    posterior_bound,
    recover_to_tolerance,
    segment_means,
    sharp_bound,
)
from refattn.decomposition.reading import Head

SCHEMA = "refattn-decompose/1"
"""Name of the JSON layout, raised when a field changes its meaning."""

MOST_PLACES = 2048
"""Above so many columns the dynamic programme has starts on a grid."""

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class HeadReport:
    """What was measured of one head.

    Attributes
    ----------
    head : Head
        Whose it is.
    basis : ConvBasis
        The best one with as many terms as were asked for; `document` describes its segments.
    residual : ndarray of float64, shape (n, n)
        Logits less those of `basis`.
    recovery : ToleranceRecovery
        The answer to whether the head is conv-like.
    document : dict
        Plain data: everything that is printed and written.

    Examples
    --------
    >>> import numpy as np
    >>> logits = np.tril(np.ones((8, 8)))
    >>> report = measure_head(Head((), logits, logits, np.eye(8), 1.0, None, 2.0**-53), terms=1)
    >>> float(abs(report.residual).max()) < 1e-12
    True
    """

    head: Head
    basis: ConvBasis
    residual: Floats
    recovery: ToleranceRecovery
    document: dict[str, Any]


def measure_head(head: Head, *, terms: int = 16, tolerance: float = 0.1, seed: int = 0) -> HeadReport:
    """Measure one head.

    Parameters
    ----------
    head : Head
        Logits, and what they come from.
    terms : int, optional
        Of the basis whose segments are looked at; at most n are taken.
    tolerance : float, optional
        Error of a row of attention, in units of the largest value, up to which structure is said to hold.
    seed : int, optional
        Of the rows that `recover_to_tolerance` samples.

    Returns
    -------
    HeadReport
        Numbers, the basis and its residual.

    Raises
    ------
    TypeError, ValueError
        A number is out of range.

    Notes
    -----
    Time O(n³) in products of matrices, and O(n²) for each of about 3 log₂ n bases; memory O(n²). Source: ours.

    Examples
    --------
    >>> logits = np.tril(np.where(np.arange(40) < 25, 1.0, 3.0) + np.zeros((40, 1)))
    >>> head = Head((), logits, logits, np.eye(40), 1.0, None, 2.0**-53)
    >>> measure_head(head, terms=2).document["exact_terms"]
    2
    """
    h = head.logits
    n = h.shape[0]
    grid = 1 if n <= MOST_PLACES else -(-n // MOST_PLACES)
    counts = [1 << power for power in range(n.bit_length()) if 1 << power <= max(1, n // 2)]
    terms = min(terms, -(-n // grid))
    best = best_starts_of_matrix(h, max(terms, *(min(count, -(-n // grid)) for count in counts)), grid=grid)
    weights = softmax(h)
    curve = [
        {"k": count, "starts": kind, **errors(head, weights, basis)}
        for count in counts
        for kind, basis in _bases(h, best.starts, count)
    ]
    basis = segment_means(h, best.starts[terms - 1])
    residual = h - basis.to_dense()
    recovery = recover_to_tolerance(head.q, head.k, tolerance, scale=head.scale, seed=seed, n_basis=_most_terms(n))
    rounding = rounding_of_logits(head)
    largest = float(np.abs(residual).max())
    v_max = 1.0 if head.v is None else float(np.abs(head.v).max())
    document = {
        "head": list(head.index),
        "n": n,
        "deviation": float(h[np.tri(n, dtype=bool)].std()),
        "exact_terms": exact_terms(h, *rounding),
        "exact_atol": 2 * float(rounding[0].max() * rounding[1].max()),
        "grid": grid,
        "curve": curve,
        "terms": terms,
        "segments": _segments(h, basis, residual, tolerance),
        "bounds": {
            "residual": largest,
            "posterior": _plain(posterior_bound(largest, v_max)),
            "sharp": sharp_bound(largest, v_max),
            "largest_value": v_max,
            "values_given": head.v is not None,
            **errors(head, weights, basis),
        },
        "tolerance": tolerance,
        "conv_like": recovery.found,
        "terms_needed": int(recovery.basis.starts.size) if recovery.basis is not None else None,
        "terms_tried": recovery.curve[-1].k,
        "sampled_error": recovery.error,
        "exceeding": recovery.exceeding,
        "confidence": recovery.confidence,
    }
    return HeadReport(head, basis, residual, recovery, document)


def _most_terms(n: int) -> int:
    """Terms up to which a head is called conv-like: 128, or a quarter of the columns; any matrix has n."""
    return max(1, min(128, n // 4))


def _plain(number: float) -> float | str:
    """A number as JSON knows it: infinity becomes text."""
    return number if math.isfinite(number) else str(number)


def rounding_of_logits(head: Head) -> tuple[Floats, Floats]:
    """What rounding may have made of a logit: at most ``rows[i] · columns[j]``.

    The products that are summed up in ``q_i · k_j`` are together no larger than ``‖q_i‖_∞ ‖k_j‖₁``: for a matrix, the
    largest of the row. Eight units of that are for the numbers and the sum. Where positions are angles, ``iθ`` was
    rounded before its cosine was taken, which turns rows by up to n units; an eighth of that allows for 7 times what
    `refattn.testing.rope_structured` shows at n = 4,096.
    """
    units = (8 + head.logits.shape[0] / 8) * head.unit
    return units * abs(head.scale) * np.abs(head.q).max(axis=1), np.abs(head.k).sum(axis=1, dtype=np.float64)


def exact_terms(h: Floats, rows: Floats, columns: Floats) -> int:
    """Terms of `h` by the walk of `refattn.convbasis.decompose`; entries are equal within both their roundings."""
    n, terms = h.shape[0], 0
    kernel, rounding = np.zeros(n), np.zeros(n)
    for c in range(n):
        column, own = h[c:, c], rows[c:] * columns[c]
        if (np.abs(column - kernel[: n - c]) > own + rounding[: n - c]).any():
            kernel, rounding = column, own
            terms += 1
    return terms


def softmax(h: Floats) -> Floats:
    """Causal attention weights of logits."""
    seen = np.where(np.tri(h.shape[0], dtype=bool), h, -np.inf)
    weights: Floats = np.exp(seen - seen.max(axis=1, keepdims=True))
    weights /= weights.sum(axis=1, keepdims=True)
    return weights


def errors(head: Head, weights: Floats, basis: ConvBasis) -> dict[str, float]:
    """Errors of a basis: of the logits (relative), of rows of the weights, and of the output where v is known."""
    represented = basis.to_dense().astype(np.float64, copy=False)
    of_logits = float(np.linalg.norm(head.logits - represented) / (np.linalg.norm(head.logits) or 1.0))
    difference = softmax(represented) - weights
    rows = np.abs(difference).sum(axis=1)
    found = {"logits": of_logits, "largest_row": float(rows.max()), "mean_row": float(rows.mean())}
    if head.v is not None:
        found["output"] = float(np.linalg.norm(difference @ head.v) / (np.linalg.norm(weights @ head.v) or 1.0))
        found["largest_output"] = float(np.abs(difference @ head.v).max())
    return found


def _bases(h: Floats, best: tuple[NDArray[np.int64], ...], count: int) -> Iterator[tuple[str, ConvBasis]]:
    """Three bases with so many terms: the paper's kernels and the means at uniform starts; the best in all."""
    n = h.shape[0]
    uniform = np.arange(count) * n // count
    kernels = np.zeros((count, n))
    for kernel, c in zip(kernels, uniform, strict=True):
        kernel[: n - c] = h[c:, c]
    yield "uniform, columns", ConvBasis(uniform, kernels)
    yield "uniform, least squares", segment_means(h, uniform)
    if count <= len(best):
        yield "best, least squares", segment_means(h, best[count - 1])


def _segments(h: Floats, basis: ConvBasis, residual: Floats, tolerance: float) -> list[dict[str, Any]]:
    """How well each segment is represented; structure holds in it if the sharp bound of its residual says so."""
    n = h.shape[0]
    first = int(basis.starts[0])
    spans = [*([(0, first)] if first else []), *zip(basis.starts, [*basis.starts[1:], n], strict=True)]
    table = []
    for a, b in spans:
        energy, rest = float(np.sum(h[:, a:b] ** 2)), float(np.sum(residual[:, a:b] ** 2))
        largest = float(np.abs(residual[:, a:b]).max())
        table.append(
            {
                "first_column": int(a),
                "columns": int(b - a),
                "unexplained": rest / energy if energy else 0.0,
                "rms_residual": (rest / ((b - a) * (2 * n - a - b + 1) / 2)) ** 0.5,
                "largest_residual": largest,
                "holds": sharp_bound(largest, 1.0) <= tolerance,
            }
        )
    return table
