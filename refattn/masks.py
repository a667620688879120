"""Masks of attention: which query may see which key.

A mask is given to `refattn.dense_attention` as ``"causal"``, ``"full"``, one of the objects below, a boolean array
(True: may be seen), an additive floating array (−inf: may not be seen), or a tuple of these, which all apply. A tuple
of numbers, or of tuples and lists of them, is one array, as everywhere in NumPy; a tuple of arrays that could as well
be the rows or the heads of one array is refused: ``np.array(mask)`` says that it is one, ``("full", *mask)`` that all
apply.

What an additive array adds to a whole row of logits cancels in the softmax, but rounds the logits away on the way to it
if it is as large as −10⁹ or the lowest number, which the field writes for "may not be seen". Where the largest addend
among the keys that a query may see is beyond 16 in size, all are therefore counted from it: such a row weighs its keys
as without the mask, and among others those keys have weight 0. The sum of several is formed without overflow.

`Causal` and `SlidingWindow` place query i at position ``i + offset`` among the keys. With as many queries as keys
the offset is 0; otherwise it must be said, because the field uses both conventions: ``"top-left"`` (offset 0,
PyTorch's ``is_causal``) and ``"bottom-right"`` (offset n_k − n_q, queries are the last ones, as in decoding).

`KeyPadding`, `Packed`, `KeyIndices`, `KeyBlocks` and `Alibi` cost no array of queries by keys: a block of them is
computed where it is used.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from refattn._heads import HeadLayout
from refattn._kept import kept
from refattn._mask_rules import (
    Alibi,
    Alignment,
    Evaluated,
    KeyBlocks,
    KeyIndices,
    KeyPadding,
    MaskRule,
    Packed,
    Rule,
    alibi_slopes,
    offset_of,
)
from refattn._validation import FloatArray, as_array, as_count, as_option, cast

__all__ = [
    "Alibi",
    "Causal",
    "KeyBlocks",
    "KeyIndices",
    "KeyPadding",
    "Packed",
    "SlidingWindow",
    "alibi_slopes",
]


@dataclass(frozen=True)
class Causal:
    """Query i sees key j iff ``j ≤ i + offset``.

    Parameters
    ----------
    alignment : {"top-left", "bottom-right"} or int, optional
        Where the first query stands among the keys; needed when their numbers differ.

    Notes
    -----
    One block of rows takes time and memory O(rows · n_k). Source: ours, after PyTorch's ``causal_upper_left`` and
    ``causal_lower_right``.

    Examples
    --------
    >>> Causal("bottom-right").allowed(slice(0, 2), 2, 4).astype(int)
    array([[1, 1, 1, 0],
           [1, 1, 1, 1]])
    """

    alignment: Alignment = None

    def allowed(self, rows: slice, n_q: int, n_k: int) -> NDArray[np.bool_]:
        """Return the boolean mask, shape ``(rows, n_k)``, of the query rows in `rows`.

        Parameters
        ----------
        rows, n_q, n_k : slice, int, int
            Which query rows, and the numbers of queries and keys.
        """
        position = np.arange(rows.start, rows.stop) + offset_of("causal", self.alignment, n_q, n_k)
        return np.asarray(np.arange(n_k) <= position[:, None])


@dataclass(frozen=True)
class SlidingWindow:
    """Query at position p sees the keys ``p − window + 1 … p + right`` and, of the first `sinks`, those up to there.

    Parameters
    ----------
    window : int
        Keys in the window, the query's own included; at least 0.
    sinks : int
        Keys at the start that stay visible (attention sinks); at least 0.
    alignment : {"top-left", "bottom-right"} or int, optional
        As for `Causal`.
    right : int, optional
        Keys after the query's own that it sees; at least 0.

    Raises
    ------
    TypeError, ValueError
        `window`, `sinks` or `right` is not a count.

    Notes
    -----
    One block of rows takes time and memory O(rows · n_k). Source: arXiv 2309.17453 (attention sinks).

    Examples
    --------
    >>> SlidingWindow(2, sinks=1).allowed(slice(0, 4), 4, 4).astype(int)
    array([[1, 0, 0, 0],
           [1, 1, 0, 0],
           [1, 1, 1, 0],
           [1, 0, 1, 1]])
    """

    window: int
    sinks: int = 0
    alignment: Alignment = None
    right: int = 0

    def __post_init__(self) -> None:
        as_count("window", self.window, least=0)
        as_count("sinks", self.sinks, least=0)
        as_count("right", self.right, least=0)

    def allowed(self, rows: slice, n_q: int, n_k: int) -> NDArray[np.bool_]:
        """Return the boolean mask, shape ``(rows, n_k)``, of the query rows in `rows`.

        Parameters
        ----------
        rows, n_q, n_k : slice, int, int
            Which query rows, and the numbers of queries and keys.
        """
        position = np.arange(rows.start, rows.stop) + offset_of("sliding window", self.alignment, n_q, n_k)
        lag = position[:, None] - np.arange(n_k)
        near = (lag < self.window) | (np.arange(n_k) < self.sinks)
        return np.asarray((lag >= -self.right) & near)


Mask: TypeAlias = "str | Causal | SlidingWindow | Rule | NDArray[Any] | tuple[Any, ...]"
_KINDS = (
    "'causal', 'full', Causal, SlidingWindow, KeyPadding, Packed, KeyIndices, KeyBlocks, Alibi,"
    " a boolean or a floating (additive) array, or a tuple of these"
)
_ORDINARY = 16.0
"""Size up to which a row's largest addend costs no more digits than its logits do: added as it came."""
_BLOCK_ENTRIES = 1 << 20
"""Most addends summed at once: 8 MB."""


