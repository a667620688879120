"""Attention within groups of similar vectors: hashing (Reformer) and routing by clusters, with shared keys.

The keys are the queries, brought to one length; the k of the layer is not looked at, so that its map stays as it was
drawn. Both papers do so in a decoder, and both have one key a query head: here every query head has its own keys, and
shares values with its group. Which pairs are attended to counts as constant in the gradient.

Reformer's logits are ``q · q'/|q'|``, as its authors compute them: the paper's 1/√d is what brings keys of unit mean
square to length one, and comes once. With a second one a head cannot become sharp before |q| is many times √d.

Groups can follow from the length of the text, as those of Reformer do: so many that a group has as many members as a
list holds, and one where the text is no longer than a list. A decoder then attends to all of a short text, as it does
with a window, and a training may begin with such.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from refattn._overflow import overflow_judged
from refattn._validation import FloatArray, as_count, as_real, require_finite
from refattn.models.attentions.protocol import DifferentiableAttention, LayerGradients
from refattn.patterns import (
    IndexedForwardCache,
    hashed_indices,
    indexed_attention_backward,
    indexed_attention_forward,
    routed_indices,
)
from refattn.patterns._lists import Indices
from refattn.patterns.hashing import as_buckets

_SMALL = 1e-6
"""Of a root mean square: what is far below is not brought to length one."""


class SharedKeysCache(NamedTuple):
    """What the backward needs.

    Attributes
    ----------
    attention : IndexedForwardCache
        Of the attention.
    size : ndarray, shape (…, H, n, 1)
        What each query was divided by to make a key, in the dtype of the model.
    group : int
        Query heads that share values.

    Examples
    --------
    >>> SharedKeysCache._fields
    ('attention', 'size', 'group')
    """

    attention: IndexedForwardCache
    size: FloatArray
    group: int


class _SharedKeysAttention(DifferentiableAttention):
    """What they share: keys made of queries, and attention to lists that these keys decide."""

    queries_are_keys: bool
    """Whether the queries are of the same length too, or as they come."""

    @abstractmethod
    def _lists(self, layer: int, keys: FloatArray) -> Indices: ...

    def forward(
        self,
        layer: int,
        q: FloatArray,
        k: FloatArray,
        v: FloatArray,
        a: FloatArray | None = None,
        parameters: Mapping[str, FloatArray] | None = None,
    ) -> tuple[FloatArray, SharedKeysCache]:
        """Attend within the groups that the queries fall into.

        Parameters
        ----------
        layer, q, k, v, a, parameters : int, ndarray of the model's dtype, mapping
            As for `refattn.models.DifferentiableAttention.forward`; k and the last two are not looked at.
        """
        with overflow_judged():
            size = np.sqrt(np.square(q, dtype=np.float64).mean(axis=-1, keepdims=True) + _SMALL**2).astype(q.dtype)
        require_finite("q: root mean square", size)
        keys, group = q / size, q.shape[-3] // v.shape[-3]
        queries = keys if self.queries_are_keys else q
        values = np.repeat(v, group, axis=-3)
        out, cache = indexed_attention_forward(queries, keys, values, self._lists(layer, keys), check_finite=False)
        return out, SharedKeysCache(cache, size, group)

    def backward(self, dout: FloatArray, cache: SharedKeysCache) -> LayerGradients:
        """Pull the gradient of the output back to q and v; that of k is zero.

        Parameters
        ----------
        dout, cache : ndarray, SharedKeysCache
            As for `refattn.models.DifferentiableAttention.backward`.
        """
        # forward: out = attention(queries, keys, values), values = v, one for each query head
        dqueries, dkeys, dvalues = indexed_attention_backward(dout, cache.attention)
        (*lead, heads, n, d_v), group = dvalues.shape, cache.group
        dv = dvalues.reshape(*lead, heads // group, group, n, d_v).sum(axis=-3)
        # forward: queries = keys, or q
        keys = cache.attention.k
        dq = np.zeros_like(dkeys) if self.queries_are_keys else dqueries
        dkeys = dkeys + dqueries if self.queries_are_keys else dkeys
        # forward: keys = q / √(mean q² + small)
        dq = dq + (dkeys - keys * (dkeys * keys).mean(axis=-1, keepdims=True)) / cache.size
        return LayerGradients(dq, np.zeros((*lead, heads // group, n, dq.shape[-1]), dq.dtype), dv)


class HashingAttention(_SharedKeysAttention):
    """Attention among vectors with the same hash, in chunks, other hashes in every layer.

    Parameters
    ----------
    n_buckets : int or None
        As for `refattn.patterns.hashed_indices`; None: about one for every ``2 chunk`` tokens of a text.
    chunk, rounds, seed : int
        As for `refattn.patterns.hashed_indices`; layers count on from the seed.

    Raises
    ------
    TypeError, ValueError
        A number is of the wrong kind or out of range.

    Notes
    -----
    A layer's k has a gradient of zero. Time O(n (rounds chunk d + n_buckets d + log n)) a head. Source: arXiv
    2001.04451 (Reformer), its causal form ours.

    Examples
    --------
    >>> import numpy as np
    >>> from refattn.models import HashingAttention
    >>> q = k = v = np.array([1.0, -1.0, 2.0, -3.0, 4.0])[None, :, None]
    >>> HashingAttention(2, chunk=1)(0, q, k, v).ravel()
    array([ 1., -1.,  1., -1.,  2.])
    """

    queries_are_keys = False

    def __init__(self, n_buckets: int | None, chunk: int, *, rounds: int = 1, seed: int = 0) -> None:
        self.n_buckets = None if n_buckets is None else as_buckets(n_buckets)
        self.chunk, self.rounds = as_count("chunk", chunk, least=1), as_count("rounds", rounds, least=1)
        self.seed = as_count("seed", seed, least=0)

    def buckets_of(self, n: int) -> int:
        """Return how many buckets a text has.

        Parameters
        ----------
        n : int
            Its tokens; at least 1.
        """
        if self.n_buckets is not None:
            return self.n_buckets
        return 1 if as_count("n", n, least=1) <= 2 * self.chunk else 2 * -(-n // (4 * self.chunk))

    def _lists(self, layer: int, keys: FloatArray) -> Indices:
        n_buckets = self.buckets_of(keys.shape[-2])
        return hashed_indices(keys, n_buckets=n_buckets, chunk=self.chunk, rounds=self.rounds, seed=self.seed + layer)

    def pairs_per_query(self, n: int) -> int:
        """Return the most pairs that a query can have.

        Parameters
        ----------
        n : int
            As for `refattn.models.DifferentiableAttention.pairs_per_query`.
        """
        return max(1, min(n - 1, self.rounds * (2 * self.chunk - 1)))


class RoutingAttention(_SharedKeysAttention):
    """Attention within clusters whose centroids move along the text, other first centroids in every layer.

    Parameters
    ----------
    n_clusters : int or None
        As for `refattn.patterns.routed_indices`; None: about one for every `members` tokens of a text.
    members, decay, seed : int, float, int
        As for `refattn.patterns.routed_indices`; layers count on from the seed.

    Raises
    ------
    TypeError, ValueError
        A number is of the wrong kind or out of range.

    Notes
    -----
    A layer's k has a gradient of zero. Time O(n (n_clusters d + members d + log n)) a head. Source: arXiv 2003.05997
    (Routing Transformer), its form for a decoder ours.

    Examples
    --------
    >>> import numpy as np
    >>> from refattn.models import RoutingAttention
    >>> q = k = v = np.array([1.0, -1.0, 2.0, -3.0, 4.0])[None, :, None]
    >>> RoutingAttention(2, members=1)(0, q, k, v).ravel()
    array([ 1., -1.,  1., -1.,  2.])
    """

    queries_are_keys = True

    def __init__(self, n_clusters: int | None, members: int, *, decay: float = 0.99, seed: int = 0) -> None:
        self.n_clusters = None if n_clusters is None else as_count("n_clusters", n_clusters, least=1)
        self.members = as_count("members", members, least=1)
        self.decay, self.seed = as_real("decay", decay, positive=True, most=1.0), as_count("seed", seed, least=0)

    def clusters_of(self, n: int) -> int:
        """Return how many clusters a text has.

        Parameters
        ----------
        n : int
            Its tokens; at least 1.
        """
        if self.n_clusters is not None:
            return self.n_clusters
        return -(-as_count("n", n, least=1) // self.members)

    def _lists(self, layer: int, keys: FloatArray) -> Indices:
        n_clusters = self.clusters_of(keys.shape[-2])
        return routed_indices(
            keys, n_clusters=n_clusters, members=self.members, decay=self.decay, seed=self.seed + layer
        )

    def pairs_per_query(self, n: int) -> int:
        """Return the most pairs that a query can have.

        Parameters
        ----------
        n : int
            As for `refattn.models.DifferentiableAttention.pairs_per_query`.
        """
        return max(1, min(n - 1, self.members))
