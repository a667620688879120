"""Masks that are rules: which keys a query sees, or what is added, computed a block at a time, never all of it.

`refattn.masks` is their public face. A rule keeps arrays as small as what it says, lengths or indices or slopes;
``placed`` fits them to queries, keys and heads, and gives an `Evaluated`, of which blocks are read as of an array.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from refattn._heads import HeadLayout
from refattn._kept import kept, restore
from refattn._validation import FloatArray, as_array, as_count, as_option, as_real_array, require_finite

Alignment: TypeAlias = Literal["top-left", "bottom-right"] | int | None
_ALIGNMENTS = ("top-left", "bottom-right")


def offset_of(name: str, alignment: Alignment, n_q: int, n_k: int) -> int:
    """Return the position of the first query among the keys."""
    if alignment is None:
        if n_q != n_k:
            raise ValueError(
                f"mask: {name} with {n_q} queries and {n_k} keys needs an alignment: 'top-left',"
                " 'bottom-right' or the first query's position as an integer"
            )
        return 0
    if isinstance(alignment, str):
        return 0 if as_option("alignment", alignment, _ALIGNMENTS) == "top-left" else n_k - n_q
    return as_count("alignment", alignment, least=-n_q, most=n_k, most_is="n_k")


class Evaluated:
    """Booleans or addends of shape ``(…, n_q, n_k)``, of which a block is computed when it is read."""

    def __init__(self, rule: MaskRule, parts: tuple[NDArray[Any], ...], n_q: int, n_k: int) -> None:
        self._rule, self._parts = rule, parts
        self.shape = (*np.broadcast_shapes(*(part.shape[:-2] for part in parts)), n_q, n_k)

    def __getitem__(self, where: Any) -> NDArray[Any]:
        """Return a block: of rows, or of rows and keys, both slices, perhaps after an ellipsis."""
        rows, keys = where[-2:] if isinstance(where, tuple) else (where, slice(None))
        (i, i_end, _), (j, j_end, _) = rows.indices(self.shape[-2]), keys.indices(self.shape[-1])
        return self._rule.block(slice(i, i_end), slice(j, j_end), *self._parts)

    def of(self, index: tuple[int, ...], inner: tuple[int, ...]) -> Evaluated:
        """Return what is said about one head, of those with leading axes `inner`."""
        parts = tuple(np.broadcast_to(part, inner + part.shape[-2:])[index] for part in self._parts)
        return Evaluated(self._rule, parts, *self.shape[-2:])


class MaskRule:
    """What the rules have in common."""

    adds = False  # whether it says what is added; else, what may be seen
    __setstate__ = restore

    def placed(self, layout: HeadLayout, n_q: int, n_k: int) -> Evaluated:
        """Fit the rule to so many queries and keys of these heads; raise where it does not.

        Parameters
        ----------
        layout, n_q, n_k : HeadLayout, int, int
            The leading axes, and the numbers of queries and keys.
        """
        return Evaluated(self, tuple(layout.split_heads(part) for part in self._fit(layout, n_q, n_k)), n_q, n_k)

    def block(self, rows: slice, keys: slice, *parts: NDArray[Any]) -> NDArray[Any]:
        """Return what the rule says about some queries and keys.

        Parameters
        ----------
        rows, keys : slice
            Which.
        *parts : ndarray
            The arrays that fit, of two axes and more.
        """
        raise NotImplementedError

    def _fit(self, layout: HeadLayout, n_q: int, n_k: int) -> tuple[NDArray[Any], ...]:
        raise NotImplementedError

    def _keep(self, name: str, array: NDArray[Any]) -> None:
        object.__setattr__(self, name, kept(array))


class _Ranges(MaskRule):
    """Every query sees keys that lie side by side: from the first of its two numbers to before the second."""

    def block(self, rows: slice, keys: slice, *parts: NDArray[Any]) -> NDArray[Any]:
        """Compare the keys with the ends.

        Parameters
        ----------
        rows, keys, *parts : slice, slice, ndarray
            Queries, keys, and what the rule holds for them.
        """
        first, last = (part[..., rows, :] for part in parts)
        key = np.arange(keys.start, keys.stop)
        return np.asarray((key >= first) & (key < last))


@dataclass(frozen=True, eq=False)
class KeyPadding(_Ranges):
    """Every query sees the first `lengths` keys of its sequence; the others are padding.

    Parameters
    ----------
    lengths : array_like of int, shape (…,)
        Keys of every sequence, 0 … n_k: one for each entry of the leading axes before that of the heads, or, with as
        many axes as those, for each head; a number for all.

    Raises
    ------
    TypeError, ValueError
        `lengths` holds no integers, or, where the mask is used, does not fit.

    Notes
    -----
    Memory O(n_q), time of a block of rows O(rows · n_k). Source: ours.

    Examples
    --------
    >>> import numpy as np
    >>> from refattn import dense_attention
    >>> q, k, v = np.zeros((3, 2, 1, 3, 1)); v[..., 0] = [0, 2, 4]  # two sequences of three keys
    >>> dense_attention(q, k, v, mask=("causal", KeyPadding([3, 2]))).ravel()
    array([0., 1., 2., 0., 1., 1.])
    """

    lengths: ArrayLike

    def __post_init__(self) -> None:
        self._keep("lengths", _integers("lengths", self.lengths))

    def _fit(self, layout: HeadLayout, n_q: int, n_k: int) -> tuple[NDArray[Any], ...]:
        lengths, lead = np.asarray(self.lengths), layout.lead
        _require_between("lengths", lengths, 0, n_k)
        if 0 < lengths.ndim == len(lead) - 1:
            lengths = lengths[..., None]
        _require_fits("lengths", lengths, lead, np.shape(self.lengths))
        last = np.broadcast_to(lengths[..., None, None], (*lengths.shape, n_q, 1))
        return np.zeros((n_q, 1), int), last


@dataclass(frozen=True, eq=False)
class Packed(_Ranges):
    """Sequences that stand one after another: a query sees the keys of its own.

    Parameters
    ----------
    cu_seqlens : array_like of int, shape (s + 1,)
        Where each of s sequences of queries begins, and the end of the last: 0, then never less than before. Queries
        from there on belong to none, and see nothing.
    cu_seqlens_k : array_like of int, shape (s + 1,), optional
        The same of the keys; as the queries' by default.
    causal : {"top-left", "bottom-right"}, optional
        Within a sequence, a query sees the keys up to its own place, counted from the beginning of both or from the
        end.

    Raises
    ------
    TypeError, ValueError
        An argument is not such an array, or, where the mask is used, ends beyond the queries or keys.

    Notes
    -----
    Memory O(n_q), time of a block of rows O(rows · n_k). Source: ours; the form is that of flash-attention's kernels
    for variable lengths.

    Examples
    --------
    >>> import numpy as np
    >>> from refattn import dense_attention
    >>> q, k = np.zeros((2, 5, 1)); v = np.array([[2.0], [4.0], [1.0], [1.0], [7.0]])  # of 2 keys and of 3
    >>> dense_attention(q, k, v, mask=Packed([0, 2, 5])).ravel()
    array([3., 3., 3., 3., 3.])
    """

    cu_seqlens: ArrayLike
    cu_seqlens_k: ArrayLike | None = None
    causal: Literal["top-left", "bottom-right"] | None = None

    def __post_init__(self) -> None:
        self._keep("cu_seqlens", _ends("cu_seqlens", self.cu_seqlens))
        if self.cu_seqlens_k is not None:
            self._keep("cu_seqlens_k", _ends("cu_seqlens_k", self.cu_seqlens_k))
            if np.shape(self.cu_seqlens_k) != np.shape(self.cu_seqlens):
                raise ValueError(
                    f"cu_seqlens_k: {np.size(self.cu_seqlens_k)} numbers came,"
                    f" {np.size(self.cu_seqlens)} as in cu_seqlens were wanted"
                )
        if self.causal is not None:
            as_option("causal", self.causal, _ALIGNMENTS)

    def _fit(self, layout: HeadLayout, n_q: int, n_k: int) -> tuple[NDArray[Any], ...]:
        ends_q = np.asarray(self.cu_seqlens)
        ends_k = ends_q if self.cu_seqlens_k is None else np.asarray(self.cu_seqlens_k)
        _require_between("cu_seqlens", ends_q, 0, n_q)
        _require_between("cu_seqlens" if ends_k is ends_q else "cu_seqlens_k", ends_k, 0, n_k)
        lengths_q, lengths_k = np.diff(ends_q), np.diff(ends_k)
        first, last = np.zeros((2, n_q, 1), np.int64)
        own = slice(0, int(ends_q[-1]))
        first[own, 0], last[own, 0] = np.repeat(ends_k[:-1], lengths_q), np.repeat(ends_k[1:], lengths_q)
        if self.causal is not None:
            shift = ends_k[:-1] - ends_q[:-1]
            if self.causal == "bottom-right":
                shift = shift + lengths_k - lengths_q
            last[own, 0] = np.minimum(last[own, 0], np.arange(ends_q[-1]) + np.repeat(shift, lengths_q) + 1)
        return first, last


@dataclass(frozen=True, eq=False)
class KeyIndices(MaskRule):
    """Every query sees the keys that are listed for it.

    Parameters
    ----------
    indices : array_like of int, shape (…, n_q, m)
        Keys of every query, 0 … n_k − 1, or −1 for none; broadcasts over heads and queries as an array mask does. A key
        that is listed twice counts once.

    Raises
    ------
    TypeError, ValueError
        `indices` holds no integers or has no axis of keys, or, where the mask is used, does not fit.

    Notes
    -----
    Memory O(n_q m) a head, time of a block of rows O(rows · (n_k + m)). Source: ours; what kernels compute that select
    keys, as those of arXiv 2406.16747.

    Examples
    --------
    >>> import numpy as np
    >>> from refattn import dense_attention
    >>> q, k = np.zeros((2, 2, 1)); v = np.array([[1.0], [5.0]])
    >>> dense_attention(q, k, v, mask=KeyIndices([[1, -1], [0, 1]])).ravel()
    array([5., 3.])
    """

    indices: ArrayLike

    def __post_init__(self) -> None:
        indices = _integers("indices", self.indices)
        if not indices.ndim:
            raise ValueError("indices: one number came, an array of shape (…, n_q, m) was wanted")
        self._keep("indices", indices)

    def block(self, rows: slice, keys: slice, *parts: NDArray[Any]) -> NDArray[Any]:
        """Mark the keys that are listed.

        Parameters
        ----------
        rows, keys, *parts : slice, slice, ndarray
            Queries, keys, and what the rule holds for them.
        """
        listed, width = parts[0][..., rows, :], keys.stop - keys.start
        column = np.where((listed >= keys.start) & (listed < keys.stop), listed - keys.start, width)
        seen = np.zeros((*listed.shape[:-1], width + 1), bool)  # the last column is for those that are elsewhere
        np.put_along_axis(seen, column, True, axis=-1)
        return seen[..., :-1]

    def _fit(self, layout: HeadLayout, n_q: int, n_k: int) -> tuple[NDArray[Any], ...]:
        indices = np.asarray(self.indices)
        _require_between("indices", indices, -1, n_k - 1)
        _require_fits("indices", indices, (*layout.lead, n_q, indices.shape[-1]))
        return (np.broadcast_to(indices, (*indices.shape[:-2], n_q, indices.shape[-1])),)


@dataclass(frozen=True, eq=False)
class KeyBlocks(MaskRule):
    """Blocks of queries see whole blocks of keys.

    Parameters
    ----------
    table : array_like of bool, shape (…, ⌈n_q / block_q⌉, ⌈n_k / block_k⌉)
        Whether a block of queries sees a block of keys; broadcasts over heads as an array mask does.
    block_q, block_k : int
        Queries and keys of a block; at least 1. The last blocks may be shorter.

    Raises
    ------
    TypeError, ValueError
        `table` is not boolean or has fewer than two axes, a size is no count, or, where the mask is used, the table
        does not fit.

    Notes
    -----
    Memory of the table, time of a block of rows O(rows · n_k). Source: ours; what block-sparse kernels compute.

    Examples
    --------
    >>> import numpy as np
    >>> from refattn import dense_attention
    >>> q, k = np.zeros((2, 4, 1)); v = np.array([[1.0], [3.0], [5.0], [7.0]])
    >>> dense_attention(q, k, v, mask=KeyBlocks([[True, False], [True, True]], 2, 2)).ravel()
    array([2., 2., 4., 4.])
    """

    table: ArrayLike
    block_q: int
    block_k: int

    def __post_init__(self) -> None:
        table = as_array("table", self.table)
        if table.dtype.kind != "b":
            raise TypeError(f"table: dtype {table.dtype} came, booleans were wanted")
        if table.ndim < 2:
            raise ValueError(f"table: shape {table.shape} came, (…, blocks of queries, blocks of keys) was wanted")
        self._keep("table", table)
        as_count("block_q", self.block_q, least=1)
        as_count("block_k", self.block_k, least=1)

    def block(self, rows: slice, keys: slice, *parts: NDArray[Any]) -> NDArray[Any]:
        """Look the blocks up.

        Parameters
        ----------
        rows, keys, *parts : slice, slice, ndarray
            Queries, keys, and what the rule holds for them.
        """
        row, key = np.arange(rows.start, rows.stop) // self.block_q, np.arange(keys.start, keys.stop) // self.block_k
        return np.asarray(parts[0][..., row[:, None], key])

    def _fit(self, layout: HeadLayout, n_q: int, n_k: int) -> tuple[NDArray[Any], ...]:
        table = np.asarray(self.table)
        wanted = (-(-n_q // self.block_q), -(-n_k // self.block_k))
        if table.shape[-2:] != wanted:
            raise ValueError(f"table: last axes {table.shape[-2:]} came, {wanted} blocks were wanted")
        _require_fits("table", table[..., 0, 0], layout.lead, table.shape)
        return (table,)


@dataclass(frozen=True, eq=False)
class Alibi(MaskRule):
    """Add ``−slope · |i + offset − j|`` to the logit of query i and key j: attention with linear biases.

    It hides nothing: ``("causal", Alibi(slopes))`` is the causal one.

    Parameters
    ----------
    slopes : array_like, shape (…, H)
        A slope for every head, finite; broadcasts to the leading axes of the output. `alibi_slopes` has the usual ones.
    alignment : {"top-left", "bottom-right"} or int, optional
        As for `Causal`.

    Raises
    ------
    TypeError, ValueError
        `slopes` holds no finite numbers, or, where the mask is used, does not fit.

    Notes
    -----
    Memory O(H), time of a block of rows O(H · rows · n_k). Source: arXiv 2108.12409.

    Examples
    --------
    >>> import numpy as np
    >>> from refattn import dense_attention
    >>> q, k = np.zeros((2, 1, 2, 1)); v = np.array([[[0.0], [3.0]]])
    >>> dense_attention(q, k, v, mask=("causal", Alibi([np.log(2)]))).ravel()  # the key before has half the weight
    array([0., 2.])
    """

    slopes: ArrayLike
    alignment: Alignment = None
    adds = True

    def __post_init__(self) -> None:
        slopes = as_real_array("slopes", self.slopes).astype(np.float64)
        require_finite("slopes", slopes)
        self._keep("slopes", slopes)

    def block(self, rows: slice, keys: slice, *parts: NDArray[Any]) -> NDArray[Any]:
        """Multiply slopes and distances.

        Parameters
        ----------
        rows, keys, *parts : slice, slice, ndarray
            Queries, keys, and what the rule holds for them.
        """
        slopes, position = parts
        return np.asarray(-slopes * np.abs(position[rows] - np.arange(keys.start, keys.stop)))

    def largest(self, n_q: int, n_k: int) -> float:
        """Return the size of the largest addend.

        Parameters
        ----------
        n_q, n_k : int
            The numbers of queries and keys.
        """
        offset = offset_of("ALiBi", self.alignment, n_q, n_k)
        steepest = float(np.abs(np.asarray(self.slopes)).max(initial=0))
        size = steepest * max(abs(offset), abs(offset + n_q - 1), abs(offset - n_k + 1), abs(offset + n_q - n_k))
        if not math.isfinite(size):
            raise ValueError(f"slopes: {steepest:.6g} came, smaller ones were wanted: what is added overflows")
        return size

    def _fit(self, layout: HeadLayout, n_q: int, n_k: int) -> tuple[NDArray[Any], ...]:
        slopes = np.asarray(self.slopes)
        _require_fits("slopes", slopes, layout.lead)
        position = np.arange(n_q)[:, None] + offset_of("ALiBi", self.alignment, n_q, n_k)
        return slopes[..., None, None], position


def alibi_slopes(n_heads: int) -> FloatArray:
    """The usual slopes of attention with linear biases.

    Parameters
    ----------
    n_heads : int
        Query heads; at least 1.

    Returns
    -------
    ndarray of float64, shape (n_heads,)
        For a power of two ``2^(−8 h / n_heads)``, h = 1 … n_heads; otherwise those of the power of two below, and then
        every second one of twice as many heads.

    Raises
    ------
    TypeError, ValueError
        `n_heads` is not a count.

    Notes
    -----
    Time and memory O(n_heads). Source: arXiv 2108.12409, section 3, and its authors' code for other numbers.

    Examples
    --------
    >>> from refattn.masks import alibi_slopes
    >>> alibi_slopes(4)
    array([0.25      , 0.0625    , 0.015625  , 0.00390625])
    """
    heads = as_count("n_heads", n_heads, least=1)
    below = 1 << (heads.bit_length() - 1)
    between = np.exp2(-8 * np.arange(1, 2 * below + 1, 2) / (2 * below))
    return np.concatenate([np.exp2(-8 * np.arange(1, below + 1) / below), between])[:heads]


Rule: TypeAlias = KeyPadding | Packed | KeyIndices | KeyBlocks | Alibi


def _integers(name: str, value: ArrayLike) -> NDArray[np.int64]:
    array = as_array(name, value)
    if array.dtype.kind not in "iu":
        raise TypeError(f"{name}: dtype {array.dtype} came, integers were wanted")
    if array.dtype.kind == "u" and (array > np.iinfo(np.int64).max).any():
        raise ValueError(f"{name}: {array.max()} came, indices were wanted")
    return array.astype(np.int64)


def _ends(name: str, value: ArrayLike) -> NDArray[np.int64]:
    """Check where sequences begin and end."""
    ends = _integers(name, value)
    if ends.ndim != 1 or ends.size < 2:
        raise ValueError(f"{name}: shape {ends.shape} came, (s + 1,) for s ≥ 1 sequences was wanted")
    if ends[0] or (np.diff(ends) < 0).any():
        raise ValueError(f"{name}: {ends.tolist()[:8]} came, 0 and then numbers that never fall were wanted")
    return ends


def _require_between(name: str, array: NDArray[np.int64], least: int, most: int) -> None:
    wrong = (array < least) | (array > most)
    if wrong.any():
        index = tuple(int(i) for i in np.argwhere(wrong)[0])
        raise ValueError(f"{name}: {array[index]} at index {index} came, {least} to {most} was wanted")


def _require_fits(name: str, array: NDArray[Any], shape: tuple[int, ...], came: tuple[int, ...] | None = None) -> None:
    """Raise unless an array broadcasts to a shape."""
    try:
        np.broadcast_to(array, shape)
    except ValueError:
        shown = array.shape if came is None else came
        raise ValueError(f"{name}: shape {shown} came, one that broadcasts to {shape} was wanted") from None