class RowMask:
    """A checked mask, read a block of query rows at a time; it holds copies of the arrays."""

    def __init__(self, mask: Any, n_q: int, n_k: int, layout: HeadLayout, bias: Any = None) -> None:
        self.n_q, self.n_k, self.layout = n_q, n_k, layout
        self.patterns: list[Causal | SlidingWindow] = []
        self.booleans: list[NDArray[np.bool_] | Evaluated] = []
        self.biases: list[FloatArray | Evaluated] = []
        self._sizes: list[float] = []  # of the largest entry of each bias
        for part in _parts(mask, (*layout.lead, n_q, n_k)):
            if isinstance(part, str):
                if as_option("mask", part, ("causal", "full")) == "causal":
                    self.patterns.append(Causal())
            elif isinstance(part, (Causal, SlidingWindow)):
                self.patterns.append(part)
            elif isinstance(part, MaskRule):
                self._add_rule(part)
            else:
                self._add_array("mask", part)
        if bias is not None:
            self._add_array("bias", bias)
        for pattern in self.patterns:
            pattern.allowed(slice(0, 0), n_q, n_k)  # an alignment that is missing or wrong shows here
        self._unit = 2.0 ** len(self.biases)  # addends are summed in this unit: no sum of theirs overflows
        self._shifts = self._largest_addends()

    def _add_rule(self, rule: MaskRule) -> None:
        found = rule.placed(self.layout, self.n_q, self.n_k)
        if isinstance(rule, Alibi):
            self.biases.append(found)
            self._sizes.append(rule.largest(self.n_q, self.n_k))
        else:
            self.booleans.append(found)

    def _add_array(self, name: str, part: Any) -> None:
        array, layout = as_array(name, part), self.layout
        kinds, wanted = ("bf", _KINDS) if name == "mask" else ("f", "a floating array")
        if array.dtype.kind not in kinds or array.dtype.itemsize > 8:
            raise TypeError(f"{name}: {type(part).__name__} of dtype {array.dtype} came; {wanted} was wanted")
        array = kept(array)
        shape = (*layout.lead, self.n_q, self.n_k)
        try:
            np.broadcast_to(array, shape)
        except ValueError:
            raise ValueError(f"{name}: shape {array.shape} came, one that broadcasts to {shape} was wanted") from None
        view = layout.split_heads(np.broadcast_to(array, array.shape[:-2] + shape[-2:]))
        if array.dtype.kind == "b":
            self.booleans.append(view)
            return
        bad = np.isnan(array) | (array == np.inf)
        if bad.any():
            index = tuple(int(i) for i in np.argwhere(bad)[0])
            raise ValueError(f"{name}: {array[index]} at index {index}, numbers below +inf were wanted")
        self.biases.append(view)
        finite = array != -np.inf
        self._sizes.append(float(max(array.max(initial=0, where=finite), -array.min(initial=0, where=finite))))

    def of_head(self, index: tuple[int, ...]) -> tuple[list[Any], list[Any]]:
        """Return what hides keys of one head, and what is added to its logits: arrays, or what is read as them."""
        inner = self.layout.inner

        def own(part: NDArray[Any] | Evaluated) -> Any:
            if isinstance(part, Evaluated):
                return part.of(index, inner)
            return np.broadcast_to(part, (*inner, self.n_q, self.n_k))[index]

        return [own(part) for part in self.booleans], [own(part) for part in self.biases]

    def _within(self, most: float) -> bool:
        """Whether every sum of addends is at most so large."""
        return sum(size / self._unit for size in self._sizes) <= most / self._unit

    def _largest_addends(self) -> tuple[NDArray[np.float64], ...]:
        """Return what is taken off the addends of each row, in units of theirs, largest part first; () for nothing.

        Together they are the largest sum of addends among the keys that are allowed, of shapes ``(…, n_q, 1)``, and 0
        where that is ordinary.
        """
        if self._within(_ORDINARY):
            return ()
        lead = np.broadcast_shapes(*(a.shape[:-2] for a in (*self.biases, *self.booleans)))
        shifts = np.zeros((2, *lead, self.n_q, 1))
        step = max(1, _BLOCK_ENTRIES // (math.prod(lead) * self.n_k))
        for start in range(0, self.n_q, step):
            rows = slice(start, min(start + step, self.n_q))
            allowed, (total, rest) = self.allowed(rows), self._sum_of_addends(rows)
            for shift in shifts[..., rows, :]:
                largest = np.where(allowed, total, -np.inf).max(axis=-1, keepdims=True)
                np.copyto(shift, largest, where=largest != -np.inf)
                total = (total - shift) + rest
                rest = np.zeros((1, 1))
        shifts[:, np.abs(shifts.sum(axis=0)) <= _ORDINARY / self._unit] = 0
        return tuple(shifts) if shifts.any() else ()

    def _sum_of_addends(self, rows: slice) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return the sum of the addends and what its rounding left out, in units of theirs; 0 for an addend of −inf."""
        total = rest = np.zeros((1, 1))
        for bias in self.biases:
            addend = bias[..., rows, :].astype(np.float64) / self._unit
            addend[addend == -np.inf] = 0
            before, total = total, total + addend
            part = total - before  # of the addend: the sum without error is Knuth's
            rest = rest + ((before - (total - part)) + (addend - part))
        return total, rest

    @property
    def adds_what_came(self) -> bool:
        """Whether the logits' addends are the additive arrays themselves, one after the other."""
        return self._within(_ORDINARY) or (len(self.biases) == 1 and not self._shifts)

    def addends(self, rows: slice, dtype: np.dtype[Any]) -> Iterator[FloatArray]:
        """Yield what is added to the logits of the queries in `rows`, one after the other, as the module says.

        Each broadcasts to ``(…, rows, n_k)``, and is of no meaning where a key is hidden.
        """
        if self.adds_what_came:
            for bias in self.biases:
                yield bias[..., rows, :].astype(dtype)
            return
        total, rest = self._sum_of_addends(rows)
        for shift in self._shifts:
            total = (total - shift[..., rows, :]) + rest
            rest = np.zeros((1, 1))
        most = float(np.finfo(dtype).max)
        lowest = -most if max(self._sizes) <= most else -np.inf  # what the dtype cannot hold is for the caller
        with np.errstate(over="ignore"):
            yield np.clip((total + rest) * self._unit, lowest, most).astype(dtype)

    def without_shift(self, logits: NDArray[Any], rows: slice, dtype: np.dtype[Any]) -> FloatArray:
        """Return logits that no mask adds to, shape ``(…, 1, 1)``, counted as those of the queries in `rows` are.

        What is beyond the dtype's numbers then is the largest of them: all or no weight.
        """
        found = logits.astype(np.float64)
        with np.errstate(over="ignore"):
            for shift in self._shifts:
                found = found - shift[..., rows, :] * self._unit
        most = float(np.finfo(dtype).max)
        return np.clip(found, -most, most).astype(dtype)

    def with_shift(self, log_sum_exp: FloatArray) -> FloatArray:
        """Return the log-sum-exp of rows, shape ``(…, n_q)``, with what `addends` left out of them.

        Raises ``ValueError`` where that is beyond the numbers of its dtype.
        """
        found = log_sum_exp
        for shift in self._shifts[::-1]:
            rows = np.broadcast_to(shift[..., 0], (*self.layout.inner, self.n_q)).reshape(found.shape)
            with np.errstate(over="ignore"):
                found = found + rows * self._unit
        if (np.isinf(found) & np.isfinite(log_sum_exp)).any():
            raise ValueError("mask: the log-sum-exp of a row is beyond float64, a smaller mask was wanted")
        return cast("mask: log-sum-exp", found, log_sum_exp.dtype)

    def allowed(self, rows: slice) -> NDArray[np.bool_]:
        """Return which keys the queries in `rows` may see, broadcastable to ``(…, rows, n_k)``."""
        seen: NDArray[np.bool_] = np.ones((1, self.n_k), dtype=bool)
        for pattern in self.patterns:
            seen = seen & pattern.allowed(rows, self.n_q, self.n_k)
        for boolean in self.booleans:
            seen = seen & boolean[..., rows, :]
        for bias in self.biases:
            seen = seen & (bias[..., rows, :] != -np.inf)
        return seen


def _parts(mask: Any, shape: tuple[int, ...]) -> tuple[Any, ...]:
    """Return the conditions that a mask consists of; refuse a tuple that may be several or one array of this shape."""
    if not isinstance(mask, tuple):
        return (mask,)
    if any(isinstance(part, (str, Causal, SlidingWindow, MaskRule)) for part in mask):
        return mask
    arrays = [as_array("mask", part) for part in mask if hasattr(part, "__array__") or hasattr(part, "__dlpack__")]
    if mask and not any(array.ndim for array in arrays):
        return (mask,)  # numbers, or tuples and lists of them
    if len(mask) > 1 and _may_be_one([as_array("mask", part) for part in mask], shape):
        raise ValueError(
            f"mask: a tuple of {len(mask)} arrays of one shape came, which may be the rows of one array or several"
            ' masks; np.array(mask) for the one, ("full", *mask) for the other was wanted'
        )
    return mask


def _may_be_one(arrays: list[NDArray[Any]], shape: tuple[int, ...]) -> bool:
    """Whether arrays, one below the other, are an array of one kind that broadcasts to a shape."""
    if len({array.shape for array in arrays}) > 1 or len({array.dtype.kind for array in arrays}) > 1:
        return False
    try:
        return np.broadcast_shapes((len(arrays), *arrays[0].shape), shape) == shape
    except ValueError:
        return False
