"""The heads of a file: queries, keys and values, or a matrix of logits or of attention weights (ours)."""

from __future__ import annotations

import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from refattn._heads import HeadLayout
from refattn._memory import require_memory
from refattn._npy import Header
from refattn._validation import FloatArray, as_float_arrays, as_option, as_scale, require_rank
from refattn.convbasis.recovery import require_square
from refattn.decomposition.arrays import read_npy, read_npz

MOST_COLUMNS = 4096
"""Longest n: the errors are measured densely."""
NAMES = ("q", "k", "v", "h")
"""Arrays of an archive that are read."""
UNITS = {"float16": 2.0**-11, "bfloat16": 2.0**-8, "float32": 2.0**-24, "float64": 2.0**-53}
"""Units of rounding of what numbers are stored in."""


@dataclass(frozen=True, eq=False)
class Head:
    """One head: its logits, and what they come from.

    Attributes
    ----------
    index : tuple of int
        Place among the leading axes of the file's arrays.
    logits : ndarray, shape (n, n)
        Lower-triangular, float64.
    q, k : ndarray, shape (n, d)
        Queries and keys with ``scale · q kᵀ`` the logits, on and below the diagonal. For a matrix, itself and the unit
        matrix.
    scale : float
        Factor of the logits.
    v : ndarray, shape (n, d_v), or None
        Values, where the file has them.
    unit : float
        Unit roundoff of the file's numbers.

    Examples
    --------
    >>> import numpy as np
    >>> logits = np.tril(np.ones((3, 3)))
    >>> Head((), logits, logits, np.eye(3), 1.0, None, 2.0**-53).logits.shape
    (3, 3)
    """

    index: tuple[int, ...]
    logits: NDArray[np.float64]
    q: FloatArray
    k: FloatArray
    scale: float
    v: FloatArray | None
    unit: float


def read_heads(
    path: Path,
    *,
    matrix: str | None = None,
    stored: str | None = None,
    length: int | None = None,
    scale: float | None = None,
    only: Sequence[str] | None = None,
) -> Any:
    """Read the heads of a file, one after the other.

    Parameters
    ----------
    path : pathlib.Path
        A ``.npz`` with arrays q and k, and v or not, of shapes ``(…, n, d)``, heads grouped as in `dense_attention`, or
        with one array h and none of these; or a ``.npy`` with h. h is of shape ``(…, n, n)``; what is above its
        diagonal is not read, and neither are arrays of other names.
    matrix : {"logits", "attention"}, optional
        What h is, logits by default; refused with q and k. Of attention weights, the logarithms are taken: logits but
        for a constant in every row, which the weights do not tell, and which conv structure depends on.
    stored : {"float16", "bfloat16", "float32", "float64"}, optional
        The coarsest format that the numbers were rounded to before the file had them: their unit of rounding, which is
        what columns count as equal within. By default that of the file's own dtype.
    length : int, optional
        Only the first so many positions.
    scale : float, optional
        Factor of the logits of q and k; ``1/√d`` by default. Refused with h.
    only : sequence of str, optional
        Only these heads, each by its leading indices, as ``"0,3"``.

    Returns
    -------
    tuple of (int, iterator of Head)
        How many heads there are, and each.

    Raises
    ------
    OSError
        The file cannot be read.
    TypeError, ValueError
        It does not hold such arrays, they do not fit, an entry is not finite, n is above `MOST_COLUMNS`, there is no
        such head, or an option is of no use for what the file holds; the message names the file's array or the option.
    MemoryError
        The arrays do not fit.

    Notes
    -----
    Memory O(n²) for each head in turn. Source: ours.

    Examples
    --------
    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp(), "logits.npy")
    >>> np.save(path, np.tri(5))
    >>> count, heads = read_heads(path)
    >>> count, next(heads).logits.shape
    (1, (5, 5))
    """
    as_option("matrix", kind := matrix or "logits", ("logits", "attention"))
    judge = partial(_first_positions, length=length)
    arrays = read_npz(path, NAMES, judge) if path.suffix == ".npz" else {"h": read_npy(path, judge)}
    if "h" in arrays:
        if len(arrays) > 1:
            raise ValueError(f"{path}: arrays {', '.join(arrays)} came; q and k (and v), or h alone was wanted")
        if scale is not None:
            raise ValueError(f"scale: {scale} came with logits, which have theirs; none was wanted")
        require_memory("h: logits", 8 * arrays["h"].shape[-1] ** 2 * 6)
        (h,) = as_float_arrays(h=_at_least_single(arrays["h"]))
        chosen = _chosen(only, h.shape[:-2])
        return len(chosen), _of_matrix(h, chosen, kind, _unit(stored, arrays["h"]))
    if not {"q", "k"} <= arrays.keys():
        raise ValueError(
            f"{path}: arrays {', '.join(arrays) or 'of other names'} came, q and k (and v) or h were wanted"
        )
    if matrix is not None:
        raise ValueError(f"matrix: {matrix!r} came with q and k, whose logits are computed; none was wanted")
    q, k, *values = as_float_arrays(check_finite=True, **{name: _at_least_single(a) for name, a in arrays.items()})
    v = values[0] if values else None
    layout = HeadLayout.of(q, k, k if v is None else v)
    require_square(q, k)
    require_memory("q: logits", 8 * q.shape[-2] ** 2 * 6)
    factor = as_scale(scale, q.shape[-1], q.dtype)
    chosen = _chosen(only, layout.lead)
    unit = _unit(stored, arrays["q"], arrays["k"])
    return len(chosen), _of_queries(layout, chosen, q, k, v, factor, unit)


