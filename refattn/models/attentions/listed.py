"""Attention to pairs that positions alone decide: strided, fixed, and random blocks with window and globals.

Each is a list of positions a query (`refattn.patterns`), made anew at every forward from the length of the text.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping

from refattn._validation import FloatArray, as_count
from refattn.models.attentions.protocol import DifferentiableAttention, LayerGradients
from refattn.patterns import (
    IndexedForwardCache,
    fixed_indices,
    indexed_attention_backward,
    indexed_attention_forward,
    random_block_indices,
    strided_indices,
)
from refattn.patterns._lists import Indices


class _ListedAttention(DifferentiableAttention):
    """What they share: a list of positions for every query of a text, and attention to it."""

    @abstractmethod
    def _lists(self, layer: int, n: int, heads: int) -> Indices: ...

    def forward(
        self,
        layer: int,
        q: FloatArray,
        k: FloatArray,
        v: FloatArray,
        a: FloatArray | None = None,
        parameters: Mapping[str, FloatArray] | None = None,
    ) -> tuple[FloatArray, IndexedForwardCache]:
        """Attend to the positions on each query's list.

        Parameters
        ----------
        layer, q, k, v, a, parameters : int, ndarray of the model's dtype, mapping
            As for `refattn.models.DifferentiableAttention.forward`; the last two are not looked at.
        """
        lists = self._lists(layer, q.shape[-2], q.shape[-3])
        return indexed_attention_forward(q, k, v, lists, check_finite=False)

    def backward(self, dout: FloatArray, cache: IndexedForwardCache) -> LayerGradients:
        """Pull the gradient of the output back to q, k and v.

        Parameters
        ----------
        dout, cache : ndarray, IndexedForwardCache
            As for `refattn.models.DifferentiableAttention.backward`.
        """
        return LayerGradients(*indexed_attention_backward(dout, cache))

    def pairs_per_query(self, n: int) -> int:
        """Return the pairs of the query that has most.

        Parameters
        ----------
        n : int
            As for `refattn.models.DifferentiableAttention.pairs_per_query`.
        """
        return int(self._lists(0, n, 1).shape[-1])


class StridedAttention(_ListedAttention):
    """Attention to the newest pairs and to every stride-th before, the same in every layer and head.

    Parameters
    ----------
    stride : int
        As for `refattn.patterns.strided_indices`.

    Raises
    ------
    TypeError, ValueError
        `stride` is not such a number.

    Notes
    -----
    Time O(n (stride + n / stride) d) a head. Source: arXiv 1904.10509, strided; both its sets in one head.

    Examples
    --------
    >>> import numpy as np
    >>> from refattn.models import StridedAttention
    >>> q = k = np.zeros((1, 5, 1)); v = np.arange(5.0)[None, :, None]
    >>> StridedAttention(2)(0, q, k, v).ravel()
    array([0.  , 0.5 , 1.  , 2.  , 2.25])
    """

    def __init__(self, stride: int) -> None:
        self.stride = as_count("stride", stride, least=1)

    def _lists(self, layer: int, n: int, heads: int) -> Indices:
        return strided_indices(n, self.stride)


class FixedAttention(_ListedAttention):
    """Attention to a query's own block and to the ends of those before, the same in every layer and head.

    Parameters
    ----------
    block, summaries : int
        As for `refattn.patterns.fixed_indices`.

    Raises
    ------
    TypeError, ValueError
        A number is of the wrong kind or out of range.

    Notes
    -----
    Time O(n (block + summaries n / block) d) a head. Source: arXiv 1904.10509, fixed; both its sets in one head.

    Examples
    --------
    >>> import numpy as np
    >>> from refattn.models import FixedAttention
    >>> q = k = np.zeros((1, 5, 1)); v = np.arange(5.0)[None, :, None]
    >>> FixedAttention(2)(0, q, k, v).ravel().round(2)
    array([0.  , 0.5 , 1.5 , 2.  , 2.67])
    """

    def __init__(self, block: int, summaries: int = 1) -> None:
        self.block = as_count("block", block, least=1)
        self.summaries = as_count("summaries", summaries, least=1, most=self.block, most_is="the block")

    def _lists(self, layer: int, n: int, heads: int) -> Indices:
        return fixed_indices(n, self.block, self.summaries)


class RandomBlockAttention(_ListedAttention):
    """Attention to whole blocks: the first, the newest, and some that every layer and head draws for itself.

    Parameters
    ----------
    block, n_window, n_random, n_global, seed : int
        As for `refattn.patterns.random_block_indices`; layers count on from the seed.

    Raises
    ------
    TypeError, ValueError
        A number is of the wrong kind or out of range.

    Notes
    -----
    Time O(n (n_window + n_random + n_global) block d) a head. Source: arXiv 2007.14062 (BigBird), its causal form ours.

    Examples
    --------
    >>> import numpy as np
    >>> from refattn.models import RandomBlockAttention
    >>> q = k = np.zeros((1, 5, 1)); v = np.arange(5.0)[None, :, None]
    >>> RandomBlockAttention(1, n_window=1, n_random=0, n_global=1)(0, q, k, v).ravel()
    array([0. , 0.5, 1. , 1.5, 2. ])
    """

    def __init__(self, block: int, *, n_window: int = 1, n_random: int = 1, n_global: int = 1, seed: int = 0) -> None:
        self.block, self.n_window = as_count("block", block, least=1), as_count("n_window", n_window, least=1)
        self.n_random, self.n_global = as_count("n_random", n_random, least=0), as_count("n_global", n_global, least=0)
        self.seed = as_count("seed", seed, least=0)

    def _lists(self, layer: int, n: int, heads: int) -> Indices:
        return random_block_indices(
            n, self.block, n_window=self.n_window, n_random=self.n_random, n_global=self.n_global, heads=heads,
            seed=self.seed + layer,
        )  # fmt: skip
