"""How the plain implementations share key-value heads, and add up the gradients of shared ones (ours)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from refattn._validation import FloatArray
from refattn.testing.conformance.precision import Precision

FAULTS = {
    "wrong head grouping": "query head h meets key-value head h mod H_kv; h // (H / H_kv) was wanted",
    "first key-value head for all": "every query head meets key-value head 0",
    "last key-value head for those beyond": "query head h meets key-value head min(h, H_kv − 1): an index cut off",
    "shared gradients averaged": "gradients of a shared key-value head are averaged over its query heads, not added",
    "shared gradients of one head": "the gradient of a shared key-value head is that of its last query head alone",
}


def shared_heads(n_heads: int, n_kv: int, fault: str | None) -> NDArray[np.int64]:
    """Return the key-value head of every query head."""
    heads = np.arange(n_heads)
    if fault == "wrong head grouping":
        return np.asarray(heads % n_kv)
    if fault == "first key-value head for all":
        return np.zeros_like(heads)
    if fault == "last key-value head for those beyond":
        return np.minimum(heads, n_kv - 1)
    return np.asarray(heads // (n_heads // n_kv))


def add_shared(
    gradient: FloatArray, heads: NDArray[np.int64], n_kv: int, to: Precision, fault: str | None
) -> FloatArray:
    """Add the gradients (B, H, …) of the query heads that share a key-value head: (B, H_kv, …)."""
    shape = (gradient.shape[0], n_kv, *gradient.shape[2:])
    total = np.zeros(shape, gradient.dtype)
    for place, head in enumerate(heads):
        if fault == "shared gradients of one head":
            total[:, head] = gradient[:, place]
        else:
            total[:, head] = to.carry(total[:, head] + gradient[:, place])
    if fault == "shared gradients averaged":
        total /= len(heads) // n_kv
    return total
