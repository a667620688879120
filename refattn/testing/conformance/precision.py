"""The precisions a kernel may declare, and arithmetic rounded to them (ours).

All but float64 and float32 are emulated: numbers are held in float32 and rounded where a kernel rounds. Kernels round
their inputs, the weights before the second product, and their results, and keep sums and everything else in float32:
``accumulate="float32"``. Implementations made of an array library's operations keep every intermediate in the dtype,
and overflow where it does: ``accumulate="dtype"``. Between the two are kernels that add a gradient up tile by tile in
an array of the dtype: ``accumulate="tiles"``.

Results of the 8-bit formats are bfloat16, as those of the kernels are that multiply in them. ``"int8-keys"`` holds
every key as integers up to 127 and a factor, all else in bfloat16.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from refattn._validation import FloatArray, as_option

ACCUMULATE = ("float32", "tiles", "dtype")
TILE = 64
"""Terms after which a gradient that is added up tile by tile is rounded to the dtype; kernels' tiles are no smaller."""


@dataclass(frozen=True)
class Precision:
    """A floating format, by its name in NumPy, PyTorch and JAX, and how sums are held in it."""

    name: str
    unit: float  # of rounding: half the distance from 1 to the next number
    least: float  # half the distance between the smallest numbers: what rounding loses of however small a number
    largest: float  # finite number
    work: np.dtype[Any]  # of the arrays that hold its numbers: float64, or float32 for the others
    results: str  # the precision of results
    accumulate: str = "float32"

    def round(self, array: NDArray[Any]) -> FloatArray:
        """Return the array with every entry rounded to this precision, ties to even, in the dtype `work`."""
        with np.errstate(over="ignore", under="ignore", invalid="ignore"):
            return _ROUND[self.name](np.asarray(array, self.work))

    def carry(self, array: NDArray[Any]) -> FloatArray:
        """Return an intermediate as a kernel holds it: rounded only where it accumulates in the dtype."""
        return self.round(array) if self.accumulate == "dtype" else np.asarray(array, self.work)

    def keys(self, array: NDArray[Any]) -> FloatArray:
        """Return keys as a kernel holds them, which it may do more coarsely than all else."""
        if self.name != "int8-keys":
            return self.round(array)
        step = np.abs(array).max(axis=-1, keepdims=True, initial=0) / 127
        return np.asarray(np.rint(array / np.where(step > 0, step, 1)) * step, self.work)

    def result(self, array: NDArray[Any]) -> FloatArray:
        """Return a result rounded to the precision of results."""
        return PRECISIONS[self.results].round(array)

    @property
    def end(self) -> float:
        """The largest finite number that a result can be."""
        return PRECISIONS[self.results].largest

    @property
    def inner(self) -> float:
        """The unit of rounding of sums and other intermediates."""
        return self.unit if self.accumulate == "dtype" or self.work == np.float64 else PRECISIONS["float32"].unit


def _bfloat16(array: NDArray[Any]) -> FloatArray:
    bits = np.ascontiguousarray(array).view(np.uint32)
    even = bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))
    rounded = (even & np.uint32(0xFFFF0000)).view(np.float32).reshape(array.shape)
    return np.where(np.isfinite(array), rounded, array)


def _eight_bits(digits: int, exponent: int, largest: float) -> Callable[[NDArray[Any]], FloatArray]:
    """Round to so many binary digits behind the first, exponents from `exponent` on, cut off at the largest number."""

    def rounded(array: NDArray[Any]) -> FloatArray:
        _, exponents = np.frexp(array)
        step = np.ldexp(np.float32(1), np.maximum(exponents - 1, exponent) - digits)
        return np.asarray(np.clip(np.rint(array / step) * step, -largest, largest), np.float32)

    return rounded


_ROUND: dict[str, Callable[[NDArray[Any]], FloatArray]] = {
    "float64": np.asarray,
    "float32": np.asarray,
    "float16": lambda array: array.astype(np.float16).astype(np.float32),
    "bfloat16": _bfloat16,
    "int8-keys": _bfloat16,
    "float8_e4m3": _eight_bits(3, -6, 448.0),
    "float8_e5m2": _eight_bits(2, -14, 57344.0),
}
_SINGLE, _DOUBLE = np.dtype(np.float32), np.dtype(np.float64)
_LARGEST = 2.0**128 * (1 - 2.0**-8)  # of bfloat16

PRECISIONS = {
    # half of float64's smallest number is none of its own: the whole
    "float64": Precision("float64", 2.0**-53, 2.0**-1074, float(np.finfo(_DOUBLE).max), _DOUBLE, "float64"),
    "float32": Precision("float32", 2.0**-24, 2.0**-150, float(np.finfo(_SINGLE).max), _SINGLE, "float32"),
    "float16": Precision("float16", 2.0**-11, 2.0**-25, 65504.0, _SINGLE, "float16"),
    "bfloat16": Precision("bfloat16", 2.0**-8, 2.0**-134, _LARGEST, _SINGLE, "bfloat16"),
}
"""Those that arrays come in, from the finest to the coarsest."""

EMULATED = {
    "int8-keys": Precision("int8-keys", 2.0**-8, 2.0**-134, _LARGEST, _SINGLE, "bfloat16"),
    "float8_e4m3": Precision("float8_e4m3", 2.0**-4, 2.0**-10, 448.0, _SINGLE, "bfloat16"),
    "float8_e5m2": Precision("float8_e5m2", 2.0**-3, 2.0**-17, 57344.0, _SINGLE, "bfloat16"),
}
"""Those that are only multiplied in."""


def precision(name: str, accumulate: str = "float32", argument: str = "precision") -> Precision:
    """Return the precision called `name`, or raise ``ValueError`` listing the known.

    >>> float(precision("bfloat16").round(np.array([1.00390625 + 1e-4]))[0])
    1.0078125
    >>> precision("float8_e4m3").round(np.array([0.3, 1000.0])).tolist()
    [0.3125, 448.0]
    """
    known = PRECISIONS | EMULATED
    return replace(known[as_option(argument, name, known)], accumulate=as_option("accumulate", accumulate, ACCUMULATE))
