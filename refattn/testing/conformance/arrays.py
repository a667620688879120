"""Arrays of other libraries: to them, back, and their automatic gradients (ours)."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from refattn._needs import missing, not_there
from refattn._validation import as_array, as_option
from refattn.testing.conformance.dlpack import from_dlpack

LIBRARIES = ("numpy", "torch", "jax", "cupy")


def require_library(library: str, dtype: str, device: str | None = None) -> None:
    """Refuse arrays that cannot be made here: that is nobody's kernel's fault."""
    if absent := not_there([as_option("arrays", library, LIBRARIES)]):
        raise missing(f"arrays: {library!r}", *absent)
    if library == "jax" and dtype == "float64" and not importlib.import_module("jax").config.jax_enable_x64:
        raise ValueError("dtype: float64 came while JAX has it switched off; set JAX_ENABLE_X64=1")
    if library == "numpy" and dtype == "bfloat16" and not_there(["ml_dtypes"]):
        raise missing("dtype: 'bfloat16' in NumPy's arrays (arrays='torch' and 'jax' have it)", "ml_dtypes")
    if library == "cupy" and dtype == "bfloat16":
        raise ValueError("dtype: bfloat16 came, which CuPy's arrays are not; float32, float64 or float16 was wanted")
    if device is None:
        return
    if library not in ("torch", "jax"):
        raise ValueError(f"device: {device!r} came with arrays={library!r}, which are where they are; None was wanted")
    try:
        to_library(np.zeros(1), library, "float32", device)
    except Exception as error:  # each library's own: no such device, no driver, not compiled for it
        raise ValueError(f"device: {device!r} came, where {library} can make no array: {error}") from None


def to_library(array: NDArray[Any], library: str, dtype: str, device: str | None = None) -> Any:
    """Return an array of the library and dtype asked for; its values are exactly those of `array`, or rounded."""
    if library == "torch":
        torch: Any = importlib.import_module("torch")
        tensor = torch.from_numpy(np.ascontiguousarray(array)).to(getattr(torch, dtype))
        return tensor if device is None else tensor.to(device)
    if library == "jax":
        made = importlib.import_module("jax.numpy").asarray(array, dtype=dtype)
        if device is None:
            return made
        jax: Any = importlib.import_module("jax")
        return jax.device_put(made, jax.devices(device)[0])
    if dtype == "bfloat16":
        return np.ascontiguousarray(array.astype(importlib.import_module("ml_dtypes").bfloat16))
    rows = np.ascontiguousarray(array.astype(dtype, copy=False))
    return importlib.import_module("cupy").asarray(rows) if library == "cupy" else rows


def to_numpy(result: Any, name: str) -> tuple[NDArray[Any], str]:
    """Return a copy of a function's result, an array that NumPy computes with, and the name of the dtype it came in.

    The function may fill its own array again at the next call.
    """
    if hasattr(result, "detach"):  # PyTorch: out of the graph, and off another device
        result = result.detach().cpu()
    elif hasattr(result, "__cuda_array_interface__") and hasattr(result, "get"):  # CuPy: it refuses to do so unasked
        result = result.get()
    dtype = str(getattr(result, "dtype", "")).rpartition(".")[2]
    if dtype == "bfloat16" and hasattr(result, "float"):  # PyTorch's has no NumPy counterpart
        result = result.float()
    try:
        array = np.array(as_array(name, result))
        read = array.dtype.name if hasattr(result, "__dlpack__") else "float64"
    except (TypeError, ValueError):
        if not hasattr(result, "__dlpack__"):
            raise
        array, read = from_dlpack(name, result)  # bfloat16, or memory of another device
    dtype = dtype or read
    return (array.astype(np.float32) if dtype == "bfloat16" else array), dtype


def torch_autograd(function: Callable[..., Any]) -> Callable[..., tuple[Any, ...]]:
    """Return the backward of a function of PyTorch tensors, by PyTorch's autograd.

    ``backward(dout, *inputs, **options)`` returns a gradient for every input.
    """
    torch: Any = importlib.import_module("torch")

    def backward(dout: Any, *inputs: Any, **options: Any) -> tuple[Any, ...]:
        leaves = [x.detach().requires_grad_(True) for x in inputs]
        return tuple(torch.autograd.grad(function(*leaves, **options), leaves, dout))

    return _takes_what(backward, function)


def jax_vjp(function: Callable[..., Any]) -> Callable[..., tuple[Any, ...]]:
    """Return the backward of a function of JAX arrays, by ``jax.vjp``; otherwise as `torch_autograd`."""
    jax: Any = importlib.import_module("jax")

    def backward(dout: Any, *inputs: Any, **options: Any) -> tuple[Any, ...]:
        out, pullback = jax.vjp(lambda *arrays: function(*arrays, **options), *inputs)
        return tuple(pullback(dout.astype(out.dtype)))

    return _takes_what(backward, function)


def _takes_what(backward: Callable[..., Any], function: Callable[..., Any]) -> Callable[..., Any]:
    """Let the backward be asked for the options it takes: those of the function."""
    backward.__signature__ = inspect.signature(function)  # type: ignore[attr-defined]
    return backward
