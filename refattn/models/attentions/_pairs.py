"""Keys and values that grow at their end, token by token, in arrays with room for more."""

from __future__ import annotations

import numpy as np

from refattn._validation import FloatArray


class Pairs:
    """All the pairs that an attention keeps of a layer; where their arrays are full they are moved to larger ones.

    Half as large again: a token is moved about twice on the average, and a third of the room is idle at most.
    """

    def __init__(self, k: FloatArray, v: FloatArray) -> None:
        self._arrays = [np.array(k, order="C"), np.array(v, order="C")]
        self._count = k.shape[1]

    def append(self, k: FloatArray, v: FloatArray) -> None:
        """Take in pairs (heads, n, d) and (heads, n, d_v) at the end; where there is no memory, none."""
        first, end = self._count, self._count + k.shape[1]
        if end > self._arrays[0].shape[1]:
            larger = [np.empty((len(kept), end + end // 2, kept.shape[2]), kept.dtype) for kept in self._arrays]
            for room, kept in zip(larger, self.arrays(), strict=True):
                room[:, :first] = kept
            self._arrays = larger
        for kept, new in zip(self._arrays, (k, v), strict=True):
            kept[:, first:end] = new
        self._count = end

    def arrays(self) -> tuple[FloatArray, FloatArray]:
        """Return the keys and the values, oldest first."""
        keys, values = (kept[:, : self._count] for kept in self._arrays)
        return keys, values

    @property
    def nbytes(self) -> int:
        """Bytes of the arrays, with the room in them."""
        return sum(kept.nbytes for kept in self._arrays)
