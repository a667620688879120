"""Input checks: one place, one voice.

Every message names the argument, says what came and what was wanted. A wrong *kind* of thing (a string,
a complex array, a pickled object) is a ``TypeError``; a wrong *value* (a shape, a NaN, a negative count) is
a ``ValueError``.

How numbers lie in memory ends here as well: what `as_float_arrays` and `as_real_array` return is row by row, aligned
and in the machine's byte order, whatever came, so that the same numbers give the same bits. An array that the caller
broadcast (stride 0) is written out, because the order of a sum depends on strides: it then takes the memory of an array
of its shape, which the output does as well. Leading axes of one, which are broadcast further inside, cost nothing, and
masks, which are larger than any output, are read where they lie.
"""

from __future__ import annotations

import math
import numbers
import operator
import warnings
from collections.abc import Iterable
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.floating[Any]]
Gradients = TypeVar("Gradients", bound=tuple[FloatArray, ...])


class PromotionWarning(UserWarning):
    """An input was promoted to float32 or float64 before computing (integers, float16).

    Notes
    -----
    Turn it into an error with ``warnings.simplefilter("error", PromotionWarning)``. Source: ours.

    Examples
    --------
    >>> import warnings
    >>> from refattn import PromotionWarning, dense_attention
    >>> with warnings.catch_warnings(record=True) as caught:
    ...     warnings.simplefilter("always")
    ...     dense_attention([[1]], [[1]], [[2]]).dtype
    dtype('float64')
    >>> caught[0].category is PromotionWarning
    True
    """


def as_float_arrays(*, check_finite: bool = True, **arrays: Any) -> tuple[FloatArray, ...]:
    """Convert named array-likes to NumPy arrays of one floating dtype, float32 or float64.

    Float32 and float64 are kept (float64 wins where both come); float16 becomes float32 and integers become float64,
    each with a `PromotionWarning`. A number of Python's own takes the dtype of the arrays beside it. What is not
    numeric is refused, and so are NaN and infinity if `check_finite`; the first bad index is named. The inputs are
    never written to; an array that already fits is returned as it is: what is kept beyond the call is to be copied
    (`refattn._kept.kept`). They are laid out as the head of the module says.
    """
    as_flag("check_finite", check_finite)
    converted = {name: _as_numbers(name, value) for name, value in arrays.items()}
    decides = {name for name, value in arrays.items() if not is_python_number(value)} or arrays.keys()
    # integers count as float64 here, int16 as well as int64
    deciding = (converted[name].dtype for name in decides)
    dtype = np.result_type(np.float32, *(own if own.kind == "f" else np.float64 for own in deciding))
    for name, array in converted.items():
        if name not in decides:
            converted[name] = cast(name, array, dtype)
        elif array.dtype.kind != "f" or array.dtype.itemsize < 4:
            _warn_promotion(name, array.dtype, dtype)
    out = tuple(_laid_out(a, dtype) for a in converted.values())
    if check_finite:
        for name, array in zip(converted, out, strict=True):
            require_finite(name, array)
    return out


def as_array(name: str, value: Any) -> NDArray[Any]:
    """Convert one array-like to a NumPy array of whatever dtype and layout it has, or raise naming the argument."""
    if isinstance(value, np.ma.MaskedArray):
        raise TypeError(f"{name}: a masked array came, a plain array was wanted (its mask would be lost)")
    try:
        if hasattr(value, "__array__") or not hasattr(value, "__dlpack__"):
            return np.asarray(value)
        return np.from_dlpack(value)
    except MemoryError:
        raise
    except ValueError as error:
        raise ValueError(f"{name}: cannot be read as an array of numbers ({error})") from error
    except Exception as error:  # a foreign library's own refusal: a device, a gradient tape, a dtype
        raise TypeError(
            f"{name}: a {type(value).__name__} came that cannot be read as a NumPy array on the CPU ({error})"
        ) from error


def as_real_array(name: str, value: Any) -> NDArray[Any]:
    """Convert one array-like to a NumPy array of integers or of floats no wider than float64."""
    array = _as_numbers(name, value)
    return _laid_out(array, array.dtype.newbyteorder("="))


