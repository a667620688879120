"""A checked problem of exact attention: what every method receives."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from refattn._heads import HeadLayout
from refattn._kept import kept
from refattn._overflow import require_scale_held
from refattn._validation import FloatArray, as_array, as_count, as_float_arrays, as_real, as_scale, cast
from refattn.masks import RowMask


@dataclass(frozen=True)
class DenseProblem:
    """Checked inputs of exact attention, in the dtype of the computation.

    `block` is None where nobody gave it, and so are `bias`, the shape of the additive array that has a gradient, which
    is the last one of the mask, `sinks` and `keep`.
    """

    q: FloatArray
    k: FloatArray
    v: FloatArray
    layout: HeadLayout
    mask: RowMask
    scale: float
    softcap: float | None
    block: int | None
    bias: tuple[int, ...] | None
    sinks: FloatArray | None
    keep: NDArray[np.bool_] | None
    dropout: float

    @property
    def sinks_of_heads(self) -> FloatArray | None:
        """The sinks' logits, shape ``(*inner, 1, 1)``."""
        if self.sinks is None:
            return None
        return np.broadcast_to(self.layout.split_heads(self.sinks[..., None, None]), (*self.layout.inner, 1, 1))

    @property
    def keep_of_heads(self) -> NDArray[np.bool_] | None:
        """Which weights are kept, shape ``(*inner, n_q, n_k)``; without dropout None."""
        if self.keep is None:
            return None
        shape = (self.mask.n_q, self.mask.n_k)
        whole = np.broadcast_to(self.keep, self.keep.shape[:-2] + shape)
        return np.broadcast_to(self.layout.split_heads(whole), self.layout.inner + shape)


def as_problem(
    q: ArrayLike,
    k: ArrayLike,
    v: ArrayLike,
    *,
    mask: Any,
    scale: float | None,
    softcap: float | None,
    bias: ArrayLike | None,
    sinks: ArrayLike | None,
    keep: ArrayLike | None,
    dropout: float | None,
    block: int | None,
    check_finite: bool,
    outlives: bool,
) -> DenseProblem:
    """Check everything, and copy what outlives the call if something does; raise naming the first thing wrong."""
    q, k, v = as_float_arrays(check_finite=check_finite, q=q, k=k, v=v)
    if outlives:
        q, k, v = kept(q), kept(k), kept(v)
    layout = HeadLayout.of(q, k, v)
    added = None if bias is None else as_array("bias", bias)
    rule = RowMask(mask, q.shape[-2], k.shape[-2], layout, added)
    factor = as_scale(scale, q.shape[-1], q.dtype)
    require_scale_held(factor, q.dtype)
    if softcap is not None:
        limits = np.finfo(q.dtype)
        softcap = as_real("softcap", softcap, least=float(limits.tiny), positive=True, most=float(limits.max))
    if block is not None:
        block = as_count("block", block, least=1)
    logits = None if sinks is None else _as_sinks(sinks, layout, q.dtype)
    kept_weights, rate = _as_dropout(keep, dropout, (*layout.lead, q.shape[-2], k.shape[-2]))
    shape = None if added is None else added.shape
    return DenseProblem(q, k, v, layout, rule, factor, softcap, block, shape, logits, kept_weights, rate)


def _as_sinks(sinks: ArrayLike, layout: HeadLayout, dtype: np.dtype[Any]) -> FloatArray:
    (logits,) = as_float_arrays(sinks=sinks)
    _require_broadcast("sinks", logits, layout.lead)
    return kept(cast("sinks", logits, dtype))


def _as_dropout(
    keep: ArrayLike | None, dropout: float | None, shape: tuple[int, ...]
) -> tuple[NDArray[np.bool_] | None, float]:
    if keep is None and dropout is None:
        return None, 0.0
    if keep is None or dropout is None:
        missing, there = ("keep", "dropout") if keep is None else ("dropout", "keep")
        raise ValueError(f"{missing}: nothing came beside {there}, the weights that are kept and the rate were wanted")
    rate = as_real("dropout", dropout, least=0)
    if rate >= 1:
        raise ValueError(f"dropout: {rate:.6g} came, a rate of at least 0 and below 1 was wanted")
    weights = as_array("keep", keep)
    if weights.dtype.kind != "b":
        raise TypeError(f"keep: dtype {weights.dtype} came, booleans were wanted")
    _require_broadcast("keep", weights, shape)
    return kept(weights), rate


def _require_broadcast(name: str, array: NDArray[Any], shape: tuple[int, ...]) -> None:
    try:
        np.broadcast_to(array, shape)
    except ValueError:
        raise ValueError(f"{name}: shape {array.shape} came, one that broadcasts to {shape} was wanted") from None


def overflow(name: str, query: int, key: int, logit: Any) -> ValueError:
    """Say which logit overflows, and because of which argument."""
    hides = " (-inf where a key may not be seen)" if name in ("mask", "bias") else ""
    return ValueError(
        f"{name}: the logit of query {query} and key {key} is {logit} in {logit.dtype};"
        f" smaller entries{hides}, a smaller scale or float64 was wanted"
    )
