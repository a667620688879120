"""Masks of attention: which query may see which key.

A mask is given to `refattn.dense_attention` as ``"causal"``, ``"full"``, one of the objects below, a boolean array
(True: may be seen), an additive floating array (−inf: may not be seen), or a tuple of these, which all apply.

`Causal` and `SlidingWindow` place query i at position ``i + offset`` among the keys. With as many queries as keys
the offset is 0; otherwise it must be said, because the field uses both conventions: ``"top-left"`` (offset 0,
PyTorch's ``is_causal``) and ``"bottom-right"`` (offset n_k − n_q, queries are the last ones, as in decoding).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from refattn._heads import HeadLayout
from refattn._kept import kept
from refattn._validation import FloatArray, as_array, as_count, as_option

__all__ = ["Causal", "SlidingWindow"]

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
    """Query at position p sees the keys ``p − window + 1 … p`` and the first `sinks` keys up to p.

    Parameters
    ----------
    window : int
        Keys in the window, the query's own included; at least 0.
    sinks : int
        Keys at the start that stay visible (attention sinks); at least 0.
    alignment : {"top-left", "bottom-right"} or int, optional
        As for `Causal`.

    Raises
    ------
    TypeError, ValueError
        `window` or `sinks` is not a count.

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

    def __post_init__(self) -> None:
        as_count("window", self.window, least=0)
        as_count("sinks", self.sinks, least=0)

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
        return np.asarray((lag >= 0) & near)


Mask: TypeAlias = "str | Causal | SlidingWindow | NDArray[Any] | tuple[Any, ...]"


class RowMask:
    """A checked mask, read a block of query rows at a time; it holds copies of the arrays."""

    def __init__(self, mask: Any, n_q: int, n_k: int, layout: HeadLayout) -> None:
        self.n_q, self.n_k = n_q, n_k
        self.patterns: list[Causal | SlidingWindow] = []
        self.booleans: list[NDArray[np.bool_]] = []
        self.biases: list[FloatArray] = []
        for part in mask if isinstance(mask, tuple) else (mask,):
            if isinstance(part, str):
                if as_option("mask", part, ("causal", "full")) == "causal":
                    self.patterns.append(Causal())
            elif isinstance(part, (Causal, SlidingWindow)):
                self.patterns.append(part)
            else:
                self._add_array(part, layout)
        for pattern in self.patterns:
            pattern.allowed(slice(0, 0), n_q, n_k)  # an alignment that is missing or wrong shows here

    def _add_array(self, part: Any, layout: HeadLayout) -> None:
        array = as_array("mask", part)
        if array.dtype.kind not in "bf" or array.dtype.itemsize > 8:
            raise TypeError(
                f"mask: {type(part).__name__} of dtype {array.dtype} came; 'causal', 'full', Causal, SlidingWindow,"
                " a boolean or a floating (additive) array, or a tuple of these was wanted"
            )
        array = kept(array)
        shape = (*layout.lead, self.n_q, self.n_k)
        try:
            np.broadcast_to(array, shape)
        except ValueError:
            raise ValueError(f"mask: shape {array.shape} came, one that broadcasts to {shape} was wanted") from None
        view = layout.split_heads(np.broadcast_to(array, array.shape[:-2] + shape[-2:]))
        if array.dtype.kind == "b":
            self.booleans.append(view)
            return
        bad = np.isnan(array) | (array == np.inf)
        if bad.any():
            index = tuple(int(i) for i in np.argwhere(bad)[0])
            raise ValueError(f"mask: {array[index]} at index {index}, numbers below +inf were wanted")
        self.biases.append(view)

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
