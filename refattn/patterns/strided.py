"""Strided and fixed sparse attention as lists (Child et al. 2019, arXiv 1904.10509, section 4.3).

With a stride l, query i attends, of the positions up to i, to two sets each:

    strided    A¹ = {i − l, …, i}              A² = {j : (i − j) mod l = 0}
    fixed      A¹ = {j : ⌊j/l⌋ = ⌊i/l⌋}        A² = {j : j mod l ≥ l − c}

The paper gives the two sets to different heads or layers, or their union to one head ("merged"); here it is the union.
"""

from __future__ import annotations

import numpy as np

from refattn._validation import as_count
from refattn.patterns._lists import Indices, packed, require_room


def strided_indices(n: int, stride: int) -> Indices:
    """List a query's newest pairs and every stride-th before: the strided pattern.

    Parameters
    ----------
    n : int
        Length of the text; at least 1.
    stride : int
        The paper's l; at least 1.

    Returns
    -------
    ndarray of int64, shape (n, pairs)
        Positions of each query, ascending, −1 first where there are fewer. Of a text longer than the stride ``pairs``
        is ``stride + ⌊(n − 1) / stride⌋``, which is least near a stride of ``√n``.

    Raises
    ------
    TypeError, ValueError, MemoryError
        A number is of the wrong kind or out of range, or the lists do not fit.

    Notes
    -----
    Time and memory O(n pairs). Source: arXiv 1904.10509, section 4.3, strided, both sets in one head.

    Examples
    --------
    >>> from refattn.patterns import strided_indices
    >>> strided_indices(9, 3)[8].tolist()
    [2, 5, 6, 7, 8]
    """
    n, stride = as_count("n", n, least=1), as_count("stride", stride, least=1)
    stride = min(stride, n)
    require_room("n, stride", n, stride + 1 + n // stride)
    i = np.arange(n)[:, None]
    newest = np.maximum(i - np.arange(stride, -1, -1), -1)
    far = i % stride + stride * np.arange(n // stride)
    return packed(np.concatenate([np.where(far < i, far, -1), newest], axis=1))


def fixed_indices(n: int, block: int, summaries: int = 1) -> Indices:
    """List a query's own block up to it, and the last positions of every block before: the fixed pattern.

    Parameters
    ----------
    n : int
        Length of the text; at least 1.
    block : int
        The paper's l, length of a block; at least 1.
    summaries : int, optional
        The paper's c, positions at the end of a block that all later queries attend to; from 1 to `block`.

    Returns
    -------
    ndarray of int64, shape (n, pairs)
        As `strided_indices`. Of whole blocks ``pairs`` is ``block + summaries (n / block − 1)``.

    Raises
    ------
    TypeError, ValueError, MemoryError
        A number is of the wrong kind or out of range, or the lists do not fit.

    Notes
    -----
    Time and memory O(n pairs). Source: arXiv 1904.10509, section 4.3, fixed, both sets in one head.

    Examples
    --------
    >>> from refattn.patterns import fixed_indices
    >>> fixed_indices(8, 3)[7].tolist()
    [2, 5, 6, 7]
    """
    n, block = as_count("n", n, least=1), as_count("block", block, least=1)
    summaries = as_count("summaries", summaries, least=1, most=block, most_is="the block")
    most = min(block, n)
    require_room("n, block, summaries", n, most + min(summaries * (n // most), n))
    i = np.arange(n)[:, None]
    own = i // block * block + np.arange(most)
    ends = np.arange(n)
    ends = ends[ends % block >= block - summaries]
    return packed(np.concatenate([np.where(one <= i, one, -1) for one in (own, ends[None])], axis=1))
