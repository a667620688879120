"""Leading axes: batches broadcast, query heads share key-value heads.

Queries ``(…, H, n_q, d)`` meet keys ``(…, H_kv, n_k, d)`` and values ``(…, H_kv, n_k, d_v)``. Where H_kv divides
H, query head h uses key-value head ``h // (H / H_kv)`` (grouped heads, the layout of GQA, ONNX and PyTorch). Inside
the package every computation sees one common set of leading axes: `HeadLayout.expand` makes it by views,
`HeadLayout.merge`, `HeadLayout.reduce_queries` and `HeadLayout.reduce_keys` undo it for outputs and gradients.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from refattn._validation import FloatArray, require_rank


@dataclass(frozen=True)
class HeadLayout:
    """How the leading axes of q, k and v fit together."""

    lead: tuple[int, ...]  # leading axes of the output
    inner: tuple[int, ...]  # during the computation: the head axis split in ``(H_kv, group)`` if grouped
    group: int  # query heads per key-value head; 1 where heads are not grouped

    @classmethod
    def of(cls, q: FloatArray, k: FloatArray, v: FloatArray) -> HeadLayout:
        """Check q, k, v against each other and return their layout, or raise naming what does not fit."""
        require_rank("q", q, 2, "(…, n_q, d)")
        require_rank("k", k, 2, "(…, n_k, d)")
        require_rank("v", v, 2, "(…, n_k, d_v)")
        if k.shape[-1] != q.shape[-1]:
            raise ValueError(f"k: last axis {k.shape[-1]} came, q's d = {q.shape[-1]} was wanted")
        if v.shape[-2] != k.shape[-2]:
            raise ValueError(f"v: {v.shape[-2]} rows came, as many as k has ({k.shape[-2]}) were wanted")
        lead_q, lead_kv = q.shape[:-2], _broadcast("v", v, "k", k.shape[:-2])
        heads, heads_kv = (lead[-1] if lead else 1 for lead in (lead_q, lead_kv))
        if heads_kv == 1 or heads in (1, heads_kv):
            lead = _broadcast("q", q, "k and v", lead_kv)
            return cls(lead, lead, 1)
        if heads % heads_kv:
            raise ValueError(
                f"q: {heads} heads (axis -3) came, a multiple of the {heads_kv} heads of k and v was wanted"
            )
        group = heads // heads_kv
        outer = _broadcast("q", q[..., 0, :, :], "k and v", lead_kv[:-1])
        return cls((*outer, heads), (*outer, heads_kv, group), group)

    def expand(self, q: FloatArray, k: FloatArray, v: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
        """Return views of q, k, v whose leading axes are all `inner`."""
        return self.expand_queries(q), self._expand_keys(k), self._expand_keys(v)

    def expand_queries(self, q: FloatArray) -> FloatArray:
        """Return a view of a query-like array (q, the output, its gradient) with leading axes `inner`."""
        return np.broadcast_to(self.split_heads(q), self.inner + q.shape[-2:])

    def split_heads(self, array: NDArray[Any]) -> NDArray[Any]:
        """Return an array that broadcasts with the output's leading axes as one that does with `inner`."""
        if self.group == 1 or array.ndim < 3:
            return array
        group = self.group if array.shape[-3] > 1 else 1
        return array.reshape(*array.shape[:-3], array.shape[-3] // group, group, *array.shape[-2:])

    def _expand_keys(self, k: FloatArray) -> FloatArray:
        if self.group > 1:
            k = k[..., None, :, :]
        return np.broadcast_to(k, self.inner + k.shape[-2:])

    def merge(self, out: FloatArray) -> FloatArray:
        """Give an array with leading axes `inner` and two trailing axes the output's leading axes."""
        return out.reshape(self.lead + out.shape[-2:])

    def reduce_queries(self, grad: FloatArray, shape: tuple[int, ...]) -> FloatArray:
        """Sum a gradient over the axes along which a query-like array of `shape` was broadcast."""
        return sum_to(self.merge(grad), shape)

    def reduce_keys(self, grad: FloatArray, shape: tuple[int, ...]) -> FloatArray:
        """Sum a gradient over the axes along which a key-like array of `shape` was broadcast or shared."""
        if self.group > 1:
            grad = grad.sum(axis=-3)
        return sum_to(grad, shape)


def _broadcast(name: str, array: FloatArray, others: str, lead: tuple[int, ...]) -> tuple[int, ...]:
    try:
        return np.broadcast_shapes(array.shape[:-2], lead)
    except ValueError:
        raise ValueError(
            f"{name}: leading axes {array.shape[:-2]} came, axes that broadcast with those of {others} {lead}"
            " were wanted"
        ) from None


def sum_to(grad: FloatArray, shape: tuple[int, ...]) -> FloatArray:
    """Sum an array over the axes along which one of `shape` was broadcast."""
    extra = grad.ndim - len(shape)
    kept = tuple(axis + extra for axis, size in enumerate(shape) if size == 1 and grad.shape[axis + extra] > 1)
    axes = (*range(extra), *kept)
    return grad.sum(axis=axes, keepdims=True).reshape(shape) if axes else grad.reshape(shape)
