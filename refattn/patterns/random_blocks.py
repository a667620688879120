"""Random blocks with a window and globals as lists, causal (BigBird: Zaheer et al. 2020, arXiv 2007.14062).

Positions and queries are cut into blocks, and a block of queries attends to whole blocks: the first ones (global), its
own and those just before it (window), and some drawn at random. The paper's pattern is an encoder's: half of the window
and of the random blocks lie after the query, and global tokens attend to everything. Here every block lies at or before
the query's own, of which it sees what is up to itself, and the queries of global blocks attend as others do. What a
block draws depends on the seed and its number alone, so a longer text goes on as a shorter one began.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from refattn._validation import as_count
from refattn.patterns._lists import Indices, packed, require_room


def random_block_indices(
    n: int, block: int, *, n_window: int, n_random: int, n_global: int, heads: int = 1, seed: int = 0
) -> Indices:
    """List the blocks of each query: global ones, a window of blocks, and random ones between.

    Parameters
    ----------
    n : int
        Length of the text; at least 1.
    block : int
        Length of a block; at least 1.
    n_window : int
        Blocks of the window, the query's own the last of them; at least 1.
    n_random, n_global : int
        Blocks drawn among those between global ones and window, and first blocks that all attend to; at least 0.
    heads : int, optional
        Heads, which draw for themselves; at least 1.
    seed : int, optional
        Of what is drawn.

    Returns
    -------
    ndarray of int64, shape (heads, n, pairs)
        As `refattn.patterns.strided_indices`; ``pairs`` is at most ``(n_global + n_window + n_random) block``.

    Raises
    ------
    TypeError, ValueError, MemoryError
        A number is of the wrong kind or out of range, or the lists do not fit.

    Notes
    -----
    Time and memory O(heads n pairs). Source: arXiv 2007.14062, section 2, its causal form ours.

    Examples
    --------
    >>> from refattn.patterns import random_block_indices
    >>> random_block_indices(12, 2, n_window=2, n_random=1, n_global=1)[0, 10].tolist()
    [-1, 0, 1, 6, 7, 8, 9, 10]
    """
    n, block, heads = as_count("n", n, least=1), as_count("block", block, least=1), as_count("heads", heads, least=1)
    n_window, seed = as_count("n_window", n_window, least=1), as_count("seed", seed, least=0)
    n_random, n_global = as_count("n_random", n_random, least=0), as_count("n_global", n_global, least=0)
    count, block = -(-n // block), min(block, n)
    n_window, n_random, n_global = (min(number, count) for number in (n_window, n_random, n_global))
    pairs = (n_window + n_random + n_global) * block
    require_room("n, block, n_window, n_random, n_global, heads", heads * n, pairs)
    own = np.arange(count)
    window = np.maximum(own[:, None] - np.arange(n_window), -1)
    first = np.where(np.arange(n_global) <= own[:, None], np.arange(n_global), -1)
    between = np.maximum(own - n_window + 1 - n_global, 0)
    drawn = _drawn(between, n_random, heads, seed)
    known = np.broadcast_to(np.concatenate([first, window], axis=1), (heads, count, first.shape[1] + window.shape[1]))
    blocks = np.concatenate([known, np.where(drawn >= 0, drawn + n_global, -1)], axis=2)
    positions = np.where(blocks[..., None] >= 0, blocks[..., None] * block + np.arange(block), -1)
    lists = np.repeat(positions.reshape(heads, count, -1), block, axis=1)[:, :n]
    return packed(np.where(lists <= np.arange(n)[:, None], lists, -1))


def _drawn(between: NDArray[np.int64], n_random: int, heads: int, seed: int) -> NDArray[np.int64]:
    """Draw different numbers below ``between`` for every head and block, −1 where there are too few.

    The t-th is drawn among those that are left, which its number among all follows from. Shape (heads, blocks, r).
    """
    uniform = np.random.default_rng(seed).random((len(between), heads, n_random)).swapaxes(0, 1)
    found = np.full(uniform.shape, -1)
    for t in range(n_random):
        left = between - t
        number = np.where(left > 0, (uniform[..., t] * left).astype(np.int64), -1)
        for taken in np.moveaxis(np.sort(found[..., :t], axis=-1), -1, 0):
            number += (taken >= 0) & (number >= taken)
        found[..., t] = np.where(left > 0, number, -1)
    return found
