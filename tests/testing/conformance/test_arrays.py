"""Tensors of another library go to the function and come back, by stand-ins that insist on what libraries insist on.

A stand-in for PyTorch's tensors gives its numbers to NumPy only outside a graph, on the CPU and not in bfloat16; one
for JAX's arrays has 64 bits only where they were switched on. Each differentiates by a pullback it was given.
"""

import sys
from types import ModuleType, SimpleNamespace
from typing import ClassVar

import numpy as np
import pytest

from refattn.testing import assert_conforms, check_attention
from refattn.testing.conformance.arrays import jax_vjp, require_library, to_library, to_numpy, torch_autograd
from refattn.testing.conformance.precision import PRECISIONS


class Dtype(str):
    """A dtype of a library, whose text has the library's name before its own."""

    @property
    def name(self):
        return self.rpartition(".")[2]


def rounded(numbers, name):
    return PRECISIONS[name].round(numbers) if name in PRECISIONS else numbers


class Tensor:
    """A stand-in for a tensor of PyTorch; half precisions are held in single."""

    def __init__(self, numbers, name, *, graph=False, device="cpu", pullback=None):
        self.numbers, self.dtype = rounded(numbers, name), Dtype(f"torch.{name}")
        self.graph, self.device, self.pullback = graph, device, pullback

    def to(self, dtype):
        return Tensor(self.numbers, dtype.name)

    def detach(self):
        return Tensor(self.numbers, self.dtype.name, device=self.device)

    def cpu(self):
        return Tensor(self.numbers, self.dtype.name, graph=self.graph)

    def float(self):
        return Tensor(self.numbers, "float32")

    def requires_grad_(self, required):
        self.graph = required
        return self

    def __array__(self, dtype=None, copy=None):
        if self.graph or self.device != "cpu" or self.dtype.name == "bfloat16":
            raise TypeError("no array of NumPy without detach, cpu or float")
        return np.asarray(self.numbers, self.dtype.name)


def grad(out, leaves, dout):
    assert all(leaf.graph for leaf in leaves)
    assert dout.dtype == out.dtype
    return tuple(Tensor(g, out.dtype.name, graph=True) for g in out.pullback(dout.numbers))


@pytest.fixture
def torch(monkeypatch):
    """A module in the place of ``torch``."""
    module = ModuleType("torch")
    module.from_numpy = lambda array: Tensor(array, array.dtype.name)
    module.autograd = SimpleNamespace(grad=grad)
    for name in (*PRECISIONS, "bool"):
        setattr(module, name, Dtype(f"torch.{name}"))
    monkeypatch.setitem(sys.modules, "torch", module)
    return module


class Array:
    """A stand-in for an array of JAX."""

    def __init__(self, numbers, name, pullback=None):
        self.numbers, self.dtype, self.pullback = rounded(numbers, str(name)), np.dtype(str(name)), pullback

    def astype(self, dtype):
        return Array(self.numbers, dtype)

    def __array__(self, dtype=None, copy=None):
        return self.numbers


@pytest.fixture
def jax(monkeypatch):
    """A module in the place of ``jax``, without 64 bits."""

    def vjp(function, *arrays):
        out = function(*arrays)

        def pullback(dout):
            assert dout.dtype == out.dtype
            return [Array(g, out.dtype) for g in out.pullback(dout.numbers)]

        return out, pullback

    module, numbers = ModuleType("jax"), ModuleType("jax.numpy")
    module.config, module.vjp = SimpleNamespace(jax_enable_x64=False), vjp
    numbers.asarray = lambda array, dtype: Array(array, dtype)
    monkeypatch.setitem(sys.modules, "jax", module)
    monkeypatch.setitem(sys.modules, "jax.numpy", numbers)
    return module