def other_arrays(path: Path) -> list[str]:
    """Names of the members of a ``.npz`` file that `read_heads` does not read."""
    if path.suffix != ".npz" or not zipfile.is_zipfile(path):
        return []
    with zipfile.ZipFile(path) as archive:
        return [name.removesuffix(".npy") for name in archive.namelist() if name.removesuffix(".npy") not in NAMES]


def _chosen(only: Sequence[str] | None, lead: tuple[int, ...]) -> dict[tuple[int, ...], int]:
    """Return the indices of the heads that are asked for, each with its place among all, in their order."""
    every = {index: place for place, index in enumerate(np.ndindex(*lead))}
    if only is None or not len(only):
        return every
    names = {",".join(map(str, index)): index for index in every}
    for name in only:
        if name not in names:
            raise ValueError(
                f"head: {name} came, the indices of one of {len(every)} heads were wanted: axes {lead}, each from 0"
            )
    wanted = {names[name] for name in only}
    return {index: place for index, place in every.items() if index in wanted}


def _first_positions(headers: Mapping[str, Header], *, length: int | None) -> dict[str, tuple[int, ...]]:
    """Return the shape of the first `length` positions of each array, judged before any of them is read."""
    keep: dict[str, tuple[int, ...]] = {}
    rows: tuple[str, int] | None = None
    for name, header in headers.items():
        axes = "(…, n, n)" if name == "h" else "(…, n, d)"
        if header.dtype.kind not in "biufc":
            raise TypeError(f"{name}: dtype {header.dtype} came, numbers were wanted")
        require_rank(name, cast(Any, header), 2, axes)
        *lead, n, columns = header.shape
        if name == "h" and n != columns:
            raise ValueError(f"h: shape {header.shape} came, {axes} was wanted")
        rows = rows or (name, n)
        if n != rows[1]:
            raise ValueError(f"{name}: {n} rows came, as many as {rows[0]} has ({rows[1]}) were wanted")
        first = _length(name, n, length)
        keep[name] = (*lead, first, first if name == "h" else columns)
    return keep


def _at_least_single(array: NDArray[Any]) -> NDArray[Any]:
    """Half precision as single, which holds it exactly; other numbers as they are."""
    return array.astype(np.float32) if array.dtype == np.float16 else array


def _unit(stored: str | None, *arrays: NDArray[Any]) -> float:
    """Unit roundoff of the coarsest of a file's arrays, or of what they were stored in; integers count as float64."""
    own = max(float(np.finfo(a.dtype if a.dtype.kind == "f" else np.float64).eps) for a in arrays) / 2
    if stored is None:
        return own
    unit = UNITS[as_option("stored", stored, UNITS)]
    if unit < own:
        raise ValueError(f"stored: {stored} came, the file's numbers are coarser: their unit of rounding is {own:.3g}")
    return unit


def _length(name: str, n: int, asked: int | None) -> int:
    if asked is not None and not 1 <= asked <= n:
        raise ValueError(f"length: {asked} came, at least 1 and at most {n} ({name}'s n) was wanted")
    n = n if asked is None else asked
    if n > MOST_COLUMNS:
        raise ValueError(f"{name}: n = {n} came, at most {MOST_COLUMNS} was wanted; a shorter length can be asked for")
    return n


def _of_matrix(h: FloatArray, chosen: Iterable[tuple[int, ...]], matrix: str, unit: float) -> Iterator[Head]:
    for index in chosen:
        logits = np.tril(h[index].astype(np.float64))
        if matrix == "attention":
            seen = np.tri(logits.shape[0], dtype=bool)
            if (logits[seen] <= 0).any():
                i, j = (int(x) for x in np.argwhere(seen & (logits <= 0))[0])
                raise ValueError(
                    f"h: weight {logits[i, j]} at ({i}, {j}), weights above 0 were wanted: their logarithms"
                )
            logits = np.tril(np.log(logits, out=np.zeros_like(logits), where=seen))
        yield Head(index, logits, logits, np.eye(logits.shape[0]), 1.0, None, unit)


def _of_queries(
    layout: HeadLayout,
    chosen: Mapping[tuple[int, ...], int],
    q: FloatArray,
    k: FloatArray,
    v: FloatArray | None,
    scale: float,
    unit: float,
) -> Iterator[Head]:
    queries, keys, values = layout.expand(q, k, k if v is None else v)
    for index, number in chosen.items():
        place = np.unravel_index(number, layout.inner) if layout.inner else ()
        one_q, one_k = queries[place].astype(np.float64), keys[place].astype(np.float64)
        with np.errstate(over="ignore", invalid="ignore"):
            logits = np.tril((one_q @ one_k.T) * scale)
        if not np.isfinite(logits).all():
            raise ValueError(f"q, k: a logit of head {index} is not finite")
        one_v = None if v is None else values[place].astype(np.float64)
        yield Head(index, logits, one_q, one_k, scale, one_v, unit)
