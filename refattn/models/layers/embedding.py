"""Embeddings: a row of a table for every token, or for every position."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.sparse import csr_array

from refattn._validation import FloatArray
from refattn.models.layers.rows import as_rows


class EmbeddingCache(NamedTuple):
    """What `embedding_backward` needs.

    Arrays are in the dtype of the computation.

    Attributes
    ----------
    indices : ndarray of int, shape (…)
        Rows that were taken.
    n_rows : int
        Rows of the table.

    Examples
    --------
    >>> embedding_forward([1, 1], [[0.0], [5.0]])[1].n_rows
    2
    """

    indices: NDArray[np.int64]
    n_rows: int


def embedding_forward(indices: ArrayLike, table: ArrayLike) -> tuple[FloatArray, EmbeddingCache]:
    """Take a row of the table for every index.

    Parameters
    ----------
    indices : array_like of int, shape (…)
        Rows to take.
    table : array_like, shape (rows, width)
        What is taken from, float32 or float64.

    Returns
    -------
    out : ndarray, shape (…, width)
        The rows: copies.
    cache : EmbeddingCache
        For `embedding_backward`.

    Raises
    ------
    IndexError
        There is no such row.

    Notes
    -----
    Time and memory O(size of the output). Source: the definition.

    Examples
    --------
    >>> embedding_forward([1, 0, 1], [[0.0, 2.0], [5.0, 7.0]])[0]
    array([[5., 7.], [0., 2.], [5., 7.]])
    """
    indices, table = np.asarray(indices), np.asarray(table)
    return table[indices], EmbeddingCache(indices, len(table))


def embedding_backward(dout: ArrayLike, cache: EmbeddingCache) -> FloatArray:
    """Gradient of `embedding_forward` with respect to the table.

    A row gets the sum of the gradients of all places that it was taken to, in their order: ``dtable = Tᵀ dout`` with T
    the matrix of zeros and ones for which ``out = T table``.

    Parameters
    ----------
    dout : array_like, shape (…, width)
        Gradient of the loss with respect to the output.
    cache : EmbeddingCache
        From `embedding_forward`.

    Returns
    -------
    ndarray, shape (rows, width)
        In the dtype of `dout`.

    Raises
    ------
    ValueError
        Shapes do not fit.

    Notes
    -----
    Time O(size of the output + size of the table). Source: ours.

    Examples
    --------
    >>> out, cache = embedding_forward([1, 0, 1], [[0.0], [5.0], [9.0]])
    >>> embedding_backward([[1.0], [10.0], [100.0]], cache)
    array([[ 10.], [101.], [  0.]])
    """
    upstream = as_rows(np.asarray(dout))
    # forward: out = table[indices]
    n = len(upstream)
    taken: Any = csr_array((np.ones(n, upstream.dtype), (cache.indices.ravel(), np.arange(n))), shape=(cache.n_rows, n))
    return np.asarray(taken @ upstream)
