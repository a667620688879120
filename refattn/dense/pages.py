"""Keys and values that are kept in pages, put side by side (ours)."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from refattn._validation import FloatArray, as_array, as_float_arrays, require_rank


def gather_pages(pages: ArrayLike, block_table: ArrayLike) -> FloatArray:
    """Put the pages of every sequence side by side, as `dense_attention` takes keys and values.

    Parameters
    ----------
    pages : array_like, shape (p, H_kv, s, d)
        Pages of s keys, or values, each; a page that no sequence uses may hold anything.
    block_table : array_like of int, shape (B, m)
        The pages of every sequence in order, 0 … p − 1, or −1 for none.

    Returns
    -------
    ndarray, shape (B, H_kv, m s, d)
        Zeros where there is no page. How many of the keys count, `KeyPadding` says.

    Raises
    ------
    TypeError, ValueError
        `pages` is not numeric, of another rank, or not finite in a page that is used; `block_table` holds no integers,
        is of another rank, or names a page that there is not.

    Notes
    -----
    Time and memory O(B H_kv m s d). Source: ours; the form is that of arXiv 2309.06180 (paged attention).

    Examples
    --------
    >>> import numpy as np
    >>> from refattn.dense import gather_pages
    >>> pages = np.arange(6.0).reshape(3, 1, 2, 1)  # three pages of two keys
    >>> gather_pages(pages, [[2, 0], [1, -1]])[..., 0].tolist()
    [[[4.0, 5.0, 0.0, 1.0]], [[2.0, 3.0, 0.0, 0.0]]]
    """
    (held,) = as_float_arrays(check_finite=False, pages=pages)
    table = as_array("block_table", block_table)
    require_rank("pages", held, 4, "(p, H_kv, s, d)")
    if held.ndim > 4:
        raise ValueError(f"pages: {held.ndim} axes came, 4 were wanted: (p, H_kv, s, d)")
    if table.dtype.kind not in "iu":
        raise TypeError(f"block_table: dtype {table.dtype} came, integers were wanted")
    if table.ndim != 2:
        raise ValueError(f"block_table: shape {table.shape} came, (B, m) was wanted")
    wrong = (table < -1) | (table >= len(held))
    if wrong.any():
        index = tuple(int(i) for i in np.argwhere(wrong)[0])
        raise ValueError(f"block_table: {table[index]} at index {index} came, -1 to {len(held) - 1} was wanted")
    with_none = np.concatenate([held, np.zeros((1, *held.shape[1:]), held.dtype)])
    found = with_none[table.astype(np.int64)]  # (B, m, H_kv, s, d); −1 is the last one
    bad = ~np.isfinite(found).all(axis=(2, 3, 4))
    if bad.any():
        sequence, place = (int(i) for i in np.argwhere(bad)[0])
        raise ValueError(f"pages: page {table[sequence, place]} is used and not finite, finite entries were wanted")
    batch, m, heads, size, d = found.shape
    return np.ascontiguousarray(found.swapaxes(1, 2)).reshape(batch, heads, m * size, d)