def is_python_number(value: Any) -> bool:
    """Whether this is a number of Python's own, which has no dtype, and not one of NumPy's."""
    return isinstance(value, (int, float)) and not isinstance(value, (bool, np.generic))


def _as_numbers(name: str, value: Any) -> NDArray[Any]:
    array = as_array(name, value)
    if array.dtype.kind not in "iuf" or array.dtype.itemsize > 8:
        raise TypeError(f"{name}: dtype {array.dtype} came, float32 or float64 was wanted")
    return array


def _laid_out(array: NDArray[Any], dtype: np.dtype[Any]) -> NDArray[Any]:
    """Return the array in this dtype, row by row and aligned."""
    return np.require(array, dtype, ("C", "A"))


def cast(name: str, array: NDArray[Any], dtype: Any) -> NDArray[Any]:
    """Return the array in a dtype that may be narrower; refuse where a finite entry is beyond that dtype's numbers.

    Rounding, and what is too small for the dtype, is left to NumPy.
    """
    if array.dtype == dtype:
        return array
    with np.errstate(over="ignore"):
        narrow = np.asarray(array, dtype)
    beyond = np.isinf(narrow) & np.isfinite(array)
    if beyond.any():
        index = tuple(int(i) for i in np.argwhere(beyond)[0])
        most = float(np.finfo(dtype).max)
        raise ValueError(
            f"{name}: {array[index]} at index {index} came in {array.dtype},"
            f" numbers of at most {most:.8g} in size were wanted: the computation is in {np.dtype(dtype)}"
        )
    return narrow


def _warn_promotion(name: str, came: np.dtype[Any], computed: np.dtype[Any]) -> None:
    warnings.warn(
        f"{name}: {came} was promoted; the computation and the result are {computed}",
        PromotionWarning,
        stacklevel=outside_stacklevel(),
    )


def outside_stacklevel() -> int:
    """Stack level of the first caller outside this package, so that a warning points at the user's line."""
    import sys

    level, frame = 1, sys._getframe(1)
    package = __name__.partition(".")[0]
    while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] == package:
        level, frame = level + 1, frame.f_back
    return level


def require_finite(name: str, array: FloatArray) -> None:
    """Raise ``ValueError`` naming the first entry of `array` that is NaN or infinite."""
    # A sum is finite only if every entry is (it may overflow without a bad entry: then look).
    with np.errstate(over="ignore", invalid="ignore"):
        if np.isfinite(array.sum()):
            return
    bad = ~np.isfinite(array)
    if bad.any():
        index = tuple(int(i) for i in np.argwhere(bad)[0])
        raise ValueError(
            f"{name}: {array[index]} at index {index}, finite numbers were wanted"
            f" ({int(bad.sum())} of {bad.size} entries are not)"
        )


def require_rank(name: str, array: FloatArray, least: int, axes: str) -> None:
    """Raise unless `array` has at least `least` axes, none of the last `least` empty."""
    if array.ndim < least:
        raise ValueError(f"{name}: shape {array.shape} came, {axes} was wanted")
    if 0 in array.shape:
        raise ValueError(f"{name}: shape {array.shape} came with an empty axis, {axes} was wanted")


def as_count(name: str, value: Any, *, least: int, most: int | None = None, most_is: str = "") -> int:
    """Return `value` as an int in ``least … most``; booleans and fractions are refused."""
    try:
        if isinstance(value, (bool, np.bool_)):
            raise TypeError
        count = operator.index(value)
    except TypeError:
        raise TypeError(f"{name}: {value!r} came, an integer was wanted") from None
    if count < least or (most is not None and count > most):
        upper = "" if most is None else f" and at most {most}{f' ({most_is})' if most_is else ''}"
        raise ValueError(f"{name}: {count} came, at least {least}{upper} was wanted")
    return count


