"""What outlives a call: read-only copies, so that what is later written to an argument or a result changes nothing."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def kept(array: NDArray[Any]) -> NDArray[Any]:
    """Return a read-only copy, row by row and in the machine's byte order; axes before the last two stay broadcast."""
    leading = max(array.ndim - 2, 0)
    once = array[tuple(slice(1) if stride == 0 else slice(None) for stride in array.strides[:leading])]
    copy = np.array(once, once.dtype.newbyteorder("="), order="C")
    copy.flags.writeable = False
    return np.broadcast_to(copy, array.shape)


def restore(self: Any, state: dict[str, Any]) -> None:
    """Give a copied or unpickled object its attributes, its arrays read-only as they were: for ``__setstate__``."""
    for name, value in state.items():
        if isinstance(value, np.ndarray):
            value.flags.writeable = False
        object.__setattr__(self, name, value)
