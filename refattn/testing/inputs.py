"""Inputs for tests, benchmarks and conformance checks: seeded, named, of any size.

Every generator returns q, k of shape ``(…, n, d)`` and v of shape ``(…, n, d_v)``. *Logit deviation* is the standard
deviation of ``q·k/√d``; heads of language models have 1 to 7.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import DTypeLike, NDArray

from refattn._validation import FloatArray, as_count, as_option, as_real


class Inputs(NamedTuple):
    """Queries, keys and values."""

    q: FloatArray
    k: FloatArray
    v: FloatArray


class StructuredInputs(NamedTuple):
    """Queries, keys and values whose logits are exactly k-conv, and the starts of the segments."""

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

    Examples
    --------
    >>> q, k, v = attention_inputs(2000, 64, seed=0, deviation=4.0)
    >>> bool(abs((q @ k.T).std() / 8 - 4.0) < 0.1)
    True
    """
    as_option("kind", kind, KINDS)
    n, d = as_count("n", n, least=1), as_count("d", d, least=1)
    deviation = as_real("deviation", deviation, least=0.0)
    rng = np.random.default_rng(seed)
    kv_lead = lead if kv_lead is None else kv_lead
    v = rng.standard_normal((*kv_lead, n, d if d_v is None else d_v))
    if kind == "normal":
        q, k = rng.standard_normal((*lead, n, d)) * deviation, rng.standard_normal((*kv_lead, n, d))
    elif kind == "constant":
        q, k = np.full((*lead, n, d), deviation), np.full((*kv_lead, n, d), 1 / np.sqrt(d))
    else:
        q = np.eye(d)[rng.integers(d, size=(*lead, n))] * deviation * np.sqrt(d)
        k = np.eye(d)[rng.integers(d, size=(*kv_lead, n))]
    return Inputs(*(np.asarray(x, dtype) for x in (q, k, v)))


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
    starts : array_like of int or int
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
    Source: the rotary example of arXiv 2405.05219 (attention with RoPE is conv-like for constant contents).

    Examples
    --------
    >>> from refattn import recover
    >>> q, k, v, starts = rope_structured(200, 16, starts=[0, 40, 90], seed=0)
    >>> recover(q, k, n_basis=3, probe=8, delta=1e-6).starts.tolist()
    [0, 40, 90]
    """
    n, d = as_count("n", n, least=1), as_count("d", d, least=1)
    rng = np.random.default_rng(seed)
    if np.ndim(starts) == 0:
        count = as_count("starts", starts, least=1, most=n, most_is="n")
        starts = np.concatenate([[0], 1 + np.sort(rng.choice(n - 1, count - 1, replace=False))])
    starts = np.asarray(starts, np.int64)
    if starts.ndim != 1 or starts[0] != 0 or (np.diff(starts) <= 0).any() or starts[-1] >= n:
        raise ValueError(f"starts: {starts.tolist()} came, increasing columns from 0 to below n = {n} were wanted")
    segment = np.searchsorted(starts, np.arange(n), side="right") - 1
    q = np.broadcast_to(rng.standard_normal((*lead, 1, d)) * deviation, (*lead, n, d))
    k = rng.standard_normal((*lead, starts.size, d))[..., segment, :]
    v = rng.standard_normal((*lead, n, d if d_v is None else d_v))
    q, k, v = (np.asarray(x, dtype) for x in (_rotate(q, base), _rotate(k, base), v))
    return StructuredInputs(q, k, v, starts)


def _rotate(x: FloatArray, base: float) -> FloatArray:
    """Rotary embedding: the pair (x_{2i}, x_{2i+1}) of row p turned by the angle ``p · base^(−2i/d)``."""
    n, d = x.shape[-2:]
    angle = np.arange(n)[:, None] * base ** (-2 * np.arange(d // 2) / d)
    turned = x.copy()
    even, odd = x[..., 0 : d - d % 2 : 2], x[..., 1::2]
    turned[..., 0 : d - d % 2 : 2] = even * np.cos(angle) - odd * np.sin(angle)
    turned[..., 1::2] = even * np.sin(angle) + odd * np.cos(angle)
    return turned