def as_flag(name: str, value: Any) -> bool:
    """Return `value` as a bool, or raise ``TypeError``: nothing else is taken for true or false."""
    if not isinstance(value, (bool, np.bool_)):
        raise TypeError(f"{name}: {value!r} came, True or False was wanted")
    return bool(value)


def require_kind(name: str, value: Any, kind: type, source: str) -> None:
    """Raise ``TypeError`` unless `value` is of the class that the function `source` returns."""
    if not isinstance(value, kind):
        raise TypeError(f"{name}: {type(value).__name__} came, a {kind.__name__} from {source} was wanted")


def as_real(
    name: str, value: Any, *, least: float = -math.inf, positive: bool = False, most: float = math.inf
) -> float:
    """Return `value` as a finite float in ``[least, most]`` (``positive`` excludes zero)."""
    if getattr(value, "ndim", None) == 0:
        value = value.item()  # a NumPy, PyTorch or JAX scalar
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"{name}: {value!r} came, a real number was wanted")
    try:
        number = float(value)
    except OverflowError:
        raise ValueError(f"{name}: a number too large for float64 came, a finite number was wanted") from None
    if not math.isfinite(number):
        raise ValueError(f"{name}: {number} came, a finite number was wanted")
    if positive and number <= 0:
        raise ValueError(f"{name}: {number} came, a number above 0 was wanted")
    if number < least:
        raise ValueError(f"{name}: {number} came, at least {least} was wanted")
    if number > most:
        raise ValueError(f"{name}: {number} came, at most {most} was wanted")
    return number


def as_scale(scale: Any, width: int, dtype: Any = np.float32) -> float:
    """Return the logits' scale: `scale` itself, which `dtype` has to hold, or ``1/√d`` for ``None``."""
    if scale is None:
        return 1.0 / math.sqrt(width)
    most = float(np.finfo(dtype).max)
    return as_real("scale", scale, least=-most, most=most)


def as_named_dtype(name: str, value: Any) -> np.dtype[Any]:
    """Return the dtype that `value` names, or raise ``TypeError``."""
    try:
        found: np.dtype[Any] = np.dtype(value)
    except (TypeError, ValueError):
        raise TypeError(f"{name}: {value!r} came, the name of a dtype was wanted") from None
    return found


def as_float_dtype(name: str, value: Any) -> np.dtype[Any]:
    """Return float32 or float64, whichever `value` names."""
    dtype = as_named_dtype(name, value)
    if dtype not in (np.float32, np.float64):
        raise TypeError(f"{name}: {dtype} came, float32 or float64 was wanted")
    return np.dtype(np.float32 if dtype == np.float32 else np.float64)


def as_shape(name: str, value: Any) -> tuple[int, ...]:
    """Return `value` as a tuple of axes, each at least 1."""
    if not isinstance(value, (tuple, list)):
        raise TypeError(f"{name}: {value!r} came, a tuple of integers was wanted")
    return tuple(as_count(name, axis, least=1) for axis in value)


def as_option(name: str, value: Any, known: Iterable[str]) -> str:
    """Return `value` if it is one of `known`, else raise ``ValueError`` listing them."""
    known = tuple(known)
    if not isinstance(value, str) or value not in known:
        listed = ", ".join(repr(option) for option in known)
        raise ValueError(f"{name}: {value!r} came, one of {listed} was wanted")
    return value


def as_upstream(shape: tuple[int, ...], whose: str = "the output's", **dout: Any) -> FloatArray:
    """Return the gradient with respect to an output of the shape `shape`, checked: by name, one."""
    (name,), (upstream,) = dout, as_float_arrays(**dout)
    if upstream.shape != shape:
        raise ValueError(f"{name}: shape {upstream.shape} came, {whose} {shape} was wanted")
    return upstream


def finite_gradients(gradients: Gradients, upstream: str = "dout") -> Gradients:
    """Return a named tuple of gradients, or raise ``ValueError`` naming the first that overflowed."""
    for name, gradient in zip(gradients._fields, gradients, strict=True):  # type: ignore[attr-defined]
        require_finite(f"{upstream}: gradient of {name}", gradient)
    return gradients