@pytest.fixture
def tensors(kernels):
    """Exact attention of stand-ins for tensors, which can be differentiated."""
    forward, backward = kernels.dense()

    def attention(q, k, v, *, causal, scale, mask):
        arrays, options = [x.numbers for x in (q, k, v)], {"causal": causal, "scale": scale, "mask": as_mask(mask)}
        assert len({x.dtype for x in (q, k, v)}) == 1

        def pullback(dout):
            return backward(dout, *arrays, **options)

        return Tensor(forward(*arrays, **options), q.dtype.name, graph=True, device="gpu", pullback=pullback)

    return attention


def as_mask(mask):
    return None if mask is None else mask.numbers


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "bfloat16"])
def test_attention_of_tensors_and_its_autograd_conform(dtype, torch, tensors):
    few = ["n = 16", "4 on 2", "deviation 4"]
    report = assert_conforms(tensors, "dense", backward="autograd", arrays="torch", dtype=dtype, only=few)
    assert report.backward
    assert report.counts()["not run"] == 0
    assert {j.result for case in report.cases for j in case.judgements} == {"out", "dq", "dk", "dv"}


def test_a_mask_comes_as_a_tensor_of_its_own_dtype(torch, tensors):
    assert_conforms(tensors, "dense", backward="autograd", arrays="torch", only=["mask: random"], profile="quick")


def test_a_wrong_gradient_of_autograd_is_named(torch, tensors):
    def wrong(*arrays, **options):
        out = tensors(*arrays, **options)
        right = out.pullback
        out.pullback = lambda dout: tuple(1.01 * g for g in right(dout))
        return out

    report = check_attention(wrong, "dense", backward="autograd", arrays="torch", only=["n = 16"])
    assert [j.result for j in report.failures[0].judgements if not j.passed] == ["dq", "dk", "dv"]
    assert report.causes[0].name == "constant factor"


def test_autograd_is_asked_for_the_options_that_the_function_takes(torch, tensors):
    def without_mask(q, k, v, *, causal, scale):
        return tensors(q, k, v, causal=causal, scale=scale, mask=None)

    report = assert_conforms(
        without_mask, "dense", backward="autograd", arrays="torch", only=["n = 16", "mask: random"], profile="quick"
    )
    assert report.counts() == {"pass": 1, "fail": 0, "refused": 0, "not run": 2}


def test_a_tensor_leaves_its_graph_and_its_device(torch):
    numbers = np.array([[1.0, 2.0**-7 + 1, -3.0]])
    for name in PRECISIONS:
        tensor = Tensor(numbers, name, graph=True, device="gpu")
        array, dtype = to_numpy(tensor, "out")
        assert (array.tolist(), dtype) == (numbers.tolist(), name)
        assert array.dtype == ("float32" if name == "bfloat16" else name)


@pytest.mark.parametrize("library", ["numpy", "torch"])
@pytest.mark.parametrize("dtype", PRECISIONS)
def test_numbers_that_a_dtype_has_arrive_as_they_are_in_rows(library, dtype, torch):
    numbers = np.arange(12.0).reshape(3, 4).T
    there = to_library(numbers, library, dtype)
    if library == "numpy":
        assert there.flags.c_contiguous
    assert str(there.dtype).rpartition(".")[2] == dtype
    back, came = to_numpy(there, "out")
    assert came == dtype
    np.testing.assert_array_equal(back, numbers)


def test_numpy_has_no_bfloat16_without_a_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "ml_dtypes", None)
    with pytest.raises(ModuleNotFoundError, match=r"^dtype: 'bfloat16' in NumPy's arrays .* needs ml_dtypes"):
        require_library("numpy", "bfloat16")


def test_what_has_no_dtype_counts_as_double():
    assert to_numpy([[1, 2]], "out")[1] == "float64"


