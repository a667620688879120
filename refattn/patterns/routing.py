"""Routing by clusters as lists, causal (Routing Transformer: Roy et al. 2020, arXiv 2003.05997).

Queries are keys, of one length. Every vector belongs to the centroid it has the largest product with, and attends
within its cluster; centroids are moving averages of the vectors that belong to them. What differs here, so that a
decoder looks at the past only and an attention keeps nothing between calls:

- The average moves along the text, from random directions that a seed draws, ``μ ← λ μ + (1 − λ) x`` for the centroid μ
  of a token x when it comes, and μ is brought back to length one. The paper's moves from one batch of a training to the
  next, and is a part of the model.
- A cluster's members are the newest before the query, to a number; the paper takes the tokens of the whole text that
  have the largest products with the centroid, later ones included.
- A query attends to itself only where there is no other, as with hashing: its product with itself is the largest.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from refattn._memory import require_memory
from refattn._threads import for_each
from refattn._validation import as_count, as_float_arrays, as_real, require_rank
from refattn.patterns._groups import earlier_of_group, or_itself
from refattn.patterns._lists import Indices, packed, require_room


def routed_indices(x: ArrayLike, *, n_clusters: int, members: int, decay: float = 0.99, seed: int = 0) -> Indices:
    """List the newest earlier positions in a vector's cluster.

    Parameters
    ----------
    x : array_like, shape (…, n, d)
        What queries and keys have in common; only its direction counts, in float64.
    n_clusters : int
        Centroids; at least 1.
    members : int
        Positions of a cluster that a query attends to; at least 1.
    decay : float, optional
        The average's λ, above 0 and at most 1; at 1 centroids stay where they are.
    seed : int, optional
        Of the first centroids, which all leading axes share.

    Returns
    -------
    ndarray of int64, shape (…, n, pairs)
        As `refattn.patterns.strided_indices`; ``pairs`` is at most `members`.

    Raises
    ------
    TypeError, ValueError, MemoryError
        An entry is not finite, a number of the wrong kind or out of range, or what is needed does not fit.

    Notes
    -----
    Time O(n (d n_clusters + pairs + log n)), memory O(n (d + pairs)). Source: arXiv 2003.05997, section 4; its form for
    a decoder ours.

    Examples
    --------
    >>> from refattn.patterns import routed_indices
    >>> routed_indices([[1.0], [-2.0], [3.0], [-4.0], [5.0]], n_clusters=2, members=1).ravel().tolist()
    [0, 1, 0, 1, 2]
    """
    from refattn._compiled import as_input
    from refattn.patterns._routing_loops import route

    (vectors,) = as_float_arrays(x=x)
    require_rank("x", vectors, 2, "(…, n, d)")
    n_clusters, members = as_count("n_clusters", n_clusters, least=1), as_count("members", members, least=1)
    decay, seed = as_real("decay", decay, positive=True, most=1.0), as_count("seed", seed, least=0)
    n, d = vectors.shape[-2:]
    require_room("x, members", vectors.size // d, min(members, n) + 1)
    require_memory(f"x, n_clusters: {n_clusters} centroids a head", 32 * d * n_clusters)
    flat = _directions(vectors.reshape(-1, n, d).astype(np.float64))
    centroids = _directions(np.random.default_rng(seed).standard_normal((n_clusters, d)))
    groups = np.empty(flat.shape[:2], np.int64)
    for_each(lambda row: route(as_input(flat[row]), centroids.copy(), decay, groups[row]), range(len(flat)))
    lists = or_itself(earlier_of_group(groups, min(members, n)))
    return packed(lists.reshape(*vectors.shape[:-1], -1))


def _directions(x: np.ndarray) -> np.ndarray:
    """Return vectors of length one; zero stays zero."""
    x = x / np.maximum(np.abs(x).max(axis=-1, keepdims=True), 1e-300)
    return np.asarray(x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), 1e-300))
