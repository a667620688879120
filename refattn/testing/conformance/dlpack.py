"""Arrays of any library by DLPack, copied to the host; bfloat16 too, which NumPy's own reader refuses (ours).

Follows the structures of DLPack 0.8 and 1 (https://dmlc.github.io/dlpack/latest/c_api.html). A capsule is asked for
without a version, as every producer gives it.
"""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
from numpy.typing import NDArray

CPU, PINNED = 1, 3
"""Devices whose memory can be read from here: the processor's, and that which a CUDA or ROCm driver holds in place."""

_CODES = {0: "int", 1: "uint", 2: "float", 4: "bfloat", 6: "bool"}


class _Tensor(ctypes.Structure):
    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32),
        ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    )


def from_dlpack(name: str, array: Any) -> tuple[NDArray[Any], str]:
    """Return a copy of an array and the name of its dtype; bfloat16 comes as float32, which holds its numbers.

    Raise ``TypeError`` naming the array where its memory is another device's and the library brings no copy.
    """
    capsule = _capsule(name, array)
    pointer = ctypes.pythonapi.PyCapsule_GetPointer
    pointer.restype, pointer.argtypes = ctypes.c_void_p, (ctypes.py_object, ctypes.c_char_p)
    tensor = _Tensor.from_address(pointer(capsule, b"dltensor"))
    kind = _CODES.get(tensor.code, "unknown")
    if kind == "unknown" or tensor.lanes != 1:
        raise TypeError(f"{name}: a DLPack array of type code {tensor.code} came, numbers were wanted")
    dtype = "bool" if kind == "bool" else f"{kind}{tensor.bits}"
    held = np.dtype("uint16" if dtype == "bfloat16" else dtype)
    shape = tuple(tensor.shape[i] for i in range(tensor.ndim))
    if not all(shape):
        return np.empty(shape, np.float32 if dtype == "bfloat16" else held), dtype
    strides = tuple(tensor.strides[i] * held.itemsize for i in range(tensor.ndim)) if tensor.strides else None
    span = 1 + sum((n - 1) * abs(step) for n, step in zip(shape, strides or (), strict=strides is not None))
    size = span - 1 + held.itemsize if strides else int(np.prod(shape)) * held.itemsize
    if strides and min(strides, default=0) < 0:
        raise TypeError(f"{name}: a DLPack array with negative strides came, rows in ascending order were wanted")
    memory = (ctypes.c_uint8 * size).from_address(tensor.data + tensor.byte_offset)
    copy = np.array(np.ndarray(shape, held, memoryview(memory), strides=strides))
    del memory, tensor
    if dtype == "bfloat16":  # the upper half of a float32
        copy = (copy.astype(np.uint32) << np.uint32(16)).view(np.float32)
    return copy, dtype


def _capsule(name: str, array: Any) -> Any:
    """A capsule whose memory can be read here, asking for a copy where it is another device's."""
    device, _ = array.__dlpack_device__() if hasattr(array, "__dlpack_device__") else (CPU, 0)
    if int(device) in (CPU, PINNED):
        return array.__dlpack__()
    try:
        return array.__dlpack__(dl_device=(CPU, 0), copy=True)
    except Exception as error:  # each library's own refusal
        raise TypeError(
            f"{name}: a {type(array).__name__} on a device of DLPack type {int(device)} came, which brings no copy to"
            f" the CPU ({error}); return its copy on the host"
        ) from error
