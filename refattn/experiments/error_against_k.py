"""Relative error of conv attention against k, on heads of a real model (arXiv 2405.05219, section on experiments).

The paper plots ``‖Y − Ỹ‖_F / ‖Y‖_F`` against the number k of basis terms. Here for two choices of starts: the first k
columns, which is what Recover returns on generic input with T = 1, and k uniformly spread columns. The error is that of
the representation, computed densely; rounding plays no part in it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from refattn._validation import FloatArray
from refattn.convbasis import basis_from_starts
from refattn.dense import dense_attention
from refattn.testing import relative_error

STARTS = ("first", "uniform")


class ErrorRecord(NamedTuple):
    """Relative error of one head at one k."""

    layer: int
    head: int
    starts: str
    k: int
    relative_error: float


def chosen_starts(kind: str, n: int, k: int) -> NDArray[np.int64]:
    """Return k starts among n columns: ``"first"`` or ``"uniform"``."""
    return np.arange(k) if kind == "first" else np.arange(k) * n // k


def represented_attention(q: FloatArray, k: FloatArray, v: FloatArray, starts: NDArray[np.int64]) -> FloatArray:
    """Attention of one head with the logits of the basis that has the given starts, densely."""
    logits = basis_from_starts(q, k, starts).to_dense()
    nothing = np.zeros((q.shape[0], 1), q.dtype)
    return dense_attention(nothing, nothing, v, mask=("causal", logits))


def error_against_k(
    q: FloatArray, k: FloatArray, v: FloatArray, layers: Iterable[int], counts: Iterable[int]
) -> Iterator[ErrorRecord]:
    """Yield the relative error of every layer, head, choice of starts and number of terms.

    Parameters
    ----------
    q : ndarray, shape (L, G, n, d)
        Queries of G heads of L layers.
    k, v : ndarray, shape (L, 1, n, d)
        Keys and values they share.
    layers : iterable of int
        Names of the L layers.
    counts : iterable of int
        Numbers of basis terms, at most n.

    Yields
    ------
    ErrorRecord
        In a fixed order. O(n² d) each.

    Examples
    --------
    >>> from refattn.testing import attention_inputs
    >>> q, k, v = attention_inputs(32, 4, seed=0, lead=(1, 1))
    >>> records = list(error_against_k(q, k, v, layers=[0], counts=[1, 32]))
    >>> records[1].k, records[1].relative_error < 1e-12  # k = n is exact
    (32, True)
    """
    counts = tuple(counts)
    for place, layer in enumerate(layers):
        for head in range(q.shape[1]):
            one = q[place, head], k[place, 0], v[place, 0]
            exact = dense_attention(*one)
            for kind in STARTS:
                for count in counts:
                    approximate = represented_attention(*one, chosen_starts(kind, q.shape[-2], count))
                    yield ErrorRecord(int(layer), head, kind, count, relative_error(approximate, exact))
