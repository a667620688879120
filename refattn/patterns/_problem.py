"""A checked problem of attention to given pairs: what every method receives."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from refattn._heads import HeadLayout
from refattn._kept import kept
from refattn._overflow import require_scale_held
from refattn._validation import FloatArray, as_float_arrays, as_scale
from refattn.patterns._lists import Indices, as_lists


@dataclass(frozen=True)
class IndexedProblem:
    """Checked inputs, in the dtype of the computation; the lists ascend, −1 first."""

    q: FloatArray
    k: FloatArray
    v: FloatArray
    indices: Indices
    layout: HeadLayout
    scale: float

    def lists(self) -> Indices:
        """Return a view of the lists with leading axes `layout.inner`."""
        split = self.layout.split_heads(self.indices)
        return np.broadcast_to(split, self.layout.inner + self.indices.shape[-2:])


def as_problem(
    q: ArrayLike, k: ArrayLike, v: ArrayLike, indices: ArrayLike, *, scale: float | None, check_finite: bool, keep: bool
) -> IndexedProblem:
    """Check everything, and copy what outlives the call if it is to be kept; raise naming the first thing wrong."""
    q, k, v = as_float_arrays(check_finite=check_finite, q=q, k=k, v=v)
    layout = HeadLayout.of(q, k, v)
    lists = as_lists(indices, q.shape[-2], k.shape[-2])
    try:
        fits = np.broadcast_shapes(lists.shape[:-2], layout.lead) == layout.lead
    except ValueError:
        fits = False
    if not fits:
        raise ValueError(
            f"indices: leading axes {lists.shape[:-2]} came, axes that broadcast to those of the output"
            f" {layout.lead} were wanted"
        )
    if keep:
        q, k, v, lists = kept(q), kept(k), kept(v), kept(lists)
    factor = as_scale(scale, q.shape[-1], q.dtype)
    require_scale_held(factor, q.dtype)
    return IndexedProblem(q, k, v, lists, layout, factor)
