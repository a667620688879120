"""Hashing with shared keys as lists, causal (Reformer: Kitaev, Kaiser and Levskaya 2020, arXiv 2001.04451, section 2).

Queries are keys, up to their length. A round hashes a vector x by a random map R to the bucket ``argmax [xR; −xR]``;
query i attends to earlier positions of its bucket, those of its own chunk and the chunk before, and to itself only
where there are no others. Several rounds attend to the union of their lists, which is what the paper's weights of the
rounds amount to.

The paper sorts all positions by bucket and cuts what is sorted into chunks: where the cuts fall depends on how many
later tokens are in other buckets. A decoder may not look there, so here each bucket is cut by itself, from its first
position on: what a query attends to follows from the past.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from refattn._memory import require_memory
from refattn._validation import as_count, as_float_arrays, require_rank
from refattn.patterns._groups import earlier_of_group, or_itself
from refattn.patterns._lists import Indices, packed, require_room


def hashed_indices(x: ArrayLike, *, n_buckets: int, chunk: int, rounds: int = 1, seed: int = 0) -> Indices:
    """List the earlier positions in a vector's bucket, of its own chunk and the one before.

    Parameters
    ----------
    x : array_like, shape (…, n, d)
        What queries and keys have in common; hashed in float64.
    n_buckets : int
        Buckets of a round; even, or 1: all are in it.
    chunk : int
        The paper's m, positions in a chunk; at least 1.
    rounds : int, optional
        How often to hash; at least 1.
    seed : int, optional
        Of the random maps, which all leading axes share.

    Returns
    -------
    ndarray of int64, shape (…, n, pairs)
        As `refattn.patterns.strided_indices`; ``pairs`` is at most ``rounds (2 chunk − 1)``.

    Raises
    ------
    TypeError, ValueError, MemoryError
        An entry is not finite, a number of the wrong kind or out of range, or what is needed does not fit.

    Notes
    -----
    Time O(n (d n_buckets + pairs + log n) rounds), memory O(n (pairs + n_buckets)). Source: arXiv 2001.04451, section
    2; chunks within a bucket ours.

    Examples
    --------
    >>> from refattn.patterns import hashed_indices
    >>> hashed_indices([[1.0], [-2.0], [3.0], [-4.0], [5.0]], n_buckets=2, chunk=2)[:, -2:].tolist()
    [[-1, 0], [-1, 1], [-1, 0], [-1, 1], [0, 2]]
    """
    (vectors,) = as_float_arrays(x=x)
    require_rank("x", vectors, 2, "(…, n, d)")
    n_buckets, chunk = as_buckets(n_buckets), as_count("chunk", chunk, least=1)
    rounds, seed = as_count("rounds", rounds, least=1), as_count("seed", seed, least=0)
    n, d = vectors.shape[-2:]
    most = min(2 * chunk - 1, n)
    require_room("x, chunk, rounds", vectors.size // d, rounds * most + 1)
    count = vectors.size // d
    require_memory(f"x, n_buckets: {count} vectors in {n_buckets} directions", 16 * count * n_buckets)
    flat = vectors.reshape(-1, n, d).astype(np.float64)
    flat = flat / np.maximum(np.abs(flat).max(axis=-1, keepdims=True), 1e-300)  # the same bucket; no product overflows
    rng = np.random.default_rng(seed)
    alone = np.zeros(flat.shape[:2], np.int64)
    lists = []
    for _ in range(rounds):
        turned = flat @ rng.standard_normal((d, n_buckets // 2))
        groups = np.concatenate([turned, -turned], axis=-1).argmax(axis=-1) if n_buckets > 1 else alone
        lists.append(earlier_of_group(groups, most, chunk))
    return packed(or_itself(np.concatenate(lists, axis=-1)).reshape(*vectors.shape[:-1], -1))


def as_buckets(n_buckets: int) -> int:
    """Return a number of buckets: even, or 1."""
    count = as_count("n_buckets", n_buckets, least=1)
    if count > 1 and count % 2:
        raise ValueError(f"n_buckets: {count} came, an even number (a vector and its opposite) or 1 was wanted")
    return count
