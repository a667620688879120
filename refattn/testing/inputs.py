"""Inputs for tests, benchmarks and conformance checks: seeded, named, of any size.

Every generator returns q, k of shape ``(…, n, d)`` and v of shape ``(…, n, d_v)``. *Logit deviation* is the standard
deviation of ``q·k/√d``; heads of language models have 1 to 7.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import DTypeLike, NDArray

from refattn._memory import require_memory
from refattn._validation import (
    FloatArray,
    as_array,
    as_count,
    as_float_dtype,
    as_option,
    as_real,
    as_shape,
    require_finite,
)


class Inputs(NamedTuple):
    """Queries, keys and values.

    Attributes
    ----------
    q, k, v : ndarray, shapes (…, n, d), (…, n, d), (…, n, d_v)
        Queries, keys and values, float32 or float64.

    Examples
    --------
    >>> from refattn.testing import attention_inputs
    >>> inputs = attention_inputs(5, 4, seed=0)
    >>> inputs.q.shape, inputs.v.dtype
    ((5, 4), dtype('float64'))
    """

    q: FloatArray
    k: FloatArray
    v: FloatArray


class StructuredInputs(NamedTuple):
    """Queries, keys and values whose logits are exactly k-conv, and the starts of the segments.

    Attributes
    ----------
    q, k, v : ndarray, shapes (…, n, d), (…, n, d), (…, n, d_v)
        Queries, keys and values, float32 or float64.
    starts : ndarray of int64, shape (s,)
        First columns of the segments.

    Examples
    --------
    >>> from refattn.testing import rope_structured
    >>> rope_structured(50, 4, starts=[0, 20], seed=0).starts.tolist()
    [0, 20]
    """

    q: FloatArray
    k: FloatArray
    v: FloatArray
    starts: NDArray[np.int64]


KINDS = ("normal", "constant", "one-hot")


def attention_inputs(
    n: int,
    d: int,
    *,
    seed: int,
    kind: str = "normal",
    deviation: float = 1.0,
    lead: tuple[int, ...] = (),
    kv_lead: tuple[int, ...] | None = None,
    d_v: int | None = None,
    dtype: DTypeLike = np.float64,
) -> Inputs:
    """Unstructured queries, keys and values.

    Parameters
    ----------
    n, d : int
        Length and width, at least 1.
    seed : int
        Seed of the generator.
    kind : {"normal", "constant", "one-hot"}, optional
        Independent normal entries; all rows equal; or each row a random unit vector, scaled.
    deviation : float, optional
        Logit deviation for ``"normal"``; size of the logits that are not zero otherwise.
    lead, kv_lead : tuple of int, optional
        Leading axes of q, and of k and v (those of q by default).
    d_v : int, optional
        Width of the values; d by default.
    dtype : dtype_like, optional
        float32 or float64; drawn in float64 and rounded.

    Returns
    -------
    Inputs
        q, k, v.

    Raises
    ------
    TypeError, ValueError
        An argument is out of range, or `kind` is unknown.

    Notes
    -----
    Time and memory O(n d). Source: ours.

    Examples
    --------
    >>> q, k, v = attention_inputs(2000, 64, seed=0, deviation=4.0)
    >>> bool(abs((q @ k.T).std() / 8 - 4.0) < 0.1)
    True
    """
    as_option("kind", kind, KINDS)
    n, d = as_count("n", n, least=1), as_count("d", d, least=1)
    deviation = as_real("deviation", deviation, least=0.0)
    lead, kv_lead = as_shape("lead", lead), as_shape("kv_lead", lead if kv_lead is None else kv_lead)
    d_v, dtype = as_count("d_v", d if d_v is None else d_v, least=1), as_float_dtype("dtype", dtype)
    _require_room(n, max(d, d_v), math.prod(lead) + 2 * math.prod(kv_lead), d * d if kind == "one-hot" else 0)
    rng = np.random.default_rng(as_count("seed", seed, least=0))
    v = rng.standard_normal((*kv_lead, n, d_v))
    if kind == "normal":
        q, k = rng.standard_normal((*lead, n, d)) * deviation, rng.standard_normal((*kv_lead, n, d))
    elif kind == "constant":
        q, k = np.full((*lead, n, d), deviation), np.full((*kv_lead, n, d), 1 / np.sqrt(d))
    else:
        q = np.eye(d)[rng.integers(d, size=(*lead, n))] * deviation * np.sqrt(d)
        k = np.eye(d)[rng.integers(d, size=(*kv_lead, n))]
    return Inputs(*_rounded(q, k, v, dtype=dtype))


def _require_room(n: int, width: int, heads: int, more: int) -> None:
    """Raise if numbers drawn in float64, and half of them once more on the way, do not fit."""
    require_memory(f"n, d: {heads} arrays of {n} rows of width {width}", 12 * (heads * n * width + more))


def _rounded(*arrays: FloatArray, dtype: np.dtype[Any]) -> list[FloatArray]:
    with np.errstate(over="ignore"):
        rounded = [np.asarray(x, dtype) for x in arrays]
    for array in rounded:
        require_finite(f"deviation, dtype: numbers in {dtype}", array)
    return rounded


def rope_structured(
    n: int,
    d: int,
    *,
    starts: Any,
    seed: int,
    deviation: float = 1.0,
    lead: tuple[int, ...] = (),
    d_v: int | None = None,
    base: float = 10_000.0,
    dtype: DTypeLike = np.float64,
) -> StructuredInputs:
    """Inputs whose causal logits are exactly k-conv with the given starts, for any n and any d.

    Rotary embeddings of contents that are constant within segments: ``Q_i = R_i q``, ``K_j = R_j κ_s`` for j in segment
    s, so ``Q_i · K_j = qᵀ R_{j−i} κ_s`` depends on i − j and the segment only.

    Parameters
    ----------
    n, d : int
        Length and width, at least 1. With an odd d the last entry is not rotated.
    starts : array_like of int, shape (s,), or int
        First columns of the segments, from 0 and strictly increasing; or their number, drawn at random.
    seed : int
        Seed of the generator.
    deviation : float, optional
        Logit deviation: standard deviation of ``qᵀ R κ_s/√d`` over the draws of the contents.
    lead : tuple of int, optional
        Leading axes; every head has its own contents and the same starts.
    d_v : int, optional
        Width of the values; d by default.
    base : float, optional
        Base of the rotary frequencies ``base^(−2i/d)``.
    dtype : dtype_like, optional
        float32 or float64; computed in float64 and rounded, so float32 inputs are k-conv up to rounding.

    Returns
    -------
    StructuredInputs
        q, k, v and the starts.

    Raises
    ------
    TypeError, ValueError
        An argument is out of range, or the starts are not from 0 and increasing.

    Notes
    -----
    Source: the rotary example of arXiv 2405.05219 (attention with RoPE is conv-like for constant contents). Time and
    memory O(n d).

    Examples
    --------
    >>> from refattn import recover
    >>> q, k, v, starts = rope_structured(200, 16, starts=[0, 40, 90], seed=0)
    >>> recover(q, k, n_basis=3, probe=8, delta=1e-6).starts.tolist()
    [0, 40, 90]
    """
    n, d = as_count("n", n, least=1), as_count("d", d, least=1)
    deviation, base = as_real("deviation", deviation, least=0.0), as_real("base", base, positive=True)
    lead, dtype = as_shape("lead", lead), as_float_dtype("dtype", dtype)
    d_v = as_count("d_v", d if d_v is None else d_v, least=1)
    _require_room(n, max(d, d_v), 3 * math.prod(lead), 0)
    rng = np.random.default_rng(as_count("seed", seed, least=0))
    if as_array("starts", starts).ndim == 0:
        count = as_count("starts", starts, least=1, most=n, most_is="n")
        starts = np.concatenate([[0], 1 + np.sort(rng.choice(n - 1, count - 1, replace=False))])
    starts = as_array("starts", starts)
    if starts.dtype.kind not in "iu":
        raise TypeError(f"starts: dtype {starts.dtype} came, integers were wanted")
    starts = starts.astype(np.int64)
    if starts.ndim != 1 or not starts.size or starts[0] != 0 or (np.diff(starts) <= 0).any() or starts[-1] >= n:
        raise ValueError(f"starts: {starts.tolist()} came, increasing columns from 0 to below n = {n} were wanted")
    segment = np.searchsorted(starts, np.arange(n), side="right") - 1
    with np.errstate(over="ignore", invalid="ignore"):  # judged below
        q = np.broadcast_to(rng.standard_normal((*lead, 1, d)) * deviation, (*lead, n, d))
        k = rng.standard_normal((*lead, starts.size, d))[..., segment, :]
        v = rng.standard_normal((*lead, n, d_v))
        rotated = _rotate(q, base), _rotate(k, base)
    rounded = _rounded(*rotated, v, dtype=dtype)
    return StructuredInputs(rounded[0], rounded[1], rounded[2], starts)


def _rotate(x: FloatArray, base: float) -> FloatArray:
    """Rotary embedding: the pair (x_{2i}, x_{2i+1}) of row p turned by the angle ``p · base^(−2i/d)``."""
    n, d = x.shape[-2:]
    angle = np.arange(n)[:, None] * base ** (-2 * np.arange(d // 2) / d)
    turned = x.copy()
    even, odd = x[..., 0 : d - d % 2 : 2], x[..., 1::2]
    turned[..., 0 : d - d % 2 : 2] = even * np.cos(angle) - odd * np.sin(angle)
    turned[..., 1::2] = even * np.sin(angle) + odd * np.cos(angle)
    return turned