def test_attention_of_jax_and_its_vjp_conform(jax, kernels):
    forward, backward = kernels.dense()

    def attention(q, k, v, *, causal, scale, mask):
        arrays, options = [x.numbers for x in (q, k, v)], {"causal": causal, "scale": scale, "mask": as_mask(mask)}
        return Array(forward(*arrays, **options), q.dtype, lambda dout: backward(dout, *arrays, **options))

    few = ["n = 16", "4 on 2", "mask: random and"]
    report = assert_conforms(attention, "dense", backward="autograd", arrays="jax", only=few)
    assert {j.result for case in report.cases for j in case.judgements} == {"out", "dq", "dk", "dv"}


def test_double_precision_of_jax_has_to_be_switched_on(jax):
    with pytest.raises(ValueError, match=r"^dtype: float64 came while JAX has it switched off"):
        require_library("jax", "float64")
    jax.config.jax_enable_x64 = True
    assert to_library(np.ones(2), "jax", "float64").dtype == "float64"


def test_an_upstream_gradient_is_of_the_dtype_of_the_output(jax):
    halved = jax_vjp(lambda x: Array(0.5 * x.numbers, "float32", lambda dout: [0.5 * dout]))
    (gradient,) = halved(Array(np.ones(3), "float64"), Array(np.ones(3), "float32"))
    assert gradient.dtype == "float32"
    np.testing.assert_array_equal(gradient.numbers, 0.5)


def test_autograd_leaves_the_inputs_outside_its_graph(torch):
    def doubled(x):
        return Tensor(2 * x.numbers, "float32", pullback=lambda dout: [2 * dout])

    x = Tensor(np.ones(3), "float32")
    (gradient,) = torch_autograd(doubled)(Tensor(np.full(3, 5.0), "float32"), x)
    assert not x.graph
    np.testing.assert_array_equal(gradient.numbers, 10.0)


@pytest.mark.needs("torch")
def test_tensors_are_made_on_the_device_asked_for():
    import torch

    devices = set()

    def attention(q, k, v, *, causal, scale):
        devices.update(x.device.type for x in (q, k, v))
        return torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=causal, scale=scale)

    assert_conforms(attention, "dense", arrays="torch", device="cpu", backward="autograd", only=["n = 16"])
    assert devices == {"cpu"}
    assert to_library(np.ones(2), "torch", "float32", "meta").device.type == "meta"
    with pytest.raises(ValueError, match=r"^device: 'abacus' came, where torch can make no array"):
        check_attention(attention, "dense", arrays="torch", device="abacus")


@pytest.mark.parametrize("arrays", ["numpy", "cupy"])
def test_a_device_is_refused_where_arrays_are_where_they_are(monkeypatch, arrays):
    monkeypatch.setitem(sys.modules, "cupy", ModuleType("cupy"))
    with pytest.raises(ValueError, match=rf"^device: 'cuda' came with arrays='{arrays}'"):
        require_library(arrays, "float32", "cuda")


def test_cupy_has_no_bfloat16(monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", ModuleType("cupy"))
    with pytest.raises(ValueError, match=r"^dtype: bfloat16 came, which CuPy's arrays are not"):
        require_library("cupy", "bfloat16")


def test_attention_of_cupy_conforms(monkeypatch, kernels):
    """By a stand-in whose arrays go to the host only when asked."""

    class Held:
        __cuda_array_interface__: ClassVar = {}

        def __init__(self, numbers):
            self.numbers, self.dtype = np.array(numbers), numbers.dtype

        def get(self):
            return self.numbers.copy()

        def __array__(self, dtype=None, copy=None):
            raise TypeError("Implicit conversion to a NumPy array is not allowed.")

    module = ModuleType("cupy")
    module.asarray = Held
    monkeypatch.setitem(sys.modules, "cupy", module)
    forward, _ = kernels.dense()

    def attention(q, k, v, *, causal, scale, mask):
        arrays = [x.numbers for x in (q, k, v)]
        return Held(forward(*arrays, causal=causal, scale=scale, mask=as_mask(mask)))

    few = ["n = 16", "4 on 2", "mask: random and"]
    assert_conforms(attention, "dense", arrays="cupy", only=few, profile="quick")
