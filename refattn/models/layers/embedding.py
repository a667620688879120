"""Embeddings: a row of a table for every token, or for every position."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from refattn._validation import FloatArray


class EmbeddingCache(NamedTuple):
    """What `embedding_backward` needs: which rows were taken, of how many."""

    indices: NDArray[np.int64]
    n_rows: int


def embedding_forward(indices: NDArray[np.int64], table: FloatArray) -> tuple[FloatArray, EmbeddingCache]:
    """Take a row of the table for every index."""
    return table[indices], EmbeddingCache(indices, len(table))


def embedding_backward(dout: FloatArray, cache: EmbeddingCache) -> FloatArray:
    """Pull a gradient back: a row of the table gets the sum over the places it was taken to, in their order."""
    rows = dout.reshape(-1, dout.shape[-1])
    places = cache.indices.ravel()
    # forward: out = table[indices]
    taken: Any = csr_array(
        (np.ones(len(rows), rows.dtype), (places, np.arange(len(rows)))), shape=(cache.n_rows, len(rows))
    )
    return np.asarray(taken @ rows)
