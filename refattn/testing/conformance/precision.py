"""The precisions a kernel may declare, and arithmetic rounded to them (ours).

bfloat16 and float16 are emulated: operations in float32, every result rounded to the precision. That is what a plain
implementation that keeps each intermediate in half precision computes, up to the order of its sums.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from refattn._validation import FloatArray, as_option


@dataclass(frozen=True)
class Precision:
    """A floating format, by its name in NumPy, PyTorch and JAX."""

    name: str
    unit: float  # of rounding: half the distance from 1 to the next number
    work: np.dtype[Any]  # of the arrays that hold its numbers: float64, or float32 for the others

    def round(self, array: NDArray[Any]) -> FloatArray:
        """Return the array with every entry rounded to this precision, ties to even, in the dtype `work`."""
        with np.errstate(over="ignore", under="ignore", invalid="ignore"):
            kept = np.asarray(array, self.work)
            if self.name == "float16":
                return np.asarray(kept.astype(np.float16).astype(np.float32))
            if self.name != "bfloat16":
                return kept
            bits = np.ascontiguousarray(kept).view(np.uint32)
            even = bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))
            rounded = (even & np.uint32(0xFFFF0000)).view(np.float32).reshape(kept.shape)
            return np.where(np.isfinite(kept), rounded, kept)


PRECISIONS = {
    "float64": Precision("float64", 2.0**-53, np.dtype(np.float64)),
    "float32": Precision("float32", 2.0**-24, np.dtype(np.float32)),
    "float16": Precision("float16", 2.0**-11, np.dtype(np.float32)),
    "bfloat16": Precision("bfloat16", 2.0**-8, np.dtype(np.float32)),
}
"""From the finest to the coarsest."""


def precision(name: str) -> Precision:
    """Return the precision called `name`, or raise ``ValueError`` listing the known.

    >>> float(precision("bfloat16").round(np.array([1.00390625 + 1e-4]))[0])
    1.0078125
    """
    return PRECISIONS[as_option("dtype", name, PRECISIONS)]
