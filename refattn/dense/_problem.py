"""A checked problem of exact attention: what every method receives."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from refattn._heads import HeadLayout
from refattn._kept import kept
from refattn._overflow import require_scale_held
from refattn._validation import FloatArray, as_count, as_float_arrays, as_real, as_scale
from refattn.masks import RowMask


@dataclass(frozen=True)
class DenseProblem:
    """Checked inputs of exact attention, in the dtype of the computation; `block` is None where nobody gave it."""

    q: FloatArray
    k: FloatArray
    v: FloatArray
    layout: HeadLayout
    mask: RowMask
    scale: float
    softcap: float | None
    block: int | None


def as_problem(
    q: ArrayLike,
    k: ArrayLike,
    v: ArrayLike,
    *,
    mask: Any,
    scale: float | None,
    softcap: float | None,
    block: int | None,
    check_finite: bool,
    keep: bool,
) -> DenseProblem:
    """Check everything, and copy what outlives the call if it is to be kept; raise naming the first thing wrong."""
    q, k, v = as_float_arrays(check_finite=check_finite, q=q, k=k, v=v)
    if keep:
        q, k, v = kept(q), kept(k), kept(v)
    layout = HeadLayout.of(q, k, v)
    rule = RowMask(mask, q.shape[-2], k.shape[-2], layout)
    factor = as_scale(scale, q.shape[-1], q.dtype)
    require_scale_held(factor, q.dtype)
    if softcap is not None:
        limits = np.finfo(q.dtype)
        softcap = as_real("softcap", softcap, least=float(limits.tiny), positive=True, most=float(limits.max))
    if block is not None:
        block = as_count("block", block, least=1)
    return DenseProblem(q, k, v, layout, rule, factor, softcap, block)


def overflow(name: str, query: int, key: int, logit: Any) -> ValueError:
    """Say which logit overflows, and because of which argument."""
    hides = " (-inf where a key may not be seen)" if name == "mask" else ""
    return ValueError(
        f"{name}: the logit of query {query} and key {key} is {logit} in {logit.dtype};"
        f" smaller entries{hides}, a smaller scale or float64 was wanted"
    )
