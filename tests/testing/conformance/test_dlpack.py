"""Arrays that have nothing but DLPack, on the processor and on another device, in every dtype of a kernel."""

import ctypes

import numpy as np
import pytest

from refattn.testing import assert_conforms
from refattn.testing.conformance.arrays import to_numpy
from refattn.testing.conformance.dlpack import _Tensor, from_dlpack

CODES = {
    "float16": (2, 16),
    "float32": (2, 32),
    "float64": (2, 64),
    "bfloat16": (4, 16),
    "bool": (6, 8),
    "int64": (0, 64),
}
DELETER = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


class Managed(ctypes.Structure):
    _fields_ = (("tensor", _Tensor), ("context", ctypes.c_void_p), ("deleter", DELETER))


class Foreign:
    """An array of a library that has DLPack and no more: no NumPy, no dtype, perhaps on a device of its own."""

    CUDA = 2

    def __init__(self, numbers, dtype, device=1, copies=True):
        self.numbers, self.name, self.device, self.copies = np.asarray(numbers), dtype, device, copies
        if dtype == "bfloat16":
            self.numbers = (np.asarray(numbers, np.float32).view(np.uint32) >> 16).astype(np.uint16)

    def __dlpack_device__(self):
        return self.device, 0

    def __dlpack__(self, *, stream=None, max_version=None, dl_device=None, copy=None):
        if self.device != 1 and (dl_device != (1, 0) or not self.copies):
            raise BufferError("this memory is the device's")
        code, bits = CODES[self.name]
        self.lengths = (ctypes.c_int64 * self.numbers.ndim)(*self.numbers.shape)
        self.steps = (ctypes.c_int64 * self.numbers.ndim)(*(s // self.numbers.itemsize for s in self.numbers.strides))
        tensor = _Tensor(self.numbers.ctypes.data, 1, 0, self.numbers.ndim, code, bits, 1, self.lengths, self.steps, 0)
        self.managed = Managed(tensor, None, DELETER())
        make = ctypes.pythonapi.PyCapsule_New
        make.restype, make.argtypes = ctypes.py_object, (ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p)
        return make(ctypes.addressof(self.managed), b"dltensor", None)


@pytest.mark.parametrize("device", [1, Foreign.CUDA], ids=["processor", "another device"])
@pytest.mark.parametrize("dtype", CODES)
def test_numbers_arrive_with_the_name_of_their_dtype(dtype, device):
    numbers = np.array([[1.0, 2.5, -3.0], [0.0, 128.0, 1.0]])
    held = numbers if dtype == "bfloat16" else numbers.astype(dtype)
    array, name = to_numpy(Foreign(held, dtype, device), "out")
    assert name == dtype
    np.testing.assert_array_equal(array, held)
    assert array.base is None


def test_strides_are_followed_and_what_comes_is_a_copy():
    numbers = np.arange(24.0, dtype=np.float32).reshape(2, 3, 4)
    foreign = Foreign(numbers.transpose(2, 0, 1)[::2], "float32")
    array, _ = from_dlpack("out", foreign)
    np.testing.assert_array_equal(array, numbers.transpose(2, 0, 1)[::2])
    numbers[:] = 0
    assert array.any()


def test_an_empty_array_is_one():
    assert from_dlpack("out", Foreign(np.zeros((2, 0), np.float32), "float32"))[0].shape == (2, 0)


def test_memory_of_a_device_without_a_copy_is_refused_by_name():
    with pytest.raises(TypeError, match=r"^out: a Foreign on a device of DLPack type 2 came, which brings no copy"):
        to_numpy(Foreign(np.ones(2, np.float32), "float32", Foreign.CUDA, copies=False), "out")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_function_that_returns_them_conforms(kernels, dtype):
    pytest.importorskip("ml_dtypes", reason="needs ml_dtypes")
    forward, _ = kernels.dense()

    def attention(q, k, v, **options):
        out = forward(*(x.astype(np.float32) for x in (q, k, v)), **options)
        held = out.astype(q.dtype).astype(np.float32) if dtype == "bfloat16" else out
        return Foreign(held, dtype, Foreign.CUDA)

    assert_conforms(attention, "dense", dtype=dtype, profile="quick", only=["n = 16", "4 on 2"])


class OfCuPy:
    """A stand-in for an array of CuPy, which refuses to go to the host unasked."""

    def __init__(self, numbers):
        self.numbers, self.dtype = numbers, numbers.dtype
        self.__cuda_array_interface__ = {}

    def get(self):
        return self.numbers

    def __array__(self, dtype=None, copy=None):
        raise TypeError("Implicit conversion to a NumPy array is not allowed. Please use `.get()`")


def test_an_array_of_cupy_is_copied_to_the_host():
    array, name = to_numpy(OfCuPy(np.ones(3, np.float16)), "out")
    assert (array.tolist(), name) == ([1, 1, 1], "float16")


@pytest.mark.needs("torch")
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "float64"])
def test_pytorch_s_own_capsules_are_read(dtype):
    import torch

    tensor = torch.arange(6, dtype=getattr(torch, dtype)).reshape(2, 3).T
    array, name = from_dlpack("out", tensor)
    assert name == dtype
    np.testing.assert_array_equal(array, np.arange(6).reshape(2, 3).T)
